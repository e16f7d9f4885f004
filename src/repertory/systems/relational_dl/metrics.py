"""RelBench's measures, of answers and of recommendations."""

from __future__ import annotations

import numpy as np

from repertory.evaluation.areas import auroc, average_precision


def of_probabilities(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """ROC-AUC, average precision, accuracy and F1 (at a half) of 0/1 truth [N] and probabilities [N]."""
    said, weights = probabilities > 0.5, np.ones(len(truth))
    right = truth.astype(bool)
    hits = float((said & right).sum())
    return {
        "roc_auc": float(auroc(truth, probabilities, weights)),
        "average_precision": float(average_precision(truth, probabilities, weights)),
        "accuracy": float((said == right).mean()),
        "f1": 2 * hits / max(1.0, float(said.sum() + right.sum())),
    }


def of_classes(truth: np.ndarray, said: np.ndarray) -> dict[str, float]:
    """Accuracy and F1 averaged over the classes that occur, of class numbers [N]."""
    classes = np.union1d(truth, said)
    f1 = [2 * ((truth == c) & (said == c)).sum() / max(1, (truth == c).sum() + (said == c).sum()) for c in classes]
    return {"accuracy": float((truth == said).mean()), "macro_f1": float(np.mean(f1))}


def of_numbers(truth: np.ndarray, said: np.ndarray) -> dict[str, float]:
    """Mean absolute error, root mean squared error and R2 of numbers [N]."""
    spread = float(((truth - truth.mean()) ** 2).sum())
    squared = float(((truth - said) ** 2).sum())
    return {
        "mae": float(np.abs(truth - said).mean()),
        "rmse": float(np.sqrt(squared / len(truth))),
        "r2": 1 - squared / spread if spread else float("nan"),
    }


def of_links(hits: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Average precision, NDCG, precision and recall at k of each row that has a true destination.

    Args:
        hits: [N, k], whether the i-th recommendation is right. counts: [N], true destinations of each row.

    Returns:
        ``map``, ``ndcg``, ``precision``, ``recall``: [rows with counts > 0].
    """
    kept = counts > 0
    hits, counts = hits[kept].astype(np.float64), counts[kept].astype(np.float64)
    k = hits.shape[1]
    best = np.minimum(counts, k)
    precisions = hits.cumsum(axis=1) / np.arange(1, k + 1)
    gains = 1 / np.log2(np.arange(2, k + 2))
    return {
        "map": (precisions * hits).sum(axis=1) / best,
        "ndcg": (hits * gains).sum(axis=1) / gains.cumsum()[best.astype(int) - 1],
        "precision": hits.mean(axis=1),
        "recall": hits.sum(axis=1) / counts,
    }
