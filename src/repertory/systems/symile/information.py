"""Information in closed form: what a representation could know at best, and what the loss proves it knows.

All quantities are in nats.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from repertory.errors import ConfigError, DataError


class XORInformation(NamedTuple):
    """Information terms of the mixture, each of the shape of ``p``."""

    ac: Tensor  # I(a; c)
    bc: Tensor  # I(b; c)
    ab_given_c: Tensor  # I(a; b | c)
    cb_given_a: Tensor  # I(c; b | a)
    total_correlation: Tensor  # TC(a, b, c)


def xor_information(p: Tensor | float, dim: int = 1) -> XORInformation:
    """Fair bits a, b in {0, 1}^dim; c = a XOR b with probability ``p`` (once per sample), otherwise c = a.

    The binary XOR experiment of the paper. Pairs alone hold I(a; c) + I(b; c); the rest of the total correlation is
    visible to all three together only.
    """
    p = torch.as_tensor(p, dtype=torch.float64)
    if not ((p >= 0) & (p <= 1)).all() or dim < 1:
        raise ConfigError(f"p must lie in [0, 1] and dim be at least 1, got {p.tolist()} and {dim}")
    states = 2**dim
    elsewhere = p / states  # p(c | a) of each c other than a
    entropy_c_given_a = torch.special.entr(1 - p + elsewhere) + (states - 1) * torch.special.entr(elsewhere)
    # Given a and b, c takes two values, unless b = 0, where XOR and copy agree.
    entropy_c_given_ab = (1 - 1 / states) * (torch.special.entr(p) + torch.special.entr(1 - p))
    ac = dim * math.log(2) - entropy_c_given_a
    cb_given_a = entropy_c_given_a - entropy_c_given_ab
    # c and b are independent, so I(a; b | c) = I(a; c | b) - I(a; c) = H(c | a) - H(c | a, b).
    return XORInformation(ac, torch.zeros_like(p), cb_given_a, cb_given_a, ac + cb_given_a)


def total_correlation(joint: Tensor) -> Tensor:
    """Total correlation, sum of the marginal entropies minus the joint one, of a table of probabilities (one axis a
    variable)."""
    joint = joint.double()
    if (joint < 0).any() or not torch.isclose(joint.sum(), joint.new_ones(())):
        raise DataError("a joint distribution has no negative entries and sums to 1")
    axes = range(joint.ndim)
    marginals = [joint.sum([other for other in axes if other != axis]) if joint.ndim > 1 else joint for axis in axes]
    return sum(torch.special.entr(m).sum() for m in marginals) - torch.special.entr(joint).sum()


def total_correlation_bound(loss: Tensor | float, batch: int) -> float:
    """log B - loss <= total correlation (in expectation), for ``negative_sampling="n"``."""
    return math.log(batch) - float(torch.as_tensor(loss).detach())
