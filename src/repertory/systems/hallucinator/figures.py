"""What people look at: pairs of views, how alike positives and negatives are, which classes a probe confuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F

from repertory.data.images import Images
from repertory.evaluation import linear_probe
from repertory.figures import heatmap, image_grid, styled

if TYPE_CHECKING:
    from repertory.systems.hallucinator.system import HallucinatorSystem

SHOWN = 8
SIDE = 96
NAMES = {
    "positive": "two views of an image",
    "extrapolated": "extrapolated",
    "hallucinated": "hallucinated",
    "negative": "different images",
}


def of_images(system: HallucinatorSystem, items: Images) -> dict[str, Any]:
    """All pictures, by caption."""
    return {**_views(system, items), **_cosines(system, items), **_confusion(system, items)}


def _picture(view: torch.Tensor, system: HallucinatorSystem) -> np.ndarray:
    """A normalised view ``[C, S, S]`` as ``[H, W, 3]`` uint8 of at least ``SIDE`` pixels."""
    mean, std = (np.array(v)[:, None, None] for v in (system.config.mean, system.config.std))
    pixels = (view.numpy() * std + mean).clip(0, 1)
    times = max(1, SIDE // pixels.shape[-1])
    large = np.kron(pixels, np.ones((1, times, times)))
    return np.round(255 * np.broadcast_to(large, (3, *large.shape[1:]))).astype(np.uint8).transpose(1, 2, 0)


def _views(system: HallucinatorSystem, items: Images) -> dict[str, Any]:
    rows = np.unique(np.linspace(0, len(items) - 1, min(SHOWN, len(items))).round().astype(int))
    shown = items.take(rows)
    views = system.views(shown)
    q, k = system.model["siamese"].features(*(v.to(system.device) for v in views))
    cosine = F.cosine_similarity(q, k).tolist()
    lines = [[_picture(view, system) for view in side] for side in views]
    caption = (
        "Two views of an image: the first a crop whose centre lies in a box, the second a crop anywhere; above, the "
        "cosine of their projections"
        if system.config.crops == "centre"
        else "Two views of an image; above, the cosine of their projections"
    )
    titles = [f"{value:.2f}" for value in cosine]
    return {caption: image_grid(np.array(lines), column_titles=titles, row_titles=["view 1", "view 2"])}


def _cosines(system: HallucinatorSystem, items: Images) -> dict[str, Any]:
    found = system.compare_views(items)
    figure = go.Figure()
    lowest = min(float(cosine.min()) for cosine in found.values())
    edges = np.linspace(max(-1.0, np.floor(10 * lowest) / 10), 1, 61)
    for name, title in NAMES.items():
        if name not in found:
            continue
        counts, _ = np.histogram(found[name].clip(edges[0], 1), edges)
        share = counts / counts.sum()
        figure.add_scatter(
            x=np.repeat(edges, 2)[1:-1], y=np.repeat(share, 2), mode="lines", name=title, line_width=1.8,
            fill="tozeroy" if name in ("positive", "negative") else None,
        )  # fmt: skip
    figure.update_xaxes(title_text="cosine with the second view").update_yaxes(title_text="share of pairs")
    return {"How alike positives, made positives and negatives are": styled(figure)}


def _confusion(system: HallucinatorSystem, items: Images) -> dict[str, Any]:
    """Of a cross-validated linear probe; empty where there are no classes, or too few items of one."""
    names = items.roles.get("label", ())
    if len(names) != 1:
        return {}
    labels = items.column(names[0]).astype(str)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or len(classes) > 40 or counts.min() < 2:
        return {}
    vectors = np.concatenate([part.vectors for part in system._stream(items, None, None)])
    probe = linear_probe(vectors, labels, task="classes", seed=system.record.get("seed", 0), draws=10)
    matrix = np.zeros((len(classes), len(classes)))
    np.add.at(matrix, (probe.truth, probe.scores.argmax(1)), 1)
    shares = matrix / matrix.sum(1, keepdims=True)
    figure = heatmap(shares, x=list(classes), y=list(classes), x_title="said by a linear probe", y_title="true class")
    figure.update_xaxes(type="category").update_yaxes(type="category")
    return {"Which classes a cross-validated linear probe confuses (share of the row)": figure}
