"""The layouts of well-known image sets: CIFAR, STL-10, ImageNet and its subsets, iNaturalist."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repertory.data.images import SUFFIXES, Images
from repertory.data.items import Reader
from repertory.data.pickles import read_pickle
from repertory.errors import DataError, nearest

LABEL = {"label": ("label",)}


def _below(path: Path, folder: str) -> Path:
    """``path/folder`` where it is there, else ``path``: either may be named."""
    return path / folder if (path / folder).is_dir() else path


def _holds(folder: str, *names: str) -> Callable[[Path], bool]:
    return lambda path: path.is_dir() and all((_below(path, folder) / name).is_file() for name in names)


# -- CIFAR -----------------------------------------------------------------------------------------------------------


def _cifar(parts: Sequence[tuple[str, Path, np.ndarray, Sequence[int]]], classes: Sequence[str]) -> Images:
    """Of each part: its split, its file, pixels ``[N, 3072]`` by channel, and a class number an image."""
    ids: list[str] = []
    pixels: list[np.ndarray] = []
    columns: dict[str, list[str]] = {"label": [], "split": []}
    for split, file, rows, numbers in parts:
        if len(numbers) != len(rows) or not all(0 <= n < len(classes) for n in numbers):
            raise DataError(f"{file}: {len(rows)} images, {len(numbers)} labels, {len(classes)} classes")
        ids += [f"{file.name}/{i:05d}" for i in range(len(rows))]
        pixels += list(np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)))
        columns["label"] += [str(classes[n]) for n in numbers]
        columns["split"] += [split] * len(rows)
    return Images(ids, pixels, columns, LABEL)


def _pickled(folder: Path, files: dict[str, str], label: str, names: str, meta: str) -> Images:
    """The version for Python, of pickles that Python 2 wrote."""
    classes = _dictionary(folder / meta).get(names)
    if not isinstance(classes, list):
        raise DataError(f"{folder / meta}: no list '{names}'")
    parts = []
    for name, split in files.items():
        batch = _dictionary(folder / name)
        rows, numbers = batch.get("data"), batch.get(label)
        if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 3072 or numbers is None:
            raise DataError(f"{folder / name}: expected 'data' of shape [N, 3072] and '{label}'")
        parts.append((split, folder / name, rows, numbers))
    return _cifar(parts, classes)


def _dictionary(path: Path) -> dict[str, Any]:
    made = read_pickle(path, encoding="latin1")
    if not isinstance(made, dict):
        raise DataError(f"{path}: holds {type(made).__name__}, expected a dictionary")
    return made


def read_cifar10(path: Path) -> Images:
    """CIFAR-10 for Python: ``cifar-10-batches-py/data_batch_1..5, test_batch, batches.meta``."""
    folder = _below(path, "cifar-10-batches-py")
    files = {p.name: "train" for p in sorted(folder.glob("data_batch_*"))} | {"test_batch": "test"}
    return _pickled(folder, files, "labels", "label_names", "batches.meta")


def read_cifar100(path: Path, classes: str = "fine") -> Images:
    """CIFAR-100 for Python: ``cifar-100-python/train, test, meta``.

    Args:
        classes: fine (100 of them) or coarse (20).
    """
    if classes not in ("fine", "coarse"):
        raise DataError(f"classes={classes}: expected fine or coarse")
    folder = _below(path, "cifar-100-python")
    return _pickled(folder, {"train": "train", "test": "test"}, f"{classes}_labels", f"{classes}_label_names", "meta")


def read_cifar_binary(path: Path) -> Images:
    """The binary version: ``train.bin, test.bin`` (100 fine labels), or ``data_batch_N.bin, test_batch.bin``."""
    hundred = (path / "fine_label_names.txt").is_file()
    classes = (path / ("fine_label_names.txt" if hundred else "batches.meta.txt")).read_text(encoding="utf-8").split()
    train = [path / "train.bin"] if hundred else sorted(path.glob("data_batch_*.bin"))
    test = path / ("test.bin" if hundred else "test_batch.bin")
    labels, before = (1, 2) if hundred else (0, 1)  # CIFAR-100 has the coarse label first
    parts: list[tuple[str, Path, np.ndarray, Sequence[int]]] = []
    for split, file in (*(("train", file) for file in train), ("test", test)):
        values = np.fromfile(file, np.uint8) if file.is_file() else np.empty(0, np.uint8)
        if not len(values) or len(values) % (before + 3072):
            raise DataError(f"{file}: {len(values)} bytes are not rows of {before + 3072}: unpack the archive again")
        rows = values.reshape(-1, before + 3072)
        parts.append((split, file, rows[:, before:], rows[:, labels].tolist()))
    return _cifar(parts, classes)


# -- STL-10 ----------------------------------------------------------------------------------------------------------


def _stl_images(path: Path) -> list[np.ndarray]:
    size = 3 * 96 * 96
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size % size or not path.stat().st_size:
        raise DataError(f"{path}: {path.stat().st_size} bytes are no whole number of images of 3 x 96 x 96")
    columns = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 3, 96, 96)
    return list(columns.transpose(0, 3, 2, 1))  # stored column by column


def read_stl10(path: Path, images: str = "labelled") -> Images:
    """STL-10: ``stl10_binary/{train,test}_X.bin, {train,test}_y.bin, unlabeled_X.bin, class_names.txt``.

    Args:
        images: labelled (divided into train and test), or unlabelled, to learn from.
    """
    folder = _below(path, "stl10_binary")
    if images == "unlabelled":
        found = _stl_images(folder / "unlabeled_X.bin")
        return Images([f"unlabeled/{i:06d}" for i in range(len(found))], found)
    if images != "labelled":
        raise DataError(f"images={images}: expected labelled or unlabelled")
    names = folder / "class_names.txt"
    if not names.exists():
        raise DataError(f"{names}: no such file")
    classes = names.read_text(encoding="utf-8").split()
    ids: list[str] = []
    pixels: list[np.ndarray] = []
    columns: dict[str, list[str]] = {"label": [], "split": []}
    for part in ("train", "test"):
        found, file = _stl_images(folder / f"{part}_X.bin"), folder / f"{part}_y.bin"
        numbers = np.fromfile(file, dtype=np.uint8) if file.exists() else np.empty(0, np.uint8)
        if len(numbers) != len(found) or not ((numbers > 0) & (numbers <= len(classes))).all():
            raise DataError(f"{file}: {len(found)} labels in 1..{len(classes)} are needed, as of {part}_X.bin")
        pixels += found
        ids += [f"{part}/{i:05d}" for i in range(len(found))]
        columns["label"] += [classes[n - 1] for n in numbers]
        columns["split"] += [part] * len(found)
    return Images(ids, pixels, columns, LABEL)


# -- ImageNet --------------------------------------------------------------------------------------------------------


def _listed(path: Path) -> list[str]:
    """The first word of each line: a WordNet id."""
    if not path.exists():
        raise DataError(f"{path}: no such list of classes")
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _by_class(path: Path, classes: Sequence[str], parts: dict[str, str]) -> Images:
    files: list[Path] = []
    columns: dict[str, list[str]] = {"label": [], "split": []}
    for part, split in parts.items():
        there = {p.name for p in (path / part).iterdir() if p.is_dir()} if (path / part).is_dir() else set()
        for name in classes:
            if name not in there:
                raise DataError(f"{path / part}: no folder of class '{name}'{nearest(name, there)}")
            found = sorted(p for p in (path / part / name).rglob("*") if p.suffix.lower() in SUFFIXES)
            files += found
            columns["label"] += [name] * len(found)
            columns["split"] += [split] * len(found)
    return Images([f.relative_to(path).as_posix() for f in files], files, columns, LABEL)


def read_tiny_imagenet(path: Path) -> Images:
    """Tiny-ImageNet-200: ``wnids.txt``, ``train/WNID/images``, and ``val`` in folders by class or, as it is published,
    ``val/images`` with ``val_annotations.txt``. The official validation part is the test part here."""
    folder = _below(path, "tiny-imagenet-200")
    classes, notes = _listed(folder / "wnids.txt"), folder / "val" / "val_annotations.txt"
    if (folder / "val" / classes[0]).is_dir():
        return _by_class(folder, classes, {"train": "train", "val": "test"})
    train = _by_class(folder, classes, {"train": "train"})
    if not notes.exists():
        raise DataError(f"{folder / 'val'}: neither folders by class nor val_annotations.txt")
    rows = [line.split("\t")[:2] for line in notes.read_text(encoding="utf-8").splitlines() if line.strip()]
    for row in rows:
        if len(row) < 2 or row[1] not in classes:
            raise DataError(f"{notes}: '{row[0]}': no class of wnids.txt")
    files = [folder / "val" / "images" / name for name, _ in rows]
    absent = next((file for file in files if not file.exists()), None)
    if absent is not None:
        raise DataError(f"{absent}: no such image, but {notes} has a row for it")
    columns = {"label": [name for _, name in rows], "split": ["test"] * len(rows)}
    test = Images([f"val/images/{name}" for name, _ in rows], files, columns, LABEL)
    return Images.concat([train, test], ["train", "val"])


def read_imagenet(path: Path, classes: str = "") -> Images:
    """ImageNet: ``train/WNID/*.JPEG`` and ``val/WNID/*.JPEG``; the official validation part is the test part here.

    Args:
        classes: a text file with a WordNet id a line: these classes only. Relative to the folder, or anywhere.
    """
    if classes:
        file = path / classes
        names = _listed(file if file.exists() else Path(classes))
    else:
        names = sorted(p.name for p in (path / "train").iterdir() if p.is_dir())
    return _by_class(path, names, {"train": "train", "val": "test"} if (path / "val").is_dir() else {"train": "train"})


def _is_imagenet(path: Path) -> bool:
    train = path / "train"
    return train.is_dir() and any(p.is_dir() and p.name[:1] == "n" and p.name[1:].isdigit() for p in train.iterdir())


# -- iNaturalist -----------------------------------------------------------------------------------------------------


def _is_inaturalist(path: Path) -> bool:
    return path.is_dir() and bool(list(path.glob("train20??.json"))) and bool(list(path.glob("val20??.json")))


def read_inaturalist(path: Path, category: str = "name") -> Images:
    """iNaturalist 2018, 2019, ...: ``trainYYYY.json``, ``valYYYY.json`` (the test part) and the images they name.

    Args:
        category: what of a category is the class: ``name``, or a rank such as ``genus`` or ``family``, where the file
            tells it.
    """
    ids: list[str] = []
    columns: dict[str, list[str]] = {"label": [], "split": []}
    for part, pattern in (("train", "train20??.json"), ("test", "val20??.json")):
        file = max(path.glob(pattern))
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            categories = {row["id"]: row for row in found.get("categories", [])}
            names = {row["id"]: row["file_name"] for row in found["images"]}
            pairs = [(names[row["image_id"]], row["category_id"]) for row in found["annotations"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: not iNaturalist's annotations: {type(error).__name__} {error}") from None
        for name, number in pairs:
            label = categories.get(number, {"name": str(number)}).get(category)
            if label is None:
                raise DataError(f"{file}: its categories have no '{category}'")
            ids.append(name)
            columns["label"].append(str(label))
            columns["split"].append(part)
    return Images(ids, [path / name for name in ids], columns, LABEL)


READERS: tuple[Reader, ...] = (
    Reader("cifar10", "CIFAR-10 for Python: data_batch_1..5, test_batch, batches.meta",
           _holds("cifar-10-batches-py", "data_batch_1", "batches.meta"), read_cifar10),
    Reader("cifar100", "CIFAR-100 for Python: train, test, meta", _holds("cifar-100-python", "train", "test", "meta"),
           read_cifar100),
    Reader("cifar-binary", "CIFAR-10 or CIFAR-100, binary version",
           lambda p: any((p / name).is_file() for name in ("fine_label_names.txt", "batches.meta.txt")),
           read_cifar_binary),
    Reader("stl10", "STL-10: train_X.bin, train_y.bin, test_X.bin, ..., unlabeled_X.bin",
           lambda p: _holds("stl10_binary", "train_X.bin")(p) or _holds("stl10_binary", "unlabeled_X.bin")(p),
           read_stl10),
    Reader("tiny-imagenet", "Tiny-ImageNet-200: wnids.txt, train, val", _holds("tiny-imagenet-200", "wnids.txt"),
           read_tiny_imagenet),
    Reader("imagenet", "ImageNet: train/WNID and val/WNID; classes=FILE takes a subset", _is_imagenet, read_imagenet),
    Reader("inaturalist", "trainYYYY.json, valYYYY.json and images", _is_inaturalist, read_inaturalist),
)  # fmt: skip
