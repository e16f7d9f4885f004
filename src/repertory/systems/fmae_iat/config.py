"""FMAE-IAT's hyperparameters; the paper's ViT-L at 224 pixels, pre-trained as on Face9M, by default."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from repertory import card
from repertory.card import EncoderAddress
from repertory.errors import ConfigError

Pair = tuple[float, float]

SMALL: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "width": 64, "depth": 3, "heads": 4, "decoder_width": 48, "decoder_depth": 1,
    "decoder_heads": 4, "base_lr": 8e-3, "warmup": 0.1, "finetune_base_lr": 8e-3, "layer_decay": 1.0, "drop_path": 0.0,
    "crop_scale": (1.0, 1.0), "auto_augment": None, "erase": 0.0, "task": "action_units", "reversal": 0.02,
}  # fmt: skip


class Config(card.Config):
    """Hyperparameters; sizes are those of the paper's ViT-L/16 at 224 pixels."""

    presets = {
        "tiny": {**SMALL, "depth": 2, "batch_size": 32, "steps": 12, "finetune_batch_size": 32,
                 "finetune_steps": 24, "evaluation_images": 50},
        "synthetic-actions": {**SMALL, "batch_size": 64, "steps": 300, "finetune_batch_size": 64,
                              "finetune_steps": 450},
        "bp4d": {"task": "action_units", "reversal": 2.0},
        "bp4dplus": {"task": "action_units", "reversal": 1.0},
        "disfa": {"task": "action_units", "reversal": 0.5, "finetune_epochs": 20},
        "bp4d-without-iat": {"task": "action_units", "reversal": 0.0, "finetune_base_lr": 2e-4, "finetune_epochs": 20},
        "rafdb": {"task": "expression", "finetune_base_lr": 1e-3, "finetune_batch_size": 32, "finetune_epochs": 60},
        "affectnet": {"task": "expression"},
    }  # fmt: skip

    task: Literal["none", "action_units", "expression"] = Field(
        "none", description="what the encoder is fine-tuned to: action units (columns of 0 and 1) or one class a face; "
        "none: pre-training alone",
    )  # fmt: skip
    encoder: EncoderAddress | None = Field(
        None, description="run:RUN of a pre-trained FMAE, or any ViT of timm: fine-tuned without pre-training"
    )

    image_size: int = Field(224, ge=8, description="side of the images in pixels")
    patch_size: int = Field(16, ge=1, description="side of a patch in pixels")
    width: int = Field(1024, description="of the encoder, and of the vectors; ViT-L in the paper")
    depth: int = Field(24, ge=1)
    heads: int = Field(16, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    decoder_width: int = 512
    decoder_depth: int = Field(8, ge=1)
    decoder_heads: int = Field(16, ge=1)

    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of the patches that are hidden")
    norm_pixels: bool = Field(True, description="hidden patches are predicted with mean 0 and variance 1 each")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirror image; there is no crop in pre-training")
    base_lr: float = Field(1.5e-4, gt=0, description="learning rate for 256 images a batch, scaled by the batch size")
    weight_decay: float = Field(0.05, ge=0, description="not of biases, norms and tokens")
    warmup: float = Field(2 / 50, ge=0, le=1, description="share of the steps; 2 of 50 epochs")
    batch_size: int = Field(512, ge=1, description="images of a step of pre-training")
    epochs: float = Field(50, ge=0, description="of pre-training, without steps; 0: none")
    steps: int | None = Field(None, ge=0, description="batches of pre-training, in place of epochs")

    reversal: float = Field(
        2.0, ge=0, description="lambda of identity-adversarial training: BP4D 2, BP4D+ 1, DISFA 0.5; 0: without it"
    )
    identity_layers: int = Field(1, ge=1, le=3, description="of the identity head; 2 and 3 are the paper's ablation")
    finetune_base_lr: float = Field(5e-4, gt=0, description="for 256 images a batch; BP4D without IAT 2e-4")
    finetune_min_lr: float = Field(1e-6, ge=0)
    finetune_warmup: float = Field(0.1, ge=0, le=1, description="share of the steps; 3 of 30 epochs")
    finetune_weight_decay: float = Field(0.05, ge=0, description="not of biases, norms, positions and tokens")
    layer_decay: float = Field(0.65, gt=0, le=1, description="of the learning rate, from layer to layer")
    drop_path: float = Field(0.1, ge=0, lt=1, description="rate of dropped branches in the last layer")
    crop_scale: Pair = Field((0.08, 1.0), description="area of the random crop in fine-tuning")
    auto_augment: str | None = Field("rand-m9-mstd0.5-inc1", description="timm's policy in fine-tuning")
    erase: float = Field(0.25, ge=0, le=1, description="probability of an erased rectangle")
    smoothing: float = Field(0.0, ge=0, lt=1, description="of class labels (expression)")
    finetune_batch_size: int = Field(64, ge=1)
    finetune_epochs: float = Field(30, gt=0, description="BP4D and BP4D+ with IAT 30, without 20; DISFA 20; RAF-DB 60")
    finetune_steps: int | None = Field(None, ge=1)

    evaluation_images: int = Field(500, ge=1, description="held-out images that are reconstructed")
    workers: int = Field(0, ge=0, description="processes that prepare batches")

    @model_validator(mode="after")
    def _fitting(self) -> Any:
        if self.image_size % self.patch_size:
            raise ConfigError(f"image side {self.image_size} is not a multiple of the patch {self.patch_size}")
        for width, heads in ((self.width, self.heads), (self.decoder_width, self.decoder_heads)):
            if width % heads or width % 4:
                raise ConfigError(f"width {width} is not a multiple of 4 and of the {heads} heads")
        if not 1 <= int(self.patches * (1 - self.mask_ratio)) < self.patches:
            raise ConfigError(f"mask_ratio={self.mask_ratio:g} hides all or none of the {self.patches} patches")
        if self.encoder is not None and self.task == "none":
            raise ConfigError("encoder starts a fine-tuning: set task=action_units or task=expression too")
        if self.task == "none" and not self.pretrains and self.steps is None:
            raise ConfigError("task=none and epochs=0: there is nothing to train")
        return self

    @property
    def patches(self) -> int:
        """Of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def pretrains(self) -> bool:
        """Whether there is a pre-training."""
        return self.encoder is None and (self.epochs if self.steps is None else self.steps) > 0

    @property
    def shape(self) -> dict[str, Any]:
        """Of the encoder."""
        return {
            "image_size": self.image_size, "patch_size": self.patch_size, "width": self.width, "depth": self.depth,
            "heads": self.heads, "mlp_ratio": self.mlp_ratio,
        }  # fmt: skip
