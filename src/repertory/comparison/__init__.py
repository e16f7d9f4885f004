"""Which representation is best for these data? Systems, runs, encoders and vectors on the same splits and probe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from repertory import data
from repertory.comparison.candidates import Budget, Candidate, candidate, measured, read_vectors
from repertory.comparison.result import Comparison, Row, seconds_of, writer
from repertory.contract import PROBED
from repertory.data import Items, Splits
from repertory.errors import ConfigError, DataError
from repertory.evaluation import Probe, auroc, knn, linear_probe
from repertory.experiments import Statistic, against_best
from repertory.runs import progress

__all__ = [
    "METRICS", "PROBED", "Budget", "Candidate", "Comparison", "Row", "Task", "candidate", "compare", "read_vectors",
    "statistic", "writer",
]  # fmt: skip

Task = Literal["classes", "multilabel", "regression"]
METRICS = {"classes": "accuracy", "multilabel": "AUROC", "regression": "R²"}
"""The one number that decides, by task; of the linear probe, higher is better."""


def compare(
    candidates: Sequence[Any],
    source: Any,
    *,
    label: str | None = None,
    task: Task | None = None,
    seeds: int = 3,
    budget: str | None = None,
    most: int = PROBED,
    runs: str | Path | None = None,
    kind: str | None = None,
    watch: Callable[[str], None] | None = None,
) -> Comparison:
    """Measures candidates on the same splits with the same probe.

    Systems are fitted to the training part (with the validation part for their model selection), once per seed. A
    linear probe learns the label from the training items' vectors and is measured on the test items. A seed is that of
    a system's fit and of the probe.

    Args:
        candidates: see ``candidate``.
        source: the data, as in ``repertory.data.open``; its splits are the same for all.
        label: a column, or several of 0 and 1 joined by commas (multi-label); None takes the source's label.
        task: overrules what the labels look like: ``regression`` for whole numbers that are quantities.
        seeds: how many, from 0.
        budget: of one fit: ``"500"`` batches or ``"90s"``; None: as each configuration says.
        most: items of the training and of the test part that the probe looks at, drawn once where there are more.
        runs: a folder that keeps the fitted runs; a comparison that was cut short goes on from there.
        kind: the data's, where neither the source nor a system says it.
        watch: told in one line what has just been done.

    Raises:
        UserError: a candidate is unknown or was trained on test items; vectors are missing; the labels are of no use.
    """
    if seeds < 1:
        raise ConfigError(f"seeds={seeds}: at least 1 is needed")
    spent, asked, tell = Budget.parse(budget), list(candidates), watch or (lambda line: None)
    if len(asked) < 2:
        raise ConfigError("compare: name at least two candidates")
    if twice := {str(a) for a in asked if asked.count(a) > 1}:
        raise ConfigError(f"{min(twice)} is named twice")
    loaded, memory, names_taken = [candidate(one) for one in asked], [], Counter[str]()
    for one in loaded:
        names_taken[one.name] += 1
        one.called = one.name if names_taken[one.name] == 1 else f"{one.name} ({names_taken[one.name]})"
        with measured() as cost:
            one.load()
        memory.append(cost.megabytes)
    splits = _opened(loaded, source, kind)
    items, labels, part, unlabelled, names = _examples(splits, label, most)
    for one in loaded:
        one.prepare(items)
        one.refuse_overlap(splits.test)
    test = part == "test"
    total = sum(seeds if one.per_seed else 1 for one in loaded)
    bar = progress(range(total), "compare", total=total)
    next(bar, None)

    def done(line: str) -> None:
        tell(line)
        next(bar, None)

    folder = None if runs is None else Path(runs)
    rows: list[dict[str, Any]] = []
    probes: list[list[Probe]] = []
    for one, loading in zip(loaded, memory, strict=True):
        costs, looks, found = [], [], []
        votes: list[float] = []
        for seed in range(seeds):
            fresh = one.per_seed or not seed
            if fresh:
                costs.append(one.fit(splits, seed, spent, folder))
                with measured() as cost:
                    vectors = one.vectors(items, seed)
                looks.append(cost)
            train = {"train_vectors": vectors[~test], "train_labels": labels[~test]}
            probe = linear_probe(vectors[test], labels[test], **train, task=task, seed=seed, draws=2)
            found.append(probe)
            if probe.task == "classes":
                votes.append(knn(vectors[test], labels[test], **train, seed=seed)["knn_accuracy"].value)
            if fresh:
                when = f"seed {seed}, " if one.per_seed else ""
                fitted = f"fitted in {seconds_of(costs[-1].seconds)} s, " if costs[-1].seconds else ""
                done(f"{one.called}: {when}{fitted}{METRICS[probe.task]} {_value(probe):.3f}")
        grown = loading + max(cost.megabytes for cost in (*costs, *looks))
        probes.append(found)
        rows.append({
            "candidate": one.called, "what": one.what, "width": vectors.shape[1], "length": one.length,
            "knn": float(np.mean(votes)) if votes else None,
            "fit_seconds": float(np.mean([cost.seconds for cost in costs])),
            "embed_seconds": float(np.mean([cost.seconds for cost in looks])),
            "megabytes": grown if np.isfinite(grown) else None,
        })  # fmt: skip
    role = items.roles.get("group")
    groups = np.arange(int(test.sum())) if not role else items.take(test).column(role[0]).astype(str)
    standings = against_best([[statistic(probe) for probe in found] for found in probes], groups)
    decided = probes[0][0].task
    made = [Row(**row, **asdict(s), mean=s.mean) for row, s in zip(rows, standings, strict=True)]
    return Comparison(
        data=splits.source, label=", ".join(names), task=decided, metric=METRICS[decided],
        chance=_chance(probes[0][0], labels[~test]),
        train=int((~test).sum()), test=int(test.sum()), unlabelled=unlabelled,
        groups=len(np.unique(groups)) if role else None, rule=splits.rule, seeds=seeds, budget=budget,
        rows=sorted(made, key=lambda row: (row.verdict != "best", -row.mean)), fingerprint=splits.fingerprint,
    )  # fmt: skip


def _opened(loaded: Sequence[Candidate], source: Any, kind: str | None) -> Splits:
    """The data, of the one kind that the candidates need."""
    needs = {one.kind: one.name for one in loaded if one.kind is not None}
    if len(needs) > 1:
        raise ConfigError(
            "candidates of one comparison read the same data: " + ", ".join(f"{n} reads {k}" for k, n in needs.items())
        )
    readers = {reader.name: reader for one in loaded for reader in one.readers}
    return data.open(source, next(iter(needs), kind), tuple(readers.values()))


def _examples(
    splits: Splits, label: str | None, most: int
) -> tuple[Items, np.ndarray, np.ndarray, int, tuple[str, ...]]:
    """Training and test items that have a label: items, labels, part of each, how many have none, names of columns."""
    whole = splits.all
    if whole.units is not whole:
        raise DataError(f"{splits.source}: {whole.kind} is one connected whole; compare needs items with labels")
    names = tuple(label.split(",")) if label else whole.roles.get("label", ())
    if not names:
        columns = ", ".join(whole.columns.column_names) or "none"
        raise DataError(f"{splits.source}: no label: name a column with --label (columns: {columns})")
    missing = np.zeros(len(whole), bool)
    for name in names:
        whole.column(name)  # names what is missing
        missing |= pc.is_null(whole.columns[name], nan_is_null=True).to_numpy()
    rows, random = [], np.random.default_rng(0)
    for name in ("train", "test"):
        found = np.flatnonzero((splits.membership == name) & ~missing)
        if not len(found):
            raise DataError(f"{splits.source}: no item of the {name} split has a label in {', '.join(names)}")
        rows.append(found if len(found) <= most else np.sort(random.choice(found, most, replace=False)))
    chosen = np.concatenate(rows)
    items = whole.take(chosen)
    items.roles = {**items.roles, "label": names}
    labels = items.labels()
    assert labels is not None
    unlabelled = int(missing[splits.membership != "val"].sum())
    return items, labels, splits.membership[chosen], unlabelled, names


def statistic(probe: Probe) -> Statistic:
    """The deciding metric of a probe for any weighting of its test items."""
    if probe.task == "classes":
        return lambda weights: weights @ probe.per_item / weights.sum(-1)
    if probe.task == "multilabel":

        def area(weights: np.ndarray) -> np.ndarray:
            columns = range(probe.truth.shape[1])
            areas = np.stack([auroc(probe.truth[:, c], probe.scores[:, c], weights) for c in columns])
            known = np.isfinite(areas)
            with np.errstate(invalid="ignore"):
                return np.where(known, areas, 0).sum(0) / known.sum(0)

        return area
    residual, truth = (probe.truth - probe.scores) ** 2, probe.truth - probe.truth.mean()

    def explained(weights: np.ndarray) -> np.ndarray:
        spread = weights @ truth**2 - (weights @ truth) ** 2 / weights.sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(spread > 0, 1 - weights @ residual / spread, np.nan)

    return explained


def _value(probe: Probe) -> float:
    return float(statistic(probe)(np.ones((1, len(probe.truth))))[0])


def _chance(probe: Probe, train_labels: np.ndarray) -> float:
    """The metric of a constant answer: the largest class of the training part, 0.5, or 0."""
    if probe.task == "classes":
        largest = np.unique(train_labels.astype(str), return_counts=True)
        names = probe.classes.astype(str)[probe.truth]
        return float((names == largest[0][largest[1].argmax()]).mean())
    return 0.5 if probe.task == "multilabel" else 0.0
