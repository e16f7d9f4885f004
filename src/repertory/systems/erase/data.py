"""From opened nodes to tensors, and what ERASE asks of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.data import Splits
from repertory.data.graph import Nodes
from repertory.errors import DataError
from repertory.systems.erase.noise import Noise, corrupted, transition_matrix
from repertory.systems.erase.sampler import Neighbours


class Graph(nn.Module):
    """A graph on a device.

    Attributes:
        x: [n, features], rows of absolute sum 1 where asked for; 0 where a node was left out for its features.
        edge_index: [2, edges]. neighbours: the same, by node.
    """

    x: Tensor
    edge_index: Tensor

    def __init__(self, nodes: Nodes, row_normalise: bool) -> None:
        super().__init__()
        data = nodes.graph
        x = torch.where(data.x.isfinite().all(1, keepdim=True), data.x, 0.0)
        self.register_buffer("x", F.normalize(x, p=1) if row_normalise else x, persistent=False)
        self.register_buffer("edge_index", data.edge_index, persistent=False)
        self.neighbours = Neighbours(data.edge_index, len(x))

    def __len__(self) -> int:
        return len(self.x)


def check_undirected(nodes: Nodes, source: str) -> None:
    """Refuses a graph in which an edge has no reverse.

    Raises:
        DataError: says how many, and how to add them.
    """
    i, j = nodes.graph.edge_index.numpy()
    n = len(nodes.names)
    alone = ~np.isin(i * n + j, j * n + i, assume_unique=True)
    if alone.any():
        first = alone.argmax()
        raise DataError(
            f"{source}: the graph must be undirected: {alone.sum()} of {len(i)} edges have no reverse (first: "
            f"{nodes.names[i[first]]} to {nodes.names[j[first]]}): add undirected=true"
        )


def classes_of(splits: Splits[Nodes]) -> list[str]:
    """The classes of training nodes, numbers by their value.

    Raises:
        DataError: there is one class, or a class of the validation nodes has no training node.
    """
    train, val = ({str(label) for label in labels_of(part, splits.source)} for part in (splits.train, splits.val))
    if len(train) < 2:
        raise DataError(f"{splits.source}: all training nodes are of class '{min(train)}': two classes are needed")
    if val - train:
        raise DataError(f"{splits.source}: class '{min(val - train)}' has no training node, but validation nodes")
    return sorted(train, key=lambda name: (0, int(name), "") if name.isascii() and name.isdigit() else (1, 0, name))


def labels_of(nodes: Nodes, source: str) -> np.ndarray:
    """[N] of one label a node.

    Raises:
        DataError: there are none, or several columns.
    """
    labels = nodes.labels()
    if labels is None:
        raise DataError(f"{source}: the nodes have no labels: name their column with label=COLUMN")
    if labels.ndim > 1:
        raise DataError(f"{source}: several label columns: one class a node is needed")
    return labels


def numbered(nodes: Nodes, classes: list[str], source: str) -> np.ndarray:
    """[N] numbers of the nodes' classes.

    Raises:
        DataError: a class is unknown.
    """
    number = {name: n for n, name in enumerate(classes)}
    labels = [str(label) for label in labels_of(nodes, source)]
    unknown = [(node, label) for node, label in zip(nodes.ids, labels, strict=True) if label not in number]
    if unknown:
        raise DataError(
            f"{source}: {len(unknown)} nodes have a class that no training node has (first: node {unknown[0][0]}, "
            f"'{unknown[0][1]}')"
        )
    return np.array([number[label] for label in labels], dtype=np.int64)


def noisy(labels: np.ndarray, classes: int, noise: float, noise_model: Noise) -> np.ndarray:
    """Labels [m] as given, or made wrong (from NumPy's global state): the map of classes first, then the labels."""
    return corrupted(labels, transition_matrix(classes, noise, noise_model)) if noise else labels


def as_positions(nodes: Nodes) -> Tensor:
    """[N] of the nodes meant, in their graph."""
    made: Any = torch.from_numpy(nodes.places.astype(np.int64))
    return made
