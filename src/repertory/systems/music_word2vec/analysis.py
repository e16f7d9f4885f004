"""Chords, chord pairs and keys in the embedding (section 4 of the paper), and statistics of a corpus."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from repertory.data.notes import Piece, music_package
from repertory.errors import DataError
from repertory.systems.music_word2vec.slicing import End, pitch_classes, rotate, words
from repertory.systems.music_word2vec.vocabulary import Vocabulary

Rows = Vocabulary | Mapping[int, int]  # where a code has its row in the embedding
MAJOR, MINOR = 145, 137  # triads on C
#: Role of a triad relative to a major triad -> semitones above its root, and the triad on C.
ROLES = {"V": (7, MAJOR), "IV": (5, MAJOR), "vi": (9, MINOR), "bIII": (3, MAJOR), "bII": (1, MAJOR), "v": (7, MINOR)}
PITCHES = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
#: Steps along the circle of fifths between two pitch classes, 0..6, by their difference in semitones.
FIFTHS = np.array([min(step * 7 % 12, -step * 7 % 12) for step in range(12)])


def chord_code(name: str) -> int:
    """Pitch-class code of a chord by music21's name for it (``C-major triad``, ``Eb-dominant seventh chord``) or its
    symbol (``Cm``, ``Ebmaj7``). ``DataError`` when music21 does not know it."""
    harmony = music_package("music21.harmony")

    def flat(root: str) -> str:
        return root.replace("b", "-")

    try:
        if match := re.fullmatch(r"([A-G](?:#{1,2}|b{1,2}|-{1,2})?)-([a-z][\w -]*)", name.strip()):
            kind = re.sub(r" (triad|chord)$", "", match[2]).replace("minor-major", "minor major").replace(" ", "-")
            chord = harmony.ChordSymbol(root=flat(match[1]), kind=kind)
        else:
            chord = harmony.ChordSymbol(re.sub("^[A-G]b{1,2}", lambda found: flat(found[0]), name.strip()))
        if not chord.pitches:
            raise ValueError(name)
    except Exception:  # music21 raises errors of many kinds for names that it does not know
        raise DataError(f"chord '{name}' is not known; write it like 'C-major triad' or 'Ebmaj7'") from None
    return sum({1 << pitch.pitchClass for pitch in chord.pitches})


def chord_roots(codes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Root pitch class (0 = C) of each code ``[chord]``, by music21. ``DataError`` for silence."""
    chord = music_package("music21.chord")

    codes = np.asarray(codes)
    if (codes == 0).any():
        raise DataError("code 0 is silence and has no root; leave it out")
    return np.array(
        [chord.Chord(np.flatnonzero(present).tolist()).root().pitchClass for present in pitch_classes(codes)]
    )


def role_codes(centres: Sequence[int] | np.ndarray) -> np.ndarray:
    """Codes ``[centre, 6]`` of the triads V, IV, vi, bIII, bII, v of each centre's root (the official table)."""
    roots = chord_roots(centres)
    return np.stack([rotate(triad, roots + semitones) for semitones, triad in ROLES.values()], axis=1)


def vectors_of(codes: np.ndarray, embeddings: np.ndarray, rows: Rows) -> np.ndarray:
    """Rows of ``embeddings`` [word, dim] for codes ``[...]`` -> ``[..., dim]``; ``DataError`` for a code without a
    row."""
    codes = np.asarray(codes)
    find = rows.id if isinstance(rows, Vocabulary) else rows.__getitem__
    return embeddings[np.array([find(code) for code in codes.flatten().tolist()], dtype=int).reshape(codes.shape)]


def cosine_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``1 - cosine`` over the last axis, the others broadcast."""
    return 1 - (_unit(first) * _unit(second)).sum(-1)


def chord_distances(centres: np.ndarray, neighbours: np.ndarray, embeddings: np.ndarray, rows: Rows) -> np.ndarray:
    """Cosine distance ``[centre, neighbour]`` of codes ``[centre]`` and ``[centre, neighbour]``; see ``role_codes``."""
    return cosine_distance(vectors_of(centres, embeddings, rows)[:, None], vectors_of(neighbours, embeddings, rows))


def role_distances(centres: np.ndarray, embeddings: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """``chord_distances`` ``[centre, 6]`` to the roles of each centre; NaN where a chord is not in the vocabulary."""
    around = role_codes(centres)
    first, second = (vocabulary.encode(codes) for codes in (np.asarray(centres)[:, None], around))
    return np.where((first > 0) & (second > 0), cosine_distance(embeddings[first], embeddings[second]), np.nan)


def fifth_steps(embeddings: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Cosine distance ``[12, 12]`` between the steps I -> V (``E[V] - E[I]``) of the major keys, by tonic; NaN where a
    triad is not in the vocabulary."""
    chords = triads(embeddings, vocabulary)
    steps = chords[(np.arange(12) + 7) % 12] - chords
    return cosine_distance(steps[:, None], steps[None])


def pair_distances(pairs: np.ndarray, embeddings: np.ndarray, rows: Rows) -> np.ndarray:
    """Cosine distance ``[pair, pair]`` between the vectors ``E[b] - E[a]`` of chord pairs (a, b) ``[pair, 2]``."""
    chords = vectors_of(pairs, embeddings, rows)
    steps = chords[:, 1] - chords[:, 0]
    return cosine_distance(steps[:, None], steps[None])


def by_fifths(table: np.ndarray, shift: int = 0) -> np.ndarray:
    """Mean of ``table`` [12, 12] (pitch class by pitch class) over the pairs 0..6 fifths apart ``[7]``.

    ``shift`` is added to the column's pitch class: 9 compares major keys with the minor keys of equal signature."""
    row, column = np.indices((12, 12))
    apart = FIFTHS[(column - shift - row) % 12]
    known = np.isfinite(table)
    return np.array([mean_of(table[(apart == step) & known]) for step in range(7)])


def mean_of(values: np.ndarray) -> float:
    """The mean, NaN without values."""
    return float(values.mean()) if values.size else float("nan")


def triads(embeddings: np.ndarray, vocabulary: Vocabulary, chord: int = MAJOR) -> np.ndarray:
    """Embeddings ``[12, dim]`` of a chord on C and its transpositions; NaN where one is not in the vocabulary."""
    ids = vocabulary.encode(rotate(chord, np.arange(12)))
    return np.where(ids[:, None] > 0, embeddings[ids], np.nan)


def triad_distances(
    embeddings: np.ndarray, vocabulary: Vocabulary, *, first: int = MAJOR, second: int = MAJOR
) -> np.ndarray:
    """Cosine distance ``[12, 12]`` between the transpositions of two chords given on C, rows and columns by root; NaN
    where one of them is not in the vocabulary."""
    one, other = (triads(embeddings, vocabulary, chord) for chord in (first, second))
    return cosine_distance(one[:, None], other[None])


def fifths_gap(embeddings: np.ndarray, vocabulary: Vocabulary) -> float:
    """Smallest mean distance of major triads 2..6 fifths apart, less that of neighbours on the circle of fifths: above
    0 where the embedding has found the circle. NaN where too few triads are in the vocabulary."""
    profile = by_fifths(triad_distances(embeddings, vocabulary))
    return float(profile[2:].min() - profile[1])


def relative_minor_gap(embeddings: np.ndarray, vocabulary: Vocabulary) -> float:
    """Mean distance of major triads to the minor triad a minor third above, less that to their relative minor (a minor
    third below); NaN where these triads are not in the vocabulary."""
    distances, root = triad_distances(embeddings, vocabulary, second=MINOR), np.arange(12)
    gap = distances[root, (root + 3) % 12] - distances[root, (root + 9) % 12]
    return mean_of(gap[np.isfinite(gap)])


def key_gap(similarity: np.ndarray) -> float:
    """Similarity of keys one fifth apart, less that of keys six fifths apart, of ``key_similarity`` [12, 12]."""
    profile = by_fifths(similarity)
    return float(profile[1] - profile[6])


def key_vectors(
    piece: Piece,
    embeddings: np.ndarray,
    vocabulary: Vocabulary,
    *,
    slices: int = 16,
    beat: float = 1.0,
    end: End = "inclusive",
) -> np.ndarray:
    """Mean embedding ``[12, dim]`` of the first ``slices`` pitch-class slices of a piece, transposed by 0..11
    semitones."""
    codes = words(piece.notes, beat, end=end)[:slices]
    return embeddings[vocabulary.encode(rotate(codes, np.arange(12)[:, None]))].mean(axis=1)


def key_similarity(vectors: np.ndarray) -> np.ndarray:
    """Cosine similarity ``[12, 12]`` of ``[piece, 12, dim]`` vectors centred over the keys; the mean over pieces."""
    centred = _unit(vectors - vectors.mean(axis=1, keepdims=True))
    return np.einsum("pid,pjd->ij", centred, centred) / len(vectors)


def fifths_correlation(similarity: np.ndarray) -> float:
    """Spearman's correlation of fifths distance and similarity over all pairs of different keys of ``[12, 12]``."""
    from scipy.stats import spearmanr

    row, column = np.triu_indices(12, k=1)
    return float(spearmanr(FIFTHS[column - row], similarity[row, column]).statistic)


def corpus_statistics(sequences: Sequence[np.ndarray], top: int = 10) -> dict[str, float]:
    """Pieces, slices, distinct slices, the share of the ``top`` most frequent ones, entropy in bits, share of silence
    (pitch-class codes)."""
    stream = np.concatenate(list(sequences))
    counts = np.sort(np.unique(stream, return_counts=True)[1])[::-1]
    share = counts / counts.sum()
    return {
        "pieces": len(sequences),
        "slices": len(stream),
        "distinct": len(counts),
        f"top_{top}_share": float(share[:top].sum()),
        "entropy_bits": float(-(share * np.log2(share)).sum()),
        "silence_share": float((stream == 0).mean()),
    }


def chord_names(codes: np.ndarray) -> list[str | None]:
    """music21's names of pitch-class codes ``[chord]`` (``C-major triad``); None for silence and for sets that have a
    Forte number only."""
    return [chord_name(code) for code in np.asarray(codes).tolist()]


def chord_name(code: int) -> str | None:
    """The name of one code; see ``chord_names``."""
    if code == 0:
        return None
    shapes = rotate(code, -np.arange(12))
    down = int(shapes.argmin())  # all transpositions share one shape, which music21 names once
    root, kind = _shape_name(int(shapes[down]))
    return None if kind is None else f"{PITCHES[(root + down) % 12]}-{kind}" if kind else PITCHES[(root + down) % 12]


@cache
def _shape_name(code: int) -> tuple[int, str | None]:
    chord = music_package("music21.chord").Chord(np.flatnonzero(pitch_classes(code)).tolist())
    kind = "" if len(chord.pitches) == 1 else chord.commonName
    return chord.root().pitchClass, None if "forte class" in kind else kind


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(min=np.finfo(vectors.dtype).tiny)
