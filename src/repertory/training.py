"""Training by gradients: stages of batches, and the only place that builds a Lightning Trainer.

Step k is a pure function of (seed, stage, rank, k): batch k is built, and the model run on it, after
reseeding from that key. So no random state is saved, results depend on neither workers nor validation,
and a fit that was killed goes on bit for bit.
"""

from __future__ import annotations

import abc
import inspect
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.utils.data import DataLoader, Dataset

from repertory.contract import Length, System
from repertory.data import Splits
from repertory.errors import ConfigError, DataError, nearest
from repertory.runs import Clock, Run, reseed, seeded

OURS = ("max_epochs", "max_steps", "logger", "callbacks", "enable_checkpointing", "num_sanity_val_steps",
        "use_distributed_sampler", "default_root_dir", "val_check_interval", "check_val_every_n_epoch",
        "reload_dataloaders_every_n_epochs", "limit_train_batches", "overfit_batches", "fast_dev_run")  # fmt: skip
"""Options of the Lightning Trainer on which exact resume rests."""
LOG_POINTS = 200
"""About how many points of a learning curve are kept."""


class Batches(abc.ABC):
    """Batches by number: ``batches[k]`` for any k >= 0, ``len(batches)`` of them to one pass over the data.

    ``seed``, ``stage``, ``rank`` and ``world`` are set before use; when ``batches[k]`` is asked for, Python,
    NumPy and torch have just been seeded for step k.
    """

    seed: int = 0
    stage: str = ""
    rank: int = 0
    world: int = 1

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, k: int) -> Any: ...


class Shuffled(Batches):
    """Passes over ``n`` items in a new random order each; ``collate(indices)`` makes a batch.

    Args:
        n: number of items.
        batch_size: items a batch (a device); at most n.
        collate: from item indices [batch_size] to a batch.
    """

    def __init__(self, n: int, batch_size: int, collate: Callable[[np.ndarray], Any]) -> None:
        if n < 1:
            raise DataError("no item to train on")
        self.n, self.batch_size, self.collate = n, min(batch_size, n), collate
        self._drawn: tuple[Any, ...] = ()
        self._order = np.empty(0, np.int64)

    def __len__(self) -> int:
        return max(1, self.n // (self._size * self.world))

    @property
    def _size(self) -> int:
        return max(1, min(self.batch_size, self.n // self.world))  # no item twice in a step

    def __getitem__(self, k: int) -> Any:
        epoch, position = divmod(k, len(self))
        key = (self.seed, self.stage, "order", epoch)
        if key != self._drawn:
            reseed(*key)
            self._drawn, self._order = key, np.random.permutation(self.n)
            reseed(self.seed, self.stage, self.rank, k, "batch")
        start = (position * self.world + self.rank) * self._size
        return self.collate(np.take(self._order, np.arange(start, start + self._size), mode="wrap"))


class Fixed(Sequence[Any]):
    """The same random batches each time, for validation: batch ``i`` is built when asked for, from (key, i) alone."""

    def __init__(self, n: int, batch_size: int, collate: Callable[[np.ndarray], Any], *key: Any) -> None:
        self.n, self.batch_size, self.collate, self.key = n, batch_size, collate, key

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __getitem__(self, index: Any) -> Any:
        start = index * self.batch_size
        if not 0 <= start < self.n:
            raise IndexError(index)
        with seeded(*self.key, index):
            return self.collate(np.arange(start, min(start + self.batch_size, self.n)))


@dataclass
class Stage:
    """One training: a module on batches, for a number of steps.

    Attributes:
        name: unique in its system.
        module: a LightningModule with ``training_step`` and ``configure_optimizers``; inside,
            ``self.steps`` is the number of optimiser steps and ``self.step`` the number of the batch.
        batches: what it is trained on.
        epochs: passes over the data; or
        steps: batches.
        validation: batches that are validated on, the same each time.
        validate_every: batches between validations; None: once a pass.
        keep_best: name of a logged value; the weights with its best value are kept.
        best_is: whether less or more of it is better.
        patience: stop after so many validations without a better value.
        begin: called when the stage begins, not when it is resumed: takes over what an earlier stage has learned.
    """

    name: str
    module: StageModule
    batches: Batches
    epochs: float | None = None
    steps: int | None = None
    validation: Sequence[Any] = ()
    validate_every: int | None = None
    keep_best: str | None = None
    best_is: Literal["min", "max"] = "min"
    patience: int | None = None
    begin: Callable[[], None] | None = None

    def length(self, asked: Length) -> int:
        """Batches in all, as asked for or else as configured."""
        if asked.steps is not None:
            return asked.steps
        if asked.epochs is None and self.steps is not None:
            return self.steps
        epochs = asked.epochs if asked.epochs is not None else self.epochs
        assert epochs is not None, f"stage {self.name} has neither steps nor epochs"
        return max(1, math.ceil(epochs * len(self.batches)))


class StageModule(L.LightningModule):
    """A LightningModule that knows how long it is trained and where it stands."""

    steps: int = 1
    """Optimiser steps of the stage, for schedules."""
    step: int = 0
    """Number of the batch, from 0, counted through a resume."""


class Scheduled(StageModule):
    """Learning rates by the number of the optimiser step (times a group's ``lr_scale``); gradients clipped to a norm.

    ``configure_optimizers`` sets ``rates``, a value per step; ``clip`` 0 does not clip.
    """

    clip: float = 0.0
    rates: torch.Tensor

    @property
    def update(self) -> int:
        """Number of the optimiser step, from 0."""
        return self.step // int(self.trainer.accumulate_grad_batches)

    @property
    def fused(self) -> bool:
        """Whether AdamW may be fused: a fused step unscales float16 gradients itself, too late for clipping."""
        return self.trainer.precision != "16-mixed"

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """The norm that the trainer was given, or else the configuration's."""
        if gradient_clip_val is not None and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        elif norm := self.clip if gradient_clip_val is None else gradient_clip_val:
            torch.nn.utils.clip_grad_norm_([p for p in self.parameters() if p.requires_grad], norm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        rate = float(self.rates[min(self.update, len(self.rates) - 1)])
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


class TorchSystem(System):
    """A system trained by gradients: it gives ``stages(splits)``, run in order with fresh optimisers."""

    @abc.abstractmethod
    def stages(self, splits: Splits) -> list[Stage]:
        """The trainings, made of parts of ``self.model``; called once the model is built."""

    def _check(self, splits: Splits, length: Length, trainer: Mapping[str, Any]) -> None:
        valid = set(inspect.signature(L.Trainer).parameters)
        for name in trainer:
            if name not in valid:
                raise ConfigError(f"the Lightning Trainer has no option '{name}'{nearest(name, valid)}")
            if name in OURS:
                raise ConfigError(f"trainer option '{name}' is set by repertory (exact resume rests on it)")
        _world(trainer)

    def _fit(self, splits: Splits, run: Run, length: Length, trainer: Mapping[str, Any]) -> None:
        stages = self.stages(splits)
        alone = not dist.is_initialized()
        for stage in stages:
            stage.batches.world = _world(trainer)  # a pass over the data is shorter on several devices
        names = tuple(stage.name for stage in stages)
        found = run.load_state(names)
        first, start, state = (0, 0, None) if found is None else (names.index(found[0]), found[1], found[2])
        for index, stage in enumerate(stages):
            if index < first:
                continue  # its result is part of the state of the later stage, which holds the whole model
            steps = stage.length(length)
            place = (start, state) if index == first else (0, None)
            if place[1] is None and stage.begin is not None:
                stage.begin()
            if place[1] is None and index > 0 and run.path is not None:
                run.save_state(stage.name, 0, {"model": self.model.state_dict(), "module": None})
            _train(stage, self.model, steps, run, place, trainer)
        if alone and dist.is_initialized():  # what comes after the fit is each process's own
            dist.barrier()
            dist.destroy_process_group()


def _world(options: Mapping[str, Any]) -> int:
    """On how many devices Lightning trains with these options.

    Raises:
        ConfigError: it refuses them, or the weights would not lie whole in this process.
    """
    if not options:
        return 1
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    try:
        if options.get("accumulate_grad_batches", 1) < 1:
            raise ValueError("at least 1 is needed")
        with warnings.catch_warnings(action="ignore"):
            strategy = L.Trainer(**{"devices": 1, **options}, logger=False, enable_checkpointing=False).strategy
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        given = ", ".join(f"{name}={value}" for name, value in options.items())
        raise ConfigError(f"the Lightning Trainer refuses {given}: {' '.join(str(error).split())}") from None
    if isinstance(strategy, SingleDeviceStrategy):
        return 1
    if not isinstance(strategy, DDPStrategy) or isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise ConfigError(
            f"strategy={options.get('strategy', 'auto')}: this is not supported; use ddp (several devices)"
        )
    return int(strategy.num_processes * strategy.num_nodes)


def _train(
    stage: Stage, model: torch.nn.Module, steps: int, run: Run, place: tuple[int, Any], options: Mapping[str, Any]
) -> None:
    start, state = place
    seed = run.record.get("seed", 0)
    options = dict(options)
    accumulate = int(options.get("accumulate_grad_batches", 1))
    module = stage.module
    if not module.automatic_optimization and (accumulate > 1 or options.get("gradient_clip_val")):
        raise ConfigError(f"stage {stage.name} optimises by hand: accumulation and clipping cannot be honoured")
    module.steps = max(1, math.ceil(steps / accumulate))
    keeper = _Keeper(stage, model, run, steps, start, state, seed, accumulate)
    every = stage.validate_every or len(stage.batches)
    quiet = not sys.stderr.isatty()
    with warnings.catch_warnings():
        for message in (".*does not have many workers.*", ".*logging interval.*", ".*isinstance.*LeafSpec.*",
                        ".*GPU available but not used.*", ".*treespec.*", ".*lr_scheduler.step.*",
                        ".*no `val_dataloader`.*", ".*in eval mode at the start.*"):  # fmt: skip
            warnings.filterwarnings("ignore", message)
        for name in ("pytorch.utilities.rank_zero", "pytorch.accelerators.cuda", "fabric.utilities.distributed"):
            logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
        trainer = L.Trainer(
            **{"accelerator": "auto", "devices": 1, "enable_model_summary": False, **options},
            max_epochs=1, max_steps=-1, use_distributed_sampler=False, enable_checkpointing=False,
            num_sanity_val_steps=0, check_val_every_n_epoch=None,
            val_check_interval=every if stage.validation else None, limit_val_batches=None if stage.validation else 0,
            log_every_n_steps=max(1, steps // LOG_POINTS),
            logger=[_RunLogger(run, stage.name, keeper)],
            callbacks=[keeper] + ([] if quiet else [RichProgressBar(leave=False)]),
            enable_progress_bar=not quiet,
        )  # fmt: skip
        # a validation falls on every n-th batch of the stage, not of what is left of it after a resume
        trainer.fit_loop.epoch_loop.batch_progress.total.ready = start
        trainer.fit_loop.epoch_loop._batches_that_stepped = start // accumulate
        stage.batches.rank, stage.batches.world = trainer.global_rank, trainer.world_size
        stage.batches.seed, stage.batches.stage = seed, stage.name
        workers = int(run.record["config"].get("workers", 0))
        loader: DataLoader[Any] = DataLoader(
            _Numbered(stage.batches, start, steps),
            batch_size=None,
            collate_fn=_as_is,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        validation: DataLoader[Any] | None = (
            DataLoader(_Listed(stage.validation), batch_size=None, collate_fn=_as_is) if stage.validation else None
        )
        trainer.fit(module, loader, validation)
    keeper.restore_best()


def _as_is(batch: Any) -> Any:
    return batch


class _Numbered(Dataset[Any]):
    """Batches ``start .. steps`` as a dataset of which each item is a batch."""

    def __init__(self, batches: Batches, start: int, steps: int) -> None:
        self.batches, self.start, self.steps = batches, start, steps

    def __len__(self) -> int:
        return self.steps - self.start

    def __getitem__(self, index: int) -> Any:
        k = self.start + index
        reseed(self.batches.seed, self.batches.stage, self.batches.rank, k, "batch")
        return self.batches[k]


class _Listed(Dataset[Any]):
    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


class _RunLogger(Logger):
    """Brings what modules log into the run's metrics."""

    def __init__(self, run: Run, stage: str, keeper: _Keeper) -> None:
        super().__init__()
        self._run, self._stage, self._keeper = run, stage, keeper

    name = property(lambda self: "run")  # type: ignore[assignment]
    version = property(lambda self: 0)  # type: ignore[assignment]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's record holds them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if values:
            self._run.log(self._stage, self._keeper.step, values)


class _Keeper(Callback):
    """Reseeds before each step, writes checkpoints, takes them up again, keeps the best weights."""

    def __init__(
        self,
        stage: Stage,
        model: torch.nn.Module,
        run: Run,
        steps: int,
        start: int,
        state: Any,
        seed: int,
        accumulate: int,
    ) -> None:
        self.stage, self.model, self.run, self.steps, self.start = stage, model, run, steps, start
        self.state, self.seed, self.accumulate = state, seed, accumulate
        self.step = start
        self.best: dict[str, torch.Tensor] | None = None
        self.best_value, self.waited = math.inf, 0
        self.clock = Clock()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.state is None:
            return
        self.model.load_state_dict(self.state["model"])
        if self.state["module"] is None:
            return
        module.load_state_dict(self.state["module"])
        for optimizer, saved in zip(trainer.optimizers, self.state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for config, saved in zip(trainer.lr_scheduler_configs, self.state["schedulers"], strict=True):
            config.scheduler.load_state_dict(saved)
        self.best, self.best_value, self.waited = self.state["best"], self.state["best_value"], self.state["waited"]
        self.state = None

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.step = module.step = self.start + batch_idx
        if batch_idx and self.step % self.accumulate == 0 and self.clock.due() and trainer.is_global_zero:
            self.run.save_state(self.stage.name, self.step, {
                "model": self.model.state_dict(),
                "module": module.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
                "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
                "best": self.best, "best_value": self.best_value, "waited": self.waited,
            })  # fmt: skip
        reseed(self.seed, self.stage.name, trainer.global_rank, self.step)

    def on_validation_batch_start(
        self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        reseed(self.seed, self.stage.name, "validation", batch_idx)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        name = self.stage.keep_best
        if name is None:
            return
        if name not in trainer.callback_metrics:
            raise RuntimeError(f"stage {self.stage.name} keeps the best '{name}', which it does not log")
        value = float(trainer.callback_metrics[name])
        value = trainer.strategy.broadcast(value if self.stage.best_is == "min" else -value)  # one judgement for all
        if value < self.best_value:
            self.best_value, self.waited = value, 0
            self.best = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
        else:
            self.waited += 1
            if self.stage.patience is not None and self.waited >= self.stage.patience:
                trainer.should_stop = True

    def restore_best(self) -> None:
        """Puts the best weights into the model, where they are kept."""
        if self.best is not None:
            self.model.load_state_dict(self.best)


def batches_of(n: int, batch_size: int, collate: Callable[[np.ndarray], Any]) -> Iterator[Any]:
    """All items once in order, in batches: for validation and embedding."""
    for start in range(0, n, batch_size):
        yield collate(np.arange(start, min(start + batch_size, n)))
