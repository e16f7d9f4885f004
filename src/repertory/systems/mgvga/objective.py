"""MGVGA's losses: gate types behind masks, with and without text, and degrees (section 3.5)."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from repertory.systems.mgvga.graph import Batch
from repertory.systems.mgvga.model import MGVGA

DEGREE_WEIGHT = 0.1


class Loss(NamedTuple):
    """The pre-training loss and its parts.

    Attributes:
        node: cross-entropy of the gates hidden by masked gate modelling. vg_node: of those hidden in the alignment.
        fan_out, fan_in: Huber loss of degrees over all nodes. *_l1: their mean absolute errors, only reported.
    """

    loss: Tensor
    node: Tensor
    vg_node: Tensor
    fan_out: Tensor
    fan_in: Tensor
    fan_out_l1: Tensor
    fan_in_l1: Tensor


def pretraining_loss(
    model: MGVGA,
    batch: Batch,
    mask: Tensor,
    aligned: Batch | None = None,
    aligned_mask: Tensor | None = None,
    text: Tensor | None = None,
) -> Loss:
    """CE(masked) + CE(aligned) + 0.1 (Huber(fan-out) + Huber(fan-in)).

    Args:
        batch, mask: circuits whose nodes ``mask`` [N] are hidden after encoding.
        aligned, aligned_mask, text: circuits with texts [B, text_width], hidden before encoding; None: no alignment.
    """
    made = model.mask_gates(batch, mask)
    node = F.cross_entropy(made.logits, batch.types[mask])
    vg_node = node.new_zeros(())
    if aligned is not None and aligned_mask is not None and text is not None:
        vg_node = F.cross_entropy(model.align(aligned, aligned_mask, text), aligned.types[aligned_mask])
    fan_out, fan_in = F.huber_loss(made.fan_out, batch.fan_out), F.huber_loss(made.fan_in, batch.fan_in)
    return Loss(
        node + vg_node + DEGREE_WEIGHT * (fan_out + fan_in), node, vg_node, fan_out, fan_in,
        F.l1_loss(made.fan_out.detach(), batch.fan_out), F.l1_loss(made.fan_in.detach(), batch.fan_in),
    )  # fmt: skip
