"""Areas under the ROC and precision-recall curves, for many weightings of the same items at once.

The bootstrap needs each area a thousand times; sorting once and resampling the weights makes that one cumulative sum.
"""

from __future__ import annotations

import numpy as np


def auroc(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, ties counted half (Fawcett 2006).

    Args:
        truth: ``[N]`` of 0 and 1. scores: ``[N]``, higher for 1. weights: ``[..., N]``.

    Returns:
        ``[...]``; NaN where the weights leave one class empty.
    """
    hits, misses = _counts(truth, scores, weights)
    before = np.concatenate([np.zeros_like(hits[..., :1]), hits[..., :-1]], axis=-1)
    steps = np.diff(misses, axis=-1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (steps * (hits + before)).sum(-1) / (2 * hits[..., -1] * misses[..., -1])


def average_precision(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of precision times the step in recall, thresholds at distinct scores. Arguments as for :func:`auroc`."""
    hits, misses = _counts(truth, scores, weights)
    precision = hits / np.maximum(hits + misses, np.finfo(float).tiny)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.diff(hits, axis=-1, prepend=0) * precision).sum(-1) / hits[..., -1]


def _counts(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positives and of the negatives at or above each distinct score, highest score first."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    positive, weights = truth[order].astype(np.float64), weights[..., order]
    return (weights * positive).cumsum(-1)[..., last], (weights * (1 - positive)).cumsum(-1)[..., last]
