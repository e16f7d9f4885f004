"""The checks that every measure makes of its vectors and labels, each failing in one line."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from repertory.errors import DataError

Task = Literal["classes", "multilabel", "regression"]


def check_vectors(vectors: ArrayLike, name: str = "vectors", width: int | None = None) -> np.ndarray:
    """A finite float array ``[N, D]`` with N, D >= 1, float32 or float64.

    Raises :class:`DataError` naming the first row that is wrong.
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{name}: shape {array.shape}; needs a table [items, width] with at least one of each")
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name}: dtype {array.dtype}; needs real numbers")
    if width is not None and array.shape[1] != width:
        raise DataError(f"{name}: width {array.shape[1]}, but the vectors to compare with have width {width}")
    array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise DataError(
            f"{name}: row {int(bad.argmax())} is NaN or infinite ({int(bad.sum())} such rows); leave them out"
        )
    return array


def check_labels(labels: ArrayLike, items: int, name: str = "labels") -> np.ndarray:
    """Labels ``[N]`` or ``[N, L]`` for ``items`` vectors, without missing values. Objects become strings."""
    array = np.asarray(labels)
    if array.ndim not in (1, 2) or len(array) != items:
        raise DataError(f"{name}: shape {array.shape} for {items} vectors; needs one row for each")
    if array.dtype == object:
        # what None, NaN, NaT and the NA of pandas are called, so that none becomes a class of its own
        missing = np.isin(array.astype(str), ("None", "nan", "NaT", "<NA>"))
        array = array if missing.any() else array.astype(str)
    else:
        missing = ~np.isfinite(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    if missing.any():
        row = int(missing.reshape(items, -1).any(axis=1).argmax())
        raise DataError(f"{name}: row {row} has no label ({int(missing.sum())} missing); leave such rows out")
    return array


def task_of(labels: np.ndarray) -> Task:
    """What checked labels ask for: a 0/1 matrix is multi-label, fractions are regression, all else classes."""
    if labels.ndim == 2:
        if labels.dtype.kind not in "fiub" or not np.isin(labels, (0, 1)).all():
            raise DataError("labels: a matrix of labels must hold only 0 and 1, one column a label")
        return "multilabel"
    return "regression" if labels.dtype.kind == "f" and (labels != np.round(labels)).any() else "classes"


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)
