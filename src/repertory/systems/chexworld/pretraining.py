"""Pre-training of the world model, and what its predictor has learned, measured on images that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from repertory.nn.schedules import cosine_schedule
from repertory.runs import seeded
from repertory.systems.chexworld.data import Crops
from repertory.systems.chexworld.model import WorldModel
from repertory.systems.chexworld.objective import Distance, world_model_loss
from repertory.training import Scheduled


class Recipe(Protocol):
    """The options of pre-training, as in the system's Config."""

    loss: Distance
    extra_weight: float
    extra_mean: bool
    reg_weight: float
    lr: float
    min_lr: float
    warmup: float
    weight_decay: float
    clip: float
    ema: float
    ema_end: float
    ipe_scale: float


class Pretraining(Scheduled):
    """One step: predict the target encoder's latents, follow the gradient, move the target (section 3 of the paper)."""

    def __init__(self, model: WorldModel, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe, self.clip = model, recipe, recipe.clip

    def configure_optimizers(self) -> torch.optim.Optimizer:
        r, total = self.recipe, max(1, round(self.steps * self.recipe.ipe_scale))
        self.rates = cosine_schedule(r.lr, r.min_lr, total, warmup=round(r.warmup * total))
        self.momenta = cosine_schedule(r.ema, r.ema_end, total)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": r.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, r.lr, betas=(0.9, 0.999), fused=self.fused)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self._losses(batch, "train")

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        self._losses(batch, "val")

    def _losses(self, batch: dict[str, Tensor], part: str) -> Tensor:
        r, latents = self.recipe, self.model(**batch)
        losses = world_model_loss(
            latents.predictions, latents.targets, r.loss, r.extra_weight, r.extra_mean, r.reg_weight
        )
        logged = {"loss": losses.loss, "intra": losses.intra, "extra": losses.extra}
        if part == "train":
            spread = latents.targets.flatten(0, 2).var(dim=0).mean()
            logged |= {"prediction_deviation": losses.pred_var, "target_variance": spread}
        size = batch["policy"].shape[1]
        self.log_dict({f"{part}/{name}": value.detach() for name, value in logged.items()}, batch_size=size)
        return losses.loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.model.update_target(self.momenta[min(self.update, len(self.momenta) - 1)])


class Diagnosis(NamedTuple):
    """What a world model makes of N images that it has not seen.

    Attributes:
        intra, extra: mean squared error of a crop from itself, and from another crop, ``[N]``.
        retold: intra, told the augmentation parameters of another draw, ``[N]``.
        misplaced: extra, told that the two crops are the same, ``[N]``.
        target_variance: of the targets over all tokens, mean over channels; near 0 where they have collapsed (at most
            1, since every target has unit variance over its channels).
        content: the share of it that remains among targets at one place of the crop, i.e. is not the position's.
    """

    intra: np.ndarray
    extra: np.ndarray
    retold: np.ndarray
    misplaced: np.ndarray
    target_variance: float
    content: float


@torch.no_grad()
def diagnose(world: WorldModel, crops: Crops, rows: Sequence[int] | np.ndarray, seed: int) -> Diagnosis:
    """Errors of single images; the draws of each are a function of ``seed`` and its id."""
    device = world.predictor.mask_token.device
    whole = torch.arange(world.predictor.grid**2, device=device)[None]
    errors: list[list[Tensor]] = []
    latents_seen: list[Tensor] = []
    for row in rows:
        with seeded(seed, "diagnosis", str(crops.items.ids[row])):
            batch = crops([int(row)])
            other = torch.stack([crops.transform.augmentation.draw() for _ in range(2)])
            if crops.transform.aug_norm:
                other = crops.transform.augmentation.normalise(other)
        # three copies of the image: told the truth, told of another augmentation, told that the crops are the same
        three = {name: part.expand(-1, 3, *part.shape[2:]) for name, part in batch.items() if part.ndim > 2}
        three |= {name: batch[name].expand(3, -1) for name in ("context_indices", "target_indices")}
        three["policy"] = torch.stack([batch["policy"][:, 0], other, batch["policy"][:, 0]], dim=1)
        same = world.predictor.same_position.cpu().expand_as(batch["rel"][:, 0])
        three["rel"] = torch.stack([batch["rel"][:, 0], batch["rel"][:, 0], same], dim=1)
        three["shuffle"] = torch.arange(3)
        three = {name: part.to(device) for name, part in three.items()}
        latents = world(**three)
        targets = torch.cat([latents.targets, latents.targets.flip(0)])
        error = (latents.predictions.float() - targets).square().mean((2, 3)).cpu()  # [4, 3]
        errors.append([error[:2, 0].mean(), error[2:, 0].mean(), error[:2, 1].mean(), error[2:, 2].mean()])
        latent = world.target(batch["images"][0].to(device), whole)[0].float().cpu()
        latents_seen.append(latent)
    stacked = torch.stack(latents_seen).numpy()  # [N, patches, channels]
    variance, inside = stacked.var(axis=(0, 1)).mean(), stacked.var(axis=0).mean()
    intra, extra, retold, misplaced = np.array(errors, dtype=np.float64).T
    return Diagnosis(intra, extra, retold, misplaced, float(variance), float(inside / max(variance, 1e-12)))
