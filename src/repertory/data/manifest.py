"""A manifest: a table whose columns hold items of other kinds, one modality a column; gaps are allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from repertory.data.images import SUFFIXES as IMAGE_SUFFIXES
from repertory.data.images import decode as decode_image
from repertory.data.items import Items, Preview, Reader, digest, finite
from repertory.data.tables import ids_of, read_table, to_arrow
from repertory.errors import DataError, first_line, nearest

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au")
TEXT_COLUMNS = ("text", "caption", "report", "sentence", "transcript", "description", "title", "abstract")
ITEM_KINDS = ("image", "text", "audio", "vector", "array")


@dataclass(frozen=True)
class Modality:
    """One column of a manifest: distinct values, and for each row which of them it holds (-1: none).

    Attributes:
        kind: image, text, audio, vector ([d] float) or array (float, two axes or more).
        values: what ``item`` decodes: paths, texts, arrays, (waveform, rate) pairs.
        index: [rows] position in ``values``, -1 where the row has none.
    """

    kind: str
    values: Any
    index: np.ndarray

    def item(self, position: int) -> Any:
        """Value ``position`` decoded: a PIL image, a text, (float32 waveform [n], rate in Hz), or a float32 array.

        Raises:
            DataError: it cannot be read; the message says why.
        """
        value = self.values[position]
        if self.kind == "image":
            return decode_image(value)
        if self.kind == "text":
            if not str(value).strip():
                raise DataError("empty text")
            return str(value)
        if self.kind == "audio":
            return decode_audio(value)
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise DataError(f"dtype {array.dtype}: numbers are needed")
        return finite(array.astype(np.float32), f"the {self.kind}")

    def content(self, position: int) -> str:
        """A digest of value ``position``, read whole."""
        item = self.item(position)
        if self.kind == "image":
            return digest(f"{item.mode}{item.size}", item.tobytes())
        if self.kind == "text":
            return digest(item)
        if self.kind == "audio":
            return digest(str(item[1]), item[0].tobytes())
        return digest(str(item.shape), item.tobytes())


class Manifest(Items):
    """Rows of several modalities, any of which may be missing in a row (never all).

    Args:
        ids: one unique name per row.
        modalities: the columns that hold items, by name, in the order that systems see.
        columns: labels and whatever else is known.
        roles: which columns play which role.
    """

    kind = "manifest"
    readers: ClassVar[tuple[Reader, ...]]

    def __init__(
        self, ids: Sequence[str], modalities: Mapping[str, Modality], columns: Any = None, roles: Any = None
    ) -> None:
        super().__init__(ids, columns, roles)
        for name, modality in modalities.items():
            if len(modality.index) != len(self.ids):
                raise DataError(f"modality '{name}' has {len(modality.index)} rows, the manifest {len(self.ids)}")
        self.modalities = dict(modalities)
        self._contents: dict[tuple[str, int], str] = {}

    def check(self, index: int) -> str:
        parts = []
        for name, modality in self.modalities.items():
            position = int(modality.index[index])
            if position < 0:
                parts.append("")
                continue
            if (name, position) not in self._contents:
                try:
                    self._contents[name, position] = modality.content(position)
                except DataError as error:
                    raise DataError(f"{name}: {error}") from None
            parts.append(self._contents[name, position])
        if not any(parts):
            raise DataError(f"every modality is missing ({', '.join(self.modalities)})")
        return digest(*parts)

    @property
    def present(self) -> np.ndarray:
        """[rows, modalities] bool: which row holds which modality."""
        return np.stack([modality.index >= 0 for modality in self.modalities.values()], axis=1)

    def _select(self, indices: np.ndarray) -> None:
        self.modalities = {name: replace(m, index=m.index[indices]) for name, m in self.modalities.items()}

    def _extend(self, parts: Sequence[Manifest]) -> None:
        joined = {}
        for name, first in self.modalities.items():
            values: list[Any] = []
            index = []
            for part in parts:
                if name not in part.modalities:
                    raise DataError(f"no modality '{name}' in every part{nearest(name, part.modalities)}")
                modality = part.modalities[name]
                index.append(np.where(modality.index >= 0, modality.index + len(values), -1))
                values.extend(modality.values)
            joined[name] = Modality(first.kind, values, np.concatenate(index))
        self.modalities = joined
        self._contents = {}

    @classmethod
    def wrap(cls, source: Any) -> Manifest:
        if isinstance(source, pd.DataFrame):
            return manifest_from_table(source, Path())
        if isinstance(source, Mapping):
            return manifest_from_arrays({str(k): _as_array(v) for k, v in source.items()})
        raise DataError(
            f"{type(source).__name__} is not a manifest: give a pandas DataFrame, or a mapping of modality names to "
            "arrays [rows, d] with the same number of rows"
        )

    def preview(self, index: int) -> Preview:
        shown: dict[str, Any] = {}
        for modality in self.modalities.values():
            if modality.index[index] >= 0 and modality.kind in ("image", "text", "audio"):
                shown.setdefault(modality.kind, modality.item(int(modality.index[index])))
        return Preview(**shown)


def _as_array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def decode_audio(value: Any) -> tuple[np.ndarray, int]:
    """A path, or a pair (waveform, rate): mono float32 in -1..1 and its rate in Hz.

    Raises:
        DataError: it cannot be read, is empty, silent throughout, or not finite.
    """
    if isinstance(value, (str, Path)):
        import soundfile

        if not Path(value).exists():
            raise DataError(f"no such file: {value}")
        try:
            waveform, rate = soundfile.read(value, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise DataError(f"cannot be decoded: {error.error_string}") from None
        waveform = waveform.mean(axis=1)
    else:
        waveform, rate = value
        waveform = np.asarray(waveform)
        if waveform.dtype == np.int16:
            waveform = waveform.astype(np.float32) / 32768
    if not len(waveform):
        raise DataError("no sample in it")
    finite(waveform, "the waveform")
    if not np.any(waveform):
        raise DataError("silent throughout: every sample is 0")
    return waveform.astype(np.float32, copy=False), int(rate)


def _distinct(values: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    """Distinct values in order of appearance, and each row's position among them (-1 for None)."""
    positions: dict[Any, int] = {}
    index = np.array([-1 if v is None else positions.setdefault(v, len(positions)) for v in values], dtype=np.int64)
    return list(positions), index


def _kind_of_column(name: str, values: pd.Series) -> str | None:
    """Which kind of item a column of a table holds, or None for an ordinary column."""
    known = values.dropna()
    if known.empty or known.dtype.kind in "ifubM":
        return None
    first = known.iloc[0]
    if isinstance(first, (np.ndarray, list, tuple)):
        return "vector" if np.asarray(first).ndim == 1 else "array"
    if not isinstance(first, str):
        return None
    suffixes = {Path(value).suffix.lower() for value in known.astype(str).head(100)}
    if suffixes <= set(IMAGE_SUFFIXES):
        return "image"
    if suffixes <= set(AUDIO_SUFFIXES):
        return "audio"
    if name.lower() in TEXT_COLUMNS or known.astype(str).head(100).map(lambda text: len(text.split())).mean() > 3:
        return "text"
    return None


def manifest_from_table(
    frame: pd.DataFrame,
    folder: Path,
    kinds: Mapping[str, str] | None = None,
    id: str = "",
) -> Manifest:
    """A manifest from a table; columns whose kind is not given are recognised by what they hold."""
    if frame.empty:
        raise DataError("empty: there is no row in the table")
    kinds = dict(kinds or {})
    if not kinds:
        found = {c: _kind_of_column(str(c), frame[c]) for c in frame.columns if c != id}
        kinds = {c: k for c, k in found.items() if k is not None}
    if len(kinds) < 2:
        raise DataError(
            f"{len(kinds)} column(s) of items recognised in {', '.join(map(str, frame.columns))}; "
            "at least two are needed: name them with image=COLUMN, text=COLUMN, audio=COLUMN"
        )
    modalities = {}
    for name, kind in kinds.items():
        if name not in frame.columns:
            raise DataError(f"no column '{name}'{nearest(name, map(str, frame.columns))}")
        raw = frame[name].astype(object)
        missing = raw.isna() | (raw.map(lambda v: isinstance(v, str) and not v.strip()))
        rows = [None if gone else value for value, gone in zip(raw, missing, strict=True)]
        if kind in ("image", "audio"):
            rows = [None if row is None else str(folder / str(row)) for row in rows]
        if kind in ("vector", "array"):
            try:
                values = [np.asarray(row, dtype=np.float32) for row in rows if row is not None]
            except (ValueError, TypeError):
                raise DataError(f"column '{name}' holds something else than arrays of numbers") from None
            if len({value.shape for value in values}) > 1:
                raise DataError(f"column '{name}' holds arrays of different shapes")
            if values and (values[0].ndim == 1) != (kind == "vector"):
                raise DataError(f"column '{name}' holds {values[0].ndim} axes a row: not a {kind}")
            index = np.where(missing, -1, np.cumsum(~missing) - 1).astype(np.int64)
        else:
            values, index = _distinct([None if row is None else str(row) for row in rows])
        modalities[str(name)] = Modality(kind, values, index)
    width = len(str(len(frame) - 1))
    if id and id not in frame.columns:
        raise DataError(f"no column '{id}'{nearest(id, map(str, frame.columns))}")
    id = id or ("id" if "id" in frame.columns else "")
    ids = ids_of(frame, id) if id else [f"{i:0{width}d}" for i in range(len(frame))]
    rest = frame.drop(columns=[*kinds, *([id] if id else [])])
    roles = {"label": ("label",)} if "label" in rest.columns else {}
    return Manifest(ids, modalities, to_arrow(rest), roles)


def manifest_from_arrays(arrays: Mapping[str, np.ndarray]) -> Manifest:
    """A manifest from aligned arrays: floats of two axes or more are modalities (a row of NaN is missing),
    one-dimensional arrays are columns."""
    if not arrays:
        raise DataError("empty: no array is given")
    sizes = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise DataError("arrays of different lengths: " + ", ".join(f"{n} {s}" for n, s in sizes.items()))
    rows = next(iter(sizes.values()))
    if not rows:
        raise DataError("empty: the arrays have no row")
    modalities, columns = {}, {}
    for name, array in arrays.items():
        if array.ndim == 1:
            columns[name] = array
        elif array.dtype.kind != "f":
            raise DataError(f"'{name}' has dtype {array.dtype}: a modality is a float array")
        else:
            missing = np.isnan(array.reshape(rows, -1)).all(axis=1)
            modalities[name] = Modality(
                "vector" if array.ndim == 2 else "array", array, np.where(missing, -1, np.arange(rows))
            )
    if len(modalities) < 2:
        raise DataError(
            f"{len(modalities)} modality in {', '.join(arrays)}: at least two float arrays [rows, d] are needed"
        )
    width = len(str(rows - 1))
    ids = columns.pop("id").astype(str).tolist() if "id" in columns else [f"{i:0{width}d}" for i in range(rows)]
    return Manifest(ids, modalities, columns, {"label": ("label",)} if "label" in columns else {})


def read_manifest(
    path: Path,
    image: str = "",
    text: str = "",
    audio: str = "",
    vector: str = "",
    array: str = "",
    id: str = "",
) -> Manifest:
    """A CSV or Parquet table with a path, a text or numbers per modality; several columns are joined by commas."""
    given = {"image": image, "text": text, "audio": audio, "vector": vector, "array": array}
    kinds = {column: kind for kind, columns in given.items() for column in columns.split(",") if column}
    try:
        return manifest_from_table(read_table(path, id), path.parent, kinds, id)
    except DataError as error:
        raise error if str(error).startswith(str(path)) else DataError(f"{path}: {error}") from None


def read_feature_arrays(path: Path) -> Manifest:
    """A ``.npz`` or ``.pt`` file: a dict of aligned arrays. Nothing in it is unpickled."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        else:
            import torch

            loaded = torch.load(path, weights_only=True, map_location="cpu")
            if not isinstance(loaded, Mapping):
                raise DataError(f"{path}: holds {type(loaded).__name__}, expected a dict of tensors")
            arrays = {str(name): _as_array(value) for name, value in loaded.items()}
    except DataError:
        raise
    except Exception as error:  # zip, pickle and header errors of many types
        raise DataError(f"{path}: cannot be read as a table of arrays: {first_line(error)}") from None
    try:
        return manifest_from_arrays(arrays)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


Manifest.readers = (
    Reader("table", "CSV or Parquet, a path, a text or numbers per modality",
           lambda p: p.suffix in (".csv", ".tsv", ".parquet") or p.name.endswith(".csv.gz"), read_manifest),
    Reader("arrays", ".npz or .pt with a dict of aligned arrays",
           lambda p: p.suffix in (".npz", ".pt", ".pth"), read_feature_arrays),
)  # fmt: skip
