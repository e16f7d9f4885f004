"""Slices replaced by related ones: our reading of the paper's generation experiment (its rule is not given in full).

For a slice: its k nearest slices, their mean pitch-class distribution, and of them the one whose pitch classes agree
with it best (mean probability per pitch class), the nearest where several do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from repertory.data.notes import Piece, music_package
from repertory.errors import ConfigError
from repertory.systems.music_word2vec.slicing import pitch_class_codes, pitch_classes
from repertory.systems.music_word2vec.vocabulary import Vocabulary

_MAJOR_SCALE = np.array([1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1], dtype=bool)


def substitute(
    code: int, embeddings: np.ndarray, vocabulary: Vocabulary, *, k: int = 20, weighted: bool = False
) -> int:
    """The code that replaces ``code``, by its ``k`` nearest of the vocabulary (itself, UNK and silence left out).

    ``embeddings`` [word, dim]; ``weighted`` weights the neighbours' pitch classes by cosine similarity (negative ones
    by 0). ``DataError`` for a code that is not in the vocabulary, ``ConfigError`` for a k below 1.
    """
    if k < 1:
        raise ConfigError(f"k is {k}; a neighbourhood has at least one slice")
    row = vocabulary.id(code)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(min=1e-12)
    similarity = unit @ unit[row]
    codes = np.concatenate([[0], vocabulary.known])
    similarity[(codes == 0) | (np.arange(len(codes)) == row)] = -np.inf
    nearest = np.argsort(-similarity, kind="stable")[: min(k, np.isfinite(similarity).sum())]
    present = pitch_classes(codes[nearest])
    weights = similarity[nearest].clip(min=1e-12) if weighted else np.ones(len(nearest))
    distribution = np.average(present, axis=0, weights=weights)
    agreement = present @ distribution / present.sum(axis=1)
    best = np.lexsort((-similarity[nearest], -np.round(agreement, 12)))[0]
    return int(codes[nearest[best]])


def voice(notes: np.ndarray, code: int) -> np.ndarray:
    """Notes ``[note, 3]`` moved to the pitch classes of ``code``, each to the octave nearest to an old note.

    Onsets and durations stay. As many pitch classes as possible get a note of their own, with the least movement in
    all; further notes double the nearest pitch class, and a pitch class left over is added next to the note nearest to
    it.
    """
    classes = np.flatnonzero(pitch_classes(code))
    pitch = notes[:, 2].astype(int)
    target = pitch[:, None] + (classes - pitch[:, None] + 6) % 12 - 6  # [note, pitch class]
    target += 12 * (target < 0) - 12 * (target > 127)
    distance = abs(target - pitch[:, None])
    chosen = distance.argmin(axis=1)
    taken, given = linear_sum_assignment(distance)
    chosen[taken] = given
    moved = notes.copy()
    moved[:, 2] = target[np.arange(len(notes)), chosen]
    missing = np.setdiff1d(np.arange(len(classes)), chosen)
    beside = distance[:, missing].argmin(axis=0)
    added = notes[beside].copy()
    added[:, 2] = target[beside, missing]
    return np.concatenate([moved, added])


def replace_slices(piece: Piece, replacements: dict[int, int], beat: float = 1.0) -> Piece:
    """The piece with new pitch-class codes at some slices (slice index -> code); the notes that begin in a slice are
    voiced anew, those held over from the slice before stay."""
    index = np.floor(np.floor(piece.notes[:, 0] * 1000 + 0.5) / 1000 / beat).astype(int)
    kept = piece.notes[~np.isin(index, list(replacements))]
    voiced = [
        voice(piece.notes[index == place], code) for place, code in replacements.items() if (index == place).any()
    ]
    return Piece(piece.id, np.concatenate([kept, *voiced]), piece.source)


def best_major_scale(notes: np.ndarray) -> int:
    """Code of the major scale (its relative minor has the same) that holds most notes; the lowest tonic of several."""
    counts = np.bincount(notes[:, 2].astype(int) % 12, minlength=12)
    scales = np.stack([np.roll(_MAJOR_SCALE, tonic) for tonic in range(12)])
    return int(pitch_class_codes(scales[(scales @ counts).argmax()]))


def krumhansl_scale(notes: np.ndarray) -> int:
    """Code of the scale (natural minor) of the key that music21's Krumhansl-Schmuckler analysis finds in ``notes``."""
    music21 = music_package("music21")

    score = music21.stream.Stream()
    for onset, duration, pitch in notes.tolist():
        score.insert(onset, music21.note.Note(int(pitch), quarterLength=duration))
    key = music21.analysis.discrete.KrumhanslSchmuckler().getSolution(score)
    return sum({1 << pitch.pitchClass for pitch in key.getScale().pitches})


def in_scale_share(codes: Sequence[int] | np.ndarray, scale: int) -> float:
    """Share of the codes all of whose pitch classes lie in the scale's code."""
    return float(((np.asarray(codes) & ~scale) == 0).mean())


def tonal_distance(first: np.ndarray | int, second: np.ndarray | int) -> np.ndarray:
    """Distance of codes in the tonal centroid space of Harte, Sandler and Gasser (2006); shapes broadcast."""
    angle = np.arange(12)[:, None] * np.pi * np.array([7 / 6, 3 / 2, 2 / 3])
    radius = np.array([1, 1, 0.5])
    basis = np.concatenate([radius * np.sin(angle), radius * np.cos(angle)], axis=1)  # [pitch class, 6]

    def centroid(codes: np.ndarray | int) -> np.ndarray:
        present = pitch_classes(np.asarray(codes)).astype(float)
        return present @ basis / present.sum(-1, keepdims=True).clip(min=1)

    return np.linalg.norm(centroid(first) - centroid(second), axis=-1)
