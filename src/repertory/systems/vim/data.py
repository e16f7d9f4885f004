"""Repeated augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Repeated:
    """Repeated augmentation (Berman et al. 2019; DeiT): each image comes ``times`` in a batch, varied anew."""

    collate: Callable[[Sequence[int] | np.ndarray], dict[str, Tensor]]
    times: int

    def __call__(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        return self.collate(np.repeat(np.asarray(rows), self.times))
