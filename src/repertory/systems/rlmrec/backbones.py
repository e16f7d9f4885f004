"""The six recommenders that texts are aligned with: how embeddings propagate, and what each is trained by.

``propagate(nodes)`` is inference: all edges, no noise. ``forward(nodes, batch, draws)`` gives the embeddings of a
training step and the backbone's own terms of the loss. ``nodes`` [N, d] are the initial embeddings, users first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.systems.rlmrec.alignment import Triples
from repertory.systems.rlmrec.graph import Bipartite, Edges
from repertory.systems.rlmrec.objective import Distinct, bpr, info_nce, log_sum_exp

Augmentation = Literal["edge_drop", "node_drop", "random_walk"]


@dataclass
class Draws:
    """What is random in a step, where it is not to be drawn: each field replaces its draw.

    Attributes:
        masked: numbers of the nodes that Gen masks.
        kept: which entries of A_hat remain: one [E] per view (LightGCN and GCCF: one).
        noise: uniform numbers [N, d], a list over layers per view (SimGCL).
        graphs: the encoder's and the decoder's graph with their entries (AutoCF).
    """

    masked: Tensor | None = None
    kept: list[Tensor] = field(default_factory=list)
    noise: list[list[Tensor]] = field(default_factory=list)
    graphs: tuple[tuple[Edges, Tensor], tuple[Edges, Tensor]] | None = None


def _xavier(*size: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(*size)))


class Backbone(nn.Module):
    """Embeddings of users and items, and their graph.

    Args:
        graph: of the training interactions.
        dim: d.
    """

    negatives = True
    """Whether it is trained with negative items."""

    def __init__(self, graph: Bipartite, dim: int) -> None:
        super().__init__()
        self.graph, self.dim = graph, dim
        self.user_embeds, self.item_embeds = _xavier(graph.users, dim), _xavier(graph.items, dim)

    @property
    def width(self) -> int:
        """D: length of a propagated embedding."""
        return self.dim

    def nodes(self) -> Tensor:
        """Initial embeddings [N, d]."""
        return torch.cat([self.user_embeds, self.item_embeds])

    def propagate(self, nodes: Tensor) -> Tensor:
        """Embeddings [N, D] of inference."""
        raise NotImplementedError

    def forward(self, nodes: Tensor, batch: Triples, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings [N, D] of a training step, and weighted terms of the loss."""
        raise NotImplementedError

    def memory(self) -> nn.Module | None:
        """What lasts from step to step beside the weights; None: nothing."""
        return None

    def _pairs(self, embeddings: Tensor, batch: Triples) -> Tensor:
        users, items = embeddings[: self.graph.users], embeddings[self.graph.users :]
        return bpr(users[batch.users], items[batch.positives], items[batch.negatives])


class LightGCN(Backbone):
    """The sum of L + 1 layers E_{l+1} = A_hat E_l; in training, entries of A_hat are dropped (He et al. 2020).

    Args:
        layers: L. keep_rate: with which an entry is kept.
    """

    def __init__(self, graph: Bipartite, dim: int, layers: int, keep_rate: float = 1.0) -> None:
        super().__init__(graph, dim)
        self.depth, self.keep_rate = layers, keep_rate

    def layers(self, nodes: Tensor, adjacency: Iterable[Tensor | None]) -> list[Tensor]:
        """E_0 .. E_L, each with its own entries of the adjacency."""
        made = [nodes]
        for values in adjacency:
            made.append(self.graph.propagate(made[-1], values))
        return made

    def combine(self, layers: list[Tensor]) -> Tensor:
        """Of E_0 .. E_L."""
        return torch.stack(layers).sum(0)

    def propagate(self, nodes: Tensor) -> Tensor:
        return self.combine(self.layers(nodes, [None] * self.depth))

    def forward(self, nodes: Tensor, batch: Triples, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        kept = self.graph.drop_edges(self.keep_rate, draws.kept[0] if draws.kept else None)
        embeddings = self.combine(self.layers(nodes, [kept] * self.depth))
        return embeddings, {"bpr": self._pairs(embeddings, batch)}


class GCCF(LightGCN):
    """All layers side by side, on a graph with self-loops (Chen et al. 2020).

    The official code has a matrix per layer that it does not use, but which its L2 term shrinks: it is kept.
    """

    def __init__(self, graph: Bipartite, dim: int, layers: int, keep_rate: float = 1.0) -> None:
        super().__init__(graph, dim, layers, keep_rate)
        self.unused = nn.ParameterList([_xavier(dim, dim) for _ in range(layers)])

    @property
    def width(self) -> int:
        return self.dim * (self.depth + 1)

    def combine(self, layers: list[Tensor]) -> Tensor:
        return torch.cat(layers, dim=1)


class _TwoViews(LightGCN):
    """LightGCN with contrast between two disturbed views of users and items.

    Args:
        cl_weight, cl_temperature: of the contrast.
    """

    contrasted = 2
    """How many members of a triple are contrasted: user and positive item, or also the negative item."""

    def __init__(
        self, graph: Bipartite, dim: int, layers: int, keep_rate: float, cl_weight: float, cl_temperature: float
    ) -> None:
        super().__init__(graph, dim, layers, keep_rate)
        self.cl_weight, self.cl_temperature = cl_weight, cl_temperature

    def view(self, nodes: Tensor, draws: Draws, number: int) -> Tensor:
        """A disturbed view [N, d]."""
        raise NotImplementedError

    def forward(self, nodes: Tensor, batch: Triples, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = (self.view(nodes, draws, number) for number in (0, 1))
        embeddings = self.propagate(nodes)
        users = self.graph.users
        total = nodes.new_zeros(())
        for side, numbers in zip(("user", "item", "item"), batch[: self.contrasted], strict=False):
            of = slice(None, users) if side == "user" else slice(users, None)
            some = Distinct(numbers)
            total = total + info_nce(
                first[of][some.numbers], second[of][some.numbers], second[of], self.cl_temperature, some.counts
            )
        return embeddings, {"bpr": self._pairs(embeddings, batch), "cl": self.cl_weight / len(batch) * total}


class SGL(_TwoViews):
    """Views that lack edges or nodes (Wu et al. 2021).

    Args:
        augmentation: ``edge_drop`` (one draw a view), ``random_walk`` (one a layer) or ``node_drop``.
    """

    contrasted = 3

    def __init__(self, *args: Any, augmentation: Augmentation = "edge_drop") -> None:
        super().__init__(*args)
        self.augmentation = augmentation

    def view(self, nodes: Tensor, draws: Draws, number: int) -> Tensor:
        kept = draws.kept[number] if draws.kept else None
        if self.augmentation == "node_drop":
            adjacency = [self.graph.drop_nodes(self.keep_rate, kept)] * self.depth
        elif self.augmentation == "edge_drop":
            adjacency = [self.graph.drop_edges(self.keep_rate, kept)] * self.depth
        else:
            adjacency = [
                self.graph.drop_edges(self.keep_rate, None if kept is None else kept[layer])
                for layer in range(self.depth)
            ]
        return self.combine(self.layers(nodes, adjacency))


class SimGCL(_TwoViews):
    """Views with noise in every layer (Yu et al. 2022).

    Args:
        eps: length of the noise.
    """

    def __init__(self, *args: Any, eps: float = 0.9) -> None:
        super().__init__(*args)
        self.eps = eps

    def view(self, nodes: Tensor, draws: Draws, number: int) -> Tensor:
        made = [nodes]
        for layer in range(self.depth):
            e = self.graph.propagate(made[-1])
            drawn = draws.noise[number][layer] if draws.noise else torch.rand_like(e)
            made.append(e + self.eps * e.sign() * F.normalize(drawn, dim=1))
        return self.combine(made)


class DCCF(Backbone):
    """Four channels a layer: the graph, intents, and graphs weighted by either (Ren et al. 2023).

    Args:
        layers: L. intents: K of each side.
        cl_weight, cl_temperature: of the contrast between the graph and the other channels.
    """

    def __init__(
        self, graph: Bipartite, dim: int, layers: int, intents: int, cl_weight: float, cl_temperature: float
    ) -> None:
        super().__init__(graph, dim)
        self.depth, self.cl_weight, self.cl_temperature = layers, cl_weight, cl_temperature
        self.user_intent, self.item_intent = _xavier(dim, intents), _xavier(dim, intents)

    def channels(self, nodes: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
        """Embeddings [N, d], and of each layer its channels: graph, intents, and the two adaptive graphs."""
        made, channels = [nodes], []
        for _ in range(self.depth):
            e = made[-1]
            gnn = self.graph.propagate(e)
            of = self.graph.users
            intent = torch.cat([
                (part @ intents).softmax(1) @ intents.T
                for part, intents in ((e[:of], self.user_intent), (e[of:], self.item_intent))
            ]).to(e.dtype)  # fmt: skip
            channels.append([gnn, intent, self._adapted(gnn, e), self._adapted(intent, e)])
            made.append(torch.stack([*channels[-1], e]).sum(0))
        return torch.stack(made).sum(0), channels

    def _adapted(self, judge: Tensor, e: Tensor) -> Tensor:
        """``e`` propagated along edges weighted by the similarity of their ends according to ``judge`` [N, d]."""
        graph, judge = self.graph, F.normalize(judge, dim=1)
        weights = ((judge[graph.rows] * judge[graph.cols]).sum(1) + 1) / 2
        return graph.apply_to(weights / graph.row_sums(weights)[graph.rows], e)

    def propagate(self, nodes: Tensor) -> Tensor:
        return self.channels(nodes)[0]

    def forward(self, nodes: Tensor, batch: Triples, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        embeddings, channels = self.channels(nodes)
        users = batch.users.unique()
        total = nodes.new_zeros(())
        for some in (users, batch.positives.unique() + self.graph.users):
            for gnn, *others in channels:
                for other in others:
                    total = total + info_nce(gnn[some], other[some], other[some], self.cl_temperature)
        contrast = self.cl_weight / len(users) * total  # terms of items too are divided by the number of users
        return embeddings, {"bpr": self._pairs(embeddings, batch), "cl": contrast}


class GraphTransformer(nn.Module):
    """Attention along edges, without scaling (Xia et al. 2023)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = _xavier(dim, dim), _xavier(dim, dim), _xavier(dim, dim)

    def forward(self, edges: Edges, x: Tensor) -> Tensor:
        """[N, d]: for each row the mean of values of its columns, weighted by exp(clamp(q . k, -10, 10))."""
        query, key, value = ((x @ w).to(x.dtype).chunk(self.heads, dim=1) for w in (self.query, self.key, self.value))
        made = []
        for q, k, v in zip(query, key, value, strict=True):
            weights = (q[edges.rows] * k[edges.cols]).sum(1).clamp(-10, 10).exp()
            made.append(edges.apply_to(weights / (edges.row_sums(weights) + 1e-8)[edges.rows], v))
        return torch.cat(made, dim=1)


class AutoCF(Backbone):
    """A masked graph autoencoder: edges around seeds are hidden from the encoder (Xia et al. 2023).

    Args:
        gcn_layers, transformer_layers, heads: of encoder and decoder.
        seeds: nodes around which edges are hidden. depth: how far around them.
        fix_steps: steps that share their graphs.
        ssl_reg: weight of the spread among users and among items.
    """

    negatives = False

    def __init__(
        self, graph: Bipartite, dim: int, gcn_layers: int, transformer_layers: int, heads: int, seeds: int, depth: int,
        fix_steps: int, ssl_reg: float,
    ) -> None:  # fmt: skip
        super().__init__(graph, dim)
        self.gcn_layers, self.seeds, self.depth = gcn_layers, min(seeds, graph.nodes), depth
        self.fix_steps, self.ssl_reg = fix_steps, ssl_reg
        self.transformer = nn.ModuleList([GraphTransformer(dim, heads) for _ in range(transformer_layers)])

    def encode(self, nodes: Tensor, encoder: tuple[Edges, Tensor], decoder: Edges) -> Tensor:
        """The sum of all layers, on the encoder's graph and then on the decoder's."""
        edges, values = encoder
        made = [nodes]
        for _ in range(self.gcn_layers):
            made.append(edges.apply_to(values, made[-1]))
        for layer in self.transformer:
            made.append(layer(decoder, made[-1]))
        return torch.stack(made).sum(0)

    def propagate(self, nodes: Tensor) -> Tensor:
        return self.encode(nodes, (self.graph, self.graph.adjacency), self.graph)

    def forward(self, nodes: Tensor, batch: Triples, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        encoder, decoder = draws.graphs or self.masked_graphs(self.scores(nodes.detach()).topk(self.seeds).indices)
        embeddings = self.encode(nodes, encoder, decoder[0])
        users, items = embeddings[: self.graph.users], embeddings[self.graph.users :]
        rec = -(users[batch.users] * items[batch.positives]).sum(1).mean()
        some, chosen = Distinct(batch.users), Distinct(batch.positives)
        own = [
            log_sum_exp(of[distinct.numbers], of, torch.ones_like(distinct.counts)) / len(distinct.numbers)
            for of, distinct in ((users, some), (items, chosen))
        ]
        across = log_sum_exp(users[some.numbers], items, some.counts) / len(batch)
        return embeddings, {"rec": rec, "cl": self.ssl_reg * (own[0] + own[1]) + across}

    def scores(self, nodes: Tensor, uniform: Tensor | None = None) -> Tensor:
        """How alike each node [N] and its neighbourhood of two hops are, as log sigmoid, plus Gumbel noise.

        Args:
            uniform: draws [N] in 0..1 for the noise.
        """
        graph = self.graph
        ones = torch.ones_like(graph.adjacency)
        degree = graph.row_sums(ones)[:, None]
        first = graph.apply_to(ones, nodes) - nodes
        second = (graph.apply_to(ones, first) - first) - degree * nodes
        count = degree + (graph.apply_to(ones, degree) - degree) - degree
        around = (first + second) / (count + 1e-8)
        alike = (F.normalize(around, dim=1) * F.normalize(nodes, dim=1)).sum(1)
        drawn = torch.rand_like(alike) if uniform is None else uniform
        return F.logsigmoid(alike) - torch.log(-torch.log(drawn.clamp_min(1e-8)))

    def masked_graphs(
        self, seeds: Tensor, generator: torch.Generator | None = None
    ) -> tuple[tuple[Edges, Tensor], tuple[Edges, Tensor]]:
        """The encoder's graph (without edges around ``seeds``, normalised) and the decoder's (ones), with entries.

        Args:
            seeds: numbers of nodes. generator: on the CPU; None takes the global one.
        """
        graph, device = self.graph, self.graph.rows.device
        left = torch.ones(len(graph), dtype=torch.bool, device=device)
        front = torch.zeros(graph.nodes, dtype=torch.bool, device=device)
        front[seeds] = True
        hidden = front.clone()
        for hop in range(self.depth):
            touched = graph.touching(front) & left
            if hop < self.depth - 1:
                front = torch.zeros_like(front)
                front[graph.rows[touched]] = front[graph.cols[touched]] = True
                hidden |= front
            left &= ~touched
        rows, cols = graph.rows[left], graph.cols[left]
        encoder = Edges(rows, cols, graph.nodes)
        hidden |= (torch.rand(graph.nodes, generator=generator) < 0.2).to(device)
        among = hidden.nonzero()[:, 0]
        drawn = among[torch.randint(len(among), (2, len(graph)), generator=generator).to(device)]
        own = torch.arange(graph.nodes, device=device)
        decoder = Edges(
            torch.cat([rows, drawn[0], drawn[1], own]), torch.cat([cols, drawn[1], drawn[0], own]), graph.nodes
        )
        return (encoder, encoder.normalised(1e-12)), (decoder, torch.ones(len(decoder), device=device))

    def memory(self) -> nn.Module:
        return MaskedGraphs(self)


class MaskedGraphs(nn.Module):
    """AutoCF's graphs, which ``fix_steps`` steps share; they follow from their seeds and the seed of their draws."""

    seeds: Tensor
    drawn: Tensor

    def __init__(self, backbone: AutoCF) -> None:
        super().__init__()
        self._backbone = [backbone]  # not a submodule: its weights are the model's
        self.register_buffer("seeds", torch.zeros(backbone.seeds, dtype=torch.long))
        self.register_buffer("drawn", torch.zeros((), dtype=torch.long))
        self._made: tuple[int, Any] = (-1, None)

    def draws(self, step: int) -> tuple[Draws, dict[str, Tensor]]:
        """What step ``step`` takes, and the term of the loss that new seeds bring."""
        backbone, terms = self._backbone[0], {}
        if step % backbone.fix_steps == 0:
            scores = backbone.scores(backbone.nodes())
            terms["local"] = -scores.mean()
            self.seeds.copy_(scores.detach().topk(len(self.seeds)).indices)
            self.drawn.fill_(torch.randint(1 << 62, (1,)).item())
        number = int(self.drawn)
        if self._made[0] != number:
            generator = torch.Generator().manual_seed(number)
            self._made = (number, backbone.masked_graphs(self.seeds, generator))
        return Draws(graphs=self._made[1]), terms
