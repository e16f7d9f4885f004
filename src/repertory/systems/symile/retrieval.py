"""Zero-shot retrieval of one modality given the others, as the experiments of the paper evaluate it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from repertory.errors import DataError
from repertory.systems.symile.objective import mip_similarity

Similarity = Callable[[Sequence[Tensor], Tensor], Tensor]


class Accuracy(NamedTuple):
    """Mean and standard error over bootstrap resamples of the queries, in [0, 1]."""

    mean: float
    standard_error: float


def retrieval_scores(
    queries: Sequence[Tensor],
    candidates: Tensor,
    listed: Tensor | None = None,
    similarity: Similarity = mip_similarity,
    chunk: int = 1024,
) -> Tensor:
    """Scores [Q, K] of all ``candidates`` [K, d], or of those ``listed`` (row numbers, [Q, K]) for each query."""
    rows = max((len(q) for q in queries if q.ndim == 2), default=1)
    if listed is not None and (listed.ndim != 2 or len(listed) != rows):
        raise DataError(f"listed must have shape [{rows} queries, candidates], got {tuple(listed.shape)}")
    if listed is not None and listed.numel() and not 0 <= int(listed.min()) <= int(listed.max()) < len(candidates):
        raise DataError(f"listed names a candidate outside 0..{len(candidates) - 1}")
    scores = []
    for start in range(0, rows, chunk):
        some = [q[start : start + chunk] if q.ndim == 2 and len(q) > 1 else q for q in queries]
        part = similarity(some, candidates)
        scores.append(part if listed is None else part.gather(1, listed[start : start + chunk]))
    return torch.cat(scores)


def draw_candidates(ids: np.ndarray, labels: np.ndarray | None, number: int, seed: int) -> np.ndarray:
    """For each row its own position and those of ``number - 1`` other rows: [rows, number].

    With labels the others have other labels, all different where there are labels enough. A row's draw depends on
    (seed, id) and on which rows there are, not on their order.
    """
    if len(ids) < 2:
        raise DataError(f"{len(ids)} complete row: retrieval needs at least 2")
    order = np.argsort(ids)
    if labels is None or labels.ndim > 1:
        labels = ids  # every row is a class of its own
    names, label = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise DataError("every row has the same label: retrieval needs candidates of another")
    groups = [order[label[order] == number] for number in range(len(names))]
    number = min(number, len(ids))
    listed = np.empty((len(ids), number), np.int64)
    for row, name in enumerate(ids):
        random = np.random.default_rng([seed, *str(name).encode()])
        others = random.choice(len(groups) - 1, number - 1, replace=len(groups) < number)
        members = [groups[other + (other >= label[row])] for other in others]
        listed[row] = [row, *(int(group[random.integers(len(group))]) for group in members)]
    return listed


def listed_candidates(ids: np.ndarray, candidate_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries and candidates where the data list them: each row is a candidate for the row ``candidate_of``.

    Returns:
        rows of the queries [Q], and the rows of their candidates [Q, K], the query's own first.
    """
    position = {str(name): row for row, name in enumerate(ids)}
    groups: dict[int, list[int]] = {}
    for row, query in enumerate(candidate_of):
        if str(query) not in position:
            raise DataError(f"row {ids[row]} is a candidate of '{query}', which is no complete row")
        groups.setdefault(position[str(query)], []).append(row)
    sizes = {len(rows) for rows in groups.values()}
    if len(sizes) > 1:
        raise DataError(f"queries have between {min(sizes)} and {max(sizes)} listed candidates; one number is needed")
    queries = np.array(sorted(groups))
    return queries, np.array([[query, *(row for row in groups[query] if row != query)] for query in queries])


def retrieve(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The column of the highest score of each row, [Q]; exact ties are broken at random, with a warning."""
    if scores.ndim != 2 or not scores.numel():
        raise DataError(f"scores must have shape [queries, candidates] and hold some, got {tuple(scores.shape)}")
    if not scores.isfinite().all():
        raise DataError("scores hold NaN or infinity")
    best = scores == scores.amax(dim=1, keepdim=True)
    tied = int((best.sum(dim=1) > 1).sum())
    if tied:
        warnings.warn(f"{tied} of {len(scores)} queries have tied best candidates; one is drawn", stacklevel=2)
    draw = torch.rand(scores.shape, generator=generator, device="cpu").to(scores.device)
    return torch.where(best, draw, -1.0).argmax(dim=1)


def bootstrap_accuracy(correct: Tensor, resamples: int = 10, generator: torch.Generator | None = None) -> Accuracy:
    """Accuracy of ``correct`` [Q] (bool) over ``resamples`` draws of Q queries with replacement."""
    if not len(correct):
        raise DataError("no queries to resample")
    draws = torch.randint(len(correct), (resamples, len(correct)), generator=generator)
    means = correct.cpu().double()[draws].mean(dim=1)
    return Accuracy(means.mean().item(), means.std().item() if resamples > 1 else 0.0)
