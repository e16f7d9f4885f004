"""Synthetic facial action units: drawn faces, cropped as data sets of action units are, of people with habits.

In the training part each person shows each action unit either often or seldom, so that who it is says what is shown:
a shortcut that does not help with other people. People outside the training part show every unit in half of their
pictures. No set of faces with coded action units is free of an agreement, so none can be brought along.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from repertory.data.images import Images
from repertory.data.samples import Sample, cache
from repertory.data.samples.synthetic_faces.drawing import ACTIONS, Identity, render
from repertory.errors import DataError, nearest

SHARES = {"train": 0.5, "val": 0.15, "test": 0.35}
"""Of the people."""
OFTEN = 0.9
"""Share of a training person's pictures that show a unit of theirs; other units are in the rest, ``1 - OFTEN``."""
INTENSITY = (0.5, 1.0)
"""Of a unit that is shown."""
CROP = 1.5
"""The picture is so many times as large as what is kept of it."""
POSE = 0.25
"""How much heads are turned and moved, of what is drawn for wild pictures: action units are coded in aligned faces."""
MADE = "2"
"""In the names of the cached files; changes with what is drawn."""


def face(identity: Identity, side: int, actions: dict[int, float], rng: np.random.Generator) -> np.ndarray:
    """A face that fills its picture ``[side, side, 3]`` uint8, nearly frontal, in some light."""
    size = round(CROP * side)
    pixels, _ = render(identity, size, rng, actions, pose=POSE)
    first = (size - side) // 2
    return np.ascontiguousarray(pixels[first : first + side, first : first + side])


def build(
    packages: dict[str, Path], images: int = 2400, subjects: int = 80, side: int = 32, seed: int = 0,
    aus: str = "1,4,12,25,26",
) -> Images:  # fmt: skip
    """``images`` faces of ``side`` pixels of ``subjects`` people, drawn once and kept in the cache.

    Columns ``AU1``, ... (1 shown, 0 not), ``subject``, and ``split``: no person is in two parts.

    Args:
        aus: numbers of the units that are shown and coded, of ``drawing.ACTIONS``.

    Raises:
        DataError: fewer than 6 people, fewer images than people, a side below 16, a unit that cannot be drawn.
    """
    if subjects < 6 or images < subjects or side < 16:
        raise DataError(
            f"synthetic-actions: images={images}, subjects={subjects}, side={side}: at least 6 people, an image of "
            "each, and 16 pixels are needed"
        )
    known = {str(number): number for number in ACTIONS}
    for text in aus.split(","):
        if text not in known:
            raise DataError(f"synthetic-actions: aus={aus}: '{text}' is not drawn{nearest(text, known)}")
    units = [known[text] for text in aus.split(",")]
    cached = cache() / "synthetic-actions" / f"images-{MADE}-{images}-{subjects}-{side}-{seed}-{aus}.npz"
    if not cached.exists():
        _draw(cached, images, subjects, side, seed, units)
    with np.load(cached) as arrays:
        made = dict(arrays)
    columns = {
        **{f"AU{unit}": made["shown"][:, j] for j, unit in enumerate(units)},
        "subject": made["subject"],
        "split": made["split"],
    }
    frames = np.arange(images) // subjects
    ids = [f"{person}/{frame:04d}" for person, frame in zip(made["subject"], frames, strict=True)]
    return Images(ids, list(made["pixels"]), columns, {"label": tuple(f"AU{u}" for u in units), "group": ("subject",)})


def _draw(path: Path, images: int, subjects: int, side: int, seed: int, units: list[int]) -> None:
    people = [Identity.draw(np.random.default_rng([seed, 0, i])) for i in range(subjects)]
    rng = np.random.default_rng([seed, 1])
    counts = {part: max(2, round(share * subjects)) for part, share in SHARES.items() if part != "train"}
    parts = np.repeat(["train", *counts], [subjects - sum(counts.values()), *counts.values()])
    rates = np.full((subjects, len(units)), 0.5)
    trained = np.flatnonzero(parts == "train")
    for column in rates.T:  # as many people with the habit as without, else chance would make units rare
        habit = rng.permutation(np.arange(len(trained)) % 2)
        column[trained] = np.where(habit, OFTEN, 1 - OFTEN)
    who = np.arange(images) % subjects
    pixels, shown = np.empty((images, side, side, 3), np.uint8), np.empty((images, len(units)), np.int64)
    for i, person in enumerate(who):
        rng = np.random.default_rng([seed, 2, i])
        shown[i] = rng.random(len(units)) < rates[person]
        intensity = rng.uniform(*INTENSITY, len(units)) * shown[i]
        pixels[i] = face(people[person], side, dict(zip(units, intensity.tolist(), strict=True)), rng)
    names = np.array([f"P{i:03d}" for i in range(subjects)])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    np.savez_compressed(temporary, pixels=pixels, shown=shown, subject=names[who], split=parts[who])
    temporary.replace(path)


SAMPLE = Sample(
    name="synthetic-actions",
    kind="images",
    about="synthetic: 2,400 drawn faces of 80 people, five action units; people of the training part have habits",
    licence="the pictures are drawn here",
    build=build,
)
