"""Pickles of official data sets, read by an unpickler that makes plain values and calls nothing else."""

from __future__ import annotations

import io
import pickle
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
"""What may be made: containers, numbers, texts, NumPy arrays of numbers."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise DataError(f"it holds {module}.{name}, which is not read (only lists, dicts, numbers, texts, arrays)")
        return super().find_class(module, name)


def read_pickle(path: Path, encoding: str = "ASCII") -> Any:
    """The value in a pickle.

    Args:
        encoding: of the texts and arrays of a pickle that Python 2 wrote; ``latin1`` for NumPy's arrays.

    Raises:
        DataError: no such file, it is damaged, or it holds anything but plain values and arrays.
    """
    try:
        return _Unpickler(io.BytesIO(path.read_bytes()), encoding=encoding).load()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path}: not a pickle that can be read: {first_line(error)}") from None
