"""Circuits: combinational and-inverter graphs from AIGER, structural Verilog, aigverse and torch_geometric objects."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from repertory.data.circuits.aiger import read_aiger
from repertory.data.circuits.circuit import Circuit, aigverse, exhaustive
from repertory.data.circuits.verilog import read_verilog, read_verilog_file
from repertory.data.items import Items, Preview, Reader
from repertory.data.pickles import read_pickle
from repertory.data.tables import ids_of, read_table, to_arrow
from repertory.errors import DataError, nearest

__all__ = ["Circuit", "Circuits", "aigverse", "circuits_of", "exhaustive", "read_circuit", "read_verilog"]

SUFFIXES = (".aig", ".aag", ".v")
"""Of files, the first that is there of each name."""


class Circuits(Items):
    """Combinational circuits.

    Args:
        ids: one unique name per circuit.
        circuits: each one, or the error with which it could not be read.
        columns: whatever else is known, a row per circuit.
    """

    kind = "circuits"
    readers: ClassVar[tuple[Reader, ...]]

    def __init__(
        self, ids: Iterable[str], circuits: Sequence[Circuit | DataError], columns: Any = None, roles: Any = None
    ) -> None:
        super().__init__(ids, columns, roles)
        self.circuits: list[Any] = list(circuits)

    def check(self, index: int) -> str:
        circuit = self.circuits[index]
        if isinstance(circuit, DataError):
            raise circuit
        made: str = circuit.check()
        return made

    def _select(self, indices: np.ndarray) -> None:
        self.circuits = [self.circuits[i] for i in indices]

    def _extend(self, parts: Sequence[Circuits]) -> None:
        self.circuits = [circuit for part in parts for circuit in part.circuits]

    @classmethod
    def wrap(cls, source: Any) -> Circuits:
        if isinstance(source, Mapping) and "edge_index" not in source:
            return circuits_of(list(map(str, source)), [_wrapped(value) for value in source.values()])
        many = list(source) if isinstance(source, (list, tuple)) else [source]
        return circuits_of([_named(value, number) for number, value in enumerate(many)], list(map(_wrapped, many)))

    def preview(self, index: int) -> Preview:
        counts = self.circuits[index].counts
        return Preview(text=", ".join(f"{value} {name}" for name, value in counts.items()))


def circuits_of(ids: Sequence[str], circuits: Sequence[Circuit | DataError], families: Sequence[str] = ()) -> Circuits:
    """Circuits with their counts, and families as labels where they are known."""
    columns: dict[str, Any] = {"family": list(families)} if families else {}
    whole = [c if isinstance(c, Circuit) and _checks(c) else None for c in circuits]
    for name in ("inputs", "outputs", "gates", "inverters", "depth"):
        columns[name] = [None if c is None else c.counts[name] for c in whole]
    return Circuits(ids, circuits, columns, {"label": ("family",)} if families else {})


def _checks(circuit: Circuit) -> bool:
    """Whether it can be counted; what is wrong is said when the circuit is opened."""
    try:
        return bool(circuit.check())
    except DataError:
        return False


def _named(value: Any, number: int) -> str:
    return Path(value).stem if isinstance(value, (str, Path)) else f"{number:05d}"


def _wrapped(value: Any) -> Circuit:
    """A circuit from what the field has in memory."""
    if isinstance(value, Circuit):
        return value
    if isinstance(value, (str, Path)):
        return read_circuit(Path(value))
    if type(value).__module__.startswith("aigverse") and hasattr(value, "to_graph_tensors"):
        if hasattr(value, "registers") or type(value).__name__.startswith("Sequential"):
            raise DataError(f"a {type(value).__name__}: sequential; only combinational circuits are read")
        return Circuit.of_aig(value)
    if isinstance(value, Mapping) or hasattr(value, "edge_index"):
        return Circuit.of_fields(value, type(value).__name__)
    raise DataError(
        f"{type(value).__name__} is no circuit: give aigverse Aig objects, torch_geometric Data with node_type, "
        "edge_index and edge_type, Circuit objects, or paths of AIGER and Verilog files"
    )


def read_circuit(path: Path) -> Circuit:
    """A file; beside an AIGER file, the Verilog file of the same name is its text.

    Raises:
        DataError: it is not there, or not a combinational circuit.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix == ".v":
        return read_verilog_file(path)
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: no circuit; files end in {', '.join(SUFFIXES)}")
    circuit, source = read_aiger(path), path.with_suffix(".v")
    if source.exists():
        return replace(circuit, verilog=source.read_text(encoding="utf-8", errors="replace"))
    return circuit


def read_circuits(path: Path, vectors: str = "") -> Circuits:
    """A file, or a folder of files; subfolders are families.

    Args:
        vectors: a file of text vectors by name: ``.npz``, ``.npy`` of a dict, or a table with ``id`` and ``vector``.
    """
    if path.is_file():
        files, root = [path], path.parent
    else:
        named: dict[Path, Path] = {}
        for suffix in SUFFIXES:
            for file in sorted(path.rglob(f"*{suffix}")):
                named.setdefault(file.with_suffix(""), file)
        files, root = sorted(named.values()), path
    if not files:
        raise DataError(f"{path}: no circuit in it (looked for {', '.join(SUFFIXES)})")
    ids = [file.relative_to(root).with_suffix("").as_posix() for file in files]
    families = [file.relative_to(root).parent.as_posix() for file in files]
    circuits = [_read(file) for file in files]
    if vectors:
        circuits = with_vectors(ids, circuits, Path(vectors) if Path(vectors).exists() else root / vectors)
    return circuits_of(ids, circuits, families if any(family != "." for family in families) else ())


def _read(path: Path) -> Circuit | DataError:
    try:
        return read_circuit(path)
    except DataError as error:
        return error


def read_table_of_circuits(path: Path, vectors: str = "") -> Circuits:
    """A CSV or Parquet table with a column ``path`` (relative to the table); ``id``, ``family`` and others are kept."""
    frame = read_table(path)
    if "path" not in frame:
        raise DataError(f"{path}: no column 'path'{nearest('path', map(str, frame.columns))}")
    files = [path.parent / str(file) for file in frame["path"]]
    ids = (
        ids_of(frame, "id") if "id" in frame else [Path(str(file)).with_suffix("").as_posix() for file in frame["path"]]
    )
    circuits = [_read(file) for file in files]
    if vectors:
        circuits = with_vectors(ids, circuits, path.parent / vectors)
    made = circuits_of(ids, circuits)
    carried = to_arrow(frame.drop(columns=[name for name in ("id", "path") if name in frame]))
    for name in carried.column_names:
        if name in made.columns.column_names:
            made.columns = made.columns.drop_columns([name])
        made.columns = made.columns.append_column(name, carried[name])
    if "family" in carried.column_names:
        made.roles = {"label": ("family",)}
    return made


def with_vectors(ids: Sequence[str], circuits: Sequence[Circuit | DataError], path: Path) -> list[Circuit | DataError]:
    """Circuits with the text vectors of a file.

    Raises:
        DataError: the file cannot be read; a circuit without a vector, of another width, or with NaN, by name.
    """
    found = read_vectors(path)
    made: list[Circuit | DataError] = []
    width = None
    for name, circuit in zip(ids, circuits, strict=True):
        if name not in found:
            raise DataError(f"{path.name}: no text vector for '{name}'{nearest(name, found)}")
        vector = found[name]
        if vector.dtype.kind != "f" or vector.ndim != 1 or not np.isfinite(vector).all():
            raise DataError(f"{path.name}: the text vector of '{name}' is no row of finite floats")
        width = len(vector) if width is None else width
        if len(vector) != width:
            raise DataError(f"{path.name}: the text vector of '{name}' has {len(vector)} numbers, others {width}")
        made.append(replace(circuit, text=vector.astype(np.float32)) if isinstance(circuit, Circuit) else circuit)
    return made


def read_vectors(path: Path) -> dict[str, np.ndarray]:
    """Vectors by name from ``.npz``, ``.npy`` holding a dict (as the paper's), or a table ``id``, ``vector``.

    Raises:
        DataError: no such file, or another layout; nothing is unpickled but plain values and arrays.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    elif path.suffix == ".npy":
        found = _dict_of(path)
    else:
        frame = read_table(path)
        if "id" not in frame or "vector" not in frame:
            raise DataError(f"{path}: columns 'id' and 'vector' are needed")
        found = dict(zip(ids_of(frame, "id"), frame["vector"], strict=True))
    made = {name: np.asarray(value) for name, value in found.items()}
    return {name: value[0] if value.ndim == 2 and len(value) == 1 else value for name, value in made.items()}


def _dict_of(path: Path) -> dict[str, Any]:
    """The dict that ``np.save`` pickled into an array of one object."""
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            read(file)
        except ValueError:
            raise DataError(f"{path}: not a .npy file") from None
        content = file.read()
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.name
        plain.write_bytes(content)
        value = read_pickle(plain)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds {type(value).__name__}; a dict of vectors by name is needed")
    return {str(name): vector for name, vector in value.items()}


def _is_table(path: Path) -> bool:
    if path.suffix == ".parquet":
        return True
    if path.suffix != ".csv" or not path.is_file():
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        return "path" in file.readline().strip().split(",")


Circuits.readers = (
    Reader("circuits", "AIGER (.aig, .aag), structural Verilog (.v), or a folder; Verilog beside it is its text",
           lambda p: p.is_dir() or p.suffix in SUFFIXES, read_circuits),
    Reader("table", "a CSV or Parquet table with the column path (and id, family, ...)", _is_table,
           read_table_of_circuits),
)  # fmt: skip
