"""What people who work with circuits look at: the circuit in levels, confused gate types, a map."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from repertory.data.circuits import Circuit
from repertory.figures import PALETTE, heatmap, styled
from repertory.systems.mgvga.data import graph_of
from repertory.systems.mgvga.graph import TYPES

DRAWN = 150
"""Nodes up to which a circuit is drawn."""
SYMBOLS = ("triangle-right", "triangle-left", "circle", "diamond")


def layout(circuit: Circuit) -> tuple[np.ndarray, np.ndarray]:
    """Levels [n] and rows [n] of a circuit's nodes, inverters included: inputs left, and each near its fan-ins."""
    types, edges = graph_of(circuit)
    levels = Circuit(types, edges, np.zeros(edges.shape[1], np.int64)).levels.copy()
    levels[types == 1] = levels.max()
    source, target = edges
    rows = np.zeros(len(types))
    for level in range(int(levels.max()) + 1):
        here = np.flatnonzero(levels == level)
        if level:
            wish = np.array([rows[source[target == node]].mean() for node in here])
            here = here[np.argsort(wish, kind="stable")]
        rows[here] = np.arange(len(here)) - (len(here) - 1) / 2
    return levels, rows


def of_circuit(circuit: Circuit, hidden: np.ndarray, said: np.ndarray) -> go.Figure:
    """The circuit from inputs to outputs; hidden nodes [m] are filled with the type that was told of them."""
    types, edges = graph_of(circuit)
    levels, rows = layout(circuit)
    figure = go.Figure()
    x, y = np.full((2, 3 * edges.shape[1]), np.nan)
    x[0::3], x[1::3], y[0::3], y[1::3] = levels[edges[0]], levels[edges[1]], rows[edges[0]], rows[edges[1]]
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"color": "#9aa0a8", "width": 1}, hoverinfo="skip", showlegend=False
    )
    told = dict(zip(hidden.tolist(), said.tolist(), strict=True))
    names = [*(circuit.names or [""] * len(circuit)), *[""] * (len(types) - len(circuit))]
    for kind, symbol in enumerate(SYMBOLS):
        for masked in (False, True):
            nodes = [n for n in range(len(types)) if told.get(n, int(types[n])) == kind and (n in told) == masked]
            if not nodes:
                continue
            told_as = f", told as {TYPES[kind]}" if masked else ""
            texts = [f"{names[n] or n}: {TYPES[types[n]]}{told_as}" for n in nodes]
            figure.add_scatter(
                x=levels[nodes], y=rows[nodes], mode="markers", name=TYPES[kind] + (", hidden" if masked else ""),
                hovertext=texts, hoverinfo="text",
                marker={
                    "symbol": symbol + ("" if masked else "-open"), "size": 11, "color": PALETTE[kind],
                    "line": {"width": 1.6},
                },
            )  # fmt: skip
    wrong = [n for n in told if told[n] != types[n]]
    if wrong:
        figure.add_scatter(
            x=levels[wrong], y=rows[wrong], mode="markers", name="wrong", hoverinfo="skip",
            marker={"symbol": "x-thin", "size": 18, "line": {"width": 2.2, "color": "#c0392b"}},
        )  # fmt: skip
    figure.update_xaxes(title_text="level", showgrid=False, zeroline=False)
    figure.update_yaxes(visible=False)
    tallest = int(np.bincount(levels).max())
    return styled(figure, height=int(np.clip(140 + 30 * tallest, 300, 640)))


def of_types(truth: np.ndarray, said: np.ndarray) -> go.Figure:
    """Which type [m] was taken for which, as shares of the true one."""
    counts = np.zeros((len(TYPES), len(TYPES)))
    np.add.at(counts, (truth, said), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = heatmap(shares, x=list(TYPES), y=list(TYPES), x_title="told", y_title="is")
    return figure.update_traces(text=shares, texttemplate="%{text:.2f}", zmin=0, zmax=1)


def of_map(vectors: np.ndarray, ids: Any, families: np.ndarray | None) -> go.Figure:
    """Circuits [n, d] on their first two principal components, coloured by family."""
    centred = vectors - vectors.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    place = left[:, :2] * singular[:2]
    groups = np.full(len(ids), "circuits") if families is None else np.asarray(families).astype(str)
    figure = go.Figure()
    for group in sorted(set(groups)):
        rows = groups == group
        figure.add_scatter(
            x=place[rows, 0], y=place[rows, 1], mode="markers+text" if len(ids) <= 30 else "markers", name=group,
            text=[str(i) for i in np.asarray(ids)[rows]], textposition="top center", hoverinfo="text",
            textfont_size=10, marker_size=9, showlegend=families is not None,
        )  # fmt: skip
    figure.update_xaxes(title_text="first component").update_yaxes(title_text="second component")
    return styled(figure, height=420)
