"""Fine-tuning to tell real faces from forged ones, and to anti-spoofing across domains (section 4 of the paper)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from repertory.supervised import Supervised
from repertory.training import StageModule


class _Validated(StageModule):
    """Logs ``val/loss`` and, where both are there, ``val/auc`` of the real class against all others."""

    model: nn.Module
    positive: int

    def on_validation_epoch_start(self) -> None:
        self._seen: list[tuple[Tensor, Tensor]] = []

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        logits, labels = self.model(batch["images"]).float(), batch["labels"]
        self.log("val/loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self._seen.append((labels.cpu(), logits.softmax(1)[:, self.positive].double().cpu()))

    def on_validation_epoch_end(self) -> None:
        labels, scores = (torch.cat(part).numpy() for part in zip(*self._seen, strict=True))
        real = labels == self.positive
        if 0 < real.sum() < len(real):
            self.log("val/auc", float(roc_auc_score(real, scores)))


class DeepfakeDetection(_Validated, Supervised):
    """Supervised training with layer decay, mixup and cutmix; ``positive`` is the number of the real class."""

    def __init__(self, model: nn.Module, positive: int, **options: Any) -> None:
        super().__init__(model, **options)
        self.positive = positive


class SpoofDetection(_Validated):
    """Cross-entropy, Adam at one rate, for all layers."""

    def __init__(self, model: nn.Module, positive: int, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.model, self.positive, self.lr, self.weight_decay = model, positive, lr, weight_decay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, self.lr, weight_decay=self.weight_decay)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        loss = F.cross_entropy(self.model(batch["images"]).float(), batch["labels"])
        self.log("train/loss", loss, batch_size=len(batch["labels"]))
        return loss


def both_sides(labels: Tensor, positive: int) -> bool:
    """Whether real and forged faces are both there."""
    return bool(0 < int((labels == positive).sum()) < len(labels))
