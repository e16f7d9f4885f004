"""Events drawn from trajectories by thinning, and networks drawn from the prior."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from repertory.data.events import Events
from repertory.systems.pivem.prior import KroneckerPrior

TILE = 2**20


def simulate(
    starts: Tensor, velocities: Tensor, beta: Tensor, width: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One realisation of the process by thinning (Lewis and Shedler 1979).

    Each bin is cut at the time of closest approach, so that the intensity is monotone on a piece and the larger of its
    ends dominates it.

    Args:
        starts: positions at the starts of the bins [B, N, D]. velocities: [B, N, D]. beta: [N]. width: of a bin.

    Returns:
        pairs [E, 2], i < j, and times [E], in the order of time.
    """
    bins, nodes, _ = starts.shape
    rows, found = max(1, TILE // (bins * nodes)), []
    for first in range(0, nodes - 1, rows):
        i, j = torch.triu_indices(min(rows, nodes - first), nodes - first, 1) + first
        dx, dv = starts[:, i] - starts[:, j], velocities[:, i] - velocities[:, j]
        tilt, bend, bias = (dx * dv).sum(-1), dv.square().sum(-1), beta[i] + beta[j]
        log_start = bias - dx.square().sum(-1)
        closest = torch.where(bend > 0, -tilt / bend.clamp(min=torch.finfo(bend.dtype).tiny), 0).clamp(0, width)
        bounds = torch.stack([torch.zeros_like(closest), closest, torch.full_like(closest, width)])

        def rate(s: Tensor, log_start: Tensor = log_start, tilt: Tensor = tilt, bend: Tensor = bend) -> Tensor:
            return torch.exp(log_start - 2 * tilt * s - bend * s.square())

        at_bounds = rate(bounds)
        dominating = torch.maximum(at_bounds[:-1], at_bounds[1:])
        counts = torch.poisson(dominating * (bounds[1:] - bounds[:-1]), generator=generator).long()
        piece, b, pair = counts.nonzero(as_tuple=True)
        piece, b, pair = (z.repeat_interleave(counts[piece, b, pair]) for z in (piece, b, pair))
        low, high = bounds[piece, b, pair], bounds[piece + 1, b, pair]
        since = low + (high - low) * torch.rand(len(low), generator=generator, dtype=low.dtype)
        actual = rate(since, log_start[b, pair], tilt[b, pair], bend[b, pair])
        kept = torch.rand(len(low), generator=generator, dtype=low.dtype) * dominating[piece, b, pair] < actual
        found.append((torch.stack([i[pair], j[pair]], dim=1)[kept], (b * width + since)[kept]))
    pairs, times = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = times.argsort(stable=True)
    return pairs[order], times[order]


def draw_from_prior(
    node_factor: Tensor, bins: int, dim: int, scale: float, sigma: float, c: float, length: float,
    generator: torch.Generator, last_time: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Centred x0 [N, D] and velocities [B, N, D] from the normal of ``KroneckerPrior``; node_factor is C [N, k]."""
    nodes, rank = node_factor.shape
    prior = KroneckerPrior(nodes, bins, rank, scale, last_time)
    with torch.no_grad():
        prior.c.fill_(c), prior.length.fill_(length)
        factor = prior.bin_factor()
    smooth = torch.randn(bins + 1, rank, dim, generator=generator, dtype=torch.float64)
    rough = torch.randn(bins + 1, nodes, dim, generator=generator, dtype=torch.float64)
    z = scale * (sigma * rough + torch.einsum("ab,nk,bkd->and", factor, node_factor.double(), smooth))
    z = z - z.mean(1, keepdim=True)
    return z[0], z[1:]


def synthetic_network(
    groups: int = 20, size: int = 5, bins: int = 100, dim: int = 2, scale: float = 1.0, sigma: float = 7e-3,
    c: float = 5.0, length: float = 1e-4, beta: float = 0.0, seed: int = 0,
) -> Events:  # fmt: skip
    """A network drawn from the prior, with the official synthetic set's values by default; times in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    group = np.repeat(np.arange(groups), size)
    memberships = torch.nn.functional.one_hot(torch.from_numpy(group)).double()
    x0, v = draw_from_prior(memberships, bins, dim, scale, sigma, c, length, generator)
    starts = x0 + (v.cumsum(0) - v) / bins
    biases = torch.full((len(group),), beta, dtype=torch.float64)
    pairs, times = simulate(starts, v, biases, 1 / bins, generator)
    return Events.of(range(len(group)), pairs.numpy(), times.numpy(), {"group": group}, {"label": ("group",)})


def swapping_groups(
    nodes: int = 24, groups: int = 3, inside: float = 16.0, outside: float = 0.8, seed: int = 0
) -> tuple[Events, np.ndarray]:
    """Groups of which half of the members change half way; events are Poisson inside and between groups.

    Args:
        nodes: N. groups: number of groups.
        inside, outside: events of a pair per unit of time, of one group and of two.
        seed: of everything random.

    Returns:
        The events, times in [0, 1], and memberships [2, N] in the first and in the second half.
    """
    random = np.random.default_rng(seed)
    before = np.arange(nodes) % groups
    after = before.copy()
    movers = random.permutation(nodes)[: nodes // 2]
    after[movers] = (before[movers] + 1) % groups
    i, j = np.triu_indices(nodes, 1)
    pairs, times = [], []
    for half, member in enumerate((before, after)):
        counts = random.poisson(np.where(member[i] == member[j], inside, outside) / 2)
        rows = np.repeat(np.arange(len(i)), counts)
        pairs.append(np.stack([i[rows], j[rows]], axis=1))
        times.append((half + random.random(len(rows))) / 2)
    memberships = np.stack([before, after])
    columns = {"first half": before, "second half": after}
    return Events.of(range(nodes), np.concatenate(pairs), np.concatenate(times), columns), memberships
