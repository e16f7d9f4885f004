"""CheXWorld: image world models for radiographs (Yue et al., CVPR 2025)."""

from repertory.systems.chexworld.augmentation import Box, Draws, DualTransform, ParameterizedTransform, Views
from repertory.systems.chexworld.masks import Masks, MultiBlockMasks, stack_masks
from repertory.systems.chexworld.model import Classifier, Latents, Predictor, WorldModel, load_encoder, load_official
from repertory.systems.chexworld.objective import Losses, distance, world_model_loss
from repertory.systems.chexworld.pretraining import Diagnosis, diagnose
from repertory.systems.chexworld.segmentation import UNetAdapter
from repertory.systems.chexworld.system import CheXWorld

__all__ = [
    "Box", "CheXWorld", "Classifier", "Diagnosis", "Draws", "DualTransform", "Latents", "Losses", "Masks",
    "MultiBlockMasks", "ParameterizedTransform", "Predictor", "UNetAdapter", "Views", "WorldModel", "diagnose",
    "distance", "load_encoder", "load_official", "stack_masks", "world_model_loss",
]  # fmt: skip
