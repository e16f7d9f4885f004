"""What network scientists look at: nodes that move, the paths they leave, and how busy the network is."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from repertory.figures import PALETTE, styled

SHOWN = 400
"""At most so many nodes are drawn."""
MOST = len(PALETTE)
"""At most so many labels have a colour of their own."""


def _plane(paths: np.ndarray) -> np.ndarray:
    """Paths [M, N, D] in two dimensions: as they are, or on their first two principal axes."""
    if paths.shape[2] == 1:
        return np.concatenate([paths, np.zeros_like(paths)], axis=2)
    if paths.shape[2] == 2:
        return paths
    flat = paths.reshape(-1, paths.shape[2])
    axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:2]
    return (paths - flat.mean(0)) @ axes.T


def of_trajectories(times: np.ndarray, paths: np.ndarray, ids: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
    """An animation of the nodes, and their paths; coloured by label where there are few.

    Args:
        times: [M]. paths: [M, N, D]. ids: [N]. labels: [N] or None.
    """
    shown = np.arange(len(ids))[:SHOWN] if len(ids) > SHOWN else np.arange(len(ids))
    plane, ids = _plane(paths)[:, shown], ids[shown]
    names = np.full(len(ids), "nodes") if labels is None else labels[shown].astype(str)
    if len(np.unique(names)) > MOST:
        names = np.full(len(ids), "nodes")
    groups = list(np.unique(names))
    low, high = plane.reshape(-1, 2).min(0), plane.reshape(-1, 2).max(0)
    low, high = low - 0.05 * (high - low) - 1e-6, high + 0.05 * (high - low) + 1e-6

    def points(m: int) -> list[go.Scatter]:
        return [
            go.Scatter(x=plane[m, names == g, 0], y=plane[m, names == g, 1], mode="markers", name=g,
                       text=ids[names == g], hovertemplate="%{text}<extra>%{fullData.name}</extra>",
                       marker={"size": 9, "line": {"width": 0.5, "color": "white"}})
            for g in groups
        ]  # fmt: skip

    frames = [go.Frame(data=points(m), name=str(m)) for m in range(len(times))]
    moving = go.Figure(points(0), frames=frames)
    still = {"frame": {"duration": 0, "redraw": False}, "mode": "immediate", "transition": {"duration": 0}}
    play = {
        "frame": {"duration": 120, "redraw": False},
        "fromcurrent": True,
        "transition": {"duration": 100, "easing": "linear"},
    }
    moving.update_layout(
        updatemenus=[{
            "type": "buttons", "direction": "left", "showactive": False, "x": 0, "y": -0.12, "xanchor": "left",
            "yanchor": "top", "pad": {"t": 14, "r": 8},
            "buttons": [{"label": "play", "method": "animate", "args": [None, play]},
                        {"label": "pause", "method": "animate", "args": [[None], still]}],
        }],
        sliders=[{
            "active": 0, "x": 0.16, "len": 0.84, "y": -0.12, "yanchor": "top", "pad": {"t": 4},
            "currentvalue": {"prefix": "time ", "xanchor": "right"},
            "steps": [{"label": f"{time:.4g}", "method": "animate", "args": [[str(m)], still]}
                      for m, time in enumerate(times)],
        }],
        showlegend=len(groups) > 1, margin={"b": 96},
    )  # fmt: skip
    lines = go.Figure()
    for number, group in enumerate(groups):
        own = plane[:, names == group]
        gap = np.full((1, own.shape[1], 2), np.nan)
        path = np.concatenate([own, gap]).transpose(1, 0, 2).reshape(-1, 2)
        colour = {"color": PALETTE[number]}
        lines.add_scatter(x=path[:, 0], y=path[:, 1], mode="lines", name=group, opacity=0.45, hoverinfo="skip",
                          line={"width": 1.2, **colour}, legendgroup=group, showlegend=False)  # fmt: skip
        lines.add_scatter(x=own[-1, :, 0], y=own[-1, :, 1], mode="markers", name=group, text=ids[names == group],
                          hovertemplate="%{text}<extra>%{fullData.name}</extra>", legendgroup=group,
                          marker={"size": 7, **colour})  # fmt: skip
    lines.update_layout(showlegend=len(groups) > 1)
    for figure in (moving, lines):
        figure.update_xaxes(range=[low[0], high[0]])
        figure.update_yaxes(range=[low[1], high[1]])
    kept = f" (the first {SHOWN} nodes)" if len(shown) < paths.shape[1] else ""
    return {
        f"The nodes in motion: close nodes meet often{kept}": styled(moving, height=560),
        f"Paths of the nodes; the dot is where the training period ends{kept}": styled(lines, height=520),
    }


def of_rates(
    edges: np.ndarray, expected: np.ndarray, observed: np.ndarray, period: tuple[float, float]
) -> dict[str, Any]:
    """Events by bin of the model: expected, and those of the data at hand that fall inside the training period.

    Args:
        edges: [B + 1]. expected: [B]. observed: times [E]. period: its ends.
    """
    inside = observed[(observed >= period[0]) & (observed <= period[1])]
    counts = np.histogram(inside, edges)[0]
    centres = (edges[:-1] + edges[1:]) / 2
    figure = go.Figure()
    figure.add_bar(x=centres, y=expected, name="expected by the model", width=np.diff(edges))
    if len(inside):
        figure.add_scatter(x=centres, y=counts, name="in the data shown", mode="lines+markers")
    figure.update_xaxes(title_text="time").update_yaxes(title_text="events in a bin").update_layout(bargap=0.05)
    return {"Events over the training period, by bin": styled(figure, height=300)}
