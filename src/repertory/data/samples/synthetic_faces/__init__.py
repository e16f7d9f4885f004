"""Synthetic faces: drawn portraits with exact parsing maps, real (as drawn) or forged.

Every video shows one person in several frames: other poses, light and expressions. Each person has a real video and a
forged one. The parsing maps lie in one file in the cache; the column ``parsing`` names file and row, and
:func:`parsing_map` reads it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from repertory.data.images import Images
from repertory.data.samples import Sample, cache
from repertory.data.samples.synthetic_faces.drawing import ACTIONS, Identity, render
from repertory.data.samples.synthetic_faces.forgery import FORGERIES, blended, replayed
from repertory.errors import DataError

CAMERAS = {"A": (2.0, 0.0, 1.0), "B": (6.0, 0.0, 0.9), "C": (3.0, 0.5, 1.0), "D": (4.0, 0.3, 1.15)}
"""Noise (of 255), blur (in pixels of 64) and gamma."""
MADE = "1"
"""In the names of the cached files; changes with what is drawn."""
CACHED = "synthetic-faces:"
"""Before the name of a file in the cache, so that a column does not depend on whose cache it is."""


def build(
    packages: dict[str, Path],
    images: int = 1600,
    side: int = 64,
    seed: int = 0,
    frames: int = 4,
    forgeries: str = "face",
    unseen: str = "",
    mismatch: int = 60,
) -> Images:
    """Faces of ``side`` pixels, drawn once and kept in the cache.

    Args:
        images: how many; half of them real.
        side: of a picture in pixels.
        seed: of everything random.
        frames: pictures a video.
        forgeries: some of face, eyes, mouth (blended in from another person) and spoof (a replayed picture).
        unseen: forgeries, or cameras A to D, that are met in the test part only (the other forgeries are not in it,
            and its people are others); empty: no parts are named, people are on one side of any division.
        mismatch: how far, at most, the colours of what is blended in are off, of 255.

    Raises:
        DataError: fewer than 6 people, a side below 16, an unknown forgery or camera.
    """
    kinds, held = _listed(forgeries), _listed(unseen)
    unknown = [k for k in kinds if k not in FORGERIES] + [u for u in held if u not in (*kinds, *CAMERAS)]
    if unknown or not kinds:
        raise DataError(
            f"synthetic-faces: '{unknown[0] if unknown else forgeries}': expected forgeries of "
            f"{', '.join(FORGERIES)}, and as unseen some of them or of the cameras {', '.join(CAMERAS)}"
        )
    if side < 16 or frames < 1 or images < 12 * frames or not 0 <= mismatch <= 255:
        raise DataError(
            f"synthetic-faces: images={images}, frames={frames}, side={side}, mismatch={mismatch}: at least 6 people "
            "with 2 videos each are drawn, of 16 pixels or more, with a mismatch of 0 to 255"
        )
    name = f"{MADE}-{images}-{side}-{seed}-{frames}-{mismatch}-{'+'.join(kinds)}"
    folder = cache() / "synthetic-faces"
    pixels, maps = folder / f"pixels-{name}.npy", folder / f"parsing-{name}.npy"
    videos = -(-images // frames)
    camera = np.array([list(CAMERAS)[k] for k in np.random.default_rng([seed, 2]).integers(0, len(CAMERAS), videos)])
    video, frame = np.divmod(np.arange(images), frames)
    forged = video % 2 == 1
    forgery = np.where(forged, np.array(kinds)[video // 2 % len(kinds)], "none")
    if not maps.exists():
        made = [
            _picture(seed, int(v), int(f), str(k), str(camera[v]), side, mismatch)
            for v, f, k in zip(video, frame, forgery, strict=True)
        ]
        _save(pixels, np.stack([picture for picture, _ in made]))
        _save(maps, np.stack([parsing for _, parsing in made])[:, None].astype(np.int8))
    columns: dict[str, Any] = {
        "label": np.where(forged, "fake", "real"),
        "forgery": forgery,
        "video": [f"video{v:04d}" for v in video],
        "identity": [f"person{v // 2:04d}" for v in video],
        "camera": camera[video],
        "parsing": [f"{CACHED}{maps.name}[{i}]" for i in range(images)],
    }
    items = Images(
        [f"s{seed}-video{v:04d}_frame_{f}" for v, f in zip(video, frame, strict=True)],
        list(np.load(pixels)),
        columns,
        {"label": ("label",), "group": ("identity",)},
    )
    return _with_parts(items, video // 2, held) if held else items


def parsing_map(reference: str) -> np.ndarray:
    """The map ``[1, S, S]`` int8 that the column ``parsing`` names."""
    name, _, row = reference.removeprefix(CACHED).rstrip("]").rpartition("[")
    return np.array(_maps(cache() / "synthetic-faces" / name)[int(row)])


@lru_cache(maxsize=4)
def _maps(path: Path) -> np.ndarray:
    maps: np.ndarray = np.load(path, mmap_mode="r")
    return maps


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    np.save(temporary, array)
    temporary.replace(path)


def expression(rng: np.random.Generator) -> dict[int, float]:
    """A few action units at random intensities, most of them weak."""
    units = rng.choice(list(ACTIONS), size=int(rng.integers(0, 4)), replace=False)
    return {int(unit): float(rng.beta(1.2, 2.0)) for unit in units}


def _picture(
    seed: int, video: int, frame: int, forgery: str, camera: str, side: int, mismatch: float
) -> tuple[np.ndarray, np.ndarray]:
    person = Identity.draw(np.random.default_rng([seed, 0, video // 2]))
    moved = expression(np.random.default_rng([seed, 1, video, frame]))
    drawn = np.random.SeedSequence([seed, 3, video, frame])
    noise, blur, gamma = CAMERAS[camera]
    picture, parsing = render(person, side, np.random.default_rng(drawn), moved, noise=0)
    rng = np.random.default_rng([seed, 4, video, frame])
    if forgery == "spoof":
        picture = replayed(picture, rng)
    elif forgery != "none":
        other = Identity.draw(np.random.default_rng([seed, 5, video]))
        donor = render(other, side, np.random.default_rng(drawn), moved, noise=0)
        picture = blended(picture, parsing, *donor, forgery, rng, mismatch)
    seen = picture.astype(np.float32)
    if blur:
        seen = ndimage.gaussian_filter(seen, (blur * side / 64, blur * side / 64, 0))
    seen = 255 * (seen / 255) ** gamma + noise * rng.standard_normal(seen.shape, np.float32)
    return seen.clip(0, 255).astype(np.uint8), parsing


def _with_parts(items: Images, person: np.ndarray, unseen: list[str]) -> Images:
    """Divides by person, 7 : 1 : 2; keeps what is unseen out of training, and other forgeries out of the test."""
    share = np.random.default_rng(0).permutation(int(person.max()) + 1)[person] / (person.max() + 1)
    split = np.where(share < 0.7, "train", np.where(share < 0.8, "val", "test"))
    forgery, camera = items.column("forgery").astype(str), items.column("camera").astype(str)
    forgeries = [u for u in unseen if u not in CAMERAS]
    cameras = [u for u in unseen if u in CAMERAS]
    new = np.ones(len(items), bool)
    if forgeries:
        new &= np.isin(forgery, [*forgeries, "none"])
    if cameras:
        new &= np.isin(camera, cameras)
    old = ~np.isin(forgery, forgeries) & ~np.isin(camera, cameras)
    kept = np.where(split == "test", new, old)
    made = items.take(kept)
    made.columns = made.columns.append_column("split", [split[kept].tolist()])
    return made


SAMPLE = Sample(
    name="synthetic-faces",
    kind="images",
    about="synthetic: 1,600 drawn faces of 200 people with parsing maps, half of them forged (another face blended in)",
    licence="drawn here; shows no real person",
    build=build,
)
