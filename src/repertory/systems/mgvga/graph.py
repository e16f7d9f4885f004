"""Circuits as the encoder takes them: inverters as nodes, several circuits as one graph, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.errors import DataError

INPUT, OUTPUT, AND, NOT = range(4)
TYPES = ("input", "output", "AND", "NOT")
"""Names of the node types 0..3."""

Graph = tuple[np.ndarray, np.ndarray]
"""Types [n] and edges [2, e] (fan-in, gate), inverters being nodes."""


def with_inverters(node_type: np.ndarray, edge_index: np.ndarray, edge_type: np.ndarray) -> Graph:
    """Every inverted edge u -> v as u -> NOT -> v, one NOT node an edge (section 3.1 of the paper's method).

    Args:
        node_type: [n] in 0..3. edge_index: [2, e], fan-in and gate. edge_type: [e], 1 where inverted.

    Returns:
        Types: the nodes as they were, then the NOT nodes in the order of the inverted edges. Edges: the plain ones,
        then all into, then all out of NOT nodes.
    """
    inverted = edge_type == 1
    source, target = edge_index[:, inverted]
    made = len(node_type) + np.arange(len(source))
    types = np.concatenate([node_type, np.full(len(made), NOT, node_type.dtype)])
    return types, np.concatenate([edge_index[:, ~inverted], [source, made], [made, target]], axis=1)


@dataclass
class Batch:
    """Several circuits as one graph without padding.

    Nodes are ordered by fan-in, so that those with equally many make one dense block: ``order`` says which row of the
    circuits, one after the other, each node is.

    Attributes:
        types: [N] in 0..3. graph: [N] the circuit of each node. sizes: [B] nodes of each circuit.
        source: [E] the fan-ins: for each block of n nodes with k fan-ins, k times n of them.
        blocks: (k, n) of each block, k rising.
        fan_out, fan_in: [N] how many edges leave and enter, float.
    """

    types: Tensor
    graph: Tensor
    sizes: Tensor
    source: Tensor
    blocks: tuple[tuple[int, int], ...]
    fan_out: Tensor
    fan_in: Tensor
    order: Tensor

    @classmethod
    def of(cls, graphs: Sequence[Graph]) -> Batch:
        """Joins circuits; an edge that occurs twice counts twice.

        Raises:
            DataError: a circuit without nodes.
        """
        sizes = np.array([len(types) for types, _ in graphs])
        if not len(sizes) or not sizes.all():
            raise DataError("a batch needs circuits, and each of them a node")
        starts = np.cumsum(sizes) - sizes
        types = np.concatenate([types for types, _ in graphs])
        source, target = np.concatenate([edges + start for (_, edges), start in zip(graphs, starts, strict=True)], 1)
        n = len(types)
        fan_in, fan_out = np.bincount(target, minlength=n), np.bincount(source, minlength=n)
        order = np.argsort(fan_in, kind="stable")
        place = np.empty(n, np.int64)
        place[order] = np.arange(n)
        by_target = place[source[np.argsort(place[target], kind="stable")]]
        blocks, sources, start = [], [], 0
        for k, count in zip(*np.unique(fan_in, return_counts=True), strict=True):
            part = by_target[start : start + k * count]
            start += k * count
            blocks.append((int(k), int(count)))
            sources.append(part.reshape(count, k).T.ravel())
        return cls(
            torch.from_numpy(types[order].astype(np.int64)),
            torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)[order]),
            torch.from_numpy(sizes),
            torch.from_numpy(np.concatenate(sources)),
            tuple(blocks),
            torch.from_numpy(fan_out[order].astype(np.float32)),
            torch.from_numpy(fan_in[order].astype(np.float32)),
            torch.from_numpy(order),
        )

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same on a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def restored(self, x: Tensor) -> Tensor:
        """Values of the nodes [N, ...] in the order of the circuits that the batch was made of."""
        out = torch.empty_like(x)
        out[self.order] = x
        return out

    def ordered(self, x: Tensor) -> Tensor:
        """Values [N, ...] in the order of the circuits, as the batch orders its nodes."""
        return x[self.order]

    def mean(self, x: Tensor) -> Tensor:
        """Means of node values [N, d] over each circuit: [B, d]."""
        total = x.new_zeros(len(self.sizes), x.shape[1]).index_add_(0, self.graph, x)
        return total / self.sizes[:, None]


def masked(sizes: Tensor, ratio: float, permutations: Sequence[Tensor] | None = None) -> Tensor:
    """floor(ratio n) random nodes of each circuit: [N] bool, the circuits one after the other.

    Args:
        sizes: [B] nodes of each. permutations: orders of the nodes of each, of which the first are masked.

    Raises:
        DataError: a circuit is so small that no node would be masked.
    """
    chosen = []
    for number, n in enumerate(sizes.tolist()):
        if int(n * ratio) < 1:
            raise DataError(f"a circuit of {n} nodes: too small to mask a share of {ratio:g}")
        order = torch.randperm(n) if permutations is None else permutations[number]
        mask = torch.zeros(n, dtype=torch.bool)
        mask[order[: int(n * ratio)]] = True
        chosen.append(mask)
    return torch.cat(chosen)


def padded(graphs: Sequence[Graph], masks: Sequence[Tensor]) -> dict[str, Tensor]:
    """The official collator's batch, by its names; the layout for exchange with the official code.

    Tokens are types + 1 and 0 is padding; edges are padded with copies of the first one. What is called indegree
    counts the edges that leave a node, outdegree those that enter.
    """
    most = max(len(types) for types, _ in graphs)
    longest = max(edges.shape[1] for _, edges in graphs)
    names = ("input_nodes", "padding_mask", "node_mask", "labels", "input_indegree", "input_outdegree")
    batch = {name: torch.zeros(len(graphs), most, dtype=torch.int64) for name in names}
    batch["input_edges"] = torch.zeros(len(graphs), 2, longest, dtype=torch.int64)
    for row, ((types, edges), mask) in enumerate(zip(graphs, masks, strict=True)):
        n, source, target = len(types), *torch.from_numpy(edges)
        batch["input_nodes"][row, :n] = torch.from_numpy(types) + 1
        batch["padding_mask"][row, :n] = 1
        batch["node_mask"][row, :n] = mask.long()
        batch["labels"][row, :n] = torch.from_numpy(types)
        batch["input_indegree"][row, :n] = source.bincount(minlength=n)
        batch["input_outdegree"][row, :n] = target.bincount(minlength=n)
        batch["input_edges"][row] = torch.from_numpy(edges[:, :1])
        batch["input_edges"][row, :, : edges.shape[1]] = torch.from_numpy(edges)
    return batch
