"""A system as another package would bring it: the smallest that the contract allows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from repertory import card
from repertory.data import Items, Splits
from repertory.data.images import Images
from repertory.embeddings import Embeddings
from repertory.training import Shuffled, Stage, StageModule, TorchSystem, batches_of


class Autoencoder(StageModule):
    """Two linear maps and dropout (so that the model draws random numbers)."""

    def __init__(self, model: nn.ModuleDict, lr: float) -> None:
        super().__init__()
        self.model, self.lr = model, lr
        self.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen += len(batch)
        return self._loss(batch, "loss")

    def validation_step(self, batch: torch.Tensor) -> None:
        torch.rand(3)  # a validation that draws must not change what follows
        self._loss(batch, "val_loss")

    def _loss(self, batch: torch.Tensor, name: str) -> torch.Tensor:
        noisy = nn.functional.dropout(batch, 0.1, training=self.training)
        loss = (self.model["decoder"](self.model["encoder"](noisy)) - batch).square().mean()
        self.log(name, loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.lr)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.1, self.steps), "interval": "step"}
        ]


class Toy(TorchSystem):
    """Linear autoencoder of small images."""

    class Config(card.Config):
        presets = {"tiny": {"steps": 30}}
        dim: int = 8
        lr: float = 1e-2
        batch_size: int = 16
        steps: int = 60

    def _learn(self, splits: Splits) -> dict:
        return {"side": splits.train.image(0).height}

    def _build(self) -> nn.Module:
        pixels = self.assets["side"] ** 2
        return nn.ModuleDict(
            {"encoder": nn.Linear(pixels, self.config.dim), "decoder": nn.Linear(self.config.dim, pixels)}
        )

    def stages(self, splits: Splits) -> list[Stage]:
        half = self.config.steps // 2
        train, val = self._pixels(splits.train), self._pixels(splits.val)
        make = lambda name: Stage(
            name, Autoencoder(self.model, self.config.lr),
            Shuffled(len(train), self.config.batch_size, train.__getitem__),
            steps=half, validation=[val], validate_every=5, keep_best="val_loss",
        )  # fmt: skip
        return [make("first"), make("second")]

    def _pixels(self, items: Images) -> torch.Tensor:
        return torch.from_numpy(
            np.stack([np.asarray(items.image(i), np.float32).ravel() / 255 for i in range(len(items))])
        )

    def _embed(self, data: Items, batch_size: int) -> Iterator[Embeddings]:
        for part in batches_of(len(data), batch_size, data.take):
            yield Embeddings.build(self.model["encoder"](self._pixels(part).to(self.device)).cpu().numpy(), id=part.ids)
