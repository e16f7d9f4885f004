"""What people look at: hidden patches drawn again, action units beside faces, F1 over thresholds, co-occurrence."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots
from torch import Tensor

from repertory.data.images import Images
from repertory.data.transforms.images import IMAGENET_MEAN, IMAGENET_STD
from repertory.figures import DIVERGING, PALETTE, image_grid, styled
from repertory.nn.masking import patchify, unpatchify
from repertory.systems.fmae_iat.data import action_units
from repertory.systems.fmae_iat.metrics import ActionUnitScores, action_unit_scores

if TYPE_CHECKING:
    from repertory.systems.fmae_iat.system import FMAEIAT

SHOWN = 6
SIDE = 112
COUNTED = 2_000
"""Faces, at most, over which curves and co-occurrence are counted."""


def of_faces(system: FMAEIAT, items: Images) -> dict[str, Any]:
    """All pictures, by caption."""
    rows = np.unique(np.linspace(0, len(items) - 1, min(SHOWN, len(items))).round().astype(int))
    shown, made = items.take(rows), dict[str, Any]()
    if "tuned" in system.model:
        made |= _answers(system, shown)
        many = items.take(np.unique(np.linspace(0, len(items) - 1, min(COUNTED, len(items))).round().astype(int)))
        known = set(system.assets.get("units", ["?"])) <= set(items.columns.column_names)
        if system.config.task == "action_units":
            found = system.probabilities(many)
            truth = action_units(many, system.outputs) if known else None
            if truth is not None:
                made |= _f1_curves(system, action_unit_scores(truth, found))
            if len(system.outputs) > 1 and len(many) > 2:
                made |= _co_occurrence(system, found, truth)
    if "mae" in system.model:
        made |= _reconstructions(system, shown)
    return made


def _pixels(images: Tensor) -> np.ndarray:
    """Normalised images ``[B, 3, S, S]`` as uint8 ``[B, H, W, 3]`` of at least ``SIDE`` pixels."""
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = np.round(255 * (images.cpu().numpy() * std + mean).clip(0, 1)).astype(np.uint8).transpose(0, 2, 3, 1)
    times = max(1, round(SIDE / pixels.shape[1]))
    return pixels.repeat(times, axis=1).repeat(times, axis=2)


def _reconstructions(system: FMAEIAT, items: Images) -> dict[str, Any]:
    made, mae = system.reconstruct(items), system.model["mae"]
    images = system.transformed(items)
    patches, drawn = patchify(images, mae.encoder.patch_size), made.predicted.float()
    if mae.norm_pixels:  # a patch is predicted up to its mean and deviation, which are taken from the original
        drawn = drawn * patches.std(-1, keepdim=True) + patches.mean(-1, keepdim=True)
    hidden = made.masking.mask[..., None]
    grid = mae.encoder.grid
    whole = unpatchify(patches * (1 - hidden) + drawn * hidden, mae.encoder.patch_size, grid)
    seen = unpatchify((1 - hidden).expand_as(patches), mae.encoder.patch_size, grid)
    grey = np.full(3, 128, np.uint8)
    first = _pixels(images)
    covered = _pixels(images * seen).copy()
    times = covered.shape[1] // images.shape[2]
    mask = seen[:, 0].cpu().numpy().repeat(times, axis=1).repeat(times, axis=2) > 0.5
    covered[~mask] = grey
    lines = np.stack([first, covered, _pixels(whole)], axis=1)
    caption = f"Faces, the {1 - system.config.mask_ratio:.0%} of their patches that is seen, and the rest drawn from it"
    titles = ["face", "seen", "drawn"]
    return {caption: image_grid(lines, column_titles=titles, row_titles=_names(items))}


def _answers(system: FMAEIAT, items: Images) -> dict[str, Any]:
    """Bars of probabilities beside each face; of units that are known, the shown ones are marked."""
    found, names = system.probabilities(items), system.outputs
    pictures = _pixels(system.transformed(items))
    units = system.config.task == "action_units"
    if units and set(names) <= set(items.columns.column_names):
        truth = action_units(items, names)
    elif not units and system.assets["label"] in items.columns.column_names:
        truth = (items.column(system.assets["label"]).astype(str)[:, None] == np.array(names)).astype(float)
    else:
        truth = np.full(found.shape, np.nan)
    figure = make_subplots(
        len(items), 2, column_widths=[0.2, 0.8], horizontal_spacing=0.06, vertical_spacing=0.03, shared_xaxes=False
    )
    for i, picture in enumerate(pictures):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        figure.add_trace(go.Image(source=source, hoverinfo="skip"), i + 1, 1)
        for code, colour, name in ((1, PALETTE[0], "shown"), (0, PALETTE[1], "not shown"), (None, PALETTE[7], "")):
            chosen = np.isnan(truth[i]) if code is None else truth[i] == code
            if chosen.any():
                at = [names[j] for j in np.flatnonzero(chosen)]
                figure.add_trace(
                    go.Bar(x=at, y=found[i, chosen], marker_color=colour, name=name, legendgroup=name, width=0.7,
                           showlegend=False),
                    i + 1, 2,
                )  # fmt: skip
        if units:
            figure.add_hline(y=system.threshold, line_width=1, line_dash="dot", row=i + 1, col=2)
        figure.update_xaxes(visible=False, row=i + 1, col=1)
        figure.update_yaxes(visible=False, row=i + 1, col=1)
        figure.update_xaxes(
            categoryorder="array", categoryarray=names, showticklabels=i == len(items) - 1, row=i + 1, col=2
        )
        figure.update_yaxes(range=[0, 1], tickvals=[0, 0.5, 1], row=i + 1, col=2)
    for colour, name in ((PALETTE[0], "shown"), (PALETTE[1], "not shown")):
        figure.add_bar(x=[names[0]], y=[None], marker_color=colour, name=name, showlegend=True, row=1, col=2)
    what = "action unit; dotted: the threshold chosen on the validation part" if units else "expression"
    return {f"Probability of each {what}": styled(figure, height=110 * len(items) + 60)}


def _f1_curves(system: FMAEIAT, scores: ActionUnitScores) -> dict[str, Any]:
    figure = go.Figure()
    for name, curve, there in zip(system.outputs, scores.f1.T, scores.defined, strict=True):
        if there:
            figure.add_scatter(x=scores.thresholds, y=curve, name=name, line_width=1.3)
    if not figure.data:
        return {}
    figure.add_scatter(x=scores.thresholds, y=scores.mean_f1, name="mean", line={"width": 3.5, "color": PALETTE[7]})
    figure.add_vline(x=system.threshold, line_width=1, line_dash="dot")
    figure.update_xaxes(title_text="threshold").update_yaxes(title_text="F1", range=[0, 1])
    return {"F1 over thresholds; dotted: the one chosen on the validation part": styled(figure, height=360)}


def _co_occurrence(system: FMAEIAT, found: np.ndarray, truth: np.ndarray | None) -> dict[str, Any]:
    """Correlations between units, in the answers and, where known, in the truth."""
    names = system.outputs
    panels = {"found (probabilities)": found.astype(np.float64)}
    if truth is not None:
        panels["true"] = truth[~np.isnan(truth).any(1)]
    panels = {title: values for title, values in panels.items() if len(values) > 2}
    figure = make_subplots(1, len(panels), subplot_titles=list(panels), horizontal_spacing=0.12)
    for column, values in enumerate(panels.values(), start=1):
        deviations = values - values.mean(0)
        scale = np.sqrt((deviations**2).sum(0)).clip(1e-12)
        correlation = (deviations.T @ deviations) / np.outer(scale, scale)
        np.fill_diagonal(correlation, np.nan)  # 1 says nothing and would take the whole scale
        heat = go.Heatmap(z=correlation, x=names, y=names, colorscale=DIVERGING, zmid=0, coloraxis="coloraxis")
        figure.add_trace(heat, 1, column)
        figure.update_yaxes(autorange="reversed", showgrid=False, row=1, col=column)
        figure.update_xaxes(showgrid=False, row=1, col=column)
    limit = max(0.1, *(float(np.nanmax(np.abs(trace.z))) for trace in figure.data))
    figure.update_layout(coloraxis={"colorscale": DIVERGING, "cmin": -limit, "cmax": limit})
    figure = styled(figure, height=150 + 24 * len(names)).update_layout(margin={"t": 64})  # the panels have titles
    return {"Which action units go together: correlation": figure}


def _names(items: Images) -> list[str]:
    return [str(name)[-18:] for name in items.ids]
