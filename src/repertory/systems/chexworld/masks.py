"""Masks of several blocks (Assran et al. 2023, I-JEPA; CheXWorld's ``multi_multiblock``), a whole batch at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from repertory.errors import ConfigError, DataError
from repertory.nn.vit import check_indices


class Masks(NamedTuple):
    """Patch indices, int64: ``context`` ``[B, K]`` and ``target`` ``[B, T]`` (``[B, blocks, T]`` if not merged)."""

    context: Tensor
    target: Tensor


def stack_masks(masks: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """One index vector per image to ``[B, K]``.

    Raises:
        DataError: their lengths differ, or an index lies outside ``grid`` (rows, columns).
    """
    lengths = {len(mask) for mask in masks}
    if len(lengths) != 1:
        size = f"a grid of {grid[0]} x {grid[1]} patches"
        raise DataError(f"masks of a batch must have one length, not {sorted(lengths)}, on {size}")
    stacked = torch.stack(list(masks))
    check_indices(stacked, grid)
    return stacked


@dataclass(frozen=True)
class MultiBlockMasks:
    """Samples, for each image, ``blocks`` target blocks and one context block from which they are cut.

    The block sizes are shared by the batch. Scales are fractions of the grid's area, aspects are height / width. A
    context must keep more than ``min_keep`` patches; after 20 failures the last target block no longer cuts it, after
    20 more the last two, and so on. Every mask is cut to the batch's shortest by keeping its first indices, which
    under-samples the bottom rows as the published code does, or a random subset with ``rand_keep``.
    """

    grid: tuple[int, int] = (14, 14)
    context_scale: tuple[float, float] = (0.75, 1.0)
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    blocks: int = 4
    min_keep: int = 10
    merge: bool = True
    rand_keep: bool = False
    tries: int = 20

    def block_size(
        self, scale: tuple[float, float], aspect: tuple[float, float], uniform: tuple[float, float]
    ) -> tuple[int, int]:
        """(height, width) in patches from two uniform draws.

        Raises:
            ConfigError: the block has no more than ``min_keep`` patches.
        """
        rows, columns = self.grid
        area = int(rows * columns * (scale[0] + uniform[0] * (scale[1] - scale[0])))
        low, high = math.log(aspect[0]), math.log(aspect[1])
        ratio = math.exp(low + uniform[1] * (high - low))
        height = min(rows, round(math.sqrt(area * ratio)))
        width = min(columns, round(math.sqrt(area / ratio)))
        if height * width <= self.min_keep:
            raise ConfigError(
                f"a block of {height} x {width} patches on a grid of {rows} x {columns} has no more than "
                f"min_keep={self.min_keep}: lower min_keep or raise the scale"
            )
        return height, width

    def __call__(
        self,
        batch: int,
        *,
        uniform: Tensor | None = None,
        top_left: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Masks:
        """Masks of ``batch`` images, from the global generator unless one is given.

        ``uniform`` ``[4]`` (target scale, target aspect, context scale, context aspect) and ``top_left``
        ``[B, blocks + 1, 2]`` (the context block last) are the draws. With given positions a context that keeps too
        few patches is relaxed at once instead of being drawn again.
        """
        if uniform is None:
            uniform = torch.rand(4, generator=generator)
        u = uniform.tolist()
        target_size = self.block_size(self.target_scale, self.target_aspect, (u[0], u[1]))
        context_size = self.block_size(self.context_scale, (1.0, 1.0), (u[2], u[3]))
        if top_left is None:
            targets = self._placed(self._corners((batch, self.blocks), target_size, generator), target_size)
            context = self._draw_context(targets, context_size, generator)
        else:
            targets = self._placed(top_left[:, :-1], target_size)
            context = self._relaxed(self._placed(top_left[:, -1], context_size), targets)
        if self.merge:
            targets = targets.any(1)
        return Masks(self._indices(context, generator), self._indices(targets, generator))

    def _corners(self, shape: tuple[int, ...], size: tuple[int, int], generator: torch.Generator | None) -> Tensor:
        free = torch.tensor(self.grid) - torch.tensor(size) + 1
        return (torch.rand(*shape, 2, generator=generator) * free).long().minimum(free - 1)

    def _placed(self, corners: Tensor, size: tuple[int, int]) -> Tensor:
        """Occupied cells ``[..., rows * columns]`` of blocks of one size at ``corners`` ``[..., 2]``."""
        top, left = corners[..., :1], corners[..., 1:]
        row, column = torch.arange(self.grid[0]), torch.arange(self.grid[1])
        in_rows = (row >= top) & (row < top + size[0])
        in_columns = (column >= left) & (column < left + size[1])
        return (in_rows[..., :, None] & in_columns[..., None, :]).flatten(-2)

    def _draw_context(self, targets: Tensor, size: tuple[int, int], generator: torch.Generator | None) -> Tensor:
        context = torch.zeros_like(targets[:, 0])
        pending = torch.arange(len(targets))
        for cutting in range(self.blocks, -1, -1):
            cut = targets[:, :cutting].any(1)
            for _ in range(self.tries):
                drawn = self._placed(self._corners((len(pending),), size, generator), size) & ~cut[pending]
                context[pending] = drawn
                pending = pending[drawn.sum(1) <= self.min_keep]
                if not len(pending):
                    return context
        return context

    def _relaxed(self, block: Tensor, targets: Tensor) -> Tensor:
        # still_free[:, k] is what is left of the block when the first k target blocks cut it
        cut = torch.cat([torch.zeros_like(targets[:, :1]), targets], dim=1).cumsum(1) > 0
        left = block[:, None] & ~cut
        cutting = (left.sum(-1) > self.min_keep).sum(1) - 1
        return left[torch.arange(len(block)), cutting]

    def _indices(self, occupied: Tensor, generator: torch.Generator | None) -> Tensor:
        length = int(occupied.sum(-1).min())
        if self.rand_keep:
            order = torch.rand(occupied.shape, generator=generator).masked_fill(~occupied, 2.0)
            return order.argsort(-1)[..., :length].sort(-1).values
        return (~occupied).byte().argsort(dim=-1, stable=True)[..., :length]
