"""FMAE-IAT: masked autoencoders of faces, action units without identities (Ning, Salah, Onal Ertugrul, FG 2025)."""

from repertory.systems.fmae_iat.layouts import BP4D, DISFA, read_folds
from repertory.systems.fmae_iat.metrics import ActionUnitScores, action_unit_scores, identity_probe
from repertory.systems.fmae_iat.model import AdversarialViT, IdentityHead, from_official
from repertory.systems.fmae_iat.objective import Losses, identity_adversarial_loss
from repertory.systems.fmae_iat.system import FMAEIAT

__all__ = [
    "BP4D", "DISFA", "FMAEIAT", "ActionUnitScores", "AdversarialViT", "IdentityHead", "Losses", "action_unit_scores",
    "from_official", "identity_adversarial_loss", "identity_probe", "read_folds",
]  # fmt: skip
