"""FSFM's hyperparameters; the paper's ViT-B/16 on VGGFace2 by default."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from repertory import card
from repertory.card import EncoderAddress
from repertory.errors import ConfigError
from repertory.systems.fsfm.masking import Strategy
from repertory.systems.fsfm.objective import Instance

Pair = tuple[float, float]

SMALL = {
    "image_size": 48, "patch_size": 8, "width": 96, "depth": 4, "heads": 4, "decoder_width": 64, "decoder_depth": 2,
    "decoder_heads": 4, "rep_depth": 1, "rep_heads": 4, "projection_hidden": 128, "projection_out": 32,
    "base_lr": 4e-3, "warmup": 0.1, "finetune_base_lr": 8e-3, "finetune_warmup": 0.1, "finetune_crop_scale": (0.8, 1.0),
    "auto_augment": "", "erase": 0.0, "mixup": 0.0, "cutmix": 0.0, "layer_decay": 0.8, "task": "deepfake",
}  # fmt: skip


class Config(card.Config):
    """Hyperparameters; the paper's ViT-B/16 at 224 pixels by default."""

    presets = {
        "tiny": {
            **SMALL, "image_size": 32, "width": 32, "depth": 2, "decoder_width": 32, "decoder_depth": 1,
            "batch_size": 16, "steps": 12, "finetune_batch_size": 16, "finetune_steps": 8, "evaluation_images": 16,
        },
        "synthetic-faces": {**SMALL, "batch_size": 64, "steps": 400, "finetune_batch_size": 64, "finetune_steps": 200},
        "small": {"width": 384},
        "large": {"width": 1024, "depth": 24, "heads": 16},
        "huge": {"width": 1280, "depth": 32, "heads": 16, "patch_size": 14},
        "ff++": {"task": "deepfake"},
        "diff": {
            "task": "deepfake", "finetune_epochs": 50, "finetune_warmup": 0.1, "finetune_batch_size": 256,
            "finetune_base_lr": 5e-4,
        },
        "mcio": {"task": "antispoof", "real": "real", "domain": "domain"},
    }  # fmt: skip

    task: Literal["none", "deepfake", "antispoof"] = Field(
        "none", description="what the encoder is fine-tuned to after pre-training; none: pre-training alone"
    )
    encoder: EncoderAddress | None = Field(
        None, description="run:RUN of a pre-trained FSFM: fine-tuned without pre-training"
    )
    real: str = Field(
        "real", description="class of the real faces: where labels name it, pre-training sees no other; the positive"
    )

    image_size: int = Field(224, ge=8, description="side of the face crops in pixels")
    patch_size: int = Field(16, ge=1, description="side of a patch in pixels")
    width: int = Field(768, description="of encoder and representation decoder, and of the vectors")
    depth: int = Field(12, ge=1)
    heads: int = Field(12, ge=1, description="12 for the small and the base encoder")
    mlp_ratio: float = Field(4.0, gt=0)
    decoder_width: int = Field(512, description="of the pixel decoder")
    decoder_depth: int = Field(8, ge=1)
    decoder_heads: int = Field(16, ge=1)
    rep_depth: int = Field(2, ge=1, description="of the representation decoder")
    rep_heads: int = Field(16, ge=1)
    rep_positions: bool = Field(
        False, description="sin-cos positions in the representation decoder; zeros in the official code"
    )
    projection_hidden: int = Field(4096, ge=1, description="of projector and predictor")
    projection_out: int = Field(256, ge=1, description="length of the features that are compared")

    masking: Strategy = Field("CRFR-P", description="how patches are hidden; only random needs no parsing maps")
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of hidden patches")
    norm_pixels: bool = Field(True, description="predict pixels normalised a patch")
    region_weight: float = Field(0.007, ge=0, description="of the error in the covered region")
    instance_weight: float = Field(0.1, ge=0, description="of instance discrimination; 0: masked autoencoder alone")
    instance: Instance = Field("simsiam", description="form of instance discrimination; infonce is MoCo v3's")
    temperature: float = Field(0.1, gt=0, description="of infonce and simclr")
    ema: float = Field(0.996, ge=0, le=1, description="momentum of the target network at the start")
    ema_end: float = Field(1.0, ge=0, le=1)

    base_lr: float = Field(1.5e-4, gt=0, description="for 256 images an optimiser step; grows with their number")
    min_lr: float = Field(0.0, ge=0)
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps; 40 of 400 epochs")
    weight_decay: float = Field(0.05, ge=0, description="not of biases, norms and other 1-D weights")
    clip: float = Field(1.0, ge=0, description="norm of the gradients; 0: not clipped")
    batch_size: int = Field(256, ge=1, description="images a device; the paper: 256, 4 accumulated, on 4 devices")
    epochs: float = Field(400, ge=0, description="of pre-training, without steps; 0: none")
    steps: int | None = Field(None, ge=0, description="batches of pre-training, in place of epochs")

    frozen: bool = Field(False, description="fine-tune the head alone")
    pooling: Literal["mean", "class"] = Field("mean", description="what the head sees: mean of patches, or class token")
    drop_path: float = Field(0.1, ge=0, lt=1)
    finetune_base_lr: float = Field(2.5e-4, gt=0, description="for a batch of 256; grows with the batch")
    finetune_min_lr: float = Field(1e-6, ge=0)
    finetune_warmup: float = Field(0.5, ge=0, le=1, description="share of the steps; 5 of 10 epochs")
    finetune_weight_decay: float = Field(0.05, ge=0)
    layer_decay: float = Field(0.65, gt=0, le=1, description="of the learning rate, from layer to layer")
    finetune_crop_scale: Pair = Field((0.08, 1.0), description="area of the random crops")
    flip: float = Field(0.5, ge=0, le=1)
    auto_augment: str = Field("rand-m9-mstd0.5-inc1", description="timm's name of a policy; empty: none")
    erase: float = Field(0.25, ge=0, le=1, description="probability of an erased rectangle")
    mixup: float = Field(0.8, ge=0)
    cutmix: float = Field(1.0, ge=0)
    smoothing: float = Field(0.1, ge=0, lt=1, description="of labels")
    finetune_batch_size: int = Field(64, ge=1)
    finetune_epochs: float = Field(10, gt=0)
    finetune_steps: int | None = Field(None, ge=1)

    domain: str = Field("", description="antispoof: column of the source domains; empty: one domain")
    spoof_hidden: int = Field(512, ge=1, description="antispoof: width of the bottleneck")
    spoof_dropout: float = Field(0.5, ge=0, lt=1)
    spoof_lr: float = Field(1e-4, gt=0)
    spoof_weight_decay: float = Field(1e-6, ge=0)
    spoof_images: int = Field(12, ge=1, description="antispoof: images of each class and domain in a batch")
    spoof_steps: int = Field(4000, ge=1)
    train_frames: int = Field(1, ge=1, description="antispoof: frames a video that are trained on, evenly spaced")
    test_frames: int = Field(2, ge=1, description="antispoof: frames a video whose mean is the video's score")

    evaluation_images: int = Field(200, ge=1, description="held-out real faces on which reconstruction is measured")
    workers: int = Field(0, ge=0, description="processes that prepare batches")

    @model_validator(mode="after")
    def _fitting(self) -> Any:
        if self.image_size % self.patch_size:
            raise ConfigError(f"image side {self.image_size} is not a multiple of the patch {self.patch_size}")
        for width, heads in (
            (self.width, self.heads),
            (self.width, self.rep_heads),
            (self.decoder_width, self.decoder_heads),
        ):
            if width % heads or width % 4:
                raise ConfigError(f"width {width} is not a multiple of 4 and of its {heads} heads")
        if self.encoder is not None and self.task == "none":
            raise ConfigError("encoder starts a fine-tuning: set task=deepfake or task=antispoof too")
        if not 1 <= self.kept < self.patches:
            raise ConfigError(f"mask_ratio {self.mask_ratio}: of {self.patches} patches {self.kept} would be seen")
        return self

    @property
    def pretrains(self) -> bool:
        """Whether there is a pre-training."""
        return self.encoder is None and (self.epochs if self.steps is None else self.steps) > 0

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return int((self.image_size // self.patch_size) ** 2)

    @property
    def kept(self) -> int:
        """Patches that the encoder sees in pre-training."""
        return int(self.patches * (1 - self.mask_ratio))
