"""A piece becomes a sequence of equally long slices, each the set of notes that sound in it (section 3 of the paper).

A slice is a word: in pitch-class mode an integer code, the sum of ``2**pitch_class`` (C = 1, C# = 2, ..., B = 2048),
so C major is 145 and silence 0; in piano mode nine such integers joined by ``-``, for A0-B0, the octaves C1-B7 and C8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from repertory.data.notes import Piece
from repertory.errors import ConfigError, DataError

Keys = Literal["pitch-class", "piano"]
End = Literal["inclusive", "exclusive"]
PITCH_CLASS_BITS = 2 ** np.arange(12)
SILENCE: dict[str, int | str] = {"pitch-class": 0, "piano": "-".join("0" * 9)}
LOWEST_KEY, HIGHEST_KEY = 21, 108  # A0, C8
_PIANO_GROUPS = [slice(0, 3), *(slice(3 + 12 * octave, 15 + 12 * octave) for octave in range(7)), slice(87, 88)]


def presence(notes: np.ndarray, beat: float = 1.0, *, keys: Keys = "pitch-class", end: End = "inclusive") -> np.ndarray:
    """Which pitch classes (or piano keys, A0 first) sound in each slice of ``beat`` quarter notes.

    ``notes`` ``[note, 3]`` (onset, duration, pitch) -> bool ``[slice, 12]`` or ``[slice, 88]``, with
    ``floor(max(onset + duration) / beat) + 1`` slices. Times are rounded to 3 decimals, halves away from zero. With
    ``end="inclusive"``, as in the official code, a note that ends on a border also fills the slice after it;
    ``"exclusive"`` does not. Piano mode drops what no piano has. ``ConfigError``: beat <= 0; ``DataError``: no note
    left.
    """
    if not beat > 0:
        raise ConfigError(f"beat is {beat:g}; give a slice length above 0, in quarter notes")
    onset, duration = np.floor(notes[:, :2].T * 1000 + 0.5) / 1000
    first = np.floor(onset / beat).astype(int)
    last = np.floor((onset + duration) / beat).astype(int)
    slices = last.max() + 1
    if end == "exclusive":
        last = np.maximum(np.ceil((onset + duration) / beat).astype(int) - 1, first)
    pitch = notes[:, 2].astype(int)
    if keys == "pitch-class":
        key, width = pitch % 12, 12
    else:
        on_piano = (pitch >= LOWEST_KEY) & (pitch <= HIGHEST_KEY)
        if not on_piano.any():
            raise DataError(
                f"none of {len(pitch)} notes is on the piano (pitches {LOWEST_KEY}..{HIGHEST_KEY}); use pitch classes"
            )
        first, last, key, width = first[on_piano], last[on_piano], pitch[on_piano] - LOWEST_KEY, 88
    cells = (slices + 1) * width
    starts = np.bincount(first * width + key, minlength=cells)
    stops = np.bincount((last + 1) * width + key, minlength=cells)
    return (starts - stops).reshape(-1, width).cumsum(axis=0)[:-1] > 0


def pitch_class_codes(present: np.ndarray) -> np.ndarray:
    """Bool ``[..., 12]`` -> integer codes ``[...]`` in 0..4095."""
    return present @ PITCH_CLASS_BITS


def pitch_classes(codes: np.ndarray | int) -> np.ndarray:
    """Integer codes ``[...]`` -> bool ``[..., 12]``, C first."""
    return (np.asarray(codes)[..., None] & PITCH_CLASS_BITS) > 0


def piano_numbers(present: np.ndarray) -> np.ndarray:
    """Bool ``[slice, 88]`` -> integers ``[slice, 9]``: A0-B0, C1-B1, ..., C7-B7, C8, lowest key = lowest bit."""
    return np.stack(
        [present[:, group] @ PITCH_CLASS_BITS[: group.stop - group.start] for group in _PIANO_GROUPS], axis=1
    )


def words(notes: np.ndarray, beat: float = 1.0, *, keys: Keys = "pitch-class", end: End = "inclusive") -> np.ndarray:
    """The slices of a piece as words ``[slice]``: int64 codes, or strings such as ``0-0-0-0-145-1-0-0-0``."""
    present = presence(notes, beat, keys=keys, end=end)
    if keys == "pitch-class":
        return pitch_class_codes(present)
    return np.array(["-".join(map(str, numbers)) for numbers in piano_numbers(present).tolist()])


def slice_pieces(
    pieces: Sequence[Piece], beat: float = 1.0, *, keys: Keys = "pitch-class", end: End = "inclusive"
) -> list[np.ndarray]:
    """``words`` of every piece; an error names the piece."""
    sequences = []
    for piece in pieces:
        try:
            sequences.append(words(piece.notes, beat, keys=keys, end=end))
        except DataError as error:
            raise DataError(f"{piece.source or piece.id}: {error}") from None
    return sequences


def rotate(codes: np.ndarray | int, semitones: np.ndarray | int) -> np.ndarray:
    """Pitch-class codes moved up by ``semitones`` (modulo 12); shapes broadcast."""
    codes, semitones = np.asarray(codes), np.asarray(semitones) % 12
    return ((codes << semitones) | (codes >> (12 - semitones))) & 4095


def write_slices(folder: str | Path, ids: Sequence[str], sequences: Sequence[np.ndarray]) -> None:
    """Writes the official files anew: ``music_slice.txt`` (one piece per line, words separated by blanks),
    ``music_slice_file_list.txt`` (one id per line) and ``vocab_slice_occurrence.txt`` (word and count per line)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, counts = np.unique(np.concatenate(sequences), return_counts=True)
    for name, lines in (
        ("music_slice.txt", (" ".join(map(str, sequence.tolist())) for sequence in sequences)),
        ("music_slice_file_list.txt", ids),
        ("vocab_slice_occurrence.txt", (f"{word} {count}" for word, count in zip(vocabulary, counts, strict=True))),
    ):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_slices(path: str | Path) -> tuple[list[str], list[np.ndarray]]:
    """Ids and word sequences of a ``music_slice.txt``; ids come from ``music_slice_file_list.txt`` beside it, if there.

    Pitch-class codes or piano words, as the first token says. ``DataError`` names file and line: a token that is not a
    word of that kind, a code outside 0..4095, an empty line, a file list of another length.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines:
        raise DataError(f"{path}: is empty; it has one piece per line")
    piano = "-" in lines[0].strip().split(" ")[0].lstrip("-")
    sequences = []
    for number, line in enumerate(lines, 1):
        tokens = line.split()
        if not tokens:
            raise DataError(f"{path}, line {number}: is empty; each line is one piece of at least one slice")
        wrong = next(
            (
                token
                for token in tokens
                if not (_is_piano_word(token) if piano else token.isdecimal() and int(token) < 4096)
            ),
            None,
        )
        if wrong is not None:
            kind = "a piano slice (nine numbers joined by '-')" if piano else "a slice code (a whole number in 0..4095)"
            raise DataError(f"{path}, line {number}: '{wrong}' is not {kind}")
        sequences.append(np.array(tokens if piano else list(map(int, tokens))))
    names = path.with_name("music_slice_file_list.txt")
    ids = (
        names.read_text(encoding="utf-8").splitlines()
        if names.exists()
        else [f"{path.stem}#{n + 1}" for n in range(len(lines))]
    )
    if len(ids) != len(lines):
        raise DataError(f"{names}: names {len(ids)} pieces, but {path.name} has {len(lines)} lines; remove or mend it")
    return ids, sequences


def _is_piano_word(token: str) -> bool:
    numbers = token.split("-")
    limits = [8, *[4096] * 7, 2]
    return len(numbers) == 9 and all(n.isdecimal() and int(n) < limit for n, limit in zip(numbers, limits, strict=True))
