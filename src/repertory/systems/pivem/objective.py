"""The likelihood of a non-homogeneous Poisson process along piecewise linear trajectories (Celikkanat et al. 2022).

The intensity of a pair is exp(beta_i + beta_j - ||r_i(t) - r_j(t)||^2); inside a bin the distance is a quadratic in
time, so the log intensity of all events is a sum over sufficient statistics and the integral has a closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Follow = Literal["paper", "official"]
TILE = 2**16
"""About how many (bin, pair) entries are held at once."""
TOLERANCE = 1e-5
"""A time so close to the next bin (in bins) belongs to it: 0.3 / 0.1 is not 3 in floating point."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


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


def unit_moments(a: Tensor, p: Tensor, n2: Tensor) -> Tensor:
    """[3, ...]: integrals over t in [0, 1] of t^k exp(a - 2 p t - n2 t^2), k = 0, 1, 2.

    k = 0 is the integral of the intensity; the others are its derivatives with respect to p and n2. Closed form (error
    function) except where the exponent bends and tilts little: there it would divide 0 by 0, and an 8-point
    Gauss-Legendre rule is exact to rounding.

    Args:
        a: log intensity at the start. p: product of difference and velocity. n2: squared velocity, not negative.
    """
    shape = a.shape
    stacked = torch.stack([a.reshape(-1), p.reshape(-1), n2.reshape(-1)])
    t = torch.as_tensor((_NODES + 1) / 2, dtype=a.dtype, device=a.device)
    weights = torch.as_tensor(_WEIGHTS / 2, dtype=a.dtype, device=a.device)
    powers = torch.stack([torch.ones_like(t), t, t * t])
    signs = torch.tensor([1.0, -2.0, -1.0], dtype=a.dtype, device=a.device)
    with torch.autocast(a.device.type, enabled=False):
        moments = (weights * powers) @ ((signs[:, None] * powers).T @ stacked).clamp_(min=_floor(a)).exp_()
    curved = ((stacked[2] > 4) | (stacked[1].abs() > 4)).nonzero()[:, 0]
    if len(curved):
        log_start, tilt, bend = stacked.index_select(1, curved)
        nearest = (-tilt / bend.clamp(min=torch.finfo(a.dtype).tiny)).clamp(0, 1)
        curved = curved[log_start - nearest * (2 * tilt + bend * nearest) > _floor(a)]
        moments.index_copy_(1, curved, _closed_form(*stacked.index_select(1, curved)))
    return moments.view(3, *shape)


def _floor(like: Tensor) -> float:
    """A log intensity as good as none, above those whose exponential is subnormal, with which processors are slow."""
    return math.log(torch.finfo(like.dtype).tiny) + 16


def _closed_form(a: Tensor, p: Tensor, n2: Tensor) -> Tensor:
    n2 = n2.clamp(min=torch.finfo(a.dtype).tiny)
    n = n2.sqrt()
    start = p / n
    end = start + n
    # erf(end) - erf(start) on the side where erfc is small and keeps its digits
    low, high = torch.where(start + end < 0, -end, start), torch.where(start + end < 0, -start, end)
    area = torch.special.erfc(low) - torch.special.erfc(high)
    nearest, first_value, last_value = torch.stack([a + start.square(), a, a - 2 * p - n2]).clamp_(min=_floor(a)).exp_()
    zeroth = math.sqrt(math.pi) / 2 * nearest * area / n
    first = ((first_value - last_value) / 2 - p * zeroth) / n2
    second = ((zeroth - last_value) / 2 - p * first) / n2
    return torch.stack([zeroth, first, second])


class _Compensator(torch.autograd.Function):
    """Sum over pairs and bins of the integral of the intensity, its gradients made in the same pass, tile by tile."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, beta: Tensor, width: float, masked: Tensor, tile: int) -> Tensor:
        bins, nodes, _ = x.shape
        x, v = x.permute(2, 0, 1).contiguous(), v.permute(2, 0, 1).contiguous()
        grad_x, grad_v, grad_beta = torch.zeros_like(x), torch.zeros_like(v), torch.zeros_like(beta)
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        learning = any(ctx.needs_input_grad[:3])
        rows = min(max(1, tile // (bins * nodes)), -(-nodes // 3))
        for start in range(0, nodes - 1, rows):
            i, j = slice(start, min(start + rows, nodes)), slice(start, nodes)
            dx, dv = (z[:, :, i, None] - z[:, :, None, j] for z in (x, v))
            log_start = (beta[i, None] + beta[j]) - dx.square().sum(0)
            moments = unit_moments(log_start, (dx * dv).sum(0).mul_(width), dv.square().sum(0).mul_(width**2))
            moments *= torch.ones_like(moments[0, 0]).triu_(1)
            inside = masked[(masked[:, 0] >= start) & (masked[:, 0] < start + rows)] - start
            moments[:, :, inside[:, 0], inside[:, 1]] = 0
            m0, m1, m2 = moments[0] * width, moments[1] * width**2, moments[2] * width**3
            total += m0.sum()
            if learning:
                for_x, for_v = dx * m0 + dv * m1, dx * m1 + dv * m2
                for grad, pull in ((grad_x, for_x), (grad_v, for_v)):
                    grad[:, :, i] -= 2 * pull.sum(-1)
                    grad[:, :, j] += 2 * pull.sum(-2)
                grad_beta[i] += m0.sum((0, 2))
                grad_beta[j] += m0.sum((0, 1))
        ctx.save_for_backward(grad_x.permute(1, 2, 0), grad_v.permute(1, 2, 0), grad_beta)
        return total.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (*(grads[0] * saved for saved in ctx.saved_tensors), None, None, None)


def compensator(
    starts: Tensor, velocities: Tensor, beta: Tensor, width: float, masked: Tensor | None = None, tile: int = TILE
) -> Tensor:
    """Expected number of events: the intensity integrated over all bins, summed over all pairs i < j.

    Args:
        starts: positions at the starts of the bins [B, N, D]. velocities: [B, N, D]. beta: [N].
        width: of a bin.
        masked: [K, 2] pairs i < j that are left out.
        tile: about how many (bin, pair) entries are held at once; memory is O(tile + B N D), whatever N.
    """
    none = torch.empty((0, 2), dtype=torch.long, device=starts.device)
    result: Tensor = _Compensator.apply(starts, velocities, beta, width, none if masked is None else masked, tile)
    return result


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


def log_intensities(starts: Tensor, velocities: Tensor, beta: Tensor, cells: Cells) -> Tensor:
    """Sum of the log intensities at all events, at a cost that grows with the cells, not with the events.

    Shapes as in ``compensator``.
    """
    _, nodes, dim = starts.shape
    i, j = cells.bin * nodes + cells.i, cells.bin * nodes + cells.j
    x, v = starts.reshape(-1, dim), velocities.reshape(-1, dim)
    dx, dv = (z.index_select(0, i) - z.index_select(0, j) for z in (x, v))
    log_start = beta.index_select(0, cells.i) + beta.index_select(0, cells.j) - dx.square().sum(1)
    tilt, bend = 2 * (dx * dv).sum(1), dv.square().sum(1)
    return (cells.count * log_start - cells.residual * tilt - cells.squared * bend).sum()


def negative_log_likelihood(
    starts: Tensor, velocities: Tensor, beta: Tensor, width: float, cells: Cells, masked: Tensor | None = None,
    tile: int = TILE,
) -> Tensor:  # fmt: skip
    """Of the events in ``cells`` over all pairs i < j, with or without events; shapes as in ``compensator``."""
    with torch.autocast(starts.device.type, enabled=False):
        expected = compensator(starts, velocities, beta, width, masked, tile)
        return expected - log_intensities(starts, velocities, beta, cells)
