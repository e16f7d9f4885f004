"""Tiles of real photographs and textures from the installed scikit-image; the class is the picture."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from repertory.data.images import Images
from repertory.data.samples import Sample
from repertory.errors import DataError

PICTURES = ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png",
            "hubble_deep_field.jpg", "retina.jpg", "rocket.jpg")  # fmt: skip


def build(packages: dict[str, Path], side: int = 32, scale: float = 0.5, each: int = 120, seed: int = 0) -> Images:
    """Tiles that do not overlap, ``each`` of every picture, drawn from ``seed``; flat ones are left out.

    Args:
        side: of a tile, in pixels.
        scale: the pictures are shrunk by this factor first.
        each: tiles of a picture, at most.

    Raises:
        DataError: a picture holds no tile of this size.
    """
    if side < 4 or not 0 < scale <= 1 or each < 1:
        raise DataError(f"photographs: side={side}, scale={scale}, each={each}: side >= 4, 0 < scale <= 1, each >= 1")
    ids, tiles, labels = [], [], []
    for name in PICTURES:
        with Image.open(str(files("skimage.data") / name)) as opened:
            size = [round(n * scale) for n in opened.size]
            picture = np.asarray(opened.convert("RGB").resize((size[0], size[1]), Image.Resampling.BOX))
        corners = [(r, c) for r in range(0, size[1] - side + 1, side) for c in range(0, size[0] - side + 1, side)]
        order = np.random.default_rng([seed, len(labels)]).permutation(len(corners))
        found = [(corners[i], picture[corners[i][0] :, corners[i][1] :][:side, :side]) for i in order]
        found = [(corner, tile) for corner, tile in found if tile.std() > 4][:each]
        if not found:
            raise DataError(f"photographs: {name} of {size[0]} x {size[1]} pixels holds no tile of {side}")
        stem = name.partition(".")[0]
        ids += [f"{stem}-{row}-{column}" for (row, column), _ in found]
        tiles += [tile for _, tile in found]
        labels += [stem] * len(found)
    return Images(ids, tiles, {"label": labels}, {"label": ("label",)})


SAMPLE = Sample(
    name="photographs",
    kind="images",
    about="tiles of 10 photographs and textures, the class is the picture",
    licence="CC0 or public domain, from scikit-image (BSD-3)",
    build=build,
)
