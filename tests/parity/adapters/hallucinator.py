"""The Hallucinator's fixtures."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from repertory.data.transforms.contrastive import CentreCrop
from repertory.objectives.contrastive import nt_xent, queue_logits
from repertory.systems.hallucinator.model import (
    Hallucinator,
    MoCo,
    Siamese,
    SimCLR,
    SimSiam,
    linear_head,
    mlp_head,
    official_state,
    simsiam_head,
)
from tests.parity.runner import Fixture


def _encoder(f: Fixture, name: str, head) -> nn.Module:
    """The stand-in of the fixtures: Linear, Tanh and the head ``fc``."""
    width, inputs = f.state[f"{name}.body.weight"].shape
    return nn.Sequential(
        OrderedDict(body=nn.Linear(inputs, width), act=nn.Tanh(), fc=head(width, f.config["dim"]))
    )  # fmt: skip


def _hallucinator(f: Fixture) -> Hallucinator | None:
    used = any("generator" in key for key in f.state)
    return Hallucinator(f.config["dim"]) if used else None


def _load(model: nn.Module, f: Fixture, prefix: str = "") -> None:
    model.load_state_dict(official_state({prefix + key: value for key, value in f.state.items()}))


def _ours(name: str) -> str:
    (made,) = official_state({name: torch.empty(0)})
    return made


def _gradients(model: Siamese, f: Fixture) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {k: parameters[_ours(k.removeprefix("grad."))].grad for k in f.outputs if k.startswith("grad.")}


def generator(f: Fixture) -> dict[str, Tensor]:
    hallucinator, made = Hallucinator(f.config["dim"]), {}
    holder = nn.ModuleDict({"hallucinator": hallucinator})
    _load(holder, f, "generator.")
    for j, ratio in enumerate(f.config["ratios"]):
        q, k = (f.inputs[name].clone().requires_grad_() for name in "qk")
        features = hallucinator(q, k, [ratio])
        hallucinator.zero_grad()
        features.backward(f.inputs[f"r{j}.cotangent"])
        made |= {f"r{j}.features": features, f"r{j}.grad_q": q.grad, f"r{j}.grad_k": k.grad}
        weights = {f"r{j}.grad_{n}_weight": f"generator.{n}.weight" for n in ("fc1", "fc2", "fc3")}
        parameters = dict(holder.named_parameters())
        made |= {name: parameters[_ours(key)].grad.clone() for name, key in weights.items() if name in f.outputs}
    return made


def moco_step(f: Fixture) -> dict[str, Tensor]:
    c = f.config
    model = MoCo(
        _encoder(f, "encoder_q", mlp_head if c["mlp"] else linear_head),
        _hallucinator(f),
        dim=c["dim"],
        queue_size=c["K"],
        momentum=c["m"],
        temperature=c["T"],
        enqueue="official" if c["enqueue"].startswith("official") else "once",
    )
    _load(model, f)
    pairs = model(f.inputs["x_q"], f.inputs["x_k"], f.inputs["ratio"].reshape(1))
    logits = queue_logits(*pairs[0], model.queue.keys, c["T"])
    loss = model.loss(pairs)
    model.advance(pairs)
    loss.backward()
    weights = model.state_dict()
    return {
        "logits": logits,
        "loss": loss,
        "queue": model.queue.keys.T,
        "queue_ptr": model.queue.pointer,
        **_gradients(model, f),
        **{k: weights[_ours(k)] for k in f.outputs if k.startswith("encoder_k.")},
    }


def simclr_loss(f: Fixture) -> dict[str, Tensor]:
    c = f.config
    head = mlp_head if "backbone.fc.0.weight" in f.state else linear_head
    model = SimCLR(
        _encoder(f, "backbone", head),
        _hallucinator(f),
        temperature=c["temperature"],
        base_temperature=c["base_temperature"],
        mask_duplicates=not c["twins"].startswith("kept"),
    )
    _load(model, f)
    pairs = model(*f.inputs["x"].chunk(2), f.inputs["ratio"].reshape(1))
    loss = model.loss(pairs)
    loss.backward()
    a, b = (f.inputs[f"plain_{name}"].clone().requires_grad_() for name in "ab")
    plain = nt_xent(a, b, c["plain_temperature"], c["base_temperature"])
    plain.backward()
    queries, keys = pairs[0]
    return {
        "features": torch.cat([queries, keys.repeat(len(queries) // len(keys), 1)]),
        "loss": loss,
        **_gradients(model, f),
        "plain_loss": plain,
        "plain_grad_a": a.grad,
    }


def simsiam_step(f: Fixture) -> dict[str, Tensor]:
    c = f.config
    model = SimSiam(_encoder(f, "encoder", simsiam_head), _hallucinator(f), c["dim"], c["pred_dim"])
    _load(model, f)
    pairs = model(f.inputs["x1"], f.inputs["x2"], f.inputs["ratios"])
    loss = model.loss(pairs)
    loss.backward()
    (p1, z2), (p2, z1) = pairs
    copies = len(p1) // len(z1)
    return {
        "p1": p1,
        "p2": p2,
        "z1": z1.repeat(copies, 1),
        "z2": z2.repeat(copies, 1),
        "loss": loss,
        **_gradients(model, f),
    }


def contrastive_crop(f: Fixture) -> dict[str, Tensor]:
    c, i = f.config, f.inputs
    crop = CentreCrop(size=8, box=tuple(c["box"]), alpha=c["alpha"], scale=tuple(c["scale"]), ratio=tuple(c["ratio"]))
    rows = zip(*(i[name].tolist() for name in ("size", "u_area", "u_ratio", "beta")), strict=True)
    return {
        "ijhw": torch.tensor(
            [crop.place(*size, *crop.shape(*size, area, aspect), beta) for size, area, aspect, beta in rows]
        )
    }


PARTS = {
    "generator": generator,
    "moco_step": moco_step,
    "simclr_loss": simclr_loss,
    "simsiam_step": simsiam_step,
    "contrastive_crop": contrastive_crop,
}
