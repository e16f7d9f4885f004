"""Pickles of official data sets, read by an unpickler that makes plain values and calls nothing else."""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

from repertory.errors import DataError, first_line

ALLOWED = {
    ("builtins", name) for name in ("list", "dict", "set", "tuple", "frozenset", "int", "float", "str", "complex")
} | {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{package}.multiarray", "_reconstruct"),
        (f"{package}.multiarray", "scalar"),
        (f"{package}.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
    )
}
"""What may be made as it is named: containers, numbers, texts, NumPy arrays of numbers."""


class _Sparse:
    """Takes the place of a sparse matrix: holds what the pickle says of it, and nothing of SciPy's code."""

    def matrix(self) -> Any:
        """SciPy's own, made of these numbers; its checks refuse indices outside."""
        import scipy.sparse

        held = vars(self)
        shape = tuple(int(side) for side in held.get("_shape", held.get("shape", ())))
        if isinstance(self, _Coordinates):
            entries = held["coords"] if "coords" in held else (held["row"], held["col"])
            return scipy.sparse.coo_matrix((held["data"], tuple(entries)), shape=shape)
        form = scipy.sparse.csc_matrix if isinstance(self, _Columns) else scipy.sparse.csr_matrix
        made = form((held["data"], held["indices"], held["indptr"]), shape=shape)
        made.check_format(full_check=True)
        return made


class _Rows(_Sparse): ...


class _Columns(_Sparse): ...


class _Coordinates(_Sparse): ...


def _reconstructor(kind: type, base: type, state: Any) -> _Sparse:
    """In place of ``copy_reg._reconstructor``, by which Python 2 wrote objects."""
    if not issubclass(kind, _Sparse) or base is not object:
        raise DataError(f"it holds a {kind.__name__} where a matrix should be")
    return kind()


REPLACED: dict[tuple[str, str], Any] = {
    ("__builtin__", "object"): object,
    ("__builtin__", "list"): list,
    ("collections", "defaultdict"): defaultdict,
    ("copy_reg", "_reconstructor"): _reconstructor,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("_codecs", "encode"): str.encode,
} | {
    (f"scipy.sparse{module}", f"{form}_{kind}"): place
    for form, place in (("csr", _Rows), ("csc", _Columns), ("coo", _Coordinates))
    for module in (f".{form}", f"._{form}")
    for kind in ("matrix", "array")
}
"""What is made in place of what a pickle names."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in REPLACED:
            return REPLACED[module, name]
        if (module, name) not in ALLOWED:
            raise DataError(
                f"it holds {module}.{name}, which is not read (only lists, dicts, numbers, texts, arrays, matrices)"
            )
        return super().find_class(module, name)


def read_pickle(path: Path, encoding: str = "ASCII") -> Any:
    """The value in a pickle; a sparse matrix of SciPy as itself.

    Args:
        encoding: of the texts and arrays of a pickle that Python 2 wrote; ``latin1`` for NumPy's arrays.

    Raises:
        DataError: no such file, it is damaged, or it holds anything but plain values and arrays.
    """
    try:
        made = _Unpickler(io.BytesIO(path.read_bytes()), encoding=encoding).load()
        return made.matrix() if isinstance(made, _Sparse) else made
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path}: not a pickle that can be read: {first_line(error)}") from None
