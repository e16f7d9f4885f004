"""Symile: contrastive learning for any number of modalities through total correlation (Saporta et al. 2024)."""

from repertory.systems.symile.baselines import PairwiseCLIPLoss, pairwise_similarity
from repertory.systems.symile.information import total_correlation, total_correlation_bound, xor_information
from repertory.systems.symile.model import (
    CXREncoder,
    ECGEncoder,
    ImageEncoder,
    LabsEncoder,
    LinearEncoder,
    SpeechEncoder,
    SymileModel,
    TextEncoder,
    WordsEncoder,
    from_official_keys,
    xor_encoders,
)
from repertory.systems.symile.objective import SymileLoss, logits_n, logits_n_squared, mip_similarity
from repertory.systems.symile.retrieval import bootstrap_accuracy, retrieval_scores, retrieve
from repertory.systems.symile.system import Symile

__all__ = [
    "CXREncoder", "ECGEncoder", "ImageEncoder", "LabsEncoder", "LinearEncoder", "PairwiseCLIPLoss", "SpeechEncoder",
    "Symile", "SymileLoss", "SymileModel", "TextEncoder", "WordsEncoder", "bootstrap_accuracy", "from_official_keys",
    "logits_n", "logits_n_squared", "mip_similarity", "pairwise_similarity", "retrieval_scores", "retrieve",
    "total_correlation", "total_correlation_bound", "xor_encoders", "xor_information",
]  # fmt: skip
