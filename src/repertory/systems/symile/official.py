"""Official Lightning checkpoints of the paper's experiments as fitted systems."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from repertory.encoders import prefixes, read_checkpoint
from repertory.errors import UserError
from repertory.systems.symile.model import from_official_keys


def read_official(
    checkpoint: str | Path | Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Configuration, assets and weights of a checkpoint whose encoders all take vectors, read off its shapes.

    Binary XOR (``encoders.f_a`` ...), Symile-M3's features without its text encoder, and the laboratory encoder of
    Symile-MIMIC. An encoder with missingness wants the mean training feature, which checkpoints do not hold: zeros.

    Raises:
        UserError: an encoder takes images, signals or text: those are loaded into ``SymileModel`` with the modules of
            ``repertory.systems.symile`` (``CXREncoder``, ``ECGEncoder``, ``TextEncoder``).
    """
    state = read_checkpoint(checkpoint) if isinstance(checkpoint, (str, Path)) else dict(checkpoint)
    weights = from_official_keys(state)
    names = list(dict.fromkeys(key.split(".")[1] for key in weights if key.startswith("encoders.")))
    if not names or "logit_scale" not in weights:
        raise UserError(f"not a Symile checkpoint: its keys begin with {', '.join(prefixes(state)) or 'nothing'}")
    layout, means, kinds = {}, {}, set()
    dim = 0
    for name in names:
        own = {
            key.removeprefix(f"encoders.{name}."): value
            for key, value in weights.items()
            if key.startswith(f"encoders.{name}.")
        }
        if "fc1.weight" in own:
            kinds.add("labs")
            width, dim, gaps = own["fc1.weight"].shape[1], own["fc3.weight"].shape[0], False
        elif "fc.weight" in own and not any(key.startswith(("resnet", "embeddings", "encoder_layer")) for key in own):
            kinds.add("linear")
            gaps = "missingness_embed.weight" in own
            dim, width = own["fc.weight"].shape[0], own["fc.weight"].shape[1] // (2 if gaps else 1)
        elif set(own) == {"weight", "bias"}:
            kinds.add("bare")
            (dim, width), gaps = own["weight"].shape, False
        else:
            raise UserError(
                f"encoder '{name}' takes raw images, signals or text: load the checkpoint into SymileModel with "
                "from_official_keys and the encoder modules of repertory.systems.symile"
            )
        layout[name] = {"kind": "vector", "shape": [int(width)], "gaps": gaps}
        means[f"mean.{name}"] = np.zeros(int(width), np.float32)
    if len(kinds) > 1:
        raise UserError(f"the encoders are of different kinds ({', '.join(sorted(kinds))}): build SymileModel by hand")
    kind = kinds.pop()
    config = {"dim": int(dim), "vector_encoder": kind, "normalize": kind == "bare"}
    return config, {"modalities": layout, **means}, weights
