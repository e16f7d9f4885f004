"""One encoder a modality, all of one width, and the learned temperature.

Encoders end in a LayerNorm and are not L2-normalised, as in the paper's Symile-M3 and Symile-MIMIC models; those of
binary XOR are plain linear maps that are normalised (``SymileModel(normalize=True)``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from repertory.encoders import Encoder
from repertory.errors import DataError


class SymileModel(nn.Module):
    """``encoders`` by modality, and s, the logarithm of the logit scale (initial value ``log_scale``).

    Called with the inputs by modality (a tensor, or a tuple of the encoder's arguments); returns the representations
    [B, d] by modality, L2-normalised if ``normalize``. The scale is ``logit_scale.exp()``; it is not clamped.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        log_scale: float = -0.3,
        freeze_scale: bool = False,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({_attribute(name): encoder for name, encoder in encoders.items()})
        if len(self.encoders) < len(encoders):
            raise DataError(f"modalities whose names differ in punctuation only: {', '.join(encoders)}")
        self.modalities = {name: _attribute(name) for name in encoders}
        self.logit_scale = nn.Parameter(torch.tensor(log_scale), requires_grad=not freeze_scale)
        self.normalize = normalize

    def forward(self, inputs: Mapping[str, Tensor | tuple[Tensor, ...]]) -> dict[str, Tensor]:
        if unknown := inputs.keys() - self.modalities.keys():
            known = ", ".join(self.modalities)
            raise DataError(f"no encoder for modality {', '.join(sorted(unknown))}; there are {known}")
        encoded = {
            name: self.encoders[self.modalities[name]](*(x if isinstance(x, tuple) else (x,)))
            for name, x in inputs.items()
        }
        return {name: F.normalize(r, dim=-1) for name, r in encoded.items()} if self.normalize else encoded


def _attribute(name: str) -> str:
    """A modality's name as the name of a module: 'ecg.lead 1' and 'values' are none as they stand."""
    name = re.sub(r"\W", "_", name)
    return f"{name}_" if hasattr(nn.ModuleDict, name) else name


class LinearEncoder(nn.Module):
    """Linear and LayerNorm on a frozen feature (Symile-M3: Whisper's audio, CLIP's image): [B, features] -> [B, dim].

    With ``missingness``, ``missing`` [B] (0 observed, 1 missing) picks a learned row as wide as the feature that is
    concatenated to it; the caller replaces missing features by the mean training feature.
    """

    def __init__(self, features: int, dim: int, missingness: bool = False) -> None:
        super().__init__()
        self.missingness_embed = nn.Embedding(2, features) if missingness else None
        self.fc = nn.Linear(features * (2 if missingness else 1), dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, feature: Tensor, missing: Tensor | None = None) -> Tensor:
        if (missing is None) != (self.missingness_embed is None):
            raise DataError("an encoder with missingness, and no other, needs 'missing' [batch] of 0 and 1")
        if self.missingness_embed is not None:
            feature = torch.cat([feature, self.missingness_embed(missing)], dim=-1)
        return self.layer_norm(self.fc(feature))


class TextEncoder(nn.Module):
    """Embeddings and first layer of a transformers encoder (``config``: of XLM-R or a relative), fine-tuned.

    The mean is over all token positions, padding included, as in the official code. ``input_ids`` and
    ``attention_mask`` (1 token, 0 padding): [B, tokens] -> [B, dim].
    """

    def __init__(self, config: Any, dim: int) -> None:
        super().__init__()
        from transformers import AutoModel  # slow to import

        shallow = type(config).from_dict(config.to_dict() | {"num_hidden_layers": 1})
        encoder = AutoModel.from_config(shallow, attn_implementation="sdpa")
        self.embeddings = encoder.embeddings
        self.encoder_layer = encoder.encoder.layer[0]
        self.fc = nn.Linear(config.hidden_size, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.encoder_layer(self.embeddings(input_ids), attention_mask[:, None, None].bool())
        tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        return self.layer_norm(self.fc(tokens.mean(dim=1)))  # the mean commutes with the linear map


class CXREncoder(nn.Module):
    """ResNet-50 and LayerNorm on chest radiographs: [B, 3, 320, 320] -> [B, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.resnet = resnet50()
        self.resnet.fc = nn.Linear(self.resnet.fc.in_features, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer_norm(self.resnet(image))


class ECGEncoder(nn.Module):
    """ResNet-18 and LayerNorm on a 12-lead electrocardiogram as a one-channel image: [B, 1, 5000, 12] -> [B, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.resnet = resnet18()
        self.resnet.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.resnet.fc = nn.Linear(self.resnet.fc.in_features, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, ecg: Tensor) -> Tensor:
        return self.layer_norm(self.resnet(ecg))


class LabsEncoder(nn.Module):
    """Three linear layers and LayerNorm on laboratory values: percentiles and indicators -> [B, dim].

    Called with one tensor [B, inputs], or with two of [B, inputs / 2] each: the indicators follow the percentiles, and
    what their 1 means is the data set's choice.
    """

    def __init__(self, dim: int, inputs: int = 100) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, 256)
        self.fc2 = nn.Linear(256, 1024)
        self.fc3 = nn.Linear(1024, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, *values: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(torch.cat(values, dim=-1)))
        return self.layer_norm(self.fc3(F.gelu(self.fc2(hidden))))


def xor_encoders(bits: int, dim: int, names: tuple[str, ...] = ("a", "b", "c")) -> dict[str, nn.Module]:
    """The linear encoders of binary XOR, one for each vector of ``bits`` bits: [B, bits] -> [B, dim]."""
    return {name: nn.Linear(bits, dim) for name in names}


class ImageEncoder(nn.Module):
    """Two convolutions for small grey images in [0, 1]: [B, 1, height, width] -> [B, dim]."""

    def __init__(self, dim: int, channels: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.fc = nn.Linear(8 * channels, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer_norm(self.fc(self.features(image)))


class SpeechEncoder(nn.Module):
    """Two convolutions over time on a log-mel spectrogram: [B, bands, frames] -> [B, dim]."""

    def __init__(self, bands: int, dim: int, channels: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(bands, channels // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv1d(channels // 2, channels, 4, stride=2, padding=1),
            nn.ReLU(),
        )
        self.fc = nn.Linear(2 * channels, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, spectrogram: Tensor) -> Tensor:
        frames = self.features(spectrogram)
        return self.layer_norm(self.fc(torch.cat([frames.mean(dim=2), frames.amax(dim=2)], dim=1)))


class WordsEncoder(nn.Module):
    """Short texts whose meaning is which word stands where: token numbers [B, length] (0 = padding) -> [B, dim].

    Each word meets its position in a small network before the mean over the words, so that it keeps its place.
    """

    def __init__(self, vocabulary: int, length: int, dim: int, width: int = 128) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(length, width))
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.fc = nn.Linear(width, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > len(self.positions):
            raise DataError(f"texts of {tokens.shape[1]} words, but the encoder knows {len(self.positions)} positions")
        words = self.mix(self.words(tokens) + self.positions[: tokens.shape[1]])
        present = (tokens != 0).unsqueeze(-1)
        return self.layer_norm(self.fc((words * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)))


def first_layer_of(encoder: nn.Module, extra_tokens: int) -> dict[str, Tensor]:
    """What ``TextEncoder`` takes from a pretrained transformers model, its vocabulary grown by ``extra_tokens``."""
    encoder.resize_token_embeddings(encoder.config.vocab_size + extra_tokens, mean_resizing=False)
    state = encoder.state_dict()
    return {k: v for k, v in state.items() if k.startswith("embeddings.")} | {
        k.replace("encoder.layer.0.", "encoder_layer."): v for k, v in state.items() if k.startswith("encoder.layer.0.")
    }


class PretrainedEncoder(nn.Module):
    """Linear and LayerNorm on the vector of a pretrained encoder, frozen or trained along: images -> [B, dim]."""

    def __init__(self, encoder: Encoder, dim: int, frozen: bool = True) -> None:
        super().__init__()
        self.encoder = encoder.freeze() if frozen else encoder
        self.fc = nn.Linear(encoder.width, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer_norm(self.fc(self.encoder(image)))


class GapFilled(nn.Module):
    """An encoder of raw items whose missing rows (``missing`` [B], 1 missing) get one learned representation.

    The official code learns a missingness embedding for vectors (``LinearEncoder``) and a token for texts only; this
    is the same idea for the encoders of images, audio and signals.
    """

    def __init__(self, encoder: nn.Module, dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.representation = nn.Parameter(torch.randn(dim))

    def forward(self, item: Tensor, missing: Tensor) -> Tensor:
        return torch.where(missing.bool()[:, None], self.representation, self.encoder(item))


def from_official_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an official Lightning checkpoint with the names of ``SymileModel``.

    ``audio_encoder.*`` -> ``encoders.audio.*`` (so image, text, cxr, ecg, labs),
    ``encoders.f_a.*`` -> ``encoders.a.*``; ``text_encoder.encoder.*`` goes: what is used of it is there again as
    ``embeddings`` and ``encoder_layer``.
    """
    rules = [(r"^encoders\.f_(\w+)\.", r"encoders.\1."), (r"^(\w+?)_encoder\.", r"encoders.\1.")]
    mapped = {}
    for name, tensor in state.items():
        if not name.startswith("text_encoder.encoder."):
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            mapped[name] = tensor
    return mapped
