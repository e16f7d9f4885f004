"""Masked autoencoder: an encoder that sees some patches, a decoder that draws the others (He et al. 2022, MAE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from torch import Tensor, nn

from repertory.errors import ConfigError, DataError
from repertory.nn.masking import (
    Masking,
    fill,
    masked_mean,
    normalise_patches,
    patch_errors,
    patchify,
    random_masking,
)
from repertory.nn.positions import sincos_2d
from repertory.nn.vit import blocks, check_indices, initialise, tokens_at


def with_class(table: Tensor) -> Tensor:
    """A table of positions ``[L, D]`` as ``[1, 1 + L, D]``, with zeros for the class token in front."""
    return torch.cat([table.new_zeros(1, table.shape[1]), table])[None]


class MaskedEncoder(nn.Module):
    """ViT with a class token and a fixed table of positions whose parameters are named as timm's.

    Images are ``[B, in_channels, H, W]`` float; for sides other than ``image_size`` the table is resized bicubically.
    """

    pos_embed: Tensor

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ConfigError(f"image side {image_size} is not a multiple of the patch {patch_size}")
        self.width, self.patch_size = width, patch_size
        self.patch_embed = PatchEmbed(image_size, patch_size, in_channels, width, strict_img_size=False)
        self.grid: tuple[int, int] = self.patch_embed.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", with_class(sincos_2d(self.grid, width)))
        self.blocks = blocks(width, depth, heads, mlp_ratio)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        initialise(self, "xavier")
        nn.init.normal_(self.cls_token, std=0.02)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Class token and patch tokens with positions, ``[B, 1 + N, width]``, or those patches at ``keep`` ``[B, K]``.

        Raises:
            DataError: a side is not a multiple of the patch, or an index lies outside the grid.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise DataError(f"image of {height} x {width} pixels: not multiples of the patch {self.patch_size}")
        grid, table = (height // self.patch_size, width // self.patch_size), self.pos_embed
        if grid != self.grid:
            table = resample_abs_pos_embed(table, grid, self.grid, num_prefix_tokens=1, antialias=False)
        tokens = self.patch_embed(images) + table[:, 1:]
        if keep is not None:
            check_indices(keep, grid)
            tokens = tokens_at(tokens, keep)
        first = (self.cls_token + table[:, :1]).expand(len(tokens), -1, -1)
        return torch.cat([first.to(tokens.dtype), tokens], dim=1)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised tokens ``[B, 1 + N, width]``, class token first; with ``keep`` ``[B, K]`` only these patches."""
        x = self.embed(images, keep)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Decoder(nn.Module):
    """Blocks over all tokens, and what they say of each patch: ``embed`` from the encoder's width, fixed positions.

    Where mask tokens come in, before ``embed`` or after it, is the caller's to say.
    """

    pos_embed: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        in_width: int,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        out: int = 768,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(in_width, width)
        self.register_buffer("pos_embed", with_class(sincos_2d(grid, width)))
        self.blocks = blocks(width, depth, heads, mlp_ratio)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pred = nn.Linear(width, out)
        initialise(self, "xavier")

    def forward(self, tokens: Tensor) -> Tensor:
        """Embedded tokens ``[B, 1 + L, width]``, class token first, to ``[B, 1 + L, out]``."""
        x = tokens + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.pred(self.norm(x))


class Reconstruction(NamedTuple):
    """What a masked autoencoder makes of a batch.

    Attributes:
        loss: mean error of the hidden patches.
        predicted: ``[B, L, patch * patch * C]``, in the units of the target.
        masking: which patches were seen.
        latent: tokens of the encoder ``[B, 1 + K, width]``.
    """

    loss: Tensor
    predicted: Tensor
    masking: Masking
    latent: Tensor


class MAE(nn.Module):
    """Encoder, mask token and pixel decoder; ``norm_pixels`` compares with pixels normalised a patch."""

    def __init__(
        self,
        encoder: MaskedEncoder,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pixels: bool = True,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.encoder, self.norm_pixels = encoder, norm_pixels
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        nn.init.normal_(self.mask_token, std=0.02)
        out = encoder.patch_size**2 * encoder.patch_embed.proj.in_channels
        self.decoder = Decoder(encoder.grid, encoder.width, decoder_width, decoder_depth, decoder_heads, out, mlp_ratio)

    def target(self, images: Tensor) -> Tensor:
        """What is to be predicted of each patch, ``[B, L, patch * patch * C]``."""
        patches = patchify(images, self.encoder.patch_size)
        return normalise_patches(patches) if self.norm_pixels else patches

    def decode(self, latent: Tensor, restore: Tensor) -> Tensor:
        """Encoder tokens ``[B, 1 + K, width]`` to all patches ``[B, L, patch * patch * C]``."""
        tokens = self.decoder.embed(latent)
        patches = fill(tokens[:, 1:], self.mask_token, restore)
        return self.decoder(torch.cat([tokens[:, :1], patches], dim=1))[:, 1:]

    def forward(self, images: Tensor, noise: Tensor | None = None, ratio: float = 0.75) -> Reconstruction:
        """Hides a share ``ratio`` of the patches (those with the most ``noise`` ``[B, L]``) and draws them again."""
        if noise is None:
            noise = torch.rand(len(images), self.encoder.grid[0] * self.encoder.grid[1], device=images.device)
        seen = random_masking(noise, ratio)
        latent = self.encoder(images, seen.keep)
        predicted = self.decode(latent, seen.restore)
        return Reconstruction(
            masked_mean(patch_errors(predicted, self.target(images)), seen.mask), predicted, seen, latent
        )


def from_official(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict with the official names (``blocks.0...``, ``decoder_blocks.0...``) as that of :class:`MAE`."""
    renamed = {}
    for name, value in state.items():
        if name.startswith("decoder_"):
            renamed["decoder." + name.removeprefix("decoder_")] = value
        else:
            renamed[name if name == "mask_token" else f"encoder.{name}"] = value
    return renamed
