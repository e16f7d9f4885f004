"""What people look at: labels before and after, which class is taken for which, prototypes, the graph on a map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from sklearn.decomposition import PCA

from repertory.figures import PALETTE, heatmap, styled

SHOWN = 1500
"""Nodes on the map, at most."""
EDGES = 6000
"""Edges on the map, at most."""


def of_pairs(truth: np.ndarray, said: np.ndarray, classes: Sequence[str], rows: str, columns: str) -> go.Figure:
    """Which class [N] became which, as shares of the first."""
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (truth, said), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = heatmap(shares, x=list(classes), y=list(classes), x_title=columns, y_title=rows)
    figure.update_traces(zmin=0, zmax=1)
    figure.update_xaxes(type="category").update_yaxes(type="category")
    return figure


def of_prototypes(prototypes: np.ndarray, classes: Sequence[str]) -> go.Figure:
    """|cos| of the mean vectors [classes, p]; what is light off the diagonal is not told apart."""
    unit = prototypes / np.maximum(np.linalg.norm(prototypes, axis=1, keepdims=True), 1e-12)
    figure = heatmap(np.abs(unit @ unit.T), x=list(classes), y=list(classes), x_title="class", y_title="class")
    figure.update_traces(zmin=0, zmax=1)
    figure.update_xaxes(type="category").update_yaxes(type="category")
    return figure


def of_graph(vectors: np.ndarray, ids: np.ndarray, edges: np.ndarray, labels: np.ndarray | None) -> go.Figure:
    """Nodes on two principal axes of their unit vectors, with the edges among them.

    Args:
        vectors: [N, p]. ids: [N]. edges: [2, E] positions in 0 .. N - 1. labels: [N] texts.
    """
    shown = np.unique(np.linspace(0, len(ids) - 1, SHOWN).astype(int)) if len(ids) > SHOWN else np.arange(len(ids))
    unit = vectors[shown] / np.maximum(np.linalg.norm(vectors[shown], axis=1, keepdims=True), 1e-12)
    plane = np.zeros((len(shown), 2))
    axes = min(2, *unit.shape)
    plane[:, :axes] = PCA(axes, random_state=0).fit_transform(unit)
    place = np.full(len(ids), -1)
    place[shown] = np.arange(len(shown))
    among = place[edges]
    among = among[:, (among >= 0).all(axis=0) & (among[0] < among[1])]
    among = among[:, np.unique(np.linspace(0, among.shape[1] - 1, EDGES).astype(int))] if among.shape[1] else among
    lines = np.full((among.shape[1], 3, 2), np.nan)
    lines[:, 0], lines[:, 1] = plane[among[0]], plane[among[1]]
    lines = lines.reshape(-1, 2)
    figure = go.Figure()
    figure.add_scattergl(
        x=lines[:, 0], y=lines[:, 1], mode="lines", line={"width": 0.5, "color": "rgba(127,127,127,0.25)"},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    names = np.full(len(shown), "nodes") if labels is None else labels[shown].astype(str)
    groups = list(dict.fromkeys(sorted(names, key=lambda name: (len(name), name))))
    if len(groups) > len(PALETTE):
        names, groups = np.full(len(shown), "nodes"), ["nodes"]
    for name in groups:
        mine = names == name
        figure.add_scattergl(
            x=plane[mine, 0], y=plane[mine, 1], mode="markers", name=name, marker={"size": 5}, text=ids[shown][mine],
            hoverinfo="text+name",
        )  # fmt: skip
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return styled(figure, height=520)
