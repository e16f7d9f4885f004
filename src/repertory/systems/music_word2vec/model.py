"""The embedding of slices with its NCE parameters, its official names and the word2vec text format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from repertory.data.notes import music_package
from repertory.errors import DataError
from repertory.systems.music_word2vec.vocabulary import UNK, Vocabulary

#: Variables of the official TensorFlow graph -> parameters here.
OFFICIAL_KEYS = {"embeddings": "embeddings", "nce_weights": "nce_weights", "nce_biases": "nce_biases"}


class SliceEmbedding(nn.Module):
    """Skip-gram parameters: ``embeddings`` [word, dim], ``nce_weights`` [word, dim], ``nce_biases`` [word].

    Drawn as in the official code: embeddings uniform in (-1, 1), weights normal with standard deviation
    ``1 / sqrt(dim)`` cut at two of it, biases zero.
    """

    def __init__(self, vocabulary: int, dim: int = 256) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.empty(vocabulary, dim).uniform_(-1, 1))
        std = dim**-0.5
        self.nce_weights = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(vocabulary, dim), std=std, a=-2 * std, b=2 * std)
        )
        self.nce_biases = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids ``[...]`` -> rows of unit length ``[..., dim]``."""
        return nn.functional.normalize(self.embeddings[ids], dim=-1)

    def load_official(self, variables: Mapping[str, Tensor]) -> None:
        """Loads the variables of the official graph, by name (a trailing ``:0`` is allowed), strictly."""
        self.load_state_dict(
            {OFFICIAL_KEYS.get(name.removesuffix(":0"), name): value for name, value in variables.items()}
        )


def save_word2vec(path: str | Path, vocabulary: Vocabulary, vectors: Tensor) -> None:
    """Writes ``vectors`` [word, dim] in the word2vec text format; the words are the slices, UNK the first."""
    keyed = music_package("gensim.models").KeyedVectors(vectors.shape[1])
    keyed.add_vectors([UNK, *map(str, vocabulary.known)], vectors.detach().cpu().numpy())
    keyed.save_word2vec_format(str(path), binary=False)


def load_word2vec(path: str | Path) -> tuple[list[str], Tensor]:
    """Words and vectors [word, dim] of a file in the word2vec text format; ``DataError`` for any other file."""
    try:
        keyed = music_package("gensim.models").KeyedVectors.load_word2vec_format(str(path), binary=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: not vectors in the word2vec text format ({' '.join(str(error).split())})") from None
    return keyed.index_to_key, torch.from_numpy(keyed.vectors.copy())
