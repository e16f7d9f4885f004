"""The likelihood of a non-homogeneous Poisson process along piecewise linear trajectories (Celikkanat et al. 2022).

The intensity of a pair is exp(beta_i + beta_j - ||r_i(t) - r_j(t)||^2); inside a bin the distance is a quadratic in
time, so the log intensity of all events is a sum over sufficient statistics and the integral has a closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Follow = Literal["paper", "official"]
TILE = 2**16
"""About how many (bin, pair) entries are held at once."""
TOLERANCE = 1e-5
"""A time so close to the next bin (in bins) belongs to it: 0.3 / 0.1 is not 3 in floating point."""


def bins_of(times: Tensor, bins: int, last_time: float, follow: Follow = "paper") -> tuple[Tensor, Tensor]:
    """The bin of each time in [0, last_time] and the time since its start; ``last_time`` ends the last bin.

    follow: ``official`` says that ``last_time`` itself lies 0 after the start of the last bin.
    """
    width = last_time / bins
    index = torch.floor(times.double() / width + TOLERANCE).long().clamp(0, bins - 1)
    since = (times - (index * width).to(times.dtype)).clamp(min=0)
    if follow == "official":
        since = torch.where(times > last_time - TOLERANCE * width, 0, since)
    return index, since


def unit_moments(exponents: Tensor) -> Tensor:
    """[3, ...]: integrals over t in [0, 1] of t^k exp(a - 2 p t - n2 t^2), k = 0, 1, 2.

    k = 0 is the integral of the intensity; the others are its derivatives with respect to p and n2. Closed form (error
    function) except where the exponent bends and tilts little: there it would divide 0 by 0, and an 8-point
    Gauss-Legendre rule is exact to rounding.

    Args:
        exponents: a, p, n2 [3, ...]: log intensity at the start, product of difference and velocity, and squared
            velocity, not negative.
    """
    powers, weights = _rule(exponents.dtype, exponents.device)
    flat = exponents.flatten(1)
    moments = weights @ (powers @ flat).clamp_(min=_floor(flat)).exp_()
    curved = (torch.maximum(flat[1].abs(), flat[2]) > 4).nonzero()[:, 0]
    if len(curved):
        moments.index_copy_(1, curved, _closed_form(*flat.index_select(1, curved)))
    return moments.view_as(exponents)


@cache
def _rule(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """From (a, p, n2) to exponents at 8 points [8, 3]; from their exponentials to the moments [3, 8]."""
    points, weights = np.polynomial.legendre.leggauss(8)
    powers = ((points + 1) / 2) ** np.arange(3)[:, None]
    made = (powers.T * np.array([1, -2, -1]), powers * weights / 2)
    return torch.as_tensor(made[0], dtype=dtype, device=device), torch.as_tensor(made[1], dtype=dtype, device=device)


def _floor(like: Tensor) -> float:
    """A log intensity as good as none, above those whose exponential is subnormal, with which processors are slow."""
    return math.log(torch.finfo(like.dtype).tiny) + 16


def _closed_form(a: Tensor, p: Tensor, n2: Tensor) -> Tensor:
    n = n2.sqrt()
    middle = (p / n + n / 2).abs()
    # erf(end) - erf(start) on the side where erfc is small and keeps its digits
    area = torch.special.erfc(middle - n / 2) - torch.special.erfc(middle + n / 2)
    values = torch.stack([a + p.square() / n2, a, a - 2 * p - n2])
    nearest, first_value, last_value = values.clamp_(min=_floor(a)).exp_()
    zeroth = math.sqrt(math.pi) / 2 * nearest * area / n
    first = ((first_value - last_value) / 2 - p * zeroth) / n2
    second = ((zeroth - last_value) / 2 - p * first) / n2
    return torch.stack([zeroth, first, second])


@dataclass(frozen=True)
class Cells:
    """Sufficient statistics of the events: one entry per pair and bin in which there are any.

    Attributes:
        i, j, bin: [cells] int64, i < j.
        count: [cells] number of events. residual, squared: [cells] sums of the times since the bin's start, and of
            their squares.
    """

    i: Tensor
    j: Tensor
    bin: Tensor
    count: Tensor
    residual: Tensor
    squared: Tensor

    @classmethod
    def of(
        cls, pairs: Tensor, times: Tensor, nodes: int, bins: int, last_time: float = 1.0, follow: Follow = "paper"
    ) -> Cells:
        """From events: pairs [E, 2] in either order, times [E] in [0, last_time]; ``follow`` as in ``bins_of``."""
        low, high = pairs.min(dim=1).values, pairs.max(dim=1).values
        index, since = bins_of(times, bins, last_time, follow)
        key, inverse = torch.unique((low * nodes + high) * bins + index, return_inverse=True)
        sums = [
            torch.zeros(len(key), dtype=torch.float64).index_add_(0, inverse, value.double()).to(times.dtype)
            for value in (torch.ones_like(since), since, since.double().square())
        ]
        pair = key // bins
        return cls(pair // nodes, pair % nodes, key % bins, *sums)

    def dense(self, nodes: int, bins: int) -> tuple[Tensor, Tensor, Tensor]:
        """Count, residual, squared as [pairs, bins], pairs i < j in lexicographic order."""
        pair = self.i * (2 * nodes - self.i - 1) // 2 + self.j - self.i - 1
        made = []
        for value in (self.count, self.residual, self.squared):
            made.append(value.new_zeros(nodes * (nodes - 1) // 2, bins))
            made[-1][pair, self.bin] = value
        return made[0], made[1], made[2]

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def within(self, nodes: Tensor, total: int) -> Cells:
        """Those of pairs inside a batch of node numbers, renumbered by their place in it."""
        place = torch.full((total,), -1, dtype=torch.long, device=nodes.device)
        place[nodes] = torch.arange(len(nodes), device=nodes.device)
        i, j = place[self.i], place[self.j]
        kept = (i >= 0) & (j >= 0)
        rest = (value[kept] for value in (self.bin, self.count, self.residual, self.squared))
        return Cells(torch.minimum(i, j)[kept], torch.maximum(i, j)[kept], *rest)


class _Likelihood(torch.autograd.Function):
    """Negative log likelihood, its gradients made in the same pass, tile by tile: they are what the expected moments of
    each pair and bin have more than those of its events, pulling at both nodes.

    Pairs are enumerated on a ring: node i with i + 1, ..., i + N // 2. That is each pair once (twice at the distance
    N / 2), every tile is a rectangle, and the partners of all nodes are a window that slides: nothing is gathered.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v: Tensor, beta: Tensor, width: float, cells: Cells | None, masked: Tensor | None,
        tile: int,
    ) -> Tensor:  # fmt: skip
        bins, nodes, dim = x.shape
        half = nodes // 2
        of_nodes = torch.cat([x, width * v], dim=2).permute(2, 0, 1).contiguous()
        log_width = math.log(width)
        ring, bias = (torch.cat([z, z[..., :half]], dim=-1).unfold(-1, nodes, 1) for z in (of_nodes, beta))
        own = x.new_zeros(2 * dim + 1, bins, nodes)
        partners = x.new_zeros(2 * dim + 1, bins, nodes + half + 1)
        total = x.new_zeros((), dtype=torch.float64)
        rows = max(1, tile // (bins * nodes))
        if masked is not None:
            masked_step, masked_left = _on_ring(masked[:, 0], masked[:, 1], nodes)
        if cells is not None:
            cell_step, cell_left = _on_ring(cells.i, cells.j, nodes)
            observed = torch.stack([cells.count, cells.residual / width, cells.squared / width**2])
        for first in range(1, half + 1, rows):
            steps = slice(first, min(first + rows, half + 1))
            n = steps.stop - first
            difference = of_nodes.unsqueeze(-2) - ring[..., steps, :]
            dx, moved = difference[:dim], difference[dim:]
            exponents = x.new_zeros(3, bins, n, nodes)
            exponents[0] = (beta + log_width) + bias[steps]
            for d, m in zip(dx, moved, strict=True):
                exponents[0].addcmul_(d, d, value=-1)
                exponents[1].addcmul_(d, m)
                exponents[2].addcmul_(m, m)
            moments = unit_moments(exponents)
            if 2 * (steps.stop - 1) == nodes:
                moments[..., -1, half:] = 0
            if masked is not None:
                inside = (masked_step >= first) & (masked_step < steps.stop)
                moments[..., masked_step[inside] - first, masked_left[inside]] = 0
            if cells is not None:
                place, seen = (cells.bin * n + cell_step - first) * nodes + cell_left, observed
                if n < half:
                    inside = (cell_step >= first) & (cell_step < steps.stop)
                    place, seen = place[inside], observed[:, inside]
                a, p, n2 = exponents.flatten(1).index_select(1, place)
                total += seen[0] @ (1 + log_width - a) + 2 * seen[1] @ p + seen[2] @ n2
                moments.flatten(1).index_add_(1, place, -seen)
            # as many zeros behind each row as make the next start one to the right when the rows are read as shorter
            pulls = x.new_zeros(2 * dim + 1, bins, n, nodes + n + 1)
            held = pulls[..., :nodes]
            torch.mul(dx, moments[0], out=held[:dim]).addcmul_(moved, moments[1])
            torch.mul(dx, moments[1], out=held[dim:-1]).addcmul_(moved, moments[2])
            held[-1] = moments[0]
            own += held.sum(-2)
            slanted = pulls.flatten(2)[..., : n * (nodes + n)].unflatten(-1, (n, nodes + n))
            partners[..., first : first + nodes + n] += slanted.sum(-2)
        partner = partners[..., :nodes]
        partner[..., : half + 1] += partners[..., nodes:]
        pull = -2 * (own - partner)[:-1].permute(1, 2, 0)
        ctx.save_for_backward(pull[..., :dim], width * pull[..., dim:], (own + partner)[-1].sum(0))
        return (total + own[-1].sum(dtype=torch.float64)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (*(grads[0] * saved for saved in ctx.saved_tensors), None, None, None, None)


def _on_ring(i: Tensor, j: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Of pairs i < j: how many steps on a ring of nodes they are apart, and from which of them."""
    ahead = j - i
    wraps = 2 * ahead > nodes
    return torch.where(wraps, nodes - ahead, ahead), torch.where(wraps, j, i)


def negative_log_likelihood(
    starts: Tensor, velocities: Tensor, beta: Tensor, width: float, cells: Cells | None = None,
    masked: Tensor | None = None, tile: int = TILE,
) -> Tensor:  # fmt: skip
    """Of events over all pairs i < j, with or without events, at a cost that does not grow with their number.

    Args:
        starts: positions at the starts of the bins [B, N, D]. velocities: [B, N, D]. beta: [N].
        width: of a bin.
        cells: the events; None: none at all, which leaves their expected number.
        masked: [K, 2] pairs i < j that are expected to have no events.
        tile: about how many (bin, pair) entries are held at once; memory is O(tile + cells + B N D), whatever N.
    """
    with torch.autocast(starts.device.type, enabled=False):
        result: Tensor = _Likelihood.apply(starts, velocities, beta, width, cells, masked, tile)
    return result
