"""Images as tensors: what a model is shown, and how training varies it (torchvision and timm do the work)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from repertory.data.images import Images

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Transform = Callable[[Image.Image], Tensor]
"""From a PIL image of any size, grey or RGB, to float ``[C, S, S]``."""


def in_mode(channels: int) -> Callable[[Image.Image], Image.Image]:
    """Converts a picture to grey (1 channel) or RGB (3)."""
    mode = {1: "L", 3: "RGB"}[channels]
    return lambda image: image if image.mode == mode else image.convert(mode)


def normalised(mean: Sequence[float], std: Sequence[float]) -> Transform:
    """A picture of 8 bits as ``(x / 255 - mean) / std``, ``[C, H, W]`` float32.

    As torchvision's ToImage, ToDtype and Normalize, bit for bit; of a small picture their dispatch is the whole cost.
    """
    centre, width = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))

    def transform(image: Image.Image) -> Tensor:
        pixels = np.array(image)
        channels = torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
        return channels.float().mul_(1 / 255).sub_(centre).div_(width)

    return transform


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
    mode, converted, finished = InterpolationMode(interpolation), in_mode(len(mean)), normalised(mean, std)

    def transform(image: Image.Image) -> Tensor:
        image = converted(image)
        if crop is not None:
            image = TF.center_crop(TF.resize(image, [round(size / crop)], mode), [size, size])
        elif image.size != (size, size):
            image = TF.resize(image, [size, size], mode)
        return finished(image)

    return transform


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
