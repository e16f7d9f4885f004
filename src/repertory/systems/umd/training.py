"""Pre-training, and fine-tuning to class-conditional generation, as one kind of step."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repertory.nn.ema import update_ema
from repertory.nn.schedules import cosine_schedule
from repertory.systems.umd.model import AutoEncoder
from repertory.systems.umd.objective import Losses, MaskedDiffusionLoss
from repertory.training import Scheduled


@dataclass(frozen=True)
class Recipe:
    """How a stage is optimised: AdamW with betas (0.9, ``beta2``), warm-up and a cosine to 0.

    ``lr`` and ``ema`` (the share of new weights in the average) are those of 256 images a step.
    """

    lr: float
    beta2: float
    weight_decay: float
    warmup: float
    clip: float
    batch_size: int
    ema: float = 0.0


class Training(Scheduled):
    """One step on a batch: ``images`` ``[B, C, H, W]`` and, where generation is learned, ``labels`` ``[B]``."""

    def __init__(self, model: AutoEncoder, loss: MaskedDiffusionLoss, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.loss, self.recipe, self.clip = model, loss, recipe, recipe.clip
        if not (loss.no_noise_prob or loss.noisy_ratio):  # of DiT, which has no use for it
            model.mask_token.requires_grad_(False)

    @property
    def share(self) -> float:
        """Images of an optimiser step on all devices, in units of 256."""
        return self.recipe.batch_size * self.trainer.world_size * int(self.trainer.accumulate_grad_batches) / 256

    def configure_optimizers(self) -> torch.optim.Optimizer:
        r = self.recipe
        lr = r.lr * self.share
        self.rates = cosine_schedule(lr, 0.0, self.steps, round(r.warmup * self.steps))
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        spared = [p for name, p in named if name.endswith("bias") or name in ("class_tokens", "mask_token")]
        known = {id(p) for p in spared}
        groups = [
            {"params": [p for _, p in named if id(p) not in known], "weight_decay": r.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr, betas=(0.9, r.beta2), fused=self.fused)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self._losses(self.model, batch, "train")

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        self._losses(self.model, batch, "val")

    def _losses(self, model: AutoEncoder, batch: dict[str, Tensor], part: str) -> Tensor:
        images = batch["images"]
        made: Losses = self.loss(model, images, batch.get("labels"), checked=True)  # the transform made them
        named = {"loss": made.loss, "clean": made.clean, "noisy": made.noisy}
        self.log_dict(
            {f"{part}/{name}": value.detach() for name, value in named.items() if value is not None},
            batch_size=len(images),
        )
        return made.loss


class FineTuning(Training):
    """Trains a copy of ``average``, and ``average`` as the moving average of the copy."""

    def __init__(self, average: AutoEncoder, loss: MaskedDiffusionLoss, recipe: Recipe) -> None:
        super().__init__(copy.deepcopy(average), loss, recipe)
        self.average = average.requires_grad_(False)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.step == 0:  # the average holds what pre-training has learned
            self.model.load_state_dict(self.average.state_dict())

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        update_ema(self.average, self.model, 1 - min(1.0, self.recipe.ema * self.share))

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        self._losses(self.average, batch, "val")
