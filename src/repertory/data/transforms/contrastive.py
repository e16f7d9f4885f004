"""Views for contrastive learning: random crops, crops of the centre, colours (Peng et al. 2022, ContrastiveCrop).

Written on Pillow and NumPy alone: at 32 pixels, what a general transform does beside its work costs several times more
than the work.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.functional import adjust_hue

from repertory.data.transforms.images import IMAGENET_MEAN, IMAGENET_STD, in_mode
from repertory.errors import ConfigError

TRIES = 10


class Place(NamedTuple):
    """Where a crop lies, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Crop(Protocol):
    """From a picture to a square part of it."""

    def __call__(self, image: Image.Image) -> Image.Image: ...


@dataclass(frozen=True)
class RandomCrop:
    """A crop of random area and shape anywhere in the picture, resized to a square (Szegedy et al. 2015).

    Attributes:
        size: side of the result in pixels.
        scale: share of the area that a crop covers.
        ratio: of width to height of a crop.
        interpolation: nearest, bilinear, bicubic or lanczos.
    """

    size: int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"

    def shape(self, width: int, height: int, area: float, aspect: float) -> tuple[int, int] | None:
        """Width and height of the crop of a picture, or None where it does not fit.

        Args:
            width, height: of the picture, in pixels.
            area, aspect: uniform in 0..1: where between the limits of ``scale`` and of ``log ratio``.
        """
        low, high = (math.log(r) for r in self.ratio)
        share = self.scale[0] + (self.scale[1] - self.scale[0]) * area
        ratio = math.exp(low + (high - low) * aspect)
        w, h = (round(math.sqrt(width * height * share * r)) for r in (ratio, 1 / ratio))
        return (w, h) if 0 < w <= width and 0 < h <= height else None

    def draw(self, width: int, height: int) -> Place:
        """A random crop of a picture; after ten that do not fit, the centre."""
        for _ in range(TRIES):
            shape = self.shape(width, height, random.random(), random.random())
            if shape is not None:
                return self._anywhere(width, height, *shape)
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = (width, round(width / ratio)) if ratio > width / height else (round(height * ratio), height)
        return Place((height - h) // 2, (width - w) // 2, h, w)

    def _anywhere(self, width: int, height: int, w: int, h: int) -> Place:
        return Place(random.randint(0, height - h), random.randint(0, width - w), h, w)

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left, height, width = self.draw(*image.size)
        cropped = image.crop((left, top, left + width, top + height))
        return cropped.resize((self.size, self.size), Image.Resampling[self.interpolation.upper()])


@dataclass(frozen=True)
class CentreCrop(RandomCrop):
    """A random crop whose centre falls into a box of the picture, resized to a square.

    Peng et al. 2022, "Crafting Better Contrastive Views for Siamese Representation Learning": the place inside the box
    follows Beta(alpha, alpha), which prefers the corners for alpha < 1, so that two views overlap less. Their boxes
    come from heat maps; here the box is fixed.

    Attributes:
        box: top, left, bottom, right of the box, as shares of height and width.
        alpha: of the Beta distribution, above 0.
    """

    box: tuple[float, float, float, float] = (0.25, 0.25, 0.75, 0.75)
    alpha: float = 0.1

    def __post_init__(self) -> None:
        top, left, bottom, right = self.box
        if not (0 <= top <= bottom <= 1 and 0 <= left <= right <= 1):
            raise ConfigError(f"box {self.box}: needs top <= bottom and left <= right within 0..1")
        if self.alpha <= 0:
            raise ConfigError(f"alpha={self.alpha}: must be above 0")

    def place(self, width: int, height: int, w: int, h: int, position: Sequence[float]) -> Place:
        """Where a crop of ``w`` x ``h`` lies for two draws in 0..1, down and across the box."""
        sides = zip((height, width), (h, w), self.box[:2], self.box[2:], position, strict=True)
        places = []
        for side, cut, start, end, draw in sides:
            first, last = (min(max(int(side * edge) - cut // 2, 0), side - cut) for edge in (start, end))
            places.append(first + int(np.float32(last - first) * np.float32(draw)))
        return Place(places[0], places[1], h, w)

    def _anywhere(self, width: int, height: int, w: int, h: int) -> Place:
        return self.place(width, height, w, h, [random.betavariate(self.alpha, self.alpha) for _ in range(2)])


@dataclass(frozen=True)
class ContrastiveView:
    """One view: a crop, then the augmentations of MoCo v2 (Chen et al. 2020) and SimSiam, to ``[C, S, S]`` float32.

    Attributes:
        crop: to a square picture.
        mean: a value per channel, which also says how many channels there are (1 or 3).
        std: as ``mean``.
        flip: probability of a mirror image.
        jitter: half-widths of brightness, contrast, saturation and hue; the last two are nothing to a grey picture.
        jitter_p: probability of the jitter.
        grey_p: probability of a picture without colour.
        blur: sigma of the Gaussian blur, in pixels.
        blur_p: probability of the blur.
    """

    crop: Crop
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur: tuple[float, float] = (0.1, 2.0)
    blur_p: float = 0.0

    def __call__(self, image: Image.Image) -> Tensor:
        image = self.crop(in_mode(len(self.mean))(image))
        if random.random() < self.flip:
            image = ImageOps.mirror(image)
        if random.random() < self.jitter_p:
            image = self._jittered(image)
        if random.random() < self.grey_p:
            image = image.convert("L").convert(image.mode)
        if random.random() < self.blur_p:
            image = image.filter(ImageFilter.GaussianBlur(random.uniform(*self.blur)))
        mean, std = (np.asarray(value, np.float32) for value in (self.mean, self.std))
        pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1)
        return torch.from_numpy(np.ascontiguousarray(((pixels / 255 - mean) / std).transpose(2, 0, 1)))

    def _jittered(self, image: Image.Image) -> Image.Image:
        """Brightness, contrast, saturation and hue in random order."""
        for which in random.sample(range(4), 4):
            half = self.jitter[which]
            if not half or (which > 1 and image.mode == "L"):
                continue
            if which == 3:
                image = adjust_hue(image, random.uniform(-half, half))
            else:
                kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
                image = kind(image).enhance(random.uniform(max(0.0, 1 - half), 1 + half))
        return image
