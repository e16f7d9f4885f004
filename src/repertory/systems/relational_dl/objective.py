"""Losses: of classes, numbers, and of links by differences of scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def entity_loss(outputs: Tensor, targets: Tensor, answer: str) -> Tensor:
    """The loss of outputs [B, outputs] (RelBench, section 5).

    Args:
        targets: [B] 0/1 of ``binary``; [B] class numbers of ``multiclass``; [B, labels] 0/1 of ``multilabel``; [B]
            numbers of ``regression``.
        answer: which of these: cross-entropies, or the mean absolute error.
    """
    if answer == "multiclass":
        return F.cross_entropy(outputs, targets)
    if answer == "multilabel":
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))
    if answer == "binary":
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs.dtype))
    return F.l1_loss(outputs[:, 0], targets.to(outputs.dtype))


def pairwise_loss(source: Tensor, positive: Tensor, negative: Tensor, shared: bool = True) -> Tensor:
    """Mean softplus of -(s_pos - s_neg), s the dot product with the source (BPR, Rendle et al. 2009).

    Args:
        source, positive, negative: [B, channels].
        shared: all rows are of one time, so that every negative counts for every source.
    """
    right = (source * positive).sum(-1)
    if shared:
        return F.softplus(-(right[:, None] - source @ negative.T)).mean()
    return F.softplus(-(right - (source * negative).sum(-1))).mean()


def membership_loss(outputs: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy over all destinations that were reached: outputs [n, 1], truth [n] 0/1; 0 of none."""
    if not len(outputs):
        return outputs.sum() * 0 + torch.zeros((), device=outputs.device)
    return F.binary_cross_entropy_with_logits(outputs[:, 0], truth.to(outputs.dtype))
