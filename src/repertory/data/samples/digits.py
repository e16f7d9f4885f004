"""Handwritten digits: 1,797 real pictures of 8 x 8 pixels from the installed scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from repertory.data.images import Images
from repertory.data.samples import Sample
from repertory.errors import DataError


def build(packages: dict[str, Path], side: int = 8) -> Images:
    """The digits, grey, enlarged bicubically where ``side`` is more than 8.

    Raises:
        DataError: a side below 8.
    """
    from sklearn.datasets import load_digits

    if side < 8:
        raise DataError(f"digits: side={side}: the pictures have 8 pixels; they can only be enlarged")
    pixels, labels = load_digits(return_X_y=True)
    grey = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = [Image.fromarray(g).resize((side, side), Image.Resampling.BICUBIC) for g in grey]
    ids = [f"digit-{i:04d}" for i in range(len(labels))]
    return Images(ids, images, {"label": labels.astype(str)}, {"label": ("label",)})


SAMPLE = Sample(
    name="digits",
    kind="images",
    about="1,797 handwritten digits of 8 x 8 pixels",
    licence="UCI Optical Recognition of Handwritten Digits (CC BY 4.0), from scikit-learn (BSD-3)",
    build=build,
)
