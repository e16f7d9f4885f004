"""Official checkpoints and options: what they are called there, and how a table of positions is resized."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from repertory.encoders import prefixes
from repertory.errors import ConfigError, DataError
from repertory.systems.vim.model import Placement, VisionMamba, class_places

Follow = Literal["paper", "official"]

NAMES = {
    "img_size": "image_size", "patch_size": "patch_size", "stride": "stride", "channels": "in_channels",
    "num_classes": "classes", "embed_dim": "width", "depth": "depth", "d_state": "d_state", "d_conv": "d_conv",
    "expand": "expand", "bimamba_type": "bimamba_type", "if_bidirectional": "if_bidirectional",
    "if_divide_out": "if_divide_out", "init_layer_scale": "init_layer_scale", "if_abs_pos_embed": "positions",
    "if_rope": "rope", "rms_norm": "rms_norm", "residual_in_fp32": "residual_in_fp32", "drop_path_rate": "drop_path",
}  # fmt: skip
"""Official keyword arguments of the model, and ours."""
POOLS = {"none": "last", "mean": "mean", "max": "max"}
"""By ``final_pool_type``; it is ignored where there is a class token."""


def options(official: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :class:`VisionMamba` from official ones.

    Raises:
        ConfigError: two placements of the class token at once, or an unknown pooling.
    """
    flags = {
        "middle": official.get("use_middle_cls_token"), "double": official.get("use_double_cls_token"),
        "random": official.get("if_random_cls_token_position"),
    }  # fmt: skip
    asked: list[Any] = [name for name, on in flags.items() if on]
    if len(asked) > 1:
        raise ConfigError(f"a class token cannot be {' and '.join(asked)} at once: leave one of the flags")
    placement = (asked or ["head"])[0] if official.get("if_cls_token", False) else "none"
    pool = official.get("final_pool_type", "none")
    if pool not in POOLS:
        raise ConfigError(f"final_pool_type '{pool}': expected {', '.join(POOLS)}")
    made = {ours: official[theirs] for theirs, ours in NAMES.items() if theirs in official}
    made["bimamba_type"] = made.get("bimamba_type") or "none"
    return {**made, "class_token": placement, "pool": POOLS[pool]}


def layout(state: Mapping[str, Tensor]) -> Literal["one", "double", "none"]:
    """Which class tokens a state dict holds."""
    if "cls_token" in state:
        return "one"
    return "double" if {"cls_token_head", "cls_token_tail"} <= state.keys() else "none"


def side_of(table: Tensor, class_tokens: int) -> int:
    """Patches along a side, from a table of positions ``[1, T, D]``.

    Raises:
        DataError: without the class tokens, T is not a square.
    """
    patches = table.shape[1] - class_tokens
    side = math.isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise DataError(
            f"table of {table.shape[1]} positions: without {class_tokens} class tokens {patches}, which is no square "
            "grid"
        )
    return side


def resize_positions(table: Tensor, side: int, class_token: Placement, follow: Follow = "paper") -> Tensor:
    """A table ``[1, T, D]`` for ``side`` patches a side, resized bicubically but for the class tokens' entries.

    ``official`` takes the first entries for the class tokens' whatever the placement, and puts them first again, as the
    official fine-tuning does: with the class token in the middle the grid is then shifted by one in its first half.

    Raises:
        DataError: the table is not of a square grid.
    """
    count = len(class_places(class_token, 0))
    old = side_of(table, count)
    if old == side:
        return table
    before, after = (class_places(class_token, n * n) for n in (old, side))
    if follow == "official":
        before = after = tuple(range(count))
    patches = torch.tensor([i for i in range(table.shape[1]) if i not in before], dtype=torch.long)
    resized = resample_abs_pos_embed(
        table[:, patches], [side, side], [old, old], num_prefix_tokens=0, antialias=False
    )  # fmt: skip
    for here, there in zip(before, after, strict=True):
        resized = torch.cat([resized[:, :there], table[:, here : here + 1], resized[:, there:]], dim=1)
    return resized


def load_official(
    model: VisionMamba, checkpoint: Mapping[str, Any], follow: Follow = "paper", head: bool = True
) -> VisionMamba:
    """Loads an official checkpoint (or its state under ``model``) strictly; positions are resized where need be.

    Args:
        head: whether the head must fit; else a head of another number of classes is left as it is in ``model``.

    Raises:
        DataError: another layout of class tokens, or weights that are missing, unknown or of other shapes.
    """
    state: dict[str, Tensor] = dict(checkpoint.get("model", checkpoint))
    wanted = layout(model.state_dict())
    found = layout(state)
    if found != wanted:
        said = {"one": "one class token (cls_token)", "double": "two (cls_token_head, cls_token_tail)", "none": "none"}
        raise DataError(f"the checkpoint has {said[found]}, the model {said[wanted]}: set class_token accordingly")
    if model.pos_embed is not None and "pos_embed" in state:
        state["pos_embed"] = resize_positions(state["pos_embed"], model.side, model.class_token, follow)
    if not head:
        own = model.state_dict()
        for name in ("head.weight", "head.bias"):
            if name in own and (name not in state or state[name].shape != own[name].shape):
                state[name] = own[name]
        state = {name: value for name, value in state.items() if name in own or not name.startswith("head.")}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise DataError(f"the checkpoint does not fit: {' '.join(lines)[:300]}") from None
    return model


def read_shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a state dict tells of its model.

    It does not tell ``if_bidirectional``, ``if_divide_out``, and where a single class token stands; the released models
    have it in the middle. A grid of 27 with patches of 16 is taken for 224 pixels and stride 8.

    Raises:
        DataError: not the weights of a Vision Mamba; names the prefixes found.
    """
    try:
        width, channels, patch, _ = state["patch_embed.proj.weight"].shape
        mixer = {key.removeprefix("layers.0.mixer."): value for key, value in state.items() if "layers.0.mixer." in key}
        inner, d_state = mixer["A_log"].shape
        d_conv = mixer["conv1d.weight"].shape[-1]
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))
    except (KeyError, ValueError):
        raise DataError(
            "not a Vision Mamba checkpoint: expected patch_embed., layers.N.mixer., norm_f.; "
            f"prefixes found: {', '.join(prefixes(state)) or 'none'}"
        ) from None
    placement: Placement = {"one": "middle", "double": "double", "none": "none"}[layout(state)]  # type: ignore[assignment]
    made: dict[str, Any] = {
        "width": width, "patch_size": patch, "stride": patch, "in_channels": channels, "depth": depth,
        "d_state": d_state, "d_conv": d_conv, "expand": inner // width, "class_token": placement,
        "positions": "pos_embed" in state,
        "bimamba_type": "v2" if "conv1d_b.weight" in mixer else "v1" if "A_b_log" in mixer else "none",
        "init_layer_scale": float(mixer["gamma"].mean()) if "gamma" in mixer else None,
        "rms_norm": "norm_f.bias" not in state,
    }  # fmt: skip
    if "pos_embed" in state:
        side = side_of(state["pos_embed"], len(class_places(placement, 0)))
        if (side - 1) * 8 + patch == 224 and side * patch != 224:
            made["stride"] = 8
        made["image_size"] = (side - 1) * made["stride"] + patch
    return made
