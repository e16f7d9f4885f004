"""The vision transformer that finds action units, its identity head behind a gradient reversal, and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repertory.errors import ConfigError, DataError
from repertory.nn.gradient_reversal import reverse_gradient
from repertory.nn.mae import with_class
from repertory.nn.positions import sincos_2d
from repertory.nn.vit import classifier

HEADS = ("ID_head", "ID_head2", "ID_head3")
"""What the official code calls the layers of the identity head."""
DECODER = ("mask_token", "decoder_")
"""How the keys of a masked autoencoder begin that its encoder does not have."""


class IdentityHead(nn.Sequential):
    """Features ``[B, width]`` to a logit per subject ``[B, subjects]``.

    One linear layer in the paper; two or three halve the width from layer to layer, with GELU between (its ablation).
    """

    def __init__(self, width: int, subjects: int, layers: int = 1) -> None:
        if not 1 <= layers <= len(HEADS):
            raise ConfigError(f"identity head of {layers} layers: 1, 2 or 3")
        widths = [width >> i for i in range(layers)] + [subjects]
        made: list[nn.Module] = []
        for i in range(layers):
            made += [nn.GELU()] * (i > 0) + [nn.Linear(widths[i], widths[i + 1])]
        super().__init__(*made)


class AdversarialViT(nn.Module):
    """ViT with logits of action units (or expressions), and of subjects whose gradient is reversed (section 3 of the
    paper).

    Args:
        outputs: how many action units, or classes.
        subjects: how many people the identity head tells apart; 0: there is no identity head.
        reversal: lambda, by which the gradient of the identity loss is multiplied before its sign is turned.
        identity_layers: of the identity head.
        **shape: of :func:`repertory.nn.vit.classifier`: ``image_size``, ``patch_size``, ``width``, ``depth``,
            ``heads``, ``mlp_ratio``, ``drop_path``.

    Raises:
        ConfigError: ``reversal`` is negative, or positive without subjects.
    """

    def __init__(
        self, outputs: int, subjects: int = 0, reversal: float = 0.0, identity_layers: int = 1, **shape: Any
    ) -> None:
        super().__init__()
        if reversal < 0:
            raise ConfigError(f"reversal={reversal:g}: lambda cannot be negative; 0 trains without identities")
        if reversal > 0 and subjects < 1:
            raise ConfigError(f"subjects={subjects} with reversal={reversal:g}: an identity head needs subjects")
        self.reversal = reversal
        self.vit = classifier(outputs, **shape)
        # from scratch, training starts with the positions that a pre-trained encoder has
        table = sincos_2d(self.vit.patch_embed.grid_size, self.vit.embed_dim)
        self.vit.pos_embed = nn.Parameter(with_class(table))
        self.identity = IdentityHead(self.vit.embed_dim, subjects, identity_layers) if reversal > 0 else None

    def features(self, images: Tensor) -> Tensor:
        """``[B, 3, S, S]`` to the normalised mean of patch tokens ``[B, width]``."""
        return self.vit.forward_head(self.vit.forward_features(images), pre_logits=True)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, outputs]``; the identity head has no part in them."""
        return self.vit(images)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of action units ``[B, outputs]`` and of subjects ``[B, subjects]`` (None without identity head)."""
        features = self.features(images)
        if self.identity is None:
            return self.vit.head(features), None
        return self.vit.head(features), self.identity(reverse_gradient(features, self.reversal))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's layers, for rates that decay from layer to layer; the heads and their norm are the last layer."""
        return {"stem": r"^vit\.(?:cls_token|pos_embed|patch_embed)", "blocks": r"^vit\.blocks\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay though they have several axes."""
        return {"vit.pos_embed", "vit.cls_token"}


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A fine-tuned state dict with the official names as that of :class:`AdversarialViT`."""
    renamed = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        if first in HEADS:  # between two layers lies an activation
            renamed[f"identity.{2 * HEADS.index(first)}.{rest}"] = value
        else:
            renamed[f"vit.{name}"] = value
    return renamed


def encoder_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a fine-tuned model takes over from a pre-trained state dict: the encoder without decoder and final norm.

    The official code loads it without checking that anything was found; here a missing weight is an error.

    Raises:
        DataError: keys of the encoder are missing; lists them.
    """
    found = {k: v for k, v in state.items() if not k.startswith((*DECODER, "head.", "norm.", "fc_norm."))}
    depth = 1 + max((int(k.split(".")[1]) for k in found if k.startswith("blocks.")), default=0)
    needed = ["cls_token", "pos_embed", *(f"patch_embed.proj.{kind}" for kind in ("weight", "bias"))]
    for i in range(depth):
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            needed += [f"blocks.{i}.{layer}.{kind}" for kind in ("weight", "bias")]
    missing = [name for name in needed if name not in found]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise DataError(f"the checkpoint lacks keys of the encoder: {', '.join(missing[:8])}{more}")
    return {name: found[name] for name in needed}


def shape_of(state: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
    """``width``, ``patch_size``, ``image_size``, ``depth``, ``mlp_ratio``, ``heads`` of a whole encoder's state dict.

    The number of heads cannot be read from weights: that of the paper's sizes, else 64 channels a head.
    """
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    return {
        "width": width, "patch_size": patch, "image_size": patch * side,
        "depth": 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks.")),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "heads": heads or KNOWN_HEADS.get(width, max(1, width // 64)),
    }  # fmt: skip


KNOWN_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""By width, for checkpoints: 1280 is ViT-H, of 80 channels a head."""


def pooled(encoder: nn.Module, images: Tensor) -> Tensor:
    """``[B, 3, S, S]`` to the mean of the patch tokens of a masked encoder ``[B, width]``."""
    return encoder(images)[:, 1:].mean(1)


def patch_map(tokens: Tensor) -> Tensor:
    """Tokens ``[B, 1 + h * w, width]`` of a square picture, class token first, to ``[B, width, h, w]``."""
    patches = tokens[:, 1:].transpose(1, 2)
    side = round(patches.shape[2] ** 0.5)
    return torch.unflatten(patches, 2, (side, side))
