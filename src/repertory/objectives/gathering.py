"""Negatives from all processes of a training on several devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def several_processes() -> bool:
    """Whether this process is one of a group that is initialised."""
    return dist.is_available() and dist.is_initialized()


def gathered(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor ``[B, ...]`` with the rows of all processes, ``[processes * B, ...]``; B is the same in each.

    Gradients averaged over the processes, as DDP does, are those of the joint batch.
    """
    from torch.distributed.nn.functional import all_gather  # not in every build of torch

    return [torch.cat(all_gather(tensor)) for tensor in tensors]
