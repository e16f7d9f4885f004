"""The losses: ranking pairs, contrast with multiplicities, reconstruction of texts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 20
"""Logits that are held at once."""


def bpr(users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Mean of softplus(u . v- - u . v+) over triples [B, d] (Rendle et al. 2009)."""
    return F.softplus((users * (negatives - positives)).sum(1)).mean()


def unit(x: Tensor) -> Tensor:
    """Rows over sqrt(1e-8 + their square), as the official code divides; at least in float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * (1e-8 + x.square().sum(-1, keepdim=True)).rsqrt()


class Distinct:
    """The distinct numbers among ``numbers`` [B] and how often each occurs."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers, self.counts = torch.unique(numbers, return_counts=True)


def info_nce(
    anchors: Tensor,
    positives: Tensor,
    keys: Tensor,
    temperature: float,
    anchor_counts: Tensor | None = None,
    key_counts: Tensor | None = None,
) -> Tensor:
    """Sum over anchors of -cos(a, p) / T + log sum_k exp(cos(a, k) / T) (sections 3.2 and 4.2 of the paper).

    An anchor or key that occurs c times may be given once with its count: the sum is the same.

    Args:
        anchors, positives: [A, d]. keys: [K, d].
        temperature: T.
        anchor_counts: [A]. key_counts: [K].
    """
    with torch.autocast(anchors.device.type, enabled=False):
        anchors, positives, keys = (unit(z) for z in (anchors, positives, keys))
        weights = torch.ones_like(anchors[:, 0]) if anchor_counts is None else anchor_counts.to(anchors.dtype)
        near = ((anchors * positives).sum(1) * weights).sum() / temperature
        shift = anchors.new_full((len(keys),), -1 / temperature)  # no cosine is above 1
        if key_counts is not None:
            shift = shift + key_counts.to(anchors.dtype).log()
        far: Tensor = _LogSumExp.apply(anchors / temperature, keys, shift, weights, False)
        return far + weights.sum() / temperature - near


def log_sum_exp(rows: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """Sum over rows of weight times log sum_k exp(row . k).

    Args:
        rows: [A, d]. keys: [K, d]. weights: [A].
    """
    with torch.autocast(rows.device.type, enabled=False):
        made: Tensor = _LogSumExp.apply(rows, keys, torch.zeros_like(keys[:, 0]), weights.to(rows.dtype), True)
        return made


class _LogSumExp(torch.autograd.Function):
    """Sum of w_a log sum_k exp(a . k + shift_k) with its gradients, block by block: [A, K] is never held whole.

    A column of ones makes one product of the logits and their shifts, and one of the weighted keys and their sum.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, keys: Tensor, shift: Tensor, weights: Tensor, tall: bool) -> Tensor:
        ones = torch.ones_like(keys[:, :1])
        shifted, counted = torch.cat([keys, shift[:, None]], dim=1), torch.cat([keys, ones], dim=1)
        total = rows.new_zeros(())
        of_rows, of_keys = torch.empty_like(rows), torch.zeros_like(keys)
        size = max(1, BLOCK // max(1, len(keys)))
        for start in range(0, len(rows), size):
            part, weight = rows[start : start + size], weights[start : start + size]
            shares = torch.cat([part, torch.ones_like(part[:, :1])], dim=1) @ shifted.T
            if tall:  # no bound is known beforehand
                highest = shares.amax(1)
                total += weight @ highest
                shares.sub_(highest[:, None])
            shares.exp_()
            mixed = shares @ counted
            sums = mixed[:, -1]
            total += weight @ sums.log()
            share = (weight / sums)[:, None]
            of_rows[start : start + size] = mixed[:, :-1] * share
            of_keys.addmm_(shares.T, part * share)
        ctx.save_for_backward(of_rows, of_keys)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_rows, of_keys = ctx.saved_tensors
        return of_rows * grad, of_keys * grad, None, None, None


def reconstruction(mapped: Tensor, texts: Tensor, temperature: float) -> Tensor:
    """Mean over masked nodes of how far each is from its own text among those of all masked nodes (section 4.3).

    Args:
        mapped: [M, d_t], embeddings mapped to the space of texts. texts: [M, d_t].
        temperature: T.
    """
    with torch.autocast(mapped.device.type, enabled=False):
        near = torch.exp(unit(mapped) @ unit(texts).T / temperature)
        return -torch.log(near.diagonal() / (near.sum(1) + 1e-8) + 1e-8).mean()
