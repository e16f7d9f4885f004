"""Skip-gram pairs, log-uniform negatives and noise-contrastive estimation (NCE), with its SGD step written out.

Names: ``V`` words, a *group* is what shares one set of negatives (the official batch: 16 centres with 8 contexts each).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor

from repertory.errors import ConfigError, DataError


def log_uniform(ids: Tensor, vocabulary: int) -> Tensor:
    """Probability ``log((k + 2) / (k + 1)) / log(V + 1)`` of id ``k`` under the log-uniform distribution, float64."""
    return torch.log1p(1 / (ids.double() + 1)) / math.log(vocabulary + 1)


def expected_count(ids: Tensor, vocabulary: int, num_tries: Tensor) -> Tensor:
    """Chance ``1 - (1 - p(k)) ** num_tries`` that id ``k`` is a negative; ``num_tries`` broadcasts to ``ids``."""
    return -torch.expm1(num_tries * _log_miss(vocabulary, ids.device)[ids])


@lru_cache(maxsize=4)
def _log_miss(vocabulary: int, device: torch.device) -> Tensor:
    return torch.log1p(-log_uniform(torch.arange(vocabulary, device=device), vocabulary))


def sample_negatives(groups: int, number: int, vocabulary: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Log-uniform ids without replacement: ``[group, number]`` in the order drawn, and ``num_tries`` ``[group]``, the
    draws that each group needed to get ``number`` distinct ids. ``ConfigError`` when ``number >= vocabulary``."""
    if number >= vocabulary:
        raise ConfigError(
            f"{number} negatives need a vocabulary of more than {number} words, it has {vocabulary}; ask for fewer"
        )
    drawn = np.empty((groups, 0), dtype=np.int64)
    while True:
        more = np.exp(rng.random((groups, 2 * number)) * math.log(vocabulary + 1)).astype(np.int64) - 1
        drawn = np.concatenate([drawn, more.clip(max=vocabulary - 1)], axis=1)
        order = drawn.argsort(axis=1, kind="stable")
        ordered = np.take_along_axis(drawn, order, axis=1)
        new = np.ones_like(drawn, dtype=bool)
        np.put_along_axis(new, order[:, 1:], ordered[:, 1:] != ordered[:, :-1], axis=1)
        new &= new.cumsum(axis=1) <= number
        if (new.sum(axis=1) == number).all():
            last = new.shape[1] - new[:, ::-1].argmax(axis=1)
            return torch.from_numpy(drawn[new].reshape(groups, number)), torch.from_numpy(last)


def nce_loss(
    embeddings: Tensor,
    nce_weights: Tensor,
    nce_biases: Tensor,
    centres: Tensor,
    contexts: Tensor,
    negatives: Tensor,
    num_tries: Tensor,
) -> Tensor:
    """NCE loss per pair ``[pair]``; the training loss is its mean.

    Parameters ``[V, dim]``, ``[V, dim]``, ``[V]``; ``centres`` and ``contexts`` ``[pair]``; ``negatives``
    ``[negative]`` are shared by all pairs, accidental hits kept; ``num_tries`` a scalar. Logits are the dot product
    plus the bias less the log expected count; sigmoid cross-entropy with label 1 for the context and 0 for each
    negative, negatives summed.
    """

    def logits(ids: Tensor, products: Tensor) -> Tensor:
        return products + nce_biases[ids] - expected_count(ids, len(nce_biases), num_tries).log().to(products)

    centre = F.embedding(centres, embeddings)
    true = logits(contexts, einsum(centre, F.embedding(contexts, nce_weights), "pair dim, pair dim -> pair"))
    noise = logits(
        negatives, einsum(centre, F.embedding(negatives, nce_weights), "pair dim, negative dim -> pair negative")
    )
    return F.softplus(-true) + F.softplus(noise).sum(1)


@torch.no_grad()
def nce_sgd_steps(
    embeddings: Tensor, nce_weights: Tensor, nce_biases: Tensor,
    centres: Tensor, contexts: Tensor, pairs: Tensor, negatives: Tensor, num_tries: Tensor,
    *, learning_rate: float = 0.1,
) -> Tensor:  # fmt: skip
    """One plain SGD step on ``nce_loss(...).mean()`` per group, in turn and in place, with the gradients written out.

    ``centres`` ``[group, centre]`` and ``contexts`` ``[group, context]`` are rows that are used more than once:
    ``pairs`` ``[group, centre, context]`` counts how often each combination is a training pair. So a run of 16 corpus
    positions and the 24 around it costs one product of 16 by 24 + negatives rows, not one of 128 pairs. ``negatives``
    ``[group, negative]``, ``num_tries`` ``[group]``. A group without pairs changes nothing. Returns the mean loss of
    each group before its step ``[group]``.
    """
    outputs = torch.cat([contexts, negatives], dim=1)
    correction = expected_count(outputs, len(nce_biases), num_tries[:, None]).log().to(embeddings)
    pairs = pairs.to(embeddings) / pairs.sum((1, 2), keepdim=True).clamp(min=1)
    weight = torch.cat([pairs, pairs.sum(2, keepdim=True).expand(-1, -1, negatives.shape[1])], dim=2)
    sign = torch.ones_like(correction[0])
    sign[: contexts.shape[1]] = -1  # a context's cross-entropy is softplus(-logit), a negative's softplus(logit)
    logits = torch.empty_like(weight)
    groups = zip(centres, outputs, correction, weight * sign, logits, strict=True)
    for centre_ids, output_ids, log_count, signed_weight, signed in groups:
        centre, output = embeddings.index_select(0, centre_ids), nce_weights.index_select(0, output_ids)
        torch.addmm(nce_biases.index_select(0, output_ids) - log_count, centre, output.T, out=signed)
        gradient = signed.mul_(sign).sigmoid().mul_(signed_weight)
        embeddings.index_add_(0, centre_ids, gradient @ output, alpha=-learning_rate)
        nce_weights.index_add_(0, output_ids, gradient.T @ centre, alpha=-learning_rate)
        nce_biases.index_add_(0, output_ids, gradient.sum(0), alpha=-learning_rate)
    return (weight * F.softplus(logits)).sum((1, 2))


def pairs_from_draws(
    ids: np.ndarray, draws: np.ndarray, *, skip_window: int, num_skips: int, batch_size: int, calls: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The official batches, from the raw window positions that its random generator drew.

    ``ids`` ``[token]`` is all pieces as one stream that wraps round; ``draws`` lie in ``0..2 * skip_window``, and those
    that hit the centre or a position already used are passed over. Returns centres and contexts ``[call, batch]`` and
    the stream position ``[call]`` where each call's first window starts.
    """
    if batch_size % num_skips or num_skips > 2 * skip_window:
        raise ConfigError(
            f"num_skips is {num_skips}; it must divide the batch of {batch_size} and be at most {2 * skip_window}"
        )
    draw: Iterator[int] = iter(draws.tolist())
    per_call = batch_size // num_skips
    starts = np.arange(calls) * per_call % len(ids)
    windows = (np.arange(calls * per_call)[:, None] + np.arange(2 * skip_window + 1)) % len(ids)
    places = np.empty((len(windows), num_skips), dtype=int)
    for row in places:
        used = [skip_window]
        while len(used) <= num_skips:
            place = next(draw)
            if place not in used:
                used.append(place)
        row[:] = used[1:]
    contexts = ids[np.take_along_axis(windows, places, axis=1)]
    return ids[windows[:, skip_window]].repeat(num_skips).reshape(calls, -1), contexts.reshape(calls, -1), starts


class SkipGramGroups:
    """The same pairs as ``pairs_from_draws`` by whole groups: ``batch_size / num_skips`` consecutive centres and the
    stream positions around them.

    ``ids`` ``[token]``; ``pieces`` ``[token]`` numbers the piece of each token when windows must not cross pieces, and
    is ``None`` when they do (official). ``ConfigError`` for a batch that num_skips does not divide, ``DataError`` for a
    stream shorter than one window.
    """

    def __init__(
        self,
        ids: np.ndarray,
        *,
        skip_window: int = 4,
        num_skips: int | None = None,
        batch_size: int = 128,
        pieces: np.ndarray | None = None,
    ) -> None:
        num_skips = num_skips or 2 * skip_window
        if not 1 <= num_skips <= 2 * skip_window or batch_size % num_skips:
            raise ConfigError(
                f"num_skips is {num_skips}; it must divide the batch of {batch_size} and be at most {2 * skip_window}"
            )
        if len(ids) < 2 * skip_window + 1:
            raise DataError(
                f"the corpus has {len(ids)} slices, one window {2 * skip_window + 1}; add pieces or narrow the window"
            )
        self.ids, self.pieces = np.asarray(ids), pieces
        self.skip_window, self.num_skips, self.centres = skip_window, num_skips, batch_size // num_skips
        span = (
            np.arange(self.centres + 2 * skip_window) - np.arange(self.centres)[:, None]
        )  # context minus centre, shifted
        self.band = (span >= 0) & (span <= 2 * skip_window) & (span != skip_window)

    def __len__(self) -> int:
        """Groups in one pass over the corpus."""
        return -(-len(self.ids) // self.centres)

    def take(self, groups: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """``centres`` ``[group, centre]``, ``contexts`` ``[group, context]``, ``pairs`` ``[group, centre, context]``.

        ``rng`` chooses the contexts where num_skips is below the window's 2 * skip_window."""
        positions = (np.asarray(groups)[:, None] * self.centres + np.arange(self.centres + 2 * self.skip_window)) % len(
            self.ids
        )
        middle = positions[:, self.skip_window : self.skip_window + self.centres]
        pairs = np.broadcast_to(self.band, (len(positions), *self.band.shape))
        if self.num_skips < 2 * self.skip_window:
            rank = np.where(pairs, rng.random(pairs.shape), 2).argsort(axis=2).argsort(axis=2)
            pairs = rank < self.num_skips
        if self.pieces is not None:
            pairs = pairs & (self.pieces[middle][:, :, None] == self.pieces[positions][:, None, :])
        return (
            torch.from_numpy(self.ids[middle]),
            torch.from_numpy(self.ids[positions]),
            torch.from_numpy(pairs.astype(np.float32)),
        )
