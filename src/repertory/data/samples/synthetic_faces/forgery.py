"""Forged pictures of drawn faces: a region blended in from another face, or the picture of a picture."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

REGIONS = {"mouth": (7, 8, 9), "eyes": (2, 3, 4, 5), "face": (1, 2, 3, 4, 5, 6, 7, 8, 9)}
"""Classes of the parsing map that a forgery takes from another face."""
FORGERIES = (*REGIONS, "spoof")


def blended(
    face: np.ndarray,
    parsing: np.ndarray,
    donor: np.ndarray,
    donor_parsing: np.ndarray,
    region: str,
    rng: np.random.Generator,
    mismatch: float = 60,
) -> np.ndarray:
    """``face`` with a region of ``donor`` behind a soft mask, brought to its colours but for a difference.

    As in self-blended images (Shiohara and Yamasaki 2022): what betrays it are the edge of the mask, what is left of
    the difference in colour, and that one region does not fit to the others.

    Args:
        face, donor: ``[S, S, 3]`` uint8, in the same pose.
        parsing, donor_parsing: ``[S, S]`` classes.
        region: a key of :data:`REGIONS`.
        mismatch: the largest difference that is left in red, green and blue, of 255; the least is half of it.
    """
    size, classes = len(face), REGIONS[region]
    inside = np.isin(parsing, classes) | np.isin(donor_parsing, classes)
    if region == "face":
        inside = ndimage.binary_erosion(inside & (parsing != 0) & (donor_parsing != 0), iterations=max(1, size // 21))
    else:
        inside = ndimage.binary_dilation(inside, iterations=max(1, size // 21))
    mask = ndimage.gaussian_filter(inside.astype(np.float32), size * rng.uniform(0.01, 0.025))
    mask *= rng.uniform(0.85, 1.0)
    weight = mask[..., None] / max(mask.sum(), 1e-6)
    to, given = face.astype(np.float32), donor.astype(np.float32)
    shift = (weight * (to - given)).sum((0, 1)) + rng.uniform(mismatch / 2, mismatch, 3) * rng.choice([-1, 1], 3)
    return (to + mask[..., None] * (given + shift - to)).clip(0, 255).astype(np.uint8)


def replayed(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``face`` as a camera sees it on a screen or in print: blurred, flattened, with moire. ``[S, S, 3]`` uint8."""
    size = len(face)
    blurred = ndimage.gaussian_filter(face.astype(np.float32), (size * rng.uniform(0.008, 0.015),) * 2 + (0,))
    row, column = np.mgrid[:size, :size].astype(np.float32) / size
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(9, 15)
    wave = np.sin(2 * np.pi * pitch * (np.cos(angle) * column + np.sin(angle) * row) + rng.uniform(0, 6))
    beat = np.sin(2 * np.pi * rng.uniform(1, 3) * (row + 0.4 * column) + rng.uniform(0, 6))
    moire = rng.uniform(0.03, 0.07) * wave * (0.6 + 0.4 * beat)
    tint = 1 + rng.uniform(-0.05, 0.05, 3)
    flat = 128 + rng.uniform(0.8, 0.95) * (blurred - 128)
    return (flat * (1 + moire[..., None]) * tint).clip(0, 255).astype(np.uint8)
