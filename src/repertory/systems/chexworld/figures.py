"""What people look at: what is hidden and how well it is guessed, what the tokens tell apart, what is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from repertory.data.images import Images
from repertory.figures import heatmap, image_grid
from repertory.nn.vit import VisionTransformer
from repertory.runs import seeded
from repertory.systems.chexworld.augmentation import DualTransform
from repertory.systems.chexworld.data import Crops, Examples, read_mask

if TYPE_CHECKING:
    from repertory.systems.chexworld.system import CheXWorld

SHOWN = 6
SIDE = 112
ORANGE, BLUE = np.array([235, 110, 40]), np.array([60, 140, 230])


def _grey(image: Tensor, transform: DualTransform) -> np.ndarray:
    """A normalised image ``[3, S, S]`` as RGB uint8 of at least ``SIDE`` pixels."""
    pixels = (image[0].cpu() * transform.std[0] + transform.mean[0]).clamp(0, 1).numpy()
    times = max(1, SIDE // len(pixels))
    return np.repeat(np.round(255 * np.kron(pixels, np.ones((times, times))))[..., None], 3, axis=-1)


def _enlarged(patches: np.ndarray, side: int) -> np.ndarray:
    """``[G, G]`` or ``[G, G, C]`` over a picture of ``side`` pixels."""
    rows = np.arange(side) * len(patches) // side
    return patches[rows][:, rows]


def _blend(picture: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """``colour`` over a picture ``[S, S, 3]`` with an opacity per patch ``[G, G]``."""
    weight = _enlarged(alpha, len(picture))[..., None]
    return (1 - weight) * picture + weight * colour


def _on_grid(values: Tensor, indices: Tensor, grid: int) -> np.ndarray:
    """Values ``[T]`` at ``indices`` of a grid of patches, 0 elsewhere."""
    made = torch.zeros(grid * grid)
    made[indices.cpu()] = values.float().cpu()
    return made.reshape(grid, grid).numpy()


def of_radiographs(system: CheXWorld, items: Images) -> dict[str, Any]:
    """All pictures of up to ``SHOWN`` images, by caption."""
    rows = np.unique(np.linspace(0, len(items) - 1, min(SHOWN, len(items))).round().astype(int))
    shown, made = items.take(rows), dict[str, Any]()
    if "world" in system.model:
        made |= _predictions(system, shown)
    made |= _tokens(system, shown)
    if "tuned" in system.model:
        made |= _found(system, shown)
    return made


def _predictions(system: CheXWorld, items: Images) -> dict[str, Any]:
    """Masks on two crops, and the error of each predicted patch."""
    world, transform = system.model["world"], system.config.transform
    crops, grid = Crops(items, transform, system.config.masks), world.predictor.grid
    lines = []
    for row in range(len(items)):
        with seeded(system.record.get("seed", 0), "figure", str(items.ids[row])):
            batch = {name: part.to(system.device) for name, part in crops([row]).items()}
        latents = world(**batch)
        targets = torch.cat([latents.targets, latents.targets.flip(0)])
        errors = (latents.predictions.float() - targets).square().mean(-1)[:, 0]
        asked, seen = batch["target_indices"][0], batch["context_indices"][0]
        first, second = (_grey(batch["images"][v, 0], transform) for v in (0, 1))
        told = _grey(batch["augmented"][0, 0], transform)
        hidden = 1 - _on_grid(torch.ones(len(seen)), seen, grid)
        top = float(errors.max())
        inside, across = (_on_grid(errors[i] / top, asked, grid) for i in (0, 2))
        lines.append([
            _blend(first, BLUE, 0.45 * _on_grid(torch.ones(len(asked)), asked, grid)),
            _blend(told, np.full(3, 128), hidden),
            _blend(first, ORANGE, 0.85 * inside),
            _blend(second, BLUE, 0.45 * _on_grid(torch.ones(len(asked)), asked, grid)),
            _blend(second, ORANGE, 0.85 * across),
        ])  # fmt: skip
    titles = ["crop 1: targets", "context, augmented", "error in crop 1", "crop 2: targets", "error, from crop 1"]
    caption = (
        "What is hidden and how well it is predicted: targets (blue), what the encoder sees, and the error of each "
        "target patch (orange; the largest of a row is strongest)"
    )
    return {caption: image_grid(np.array(lines).astype(np.uint8), column_titles=titles, row_titles=_names(items))}


def attention(vit: VisionTransformer, images: Tensor) -> Tensor:
    """How much each patch is attended to in the last block, mean over heads and queries: ``[B, N]``, summing to 1."""
    x = vit.embed(images)
    for block in vit.blocks[:-1]:
        x = block(x)
    last: Any = vit.blocks[-1]
    q, k, _ = rearrange(last.attn.qkv(last.norm1(x)), "b n (three h d) -> three b h n d", three=3, h=vit.heads)
    return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1).mean((1, 2))


def _tokens(system: CheXWorld, items: Images) -> dict[str, Any]:
    """Attention, the three main directions of the tokens as colours, and likeness to one patch."""
    vit, transform = system._final, system.config.transform
    examples = Examples(items, system.config.image_size, transform)
    images = examples(range(len(items)))["images"].to(system.device)
    tokens = vit(images).float()
    grid = int(tokens.shape[1] ** 0.5)
    flat = tokens.flatten(0, 1) - tokens.mean((0, 1))
    with seeded("figure"):
        _, _, directions = torch.pca_lowrank(flat, q=3, center=False)
    coordinates = (flat @ directions).cpu().numpy()
    low, high = np.percentile(coordinates, [2, 98], axis=0)
    colours = ((coordinates - low) / np.maximum(high - low, 1e-9)).clip(0, 1).reshape(len(items), grid, grid, 3)
    looked = attention(vit, images).reshape(-1, grid, grid).cpu().numpy()
    place = (grid // 2) * grid + grid // 4
    centred = F.normalize(tokens - tokens.mean((0, 1)), dim=-1)
    alike = (centred @ centred[:, place, :, None])[..., 0].reshape(-1, grid, grid).cpu().numpy()
    lines = []
    for i in range(len(items)):
        picture = _grey(images[i], transform)
        marked = np.zeros((grid, grid))
        marked[place // grid, place % grid] = 1
        lines.append([
            picture,
            _blend(picture, ORANGE, 0.85 * (looked[i] - looked[i].min()) / max(np.ptp(looked[i]), 1e-9)),
            _enlarged(255 * colours[i], len(picture)),
            _blend(_blend(picture, ORANGE, 0.8 * alike[i].clip(0)), BLUE, marked),
        ])  # fmt: skip
    titles = ["radiograph", "attention", "main directions", "like the blue"]
    caption = "What the tokens tell apart: attention of the last layer, main directions as colours, likeness to a patch"
    return {caption: image_grid(np.array(lines).astype(np.uint8), column_titles=titles, row_titles=_names(items))}


def _found(system: CheXWorld, items: Images) -> dict[str, Any]:
    """Probabilities by finding, or masks: found (orange) and true (blue)."""
    answers = torch.cat(list(system._answers(items)))
    if system.answer != "mask":
        return {
            "Probabilities of the fine-tuned model": heatmap(
                answers.numpy(), x=system.answers, y=_names(items), y_title="image"
            )
        }
    known = "mask" in items.columns.column_names
    examples = Examples(items, system.config.image_size, system.config.transform, whole=True)
    lines = []
    for i in range(len(items)):
        picture = _grey(examples([i])["images"][0], system.config.transform)
        line = [picture, _blend(picture, ORANGE, 0.5 * answers[i, 0].numpy())]
        if known:
            truth = read_mask(items.columns["mask"][i].as_py(), (len(picture), len(picture)))
            line.append(_blend(picture, BLUE, 0.5 * (np.asarray(truth) > 127)))
        lines.append(line)
    titles = ["radiograph", "found", "true"]
    return {
        "Masks of the fine-tuned model": image_grid(
            np.array(lines).astype(np.uint8), column_titles=titles[: len(lines[0])], row_titles=_names(items)
        )
    }


def _names(items: Images) -> list[str]:
    return [str(name)[-18:] for name in items.ids]
