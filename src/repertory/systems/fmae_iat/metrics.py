"""F1 over thresholds and areas under the ROC curve of many action units, from one sort of each class a unit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from repertory.errors import DataError
from repertory.evaluation import Metric, linear_probe

THRESHOLDS = np.arange(1, 100) / 100
"""The official code's: 0.01, 0.02, ..., 0.99."""


@dataclass(frozen=True)
class ActionUnitScores:
    """What scores are worth at every threshold; NaN of a unit that has no positive or no negative.

    Attributes:
        thresholds: ``[T]``, ascending; a score strictly above counts as found.
        true_positives, false_positives: ``[T, K]``.
        positives, negatives: ``[K]``.
        auc: area under the ROC curve, ties counted half, ``[K]``.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    auc: np.ndarray

    @property
    def defined(self) -> np.ndarray:
        """``[K]`` bool: units with a positive and a negative."""
        both: np.ndarray = (self.positives > 0) & (self.negatives > 0)
        return both

    @property
    def f1(self) -> np.ndarray:
        """``[T, K]``: 2 TP / (2 TP + FP + FN)."""
        found = 2 * self.true_positives / np.maximum(self.true_positives + self.false_positives + self.positives, 1)
        return np.where(self.defined, found, np.nan)

    @property
    def mean_f1(self) -> np.ndarray:
        """``[T]``: mean over the defined units; NaN where there is none."""
        return self.f1[:, self.defined].mean(1) if self.defined.any() else np.full(len(self.thresholds), np.nan)

    @property
    def mean_auc(self) -> float:
        """Over the defined units."""
        return float(self.auc[self.defined].mean()) if self.defined.any() else float("nan")

    @property
    def best(self) -> tuple[float, float]:
        """The one threshold with the highest mean F1 (the first of equals), and that F1; NaN where none is defined."""
        if not self.defined.any():
            return float("nan"), float("nan")
        index = int(self.mean_f1.argmax())
        return float(self.thresholds[index]), float(self.mean_f1[index])

    def at(self, threshold: float) -> np.ndarray:
        """F1 of each unit ``[K]`` at one of ``thresholds``."""
        place = np.flatnonzero(np.isclose(self.thresholds, threshold))
        if not len(place):
            raise DataError(f"threshold {threshold:g} is not among those that were counted")
        at: np.ndarray = self.f1[place[0]]
        return at


def action_unit_scores(
    truth: np.ndarray, scores: np.ndarray, thresholds: np.ndarray = THRESHOLDS, areas: bool = True
) -> ActionUnitScores:
    """Counts at all thresholds, and areas.

    Sorted scores of the positives and of the negatives of a unit answer everything: the counts at a threshold are its
    places in both, and the area is the mean place of the rarer class in the other.

    Args:
        truth: 1 present, 0 absent, NaN not coded ``[N, K]``.
        scores: higher where present, e.g. probabilities, ``[N, K]``.
        thresholds: ``[T]``, ascending.
        areas: False leaves out the areas (NaN).

    Raises:
        DataError: other shapes or values, or scores that are not finite.
    """
    truth, scores = np.asarray(truth), np.asarray(scores)
    if truth.shape != scores.shape or truth.ndim != 2 or not len(truth):
        raise DataError(f"action units: truth {truth.shape}, scores {scores.shape}; both need [frames, units]")
    if not np.isfinite(scores).all():
        raise DataError("scores of action units are NaN or infinite")
    present, absent = (np.ascontiguousarray(code == truth.T) for code in (1, 0))
    coded = present | absent
    if not coded.all() and not np.isnan(truth.T[~coded]).all():
        raise DataError("truth of action units is 1, 0 or NaN")
    by_unit, units = np.ascontiguousarray(scores.T), truth.shape[1]
    limits = _rounded_down(thresholds, by_unit.dtype)
    counts, sizes = np.zeros((2, len(thresholds), units)), np.zeros((2, units), dtype=np.int64)
    auc = np.full(units, np.nan)
    for unit, score in enumerate(by_unit):
        positive, negative = np.compress(present[unit], score), np.compress(absent[unit], score)
        for which, part in enumerate((positive, negative)):
            part.sort()
            sizes[which, unit] = len(part)
            counts[which, :, unit] = len(part) - part.searchsorted(limits, side="right")
        if areas and len(positive) and len(negative):
            auc[unit] = _area(positive, negative)
    return ActionUnitScores(np.asarray(thresholds), counts[0], counts[1], sizes[0], sizes[1], auc)


def _rounded_down(thresholds: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Thresholds in the type of the scores, so that the same scores lie above them and no score is converted."""
    limits = thresholds.astype(dtype)
    return np.where(limits > thresholds, np.nextafter(limits, dtype.type(-np.inf)), limits)


def _area(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a positive scores higher than a negative, of sorted scores."""
    few, many = (positive, negative) if len(positive) <= len(negative) else (negative, positive)
    below = many.searchsorted(few, side="left").sum() + many.searchsorted(few, side="right").sum()
    share = float(below) / (2 * len(few) * len(many))
    return share if few is positive else 1 - share


def grouped_counts(truth: np.ndarray, found: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """True positives, false positives and misses by group, ``[G, 3, K]``, in the order of the sorted groups.

    Args:
        truth: 1, 0, or NaN (not counted) ``[N, K]``.
        found: bool ``[N, K]``.
        groups: what belongs together, e.g. the frames of a subject, ``[N]``.
    """
    names, member = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), 3, truth.shape[1]))
    for which, hit in enumerate(((truth == 1) & found, (truth == 0) & found, (truth == 1) & ~found)):
        np.add.at(counts[:, which], member, hit)
    return counts


def f1_of(counts: np.ndarray) -> np.ndarray:
    """Counts ``[..., 3, K]`` of true positives, false positives and misses to F1 ``[..., K]``; NaN without any."""
    hits, alarms, misses = np.moveaxis(counts, -2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1: np.ndarray = 2 * hits / (2 * hits + alarms + misses)
    return f1


def identity_probe(
    vectors: np.ndarray, subjects: np.ndarray, seed: int = 0, frames: int = 100, people: int = 50
) -> tuple[Metric, float] | None:
    """How well a linear map tells who is seen from frozen vectors ``[N, D]``, and chance (section 3.4 of the paper).

    Up to ``frames`` vectors of up to ``people`` subjects, of which 70 % are learned from and 30 % asked; None where
    fewer than two subjects have two vectors. The less, the fewer identities leak.
    """
    rng = np.random.default_rng(seed)
    learned, asked = [], []
    names, counts = np.unique(subjects, return_counts=True)
    names = names[counts > 1]
    for name in np.sort(rng.permutation(names)[:people]):
        rows = rng.permutation(np.flatnonzero(subjects == name))[:frames]
        first = min(len(rows) - 1, max(1, round(0.7 * len(rows))))
        learned.append(rows[:first])
        asked.append(rows[first:])
    if len(learned) < 2:
        return None
    train, test = np.concatenate(learned), np.concatenate(asked)
    made = linear_probe(
        vectors[test], subjects[test], train_vectors=vectors[train], train_labels=subjects[train], seed=seed
    )
    found, chance = made.metrics["probe_accuracy"], 1 / len(learned)
    about = f"who is seen, of {len(learned)} people (chance {chance:.3g}), {found.about}"
    return replace(found, higher_is_better=False, about=about), chance
