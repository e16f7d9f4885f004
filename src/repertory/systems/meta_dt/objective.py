"""Losses, and which part of a trajectory makes a good prompt."""

from __future__ import annotations

import torch
from torch import Tensor


def world_loss(errors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean squared error of each decoder (``WorldModel.errors``); training minimises their sum (section 4.1)."""
    return {name: error.square().mean() for name, error in errors.items()}


def action_loss(predicted: Tensor, actions: Tensor, present: Tensor) -> Tensor:
    """Mean squared error over the steps that are there, [batch, steps, action_dim] and present [batch, steps]."""
    weights = present.unsqueeze(-1).to(predicted.dtype)
    return ((predicted - actions).square() * weights).sum() / (weights.sum() * actions.shape[-1])


def step_errors(errors: dict[str, Tensor]) -> Tensor:
    """One number per step [...]: the absolute prediction error, summed over decoders and dimensions."""
    return torch.stack([error.abs().sum(-1) for error in errors.values()]).sum(0)


def window_errors(errors: Tensor, length: int, first: int) -> Tensor:
    """Sums of the errors [T] over ``length`` steps from each start ``first, first + 1, ..., T - length``."""
    return errors[first:].unfold(0, length, 1).sum(-1)


def window_probabilities(sums: Tensor) -> Tensor:
    """Probability of each start [S], proportional to its error; equal where there is no error at all."""
    total = sums.sum()
    return sums / total if total > 0 else torch.full_like(sums, 1 / len(sums))
