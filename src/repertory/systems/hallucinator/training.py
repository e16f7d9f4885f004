"""Pre-training with stochastic gradient descent, and the linear probe on the frozen encoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.errors import DataError
from repertory.systems.hallucinator.config import Config
from repertory.systems.hallucinator.model import Siamese, SimSiam, without_head
from repertory.training import Scheduled, Shuffled


def cosine_by_epoch(lr: float, decay_rate: float, epochs: int) -> Tensor:
    """``[epochs]``: ``eta + (lr - eta) (1 + cos(pi e / epochs)) / 2`` for e from 0, with ``eta = lr decay_rate``."""
    low = lr * decay_rate
    epoch = torch.arange(epochs, dtype=torch.float64)
    return low + (lr - low) * (1 + torch.cos(math.pi * epoch / epochs)) / 2


def stepped_by_epoch(lr: float, epochs: int) -> Tensor:
    """``[epochs]``: a tenth after 60 % of the epochs, a hundredth after 80 %."""
    share = torch.arange(epochs, dtype=torch.float64) / epochs
    return lr * 0.1 ** ((share >= 0.6).double() + (share >= 0.8).double())


class WarmedUp(Shuffled):
    """Passes over the images: the first ones with plain crops, the others with crops of the centre."""

    def __init__(self, n: int, batch_size: int, random: Callable[..., Any], centred: Callable[..., Any], warmup: float):
        super().__init__(n, batch_size, random)
        self.random, self.centred, self.warmup = random, centred, warmup

    def __getitem__(self, k: int) -> Any:
        self.collate = self.random if k < self.warmup * len(self) else self.centred
        return super().__getitem__(k)


class _ByEpoch(Scheduled):
    """One learning rate an epoch.

    Args:
        per_epoch: batches of an epoch.
    """

    def __init__(self, per_epoch: int) -> None:
        super().__init__()
        self.per_epoch = per_epoch

    def by_step(self, rates: Callable[[int], Tensor]) -> Tensor:
        """``[steps]`` of what ``rates`` says of the number of epochs."""
        accumulated = int(self.trainer.accumulate_grad_batches)
        epoch = torch.arange(self.steps) * accumulated // self.per_epoch
        return rates(int(epoch[-1]) + 1)[epoch]


class Pretraining(_ByEpoch):
    """A Siamese method on pairs of views; batches are ``views``, two of ``[B, C, S, S]``.

    Args:
        model: the method.
        config: its recipe.
        per_epoch: batches of an epoch.
    """

    def __init__(self, model: Siamese, config: Config, per_epoch: int) -> None:
        super().__init__(per_epoch)
        self.model, self.recipe = model, config

    def configure_optimizers(self) -> torch.optim.Optimizer:
        r = self.recipe
        self.rates = self.by_step(lambda epochs: cosine_by_epoch(r.lr, r.decay_rate, epochs))
        parts = {name: list(part.parameters()) for name, part in self.model.named_children()}
        fixed = r.fix_pred_lr and isinstance(self.model, SimSiam)
        predictor = parts.pop("predictor", []) if fixed else []
        if fixed and r.follow == "official":
            parts.pop("hallucinator", None)  # the official groups are encoder and predictor alone
        groups: list[dict[str, Any]] = [{"params": [p for part in parts.values() for p in part if p.requires_grad]}]
        if predictor:
            groups.append({"params": predictor, "constant": True})
        return torch.optim.SGD(groups, r.lr, r.sgd_momentum, weight_decay=r.weight_decay)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        rate = float(self.rates[min(self.update, len(self.rates) - 1)])
        for group in optimizer.param_groups:
            if group.get("constant"):
                group["lr_scale"] = self.recipe.lr / rate
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def training_step(self, batch: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        views = batch["views"]
        if len(views) != 2:
            raise DataError(f"{len(views)} views: two are needed")
        pairs = self.model(*views)
        loss = self.model.loss(pairs)
        if not loss.isfinite():
            raise DataError(f"the loss is {float(loss)} at step {self.step}: lower lr={self.recipe.lr:g}")
        self.model.advance(pairs)
        self._log("train", loss, pairs)
        return loss

    def validation_step(self, batch: dict[str, tuple[Tensor, Tensor]]) -> None:
        pairs = self.model(*batch["views"])
        self._log("val", self.model.loss(pairs), pairs)

    @torch.no_grad()
    def _log(self, part: str, loss: Tensor, pairs: Any) -> None:
        queries, keys = pairs[0]
        size = len(keys)
        cosine = F.cosine_similarity(queries.view(-1, *keys.shape), keys[None], dim=-1).mean(1)
        logged = {"loss": loss.detach(), "positive_cosine": cosine[0]}
        if len(cosine) > 1:
            logged["hallucinated_cosine"] = cosine[1:].mean()
        self.log_dict({f"{part}/{name}": value for name, value in logged.items()}, batch_size=size)


class LinearProbe(nn.Module):
    """A linear classifier after the last epoch (``fc``), and as it was after its best validation (``best``)."""

    best_accuracy: Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc, self.best = nn.Linear(width, classes), nn.Linear(width, classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        self.best.load_state_dict(self.fc.state_dict())
        self.best.requires_grad_(False)
        self.register_buffer("best_accuracy", torch.tensor(-1.0))

    @torch.no_grad()
    def keep(self, accuracy: Tensor) -> None:
        """Takes over ``fc`` if it is better than before."""
        if accuracy > self.best_accuracy:
            self.best_accuracy.copy_(accuracy)
            self.best.load_state_dict(self.fc.state_dict())


class Probing(_ByEpoch):
    """The linear probe: the encoder frozen in eval mode, SGD on ``fc``; batches are ``images`` and ``labels``."""

    def __init__(self, encoder: nn.Module, probe: LinearProbe, config: Config, per_epoch: int) -> None:
        super().__init__(per_epoch)
        self.encoder, self.probe, self.recipe = without_head(encoder), probe, config
        self.hits: list[Tensor] = []

    def setup(self, stage: str) -> None:
        self.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Probing:
        super().train(mode)
        self.encoder.eval()
        return self

    def configure_optimizers(self) -> torch.optim.Optimizer:
        r = self.recipe
        self.rates = self.by_step(lambda epochs: stepped_by_epoch(r.probe_lr, epochs))
        return torch.optim.SGD(self.probe.fc.parameters(), r.probe_lr, r.sgd_momentum)

    def _logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.encoder(images)
        logits: Tensor = self.probe.fc(features).float()
        return logits

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        loss = F.cross_entropy(self._logits(batch["images"]), batch["labels"])
        self.log("train/loss", loss.detach(), batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        logits, labels = self._logits(batch["images"]), batch["labels"]
        hits = (logits.argmax(1) == labels).float()
        self.hits.append(hits)
        self.log("val/loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log("val/accuracy", hits.mean(), batch_size=len(labels))

    def on_validation_epoch_end(self) -> None:
        self.probe.keep(torch.cat(self.hits).mean())
        self.hits.clear()
