"""UMD's hyperparameters; the paper's UMD-B/4 on ImageNet at 64 pixels by default."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from repertory import card
from repertory.card import EncoderAddress
from repertory.errors import ConfigError

Pair = tuple[float, float]

DIGITS = {
    "image_size": 8, "channels": 1, "patch_size": 2, "width": 64, "depth": 4, "heads": 4, "decoder_depth": 2,
    "crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "lr": 4e-3, "batch_size": 64,
    "finetune_batch_size": 64, "finetune_crop_scale": (1.0, 1.0), "finetune_lr": 4e-3, "shots": 20, "ridge": 64.0,
}  # fmt: skip


class Config(card.Config):
    """Hyperparameters; the paper's UMD-B/4 on ImageNet at 64 pixels by default."""

    presets = {
        "tiny": {
            **DIGITS, "task": "generation", "width": 32, "depth": 2, "decoder_depth": 1, "steps": 16,
            "finetune_steps": 12, "ema": 0.4, "sampling_steps": 8, "generated_images": 20, "evaluation_images": 32,
        },
        "digits": {
            **DIGITS, "task": "generation", "steps": 1000, "finetune_steps": 1000, "ema": 4e-2, "guidance": 2.0,
            "sampling_steps": 50, "generated_images": 200,
        },
        "mae": {"no_noise_prob": 1.0, "adaln": False, "batch_size": 4096},
        "dit": {"no_noise_prob": 0.0, "noisy_ratio": 0.0, "finetune_no_noise_prob": 0.0},
        "maskdit": {"no_noise_prob": 0.0, "noisy_ratio": 0.5, "finetune_no_noise_prob": 0.0},
        "latent": {
            "space": "latents", "image_size": 32, "channels": 4, "patch_size": 2, "width": 1024, "depth": 24,
            "heads": 16, "decoder_depth": 8,
        },
    }  # fmt: skip

    task: Literal["none", "generation"] = Field(
        "none", description="what follows pre-training: class-conditional generation, or none"
    )
    encoder: EncoderAddress | None = Field(
        None, description="run:RUN of a pre-trained UMD: fine-tuned to generation without pre-training"
    )

    space: Literal["pixels", "latents"] = Field("pixels", description="latents: of a variational auto-encoder")
    vae: str = Field("", description="name or folder of diffusers' AutoencoderKL, to make latents of images and back")
    image_size: int = Field(64, ge=2, description="side of the images in pixels; of latents 32 (images of 256)")
    channels: int = Field(3, description="1: grey, 3: RGB; of latents as many as they have")
    patch_size: int = Field(4, ge=1, description="side of a patch")
    width: int = Field(768, ge=4, description="of encoder and decoder, and of the vectors")
    depth: int = Field(12, ge=1, description="blocks of the encoder")
    heads: int = Field(12, ge=1, description="of encoder and decoder")
    decoder_depth: int = Field(4, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    adaln: bool = Field(True, description="time and label modulate the blocks; or else they are a token")
    remat: bool = Field(False, description="less memory, more time: blocks are computed again in the backward pass")

    schedule: Literal["cosine", "linear"] | None = Field(
        None, description="of the noise; None: cosine for pixels, linear for latents, as in the paper"
    )
    timesteps: int = Field(1000, ge=2, description="T, of the diffusion")
    no_noise_prob: float = Field(0.5, ge=0, le=1, description="share r of clean images; 1: MAE, 0: DiT or MaskDiT")
    clean_ratio: float = Field(0.75, gt=0, lt=1, description="share of patches that clean images lose")
    noisy_ratio: float = Field(0.375, ge=0, lt=1, description="share of patches that noised images lose; DiT: 0")

    crop_scale: Pair = Field((0.8, 1.0), description="share of the area that a crop covers")
    crop_ratio: Pair = Field((3 / 4, 4 / 3), description="of a crop's width to its height")
    flip: float = Field(0.5, ge=0, le=1, description="probability that an image is mirrored")
    lr: float = Field(1.5e-4, gt=0, description="of 256 images a step, and in proportion to them")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps; then a cosine to 0")
    beta2: float = Field(0.95, gt=0, lt=1, description="of AdamW; the first beta is 0.9")
    weight_decay: float = Field(0.05, ge=0, description="not of class tokens, mask token and biases")
    clip: float = Field(1.0, ge=0, description="norm of the gradients; 0: not clipped")
    batch_size: int = Field(1024, ge=1, description="images a device and step")
    epochs: float = Field(800, ge=0, description="of pre-training, without steps; 0: none")
    steps: int | None = Field(None, ge=0, description="batches of pre-training, in place of epochs")

    finetune_no_noise_prob: float = Field(0.05, ge=0, lt=1, description="share of clean images; 0 after DiT")
    finetune_noisy_ratio: float = Field(0.0, ge=0, lt=1, description="share of patches that noised images lose")
    finetune_crop_scale: Pair = (0.95, 1.0)
    finetune_lr: float = Field(1.5e-4, gt=0, description="of 256 images a step, and in proportion to them")
    finetune_beta2: float = Field(0.999, gt=0, lt=1)
    finetune_weight_decay: float = Field(0.0, ge=0)
    finetune_batch_size: int = Field(256, ge=1, description="images a device and step")
    finetune_epochs: float = Field(50, gt=0)
    finetune_steps: int | None = Field(None, ge=1, description="batches, in place of epochs")
    label_dropout: float = Field(0.1, ge=0, le=1, description="probability that training takes a label away")
    ema: float = Field(1e-4, gt=0, description="rate of the averaged weights, of 256 images a step (decay 0.9999)")

    sampling_steps: int = Field(125, ge=1, description="about how many steps a sample takes; 250 or 62 in tables")
    eta: float = Field(1.0, ge=0, le=1, description="fresh noise while sampling; 1: as much as DDPM, 0: none")
    guidance: float = Field(1.5, ge=0, description="classifier-free; 1.5, 2 and 4 in the paper, 1: none")
    predict_from: Literal["noise", "image"] = Field("noise", description="which prediction the sampler follows")

    shots: int = Field(100, ge=1, description="labelled images a class of the ridge probe")
    ridge: float = Field(1024.0, gt=0, description="L2 penalty of the ridge probe")
    noised_predict: int = Field(50, ge=0, description="noise step of images to embed, where no clean ones were trained")
    evaluation_images: int = Field(500, ge=1, description="held-out images on which prediction errors are measured")
    generated_images: int = Field(0, ge=0, description="images that evaluate generates; 10,000 or 50,000 in the paper")
    fid: bool = Field(False, description="measure the Fréchet distance of generated images (needs Inception weights)")
    workers: int = Field(0, ge=0, description="processes that prepare batches")

    @model_validator(mode="after")
    def _fitting(self) -> Any:
        if self.image_size % self.patch_size:
            raise ConfigError(f"image side {self.image_size} is not a multiple of the patch {self.patch_size}")
        if self.width % self.heads or self.width % 2:
            raise ConfigError(f"width {self.width} is not even and a multiple of the {self.heads} heads")
        if self.space == "pixels" and self.channels not in (1, 3):
            raise ConfigError(f"channels={self.channels}: images are grey (1) or RGB (3); or set space=latents")
        if self.encoder is not None and self.task == "none":
            raise ConfigError("encoder starts a fine-tuning: set task=generation too")
        if self.sampling_steps > self.timesteps:
            raise ConfigError(f"sampling_steps={self.sampling_steps}: there are {self.timesteps} timesteps")
        if self.noised_predict >= self.timesteps:
            raise ConfigError(f"noised_predict={self.noised_predict}: there are {self.timesteps} timesteps")
        patches = (self.image_size // self.patch_size) ** 2
        for name, ratio, active in (
            ("clean_ratio", self.clean_ratio, self.no_noise_prob > 0),
            ("noisy_ratio", self.noisy_ratio, self.no_noise_prob < 1),
        ):
            if active and not int(patches * (1 - ratio)):
                raise ConfigError(f"{name}={ratio} leaves none of {patches} patches: lower it, or take smaller patches")
        return self

    @property
    def pretrains(self) -> bool:
        """Whether there is a pre-training."""
        return self.encoder is None and (self.epochs if self.steps is None else self.steps) > 0

    @property
    def noise_schedule(self) -> Literal["cosine", "linear"]:
        """Of the diffusion."""
        return self.schedule or ("cosine" if self.space == "pixels" else "linear")
