"""Official checkpoints: ``torch.save([kwargs, state_dict])``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repertory.errors import UserError, first_line
from repertory.systems.pivem.model import OFFICIAL, from_official_keys


def read_checkpoint(
    checkpoint: str | Path | Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Configuration, assets and weights; nothing is unpickled but tensors, lists and numbers.

    Sizes are read off the weights; ``last_time`` and ``prior_lambda`` come from the file's arguments (a bare state dict
    has none: 1 and the default).

    Raises:
        UserError: no such file, other types in it, or names that are not the official ones.
    """
    loaded: Any = checkpoint
    if isinstance(checkpoint, (str, Path)):
        try:
            loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"{checkpoint}: no such file") from None
        except Exception as error:  # whatever torch refuses
            raise UserError(f"{checkpoint}: cannot be read safely: {first_line(error)}") from None
    arguments: dict[str, Any] = {}
    if isinstance(loaded, (list, tuple)) and len(loaded) == 2 and all(isinstance(part, Mapping) for part in loaded):
        arguments, loaded = dict(loaded[0]), loaded[1]
    if not isinstance(loaded, Mapping) or not set(loaded) >= set(OFFICIAL):
        missing = sorted(set(OFFICIAL) - set(loaded)) if isinstance(loaded, Mapping) else ["a state dict"]
        raise UserError(f"not a PiVeM checkpoint: {missing[0]} is missing")
    weights = from_official_keys({str(name): value for name, value in loaded.items()})
    nodes, dim = weights["x0"].shape
    last_time = float(arguments.get("last_time", 1.0))
    config = {"bins": len(weights["v"]), "dim": dim, "rank": weights["prior.Q"].shape[1], "follow": "official"}
    if "prior_lambda" in arguments:
        config["prior_scale"] = float(arguments["prior_lambda"])
    names = [str(node) for node in range(nodes)]
    assets = {"nodes": names, "origin": 0.0, "span": last_time, "last_time": last_time}
    return config, assets, weights
