"""What Symile is compared with: pairwise CLIP, which sees every pair of modalities and nothing beyond."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.objectives.gathering import gathered, several_processes
from repertory.systems.symile.objective import check_logit_scale, check_loss, check_queries, check_representations


def infonce(x: Tensor, y: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE of two aligned tensors [B, d]: mean of the cross-entropies over rows and over columns."""
    logits = (logit_scale * x) @ y.T
    target = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class PairwiseCLIPLoss(nn.Module):
    """Sum, not mean, of the symmetric InfoNCE over all pairs of modalities; called like ``SymileLoss``.

    ``gather=True`` takes, in training mode, the negatives from all processes, as there.
    """

    def __init__(self, gather: bool = False) -> None:
        super().__init__()
        self.gather = gather

    def forward(self, representations: Sequence[Tensor], logit_scale: Tensor | float) -> Tensor:
        check_representations(representations)
        check_logit_scale(logit_scale)
        with torch.autocast(representations[0].device.type, enabled=False):
            tensors = [r.float() if r.dtype in (torch.float16, torch.bfloat16) else r for r in representations]
            if self.gather and self.training and several_processes():
                tensors = gathered(tensors)
            loss = torch.stack([infonce(x, y, logit_scale) for x, y in combinations(tensors, 2)]).sum()
        return check_loss(loss, representations)


def pairwise_similarity(queries: Sequence[Tensor], candidates: Tensor) -> Tensor:
    """Sum of the dot products over all pairs of (queries, candidate): [Q, K]; arguments as in ``mip_similarity``.

    The pairs among the queries add a constant per query, which changes no ranking and no softmax; the official code
    includes them.
    """
    check_queries(queries, candidates)
    rows = [torch.atleast_2d(q) for q in queries]
    scores = sum(rows[1:], start=rows[0]) @ candidates.T
    for x, y in combinations(rows, 2):
        scores = scores + (x * y).sum(dim=1, keepdim=True)
    return scores
