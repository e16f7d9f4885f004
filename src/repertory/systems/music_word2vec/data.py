"""Opened music as sequences of slices, and the official layout of a corpus that is sliced already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repertory.data import Reader
from repertory.data.music import Music
from repertory.data.notes import Piece
from repertory.errors import DataError
from repertory.systems.music_word2vec.slicing import (
    LOWEST_KEY,
    PITCH_CLASS_BITS,
    pitch_classes,
    read_slices,
    rotate,
    slice_pieces,
)

SLICE_FILE = "music_slice.txt"
UP, DOWN = 7, -5


def sequences(pieces: Sequence[Piece], config: Any) -> list[np.ndarray]:
    """The slices of each piece as words ``[slice]``, as the configuration's ``beat``, ``keys`` and ``end`` say."""
    return slice_pieces(pieces, config.beat, keys=config.keys, end=config.end)


def training_sequences(pieces: Sequence[Piece], config: Any) -> list[np.ndarray]:
    """``sequences``, with ``transpositions`` in all twelve keys: the twelve of one piece follow each other."""
    if not config.transpositions:
        return sequences(pieces, config)
    if config.keys == "pitch-class":
        return [rotate(codes, semitones) for codes in sequences(pieces, config) for semitones in range(12)]
    return sequences([piece.transposed(semitones) for piece in pieces for semitones in range(DOWN, UP)], config)


def read_slice_files(path: Path) -> Music:
    """Pieces of an official ``music_slice.txt`` (or of the folder that holds one) and its file list.

    A slice becomes notes of half a beat, so that slicing by one beat gives the file's words back whichever way notes
    end; silence at the end of a piece is lost. Pitch-class codes say no octave: their notes lie in that of middle C.
    """
    file = path / SLICE_FILE if path.is_dir() else path
    ids, words = read_slices(file)
    pieces: list[Piece | DataError] = []
    for name, sequence in zip(ids, words, strict=True):
        place, key = np.nonzero(_sounding(sequence))
        lowest = 60 if sequence.dtype.kind == "i" else LOWEST_KEY
        try:
            pieces.append(Piece(name, np.stack([place, np.full(len(place), 0.5), key + lowest], axis=1)))
        except DataError as error:
            pieces.append(error)
    return Music(ids, pieces)


def _sounding(words: np.ndarray) -> np.ndarray:
    """Bool ``[slice, 12]`` of codes, ``[slice, 88]`` of piano words."""
    if words.dtype.kind == "i":
        return pitch_classes(words)
    numbers = np.array([word.split("-") for word in words.tolist()], dtype=int)
    bits = ((numbers[..., None] & PITCH_CLASS_BITS) > 0).reshape(len(words), -1)
    return np.concatenate([bits[:, :3], bits[:, 12:97]], axis=1)


READERS = (
    Reader("slices", f"{SLICE_FILE} of the official code, or its folder: one piece a line, codes between blanks",
           lambda p: p.name == SLICE_FILE or (p / SLICE_FILE).is_file(), read_slice_files),
)  # fmt: skip
