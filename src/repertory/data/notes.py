"""Symbolic music as note lists: MIDI files, scores in music21's formats, the corpus inside music21, CSV tables.

A note is a row (onset, duration, pitch): onset and duration in beats (a beat is the file's quarter note; no tempo
or meter is estimated), pitch as a MIDI number. Tracks, channels and parts are merged; drums are kept.
"""

from __future__ import annotations

import os
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from repertory.errors import DataError, MissingExtraError

MIDI_SUFFIXES = (".mid", ".midi")
SCORE_SUFFIXES = (".mxl", ".musicxml", ".xml", ".krn", ".abc", ".mei", ".rntxt", ".md", ".nwc")
CSV_COLUMNS = ("onset", "duration", "pitch")


@dataclass(frozen=True, eq=False)
class Piece:
    """One piece of music.

    ``notes`` is float64 ``[note, 3]``: onset >= 0 and duration > 0 in beats, pitch a whole number in 0..127; it is
    sorted by onset, then pitch. ``source`` is what an error names (the file); by default the id.
    Raises ``DataError`` when there are no notes or one of them is outside these ranges.
    """

    id: str
    notes: np.ndarray
    source: str = ""

    def __post_init__(self) -> None:
        notes, where = np.asarray(self.notes, dtype=np.float64), self.source or self.id
        if notes.size == 0:
            raise DataError(f"{where}: no notes; give a file that holds at least one")
        if notes.ndim != 2 or notes.shape[1] != 3:
            raise DataError(f"{where}: notes have shape {notes.shape}; give rows (onset, duration, pitch)")
        onset, duration, pitch = notes.T
        for bad, what in (
            (~np.isfinite(notes).all(axis=1), "has a value that is not finite"),
            (onset < 0, "starts before beat 0"),
            (duration <= 0, "has a duration that is not positive"),
            (
                (pitch < 0) | (pitch > 127) | (pitch != np.floor(pitch)),
                "has a pitch that is not a whole number in 0..127",
            ),
        ):
            if bad.any():
                row = int(bad.argmax())
                values = ", ".join(f"{value:g}" for value in notes[row])
                raise DataError(f"{where}: note {row} (onset, duration, pitch: {values}) {what}; mend or leave it out")
        object.__setattr__(self, "notes", notes[np.lexsort((pitch, onset))])

    def transposed(self, semitones: int) -> Piece:
        """The piece moved by ``semitones``; the id gets ``+3`` or ``-3``. ``DataError`` if a pitch leaves 0..127."""
        return Piece(f"{self.id}{semitones:+d}", self.notes + np.array([0.0, 0.0, semitones]), self.source)


def music_package(name: str) -> Any:
    """The module ``name`` of a package of the ``music`` extra, or ``MissingExtraError``."""
    try:
        return import_module(name)
    except ImportError:
        raise MissingExtraError(name.split(".")[0], "music") from None


def read_midi(path: str | Path) -> Piece:
    """Notes of a Standard MIDI File; ticks are divided by the file's ticks per quarter note.

    A note-on of velocity 0 is a note-off; a note-off ends the oldest sounding note of its channel and pitch; notes
    still sounding end with their track. ``DataError``: unreadable, SMPTE time code, a zero duration, no notes.
    """
    mido = music_package("mido")
    try:
        midi = mido.MidiFile(path)
    except (OSError, EOFError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"{path}: not a readable MIDI file ({str(error) or type(error).__name__})") from None
    if midi.ticks_per_beat <= 0:  # the sign bit of the header's division marks time code
        raise DataError(
            f"{path}: its time is SMPTE time code, not ticks per quarter note; export it with a musical time base"
        )
    notes = []
    for track in midi.tracks:
        tick, sounding = 0, defaultdict(list)
        for message in track:
            tick += message.time
            if message.type == "note_on" and message.velocity > 0:
                sounding[message.channel, message.note].append(tick)
            elif message.type in ("note_on", "note_off") and sounding[message.channel, message.note]:
                onset = sounding[message.channel, message.note].pop(0)
                notes.append((onset, tick - onset, message.note))
        notes += [(onset, tick - onset, pitch) for (_, pitch), onsets in sounding.items() for onset in onsets]
    ticks = np.array(notes, dtype=np.float64).reshape(-1, 3)
    return Piece(Path(path).stem, ticks / [midi.ticks_per_beat, midi.ticks_per_beat, 1], str(path))


def write_midi(
    notes: np.ndarray, path: str | Path, *, ticks_per_beat: int = 480, beats_per_minute: float = 120.0
) -> None:
    """Writes ``notes`` ``[note, 3]`` as one track of piano; times are rounded to ticks.

    Sounding notes of one pitch go to channels of their own (drums' channel left out), so that they can be told apart
    again; ``DataError`` where more than 15 overlap.
    """
    mido = music_package("mido")
    notes = Piece(str(path), notes).notes
    start = np.rint(notes[:, 0] * ticks_per_beat).astype(int)
    end = np.maximum(np.rint((notes[:, 0] + notes[:, 1]) * ticks_per_beat).astype(int), start + 1)
    busy: dict[tuple[int, int], int] = {}
    events = []
    for on, off, pitch in zip(start.tolist(), end.tolist(), notes[:, 2].astype(int).tolist(), strict=True):
        free = (channel for channel in range(16) if channel != 9 and busy.get((channel, pitch), 0) <= on)
        channel = next(free, None)
        if channel is None:
            raise DataError(f"{path}: more than 15 notes of pitch {pitch} sound at once; merge them")
        busy[channel, pitch] = off
        events += [(on, 1, channel, pitch), (off, 0, channel, pitch)]
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(beats_per_minute))])
    now = 0
    for tick, is_on, channel, pitch in sorted(events):  # offs come first at a tick
        kind, velocity = ("note_on", 80) if is_on else ("note_off", 0)
        track.append(mido.Message(kind, channel=channel, note=pitch, velocity=velocity, time=tick - now))
        now = tick
    mido.MidiFile(ticks_per_beat=ticks_per_beat, tracks=[track]).save(path)


def read_score(path: str | Path) -> list[Piece]:
    """Notes of a score that music21 reads (MusicXML, Humdrum kern, ABC, MEI, ...): one piece, or one per tune.

    Tied notes are joined. Grace notes, which have no duration, chord symbols and unpitched percussion are left out;
    repeats are not played. ``DataError``: unreadable, no notes.
    """
    music21 = music_package("music21")
    try:
        parsed = music21.converter.parse(path, forceSource=True)  # music21's own cache of parsed files is pickled
    except Exception as error:  # music21's readers raise whatever their parsers do
        raise DataError(
            f"{path}: music21 cannot read it ({type(error).__name__}: {error})".replace("\n", " ")
        ) from None
    scores = list(parsed.scores) if isinstance(parsed, music21.stream.Opus) else [parsed]
    name = Path(path).stem
    pieces = []
    for number, score in enumerate(scores):
        rows = [
            (float(note.offset), float(note.quarterLength), pitch.midi)
            for note in score.stripTies().flatten().notes
            if note.quarterLength > 0 and not isinstance(note, music21.harmony.Harmony)
            for pitch in note.pitches
        ]
        pieces.append(Piece(name if len(scores) == 1 else f"{name}#{number + 1}", np.array(rows), str(path)))
    return pieces


def read_corpus(name_pattern: str, *, cache: str | Path, count: int | None = None, workers: int = 1) -> list[Piece]:
    """Pieces inside the installed music21 package whose path matches, in the order of their paths.

    ``name_pattern`` is a shell pattern over the path in the corpus, as in ``bach/bwv*.mxl``; ``count`` takes the first
    ones. Parsed notes are kept in ``cache`` (NumPy archives, one per file and version of music21), and ``workers``
    processes parse what is not there yet. ``DataError``: nothing matches, a piece without notes.
    """
    music21 = music_package("music21")
    root = Path(music21.common.getCorpusFilePath())
    names = sorted({Path(path).relative_to(root).as_posix() for path in music21.corpus.getCorePaths()})
    names = [name for name in names if fnmatch(name, name_pattern)][:count]
    if not names:
        raise DataError(f"no piece of music21's corpus matches '{name_pattern}'; write a pattern like 'bach/bwv*.mxl'")
    folder = Path(cache) / f"music21-{version('music21')}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [root / name for name in names]
    kept = [folder / (name.replace("/", "__") + ".npz") for name in names]
    missing = [(source, target) for source, target in zip(files, kept, strict=True) if not target.exists()]
    if workers > 1 and len(missing) > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(_keep, *zip(*missing, strict=True), chunksize=4))
    else:
        for source, target in missing:
            _keep(source, target)
    pieces = []
    for source, name, target in zip(files, names, kept, strict=True):
        with np.load(target, allow_pickle=False) as arrays:
            tunes = [arrays[key] for key in arrays.files]
        for number, notes in enumerate(tunes):
            piece_id = name.rsplit(".", 1)[0] + (f"#{number + 1}" if len(tunes) > 1 else "")
            pieces.append(Piece(piece_id, notes, str(source)))
    return pieces


def read_table(path: str | Path) -> list[Piece]:
    """Note lists from a CSV with the columns onset, duration, pitch and, for several pieces, piece."""
    import pandas as pd

    table = pd.read_csv(path)
    for column in CSV_COLUMNS:
        if column not in table:
            raise DataError(
                f"{path}: no column '{column}'; a note table has {', '.join(CSV_COLUMNS)} and perhaps piece"
            )
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise DataError(f"{path}: column '{column}' is not numeric; give beats and MIDI pitches")
    if "piece" not in table:
        return [Piece(Path(path).stem, table[list(CSV_COLUMNS)].to_numpy(), str(path))]
    groups = table.groupby("piece", sort=False)
    return [Piece(str(name), rows[list(CSV_COLUMNS)].to_numpy(), f"{path}, piece {name}") for name, rows in groups]


def read_notes(path: str | Path) -> list[Piece]:
    """Pieces of a MIDI file, a score, a CSV note table, or of every MIDI file and score under a folder.

    In a folder the ids are paths without suffix. ``DataError``: missing, a suffix that is not known, nothing to read.
    """
    path = Path(path)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in MIDI_SUFFIXES + SCORE_SUFFIXES]
        if not files:
            raise DataError(
                f"{path}: holds no MIDI file or score; looked for {', '.join(MIDI_SUFFIXES + SCORE_SUFFIXES)}"
            )
        return [
            Piece((file.relative_to(path).parent / piece.id).as_posix(), piece.notes, piece.source)
            for file in files
            for piece in read_notes(file)
        ]
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if suffix in MIDI_SUFFIXES:
        return [read_midi(path)]
    if suffix in SCORE_SUFFIXES:
        return read_score(path)
    if suffix == ".csv":
        return read_table(path)
    raise DataError(
        f"{path}: suffix '{suffix}' is not known; give one of {', '.join(MIDI_SUFFIXES + SCORE_SUFFIXES)}, .csv"
    )


def _keep(source: Path, target: Path) -> None:
    scratch = target.with_name(f".{os.getpid()}-{target.name}")  # ends in .npz, or numpy would append it
    np.savez_compressed(scratch, *(piece.notes for piece in read_score(source)))
    scratch.replace(target)
