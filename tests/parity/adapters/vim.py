"""Vision Mamba's fixtures."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repertory.systems.vim.model import Mixer, VisionMamba
from repertory.systems.vim.official import load_official, options
from repertory.systems.vim.scan import selective_scan
from tests.parity.runner import Fixture


def scan(f: Fixture) -> dict[str, Tensor]:
    i = {name: value.requires_grad_() for name, value in f.inputs.items() if name != "grad_out"}
    u, delta, A, B, C = (i[name] for name in ("u", "delta", "A", "B", "C"))
    D, z, bias = (i.get(name) for name in ("D", "z", "delta_bias"))
    y, last = selective_scan(u, delta, A, B, C, D, z, bias, f.config["delta_softplus"])
    names = [name.removeprefix("grad.") for name in f.outputs if name.startswith("grad.")]
    grads = torch.autograd.grad(y, [i[name] for name in names], f.inputs["grad_out"])
    made = {"y": y, "last_state": last, "y_plain": selective_scan(u, delta.abs(), A, B, C)[0]}
    return {
        **{name: value for name, value in made.items() if name in f.outputs},
        **{f"grad.{name}": grad for name, grad in zip(names, grads, strict=True)},
    }


def mixer(f: Fixture) -> dict[str, Tensor]:
    c = f.config
    rank = c.get("dt_rank")
    model = Mixer(
        c["d_model"],
        c["d_state"],
        c["d_conv"],
        c["expand"],
        None if rank == "auto" else rank,
        c["bimamba_type"] or "none",
        c["if_divide_out"],
        c["init_layer_scale"],
    )
    model.load_state_dict(f.state)
    x = f.inputs["x"].requires_grad_()
    y = model(x)
    y.backward(f.inputs["grad_out"])
    return {"y": y, **_gradients(f, {"x": x, **dict(model.named_parameters())})}


def model(f: Fixture) -> dict[str, Tensor]:
    vim = load_official(VisionMamba(**options(f.config)), {"model": f.state}, follow="official").eval()
    features = vim.features(f.inputs["image"])
    logits = vim.logits(features)
    loss = F.cross_entropy(logits, f.inputs["label"])
    loss.backward()
    made = {"features": features, "logits": logits, "loss": loss}
    return {
        **{name: value for name, value in made.items() if name in f.outputs},
        **_gradients(f, dict(vim.named_parameters())),
    }


def _gradients(f: Fixture, weights: dict[str, Any]) -> dict[str, Tensor]:
    names = [name.removeprefix("grad.") for name in f.outputs if name.startswith("grad.")]
    return {f"grad.{name}": weights[name].grad for name in names}


PARTS = {
    "selective_scan": scan,
    "mixer_none": mixer,
    "mixer_v1": mixer,
    "mixer_v2": mixer,
    "model_mid_cls": model,
    "model_double_cls": model,
    "model_head_cls": model,
    "model_no_cls": model,
}
