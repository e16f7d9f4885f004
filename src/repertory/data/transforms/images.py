"""Images as tensors: what a model is shown, and how training varies it (torchvision and timm do the work)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from repertory.data.images import Images

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Transform = Callable[[Image.Image], Tensor]
"""From a PIL image of any size, grey or RGB, to float ``[C, S, S]``."""


def in_mode(channels: int) -> Callable[[Image.Image], Image.Image]:
    """Converts a picture to grey (1 channel) or RGB (3)."""
    mode = {1: "L", 3: "RGB"}[channels]
    return lambda image: image.convert(mode)


def normalised(mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """A picture of 8 bits as ``(x / 255 - mean) / std``, ``[C, H, W]`` float32."""
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])


def plain(
    size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    crop: float | None = 0.875,
    interpolation: str = "bicubic",
) -> Transform:
    """What is embedded and tested: the centre, or the whole picture.

    Args:
        size: side S of the result.
        mean: a value per channel, which also says how many channels there are (1 or 3).
        std: as ``mean``.
        crop: the shorter side becomes ``S / crop`` before the centre is cut out; None: the whole picture is resized
            to S x S.
        interpolation: nearest, bilinear, bicubic or lanczos.
    """
    mode = InterpolationMode(interpolation)
    if crop is None:
        geometry: list[Any] = [v2.Resize([size, size], mode)]
    else:
        geometry = [v2.Resize([round(size / crop)], mode), v2.CenterCrop([size, size])]
    return v2.Compose([in_mode(len(mean)), *geometry, normalised(mean, std)])


def augmented(
    size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    color_jitter: float = 0.0,
    auto_augment: str | None = None,
    erase: float = 0.0,
    interpolation: str = "bicubic",
) -> Transform:
    """timm's training pipeline: a random resized crop, a flip, colours or RandAugment, random erasing.

    Args:
        size: side of the result.
        mean: a value per channel, which also says how many channels there are (1 or 3).
        std: as ``mean``.
        scale: share of the area that a crop covers.
        ratio: of width to height of a crop.
        flip: probability of a mirror image.
        color_jitter: half-width of brightness, contrast and saturation; has no effect beside ``auto_augment``.
        auto_augment: a policy such as ``rand-m9-mstd0.5-inc1``.
        erase: probability of an erased rectangle, filled with noise.
        interpolation: bilinear, bicubic or random.
    """
    made = create_transform(
        (len(mean), size, size), is_training=True, scale=scale, ratio=ratio, hflip=flip, color_jitter=color_jitter,
        auto_augment=auto_augment, interpolation=interpolation, mean=tuple(mean), std=tuple(std), re_prob=erase,
        re_mode="pixel",
    )  # fmt: skip
    return v2.Compose([in_mode(len(mean)), made])


@dataclass(frozen=True)
class Pixels:
    """From item numbers to a batch: ``images`` ``[B, C, S, S]`` and, if given, ``labels`` ``[B, ...]``."""

    items: Images
    transform: Transform
    labels: Tensor | None = None

    def __call__(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        batch = {"images": torch.stack([self.transform(self.items.image(int(i))) for i in rows])}
        if self.labels is not None:
            batch["labels"] = self.labels[torch.as_tensor(np.asarray(rows))]
        return batch


@dataclass(frozen=True)
class Views:
    """From item numbers to several views of each item: ``views``, a tuple of ``[B, C, S, S]``, one per transform."""

    items: Images
    transforms: tuple[Transform, ...]

    def __call__(self, rows: Sequence[int] | np.ndarray) -> dict[str, tuple[Tensor, ...]]:
        pictures = [self.items.image(int(i)) for i in rows]
        return {"views": tuple(torch.stack([view(p) for p in pictures]) for view in self.transforms)}
