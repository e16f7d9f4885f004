"""Relational deep learning: predictions over linked tables, without hand-made features (RelBench)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn

from repertory.contract import Length
from repertory.data import Splits
from repertory.data.database import Database, Rows
from repertory.data.database.schema import OWN
from repertory.data.database.tasks import moment
from repertory.embeddings import Embeddings
from repertory.encoders import read_checkpoint
from repertory.errors import ConfigError, DataError
from repertory.evaluation import Metric, Metrics, resampled_interval
from repertory.evaluation.areas import auroc, average_precision
from repertory.runs import seeded
from repertory.systems.relational_dl import explanation, figures, metrics
from repertory.systems.relational_dl.config import Config
from repertory.systems.relational_dl.data import Limited, Links, Neighbourhoods, SameTime, destinations, drawn_seed
from repertory.systems.relational_dl.features import CONSTANT, learn_columns
from repertory.systems.relational_dl.model import Batch, RelationalModel, from_official_keys, shape_of
from repertory.systems.relational_dl.sampler import EdgeType, Strategy, links_as_edges
from repertory.systems.relational_dl.training import SELECTED, Adam, Answers, IdGnn, TwoTower
from repertory.training import Fixed, Stage, TorchSystem

EXPLAINED = 128
"""Rows whose explanation the report shows."""


class RelationalDL(TorchSystem):
    """Graph neural networks on relational databases (Fey et al. 2023, Robinson et al. 2024)."""

    Config = Config
    model: RelationalModel

    # -- the model -----------------------------------------------------------------------------------------------

    def _check(self, splits: Splits[Rows], length: Length, trainer: Mapping[str, Any]) -> None:
        super()._check(splits, length, trainer)
        train, task = splits.train, splits.all.task
        if splits.rule == "none":
            raise DataError(f"{splits.source}: nothing is left to train on")
        if not train.targeted:
            raise DataError(f"{splits.source}: no column '{task.target}': there is no target to learn")
        if splits.rule == "source" and train.times.max() > splits.test.times.min():
            first, last = (np.datetime64(int(t), "s") for t in (splits.test.times.min(), train.times.max()))
            raise DataError(f"{splits.source}: test begins at {first}, but training goes on until {last}")
        if task.answer == "link":
            if not any(len(v) for v in train.targets):
                raise DataError(f"{splits.source}: '{task.target}': no training row has a destination")
        elif task.answer != "multilabel" and len(set(train.targets.tolist())) < 2:
            raise DataError(f"{splits.source}: '{task.target}' is {train.targets[0]} in every training row")
        for table in self.config.shallow:
            splits.all.database.key_of(table)

    def _learn(self, splits: Splits[Rows]) -> dict[str, Any]:
        train, task = splits.train, splits.all.task
        database = splits.all.database
        made: dict[str, Any] = {
            "columns": learn_columns(database, int(train.times.max()), self.config.text_width),
            "edge_types": [list(kind) for kind in links_as_edges(database)],
            "timed": [table for table, times in database.times.items() if times is not None],
            "shallow": {table: database.rows[table] for table in self.config.shallow},
            "entity": task.entity, "target": task.target, "answer": task.answer, "outputs": 1,
        }  # fmt: skip
        if task.answer == "multiclass":
            classes = sorted(set(train.targets.tolist()))
            made |= {"classes": [str(c) for c in classes], "outputs": len(classes)}
        elif task.answer == "multilabel":
            lengths = {len(v) for v in splits.all.targets}
            if len(lengths) > 1:
                raise DataError(f"'{task.target}': lists of {sorted(lengths)} labels; all must have as many")
            made["outputs"] = lengths.pop()
        elif task.answer == "regression":
            made["bounds"] = [float(q) for q in np.quantile(train.targets.astype(np.float64), [0.02, 0.98])]
        elif task.answer == "link":
            made |= {"destination": task.destination, "k": task.k}
            made["outputs"] = self.config.channels if self.config.links == "two-tower" else 1
        return made

    @property
    def answer(self) -> str:
        """``binary``, ``multiclass``, ``multilabel``, ``regression`` or ``link``."""
        answer: str = self.assets["answer"]
        return answer

    @property
    def edge_types(self) -> list[EdgeType]:
        """Along every link and against it."""
        return [(kind[0], kind[1], kind[2]) for kind in self.assets["edge_types"]]

    def _build(self) -> nn.Module:
        c, known = self.config, self.assets
        return RelationalModel(
            known["columns"], self.edge_types, known["timed"], c.channels, known["outputs"], c.layers, c.convolution,
            c.aggregation, c.heads, c.encoder_channels, c.blocks, c.dropout, known["shallow"],
            known.get("identity", self.answer == "link" and c.links == "id-gnn"), c.temporal,
        )  # fmt: skip

    def neighbourhoods(self, database: Database) -> Neighbourhoods:
        """Batches of a database as this model takes them.

        Raises:
            DataError: it has not the tables, columns or links that the model was fitted with.
        """
        c, known = self.config, self.assets
        for table, rows in known["shallow"].items():
            if database.rows.get(table) != rows:
                raise DataError(
                    f"{database.name}: '{table}' has {database.rows.get(table, 0)} rows, but vectors were learned for "
                    f"{rows}: a model with shallow={table} serves only the rows it was fitted to"
                )
        strategy: Strategy = c.strategy or ("last" if self.answer == "link" else "uniform")
        with_rows = {*known["shallow"], *([known["destination"]] if "destination" in known else [])}
        return Neighbourhoods(
            database, known["columns"], self.edge_types, c.fanouts, strategy, c.share_rows, tuple(with_rows),
            c.kept_rows,
        )  # fmt: skip

    def stages(self, splits: Splits[Rows]) -> list[Stage]:
        c, link = self.config, self.answer == "link"
        near = self.neighbourhoods(splits.all.database)
        lr = c.lr or (0.001 if link else 0.005)
        module: Adam
        batches: Any
        validation: Any
        if not link:
            module = Answers(self.model, lr, self.answer, tuple(self.assets.get("bounds", (-np.inf, np.inf))))
            train, val = (self._answers(part, near) for part in (splits.train, splits.val))
            batches = Limited(len(splits.train), c.batch_size, train, c.steps_per_epoch)
            validation = Fixed(len(splits.val), c.batch_size, val, "validation")
        else:
            train, val = (Links(part, near) for part in (splits.train, splits.val))
            if c.links == "id-gnn":
                module = IdGnn(self.model, lr, self.assets["destination"])
                batches = Limited(len(train), c.batch_size, train.around, c.steps_per_epoch)
                validation = Fixed(len(val), c.batch_size, val.around, "validation")
            else:
                module = TwoTower(self.model, lr, c.share_same_time)
                make = SameTime if c.share_same_time else None
                batches = (
                    make(train.times, c.batch_size, train.pairs, c.steps_per_epoch)
                    if make else Limited(len(train), c.batch_size, train.pairs, c.steps_per_epoch)
                )  # fmt: skip
                validation = Fixed(len(val), c.batch_size, val.pairs, "validation")
        name, best = SELECTED[self.answer]
        return [
            Stage(
                "training", module, batches, epochs=c.epochs or (20 if link else 10), validation=validation,
                keep_best=name, best_is="max" if best == "max" else "min",
            )
        ]  # fmt: skip

    def _answers(self, rows: Rows, near: Neighbourhoods) -> Any:
        targets = self._targets(rows)

        def collate(indices: np.ndarray) -> Batch:
            return near.batch(
                rows.task.entity, rows.entities[indices], rows.times[indices], drawn_seed(), targets[indices]
            )

        return collate

    def _targets(self, rows: Rows) -> Tensor:
        """As the loss takes them.

        Raises:
            DataError: a class was not there in training.
        """
        values = rows.targets
        if self.answer == "multilabel":
            return torch.from_numpy(np.stack([np.asarray(v, np.float32) for v in values]))
        if self.answer == "multiclass":
            known = {name: n for n, name in enumerate(self.assets["classes"])}
            unknown = sorted({str(v) for v in values.tolist()} - set(known))
            if unknown:
                raise DataError(f"'{rows.task.target}': class '{unknown[0]}' does not occur in the training rows")
            return torch.tensor([known[str(v)] for v in values.tolist()])
        return torch.from_numpy(values.astype(np.float32))

    # -- embed ---------------------------------------------------------------------------------------------------

    def _batches(self, rows: Rows, batch_size: int, table: str = "") -> Iterator[tuple[np.ndarray, Batch]]:
        """Rows in order as batches, each row's draw from the run's seed, its entity and its time alone."""
        if rows.task.entity != self.assets["entity"]:
            raise DataError(f"rows of '{rows.task.entity}': the model answers for '{self.assets['entity']}'")
        near, seed = self.neighbourhoods(rows.database), int(self.record.get("seed", 0))
        both = self.answer == "link" and self.config.links == "id-gnn"
        for start in range(0, len(rows), batch_size):
            part = np.arange(start, min(start + batch_size, len(rows)))
            batch = near.batch(rows.task.entity, rows.entities[part], rows.times[part], seed, both=both)
            yield part, batch.to(self.device)

    def _embed(self, data: Rows, batch_size: int) -> Iterator[Embeddings]:
        for part, batch in self._batches(data, batch_size):
            yield Embeddings.build(self.model.embed(batch).float().cpu().numpy(), id=data.ids[part])

    @torch.no_grad()
    def outputs(self, rows: Rows) -> np.ndarray:
        """What the head says of rows: [N, outputs], before any sigmoid or softmax."""
        self._needs_fit()
        self.model.eval()
        made = [self.model(batch).float().cpu().numpy() for _, batch in self._batches(rows, self.config.batch_size)]
        return np.concatenate(made)

    @torch.no_grad()
    def recommend(self, rows: Rows, k: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Destinations of each row by score, best first: row numbers [N, k] (-1 where no further is known), scores.

        Args:
            k: how many; None takes the task's.
        """
        self.model.eval()
        k = k or int(self.assets["k"])
        table = self.assets["destination"]
        size = rows.database.rows[table]
        k = min(k, size)
        best, scores = np.full((len(rows), k), -1, np.int64), np.full((len(rows), k), -np.inf, np.float32)
        if self.config.links == "id-gnn":
            for part, batch in self._batches(rows, self.config.batch_size):
                said = self.model.read_out(batch, table)[:, 0].sigmoid().float().cpu().numpy()
                if not len(said):
                    continue
                owner, reached = batch.owner[table].cpu().numpy(), batch.rows[table].cpu().numpy()
                order = np.lexsort((reached, -said, owner))
                owner, reached, said = owner[order], reached[order], said[order]
                rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
                kept = rank < k
                best[part[owner[kept]], rank[kept]] = reached[kept]
                scores[part[owner[kept]], rank[kept]] = said[kept]
            return best, scores
        near, seed = self.neighbourhoods(rows.database), int(self.record.get("seed", 0))
        born = rows.database.times[table]
        for time in np.unique(rows.times):
            known = np.arange(size) if born is None else np.flatnonzero(born <= time)
            there = []
            for part in np.array_split(known, max(1, -(-len(known) // self.config.batch_size))):
                batch = near.batch(table, part, np.full(len(part), time), seed)
                there.append(self.model(batch.to(self.device)))
            vectors, asked = torch.cat(there), np.flatnonzero(rows.times == time)
            for part in np.array_split(asked, max(1, -(-len(asked) // self.config.batch_size))):
                batch = near.batch(rows.task.entity, rows.entities[part], rows.times[part], seed)
                found = (self.model(batch.to(self.device)) @ vectors.T).topk(min(k, len(known)))
                width = found.indices.shape[1]
                best[part, :width] = known[found.indices.cpu().numpy()]
                scores[part, :width] = found.values.float().cpu().numpy()
        return best, scores

    # -- evaluate ------------------------------------------------------------------------------------------------

    def _evaluate(self, splits: Splits[Rows]) -> Metrics:
        answered = self._measured(splits.test) if splits.test.targeted else Metrics()
        return answered | self.probe(splits)

    def _measured(self, rows: Rows) -> Metrics:
        seed = int(self.record.get("seed", 0))
        about = f"{len(rows):,} rows of '{rows.task.entity}'"
        if self.answer == "link":
            truth = destinations(rows)
            counts = np.array([len(v) for v in truth])
            if not counts.any():
                raise DataError(f"'{rows.task.target}': no row has a destination")
            best, _ = self.recommend(rows)
            hits = np.array([np.isin(found, true) for found, true in zip(best, truth, strict=True)])
            return Metrics({
                f"{name}_at_{hits.shape[1]}": Metric.of(values, seed, higher_is_better=True, about=about)
                for name, values in metrics.of_links(hits, counts).items()
            })  # fmt: skip
        outputs, targets = self.outputs(rows), self._targets(rows).numpy()
        if self.answer == "regression":
            said = outputs[:, 0].clip(*self.assets["bounds"])
            found = metrics.of_numbers(targets, said)
            errors = np.abs(targets - said)
            return Metrics(
                {
                    "mae": Metric.of(errors, seed, higher_is_better=False, about=about),
                    "rmse": Metric(found["rmse"], higher_is_better=False, about=about),
                    "r2": Metric(found["r2"], higher_is_better=True, about=about),
                }
                if np.isfinite(found["r2"])
                else {"mae": Metric.of(errors, seed, higher_is_better=False, about=about)}
            )
        if self.answer == "multiclass":
            said = outputs.argmax(axis=1)
            right = (said == targets).astype(np.float64)
            f1 = metrics.of_classes(targets, said)["macro_f1"]
            return Metrics({
                "accuracy": Metric.of(right, seed, higher_is_better=True, about=about),
                "macro_f1": Metric(f1, higher_is_better=True, about=about),
            })  # fmt: skip
        if self.answer == "multilabel":
            areas = [
                metrics.of_probabilities(t, p)
                for t, p in zip(targets.T, outputs.T, strict=True)
                if 0 < t.sum() < len(t)
            ]
            return Metrics({
                name: Metric(
                    float(np.mean([a[name] for a in areas])), higher_is_better=True, about=f"{about}, mean of labels"
                )
                for name in ("roc_auc", "average_precision") if areas
            })  # fmt: skip
        found = metrics.of_probabilities(targets, _sigmoid(outputs[:, 0]))
        made = {
            name: Metric(found[name], higher_is_better=True, about=about)
            for name in ("accuracy", "f1") if np.isfinite(found[name])
        }  # fmt: skip
        if 0 < targets.sum() < len(targets):
            for name, area in (("roc_auc", auroc), ("average_precision", average_precision)):
                low, high = resampled_interval(partial(area, targets, outputs[:, 0]), len(targets), seed, 200)
                made[name] = Metric(found[name], low, high, True, about)
        return Metrics(made)

    # -- verbs ---------------------------------------------------------------------------------------------------

    def predict(self, data: Any = None, at: str = "", write: str = "") -> pa.Table:
        """What is to be expected of each row.

        Args:
            data: a source; None takes the held-out split of the run's own data.
            at: asks every entity of the data's database at a time (``2013-11-01``, or ``now``: that of its latest
                row) in place of the rows of its task.
            write: also writes the answers back to where the database lies, as the table ``repertory_NAME``.

        Returns:
            A row per row asked: id, entity, time, and ``probability`` (binary), ``prediction`` and ``probability``
            (multiclass), ``probabilities`` (multilabel), ``prediction`` (regression), or ``destinations`` and
            ``scores`` (link).

        Raises:
            DataError: no entity is known at that time, or the database cannot be written to.
        """
        rows, _ = self._held_out(data)
        if at:
            rows = rows.at(rows.database.span[1] if at == "now" else moment(at, "at"))
        with seeded(self.record.get("seed", 0), "predict"):
            made = pa.table({"id": pa.array(rows.ids), "entity": rows.columns["entity"], "time": rows.columns["time"]})
            for name, values in self._answered(rows).items():
                made = made.append_column(name, values)
        if write:
            if rows.database.write_back is None:
                raise DataError(f"{rows.database.name}: it lies in memory: there is nowhere to write '{write}' to")
            rows.database.write_back(f"{OWN}{write.removeprefix(OWN)}", made)
        return made

    def _answered(self, rows: Rows) -> dict[str, pa.Array]:
        if self.answer == "link":
            best, scores = self.recommend(rows)
            keys = rows.database.keys(self.assets["destination"])
            kept = [row >= 0 for row in best]
            return {
                "destinations": pa.array([keys[row[k]].tolist() for row, k in zip(best, kept, strict=True)]),
                "scores": pa.array([row[k].tolist() for row, k in zip(scores, kept, strict=True)]),
            }
        outputs = self.outputs(rows)
        if self.answer == "regression":
            return {"prediction": pa.array(outputs[:, 0].astype(np.float64).clip(*self.assets["bounds"]))}
        if self.answer == "multiclass":
            shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            names = np.array(self.assets["classes"], dtype=object)
            return {"prediction": pa.array(names[shares.argmax(axis=1)]), "probability": pa.array(shares.max(axis=1))}
        if self.answer == "multilabel":
            return {"probabilities": pa.array(_sigmoid(outputs).tolist())}
        return {"probability": pa.array(_sigmoid(outputs[:, 0]))}

    @torch.no_grad()
    def explain(self, data: Any = None, most: int = EXPLAINED) -> pa.Table:
        """What each answer rests on: how the output moves when a column is unknown, or a path is not there.

        The output is the logit (of the class that is predicted), or the number of a regression.

        Args:
            data: a source; None takes the held-out split of the run's own data.
            most: of rows, evenly spread.

        Returns:
            A row per row asked and column or path: id, ``kind`` (column, path), ``name``, ``importance`` (the output
            less the output without it).

        Raises:
            ConfigError: the system answers with links, or ``most`` is less than 1.
        """
        if self.answer == "link":
            raise ConfigError("explain says what an answer about an entity rests on; links have many")
        if most < 1:
            raise ConfigError(f"most={most}: at least 1 is needed")
        rows, _ = self._held_out(data)
        rows = rows.take(np.unique(np.linspace(0, len(rows) - 1, most).astype(int)))
        self.model.eval()
        columns = [
            (table, name) for table, of in self.assets["columns"].items() for name in of["types"]
            if table == self.assets["entity"] or any(table in (kind[0], kind[2]) for kind in self.edge_types)
        ]  # fmt: skip
        walks = explanation.paths(self.edge_types, self.assets["entity"], self.config.layers)
        reached = {self.assets["entity"], *(kind[0] for walk in walks for kind in walk)}
        parts = []
        for part, batch in self._batches(rows, self.config.batch_size):
            whole = self.model(batch)
            chosen = whole.argmax(dim=1, keepdim=True)

            def moved(other: Batch, whole: Tensor = whole, chosen: Tensor = chosen) -> np.ndarray:
                return (whole - self.model(other)).gather(1, chosen)[:, 0].float().cpu().numpy()

            found = [
                ("column", f"{table}.{name}", moved(explanation.without_column(batch, table, name)))
                for table, name in columns if table in reached and name != CONSTANT
            ]  # fmt: skip
            found += [
                ("path", explanation.spelled(walk), moved(explanation.without_path(batch, walk))) for walk in walks
            ]
            parts += [
                pd.DataFrame({"id": rows.ids[part], "kind": kind, "name": name, "importance": gap})
                for kind, name, gap in found
            ]
        return pa.Table.from_pandas(pd.concat(parts, ignore_index=True), preserve_index=False)

    def figures(self, data: Rows) -> dict[str, Any]:
        made = {"Tables, links and rows": figures.of_schema(data.database, data.task.entity)}
        if self.answer == "link":
            return made
        if data.targeted:
            outputs, targets = self.outputs(data), self._targets(data).numpy()
            if self.answer == "binary":
                made["How well the model tells yes from no"] = figures.of_ranking(targets, _sigmoid(outputs[:, 0]))
            elif self.answer == "regression":
                made["Predictions against the truth"] = figures.of_numbers(targets, outputs[:, 0])
            elif self.answer == "multiclass":
                made["Which class is taken for which"] = figures.of_classes(
                    targets, outputs.argmax(axis=1), self.assets["classes"]
                )
        by_kind = figures.of_columns(self.explain(data))
        about = "mean change of the output without it"
        titles = {"column": "What predictions rest on, by column", "path": "What predictions rest on, by path"}
        return made | {titles[kind]: figures.of_importance(found, about) for kind, found in by_kind.items()}

    @classmethod
    def from_official(cls, checkpoint: Any) -> RelationalDL:
        """From a state dict of the official ``Model`` (a file, or the dict).

        Names of columns are not in it: they are named by type and place (``numerical 0``). Their statistics are, as far
        as the model uses them, but for categories, which are numbers here.
        """
        state = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
        weights = from_official_keys(state)
        shape = shape_of(weights)
        entity = next(iter(shape["columns"]))
        warnings.warn("names of columns are not in the weights: they are named by type and place", stacklevel=2)
        assets = {name: shape[name] for name in ("columns", "edge_types", "timed", "shallow", "outputs", "identity")}
        assets |= {"entity": entity, "target": "target", "answer": "binary" if shape["outputs"] == 1 else "multiclass"}
        if shape["outputs"] > 1:
            assets["classes"] = [str(n) for n in range(shape["outputs"])]
        return cls(cls.Config.build(**shape["config"]))._imported(assets, weights, str(checkpoint)[:200])


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    made: np.ndarray = (1 / (1 + np.exp(-logits.astype(np.float64).clip(-500, 500)))).astype(np.float32)
    return made
