"""Words by decreasing count; id 0 is UNK, every slice that is not among them."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from repertory.errors import ConfigError, DataError

UNK = "UNK"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """``words`` and their ``counts`` by decreasing count, ties by first appearance, all of the corpus; the first
    ``size - 1`` have the ids ``1..size - 1`` and the others share id 0. Words are int codes or piano strings."""

    words: np.ndarray
    counts: np.ndarray
    size: int

    @classmethod
    def build(cls, stream: np.ndarray, size: int = 2000) -> Vocabulary:
        """From a stream of words ``[token]``; a ``size`` above what the corpus holds is clipped with a warning.

        ``ConfigError`` for a size below 2, ``DataError`` for an empty stream."""
        if size < 2:
            raise ConfigError(f"vocabulary is {size}; it holds UNK and at least one slice, give 2 or more")
        if not len(stream):
            raise DataError("no slices to build a vocabulary from; give at least one piece")
        words, first, counts = np.unique(stream, return_index=True, return_counts=True)
        if size > len(words) + 1:
            warnings.warn(
                f"vocabulary of {size} asked for, the corpus has {len(words)} slices and UNK; using {len(words) + 1}",
                stacklevel=2,
            )
            size = len(words) + 1
        order = np.lexsort((first, -counts))
        return cls(words[order], counts[order], size)

    @property
    def known(self) -> np.ndarray:
        """Words with an id of their own ``[size - 1]``; id ``k`` is ``known[k - 1]``."""
        return self.words[: self.size - 1]

    @property
    def id_counts(self) -> np.ndarray:
        """Occurrences per id ``[size]``, of all other words for id 0."""
        return np.concatenate([[self.counts[self.size - 1 :].sum()], self.counts[: self.size - 1]])

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.known)
        return self.known[order], order + 1

    def encode(self, words: np.ndarray) -> np.ndarray:
        """Words ``[...]`` -> int64 ids ``[...]``, 0 for those not known."""
        known, ids = self._sorted
        place = np.searchsorted(known, words).clip(max=len(known) - 1)
        return np.where(known[place] == words, ids[place], 0)

    def id(self, word: int | str) -> int:
        """The id of one word; ``DataError`` with its count in the corpus when it has none."""
        found = int(self.encode(np.asarray(word)))
        if found:
            return found
        count = int(self.counts[self.words == word].sum())
        raise DataError(
            f"slice {word} is not in the vocabulary: it occurs {count} times in the corpus and V = {self.size}; "
            "raise V or use a corpus that has it"
        )

    def save(self, path: str | Path) -> None:
        """JSON: ``codes`` by id (UNK first), their ``counts``, and the words left out with theirs."""
        left_out = dict(zip(map(str, self.words[self.size - 1 :]), self.counts[self.size - 1 :].tolist(), strict=True))
        content = {"codes": [UNK, *self.known.tolist()], "counts": self.id_counts.tolist(), "left_out": left_out}
        Path(path).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        codes, left_out = content["codes"][1:], content["left_out"]
        kind = type(codes[0]) if codes else int
        words = np.array(codes + [kind(word) for word in left_out])
        return cls(words, np.array(content["counts"][1:] + list(left_out.values())), len(codes) + 1)
