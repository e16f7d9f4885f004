"""Training steps on the whole graph and on samples of it; validation by logistic regression on pseudo-labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from repertory.systems.erase.attention import with_self_loops
from repertory.systems.erase.config import Config
from repertory.systems.erase.data import Graph
from repertory.systems.erase.labels import PseudoLabels
from repertory.systems.erase.model import Erase, regression
from repertory.systems.erase.objective import CodingRateReduction
from repertory.systems.erase.sampler import Block, Neighbours
from repertory.training import Batches, StageModule


class Whole(Batches):
    """One batch to a pass: the whole graph, which the module holds."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, k: int) -> Tensor:
        return torch.tensor(k)


class Sample(NamedTuple):
    """Training nodes [s] and the blocks around them, outermost first."""

    seeds: Tensor
    blocks: list[Block]


def sample(neighbours: Neighbours, train: np.ndarray, config: Config, chosen: np.ndarray) -> Sample:
    """Around the training nodes ``chosen`` [s] of ``train`` [m], from NumPy's global state."""
    seeds = train[chosen]
    return Sample(torch.from_numpy(seeds), neighbours.blocks(seeds, config.neighbours, config.layers))


class Validation(NamedTuple):
    """Where the best epoch is chosen: positions [v] and clean labels [v] of nodes; ``graph`` None: that of training."""

    graph: Graph | None
    nodes: Tensor
    labels: Tensor


class Erasing(StageModule):
    """What both forms share: Adam, and the accuracy of a regression on pseudo-labels, on validation nodes."""

    def __init__(
        self, model: Erase, graph: Graph, pseudo: PseudoLabels, given: Tensor, validation: Validation, config: Config
    ) -> None:
        super().__init__()
        self.model, self.graph, self.pseudo, self.other = model, graph, pseudo, validation.graph
        self.config = config
        self.reduction = CodingRateReduction(config.eps, config.gam1, config.gam2)
        for name, value in (("given", given), ("val_nodes", validation.nodes), ("val_labels", validation.labels)):
            self.register_buffer(name, value, persistent=False)

    def _reduced(self, z: Tensor, labels: Tensor) -> Tensor:
        loss, rate, class_rate = self.reduction(z, labels, self.pseudo.classes)
        self.log_dict({"loss": loss, "rate": rate, "class_rate": class_rate}, batch_size=1)
        return loss

    def _embedded(self, graph: Graph) -> Tensor:
        return self.model.encoder.embed(graph.x, graph.neighbours, self.config.batch_size)

    def validation_step(self, batch: Tensor, index: int) -> None:
        z, train = self._embedded(self.graph), self.pseudo.train_nodes
        labels = self.pseudo(z)[train].argmax(1)
        weight, bias = regression(z[train], labels, self.pseudo.classes, self.config.regression_steps)
        asked = (z if self.other is None else self._embedded(self.other))[self.val_nodes]
        said = (torch.nn.functional.normalize(asked) @ weight.mT + bias).argmax(1)
        measured = {
            "val/accuracy": (said == self.val_labels).float().mean(),
            "relabelled": (labels != self.given).float().mean(),
        }
        self.log_dict(measured, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        c = self.config
        return torch.optim.Adam(
            self.model.parameters(), c.lr, weight_decay=c.weight_decay, amsgrad=c.form == "full"
        )  # fmt: skip


class FullGraph(Erasing):
    """One step: the loss over all nodes, with the pseudo-labels of this step's vectors."""

    def on_train_start(self) -> None:
        self.edges = with_self_loops(self.graph.edge_index, len(self.graph), len(self.graph))

    def training_step(self, batch: Tensor) -> Tensor:
        z = self.model.encoder(self.graph.x, self.edges)
        return self._reduced(z, self.pseudo(z.detach()).argmax(1))


class Sampled(Erasing):
    """One step: the loss over some training nodes, with pseudo-labels that are renewed once an epoch.

    Args:
        per_epoch: steps of an epoch.
    """

    labels: Tensor

    def __init__(self, *args: Any, per_epoch: int) -> None:
        super().__init__(*args)
        self.per_epoch = per_epoch
        self.register_buffer("labels", torch.zeros(len(self.graph), dtype=torch.int64))

    def training_step(self, batch: Sample) -> Tensor:
        if self.step % self.per_epoch == 0:
            self.labels = self.pseudo(self._embedded(self.graph)).argmax(1).clone()
        z = self.model.encoder(self.graph.x[batch.blocks[0].sources], batch.blocks)
        return self._reduced(z, self.labels[batch.seeds])
