"""A ring buffer of keys: the negatives of earlier batches (He et al. 2020, MoCo, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.errors import ConfigError


class Queue(nn.Module):
    """The last ``size`` keys, as buffers: ``keys`` ``[K, d]`` and ``pointer`` ``[1]`` int64, where the next ones go.

    It begins with random unit vectors.

    Args:
        size: K, a multiple of the number of keys that come at a time.
        dim: length of a key, d.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ConfigError(f"a queue of {size} keys of length {dim}: at least 1 of each is needed")
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.keys)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Puts ``keys`` ``[B, d]`` in the place of the oldest.

        Raises:
            ConfigError: K is not a multiple of B, or the keys have another length.
        """
        if keys.ndim != 2 or keys.shape[1] != self.keys.shape[1]:
            raise ConfigError(f"keys of shape {list(keys.shape)}: the queue holds keys of length {self.keys.shape[1]}")
        check_queue(len(self), len(keys))
        rows = self.pointer + torch.arange(len(keys), device=self.pointer.device)
        self.keys[rows] = keys.to(self.keys.dtype)
        self.pointer.add_(len(keys)).remainder_(len(self))


def check_queue(size: int, batch: int) -> None:
    """Refuses a queue of ``size`` keys that ``batch`` keys at a time do not fill exactly.

    Raises:
        ConfigError: names both and the nearest size that fits.
    """
    if size % batch:
        fitting = max(1, round(size / batch)) * batch
        raise ConfigError(
            f"a queue of {size} keys is not a multiple of the {batch} keys of a step: set queue_size={fitting}"
        )
