"""Networks of FSFM: a masked autoencoder with a second decoder that represents the whole face (section 3.3)."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import timm.models
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.nn.ema import update_ema
from repertory.nn.mae import Decoder, MaskedEncoder
from repertory.nn.masking import fill, masking, normalise_patches, patch_errors, patchify
from repertory.nn.vit import classifier, initialise
from repertory.systems.fsfm.objective import Instance, Losses, fsfm_loss

SIZES: dict[str, dict[str, int]] = {
    "small": {"width": 384, "depth": 12, "heads": 12},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16, "patch_size": 14},
}
"""The paper's encoders; the small one has 12 heads, as in MoCo v3."""


def projection(width: int, hidden: int = 4096, out: int = 256) -> nn.Sequential:
    """``[..., width]`` to ``[..., out]``: linear, LayerNorm (eps 1e-5), ReLU, linear."""
    made = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))
    initialise(made, "xavier")
    return made


class Representation(nn.Module):
    """Encoder, representation decoder and projector: what the online and the target network share.

    Args:
        encoder: a MAE encoder of some width.
        depth, heads: of the representation decoder, as wide as the encoder.
        hidden, out: of the projector.
        mlp_ratio: of the decoder.
        positions: give the decoder sin-cos positions; the official code leaves its table at zero.
    """

    def __init__(
        self,
        encoder: MaskedEncoder,
        depth: int = 2,
        heads: int = 16,
        hidden: int = 4096,
        out: int = 256,
        mlp_ratio: float = 4.0,
        positions: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, width = encoder, encoder.width
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder = Decoder(encoder.grid, width, width, depth, heads, width, mlp_ratio)
        if not positions:
            self.decoder.pos_embed.zero_()
        self.projector = projection(width, hidden, out)

    def whole(self, tokens: Tensor, restore: Tensor | None = None) -> Tensor:
        """Encoder tokens ``[B, 1 + K, width]`` to the projection ``[B, out]`` of the mean of all decoded tokens.

        ``restore`` ``[B, N]`` says where patches lie among seen and then hidden ones; None: all were seen, in order.
        """
        x = self.decoder.embed(tokens)
        if restore is not None:
            x = torch.cat([x[:, :1], fill(x[:, 1:], self.mask_token, restore)], dim=1)
        projected: Tensor = self.projector(self.decoder(x).mean(1))
        return projected


class View(NamedTuple):
    """What FSFM makes of a batch.

    Attributes:
        predicted: hidden and seen patches, ``[B, N, patch * patch * C]`` in the units of the target.
        online: features of the masked view, ``[B, D]`` of length 1.
        target: features of the whole view, ``[B, D]`` of length 1, without gradient.
    """

    predicted: Tensor
    online: Tensor
    target: Tensor


class FaceModel(nn.Module):
    """Online network with predictor and pixel decoder, and the target network that follows it.

    Args:
        encoder: of the online network; the target begins as its copy.
        decoder_width, decoder_depth, decoder_heads: of the pixel decoder.
        rep_depth, rep_heads: of the representation decoder.
        projection_hidden, projection_out: of projector and predictor.
        norm_pixels: predict pixels normalised a patch.
        rep_positions: see :class:`Representation`.
    """

    def __init__(
        self,
        encoder: MaskedEncoder,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        rep_depth: int = 2,
        rep_heads: int = 16,
        projection_hidden: int = 4096,
        projection_out: int = 256,
        mlp_ratio: float = 4.0,
        norm_pixels: bool = True,
        rep_positions: bool = False,
    ) -> None:
        super().__init__()
        self.norm_pixels = norm_pixels
        self.online = Representation(
            encoder, rep_depth, rep_heads, projection_hidden, projection_out, mlp_ratio, rep_positions
        )
        out = encoder.patch_size**2 * encoder.patch_embed.proj.in_channels
        self.decoder = Decoder(encoder.grid, encoder.width, decoder_width, decoder_depth, decoder_heads, out, mlp_ratio)
        self.predictor = projection(projection_out, projection_hidden, projection_out)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def draw(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """Encoder tokens ``[B, 1 + K, width]`` to pixels of all patches ``[B, N, patch * patch * C]``.

        The mask token has the encoder's width and passes through ``embed``, once.
        """
        x = self.decoder.embed(tokens)
        patches = fill(x[:, 1:], self.decoder.embed(self.online.mask_token), restore)
        drawn: Tensor = self.decoder(torch.cat([x[:, :1], patches], dim=1))
        return drawn[:, 1:]

    def pixels(self, images: Tensor) -> Tensor:
        """What is to be predicted, ``[B, N, patch * patch * C]``."""
        patches = patchify(images, self.online.encoder.patch_size)
        return normalise_patches(patches) if self.norm_pixels else patches

    def reconstruct(self, images: Tensor, mask: Tensor, kept: int) -> Tensor:
        """The first part of ``forward`` alone: ``predicted``."""
        keep, restore, _ = masking(mask.argsort(dim=1, stable=True), kept)
        return self.draw(self.online.encoder(images, keep), restore)

    def forward(self, images: Tensor, mask: Tensor, kept: int) -> View:
        """Images ``[B, 3, H, W]`` with ``mask`` ``[B, N]`` (1: hidden); the encoder sees the first ``kept`` patches
        of those that are not hidden, in order, then of those that are."""
        keep, restore, _ = masking(mask.argsort(dim=1, stable=True), kept)
        tokens = self.online.encoder(images, keep)
        online = F.normalize(self.predictor(self.online.whole(tokens, restore)), dim=-1)
        with torch.no_grad():  # nothing is hidden from the target: it needs neither sorting nor mask tokens
            target = F.normalize(self.target.whole(self.target.encoder(images)), dim=-1)
        return View(self.draw(tokens, restore), online, target)

    def losses(
        self,
        images: Tensor,
        mask: Tensor,
        region: Tensor,
        kept: int,
        region_weight: float = 0.007,
        instance_weight: float = 0.1,
        kind: Instance = "simsiam",
        temperature: float = 0.1,
    ) -> Losses:
        """The objective on a batch; see :func:`~repertory.systems.fsfm.objective.fsfm_loss`.

        With ``instance_weight`` 0 neither representation decoder nor target network is computed.
        """
        if instance_weight:
            predicted, online, target = self(images, mask, kept)
        else:
            predicted, online, target = self.reconstruct(images, mask, kept), None, None
        errors = patch_errors(predicted, self.pixels(images))
        return fsfm_loss(errors, mask, region, online, target, region_weight, instance_weight, kind, temperature)

    def update_target(self, momentum: float | Tensor) -> None:
        """Moves the target network; ``momentum`` 1 leaves it where it is."""
        update_ema(self.target, self.online, momentum)


# -- downstream --------------------------------------------------------------------------------------------------------


def detector(
    classes: int,
    image_size: int = 224,
    patch_size: int = 16,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    pooling: Literal["mean", "class"] = "mean",
) -> timm.models.VisionTransformer:
    """ViT with timm's names: head on ``fc_norm`` of the mean of patch tokens, or on the normalised class token.

    ``classes`` 0: no head.
    """
    if pooling == "mean":
        return classifier(classes, image_size, patch_size, 3, width, depth, heads, mlp_ratio, drop_path)
    norm = cast(type[nn.Module], partial(nn.LayerNorm, eps=1e-6))
    return timm.models.VisionTransformer(
        image_size, patch_size, 3, classes, global_pool="token", embed_dim=width, depth=depth, num_heads=heads,
        mlp_ratio=mlp_ratio, drop_path_rate=drop_path, norm_layer=norm,
    )  # fmt: skip


class AntiSpoofing(nn.Module):
    """A ViT and the feature-normalised head of anti-spoofing (Jia et al. 2020, SSDG): ``[B, 3, H, W]`` to logits.

    Args:
        vit: without head, ``[B, width]`` from its ``forward``.
        classes: how many.
        hidden: width of the bottleneck.
        dropout: after it.
    """

    def __init__(
        self, vit: timm.models.VisionTransformer, classes: int = 2, hidden: int = 512, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.vit = vit
        self.bottleneck = nn.Linear(vit.embed_dim, hidden)
        nn.init.normal_(self.bottleneck.weight, std=0.005)
        nn.init.constant_(self.bottleneck.bias, 0.1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> Tensor:
        """``f / sqrt(2 |f|)`` of the bottleneck, ``[B, hidden]``."""
        x = self.dropout(F.relu(self.bottleneck(self.vit(images))))
        return x / (2 * x.norm(dim=1, keepdim=True).clamp_min(1e-12)).sqrt()

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]``; in training the head's weight itself is normalised before each call."""
        if not self.training:
            return F.linear(self.features(images), F.normalize(self.head.weight, dim=0), self.head.bias)
        with torch.no_grad():
            self.head.weight.copy_(F.normalize(self.head.weight, dim=0))
        logits: Tensor = self.head(self.features(images))
        return logits


# -- official checkpoints ----------------------------------------------------------------------------------------------

_RENAMED = (
    (r"^rep_decoder_", "{net}.decoder."),
    (r"^decoder_", "decoder."),
    (r"^projector\.projection_head\.", "{net}.projector."),
    (r"^predictor\.projection_head\.", "predictor."),
    (r"^mask_token$", "{net}.mask_token"),
    (r"^(?=(cls_token|pos_embed|patch_embed\.|blocks\.|norm\.))", "{net}.encoder."),
)


def from_official(state: Mapping[str, Any], network: Literal["online", "target"] = "online") -> dict[str, Tensor]:
    """Weights with the official names as those of :class:`FaceModel`, of its online or its target network."""
    renamed = {}
    for name, value in state.items():
        for pattern, new in _RENAMED:
            if re.search(pattern, name):
                renamed[re.sub(pattern, new.format(net=network), name)] = value
                break
        else:
            renamed[name] = value
    return renamed
