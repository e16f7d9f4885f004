"""Images: PNG, JPEG, TIFF, ... and DICOM files in folders or named in a table, or arrays in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from PIL import Image

from repertory.data.items import Items, Preview, Reader, digest, finite
from repertory.data.splits import NAMES
from repertory.data.tables import ids_of, read_table, to_arrow
from repertory.errors import DataError, MissingExtraError, first_line, nearest

DICOM = (".dcm", ".dicom")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", *DICOM)
PATH_COLUMNS = ("path", "image", "file", "filename", "image_path", "file_path")


class Images(Items):
    """Images that lie in files or in memory; ``image(i)`` decodes one.

    Args:
        ids: one unique name per image.
        sources: a path, a PIL image or an array [H, W] or [H, W, 1|3|4] (uint8, or float in 0..1) per image.
        columns: labels and whatever else is known, a row per image.
        roles: which columns play which role.
    """

    kind = "images"
    readers: ClassVar[tuple[Reader, ...]]

    def __init__(self, ids: Sequence[str], sources: Sequence[Any], columns: Any = None, roles: Any = None) -> None:
        super().__init__(ids, columns, roles)
        if len(sources) != len(self.ids):
            raise DataError(f"{len(self.ids)} ids but {len(sources)} images")
        self.sources = list(sources)

    def image(self, index: int) -> Image.Image:
        """Image ``index`` decoded: PIL mode L (grey) or RGB, 8 bits.

        16-bit files and DICOM are scaled to their own range; MONOCHROME1 is inverted, so that air is dark.

        Raises:
            DataError: the file cannot be decoded, or is constant or not finite.
        """
        return decode(self.sources[index])

    def check(self, index: int) -> str:
        image = self.image(index)
        pixels = np.asarray(image)
        low, high = pixels.min(), pixels.max()
        if low == high:
            raise DataError(f"constant image: every pixel is {low}")
        return digest(f"{image.mode}{image.size}", image.tobytes())

    def _select(self, indices: np.ndarray) -> None:
        self.sources = [self.sources[i] for i in indices]

    def _extend(self, parts: Sequence[Images]) -> None:
        self.sources = [source for part in parts for source in part.sources]

    @classmethod
    def wrap(cls, source: Any) -> Images:
        if isinstance(source, tuple) and len(source) == 2:
            images, labels = source
            items = cls.wrap(images)
            labels = np.asarray(labels)
            if len(labels) != len(items):
                raise DataError(f"{len(items)} images but {len(labels)} labels")
            return cls(items.ids.tolist(), items.sources, {"label": labels}, {"label": ("label",)})
        if hasattr(source, "detach"):  # a tensor is [N, C, H, W] or [N, H, W], as torch has it
            source = source.detach().cpu().numpy()
            source = np.moveaxis(source, 1, -1) if source.ndim == 4 else source
        if isinstance(source, np.ndarray) and source.ndim not in (3, 4):
            raise DataError(f"an array of images has shape [N, H, W] or [N, H, W, C], not {list(source.shape)}")
        if not isinstance(source, (np.ndarray, list)) or (
            isinstance(source, list) and not all(isinstance(x, (np.ndarray, Image.Image, str, Path)) for x in source)
        ):
            raise DataError(
                f"{type(source).__name__} is not a set of images: give an array [N, H, W] or [N, H, W, C], "
                "a list of PIL images, arrays or paths, or a pair (images, labels)"
            )
        width = len(str(max(len(source) - 1, 0)))
        return cls([f"{i:0{width}d}" for i in range(len(source))], list(source))

    def preview(self, index: int) -> Preview:
        return Preview(image=self.image(index))


def decode(source: Any) -> Image.Image:
    """A path, PIL image or array as a PIL image of mode L or RGB.

    Raises:
        DataError: it cannot be decoded; the message says why.
    """
    if isinstance(source, (str, Path)):
        source = Path(source)
        if not source.exists():
            raise DataError(f"no such file: {source}")
        if source.suffix.lower() in DICOM:
            return Image.fromarray(_to_bytes(_read_dicom(source)))
        try:
            with Image.open(source) as opened:
                opened.load()
                source = opened.copy()
        except Exception as error:  # Pillow's readers raise whatever their parsers do
            raise DataError(f"cannot be decoded: {first_line(error)}") from None
    if isinstance(source, Image.Image):
        if source.mode in ("L", "RGB"):
            return source
        if source.mode.startswith(("I", "F")):
            return Image.fromarray(_to_bytes(np.asarray(source)))
        return source.convert("L" if source.mode in ("1", "LA") else "RGB")
    array = np.asarray(source)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise DataError(f"shape {list(array.shape)}: an image is [H, W] or [H, W, C] with C 1, 3 or 4")
    if array.size == 0:
        raise DataError(f"shape {list(array.shape)}: no pixel")
    if array.dtype == np.uint8:
        return Image.fromarray(array[..., :3] if array.ndim == 3 else array)
    if array.dtype.kind not in "fiu" or (array.dtype.kind == "i" and array.min() < 0 and array.ndim == 3):
        raise DataError(f"dtype {array.dtype}: images are uint8, uint16 or float in 0..1")
    if array.dtype.kind == "f":
        finite(array, "the image")
        if array.min() < 0 or array.max() > 1:
            raise DataError(f"float image in {array.min():.3g}..{array.max():.3g}: floats must lie in 0..1")
        array = np.round(array * 255).astype(np.uint8)
        return Image.fromarray(array[..., :3] if array.ndim == 3 else array)
    return Image.fromarray(_to_bytes(array))


def _to_bytes(array: np.ndarray) -> np.ndarray:
    """More than 8 bits to uint8 over the image's own range."""
    array = finite(np.asarray(array, dtype=np.float32), "the image")
    low, high = float(array.min()), float(array.max())
    return np.round((array - low) / max(high - low, 1e-12) * 255).astype(np.uint8)


def _read_dicom(path: Path) -> np.ndarray:
    try:
        import pydicom
        from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    except ImportError:
        raise MissingExtraError("pydicom", "medical") from None
    try:
        dataset = pydicom.dcmread(path)
    except Exception as error:  # damaged headers raise many types
        raise DataError(f"not DICOM: {str(error).split('.')[0]}") from None
    for tag in ("PhotometricInterpretation", "PixelData", "Rows", "Columns"):
        if tag not in dataset:
            raise DataError(f"DICOM without the tag {tag}")
    try:
        pixels = dataset.pixel_array
        # the window is given in the units of the modality (Hounsfield, ...), not in stored values
        grey = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset).astype(np.float32)
    except Exception as error:  # decoders raise many types
        raise DataError(f"DICOM pixel data cannot be decoded: {' '.join(str(error).split())[:150]}") from None
    if pixels.ndim != 2:
        raise DataError(f"DICOM with pixel array {list(pixels.shape)}: one grey frame is needed")
    return grey.max() - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def read_folder(path: Path) -> Images:
    """A folder of images; folders inside it are classes, or splits (train, val, test) of classes."""
    files = [path] if path.is_file() else _image_files(path)
    if not files:
        raise DataError(f"{path}: no image in it (looked for {', '.join(SUFFIXES)})")
    root = path if path.is_dir() else path.parent
    parts = [file.relative_to(root).parts[:-1] for file in files]
    columns: dict[str, list[str]] = {}
    tops = {p[0] if p else "" for p in parts}
    splits = {top for top in tops if NAMES.get(top.lower()) in ("train", "test")}
    if len(splits) > 1 and any(top.lower() not in NAMES for top in tops):
        others = " and ".join(top or "images" for top in sorted(tops) if top.lower() not in NAMES)
        raise DataError(f"{path}: {others} beside the splits {' and '.join(sorted(splits))}: move one or the other out")
    if all(top.lower() in NAMES for top in tops):
        columns["split"] = [p[0].lower() for p in parts]
        parts = [p[1:] for p in parts]
    roles = {}
    if all(parts) and len({p[0] for p in parts}) > 1:
        columns["label"] = [p[0] for p in parts]
        roles["label"] = ("label",)
    return Images([file.relative_to(root).as_posix() for file in files], files, columns, roles)


def read_image_table(path: Path, image: str = "", id: str = "") -> Images:
    """A CSV or Parquet table with a column of image paths, relative to the table."""
    frame = read_table(path, id)
    column = image or next((c for c in PATH_COLUMNS if c in frame.columns), "")
    if not column:
        raise DataError(
            f"{path}: no column of image paths (looked for {', '.join(PATH_COLUMNS)}); name it with image=COLUMN"
        )
    if column not in frame.columns:
        raise DataError(f"{path}: no column '{column}'{nearest(column, frame.columns)}")
    if frame[column].isna().any():
        row = int(frame[column].isna().to_numpy().argmax())
        raise DataError(f"{path}: row {row} names no image in the column '{column}'; leave such rows out")
    return images_from_table(frame, path.parent / frame[column].astype(str), id=id or column)


def images_from_table(
    frame: pd.DataFrame,
    paths: pd.Series,
    id: str,
    labels: Sequence[str] = (),
) -> Images:
    """Images named by a table; its other columns are carried."""
    if id not in frame.columns:
        raise DataError(f"no column '{id}'{nearest(id, frame.columns)}")
    roles = {"label": tuple(labels)} if len(labels) else {}
    if not roles and "label" in frame.columns:
        roles = {"label": ("label",)}
    return Images(ids_of(frame, id), paths.tolist(), to_arrow(frame.drop(columns=id)), roles)


def read_npz(path: Path) -> Images:
    """An ``.npz`` file with arrays ``images`` and, if known, ``label``, ``id`` and others with a value an image."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zip and header errors of many types
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from None
    if "images" not in arrays:
        raise DataError(f"{path}: no array 'images'{nearest('images', arrays)}")
    try:
        items = Images.wrap(arrays.pop("images"))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    for name, array in arrays.items():
        if array.shape != (len(items),):
            raise DataError(f"{path}: '{name}' has shape {list(array.shape)}; [{len(items)}] is needed, as of 'images'")
    ids = arrays.pop("id", items.ids)
    return Images(ids.tolist(), items.sources, arrays, {"label": ("label",)} if "label" in arrays else {})


# they make Images themselves
from repertory.data.image_sets import READERS as SETS  # noqa: E402

Images.readers = (
    *SETS,
    Reader("table", "CSV or Parquet with a column of image paths",
           lambda p: p.suffix in (".csv", ".tsv", ".parquet") or p.name.endswith(".csv.gz"), read_image_table),
    Reader("npz", "arrays images and label", lambda p: p.suffix == ".npz", read_npz),
    Reader("folder", "images, in folders by class, or train/val/test and class",
           lambda p: p.is_dir() or p.suffix.lower() in SUFFIXES, read_folder),
)  # fmt: skip
