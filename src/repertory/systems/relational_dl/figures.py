"""What people look at: the schema, predictions against the truth, what they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from repertory.data.database import Database
from repertory.figures import heatmap, styled

MOST = 15
"""Columns and paths that are drawn."""


def of_schema(database: Database, entity: str) -> go.Figure:
    """Tables with their rows and links; the entity's table at the left, arrows along foreign keys."""
    neighbours: dict[str, set[str]] = {table: set() for table in database.schemas}
    for table, column in database.links:
        other = database.schemas[table].links[column]
        neighbours[table].add(other)
        neighbours[other].add(table)
    ring, placed = [[entity]], {entity}
    while len(placed) < len(neighbours):
        near = [t for t in neighbours if t not in placed and any(t in neighbours[p] for p in ring[-1])]
        near = near or [t for t in neighbours if t not in placed]
        ring.append(near)
        placed |= set(near)
    position = {}
    for at, tables in enumerate(ring):
        for row, table in enumerate(tables):
            position[table] = (float(at), (len(tables) - 1) / 2 - row)
    figure = go.Figure()
    pairs: dict[tuple[str, str], list[str]] = {}
    for table, column in database.links:
        pairs.setdefault((table, database.schemas[table].links[column]), []).append(column)
    for (table, other), columns in pairs.items():
        (x0, y0), (x1, y1) = position[table], position[other]
        figure.add_annotation(
            x=x1, y=y1, ax=x0, ay=y0, xref="x", yref="y", axref="x", ayref="y", showarrow=True, arrowhead=2,
            arrowsize=1.2, arrowwidth=1.2, arrowcolor="#8a8f98", standoff=34, startstandoff=34,
        )  # fmt: skip
        figure.add_annotation(
            x=(x0 + x1) / 2,
            y=(y0 + y1) / 2,
            text=", ".join(columns),
            showarrow=False,
            font_size=11,
            yshift=10,
            bgcolor="rgba(127,127,127,0.12)",
        )
    for table, (x, y) in position.items():
        known = "known at: " + (database.schemas[table].time or "always")
        figure.add_scatter(
            x=[x], y=[y], mode="markers+text", text=[f"<b>{table}</b><br>{database.rows[table]:,} rows"],
            textposition="bottom center", hovertext=[known], hoverinfo="text", showlegend=False,
            marker={"size": 26 if table == entity else 18, "symbol": "square"},
        )  # fmt: skip
    tallest = max(len(tables) for tables in ring)
    figure.update_xaxes(visible=False, range=[-0.5, len(ring) - 0.5])
    figure.update_yaxes(visible=False, range=[-(tallest - 1) / 2 - 0.8, (tallest - 1) / 2 + 0.5])
    return styled(figure, height=140 + 110 * tallest)


def of_ranking(truth: np.ndarray, probabilities: np.ndarray) -> go.Figure:
    """The ROC curve of 0/1 truth [N] and probabilities [N]."""
    order = np.argsort(-probabilities, kind="stable")
    last = np.append(np.diff(probabilities[order]) != 0, True)
    hits = np.concatenate([[0], np.cumsum(truth[order])[last]]) / max(1, truth.sum())
    misses = np.concatenate([[0], np.cumsum(1 - truth[order])[last]]) / max(1, (1 - truth).sum())
    kept = np.unique(np.linspace(0, len(hits) - 1, 400).astype(int))
    figure = go.Figure()
    figure.add_scatter(x=misses[kept], y=hits[kept], mode="lines", name="model", line_width=2)
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="chance", line={"dash": "dot", "width": 1})
    figure.update_xaxes(title_text="share of the negatives taken", range=[0, 1])
    figure.update_yaxes(title_text="share of the positives found", range=[0, 1.01])
    return styled(figure, height=380)


def of_numbers(truth: np.ndarray, said: np.ndarray) -> go.Figure:
    """Predictions against the truth [N]."""
    kept = np.unique(np.linspace(0, len(truth) - 1, 3000).astype(int))
    low, high = float(min(truth.min(), said.min())), float(max(truth.max(), said.max()))
    figure = go.Figure()
    figure.add_scattergl(x=truth[kept], y=said[kept], mode="markers", marker={"size": 4, "opacity": 0.5}, name="rows")
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", name="equal", line={"dash": "dot", "width": 1})
    figure.update_xaxes(title_text="truth").update_yaxes(title_text="prediction")
    return styled(figure, height=380)


def of_classes(truth: np.ndarray, said: np.ndarray, classes: Sequence[str]) -> go.Figure:
    """Which class [N] was taken for which, as shares of the true one."""
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (truth, said), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return heatmap(shares, x=list(classes), y=list(classes), x_title="prediction", y_title="truth")


def of_importance(importance: Mapping[str, float], about: str) -> go.Figure:
    """Bars of how much an output moves, on average, without each of these; the most important on top."""
    most = sorted(importance, key=lambda name: -importance[name])[:MOST]
    figure = go.Figure(go.Bar(x=[importance[name] for name in most], y=most, orientation="h", showlegend=False))
    figure.update_yaxes(autorange="reversed").update_xaxes(title_text=about, rangemode="tozero")
    return styled(figure, height=100 + 26 * max(2, len(most)))


def of_columns(table: Any) -> dict[str, dict[str, float]]:
    """Mean absolute importance by kind and name, of an ``explain`` table."""
    frame = table.to_pandas()
    frame["importance"] = frame["importance"].abs()
    means = frame.groupby(["kind", "name"])["importance"].mean()
    return {kind: means[kind].to_dict() for kind in means.index.get_level_values("kind").unique()}
