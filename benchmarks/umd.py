"""UMD: a pre-training step, and a sampling step with guidance, against a plain PyTorch port, on one core.

The port keeps what the backward pass needs, or (as the official code) computes every block again.

Run with ``python -m benchmarks.umd``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.measure import compare
from repertory.systems.umd.diffusion import Diffusion
from repertory.systems.umd.model import SIZES, AutoEncoder
from repertory.systems.umd.objective import MaskedDiffusionLoss

BATCH, SIDE, PATCH, CLASSES = 8, 64, 4, 10
SAMPLES = 8


class Block(nn.Module):
    """Own projections of query, key and value, attention as matrices, and a modulation of its own."""

    def __init__(self, width: int, heads: int, adaln: bool) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width) if adaln else None
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attention(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (
            layer(x).reshape(b, n, self.heads, d // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(d // self.heads), dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, d))

    def mlp(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        if self.modulation is None:
            x = torch.cat([condition[:, None], x], dim=1)
            x = x + self.attention(self.norm1(x))
            x = x + self.mlp(self.norm2(x))
            return x[:, 1:]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate * self.attention(self.norm1(x) * (1 + scale) + shift)
        return x + mlp_gate * self.mlp(self.norm2(x) * (1 + mlp_scale) + mlp_shift)


class Port(nn.Module):
    """The network as the paper writes it, with the weights of ours."""

    def __init__(self, ours: AutoEncoder, remat: bool = False) -> None:
        super().__init__()
        self.remat = remat
        width, p, c = ours.width, ours.patch_size, ours.channels
        self.side, self.patch, self.channels, self.classes = ours.image_size // p, p, c, ours.classes
        self.embedding = nn.Conv2d(c, width, p, p)
        self.embedding.weight.data = ours.embedding.weight.reshape(width, p, p, c).permute(0, 3, 1, 2).contiguous()
        self.embedding.bias = ours.embedding.bias
        self.time_trunk, self.label_trunk, self.labels = ours.time_trunk, ours.label_trunk, ours.label_embedding
        self.positions, self.decoder_positions = ours.positions, ours.decoder_positions
        self.cls, self.mask_token = ours.class_tokens, ours.mask_token
        self.encoder, self.encoder_norm = self._stack(ours.encoder, ours.adaln), ours.encoder.norm
        self.decoder, self.decoder_norm = self._stack(ours.decoder, ours.adaln), ours.decoder.norm
        self.final_modulation = ours.final_modulation
        self.final = nn.ConvTranspose2d(width, 2 * c, p, p)
        final = ours.final.weight.reshape(2, p, p, c, width)
        self.final.weight.data = final.permute(4, 0, 3, 1, 2).reshape(width, 2 * c, p, p).contiguous()
        self.final.bias.data = ours.final.bias.reshape(2, p, p, c)[:, 0, 0].flatten()

    @staticmethod
    def _stack(ours: nn.Module, adaln: bool) -> nn.ModuleList:
        made = nn.ModuleList()
        for i, of in enumerate(ours.blocks):
            width = of.norm1.weight.shape[0]
            block = Block(width, of.heads, adaln)
            for layer, weight, bias in zip(
                (block.query, block.key, block.value), of.qkv.weight.chunk(3), of.qkv.bias.chunk(3), strict=True
            ):
                layer.weight.data, layer.bias.data = weight.detach().clone(), bias.detach().clone()
            block.out, block.fc1, block.fc2 = of.proj, of.mlp.fc1, of.mlp.fc2
            block.norm1, block.norm2 = of.norm1, of.norm2
            if block.modulation is not None:
                rows = slice(6 * width * i, 6 * width * (i + 1))
                block.modulation.weight.data = ours.modulation.weight[rows].detach().clone()
                block.modulation.bias.data = ours.modulation.bias[rows].detach().clone()
            made.append(block)
        return made

    def run(self, block: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
        return checkpoint(block, x, condition, use_reentrant=False) if self.remat else block(x, condition)

    def condition(self, t: Tensor, labels: Tensor | None) -> Tensor:
        half = self.positions.shape[1] // 2
        angle = t.float() * torch.exp(-torch.arange(half) * math.log(10_000) / (half - 1))
        told = self.time_trunk(torch.cat([angle.sin(), angle.cos()], dim=-1))
        if self.labels is not None:
            labels = torch.full((len(t),), self.classes) if labels is None else labels
            told = told + self.label_trunk(self.labels(labels))
        return told if self.final_modulation is None else F.silu(told)

    def forward(self, images: Tensor, t: Tensor, ratio: float, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        condition, b, length = self.condition(t, labels), len(images), self.side**2
        x = self.embedding(images).flatten(2).transpose(1, 2) + self.positions
        kept = int(length * (1 - ratio))
        order = torch.rand(b, length).argsort(dim=1)
        restore = order.argsort(dim=1)
        mask = torch.ones(b, length)
        mask[:, :kept] = 0
        mask = torch.gather(mask, 1, restore)
        x = torch.gather(x, 1, order[:, :kept, None].repeat(1, 1, x.shape[-1]))
        x = torch.cat([self.cls.repeat(b, 1, 1), x], dim=1)
        for block in self.encoder:
            x = self.run(block, x, condition)
        x = self.encoder_norm(x)
        representation, x = x[:, :4].mean(dim=1, keepdim=True), x[:, 4:]
        x = torch.cat([x, self.mask_token.repeat(b, length - kept, 1)], dim=1)
        x = torch.gather(x, 1, restore[..., None].repeat(1, 1, x.shape[-1])) + self.decoder_positions
        x = torch.cat([representation, x], dim=1)
        for block in self.decoder:
            x = self.run(block, x, condition)
        x = self.decoder_norm(x)[:, 1:]
        if self.final_modulation is not None:
            shift, scale = self.final_modulation(condition)[:, None].chunk(2, dim=-1)
            x = x * (1 + scale) + shift
        made = self.final(x.transpose(1, 2).reshape(b, -1, self.side, self.side))
        pixels = mask.reshape(b, 1, self.side, self.side)
        return made, pixels.repeat_interleave(self.patch, dim=2).repeat_interleave(self.patch, dim=3)


def port_loss(model: Port, diffusion: Diffusion, images: Tensor) -> Tensor:
    """Two passes, and errors of whole images."""
    n, c = len(images) // 2, model.channels
    steps, noise = torch.randint(1000, (n, 1)), torch.randn_like(images[:n])
    made, mask = model(diffusion.noised(images[:n], steps, noise), steps + 1, 0.375)
    image_errors, noise_errors = (made[:, :c] - images[:n]) ** 2, (made[:, c:] - noise) ** 2
    noisy = (noise_errors * (1 - mask)).mean() / (1 - mask).mean() + (image_errors * mask).mean() / mask.mean()
    made, mask = model(images[n:], torch.zeros(len(images) - n, 1), 0.75)
    clean = ((made[:, :c] - images[n:]) ** 2 * mask).mean() / mask.mean()
    return (noisy / 2 + clean) / 2


def _model(classes: int | None = None) -> AutoEncoder:
    torch.manual_seed(0)
    return AutoEncoder(SIDE, PATCH, 3, classes=classes, **SIZES["small"])


def _images() -> Tensor:
    return torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1


def ours() -> Callable[[], float]:
    model, images = _model(), _images()
    loss = MaskedDiffusionLoss(Diffusion())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step() -> float:
        value = loss(model, images, checked=True).loss
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    step()  # Adam's moments are there from the first step on, in either form
    return step


def straightforward(remat: bool = False) -> Callable[[], float]:
    model, images, diffusion = Port(_model(), remat), _images(), Diffusion()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95))

    def step() -> float:
        value = port_loss(model, diffusion, images)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    step()
    return step


def sampling_ours() -> Callable[[], Tensor]:
    model, diffusion = _model(CLASSES).eval(), Diffusion()
    x, rows, place = torch.randn(SAMPLES, 3, SIDE, SIDE), torch.arange(2), torch.arange(SAMPLES) % 2

    @torch.inference_mode()
    def step() -> Tensor:
        pair = model.pair(torch.full((2, 1), 501), rows).rows(torch.cat([place, place + 2]))
        noise = model.guided(model.patched(x), pair, 2.0).noise
        noise = noise.reshape(SAMPLES, *model.grid, PATCH, PATCH, 3).permute(0, 5, 1, 3, 2, 4).reshape_as(x)
        return diffusion.ddim(x, 500, 492, noise, torch.randn_like(x))[0]

    return step


def sampling_straightforward() -> Callable[[], Tensor]:
    model, diffusion = Port(_model(CLASSES)).eval(), Diffusion()
    x, labels = torch.randn(SAMPLES, 3, SIDE, SIDE), torch.arange(SAMPLES) % 2

    @torch.no_grad()
    def step() -> Tensor:
        null = torch.full_like(labels, CLASSES)
        t = torch.full((2 * SAMPLES, 1), 501)
        known, unknown = model(torch.cat([x, x]), t, 0.0, torch.cat([labels, null]))[0].chunk(2)
        made = unknown + 2.0 * (known - unknown)
        return diffusion.ddim(x, 500, 492, made[:, 3:], torch.randn_like(x))[0]

    return step


def main() -> None:
    sizes = {"model": "S/4", "image": SIDE, "batch": BATCH, "clean": BATCH // 2, "dtype": "float32"}
    samples = {"model": "S/4", "image": SIDE, "samples": SAMPLES, "guidance": 2.0, "dtype": "float32"}
    compare("umd", "pre-training step", ours, straightforward, sizes, repeats=3)
    name = "pre-training step, port rematerialised as the official code"
    compare("umd", name, ours, partial(straightforward, True), sizes, repeats=2)
    compare("umd", "sampling step with guidance", sampling_ours, sampling_straightforward, samples, repeats=2)


if __name__ == "__main__":
    main()
