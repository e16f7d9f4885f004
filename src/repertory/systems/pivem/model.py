"""Nodes that move through a latent space at velocities that are constant within a bin of time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from repertory.systems.pivem.objective import Follow, bins_of, unit_moments
from repertory.systems.pivem.prior import KroneckerPrior

OFFICIAL = {
    "_BaseModel__x0": "x0",
    "_BaseModel__v": "v",
    "_BaseModel__beta": "beta",
    "_BaseModel__prior_sigma": "prior.sigma",
    "_BaseModel__prior_B_x0_c": "prior.c",
    "_BaseModel__prior_B_ls": "prior.length",
    "_BaseModel__prior_C_Q": "prior.Q",
}
SCORED = 2**20
"""(bin, pair) entries that scoring holds at once."""


def from_official_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict under this room's names; unknown names stay, so that strict loading names them."""
    return {OFFICIAL.get(name, name): value for name, value in state.items()}


class PiecewiseVelocityModel(nn.Module):
    """Initial positions, velocities and biases of N nodes, and the prior over them.

    Parameters are stored as they are learned; every formula uses them centred over the nodes.

    Args:
        nodes: N. bins: B. dim: D.
        rank: k of the prior. prior_scale: its lambda, 0 for none.
        last_time: the end of the training period; times run from 0.
    """

    def __init__(
        self, nodes: int, bins: int, dim: int = 2, rank: int = 10, prior_scale: float = 1e5, last_time: float = 1.0
    ) -> None:
        super().__init__()
        self.last_time, self.width = last_time, last_time / bins
        self.x0 = nn.Parameter(torch.empty(nodes, dim).uniform_(-1, 1))
        self.v = nn.Parameter(torch.zeros(bins, nodes, dim))
        self.beta = nn.Parameter(torch.empty(nodes).uniform_(-1, 1))
        self.prior = KroneckerPrior(nodes, bins, rank, prior_scale, last_time)

    def centred(self) -> tuple[Tensor, Tensor]:
        """Initial positions [N, D] and velocities [B, N, D], their means over the nodes taken away."""
        return self.x0 - self.x0.mean(0), self.v - self.v.mean(1, keepdim=True)

    def trajectories(self) -> tuple[Tensor, Tensor]:
        """Positions at the starts of the bins [B, N, D], and velocities [B, N, D]."""
        x0, v = self.centred()
        return x0 + self.width * (v.cumsum(0) - v), v

    def position(self, nodes: Tensor, times: Tensor, follow: Follow = "paper") -> Tensor:
        """r_i(t) [M, D] of ``nodes`` [M] at ``times`` [M] in [0, last_time]."""
        starts, v = self.trajectories()
        index, since = bins_of(times, len(v), self.last_time, follow)
        return starts[index, nodes] + since[:, None].to(v.dtype) * v[index, nodes]

    def extrapolated(self, times: Tensor) -> Tensor:
        """Positions of all nodes [M, N, D] at ``times`` [M] after ``last_time``: the prior's mean velocity from there.

        Experimental.
        """
        starts, v = self.trajectories()
        end = starts[-1] + self.width * v[-1]
        velocity = self.prior.expected_velocities(*self.centred(), times)
        return end + (times - self.last_time)[:, None, None].to(v.dtype) * velocity

    def log_intensity(self, pairs: Tensor, times: Tensor, follow: Follow = "paper") -> Tensor:
        """[M] of ``pairs`` [M, 2] at ``times`` [M]."""
        distance = self.position(pairs[:, 0], times, follow) - self.position(pairs[:, 1], times, follow)
        return self.beta[pairs].sum(1) - distance.square().sum(1)

    def integral(self, pairs: Tensor) -> Tensor:
        """Integral of the intensity, bin by bin: [B, M] of ``pairs`` [M, 2]."""
        bins = len(self.v)
        edges = self.width * torch.arange(bins, dtype=torch.float64, device=self.v.device)
        return self._pieces(pairs, edges[:, None].expand(-1, len(pairs)), edges[:, None] + self.width, "paper")

    def expected(self, pairs: Tensor, start: Tensor, end: Tensor, follow: Follow = "paper") -> Tensor:
        """Expected number of events [M] of ``pairs`` [M, 2] in the intervals from ``start`` to ``end`` [M].

        Args:
            follow: ``official`` counts the offset inside the first bin twice, as the official
                ``get_intensity_integral_for`` does.
        """
        edges = self.width * torch.arange(len(self.v), dtype=torch.float64, device=self.v.device)[:, None]
        made = []
        for part in torch.arange(len(pairs), device=self.v.device).split(max(1, SCORED // len(self.v))):
            begins = torch.maximum(edges, start[part].double())
            ends = torch.minimum(edges + self.width, end[part].double())
            made.append(self._pieces(pairs[part], begins, ends, follow).sum(0))
        return torch.cat(made) if made else self.beta.new_zeros(0)

    def _pieces(self, pairs: Tensor, begins: Tensor, ends: Tensor, follow: Follow) -> Tensor:
        """[B, M]: the integral from ``begins`` to ``ends`` [B, M], each inside its bin; 0 where they are swapped."""
        starts, v = self.trajectories()
        edges = self.width * torch.arange(len(v), dtype=torch.float64, device=v.device)[:, None]
        offset, length = (begins - edges).to(v.dtype), (ends - begins).clamp(min=0).to(v.dtype)
        dx, dv = (z[:, pairs[:, 0]] - z[:, pairs[:, 1]] for z in (starts, v))
        dx = dx + (2 if follow == "official" else 1) * offset[..., None] * dv
        log_start = self.beta[pairs].sum(1) - dx.square().sum(-1)
        tilt, bend = (dx * dv).sum(-1) * length, dv.square().sum(-1) * length.square()
        moments = unit_moments(torch.stack([log_start, tilt, bend]))
        return torch.where(length > 0, moments[0] * length, 0)
