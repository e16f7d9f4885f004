"""music_word2vec: pairs per second of NCE training, and slicing, against the straightforward loops.

The straightforward trainer draws each batch of 128 pairs by rejection in Python and differentiates the NCE loss by
autograd with sparse gradients; the straightforward slicing visits every note and slice.
"""

from __future__ import annotations

import collections
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import einsum

from benchmarks.measure import compare
from repertory.systems.music_word2vec.engines import NceEngine
from repertory.systems.music_word2vec.model import SliceEmbedding
from repertory.systems.music_word2vec.objective import SkipGramGroups
from repertory.systems.music_word2vec.slicing import presence

VOCABULARY, DIM, BATCH, NEGATIVES, WINDOW = 2000, 256, 128, 64, 4
GROUPS, BATCHES = 64, 192


def corpus(tokens: int = 200_000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.minimum(np.exp(rng.random(tokens) * math.log(VOCABULARY + 1)).astype(int) - 1, VOCABULARY - 1)


def ours(groups: int) -> Callable[[], Any]:
    torch.manual_seed(0)
    model = SliceEmbedding(VOCABULARY, DIM)
    pairs = SkipGramGroups(corpus(), skip_window=WINDOW, batch_size=BATCH)
    engine = NceEngine(model, pairs, negatives=NEGATIVES, groups=groups)
    steps = iter(range(10**9))
    return lambda: [engine.step(next(steps)) for _ in range(BATCHES // groups)]


def straightforward() -> Callable[[], Any]:
    torch.manual_seed(0)
    model = SliceEmbedding(VOCABULARY, DIM)
    biases = torch.nn.Parameter(torch.zeros(VOCABULARY, 1))
    optimizer = torch.optim.SGD([model.embeddings, model.nce_weights, biases], lr=0.1)
    data, start = corpus().tolist(), 0

    def rows(parameter: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(ids, parameter, sparse=True)

    def offset(ids: torch.Tensor, tries: int) -> torch.Tensor:
        chance = torch.log1p(1 / (ids + 1.0)) / math.log(VOCABULARY + 1)
        return rows(biases, ids)[:, 0] - torch.log(-torch.expm1(tries * torch.log1p(-chance)))

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal start
        span = 2 * WINDOW + 1
        window: collections.deque[int] = collections.deque(maxlen=span)
        for offset in range(span):
            window.append(data[(start + offset) % len(data)])
        centres, contexts = [], []
        for row in range(BATCH // (2 * WINDOW)):
            used = [WINDOW]
            for _ in range(2 * WINDOW):
                place = WINDOW
                while place in used:
                    place = random.randint(0, span - 1)
                used.append(place)
                centres.append(window[WINDOW])
                contexts.append(window[place])
            window.append(data[(start + span + row) % len(data)])
        start = (start + BATCH // (2 * WINDOW)) % len(data)
        return torch.tensor(centres), torch.tensor(contexts)

    def negatives() -> tuple[torch.Tensor, int]:
        drawn: dict[int, None] = {}
        tries = 0
        while len(drawn) < NEGATIVES:
            drawn[min(int(math.exp(random.random() * math.log(VOCABULARY + 1))) - 1, VOCABULARY - 1)] = None
            tries += 1
        return torch.tensor(list(drawn)), tries

    def step() -> None:
        (centres, contexts), (noise, tries) = batch(), negatives()
        centre = rows(model.embeddings, centres)
        true = einsum(centre, rows(model.nce_weights, contexts), "pair dim, pair dim -> pair") + offset(contexts, tries)
        false = centre @ rows(model.nce_weights, noise).T + offset(noise, tries)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits
        loss = entropy(true, torch.ones_like(true), reduction="sum")
        loss = loss + entropy(false, torch.zeros_like(false), reduction="sum")
        optimizer.zero_grad()
        (loss / BATCH).backward()
        optimizer.step()

    return lambda: [step() for _ in range(BATCHES)]


def notes(count: int = 1000) -> np.ndarray:
    rng = np.random.default_rng(0)
    onset, duration = rng.integers(0, count, count) / 4, rng.integers(1, 16, count) / 4
    return np.stack([onset, duration, rng.integers(30, 90, count)], axis=1)


def loop_over_notes(rows: np.ndarray, beat: float = 1.0) -> np.ndarray:
    present = np.zeros((int((rows[:, 0] + rows[:, 1]).max() // beat) + 1, 12), dtype=bool)
    for onset, duration, pitch in rows:
        for place in range(int(onset // beat), int((onset + duration) // beat) + 1):
            present[place, int(pitch) % 12] = True
    return present


def slicing(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[], Any]:
    return partial(function, notes())


def main() -> None:
    sizes = {"vocabulary": VOCABULARY, "dim": DIM, "batch": BATCH, "negatives": NEGATIVES, "window": WINDOW}
    for groups in (GROUPS, 1):
        name = f"NCE training, {BATCHES} batches, {groups} at a time"
        compare("music_word2vec", name, partial(ours, groups), straightforward, sizes)
    if not np.array_equal(presence(notes()), loop_over_notes(notes())):
        raise AssertionError("the two slicings differ")
    forms = (partial(slicing, presence), partial(slicing, loop_over_notes))
    compare("music_word2vec", "slicing of 1,000 notes", *forms, {"notes": len(notes())}, repeats=21)


if __name__ == "__main__":
    main()
