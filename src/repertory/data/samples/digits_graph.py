"""Handwritten digits as a graph: 1,797 pictures, each joined to the eight most similar ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from repertory.data.graph import Nodes, per_class
from repertory.data.samples import Sample
from repertory.errors import DataError

NEIGHBOURS = 8


def build(packages: dict[str, Path], train: int = 20, val: int = 30, seed: int = 0) -> Nodes:
    """Pixels as features; edges to the eight nearest by cosine similarity, in both directions.

    Args:
        train, val: random nodes of each digit, the rest is test.
        seed: of the draw.

    Raises:
        DataError: less than one node of a digit, or more than there are.
    """
    from sklearn.datasets import load_digits
    from sklearn.neighbors import kneighbors_graph

    if train < 1 or val < 1:
        raise DataError(f"digits-graph: train={train}, val={val}: at least one node of each digit is needed")
    pixels, labels = load_digits(return_X_y=True)
    near = kneighbors_graph(pixels, NEIGHBOURS, metric="cosine").tocoo()
    edges = np.stack([near.row, near.col])
    return Nodes.of(
        pixels, edges, names=[f"digit-{i:04d}" for i in range(len(labels))], labels=labels,
        split=per_class(labels, train, val, seed), source="digits-graph", undirected=True,
    )  # fmt: skip


SAMPLE = Sample(
    name="digits-graph",
    kind="graph",
    about="1,797 handwritten digits of 8 x 8 pixels, each joined to the eight most similar",
    licence="UCI Optical Recognition of Handwritten Digits (CC BY 4.0), from scikit-learn (BSD-3)",
    build=build,
)
