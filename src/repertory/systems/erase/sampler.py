"""Neighbours of nodes: all of them, or a few drawn at random; no step over nodes in Python."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Block(NamedTuple):
    """One hop: messages flow from sources to targets, which are the first of the sources.

    Attributes:
        sources: [s] positions in what the block is about (the graph, or the targets of the next block).
        edges: [2, E] positions of source and target within the block.
        targets: their number.
    """

    sources: Tensor
    edges: Tensor
    targets: int


class Neighbours:
    """Of a graph with edges in both directions.

    Args:
        edge_index: [2, edges], sorted by source. nodes: their number.
    """

    def __init__(self, edge_index: Tensor, nodes: int) -> None:
        ends = edge_index.cpu().numpy()
        self.start = np.concatenate([[0], np.cumsum(np.bincount(ends[0], minlength=nodes))])
        self.ends = ends[1]

    def block(self, targets: np.ndarray, most: int | None = None) -> Block:
        """Edges into ``targets`` [t], from all their neighbours or from at most ``most``, drawn without replacement.

        ``sources`` are positions in the graph; draws come from NumPy's global state.
        """
        count = self.start[targets + 1] - self.start[targets]
        if most is None:
            whole, many = np.arange(len(targets)), np.empty(0, np.int64)
        else:
            whole, many = np.flatnonzero(count <= most), np.flatnonzero(count > most)
        sizes = count[whole]
        target = np.repeat(whole, sizes)
        at = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        if len(many):
            target = np.concatenate([target, np.repeat(many, most)])
            at = np.concatenate([at, subsets(count[many], most).reshape(-1)])
        reached = self.ends[self.start[targets[target]] + at]
        place = np.full(len(self.start) - 1, -1)
        place[targets] = np.arange(len(targets))
        new = np.unique(reached[place[reached] < 0])
        place[new] = len(targets) + np.arange(len(new))
        edges = torch.from_numpy(np.stack([place[reached], target]))
        return Block(torch.from_numpy(np.concatenate([targets, new])), edges, len(targets))

    def blocks(self, seeds: np.ndarray, most: int, hops: int) -> list[Block]:
        """From the outermost hop to the seeds [t]; the sources of one block are the targets of the one before it."""
        made: list[Block] = []
        for _ in range(hops):
            made.insert(0, self.block(seeds, most))
            seeds = made[0].sources.numpy()
        return made


def subsets(count: np.ndarray, k: int) -> np.ndarray:
    """[N, k] different numbers of 0 .. count - 1 for each count [N] > k, every subset as likely (Floyd's algorithm)."""
    chosen = np.full((len(count), k), -1)
    for place in range(k):
        last = count - k + place
        drawn = np.minimum((np.random.rand(len(count)) * (last + 1)).astype(np.int64), last)
        taken = (chosen == drawn[:, None]).any(axis=1)
        chosen[:, place] = np.where(taken, last, drawn)
    return chosen
