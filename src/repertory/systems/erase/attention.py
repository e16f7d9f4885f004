"""PyG's graph attention with its weighted sum as a sparse product: no vector of every edge and head is held."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn import GATConv, GATv2Conv
from torch_geometric.utils import remove_self_loops


def sparse(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse CSR matrix, without PyTorch's remark that these are young."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Sparse CSR tensor support is in beta.*")
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def with_self_loops(edge_index: Tensor, sources: int, targets: int) -> EdgeIndex:
    """Edges [2, E] sorted by target, each target with one edge from itself, as the layers here take them.

    Args:
        sources: their number; the first of them are the targets. targets: their number.
    """
    edges, _ = remove_self_loops(edge_index)
    own = torch.arange(targets, device=edges.device).expand(2, -1)
    edges = torch.cat([edges, own], dim=1)
    edges = edges[:, edges[1].argsort(stable=True)]
    return EdgeIndex(edges, sparse_size=(sources, targets), sort_order="col")


class _WeightedSum(torch.autograd.Function):
    """sum_j alpha_ij x_j [targets, heads, channels] by one sparse product a head; so is its gradient."""

    @staticmethod
    def forward(
        ctx: Any, alpha: Tensor, x: Tensor, starts: Tensor, source: Tensor, ends: Tensor, target: Tensor, order: Tensor
    ) -> Tensor:
        ctx.save_for_backward(alpha, x, starts, source, ends, target, order)
        shape = (len(starts) - 1, len(x))
        return torch.stack(
            [sparse(starts, source, a.contiguous(), shape) @ h.contiguous()
             for a, h in zip(alpha.unbind(1), x.unbind(1), strict=True)], dim=1,
        )  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        alpha, x, starts, source, ends, target, order = ctx.saved_tensors
        grad, shape, zeros = grads[0], (len(starts) - 1, len(x)), alpha.new_zeros(len(source))
        pieces = [g.contiguous() for g in grad.unbind(1)]
        to_alpha = [
            torch.sparse.sampled_addmm(sparse(starts, source, zeros, shape), g, h.contiguous().T, beta=0.0).values()
            for g, h in zip(pieces, x.unbind(1), strict=True)
        ]
        to_x = [
            sparse(ends, target, a.contiguous(), shape[::-1]) @ g
            for a, g in zip(alpha[order].unbind(1), pieces, strict=True)
        ]
        return torch.stack(to_alpha, dim=1), torch.stack(to_x, dim=1), *[None] * 5


def _single(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _propagate(self: Any, edge_index: EdgeIndex, x: tuple[Tensor, Any], alpha: Tensor, size: Any = None) -> Tensor:
    """In place of the layer's own, for edges that come from ``with_self_loops``."""
    (starts, source), _ = edge_index.get_csc()
    (ends, target), order = edge_index.get_csr()
    with torch.autocast(alpha.device.type, enabled=False):  # there are no sparse products in half precision
        made: Tensor = _WeightedSum.apply(_single(alpha), _single(x[0]), starts, source, ends, target, order)
    return made


# each class has it in its own body: PyG writes a propagate of its own into a class that has none
class SparseGATConv(GATConv):
    """``GATConv`` (Velickovic et al. 2018)."""

    propagate = _propagate


class SparseGATv2Conv(GATv2Conv):
    """``GATv2Conv`` (Brody et al. 2022)."""

    propagate = _propagate
