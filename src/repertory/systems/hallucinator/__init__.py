"""Hallucinator: one more positive per image, made in feature space (Wu et al., ICCV 2023)."""

from repertory.systems.hallucinator.model import (
    Hallucinator,
    MoCo,
    Pairs,
    Siamese,
    SimCLR,
    SimSiam,
    build_backbone,
    extrapolate,
    hallucinate,
    official_state,
)
from repertory.systems.hallucinator.system import HallucinatorSystem
from repertory.systems.hallucinator.training import LinearProbe

__all__ = [
    "Hallucinator", "HallucinatorSystem", "LinearProbe", "MoCo", "Pairs", "Siamese", "SimCLR", "SimSiam",
    "build_backbone", "extrapolate", "hallucinate", "official_state",
]  # fmt: skip
