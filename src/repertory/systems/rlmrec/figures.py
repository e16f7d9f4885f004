"""What people of recommendation look at: lists with reasons, curves over k, the long tail, the map of items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from repertory.figures import styled

USERS = 5
"""Users whose lists are shown."""
LISTED = 6
"""Items of a list that is shown."""
NAMED = 20
"""At most so many items are named on the map."""
BINS = 10
"""Groups of items by popularity."""


def of_lists(listed: Any, history: Mapping[str, list[str]]) -> go.Figure:
    """A table of recommendations with their reasons.

    Args:
        listed: what ``predict`` returns, as a DataFrame. history: titles that each user has chosen.
    """
    columns: list[list[str]] = [[], [], [], []]
    for name, rows in listed.groupby("id", sort=False):
        own = history.get(str(name), [])
        rest = len(own) - len(rows) + 1
        for n, row in enumerate(rows.itertuples()):
            known = own[n] if n < len(own) else "nothing yet" if n == 0 else ""
            if n == len(rows) - 1 and rest > 1:
                known = f"and {rest} more"
            because = "; ".join(row.because) if len(row.because) else "its text"
            for column, cell in zip(
                columns, (f"<b>{name}</b>" if n == 0 else "", known, row.title, because), strict=True
            ):
                column.append(str(cell))
    cell = {"align": "left", "fill": {"color": "rgba(127,127,127,0.06)"}, "line": {"color": "rgba(127,127,127,0.25)"},
            "height": 24}  # fmt: skip
    names = ["user", "has chosen, among others", "would be shown", "because of"]
    figure = go.Figure(go.Table(
        header={**cell, "values": [f"<b>{name}</b>" for name in names], "fill": {"color": "rgba(127,127,127,0.18)"}},
        cells={**cell, "values": columns}, columnwidth=[1, 2.4, 2.4, 3.6],
    ))  # fmt: skip
    return styled(figure, height=int(min(1000, 80 + 30 * len(columns[0]))))


def of_curves(curves: Mapping[str, np.ndarray]) -> go.Figure:
    """Measures at every length of a list [k], by name."""
    figure = go.Figure()
    for name, values in curves.items():
        figure.add_scatter(x=np.arange(1, len(values) + 1), y=values, mode="lines", name=name, line_width=2)
    figure.update_xaxes(title_text="length k of the list").update_yaxes(rangemode="tozero")
    return styled(figure.update_layout(hovermode="x unified"), height=320)


def of_popularity(chosen: np.ndarray, shown: np.ndarray) -> go.Figure:
    """Shares of items by popularity: of what was chosen in training [I], and of what is recommended [I]."""
    groups = np.array_split(np.argsort(-chosen, kind="stable"), min(BINS, len(chosen)))
    names = [f"{n * 100 // len(groups)}-{(n + 1) * 100 // len(groups)} %" for n in range(len(groups))]
    figure = go.Figure()
    for name, counts in (("chosen in training", chosen), ("recommended", shown)):
        figure.add_bar(x=names, y=[counts[group].sum() / max(1, counts.sum()) for group in groups], name=name)
    figure.update_xaxes(title_text="items by popularity, the most popular first")
    figure.update_yaxes(title_text="share", rangemode="tozero")
    return styled(figure, height=320)


def of_items(vectors: np.ndarray, titles: np.ndarray, counts: np.ndarray) -> go.Figure:
    """Items in the plane of the first two principal axes of their directions.

    Args:
        vectors: [I, D]. titles: [I]. counts: how often each was chosen [I].
    """
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    centred = units - units.mean(axis=0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    if plane.shape[1] < 2:
        plane = np.concatenate([plane, np.zeros_like(plane)], axis=1)
    order = np.argsort(counts, kind="stable")
    figure = go.Figure(go.Scattergl(
        x=plane[order, 0], y=plane[order, 1], mode="markers", text=titles[order], customdata=counts[order],
        hovertemplate="%{text}<br>chosen %{customdata} times<extra></extra>", showlegend=False,
        marker={"size": 4 + 10 * np.sqrt(counts[order] / max(1, counts.max())), "opacity": 0.75,
                "color": np.log10(1 + counts[order]), "colorscale": "Cividis",
                "colorbar": {"title": "chosen, log10", "thickness": 10}},
    ))  # fmt: skip
    most: list[int] = []  # the most popular, as far as their titles do not cover each other
    apart = 0.06 * np.ptp(plane, axis=0) * (3, 1)
    for n in np.argsort(-counts, kind="stable")[:200]:
        if all((np.abs(plane[n] - plane[m]) > apart).any() for m in most) and len(most) < NAMED:
            most.append(int(n))
    figure.add_scatter(x=plane[most, 0], y=plane[most, 1], mode="text", text=titles[most], textposition="top center",
                       textfont={"size": 11}, hoverinfo="skip", showlegend=False)  # fmt: skip
    figure.update_xaxes(showticklabels=False, showgrid=False).update_yaxes(showticklabels=False, showgrid=False)
    return styled(figure, height=560)
