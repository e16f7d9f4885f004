"""Simulated users and items whose choices and texts follow from the same factors."""

from __future__ import annotations

import numpy as np

from repertory.data.interactions import Interactions


def simulated(
    users: int = 400,
    items: int = 400,
    factors: int = 8,
    positives: int = 24,
    width: int = 32,
    noise: float = 0.5,
    seed: int = 0,
) -> Interactions:
    """Each user chooses the ``positives`` items with the highest p.q + Gumbel noise; texts are tanh(factors W) + noise.

    Args:
        factors: length of p and q. width: of text vectors. noise: its standard deviation there.
    """
    random = np.random.default_rng(seed)
    p, q = random.normal(size=(users, factors)), random.normal(size=(items, factors))
    scores = p @ q.T + random.gumbel(size=(users, items))
    chosen = np.argpartition(-scores, positives, axis=1)[:, :positives]
    pairs = np.stack([np.repeat(np.arange(users), positives), chosen.reshape(-1)], axis=1)
    axes = random.normal(size=(factors, width)) / np.sqrt(factors)
    vectors = np.tanh(np.concatenate([p, q]) @ axes)
    vectors += noise * random.normal(size=vectors.shape)
    return Interactions.of(users, items, pairs, vectors=vectors)
