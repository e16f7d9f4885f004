"""The losses of FSFM: hidden patches, the covered region, the instance behind both views (section 3 of the paper)."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from repertory.nn.masking import masked_mean

Instance = Literal["simsiam", "byol", "infonce", "infonce_positive", "simclr", "simclr_positive"]


class Losses(NamedTuple):
    """Their sum, and the three of which it is made; ``region`` is 0 where no image of the batch shows the region."""

    loss: Tensor
    reconstruction: Tensor
    region: Tensor
    instance: Tensor


def instance_loss(online: Tensor, target: Tensor, kind: Instance = "simsiam", temperature: float = 0.1) -> Tensor:
    """How far the features of the masked views are from those of the whole ones, both ``[B, D]`` of length 1.

    ``simsiam``: minus half the mean cosine, in -0.5..0.5; ``byol``: two minus twice the cosine; ``infonce``: as in MoCo
    v3, ``2 T`` times the cross-entropy of each online row among all targets; ``simclr``: contrastive over both views of
    all images. The ``_positive`` forms take the positive pair only: the other logits are 0 (``infonce``),
    or are left out, and the largest logit is subtracted (``simclr``).
    """
    if kind == "simsiam":
        return -0.5 * F.cosine_similarity(online, target).mean()
    if kind == "byol":
        return 2 - 2 * (online * target).sum(1).mean()
    n = len(online)
    rows = torch.arange(n, device=online.device)
    if kind in ("infonce", "infonce_positive"):
        logits = online @ target.T / temperature
        if kind == "infonce_positive":
            logits = logits.diagonal().diag()
        return 2 * temperature * F.cross_entropy(logits, rows)
    both = torch.cat([online, target])
    logits = both @ both.T / temperature
    logits = logits - logits.amax(1, keepdim=True).detach()
    itself = torch.eye(2 * n, dtype=torch.bool, device=online.device)
    partner = torch.cat([rows + n, rows])
    positive = logits.gather(1, partner[:, None])[:, 0]
    if kind == "simclr_positive":
        return -positive.mean()
    return (logits.masked_fill(itself, -torch.inf).logsumexp(1) - positive).mean()


def fsfm_loss(
    errors: Tensor,
    mask: Tensor,
    region: Tensor,
    online: Tensor | None,
    target: Tensor | None,
    region_weight: float = 0.007,
    instance_weight: float = 0.1,
    kind: Instance = "simsiam",
    temperature: float = 0.1,
) -> Losses:
    """``L = L_all + 0.007 L_region + 0.1 L_instance``.

    Args:
        errors: mean squared error of each patch, ``[B, N]``.
        mask: 1 where a patch is hidden, ``[B, N]``.
        region: 1 where it belongs to the covered region, ``[B, N]``.
        online: features of the masked views, ``[B, D]``; None: no instance discrimination.
        target: features of the whole views, ``[B, D]``, without gradient; None with ``online``.
    """
    reconstruction = masked_mean(errors, mask)
    size = region.sum()
    of_region = (errors * region).sum() / size.clamp_min(1)
    if region_weight and size.device.type == "cpu" and not size:  # on a GPU the question would wait for the device
        warnings.warn("no image of the batch shows the covered region: its loss is left out", stacklevel=2)
    instance = torch.zeros_like(reconstruction)
    if online is not None and target is not None:
        instance = instance_loss(online.float(), target.float(), kind, temperature)
    loss = reconstruction + region_weight * of_region + instance_weight * instance
    return Losses(loss, reconstruction, of_region, instance)
