"""Label noise for experiments: every training label is redrawn from its class's row of a transition matrix."""

from __future__ import annotations

from typing import Literal

import numpy as np

from repertory.errors import ConfigError, DataError

Noise = Literal["symmetric", "asymmetric"]
"""To any other class, or to one other class that each class has (``pair``)."""


def transition_matrix(
    classes: int, ratio: float, noise: Noise = "symmetric", flips_to: np.ndarray | None = None
) -> np.ndarray:
    """Q [classes, classes] (section 3.1 of ERASE's experiments): 1 - ratio on the diagonal.

    Args:
        ratio: share of wrong labels, in 0..1.
        noise: ``symmetric``: ratio / (classes - 1) everywhere else; ``asymmetric``: ratio at one other class.
        flips_to: [classes] which one; None: drawn uniformly from NumPy's global state.

    Raises:
        ConfigError: ratio outside 0..1, or a single class.
    """
    if not 0 <= ratio <= 1:
        raise ConfigError(f"noise {ratio}: a share between 0 and 1 is needed")
    if classes < 2:
        raise ConfigError("noise needs at least two classes")
    matrix = np.full((classes, classes), ratio / (classes - 1) if noise == "symmetric" else 0.0)
    np.fill_diagonal(matrix, 1 - ratio)
    if noise == "asymmetric":
        if flips_to is None:
            flips_to = (np.arange(classes) + np.random.randint(1, classes, classes)) % classes
        if (np.asarray(flips_to) == np.arange(classes)).any():
            raise ConfigError("flips_to: a class that is mistaken for itself")
        matrix[np.arange(classes), flips_to] = ratio
    return matrix


def corrupted(labels: np.ndarray, matrix: np.ndarray, uniform: np.ndarray | None = None) -> np.ndarray:
    """Labels [n] redrawn: the first class whose cumulative probability exceeds the draw.

    Args:
        labels: [n] of 0 .. classes - 1. matrix: [classes, classes].
        uniform: [n] in 0..1; None: drawn from NumPy's global state.

    Raises:
        DataError: a label lies outside.
    """
    labels = np.asarray(labels)
    if len(labels) and (labels.min() < 0 or labels.max() >= len(matrix)):
        raise DataError(f"labels from {labels.min()} to {labels.max()}: 0 to {len(matrix) - 1} are needed")
    uniform = np.random.rand(len(labels)) if uniform is None else uniform
    below = np.cumsum(matrix, axis=1)[labels] <= uniform[:, None]
    last = len(matrix) - 1 - (matrix[:, ::-1] > 0).argmax(axis=1)  # rounding may leave the whole sum below the draw
    made: np.ndarray = np.minimum(below.sum(axis=1), last[labels])
    return made
