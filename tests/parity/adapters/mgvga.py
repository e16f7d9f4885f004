"""MGVGA: the modules of the room on the fixtures' weights and inputs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from repertory.systems.mgvga.graph import Batch, masked, padded, with_inverters
from repertory.systems.mgvga.model import MGVGA, AlignDecoder, Block, GraphEncoder, TokenEmbedding
from repertory.systems.mgvga.objective import pretraining_loss
from tests.parity.runner import Fixture


def _under(f: Fixture, name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in f.state.items() if key.startswith(f"{name}.")}


def _batch(nodes: Tensor, mask: Tensor, edges: Tensor) -> Batch:
    """Padded rows as one graph; the edges as given, copies included."""
    return Batch.of([((n[m.bool()] - 1).numpy(), e.numpy()) for n, m, e in zip(nodes, mask, edges, strict=True)])


def graph_and_batch(f: Fixture) -> dict[str, Tensor]:
    graphs, masks, out = [], [], {}
    for i in range(f.config["graphs"]):
        given = (f.inputs[f"g{i}.{name}"].numpy() for name in ("node_type", "edge_index", "edge_type"))
        types, edges = with_inverters(*given)
        out |= {f"g{i}.nodes": torch.from_numpy(types), f"g{i}.edges": torch.from_numpy(edges)}
        graphs.append((types, edges))
        masks.append(masked(torch.tensor([len(types)]), f.config["mgm_mask_ratio"], [f.inputs[f"g{i}.permutation"]]))
    return out | {f"batch.{name}": value for name, value in padded(graphs, masks).items()}


def encoder(f: Fixture) -> dict[str, Tensor]:
    dim, layers = f.config["hidden"], f.config["layers"]
    embedding, network, first = TokenEmbedding(dim), GraphEncoder(dim, layers), Block(dim)
    embedding.load_state_dict(_under(f, "token_emb"))
    network.load_state_dict(_under(f, "graph_encoder"))
    first.load_state_dict(_under(f, "graph_encoder.layers.0" if layers > 1 else "graph_encoder.conv"))
    nodes, mask = f.inputs["nodes"], f.inputs["padding_mask"].bool()
    batch = _batch(nodes, mask, f.inputs["edges"])

    def in_rows(x: Tensor) -> Tensor:
        rows = x.new_zeros(*mask.shape, x.shape[1])
        rows[mask] = batch.restored(x)
        return rows

    x = embedding(batch.types)
    encoded = network(x, batch)
    return {
        "embedded": embedding(nodes - 1), "after_block0": in_rows(first(x, batch)), "encoded": in_rows(encoded),
        "pooled": batch.mean(encoded),
    }  # fmt: skip


def align_decoder(f: Fixture) -> dict[str, Tensor]:
    nodes, text = f.inputs["nodes"], f.inputs["text"]
    decoder = AlignDecoder(f.config["hidden"], f.config["text_dim"], f.config["layers"]).eval()
    decoder.load_state_dict(_under(f, "vg_decoder"))
    graph = torch.arange(len(nodes)).repeat_interleave(nodes.shape[1])
    return {"decoded": decoder(nodes.flatten(0, 1), text, graph).unflatten(0, nodes.shape[:2])}


def pretrain_loss(f: Fixture) -> dict[str, Tensor]:
    c, given = f.config, f.inputs
    model = MGVGA(c["hidden"], c["encoder_layers"], c["text_dim"], c["cross_layers"]).eval()
    model.load_state_dict(f.state)
    halves = []
    for part in ("", "vg_"):
        mask = given[f"{part}padding_mask"].bool()
        batch = _batch(given[f"input_{part}nodes"], mask, given[f"input_{part}edges"])
        if not part:
            degrees = (batch.ordered(given[f"input_{way}degree"][mask].float()) for way in ("in", "out"))
            batch = replace(batch, **dict(zip(("fan_out", "fan_in"), degrees, strict=True)))
        halves += [batch, batch.ordered(given[f"{part}node_mask"][mask].bool())]
    made = pretraining_loss(model, *halves, given["input_vg_verilogs"])
    made.loss.backward()
    grads = {f"grad.{name}": p.grad for name, p in model.named_parameters() if f"grad.{name}" in f.outputs}
    return grads | {
        "loss": made.loss, "node": made.node, "vg_node": made.vg_node,
        "indegree_huber": made.fan_out, "outdegree_huber": made.fan_in,
        "indegree_l1": made.fan_out_l1, "outdegree_l1": made.fan_in_l1,
    }  # fmt: skip


PARTS = {
    "graph_and_batch": graph_and_batch, "encoder": encoder, "align_decoder": align_decoder,
    "pretrain_loss": pretrain_loss,
}  # fmt: skip
