"""Official checkpoints as fitted systems."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.encoders import prefixes
from repertory.errors import UserError, first_line
from repertory.systems.meta_dt.model import EMBEDDED, MetaDecisionTransformer, MetaDT, WorldModel

WORLD = ("context_encoder", "reward_decoder", "state_decoder")
STATISTICS = ("state_mean", "state_std", "return_scale", "target_return")


def _flat(state: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Nested state dicts as one, with dots."""
    found = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (Tensor, np.ndarray, float, int)):
            found[f"{prefix}{name}"] = torch.as_tensor(value)
    return found


def _read(path: Path) -> dict[str, Tensor]:
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                from safetensors.torch import load_file

                found |= load_file(file)
            elif file.suffix in (".pt", ".pth", ".ckpt", ".pkl", ""):
                found |= _flat(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # whatever torch refuses
            raise UserError(f"{file}: cannot be read safely: {first_line(error)}") from None
    return found


def read_official(
    checkpoint: str | Path | Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Configuration, assets and weights, read off the shapes of the two official files.

    Raises:
        UserError: the world model or the policy is missing, or a file cannot be read.
    """
    if isinstance(checkpoint, (str, Path)) and not Path(checkpoint).exists():
        raise UserError(f"{checkpoint}: no such file or folder")
    state = _read(Path(checkpoint)) if isinstance(checkpoint, (str, Path)) else _flat(checkpoint)
    given = {name: state.pop(name) for name in STATISTICS if name in state}
    world = {key: value for key, value in state.items() if key.split(".")[0] in WORLD}
    rest = {key: value for key, value in state.items() if key not in world}
    for what, key, part in (
        ("world model", "context_encoder.gru.weight_hh_l0", world),
        ("policy", "transformer.h.0.mlp.c_fc.weight", rest),
    ):
        if key not in part:
            raise UserError(
                f"no {what} ({key} is missing): give a folder with both official files, or both state dicts in one; "
                f"the keys begin with {', '.join(prefixes(state)) or 'nothing'}"
            )
    if not any(name in key for key in world for name in WORLD[1:]):
        raise UserError("the world model has neither reward_decoder nor state_decoder")
    try:
        model = MetaDT(WorldModel.from_official(world), MetaDecisionTransformer.from_official(rest))
    except (RuntimeError, KeyError) as error:
        raise UserError(f"not an official checkpoint of Meta-DT: {first_line(error)}") from None
    inner, hidden = rest["transformer.h.0.mlp.c_fc.weight"].shape[1], rest["embed_action.weight"].shape[0]
    if inner != 4 * hidden or rest["state_encoder.weight"].shape[0] != EMBEDDED:
        raise UserError(f"inner width {inner} and hidden width {hidden}: 1 to 4 is needed; use MetaDecisionTransformer")
    decoders = [name for name in ("reward", "state") if f"{name}_decoder.linear1.weight" in world]
    config = {
        "follow": "official",
        "decoder": "both" if len(decoders) == 2 else decoders[0],
        "context_dim": world["context_encoder.context_output.weight"].shape[0],
        "context_hidden": world["context_encoder.gru.weight_hh_l0"].shape[1],
        "hidden": hidden,
        "layers": len(model.policy.transformer.h),
    }
    state_dim = world["context_encoder.state_encoder.0.weight"].shape[1]
    assets = {
        "state_dim": state_dim,
        "action_dim": rest["embed_action.weight"].shape[1],
        "state_mean": given.get("state_mean", torch.zeros(state_dim)).double().numpy(),
        "state_std": given.get("state_std", torch.ones(state_dim)).double().numpy(),
        "return_scale": float(given.get("return_scale", 1.0)),
        "target_return": float(given.get("target_return", 0.0)),
        "max_ep_len": model.policy.max_ep_len,
    }
    return config, assets, dict(model.state_dict())
