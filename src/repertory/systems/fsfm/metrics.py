"""How well real and forged faces are told apart: by frame and by video, as the field reports it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score, roc_curve

from repertory.errors import DataError


class Detection(NamedTuple):
    """Shares in 0..1: area under the ROC curve, equal error rate, accuracies at a score of 0.5."""

    auc: float
    eer: float
    accuracy: float
    balanced_accuracy: float

    def in_percent(self) -> Detection:
        """As papers print them."""
        return Detection(*(100 * value for value in self))


def check_both(labels: np.ndarray) -> None:
    """Raises :class:`DataError` where only one class is there: no rate of errors is defined then."""
    if len(np.unique(labels)) < 2:
        raise DataError(f"all {len(labels)} items are of one class: AUC and error rates are undefined")


def equal_error_rate(labels: np.ndarray, scores: np.ndarray) -> float:
    """Where as many real faces are refused as forged ones pass, in 0..1; on the interpolated ROC curve."""
    passed, kept, _ = roc_curve(labels, scores)
    return float(brentq(lambda x: 1.0 - x - interp1d(passed, kept)(x), 0.0, 1.0))


def equal_error_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The score at which the two errors are closest."""
    passed, kept, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    return float(thresholds[np.abs(passed - (1 - kept)).argmin()])


def half_total_error_rate(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """Mean of the share of forged faces at or above the threshold and the share of real ones below it, in 0..1."""
    accepted = scores >= threshold
    return float((accepted[labels == 0].mean() + (~accepted[labels == 1]).mean()) / 2)


def tpr_at_fpr(labels: np.ndarray, scores: np.ndarray, fpr: float = 0.01) -> float:
    """Share of real faces that pass where at most ``fpr`` of the forged ones do, in 0..1."""
    passed, kept, _ = roc_curve(labels, scores, drop_intermediate=False)
    return float(kept[passed <= fpr].max())


def detection(labels: np.ndarray, scores: np.ndarray) -> Detection:
    """Of labels ``[N]`` (1: real) and scores ``[N]`` in 0..1 (higher: rather real).

    Raises:
        DataError: one class only.
    """
    check_both(labels)
    found = scores > 0.5
    return Detection(
        float(roc_auc_score(labels, scores)),
        equal_error_rate(labels, scores),
        float(accuracy_score(labels, found)),
        float(balanced_accuracy_score(labels, found)),
    )


class Videos(NamedTuple):
    """Videos in the order of their first frame: ``names``, ``labels``, ``scores`` (means of their frames), all ``[V]``;
    ``of`` ``[N]`` says which video a frame belongs to."""

    names: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    of: np.ndarray


def by_video(videos: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Videos:
    """Frames as videos; ``scores`` ``[N]`` or ``[N, classes]``.

    Raises:
        DataError: frames of one video have several labels; names it.
    """
    names, first, inverse = np.unique(videos, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    of, names, first = rank[inverse], names[order], first[order]
    unequal = labels != labels[first][of]
    if unequal.any():
        raise DataError(f"video '{videos[unequal.argmax()]}' has frames of several classes")
    sums = np.stack([np.bincount(of, column) for column in np.atleast_2d(scores.T)], axis=-1)
    mean = sums / np.bincount(of)[:, None]
    return Videos(names, labels[first], mean[:, 0] if scores.ndim == 1 else mean, of)
