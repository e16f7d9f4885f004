"""Encoders by address: a pretrained model from timm, transformers or a file as an input of another system."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from repertory.errors import ConfigError, UserError, first_line, nearest


@dataclass(frozen=True)
class Convention:
    """What an encoder expects of its input: side in pixels, per-channel mean and std, number of channels."""

    size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: int = 3


class Encoder(nn.Module):
    """A module with a width and an input convention.

    Args:
        module: what is trained or frozen.
        width: length of a vector.
        pooled: ``(module, x) -> [B, width]``.
        dense: ``(module, x) -> [B, width, h, w]`` (images) or [B, tokens, width] (text).
        convention: for images.
        address: where it came from; a frozen public base is stored as address and hash in place of its weights.
        skeleton: an address that gives the same architecture with fresh weights.
    """

    def __init__(
        self,
        module: nn.Module,
        width: int,
        pooled: Callable[[nn.Module, Any], Tensor],
        dense: Callable[[nn.Module, Any], Tensor] | None = None,
        convention: Convention | None = None,
        address: str | None = None,
        skeleton: str | None = None,
    ) -> None:
        super().__init__()
        self.module, self.width, self.convention, self.address = module, width, convention, address
        self.skeleton = skeleton
        self.recipe: dict[str, Any] | None = None
        self._pooled, self._dense = pooled, dense
        self.frozen = False

    def forward(self, x: Any) -> Tensor:
        """[B, width]."""
        return self._pooled(self.module, x)

    def dense(self, x: Any) -> Tensor:
        """The map of vectors before pooling.

        Raises:
            ConfigError: this encoder has none.
        """
        if self._dense is None:
            raise ConfigError(f"the encoder {self.address or type(self.module).__name__} gives no dense features")
        return self._dense(self.module, x)

    def freeze(self) -> Encoder:
        """Keeps the weights as they are, in eval mode whatever the model around it does."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()
        return self

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode and not self.frozen)
        return self

    @property
    def by_reference(self) -> bool:
        """Whether a run stores the address and a hash in place of the weights."""
        public = self.address is not None and self.address.startswith(("timm:", "hf:"))
        return self.frozen and public and self.address != self.skeleton

    def record(self) -> dict[str, Any]:
        """What a run must know to build this encoder again."""
        return {
            "address": self.address, "recipe": self.recipe, "skeleton": self.skeleton, "by_reference": self.by_reference
        }  # fmt: skip

    def sha256(self) -> str:
        """Of all tensors of the module."""
        state = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            state.update(name.encode())
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return state.hexdigest()


def resolve(address: str) -> Encoder:
    """An encoder from ``timm:NAME``, ``hf:NAME`` or ``file:PATH?arch=NAME`` (``run:`` is the catalog's).

    ``?pretrained=false`` builds the architecture with fresh weights.

    Raises:
        ConfigError: the address cannot be understood.
        UserError: the weights cannot be had (no network, no such model); the message says what to do.
    """
    scheme, colon, rest = address.partition(":")
    makers = {"timm": _from_timm, "hf": _from_transformers, "file": _from_file}
    if not colon or scheme not in makers:
        raise ConfigError(f"'{address}' is not an encoder address: run:RUN, timm:NAME, hf:NAME or file:PATH?arch=NAME")
    name, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    valid = ("arch",) if scheme == "file" else ("pretrained",)
    for option in options:
        if option not in valid:
            raise ConfigError(f"'{address}': unknown option '{option}'{nearest(option, valid)}")
    if options.get("pretrained") == "true":
        return resolve(f"{scheme}:{name}")
    if options.get("pretrained", "false") != "false":
        raise ConfigError(f"'{address}': pretrained={options['pretrained']}: expected true or false")
    return makers[scheme](name, options, address)


def _from_timm(name: str, options: Mapping[str, str], address: str, **kwargs: Any) -> Encoder:
    import timm
    from timm.data.config import resolve_data_config

    pretrained = "pretrained" not in options
    if not timm.is_model(name.removeprefix("hf-hub:").split(".")[0]) and not name.startswith("hf-hub:"):
        raise ConfigError(
            f"timm knows no model '{name}'{nearest(name, timm.list_models(name[:4] + '*') or ['resnet18'])}"
        )
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
    except Exception as error:  # hub and network errors of many types
        raise UserError(
            f"the weights of {address} cannot be fetched ({type(error).__name__}); connect once, put them into the "
            "Hugging Face cache, or add ?pretrained=false for fresh weights"
        ) from None
    found = resolve_data_config({}, model=model)
    channels, size, _ = found["input_size"]

    def dense(module: nn.Module, x: Tensor) -> Tensor:
        features = module.forward_features(x)  # type: ignore[operator]
        if features.ndim == 3:
            tokens = features[:, getattr(module, "num_prefix_tokens", 0) :]
            side = int(tokens.shape[1] ** 0.5)
            return tokens.transpose(1, 2).unflatten(2, (side, tokens.shape[1] // side))
        return features

    convention = Convention(size, tuple(found["mean"]), tuple(found["std"]), channels)
    width = int(model.num_features)  # type: ignore[arg-type]
    skeleton = f"timm:{name}?pretrained=false"
    return Encoder(model, width, lambda module, x: module(x), dense, convention, address, skeleton)


def _from_transformers(name: str, options: Mapping[str, str], address: str) -> Encoder:
    from transformers import AutoConfig, AutoModel

    fresh = "pretrained" in options
    try:
        model = AutoModel.from_config(AutoConfig.from_pretrained(name)) if fresh else AutoModel.from_pretrained(name)
    except Exception as error:  # hub and network errors of many types
        raise UserError(
            f"the weights of {address} cannot be fetched ({type(error).__name__}); connect once, "
            "put them into the Hugging Face cache, or give hf: a folder"
        ) from None
    return _of_transformers(model, address)


def from_transformers_config(config: Mapping[str, Any], address: str) -> Encoder:
    """An encoder with fresh weights from what ``record`` keeps of a ``hf:`` encoder: needs neither hub nor cache."""
    from transformers import AutoConfig, AutoModel

    return _of_transformers(AutoModel.from_config(AutoConfig.for_model(**config)), address)


def _of_transformers(model: Any, address: str) -> Encoder:
    encoder = Encoder(
        model,
        model.config.hidden_size,
        lambda module, x: module(**x).last_hidden_state.mean(1),
        lambda module, x: module(**x).last_hidden_state,
        None,
        address,
    )
    encoder.recipe = {"transformers": json.loads(model.config.to_json_string(use_diff=False))}
    return encoder


def _from_file(path: str, options: Mapping[str, str], address: str) -> Encoder:
    if "arch" not in options:
        raise ConfigError(f"'{address}': name the timm architecture of the checkpoint: file:PATH?arch=resnet50")
    state = read_checkpoint(path)
    encoder = _from_timm(options["arch"], {"pretrained": "false"}, address)
    try:
        missing, _ = encoder.module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path}: does not fit {options['arch']}: {' '.join(str(error).split())[:200]}") from None
    if missing:
        raise UserError(
            f"{path}: does not fit {options['arch']}: {len(missing)} tensors are missing (first: {missing[0]}); "
            f"the file's keys begin with {', '.join(prefixes(state))}"
        )
    return encoder


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors``, ``.pth``, ``.pt`` or ``.ckpt`` file, read without unpickling.

    Raises:
        UserError: no such file, or it needs pickles of other types than tensors.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged: {error}") from None
    import argparse

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch refuses
        raise UserError(f"{path}: cannot be read safely: {first_line(error)}") from None
    for name in ("state_dict", "model", "model_state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
            break
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}: holds {type(loaded).__name__}, expected a state dict")
    return {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}


def prefixes(state: Mapping[str, Any]) -> list[str]:
    """The first parts of the keys of a state dict, for messages."""
    return sorted({key.split(".")[0] for key in state})[:12]


def _references(model: nn.Module) -> dict[str, Encoder]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Encoder) and m.by_reference}


def stored_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model, with the tensors of frozen public encoders replaced by one hash each."""
    weights = dict(model.state_dict())
    for name, encoder in _references(model).items():
        weights = {k: v for k, v in weights.items() if not k.startswith(f"{name}.module.")}
        weights[f"{name}.sha256"] = torch.tensor(list(bytes.fromhex(encoder.sha256())), dtype=torch.uint8)
    return weights


def with_stored_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``stored_weights``: fills in the frozen encoders of ``model`` after a check of their hashes.

    Raises:
        UserError: an encoder's weights are not those that the run was fitted with.
    """
    complete = dict(weights)
    for name, encoder in _references(model).items():
        stored = bytes(complete.pop(f"{name}.sha256").tolist()).hex()
        if stored != encoder.sha256():
            raise UserError(f"the weights of {encoder.address} are not those that this run was fitted with")
        complete |= {f"{name}.module.{k}": v for k, v in encoder.module.state_dict().items()}
    return complete
