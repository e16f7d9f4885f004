"""Why: how an output changes when a column is unknown, or a path is not there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from repertory.systems.relational_dl.features import CONSTANT, without
from repertory.systems.relational_dl.model import Batch
from repertory.systems.relational_dl.sampler import EdgeType

Path = tuple[EdgeType, ...]
"""Edge types from the seed outwards."""


def paths(edge_types: Sequence[EdgeType], entity: str, hops: int) -> list[Path]:
    """All paths of one to ``hops`` edge types that lead to the entity; none goes straight back."""
    found: list[Path] = []
    ends: list[Path] = [()]
    for _ in range(hops):
        longer = []
        for path in ends:
            here = path[-1][0] if path else entity
            for kind in edge_types:
                back = (
                    path and kind[1].removeprefix("rev_") == path[-1][1].removeprefix("rev_") and kind[0] == path[-1][2]
                )
                if kind[2] == here and not back:
                    longer.append((*path, kind))
        found += longer
        ends = longer
    return found


def spelled(path: Path) -> str:
    """``planes < flights (tailnum) < airports (origin)``, by the columns of the keys."""
    columns = [kind[1].removeprefix("rev_").removeprefix("f2p_") for kind in path]
    return " < ".join([path[0][2], *(f"{kind[0]} ({c})" for kind, c in zip(path, columns, strict=True))])


def columns(batch: Batch) -> Iterator[tuple[str, str]]:
    """(table, column) of everything that the batch's frames hold."""
    for table, frame in batch.frames.items():
        for names in frame.col_names_dict.values():
            yield from ((table, name) for name in names if name != CONSTANT)


def without_column(batch: Batch, table: str, column: str) -> Batch:
    """The batch with a column unknown in every row."""
    if table not in batch.frames:
        return batch
    return replace(batch, frames={**batch.frames, table: without(batch.frames[table], column)})


def without_path(batch: Batch, path: Path) -> Batch:
    """The batch without the last edges of a path from its seeds."""
    reached = torch.zeros(sum(batch.nodes_by_hop[batch.entity]), dtype=torch.bool)
    reached[: len(batch)] = True
    for hop, kind in enumerate(path):
        counts = batch.edges_by_hop.get(kind, [])
        if hop >= len(counts) or not counts[hop]:
            return batch
        begin = sum(counts[:hop])
        drawn = batch.edges[kind][:, begin : begin + counts[hop]]
        mine = reached[drawn[1].cpu()]
        if hop < len(path) - 1:
            reached = torch.zeros(sum(batch.nodes_by_hop[kind[0]]), dtype=torch.bool)
            reached[drawn[0].cpu()[mine]] = True
            continue
        kept = torch.ones(batch.edges[kind].shape[1], dtype=torch.bool)
        kept[begin : begin + counts[hop]] = ~mine
        fewer = [*counts[:hop], counts[hop] - int(mine.sum()), *counts[hop + 1 :]]
        return replace(
            batch, edges={**batch.edges, kind: batch.edges[kind][:, kept.to(drawn.device)]},
            edges_by_hop={**batch.edges_by_hop, kind: fewer},
        )  # fmt: skip
    return batch
