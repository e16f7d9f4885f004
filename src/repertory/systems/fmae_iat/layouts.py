"""The layouts of the paper's data sets: BP4D, BP4D+ and DISFA in lists or as delivered, Face9M; folds of subjects."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from repertory.data import Reader
from repertory.data.images import SUFFIXES, Images
from repertory.data.splits import NAMES
from repertory.errors import DataError, MissingExtraError, first_line, nearest

BP4D = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
"""Action units of BP4D and BP4D+."""
DISFA = (1, 2, 4, 6, 9, 12, 25, 26)
ABSENT = 999
"""What JSON files hold in the place of a unit that is not shown."""
NOT_CODED = 9
"""What BP4D's tables hold where a unit could not be seen."""
DISFA_FOLDS = tuple(
    tuple(f"SN{number:03d}" for number in fold)
    for fold in (
        (1, 2, 9, 10, 16, 26, 27, 30, 32), (6, 11, 12, 13, 18, 21, 24, 28, 31), (3, 4, 5, 7, 8, 17, 23, 25, 29),
    )
)  # fmt: skip


# -- folds -------------------------------------------------------------------------------------------------------------


def read_folds(path: Path) -> list[list[str]]:
    """Lists of subjects: a line per fold (names apart by commas or spaces), or JSON (a list of lists).

    Raises:
        DataError: neither, or a subject in two folds.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file of folds")
    text = path.read_text(encoding="utf-8")
    try:
        read = json.loads(text) if text.lstrip().startswith(("[", "{")) else None
        lists = list(read.values()) if isinstance(read, dict) else read
        folds = [[str(s) for s in fold] for fold in lists] if lists is not None else None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a list of lists of subjects: {first_line(error)}") from None
    if folds is None:
        folds = [re.split(r"[,\s]+", line.strip().strip(",")) for line in text.splitlines() if line.strip()]
    named = [subject for fold in folds for subject in fold]
    twice = sorted({subject for subject in named if named.count(subject) > 1})
    if twice or len(folds) < 2:
        what = (
            f"subjects in two folds: {', '.join(twice[:5])}" if twice else f"{len(folds)} fold; at least 2 are needed"
        )
        raise DataError(f"{path}: {what}")
    return folds


def parts_of(
    subjects: Sequence[str], paths: Sequence[Any], source: Path, folds: str, fold: int, known: Any = ()
) -> list[str] | None:
    """Which part each item is in when fold number ``fold`` (from 1) is tested; None without folds.

    Raises:
        DataError: no such fold, no list of folds, or a subject that is in none, with its path.
    """
    if not folds and not fold:
        return None
    listed = [list(f) for f in known]
    if folds:
        beside = source if source.is_dir() else source.parent
        listed = read_folds(beside / folds)
    if not listed:
        raise DataError(f"{source}: fold={fold} needs folds=FILE, a line of subjects per fold")
    if not 1 <= fold <= len(listed):
        raise DataError(f"{source}: fold={fold}: there are folds 1 to {len(listed)}; say which one is tested")
    everyone = {subject for subjects in listed for subject in subjects}
    for subject, path in zip(subjects, paths, strict=True):
        if subject not in everyone:
            raise DataError(f"{path}: subject '{subject}' is in none of the {len(listed)} folds")
    tested = set(listed[fold - 1])
    return ["test" if subject in tested else "train" for subject in subjects]


# -- JSON lines --------------------------------------------------------------------------------------------------------

SUBJECTS = (
    ("DISFA", re.compile(r"(SN\d{3})(?:_[A-Za-z]\w*)?$"), DISFA),
    ("BP4D", re.compile(r"^\d?([FM]\d{2,3})(?:_\w+)?$"), BP4D),
)
"""Where in a folder's name the subject is, and the units that are coded."""
EXPECTED = "expected a folder such as 2F01_11 or F001 (BP4D) or LeftVideoSN001 (DISFA)"


def subject_of(path: str) -> tuple[str, tuple[int, ...]]:
    """The subject in an image's path and the action units of its data set.

    ``2F01_11/0012.jpg`` is F01 of BP4D, ``LeftVideoSN001/12.jpg`` SN001 of DISFA.

    Raises:
        DataError: no folder of the path is of such a form.
    """
    for folder in path.replace("\\", "/").split("/")[:-1]:
        for _, pattern, units in SUBJECTS:
            match = pattern.search(folder)
            if match:
                return match[1], units
    raise DataError(f"{path}: no subject in this path; {EXPECTED}")


def _units(aus: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", aus):
        raise DataError(f"aus={aus}: expected numbers of action units, such as 1,2,4")
    return tuple(int(number) for number in aus.split(","))


def _json_files(path: Path) -> list[Path]:
    files = sorted(f for pattern in ("*.json", "*.jsonl") for f in path.glob(pattern)) if path.is_dir() else [path]
    return [f for f in files if f.suffix in (".json", ".jsonl") and f.is_file() and _names_images(f)]


def _names_images(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as lines:
        return '"img_path"' in next((line for line in lines if line.strip()), "")


def _part(file: Path) -> str:
    named = {NAMES[word] for word in re.split(r"[^a-z]+", file.stem.lower()) if word in NAMES}
    return named.pop() if len(named) == 1 else ""


def _lines(file: Path) -> Iterator[tuple[int, str, list[int]]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield number, str(row["img_path"]), [int(unit) for unit in row["AUs"]]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f'{file}, line {number}: expected {{"img_path": "...", "AUs": [4, 10]}} ({first_line(error)})'
            ) from None


def read_json_lines(path: Path, aus: str = "", root: str = "", folds: str = "", fold: int = 0) -> Images:
    """BP4D, BP4D+ and DISFA as the authors list them: lines ``{"img_path": "2F01_11/0012.jpg", "AUs": [4, 10]}``.

    A file, or a folder of files whose names say train and test. 999 stands for no unit; a unit that is not named is
    not shown. The subject is read from the path.

    Args:
        aus: the coded units, such as ``1,2,4``; else those of BP4D or DISFA, as the paths say.
        root: the folder that the paths start from, else that of the file.
        folds: a file with a line of subjects per fold, beside the data; ``fold`` is tested, the others are trained on.
        fold: number of the tested fold, from 1; without ``folds`` those of DISFA are known.
    """
    files = _json_files(path)
    if not files:
        raise DataError(f'{path}: no lines with "img_path" in it')
    base = (path if path.is_dir() else path.parent) / root
    parts = [_part(file) for file in files]
    given = _units(aus) if aus else ()
    ids, subjects, shown, split, data_sets = [], [], [], [], set()
    for file, part in zip(files, parts, strict=True):
        for number, image, units in _lines(file):
            try:
                subject, coded = subject_of(image)
            except DataError as error:
                raise DataError(f"{file}, line {number}: {error}") from None
            coded = given or coded
            data_sets.add(coded)
            for unit in units:
                if unit != ABSENT and unit not in coded:
                    numbers = ", ".join(map(str, coded))
                    raise DataError(f"{file}, line {number}: action unit {unit} is none of {numbers} (set aus=...)")
            if not (base / image).exists():
                raise DataError(f"{base / image}: no such image, but {file}, line {number} names it (set root=...)")
            ids.append(image)
            subjects.append(subject)
            shown.append([unit in units for unit in coded])
            split.append(part)
    if len(data_sets) > 1:
        raise DataError(f"{path}: paths of both BP4D and DISFA, whose units differ: say which are coded with aus=1,2,4")
    coded = data_sets.pop()
    assigned: list[str] | None = split if len(files) > 1 and all(parts) else None
    known = DISFA_FOLDS if coded == DISFA else ()
    by_fold = parts_of(subjects, ids, path, folds, fold, known)
    return _faces(ids, [base / image for image in ids], np.array(shown, np.int64), coded, subjects, by_fold or assigned)


def _faces(
    ids: Sequence[str], sources: Sequence[Any], shown: np.ndarray, units: Sequence[int], subjects: Sequence[str],
    split: Sequence[str] | None,
) -> Images:  # fmt: skip
    names = tuple(f"AU{unit}" for unit in units)
    columns: dict[str, Any] = {name: shown[:, j] for j, name in enumerate(names)}
    columns |= {"subject": list(subjects)} | ({"split": list(split)} if split is not None else {})
    return Images(ids, sources, columns, {"label": names, "group": ("subject",)})


# -- BP4D and DISFA as they are delivered ------------------------------------------------------------------------------


def _frames(path: Path, pattern: re.Pattern[str]) -> dict[tuple[str, ...], Path]:
    """Frames by what ``pattern`` finds in their relative path and their number."""
    found = {}
    for file in sorted(path.rglob("*")):
        match = pattern.search(file.relative_to(path).as_posix()) if file.suffix.lower() in SUFFIXES else None
        if match:
            *place, number = match.groups()
            found[(*place, str(int(number)))] = file
    return found


def _frame(frames: dict[tuple[str, ...], Path], key: tuple[str, ...], table: Path, line: int) -> Path:
    if key not in frames:
        raise DataError(f"{table}, line {line}: no image of frame {key[-1]} of {' '.join(key[:-1])} under the folder")
    return frames[key]


def _bp4d_tables(path: Path) -> list[Path]:
    return sorted(f for place in ("AU_OCC", "AUCoding/AU_OCC", "AUCoding") for f in (path / place).glob("[FM]*_T*.csv"))


def read_bp4d(path: Path, aus: str = ",".join(map(str, BP4D)), folds: str = "", fold: int = 0) -> Images:
    """BP4D and BP4D+: ``AU_OCC/F001_T1.csv`` (a row a frame, a column a unit, 9: not coded), ``F001/T1/0012.jpg``.

    Frames in which a unit of ``aus`` is not coded keep it empty. ``folds`` and ``fold`` as for the JSON lines.
    """
    units = _units(aus)
    frames = _frames(path, re.compile(r"([FM]\d{3})/(T\d+)/\D*(\d+)\.\w+$"))
    ids, sources, subjects, shown = [], [], [], []
    for table in _bp4d_tables(path):
        match = re.fullmatch(r"([FM]\d{3})_(T\d+)", table.stem)
        if match is None:
            raise DataError(f"{table}: expected the name SUBJECT_TASK.csv, such as F001_T1.csv")
        subject, task = match.groups()
        lines = [line.split(",") for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
        place = {int(number): column for column, number in enumerate(lines[0]) if number.strip().isdigit() and column}
        for unit in units:
            if unit not in place:
                raise DataError(
                    f"{table}, line 1: no column of action unit {unit}{nearest(str(unit), map(str, place))}"
                )
        for number, line in enumerate(lines[1:], start=2):
            frame, row = line[0].strip(), [line[place[unit]].strip() for unit in units]
            for unit, value in zip(units, row, strict=True):
                if value not in ("0", "1", str(NOT_CODED)):
                    raise DataError(f"{table}, line {number}: AU{unit} is '{value}'; expected 0, 1 or 9 (not coded)")
            sources.append(_frame(frames, (subject, task, str(int(frame))), table, number))
            ids.append(f"{subject}/{task}/{int(frame)}")
            subjects.append(subject)
            shown.append([np.nan if value == str(NOT_CODED) else float(value) for value in row])
    return _faces(ids, sources, np.array(shown), units, subjects, parts_of(subjects, ids, path, folds, fold))


def _disfa_labels(path: Path) -> Path | None:
    folders = [path / name for name in ("ActionUnit_Labels", "ActionUnit_Labels/ActionUnit_Labels")]
    return next((f for f in reversed(folders) if any(f.glob("SN*/SN*_au*.txt"))), None)


def read_disfa(
    path: Path, aus: str = ",".join(map(str, DISFA)), least: int = 2, folds: str = "", fold: int = 0
) -> Images:
    """DISFA: ``ActionUnit_Labels/SN001/SN001_au1.txt`` of lines ``frame,intensity``, ``.../LeftVideoSN001/1.jpg``.

    A unit is shown from the intensity ``least`` on (2 of 0..5 in the paper). The paper's three folds are known:
    ``fold=1``. Frames of several cameras are all taken.
    """
    labels = _disfa_labels(path)
    assert labels is not None
    units = _units(aus)
    frames: dict[tuple[str, ...], list[tuple[str, Path]]] = {}
    for (video, subject, number), file in _frames(path, re.compile(r"([^/]*(SN\d{3})[^/]*)/\D*(\d+)\.\w+$")).items():
        frames.setdefault((subject, number), []).append((video, file))
    ids, sources, subjects, shown = [], [], [], []
    for folder in sorted(labels.glob("SN*")):
        if not re.fullmatch(r"SN\d{3}", folder.name):
            raise DataError(f"{folder}: expected a folder of a subject, SN and three figures")
        coded: dict[int, dict[int, int]] = {}
        for unit in units:
            table = folder / f"{folder.name}_au{unit}.txt"
            if not table.exists():
                raise DataError(f"{table}: no such file; action units are read from aus={aus}")
            coded[unit] = _intensities(table)
        for frame in sorted(coded[units[0]]):
            if any(frame not in coded[unit] for unit in units):
                unit = next(unit for unit in units if frame not in coded[unit])
                raise DataError(f"{folder}: frame {frame} has an intensity of AU{units[0]}, but none of AU{unit}")
            found = frames.get((folder.name, str(frame)))
            if found is None:
                raise DataError(f"{folder}: no image of frame {frame} under {path}")
            for video, file in found:
                ids.append(f"{video}/{frame}")
                sources.append(file)
                subjects.append(folder.name)
                shown.append([coded[unit][frame] >= least for unit in units])
    split = parts_of(subjects, ids, path, folds, fold, DISFA_FOLDS)
    return _faces(ids, sources, np.array(shown, np.int64), units, subjects, split)


def _intensities(table: Path) -> dict[int, int]:
    found = {}
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        match = re.fullmatch(r"\s*(\d+)\s*,\s*([0-5])\s*", line)
        if match:
            found[int(match[1])] = int(match[2])
        elif line.strip():
            raise DataError(f"{table}, line {number}: '{line[:30]}': expected frame,intensity (0..5)")
    return found


# -- Face9M ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """A picture in an LMDB, decoded when NumPy asks for its pixels."""

    folder: Path
    key: bytes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with _environment(self.folder, os.getpid()).begin() as transaction:
            encoded = transaction.get(self.key)
        if encoded is None:
            raise DataError(f"{self.folder}: no record '{self.key.decode(errors='replace')}'")
        try:
            with Image.open(io.BytesIO(bytes(encoded))) as opened:
                return np.asarray(opened if opened.mode == "L" else opened.convert("RGB"))
        except Exception as error:  # Pillow's readers raise whatever their parsers do
            name = self.key.decode(errors="replace")
            raise DataError(f"{self.folder}: record '{name}' is no image: {first_line(error)}") from None


@lru_cache(maxsize=64)
def _environment(folder: Path, process: int) -> Any:
    """An open LMDB; each process needs its own."""
    try:
        import lmdb
    except ImportError:
        raise MissingExtraError("lmdb", "scale") from None
    return lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)


def _databases(path: Path) -> list[Path]:
    return sorted(file.parent for pattern in ("data.mdb", "*/data.mdb") for file in path.glob(pattern))


def read_lmdb(path: Path) -> Images:
    """Face9M as the authors keep it: an LMDB (or a folder of several, one a source) with an encoded picture per key.

    Pictures are decoded when they are asked for; keys that begin with two underscores are not pictures.
    """
    ids, records, sources = [], [], []
    for folder in _databases(path):
        with _environment(folder, os.getpid()).begin() as transaction:
            keys = [bytes(key) for key in transaction.cursor().iternext(values=False)]
        kept = [key for key in keys if not key.startswith(b"__")]
        before = "" if folder == path else f"{folder.name}/"
        ids += [before + key.decode(errors="replace") for key in kept]
        records += [Record(folder, key) for key in kept]
        sources += [folder.name] * len(kept)
    if not ids:
        raise DataError(f"{path}: empty: there is no picture in it")
    return Images(ids, records, {"source": sources})


def read_faces(path: Path, least: int = 224, aspect: float = 1.5) -> Images:
    """A folder of unlabelled faces, filtered as Face9M was; chosen with ``layout=faces``.

    Args:
        least: pixels of the shorter side; smaller pictures are left out.
        aspect: the longer side in shorter sides; longer pictures are left out.
    """
    kept = []
    for file in sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES):
        try:
            with Image.open(file) as opened:
                low, high = sorted(opened.size)
        except Exception as error:  # Pillow's readers raise whatever their parsers do
            raise DataError(f"{file}: cannot be decoded: {first_line(error)}") from None
        if low >= least and high <= aspect * low:
            kept.append(file)
    if not kept:
        raise DataError(f"{path}: no picture of at least {least} pixels and an aspect of at most {aspect:g} in it")
    return Images([file.relative_to(path).as_posix() for file in kept], kept)


READERS = (
    Reader("au-json", "lines {img_path, AUs}: BP4D, BP4D+, DISFA in lists", lambda p: bool(_json_files(p)),
           read_json_lines),
    Reader("bp4d", "AU_OCC/F001_T1.csv and frames F001/T1/*.jpg", lambda p: bool(_bp4d_tables(p)), read_bp4d),
    Reader("disfa", "ActionUnit_Labels/SN001/SN001_au1.txt and frames in folders named by subject",
           lambda p: p.is_dir() and _disfa_labels(p) is not None, read_disfa),
    Reader("lmdb", "an LMDB of encoded pictures, or a folder of them", lambda p: bool(_databases(p)), read_lmdb),
    Reader("faces", "a folder of faces, small and long ones left out", lambda p: False, read_faces),
)  # fmt: skip
