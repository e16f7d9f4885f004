"""What people look at: where the tokens are strong, what the class token reads, which classes are confused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repertory.data.images import Images
from repertory.data.transforms.images import Pixels
from repertory.figures import heatmap, image_grid
from repertory.runs import seeded
from repertory.systems.vim.model import VisionMamba

if TYPE_CHECKING:
    from repertory.systems.vim.system import Vim

SHOWN = 6
SIDE = 112
CLASSES = 40
ORANGE = np.array([235, 110, 40])


def of_images(system: Vim, items: Images) -> dict[str, Any]:
    """All pictures, by caption: of up to ``SHOWN`` images, and of all where their classes are known."""
    rows = np.unique(np.linspace(0, len(items) - 1, min(SHOWN, len(items))).round().astype(int))
    made = _tokens(system, items.take(rows))
    column, classes = system.assets["label"], system.assets["classes"]
    if column in items.columns.column_names and len(classes) <= CLASSES:
        made |= _confusions(system, items, column, classes)
    return made


def saliency(network: VisionMamba, images: Tensor) -> Tensor:
    """How much each patch sways the class that the network chooses, ``[B, M]``.

    The norm of the gradient of its logit with respect to the patches' tokens before the first layer: 0 where a
    patch cannot be seen from the class token.
    """
    tokens: list[Tensor] = []

    def keep(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = arguments
        tokens.append(hidden.detach().requires_grad_())
        return (tokens[0], *rest)

    hook = network.layers[0].register_forward_pre_hook(keep)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            chosen = network(images.clone()).amax(1).sum()
            (gradient,) = torch.autograd.grad(chosen, tokens)
    finally:
        hook.remove()
    return gradient[:, patches_of(network)].norm(dim=-1)


def patches_of(network: VisionMamba) -> list[int]:
    """Where the patches stand among the tokens."""
    count = network.side**2 + len(network.places)
    return [i for i in range(count) if i not in network.places]


def _tokens(system: Vim, items: Images) -> dict[str, Any]:
    network = system.network.eval()
    images = Pixels(items, system.tested)(range(len(items)))["images"].to(system.device)
    with torch.inference_mode():
        tokens = network.tokens(images).float()
    side = network.side
    patches = tokens[:, patches_of(network)]
    whole = tokens[:, list(network.places)].mean(1) if network.places else patches.mean(1)
    norms = patches.norm(dim=-1)
    alike = F.cosine_similarity(patches, whole[:, None], dim=-1)
    sway = saliency(network, images).float()
    flat = patches.flatten(0, 1) - patches.mean((0, 1))
    with seeded("figure"):
        _, _, directions = torch.pca_lowrank(flat, q=3, center=False)
    coordinates = (flat @ directions).cpu().numpy()
    low, high = np.percentile(coordinates, [2, 98], axis=0)
    colours = ((coordinates - low) / np.maximum(high - low, 1e-9)).clip(0, 1).reshape(len(items), side, side, -1)
    lines = []
    for i in range(len(items)):
        picture = _picture(images[i], system.config.mean, system.config.std)
        maps = (part[i].reshape(side, side).cpu().numpy() for part in (norms, alike, sway))
        lines.append([
            picture,
            *(_blend(picture, (m - m.min()) / max(float(np.ptp(m)), 1e-9)) for m in maps),
            _enlarged(255 * colours[i], len(picture)),
        ])  # fmt: skip
    read = "like the class token" if network.places else "like their mean"
    titles = ["image", "norm", read, "sways the class", "main directions"]
    caption = (
        "Tokens of the last layer over the image: their norm, their cosine with the "
        f"{'class token' if network.places else 'mean of all tokens'}, how much each patch sways the chosen class "
        "(orange: most, in each image), and their three main directions as colours"
    )
    grid = np.array(lines).astype(np.uint8)
    return {caption: image_grid(grid, column_titles=titles, row_titles=[str(name)[-18:] for name in items.ids])}


def _confusions(system: Vim, items: Images, column: str, classes: list[str]) -> dict[str, Any]:
    place = {name: i for i, name in enumerate(classes)}
    truth = np.array([place.get(str(value), -1) for value in items.column(column)])
    known = truth >= 0
    if not known.any():
        return {}
    found = system.probabilities(items.take(np.flatnonzero(known))).argmax(1).numpy()
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (truth[known], found), 1)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = heatmap(shares, x=classes, y=classes, x_title="predicted", y_title="true")
    figure.update_xaxes(type="category").update_yaxes(type="category")
    return {f"Which classes are taken for which: per cent of the images of a class ({known.sum()} images)": figure}


def _picture(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """A normalised image ``[C, S, S]`` as RGB in 0..255, ``[P, P, 3]`` of at least ``SIDE`` pixels."""
    pixels = image.cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    pixels = pixels.clamp(0, 1).expand(3, -1, -1)
    side = max(SIDE, pixels.shape[-1])
    return _enlarged(255 * pixels.permute(1, 2, 0).numpy(), side)


def _enlarged(patches: np.ndarray, side: int) -> np.ndarray:
    """``[h, w, ...]`` repeated to ``[side, side, ...]``."""
    rows = np.arange(side) * len(patches) // side
    return patches[rows][:, rows]


def _blend(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Orange over a picture ``[P, P, 3]`` with an opacity per patch ``[h, w]`` in 0..1, greyed so that it is seen."""
    weight = 0.85 * _enlarged(alpha, len(picture))[..., None]
    return (1 - weight) * (0.35 * picture + 0.65 * picture.mean(-1, keepdims=True)) + weight * ORANGE
