"""word2vec over slices of polyphonic music (Chuan, Agres and Herremans 2020)."""

from repertory.systems.music_word2vec.analysis import (
    chord_code,
    chord_distances,
    chord_name,
    fifths_gap,
    key_similarity,
    key_vectors,
    pair_distances,
)
from repertory.systems.music_word2vec.engines import NceEngine, gensim_vectors
from repertory.systems.music_word2vec.model import SliceEmbedding, load_word2vec, save_word2vec
from repertory.systems.music_word2vec.objective import SkipGramGroups, nce_loss
from repertory.systems.music_word2vec.replacement import replace_slices, substitute
from repertory.systems.music_word2vec.slicing import presence, read_slices, slice_pieces, words, write_slices
from repertory.systems.music_word2vec.system import MusicWord2Vec
from repertory.systems.music_word2vec.vocabulary import Vocabulary

__all__ = [
    "MusicWord2Vec", "NceEngine", "SkipGramGroups", "SliceEmbedding", "Vocabulary", "chord_code", "chord_distances",
    "chord_name", "fifths_gap", "gensim_vectors", "key_similarity", "key_vectors", "load_word2vec", "nce_loss",
    "pair_distances", "presence", "read_slices", "replace_slices", "save_word2vec", "slice_pieces", "substitute",
    "words", "write_slices",
]  # fmt: skip
