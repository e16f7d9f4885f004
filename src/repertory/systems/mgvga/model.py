"""MGVGA's networks: a deep GCN over and-inverter graphs, its two decoders, heads; the official parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from repertory.encoders import prefixes
from repertory.errors import DataError, UserError
from repertory.systems.mgvga.graph import TYPES, Batch

EPSILON = 1e-7
"""Added to every message (GENConv)."""


class Temperature(nn.Module):
    """The learned temperature of the softmax over fan-ins."""

    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.ones(1))


class GENConv(nn.Module):
    """Softmax aggregation of the fan-ins, the own vector added, and an MLP d -> 2d -> d (Li et al. 2020).

    Messages depend on their source alone, and nodes of a batch lie in blocks of equal fan-in: so each block is one
    dense softmax, and nothing is scattered. Parameters are named as torch_geometric's GENConv names them.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.aggr_module = Temperature()
        self.mlp = nn.Sequential(
            nn.Linear(dim, 2 * dim, bias=False), nn.LayerNorm(2 * dim), nn.ReLU(), nn.Identity(),
            nn.Linear(2 * dim, dim, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """[N, d] from [N, d]."""
        out: Tensor = self.mlp(self.aggregate(x, batch) + x)
        return out

    def aggregate(self, x: Tensor, batch: Batch) -> Tensor:
        """Per channel, the mean of relu(x_j) + eps over fan-ins j, weighted by softmax(t (relu(x_j) + eps)): [N, d]."""
        messages = (x.relu() + EPSILON).index_select(0, batch.source)
        sizes = [k * n for k, n in batch.blocks]
        made = []
        for (k, n), part in zip(batch.blocks, messages.split(sizes), strict=True):
            if k == 0:
                made.append(x.new_zeros(n, x.shape[1]))
            elif k == 1:
                made.append(part)
            elif k == 2:  # a softmax over two is a sigmoid of their difference
                one, other = part.chunk(2)
                gap = one - other
                made.append(torch.addcmul(other, gap, torch.sigmoid(self.aggr_module.t * gap)))
            else:
                blocks = rearrange(part, "(k n) d -> k n d", k=k)
                made.append((blocks * (self.aggr_module.t * blocks).softmax(0)).sum(0))
        return torch.cat(made)


class Layer(nn.Module):
    """x + GENConv(LayerNorm(x))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = GENConv(dim)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        out: Tensor = x + self.conv(self.norm(x), batch)
        return out


class Block(nn.Module):
    """A layer under the official name."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer = Layer(dim)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        out: Tensor = self.layer(x, batch)
        return out


class GraphEncoder(nn.Module):
    """Blocks with a ReLU after each but the last; messages run from inputs to outputs (section 3.2)."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(dim) for _ in range(layers - 1))
        self.conv = Block(dim)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        for block in self.layers:
            x = block(x, batch).relu()
        out: Tensor = self.conv(x, batch)
        return out


class GraphDecoder(nn.Module):
    """One block: predicts masked gates from what is around them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = Block(dim)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        out: Tensor = self.conv(x, batch)
        return out


class TokenEmbedding(nn.Module):
    """A vector for each node type; row 0 is padding."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.node_token_emb = nn.Embedding(len(TYPES) + 1, dim, padding_idx=0)

    def forward(self, types: Tensor) -> Tensor:
        """Types [N] in 0..3: [N, d]."""
        out: Tensor = self.node_token_emb(types + 1)
        return out


class MLP(nn.Module):
    """Dropout, Linear, ReLU, Linear, all of one width."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.fc1(self.dropout(x)).relu())
        return out


class TextAttention(nn.Module):
    """Attention of nodes to one text vector.

    A softmax over a single key is 1: the output is the value, projected, the same for every node and every number of
    heads, and queries and keys are never computed. Their gradients are zero, as they are officially.
    """

    def __init__(self, dim: int, text_width: int) -> None:
        super().__init__()
        self.linear_q = nn.Linear(dim, dim)
        self.linear_k, self.linear_v = nn.Linear(text_width, dim), nn.Linear(text_width, dim)
        self.linear_out = nn.Linear(dim, dim)

    def forward(self, text: Tensor) -> Tensor:
        """Text vectors [B, text_width]: what is added to every node of each circuit, [B, d]."""
        out: Tensor = self.linear_out(self.linear_v(text))
        return out


class CrossBlock(nn.Module):
    """x += Attention(LN(x), text); x += MLP(LN(x))."""

    def __init__(self, dim: int, text_width: int, dropout: float) -> None:
        super().__init__()
        self.attn_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = TextAttention(dim, text_width)
        self.mlp = MLP(dim, dropout)

    def forward(self, x: Tensor, text: Tensor, graph: Tensor) -> Tensor:
        said = self.attn(text)
        if torch.is_grad_enabled():  # zero, but there: weight decay treats these parameters as it officially does
            idle = (*self.attn.linear_q.parameters(), *self.attn.linear_k.parameters(), *self.attn_norm.parameters())
            said = said + 0 * torch.stack([p.sum() for p in idle]).sum()
        x = x + said.index_select(0, graph)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class AlignDecoder(nn.Module):
    """Cross-attention blocks from nodes to the circuit's text (section 3.4)."""

    def __init__(self, dim: int, text_width: int, layers: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CrossBlock(dim, text_width, dropout) for _ in range(layers))

    def forward(self, x: Tensor, text: Tensor, graph: Tensor) -> Tensor:
        """Nodes [N, d] of circuits ``graph`` [N] with texts [B, text_width]: [N, d]."""
        for block in self.layers:
            x = block(x, text, graph)
        return x


class TypeHead(nn.Module):
    """Logits of the four node types."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, len(TYPES))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(x)
        return out


class DegreeHead(nn.Module):
    """A number per node, unbounded."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.mlp = MLP(dim, dropout)
        self.classifier = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.classifier(self.mlp(x)), "n 1 -> n")


class Masked(NamedTuple):
    """What masked gate modelling says: type logits [M, 4] of the masked nodes; degrees [N] of all."""

    logits: Tensor
    fan_out: Tensor
    fan_in: Tensor


class MGVGA(nn.Module):
    """The pre-training model (sections 3.2 to 3.4), under the official parameter names.

    Args:
        dim: width of node vectors. layers: blocks of the encoder. text_width: of text vectors.
        cross_layers: blocks of the alignment decoder. dropout: in MLPs.
    """

    def __init__(
        self, dim: int = 64, layers: int = 7, text_width: int = 3584, cross_layers: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.token_emb = TokenEmbedding(dim)
        self.graph_encoder = GraphEncoder(dim, layers)
        self.graph_decoder = GraphDecoder(dim)
        self.vg_decoder = AlignDecoder(dim, text_width, cross_layers, dropout)
        self.mask_token, self.vg_mask_token = nn.Embedding(1, dim), nn.Embedding(1, dim)
        self.node_prediction_head, self.vg_node_prediction_head = TypeHead(dim), TypeHead(dim)
        # officially "indegree" counts a node's outgoing edges, and "outdegree" the incoming ones
        self.indegree_prediction_head = DegreeHead(dim, dropout)
        self.outdegree_prediction_head = DegreeHead(dim, dropout)
        self.apply(_initialised)

    @property
    def text_width(self) -> int:
        """Of the text vectors that the alignment takes."""
        block = self.vg_decoder.layers[0]
        assert isinstance(block, CrossBlock)
        return block.attn.linear_v.in_features

    def nodes(self, batch: Batch) -> Tensor:
        """Vectors of all nodes [N, d], in the batch's order."""
        out: Tensor = self.graph_encoder(self.token_emb(batch.types), batch)
        return out

    def mask_gates(self, batch: Batch, mask: Tensor) -> Masked:
        """Masked gate modelling: nodes in ``mask`` [N] are hidden after encoding, so the function is kept (3.3)."""
        x = torch.where(mask[:, None], self.mask_token.weight, self.nodes(batch))
        x = self.graph_decoder(x, batch)
        return Masked(
            self.node_prediction_head(x[mask]), self.indegree_prediction_head(x), self.outdegree_prediction_head(x)
        )

    def align(self, batch: Batch, mask: Tensor, text: Tensor) -> Tensor:
        """Alignment: nodes in ``mask`` [N] are hidden before encoding; their types are told from the rest and the
        text [B, text_width] (3.4): logits [M, 4]."""
        x = torch.where(mask[:, None], self.vg_mask_token.weight, self.token_emb(batch.types))
        x = self.graph_encoder(x, batch)
        # the blocks after the encoder see each node alone: hidden ones are all that is asked for
        x = self.vg_decoder(x[mask], text, batch.graph[mask])
        out: Tensor = self.vg_node_prediction_head(x)
        return out

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Vectors of nodes [N, d], in the order of the circuits, and of circuits [B, d], the mean over their nodes."""
        x = self.nodes(batch)
        return batch.restored(x), batch.mean(x)

    @torch.no_grad()
    def encode(self, types: np.ndarray | Tensor, edges: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of one circuit's nodes [n, d] and of the circuit [d].

        Args:
            types: [n] integers in 0..3 (input, output, AND, NOT). edges: [2, e] integers, fan-in and gate.

        Raises:
            DataError: types that are no integers in 0..3, no edge, or an edge to a node that is not there.
        """
        kinds, pairs = np.asarray(types), np.asarray(edges)
        if kinds.dtype.kind not in "iu" or kinds.ndim != 1 or not len(kinds):
            raise DataError(f"types: {kinds.dtype} of shape {kinds.shape}; integers [n] in 0..3 are needed")
        if not ((kinds >= 0) & (kinds < len(TYPES))).all():
            raise DataError(f"types: {kinds.min()}..{kinds.max()}; 0 input, 1 output, 2 AND, 3 NOT are known")
        if pairs.dtype.kind not in "iu" or pairs.ndim != 2 or len(pairs) != 2 or not pairs.size:
            raise DataError(f"edges: {pairs.dtype} of shape {pairs.shape}; integers [2, e] are needed, e at least 1")
        if not ((pairs >= 0) & (pairs < len(kinds))).all():
            raise DataError(f"edges: {pairs.min()}..{pairs.max()}; there are nodes 0..{len(kinds) - 1}")
        nodes, circuit = self(Batch.of([(kinds.astype(np.int64), pairs)]).to(self.mask_token.weight.device))
        return nodes, circuit[0]


def _initialised(module: nn.Module) -> None:
    """Normal with standard deviation 0.02, biases and padding 0, norms 1 and 0 (section 3.6)."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class QoRHead(nn.Module):
    """Quality of results after synthesis, of a circuit vector and a recipe.

    Args:
        dim: of circuit vectors. operations: kinds of steps. steps: of a recipe. outputs: results.
    """

    def __init__(self, dim: int, operations: int, steps: int, outputs: int, width: int = 64) -> None:
        super().__init__()
        self.operations = nn.Embedding(operations, 8)
        self.mlp = nn.Sequential(nn.Linear(dim + 8 * steps, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, circuits: Tensor, recipes: Tensor) -> Tensor:
        """Circuit vectors [R, d] and recipes [R, steps] of operations: [R, outputs], standardised by design."""
        steps = rearrange(self.operations(recipes), "r s e -> r (s e)")
        out: Tensor = self.mlp(torch.cat([circuits, steps], 1))
        return out


class EquivalenceHead(nn.Module):
    """Logit that two nodes compute the same function, whichever is named first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(3 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Node vectors [P, d] and [P, d]: [P]."""
        pair = torch.cat([one + other, (one - other).abs(), one * other], 1)
        return rearrange(self.mlp(pair), "p 1 -> p")


class Sizes(NamedTuple):
    """Of a state dict."""

    dim: int
    layers: int
    text_width: int
    cross_layers: int


def from_official_keys(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Sizes]:
    """Official weights under our names, which are the same but for wrappers in front, and the model's sizes.

    Raises:
        UserError: not such a state dict.
    """
    table = "token_emb.node_token_emb.weight"
    found = [key for key in state if key.endswith(table)]
    value = "vg_decoder.layers.0.attn.linear_v.weight"
    if not found or found[0].removesuffix(table) + value not in state:
        raise UserError(
            f"not an MGVGA checkpoint: expected {table} and {value}; prefixes found: {', '.join(prefixes(state))}"
        )
    front = found[0].removesuffix(table)
    weights = {key.removeprefix(front): value for key, value in state.items() if key.startswith(front)}

    def count(prefix: str) -> int:
        return len({key.split(".")[2] for key in weights if key.startswith(prefix)})

    return weights, Sizes(
        weights[table].shape[1], count("graph_encoder.layers.") + 1, weights[value].shape[1],
        count("vg_decoder.layers."),
    )  # fmt: skip
