"""What people look at: parsing map, mask and reconstruction; ROC curves; scores of real and forged faces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import torch
from einops import repeat
from sklearn.metrics import roc_auc_score, roc_curve

from repertory.data.images import Images
from repertory.figures import PALETTE, image_grid, styled
from repertory.nn.masking import patchify, unpatchify
from repertory.runs import seeded
from repertory.systems.fsfm.data import PARSING, map_of, resized, videos_of
from repertory.systems.fsfm.masking import COVERED
from repertory.systems.fsfm.metrics import by_video
from repertory.systems.fsfm.pretraining import faces_covering

if TYPE_CHECKING:
    from repertory.systems.fsfm.system import FSFM

SHOWN = 6
SIDE = 112
COLOURS = np.array(
    [[40, 40, 46], [222, 184, 150], [120, 200, 90], [60, 150, 60], [70, 130, 220], [60, 190, 210], [240, 210, 70],
     [220, 70, 110], [120, 20, 50], [240, 120, 130], [120, 80, 50]], np.uint8,
)  # fmt: skip
"""Of the classes of a parsing map."""


def of_faces(system: FSFM, items: Images) -> dict[str, Any]:
    """All pictures of some items, by caption."""
    made: dict[str, Any] = {}
    if "faces" in system.model:
        made |= _reconstructions(system, items)
    if "tuned" in system.model and system.assets["label"] in items.columns.column_names:
        made |= _detections(system, items)
    return made


def _shown(system: FSFM, items: Images) -> Images:
    real = system._real(items)
    return real.take(np.unique(np.linspace(0, len(real) - 1, min(SHOWN, len(real))).round().astype(int)))


def _large(picture: np.ndarray) -> np.ndarray:
    times = max(1, SIDE // len(picture))
    return picture.repeat(times, 0).repeat(times, 1)


def _reconstructions(system: FSFM, items: Images) -> dict[str, Any]:
    """A line per face, each with another covered region."""
    c, faces = system.config, system.model["faces"]
    shown = _shown(system, items)
    mapped = PARSING in shown.columns.column_names
    grid = faces.online.encoder.grid
    mean, std = (torch.tensor(system.assets[name])[:, None, None] for name in ("mean", "std"))

    def picture(x: torch.Tensor) -> np.ndarray:
        pixels = (255 * (x.cpu() * std + mean)).round().clamp(0, 255)
        return _large(pixels.to(torch.uint8).permute(1, 2, 0).numpy())

    lines, names = [], []
    for row in range(len(shown)):
        region = COVERED[row % len(COVERED)] if mapped else ""
        with seeded(system.record.get("seed", 0), "figure", str(shown.ids[row])):
            batch = faces_covering(system._masked(shown), region)([row])
        image, mask = batch["images"].to(system.device), batch["mask"].to(system.device)
        drawn = faces.reconstruct(image, mask, c.kept).float()
        true = faces.online.encoder.patch_size
        patches = repeat(mask, "b n -> b n d", d=drawn.shape[-1])
        own = patchify(image, true)
        if c.norm_pixels:  # what a patch is on average is not predicted: it is taken from the picture
            variance, middle = torch.var_mean(own, dim=-1, keepdim=True)
            drawn = drawn * (variance + 1e-6).sqrt() + middle
        together = unpatchify(torch.where(patches > 0, drawn, own), true, grid)[0]
        hidden = unpatchify(torch.where(patches > 0, torch.zeros_like(own), own), true, grid)[0]
        line = [picture(image[0]), picture(hidden), picture(together)]
        if mapped:
            line.insert(1, _large(COLOURS[resized(map_of(shown, row), c.image_size)]))
            covered = unpatchify(repeat(batch["region"], "b n -> b n d", d=own.shape[-1]), true, grid)[0]
            over = _large(covered.permute(1, 2, 0).numpy()) * 0.55
            line[2] = (line[2] * (1 - over) + np.array([235, 110, 40]) * over).astype(np.uint8)
        lines.append(line)
        names.append(region or str(shown.ids[row])[-18:])
    titles = ["face", "parsing map", "seen", "reconstruction"] if mapped else ["face", "seen", "reconstruction"]
    caption = "Reconstruction of hidden patches" + (", a whole region among them (orange)" if mapped else "")
    if c.norm_pixels:
        caption += "; mean and contrast of each patch are the true ones"
    return {caption: image_grid(np.array(lines), column_titles=titles, row_titles=names)}


def _detections(system: FSFM, items: Images) -> dict[str, Any]:
    """ROC curves and histograms of scores, by frame and by video, and by the kind of forgery where it is known."""
    truth, scores = system._truth(items), system._scores(items)
    if len(set(truth)) < 2:
        return {}
    videos = by_video(videos_of(items), truth, scores)
    curves = {"frames": (truth, scores), "videos": (videos.labels, videos.scores)}
    if "forgery" in items.columns.column_names:
        forgery = items.column("forgery").astype(str)
        for kind in sorted(set(forgery[truth == 0])):
            some = (truth == 1) | (forgery == kind)
            curves[f"frames, {kind}"] = (truth[some], scores[some])
    roc = go.Figure()
    for name, (y, s) in curves.items():
        passed, kept, _ = roc_curve(y, s)
        roc.add_scatter(x=passed, y=kept, mode="lines", name=f"{name}: {roc_auc_score(y, s):.3f}")
    roc.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#8a8f98"}, showlegend=False, hoverinfo="skip"
    )
    roc.update_xaxes(title_text="forged faces that pass", range=[0, 1])
    roc.update_yaxes(title_text="real faces that pass", range=[0, 1.01])
    edges = np.linspace(0, 1, 26)
    histogram = go.Figure()
    for name, colour, which in (("real", PALETTE[0], truth == 1), ("forged", PALETTE[1], truth == 0)):
        counts, _ = np.histogram(scores[which], edges)
        histogram.add_bar(
            x=(edges[1:] + edges[:-1]) / 2, y=counts, width=0.04, name=name, marker_color=colour, opacity=0.6
        )
    histogram.add_vline(x=float(system.assets.get("threshold", 0.5)), line_dash="dot", line_color="#8a8f98")
    histogram.update_layout(barmode="overlay")
    histogram.update_xaxes(title_text="score: probability of a real face", range=[0, 1])
    histogram.update_yaxes(title_text="frames")
    return {
        "ROC curves of real against forged faces, with the areas below": styled(roc, height=380),
        "Scores of real and forged frames; dotted: the threshold of the validation part": styled(histogram),
    }
