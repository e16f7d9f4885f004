"""Vision transformer for self-supervised learning: no class token, fixed positions, masked forward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, Self, cast, overload

import timm.models
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from repertory.errors import ConfigError, DataError, nearest
from repertory.nn.positions import sincos_2d

Init = Literal["trunc_normal", "trunc_normal_scaled", "xavier"]

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
    "giant": {"width": 1408, "depth": 40, "heads": 16, "mlp_ratio": 48 / 11},
}


def blocks(width: int, depth: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> nn.ModuleList:
    """``depth`` pre-norm blocks with biases, LayerNorm eps 1e-6 and a drop-path rate that rises linearly."""
    if width % heads:
        raise ConfigError(f"width {width} is not a multiple of the number of heads {heads}")
    norm = cast(type[nn.Module], partial(nn.LayerNorm, eps=1e-6))
    # a ratio such as 48/11 gives a whole width only up to rounding
    ratio = round(width * mlp_ratio) / width + 1e-9
    rates = torch.linspace(0, drop_path, depth).tolist()
    return nn.ModuleList(Block(width, heads, ratio, qkv_bias=True, drop_path=rate, norm_layer=norm) for rate in rates)


def initialise(module: nn.Module, init: Init = "trunc_normal") -> None:
    """Weights of linear layers and patch convolutions, norms to 1 and 0, biases to 0.

    ``trunc_normal`` has standard deviation 0.02 (the final state of I-JEPA's initialisation), ``trunc_normal_scaled``
    further divides the output layers of block ``l`` by ``sqrt(2 l)`` (BEiT), ``xavier`` is uniform (MAE).
    """
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear | nn.Conv2d):
            if init == "xavier":
                nn.init.xavier_uniform_(layer.weight.flatten(1))
            else:
                nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if init == "trunc_normal_scaled":
        stack: list[Any] = [layer for layer in module.modules() if isinstance(layer, Block)]
        for i, block in enumerate(stack, start=1):
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.data /= math.sqrt(2 * i)


def tokens_at(x: Tensor, indices: Tensor) -> Tensor:
    """``[B, N, D]`` and ``[B, K]`` int64 to the tokens ``[B, K, D]`` at these indices."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


def check_indices(indices: Tensor, grid: tuple[int, int]) -> None:
    """Raises :class:`DataError` for an index outside the grid; looks at CPU tensors only, which costs no wait."""
    if indices.device.type != "cpu" or torch.compiler.is_compiling() or not indices.numel():
        return
    for index in (int(indices.min()), int(indices.max())):
        if not 0 <= index < grid[0] * grid[1]:
            raise DataError(f"mask index {index} is outside the grid of {grid[0]} x {grid[1]} patches")


def last_block(block: nn.Module, x: Tensor, queries: int) -> Tensor:
    """``block(x)[:, -queries:]`` of a timm ``Block``, without computing the output of the other tokens.

    ``[B, N, D]`` to ``[B, queries, D]``.
    """
    layers: Any = block
    attention, width, normed = layers.attn, x.shape[-1], layers.norm1(x)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = F.linear(normed[:, -queries:], weight[:width], bias[:width])
    key, value = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
    query, key, value = (rearrange(t, "b n (h d) -> b h n d", h=attention.num_heads) for t in (query, key, value))
    attended = rearrange(F.scaled_dot_product_attention(query, key, value), "b h n d -> b n (h d)")
    x = x[:, -queries:] + layers.drop_path1(attention.proj(attended))
    return x + layers.drop_path2(layers.mlp(layers.norm2(x)))


class VisionTransformer(nn.Module):
    """Plain ViT (Dosovitskiy et al. 2021) whose parameters are named as timm's with ``class_token=False``.

    Images are ``[B, in_channels, H, W]`` float, with both sides multiples of ``patch_size``; for sides other than
    ``image_size`` the table of positions is resized bicubically. ``init`` is explained in :func:`initialise`.
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
        drop_path: float = 0.0,
        init: Init = "trunc_normal",
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ConfigError(f"image side {image_size} is not a multiple of the patch {patch_size}")
        self.width, self.heads, self.patch_size = width, heads, patch_size
        self.patch_embed = PatchEmbed(image_size, patch_size, in_channels, width, strict_img_size=False)
        self.grid: tuple[int, int] = self.patch_embed.grid_size
        self.register_buffer("pos_embed", sincos_2d(self.grid, width)[None])
        self.blocks = blocks(width, depth, heads, mlp_ratio, drop_path)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        initialise(self, init)

    @classmethod
    def of_size(cls, size: str, **options: Any) -> Self:
        """The model with width, depth and heads of ``SIZES[size]``: tiny, small, base, large, huge or giant."""
        if size not in SIZES:
            raise ConfigError(f"unknown ViT size '{size}'{nearest(size, SIZES)}")
        return cls(**{**SIZES[size], **options})

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The table ``[1, rows * columns, width]`` for ``grid``, resized bicubically where it is not the model's."""
        if grid == self.grid:
            return self.pos_embed
        return resample_abs_pos_embed(self.pos_embed, grid, self.grid, num_prefix_tokens=0, antialias=False)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Patch tokens with positions, ``[B, N, width]``, or those at ``keep`` ``[B, K]``."""
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise DataError(f"image of {height} x {width} pixels: not multiples of the patch {self.patch_size}")
        grid = height // self.patch_size, width // self.patch_size
        tokens = self.patch_embed(images) + self.positions(grid)
        if keep is None:
            return tokens
        check_indices(keep, grid)
        return tokens_at(tokens, keep)

    @overload
    def forward(self, images: Tensor, keep: Tensor | None = ..., layer_results: Literal[False] = ...) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, keep: Tensor | None = ..., *, layer_results: Literal[True]) -> list[Tensor]: ...
    def forward(self, images: Tensor, keep: Tensor | None = None, layer_results: bool = False) -> Tensor | list[Tensor]:
        """Normalised tokens ``[B, N, width]``; with ``keep`` ``[B, K]`` int64 only these patches are seen.

        ``layer_results`` gives the outputs of all blocks instead, the last one normalised.

        Raises:
            DataError: a side is not a multiple of the patch, or an index lies outside the grid.
        """
        x = self.embed(images, keep)
        results = []
        for block in self.blocks:
            x = block(x)
            if layer_results:
                results.append(x)
        x = self.norm(x)
        return [*results[:-1], x] if layer_results else x


def resize_state(state: Mapping[str, Tensor], patch_size: int, image_size: int) -> dict[str, Tensor]:
    """The state of a :class:`VisionTransformer` for another patch and image size, resized bicubically.

    The kernel ``patch_embed.proj.weight`` becomes ``[D, C, patch_size, patch_size]`` and ``pos_embed``
    ``[1, (image_size / patch_size)², D]``; the square grid of the table is read from its length.
    """
    kernel, table = state["patch_embed.proj.weight"], state["pos_embed"]
    old, new = math.isqrt(table.shape[1]), image_size // patch_size
    resized = dict(state)
    if kernel.shape[-1] != patch_size:
        resized["patch_embed.proj.weight"] = F.interpolate(
            kernel, size=(patch_size, patch_size), mode="bicubic", align_corners=False
        )
    if old != new:
        resized["pos_embed"] = resample_abs_pos_embed(
            table, (new, new), (old, old), num_prefix_tokens=0, antialias=False
        )
    return resized


def classifier(
    classes: int,
    image_size: int = 224,
    patch_size: int = 16,
    in_channels: int = 3,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
) -> timm.models.VisionTransformer:
    """timm's ViT as masked autoencoders are fine-tuned: learned positions, the mean of patch tokens, ``fc_norm``, head.

    The last layer starts with standard deviation 2e-5; ``classes`` 0: there is none.
    """
    norm = cast(type[nn.Module], partial(nn.LayerNorm, eps=1e-6))
    made = timm.models.VisionTransformer(
        image_size, patch_size, in_channels, classes, global_pool="avg", embed_dim=width, depth=depth, num_heads=heads,
        mlp_ratio=mlp_ratio, drop_path_rate=drop_path, norm_layer=norm,
    )  # fmt: skip
    if classes:
        nn.init.trunc_normal_(made.head.weight, std=2e-5)
    return made


def load_encoder(model: timm.models.VisionTransformer, state: Mapping[str, Tensor]) -> None:
    """Weights of a pre-trained encoder with timm's names into a fine-tuned one; head and its norm stay as they are.

    The table of positions is resized bicubically, its first entry (the class token's) kept.

    Raises:
        DataError: weights of the encoder are missing, or have another shape.
    """
    grid = model.patch_embed.grid_size
    table = state.get("pos_embed")
    side = 0 if table is None else math.isqrt(table.shape[1] - 1)
    taken = {name: value for name, value in state.items() if name in model.state_dict()}
    if table is not None and (side, side) != tuple(grid):
        taken["pos_embed"] = resample_abs_pos_embed(table, list(grid), [side, side], antialias=False)
    try:
        missing = model.load_state_dict(taken, strict=False).missing_keys
    except RuntimeError as error:
        raise DataError(f"the encoder does not fit: {str(error).splitlines()[-1].strip()}") from None
    lacking = [name for name in missing if not name.startswith(("head.", "fc_norm.", "norm."))]
    if lacking:
        raise DataError(f"the checkpoint lacks {', '.join(lacking[:5])}{' ...' if len(lacking) > 5 else ''}")
