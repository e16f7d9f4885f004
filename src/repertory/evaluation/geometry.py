"""The shape of a cloud of vectors: alignment, uniformity, effective rank. Memory O(N D), whatever N."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from repertory.errors import DataError
from repertory.evaluation.checks import check_labels, check_vectors, unit
from repertory.evaluation.knn import blocks


def alignment(first: ArrayLike, second: ArrayLike, power: float = 2.0) -> float:
    """Mean distance**power between unit vectors that belong together, row by row ``[N, D]``; 0 is perfect.

    Wang & Isola 2020, eq. 7 (power 2 there).
    """
    first = check_vectors(first, "first")
    second = check_vectors(second, "second", width=first.shape[1])
    if len(first) != len(second):
        raise DataError(f"alignment: {len(first)} and {len(second)} vectors; row i must belong to row i")
    return float(np.mean(np.linalg.norm(unit(first) - unit(second), axis=1).astype(np.float64) ** power))


def class_alignment(vectors: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared distance between unit vectors over all pairs of one label; 0 is perfect, NaN without a pair.

    Wang & Isola 2020, eq. 7, with items of one class as positive pairs; in O(N D) through the sums of the classes.
    """
    vectors = check_vectors(vectors)
    labels = check_labels(labels, len(vectors))
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), vectors.shape[1]))
    rows = unit(vectors).astype(np.float64)
    np.add.at(sums, codes, rows)
    lengths = np.bincount(codes, (rows**2).sum(1))
    pairs = (sizes * (sizes - 1)).sum()
    # sum over i != j of |xi - xj|^2 = 2 n sum |xi|^2 - 2 |sum xi|^2
    return float(2 * (sizes * lengths - (sums**2).sum(1)).sum() / pairs) if pairs else math.nan


def uniformity(vectors: ArrayLike, t: float = 2.0) -> float:
    """log of the mean of exp(-t |x - y|^2) over all pairs of distinct items; lower is more uniform, 0 is collapsed.

    Wang & Isola 2020, eq. 8 (t = 2 there). Time O(N^2 D), memory O(N D).
    """
    x = unit(check_vectors(vectors))
    if len(x) < 2:
        raise DataError("uniformity: one vector has no pairs; give two or more")
    squares = (x**2).sum(1)
    total = 0.0
    for block in blocks(len(x), len(x)):
        distance = np.maximum(squares[block, None] + squares[None] - 2 * (x[block] @ x.T), 0)
        kernel = np.exp(-t * distance)
        kernel[np.arange(len(kernel)), np.arange(block.start, block.stop)] = 0
        total += kernel.sum(dtype=np.float64)
    return math.log(total / (len(x) * (len(x) - 1)))


def effective_rank(vectors: ArrayLike) -> float:
    """exp of the entropy of the normalised singular values of the centred vectors, in [1, min(N - 1, D)].

    Roy & Vetterli 2007, definition 1. Centred, so that a common offset is not mistaken for collapse; 0 where all
    vectors are equal.
    """
    values = _singular_values(check_vectors(vectors), centre=True)
    return _exp_entropy(values / values.sum()) if values.sum() > 0 else 0.0


def rankme(vectors: ArrayLike, epsilon: float = 1e-7) -> float:
    """RankMe (Garrido et al. 2023, eq. 1): as :func:`effective_rank`, not centred, epsilon added to each share."""
    values = _singular_values(check_vectors(vectors), centre=False)
    return _exp_entropy(values / max(values.sum(), epsilon) + epsilon)


def _exp_entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _singular_values(vectors: np.ndarray, centre: bool) -> np.ndarray:
    """Singular values from the smaller Gram matrix, summed in float64 over chunks."""
    mean = vectors.mean(axis=0, dtype=np.float64) if centre else np.zeros(vectors.shape[1])
    if len(vectors) <= vectors.shape[1]:
        rows = vectors - mean
        gram = rows @ rows.T
    else:
        gram = np.zeros((vectors.shape[1],) * 2)
        for block in blocks(*vectors.shape):
            rows = vectors[block] - mean
            gram += rows.T @ rows
    values = np.linalg.eigvalsh(gram)
    # what rounding leaves of a zero eigenvalue is not a direction
    return np.sqrt(np.where(values > values.max() * len(gram) * np.finfo(float).eps, values, 0))
