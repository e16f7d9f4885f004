"""Nearest neighbours by cosine, and the accuracy of their vote."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from repertory.errors import DataError
from repertory.evaluation.checks import check_labels, check_vectors, task_of, unit
from repertory.evaluation.metrics import Metric, Metrics

BLOCK = 8_000_000  # similarities held at once


def blocks(rows: int, columns: int, block: int = BLOCK) -> list[slice]:
    """Slices over ``rows`` whose product with ``columns`` stays below ``block`` numbers."""
    step = max(1, block // columns)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def neighbours(
    queries: ArrayLike, bank: ArrayLike, k: int, *, exclude_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The k most cosine-similar rows of ``bank`` for every query, nearest first, equals in the bank's order.

    Args:
        queries: ``[N, D]``. bank: ``[M, D]``. k: at most M (M - 1 with ``exclude_self``).
        exclude_self: the queries are the bank, and row i must not find itself.

    Returns:
        indices ``[N, k]`` and cosines ``[N, k]`` in [-1, 1]. Memory beyond them: a fixed block of similarities.
    """
    queries = check_vectors(queries, "queries")
    bank = check_vectors(bank, "bank", width=queries.shape[1])
    most = len(bank) - exclude_self
    if not 1 <= k <= most:
        raise DataError(f"neighbours: k={k}, but the bank offers between 1 and {most}")
    queries, bank = unit(queries), unit(bank)
    indices = np.empty((len(queries), k), dtype=np.int64)
    cosines = np.empty((len(queries), k), dtype=bank.dtype)
    for block in blocks(len(queries), len(bank)):
        similarity = queries[block] @ bank.T
        if exclude_self:
            similarity[np.arange(len(similarity)), np.arange(block.start, block.stop)] = -np.inf
        top = np.argpartition(-similarity, k - 1, axis=1)[:, :k] if k < len(bank) else np.indices(similarity.shape)[1]
        top.sort(axis=1)
        found = np.take_along_axis(similarity, top, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        indices[block] = np.take_along_axis(top, order, axis=1)
        cosines[block] = np.take_along_axis(found, order, axis=1)
    return indices, cosines


def knn(
    vectors: ArrayLike,
    labels: ArrayLike,
    *,
    train_vectors: ArrayLike | None = None,
    train_labels: ArrayLike | None = None,
    k: int = 20,
    temperature: float = 0.07,
    seed: int = 0,
) -> Metrics:
    """``knn_accuracy``: the share of items whose neighbours vote for their class.

    Neighbours come from the training part, or, without one, from all other items (leave one out). A vote weighs
    exp(cosine / temperature), as in Wu et al. 2018, section 3.4 (k = 200 there; here k is cut to the bank's size).
    """
    vectors = check_vectors(vectors)
    labels = check_labels(labels, len(vectors))
    if task_of(labels) != "classes":
        raise DataError("knn: needs one class for each item; labels are numbers or a matrix")
    leave_one_out = train_vectors is None
    if leave_one_out:
        bank, bank_labels = vectors, labels
    else:
        bank = check_vectors(train_vectors, "train_vectors", vectors.shape[1])
        if train_labels is None:
            raise DataError("train_labels: missing; the training vectors need their labels")
        bank_labels = check_labels(train_labels, len(bank), "train_labels")
    if len(bank) - leave_one_out < 1:
        raise DataError("knn: one item has no neighbour; give more items or a training part")
    classes, codes = np.unique(bank_labels, return_inverse=True)
    k = min(k, len(bank) - leave_one_out)
    indices, cosines = neighbours(vectors, bank, k, exclude_self=leave_one_out)
    weights = np.exp((cosines - cosines[:, :1]) / temperature)
    votes = np.zeros((len(vectors), len(classes)))
    np.add.at(votes, (np.arange(len(vectors))[:, None], codes[indices]), weights)
    correct = classes[votes.argmax(axis=1)] == labels
    how = "leave one out" if leave_one_out else f"{len(bank)} training items"
    about = f"weighted vote of the {k} nearest by cosine, {how}, {len(vectors)} items"
    return Metrics({"knn_accuracy": Metric.of(correct, seed, higher_is_better=True, about=about)})
