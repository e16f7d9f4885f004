"""Masks of face patches that know the parts of a face: CRFR-P, and what the paper compares it with (section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from repertory.errors import ConfigError, DataError

Strategy = Literal["CRFR-P", "CRFR-R", "FRP", "FASKING-I", "random"]

CLASSES = 11
"""Of a parsing map: background, skin, right and left brow, right and left eye, nose, upper lip, inner mouth, lower lip,
hair."""
GROUPS: dict[str, tuple[int, ...]] = {
    "eyebrows": (2, 3), "eyes": (4, 5), "nose": (6,), "mouth": (7, 8, 9), "boundary": (1, 0, 10), "hair": (10,),
    "skin": (1,), "background": (0,),
}  # fmt: skip
"""Regions in the order in which they are treated; the boundary is skin together with hair or background."""
COVERED = ("eyebrows", "eyes", "nose", "mouth", "boundary", "hair")
"""Regions of which one is covered in each batch."""
PRIORITY = ("eyes", "nose", "mouth", "hair", "skin", "background")
"""FASKING-I: the order in which regions are hidden (Cai et al. 2023, MARLIN, for images)."""


class FaceMasks(NamedTuple):
    """What is hidden of each image.

    Attributes:
        mask: ``[B, N]`` float32, 1 where a patch is hidden.
        region: ``[B, N]`` float32, 1 where it belongs to the covered region; zeros where none is covered.
    """

    mask: Tensor
    region: Tensor


Draws = Callable[[Tensor, int], Tensor]
"""From labels ``[B, N]`` (-1: none) and their number to the place of each patch in a random order of those with its
label, ``[B, N]`` int64."""


def draw_places(labels: Tensor, count: int) -> Tensor:
    """Random orders by the global generator: one sort of random keys for all images and labels."""
    order = (labels + torch.rand(labels.shape)).argsort(dim=1)
    sizes = torch.zeros(len(labels), count + 1, dtype=torch.int64)
    sizes.scatter_add_(1, labels + 1, torch.ones_like(labels))
    first = (sizes.cumsum(1) - sizes).gather(1, labels + 1)
    place = torch.empty_like(order)
    place.scatter_(1, order, torch.arange(labels.shape[1]).expand_as(order))
    return place - first


class GivenPlaces:
    """Given permutations in place of random ones, for one image at a time: one a label, in the order of use.

    The first entries of a permutation name candidates, counted in the order of patches.
    """

    def __init__(self, permutations: Iterator[Tensor]) -> None:
        self.permutations = permutations

    def __call__(self, labels: Tensor, count: int) -> Tensor:
        places = torch.zeros_like(labels)
        for label in range(count):
            candidates = (labels[0] == label).nonzero()[:, 0]
            places[0, candidates[next(self.permutations).long()]] = torch.arange(len(candidates))
        return places


def classes_in_patches(parsing: Tensor, patch: int) -> Tensor:
    """Which classes occur in each patch, as bits: ``[B, H, W]`` integer maps to ``[B, N]`` int16, bit c for class c.

    Raises:
        DataError: sides that are no multiples of the patch.
    """
    if parsing.shape[-2] % patch or parsing.shape[-1] % patch:
        raise DataError(f"a parsing map of {list(parsing.shape[-2:])} is not divided into patches of {patch}")
    return torch.cat([_bits(part, patch) for part in parsing.split(CHUNK)])


CHUNK = 16
"""Maps whose bits are held at once."""


def _bits(parsing: Tensor, patch: int) -> Tensor:
    bits = parsing.to(torch.int16, copy=True)
    torch.bitwise_left_shift(torch.ones((), dtype=torch.int16), bits, out=bits)
    rows = reduce(torch.bitwise_or, bits.unflatten(1, (-1, patch)).unbind(2))  # [B, H / patch, W]
    return reduce(torch.bitwise_or, rows.unflatten(2, (-1, patch)).unbind(3)).flatten(1)


def _regions(present: Tensor, groups: dict[str, tuple[int, ...]]) -> Tensor:
    """``[B, G, N]`` bool: which patches belong to which group."""
    made = []
    for name, classes in groups.items():
        if name == "boundary":
            made.append((present & 2 > 0) & (present & _bits_of(set(classes) - {1}) > 0))
        else:
            made.append(present & _bits_of(classes) > 0)
    return torch.stack(made, dim=1)


def _bits_of(classes: set[int] | tuple[int, ...]) -> int:
    return sum(1 << c for c in classes)


def region_patches(parsing: Tensor, patch: int, groups: dict[str, tuple[int, ...]] | None = None) -> Tensor:
    """Which patches belong to which region: ``[B, H, W]`` to ``[B, regions, N]`` bool, in the order of ``groups``.

    A patch belongs to a region if any of its pixels does.
    """
    return _regions(classes_in_patches(parsing, patch), GROUPS if groups is None else groups)


def crfr_p(regions: Tensor, covered: int, ratio: float = 0.75, draws: Draws = draw_places) -> FaceMasks:
    """Covers one region whole, then a proportional part of every other (section 3.2 of the paper).

    Args:
        regions: ``[B, G, N]`` bool; every patch belongs to one at least.
        covered: number of the covered region; -1: none (all are masked proportionally, FRP).
        ratio: share of hidden patches; where ``ratio * N`` is no integer an image has the integer below or above.
        draws: places in random orders, first of each other region's patches, then of what is corrected.
    """
    n = regions.shape[-1]
    region = regions[:, covered] if covered >= 0 else torch.zeros_like(regions[:, 0])
    others = [g for g in range(regions.shape[1]) if g != covered]
    size = region.sum(1)
    left = (ratio * n - size).trunc()
    proportional = left > 0

    mask = region.clone()
    if proportional.any():
        # a patch counts for the first region that it belongs to
        first = torch.stack([regions[:, g] for g in others], dim=1).to(torch.uint8).argmax(1)
        labels = torch.where(region | ~proportional[:, None], -1, first)
        available = torch.stack([(labels == g).sum(1) for g in range(len(others))], dim=1)
        wanted = (available * (left / (n - size).clamp_min(1))[:, None]).round()
        places = draws(labels, len(others))
        mask |= (labels >= 0) & (places < wanted.gather(1, labels.clamp_min(0)))

    change = (ratio * n - mask.sum(1)).trunc()
    # where the region alone is too large, patches of it are freed; elsewhere patches outside it
    free = mask & ~(region & proportional[:, None])
    candidates = torch.where((change > 0)[:, None], ~mask, free)
    mask ^= candidates & (draws(candidates.long() - 1, 1) < change.abs()[:, None])
    return FaceMasks(mask.float(), torch.where(proportional[:, None], region, mask).float())


def sample(
    parsing: Tensor,
    patch: int,
    ratio: float = 0.75,
    strategy: Strategy = "CRFR-P",
    covered: str | None = None,
) -> FaceMasks:
    """Random masks for a batch of parsing maps ``[B, H, W]``.

    Args:
        parsing: classes 0..10 of pixels, any integer type.
        patch: side of a patch in pixels.
        ratio: share of hidden patches.
        strategy: ``CRFR-P`` covers a region and a proportional part of the others; ``CRFR-R`` covers a region and hides
            others at random; ``FRP`` hides a proportional part of every region; ``FASKING-I`` hides regions in the
            order of :data:`PRIORITY`; ``random`` knows no regions.
        covered: name of the covered region; None: one of :data:`COVERED` that some image of the batch shows, drawn.

    Raises:
        ConfigError: a ratio outside 0..1, or an unknown region.
    """
    if not 0 < ratio < 1:
        raise ConfigError(f"mask ratio {ratio}: it must lie between 0 and 1")
    if covered is not None and covered not in COVERED:
        raise ConfigError(f"covered region '{covered}': expected one of {', '.join(COVERED)}")
    n = (parsing.shape[-2] // patch) * (parsing.shape[-1] // patch)
    if strategy == "random":
        everything = torch.ones(len(parsing), 1, n, dtype=torch.bool)
        return crfr_p(everything, -1, ratio)
    present = classes_in_patches(parsing, patch)
    if strategy == "FASKING-I":
        return _in_order(_regions(present, {name: GROUPS[name] for name in PRIORITY}), ratio)
    regions = _regions(present, GROUPS)
    if strategy == "FRP":
        return crfr_p(regions, -1, ratio)
    names = list(GROUPS)
    if covered is None:
        shown = [i for i, name in enumerate(names) if name in COVERED and regions[:, i].any()]
        if not shown:
            raise DataError("no image of the batch shows a region of a face: are these parsing maps?")
        index = shown[int(torch.randint(len(shown), ()))]
    else:
        index = names.index(covered)
    if strategy == "CRFR-R":
        everything = torch.ones(len(parsing), 1, n, dtype=torch.bool)
        return crfr_p(torch.cat([regions[:, index : index + 1], everything], dim=1), 0, ratio)
    return crfr_p(regions, index, ratio)


def _in_order(regions: Tensor, ratio: float) -> FaceMasks:
    """Region after region, random inside each, until ``int(ratio N)`` patches are hidden."""
    n = regions.shape[-1]
    rank = torch.where(regions.any(1), regions.to(torch.uint8).argmax(1), regions.shape[1])
    order = (rank + torch.rand(rank.shape)).argsort(dim=1)
    mask = torch.zeros(rank.shape).scatter_(1, order[:, : int(ratio * n)], 1.0)
    return FaceMasks(mask, torch.zeros_like(mask))
