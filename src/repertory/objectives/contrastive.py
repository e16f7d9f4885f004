"""Contrastive losses between queries and keys: against a queue, within a batch, and without negatives.

Keys are ``[B, d]``; queries are ``[m B, d]``, m blocks of B, so that row ``j B + i`` belongs to key ``i``: with m = 1
these are the losses of the papers, with more each key has several positives.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from repertory.errors import ConfigError, DataError

BLOCK = 1 << 22
"""Logits against a queue that are held at once."""


def blocks(queries: Tensor, keys: Tensor) -> Tensor:
    """Queries as ``[m, B, d]``.

    Raises:
        DataError: the shapes do not belong together.
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1] or not len(keys):
        raise DataError(f"queries {list(queries.shape)} and keys {list(keys.shape)}: [m B, d] and [B, d] are needed")
    if not len(queries) or len(queries) % len(keys):
        raise DataError(f"{len(queries)} queries are not a multiple of the {len(keys)} keys")
    return queries.view(-1, *keys.shape)


def check_temperature(temperature: float) -> None:
    """Raises ConfigError unless it is a positive number."""
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature={temperature}: a positive number is needed")


# -- against a queue -------------------------------------------------------------------------------------------------


def queue_logits(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """``[m B, 1 + K]``: each query with its key, then with the K keys of the queue, over the temperature.

    To look at; :func:`info_nce` does not build them.
    """
    check_temperature(temperature)
    positive = (blocks(queries, keys) * keys).sum(-1).view(-1, 1)
    return torch.cat([positive, queries @ queue.T], dim=1) / temperature


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Mean of ``-log exp(q.k / T) / (exp(q.k / T) + sum_n exp(q.n / T))`` over queries (He et al. 2020, equation 1).

    Keys and queue are constants. The logits are never held whole: block by block of queries the loss and its gradient
    are computed together, so the queue may also be written to before the backward pass.

    Args:
        queries: ``[m B, d]``, unit length.
        keys: ``[B, d]``, unit length.
        queue: ``[K, d]``, the negatives.
        temperature: T.

    Raises:
        DataError: shapes that do not belong together. ConfigError: the temperature is not positive.
    """
    check_temperature(temperature)
    if queue.ndim != 2 or queue.shape[1] != keys.shape[1]:
        raise DataError(f"queue {list(queue.shape)} and keys {list(keys.shape)}: vectors of one length are needed")
    times = len(blocks(queries, keys))
    loss: Tensor = _InfoNCE.apply(queries, keys.detach().repeat(times, 1), queue.detach(), temperature)
    return loss


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
        exact = torch.promote_types(queries.dtype, torch.float32)
        losses = torch.empty(len(queries), dtype=exact, device=queries.device)
        gradient = torch.empty_like(queries) if ctx.needs_input_grad[0] else None
        rows = max(1, BLOCK // len(queue))
        for start in range(0, len(queries), rows):
            part = slice(start, start + rows)
            q, k = queries[part], keys[part]
            scaled = q / temperature
            positive = (scaled * k).sum(-1).to(exact)
            p = (scaled @ queue.T).to(exact)
            top = torch.maximum(p.amax(1), positive)
            p = p.sub_(top[:, None]).exp_()
            own = (positive - top).exp_()
            total = p.sum(1).add_(own)
            losses[part] = total.log() + top - positive
            if gradient is not None:
                pulled = torch.addcmul((p @ queue).to(exact), own[:, None], k.to(exact))
                pulled = pulled.div_(total[:, None]).sub_(k)
                gradient[part] = pulled.div_(temperature * len(queries)).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return losses.mean()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else (outer * gradient).to(gradient.dtype), None, None, None


# -- within a batch --------------------------------------------------------------------------------------------------


def nt_xent(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    base_temperature: float | None = None,
    mask_duplicates: bool = False,
) -> Tensor:
    """Normalised temperature-scaled cross-entropy of two sets of features (Chen et al. 2020, SimCLR, equation 1).

    Both sets are made unit length. Query ``j B + i`` and the j-th copy of key ``i`` are each other's positive; every
    other vector of both sets is a negative. The mean is over all ``2 m B`` of them. The m copies of a key are computed
    once: a matrix of ``((m + 1) B)^2`` in place of ``(2 m B)^2``.

    Args:
        queries: ``[m B, d]``.
        keys: ``[B, d]``, each of which stands for m equal ones.
        temperature: tau.
        base_temperature: if given, the loss is times ``tau / base_temperature`` (Khosla et al. 2020).
        mask_duplicates: a key's other copies are not its negatives; without effect for m = 1.

    Raises:
        DataError: shapes that do not belong together. ConfigError: a temperature is not positive.
    """
    check_temperature(temperature)
    q, k = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    times = len(blocks(q, k))
    n = len(q)
    positive = (blocks(q, k) * k).sum(-1) / temperature
    features = torch.cat([q, k])
    logits = (features / temperature) @ features.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits[:, n:] += math.log(times)
    logits.diagonal()[:n].fill_(-math.inf)
    twins = times - 1
    if twins and not mask_duplicates:
        logits.diagonal()[n:].add_(math.log(twins / times))
    else:
        logits.diagonal()[n:].fill_(-math.inf)
    total = logits.logsumexp(1)
    loss = (total[:n].sum() + times * total[n:].sum() - 2 * positive.sum()) / (2 * n)
    if base_temperature is not None:
        check_temperature(base_temperature)
        loss = loss * (temperature / base_temperature)
    return loss


# -- without negatives -----------------------------------------------------------------------------------------------


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean cosine of predictions and constant targets (Chen and He 2021, SimSiam, equation 1).

    Args:
        predictions: ``[m B, d]``.
        targets: ``[B, d]``; no gradient flows into them.

    Raises:
        DataError: shapes that do not belong together.
    """
    return -F.cosine_similarity(blocks(predictions, targets), targets.detach()[None], dim=-1).mean()
