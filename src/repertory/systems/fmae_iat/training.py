"""Pre-training as a masked autoencoder, and fine-tuning to action units against identities."""

from __future__ import annotations

from typing import Protocol

import torch
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor

from repertory.nn.mae import MAE
from repertory.nn.schedules import cosine_schedule, layer_decay_groups
from repertory.systems.fmae_iat.metrics import action_unit_scores
from repertory.systems.fmae_iat.model import AdversarialViT
from repertory.systems.fmae_iat.objective import identity_adversarial_loss
from repertory.training import Scheduled


class Recipe(Protocol):
    """The options of both trainings, as in the system's Config."""

    base_lr: float
    weight_decay: float
    warmup: float
    mask_ratio: float
    batch_size: int
    finetune_base_lr: float
    finetune_min_lr: float
    finetune_warmup: float
    finetune_weight_decay: float
    finetune_batch_size: int
    layer_decay: float


def scaled(base: float, batch_size: int) -> float:
    """A learning rate for 256 images a batch, for ``batch_size`` of them (Goyal et al. 2017)."""
    return base * batch_size / 256


class Pretraining(Scheduled):
    """One step: hide most patches, draw them again; batches are ``images`` ``[B, 3, S, S]``."""

    def __init__(self, model: MAE, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def configure_optimizers(self) -> torch.optim.Optimizer:
        r = self.recipe
        lr = scaled(r.base_lr, r.batch_size)
        self.rates = cosine_schedule(lr, 0.0, self.steps, round(r.warmup * self.steps))
        groups = param_groups_weight_decay(
            self.model, r.weight_decay, no_weight_decay_list=("mask_token", "encoder.cls_token")
        )
        return torch.optim.AdamW(groups, lr, betas=(0.9, 0.95), fused=self.fused)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        value = self.model(batch["images"], ratio=self.recipe.mask_ratio).loss
        self.log("train/loss", value, batch_size=len(batch["images"]))
        return value

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        value = self.model(batch["images"], ratio=self.recipe.mask_ratio).loss
        self.log("val/loss", value, batch_size=len(batch["images"]))


class ActionUnitTraining(Scheduled):
    """Fine-tunes to action units; with an identity head, against identities.

    Batches are ``images`` ``[B, 3, S, S]``, ``labels`` ``[B, K]`` (NaN: not coded) and, in training with an identity
    head, ``subjects`` ``[B]``. Validation logs ``val/loss``, and ``val/f1`` at the best threshold and ``val/auc``,
    means over the units for which they are defined (NaN where there is none).
    """

    def __init__(self, model: AdversarialViT, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self._seen: list[tuple[Tensor, Tensor]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        r = self.recipe
        lr = scaled(r.finetune_base_lr, r.finetune_batch_size)
        self.rates = cosine_schedule(lr, r.finetune_min_lr, self.steps, round(r.finetune_warmup * self.steps))
        groups = layer_decay_groups(self.model, lr, r.finetune_weight_decay, r.layer_decay)
        return torch.optim.AdamW(groups, lr, betas=(0.9, 0.999), fused=self.fused)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        logits, subject_logits = self.model.both(batch["images"])
        losses = identity_adversarial_loss(logits, batch["labels"], subject_logits, batch.get("subjects"))
        logged = {"train/loss": losses.actions}
        if subject_logits is not None:
            hits = subject_logits.argmax(1) == batch["subjects"]
            logged |= {"train/identity_loss": losses.identity, "train/identity_accuracy": hits.float().mean()}
        self.log_dict({name: value.detach() for name, value in logged.items()}, batch_size=len(logits))
        return losses.loss

    def on_validation_epoch_start(self) -> None:
        self._seen = []

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        logits = self.model(batch["images"]).float()
        self.log("val/loss", identity_adversarial_loss(logits, batch["labels"]).loss, batch_size=len(logits))
        self._seen.append((batch["labels"].cpu(), logits.sigmoid().cpu()))

    def on_validation_epoch_end(self) -> None:
        truth, found = (torch.cat(part).numpy() for part in zip(*self._seen, strict=True))
        scores = action_unit_scores(truth, found)
        self.log("val/f1", scores.best[1])
        self.log("val/auc", scores.mean_auc)
