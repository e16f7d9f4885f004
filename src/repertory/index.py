"""An index of embeddings: exact while they fit in memory, LanceDB (IVF with refinement) above or on request.

``open_index("runs/symile/embeddings").search(vectors, k=10)``.
"""

from __future__ import annotations

import abc
import json
import os
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from repertory.embeddings import VECTOR, Embeddings
from repertory.errors import DataError, MissingExtraError, UserError, first_line
from repertory.evaluation.checks import check_vectors
from repertory.evaluation.knn import neighbours
from repertory.runs import write_atomic

EXACT = 1_000_000
"""Vectors up to which search is exact, in memory."""
PROBES, PROBED_SHARE, REFINE = 20, 0.02, 2
"""Partitions of the inverted file that a query looks into, at least, and their share; how many times k candidates
are compared exactly."""
BLOCK = 256
"""Queries that go to LanceDB at a time."""
SMALL = 10_000
"""Vectors below which LanceDB scans them all."""
ABOUT, ROW, TABLE = "index.json", "_row", "vectors"


class Index(abc.ABC):
    """Vectors that can be searched by cosine, in the order in which they were embedded.

    Attributes:
        fingerprint: of the run that made them.
        key: names of the key columns.
        width: length of a vector.
    """

    fingerprint: str
    key: tuple[str, ...]
    width: int

    @abc.abstractmethod
    def __len__(self) -> int: ...

    def search(self, vectors: np.ndarray | Embeddings, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest vectors of each query, nearest first.

        Args:
            vectors: [Q, width]; as ``Embeddings`` they are refused where another run made them.
            k: at most ``len(self)``.

        Returns:
            rows [Q, k] int64 and cosine similarities [Q, k] float32 in [-1, 1].

        Raises:
            DataError: vectors of another run or width, not finite, or a k that is out of range.
        """
        if isinstance(vectors, Embeddings):
            if vectors.fingerprint != self.fingerprint:
                raise DataError("the queries are vectors of another run than the index: embed them with its run")
            vectors = vectors.vectors
        vectors = check_vectors(vectors, "queries", width=self.width)
        if not 1 <= k <= len(self):
            raise DataError(f"k={k}: the index offers between 1 and {len(self)}")
        return self._search(vectors, k)

    @abc.abstractmethod
    def _search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]: ...

    @abc.abstractmethod
    def keys(self, rows: Any) -> pa.Table:
        """Key columns and carried columns of ``rows`` [N], in that order."""


class ExactIndex(Index):
    """All vectors in memory, each compared with each query."""

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings
        self.fingerprint, self.key, self.width = embeddings.fingerprint, embeddings.key, embeddings.width

    def __len__(self) -> int:
        return len(self.embeddings)

    def _search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return neighbours(vectors, self.embeddings.vectors, k)

    def keys(self, rows: Any) -> pa.Table:
        return self.embeddings.table.drop_columns([VECTOR]).take(pa.array(np.asarray(rows, np.int64)))


class LanceIndex(Index):
    """A LanceDB table on disk: an inverted file finds candidates, which are then compared exactly.

    Raises:
        UserError: there is no such index, or it was not finished.
        MissingExtraError: LanceDB is not installed.
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        about = _about(path)
        if about is None:
            raise UserError(f"{path}: no index here: make one with repertory.index.build_index")
        self.fingerprint, self.key, self.width = about["fingerprint"], tuple(about["key"]), about["width"]
        self.rows, self.probes = about["rows"], max(PROBES, round(PROBED_SHARE * about["partitions"]))
        try:
            self.table = _lancedb().connect(str(path)).open_table(TABLE)
        except (ValueError, OSError, RuntimeError) as error:
            raise UserError(f"{path}: damaged: {first_line(error)}") from None

    def __len__(self) -> int:
        return int(self.rows)

    def _search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        vectors = vectors.astype(np.float32)
        found = [self._nearest(vectors[start : start + BLOCK], k) for start in range(0, len(vectors), BLOCK)]
        rows, similarities = zip(*found, strict=True)
        return np.concatenate(rows), np.concatenate(similarities)

    def _nearest(self, vectors: np.ndarray, k: int, *, all_rows: bool = False) -> tuple[np.ndarray, np.ndarray]:
        query = self.table.search(vectors, vector_column_name=VECTOR).distance_type("cosine").limit(k)
        query = query.bypass_vector_index() if all_rows else query.nprobes(self.probes).refine_factor(REFINE)
        found = query.select([ROW, "_distance"]).to_arrow()
        if len(found) < len(vectors) * k:  # fewer than k in the partitions that a query looked into
            return self._nearest(vectors, k, all_rows=True)
        if "query_index" in found.column_names:
            found = found.sort_by([("query_index", "ascending"), ("_distance", "ascending")])
        rows, distances = (found[name].to_numpy().reshape(len(vectors), k) for name in (ROW, "_distance"))
        return rows, 1 - distances

    def keys(self, rows: Any) -> pa.Table:
        rows = np.asarray(rows, np.int64)
        distinct, place = np.unique(rows, return_inverse=True)
        columns = [name for name in self.table.schema.names if name not in (ROW, VECTOR)]
        found = self.table.take_offsets(distinct.tolist()).select([*columns, ROW]).to_arrow().sort_by(ROW)
        return found.select(columns).take(pa.array(place))


def build_index(embeddings: Embeddings | Path | str, path: Path | str) -> LanceIndex:
    """Writes a LanceDB index of embeddings, shard by shard, in place of one that lies there.

    Args:
        embeddings: embeddings, a Parquet file of them, or a folder of shards.
        path: the index's folder.

    Raises:
        UserError: no embeddings there, vectors of several runs, or a path that holds something else.
        MissingExtraError: LanceDB is not installed.
    """
    lancedb, path = _lancedb(), Path(path)
    if path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - {ABOUT, f"{TABLE}.lance"}):
        raise UserError(f"{path} holds something else than an index: choose another folder")
    if isinstance(embeddings, Embeddings):
        parts = iter([embeddings])
    else:
        Embeddings.counted(embeddings)  # refuses what is none, or of several runs, before anything is written
        parts = Embeddings.parts(embeddings)
    first = next(parts)
    schema = first.table.schema.append(pa.field(ROW, pa.int64()))
    rows = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for part in chain([first], parts):
            table = part.table.append_column(ROW, pa.array(np.arange(rows, rows + len(part))))
            same = pa.concat_tables([schema.empty_table(), table], promote_options="permissive")
            yield from same.select(schema.names).cast(schema).to_batches()
            rows += len(part)

    shutil.rmtree(path, ignore_errors=True)
    table = lancedb.connect(str(path)).create_table(TABLE, batches(), schema=schema)
    partitions = round(rows**0.5)
    if rows >= SMALL:
        config = lancedb.index.IvfSq(distance_type="cosine", num_partitions=partitions)
        table.create_index(VECTOR, config=config)
    about = {"fingerprint": first.fingerprint, "key": first.key, "width": first.width}
    write_atomic(path / ABOUT, json.dumps({**about, "rows": rows, "partitions": partitions}))
    return LanceIndex(path)


def open_index(source: Embeddings | Path | str) -> Index:
    """An index of embeddings, a Parquet file of them or a folder of shards; or one that ``build_index`` wrote.

    Up to ``EXACT`` vectors are read and searched exactly. For more, an index is built beside them at the first
    call, and again when they have changed.

    Raises:
        UserError: neither embeddings nor an index are there.
        MissingExtraError: LanceDB is needed and not installed.
    """
    if isinstance(source, Embeddings):
        return ExactIndex(source)
    path = Path(source)
    if _about(path) is not None:
        return LanceIndex(path)
    rows, fingerprint = Embeddings.counted(path)
    if rows <= EXACT:
        return ExactIndex(Embeddings.read(path))
    beside = path / "index" if path.is_dir() else path.with_suffix(".index")
    about = _about(beside)
    if about is None or (about["rows"], about["fingerprint"]) != (rows, fingerprint):
        return build_index(path, beside)
    return LanceIndex(beside)


def _about(path: Path) -> dict[str, Any] | None:
    try:
        about: dict[str, Any] = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        return about
    except (OSError, ValueError):
        return None


def _lancedb() -> Any:
    os.environ.setdefault("LANCE_LOG", "error")  # partitions that stay empty are no news
    try:
        import lancedb.index
    except ImportError:
        raise MissingExtraError("lancedb", "scale") from None
    return lancedb
