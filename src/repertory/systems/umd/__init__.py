"""UMD: unified masked diffusion, one network to represent images and to generate them (Hansen-Estruch et al. 2024)."""

from repertory.systems.umd.data import Latents, Pictures, latents_of, load_vae, pictures_of, read_latents
from repertory.systems.umd.diffusion import Diffusion
from repertory.systems.umd.evaluation import frechet_distance, noise_errors, reconstruction_errors, ridge_probe
from repertory.systems.umd.model import AutoEncoder, Condition, Output, Patches, from_official_keys, official_shape
from repertory.systems.umd.objective import Losses, MaskedDiffusionLoss
from repertory.systems.umd.system import UMD

__all__ = [
    "UMD", "AutoEncoder", "Condition", "Diffusion", "Latents", "Losses", "MaskedDiffusionLoss", "Output", "Patches",
    "Pictures", "frechet_distance", "from_official_keys", "latents_of", "load_vae", "noise_errors", "official_shape",
    "pictures_of", "read_latents", "reconstruction_errors", "ridge_probe",
]  # fmt: skip
