"""FSFM: masking of a batch and a pre-training step against the straightforward form, on one core.

Run with ``python -m benchmarks.fsfm``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import compare
from repertory.data.samples.synthetic_faces.drawing import Identity, render
from repertory.nn.mae import MaskedEncoder
from repertory.nn.masking import fill, patch_errors
from repertory.systems.fsfm.masking import COVERED, GROUPS, sample
from repertory.systems.fsfm.model import FaceModel
from repertory.systems.fsfm.objective import fsfm_loss

MAPS, BATCH, SIDE, PATCH, RATIO, KEPT = 64, 2, 224, 16, 0.75, 49


def _maps(n: int) -> Tensor:
    """Parsing maps of drawn faces, ``[n, SIDE, SIDE]`` int8."""
    drawn = [render(Identity.draw(np.random.default_rng(i)), SIDE, np.random.default_rng(i))[1] for i in range(n)]
    return torch.from_numpy(np.stack(drawn).astype(np.int8))


# -- masking -----------------------------------------------------------------------------------------------------------


def masks() -> Callable[[], Any]:
    return partial(sample, _maps(MAPS), PATCH, RATIO)


def _pooled(parsing: Tensor, classes: tuple[int, ...]) -> Tensor:
    """``[N]`` bool: patches in which a class occurs, by max-pooling its map."""
    made = parsing == classes[0]
    for c in classes[1:]:
        made |= parsing == c
    return F.max_pool2d(made[None, None].float(), PATCH).flatten() > 0


def _region(parsing: Tensor, name: str) -> Tensor:
    if name == "boundary":
        skin, hair, background = (_pooled(parsing, (c,)) for c in (1, 10, 0))
        return skin & (hair | background)
    return _pooled(parsing, GROUPS[name])


def _one(parsing: Tensor, covered: str) -> tuple[Tensor, Tensor]:
    """The mask of one image, region after region."""
    region = _region(parsing, covered)
    mask, taken, n = region.clone(), region.clone(), region.numel()
    left = int(RATIO * n - region.sum())
    if left <= 0:
        candidates = region.nonzero()[:, 0]
        mask[candidates[torch.randperm(len(candidates))[:-left]]] = False
        return mask.float(), mask.float()
    share = left / (n - int(region.sum()))
    for name in GROUPS:
        if name == covered:
            continue
        candidates = (_region(parsing, name) & ~taken).nonzero()[:, 0]
        count = int(torch.round(torch.tensor(len(candidates) * share)))
        mask[candidates[torch.randperm(len(candidates))[:count]]] = True
        taken[candidates] = True
    change = int(RATIO * n - mask.sum())
    candidates = (~mask if change > 0 else mask & ~region).nonzero()[:, 0]
    mask[candidates[torch.randperm(len(candidates))[: abs(change)]]] = change > 0
    return mask.float(), region.float()


def masks_one_by_one() -> Callable[[], Any]:
    maps = _maps(MAPS)

    def step() -> tuple[Tensor, Tensor]:
        covered = COVERED[int(torch.randint(len(COVERED), ()))]
        made = [_one(parsing, covered) for parsing in maps]
        return torch.stack([m for m, _ in made]), torch.stack([r for _, r in made])

    return step


# -- a pre-training step ---------------------------------------------------------------------------------------------


def _model() -> FaceModel:
    torch.manual_seed(0)
    return FaceModel(MaskedEncoder())


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    made = sample(_maps(BATCH), PATCH, RATIO)
    return torch.randn(BATCH, 3, SIDE, SIDE), made.mask, made.region


def ours() -> Callable[[], float]:
    model, (images, mask, region) = _model(), _inputs()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-4, fused=True)

    def step() -> float:
        loss = model.losses(images, mask, region, KEPT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.update_target(0.996)
        return loss.item()

    return step


def straightforward() -> Callable[[], float]:
    """Mask tokens before the linear layer, the target sorted and put back, a loop over names for the average."""
    model, (images, mask, region) = _model(), _inputs()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-4)

    def step() -> float:
        order = mask.argsort(1)
        restore = order.argsort(1)
        tokens = model.online.encoder(images, order[:, :KEPT])
        online = F.normalize(model.predictor(model.online.whole(tokens, restore)), dim=-1)
        with torch.no_grad():
            all_tokens = model.target.encoder(images, order)
            all_tokens = model.target.decoder.embed(all_tokens)
            empty = fill(all_tokens[:, 1:], model.target.mask_token, restore)
            decoded = model.target.decoder(torch.cat([all_tokens[:, :1], empty], 1))
            target = F.normalize(model.target.projector(decoded.mean(1)), dim=-1)
        whole = torch.cat([tokens[:, :1], fill(tokens[:, 1:], model.online.mask_token, restore)], 1)
        predicted = model.decoder(model.decoder.embed(whole))[:, 1:]
        losses = fsfm_loss(patch_errors(predicted, model.pixels(images)), mask, region, online, target)
        losses.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        new, old = dict(model.online.named_parameters()), dict(model.target.named_parameters())
        with torch.no_grad():
            for name in set(new) & set(old):
                old[name].data = old[name].data * 0.996 + new[name].data * (1 - 0.996)
        return sum(value.item() for value in losses)

    return step


if __name__ == "__main__":
    compare("fsfm", "masking", masks, masks_one_by_one, {"maps": MAPS, "side": SIDE, "patch": PATCH, "ratio": RATIO}, 9)
    compare(
        "fsfm",
        "pretraining step",
        ours,
        straightforward,
        {"encoder": "ViT-B/16", "batch": BATCH, "side": SIDE, "kept": KEPT, "dtype": "float32"},
        5,
    )
