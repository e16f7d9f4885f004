"""The Gaussian process prior over initial positions and velocities, in its Kronecker form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

JITTER = 1e-5


class KroneckerPrior(nn.Module):
    """N(0, scale^2 (sigma^2 I + K K^T)) with K = L kron C kron I_D, over [x0; v_1; ...; v_B].

    L is the Cholesky factor of the covariance over x0 and the bins, C the softmax of ``Q``. In the eigenbases of L L^T
    and C^T C what is to be inverted is diagonal: nothing larger than [B + 1, B + 1] or [N, k] is held, and the
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

    def _bin_covariance(self) -> Tensor:
        centres = self._centres(self.c.double())
        covariance = torch.block_diag(self.c.double().square(), self._kernel(centres, centres))
        return covariance + JITTER * torch.eye(self.bins + 1, dtype=covariance.dtype, device=covariance.device)

    def bin_factor(self) -> Tensor:
        """L [B + 1, B + 1], float64: in float32 the smooth kernel is not positive definite."""
        return torch.linalg.cholesky(self._bin_covariance())

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
        if batch is not None:
            z = z[:, batch]
        node_factor, noise = self.node_factor().double(), self.noise.double().square()
        density: Tensor = _LogDensity.apply(z, self._bin_covariance(), node_factor, noise, batch, self.scale)
        return density.to(x0.dtype)

    @torch.no_grad()
    def expected_velocities(self, x0: Tensor, velocities: Tensor, times: Tensor) -> Tensor:
        """Mean of the process at other times [M]: velocities [M, N, D], without random noise."""
        z, node_factor = torch.cat([x0[None], velocities]).double(), self.node_factor().double()
        of_bins, of_nodes = torch.linalg.eigh(self._bin_covariance()), torch.linalg.eigh(node_factor.T @ node_factor)
        y = _solve(z, of_bins, of_nodes, node_factor, self.noise.double().square())
        kernel = self._kernel(times.double(), self._centres(z))
        return (node_factor @ torch.tensordot(kernel, node_factor.T @ y[1:], 1)).to(x0.dtype)


class _LogDensity(torch.autograd.Function):
    """Negative log density of z under N(0, scale^2 S), S as in ``_solve``, its gradients made in the same pass."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, covariance: Tensor, node_factor: Tensor, noise: Tensor, batch: Tensor | None, scale: float
    ) -> Tensor:  # fmt: skip
        dim, every = z.shape[2], slice(None) if batch is None else batch
        own = node_factor[every]
        of_bins, of_nodes = torch.linalg.eigh(covariance), torch.linalg.eigh(node_factor.T @ node_factor)
        y = _solve(z, of_bins, of_nodes if batch is None else torch.linalg.eigh(own.T @ own), own, noise) / scale**2
        seen = own.T @ y
        applied = torch.tensordot(covariance, seen, 1)
        (bin_values, bin_basis), (node_values, node_basis) = of_bins, of_nodes
        spectrum = noise + torch.outer(bin_values, node_values)
        kept = spectrum.numel()
        size = len(covariance) * len(node_factor)
        log_det = dim * (spectrum.log().sum() + (size - kept) * noise.log().sum())
        constant = dim * size * math.log(2 * math.pi * scale**2)
        for_bins = dim * bin_basis * (node_values / spectrum).sum(1) @ bin_basis.T
        for_nodes = dim * node_factor @ (node_basis * (bin_values[:, None] / spectrum).sum(0) @ node_basis.T)
        for_nodes[every] -= scale**2 * torch.einsum("and,akd->nk", y, applied)
        for_noise = dim * ((1 / spectrum).sum() + (size - kept) / noise) - scale**2 * y.square().sum()
        for_bins -= scale**2 * torch.einsum("akd,bkd->ab", seen, seen)
        ctx.save_for_backward(y, for_bins / 2, for_nodes, for_noise / 2)
        return ((z * y).sum() + log_det + constant) / 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (*(grads[0] * saved for saved in ctx.saved_tensors), None, None)


def _solve(
    z: Tensor, of_bins: tuple[Tensor, Tensor], of_nodes: tuple[Tensor, Tensor], node_factor: Tensor, noise: Tensor
) -> Tensor:
    """S^-1 z [B + 1, N, D] for S = noise I + A kron C C^T kron I, by the eigenvalues and bases of A and of C^T C."""
    (bin_values, bin_basis), (node_values, node_basis) = of_bins, of_nodes
    rotated = node_factor @ node_basis
    gain = bin_values[:, None] / (noise + torch.outer(bin_values, node_values))
    inside = gain[..., None] * torch.tensordot(bin_basis.T, rotated.T @ z, 1)
    return (z - rotated @ torch.tensordot(bin_basis, inside, 1)) / noise
