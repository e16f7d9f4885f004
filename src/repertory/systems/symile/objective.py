"""The Symile objective: contrastive learning for any number of modalities through total correlation.

Saporta, Puli, Goldstein, Ranganath, "Contrasting with Symile", NeurIPS 2024, arXiv 2411.01053. The critic is the
multilinear inner product MIP(x_1, ..., x_M) = sum_d prod_m x_m[d].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import mul
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from repertory.errors import ConfigError, DataError, nearest
from repertory.objectives.gathering import gathered, several_processes

NegativeSampling = Literal["n", "n_squared"]
MEMORY_LIMIT = 4 * 2**30  # bytes
CHUNK = 2**18  # inner products that the streamed form holds at once


def check_representations(representations: Sequence[Tensor]) -> None:
    """Raises DataError unless there are M >= 2 floating-point tensors of one shape [B, d] with B >= 2."""
    if len(representations) < 2:
        raise DataError(f"a contrastive loss needs at least 2 modalities, got {len(representations)}")
    shapes = [tuple(r.shape) for r in representations]
    if any(len(shape) != 2 for shape in shapes) or len(set(shapes)) > 1:
        raise DataError(f"representations must all have one shape [batch, dim], got {', '.join(map(str, shapes))}")
    for index, r in enumerate(representations):
        if not r.is_floating_point():
            raise DataError(f"representation {index} has dtype {r.dtype}; a floating-point dtype is needed")
    if shapes[0][0] < 2:
        raise DataError(f"a batch of {shapes[0][0]} holds no negatives; use a batch of at least 2")


def check_loss(loss: Tensor, representations: Sequence[Tensor]) -> Tensor:
    """``loss`` if it is finite; otherwise DataError names the first modality and row that is to blame."""
    if loss.isfinite():
        return loss
    for index, r in enumerate(representations):
        bad = (~r.isfinite()).any(dim=1).nonzero()
        if len(bad):
            raise DataError(
                f"representation {index}, row {int(bad[0])} holds NaN or infinity "
                "(a zero vector divided by its norm?); normalise with torch.nn.functional.normalize"
            )
    raise DataError(f"the loss is {loss.item()}: the inner products times logit_scale overflow; lower s")


def check_logit_scale(logit_scale: Tensor | float) -> None:
    """Raises ConfigError unless the scale is a positive number: exp(s), not the learned s itself."""
    if isinstance(logit_scale, Tensor) and logit_scale.numel() != 1:
        raise ConfigError(f"logit_scale must be one number, got shape {tuple(logit_scale.shape)}")
    scale = float(torch.as_tensor(logit_scale).detach())
    if not scale > 0:
        raise ConfigError(f"logit_scale must be positive, got {scale:.4g}; pass exp(s), not s")


def draw_permutations(modalities: int, batch: int, device: torch.device | str = "cpu") -> Tensor:
    """One fresh row permutation per (anchor, other) pair: [M, M - 1, B], others by increasing index."""
    return torch.rand(modalities, modalities - 1, batch, device=device).argsort(dim=-1)


def logits_n(anchor: Tensor, others: Sequence[Tensor], permutations: Tensor, positives: Tensor | None = None) -> Tensor:
    """Logits of one anchor against B shuffled tuples: the O(B) negatives of the paper.

    ``anchor`` and each of ``others``: [B, d]; ``permutations``: [M - 1, B], row j of other m is
    ``others[m][permutations[m, j]]``. Returns [B, B]; the diagonal holds the MIP of the aligned tuples (``positives``
    [B], where they are known). A shuffled tuple may by chance be an aligned one; as in the official code it stays.
    """
    negatives = reduce(mul, (other[permutation] for other, permutation in zip(others, permutations, strict=True)))
    logits = anchor @ negatives.T
    logits.diagonal().copy_(reduce(mul, others, anchor).sum(dim=1) if positives is None else positives)
    return logits


def logits_n_squared(anchor: Tensor, others: Sequence[Tensor], memory_limit: int = MEMORY_LIMIT) -> Tensor:
    """Logits of one anchor against all B^(M-1) tuples, for inspection: [B, B^(M-1)], positives on the diagonal.

    Columns go by successive rolls of the later modalities: for three, block s holds ``y * roll(z, s)``. The loss
    streams the same numbers and never holds them at once. ConfigError where they exceed ``memory_limit`` bytes.
    """
    batch, dim = anchor.shape
    _check_memory(batch ** len(others) * (batch + dim) * anchor.element_size(), memory_limit)

    def products(tensors: Sequence[Tensor]) -> Tensor:
        if len(tensors) == 1:
            return tensors[0]
        first, *rest = tensors
        if len(rest) == 1:
            return torch.cat([first * rest[0].roll(s, 0) for s in range(batch)])
        blocks = products(rest).view(-1, batch, dim)
        return torch.cat([(first.roll(s, 0) * blocks).flatten(0, 1) for s in range(batch)])

    return anchor @ products(others).T


class SymileLoss(nn.Module):
    """Mean over the anchors of the cross-entropy that finds the row of the anchor's own tuple.

    ``negative_sampling``: ``"n"`` compares each anchor with B tuples whose other members are shuffled apart;
    ``"n_squared"`` with all B^(M-1) tuples, streamed: the inner products are computed in chunks, shared by the
    anchors, and again in the backward pass, so memory grows with B^(M-2) d only. ``gather=True`` takes, in training
    mode, the negatives from all processes of an initialised process group (equal B in each): each process then
    returns the loss of the joint batch, shuffled by the permutations that the first has drawn, and gradients
    averaged over the processes, as DDP does, are those of the joint batch. In evaluation mode nothing is gathered.
    ``memory_limit`` (bytes) refuses an ``"n_squared"`` that would not fit.

    Called with ``representations`` (M >= 2 tensors [B, d], row i of each from sample i; not normalised here),
    ``logit_scale`` (exp(s) > 0) and, to fix the draws of ``"n"``, ``permutations`` [M, M - 1, B] (over the gathered
    rows if gathered). Returns the loss in nats, float32 or float64, also under autocast.

    >>> loss = SymileLoss()([audio, image, text], log_scale.exp())
    """

    def __init__(
        self, negative_sampling: NegativeSampling = "n", gather: bool = False, memory_limit: int = MEMORY_LIMIT
    ) -> None:
        super().__init__()
        valid = get_args(NegativeSampling)
        if negative_sampling not in valid:
            raise ConfigError(f"unknown negative_sampling '{negative_sampling}'{nearest(negative_sampling, valid)}")
        self.negative_sampling = negative_sampling
        self.gather = gather
        self.memory_limit = memory_limit

    def forward(
        self, representations: Sequence[Tensor], logit_scale: Tensor | float, permutations: Tensor | None = None
    ) -> Tensor:
        check_representations(representations)
        check_logit_scale(logit_scale)
        # Half-precision logits have too few digits for a softmax over many negatives.
        with torch.autocast(representations[0].device.type, enabled=False):
            tensors = [r.float() if r.dtype in (torch.float16, torch.bfloat16) else r for r in representations]
            joint = self.gather and self.training and several_processes()
            if joint:
                tensors = gathered(tensors)
            if joint and self.negative_sampling == "n" and permutations is None:
                permutations = draw_permutations(len(tensors), len(tensors[0]), tensors[0].device)
                dist.broadcast(permutations, 0)
            if self.negative_sampling == "n":
                loss = self._n(tensors, logit_scale, permutations)
            elif permutations is not None:
                raise ConfigError("permutations belong to negative_sampling 'n'; 'n_squared' uses all tuples")
            else:
                loss = self._n_squared(tensors, logit_scale)
        return check_loss(loss, representations)

    def _n(self, tensors: list[Tensor], scale: Tensor | float, permutations: Tensor | None) -> Tensor:
        shape = (len(tensors), len(tensors) - 1, len(tensors[0]))
        if permutations is None:
            permutations = draw_permutations(len(tensors), len(tensors[0]), tensors[0].device)
        elif permutations.shape != shape:
            raise DataError(f"permutations must be [anchor, other, batch] {shape}, got {tuple(permutations.shape)}")
        positives = scale * reduce(mul, tensors).sum(dim=1)
        partitions = [
            logits_n(scale * anchor, tensors[:a] + tensors[a + 1 :], permutations[a], positives).logsumexp(dim=1)
            for a, anchor in enumerate(tensors)
        ]
        return (torch.stack(partitions) - positives).mean()

    def _n_squared(self, tensors: list[Tensor], scale: Tensor | float) -> Tensor:
        batch, dim = tensors[0].shape
        *leading, y, z = tensors
        # The products of the leading modalities, their gradient, and one temporary of the same size.
        _check_memory(3 * batch ** len(leading) * dim * y.element_size(), self.memory_limit)
        head = scale * reduce(lambda a, b: (a[:, None] * b).flatten(0, 1), leading, torch.ones_like(y[:1]))
        over_yz, over_hz, over_hy = _StreamedLogSumExp.apply(head, y, z)
        grid = over_yz.view([batch] * len(leading))
        partition = over_hz.mean() + over_hy.mean()
        for m in range(len(leading)):
            rest = [axis for axis in range(len(leading)) if axis != m]
            partition = partition + (grid.logsumexp(rest) if rest else grid).mean()
        return partition / len(tensors) - (scale * reduce(mul, tensors).sum(dim=1)).mean()


class _StreamedLogSumExp(torch.autograd.Function):
    """For S[h, b, c] = sum_d head[h, d] y[b, d] z[c, d]: its log-sum-exp over (b, c), over (h, c), over (h, b).

    S exists for one chunk of h at a time, in the backward pass as in the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, head: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        over_bc, over_hc, over_hb = [], [], []
        for h in head.split(_step(y, z)):
            logits = (h[:, None] * y).flatten(0, 1) @ z.T
            over_c = logits.logsumexp(1).view(len(h), len(y))
            over_bc.append(over_c.logsumexp(1))
            over_hc.append(over_c.logsumexp(0))
            over_hb.append(logits.logsumexp(0))
        sums = torch.cat(over_bc), torch.stack(over_hc).logsumexp(0), torch.stack(over_hb).logsumexp(0)
        ctx.save_for_backward(head, y, z, *sums)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        head, y, z, over_bc, over_hc, over_hb = ctx.saved_tensors
        grad_bc, grad_hc, grad_hb = gradients
        step = _step(y, z)
        grad_head, grad_y, grad_z = [], torch.zeros_like(y), torch.zeros_like(z)
        for h, lse, grad in zip(head.split(step), over_bc.split(step), grad_bc.split(step), strict=True):
            products = (h[:, None] * y).flatten(0, 1)
            logits = products @ z.T
            # exp(S - over_bc) and exp(S - over_hc) differ by a factor that does not depend on c: one exp serves both.
            floor = -torch.logaddexp(-lse[:, None], -over_hc)
            weight = grad[:, None] * (floor - lse[:, None]).exp() + grad_hc * (floor - over_hc).exp()
            grad_logits = (logits - over_hb).exp_().mul_(grad_hb)
            grad_logits.addcmul_(logits.sub_(floor.view(-1, 1)).exp_(), weight.view(-1, 1))
            grad_z.addmm_(grad_logits.T, products)
            grad_products = (grad_logits @ z).view(len(h), len(y), -1)
            grad_head.append((grad_products * y).sum(dim=1))
            grad_y += grad_products.mul_(h[:, None]).sum(dim=0)
        return torch.cat(grad_head), grad_y, grad_z


def _step(y: Tensor, z: Tensor) -> int:
    return max(1, CHUNK // (len(y) * len(z)))


def _check_memory(needed: int, limit: int) -> None:
    if needed > limit:
        raise ConfigError(
            f"n_squared needs about {needed / 2**30:.3g} GiB for its products of rows, more than the limit of "
            f"{limit / 2**30:.3g} GiB; use a smaller batch, or negative_sampling 'n'"
        )


def mip_similarity(queries: Sequence[Tensor], candidates: Tensor) -> Tensor:
    """Multilinear inner products of query tuples with candidates of the remaining modality: [Q, K].

    ``queries``: M - 1 tensors, each [Q, d], [1, d] or [d] (one vector for all queries); ``candidates``: [K, d]. Not
    multiplied by exp(s): ``softmax(exp(s) * scores)`` is p(candidate | queries). DataError where widths
    or numbers of queries differ, or for integer tensors.
    """
    check_queries(queries, candidates)
    return reduce(mul, (torch.atleast_2d(q) for q in queries)) @ candidates.T


def check_queries(queries: Sequence[Tensor], candidates: Tensor) -> None:
    """Raises DataError unless ``queries`` broadcast to [Q, d] and ``candidates`` is [K, d], floating point."""
    if not queries:
        raise DataError("retrieval needs the representation of at least one query modality")
    if candidates.ndim != 2:
        raise DataError(f"candidates must have shape [candidates, dim], got {tuple(candidates.shape)}")
    for index, q in enumerate(queries):
        if q.ndim not in (1, 2) or q.shape[-1] != candidates.shape[1]:
            raise DataError(
                f"query tensor {index} has shape {tuple(q.shape)}; with candidates of width {candidates.shape[1]} "
                f"it must be [queries, {candidates.shape[1]}] or [{candidates.shape[1]}]"
            )
    if len({len(q) for q in queries if q.ndim == 2} - {1}) > 1:
        raise DataError(f"numbers of queries differ: {', '.join(str(tuple(q.shape)) for q in queries)}")
    if not all(t.is_floating_point() for t in (*queries, candidates)):
        raise DataError("queries and candidates must be floating-point tensors")
