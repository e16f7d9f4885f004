"""Two crops of a radiograph, their relative position, and an appearance augmentation whose parameters are known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from repertory.data.transforms.images import IMAGENET_MEAN, IMAGENET_STD
from repertory.errors import DataError

Range = tuple[float, float]


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _integer(low: int, high: int) -> int:
    """Uniform in ``low .. high``, both included."""
    return int(torch.randint(low, high + 1, ()).item())


def as_pil(image: Image.Image | np.ndarray | Tensor) -> Image.Image:
    """Grey or RGB PIL image of an 8-bit image: PIL, ``[H, W]`` or ``[H, W, 3]`` uint8.

    Raises:
        DataError: not 8 bits a channel, or another shape.
    """
    if not isinstance(image, Image.Image):
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] == 3)):
            raise DataError(f"an image must be uint8 [H, W] or [H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
        return Image.fromarray(pixels)
    if image.mode.startswith(("I", "F")):
        raise DataError(f"an image of mode {image.mode} has more than 8 bits: scale it to 8 bits first")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


@dataclass(frozen=True)
class ParameterizedTransform:
    """Random brightness, contrast, gamma, blur and noise, described by five numbers.

    The parameters are (brightness factor, contrast factor, gamma, blur radius in pixels, noise sigma as a fraction of
    full scale); (1, 1, 1, 0, 0) changes nothing. ``brightness`` and ``contrast`` are half-widths around 1.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    gamma: Range = (0.5, 2.0)
    blur: Range = (0.1, 2.0)
    noise: Range = (0.05, 0.2)
    jitter_p: float = 0.8
    blur_p: float = 0.2
    noise_p: float = 0.0

    def draw(self) -> Tensor:
        """Random parameters ``[5]`` float32 from the global generator."""
        parameters = [1.0, 1.0, 1.0, 0.0, 0.0]
        if torch.rand(()) < self.jitter_p:
            low, high = (math.log(g) for g in self.gamma)
            parameters[:3] = [
                _uniform(1 - self.brightness, 1 + self.brightness),
                _uniform(1 - self.contrast, 1 + self.contrast),
                math.exp(_uniform(low, high)),
            ]
        if torch.rand(()) < self.blur_p:
            parameters[3] = _uniform(*self.blur)
        if torch.rand(()) < self.noise_p:
            parameters[4] = _uniform(*self.noise)
        return torch.tensor(parameters)

    def __call__(self, image: Image.Image, parameters: Tensor, noise: Tensor | None = None) -> Image.Image:
        """The augmented image; ``noise`` ``[H, W, 3]`` standard normal is drawn where needed and not given."""
        brightness, contrast, gamma, radius, sigma = parameters.tolist()
        if brightness != 1:
            image = TF.adjust_brightness(image, brightness)
        if contrast != 1:
            image = TF.adjust_contrast(image, contrast)
        if gamma != 1:
            image = TF.adjust_gamma(image, gamma)
        if radius:
            image = image.filter(ImageFilter.GaussianBlur(radius))
        if sigma:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
            if noise is None:
                noise = torch.randn(pixels.shape)
            noisy = pixels + noise.numpy() * sigma * 255
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        return image

    def normalise(self, parameters: Tensor) -> Tensor:
        """``[..., 5]`` parameters on a common scale: three in [-1, 1] (gamma as its logarithm), two in [0, 1].

        An image without jitter maps to zeros, as one with the middle of every range does; blur and noise are only
        divided by their largest value.
        """
        brightness, contrast, gamma, radius, sigma = parameters.unbind(-1)
        return torch.stack(
            [
                (brightness - 1) / self.brightness,
                (contrast - 1) / self.contrast,
                gamma.log() / math.log(self.gamma[1]),
                radius / self.blur[1],
                sigma / self.noise[1],
            ],
            dim=-1,
        )


class Box(NamedTuple):
    """A crop in pixels."""

    top: int
    left: int
    height: int
    width: int


class Draws(NamedTuple):
    """All that is random about two views.

    ``boxes`` are taken after the mirroring of their view, ``flips`` say which view is mirrored, ``parameters`` are two
    vectors ``[5]``, ``noise`` two tensors ``[size, size, 3]`` (drawn where needed when None), ``jitter`` the common
    change of both views as (operation, factor) in order.
    """

    boxes: tuple[Box, Box]
    flips: tuple[bool, bool]
    parameters: tuple[Tensor, Tensor]
    noise: tuple[Tensor | None, Tensor | None] = (None, None)
    jitter: tuple[tuple[str, float], ...] = ()


class Views(NamedTuple):
    """``images`` and ``augmented`` ``[2, 3, S, S]`` normalised, ``policy`` ``[2, 5]``, ``rel`` ``[2, 4 or 6]``.

    The first ``rel`` places view 2 in view 1, the second view 1 in view 2.
    """

    images: Tensor
    augmented: Tensor
    policy: Tensor
    rel: Tensor


def relative_position(frame: Box, other: Box, mirrored: bool, width: int, general: bool = False) -> Tensor:
    """Where the crop ``other`` lies in the frame of the crop ``frame``, in units of ``frame``.

    ``mirrored`` is true if exactly one of them was taken from the mirrored image of ``width`` pixels. Returns ``[4]``
    (row shift, column shift, mirrored, column shift when mirrored); with ``general`` ``[6]``, the ratios of heights and
    widths after the shifts.
    """
    shifts = [(other.top - frame.top) / frame.height, (other.left - frame.left) / frame.width]
    ratios = [other.height / frame.height, other.width / frame.width] if general else []
    return torch.tensor([*shifts, *ratios, float(mirrored), (width - frame.left - other.left) / frame.width])


@dataclass(frozen=True)
class DualTransform:
    """Two crops of an image, each clean and augmented (section 3 of the paper).

    The crops have the same size (``same_size``, relative positions of 4 numbers) or independent ones (6 numbers).
    ``min_overlap`` in [0, 1], for crops of the same size, bounds the shift of the second to ``1 - min_overlap`` of its
    sides. ``aug_norm`` reports the parameters on a common scale.
    """

    size: int = 224
    scale: Range = (0.3, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    flip_p: float = 0.5
    jitter: float = 0.4
    jitter_p: float = 0.8
    same_size: bool = True
    min_overlap: float | None = None
    augmentation: ParameterizedTransform = field(default_factory=ParameterizedTransform)
    aug_norm: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def draw(self, image: Image.Image) -> Draws:
        """Random draws for ``image`` from the global torch generator."""
        jitter: tuple[tuple[str, float], ...] = ()
        if torch.rand(()) < self.jitter_p:
            factors = [(name, _uniform(1 - self.jitter, 1 + self.jitter)) for name in ("brightness", "contrast")]
            jitter = tuple(factors[i] for i in torch.randperm(2).tolist())
        flips = bool(torch.rand(()) < self.flip_p), bool(torch.rand(()) < self.flip_p)
        first = self._box(image)
        second = self._moved(first, image, flips[0] != flips[1]) if self.same_size else self._box(image)
        parameters = self.augmentation.draw(), self.augmentation.draw()
        return Draws((first, second), flips, parameters, jitter=jitter)

    def _box(self, image: Image.Image) -> Box:
        return Box(*RandomResizedCrop.get_params(image, list(self.scale), list(self.ratio)))

    def _moved(self, box: Box, image: Image.Image, mirrored: bool) -> Box:
        low, high = [0, 0], [image.height - box.height, image.width - box.width]
        if self.min_overlap is not None:
            left = image.width - box.left - box.width if mirrored else box.left
            for axis, (start, side) in enumerate([(box.top, box.height), (left, box.width)]):
                shift = int((1 - self.min_overlap) * side)
                low[axis], high[axis] = max(low[axis], start - shift), min(high[axis], start + shift)
        return Box(_integer(low[0], high[0]), _integer(low[1], high[1]), box.height, box.width)

    def tensor(self, image: Image.Image) -> Tensor:
        """Grey in three equal channels, scaled and normalised: ``[3, H, W]`` float32."""
        grey = torch.from_numpy(np.array(image.convert("L"))).float().div_(255)
        return (grey - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def __call__(self, image: Image.Image | np.ndarray | Tensor, draws: Draws | None = None) -> Views:
        """Two views of a grey or RGB 8-bit image."""
        image = as_pil(image)
        if draws is None:
            draws = self.draw(image)
        whole = image
        for name, factor in draws.jitter:
            whole = TF.adjust_brightness(whole, factor) if name == "brightness" else TF.adjust_contrast(whole, factor)
        images, augmented = [], []
        for box, flip, parameters, noise in zip(*draws[:4], strict=True):
            mirrored = TF.hflip(whole) if flip else whole
            crop = TF.resized_crop(mirrored, *box, [self.size, self.size], InterpolationMode.BICUBIC)
            images.append(self.tensor(crop))
            augmented.append(self.tensor(self.augmentation(crop, parameters, noise)))
        first, second = draws.boxes
        flipped, general = draws.flips[0] != draws.flips[1], not self.same_size
        rel = [relative_position(a, b, flipped, image.width, general) for a, b in ((first, second), (second, first))]
        policy = torch.stack(draws.parameters)
        return Views(
            images=torch.stack(images),
            augmented=torch.stack(augmented),
            policy=self.augmentation.normalise(policy) if self.aug_norm else policy,
            rel=torch.stack(rel),
        )
