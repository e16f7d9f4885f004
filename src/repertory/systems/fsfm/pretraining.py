"""Pre-training: hidden patches, the covered region, one instance in two views; and what came of it, measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from repertory.nn.masking import patch_errors
from repertory.nn.schedules import cosine_schedule
from repertory.runs import seeded
from repertory.systems.fsfm.data import MaskedFaces
from repertory.systems.fsfm.model import FaceModel
from repertory.systems.fsfm.objective import Instance, Losses
from repertory.training import Scheduled


class Recipe(Protocol):
    """The options of pre-training, as in the system's Config."""

    region_weight: float
    instance_weight: float
    instance: Instance
    temperature: float
    base_lr: float
    min_lr: float
    warmup: float
    weight_decay: float
    clip: float
    ema: float
    ema_end: float
    batch_size: int
    kept: int


class Pretraining(Scheduled):
    """One step: the three losses, the gradient, the target network (sections 3 and 4 of the paper).

    ``covers``: whether the masks cover a region, whose error counts.
    """

    def __init__(self, model: FaceModel, recipe: Recipe, covers: bool = True) -> None:
        super().__init__()
        self.model, self.recipe, self.clip = model, recipe, recipe.clip
        self.region_weight = recipe.region_weight if covers else 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        r = self.recipe
        together = r.batch_size * self.trainer.world_size * int(self.trainer.accumulate_grad_batches)
        lr = r.base_lr * together / 256
        self.rates = cosine_schedule(lr, r.min_lr, self.steps, round(r.warmup * self.steps))
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": r.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr, betas=(0.9, 0.95), fused=self.fused)

    def on_train_start(self) -> None:
        batches = self.steps * int(self.trainer.accumulate_grad_batches)
        self.momenta = cosine_schedule(self.recipe.ema, self.recipe.ema_end, batches)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self._losses(batch, "train").loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Every batch, also those whose gradients are only accumulated."""
        if self.recipe.instance_weight:
            self.model.update_target(self.momenta[min(self.step, len(self.momenta) - 1)])

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        self._losses(batch, "val")

    def _losses(self, batch: dict[str, Tensor], part: str) -> Losses:
        r = self.recipe
        losses = self.model.losses(
            batch["images"], batch["mask"], batch["region"], r.kept, self.region_weight, r.instance_weight, r.instance,
            r.temperature,
        )  # fmt: skip
        named = {f"{part}/{name}": value.detach() for name, value in losses._asdict().items()}
        self.log_dict(named, batch_size=len(batch["images"]))
        return losses


class Diagnosis(NamedTuple):
    """What a model makes of faces that it has not seen.

    Attributes:
        regions: by the name of the region that was covered whole, the error in it of each face that shows it.
        hidden: mean error of all hidden patches, ``[N]``.
        same: cosine of the masked view with the whole view of the same face, ``[N]``.
        other: mean cosine with the whole views of the other faces, ``[N]``; NaN for one face.
    """

    regions: dict[str, np.ndarray]
    hidden: np.ndarray
    same: np.ndarray
    other: np.ndarray


@torch.no_grad()
def diagnose(
    model: FaceModel, faces: MaskedFaces, rows: Sequence[int] | np.ndarray, kept: int, regions: Sequence[str], seed: int
) -> Diagnosis:
    """Errors and likeness on the items ``rows``; the mask of each is a function of ``seed``, region and id."""
    device = model.online.mask_token.device
    hidden, errors = [], {}
    same = other = np.empty(0)
    for region in regions or [""]:
        batches = []
        for row in rows:
            with seeded(seed, "diagnosis", region, str(faces.items.ids[row])):
                batches.append(faces_covering(faces, region)([int(row)]))
        batch = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
        found, online, target = [], [], []
        for start in range(0, len(rows), 64):
            part = {name: value[start : start + 64].to(device) for name, value in batch.items()}
            view = model(part["images"], part["mask"], kept)
            found.append(patch_errors(view.predicted, model.pixels(part["images"])).cpu())
            online.append(view.online.float().cpu())
            target.append(view.target.float().cpu())
        error = torch.cat(found)
        hidden.append((error * batch["mask"]).sum(1) / batch["mask"].sum(1))
        shown = batch["region"].sum(1) > 0
        if region and shown.any():
            inside = (error * batch["region"]).sum(1)[shown] / batch["region"].sum(1)[shown]
            errors[region] = inside.double().numpy()
        if not len(same):
            cosines = torch.cat(online) @ torch.cat(target).T
            n, own = len(cosines), cosines.diagonal()
            same = own.double().numpy()
            other = ((cosines.sum(1) - own) / max(n - 1, 1)).double().numpy() if n > 1 else np.full(n, np.nan)
    return Diagnosis(errors, torch.stack(hidden).mean(0).double().numpy(), same, other)


def faces_covering(faces: MaskedFaces, region: str) -> MaskedFaces:
    """The same faces with CRFR-P masks that cover ``region``; empty: random masks."""
    strategy: Any = "CRFR-P" if region else "random"
    return MaskedFaces(faces.items, faces.transform, faces.size, faces.patch, faces.ratio, strategy, region or None)
