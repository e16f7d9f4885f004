"""ERASE: node vectors that tolerate wrong labels (Chen et al. 2024)."""

from repertory.systems.erase.labels import PseudoLabels, column_normalised, denoised, propagated, prototypes
from repertory.systems.erase.model import Erase, GraphAttentionEncoder, from_official_keys
from repertory.systems.erase.noise import corrupted, transition_matrix
from repertory.systems.erase.objective import CodingRateReduction, class_coding_rate, coding_rate
from repertory.systems.erase.sampler import Block, Neighbours
from repertory.systems.erase.system import ERASE

__all__ = [
    "Block", "CodingRateReduction", "ERASE", "Erase", "GraphAttentionEncoder", "Neighbours", "PseudoLabels",
    "class_coding_rate", "coding_rate", "column_normalised", "corrupted", "denoised", "from_official_keys",
    "propagated", "prototypes", "transition_matrix",
]  # fmt: skip
