"""The loss of CheXWorld (Yue et al. 2025): distances of predicted from target latents, and a variance hinge."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Literal["l2", "l1", "unigrad"]


class Losses(NamedTuple):
    """Scalars: the objective, its two parts, and the mean deviation of the predictions (near 0: collapse)."""

    loss: Tensor
    intra: Tensor
    extra: Tensor
    pred_var: Tensor


def distance(predictions: Tensor, targets: Tensor, kind: Distance = "l2") -> Tensor:
    """Distance ``[V]`` of each of V predictions from its target, both ``[V, B, K, D]``.

    ``l2`` is the mean square, ``l1`` the smooth L1 with beta 1, ``unigrad`` (Tao et al. 2022)
    ``(mean_i |p_i - t_i|² + 0.02 mean_i p_i' C p_i) / D`` with ``C`` the second moment of the targets.
    """
    predictions, targets = predictions.float().flatten(1, 2), targets.float().flatten(1, 2)
    if kind == "l1":
        return F.smooth_l1_loss(predictions, targets, reduction="none").mean((1, 2))
    square = F.mse_loss(predictions, targets, reduction="none").mean((1, 2))
    if kind == "l2":
        return square
    tokens, width = targets.shape[1:]
    moment = targets.mT @ targets / tokens
    return square + 0.02 * (predictions @ moment * predictions).sum(-1).mean(1) / width


def deviations(predictions: Tensor) -> Tensor:
    """Standard deviation over an image's tokens, averaged over the V predictions: ``[V, B, K, D]`` to ``[B, D]``."""
    return (predictions.float().var(dim=2) + 1e-4).sqrt().mean(0)


def world_model_loss(
    predictions: Tensor,
    targets: Tensor,
    kind: Distance = "l2",
    extra_weight: float = 1.0,
    extra_mean: bool = True,
    reg_weight: float = 0.0,
) -> Losses:
    """The unified objective.

    ``predictions`` ``[4, B, K, D]`` are, in this order, view 1 from 1, 2 from 2 (intra), 2 from 1, 1 from 2 (extra);
    ``targets`` ``[2, B, K, D]`` are those of views 1 and 2. The loss is ``intra + extra_weight * extra``, divided by
    ``1 + extra_weight`` with ``extra_mean``, plus ``reg_weight * mean relu(1 - deviation)``.
    """
    parts = distance(predictions, torch.cat([targets, targets.flip(0)]), kind)
    intra, extra = parts[:2].mean(), parts[2:].mean()
    loss = intra + extra_weight * extra
    if extra_mean:
        loss = loss / (1 + extra_weight)
    spread = deviations(predictions)
    if reg_weight:
        loss = loss + reg_weight * F.relu(1 - spread).mean()
    return Losses(loss, intra, extra, spread.detach().mean())
