"""Faces as batches, their parsing maps and videos, and the layouts of the paper's data sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.data import Reader
from repertory.data.images import SUFFIXES, Images, read_folder
from repertory.data.samples.synthetic_faces import CACHED, parsing_map
from repertory.data.splits import NAMES
from repertory.data.transforms.images import Transform
from repertory.errors import DataError, first_line
from repertory.systems.fsfm.masking import CLASSES, Strategy, sample
from repertory.training import Batches

PARSING = "parsing"
"""The column of parsing maps: paths of ``.npy`` files ``[1, H, W]`` or ``[H, W]``, int8, classes 0..10."""
FRAME = re.compile(r"^(?P<video>.+)_frame_(?P<frame>\d+)$")


# -- parsing maps ------------------------------------------------------------------------------------------------------


def read_map(reference: Any, image: str) -> np.ndarray:
    """The parsing map of the image named ``image``, ``[H, W]`` uint8.

    Raises:
        DataError: there is none, or it is not a map: shape, dtype and values are shown.
    """
    if not isinstance(reference, str) or not reference:
        raise DataError(f"image {image}: no parsing map")
    if reference.startswith(CACHED):
        return parsing_map(reference)[0].astype(np.uint8)
    path = Path(reference)
    if not path.exists():
        raise DataError(f"image {image}: no parsing map at {path}")
    try:
        found = np.load(path, allow_pickle=False)
    except Exception as error:  # damaged headers raise many types
        raise DataError(f"{path}: not an .npy file: {first_line(error)}") from None
    flat = found[0] if found.ndim == 3 and len(found) == 1 else found
    if flat.ndim != 2 or flat.dtype.kind not in "iu" or flat.size == 0 or flat.min() < 0 or flat.max() >= CLASSES:
        values = np.unique(found)
        shown = ", ".join(f"{v:g}" for v in values[:12]) + (", ..." if len(values) > 12 else "")
        raise DataError(
            f"{path}: shape {list(found.shape)}, dtype {found.dtype}, values {shown}: a parsing map is [1, H, W] of "
            f"integers 0..{CLASSES - 1}"
        )
    return flat.astype(np.uint8)


def map_of(items: Images, index: int) -> np.ndarray:
    """The parsing map of item ``index``, as large as its image.

    Raises:
        DataError: no column, no map, or another size.
    """
    if PARSING not in items.columns.column_names:
        raise DataError(f"no column '{PARSING}': parsing maps are .npy files named in it")
    reference, name = items.columns[PARSING][index].as_py(), str(items.ids[index])
    found, (width, height) = read_map(reference, name), items.image(index).size
    if found.shape != (height, width):
        raise DataError(f"{reference}: shape {list(found.shape)}, but image {name} has {height} x {width} pixels")
    return found


def resized(parsing: np.ndarray, size: int) -> np.ndarray:
    """``[H, W]`` to ``[size, size]``: the class at the middle of each new pixel."""
    if parsing.shape == (size, size):
        return parsing
    rows, columns = (((np.arange(size) + 0.5) * side / size).astype(int) for side in parsing.shape)
    return parsing[rows][:, columns]


def channel_statistics(items: Images) -> tuple[list[float], list[float]]:
    """Mean and deviation of red, green and blue in 0..1, over all pixels; every image counts the same."""
    sums = np.zeros((2, 3))
    for i in range(len(items)):
        pixels = np.asarray(items.image(i).convert("RGB"), np.float32).reshape(-1, 3) / 255
        sums += pixels.mean(0), np.square(pixels).mean(0)
    mean, square = sums / len(items)
    return mean.tolist(), np.sqrt((square - mean**2).clip(1e-12)).tolist()


# -- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskedFaces:
    """From item numbers to a batch of pre-training: ``images`` ``[B, 3, S, S]``, ``mask`` and ``region`` ``[B, N]``.

    Attributes:
        transform: makes the picture a tensor.
        size: side S.
        patch: side of a patch.
        covered: always this region; None: one for each batch.
    """

    items: Images
    transform: Transform
    size: int
    patch: int
    ratio: float
    strategy: Strategy
    covered: str | None = None

    def __call__(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        rows = [int(i) for i in indices]
        images = torch.stack([self.transform(self.items.image(i)) for i in rows])
        if self.strategy == "random":
            parsing = torch.zeros(len(rows), self.size, self.size, dtype=torch.uint8)
        else:
            parsing = torch.from_numpy(np.stack([resized(map_of(self.items, i), self.size) for i in rows]))
        masks = sample(parsing, self.patch, self.ratio, self.strategy, self.covered)
        return {"images": images, "mask": masks.mask, "region": masks.region}


def videos_of(items: Images) -> np.ndarray:
    """``[N]`` names: the column ``video``, or an id without ``_frame_<n>`` at its end, or the id."""
    if "video" in items.columns.column_names:
        return items.column("video").astype(str)
    return np.array([_video(str(name)) for name in items.ids])


def _video(name: str) -> str:
    found = FRAME.match(name)
    return found["video"] if found else name


def spread_frames(videos: np.ndarray, count: int) -> np.ndarray:
    """Indices of up to ``count`` evenly spaced frames of each video, in order."""
    order = np.argsort(videos, kind="stable")
    starts = np.flatnonzero(np.r_[True, videos[order][1:] != videos[order][:-1]])
    chosen = [part[_spaced(len(part), count)] for part in np.split(order, starts[1:])]
    return np.sort(np.concatenate(chosen))


def _spaced(length: int, count: int) -> np.ndarray:
    return np.unique(((np.arange(count) + 0.5) * length / count).astype(int))


class Balanced(Batches):
    """Batches with the same number of images from every cell (class and domain), drawn with replacement across batches.

    Args:
        cells: ``[N]`` cell of each item.
        each: images of a cell in a batch; fewer where it has fewer.
        collate: from item numbers to a batch.
    """

    def __init__(self, cells: np.ndarray, each: int, collate: Any) -> None:
        names, inverse = np.unique(cells, return_inverse=True)
        self.members = [np.flatnonzero(inverse == i) for i in range(len(names))]
        self.each, self.collate, self.n = each, collate, len(cells)

    def __len__(self) -> int:
        return max(1, self.n // (self.each * len(self.members) * self.world))

    def __getitem__(self, k: int) -> Any:
        drawn = [np.random.permutation(rows)[: self.each] for rows in self.members]
        return self.collate(np.concatenate(drawn))


# -- the layouts of the paper's data ----------------------------------------------------------------------------------


def read_pretraining(path: Path) -> Images:
    """``images/*.png`` and ``parsing_maps/*.npy`` with the same stems.

    Raises:
        DataError: an image without a map or a map without an image; both paths are named.
    """
    images = {p.stem: p for p in sorted((path / "images").glob("*")) if p.suffix.lower() in SUFFIXES}
    maps = {p.stem: p for p in sorted((path / "parsing_maps").glob("*.npy"))}
    if not images:
        raise DataError(f"{path / 'images'}: no image in it")
    alone = sorted(images.keys() ^ maps.keys())
    if alone:
        image = images.get(alone[0], path / "images" / f"{alone[0]}.png")
        there, lacking = "no image" if alone[0] in maps else "no parsing map", path / "parsing_maps" / f"{alone[0]}.npy"
        raise DataError(f"{there} for '{alone[0]}': expected both {image} and {lacking} ({len(alone)} such stems)")
    return Images(list(images), list(images.values()), {PARSING: [str(maps[stem]) for stem in images]})


def _is_pretraining(path: Path) -> bool:
    return (path / "images").is_dir() and (path / "parsing_maps").is_dir()


def read_frames(path: Path) -> Images:
    """``train|val|test/<class>/.../<video>_frame_<n>.png``; frames of a video stay on one side of a division.

    A video's name is that of its files, with the folders below the class.
    """
    items = read_folder(path)
    parts = [Path(name).with_suffix("").parts for name in items.ids]
    skip = ("split" in items.columns.column_names) + ("label" in items.columns.column_names)
    return _with_videos(items, ["/".join(p[skip:]) for p in parts])


def _with_videos(items: Images, names: Sequence[str]) -> Images:
    items.columns = items.columns.append_column("video", [[_video(name) for name in names]])
    items.roles = {**items.roles, "group": ("video",)}
    return items


def _has_frames(path: Path) -> bool:
    return path.is_dir() and next(path.rglob("*_frame_[0-9]*.*"), None) is not None


def read_lists(path: Path, delimiter: str = "") -> Images:
    """A text file of lines ``path<delimiter>label``, or a folder with ``train.txt``, ``val.txt``, ``test.txt``.

    Paths are relative to the file.

    Args:
        delimiter: empty: the last tab, comma, semicolon or space of a line.
    """
    files = {path.parent.name: path} if path.is_file() else {p.stem: p for p in sorted(path.glob("*.txt"))}
    ids, sources, labels, splits = [], [], [], []
    for split, file in files.items():
        if path.is_dir() and split.lower() not in NAMES:
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            mark = delimiter or next((d for d in "\t,; " if d in line.strip()), "")
            name, _, label = line.strip().rpartition(mark) if mark else ("", "", "")
            name, label = name.strip(), label.strip()
            if not name or not label:
                raise DataError(f"{file}: line {number}: expected a path and a label, found '{line.strip()[:60]}'")
            if not (file.parent / name).exists():
                raise DataError(f"{file}: line {number}: no such file: {file.parent / name}")
            ids.append(name)
            sources.append(file.parent / name)
            labels.append(label)
            splits.append(split.lower())
    if not ids:
        raise DataError(f"{path}: no line in it")
    columns: dict[str, Any] = {"label": labels} | ({"split": splits} if path.is_dir() else {})
    items = Images(ids, sources, columns, {"label": ("label",)})
    return _with_videos(items, [str(Path(name).with_suffix("")) for name in ids])


def _is_list(path: Path) -> bool:
    return path.suffix == ".txt" if path.is_file() else (path / "train.txt").is_file()


READERS = (
    Reader("pretraining", "images/*.png and parsing_maps/*.npy", _is_pretraining, read_pretraining),
    Reader("lists", "text files of lines: path, delimiter, label", _is_list, read_lists),
    Reader("frames", "train|val|test/<class>/<video>_frame_<n>.png", _has_frames, read_frames),
)
