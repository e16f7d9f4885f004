"""Two ways to learn the embedding: the official NCE in torch, and gensim's negative sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from repertory.data.notes import music_package
from repertory.errors import ConfigError, DataError
from repertory.systems.music_word2vec.model import SliceEmbedding
from repertory.systems.music_word2vec.objective import SkipGramGroups, nce_sgd_steps, sample_negatives


class NceEngine:
    """SGD on NCE over a stream of ids; ``step(k)`` depends on the parameters, the seed and ``k`` alone.

    A step is ``groups`` official batches in turn, each with its own ``negatives``; their number changes the speed, not
    the method. Where ``batches`` says how many there are in all, the last step holds what is left. Each pass over the
    corpus visits the batches in a new order (``shuffle``) or in that of the corpus (official).
    """

    def __init__(
        self, model: SliceEmbedding, pairs: SkipGramGroups, *,
        negatives: int = 64, learning_rate: float = 0.1, groups: int = 64, batches: int | None = None,
        shuffle: bool = True, seed: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.pairs, self.batches, self.seed = model, pairs, batches, seed
        self.negatives, self.learning_rate, self.groups, self.shuffle = negatives, learning_rate, groups, shuffle
        self._epoch, self._order = -1, np.arange(len(pairs))

    def step(self, k: int) -> float:
        """Step ``k`` (from 0); returns the mean loss of its batches. ``ConfigError`` when that is not finite."""
        rng = np.random.default_rng((self.seed, 1, k))
        model = self.model
        groups = self._groups(k)
        centres, contexts, pairs = self.pairs.take(groups, rng)
        negatives, num_tries = sample_negatives(len(groups), self.negatives, len(model.nce_biases), rng)
        batch = [tensor.to(model.embeddings.device) for tensor in (centres, contexts, pairs, negatives, num_tries)]
        parameters = (model.embeddings, model.nce_weights, model.nce_biases)
        mean = nce_sgd_steps(*parameters, *batch, learning_rate=self.learning_rate).mean().item()
        if not math.isfinite(mean):
            raise ConfigError(f"the loss is {mean} at step {k}; lower the learning rate of {self.learning_rate:g}")
        return mean

    def _groups(self, k: int) -> np.ndarray:
        end = (k + 1) * self.groups if self.batches is None else min((k + 1) * self.groups, self.batches)
        epochs, places = np.divmod(np.arange(k * self.groups, end), len(self.pairs))
        if not self.shuffle:
            return places
        return np.array(
            [self._permutation(epoch)[place] for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True)]
        )

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.pairs))
        return self._order


def gensim_vectors(
    sequences: Sequence[np.ndarray], vocabulary: int, *,
    dim: int = 256, window: int = 4, negatives: int = 64, epochs: int = 5, learning_rate: float = 0.025,
    shrink_windows: bool = False, seed: int = 0, watch: Callable[[int, float], None] | None = None,
) -> Tensor:  # fmt: skip
    """Skip-gram with negative sampling by gensim: id sequences of the pieces -> float32 ``[vocabulary, dim]``.

    Windows stay inside pieces and have their full width, or with ``shrink_windows`` one drawn anew for each centre
    (word2vec's own way); no word is subsampled or dropped, UNK is a word like others (its row is zero where it never
    occurs). One worker, so that equal seeds give equal vectors. ``watch`` is told each epoch and its loss per slice.
    ``DataError`` for a corpus shorter than one window.
    """
    word2vec = music_package("gensim.models.word2vec")
    if (total := sum(map(len, sequences))) < 2 * window + 1:
        raise DataError(f"the corpus has {total} slices, one window {2 * window + 1}; add pieces or narrow the window")
    sentences = [
        [
            str(word) for word in sequence[start : start + word2vec.MAX_WORDS_IN_BATCH].tolist()
        ]  # gensim ignores what is beyond
        for sequence in sequences
        for start in range(0, len(sequence), word2vec.MAX_WORDS_IN_BATCH)
    ]

    class Watch(music_package("gensim.models.callbacks").CallbackAny2Vec):  # type: ignore[misc]
        epoch = 0

        def on_epoch_end(self, model: Any) -> None:
            if watch is not None:
                watch(self.epoch, model.running_training_loss / total)
            model.running_training_loss = 0.0  # gensim sums over all epochs, in float32
            self.epoch += 1

    trained = word2vec.Word2Vec(
        sentences, sg=1, vector_size=dim, window=window, negative=negatives, epochs=epochs, alpha=learning_rate,
        min_count=1, sample=0, shrink_windows=shrink_windows, workers=1, seed=seed,
        compute_loss=True, callbacks=[Watch()],
        hashfxn=lambda word: crc32(word.encode()),  # the built-in hash of strings changes from process to process
    ).wv  # fmt: skip
    vectors = torch.zeros(vocabulary, dim)
    vectors[torch.tensor([int(word) for word in trained.index_to_key])] = torch.from_numpy(trained.vectors)
    return vectors
