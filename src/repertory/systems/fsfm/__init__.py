"""FSFM: a face security foundation model (Wang et al., CVPR 2025)."""

from repertory.systems.fsfm.masking import FaceMasks, crfr_p, region_patches, sample
from repertory.systems.fsfm.metrics import by_video, detection, equal_error_rate, half_total_error_rate, tpr_at_fpr
from repertory.systems.fsfm.model import AntiSpoofing, FaceModel, Representation, View, detector, from_official
from repertory.systems.fsfm.objective import Losses, fsfm_loss, instance_loss
from repertory.systems.fsfm.pretraining import Diagnosis, diagnose
from repertory.systems.fsfm.system import FSFM

__all__ = [
    "FSFM", "AntiSpoofing", "Diagnosis", "FaceMasks", "FaceModel", "Losses", "Representation", "View", "by_video",
    "crfr_p", "detection", "detector", "diagnose", "equal_error_rate", "from_official", "fsfm_loss",
    "half_total_error_rate", "instance_loss", "region_patches", "sample", "tpr_at_fpr",
]  # fmt: skip
