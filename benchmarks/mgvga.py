"""MGVGA: the encoder, and a whole step of pre-training, against padded batches and a loop over circuits, on one core.

The straightforward form pads nodes and edges, and calls torch_geometric's GENConv for one circuit after the other in
every block. Run with ``python -m benchmarks.mgvga``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch_geometric.nn import DeepGCNLayer, GENConv

from benchmarks.measure import compare
from repertory.data.circuits import Circuit, aigverse
from repertory.systems.mgvga.data import graph_of
from repertory.systems.mgvga.graph import Batch, Graph, masked, padded
from repertory.systems.mgvga.model import MGVGA
from repertory.systems.mgvga.objective import pretraining_loss

DIM, LAYERS, TEXT, HEADS = 64, 7, 3584, 8


def graphs() -> list[Graph]:
    """16 random circuits of about 60 to 3,000 nodes, inverters included."""
    random_aig, made = aigverse("generators").random_aig, []
    for number, nodes in enumerate(np.geomspace(60, 3000, 16)):
        network = random_aig(num_pis=max(4, int(nodes / 12)), num_gates=max(10, int(nodes / 2.65)), seed=number + 1)
        made.append(graph_of(Circuit.of_aig(network)))
    return made


def drawn(all_: list[Graph]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Both halves' masks, and texts."""
    torch.manual_seed(0)
    halves = [[masked(torch.tensor([len(types)]), ratio) for types, _ in all_] for ratio in (0.3, 0.7)]
    return halves[0], halves[1], torch.randn(len(all_), TEXT)


def network() -> MGVGA:
    torch.manual_seed(0)
    return MGVGA(DIM, LAYERS, TEXT)


def ours_encoder() -> Callable[[], Any]:
    model, batch = network(), Batch.of(graphs())

    def step() -> None:
        model.zero_grad()
        model.nodes(batch).square().mean().backward()

    return step


def ours_step() -> Callable[[], Any]:
    model, all_ = network(), graphs()
    first, second, text = drawn(all_)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)

    def step() -> None:
        batch = Batch.of(all_)
        masks = (batch.ordered(torch.cat(masks)) for masks in (first, second))
        loss = pretraining_loss(model, batch, next(masks), batch, next(masks), text).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class PaddedBlock(nn.Module):
    """One layer, circuit by circuit."""

    def __init__(self) -> None:
        super().__init__()
        conv = GENConv(DIM, DIM, aggr="softmax", t=1.0, learn_t=True, num_layers=2, norm="layer")
        self.layer = DeepGCNLayer(conv, nn.LayerNorm(DIM), act=None, block="res+", dropout=0.0)

    def forward(self, x: Tensor, edges: Tensor, mask: Tensor) -> Tensor:
        rows = [self.layer(x[i], edges[i]) for i in range(len(x))]
        return torch.stack(rows) * mask[:, :, None]


class PaddedEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PaddedBlock() for _ in range(LAYERS - 1))
        self.conv = PaddedBlock()

    def forward(self, x: Tensor, edges: Tensor, mask: Tensor) -> Tensor:
        for block in self.layers:
            x = block(x, edges, mask).relu()
        return self.conv(x, edges, mask)


class PaddedDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = PaddedBlock()


def attended(attention: Any, x: Tensor, text: Tensor) -> Tensor:
    """Multi-head attention of all nodes to the one text token, computed as such."""
    q, k, v = attention.linear_q(x), attention.linear_k(text[:, None]), attention.linear_v(text[:, None])
    q, k, v = (rearrange(part, "b n (h e) -> b h n e", h=HEADS) for part in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return attention.linear_out(rearrange(weights @ v, "b h n e -> b n (h e)"))


class PaddedModel(nn.Module):
    """The same parameters under the same names."""

    def __init__(self) -> None:
        super().__init__()
        own = network()
        self.token_emb, self.vg_decoder = own.token_emb, own.vg_decoder
        self.mask_token, self.vg_mask_token = own.mask_token, own.vg_mask_token
        self.node_prediction_head, self.vg_node_prediction_head = own.node_prediction_head, own.vg_node_prediction_head
        self.indegree_prediction_head = own.indegree_prediction_head
        self.outdegree_prediction_head = own.outdegree_prediction_head
        self.graph_encoder, self.graph_decoder = PaddedEncoder(), PaddedDecoder()
        self.load_state_dict(own.state_dict())

    def loss(self, b: dict[str, Tensor], text: Tensor, second: Tensor) -> Tensor:
        tokens, edges, mask = b["input_nodes"] - 1, b["input_edges"], b["padding_mask"]
        x = self.graph_encoder(self.token_emb(tokens), edges, mask)
        x = torch.where(b["node_mask"].bool()[:, :, None], self.mask_token.weight, x)
        x = self.graph_decoder.conv(x, edges, mask)
        labels = b["labels"] * b["node_mask"] + (b["node_mask"] == 0) * -100
        loss = F.cross_entropy(self.node_prediction_head(x).flatten(0, 1), labels.flatten())
        for way in ("in", "out"):
            head = getattr(self, f"{way}degree_prediction_head")
            said = head.classifier(head.mlp(x)).squeeze(-1)
            kept = mask.bool()
            loss = loss + 0.1 * F.huber_loss(said[kept], b[f"input_{way}degree"][kept].float())
        x = torch.where(second.bool()[:, :, None], self.vg_mask_token.weight, self.token_emb(tokens))
        x = self.graph_encoder(x, edges, mask)
        for block in self.vg_decoder.layers:
            x = x + attended(block.attn, block.attn_norm(x), text)
            x = x + block.mlp(block.mlp_norm(x))
        labels = b["labels"] * second + (second == 0) * -100
        return loss + F.cross_entropy(self.vg_node_prediction_head(x).flatten(0, 1), labels.flatten())


def padded_encoder() -> Callable[[], Any]:
    model, all_ = PaddedModel(), graphs()
    b = padded(all_, drawn(all_)[0])

    def step() -> None:
        model.zero_grad()
        x = model.graph_encoder(model.token_emb(b["input_nodes"] - 1), b["input_edges"], b["padding_mask"])
        x[b["padding_mask"].bool()].square().mean().backward()

    return step


def padded_step() -> Callable[[], Any]:
    model, all_ = PaddedModel(), graphs()
    first, second, text = drawn(all_)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)

    def step() -> None:
        b, other = padded(all_, first), padded(all_, second)
        loss = model.loss(b, text, other["node_mask"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    all_ = graphs()
    sizes = {
        "circuits": len(all_), "nodes": int(sum(len(types) for types, _ in all_)),
        "padded nodes": len(all_) * max(len(types) for types, _ in all_),
        "edges": int(sum(edges.shape[1] for _, edges in all_)), "dim": DIM, "layers": LAYERS,
    }  # fmt: skip
    forms = {
        "encoder, forward and backward": (ours_encoder, padded_encoder), "pre-training step": (ours_step, padded_step),
    }  # fmt: skip
    for name, (ours, straightforward) in forms.items():
        compare("mgvga", name, partial(ours), partial(straightforward), sizes, repeats=5)


if __name__ == "__main__":
    main()
