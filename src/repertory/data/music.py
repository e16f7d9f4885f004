"""Music: pieces as note lists, from MIDI files, scores, note tables, and music21 objects."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from repertory.data.items import Items, Preview, Reader, digest
from repertory.data.notes import MIDI_SUFFIXES, SCORE_SUFFIXES, Piece, read_notes, read_score, write_midi
from repertory.errors import DataError


class Music(Items):
    """Pieces of symbolic music; ``pieces[i].notes`` is [notes, 3]: onset and duration in beats, MIDI pitch.

    Args:
        ids: one unique name per piece.
        pieces: the piece, or the error with which its file could not be read.
        columns: whatever else is known, a row per piece.
    """

    kind = "music"
    readers: ClassVar[tuple[Reader, ...]]

    def __init__(
        self, ids: Sequence[str], pieces: Sequence[Piece | DataError], columns: Any = None, roles: Any = None
    ) -> None:
        super().__init__(ids, columns, roles)
        self.pieces: list[Any] = list(pieces)

    def check(self, index: int) -> str:
        piece = self.pieces[index]
        if isinstance(piece, DataError):
            raise piece
        return digest(piece.notes.tobytes())

    def _select(self, indices: np.ndarray) -> None:
        self.pieces = [self.pieces[i] for i in indices]

    def _extend(self, parts: Sequence[Music]) -> None:
        self.pieces = [piece for part in parts for piece in part.pieces]

    @classmethod
    def wrap(cls, source: Any) -> Music:
        if not isinstance(source, (list, tuple)):
            source = [source]
        pieces: list[Piece] = []
        for number, item in enumerate(source):
            if isinstance(item, Piece):
                pieces.append(item)
            elif isinstance(item, np.ndarray):
                pieces.append(Piece(f"{number:05d}", item))
            elif isinstance(item, (str, Path)):
                pieces.extend(read_notes(item))
            elif hasattr(item, "write") and hasattr(item, "flatten"):  # a music21 stream
                with tempfile.TemporaryDirectory() as folder:
                    path = item.write("musicxml", Path(folder) / f"{number:05d}.musicxml")
                    pieces.extend(read_score(path))
            else:
                raise DataError(
                    f"{type(item).__name__} is not music: give note arrays [notes, 3] (onset, duration in beats, "
                    "pitch), music21 streams, or paths of MIDI files and scores"
                )
        return cls([piece.id for piece in pieces], pieces)

    def preview(self, index: int) -> Preview:
        notes = self.pieces[index].notes
        return Preview(text=f"{len(notes)} notes in {notes[:, :2].sum(axis=1).max():g} beats")

    def write(self, folder: str | Path) -> list[Path]:
        """Writes each piece as a MIDI file named by its id (one track of piano, 120 quarter notes a minute).

        Raises:
            DataError: a file is there already, or an id leads out of the folder; nothing is written then.
        """
        folder = Path(folder)
        paths = [folder / f"{name}.mid" for name in self.ids]
        for name, path in zip(self.ids, paths, strict=True):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise DataError(f"{name}: as a file name, this id leads out of {folder}")
            if path.exists():
                raise DataError(f"{path}: is there already: choose another folder")
        for piece, path in zip(self.pieces, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_midi(piece.notes, path)
        return paths


def read_music(path: Path) -> Music:
    """A MIDI file, score or note table, or a folder of them."""
    if path.is_file():
        pieces: list[Any] = read_notes(path)
        return Music([piece.id for piece in pieces], pieces)
    ids, pieces = [], []
    for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in MIDI_SUFFIXES + SCORE_SUFFIXES):
        name = file.relative_to(path).as_posix()
        try:
            for piece in read_notes(file):
                ids.append((file.relative_to(path).parent / piece.id).as_posix())
                pieces.append(piece)
        except DataError as error:
            ids.append(name)
            pieces.append(error)
    if not ids:
        raise DataError(f"{path}: no MIDI file or score in it (looked for {', '.join(MIDI_SUFFIXES + SCORE_SUFFIXES)})")
    if len(set(ids)) < len(ids):  # prelude.mid beside prelude.xml
        ids = [f"{i}#{ids[:n].count(i)}" if ids.count(i) > 1 else i for n, i in enumerate(ids)]
    return Music(ids, pieces)


Music.readers = (
    Reader("notes", "MIDI, MusicXML, kern, ABC, note tables (onset, duration, pitch), or a folder of them",
           lambda p: p.is_dir() or p.suffix.lower() in (*MIDI_SUFFIXES, *SCORE_SUFFIXES, ".csv"), read_music),
)  # fmt: skip
