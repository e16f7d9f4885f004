"""ERASE: vectors of the nodes of a graph whose labels are partly wrong, and which labels those are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.contract import Length
from repertory.data import Splits
from repertory.data.graph import Nodes
from repertory.embeddings import Embeddings
from repertory.encoders import Encoder, read_checkpoint
from repertory.errors import DataError, UserError
from repertory.evaluation import Metric, Metrics
from repertory.runs import Run
from repertory.systems.erase import figures
from repertory.systems.erase.config import Config
from repertory.systems.erase.data import Graph, as_positions, check_undirected, classes_of, labels_of, noisy, numbered
from repertory.systems.erase.labels import PseudoLabels
from repertory.systems.erase.model import Erase, GraphAttentionEncoder, from_official_keys, regression, shape_of
from repertory.systems.erase.training import FullGraph, Sampled, Validation, Whole, sample
from repertory.training import Shuffled, Stage, TorchSystem


class ERASE(TorchSystem):
    """Error-resilient representation learning on graphs for label noise tolerance (Chen et al. 2024)."""

    Config = Config
    config: Config
    model: Erase
    _kept: tuple[Any, str, Tensor] | None = None

    # -- the model -------------------------------------------------------------------------------------------------

    def _check(self, splits: Splits[Nodes], length: Length, trainer: Mapping[str, Any]) -> None:
        super()._check(splits, length, trainer)
        if splits.rule == "none":
            raise DataError(f"{splits.source}: nothing is left to train on")
        labels_of(splits.all.units, splits.source)
        for part in {id(part.graph): part for part in (splits.train, splits.val)}.values():
            check_undirected(part, splits.source)
            if part.graph.num_features != splits.train.graph.num_features:
                raise DataError(f"{splits.source}: validation nodes have {part.graph.num_features} features")
        classes = classes_of(splits)
        numbered(splits.val, classes, splits.source)

    def _learn(self, splits: Splits[Nodes]) -> dict[str, Any]:
        classes = classes_of(splits)
        true = numbered(splits.train, classes, splits.source)
        given = noisy(true, len(classes), self.config.noise, self.config.noise_model)
        return {"classes": classes, "features": int(splits.train.graph.num_features), "given": given}

    def _build(self) -> nn.Module:
        c = self.config
        encoder = GraphAttentionEncoder(
            self.assets["features"], c.hidden, c.dim, c.heads, c.layers, c.convolution, c.dropout, c.form
        )
        return Erase(encoder, len(self.classes))

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their numbers."""
        names: list[str] = self.assets["classes"]
        return names

    def pseudo_labels(self, nodes: Nodes, given: np.ndarray) -> PseudoLabels:
        """Of the graph of ``nodes`` [m], whose labels are ``given`` [m]."""
        c = self.config
        return PseudoLabels(
            nodes.graph.edge_index, len(nodes.names), torch.from_numpy(given), as_positions(nodes), len(self.classes),
            c.alpha, c.beta, c.times, c.form,
        )  # fmt: skip

    def stages(self, splits: Splits[Nodes]) -> list[Stage]:
        c, given = self.config, self.assets["given"]
        pseudo = self.pseudo_labels(splits.train, given)
        if pseudo.empty and c.empty_class == "raise":
            names = ", ".join(f"'{self.classes[k]}'" for k in pseudo.empty)
            raise DataError(
                f"{splits.source}: no training node keeps class {names} once labels are denoised: give more labelled "
                "nodes of it, fewer propagations (times), or empty_class=zero"
            )
        graph = Graph(splits.train, c.row_normalise)
        same = splits.val.graph is splits.train.graph
        labels = torch.from_numpy(numbered(splits.val, self.classes, splits.source))
        validation = Validation(
            None if same else Graph(splits.val, c.row_normalise), as_positions(splits.val), labels
        )  # fmt: skip
        parts = (self.model, graph, pseudo, torch.from_numpy(given), validation, c)
        batches: Any
        if c.form == "full":
            module: Any = FullGraph(*parts)
            batches = Whole()
        else:
            collate = partial(sample, graph.neighbours, splits.train.places, c)
            batches = Shuffled(len(splits.train), c.seeds, collate)
            module = Sampled(*parts, per_epoch=len(batches))
        return [
            Stage(
                "erasing", module, batches, epochs=c.epochs, validation=[torch.zeros(())],
                validate_every=c.validate_every * len(batches), keep_best="val/accuracy", best_is="max",
                patience=math.ceil(c.patience / c.validate_every),
            )
        ]  # fmt: skip

    def _fit(self, splits: Splits[Nodes], run: Run, length: Length, trainer: Mapping[str, Any]) -> None:
        super()._fit(splits, run, length, trainer)
        z, pseudo = self.vectors(splits.train), self.pseudo_labels(splits.train, self.assets["given"])
        self.model.prototypes = pseudo.prototypes(z.cpu()).to(self.device)
        labels = pseudo(z.cpu()).argmax(1)[pseudo.train_nodes]
        self.model.weight, self.model.bias = regression(
            z[pseudo.train_nodes.to(z.device)], labels, len(self.classes), self.config.regression_steps
        )

    # -- vectors ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def vectors(self, nodes: Nodes, batch_size: int | None = None) -> Tensor:
        """Of all nodes of a graph [n, dim]; those of the last graph are kept.

        Raises:
            DataError: the features have another width than those that the model was fitted to, or the graph is
                directed.
        """
        self._needs_fit()
        made_by = f"{self.fingerprint} on {self.device}"
        if self._kept is not None and self._kept[0] is nodes.graph and self._kept[1] == made_by:
            return self._kept[2]
        width, known = nodes.graph.num_features, self.model.encoder.features
        if width != known:
            raise DataError(f"the nodes have {width} features; the model was fitted to {known}")
        check_undirected(nodes, "the graph")
        graph = Graph(nodes, self.config.row_normalise).to(self.device)
        z = self.model.encoder.embed(graph.x, graph.neighbours, batch_size or self.config.batch_size)
        z = z.float().clone()
        empty = np.flatnonzero(~z.any(1).cpu().numpy())
        if len(empty):
            warnings.warn(
                f"{len(empty)} nodes have a vector of zeros (first: node {nodes.names[empty[0]]})", stacklevel=2
            )
        self._kept = (nodes.graph, made_by, z)
        return z

    def _embed(self, data: Nodes, batch_size: int) -> Iterator[Embeddings]:
        z = self.vectors(data, batch_size)[as_positions(data).to(self.device)]
        yield Embeddings.build(z.cpu().numpy(), id=data.ids)

    @property
    def encoder(self) -> Encoder:
        """From a PyG ``Data`` to vectors [n, dim] of its nodes."""
        self._needs_fit()
        normalise = self.config.row_normalise

        def pooled(module: nn.Module, graph: Any) -> Tensor:
            made: Tensor = module(F.normalize(graph.x, p=1) if normalise else graph.x, graph.edge_index)
            return made

        return Encoder(self.model.encoder, self.config.dim, pooled)

    # -- evaluate ----------------------------------------------------------------------------------------------------

    def _needs_classes(self) -> None:
        self._needs_fit()
        if not self.classes:
            raise UserError("the weights were imported without classes: fit, to predict or to score labels")

    @torch.no_grad()
    def probabilities(self, nodes: Nodes) -> np.ndarray:
        """[N, classes] of the logistic regression on pseudo-labels."""
        self._needs_classes()
        z = self.vectors(nodes)[as_positions(nodes).to(self.device)]
        return self.model.logits(z).softmax(1).cpu().numpy()

    def _evaluate(self, splits: Splits[Nodes]) -> Metrics:
        metrics, seed = Metrics(), int(self.record.get("seed", 0))
        if self.classes and self._label_column(splits.test) is not None:
            truth = numbered(splits.test, self.classes, splits.source)
            hits = (self.probabilities(splits.test).argmax(1) == truth).astype(np.float64)
            about = f"of {len(truth):,} nodes, by logistic regression on the pseudo-labels of training nodes"
            metrics |= {"accuracy": Metric.of(hits, seed, higher_is_better=True, about=about)}
            if self.config.noise and splits.fingerprint == self.record["fingerprint"]:
                metrics |= self._cleaning(splits.train)
        return metrics | self.probe(splits)

    def _cleaning(self, train: Nodes) -> Metrics:
        """How many training labels are right, before and after."""
        true, seed = numbered(train, self.classes, "training nodes"), int(self.record.get("seed", 0))
        given, cleaned = self.assets["given"], self._label_scores(train, self.assets["given"]).argmax(1)
        about = f"of {len(true):,} training labels, {self.config.noise:.0%} of them made wrong"
        return Metrics({
            name: Metric.of((found == true).astype(np.float64), seed, higher_is_better=True, about=f"{about}, {when}")
            for name, found, when in (("labels_given", given, "as given"), ("labels_cleaned", cleaned, "cleaned"))
        })  # fmt: skip

    @torch.no_grad()
    def _label_scores(self, nodes: Nodes, given: np.ndarray) -> np.ndarray:
        """[N, classes] of nodes that have labels ``given`` [N], with the prototypes of the fit."""
        pseudo = self.pseudo_labels(nodes, given)
        scores = pseudo(self.vectors(nodes).cpu(), self.model.prototypes.cpu())
        return scores[pseudo.train_nodes].numpy()

    # -- verbs -------------------------------------------------------------------------------------------------------

    def predict(self, data: Any = None, classes: bool = False) -> pa.Table:
        """The class of each node.

        Args:
            data: a source; None takes the held-out split of the run's own data.
            classes: also the probability of every class, a column each.

        Returns:
            A row per node: id, prediction, probability.
        """
        nodes, _ = self._held_out(data)
        said = self.probabilities(nodes)
        names = np.array(self.classes, dtype=object)
        made = {
            "id": pa.array(nodes.ids), "prediction": pa.array(names[said.argmax(1)]), "probability": said.max(1)
        }  # fmt: skip
        if classes:
            made |= {f"probability of {name}": column for name, column in zip(names, said.T, strict=True)}
        return pa.table(made)

    def score(self, data: Any = None) -> pa.Table:
        """How suspicious each label is, and what it should be.

        Args:
            data: a source whose labels are asked about; None takes the training nodes of the run's own data, with the
                labels that the run was fitted to.

        Returns:
            A row per node with a label, most suspicious first: id, ``score`` (the log of how much more the best other
            class has than the label: above 0 the label is probably wrong), ``label``, ``cleaned``.
        """
        self._needs_classes()
        if data is None:
            nodes, given = self._own_splits().train, self.assets["given"]
        else:
            opened, source = self._held_out(data)
            nodes = opened.units
            given = numbered(nodes, self.classes, source)
        scores = self._label_scores(nodes, given)
        score, cleaned = suspicion(scores, given)
        names, order = np.array(self.classes, dtype=object), np.argsort(-score, kind="stable")
        return pa.table({
            "id": pa.array(nodes.ids[order]), "score": score[order], "label": pa.array(names[given[order]]),
            "cleaned": pa.array(names[cleaned[order]]),
        })  # fmt: skip

    def figures(self, data: Nodes) -> dict[str, Any]:
        made: dict[str, Any] = {}
        vectors = self.vectors(data)[as_positions(data).to(self.device)].cpu().numpy()
        place = np.full(len(data.names), -1)
        place[data.places] = np.arange(len(data))
        ends = place[data.graph.edge_index.numpy()]
        labels = data.labels() if self._label_column(data) is not None else None
        if self.classes:
            if self.splits is not None or self.record.get("source") != "memory":
                made |= self._label_figures(self._own_splits().train)
            if labels is not None:
                truth, said = numbered(data, self.classes, "the nodes"), self.probabilities(data).argmax(1)
                made["Which class is taken for which"] = figures.of_pairs(
                    truth, said, self.classes, "label", "predicted"
                )
            made["How alike the classes' prototypes are (|cos|)"] = figures.of_prototypes(
                self.model.prototypes.cpu().numpy(), self.classes
            )
        made["The graph, on two principal axes of the vectors"] = figures.of_graph(
            vectors, data.ids, ends[:, (ends >= 0).all(axis=0)], labels
        )
        return made

    def _label_figures(self, train: Nodes) -> dict[str, Any]:
        """Training labels before and after: against the truth where it is known, else against each other."""
        given = self.assets["given"]
        cleaned = self._label_scores(train, given).argmax(1)
        if not self.config.noise:
            return {"Which training labels were changed": figures.of_pairs(
                given, cleaned, self.classes, "label as given", "label cleaned")}  # fmt: skip
        true = numbered(train, self.classes, "training nodes")
        return {
            f"Training labels {when}": figures.of_pairs(true, found, self.classes, "true class", f"label {when}")
            for when, found in (("as given", given), ("cleaned", cleaned))
        }

    @classmethod
    def from_official(cls, checkpoint: Any) -> ERASE:
        """From a state dict of the official ``GAT`` (a file, or the dict): an encoder, without classes."""
        state = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
        weights = from_official_keys(state)
        shape = shape_of(weights)
        assets = {"classes": [], "features": shape.pop("features"), "given": np.empty(0, np.int64)}
        system = cls(cls.Config.build(**shape))
        system.assets = assets
        empty = {name: b for name, b in system._build().state_dict().items() if not name.startswith("encoder.")}
        return system._imported(assets, empty | {f"encoder.{n}": w for n, w in weights.items()}, str(checkpoint)[:200])


def suspicion(scores: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log of how much more the best other class has than the given one [N], and the best class [N].

    Args:
        scores: [N, classes], not negative. given: [N].
    """
    rows, tiny = np.arange(len(given)), 1e-12
    own = scores[rows, given]
    others = scores.copy()
    others[rows, given] = -1.0
    score = np.log(others.max(1) + tiny) - np.log(own + tiny)
    return score, np.where(score > 0, others.argmax(1), given)
