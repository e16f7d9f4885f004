"""Schedules as values per iteration, and learning rates that fall with the depth of the layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from repertory.errors import ConfigError


def cosine_schedule(base: float, final: float, steps: int, warmup: int = 0, start: float = 0.0) -> Tensor:
    """``[steps]`` float64: linear from ``start`` to ``base`` over ``warmup`` steps, then half a cosine to ``final``.

    The value at step ``warmup + i`` is ``final + (base - final) (1 + cos(pi i / n)) / 2`` with
    ``n = steps - warmup``, so ``final`` itself would be reached one step after the last.
    """
    if not 0 <= warmup <= steps:
        raise ConfigError(f"a warm-up of {warmup} steps does not fit into {steps} steps")
    fraction = torch.arange(steps - warmup, dtype=torch.float64) / max(steps - warmup, 1)
    cosine = final + 0.5 * (base - final) * (1 + torch.cos(math.pi * fraction))
    return torch.cat([torch.linspace(start, base, warmup, dtype=torch.float64), cosine])


def layer_decay_groups(model: nn.Module, lr: float, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups in which layer ``l`` of ``L`` learns at ``lr * layer_decay^(L - l)`` (Bao et al. 2022, BEiT).

    The layers are those of ``model.group_matcher()``; biases, 1-D weights and what ``model.no_weight_decay()`` names
    have no weight decay.
    """
    named = getattr(model, "no_weight_decay", set)()
    groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=named, layer_decay=layer_decay)
    return [{**group, "lr": lr * group["lr_scale"]} for group in groups]
