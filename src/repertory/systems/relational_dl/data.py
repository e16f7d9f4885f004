"""Rows of a task as batches: neighbourhoods sampled, distinct rows gathered, targets as the losses take them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from repertory.data.database import Database, Rows
from repertory.errors import DataError
from repertory.systems.relational_dl.features import Plain, RowFeatures, features_of
from repertory.systems.relational_dl.model import Batch
from repertory.systems.relational_dl.sampler import EdgeType, Strategy, Subgraphs, TemporalGraph, links_as_edges
from repertory.training import Batches, Shuffled

_GRAPHS: weakref.WeakKeyDictionary[Database, dict[tuple[EdgeType, ...], TemporalGraph]] = weakref.WeakKeyDictionary()


def graph_of(database: Database, edge_types: Sequence[EdgeType]) -> TemporalGraph:
    """The database's graph with these edge types, made once.

    Raises:
        DataError: the database has no such link.
    """
    known = _GRAPHS.setdefault(database, {})
    key = tuple(edge_types)
    if key not in known:
        edges = links_as_edges(database)
        for source, relation, target in edge_types:
            if (source, relation, target) not in edges:
                column = relation.removeprefix("rev_").removeprefix("f2p_")
                raise DataError(
                    f"{database.name}: no link {column} between '{source}' and '{target}', which the model was fitted "
                    "with"
                )
        known[key] = TemporalGraph(database.rows, database.times, {kind: edges[kind] for kind in edge_types})
    return known[key]


class Neighbourhoods:
    """Batches of one database for one model.

    Args:
        columns: of ``features.learn_columns``.
        edge_types: that the model has.
        fanouts, strategy: of the sampler.
        share_rows: encode a row once, however often it occurs.
        with_rows: tables whose row numbers the model needs.
    """

    def __init__(
        self,
        database: Database,
        columns: Plain,
        edge_types: Sequence[EdgeType],
        fanouts: Sequence[int],
        strategy: Strategy = "uniform",
        share_rows: bool = True,
        with_rows: Sequence[str] = (),
        kept_rows: int = 2_000_000,
    ) -> None:
        for table in columns:
            if table not in database.rows:
                raise DataError(f"{database.name}: no table '{table}', which the model was fitted with")
        self.database, self.fanouts, self.strategy = database, list(fanouts), strategy
        self.share_rows, self.with_rows = share_rows, tuple(with_rows)
        self.graph = graph_of(database, edge_types)
        self.features: RowFeatures = features_of(database, columns, kept_rows)

    def batch(
        self, table: str, rows: np.ndarray, times: np.ndarray, seed: int = 0, targets: Any = None, both: bool = False
    ) -> Batch:
        """Neighbourhoods of rows [B] of a table at times [B].

        Args:
            seed: of the sampler's draw.
            both: edges in both directions, and every node computed (for a read-out of all destinations).
        """
        drawn = self.graph.sample(table, rows, times, self.fanouts, seed, self.strategy)
        return self.of(drawn.bidirectional() if both else drawn, table, times, targets)

    def of(self, drawn: Subgraphs, table: str, times: np.ndarray, targets: Any = None) -> Batch:
        """A batch of neighbourhoods that were drawn."""
        frames, places = {}, {}
        for name, rows in drawn.rows.items():
            if self.share_rows:
                at, distinct = pd.factorize(rows)
                frames[name] = self.features.frame(name, np.asarray(distinct, np.int64))
                places[name] = torch.from_numpy(np.asarray(at, np.int64))
            else:
                frames[name] = self.features.frame(name, rows)
        return Batch(
            frames, places if self.share_rows else None,
            {n: torch.from_numpy(all_[drawn.rows[n]]) for n in drawn.rows if (all_ := self.graph.times[n]) is not None},
            {name: torch.from_numpy(owner) for name, owner in drawn.owner.items()},
            {kind: torch.from_numpy(np.ascontiguousarray(edges)) for kind, edges in drawn.edges.items()},
            torch.from_numpy(np.asarray(times, np.int64)), table,
            {name: torch.from_numpy(drawn.rows[name]) for name in self.with_rows if name in drawn.rows},
            drawn.nodes_by_hop, drawn.edges_by_hop, targets,
        )  # fmt: skip


def drawn_seed() -> int:
    """A seed from the step's own random numbers."""
    return int(np.random.randint(2**31))


class Limited(Shuffled):
    """Passes of at most so many batches."""

    def __init__(self, n: int, batch_size: int, collate: Any, most: int) -> None:
        super().__init__(n, batch_size, collate)
        self.most = most

    def __len__(self) -> int:
        return min(self.most, super().__len__())


class SameTime(Batches):
    """Batches whose rows are of one time, each time as often as it has rows.

    Args:
        times: [N]. batch_size: rows a batch, fewer where a time has fewer.
    """

    def __init__(self, times: np.ndarray, batch_size: int, collate: Any, most: int) -> None:
        _, group = np.unique(times, return_inverse=True)
        self.members = [np.flatnonzero(group == g) for g in range(group.max() + 1)]
        self.shares = np.bincount(group) / len(group)
        self.batch_size, self.collate, self.most, self.n = batch_size, collate, most, len(times)

    def __len__(self) -> int:
        return max(1, min(self.most, self.n // (self.batch_size * self.world)))

    def __getitem__(self, k: int) -> Any:
        members = self.members[np.random.choice(len(self.members), p=self.shares)]
        return self.collate(np.random.choice(members, min(self.batch_size, len(members)), replace=False))


@dataclass
class LinkBatch:
    """Sources, one true and one random destination each, all at the source's time."""

    source: Batch
    positive: Batch
    negative: Batch

    def to(self, device: Any, non_blocking: bool = False) -> LinkBatch:
        """The same on a device."""
        return LinkBatch(*(part.to(device, non_blocking) for part in (self.source, self.positive, self.negative)))

    def __len__(self) -> int:
        return len(self.source)


class Links:
    """Rows of a link task as batches.

    Args:
        rows: with true destinations. neighbourhoods: of their database.
    """

    def __init__(self, rows: Rows, neighbourhoods: Neighbourhoods) -> None:
        self.near, self.table = neighbourhoods, rows.task.destination
        truth = destinations(rows)
        # rows without a true destination have nothing to be told apart from
        kept = np.array([n for n, found in enumerate(truth) if len(found)], np.int64)
        self.entity, self.entities, self.times = rows.task.entity, rows.entities[kept], rows.times[kept]
        self.truth = [truth[n] for n in kept]
        born = rows.database.times[self.table]
        self.order = np.arange(rows.database.rows[self.table])
        self.moments: np.ndarray | None = None
        if born is not None:
            self.order = np.argsort(born, kind="stable")
            self.moments = born[self.order]

    def __len__(self) -> int:
        return len(self.entities)

    def known(self, times: np.ndarray) -> np.ndarray:
        """How many destinations are known at times [B]: the first so many of ``order``."""
        if self.moments is None:
            return np.full(len(times), len(self.order))
        return np.searchsorted(self.moments, times, side="right")

    def pairs(self, indices: np.ndarray) -> LinkBatch:
        """A batch for two towers."""
        times, seed = self.times[indices], drawn_seed()
        right = np.array([np.random.choice(self.truth[i]) for i in indices], np.int64)
        wrong = self.order[np.random.randint(0, np.maximum(1, self.known(times)))]
        source = self.near.batch(self.entity, self.entities[indices], times, seed)
        positive, negative = (self.near.batch(self.table, rows, times, seed) for rows in (right, wrong))
        return LinkBatch(source, positive, negative)

    def around(self, indices: np.ndarray) -> Batch:
        """A batch for ID-GNN; its targets say which of the reached destinations are true [n]."""
        times = self.times[indices]
        batch = self.near.batch(self.entity, self.entities[indices], times, drawn_seed(), both=True)
        batch.targets = self.right(batch, indices)
        return batch

    def right(self, batch: Batch, indices: np.ndarray) -> Tensor:
        """Which of a batch's destinations [n] are true for their sources."""
        if self.table not in batch.rows:
            return torch.zeros(0)
        owner, rows = batch.owner[self.table].numpy(), batch.rows[self.table].numpy()
        size = len(self.order)
        true = np.concatenate([self.truth[i] + n * size for n, i in enumerate(indices)])
        return torch.from_numpy(np.isin(owner * size + rows, true).astype(np.float32))


def destinations(rows: Rows) -> list[np.ndarray]:
    """Row numbers of the true destinations of each row; keys that are not there are left out."""
    lists = rows.targets
    flat = np.concatenate([np.asarray(v) for v in lists]) if len(lists) else np.empty(0)
    lengths = np.array([len(v) for v in lists], np.int64)
    if not len(flat):
        return [np.empty(0, np.int64) for _ in lists]
    places = rows.database.places(rows.task.destination, pa.array(flat.tolist()))
    return [part[part >= 0] for part in np.split(places, np.cumsum(lengths)[:-1])]
