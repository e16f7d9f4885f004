"""Full ranking: the best items of every user among all that it has not chosen in training, and how good they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 22
"""Scores that are held at once."""
WIDTH = 32
"""Items that are looked at together when the best are sought."""
REMOVED = -1e8
"""The official score of an item that was chosen in training."""


class Chosen:
    """Which items each user has chosen: pairs by user and then item.

    Args:
        pairs: [interactions, 2] of user and item, in any order. users: U. items: I.
    """

    def __init__(self, pairs: np.ndarray, users: int, items: int) -> None:
        self.count = items
        self.keys = np.unique(pairs[:, 0].astype(np.int64) * items + pairs[:, 1])
        self.items = self.keys % items
        self.sizes = np.bincount(self.keys // items, minlength=users)
        self.starts = np.concatenate([[0], self.sizes.cumsum()])

    def of(self, user: int) -> np.ndarray:
        """The items of one user, in ascending order."""
        return self.items[self.starts[user] : self.starts[user + 1]]

    def entries(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (positions in ``users`` [B]) and items of all their choices."""
        sizes = self.sizes[users]
        rows = np.repeat(np.arange(len(users)), sizes)
        first = np.repeat(self.starts[users] - np.concatenate([[0], sizes.cumsum()[:-1]]), sizes)
        return rows, self.items[first + np.arange(len(rows))]

    def has(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether a user has chosen an item, of equally shaped ``users`` and ``items``."""
        asked = users.astype(np.int64) * self.count + items
        if not len(self.keys):
            return np.zeros(asked.shape, dtype=bool)
        place = np.searchsorted(self.keys, asked).clip(max=len(self.keys) - 1)
        found: np.ndarray = self.keys[place] == asked
        return found


def scored(users: Tensor, items: Tensor, removed: Chosen, which: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Scores [b, I] of blocks of the users numbered ``which``, what they chose in training at -1e8.

    Args:
        users: [U, D]. items: [I, D].
    """
    size = max(1, BLOCK // len(items))
    for start in range(0, len(which), size):
        part = which[start : start + size]
        scores = users[torch.from_numpy(part).to(users.device)] @ items.T
        rows, columns = (torch.from_numpy(z).to(users.device) for z in removed.entries(part))
        scores[rows, columns] = REMOVED
        yield part, scores


def best(scores: Tensor, k: int) -> Tensor:
    """Positions [b, k] of the k highest scores [b, I], highest first; of equals any.

    The k highest lie in the k blocks of columns with the highest maxima: only these are sorted.
    """
    rows, columns = scores.shape
    whole = columns // WIDTH * WIDTH
    if whole // WIDTH <= 2 * k:
        return scores.topk(k, dim=1).indices
    tops = scores[:, :whole].view(rows, -1, WIDTH).amax(2).topk(k, dim=1).indices
    near = (tops[:, :, None] * WIDTH + torch.arange(WIDTH, device=scores.device)).view(rows, -1)
    rest = torch.arange(whole, columns, device=scores.device).expand(rows, -1)
    near = torch.cat([near, rest], dim=1)
    return near.gather(1, scores.gather(1, near).topk(k, dim=1).indices)


def rank(users: Tensor, items: Tensor, removed: Chosen, which: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of the users numbered ``which`` [B]: item numbers [B, k], and scores."""
    found, scores = [], []
    for _, block in scored(users, items, removed, which):
        top = best(block, k)
        found.append(top.cpu().numpy())
        scores.append(block.gather(1, top).float().cpu().numpy())
    return np.concatenate(found), np.concatenate(scores)


def of_rankings(hits: np.ndarray, counts: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Recall, NDCG, precision and reciprocal ranks at k, of each user.

    Args:
        hits: [U, K], whether the item at that rank is right. counts: [U], right items of each user, at least 1.
        ks: each at most K.

    Returns:
        ``recall`` (hits over all right items), ``ndcg`` (over the best possible within k), ``precision`` and ``mrr``
        (the sum of reciprocal ranks of all hits): [U, len(ks)].
    """
    at = np.asarray(ks) - 1
    gains, ranks = 1 / np.log2(np.arange(2, hits.shape[1] + 2)), np.arange(1, hits.shape[1] + 1)
    within = np.minimum(counts[:, None], np.asarray(ks))
    return {
        "recall": hits.cumsum(1)[:, at] / counts[:, None],
        "ndcg": (hits * gains).cumsum(1)[:, at] / gains.cumsum()[within - 1],
        "precision": hits.cumsum(1)[:, at] / np.asarray(ks),
        "mrr": (hits / ranks).cumsum(1)[:, at],
    }
