"""The look that all figures share, and the four kinds that most systems need.

Colours are left to the template wherever possible: the page swaps it when the reader's screen turns dark.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from PIL import Image

from repertory.errors import DataError
from repertory.evaluation.metrics import Metric

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# Wong 2011 ("Points of view: color blindness", Nature Methods 8:441), ordered by contrast, its yellow and black
# replaced where they would vanish on the page.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b8578f", "#c58600", "#3d9bd1", "#7a5c2e", "#5f6672", "#4a3aa0", "#8c1d4f")
PALETTE_DARK = (
    "#5ab4e6",
    "#f0894a",
    "#2fc49b",
    "#e39cc8",
    "#f0b93b",
    "#a7d8f5",
    "#cbb07c",
    "#a3aab5",
    "#a394f5",
    "#f37ba6",
)
SEQUENTIAL = "Cividis"  # Nuñez et al. 2018: one lightness ramp for every kind of colour vision
DIVERGING = [[0, "#0b5a8c"], [0.25, "#6baed6"], [0.5, "#f5f4f0"], [0.75, "#eb9a5b"], [1, "#a9430b"]]
ROLE = re.compile(r"^(train|training|val|valid|validation|test)[/_. ](.+)$")
ROLES = {"training": "train", "val": "validation", "valid": "validation"}


def template(dark: bool = False) -> go.layout.Template:
    """The plotly template of all figures, for a light or a dark page."""
    text, rule, strong = ("#c9ccd1", "#2b2f35", "#4a4f57") if dark else ("#3a3d42", "#e9e8e4", "#b9b8b3")
    axis = {
        "gridcolor": rule, "linecolor": strong, "zerolinecolor": rule, "zerolinewidth": 1, "tickcolor": strong,
        "automargin": True, "title": {"standoff": 6, "font": {"size": 12}}, "ticks": "", "ticklabelstandoff": 5,
        "exponentformat": "power",
    }  # fmt: skip
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": text},
            "title": {"font": {"size": 15}, "x": 0, "xref": "paper", "xanchor": "left"},
            "colorway": PALETTE_DARK if dark else PALETTE,
            "colorscale": {"sequential": SEQUENTIAL, "diverging": DIVERGING},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 8, "r": 12, "t": 36, "b": 8},
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
            "hoverlabel": {
                "bgcolor": "#24282d" if dark else "#ffffff",
                "bordercolor": strong,
                "font": {"family": FONT, "color": text},
            },
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": strong, "activecolor": text},
        },
        data={"heatmap": [{"colorbar": {"outlinewidth": 0, "thickness": 10, "len": 0.9}}]},
    )


def styled(figure: go.Figure, *, height: int = 320, title: str | None = None) -> go.Figure:
    """The figure itself, in the shared look; ``height`` in pixels, the width is the page's."""
    return figure.update_layout(template=template(), height=height, title_text=title)


def learning_curves(rows: Iterable[tuple[str, int, str, float]], most: int = 400) -> dict[str, go.Figure]:
    """One small figure per measure from rows of (stage, step, name, value).

    ``train/loss`` and ``val/loss`` share a figure; so do no two stages, whose steps count from 0 each. A curve longer
    than ``most`` points is drawn as the means of ``most`` stretches. A positive measure that spans more than two
    decades has a logarithmic axis.
    """
    panels: dict[tuple[str, str], dict[str, list[tuple[int, float]]]] = {}
    for stage, step, name, value in rows:
        role = ROLE.match(name)
        measure, series = (role[2], ROLES.get(role[1], role[1])) if role else (name, "")
        panels.setdefault((stage, measure), {}).setdefault(series, []).append((step, value))
    stages = {stage for stage, _ in panels}
    figures = {}
    for (stage, measure), curves in panels.items():
        figure, positive = go.Figure(), []
        for series, points in curves.items():
            steps, values = np.array(sorted(points), dtype=np.float64).T
            finite = np.isfinite(values)
            steps, values = steps[finite], values[finite]
            if len(steps) > most:
                edges = np.linspace(0, len(steps), most, endpoint=False).astype(int)
                sizes = np.diff(np.append(edges, len(steps)))
                steps, values = np.add.reduceat(steps, edges) / sizes, np.add.reduceat(values, edges) / sizes
            positive.append(values)
            mode = "lines" if len(steps) > 2 else "lines+markers"
            figure.add_scatter(x=steps, y=values, mode=mode, name=series, line_width=1.8, showlegend=bool(series))
        values = np.concatenate(positive)
        if len(values) and values.min() > 0 and values.max() > 100 * values.min():
            figure.update_yaxes(type="log", dtick=1)
        figure.update_xaxes(title_text="step", rangemode="tozero").update_layout(hovermode="x unified")
        title = f"{stage} · {measure}" if len(stages) > 1 and stage else measure
        figures[title] = styled(figure, height=240)
    return figures


def bars_with_intervals(series: Mapping[str, Mapping[str, Metric]], *, title: str | None = None) -> go.Figure:
    """Horizontal bars with their 95 % intervals: ``{"method": {"accuracy": Metric(...)}, "baseline": {...}}``.

    One colour per series, one group of bars per measure.
    """
    figure = go.Figure()
    measures = list(dict.fromkeys(name for metrics in series.values() for name in metrics))
    for name, metrics in series.items():
        present = [m for m in measures if m in metrics]
        values = np.array([metrics[m].value for m in present])
        low = np.array([np.nan if metrics[m].low is None else metrics[m].low for m in present], dtype=float)
        high = np.array([np.nan if metrics[m].high is None else metrics[m].high for m in present], dtype=float)
        figure.add_bar(
            x=values, y=[m.replace("_", " ") for m in present], orientation="h", name=name,
            error_x={"array": high - values, "arrayminus": values - low, "thickness": 1.2, "width": 3,
                     "color": "#7d828a"},
            text=[f"{v:.3g}" for v in values], textposition="inside", insidetextanchor="start",
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed").update_layout(bargap=0.35, showlegend=len(series) > 1)
    return styled(figure, height=90 + 34 * len(measures) * max(1, len(series)), title=title)


def image_grid(
    images: ArrayLike | Sequence[Sequence[ArrayLike]],
    *,
    columns: int = 8,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
    title: str | None = None,
) -> go.Figure:
    """Equal-sized images side by side, as one picture.

    Args:
        images: ``[N, H, W]`` or ``[N, H, W, C]``, C in (1, 3, 4), filled row by row into ``columns``; or with one more
            leading axis, ``[R, N, ...]``, one row each. uint8, or floats.
        limits: the float values that are black and white; default 0 and 1, or what the images span beyond that.
    """
    tiles = np.asarray(images)
    has_channels = tiles.ndim >= 4 and tiles.shape[-1] in (1, 3, 4)
    tiles = tiles if has_channels else tiles[..., None]
    if tiles.ndim not in (4, 5) or 0 in tiles.shape:
        raise DataError(f"image grid: shape {np.asarray(images).shape}; needs [N, H, W], [N, H, W, C] or one axis more")
    if tiles.dtype != np.uint8:
        span = tiles[np.isfinite(tiles)]
        low, high = limits or (min(0.0, span.min(initial=0.0)), max(1.0, span.max(initial=1.0)))
        scaled = (np.nan_to_num(tiles.astype(np.float64), nan=low) - low) / (high - low)
        tiles = (255 * scaled.clip(0, 1)).round().astype(np.uint8)
    tiles = np.repeat(tiles, 3, axis=-1) if tiles.shape[-1] == 1 else tiles[..., :3]
    if tiles.ndim == 4:
        columns = min(columns, len(tiles))
        blank = np.full((-len(tiles) % columns, *tiles.shape[1:]), 255, np.uint8)
        tiles = np.concatenate([tiles, blank]).reshape(-1, columns, *tiles.shape[1:])
    rows, columns, high, wide = tiles.shape[:4]
    gap = max(1, round(0.04 * wide))
    canvas = np.full((rows * (high + gap) - gap, columns * (wide + gap) - gap, 4), 0, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (high + gap), column * (wide + gap)
            canvas[top : top + high, left : left + wide, :3] = tiles[row, column]
            canvas[top : top + high, left : left + wide, 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    figure = go.Figure(go.Image(source=source, hoverinfo="skip"))
    figure.update_xaxes(
        showgrid=False, zeroline=False, side="top", constrain="domain", tickmode="array",
        tickvals=[wide / 2 + i * (wide + gap) for i in range(len(column_titles))], ticktext=list(column_titles),
    )  # fmt: skip
    figure.update_yaxes(
        showgrid=False, zeroline=False, constrain="domain", tickmode="array",
        tickvals=[high / 2 + i * (high + gap) for i in range(len(row_titles))], ticktext=list(row_titles),
    )  # fmt: skip
    aspect = canvas.shape[0] / canvas.shape[1]
    figure.update_layout(dragmode=False, meta={"aspect": aspect})  # the page fits the height to its width
    return styled(figure, height=int(np.clip(60 + 900 * aspect, 180, 760)), title=title)


def heatmap(
    matrix: ArrayLike,
    *,
    x: Sequence[str] | None = None,
    y: Sequence[str] | None = None,
    x_title: str = "",
    y_title: str = "",
    diverging: bool = False,
    title: str | None = None,
) -> go.Figure:
    """A matrix ``[rows, columns]`` as colours, first row on top; ``diverging`` centres the scale on 0."""
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise DataError(f"heatmap: shape {matrix.shape}; needs a matrix")
    scale = {"colorscale": DIVERGING, "zmid": 0} if diverging else {"colorscale": SEQUENTIAL}
    figure = go.Figure(go.Heatmap(z=matrix, x=x, y=y, **scale))
    figure.update_xaxes(title_text=x_title, showgrid=False)
    figure.update_yaxes(title_text=y_title, showgrid=False, autorange="reversed")
    return styled(figure, height=int(np.clip(100 + 22 * len(matrix), 260, 640)), title=title)
