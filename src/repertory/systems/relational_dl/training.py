"""Training of answers and of links."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.systems.relational_dl import metrics
from repertory.systems.relational_dl.data import LinkBatch
from repertory.systems.relational_dl.model import Batch, RelationalModel
from repertory.systems.relational_dl.objective import entity_loss, membership_loss, pairwise_loss
from repertory.training import StageModule

SELECTED = {
    "binary": ("val/roc_auc", "max"), "multiclass": ("val/accuracy", "max"), "multilabel": ("val/loss", "min"),
    "regression": ("val/mae", "min"), "link": ("val/loss", "min"),
}  # fmt: skip
"""By which measure the best epoch is kept."""


class Adam(StageModule):
    """A model with Adam at one rate."""

    def __init__(self, model: RelationalModel, lr: float) -> None:
        super().__init__()
        self.model, self.lr = model, lr

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


class Answers(Adam):
    """One step: the loss of the seeds' outputs.

    Args:
        answer: see ``objective.entity_loss``.
        bounds: of numbers, the least and the most that is predicted.
    """

    def __init__(
        self, model: RelationalModel, lr: float, answer: str, bounds: tuple[float, float] = (-np.inf, np.inf)
    ) -> None:
        super().__init__(model, lr)
        self.answer, self.bounds = answer, bounds
        self._seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Batch) -> Tensor:
        loss = entity_loss(self.model(batch), batch.targets, self.answer)
        self.log("loss", loss, batch_size=len(batch))
        return loss

    def on_validation_epoch_start(self) -> None:
        self._seen = []

    def validation_step(self, batch: Batch, index: int) -> None:
        outputs = self.model(batch)
        self.log("val/loss", entity_loss(outputs, batch.targets, self.answer), batch_size=len(batch))
        self._seen.append((outputs.float().cpu(), batch.targets.cpu()))

    def on_validation_epoch_end(self) -> None:
        outputs, targets = (torch.cat(parts).numpy() for parts in zip(*self._seen, strict=True))
        name = SELECTED[self.answer][0].removeprefix("val/")
        if self.answer == "binary" and len(np.unique(targets)) > 1:
            measured = metrics.of_probabilities(targets, outputs[:, 0])[name]
        elif self.answer == "binary":
            measured = 0.5
        elif self.answer == "multiclass":
            measured = float((outputs.argmax(1) == targets).mean())
        elif self.answer == "regression":
            measured = metrics.of_numbers(targets, outputs[:, 0].clip(*self.bounds))[name]
        else:
            return
        self.log(f"val/{name}", measured)


class TwoTower(Adam):
    """One step: sources nearer to their destinations than to random ones."""

    def __init__(self, model: RelationalModel, lr: float, shared: bool) -> None:
        super().__init__(model, lr)
        self.shared = shared

    def loss(self, batch: LinkBatch) -> Tensor:
        source, positive, negative = (self.model(part) for part in (batch.source, batch.positive, batch.negative))
        return pairwise_loss(source, positive, negative, self.shared)

    def training_step(self, batch: LinkBatch) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, batch_size=len(batch))
        return loss

    def validation_step(self, batch: LinkBatch, index: int) -> None:
        self.log("val/loss", self.loss(batch), batch_size=len(batch))


class IdGnn(Adam):
    """One step: which of the destinations around a marked source are true."""

    def __init__(self, model: RelationalModel, lr: float, destination: str) -> None:
        super().__init__(model, lr)
        self.destination = destination

    def loss(self, batch: Batch) -> Tensor:
        return membership_loss(self.model.read_out(batch, self.destination), batch.targets)

    def training_step(self, batch: Batch) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val/loss", self.loss(batch), batch_size=len(batch))
