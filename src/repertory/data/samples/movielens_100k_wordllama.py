"""MovieLens 100k with vectors of the films' texts by static word embeddings (wordllama)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repertory.data.interactions import Interactions
from repertory.data.samples import Package, Sample, movielens_100k


class WordVectors:
    """The mean of the static vectors of a text's tokens: ``[texts, 256]``.

    Args:
        folder: where the package's files lie.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "wordllama/tokenizers/l2_supercat_tokenizer_config.json"))
        self.tokenizer.no_padding()
        held = load_file(folder / "wordllama/weights/l2_supercat_256.safetensors")
        self.table = next(iter(held.values())).astype(np.float32)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        made = np.zeros((len(texts), self.table.shape[1]), np.float32)
        for row, said in enumerate(self.tokenizer.encode_batch(list(texts), add_special_tokens=False)):
            if said.ids:
                made[row] = self.table[said.ids].mean(axis=0)
        return made


def build(packages: dict[str, Path], at_least: float = 4.0, users: int = 0) -> Interactions:
    """As ``movielens-100k``, with a vector [256] of each film's text: the mean of its tokens' vectors.

    Args:
        at_least: the lowest rating that counts as an interaction, 1 to 5.
        users: only the first so many; 0 takes all.
    """
    films = movielens_100k.build(packages, at_least, users)
    texts = films.text("text")
    there = np.flatnonzero(texts != "")
    made = WordVectors(packages[WORDLLAMA.name])(list(texts[there]))
    vectors = np.full((len(films), made.shape[1]), np.nan, np.float32)
    vectors[there] = made
    return films.with_vectors(vectors)


WORDLLAMA = Package(
    name="wordllama",
    version="0.4.0.post1",
    files=("wordllama/weights/l2_supercat_256.safetensors", "wordllama/tokenizers/l2_supercat_tokenizer_config.json"),
    sha256=("42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97",),
    licence="MIT (static embeddings made from those of Llama 2, whose licence may apply)",
    platform="manylinux2014_x86_64",
)

SAMPLE = Sample(
    name="movielens-100k-wordllama",
    kind="interactions",
    about="movielens-100k with vectors of the films' texts by static word embeddings",
    licence=f"{movielens_100k.SAMPLE.licence}; vectors of the package wordllama (MIT)",
    build=build,
    packages=(movielens_100k.MOVIELENS, WORDLLAMA),
)
