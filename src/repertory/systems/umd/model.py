"""UMD (Hansen-Estruch et al. 2024): an asymmetric vision transformer that draws images and noise from masked images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from repertory.errors import ConfigError, DataError
from repertory.nn.masking import Masking, fill, patchify, random_masking, unpatchify

SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 384, "depth": 12, "heads": 6, "decoder_depth": 4},
    "base": {"width": 768, "depth": 12, "heads": 12, "decoder_depth": 4},
    "large": {"width": 1024, "depth": 24, "heads": 16, "decoder_depth": 8},
}
"""The paper's sizes S, B and L."""
CLASS_TOKENS = 4


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x (1 + scale) + shift`` for ``x`` ``[B, N, D]``, the others ``[B or 1, 1, D]`` (adaLN, Peebles & Xie 2023)."""
    return torch.addcmul(shift, x, 1 + scale)


class GeluLinear(torch.autograd.Function):
    """``linear(gelu(x), weight, bias)`` that keeps ``x`` alone: the activation is computed again in the backward pass.

    Of all that a block keeps for its gradient a fifth is this activation, which costs little to compute.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x, approximate="tanh"), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].to(x.dtype)
        flat = gradient.flatten(0, -2)
        of_weight = flat.mT @ F.gelu(x, approximate="tanh").flatten(0, -2)
        of_x = torch.ops.aten.gelu_backward(gradient @ weight.to(x.dtype), x, approximate="tanh")
        return of_x, of_weight.to(weight.dtype), flat.sum(0).to(weight.dtype)


class ModulatedLinear(torch.autograd.Function):
    """``linear(modulate(norm(x), shift, scale), weight, bias)`` that keeps ``x`` and its moments alone.

    Of all that a block keeps for its gradient a quarter is what lies between, which costs little to compute again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, shift: Tensor, scale: Tensor,
        weight: Tensor, bias: Tensor,
    ) -> Tensor:  # fmt: skip
        normed, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        ctx.save_for_backward(x, norm_weight, norm_bias, mean, deviation, shift, scale, weight)
        ctx.eps = eps
        return F.linear(modulate(normed, shift, scale), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, mean, deviation, shift, scale, weight = ctx.saved_tensors
        normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, ctx.eps)
        gradient = gradients[0].to(x.dtype)
        flat = gradient.flatten(0, -2)
        of_weight = flat.mT @ modulate(normed, shift, scale).flatten(0, -2)
        inside = (gradient @ weight.to(x.dtype)).to(x.dtype)  # a product under autocast is of lower precision
        of_shift, of_scale = inside.sum_to_size(shift.shape), (normed * inside).sum_to_size(scale.shape)
        of_x, of_norm_weight, of_norm_bias = torch.ops.aten.native_layer_norm_backward(
            inside.mul_(1 + scale), x, x.shape[-1:], mean, deviation, norm_weight, norm_bias, [True, True, True]
        )
        of_bias = flat.sum(0).to(weight.dtype)
        return of_x, of_norm_weight, of_norm_bias, None, of_shift, of_scale, of_weight.to(weight.dtype), of_bias


def modulated_linear(x: Tensor, norm: nn.LayerNorm, shift: Tensor, scale: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(modulate(norm(x), shift, scale))``, in less memory where gradients are wanted."""
    if not torch.is_grad_enabled():
        return layer(modulate(norm(x), shift, scale))
    made: Tensor = ModulatedLinear.apply(x, norm.weight, norm.bias, norm.eps, shift, scale, layer.weight, layer.bias)
    return made


class Mlp(nn.Module):
    """Two linear layers with a GELU (tanh) between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.fc1(x))

    def project(self, hidden: Tensor) -> Tensor:
        """What follows the first layer."""
        if not torch.is_grad_enabled():
            return self.fc2(F.gelu(hidden, approximate="tanh"))
        made: Tensor = GeluLinear.apply(hidden, self.fc2.weight, self.fc2.bias)
        return made


def extrapolated(pair: Tensor, guidance: float) -> Tensor:
    """Of predictions with and without labels ``[2 B, ...]``: without, plus ``guidance`` times the difference."""
    known, unknown = pair.float().chunk(2)
    return torch.lerp(unknown, known, guidance)


def trunk(width: int) -> nn.Sequential:
    """What a time or a label goes through before it conditions the blocks."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))


class Block(nn.Module):
    """Pre-norm transformer block told a condition: six modulations (adaLN), or a token that attention sees.

    ``told`` is ``[B or 1, 6, 1, D]``: shift, scale and gate of the attention, then of the MLP; or, without
    ``adaln``, ``[B or 1, 1, D]``: a token that stands before the others and is dropped again, so that nothing but
    its key and value is computed.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, adaln: bool = True) -> None:
        super().__init__()
        self.heads, self.adaln = heads, adaln
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, round(width * mlp_ratio))

    def attend(self, qkv: Tensor, without: int = 0) -> Tensor:
        """Self-attention of projected tokens ``[B, N, 3 D]``; the first ``without`` are keys and values alone."""
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q[:, :, without:], k, v), "b h n d -> b n (h d)"))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        if not self.adaln:
            seen = torch.cat([self.norm1(told).expand(len(x), -1, -1), self.norm1(x)], dim=1)
            x = x + self.attend(self.qkv(seen), without=1)
            return x + self.mlp(self.norm2(x))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = told.to(x.dtype).unbind(1)
        qkv = modulated_linear(x, self.norm1, shift, scale, self.qkv)
        x = torch.addcmul(x, gate, self.attend(qkv).to(x.dtype))
        hidden = modulated_linear(x, self.norm2, mlp_shift, mlp_scale, self.mlp.fc1)
        return torch.addcmul(x, mlp_gate, self.mlp.project(hidden).to(x.dtype))


class Transformer(nn.Module):
    """Conditioned blocks and a LayerNorm; the modulations of all blocks are one projection of the condition."""

    def __init__(
        self, width: int, depth: int, heads: int, mlp_ratio: float = 4.0, adaln: bool = True, remat: bool = False
    ) -> None:
        super().__init__()
        self.depth, self.remat = depth, remat
        self.modulation = nn.Linear(width, depth * 6 * width) if adaln else None
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, adaln) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def told(self, condition: Tensor) -> Tensor:
        """What each block is told of conditions ``[R, D]``: ``[R, depth, 6, 1, D]``, or tokens ``[R, depth, 1, D]``."""
        if self.modulation is None:
            return repeat(condition, "r d -> r depth 1 d", depth=self.depth)
        return rearrange(self.modulation(condition), "r (depth six d) -> r depth six 1 d", depth=self.depth, six=6)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        for block, of_block in zip(self.blocks, told.unbind(1), strict=True):
            if self.remat and self.training:
                x = checkpoint(block, x, of_block, use_reentrant=False)
            else:
                x = block(x, of_block)
        return self.norm(x)


class Condition(NamedTuple):
    """What time and label tell the network, a row per image or one row for all of them.

    Attributes:
        encoder: of the encoder's blocks. decoder: of the decoder's blocks (see :meth:`Transformer.told`).
        final: shift and scale before the last layer, ``[R, 2, 1, D]``; None without adaLN.
    """

    encoder: Tensor
    decoder: Tensor
    final: Tensor | None

    def rows(self, indices: Tensor | slice) -> Condition:
        """The rows at ``indices``: images with the same time and label share a row until here."""
        return Condition(
            self.encoder[indices], self.decoder[indices], None if self.final is None else self.final[indices]
        )


class Patches(NamedTuple):
    """Predictions patch by patch: ``image`` and ``noise`` ``[B, L, p * p * C]``, ``representation`` ``[B, D]``."""

    image: Tensor
    noise: Tensor
    representation: Tensor


class Output(NamedTuple):
    """Predictions: ``image`` and ``noise`` ``[B, C, H, W]``, ``representation`` ``[B, D]``, and what was masked.

    ``mask`` ``[B, 1, H, W]`` is 1 for removed pixels.
    """

    image: Tensor
    noise: Tensor
    representation: Tensor
    mask: Tensor


class AutoEncoder(nn.Module):
    """Masked and noised images to the clean image and the noise, told the time (section 3 of the paper).

    Images are ``[B, C, H, W]`` in -1..1 (or latents), plus noise; times ``[B, 1]`` whole numbers: 0 for a clean image,
    s + 1 for diffusion step s. A label is a class 0..classes - 1, or ``classes`` for none.

    Args:
        image_size: side of the images in pixels (or of the latents). patch_size: side of a patch.
        channels: of the images. width, depth, heads: of the encoder. decoder_depth: the decoder is as wide.
        classes: None: no labels. adaln: modulate by the condition, or else give it as a token.
        label_dropout: probability of taking a label away in training. timesteps: of the diffusion.
        remat: recompute blocks in the backward pass instead of keeping what they computed.
    """

    frequencies: Tensor

    def __init__(
        self,
        image_size: int = 64,
        patch_size: int = 4,
        channels: int = 3,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        decoder_depth: int = 4,
        mlp_ratio: float = 4.0,
        classes: int | None = None,
        adaln: bool = True,
        label_dropout: float = 0.1,
        timesteps: int = 1000,
        class_tokens: int = CLASS_TOKENS,
        remat: bool = False,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ConfigError(f"image side {image_size} is not a multiple of the patch {patch_size}")
        if width % heads or width % 2:
            raise ConfigError(f"width {width} is not even and a multiple of the {heads} heads")
        self.image_size, self.patch_size, self.channels, self.width = image_size, patch_size, channels, width
        self.classes, self.adaln, self.label_dropout, self.timesteps = classes, adaln, label_dropout, timesteps
        side, pixels = image_size // patch_size, patch_size**2 * channels
        self.grid = (side, side)
        scales = torch.arange(width // 2, dtype=torch.float64) * (-math.log(10_000) / max(width // 2 - 1, 1))
        self.register_buffer("frequencies", scales.exp().float(), persistent=False)
        self.time_trunk = trunk(width)
        self.label_embedding = nn.Embedding(classes + 1, width) if classes is not None else None
        self.label_trunk = trunk(width) if classes is not None else None
        self.embedding = nn.Linear(pixels, width)
        self.positions = nn.Parameter(torch.empty(side**2, width))
        self.class_tokens = nn.Parameter(torch.empty(class_tokens, width))
        self.encoder = Transformer(width, depth, heads, mlp_ratio, adaln, remat)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.decoder_positions = nn.Parameter(torch.empty(side**2, width))
        self.decoder = Transformer(width, decoder_depth, heads, mlp_ratio, adaln, remat)
        self.final_modulation = nn.Linear(width, 2 * width) if adaln else None
        self.final = nn.Linear(width, 2 * pixels)
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # of time, label and patches; the others are set below
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.Embedding):
                nn.init.normal_(layer.weight, std=layer.embedding_dim**-0.5)
        for block in (*self.encoder.blocks, *self.decoder.blocks):
            of: Any = block
            query_key_value = of.qkv.weight.data.chunk(3)
            for matrix in (*query_key_value, of.proj.weight, of.mlp.fc1.weight, of.mlp.fc2.weight):
                nn.init.xavier_uniform_(matrix)
            for bias in (of.mlp.fc1.bias, of.mlp.fc2.bias):
                nn.init.normal_(bias, std=1e-6)
        for modulation in (self.encoder.modulation, self.decoder.modulation, self.final_modulation):
            if modulation is not None:
                nn.init.zeros_(modulation.weight)
        for table in (self.positions, self.decoder_positions):
            nn.init.normal_(table, std=len(table) ** -0.5)
        nn.init.zeros_(self.class_tokens)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.final.weight, std=0.02)

    @property
    def patches(self) -> int:
        """Number L of patches of an image."""
        return self.grid[0] * self.grid[1]

    def condition(self, t: Tensor, labels: Tensor | None = None) -> Condition:
        """What times ``[R, 1]`` and labels ``[R]`` (None: none is known) tell each block.

        Raises:
            DataError: times of another shape or range, labels out of range; looks at CPU tensors only.
        """
        self._check(t, labels)
        angle = t.float() * self.frequencies
        told = self.time_trunk(torch.cat([angle.sin(), angle.cos()], dim=-1))
        if self.label_embedding is not None and self.label_trunk is not None and self.classes is not None:
            if labels is None:
                labels = torch.full((len(t),), self.classes, device=t.device)
            told = told + self.label_trunk(self.label_embedding(labels.long()))
        if self.final_modulation is not None:
            told = F.silu(told)
            final = rearrange(self.final_modulation(told), "r (two d) -> r two 1 d", two=2)
            return Condition(self.encoder.told(told), self.decoder.told(told), final)
        return Condition(self.encoder.told(told), self.decoder.told(told), None)

    def _check(self, t: Tensor, labels: Tensor | None) -> None:
        if t.ndim != 2 or t.shape[1] != 1:
            raise DataError(f"times of shape {list(t.shape)}: expected [B, 1], whole numbers in 0..{self.timesteps}")
        if labels is not None and self.classes is None:
            raise ConfigError("labels were given, but the model has no classes")
        if labels is not None and labels.shape != t.shape[:1]:
            raise DataError(f"labels of shape {list(labels.shape)}: expected [{len(t)}], one for each image")
        if torch.compiler.is_compiling():
            return
        if t.device.type == "cpu" and len(t) and not 0 <= int(t.min()) <= int(t.max()) <= self.timesteps:
            raise DataError(
                f"times in {int(t.min())}..{int(t.max())}: expected [B, 1] in 0..{self.timesteps}, 0 for clean images"
            )
        if labels is not None and self.classes is not None and labels.device.type == "cpu" and len(labels):
            worst = int(labels.max()) if int(labels.min()) >= 0 else int(labels.min())
            if not 0 <= worst <= self.classes:
                raise DataError(f"label {worst}: there are classes 0..{self.classes - 1} ({self.classes} means none)")

    def dropped(self, labels: Tensor, draws: Tensor | None = None) -> Tensor:
        """Labels ``[B]`` of which each was taken away where its uniform draw is below ``label_dropout``."""
        assert self.classes is not None
        draws = torch.rand(len(labels), device=labels.device) if draws is None else draws
        return torch.where(draws < self.label_dropout, self.classes, labels)

    def encode(self, patches: Tensor, condition: Condition, masking: Masking | None = None) -> tuple[Tensor, Tensor]:
        """Patches ``[B, L, p * p * C]`` to the mean of the class tokens, ``[B, D]``, and seen tokens ``[B, K, D]``."""
        if masking is None:
            tokens = self.embedding(patches) + self.positions
        else:
            seen = patches.gather(1, masking.keep[..., None].expand(-1, -1, patches.shape[-1]))
            tokens = self.embedding(seen) + F.embedding(masking.keep, self.positions)
        first = self.class_tokens.to(tokens.dtype).expand(len(tokens), -1, -1)
        x = self.encoder(torch.cat([first, tokens], dim=1), condition.encoder)
        return x[:, : first.shape[1]].mean(1), x[:, first.shape[1] :]

    def placed(self, tokens: Tensor, masking: Masking) -> Tensor:
        """Tokens ``[B, K, D]`` of seen patches in their places, ``[B, L, D]``, and the mask token in the others."""
        return fill(tokens, self.mask_token, masking.restore)

    def decode(self, representation: Tensor, tokens: Tensor, condition: Condition) -> Patches:
        """Representation ``[B, D]`` and tokens ``[B, L, D]`` to predictions of all patches."""
        x = torch.cat([representation[:, None], tokens + self.decoder_positions], dim=1)
        x = self.decoder(x, condition.decoder)[:, 1:]
        if condition.final is not None:
            x = modulate(x, *condition.final.to(x.dtype).unbind(1))
        image, noise = self.final(x).chunk(2, dim=-1)
        return Patches(image, noise, representation)

    def autoencode(self, patches: Tensor, condition: Condition, masking: Masking | None = None) -> Patches:
        """The whole network on patches ``[B, L, p * p * C]``."""
        representation, tokens = self.encode(patches, condition, masking)
        return self.decode(representation, tokens if masking is None else self.placed(tokens, masking), condition)

    def patched(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` as patches ``[B, L, p * p * C]``.

        Raises:
            DataError: images of another size or number of channels.
        """
        expected = (self.channels, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise DataError(f"images of shape {list(images.shape)}: expected [B, {', '.join(map(str, expected))}]")
        return patchify(images, self.patch_size)

    def forward(
        self,
        images: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        ratio: float = 0.0,
        noise: Tensor | None = None,
        guidance: float | None = None,
    ) -> Output:
        """Predictions for images ``[B, C, H, W]`` at times ``[B, 1]``.

        Args:
            labels: classes ``[B]``; with ``guidance`` the prediction is that without labels plus ``guidance`` times
                what labels change (Ho & Salimans 2022).
            ratio: share of patches that are removed, at random: the ``int(L (1 - ratio))`` with the least ``noise``
                ``[B, L]`` are kept.

        Raises:
            DataError: wrong shapes or values. ConfigError: guidance without labels, or in training.
        """
        patches, masking = self.patched(images), None
        if ratio:
            draws = torch.rand(patches.shape[:2], device=images.device) if noise is None else noise
            masking = random_masking(draws, ratio)
        if guidance is None:
            made = self.autoencode(patches, self.condition(t, labels), masking)
        else:
            made = self.guided(patches, self.pair(t, labels), guidance, masking)
        mask = images.new_zeros(patches.shape[:2]) if masking is None else masking.mask
        return Output(
            unpatchify(made.image, self.patch_size, self.grid),
            unpatchify(made.noise, self.patch_size, self.grid),
            made.representation,
            repeat(mask, "b (h w) -> b 1 (h p) (w q)", h=self.grid[0], p=self.patch_size, q=self.patch_size),
        )

    def pair(self, t: Tensor, labels: Tensor | None) -> Condition:
        """Conditions of ``[2 R]`` rows for :meth:`guided`: with labels ``[R]``, then without.

        Raises:
            ConfigError: no labels, or in training.
        """
        if labels is None:
            raise ConfigError("guidance compares with and without labels: give labels")
        if self.training:
            raise ConfigError("guidance is for sampling; call eval() first")
        self._check(t, labels)
        return self.condition(torch.cat([t, t]), torch.cat([labels, torch.full_like(labels, self.classes or 0)]))

    def guided(self, patches: Tensor, pair: Condition, guidance: float, masking: Masking | None = None) -> Patches:
        """Classifier-free guidance on patches ``[B, L, p * p * C]``, told a pair of ``2 B`` conditions.

        The representation is that with labels.
        """
        twice = None if masking is None else Masking(*(torch.cat([part, part]) for part in masking))
        made = self.autoencode(torch.cat([patches, patches]), pair, twice)
        image, noise = (extrapolated(part, guidance) for part in (made.image, made.noise))
        return Patches(image, noise, made.representation.chunk(2)[0])

    def represent(self, images: Tensor, t: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """The representation ``[B, D]`` of whole images: the mean of the class tokens; ``t`` None: clean images."""
        return self.tokens(images, t, labels)[0]

    def tokens(self, images: Tensor, t: Tensor | None = None, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The representation ``[B, D]`` and the encoder's tokens ``[B, L, D]`` of whole images."""
        if t is None:
            t = torch.zeros(1, 1, dtype=torch.long, device=images.device)  # one row for all images
        return self.encode(self.patched(images), self.condition(t, labels))


def shape_of(model: AutoEncoder) -> dict[str, Any]:
    """The sizes of a model, as arguments that make another."""
    first: Any = model.encoder.blocks[0]
    return {
        "image_size": model.image_size, "patch_size": model.patch_size, "channels": model.channels,
        "width": model.width, "depth": model.encoder.depth, "heads": first.heads,
        "decoder_depth": model.decoder.depth, "mlp_ratio": first.mlp.fc1.out_features / model.width,
        "adaln": model.adaln,
    }  # fmt: skip


# -- official checkpoints --------------------------------------------------------------------------------------------

BLOCKS = "ScanCheckpointEncoder1DBlock_0"
ATTENTION = "MultiHeadDotProductAttention_0"


def _linear(state: Mapping[str, Tensor], official: str, ours: str) -> dict[str, Tensor]:
    return {f"{ours}.weight": state[f"{official}/kernel"].mT, f"{ours}.bias": state[f"{official}/bias"]}


def _trunk(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return _linear(state, f"{name}/Dense_0", f"{name}.0") | _linear(state, f"{name}/Dense_1", f"{name}.2")


def _stack(state: Mapping[str, Tensor], official: Literal["Encoder", "Decoder"], ours: str) -> dict[str, Tensor]:
    """The blocks of one stack, whose tensors have a leading axis of layers."""
    of = {k.removeprefix(f"{official}/{BLOCKS}/"): v for k, v in state.items() if k.startswith(f"{official}/{BLOCKS}/")}
    made = {
        f"{ours}.norm.weight": state[f"{official}/encoder_norm/scale"],
        f"{ours}.norm.bias": state[f"{official}/encoder_norm/bias"],
    }
    if "Dense_0/kernel" in of:
        made[f"{ours}.modulation.weight"] = rearrange(of["Dense_0/kernel"], "layer i o -> (layer o) i")
        made[f"{ours}.modulation.bias"] = of["Dense_0/bias"].flatten()
    kernels = torch.stack([of[f"{ATTENTION}/{name}/kernel"] for name in ("query", "key", "value")])
    biases = torch.stack([of[f"{ATTENTION}/{name}/bias"] for name in ("query", "key", "value")])
    stacked = {
        "norm1.weight": of["LayerNorm_0/scale"],
        "norm1.bias": of["LayerNorm_0/bias"],
        "qkv.weight": rearrange(kernels, "three layer i h d -> layer (three h d) i"),
        "qkv.bias": rearrange(biases, "three layer h d -> layer (three h d)"),
        "proj.weight": rearrange(of[f"{ATTENTION}/out/kernel"], "layer h d o -> layer o (h d)"),
        "proj.bias": of[f"{ATTENTION}/out/bias"],
        "norm2.weight": of["LayerNorm_1/scale"],
        "norm2.bias": of["LayerNorm_1/bias"],
        "mlp.fc1.weight": of["MlpBlock_0/Dense_0/kernel"].mT,
        "mlp.fc1.bias": of["MlpBlock_0/Dense_0/bias"],
        "mlp.fc2.weight": of["MlpBlock_0/Dense_1/kernel"].mT,
        "mlp.fc2.bias": of["MlpBlock_0/Dense_1/bias"],
    }
    for name, layers in stacked.items():
        made |= {f"{ours}.blocks.{i}.{name}": layer for i, layer in enumerate(layers)}
    return made


def from_official_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official tree of Flax parameters, joined with ``/``, as the state dict of an :class:`AutoEncoder`.

    The patch embedding and the transposed convolution at the end are linear maps of patches, since their strides are
    their sizes; the latter's kernel is flipped, as Flax's transposed convolution does not.

    Raises:
        KeyError: an official tensor is missing.
    """
    made = {
        "embedding.weight": rearrange(state["embedding/kernel"], "p q c d -> d (p q c)"),
        "embedding.bias": state["embedding/bias"],
        "positions": state["pos_embedding"][0],
        "decoder_positions": state["dec_pos_embedding"][0],
        "class_tokens": state["cls"][0],
        "mask_token": state["image_mask_embedding"][0, 0],
        **_trunk(state, "time_trunk"),
        **_stack(state, "Encoder", "encoder"),
        **_stack(state, "Decoder", "decoder"),
    }
    kernel, p = state["final_conv/kernel"].flip(0, 1), len(state["final_conv/kernel"])
    made["final.weight"] = rearrange(kernel, "p q d (two c) -> (two p q c) d", two=2)
    made["final.bias"] = repeat(state["final_conv/bias"], "(two c) -> (two p q c)", two=2, p=p, q=p)
    if "final_modulation/kernel" in state:
        made |= _linear(state, "final_modulation", "final_modulation")
    if "label_emb/embedding/embedding" in state:
        made["label_embedding.weight"] = state["label_emb/embedding/embedding"]
        made |= _trunk(state, "label_trunk")
    return made


def official_shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of an official state, as arguments of :class:`AutoEncoder`."""
    patch, _, channels, width = state["embedding/kernel"].shape
    block = f"Encoder/{BLOCKS}"
    table = state.get("label_emb/embedding/embedding")
    return {
        "image_size": patch * math.isqrt(state["pos_embedding"].shape[1]),
        "patch_size": patch,
        "channels": channels,
        "width": width,
        "depth": len(state[f"{block}/LayerNorm_0/scale"]),
        "heads": state[f"{block}/{ATTENTION}/query/kernel"].shape[2],
        "decoder_depth": len(state[f"Decoder/{BLOCKS}/LayerNorm_0/scale"]),
        "mlp_ratio": state[f"{block}/MlpBlock_0/Dense_0/kernel"].shape[-1] / width,
        "classes": None if table is None else len(table) - 1,
        "adaln": "final_modulation/kernel" in state,
        "class_tokens": state["cls"].shape[1],
    }
