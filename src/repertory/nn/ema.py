"""Exponential moving average of a module's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_ema(target: nn.Module, online: nn.Module, momentum: float | Tensor) -> None:
    """In place ``target <- momentum * target + (1 - momentum) * online``, for parameters and floating buffers.

    Integer buffers (counters) are copied. Both modules have the same structure; ``momentum`` is in [0, 1] and 1
    leaves every weight of the target as it is.
    """
    averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
    copied: tuple[list[Tensor], list[Tensor]] = ([], [])
    for of in (nn.Module.parameters, nn.Module.buffers):
        for old, new in zip(of(target), of(online), strict=True):
            olds, news = averaged if old.is_floating_point() else copied
            olds.append(old)
            news.append(new)
    if averaged[0]:
        torch._foreach_lerp_(*averaged, 1.0 - float(momentum))
    if copied[0]:
        torch._foreach_copy_(*copied)
