"""Radiographs as batches, their findings and masks, and the layouts of the paper's data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor
from torchvision.transforms import ColorJitter, InterpolationMode, RandomResizedCrop

from repertory.data import Reader
from repertory.data.images import PATH_COLUMNS, Images, decode, images_from_table
from repertory.data.tables import read_table
from repertory.errors import DataError
from repertory.systems.chexworld.augmentation import DualTransform
from repertory.systems.chexworld.masks import MultiBlockMasks

BICUBIC = InterpolationMode.BICUBIC


# -- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crops:
    """From item numbers to a batch for :class:`~repertory.systems.chexworld.model.WorldModel`."""

    items: Images
    transform: DualTransform
    masks: MultiBlockMasks

    def __call__(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        views = [self.transform(self.items.image(int(i))) for i in indices]
        images, augmented, policy, rel = (torch.stack(part, dim=1) for part in zip(*views, strict=True))
        masks = self.masks(len(views))
        return {
            "images": images, "augmented": augmented, "policy": policy, "rel": rel, "context_indices": masks.context,
            "target_indices": masks.target, "shuffle": torch.randperm(len(views)),
        }  # fmt: skip


def centred(image: Image.Image, size: int) -> Image.Image:
    """The centre of ``size`` pixels after the shorter side was brought to ``size * 256 / 224``."""
    return TF.center_crop(TF.resize(image, [round(size * 256 / 224)], BICUBIC), [size, size])


@dataclass(frozen=True)
class Examples:
    """From item numbers to a batch for fine-tuning: ``images`` ``[B, 3, S, S]`` and, if given, ``labels``, ``masks``.

    Attributes:
        size: side of the images, S.
        normalise: its ``tensor`` makes a picture a tensor.
        scale: of the random crop; None: no augmentation.
        jitter: half-width of brightness and contrast.
        whole: without augmentation, resize the whole image to S in place of taking its centre.
        labels: ``[N]`` classes or ``[N, L]`` findings (NaN: unknown).
        masks: a mask per item, as in :func:`read_mask`.
    """

    items: Images
    size: int
    normalise: DualTransform
    scale: tuple[float, float] | None = None
    jitter: float = 0.0
    whole: bool = False
    labels: Tensor | None = None
    masks: Sequence[Any] | None = None

    def __call__(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        rows = [int(i) for i in indices]
        pairs = [self._example(i) for i in rows]
        batch = {"images": torch.stack([image for image, _ in pairs])}
        if self.labels is not None:
            batch["labels"] = self.labels[rows]
        if self.masks is not None:
            batch["masks"] = torch.stack([mask for _, mask in pairs if mask is not None])
        return batch

    def _example(self, i: int) -> tuple[Tensor, Tensor | None]:
        image, size = self.items.image(i), [self.size, self.size]
        mask = None if self.masks is None else read_mask(self.masks[i], image.size)
        if self.scale is not None:
            box = RandomResizedCrop.get_params(image, list(self.scale), [3 / 4, 4 / 3])
            image = ColorJitter(self.jitter, self.jitter)(TF.resized_crop(image, *box, size, BICUBIC))
            mask = None if mask is None else TF.resized_crop(mask, *box, size, InterpolationMode.NEAREST)
        elif self.whole:
            image = TF.resize(image, size, BICUBIC)
            mask = None if mask is None else TF.resize(mask, size, InterpolationMode.NEAREST)
        else:
            image = centred(image, self.size)
        return self.normalise.tensor(image), None if mask is None else (TF.to_tensor(mask) > 0.5).float()


# -- findings and masks ------------------------------------------------------------------------------------------------


def findings(items: Images, names: Sequence[str]) -> np.ndarray:
    """The columns ``names`` as ``[N, L]`` float: 1, 0, or NaN where unknown.

    Raises:
        DataError: another value, with the item and the column.
    """
    columns = []
    for name in names:
        try:
            values = items.column(name).astype(np.float64)
        except (TypeError, ValueError):
            raise DataError(f"column '{name}' holds texts; a finding is 1, 0 or empty") from None
        bad = np.flatnonzero(~(np.isin(values, (0, 1)) | np.isnan(values)))
        if len(bad):
            hint = "; say what uncertain means before: 0, 1 or empty" if values[bad[0]] == -1 else ""
            raise DataError(f"item {items.ids[bad[0]]}: column '{name}' is {values[bad[0]]:g}; a finding is 1, 0{hint}")
        columns.append(values)
    return np.stack(columns, axis=1)


def is_finding(items: Images, name: str) -> bool:
    """Whether a single label column holds nothing but 0, 1 and gaps."""
    values = items.column(name)
    if values.dtype.kind not in "biuf":
        return False
    values = values.astype(np.float64)
    return bool((np.isin(values, (0, 1)) | np.isnan(values)).all())


def read_mask(value: Any, size: tuple[int, int]) -> Image.Image:
    """A mask as PIL mode L of ``size`` (width, height), 0 and 255.

    ``value`` is the path of a picture, ``rle:WxH:START LENGTH ...`` (down the columns, each start counted from the end
    of the run before, as SIIM has it; several masks joined by ``;``), ``boxes:WxH:X Y WIDTH HEIGHT;...``, or empty.

    Raises:
        DataError: none of these, or runs that leave the picture.
    """
    text = "" if value is None or (isinstance(value, float) and np.isnan(value)) else str(value)
    if not text:
        return Image.new("L", size)
    form, _, rest = text.partition(":")
    if form not in ("rle", "boxes") or rest.count(":") != 1:
        return decode(text).convert("L").resize(size, Image.Resampling.NEAREST).point(lambda v: 255 * (v > 127))
    frame, _, numbers = rest.partition(":")
    try:
        wide, high = (int(n) for n in frame.split("x"))
        parts = [[float(n) for n in part.split()] for part in numbers.split(";") if part.strip()]
    except ValueError:
        raise DataError(f"mask '{text[:40]}': expected {form}:WIDTHxHEIGHT:numbers") from None
    pixels = np.zeros((high, wide), np.uint8)
    for part in parts:
        if form == "boxes":
            x, y, w, h = part
            pixels[round(y) : round(y + h), round(x) : round(x + w)] = 255
            continue
        starts, lengths = np.array(part[0::2], int), np.array(part[1::2], int)
        if len(starts) != len(lengths) or (starts.sum() + lengths.sum()) > pixels.size or min(part, default=0) < 0:
            raise DataError(f"mask '{text[:40]}': the runs do not fit into {wide} x {high} pixels")
        flat, position = np.zeros(pixels.size, np.uint8), 0
        for start, length in zip(starts, lengths, strict=True):
            position += start
            flat[position : position + length] = 255
            position += length
        pixels |= flat.reshape(wide, high).T
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


# -- the layouts of the paper's data sets ------------------------------------------------------------------------------

NIH_FINDINGS = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
                "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening",
                "Hernia")  # fmt: skip
CHEXPERT_FINDINGS = ("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
                     "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other",
                     "Fracture", "Support Devices")  # fmt: skip
VINDR_FINDINGS = ("COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other disease", "No finding")
VINBIG_NOTHING = "No finding"
MEDFMC_FINDINGS = ("pleural_effusion", "nodule", "pneumonia", "cardiomegaly", "hilar_enlargement", "fracture_old",
                   "fibrosis", "aortic_calcification", "tortuous_aorta", "thickened_pleura", "TB", "pneumothorax",
                   "emphysema", "atelectasis", "calcification", "pulmonary_edema", "increased_lung_markings",
                   "elevated_diaphragm", "consolidation")  # fmt: skip
UNCERTAIN = ("zeros", "ones", "ignore")
BOXES = 1024
"""Side of the pictures that RSNA's boxes and SIIM's runs refer to."""


def _one(path: Path, *patterns: str) -> Path | None:
    """The first file in ``path`` that fits one of ``patterns``."""
    return next((found for pattern in patterns for found in sorted(path.glob(pattern))), None)


def _has(*patterns: str) -> Callable[[Path], bool]:
    return lambda path: path.is_dir() and _one(path, *patterns) is not None


def _found(paths: pd.Series, table: Path) -> pd.Series:
    """``paths`` themselves.

    Raises:
        DataError: a row's image is not there; names image and table.
    """
    missing = [p for p in paths if not Path(p).exists()]
    if missing:
        more = f" ({len(missing)} such rows)" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]}: no such image, but {table} has a row for it{more}")
    return paths


def _held_out(patients: pd.Series, share: float = 0.1) -> np.ndarray:
    """Which rows are for validation: all images of a patient or none, by the hash of the patient's name."""
    value = patients.astype(str).map(lambda p: int.from_bytes(hashlib.sha256(p.encode()).digest()[:4], "little"))
    return (value / 2**32 < share).to_numpy()


def _radiographs(
    frame: pd.DataFrame, paths: pd.Series, table: Path, labels: Sequence[str], group: str | None = None
) -> Images:
    items = images_from_table(frame, _found(paths, table), id="id", labels=labels)
    if group is not None:
        items.roles["group"] = (group,)
    return items


def _uncertain(frame: pd.DataFrame, names: Sequence[str], policy: str, table: Path) -> pd.DataFrame:
    """Findings as 1, 0, NaN: a blank is 0 (not mentioned), -1 as ``policy`` says."""
    if policy and policy not in UNCERTAIN:
        raise DataError(f"{table}: uncertain={policy}: expected {', '.join(UNCERTAIN)}")
    values = frame[list(names)].astype(float).fillna(0)
    count = int((values == -1).sum().sum())
    if count and not policy:
        raise DataError(f"{table}: {count} uncertain labels (-1): say what they mean with uncertain=zeros|ones|ignore")
    return values.replace(-1, {"zeros": 0.0, "ones": 1.0, "ignore": np.nan}.get(policy, 0.0))


def read_nih(path: Path) -> Images:
    """NIH ChestX-ray14: ``images*/**.png``, ``Data_Entry_2017*.csv``, ``train_val_list.txt``, ``test_list.txt``."""
    table = _one(path, "Data_Entry_2017*.csv*")
    assert table is not None
    frame = read_table(table)
    frame = frame.rename(columns={"Image Index": "id", "Patient ID": "patient", "View Position": "view",
                                  "Patient Age": "age", "Patient Gender": "sex"})  # fmt: skip
    named = frame["Finding Labels"].str.split("|")
    for finding in NIH_FINDINGS:
        frame[finding] = [int(finding in names) for names in named]
    places = {file.name: file for folder in sorted(path.glob("images*")) for file in folder.rglob("*.png")}
    paths = frame["id"].map(lambda name: places.get(name, path / "images" / name))
    lists = {part: path / name for part, name in (("train", "train_val_list.txt"), ("test", "test_list.txt"))}
    if all(file.exists() for file in lists.values()):
        listed = {name: part for part, file in lists.items() for name in file.read_text(encoding="utf-8").split()}
        frame["split"] = frame["id"].map(listed)
        unlisted = frame["split"].isna()
        if unlisted.any():
            raise DataError(f"{table}: {frame['id'][unlisted].iloc[0]} is in neither of the two lists")
        frame.loc[(frame["split"] == "train") & _held_out(frame["patient"]), "split"] = "val"
    columns = ["id", "patient", "view", "age", "sex", *NIH_FINDINGS, *(["split"] if "split" in frame else [])]
    return _radiographs(frame[columns], paths, table, NIH_FINDINGS, "patient")


def read_chexpert(path: Path, uncertain: str = "", view: str = "frontal") -> Images:
    """CheXpert: ``train.csv`` (and ``valid.csv``, taken as the test set) with relative paths; 1, 0, -1 or blank labels.

    Args:
        uncertain: what -1 means: ``zeros``, ``ones`` or ``ignore``.
        view: ``frontal``, ``lateral`` or ``all``.
    """
    frames, tables = [], [t for t in (path / "train.csv", path / "valid.csv") if t.exists()]
    for table in tables:
        frame = read_table(table)
        if view != "all":
            frame = frame[frame["Frontal/Lateral"].str.lower() == view]
            if frame.empty:
                raise DataError(f"{table}: no {view} image in it; view is frontal, lateral or all")
        inside = frame["Path"].str.replace(r"^CheXpert-v1\.0(-small)?/", "", regex=True)
        made = pd.DataFrame({"id": inside, "patient": inside.str.extract(r"(patient\d+)")[0]})
        made[["sex", "age", "view"]] = frame[["Sex", "Age", "AP/PA"]].to_numpy()
        made[list(CHEXPERT_FINDINGS)] = _uncertain(frame, CHEXPERT_FINDINGS, uncertain, table).to_numpy()
        made["split"] = np.where(_held_out(made["patient"]), "val", "train") if table.stem == "train" else "test"
        _found(made["id"].map(path.__truediv__), table)
        frames.append(made)
    joined = pd.concat(frames, ignore_index=True)
    if len(tables) == 1:
        joined = joined.drop(columns="split")
    return _radiographs(joined, joined["id"].map(path.__truediv__), tables[0], CHEXPERT_FINDINGS, "patient")


def read_mimic(path: Path, uncertain: str = "") -> Images:
    """MIMIC-CXR-JPG: ``files/pXX/pSUBJECT/sSTUDY/DICOM.jpg`` and the tables chexpert, metadata and split; AP and PA.

    Args:
        uncertain: what -1 means: ``zeros``, ``ones`` or ``ignore``.
    """
    found = {name: _one(path, f"mimic-cxr-2.*-{name}.csv*") for name in ("chexpert", "metadata", "split")}
    for name, table in found.items():
        if table is None:
            raise DataError(f"{path}: no table mimic-cxr-2.0.0-{name}.csv.gz")
    chexpert, metadata, split = (read_table(table) for table in found.values() if table is not None)
    table = found["metadata"]
    assert table is not None
    assert found["chexpert"] is not None
    study = ["subject_id", "study_id"]
    chexpert[list(CHEXPERT_FINDINGS)] = _uncertain(chexpert, CHEXPERT_FINDINGS, uncertain, found["chexpert"])
    frame = metadata[metadata["ViewPosition"].isin(["AP", "PA"])][["dicom_id", *study, "ViewPosition"]]
    frame = frame.merge(split[["dicom_id", "split"]], on="dicom_id")
    frame = frame.merge(chexpert[[*study, *CHEXPERT_FINDINGS]], on=study, how="left")
    if frame.empty:
        raise DataError(f"{table}: no frontal image (ViewPosition AP or PA) that the split names")
    frame = frame.rename(columns={"dicom_id": "id", "subject_id": "patient", "study_id": "study",
                                  "ViewPosition": "view"})  # fmt: skip
    frame["split"] = frame["split"].replace("validate", "val")
    subject = "p" + frame["patient"].astype(str)
    places = zip(subject, frame["study"], frame["id"], strict=True)
    paths = pd.Series([path / "files" / p[:3] / p / f"s{s}" / f"{i}.jpg" for p, s, i in places])
    return _radiographs(frame, paths, table, CHEXPERT_FINDINGS, "patient")


def _image_of(folder: Path, name: str) -> Path:
    """``folder/name`` with whichever suffix is there."""
    suffixes = (".dicom", ".dcm", ".png", ".jpg", ".jpeg")
    return next((p for s in suffixes if (p := folder / f"{name}{s}").exists()), folder / f"{name}.dicom")


def read_vindr(path: Path) -> Images:
    """VinDr-CXR: ``train/``, ``test/``, ``annotations/image_labels_{train,test}.csv`` (three readers: the majority), or
    the competition's ``train/`` and ``train.csv`` with boxes (a finding that any reader marked)."""
    frames, tables = [], {part: path / "annotations" / f"image_labels_{part}.csv" for part in ("train", "test")}
    if not tables["train"].exists():
        return _read_vinbig(path)
    for part, table in tables.items():
        if not table.exists():
            continue
        frame = read_table(table).rename(columns={"Other diseases": "Other disease"})
        labels = frame.groupby("image_id", sort=True)[list(VINDR_FINDINGS)].mean().gt(0.5).astype(int).reset_index()
        labels["split"] = part
        labels["path"] = labels["image_id"].map(lambda name: _image_of(path / part, name))  # noqa: B023
        _found(labels["path"], table)
        frames.append(labels.rename(columns={"image_id": "id"}))
    joined = pd.concat(frames, ignore_index=True)
    if len(frames) == 1:
        joined = joined.drop(columns="split")
    return _radiographs(joined.drop(columns="path"), joined["path"], tables["train"], VINDR_FINDINGS)


def _read_vinbig(path: Path) -> Images:
    table = path / "train.csv"
    frame = read_table(table)
    present = pd.crosstab(frame["image_id"], frame["class_name"]).gt(0).astype(int)
    names = sorted(set(present.columns) - {VINBIG_NOTHING})
    made = present[names].rename_axis(columns=None).reset_index().rename(columns={"image_id": "id"})
    return _radiographs(made, made["id"].map(lambda name: _image_of(path / "train", name)), table, names)


def read_rsna(path: Path) -> Images:
    """RSNA pneumonia: ``stage_2_train_images/*.dcm``, ``stage_2_train_labels.csv``; three classes where
    ``stage_2_detailed_class_info.csv`` is there. The boxes are the column ``mask``."""
    table = _one(path, "stage_2_train_labels.csv*")
    assert table is not None
    frame = read_table(table)
    frame["box"] = [
        "" if np.isnan(x) else f"{x:g} {y:g} {w:g} {h:g}"
        for x, y, w, h in frame[["x", "y", "width", "height"]].itertuples(index=False)
    ]
    grouped = frame.groupby("patientId", sort=True)
    made = pd.DataFrame({"pneumonia": grouped["Target"].max(), "boxes": grouped["box"].agg(";".join)}).reset_index()
    made["mask"] = [f"boxes:{BOXES}x{BOXES}:{b}" if b else "" for b in made.pop("boxes")]
    made["patient"], labels = made["patientId"], ["pneumonia"]
    details = _one(path, "stage_2_detailed_class_info.csv*")
    if details is not None:
        classes = read_table(details).drop_duplicates("patientId").set_index("patientId")["class"]
        made["class"], labels = made["patientId"].map(classes), ["class"]
    made = made.rename(columns={"patientId": "id"})
    return _radiographs(
        made, made["id"].map(lambda name: path / "stage_2_train_images" / f"{name}.dcm"), table, labels, "patient"
    )


def read_siim(path: Path) -> Images:
    """SIIM-ACR pneumothorax: ``*rle*.csv`` with ImageId and EncodedPixels (-1: none), DICOM or PNG files in any
    folder below. The runs are the column ``mask``."""
    table = _one(path, "*rle*.csv*")
    assert table is not None
    frame = read_table(table).rename(columns=str.strip)
    runs = frame["EncodedPixels"].astype(str).str.strip()
    grouped = runs.where(runs != "-1", "").groupby(frame["ImageId"], sort=True)
    made = grouped.agg(lambda parts: ";".join(p for p in parts if p)).rename("runs").reset_index()
    made["pneumothorax"] = (made["runs"] != "").astype(int)
    made["mask"] = [f"rle:{BOXES}x{BOXES}:{r}" if r else "" for r in made.pop("runs")]
    places = {p.stem: p for p in sorted(path.rglob("*")) if p.suffix.lower() in (".dcm", ".png", ".jpg")}
    paths = made["ImageId"].map(lambda name: places.get(name, path / f"{name}.dcm"))
    return _radiographs(made.rename(columns={"ImageId": "id"}), paths, table, ["pneumothorax"])


def read_shenzhen(path: Path) -> Images:
    """ShenZhen: ``CXR_png/CHNCXR_####_{0,1}.png``, the last digit says tuberculosis; ``mask/*_mask.png`` if there."""
    files = sorted((path / "CXR_png").glob("CHNCXR_*_[01].png"))
    if not files:
        raise DataError(f"{path / 'CXR_png'}: no CHNCXR_####_0.png or CHNCXR_####_1.png")
    frame = pd.DataFrame({"id": [f.stem for f in files], "tuberculosis": [int(f.stem[-1]) for f in files]})
    frame["patient"] = frame["id"].str.slice(7, 11)
    if (path / "mask").is_dir():
        masks = [path / "mask" / f"{f.stem}_mask.png" for f in files]
        frame["mask"] = [str(m) if m.exists() else None for m in masks]
    return _radiographs(frame, pd.Series(files), path, ["tuberculosis"], "patient")


def read_medfmc(path: Path, shots: int = 0, experiment: int = 1) -> Images:
    """MedFMC chest: ``images/``, lists of ``NAME 0,1,...`` lines: ``trainval.txt`` and ``test_WithLabel.txt``.

    Args:
        shots: 1, 5 or 10 takes ``chest_K-shot_{train,val}_expE.txt`` in place of ``trainval.txt``.
        experiment: E.
    """
    few = {part: f"chest_{shots}-shot_{part}_exp{experiment}.txt" for part in ("train", "val")}
    names = few if shots else {"train": "trainval.txt"}
    rows: list[dict[str, Any]] = []
    for part, name in {**names, "test": "test_WithLabel.txt"}.items():
        file = path / name
        if not file.exists():
            if part == "test":
                continue
            raise DataError(f"{file}: no such list")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            image, _, values = line.strip().rpartition(" ")
            labels = values.split(",")
            if not image or len(labels) != len(MEDFMC_FINDINGS) or not set(labels) <= {"0", "1"}:
                raise DataError(f"{file}: line {number}: expected NAME and {len(MEDFMC_FINDINGS)} labels 0 or 1")
            rows.append({"id": image, **dict(zip(MEDFMC_FINDINGS, map(int, labels), strict=True)), "split": part,
                         "list": file})  # fmt: skip
    frame = pd.DataFrame(rows)
    paths = frame["id"].map(lambda name: path / "images" / name)
    for file in frame["list"].unique():
        _found(paths[frame["list"] == file], file)
    return _radiographs(frame.drop(columns="list"), paths, path / "trainval.txt", MEDFMC_FINDINGS)


def read_masked(path: Path, image: str = "", mask: str = "mask", id: str = "") -> Images:
    """A table with a column of image paths and a column of mask paths, both relative to the table; blank: empty."""
    frame = read_table(path)
    column = image or next((c for c in PATH_COLUMNS if c in frame.columns), "")
    for name in (column, mask):
        if name not in frame.columns:
            raise DataError(f"{path}: no column '{name}'; name the columns of paths with image=COLUMN and mask=COLUMN")
    frame["mask"] = [str(path.parent / m) if isinstance(m, str) and m else None for m in frame[mask]]
    _found(frame["mask"].dropna(), path)
    return images_from_table(frame, _found(path.parent / frame[column].astype(str), path), id=id or column)


def _is_masked(path: Path) -> bool:
    if not (path.is_file() and (path.suffix in (".csv", ".tsv", ".parquet") or path.name.endswith(".csv.gz"))):
        return False
    return "mask" in read_table(path).columns


READERS = (
    Reader("nih", "NIH ChestX-ray14: images/, Data_Entry_2017*.csv", _has("Data_Entry_2017*.csv*"), read_nih),
    Reader("mimic", "MIMIC-CXR-JPG: files/, mimic-cxr-2.*.csv.gz", _has("mimic-cxr-2.*-*.csv*"), read_mimic),
    Reader("rsna", "RSNA pneumonia: stage_2_train_images/, stage_2_train_labels.csv",
           _has("stage_2_train_labels.csv*"), read_rsna),
    Reader("siim", "SIIM-ACR pneumothorax: *rle*.csv and DICOM files", _has("*rle*.csv*"), read_siim),
    Reader("vindr", "VinDr-CXR: train/, test/, annotations/image_labels_*.csv, or train/ and train.csv with boxes",
           lambda p: _has("annotations/image_labels_train.csv")(p) or _columns(p / "train.csv", "class_name"),
           read_vindr),
    Reader("chexpert", "CheXpert: train.csv and valid.csv with relative paths",
           lambda p: _columns(p / "train.csv", "Path"), read_chexpert),
    Reader("shenzhen", "ShenZhen: CXR_png/CHNCXR_####_#.png", _has("CXR_png"), read_shenzhen),
    Reader("medfmc", "MedFMC chest: images/, trainval.txt or chest_K-shot_train_expE.txt",
           _has("trainval.txt", "chest_*-shot_train_exp*.txt"), read_medfmc),
    Reader("masked", "CSV or Parquet with a column of image paths and a column mask", _is_masked, read_masked),
)  # fmt: skip


def _columns(table: Path, name: str) -> bool:
    """Whether a CSV is there and has a column ``name``; reads its first line only."""
    if not table.is_file():
        return False
    with table.open(encoding="utf-8", errors="replace") as file:
        return name in file.readline().strip().split(",")
