"""Random masking of patch tokens and what is measured on hidden patches (He et al. 2022, MAE)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from repertory.errors import ConfigError
from repertory.nn.vit import tokens_at


class Masking(NamedTuple):
    """Which patches are seen.

    Attributes:
        keep: ``[B, K]`` int64, the seen patches, in the order in which an encoder is given them.
        restore: ``[B, L]`` int64, where each patch lies once hidden tokens were appended.
        mask: ``[B, L]`` float, 1 for a hidden patch.
    """

    keep: Tensor
    restore: Tensor
    mask: Tensor


def masking(order: Tensor, kept: int) -> Masking:
    """The first ``kept`` patches of ``order`` ``[B, L]`` (a permutation a row) are seen."""
    restore = torch.empty_like(order)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    restore.scatter_(1, order, places)
    return Masking(order[:, :kept], restore, (restore >= kept).float())


def random_masking(noise: Tensor, ratio: float) -> Masking:
    """Keeps the ``int(L (1 - ratio))`` patches with the least ``noise`` ``[B, L]``.

    Raises:
        ConfigError: a ratio outside 0..1.
    """
    if not 0 <= ratio <= 1:
        raise ConfigError(f"mask ratio {ratio}: it must lie in 0..1")
    return masking(noise.argsort(dim=1), int(noise.shape[1] * (1 - ratio)))


def fill(tokens: Tensor, mask_token: Tensor, restore: Tensor) -> Tensor:
    """Tokens of seen patches ``[B, K, D]`` to all patches in their place ``[B, L, D]``, hidden ones ``mask_token``."""
    hidden = mask_token.expand(tokens.shape[0], restore.shape[1] - tokens.shape[1], -1)
    return tokens_at(torch.cat([tokens, hidden.to(tokens.dtype)], dim=1), restore)


def patchify(images: Tensor, patch: int) -> Tensor:
    """``[B, C, H, W]`` to ``[B, L, patch * patch * C]``: row, column, channel within a patch."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`patchify`, for ``grid`` (rows, columns) patches."""
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], p=patch, q=patch)


def normalise_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Each patch with mean 0 and (unbiased) variance 1."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) * torch.rsqrt(variance + eps)


def patch_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each patch, ``[B, L, D]`` twice to ``[B, L]``."""
    return (predicted.float() - target).square().mean(dim=-1)


def masked_mean(errors: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``errors`` where ``mask`` is 1, over the whole batch."""
    return (errors * mask).sum() / mask.sum()
