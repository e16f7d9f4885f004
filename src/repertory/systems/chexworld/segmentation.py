"""Segmentation with a CheXWorld encoder: a feature pyramid of its tokens and a U-Net decoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from repertory.errors import ConfigError
from repertory.nn.vit import VisionTransformer
from repertory.systems.chexworld.model import group_matcher


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
    return [convolution, nn.BatchNorm2d(outputs), nn.GELU()]


def _upsampled(*widths: int) -> nn.Sequential:
    """Per step: nearest upsampling x2, 3 x 3 convolution, batch norm, GELU."""
    return nn.Sequential(*(m for i, o in pairwise(widths) for m in [nn.Upsample(scale_factor=2), *_convolution(i, o)]))


def _transposed(*widths: int) -> nn.Sequential:
    """Per step: transposed 2 x 2 convolution with stride 2, batch norm, GELU."""
    return nn.Sequential(
        *(m for i, o in pairwise(widths) for m in [nn.ConvTranspose2d(i, o, 2, 2), nn.BatchNorm2d(o), nn.GELU()])
    )


class ResidualBlock(nn.Module):
    """Twice 3 x 3 convolution, batch norm and GELU, plus a 1 x 1 convolution of the input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*_convolution(inputs, outputs), *_convolution(outputs, outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.skip(x)


class UpBlock(nn.Module):
    """Upsamples x2 (nearest), joins the skip connection, and applies a :class:`ResidualBlock`."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv_block = ResidualBlock(inputs + skip, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv_block(torch.cat([F.interpolate(x, scale_factor=2), skip], dim=1))


class UNetHead(nn.Module):
    """Decodes maps of 1/2, 1/4, 1/8 and 1/16 of the side with 2c, 4c, 8c and 16c channels, and the image itself."""

    def __init__(self, classes: int, channels: int, in_channels: int = 3) -> None:
        super().__init__()
        self.in_encoder = ResidualBlock(in_channels, channels)
        widths = [channels * 2**i for i in range(5)]
        self.decoders = nn.ModuleList(UpBlock(widths[i + 1], widths[i], widths[i]) for i in range(4))
        self.out = nn.Conv2d(channels, classes, 1)

    def forward(self, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        skips = [self.in_encoder(image), *maps]
        x = skips.pop()
        for decoder, skip in zip(reversed(self.decoders), reversed(skips), strict=True):
            x = decoder(x, skip)
        return self.out(x)


class UNetAdapter(nn.Module):
    """ViT + pyramid + U-Net head; images ``[B, C, H, W]``, sides multiples of 16, to logits ``[B, classes, H, W]``.

    With patch 16 (``UNetAdapterConv``) the maps come from nearest upsampling and convolutions; with patch 8
    (``UNetAdapter_4LayersConv``) from transposed convolutions, and the coarsest from a convolution of stride 2.
    ``layers`` are the four encoder layers that feed the maps, finest first; by default the last one (patch 16), or
    four layers that divide the depth evenly (patch 8).
    """

    def __init__(
        self, encoder: VisionTransformer, classes: int, channels: int = 32, layers: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        depth, d, c = len(encoder.blocks), encoder.width, channels
        if encoder.patch_size == 16:
            default = [depth - 1] * 4
            pyramid = [
                _upsampled(d, d // 2, d // 4, 2 * c),
                _upsampled(d, d // 2, 4 * c),
                _upsampled(d, 8 * c),
                nn.Sequential(*_convolution(d, 16 * c, kernel=1)),
            ]
        elif encoder.patch_size == 8:
            default = [max(depth * i // 4 - 1, 0) for i in (1, 2, 3, 4)]
            pyramid = [
                _transposed(d, d // 2, 2 * c),
                _transposed(d, 4 * c),
                nn.Sequential(*_convolution(d, 8 * c, kernel=1)),
                nn.Sequential(*_convolution(d, 16 * c, stride=2)),
            ]
        else:
            raise ConfigError(f"segmentation needs an encoder of patch 8 or 16, not {encoder.patch_size}")
        self.layers = list(default if layers is None else layers)
        if len(self.layers) != 4 or not all(0 <= layer < depth for layer in self.layers):
            raise ConfigError(f"layers must be four indices below the depth {depth}, not {self.layers}")
        self.feature_model = encoder
        self.fpns = nn.ModuleList(pyramid)
        self.head = UNetHead(classes, channels, encoder.patch_embed.proj.in_channels)

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.feature_model(images, layer_results=True)
        rows = images.shape[-2] // self.feature_model.patch_size
        maps = [rearrange(outputs[layer], "b (h w) d -> b d h w", h=rows) for layer in self.layers]
        return self.head(images, [fpn(x) for fpn, x in zip(self.fpns, maps, strict=True)])

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for :func:`repertory.nn.schedules.layer_decay_groups`."""
        return group_matcher()
