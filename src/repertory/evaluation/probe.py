"""The linear probe: how much of the labels a linear map reads from frozen vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from repertory.errors import DataError
from repertory.evaluation.areas import auroc, average_precision
from repertory.evaluation.checks import Task, check_labels, check_vectors, task_of
from repertory.evaluation.metrics import Metric, Metrics, resampled_interval

CS = (0.01, 0.1, 1.0, 10.0)  # inverse strength of the L2 penalty, on standardised vectors
ALPHAS = tuple(np.logspace(-2, 5, 15))  # strength of the ridge penalty
MOST = 10_000  # items that C is chosen on


@dataclass(frozen=True)
class Probe:
    """What a probe measured and what it said of each item, for paired comparisons and figures.

    Attributes:
        metrics: names begin with ``probe_``.
        task: ``classes``, ``multilabel`` or ``regression``.
        classes: names of the classes ``[C]``; numbers of the labels ``[L]``; empty for regression.
        truth: code of the class ``[N]``, 0/1 ``[N, L]``, or number ``[N]``.
        scores: probabilities ``[N, C]`` or ``[N, L]``, or predicted number ``[N]``.
        per_item: 1 for a hit (classes), share of labels right (multilabel), absolute error (regression), ``[N]``.
    """

    metrics: Metrics
    task: Task
    classes: np.ndarray
    truth: np.ndarray
    scores: np.ndarray
    per_item: np.ndarray


def linear_probe(
    vectors: ArrayLike,
    labels: ArrayLike,
    *,
    train_vectors: ArrayLike | None = None,
    train_labels: ArrayLike | None = None,
    task: Task | None = None,
    folds: int = 5,
    seed: int = 0,
    draws: int = 1000,
) -> Probe:
    """Fits on the training vectors and measures on ``vectors``; without training vectors, by cross-validation.

    Classes and multi-label: logistic regression (L-BFGS, L2) on standardised vectors, C from a small grid by accuracy
    on a fifth of the training part, then refitted on all of it. Regression: ridge, alpha by leave-one-out.

    Args:
        vectors: ``[N, D]``. labels: ``[N]`` of classes or numbers, or 0/1 ``[N, L]``.
        task: overrules what the labels look like; ``"regression"`` for whole numbers that are quantities.
        folds: of the cross-validation, stratified by class; fewer where a class has fewer members.

    Raises:
        DataError: vectors not finite, shapes that do not match, a single class, a class too small to divide or absent
            from the training part.
    """
    vectors = check_vectors(vectors)
    labels = check_labels(labels, len(vectors))
    task = task or task_of(labels)
    if task == "regression" and (labels.dtype.kind not in "fiub" or labels.ndim != 1):
        raise DataError("labels: regression needs one number for each item")
    cross_validated = train_vectors is None
    if cross_validated:
        train_vectors, train_labels = vectors, labels
    else:
        train_vectors = check_vectors(train_vectors, "train_vectors", vectors.shape[1])
        if train_labels is None:
            raise DataError("train_labels: missing; the training vectors need their labels")
        train_labels = check_labels(train_labels, len(train_vectors), "train_labels")
        if train_labels.shape[1:] != labels.shape[1:]:
            raise DataError(
                f"train_labels: shape {train_labels.shape}, labels: {labels.shape}; columns must be the same"
            )
    truth, train_truth, classes = _encode(labels, train_labels, task)
    if not cross_validated:
        scores = _fit(train_vectors, train_truth, task, len(classes), seed)(vectors)
        how = f"fitted on {len(train_vectors)} items, measured on {len(vectors)}"
    else:
        parts = list(_folds(truth, task, classes, folds, seed))
        scores = np.full(truth.shape if task != "classes" else (len(truth), len(classes)), np.nan)
        for train, test in parts:
            scores[test] = _fit(vectors[train], truth[train], task, len(classes), seed)(vectors[test])
        how = f"{len(parts)}-fold cross-validation over {len(vectors)} items"
    return _measure(truth, scores, task, classes, how, seed, draws)


def _encode(labels: np.ndarray, train_labels: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if task == "regression":
        if train_labels.min() == train_labels.max():
            raise DataError("labels: all training numbers are equal; there is nothing to predict")
        return labels.astype(np.float64), train_labels.astype(np.float64), np.array([])
    if task == "multilabel":
        task_of(train_labels)
        flat = np.flatnonzero(train_labels.min(0) == train_labels.max(0))
        if len(flat):
            raise DataError(f"labels: column {flat[0]} has a single value in training; leave it out")
        return labels.astype(int), train_labels.astype(int), np.arange(labels.shape[1])
    classes, train_truth = np.unique(train_labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"labels: only one class ('{classes[0]}'); a probe needs two or more")
    unseen = np.setdiff1d(labels, classes)
    if len(unseen):
        raise DataError(f"labels: class '{unseen[0]}' does not occur in training ({len(unseen)} such); split by class")
    return np.searchsorted(classes, labels), train_truth, classes


def _folds(
    truth: np.ndarray, task: Task, classes: np.ndarray, folds: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if task == "classes":
        sizes = np.bincount(truth)
        if sizes.min() < 2:
            raise DataError(
                f"labels: class '{classes[sizes.argmin()]}' has one member; cross-validation needs two in each: "
                "leave the class out or give a training part"
            )
        return StratifiedKFold(min(folds, sizes.min()), shuffle=True, random_state=seed).split(truth, truth)
    if len(truth) < 4:
        raise DataError(f"labels: {len(truth)} items are too few for cross-validation; give four or a training part")
    return KFold(min(folds, len(truth)), shuffle=True, random_state=seed).split(truth)


def _fit(
    vectors: np.ndarray, truth: np.ndarray, task: Task, classes: int, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Fits one probe; returns the function from vectors to scores."""
    if task == "regression":
        return make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS)).fit(vectors, truth).predict
    if task == "multilabel":
        columns = [_binary(vectors, column, seed) for column in truth.T]
        return lambda x: np.stack([predict(x) for predict in columns], axis=1)
    model = _logistic(vectors, truth, seed)
    present = model.classes_

    def probabilities(x: np.ndarray) -> np.ndarray:
        scores = np.zeros((len(x), classes))
        scores[:, present] = model.predict_proba(x)
        return scores

    return probabilities


def _binary(vectors: np.ndarray, truth: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    if truth.min() == truth.max():  # a rare label that this fold does not hold
        return lambda x: np.full(len(x), float(truth[0]))
    model = _logistic(vectors, truth, seed)
    return lambda x: model.predict_proba(x)[:, 1]


def _logistic(vectors: np.ndarray, truth: np.ndarray, seed: int) -> Pipeline:
    with warnings.catch_warnings():
        # separable vectors have no optimum at large C; the last iterate is as good
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _pipeline(_choose(vectors, truth, seed)).fit(vectors, truth)


def _pipeline(c: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500))


def _choose(vectors: np.ndarray, truth: np.ndarray, seed: int) -> float:
    """The C with the best accuracy on a held-out fifth; the smallest of equals. 1 where nothing can be held out."""
    classes, sizes = np.unique(truth, return_counts=True)
    if sizes.min() < 2 or len(truth) < 5 * len(classes):
        return 1.0
    rows = np.arange(len(truth))
    if len(rows) > MOST:
        rows, _ = train_test_split(rows, train_size=max(MOST, 5 * len(classes)), stratify=truth, random_state=seed)
    if np.unique(truth[rows], return_counts=True)[1].min() < 2:
        return 1.0
    train, held = train_test_split(rows, test_size=0.2, stratify=truth[rows], random_state=seed)
    accuracy = [_pipeline(c).fit(vectors[train], truth[train]).score(vectors[held], truth[held]) for c in CS]
    return CS[int(np.argmax(accuracy))]


def _measure(
    truth: np.ndarray, scores: np.ndarray, task: Task, classes: np.ndarray, how: str, seed: int, draws: int
) -> Probe:
    about = f"linear probe, {how}"

    def weighted(statistic: Callable[[np.ndarray], np.ndarray], higher: bool, what: str) -> Metric:
        value = float(statistic(np.ones((1, len(truth))))[0])
        low, high = resampled_interval(statistic, len(truth), seed, draws)
        undefined = np.isnan([value, low, high]).any()
        return Metric(value, *((None, None) if undefined else (min(low, value), max(high, value))), higher, what)

    if task == "regression":
        residual = (truth - scores) ** 2

        def r2(weights: np.ndarray) -> np.ndarray:
            n = weights.sum(-1)
            spread = weights @ truth**2 - (weights @ truth) ** 2 / n
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.where(spread > 0, 1 - weights @ residual / spread, np.nan)

        error = np.abs(truth - scores)
        metrics = {
            "probe_r2": weighted(r2, True, f"share of the variance explained, {about}"),
            "probe_mae": Metric.of(
                error, seed, higher_is_better=False, about=f"mean absolute error, {about}", draws=draws
            ),
        }
        return Probe(Metrics(metrics), task, classes, truth, scores, error)

    hot = truth if task == "multilabel" else (truth[:, None] == np.arange(len(classes))).astype(int)
    per_item = ((scores > 0.5) == hot).mean(1) if task == "multilabel" else (scores.argmax(1) == truth).astype(float)
    # with two classes one of them says it all
    columns = [1] if task == "classes" and len(classes) == 2 else range(hot.shape[1])

    def mean_over_columns(area: Callable[..., np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        def statistic(weights: np.ndarray) -> np.ndarray:
            areas = np.stack([area(hot[:, c], scores[:, c], weights) for c in columns])
            valid = np.isfinite(areas)
            with np.errstate(invalid="ignore"):
                return np.where(valid, areas, 0).sum(0) / valid.sum(0)

        return statistic

    over = "" if len(columns) == 1 else f", mean over {len(columns)} {'labels' if task == 'multilabel' else 'classes'}"
    metrics = {
        "probe_accuracy": Metric.of(per_item, seed, higher_is_better=True, about=f"accuracy, {about}", draws=draws)
    }
    if task == "classes":

        def balanced(weights: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.nanmean(((weights * per_item) @ hot) / (weights @ hot), axis=-1)

        metrics["probe_balanced_accuracy"] = weighted(balanced, True, f"recall, mean over the classes, {about}")
    metrics["probe_auroc"] = weighted(mean_over_columns(auroc), True, f"area under the ROC curve{over}, {about}")
    metrics["probe_ap"] = weighted(mean_over_columns(average_precision), True, f"average precision{over}, {about}")
    return Probe(Metrics(metrics), task, classes, truth, scores, per_item)
