"""Maximal coding rate reduction: vectors of one class fill few directions, those of all classes many."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from repertory.errors import ConfigError, DataError

ALMOST_NONE = 1e-8
"""Added to the size of a class, as in the official code."""


def coding_rate(z: Tensor, eps: float, gam1: float = 1.0) -> Tensor:
    """R = 1/2 logdet(I + gam1 p / (m eps) Z^T Z): nats per vector to code all of them up to eps.

    Args:
        z: [m, p]. eps: the squared distortion, which the official code calls eps too. gam1: 1 for the plain rate.
    """
    m, p = z.shape
    gram = z @ z.mT if m < p else z.mT @ z
    return 0.5 * _log_det(gram[None], z.new_tensor([gam1 * p / (m * eps)])).sum()


def class_coding_rate(z: Tensor, labels: Tensor, classes: int, eps: float) -> Tensor:
    """R_c = sum_k m_k / (2 m) logdet(I + p / (m_k eps) Z_k^T Z_k), the mean rate within classes.

    Where a class has fewer members than dimensions, its matrix of inner products has the same determinant (Sylvester)
    and is smaller. An empty class counts 0.

    Args:
        z: [m, p]. labels: [m] of 0 .. classes - 1.

    Raises:
        DataError: a label lies outside.
    """
    m, p = z.shape
    if labels.min() < 0 or labels.max() >= classes:
        worst = labels.max() if labels.max() >= classes else labels.min()
        raise DataError(f"label {int(worst)}: labels from 0 to {classes - 1} are needed")
    counts = torch.bincount(labels, minlength=classes)
    members = z[labels.argsort(stable=True)].split(counts.tolist())
    many = [part for part in members if len(part) >= p]
    few = [part for part in members if 0 < len(part) < p]
    rate = z.new_zeros(())
    if many:
        size = counts[counts >= p] + ALMOST_NONE
        gram = torch.stack([part.mT @ part for part in many])
        rate = rate + (size / (2 * m) * _log_det(gram, p / (size * eps))).sum()
    if few:
        size = counts[(counts > 0) & (counts < p)] + ALMOST_NONE
        padded = pad_sequence(few, batch_first=True)  # rows of zeros leave the determinant as it is
        rate = rate + (size / (2 * m) * _log_det(padded @ padded.mT, p / (size * eps))).sum()
    return rate


class _LogDet(torch.autograd.Function):
    """logdet of positive definite matrices [k, d, d]; its gradient is the inverse, from the same factor."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(matrices)
        ctx.save_for_backward(factor)
        return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (factor,) = ctx.saved_tensors
        return grads[0][:, None, None] * torch.cholesky_inverse(factor)


def _log_det(gram: Tensor, scale: Tensor) -> Tensor:
    """[k] of logdet(I + scale gram) for gram [k, d, d] and scale [k]."""
    inner = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) + scale.to(gram)[:, None, None] * gram
    made: Tensor = _LogDet.apply(inner)
    return made


class Rates(NamedTuple):
    """``loss`` = - gam2 ``rate`` + gam1 ``class_rate``."""

    loss: Tensor
    rate: Tensor
    class_rate: Tensor


class CodingRateReduction(nn.Module):
    """- gam2 R + gam1 R_c over all vectors, in float32 whatever the autocast (ERASE, after MCR2, Yu et al. 2020).

    Args:
        eps: the squared distortion.
        gam1: weight of the rate within classes, and inside R.
        gam2: weight of the rate of all.

    Raises:
        ConfigError: eps is not positive.

    Example:
        >>> loss = CodingRateReduction(eps=0.05)
        >>> loss(torch.rand(20, 8), torch.arange(20) % 3, 3).loss.shape
        torch.Size([])
    """

    def __init__(self, eps: float, gam1: float = 1.0, gam2: float = 2.0) -> None:
        super().__init__()
        if eps <= 0:
            raise ConfigError(f"eps={eps}: a positive number is needed")
        self.eps, self.gam1, self.gam2 = eps, gam1, gam2

    def forward(self, z: Tensor, labels: Tensor, classes: int) -> Rates:
        """Of vectors [m, p] with labels [m] of 0 .. classes - 1."""
        with torch.autocast(z.device.type, enabled=False):
            z = z if z.dtype == torch.float64 else z.float()
            rate = coding_rate(z, self.eps, self.gam1)
            class_rate = class_coding_rate(z, labels, classes, self.eps)
        return Rates(self.gam1 * class_rate - self.gam2 * rate, rate, class_rate)
