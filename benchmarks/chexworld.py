"""CheXWorld: a pretraining step and mask sampling against the straightforward form, on one core.

Run with ``python -m benchmarks.chexworld``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import compare
from repertory.nn.positions import frequencies, relative_easy
from repertory.nn.vit import VisionTransformer
from repertory.systems.chexworld.masks import MultiBlockMasks
from repertory.systems.chexworld.model import Predictor, WorldModel
from repertory.systems.chexworld.objective import world_model_loss

BATCH, CONTEXT, TARGET = 4, 51, 80


def _inputs() -> dict[str, Tensor]:
    torch.manual_seed(0)
    images, augmented = torch.randn(2, 2, BATCH, 3, 224, 224)
    order = torch.rand(BATCH, 196).argsort(-1)
    return {
        "images": images,
        "augmented": augmented,
        "policy": torch.rand(2, BATCH, 5),
        "rel": torch.rand(2, BATCH, 4),
        "context_indices": order[:, :CONTEXT],
        "target_indices": order[:, CONTEXT : CONTEXT + TARGET],
        "shuffle": torch.randperm(BATCH),
    }


def _model() -> WorldModel:
    torch.manual_seed(0)
    encoder = VisionTransformer.of_size("small")
    return WorldModel(encoder, Predictor(14, encoder.width, width=384, depth=6, heads=encoder.heads))


def ours() -> Callable[[], float]:
    model, inputs = _model(), _inputs()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)

    def step() -> float:
        loss = world_model_loss(*model(**inputs)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.update_target(0.996)
        return loss.item()

    return step


def _gather(x: Tensor, indices: Tensor) -> Tensor:
    return torch.gather(x, 1, indices.unsqueeze(-1).repeat(1, 1, x.shape[-1]))


def _predict(p: Predictor, context: Tensor, seen: Tensor, asked: Tensor, policy: Tensor, rel: Tensor | None) -> Tensor:
    """One prediction: own embedding of the context, whole table of positions, every block on every token."""
    x = p.predictor_embed(context) + _gather(p.predictor_pos_embed.repeat(len(context), 1, 1), seen)
    rel = torch.zeros(len(context), 4) if rel is None else rel
    table = relative_easy(rel, p.grid, frequencies(p.mask_token.shape[-1]))
    query = p.mask_token.repeat(len(context), asked.shape[1], 1) + _gather(table, asked)
    query = p.policy_net(torch.cat([query, policy[:, None].repeat(1, asked.shape[1], 1)], -1))
    x = torch.cat([x, query], 1)
    for block in p.predictor_blocks:
        x = block(x)
    return p.predictor_proj(p.predictor_norm(x)[:, seen.shape[1] :])


def straightforward() -> Callable[[], float]:
    model, b = _model(), _inputs()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)

    def target(images: Tensor, indices: Tensor) -> Tensor:
        with torch.no_grad():
            h = model.target_encoder(images, layer_results=True)[-1]
            return _gather(torch.nn.functional.layer_norm(h, h.shape[-1:]), indices)

    def step() -> float:
        s = b["shuffle"]
        seen, asked = (b["context_indices"], b["context_indices"][s]), (b["target_indices"], b["target_indices"][s])
        h = [target(b["images"][v], asked[v]) for v in (0, 1)]
        c = [model.encoder(b["augmented"][v], seen[v]) for v in (0, 1)]
        z = [
            _predict(model.predictor, c[of], seen[of], asked[to], b["policy"][of], rel)
            for of, to, rel in ((0, 0, None), (1, 1, None), (0, 1, b["rel"][0]), (1, 0, b["rel"][1]))
        ]
        losses = [((z[i] - h[to]) ** 2).mean() for i, to in enumerate((0, 1, 1, 0))]
        intra, extra = (losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2
        deviation = sum((v.var(dim=1) + 1e-4).sqrt() for v in z) / 4
        loss = (intra + extra) / 2
        intra.item(), extra.item(), deviation.mean().item()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            pairs = zip(model.target_encoder.parameters(), model.encoder.parameters(), strict=True)
            for old, new in pairs:
                old.mul_(0.996).add_((1 - 0.996) * new)
        return loss.item()

    return step


def looped_masks(batch: int, sampler: MultiBlockMasks) -> tuple[Tensor, Tensor]:
    """One image and one 2-D mask at a time."""
    rows, columns = sampler.grid
    u = torch.rand(4).tolist()
    pred_size = sampler.block_size(sampler.target_scale, sampler.target_aspect, (u[0], u[1]))
    enc_size = sampler.block_size(sampler.context_scale, (1.0, 1.0), (u[2], u[3]))

    def block(size: tuple[int, int], regions: list[Tensor]) -> tuple[Tensor, Tensor]:
        tries, timeout = 0, 20
        while True:
            top = int(torch.randint(0, rows - size[0] + 1, (1,)))
            left = int(torch.randint(0, columns - size[1] + 1, (1,)))
            mask = torch.zeros((rows, columns), dtype=torch.int32)
            mask[top : top + size[0], left : left + size[1]] = 1
            for region in regions[: max(len(regions) - tries, 0)]:
                mask *= region
            indices = torch.nonzero(mask.flatten()).squeeze(1)
            if len(indices) > sampler.min_keep:
                break
            timeout -= 1
            if timeout == 0:
                tries, timeout = tries + 1, 20
        free = torch.ones((rows, columns), dtype=torch.int32)
        free[top : top + size[0], left : left + size[1]] = 0
        return indices, free

    contexts, targets = [], []
    for _ in range(batch):
        drawn = [block(pred_size, []) for _ in range(sampler.blocks)]
        targets.append(torch.cat([i for i, _ in drawn]).unique())
        contexts.append(block(enc_size, [free for _, free in drawn])[0])
    cut = [min(map(len, masks)) for masks in (contexts, targets)]
    return torch.stack([m[: cut[0]] for m in contexts]), torch.stack([m[: cut[1]] for m in targets])


def masks_ours() -> Callable[[], Any]:
    return partial(MultiBlockMasks(), 128)


def masks_straightforward() -> Callable[[], Any]:
    return partial(looped_masks, 128, MultiBlockMasks())


def main() -> None:
    sizes = {
        "encoder": "ViT-S/16", "image": 224, "predictor": "6 x 384", "batch": BATCH, "context patches": CONTEXT,
        "target patches": TARGET, "dtype": "float32",
    }  # fmt: skip
    compare("chexworld", "pre-training step", ours, straightforward, sizes)
    sizes = {"batch": 128, "grid": 14}
    compare("chexworld", "mask sampling", masks_ours, masks_straightforward, sizes, repeats=20)


if __name__ == "__main__":
    main()
