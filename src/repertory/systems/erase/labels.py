"""From noisy labels and vectors to pseudo-labels: propagation on the graph, and similarity to class prototypes."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.models import LabelPropagation
from torch_geometric.utils import coalesce, remove_self_loops

from repertory.errors import ConfigError, DataError
from repertory.systems.erase.attention import sparse

Form = Literal["full", "sampled"]
"""The whole graph in every step, or training nodes with a sample of their neighbours."""


def column_normalised(
    edge_index: Tensor, nodes: int, among: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A[i, j] / deg(j), sparse [nodes, nodes]: a node receives from each neighbour j a share 1 / deg(j).

    Self-loops are left out, edges that occur twice count once.

    Args:
        edge_index: [2, edges] of an undirected graph, both directions listed.
        among: [nodes] bool: only edges with both ends there, degrees counted anew.
    """
    edges, _ = remove_self_loops(edge_index)
    if among is not None:
        edges = edges[:, among[edges[0]] & among[edges[1]]]
    rows, columns = coalesce(edges, num_nodes=nodes)
    degree = torch.bincount(rows, minlength=nodes)
    starts = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
    return sparse(starts, columns, degree.to(dtype).reciprocal()[columns], (nodes, nodes))


def propagated(scores: Tensor, adjacency: Tensor, times: int, alpha: float) -> Tensor:
    """``times`` steps Y <- (1 - alpha) A Y + alpha Y of scores [n, classes]; alpha weighs the old value."""
    if not 0 <= alpha <= 1 or times < 0:
        raise ConfigError(f"alpha={alpha}, T={times}: alpha in 0..1 and T from 0 are needed")
    for _ in range(times):
        scores = (1 - alpha) * (adjacency @ scores) + alpha * scores
    return scores


def one_hot(labels: Tensor, train: Tensor, nodes: int, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[nodes, classes]: 1 at the label [m] of each training node (positions ``train`` [m]), 0 elsewhere.

    Raises:
        DataError: a label lies outside 0 .. classes - 1.
    """
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        first = int(train[wrong][0])
        raise DataError(
            f"{int(wrong.sum())} training labels lie outside 0 to {classes - 1} (first: node {first}, "
            f"{int(labels[wrong][0])})"
        )
    made = torch.zeros(nodes, classes, dtype=dtype, device=labels.device)
    made[train, labels] = 1
    return made


def denoised(labels: Tensor, train: Tensor, edge_index: Tensor, nodes: int, classes: int, times: int, alpha: float,
             dtype: torch.dtype = torch.float32) -> Tensor:  # fmt: skip
    """Y_den [nodes, classes]: noisy labels [m] of training nodes propagated among training nodes alone; once.

    Args:
        train: [m] positions of training nodes. times, alpha: see ``propagated``.
    """
    among = torch.zeros(nodes, dtype=torch.bool, device=edge_index.device)
    among[train] = True
    adjacency = column_normalised(edge_index, nodes, among, dtype)
    return propagated(one_hot(labels, train, nodes, classes, dtype), adjacency, times, alpha)


def prototypes(z: Tensor, assigned: Tensor, classes: int) -> Tensor:
    """Mean vector of each class [classes, p] over z [m, p] with classes ``assigned`` [m]; 0 for an empty class."""
    total = z.new_zeros(classes, z.shape[1]).index_add(0, assigned, z)
    return total / torch.bincount(assigned, minlength=classes).clamp(min=1)[:, None]


def similarity(z: Tensor, prototypes: Tensor) -> Tensor:
    """|cos| [n, classes] of vectors and prototypes; 0 to a prototype of 0."""
    return (F.normalize(z) @ F.normalize(prototypes).mT).abs()


def semantic(clean: Tensor, similar: Tensor, beta: float) -> Tensor:
    """softmax(beta Y_den + (1 - beta) S) [n, classes]: what labels and vectors say together."""
    return torch.softmax(beta * clean + (1 - beta) * similar, dim=1)


class PseudoLabels(nn.Module):
    """What turns the vectors of one graph into scores of its nodes for each class (sections 3.2 and 3.4).

    Args:
        edge_index: [2, edges], both directions listed. nodes: their number.
        labels: [m] noisy, of the training nodes ``train`` [m]. classes: their number.
        alpha, beta, times: weight of the old value, of the denoised labels, and the number of propagations.
        form: ``sampled`` takes PyG's ``LabelPropagation`` (symmetric, clamped, alpha weighs the neighbours) and no
            softmax, as the official code for large graphs.
    """

    denoised: Tensor
    train_nodes: Tensor
    assigned: Tensor
    adjacency: Tensor

    def __init__(
        self, edge_index: Tensor, nodes: int, labels: Tensor, train: Tensor, classes: int, alpha: float, beta: float,
        times: int, form: Form = "full",
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 <= beta <= 1:
            raise ConfigError(f"beta={beta}: a number between 0 and 1 is needed")
        self.classes, self.alpha, self.beta, self.times, self.form = classes, alpha, beta, times, form
        if form == "full":
            clean = denoised(labels, train, edge_index, nodes, classes, times, alpha)
            self.register_buffer("adjacency", column_normalised(edge_index, nodes), persistent=False)
        else:
            edges = coalesce(remove_self_loops(edge_index)[0], num_nodes=nodes)
            degree = torch.bincount(edges[0], minlength=nodes)
            starts = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
            # undirected, so that it is its own transpose, which PyG asks for
            self.register_buffer(
                "adjacency", sparse(starts, edges[1], torch.ones(edges.shape[1]), (nodes, nodes)), persistent=False
            )
            clean = self._spread(one_hot(labels, train, nodes, classes), train)
        self.register_buffer("denoised", clean, persistent=False)
        self.register_buffer("train_nodes", train, persistent=False)
        self.register_buffer("assigned", clean[train].argmax(1), persistent=False)

    def _spread(self, scores: Tensor, train: Tensor) -> Tensor:
        made: Tensor = LabelPropagation(self.times, self.alpha)(scores, self.adjacency, mask=train)
        return made

    @property
    def empty(self) -> list[int]:
        """Classes that no training node has once the labels are denoised."""
        counts = torch.bincount(self.assigned, minlength=self.classes)
        return (counts == 0).nonzero()[:, 0].tolist()

    @torch.no_grad()
    def prototypes(self, z: Tensor) -> Tensor:
        """Of each class [classes, p], from vectors z [n, p] of all nodes."""
        return prototypes(z[self.train_nodes].float(), self.assigned, self.classes)

    @torch.no_grad()
    def forward(self, z: Tensor, prototypes: Tensor | None = None) -> Tensor:
        """Scores [n, classes], whose argmax is the pseudo-label, from vectors z [n, p] of all nodes.

        Args:
            prototypes: [classes, p]; None takes those of ``z``.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            similar = similarity(z, self.prototypes(z) if prototypes is None else prototypes)
            if self.form == "full":
                return propagated(semantic(self.denoised, similar, self.beta), self.adjacency, self.times, self.alpha)
            return self._spread(self.beta * self.denoised + (1 - self.beta) * similar, self.train_nodes)
