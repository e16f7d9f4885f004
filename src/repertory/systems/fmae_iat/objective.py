"""The loss of identity-adversarial training."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from repertory.errors import DataError


class Losses(NamedTuple):
    """The sum that is trained on, and its two parts (``identity`` 0 without identity head)."""

    loss: Tensor
    actions: Tensor
    identity: Tensor


def identity_adversarial_loss(
    logits: Tensor, actions: Tensor, subject_logits: Tensor | None = None, subjects: Tensor | None = None
) -> Losses:
    """Binary cross-entropy of action units plus binary cross-entropy of one-hot identities (section 3 of the paper).

    Both are means over batch and columns. The identity term is no softmax: its gradient is small where there are many
    subjects, and the paper's values of lambda go with it. The reversal lies before the identity head
    (:meth:`~repertory.systems.fmae_iat.model.AdversarialViT.both`), not here.

    Args:
        logits: of action units ``[B, K]``.
        actions: 1 present, 0 absent, NaN not coded ``[B, K]``; what is not coded is left out of the mean.
        subject_logits: ``[B, S]``.
        subjects: ``[B]`` int64 in 0..S-1.

    Raises:
        DataError: shapes that do not match, or a subject outside 0..S-1 (CPU tensors only).
    """
    if logits.shape != actions.shape:
        raise DataError(f"action units: logits {tuple(logits.shape)}, truth {tuple(actions.shape)}; must be the same")
    known = ~actions.isnan()
    each = F.binary_cross_entropy_with_logits(logits.float(), actions.nan_to_num(), reduction="none")
    of_actions = (each * known).sum() / known.sum().clamp_min(1)
    if subject_logits is None or subjects is None:
        return Losses(of_actions, of_actions, of_actions.new_zeros(()))
    count = subject_logits.shape[1]
    if subjects.device.type == "cpu" and not 0 <= int(subjects.min()) <= int(subjects.max()) < count:
        raise DataError(f"subject {int(subjects.max())} is outside the {count} subjects of the identity head")
    one_hot = F.one_hot(subjects, count).float()
    of_identities = F.binary_cross_entropy_with_logits(subject_logits.float(), one_hot)
    return Losses(of_actions + of_identities, of_actions, of_identities)
