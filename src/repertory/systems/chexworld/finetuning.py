"""Fine-tuning of an encoder: findings or classes of an image, or a mask (section 4 of the paper)."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repertory.evaluation import auroc
from repertory.nn.schedules import cosine_schedule, layer_decay_groups
from repertory.systems.chexworld.model import Classifier
from repertory.systems.chexworld.segmentation import UNetAdapter
from repertory.training import Scheduled

Answer = Literal["findings", "classes", "mask"]


class Recipe(Protocol):
    """The options of fine-tuning, as in the system's Config."""

    finetune_lr: float
    finetune_min_lr: float
    finetune_warmup: float
    finetune_weight_decay: float
    layer_decay: float


def loss(logits: Tensor, truth: Tensor, answer: Answer) -> Tensor:
    """Binary cross-entropy over known findings (NaN: unknown), cross-entropy of classes, or, of masks, binary
    cross-entropy plus one minus the soft Dice coefficient of each image.

    ``logits`` ``[B, L]``, ``[B, C]`` or ``[B, 1, H, W]``; ``truth`` ``[B, L]``, ``[B]`` or ``[B, 1, H, W]``.
    """
    logits = logits.float()
    if answer == "classes":
        return F.cross_entropy(logits, truth)
    if answer == "findings":
        known = ~truth.isnan()
        each = F.binary_cross_entropy_with_logits(logits, truth.nan_to_num(), reduction="none")
        return (each * known).sum() / known.sum().clamp_min(1)
    p = logits.sigmoid()
    overlap = (2 * (p * truth).sum((1, 2, 3)) + 1) / ((p + truth).sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, truth) + (1 - overlap).mean()


def dice(predicted: Tensor, truth: Tensor) -> Tensor:
    """Dice coefficient of each image, bool ``[B, ...]`` to ``[B]``; 1 where both masks are empty."""
    predicted, truth = predicted.flatten(1), truth.flatten(1)
    sizes = predicted.sum(1) + truth.sum(1)
    return torch.where(sizes == 0, 1.0, 2 * (predicted & truth).sum(1) / sizes.clamp_min(1))


def areas(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each finding, ``[N, L]`` and ``[N, L]`` to ``[L]``; NaN where it is undefined."""
    made = []
    for column in range(truth.shape[1]):
        known = ~np.isnan(truth[:, column])
        made.append(auroc(truth[known, column], scores[known, column], np.ones(int(known.sum()))))
    return np.array(made)


def indicators(truth: np.ndarray, classes: int) -> np.ndarray:
    """Classes ``[N]`` as 0/1 ``[N, classes]``; findings as they are."""
    return truth if truth.ndim == 2 else (truth[:, None] == np.arange(classes)).astype(float)


class FineTuning(Scheduled):
    """All layers are trained, each at its own rate.

    Validation logs ``val/loss`` and ``val/auroc`` (mean over the findings for which it is defined) or ``val/dice``.
    """

    def __init__(self, model: Classifier | UNetAdapter, recipe: Recipe, answer: Answer) -> None:
        super().__init__()
        self.model, self.recipe, self.answer = model, recipe, answer
        self._seen: list[tuple[Tensor, ...]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        r = self.recipe
        warmup = round(r.finetune_warmup * self.steps)
        self.rates = cosine_schedule(r.finetune_lr, r.finetune_min_lr, self.steps, warmup)
        groups = layer_decay_groups(self.model, r.finetune_lr, r.finetune_weight_decay, r.layer_decay)
        return torch.optim.AdamW(groups, r.finetune_lr, betas=(0.9, 0.999), fused=self.fused)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        value = loss(self.model(batch["images"]), self._truth(batch), self.answer)
        self.log("train/loss", value, batch_size=len(batch["images"]))
        return value

    def _truth(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["masks" if self.answer == "mask" else "labels"]

    def on_validation_epoch_start(self) -> None:
        self._seen = []

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        truth, logits = self._truth(batch), self.model(batch["images"]).float()
        self.log("val/loss", loss(logits, truth, self.answer), batch_size=len(logits))
        if self.answer == "mask":
            self._seen.append((dice(logits > 0, truth > 0.5),))
        else:
            self._seen.append((truth.double().cpu(), logits.double().cpu()))

    def on_validation_epoch_end(self) -> None:
        parts = [torch.cat(part) for part in zip(*self._seen, strict=True)]
        if self.answer == "mask":
            self.log("val/dice", parts[0].float().mean())
            return
        truth, scores = indicators(parts[0].numpy(), parts[1].shape[1]), parts[1]
        if self.answer == "classes":
            scores = scores.softmax(1)
        found = areas(truth, scores.numpy())
        if np.isfinite(found).any():
            self.log("val/auroc", float(np.nanmean(found)))


def probabilities(logits: Tensor, answer: Answer) -> Tensor:
    """Logits as probabilities: softmax over classes, else a sigmoid."""
    return logits.float().softmax(1) if answer == "classes" else logits.float().sigmoid()
