"""The database as a temporal heterogeneous graph, and a sampler that never looks past a seed's time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from repertory.data.database.store import Database
from repertory.errors import ConfigError, DataError

EdgeType = tuple[str, str, str]
"""(table of the source, relation, table of the target): messages flow from source to target."""
Strategy = Literal["uniform", "last"]
ALL = -1
"""As a fan-out: every admissible neighbour."""


@dataclass(frozen=True)
class Neighbours:
    """The sources of one edge type by target, earliest first.

    Attributes:
        start: [targets + 1] where a target's neighbours begin in ``source``.
        source: [edges] row numbers.
        moments: the distinct times of sources, ascending; None where the sources' table has no time.
        rank: [edges] of (target, time) as one ascending number, for the search of a target's admissible prefix.
    """

    start: np.ndarray
    source: np.ndarray
    moments: np.ndarray | None
    rank: np.ndarray | None

    @classmethod
    def of(cls, source: np.ndarray, target: np.ndarray, times: np.ndarray | None, targets: int) -> Neighbours:
        """From edges [E] and the times of the sources' table (ties by row number)."""
        at = np.zeros(len(source), np.int64) if times is None else times[source]
        order = np.lexsort((source, at, target))
        start = np.zeros(targets + 1, np.int64)
        np.cumsum(np.bincount(target, minlength=targets), out=start[1:])
        if times is None:
            return cls(start, source[order], None, None)
        moments, rank = np.unique(at[order], return_inverse=True)
        return cls(start, source[order], moments, target[order] * (len(moments) + 1) + rank)

    def admissible(self, targets: np.ndarray, times: np.ndarray) -> np.ndarray:
        """How many of each target's neighbours [N] have no time or one at or before ``times`` [N]: a prefix."""
        if self.moments is None or self.rank is None:
            return self.start[targets + 1] - self.start[targets]
        known = np.searchsorted(self.moments, times, side="right")
        return np.searchsorted(self.rank, targets * (len(self.moments) + 1) + known, side="left") - self.start[targets]


@dataclass
class Subgraphs:
    """Disjoint neighbourhoods of seeds: the same row may occur for several seeds, once for each.

    Nodes of a table are in the order in which they were reached, so those of one hop lie together.

    Attributes:
        rows: [n] row numbers, by table; the seeds come first in theirs.
        owner: [n] which seed a node belongs to, by table.
        edges: [2, E] positions of source and target among the nodes, by edge type, hop after hop.
        nodes_by_hop: how many nodes of a table are reached at hop 0, 1, ...
        edges_by_hop: how many edges of a type were drawn at hop 0, 1, ...
    """

    rows: dict[str, np.ndarray]
    owner: dict[str, np.ndarray]
    edges: dict[EdgeType, np.ndarray]
    nodes_by_hop: dict[str, list[int]] = field(default_factory=dict)
    edges_by_hop: dict[EdgeType, list[int]] = field(default_factory=dict)

    def reached(self, tables: Sequence[str]) -> np.ndarray:
        """[n, 4] of (seed, table number, row, hop at which it was first reached), sorted."""
        found = []
        for number, table in enumerate(tables):
            if table in self.rows:
                hops = np.repeat(np.arange(len(self.nodes_by_hop[table])), self.nodes_by_hop[table])
                found.append(np.stack([self.owner[table], np.full(len(hops), number), self.rows[table], hops], axis=1))
        made = np.concatenate(found)
        return made[np.lexsort(made.T[::-1])]

    def bidirectional(self) -> Subgraphs:
        """The same nodes with every edge in both directions, each once."""
        both: dict[EdgeType, list[np.ndarray]] = {}
        for (source, relation, target), edges in self.edges.items():
            both.setdefault((source, relation, target), []).append(edges)
            both.setdefault((target, opposite(relation), source), []).append(edges[::-1])
        once = {kind: np.unique(np.concatenate(parts, axis=1), axis=1) for kind, parts in both.items()}
        return Subgraphs(self.rows, self.owner, once)


def opposite(relation: str) -> str:
    """``f2p_K`` of ``rev_f2p_K`` and the other way round."""
    return relation.removeprefix("rev_") if relation.startswith("rev_") else f"rev_{relation}"


class TemporalGraph:
    """A relational entity graph (RelBench, section 2): a node per row, edges along foreign keys, both ways.

    Args:
        nodes: number of nodes of each table.
        times: seconds since 1970 [n] of each table that has times.
        edges: (source [E], target [E]) by edge type.
    """

    def __init__(
        self,
        nodes: Mapping[str, int],
        times: Mapping[str, np.ndarray | None],
        edges: Mapping[EdgeType, tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self.nodes = dict(nodes)
        self.times = {table: times.get(table) for table in nodes}
        self.edge_types = list(edges)
        self.neighbours = {
            kind: Neighbours.of(
                np.asarray(source, np.int64), np.asarray(target, np.int64), self.times[kind[0]], nodes[kind[2]]
            )
            for kind, (source, target) in edges.items()
        }
        self._into: dict[str, list[EdgeType]] = {}
        for kind in self.edge_types:
            self._into.setdefault(kind[2], []).append(kind)

    @classmethod
    def of(cls, database: Database) -> TemporalGraph:
        """The graph of a database: its links are the edges."""
        return cls(database.rows, database.times, links_as_edges(database))

    def sample(
        self,
        table: str,
        seeds: np.ndarray,
        times: np.ndarray,
        fanouts: Sequence[int],
        seed: int = 0,
        strategy: Strategy = "uniform",
    ) -> Subgraphs:
        """Neighbourhoods of rows at times: per hop and edge type up to so many admissible sources of each node.

        What is drawn for a seed depends on (seed, its row, its time, the hop) alone, not on the other seeds.

        Args:
            table: of the seeds. seeds: row numbers [B]. times: seconds since 1970 [B].
            fanouts: of each hop; ``ALL`` takes every admissible neighbour.
            seed: of the draw.
            strategy: ``uniform`` without replacement, or the ``last`` (most recent) ones.

        Raises:
            DataError: a seed is no row of the table.
        """
        if table not in self.nodes:
            raise DataError(f"there is no table '{table}' in the graph")
        seeds, times = np.asarray(seeds, np.int64), np.asarray(times, np.int64)
        if len(seeds) and (seeds.min() < 0 or seeds.max() >= self.nodes[table]):
            raise DataError(f"a seed is no row of '{table}', which has {self.nodes[table]}")
        if any(fanout < ALL or fanout == 0 for fanout in fanouts):
            raise ConfigError(f"fan-outs {list(fanouts)}: at least 1 each, or {ALL} for all")
        made = Subgraphs({table: seeds}, {table: np.arange(len(seeds))}, {}, {table: [len(seeds)]}, {})
        own_keys = mixed(mixed(seeds.astype(np.uint64), np.uint64(seed & (2**63 - 1))), times.astype(np.uint64))
        parts: dict[EdgeType, list[np.ndarray]] = {}
        fresh = {table: (0, len(seeds))}
        for hop, fanout in enumerate(fanouts):
            drawn: dict[str, list[tuple[EdgeType, np.ndarray, np.ndarray, np.ndarray]]] = {}
            for target, (low, high) in fresh.items():
                rows, owner = made.rows[target][low:high], made.owner[target][low:high]
                for kind in self._into.get(target, ()) if high > low else ():
                    near = self.neighbours[kind]
                    count = near.admissible(rows, times[owner])
                    keys = mixed(mixed(own_keys[owner], _number(kind, hop)), rows.astype(np.uint64))
                    place, at = draw(count, fanout, keys, strategy)
                    source = near.source[near.start[rows[place]] + at]
                    drawn.setdefault(kind[0], []).append((kind, source, owner[place], place + low))
            fresh = {}
            for name, found in drawn.items():
                fresh[name] = self._add(made, parts, name, found, hop)
        for name, by_hop in made.nodes_by_hop.items():
            made.nodes_by_hop[name] = by_hop + [0] * (len(fanouts) + 1 - len(by_hop))
        for kind, pieces in parts.items():
            made.edges[kind] = np.concatenate(pieces, axis=1)
            by_hop = made.edges_by_hop[kind]
            made.edges_by_hop[kind] = by_hop + [0] * (len(fanouts) - len(by_hop))
        return made

    def _add(
        self,
        made: Subgraphs,
        parts: dict[EdgeType, list[np.ndarray]],
        table: str,
        found: list[tuple[EdgeType, np.ndarray, np.ndarray, np.ndarray]],
        hop: int,
    ) -> tuple[int, int]:
        """Takes in what was drawn from one table at a hop; returns the range of its nodes that are new."""
        before = len(made.rows.get(table, ()))
        if before == 0:
            made.rows[table] = made.owner[table] = np.empty(0, np.int64)
            made.nodes_by_hop[table] = []
        size = self.nodes[table]
        known = made.owner[table] * size + made.rows[table]
        # by hash: a node that its seed has reached keeps its place, new ones follow in the order of drawing
        places, keys = pd.factorize(np.concatenate([known, *(owner * size + rows for _, rows, owner, _ in found)]))
        new = keys[before:]
        made.owner[table] = np.concatenate([made.owner[table], new // size])
        made.rows[table] = np.concatenate([made.rows[table], new % size])
        by_hop = made.nodes_by_hop[table]
        by_hop += [0] * (hop + 1 - len(by_hop)) + [len(new)]
        offset = before
        for kind, rows, _, targets in found:
            parts.setdefault(kind, []).append(np.stack([places[offset : offset + len(rows)], targets]))
            counts = made.edges_by_hop.setdefault(kind, [])
            counts += [0] * (hop - len(counts)) + [len(rows)]
            offset += len(rows)
        return before, before + len(new)


def links_as_edges(database: Database) -> dict[EdgeType, tuple[np.ndarray, np.ndarray]]:
    """Edges (source, target) along every foreign key, sorted by both, and against it; missing keys give none."""
    edges = {}
    for (table, column), rows in database.links.items():
        other = database.schemas[table].links[column]
        source = np.flatnonzero(rows >= 0)
        target = rows[source]
        edges[table, f"f2p_{column}", other] = (source, target)
        order = np.argsort(target, kind="stable")
        edges[other, f"rev_f2p_{column}", table] = (target[order], source[order])
    return edges


def draw(count: np.ndarray, fanout: int, keys: np.ndarray, strategy: Strategy) -> tuple[np.ndarray, np.ndarray]:
    """Which neighbours are taken: for every node, ``min(count, fanout)`` different ones of 0 .. count - 1.

    Args:
        count: [N]. keys: [N] uint64, all that a draw depends on.

    Returns:
        The node and the neighbour's number of each draw [M], those of a node together.
    """
    whole = np.arange(len(count)) if fanout == ALL else np.flatnonzero(count <= fanout)
    place, at = _ranges(whole, count[whole])
    if len(whole) == len(count):
        return place, at
    many = np.flatnonzero(count > fanout)
    if strategy == "last":
        picked = (count[many] - fanout)[:, None] + np.arange(fanout)
    else:
        picked = subsets(count[many], fanout, keys[many])
    return np.concatenate([place, np.repeat(many, fanout)]), np.concatenate([at, picked.reshape(-1)])


def subsets(count: np.ndarray, k: int, keys: np.ndarray) -> np.ndarray:
    """Uniform subsets of k different numbers of 0 .. count - 1 (count > k), ascending, as functions of the keys.

    Numbers are drawn independently, and those that occur twice again until none does: every subset stays as likely as
    any other. Where more than half is taken, what is left out is drawn instead.

    Args:
        count: [N]. keys: [N] uint64.

    Returns:
        [N, k] int64.
    """
    made = np.empty((len(count), k), np.int64)
    dense = count < 2 * k
    if not dense.all():
        made[~dense] = _distinct(count[~dense], np.full((~dense).sum(), k), k, keys[~dense])
    if dense.any():
        n, left_out = count[dense], count[dense] - k
        out = _distinct(n, left_out, int(left_out.max()), keys[dense])
        kept = np.ones((len(n), int(n.max()) + 1), bool)
        row = np.arange(len(n))[:, None]
        kept[np.arange(kept.shape[1]) >= n[:, None]] = False
        kept[np.broadcast_to(row, out.shape), np.minimum(out, kept.shape[1] - 1)] = False
        made[dense] = np.nonzero(kept)[1].reshape(len(n), k)
    return made


def _distinct(count: np.ndarray, wanted: np.ndarray, width: int, keys: np.ndarray) -> np.ndarray:
    """[N, width] different numbers below ``count`` in the first ``wanted`` places, ascending; larger ones behind."""
    filler = count[:, None] + np.arange(width)
    drawn = np.where(np.arange(width) < wanted[:, None], _hashed(count, width, keys, 0), filler)
    drawn.sort(axis=1)
    again, attempt = np.arange(len(count)), 0
    while len(again):
        twice = np.zeros((len(again), width), bool)
        rows = drawn[again]
        twice[:, 1:] = rows[:, 1:] == rows[:, :-1]
        some = twice.any(axis=1)
        again, rows, twice, attempt = again[some], rows[some], twice[some], attempt + 1
        if len(again):
            rows = np.where(twice, _hashed(count[again], width, keys[again], attempt), rows)
            rows.sort(axis=1)
            drawn[again] = rows
    return drawn


def _hashed(count: np.ndarray, width: int, keys: np.ndarray, attempt: int) -> np.ndarray:
    """[N, width] numbers below ``count``, of 32 random bits each."""
    numbers = np.arange(width, dtype=np.uint64) + np.uint64(attempt * width + 1)
    bits = _finish(keys[:, None] + numbers * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    return ((bits * count.astype(np.uint64)[:, None]) >> np.uint64(32)).astype(np.int64)


def _finish(bits: np.ndarray) -> np.ndarray:
    """The end of splitmix64 (Steele, Lea and Flood 2014): every bit of the input turns half of the output's."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def mixed(first: np.ndarray, second: np.ndarray | np.uint64) -> np.ndarray:
    """One 64-bit key of two."""
    with np.errstate(over="ignore"):
        return _finish(first * np.uint64(0x9E3779B97F4A7C15) + np.asarray(second, np.uint64) + np.uint64(1))


def _number(kind: EdgeType, hop: int) -> np.uint64:
    """Of an edge type at a hop; of its names, so that further tables change no draw."""
    state = hashlib.blake2b("\0".join((*kind, str(hop))).encode(), digest_size=8)
    return np.uint64(int.from_bytes(state.digest()))


def _ranges(nodes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each node ``counts`` times, and 0 .. count - 1 for each."""
    total = int(counts.sum())
    begins = np.cumsum(counts) - counts
    return np.repeat(nodes, counts), np.arange(total) - np.repeat(begins, counts)
