"""Training: one step on triples, validated by recall over full rankings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.systems.rlmrec.alignment import Triples
from repertory.systems.rlmrec.model import RLMRec
from repertory.systems.rlmrec.ranking import Chosen, of_rankings, rank
from repertory.training import StageModule


class Recommending(StageModule):
    """One step: the sum of the terms of backbone, alignment and regularisation; Adam.

    Args:
        chosen: training interactions, which are never recommended. held_out: those that validation looks for.
        k: length of the lists of validation.
    """

    def __init__(self, model: RLMRec, lr: float, chosen: Chosen, held_out: Chosen, k: int) -> None:
        super().__init__()
        self.model, self.lr, self.chosen, self.held_out, self.k = model, lr, chosen, held_out, k
        self.memory: Any = model.backbone.memory()

    def training_step(self, batch: Triples) -> Tensor:
        draws, new = (None, {}) if self.memory is None else self.memory.draws(self.step)
        terms: dict[str, Tensor] = self.model(batch, draws) | new
        loss = torch.stack(list(terms.values())).sum()
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.step + 1) % every == 0:  # else nothing would be kept of it
            self.log_dict({"loss": loss, **terms}, batch_size=len(batch))
        return loss

    def validation_step(self, users: np.ndarray, index: int) -> None:
        found, _ = rank(*self.model.embeddings(), self.chosen, users, self.k)
        hits = self.held_out.has(users[:, None], found)
        made = of_rankings(hits, self.held_out.sizes[users], (self.k,))
        values = {f"val/{name}_at_{self.k}": float(made[name].mean()) for name in ("recall", "ndcg")}
        self.log_dict(values, batch_size=len(users))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # a fused step unscales float16 gradients itself
        return torch.optim.Adam(self.parameters(), self.lr, fused=self.trainer.precision != "16-mixed")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        return batch if isinstance(batch, np.ndarray) else super().transfer_batch_to_device(batch, device, index)
