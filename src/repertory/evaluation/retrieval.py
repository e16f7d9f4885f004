"""Is what belongs together found together: ranks, recall at k, mean reciprocal rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from repertory.errors import DataError
from repertory.evaluation.checks import check_labels, check_vectors, unit
from repertory.evaluation.knn import blocks
from repertory.evaluation.metrics import Metric, Metrics

TIE = 1e-6  # cosines nearer than this are equal; otherwise rounding would order collapsed vectors


def first_ranks(
    queries: ArrayLike, bank: ArrayLike, query_labels: ArrayLike, bank_labels: ArrayLike, *, exclude_self: bool = False
) -> np.ndarray:
    """Rank of the first item with the query's label, ``[N]``, from 1; NaN where the bank holds none.

    Items of other labels that tie with it count half, so that collapsed vectors score as chance. Queries ``[N, D]``,
    bank ``[M, D]``; with ``exclude_self`` they are the same and row i is not compared with itself.
    """
    queries = check_vectors(queries, "queries")
    bank = check_vectors(bank, "bank", width=queries.shape[1])
    query_labels = check_labels(query_labels, len(queries), "query labels")
    bank_labels = check_labels(bank_labels, len(bank), "bank labels")
    queries, bank, ranks = unit(queries), unit(bank), np.full(len(queries), np.nan)
    for block in blocks(len(queries), len(bank)):
        similarity = queries[block] @ bank.T
        relevant = query_labels[block, None] == bank_labels[None]
        strange = ~relevant
        if exclude_self:
            relevant[np.arange(len(relevant)), np.arange(block.start, block.stop)] = False
        best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
        ahead = (strange & (similarity > best + TIE)).sum(axis=1)
        level = (strange & (np.abs(similarity - best) <= TIE)).sum(axis=1)
        ranks[block] = np.where(relevant.any(axis=1), 1 + ahead + level / 2, np.nan)
    return ranks


def retrieval(queries: ArrayLike, targets: ArrayLike, *, ks: Sequence[int] = (1, 5, 10), seed: int = 0) -> Metrics:
    """Recall@k, mean reciprocal and median rank when row i of ``queries`` looks for row i of ``targets [N, D]``.

    The direction matters: call it again with the two exchanged for the way back.
    """
    queries = check_vectors(queries, "queries")
    targets = check_vectors(targets, "targets", width=queries.shape[1])
    if len(queries) != len(targets):
        raise DataError(f"retrieval: {len(queries)} queries and {len(targets)} targets; row i must belong to row i")
    pairs = np.arange(len(queries))
    ranks = first_ranks(queries, targets, pairs, pairs)
    return _summary(ranks, ks, seed, f"the partner among {len(targets)} by cosine", len(targets))


def label_retrieval(
    vectors: ArrayLike,
    labels: ArrayLike,
    *,
    bank: ArrayLike | None = None,
    bank_labels: ArrayLike | None = None,
    ks: Sequence[int] = (1, 5, 10),
    seed: int = 0,
) -> Metrics:
    """Recall@k (an item of the same label among the k nearest; Musgrave et al. 2020) and mean reciprocal rank.

    Without a bank every item searches all others; items that are the only ones with their label are left out.
    """
    alone = bank is None
    if not alone and bank_labels is None:
        raise DataError("bank_labels: missing; the bank needs its labels")
    pool, pool_labels = (vectors, labels) if alone else (bank, bank_labels)
    ranks = first_ranks(vectors, pool, labels, pool_labels, exclude_self=alone)
    if np.isnan(ranks).all():
        raise DataError("retrieval: no label has a second item to find; choose a label that repeats")
    found = ranks[~np.isnan(ranks)]
    size = len(pool) - alone
    return _summary(found, ks, seed, f"an item of the same label among {size} by cosine", size)


def _summary(ranks: np.ndarray, ks: Sequence[int], seed: int, what: str, size: int) -> Metrics:
    about = f"{what}, {len(ranks)} queries"
    metrics = {
        f"recall@{k}": Metric.of(ranks <= k, seed, higher_is_better=True, about=f"found {what} within the first {k}")
        for k in ks
        if k < size
    }
    metrics["mrr"] = Metric.of(1 / ranks, seed, higher_is_better=True, about=f"1 / rank of {about}")
    metrics["median_rank"] = Metric(float(np.median(ranks)), higher_is_better=False, about=f"rank of {about}")
    return Metrics(metrics)
