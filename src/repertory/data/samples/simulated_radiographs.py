"""Simulated radiographs: the lungs are real, everything else is drawn.

The masks of real lungs (V7 Labs' annotations of public COVID-19 radiographs, inside the torchxrayvision package) are
filled with an attenuation: body, spine, ribs and heart add to it, the depth of the lung is taken away, and what passes,
``exp(-attenuation)``, is recorded with the exposure, gamma and noise of one of four "hospitals". Three findings are
drawn independently of each other: opacity, cardiomegaly, pneumothorax. No package known here brings real radiographs.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from repertory.data.images import Images
from repertory.data.samples import Package, Sample, cache
from repertory.errors import DataError

FINDINGS = ("opacity", "cardiomegaly", "pneumothorax")
PREVALENCE = 0.35
HOSPITALS = {"A": (1.0, 1.0, 0.01), "B": (0.8, 0.75, 0.03), "C": (1.25, 1.35, 0.02), "D": (0.95, 1.7, 0.05)}
"""Exposure, gamma, noise of the detector (as a share of full scale)."""
GRID = 128
LEAST, MOST = 0.15, 0.7
"""Share of the picture that a pair of lungs covers; other masks show parts, or nothing."""
MADE = "1"
"""In the names of the cached files; changes with what is drawn."""


def lungs(archive: Path) -> tuple[np.ndarray, list[str]]:
    """Real lungs as ``[N, 2, GRID, GRID]`` bool (the one on the left of the picture first), and the masks' names."""
    cached = cache() / "simulated-radiographs" / f"lungs-{MADE}.npz"
    if not cached.exists():
        pairs, names = [], []
        with zipfile.ZipFile(archive) as file:
            for name in sorted(n for n in file.namelist() if n.lower().endswith((".png", ".jpg", ".jpeg"))):
                with Image.open(io.BytesIO(file.read(name))) as opened:
                    opened.draft("L", (2 * GRID, 2 * GRID))
                    mask = np.asarray(opened.convert("L").resize((GRID, GRID), Image.Resampling.BOX)) > 127
                labels, count = ndimage.label(mask)
                sizes = np.bincount(labels.ravel(), minlength=3)[1:]
                largest = np.argsort(-sizes)[:2] + 1
                if count < 2 or not LEAST < mask.mean() < MOST or sizes[largest[1] - 1] < 0.03 * mask.size:
                    continue
                sides = [labels == i for i in largest]
                pairs.append(sorted(sides, key=lambda side: np.nonzero(side)[1].mean()))
                names.append(Path(name).stem)
        _save(cached, lungs=np.array(pairs), names=np.array(names))
    with np.load(cached) as arrays:
        return arrays["lungs"], arrays["names"].tolist()


def _save(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def _placed(pair: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Both lungs as a patient stands before the detector: turned, moved and scaled a little, ``[2, side, side]``."""
    angle, scale = rng.normal(0, 0.04), 1 / rng.uniform(0.84, 1.0)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = (np.array(pair.shape[1:]) - 1) / 2 + rng.normal(0, 0.02, 2) * GRID
    step = turn * (GRID / side)
    offset = centre - step @ (np.full(2, side) - 1) / 2
    blurred = ndimage.gaussian_filter(pair.astype(np.float32), (0, GRID / side / 2, GRID / side / 2))
    return np.stack([ndimage.affine_transform(lung, step, offset, (side, side), order=1) for lung in blurred])


def radiograph(
    pair: np.ndarray, findings: tuple[bool, bool, bool], hospital: str, side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One image ``[side, side]`` uint8 and its lungs ``[side, side]`` bool.

    Args:
        pair: both lungs, ``[2, GRID, GRID]``.
        findings: opacity, cardiomegaly, pneumothorax.
    """
    opacity, cardiomegaly, pneumothorax = findings
    both = _placed(pair, side, rng)
    depth = [ndimage.distance_transform_edt(lung > 0.5) for lung in both]
    depth = [d / max(d.max(), 1.0) for d in depth]
    y, x = np.mgrid[-1 : 1 : 1j * side, -1 : 1 : 1j * side]
    inside = both.sum(0).clip(0, 1)
    rows, columns = (np.flatnonzero(inside.max(axis) > 0.5) for axis in (1, 0))
    axis = np.linspace(-1, 1, side)
    top, bottom, left, right = axis[[rows[0], rows[-1], columns[0], columns[-1]]]
    middle = np.mean([(lung * x).sum() / lung.sum() for lung in both])
    high, wide = bottom - top, (right - left) / 2
    across = (x - middle) / wide

    body = 2.3 * np.sqrt((1 - (across / 1.35) ** 2 - (y / 2.2) ** 2).clip(0))
    spine = 0.9 * np.exp(-((across / 0.16) ** 2)) * (1 + 0.15 * np.cos(2 * np.pi * y / (high / 9)))
    arc = (y - top + 0.3 * high * across**2) / (high / 7) + rng.uniform()
    ribs = 0.35 * np.cos(np.pi * arc) ** 8 * np.exp(-((across / 1.05) ** 8)) * ((y > top - 0.1) & (y < bottom + 0.05))
    size = rng.normal(1, 0.07) * (1.4 if cardiomegaly else 1)
    heart_x, heart_y = across - 0.2 - 0.06 * (size - 1), (y - bottom + 0.27 * high) / high
    heart = 1.3 * np.exp(-(((heart_x / (0.36 * size)) ** 2 + (heart_y / (0.26 * size)) ** 2) ** 2))
    noise = ndimage.gaussian_filter(rng.standard_normal((side, side)), side / 40)
    vessels = 0.12 * noise / noise.std() * inside
    air = sum(1.8 * np.sqrt(1 - (1 - d) ** 2) * lung for d, lung in zip(depth, both, strict=True))
    attenuation = body + spine + ribs + heart + vessels - air
    if opacity:
        for _ in range(rng.integers(1, 3)):
            row, column = rng.permutation(np.argwhere(np.maximum(*depth) > 0.25))[0]
            sigma = rng.uniform(0.08, 0.15) * wide
            distance = (y - axis[row]) ** 2 + (x - axis[column]) ** 2
            attenuation += rng.uniform(0.7, 1.2) * np.exp(-distance / (2 * sigma**2)) * inside
    if pneumothorax:
        chosen = int(rng.integers(2))
        lung, d = both[chosen], depth[chosen]
        lateral = 1 / (1 + np.exp(-8 * (np.abs(across) - 0.5 + 0.25 * (top + 0.4 * high - y))))
        edge = rng.uniform(0.35, 0.5)
        attenuation -= 0.8 * lateral * lung / (1 + np.exp((d - edge) / 0.04))
        attenuation += 0.35 * lateral * lung * np.exp(-(((d - edge) / 0.07) ** 2))

    exposure, gamma, grain = HOSPITALS[hospital]
    passed = np.exp(-attenuation.clip(0))
    passed = exposure * np.exp(rng.normal(0, 0.08)) * passed + grain * np.sqrt(passed) * rng.standard_normal(x.shape)
    shown = (1 - passed).clip(0, 1) ** (gamma * np.exp(rng.normal(0, 0.06)))  # air is dark, as radiologists see it
    return np.round(255 * shown).astype(np.uint8), inside > 0.5


def build(packages: dict[str, Path], images: int = 1500, side: int = 64, seed: int = 0, masks: str = "") -> Images:
    """``images`` radiographs of ``side`` pixels, drawn once and kept in the cache.

    Patients are masks: every image of a mask is one patient's. ``masks=lungs`` also writes the lungs as PNG files into
    the cache and names them in the column ``mask``, for segmentation.

    Raises:
        DataError: fewer than 3 images, a side below 16, another value of ``masks``.
    """
    if images < 3 or side < 16:
        raise DataError(
            f"simulated-radiographs: images={images}, side={side}: at least 3 images of 16 pixels are drawn"
        )
    if masks not in ("", "lungs"):
        raise DataError(f"simulated-radiographs: masks={masks}: expected lungs")
    folder = cache() / "simulated-radiographs"
    cached = folder / f"images-{MADE}-{images}-{side}-{seed}.npz"
    if not cached.exists():
        pairs, names = lungs(packages["torchxrayvision"] / _FILE)
        patients = np.random.default_rng([seed, 0]).permutation(np.resize(np.arange(len(pairs)), images))
        pixels, inside = np.empty((images, side, side), np.uint8), np.empty((images, side, side), bool)
        findings, hospitals = np.empty((images, len(FINDINGS)), np.int64), np.empty(images, "<U1")
        for i, patient in enumerate(patients):
            rng = np.random.default_rng([seed, 1, i])
            found, hospitals[i] = rng.random(len(FINDINGS)) < PREVALENCE, rng.choice(list(HOSPITALS))
            findings[i] = found
            pixels[i], inside[i] = radiograph(pairs[patient], tuple(found), str(hospitals[i]), side, rng)
        _save(cached, pixels=pixels, lungs=np.packbits(inside), findings=findings, hospital=hospitals,
              patient=np.array(names)[patients])  # fmt: skip
    with np.load(cached) as arrays:
        made = dict(arrays)
    ids = [f"sim-{seed}-{i:05d}" for i in range(images)]
    columns = {
        **{name: made["findings"][:, j] for j, name in enumerate(FINDINGS)},
        "hospital": made["hospital"],
        "patient": made["patient"],
    }
    if masks:
        inside = np.unpackbits(made["lungs"], count=images * side * side).reshape(images, side, side)
        columns["mask"] = _written(folder / f"lungs-{MADE}-{images}-{side}-{seed}", ids, inside)
    return Images(ids, list(made["pixels"]), columns, {"label": FINDINGS, "group": ("patient",)})


def _written(folder: Path, ids: list[str], inside: np.ndarray) -> list[str]:
    paths = [folder / f"{name}.png" for name in ids]
    if not paths[-1].exists():
        folder.mkdir(parents=True, exist_ok=True)
        for path, mask in zip(paths, inside, strict=True):
            Image.fromarray(255 * mask).save(path)
    return [str(path) for path in paths]


_FILE = "torchxrayvision/data/semantic_masks_v7labs_lungs.zip"
_TABLES = ("Data_Entry_2017_v2020.csv.gz", "chexpert_train.csv.gz", "kaggle_stage_2_train_labels.csv.zip",
           "siim-pneumothorax-train-rle.csv.gz", "vinbigdata-train.csv.gz")  # fmt: skip
"""Label tables of real data sets, whose readers are tested on them."""

SAMPLE = Sample(
    name="simulated-radiographs",
    kind="images",
    about="synthetic: 1,500 radiographs drawn around 433 real lung masks, four hospitals, three findings",
    licence="lung masks: V7 Labs via torchxrayvision (Apache-2.0); the pictures are drawn here",
    build=build,
    packages=(
        Package(
            name="torchxrayvision",
            version="1.5.7",
            files=(_FILE, *(f"torchxrayvision/data/{name}" for name in _TABLES)),
            sha256=("95f6c3475661f3515d4258deb0855bd5d1b1a56e0b65384251d3dd3fa61fac41",),
            licence="Apache-2.0",
        ),
    ),
)
