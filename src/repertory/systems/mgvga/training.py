"""Pre-training, and the heads of downstream tasks on the frozen encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.data.circuits import Circuit
from repertory.errors import DataError
from repertory.systems.mgvga.data import Step, chunks, graph_of
from repertory.systems.mgvga.equivalence import Pairs
from repertory.systems.mgvga.graph import Batch
from repertory.systems.mgvga.model import MGVGA, EquivalenceHead, QoRHead
from repertory.systems.mgvga.objective import Loss, pretraining_loss
from repertory.systems.mgvga.synthesis import Tried
from repertory.training import Scheduled, StageModule


def cosine(lr: float, final: float, steps: int) -> Tensor:
    """[steps] learning rates: a cosine cut off where it has come down to ``final`` times ``lr``."""
    phase = math.acos(2 * final - 1) * torch.arange(steps, dtype=torch.float64) / max(1, steps)
    return lr * (1 + torch.cos(phase)) / 2


class Pretraining(Scheduled):
    """Masked gate modelling and alignment, AdamW (section 4)."""

    def __init__(self, model: MGVGA, lr: float, final_lr: float, weight_decay: float) -> None:
        super().__init__()
        self.model, self.lr, self.final_lr, self.weight_decay = model, lr, final_lr, weight_decay

    def training_step(self, batch: Step) -> Tensor:
        made = self._loss(batch)
        for name in ("loss", "node", "vg_node", "fan_out_l1", "fan_in_l1"):
            self.log(name, getattr(made, name).detach(), batch_size=len(batch.batch))
        return made.loss

    def validation_step(self, batch: Step) -> None:
        self.log("val_loss", self._loss(batch).loss, batch_size=len(batch.batch))

    def _loss(self, step: Step) -> Loss:
        return pretraining_loss(self.model, step.batch, step.mask, step.aligned, step.aligned_mask, step.text)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.rates = cosine(self.lr, self.final_lr, self.steps)
        named = list(self.model.named_parameters())
        groups = [
            {"params": [p for name, p in named if not name.endswith("bias")], "weight_decay": self.weight_decay},
            {"params": [p for name, p in named if name.endswith("bias")], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr, fused=self.fused)


@torch.no_grad()
def encoded(model: MGVGA, circuits: Sequence[Circuit]) -> tuple[list[Tensor], Tensor]:
    """Vectors of the nodes [n, d] of each circuit (NOT nodes last), and of the circuits [c, d]."""
    graphs, device = [graph_of(circuit) for circuit in circuits], model.mask_token.weight.device
    nodes, whole = [], []
    for part in chunks(graphs, len(graphs)):
        x, mean = model(Batch.of([graphs[i] for i in part]).to(device))
        nodes += x.split([len(graphs[i][0]) for i in part])
        whole.append(mean)
    return nodes, torch.cat(whole)


class Labelled(NamedTuple):
    """Rows of a downstream task: what the head is given, one row each, and the answers."""

    inputs: tuple[Tensor, ...]
    targets: Tensor


class HeadTraining(StageModule):
    """Trains a head on vectors of the frozen encoder, which are made at the first step; a batch is row numbers."""

    def __init__(self, model: MGVGA, head: nn.Module, task: Any, lr: float) -> None:
        super().__init__()
        self.model, self.head, self.task, self.lr = model, head, task, lr
        self.made: Labelled | None = None  # a function of the frozen weights

    def training_step(self, batch: Tensor) -> Tensor:
        if self.made is None:
            self.made = self.task(self.model)
        said = self.head(*(given[batch] for given in self.made.inputs))
        wanted = self.made.targets[batch]
        loss = F.mse_loss(said, wanted) if wanted.ndim > 1 else F.binary_cross_entropy_with_logits(said, wanted)
        self.log("loss", loss.detach(), batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.head.parameters(), lr=self.lr)


class Synthesised:
    """Designs with recipes and results, for ``QoRHead``; results are standardised by design."""

    def __init__(self, circuits: Sequence[Circuit], tries: Sequence[Tried]) -> None:
        self.circuits, self.tries = circuits, tries
        lengths = {tried.recipes.shape[1] for tried in tries}
        if len(lengths) > 1 or len({tried.names for tried in tries}) > 1:
            raise DataError(f"recipes of {sorted(lengths)} steps, or different results, cannot be learned together")

    def __len__(self) -> int:
        return sum(len(tried.recipes) for tried in self.tries)

    def __call__(self, model: MGVGA) -> Labelled:
        _, whole = encoded(model, self.circuits)
        counts = torch.tensor([len(tried.recipes) for tried in self.tries], device=whole.device)
        recipes = torch.from_numpy(np.concatenate([tried.recipes for tried in self.tries]).astype(np.int64))
        results = torch.from_numpy(np.concatenate([tried.standardised for tried in self.tries]))
        return Labelled((whole.repeat_interleave(counts, 0), recipes.to(whole.device)), results.to(whole.device))


class NodePairs:
    """Pairs of nodes, for ``EquivalenceHead``."""

    def __init__(self, pairs: Sequence[Pairs]) -> None:
        self.pairs = [pair for pair in pairs if len(pair.one)]

    def __len__(self) -> int:
        return sum(len(pair.one) for pair in self.pairs)

    def __call__(self, model: MGVGA) -> Labelled:
        nodes, _ = encoded(model, [pair.circuit for pair in self.pairs])
        one = torch.cat([x[torch.from_numpy(pair.one)] for x, pair in zip(nodes, self.pairs, strict=True)])
        other = torch.cat([x[torch.from_numpy(pair.other)] for x, pair in zip(nodes, self.pairs, strict=True)])
        equal = torch.from_numpy(np.concatenate([pair.equal for pair in self.pairs]).astype(np.float32))
        return Labelled((one, other), equal.to(one.device))


__all__ = ["EquivalenceHead", "HeadTraining", "NodePairs", "Pretraining", "QoRHead", "Synthesised", "cosine", "encoded"]
