"""Embeddings: a table of key columns, one vector column, and columns that are carried along."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from repertory.data.items import texts
from repertory.errors import DataError, MissingExtraError, UserError, first_line, nearest
from repertory.runs import write_atomic

VECTOR = "vector"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors [N, width] float32 with their keys.

    Attributes:
        table: the key columns, then ``vector``, then carried columns.
        key: names of the key columns: what one vector stands for.
        fingerprint: of the run that made the vectors; vectors of two runs are never mixed.
    """

    table: pa.Table
    key: tuple[str, ...]
    fingerprint: str = ""

    @classmethod
    def build(cls, vectors: np.ndarray, fingerprint: str = "", **keys: Sequence[Any]) -> Embeddings:
        """Embeddings from vectors [N, width] and one sequence per key column.

        Raises:
            DataError: the vectors are not finite, or the lengths differ.
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if vectors.ndim != 2:
            raise DataError(f"vectors have shape {list(vectors.shape)}; [N, width] is needed")
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise DataError(
                f"vector {int(np.argmin(finite))} is not finite: the model has diverged or its input is not finite"
            )
        flat = pa.array(vectors.reshape(-1))
        columns = {name: pa.array(list(values)) for name, values in keys.items()}
        for name, values in columns.items():
            if len(values) != len(vectors):
                raise DataError(f"{len(vectors)} vectors but {len(values)} values of key '{name}'")
        columns[VECTOR] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        return cls(pa.table(columns), tuple(keys), fingerprint)

    @classmethod
    def concat(cls, parts: Iterable[Embeddings]) -> Embeddings:
        """Several tables of one run as one.

        Raises:
            DataError: they come from different runs, or differ in key or width.
        """
        parts = list(parts)
        if not parts:
            raise DataError("nothing was embedded: there is no item")
        first = parts[0]
        for part in parts[1:]:
            if (part.fingerprint, part.key, part.width) != (first.fingerprint, first.key, first.width):
                raise DataError("vectors of different runs are never mixed: embed all data with one run")
        try:
            table = pa.concat_tables([part.table for part in parts], promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(f"the carried columns do not fit together: {first_line(error)}") from None
        return cls(table, first.key, first.fingerprint)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def width(self) -> int:
        """Length of a vector."""
        return int(self.table.schema.field(VECTOR).type.list_size)

    @cached_property
    def vectors(self) -> np.ndarray:
        """[N, width] float32."""
        column = self.table[VECTOR].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(self), self.width)

    def to_numpy(self) -> np.ndarray:
        """The vectors [N, width] float32."""
        return self.vectors

    @property
    def columns(self) -> list[str]:
        """Names of the carried columns."""
        return [name for name in self.table.column_names if name != VECTOR and name not in self.key]

    def column(self, name: str) -> np.ndarray:
        """A key column or a carried column.

        Raises:
            DataError: there is none of that name.
        """
        names = [n for n in self.table.column_names if n != VECTOR]
        if name not in names:
            raise DataError(f"no column '{name}'{nearest(name, names)}")
        return self.table[name].to_numpy()

    def where(self, **values: Any) -> Embeddings:
        """The rows whose columns have these values (``where(modality="image")``).

        Raises:
            DataError: no such column, or no row with that value.
        """
        table = self.table
        for name, value in values.items():
            known = self.column(name)
            try:
                table = table.filter(pc.equal(table[name], pa.scalar(value)))
            except pa.ArrowException:  # not a value of this type
                table = table.slice(0, 0)
            if not len(table):
                raise DataError(f"no row with {name}={value}{nearest(str(value), map(str, set(known)))}")
        return Embeddings(table, self.key, self.fingerprint)

    def take(self, indices: Any) -> Embeddings:
        """The rows at ``indices`` (integers or a boolean mask)."""
        indices = np.asarray(indices)
        indices = np.flatnonzero(indices) if indices.dtype == bool else indices
        return Embeddings(self.table.take(pa.array(indices.astype(np.int64))), self.key, self.fingerprint)

    def with_columns(self, ids: np.ndarray, columns: pa.Table) -> Embeddings:
        """Carries ``columns`` (a row per id) along, matched through the key's first column."""
        if not columns.num_columns:
            return self
        position = {value: i for i, value in enumerate(ids)}
        rows = pa.array([position[value] for value in self.table[self.key[0]].to_pylist()], pa.int64())
        table = self.table
        for name in columns.column_names:
            if name not in table.column_names:
                table = table.append_column(name, columns[name].take(rows))
        return Embeddings(table, self.key, self.fingerprint)

    def neighbours(self, queries: np.ndarray | Embeddings, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Rows [Q, k] of the nearest vectors by cosine, and their similarities [Q, k]."""
        from repertory.evaluation.knn import neighbours

        return neighbours(queries.vectors if isinstance(queries, Embeddings) else queries, self.vectors, k)

    def to_pandas(self) -> pd.DataFrame:
        """Keys, columns and, one per dimension, the vectors."""
        frame = self.table.drop_columns([VECTOR]).to_pandas()
        vectors = pd.DataFrame(self.vectors, columns=[f"{VECTOR}_{i}" for i in range(self.width)])
        return pd.concat([frame, vectors], axis=1)

    def to_faiss(self) -> Any:
        """A faiss index over the L2-normalised vectors (inner product = cosine), in the order of the rows."""
        try:
            import faiss
        except ImportError:
            raise MissingExtraError("faiss", "scale") from None
        vectors = self.vectors / np.maximum(np.linalg.norm(self.vectors, axis=1, keepdims=True), 1e-12)
        index = faiss.IndexFlatIP(self.width)
        index.add(np.ascontiguousarray(vectors))
        return index

    def write(self, path: Path | str) -> None:
        """One Parquet file; keys and fingerprint are kept in its metadata."""
        metadata = {b"repertory": json.dumps({"key": self.key, "fingerprint": self.fingerprint}).encode()}
        sink = pa.BufferOutputStream()
        pq.write_table(self.table.replace_schema_metadata(metadata), sink)
        write_atomic(Path(path), sink.getvalue().to_pybytes())

    @classmethod
    def read(cls, path: Path | str) -> Embeddings:
        """Embeddings from a Parquet file or from a folder of shards.

        Raises:
            UserError: there is none, or the file was not written by ``write``.
        """
        return cls.concat(cls.parts(path))

    @classmethod
    def parts(cls, path: Path | str) -> Iterator[Embeddings]:
        """The embeddings of each shard in turn, as ``read`` joins them."""
        for file in _files(path):
            with _reading(file):
                table = pq.read_table(file)
                made = json.loads(table.schema.metadata[b"repertory"])
            yield cls(table.replace_schema_metadata(None), tuple(made["key"]), made["fingerprint"])

    @classmethod
    def counted(cls, path: Path | str) -> tuple[int, str]:
        """How many vectors lie there, and the fingerprint of their run; reads none of them.

        Raises:
            DataError: they come from different runs.
        """
        rows, made = 0, set()
        for file in _files(path):
            with _reading(file):
                about = pq.read_metadata(file)
                made.add(json.loads(about.metadata[b"repertory"])["fingerprint"])
            rows += about.num_rows
        if len(made) > 1:
            raise DataError("vectors of different runs are never mixed: embed all data with one run")
        return rows, made.pop()


def _files(path: Path | str) -> list[Path]:
    path = Path(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UserError(f"{path}: no embeddings here")
    return files


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not embeddings written by repertory ({first_line(error)})") from None


class Shards:
    """A folder of Parquet shards and the manifest of those that are whole.

    Raises:
        UserError: the folder belongs to another run or other data, or is in use and ``resume`` is not asked for.
    """

    def __init__(self, folder: Path | str, made: dict[str, Any], *, resume: bool) -> None:
        self.folder = Path(folder)
        self.manifest = self.folder / "manifest.json"
        self.rows: list[int] = []
        if self.manifest.exists():
            try:
                old = json.loads(self.manifest.read_text(encoding="utf-8"))
            except ValueError:
                raise UserError(f"{self.manifest}: damaged: choose another folder") from None
            for name, value in made.items():
                if old["made"].get(name) != value:
                    raise UserError(f"{self.folder} holds embeddings of another {name}: choose another folder")
            if not resume:
                raise UserError(
                    f"{self.folder} already holds embeddings: choose another folder, or --resume, or --only-new"
                )
            self.rows = old["rows"]
            lost = [p for i in range(len(self.rows)) if not (p := self._part(i)).exists()]
            if lost:
                raise UserError(f"{lost[0]}: counted in the manifest, but not there: choose another folder")
        self.made = made
        for stray in self.folder.glob("part-*.parquet"):
            if int(stray.stem.removeprefix("part-")) >= len(self.rows):
                stray.unlink()

    def append(self, part: Embeddings) -> None:
        """Writes one shard, then counts it in the manifest."""
        part.write(self._part(len(self.rows)))
        self.rows.append(len(part))
        write_atomic(self.manifest, json.dumps({"made": self.made, "rows": self.rows}))

    def ids(self, name: str) -> Iterator[np.ndarray]:
        """The values of a key column, as texts, of each shard that is there."""
        for index in range(len(self.rows)):
            yield texts(pq.read_table(self._part(index), columns=[name])[name].to_pylist())

    def hold(self, name: str, ids: np.ndarray) -> np.ndarray:
        """[len(ids)] bool: which ids are among the values of a key column in the shards that are there."""
        held = np.zeros(len(ids), dtype=bool)
        if not len(ids):
            return held
        order = np.argsort(ids)
        in_order = ids[order]
        for part in self.ids(name):
            place = np.searchsorted(in_order, part).clip(max=len(ids) - 1)
            held[order[place[in_order[place] == part]]] = True
        return held

    def _part(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.parquet"
