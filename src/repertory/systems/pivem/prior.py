"""The Gaussian process prior over initial positions and velocities, in its Kronecker form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

JITTER = 1e-5


class KroneckerPrior(nn.Module):
    """N(0, scale^2 (sigma^2 I + K K^T)) with K = L kron C kron I_D, over [x0; v_1; ...; v_B].

    L is the Cholesky factor of the covariance over x0 and the bins, C the softmax of ``Q``. With the eigenbases of
    L^T L and C^T C the capacitance matrix is diagonal: nothing larger than [B + 1, B + 1] or [N, k] is held, and the
    cost is O(B^3 + k^3 + N k B D).

    Args:
        nodes: N. bins: B. rank: k, the columns of C.
        scale: the fixed lambda; 0 switches the prior off.
        last_time: the end of the last bin.
    """

    def __init__(self, nodes: int, bins: int, rank: int, scale: float, last_time: float = 1.0) -> None:
        super().__init__()
        self.nodes, self.bins, self.scale, self.last_time = nodes, bins, scale, last_time
        self.c = nn.Parameter(torch.ones(1, 1))
        self.sigma = nn.Parameter(torch.empty(1).uniform_(1 / bins, 3 / bins))
        self.length = nn.Parameter(torch.empty(1).uniform_(1 / bins, max(1 - 1 / bins, 1 / bins)))
        self.Q = nn.Parameter(torch.rand(nodes, rank))

    @property
    def noise(self) -> Tensor:
        """sigma, clamped from below at 5 / B as in the official code."""
        return self.sigma.clamp(min=5 / self.bins)

    def _centres(self, like: Tensor) -> Tensor:
        return (torch.arange(self.bins, dtype=like.dtype, device=like.device) + 0.5) * (self.last_time / self.bins)

    def _kernel(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.exp(-(first[:, None] - second).square() / (2 * self.length.to(first.dtype).square()))

    def bin_factor(self) -> Tensor:
        """L [B + 1, B + 1], float64: in float32 the smooth kernel is not positive definite."""
        centres = self._centres(self.c.double())
        covariance = torch.block_diag(self.c.double().square(), self._kernel(centres, centres))
        eye = torch.eye(self.bins + 1, dtype=covariance.dtype, device=covariance.device)
        return torch.linalg.cholesky(covariance + JITTER * eye)

    def node_factor(self) -> Tensor:
        """C [N, k], rows sum to 1."""
        return torch.softmax(self.Q, dim=1)

    def forward(self, x0: Tensor, velocities: Tensor, batch: Tensor | None = None) -> Tensor:
        """Negative log density; 0 without a scale.

        Args:
            x0: centred initial positions [N, D]. velocities: centred [B, N, D].
            batch: node numbers [n] to which the quadratic form is confined (the normalising constant keeps all nodes,
                as in the official code).
        """
        if not self.scale:
            return x0.new_zeros(())
        z = torch.cat([x0[None], velocities]).double()
        bin_factor, node_factor, noise = self.bin_factor(), self.node_factor().double(), self.noise.double()
        own = node_factor
        if batch is not None:
            z, own = z[:, batch], node_factor[batch]
        over_bins, over_nodes = bin_factor.T @ bin_factor, node_factor.T @ node_factor
        with torch.no_grad():
            bin_values, bin_basis = torch.linalg.eigh(over_bins)
            values, basis = torch.linalg.eigh(over_nodes)
        size = (self.bins + 1) * self.nodes * x0.shape[1]
        # the eigenvalues as functions of the matrices: exact to first order, without derivatives of the bases
        of_bins = (bin_basis * (over_bins @ bin_basis)).sum(0)
        of_nodes = (basis * (over_nodes @ basis)).sum(0)
        spectrum = 1 + torch.outer(of_bins, of_nodes) / noise.square()
        log_det = 2 * size * math.log(self.scale) + size * noise.square().log() + x0.shape[1] * spectrum.log().sum()
        within = over_nodes if batch is None else own.T @ own
        projected = torch.einsum("ab,and,nk->bkd", bin_factor, z, own)
        with torch.no_grad():
            inside = (values, basis) if batch is None else torch.linalg.eigh(within)
            y = _solve(projected, bin_values, bin_basis, *inside, noise)
        # w^T R^-1 w as the maximum over y of 2 w^T y - y^T R y: its gradient is exact with y held fixed
        applied = y + torch.einsum("ab,bkd,kl->ald", over_bins, y, within) / noise.square()
        explained = 2 * (projected * y).sum() - (y * applied).sum()
        quadratic = (z.square().sum() - explained / noise.square()) / (noise.square() * self.scale**2)
        return ((quadratic + log_det + size * math.log(2 * math.pi)) / 2).sum().to(x0.dtype)

    @torch.no_grad()
    def expected_velocities(self, x0: Tensor, velocities: Tensor, times: Tensor) -> Tensor:
        """Mean of the process at other times [M]: velocities [M, N, D], without random noise."""
        z = torch.cat([x0[None], velocities]).double()
        bin_factor, node_factor, noise = self.bin_factor(), self.node_factor().double(), self.noise.double()
        projected = torch.einsum("ab,and,nk->bkd", bin_factor, z, node_factor)
        bases = (*torch.linalg.eigh(bin_factor.T @ bin_factor), *torch.linalg.eigh(node_factor.T @ node_factor))
        y = _solve(projected, *bases, noise)
        back = torch.einsum("ab,bkd,nk->and", bin_factor, y, node_factor)
        weights = (z - back / noise.square()) / noise.square()
        kernel = self._kernel(times.double(), self._centres(z))
        mean = torch.einsum("mb,bnd,nk,lk->mld", kernel, weights[1:], node_factor, node_factor)
        return mean.to(x0.dtype)


def _solve(
    projected: Tensor, bin_values: Tensor, bin_basis: Tensor, values: Tensor, basis: Tensor, noise: Tensor
) -> Tensor:
    """(I + A kron S / noise^2)^-1 w for A and S by their eigenvalues and bases; w [B + 1, k, D]."""
    spectrum = 1 + torch.outer(bin_values, values) / noise.square()
    rotated = torch.einsum("ba,bkd,kl->ald", bin_basis, projected, basis) / spectrum[..., None]
    return torch.einsum("ba,akd,lk->bld", bin_basis, rotated, basis)
