"""DeiT's training (Touvron et al. 2021), with the averaged weights that it keeps beside."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from repertory.errors import UserError
from repertory.nn.ema import update_ema
from repertory.supervised import Supervised
from repertory.systems.vim.model import VisionMamba, check_finite


class Training(Supervised):
    """Supervised training that follows the weights with an average, and stops where they diverge.

    Args:
        model: what is trained.
        average: of the same structure, or None.
        ema: momentum of the average; in the beginning less, ``(1 + t) / (10 + t)`` after t steps, so that a short
            training does not keep its start.
        use_average: whether validation looks at the average.
        **options: of :class:`~repertory.supervised.Supervised`.
    """

    def __init__(
        self, model: VisionMamba, average: VisionMamba | None, ema: float, use_average: bool, **options: Any
    ) -> None:
        super().__init__(model, **options)
        self.average, self.ema, self.use_average = average, ema, use_average

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        value = super().training_step(batch)
        if not value.isfinite():
            check_finite(self.model)
            raise UserError(f"the loss is {value.item()} at step {self.step}: lower lr, or clip gradients (clip=1)")
        return value

    def on_train_batch_end(self, *args: Any) -> None:
        if self.average is not None:
            update_ema(self.average, self.model, min(self.ema, (1 + self.update) / (10 + self.update)))

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        model: Any = self.average if self.use_average else self.model
        logits, labels = model(batch["images"]).float(), batch["labels"]
        self.log("val/loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log("val/accuracy", (logits.argmax(1) == labels).float().mean(), batch_size=len(labels))


def with_average(model: VisionMamba, ema: float) -> nn.ModuleDict:
    """What a run holds: ``model``, and with a momentum its ``average``, which starts as a copy and has no gradients."""
    parts = nn.ModuleDict({"model": model})
    if ema:
        parts["average"] = copy.deepcopy(model).requires_grad_(False)
    return parts
