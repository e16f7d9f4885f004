"""The bipartite graph of users and items: sparse patterns, products with them, normalised adjacency."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

with warnings.catch_warnings(action="ignore"):  # said once by the process: that CSR is in beta
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0]), (1, 1))


class Edges(nn.Module):
    """Where the entries of a sparse matrix [N, N] are, by row and then column; each place once.

    Args:
        rows, cols: [E], in any order, with repetitions.
        nodes: N.
    """

    rows: Tensor
    cols: Tensor
    starts: Tensor
    turned: Tensor
    turned_rows: Tensor
    turned_starts: Tensor

    def __init__(self, rows: Tensor, cols: Tensor, nodes: int) -> None:
        super().__init__()
        self.nodes = nodes
        places = torch.unique(rows * nodes + cols)
        rows, cols = places // nodes, places % nodes
        turned = torch.argsort(cols, stable=True)
        for name, value in {
            "rows": rows,
            "cols": cols,
            "starts": _starts(rows, nodes),
            "turned": turned,  # the entries by column and then row: those of the transpose
            "turned_rows": rows[turned].int(),
            "turned_starts": _starts(cols[turned], nodes),
            "narrow_cols": cols.int(),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def __len__(self) -> int:
        return len(self.rows)

    def apply_to(self, values: Tensor, x: Tensor) -> Tensor:
        """The product [N, d] of the matrix with ``values`` [E] and ``x`` [N, d], differentiable in both."""
        made: Tensor = _Product.apply(values, x.to(values.dtype), self)
        return made

    def row_sums(self, values: Tensor) -> Tensor:
        """[N]."""
        return values.new_zeros(self.nodes).index_add(0, self.rows, values)

    def touching(self, chosen: Tensor) -> Tensor:
        """Which entries [E] begin or end at one of the ``chosen`` [N] (booleans)."""
        return chosen[self.rows] | chosen[self.cols]

    def normalised(self, epsilon: float = 0.0) -> Tensor:
        """Entries [E] of D^-1/2 A D^-1/2, where A holds ones; 0 where nothing is."""
        degree = self.row_sums(torch.ones(len(self), device=self.rows.device)) + epsilon
        scale = torch.where(degree > 0, degree.rsqrt(), 0.0)
        return scale[self.rows] * scale[self.cols]


def _starts(rows: Tensor, nodes: int) -> Tensor:
    counts = torch.bincount(rows, minlength=nodes)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()


def _sparse(starts: Tensor, cols: Tensor, values: Tensor, x: Tensor) -> Tensor:
    size = (len(starts) - 1, len(x))
    with torch.autocast(x.device.type, enabled=False):  # sparse products know no bfloat16
        return torch.sparse_csr_tensor(starts, cols, values, size, check_invariants=False) @ x


class _Product(torch.autograd.Function):
    """The gradient needs the transpose, whose pattern is known: nothing is sorted or converted in a step."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, edges: Edges) -> Tensor:
        ctx.edges = edges
        ctx.save_for_backward(values, x)
        return _sparse(edges.starts, edges.narrow_cols, values, x)  # type: ignore[arg-type]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, x = ctx.saved_tensors
        edges, grad = ctx.edges, grad.contiguous()
        of_values = of_x = None
        if ctx.needs_input_grad[0]:
            of_values = (grad[edges.rows] * x[edges.cols]).sum(1)
        if ctx.needs_input_grad[1]:
            of_x = _sparse(edges.turned_starts, edges.turned_rows, values[edges.turned], grad)
        return of_values, of_x, None


class Bipartite(Edges):
    """Users and items as one symmetric graph; users are nodes 0 .. U - 1, items the rest.

    Args:
        users, items: their numbers U, I.
        pairs: [interactions, 2] of user and item.
        loops: also an edge from every node to itself, before normalising (GCCF).
    """

    adjacency: Tensor

    def __init__(self, users: int, items: int, pairs: Tensor, loops: bool = False) -> None:
        user, item = pairs[:, 0], pairs[:, 1] + users
        own = torch.arange(users + items if loops else 0)
        super().__init__(torch.cat([user, item, own]), torch.cat([item, user, own]), users + items)
        self.users, self.items = users, items
        self.register_buffer("adjacency", self.normalised(), persistent=False)

    def propagate(self, x: Tensor, values: Tensor | None = None) -> Tensor:
        """A_hat x, with other entries in place of A_hat's where they are given."""
        return self.apply_to(self.adjacency if values is None else values, x)

    def drop_edges(self, rate: float, kept: Tensor | None = None) -> Tensor:
        """Entries of A_hat, each kept with probability ``rate`` and then not rescaled.

        Args:
            kept: [E] booleans to take in place of a draw.
        """
        if kept is None:
            if rate >= 1:
                return self.adjacency
            kept = torch.rand(len(self), device=self.rows.device) < rate
        return self.adjacency * kept

    def drop_nodes(self, rate: float, kept: Tensor | None = None) -> Tensor:
        """Entries of A_hat between nodes that are kept, each with probability ``rate``."""
        kept = torch.rand(self.nodes, device=self.rows.device) < rate if kept is None else kept
        return self.adjacency * ~self.touching(~kept)
