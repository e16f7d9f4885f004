"""Supervised training of a classifier, as vision papers fine-tune: AdamW, layer decay, mixup and cutmix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor, nn
from torchvision.transforms import v2

from repertory.nn.schedules import cosine_schedule, layer_decay_groups
from repertory.training import Scheduled


class Supervised(Scheduled):
    """Trains a model that gives class logits; batches are ``images`` ``[B, C, H, W]`` and ``labels`` ``[B]`` int64.

    Validation logs ``val/loss`` and ``val/accuracy``.

    Args:
        model: ``images`` to logits ``[B, classes]``; with ``layer_decay`` below 1 it has timm's ``group_matcher``.
        classes: how many there are.
        lr: the highest learning rate, of the last layer.
        min_lr: the rate at the end.
        warmup: share of the steps in which the rate rises.
        weight_decay: of weights, not of biases, norms, or what ``model.no_weight_decay()`` names.
        layer_decay: factor of the rate from a layer to the one below.
        clip: norm to which gradients are clipped; 0: not.
        smoothing: of labels.
        mixup: alpha of mixup; 0: none.
        cutmix: alpha of cutmix; 0: none. With both, each batch takes one of them.
        betas: of AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        lr: float,
        min_lr: float = 0.0,
        warmup: float = 0.0,
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        clip: float = 0.0,
        smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__()
        self.model, self.lr, self.min_lr, self.warmup, self.betas = model, lr, min_lr, warmup, betas
        self.weight_decay, self.layer_decay, self.clip, self.smoothing = weight_decay, layer_decay, clip, smoothing
        kinds: list[v2.Transform] = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
        if cutmix:
            kinds.append(v2.CutMix(alpha=cutmix, num_classes=classes))
        self.mix = v2.RandomChoice(kinds) if kinds else None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.rates = cosine_schedule(self.lr, self.min_lr, self.steps, round(self.warmup * self.steps))
        if self.layer_decay < 1:
            groups = layer_decay_groups(self.model, self.lr, self.weight_decay, self.layer_decay)
        else:
            named: set[str] = getattr(self.model, "no_weight_decay", set)()
            groups = param_groups_weight_decay(self.model, self.weight_decay, no_weight_decay_list=tuple(named))
        return torch.optim.AdamW(groups, self.lr, betas=self.betas, fused=self.fused)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        images, labels = batch["images"], batch["labels"]
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        value = F.cross_entropy(self.model(images).float(), labels, label_smoothing=self.smoothing)
        self.log("train/loss", value, batch_size=len(images))
        return value

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        logits, labels = self.model(batch["images"]).float(), batch["labels"]
        self.log("val/loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log("val/accuracy", (logits.argmax(1) == labels).float().mean(), batch_size=len(labels))
