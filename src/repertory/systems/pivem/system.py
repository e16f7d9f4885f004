"""PiVeM: trajectories of the nodes of a graph in continuous time, by maximum posterior likelihood."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor, nn

from repertory import card
from repertory.contract import Length, Splits
from repertory.data.events import Events
from repertory.embeddings import Embeddings
from repertory.errors import ConfigError, DataError
from repertory.evaluation import Metric, Metrics, describe
from repertory.evaluation.areas import auroc, average_precision
from repertory.evaluation.metrics import resampled_interval
from repertory.systems.pivem import figures
from repertory.systems.pivem.data import READERS, Interactions, Windows, interactions, places, windows
from repertory.systems.pivem.model import PiecewiseVelocityModel
from repertory.systems.pivem.objective import Cells, Follow, negative_log_likelihood
from repertory.systems.pivem.official import read_checkpoint
from repertory.systems.pivem.simulation import simulate
from repertory.training import Batches, Stage, StageModule, TorchSystem

GROUPS = (("x0", "beta"), ("v",), ("prior.c", "prior.length", "prior.sigma", "prior.Q"))
"""Parameters by the stage that they join at."""
QUADRATURE = 64
"""Nodes of the rule with which intensities after the training period are integrated."""


class PiVeM(TorchSystem):
    """Piecewise-velocity model of a dynamic graph (Celikkanat, Nakis and Morup 2022)."""

    readers = READERS

    class Config(card.Config):
        """Hyperparameters; the defaults are those of the official code."""

        presets = {
            "tiny": {"bins": 8, "rank": 3, "prior_scale": 100.0, "epochs": 45, "frames": 12},
            "hospital-contacts": {"bins": 20, "rank": 5, "prior_scale": 100.0, "epochs": 150},
        }

        bins: int = Field(100, ge=1, description="pieces of the time line on which velocities are constant")
        dim: int = Field(2, ge=1, description="of the latent space")
        rank: int = Field(10, ge=1, description="k of the prior's node factor")
        prior_scale: float = Field(1e5, ge=0, description="lambda of the prior; 0 switches it off")
        epochs: int = Field(100, ge=1, description="Adam steps in all, in equal parts for the stages")
        lr: float = Field(0.1, gt=0, description="of Adam")
        nodes_per_batch: int | None = Field(None, ge=2, description="random nodes of a batch; None: all nodes")
        batches_per_epoch: int = Field(1, ge=1, description="batches whose losses are summed to one Adam step")
        radius: float = Field(0.01, gt=0, lt=0.5, description="half a scored window, as a share of the training period")
        frames: int = Field(50, ge=2, description="moments at which positions are embedded and drawn")
        follow: Follow = Field("paper", description="official: its residual at the end and its weight of masked pairs")

    model: PiecewiseVelocityModel

    def _check(self, splits: Splits[Events], length: Length, trainer: Mapping[str, Any]) -> None:
        super()._check(splits, length, trainer)
        if splits.val.fingerprint != splits.all.part(splits.membership == "val").fingerprint:
            raise ConfigError("pivem selects nothing by validation and fits all that is not test: leave it out")
        names = list(splits.all.ids)
        times = interactions(_training(splits), names).times
        if len(names) < 2 or len(np.unique(times)) < 2:
            raise DataError(f"{len(names)} nodes with {len(times)} training events: at least 2 of each, at 2 times")
        if self.config.bins > len(np.unique(times)):
            raise ConfigError(
                f"bins={self.config.bins}: there are only {len(np.unique(times))} different training times"
            )
        if self.config.nodes_per_batch is not None and self.config.nodes_per_batch > len(names):
            raise ConfigError(f"nodes_per_batch={self.config.nodes_per_batch}: there are only {len(names)} nodes")

    def _learn(self, splits: Splits[Events]) -> dict[str, Any]:
        names = list(splits.all.ids)
        pairs, times = interactions(_training(splits), names)
        silent = len(names) - len(np.unique(pairs))
        if silent:
            warnings.warn(f"{silent} of {len(names)} nodes have no event to be fitted to", stacklevel=2)
        masked = np.empty((0, 2), np.int64)
        if splits.rule == "group:pair":
            masked = np.unique(interactions(splits.test, names).pairs, axis=0)
        origin, span = float(times.min()), float(times.max() - times.min())
        return {"nodes": names, "origin": origin, "span": span, "last_time": 1.0, "masked": masked}

    def _build(self) -> nn.Module:
        config = self.config
        return PiecewiseVelocityModel(
            len(self.assets["nodes"]), config.bins, config.dim, config.rank, config.prior_scale, self.last_time
        )

    def stages(self, splits: Splits[Events]) -> list[Stage]:
        config = self.config
        nodes = len(self.assets["nodes"])
        pairs, times = self._scaled(_training(splits))
        cells = Cells.of(
            torch.from_numpy(pairs), torch.from_numpy(times), nodes, config.bins, self.last_time, config.follow
        )
        names = ("positions", "velocities", "prior") if config.prior_scale else ("positions", "velocities")
        made, joined = [], []
        for name, group, epochs in zip(
            names, GROUPS, np.array_split(np.arange(config.epochs), len(names)), strict=False
        ):
            joined += group
            module = Likelihood(self.model, cells, torch.from_numpy(self.assets["masked"]), tuple(joined), config)
            batches = NodeBatches(nodes, config.nodes_per_batch, config.batches_per_epoch)
            made.append(Stage(name, module, batches, epochs=max(1, len(epochs))))
        return made

    # -- times, nodes ------------------------------------------------------------------------------------

    @property
    def last_time(self) -> float:
        """The end of the training period in the model's time, which begins at 0."""
        return float(self.assets["last_time"])

    @property
    def period(self) -> tuple[float, float]:
        """The training period in the data's own unit."""
        return self.assets["origin"], self.assets["origin"] + self.assets["span"]

    def _model_time(self, times: Any) -> np.ndarray:
        return (np.asarray(times, np.float64) - self.assets["origin"]) / self.assets["span"] * self.last_time

    def _data_time(self, times: Any) -> np.ndarray:
        return np.asarray(times, np.float64) / self.last_time * self.assets["span"] + self.assets["origin"]

    def _scaled(self, events: Events) -> Interactions:
        pairs, times = interactions(events, self.assets["nodes"])
        return Interactions(pairs, self._model_time(times))

    # -- embed ---------------------------------------------------------------------------------------------

    def _embed(self, data: Events, batch_size: int) -> Iterator[Embeddings]:
        nodes = places(data, self.assets["nodes"])
        times = self._moments() if data.moments is None else data.moments
        size = max(1, batch_size // len(times))
        for start in range(0, len(nodes), size):
            part = nodes[start : start + size]
            vectors = self.positions(times)[:, part].transpose(1, 0, 2).reshape(-1, self.config.dim)
            yield Embeddings.build(
                vectors, node=np.repeat(data.ids[start : start + size], len(times)), time=np.tile(times, len(part))
            )

    def _moments(self) -> np.ndarray:
        return np.linspace(*self.period, self.config.frames)

    @torch.no_grad()
    def positions(self, times: Any, extrapolate: bool = False) -> np.ndarray:
        """Positions of all fitted nodes [M, N, D] at ``times`` [M], in the data's own unit.

        Args:
            times: inside the training period, or after it where ``extrapolate``.
            extrapolate: follow the prior's mean velocity from the end of the period (experimental).

        Raises:
            DataError: a time lies outside.
        """
        self._needs_fit()
        scaled = torch.from_numpy(np.atleast_1d(self._model_time(times))).to(self.device)
        self._refuse_outside(scaled.cpu().numpy(), extrapolate)
        nodes = torch.arange(len(self.assets["nodes"]), device=self.device)
        made = []
        for time in scaled:
            if time > self.last_time * (1 + 1e-9):
                made.append(self.model.extrapolated(time[None])[0])
            else:
                made.append(self.model.position(nodes, time.expand(len(nodes))))
        return torch.stack(made).float().cpu().numpy()

    def _refuse_outside(self, scaled: np.ndarray, extrapolate: bool) -> None:
        low, high = self.period
        if not np.isfinite(scaled).all():
            raise DataError("a time is not a finite number")
        if scaled.min() < -1e-9 * self.last_time:
            raise DataError(
                f"time {self._data_time(scaled.min()):g} lies before the training period, {low:g} to {high:g}"
            )
        if scaled.max() > self.last_time * (1 + 1e-9):
            late = f"time {self._data_time(scaled.max()):g} lies after the training period, {low:g} to {high:g}"
            if self.config.prior_scale == 0:
                raise DataError(f"{late}: without a prior nothing is known there")
            if not extrapolate:
                raise DataError(f"{late}: that is extrapolation: predict or positions with extrapolate=True")

    # -- evaluate --------------------------------------------------------------------------------------------

    def _evaluate(self, splits: Splits[Events]) -> Metrics:
        test, random = self._scaled(splits.test), np.random.default_rng(self.record.get("seed", 0))
        every = self._scaled(splits.all)
        metrics = Metrics()
        if splits.rule != "none":
            train = self._scaled(_training(splits))
            metrics |= self._links("reconstruction", train, every, self.last_time, random)
        inside = test.times <= self.last_time
        completion = Interactions(test.pairs[inside], np.maximum(test.times[inside], 0))
        prediction = Interactions(test.pairs[~inside], test.times[~inside])
        if len(completion.times):
            metrics |= self._links("completion", completion, every, self.last_time, random)
        if len(prediction.times):
            metrics |= self._links("prediction", prediction, every, prediction.times.max(), random)
        label = self._label_column(splits.test)
        nodes = places(splits.test, self.assets["nodes"])
        paths = self.positions(self._moments())[:, nodes].transpose(1, 0, 2).reshape(len(nodes), -1)
        return metrics | describe(
            paths, None if label is None else splits.test.column(label), seed=self.record.get("seed", 0)
        )

    def _links(
        self, name: str, asked: Interactions, known: Interactions, until: float, random: np.random.Generator
    ) -> Metrics:
        """How well windows with an event are told from windows without."""
        nodes, radius = len(self.assets["nodes"]), self.config.radius * self.last_time
        low = self.last_time if name == "prediction" else 0.0
        scored = windows(asked, known, nodes, low, max(until, low + radius), radius, random)
        scores = self.link_scores(scored)
        unit = np.ones(len(scores))
        about = f"{int(scored.truth.sum())} windows with an event against as many without, {_ABOUT[name]}"
        made = {}
        for short, area in (("auc", auroc), ("ap", average_precision)):
            low_end, high_end = resampled_interval(
                lambda weights, area=area: area(scored.truth, scores, weights), len(scores), 0, 200
            )
            made[f"{name}_{short}"] = Metric(float(area(scored.truth, scores, unit)), low_end, high_end, True, about)
        return Metrics(made)

    @torch.no_grad()
    def link_scores(self, asked: Windows) -> np.ndarray:
        """Expected number of events [M] in each window; over the whole training period where it lies after it."""
        after = asked.end > self.last_time
        start, end = np.where(after, 0.0, asked.start), np.where(after, self.last_time, asked.end)
        pairs, start, end = (torch.from_numpy(z).to(self.device) for z in (asked.pairs, start, end))
        return self.model.expected(pairs, start, end, self.config.follow).double().cpu().numpy()

    # -- verbs -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self, data: Any = None, start: float | None = None, end: float | None = None, extrapolate: bool = False
    ) -> pa.Table:
        """Whether and how often each pair of nodes meets between ``start`` and ``end``.

        Args:
            data: says which nodes; None takes the held-out split of the run's own data.
            start, end: in the data's own unit; None takes the ends of the training period.
            extrapolate: let the interval reach beyond the training period (experimental).

        Returns:
            A row per pair: source, target, start, end, expected (number of events), probability (of one or more).

        Raises:
            DataError: the interval ends before it starts or lies outside; a node was not fitted; one node alone.
        """
        items, _ = self._held_out(data)
        low, high = self.period
        start, end = low if start is None else float(start), high if end is None else float(end)
        if end < start:
            raise DataError(f"the interval from {start:g} to {end:g} ends before it starts")
        if len(items) < 2:
            raise DataError("a link needs two nodes: one was asked for")
        begin, stop = self._model_time([start, end])
        self._refuse_outside(np.array([begin, stop]), extrapolate)
        rows, columns = np.triu_indices(len(items), 1)
        nodes = places(items, self.assets["nodes"])
        pairs = torch.from_numpy(np.stack([nodes[rows], nodes[columns]], axis=1)).to(self.device)
        inside = [torch.full((len(pairs),), min(t, self.last_time), device=self.device).double() for t in (begin, stop)]
        expected = self.model.expected(pairs, *inside).double()
        if stop > self.last_time:
            expected += self._beyond(pairs, max(begin, self.last_time), stop)
        expected = expected.cpu().numpy()
        constant = {"start": np.full(len(pairs), start), "end": np.full(len(pairs), end)}
        ends = {"source": pa.array(items.ids[rows]), "target": pa.array(items.ids[columns])}
        return pa.table({**ends, **constant, "expected": expected, "probability": -np.expm1(-expected)})

    def _beyond(self, pairs: Tensor, start: float, end: float) -> Tensor:
        """Integral of the extrapolated intensity, by Gauss-Legendre quadrature."""
        nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE)
        times = torch.from_numpy(start + (nodes + 1) / 2 * (end - start)).to(self.device)
        total = torch.zeros(len(pairs), dtype=torch.float64, device=self.device)
        bias = self.model.beta[pairs].sum(1)
        for position, weight in zip(self.model.extrapolated(times), weights, strict=True):
            distance = (position[pairs[:, 0]] - position[pairs[:, 1]]).square().sum(1)
            total += torch.exp(bias - distance).double() * weight * (end - start) / 2
        return total

    @torch.no_grad()
    def generate(self, data: Any = None, n: int = 1, seed: int = 0) -> Events:
        """New events over the training period, simulated from the fitted intensities by thinning.

        Args:
            data: says which nodes; None takes all that were fitted.
            n: how often the process is simulated; with more than one, node ``a`` of the second is named ``2/a``.
            seed: of the simulation.

        Raises:
            ConfigError: n is less than 1.
        """
        self._needs_fit()
        if n < 1:
            raise ConfigError(f"n={n}: at least 1 is needed")
        names = np.array(self.assets["nodes"], dtype=object) if data is None else self._open(data).all.ids
        chosen = np.arange(len(names)) if data is None else places(self._open(data).all, self.assets["nodes"])
        starts, v = (z.double().cpu()[:, chosen] for z in self.model.trajectories())
        beta = self.model.beta.double().cpu()[chosen]
        generator = torch.Generator().manual_seed(seed)
        pairs, times = [], []
        for number in range(n):
            drawn, at = simulate(starts, v, beta, self.model.width, generator)
            pairs.append(drawn.numpy() + number * len(names))
            times.append(self._data_time(at.numpy()))
        nodes = names if n == 1 else [f"{number + 1}/{name}" for number in range(n) for name in names]
        return Events.of(nodes, np.concatenate(pairs), np.concatenate(times))

    def figures(self, data: Events) -> dict[str, Any]:
        nodes = places(data, self.assets["nodes"])
        label = self._label_column(data)
        times, paths = self._moments(), self.positions(self._moments())[:, nodes]
        labels = None if label is None else data.column(label)
        observed = interactions(data, self.assets["nodes"])
        return figures.of_trajectories(times, paths, data.ids, labels) | figures.of_rates(
            *self._rates(nodes), observed.times, self.period
        )

    @torch.no_grad()
    def _rates(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected number of events among ``nodes`` in each bin, and the bins' edges in the data's own unit."""
        rows, columns = np.triu_indices(len(nodes), 1)
        pairs = torch.from_numpy(np.stack([nodes[rows], nodes[columns]], axis=1)).to(self.device)
        size = max(1, 2**20 // self.config.bins)
        total = sum((self.model.integral(part).double().sum(1) for part in pairs.split(size)), start=torch.zeros(()))
        edges = self._data_time(np.linspace(0, self.last_time, self.config.bins + 1))
        return edges, torch.as_tensor(total).cpu().numpy()

    @classmethod
    def from_official(cls, checkpoint: Any) -> PiVeM:
        """From ``torch.save([kwargs, state_dict])`` of the official code, or its state dict; nodes are 0 .. N - 1."""
        config, assets, weights = read_checkpoint(checkpoint)
        assets["masked"] = np.empty((0, 2), np.int64)
        return cls(cls.Config.build(**config))._imported(assets, weights, str(checkpoint)[:200])


_ABOUT = {
    "reconstruction": "of the training events, by the expected number in the window",
    "completion": "of held-out events inside the training period, by the expected number in the window",
    "prediction": "after the training period, by the expected number over all of it",
}


def _training(splits: Splits[Events]) -> Events:
    """All but the test part: nothing is selected by validation."""
    return splits.all.part(splits.membership != "test")


class NodeBatches(Batches):
    """An epoch is one batch: node numbers [batches, nodes] in ascending order, whose losses are summed."""

    def __init__(self, nodes: int, size: int | None, number: int) -> None:
        self.nodes, self.size, self.number = nodes, size or nodes, number

    def __len__(self) -> int:
        return 1

    def __getitem__(self, k: int) -> Tensor:
        drawn = [torch.randperm(self.nodes)[: self.size].sort().values for _ in range(self.number)]
        return torch.stack(drawn)


class Likelihood(StageModule):
    """One step: negative log likelihood of all pairs of a batch of nodes, plus the negative log prior; Adam."""

    def __init__(
        self, model: PiecewiseVelocityModel, cells: Cells, masked: Tensor, trained: tuple[str, ...], config: Any
    ) -> None:
        super().__init__()
        self.model, self.trained, self.config = model, trained, config
        for name, value in cells.tensors().items():
            self.register_buffer(f"cell_{name}", value, persistent=False)
        self.register_buffer("masked", masked, persistent=False)

    def training_step(self, batch: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            parts = [self._loss(nodes) for nodes in batch]
        nll, prior = (torch.stack(values).sum() for values in zip(*parts, strict=True))
        self.log_dict({"loss": nll + prior, "nll": nll, "neg_log_prior": prior}, batch_size=1)
        return nll + prior

    def _loss(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        model, total = self.model, len(self.model.beta)
        dtype = model.x0.dtype
        cells = Cells(**{
            name: value.to(dtype) if value.is_floating_point() else value
            for name in ("i", "j", "bin", "count", "residual", "squared")
            for value in [getattr(self, f"cell_{name}")]
        })  # fmt: skip
        starts, velocities = model.trajectories()
        beta, masked, whole = model.beta, self.masked, len(nodes) == total
        if not whole:
            cells = cells.within(nodes, total)
            place = torch.full((total,), -1, dtype=torch.long, device=nodes.device)
            place[nodes] = torch.arange(len(nodes), device=nodes.device)
            masked = place[masked][(place[masked] >= 0).all(1)]
            starts, velocities, beta = starts[:, nodes], velocities[:, nodes], beta[nodes]
        nll = negative_log_likelihood(starts, velocities, beta, model.width, cells, masked)
        nll = nll * self._weight(len(nodes), len(masked))
        return nll, model.prior(*model.centred(), None if whole else nodes)

    def _weight(self, nodes: int, masked: int) -> float:
        """Masked pairs are made up for by the others; the official code divides by their number instead."""
        pairs = nodes * (nodes - 1) // 2
        if not masked:
            return 1.0
        return pairs / (masked if self.config.follow == "official" else max(1, pairs - masked))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.model.get_parameter(name) for name in self.trained], self.config.lr)
