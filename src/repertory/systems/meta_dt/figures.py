"""What meta-RL researchers look at: where the agent goes, what it earns episode by episode, what surprises it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from repertory.figures import PALETTE, SEQUENTIAL, heatmap, styled
from repertory.systems.meta_dt.acting import Played

SHOWN = 6
"""Tasks, and episodes, that are drawn."""


def of_play(
    played: Mapping[str, Sequence[Played]], goals: Mapping[str, np.ndarray], baseline: float
) -> dict[str, go.Figure]:
    """Ways towards the goals, where the agent lives on a plane, and returns episode by episode.

    Args:
        played: the agent's episodes by task.
        goals: where the goal of each task is [2]; empty where there are none.
        baseline: mean return of the data in these tasks.
    """
    figures = {}
    if goals:
        figures["Ways of the agent to goals that it is not told: the first episode and the last, on held-out tasks"] = (
            _ways(played, goals)
        )
    returns = np.array([[one.total for one in own] for own in played.values()])
    number = np.arange(1, returns.shape[1] + 1)
    figure = go.Figure()
    for row in returns[:40]:
        figure.add_scatter(x=number, y=row, mode="lines", line={"width": 1, "color": "#b9b8b3"}, showlegend=False)
    figure.add_scatter(x=number, y=returns.mean(axis=0), mode="lines+markers", name="mean of the tasks",
                       line={"width": 3, "color": PALETTE[0]})  # fmt: skip
    figure.add_hline(y=baseline, line_dash="dash", line_color=PALETTE[1], annotation_text="mean of the data")
    figure.update_xaxes(title_text="episode (the first without prompt)", dtick=1).update_yaxes(title_text="return")
    figures[f"Return by episode in {len(returns)} held-out tasks; from the second on, prompted by its own"] = styled(
        figure
    )
    return figures


def _ways(played: Mapping[str, Sequence[Played]], goals: Mapping[str, np.ndarray]) -> go.Figure:
    figure = make_subplots(1, 2, subplot_titles=("first episode", "last episode"), shared_yaxes=True)
    for place, task in enumerate(list(played)[:SHOWN]):
        colour = PALETTE[place % len(PALETTE)]
        for column, one in ((1, played[task][0]), (2, played[task][-1])):
            episode = one.episode
            way = np.concatenate([episode.observations, episode.next_observations[-1:]])
            figure.add_scatter(x=way[:, 0], y=way[:, 1], mode="lines+markers", marker={"size": 4, "color": colour},
                               line={"width": 1.5, "color": colour}, name=task, showlegend=column == 1,
                               legendgroup=task, row=1, col=column)  # fmt: skip
            goal = goals[task]
            figure.add_scatter(x=[goal[0]], y=[goal[1]], mode="markers", showlegend=False, legendgroup=task,
                               marker={"symbol": "star", "size": 15, "color": colour}, name=f"{task}: goal",
                               row=1, col=column)  # fmt: skip
    figure.update_xaxes(range=[-1.3, 1.3], constrain="domain").update_yaxes(range=[-1.3, 1.3])
    figure.update_yaxes(scaleanchor="x", row=1, col=1).update_yaxes(scaleanchor="x2", row=1, col=2)
    return styled(figure, height=460).update_layout(margin={"t": 70}, legend={"y": 1.12})


def of_errors(errors: Sequence[np.ndarray], first: int, length: int) -> dict[str, go.Figure]:
    """How the world model's error falls as context comes in, and which segments surprise it.

    Args:
        errors: prediction error at each step of each episode.
        first: steps of a whole context.
        length: of a prompt.
    """
    longest = max(map(len, errors))
    padded = np.full((len(errors), longest), np.nan)
    for row, error in enumerate(errors):
        padded[row, : len(error)] = error
    steps = np.arange(longest)
    figure = go.Figure()
    for share, name in ((0.9, "90 %"), (0.5, "median"), (0.1, "10 %")):
        figure.add_scatter(x=steps, y=np.nanquantile(padded, share, axis=0), mode="lines", name=name,
                           line={"width": 2.5 if share == 0.5 else 1})  # fmt: skip
    figure.add_vline(x=first, line_dash="dot", line_color="#7d828a", annotation_text="whole context")
    figure.update_xaxes(title_text="step of the episode").update_yaxes(title_text="absolute error")
    made = {"Prediction error of the world model by step, over the episodes of held-out tasks": styled(figure)}
    long_enough = [row for row in range(len(errors)) if len(errors[row]) >= first + length]
    if long_enough:
        chosen = long_enough[:: max(1, len(long_enough) // 12)][:12]
        starts = max(len(errors[row]) for row in chosen) - length - first + 1
        sums = np.full((len(chosen), starts), np.nan)
        for place, row in enumerate(chosen):
            windows = np.lib.stride_tricks.sliding_window_view(errors[row][first:], length).sum(axis=1)
            sums[place, : len(windows)] = windows
        figure = heatmap(
            sums, x=[str(first + s) for s in range(starts)], y=[str(n) for n in range(len(chosen))],
            x_title="first step of the segment", y_title="episode",
        )  # fmt: skip
        best = np.nanargmax(sums, axis=1)
        figure.add_scatter(x=[str(first + b) for b in best], y=[str(n) for n in range(len(chosen))], mode="markers",
                           marker={"symbol": "circle-open", "size": 11, "color": "#d1495b"}, name="the prompt",
                           hoverinfo="skip")  # fmt: skip
        figure.update_traces(colorscale=SEQUENTIAL, selector={"type": "heatmap"})
        made[f"Prediction error of each segment of {length} steps; a prompt begins where it is largest"] = figure
    return made
