"""The contract: what every system does, written once; and what a system's own code adds.

Public verbs open and check the data, seed, and record. A system writes ``_learn`` (what it takes from the
data besides weights), ``_build`` (its model, from config and assets alone, so that a run loads without data),
``_fit`` and ``_embed``; ``_evaluate`` and ``figures`` add what its field looks at.
"""

from __future__ import annotations

import abc
import copy
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from repertory import data as data_
from repertory import loggers, runs
from repertory.card import Card, Config
from repertory.data import Items, Reader, Splits
from repertory.embeddings import Embeddings, Shards
from repertory.encoders import Encoder, stored_weights, with_stored_weights
from repertory.errors import ConfigError, DataError, UserError, first_line
from repertory.evaluation import Metrics, describe
from repertory.index import open_index
from repertory.runs import Assets, Run, seeded

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHARD = 16_384
"""Items per Parquet shard."""
PROBED = 5_000
"""Items of a split that probes look at."""


@dataclass(frozen=True)
class Length:
    """How long a fit lasts, where the user says so: batches, or passes over the data; both None: the config's."""

    steps: int | None = None
    epochs: int | None = None


class System(abc.ABC):
    """A representation-learning system: ``fit``, ``embed``, ``evaluate``, ``save``, ``load``.

    Args:
        config: its hyperparameters; None gives the paper's.
        encoder: where the config names encoders by address, what the catalog made of the addresses.

    Attributes:
        model: an nn.Module with everything that training changed; None before ``fit``.
        assets: what fit learned about the data besides weights.
        splits: the opened data of this session's fit or of the run's source.
    """

    card: ClassVar[Card]
    Config: ClassVar[type[Config]]
    readers: ClassVar[tuple[Reader, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        card = Path(sys.modules[cls.__module__].__file__ or "").with_name("card.md")
        if card.exists():
            cls.card = Card.read(card)

    def __init__(self, config: Any = None, *, encoder: Encoder | dict[str, Encoder] | None = None) -> None:
        self.config: Any = self.Config() if config is None else config
        self._encoder = encoder
        self.assets: Assets = {}
        self.model: Any = None
        self.record: dict[str, Any] = {}
        self.splits: Splits | None = None
        self.run: Run | None = None

    # -- what a system writes ----------------------------------------------------------------------

    def _learn(self, splits: Splits) -> Assets:
        """What the model's shape and the preprocessing need to know about the training data."""
        return {}

    @abc.abstractmethod
    def _build(self) -> nn.Module:
        """The untrained model, from ``self.config`` and ``self.assets`` alone."""

    @abc.abstractmethod
    def _fit(self, splits: Splits, run: Run, length: Length, trainer: Mapping[str, Any]) -> None:
        """Trains ``self.model``."""

    @abc.abstractmethod
    def _embed(self, data: Any, batch_size: int) -> Iterator[Embeddings]:
        """Embeddings of ``data``, piece by piece, independent of batch size and order."""

    def _evaluate(self, splits: Splits) -> Metrics:
        """Metrics on ``splits.test``; probes are fitted on ``splits.train`` where the source is divided."""
        return self.probe(splits)

    def figures(self, data: Any) -> dict[str, Figure]:
        """The pictures that the system's field looks at, on opened data, by caption."""
        return {}

    # -- fit -----------------------------------------------------------------------------------------

    def fit(
        self,
        data: Any = None,
        *,
        validation: Any = None,
        run: str | Path | None = None,
        seed: int = 0,
        steps: int | None = None,
        epochs: int | None = None,
        resume: bool = False,
        trainer: Mapping[str, Any] | None = None,
        log: str | None = None,
    ) -> Self:
        """Learns from data.

        Args:
            data: a source (see ``repertory.data.open``); None takes the card's sample.
            validation: another source for model selection, in place of a part of ``data``.
            run: a directory for the run; None keeps it in memory.
            seed: of everything random.
            steps: training batches (of each stage); or
            epochs: passes over the training data.
            resume: go on with the run that lies in ``run``; a complete one is only loaded.
            trainer: options of the Lightning Trainer (devices, strategy, precision, accumulate_grad_batches, ...).
            log: ``tensorboard``, ``mlflow`` or ``wandb``, which are told the learning curve too (see
                ``repertory.loggers``).

        Raises:
            UserError: the data, an option or the run directory cannot be used as asked; one line says why.
        """
        if steps is not None and epochs is not None:
            raise ConfigError("give steps or epochs, not both")
        for name, value in (("steps", steps), ("epochs", epochs)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: at least 1 is needed")
        loggers.check(log, run)
        source = self.card.sample if data is None else data
        splits = self._open(source)
        if validation is not None:
            splits = copy.copy(splits)  # they may be the caller's
            splits.val = self._open(validation).all
            refuse_overlap(splits.val.units, splits.train.units.contents, "validation")
        record = {
            "format": runs.FORMAT,
            "slug": self.card.slug,
            "seed": int(seed),
            "source": splits.source,
            "validation": None if validation is None else splits.val.fingerprint,
            "rule": splits.rule,
            "fingerprint": splits.fingerprint,
            "items": {part: len(getattr(splits, part).units) for part in ("train", "val", "test")},
            "length": {"steps": steps, "epochs": epochs},
            "trainer": dict(trainer or {}),
            "config": self.config.model_dump(mode="json"),
            "versions": runs.versions(),
        }
        self._check(splits, Length(steps, epochs), trainer or {})
        made = Run.create(run, record, resume=resume)
        if made.complete:
            return self._take_over(self.load(made.path, encoder=self._encoder))  # type: ignore[arg-type]
        if made.path is not None and made.writes and splits.rejected:
            _write_rejected(made.path, splits)
        self.record, self.splits, self.run = made.record, splits, made
        runs.reseed(seed, "learn")
        self.assets = {
            **self._learn(splits),
            "trained_on": np.concatenate([splits.train.units.contents, splits.val.units.contents]),
        }
        self.__dict__.pop("fingerprint", None)
        runs.reseed(seed, "build")
        self.model = self._build()
        made.record["encoders"] = {name: encoder.record() for name, encoder in self._encoders.items()}
        made.write_record()
        with loggers.logged(made, log):
            self._fit(splits, made, Length(steps, epochs), trainer or {})
        self.model.eval()
        self.__dict__.pop("fingerprint", None)
        made.finish(self._weights(), self.assets)
        return self

    def _check(self, splits: Splits, length: Length, trainer: Mapping[str, Any]) -> None:
        """Refuses what this system cannot do with these data and options, before anything is written."""
        if trainer:
            raise ConfigError(f"{self.card.slug} is not trained by Lightning: it cannot honour {', '.join(trainer)}")

    def _take_over(self, other: Self) -> Self:
        self.__dict__.clear()
        self.__dict__.update(other.__dict__)
        return self

    # -- embed and evaluate ------------------------------------------------------------------------------

    def embed(self, data: Any = None, *, batch_size: int | None = None, device: str | None = None) -> Embeddings:
        """Vectors of data; None takes the held-out split of the run's own data.

        Raises:
            UserError: nothing is fitted yet, or the data cannot be used.
        """
        items, _ = self._held_out(data)
        return Embeddings.concat(self._stream(items, batch_size, device))

    def embed_to(
        self,
        folder: Path | str,
        data: Any = None,
        *,
        batch_size: int | None = None,
        device: str | None = None,
        resume: bool = False,
        only_new: bool = False,
        engine: Engine | None = None,
    ) -> int:
        """Writes vectors as Parquet shards with a manifest; of the vectors, memory holds one shard.

        Args:
            folder: where the shards go.
            resume: go on after a kill: what is there is not embedded again.
            only_new: the data may have grown since: only rows that are not there are embedded.
            engine: what embeds the shards (see ``repertory.engines``); None: this process.

        Returns:
            How many items were embedded now.
        """
        items, name = self._held_out(data)
        made = {"run": self.fingerprint} | ({} if only_new else {"data": items.fingerprint})
        shards = Shards(folder, made, resume=resume or only_new)
        rest = items.take(~shards.hold(self.card.key[0], items.ids)) if shards.rows else items
        starts = range(0, len(rest), SHARD)
        made_now = (engine or self.embed_shards)(rest, starts, batch_size=batch_size, device=device)
        for part in runs.progress(made_now, f"embed {name}", total=len(starts)):
            shards.append(part)
        return len(rest)

    def embed_shards(
        self, items: Items, starts: range, *, batch_size: int | None = None, device: str | None = None
    ) -> Iterator[Embeddings]:
        """Embeddings of the ``starts.step`` opened items from each start on: the engine of this process."""
        for start in starts:
            part = items.take(np.arange(start, min(start + starts.step, len(items))))
            yield Embeddings.concat(self._stream(part, batch_size, device))

    def evaluate(self, data: Any = None) -> Metrics:
        """Metrics on held-out data; None takes the held-out split of the run's own data.

        Data that overlap with what the run was trained on are refused. The run is left unchanged.
        """
        self._needs_fit()
        if data is None:
            splits = self._own_splits()
        else:
            splits = self._open(data)
            if not splits.brings_test:
                splits = Splits(
                    splits.all, splits.source, "none", splits.rejected, np.full(len(splits.all.units), "test", object)
                )
            refuse_overlap(splits.test.units, self.trained_on, "evaluation")
        with seeded(self.record.get("seed", 0), "evaluate"), torch.inference_mode():
            self.model.eval()
            return self._evaluate(splits)

    def probe(self, splits: Splits, **where: Any) -> Metrics:
        """The standard metrics of embeddings, as far as labels are there (see ``repertory.evaluation.describe``).

        At most ``PROBED`` items of each split are looked at, drawn from the run's seed.
        """
        seed = self.record.get("seed", 0)
        test = self._select(splits.test, where)
        label = self._label_column(splits.test)
        if label is None or splits.rule == "none":
            return describe(test.vectors, None if label is None else test.column(label), seed=seed)
        train = self._select(splits.train, where)
        return describe(test.vectors, test.column(label), train.vectors, train.column(label), seed=seed)

    def _select(self, items: Items, where: Mapping[str, Any]) -> Embeddings:
        if len(items) > PROBED:
            random = np.random.default_rng(self.record.get("seed", 0))
            items = items.take(np.sort(random.choice(len(items), PROBED, replace=False)))
        embeddings = Embeddings.concat(self._stream(items, None, None))
        return embeddings.where(**where) if where else embeddings

    @staticmethod
    def _label_column(items: Items) -> str | None:
        names = items.roles.get("label", ())
        return names[0] if len(names) == 1 else None

    # -- search ------------------------------------------------------------------------------------------

    def search(self, queries: Any = None, index: Any = None, k: int = 10) -> pa.Table:
        """The ``k`` vectors of an index that are most similar (cosine) to each query, nearest first.

        Args:
            queries: a data source, or Embeddings of this run; None takes the held-out split of the run's own data.
            index: Embeddings of this run, or where they lie (a folder of shards, a Parquet file, a LanceDB table).
            k: at most as many as the index holds.

        Returns:
            A row per query and neighbour: the query's keys, ``rank`` (from 1), ``similarity`` in -1..1, and the
            neighbour's keys and carried columns with ``neighbour_`` in front.

        Raises:
            UserError: no index; vectors of another run; or the system embeds only what it was fitted to.
        """
        self._needs_fit()
        if not self.card.inductive:
            raise UserError(f"{self.card.slug} embeds only what it was fitted to: it cannot search with new queries")
        if index is None:
            raise UserError("search needs an index: Embeddings, or the folder that embed wrote (--index VECTORS)")
        if k < 1:
            raise ConfigError(f"k={k}: at least 1 is needed")
        opened = open_index(index)
        asked = queries if isinstance(queries, Embeddings) else self.embed(queries)
        for name, fingerprint in (("index", opened.fingerprint), ("queries", asked.fingerprint)):
            if fingerprint != self.fingerprint:
                raise DataError(f"{name}: vectors of another run: embed all data with one run")
        rows, similarities = opened.search(asked, min(k, len(opened)))
        repeated = pa.array(np.repeat(np.arange(len(asked)), rows.shape[1]))
        found = asked.table.select(list(asked.key)).take(repeated)
        found = found.append_column("rank", pa.array(np.tile(np.arange(1, rows.shape[1] + 1), len(asked))))
        found = found.append_column("similarity", pa.array(similarities.reshape(-1)))
        there = opened.keys(rows.reshape(-1))
        for name in there.column_names:
            found = found.append_column(f"neighbour_{name}", there[name])
        return found

    def _stream(self, items: Items, batch_size: int | None, device: str | None) -> Iterator[Embeddings]:
        self._needs_fit()
        if not len(items):
            raise DataError("empty: there is no item to embed")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: at least 1 is needed")
        try:
            self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device={device}: {first_line(error)}") from None
        with seeded(self.record.get("seed", 0), "embed"), torch.inference_mode():
            for part in self._embed(items, batch_size or self.config.model_dump().get("batch_size", 256)):
                made = Embeddings(part.table, part.key, self.fingerprint)
                yield made.with_columns(items.ids, items.columns)

    def _open(self, source: Any) -> Splits:
        return data_.open(source, self.card.kind, self.readers)

    def _held_out(self, data: Any) -> tuple[Any, str]:
        self._needs_fit()
        if data is None:
            splits = self._own_splits()
            return splits.test, splits.source
        splits = self._open(data)
        return splits.all, splits.source

    def _own_splits(self) -> Splits:
        """The run's own data, opened again if need be, and checked to be the same."""
        if self.splits is None:
            if self.record.get("source", "memory") == "memory":
                raise UserError("this run was fitted on data in memory, which are gone: name the data")
            splits = self._open(self.record["source"])
            if (splits.fingerprint, splits.rule) != (self.record["fingerprint"], self.record["rule"]):
                raise DataError(
                    f"{self.record['source']}: the data have changed since the run was fitted: name the data to use"
                )
            self.splits = splits
        return self.splits

    @property
    def trained_on(self) -> np.ndarray:
        """Digests ``[N, 16]`` uint8 of what the run was trained and selected on."""
        made: np.ndarray = self.assets.get("trained_on", np.empty((0, 16), np.uint8))
        return made

    def _needs_fit(self) -> None:
        if self.model is None:
            raise UserError(f"{self.card.slug} is not fitted yet: call fit, or load a run")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    # -- save and load --------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, torch.Tensor]:
        return stored_weights(self.model)

    @cached_property
    def fingerprint(self) -> str:
        """Of configuration and weights: says which model made a vector."""
        state = hashlib.sha256(self.config.to_yaml().encode())
        for name, tensor in sorted(self._weights().items()):
            state.update(name.encode())
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return state.hexdigest()[:32]

    def save(self, path: str | Path) -> None:
        """Writes a complete run directory."""
        self._needs_fit()
        made = Run.create(path, self.record)
        made.metrics = self.run.read_metrics() if self.run is not None else []
        made.finish(self._weights(), self.assets)

    @classmethod
    def load(cls, path: str | Path, *, encoder: Encoder | dict[str, Encoder] | None = None) -> Self:
        """The system of a run directory, ready to embed; needs neither the data nor another run.

        A run that started from another encoder is loaded by ``repertory.load``, which builds that encoder too.
        """
        run = Run.open(path)
        if not isinstance(run.record.get("config"), dict):
            raise UserError(f"{path}/config.yaml: not the record of a run: 'config' is missing")
        if run.record["slug"] != cls.card.slug:
            raise UserError(f"{path} is a run of {run.record['slug']}, not of {cls.card.slug}: use repertory.load")
        if run.record.get("encoders") and encoder is None:
            raise UserError(f"{path} starts from other encoders: use repertory.load, which builds them too")
        system = cls(cls.Config.build(**run.record["config"]), encoder=encoder)
        system.record, system.run, system.assets = run.record, run, run.assets()
        system._restore(run.weights())
        return system

    def _restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        try:
            with seeded("restore"):
                self.model = self._build()
            self.model.load_state_dict(with_stored_weights(self.model, weights), strict=True)
        except (RuntimeError, KeyError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UserError(f"weights do not fit the model: {' '.join(lines[:2])[:300]}") from None
        self.model.eval()

    @classmethod
    def from_official(cls, checkpoint: str | Path | Mapping[str, Any]) -> Self:
        """A fitted system from an official checkpoint (a file, or its state dict), through the system's key map."""
        raise UserError(f"{cls.card.slug}: no official checkpoint is known")

    def _imported(self, assets: Assets, weights: Mapping[str, torch.Tensor], source: str) -> Self:
        """Completes ``from_official``: builds from ``assets`` and loads ``weights``."""
        self.assets = assets
        self.record = {
            "format": runs.FORMAT, "slug": self.card.slug, "seed": 0, "source": "memory", "rule": "none",
            "imported": source, "config": self.config.model_dump(mode="json"), "versions": runs.versions(),
        }  # fmt: skip
        self._restore(weights)
        return self

    @property
    def _encoders(self) -> dict[str, Encoder]:
        if self._encoder is None:
            return {}
        return self._encoder if isinstance(self._encoder, dict) else {"": self._encoder}

    @property
    def recipe(self) -> dict[str, Any]:
        """What builds this system again, without its weights: slug, configuration and plain assets."""
        plain = {
            name: value for name, value in self.assets.items() if isinstance(value, (str, int, float, bool, list, dict))
        }
        return {"slug": self.card.slug, "config": self.config.model_dump(mode="json"), "assets": plain}

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> Self:
        """The untrained system of a recipe."""
        system = cls(cls.Config.build(**recipe["config"]))
        system.assets = dict(recipe["assets"])
        with seeded("recipe"):
            system.model = system._build()
        return system

    @property
    def encoder(self) -> Encoder:
        """The trained encoder, for other systems to start from."""
        raise UserError(f"{self.card.slug} has no encoder that other systems can start from")


def refuse_overlap(items: Items, trained: np.ndarray, purpose: str) -> None:
    """Refuses items whose content is among the digests ``trained`` ``[N, 16]``."""
    known = {content.tobytes() for content in trained}
    seen = [str(i) for i, content in zip(items.ids, items.contents, strict=True) if content.tobytes() in known]
    if seen:
        raise DataError(
            f"{len(seen)} of {len(items)} items for {purpose} were trained on (first: {seen[0]}): give other data"
            + (", or none for the run's own held-out split" if purpose == "evaluation" else "")
        )


def _write_rejected(path: Path, splits: Splits) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.table({"id": [r.id for r in splits.rejected], "reason": [r.reason for r in splits.rejected]})
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    runs.write_atomic(path / "rejected.parquet", sink.getvalue().to_pybytes())


class Engine(Protocol):
    """Embeds items shard by shard, somewhere: called, and answering in order, as ``System.embed_shards``."""

    def __call__(
        self, items: Items, starts: range, *, batch_size: int | None = None, device: str | None = None
    ) -> Iterator[Embeddings]: ...


# -- further verbs: a system adopts those that its paper has -----------------------------------------------


@runtime_checkable
class Predicts(Protocol):
    """Answers about each item: a table with the embeddings' keys."""

    def predict(self, data: Any = None) -> Any: ...


@runtime_checkable
class Generates(Protocol):
    """New data that ``repertory.data.open`` accepts."""

    def generate(self, data: Any = None, n: int = 1, seed: int = 0) -> Any: ...


@runtime_checkable
class Analyzes(Protocol):
    """A table of what the field asks of the representation."""

    def analyze(self, data: Any = None) -> Any: ...
