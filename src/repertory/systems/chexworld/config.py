"""CheXWorld's hyperparameters; the paper's ViT-B/16 at 224 pixels and its README's command by default."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from repertory import card
from repertory.card import EncoderAddress
from repertory.errors import ConfigError
from repertory.systems.chexworld.augmentation import DualTransform, ParameterizedTransform
from repertory.systems.chexworld.masks import MultiBlockMasks
from repertory.systems.chexworld.model import Conditioning, TargetNorm
from repertory.systems.chexworld.objective import Distance

Pair = tuple[float, float]

SMALL = {
    "image_size": 32, "patch_size": 4, "width": 64, "depth": 3, "heads": 4, "predictor_width": 48,
    "predictor_depth": 2, "min_keep": 4, "lr": 1e-3, "warmup": 0.1, "reg_weight": 0.1, "aug_norm": True,
    "finetune_patch_size": 8, "finetune_lr": 2e-3, "finetune_drop_path": 0.1, "finetune_batch_size": 64,
    "segmentation_channels": 8,
}  # fmt: skip


class Config(card.Config):
    """Hyperparameters; the paper's ViT-B/16 at 224 pixels and its README's command by default."""

    presets = {
        "tiny": {**SMALL, "batch_size": 16, "steps": 16, "finetune_steps": 12},
        "simulated-radiographs": {**SMALL, "batch_size": 64, "steps": 800, "finetune_steps": 300},
        "chexpert": {
            "task": "classification", "finetune_lr": 1e-2, "finetune_weight_decay": 0.4, "layer_decay": 0.55,
            "finetune_drop_path": 0.1, "finetune_epochs": 1,
        },
        "segmentation": {"task": "segmentation", "finetune_patch_size": 8, "finetune_drop_path": 0.1},
    }  # fmt: skip

    task: Literal["none", "classification", "segmentation"] = Field(
        "none", description="what the encoder is fine-tuned to after pre-training; none: pre-training alone"
    )
    encoder: EncoderAddress | None = Field(
        None, description="run:RUN of a pre-trained CheXWorld: fine-tuned without pre-training"
    )

    image_size: int = Field(224, ge=8, description="side of the crops in pixels")
    patch_size: int = Field(16, ge=1, description="side of a patch in pixels")
    width: int = Field(768, description="of the encoder, and of the vectors")
    depth: int = Field(12, ge=1)
    heads: int = Field(12, ge=1, description="of encoder and predictor")
    mlp_ratio: float = Field(4.0, gt=0)
    init: Literal["trunc_normal", "trunc_normal_scaled", "xavier"] = Field(
        "trunc_normal", description="the official code announces trunc_normal_scaled, but ends with trunc_normal"
    )
    position_scale: float = Field(1.0, gt=0, description="factor of the encoder's table of positions; 1 in the paper")
    predictor_width: int = 384
    predictor_depth: int = Field(6, ge=1)

    ssl_type: Literal["iwm_dual_easy", "iwm_dual"] = Field(
        "iwm_dual_easy", description="crops of one size, or (iwm_dual) of two, with a learned general position"
    )
    conditioning: Conditioning = Field("feat", description="how the predictor is told the augmentation")
    unify_embed: bool = Field(False, description="one channel order for context and query positions")
    iwm_disable: bool = Field(False, description="without the domain model: augmentation parameters withheld")
    rel_pos_disable: bool = Field(False, description="without the layout model: relative positions withheld")
    reverse_pred: bool = Field(False, description="predict augmented from clean crops")
    target_last_k: int = Field(1, ge=1, description="layers whose mean is the target")
    target_norm: TargetNorm = Field("avg_ln", description="in_avg_ln: instance norm of each layer first")
    loss: Distance = Field("l2", description="l1 is smooth L1")
    extra_weight: float = Field(1.0, ge=0, description="of predictions from the other crop; 0: local structure only")
    extra_mean: bool = Field(True, description="divide the loss by 1 + extra_weight")
    reg_weight: float = Field(0.0, ge=0, description="of the hinge on the variance of predictions")

    crop_scale: Pair = (0.3, 1.0)
    crop_ratio: Pair = (3 / 4, 4 / 3)
    flip: float = Field(0.5, ge=0, le=1, description="probability that a view is mirrored")
    jitter: float = Field(0.4, ge=0, le=1, description="half-width of the brightness and contrast of both views")
    jitter_p: float = Field(0.8, ge=0, le=1)
    min_overlap: float | None = Field(None, ge=0, le=1, description="of the two crops, as a share of their sides")
    aug_norm: bool = Field(False, description="tell the augmentation parameters on a common scale")
    aug_brightness: float = Field(0.4, gt=0, le=1, description="half-width around 1")
    aug_contrast: float = Field(0.4, gt=0, le=1, description="half-width around 1")
    aug_gamma: Pair = (0.5, 2.0)
    aug_blur: Pair = Field((0.1, 2.0), description="radius in pixels")
    aug_noise: Pair = Field((0.05, 0.2), description="sigma as a share of full scale")
    aug_jitter_p: float = Field(0.8, ge=0, le=1)
    aug_blur_p: float = Field(0.2, ge=0, le=1)
    aug_noise_p: float = Field(0.0, ge=0, le=1)
    enc_mask_scale: Pair = Field((0.75, 1.0), description="area of the context block; (0.85, 1) by code default")
    pred_mask_scale: Pair = (0.15, 0.2)
    pred_mask_aspect: Pair = (0.75, 1.5)
    pred_masks: int = Field(4, ge=1, description="target blocks, merged")
    min_keep: int = Field(10, ge=1, description="a context keeps more patches than this")
    rand_keep: bool = Field(False, description="cut masks to one length at random, not by their first indices")

    lr: float = Field(2e-4, gt=0)
    min_lr: float = Field(1e-6, ge=0)
    warmup: float = Field(40 / 300, ge=0, le=1, description="share of the schedule; 40 of 300 epochs")
    weight_decay: float = Field(0.05, ge=0, description="not of biases and norms")
    clip: float = Field(1.0, ge=0, description="norm of the gradients; 0: not clipped")
    ema: float = Field(0.996, ge=0, le=1, description="momentum of the target encoder at the start")
    ema_end: float = Field(1.0, ge=0, le=1)
    ipe_scale: float = Field(1.25, ge=1, description="the schedules are so much longer than the training")
    batch_size: int = Field(128, ge=1, description="images a device; the paper: 128, 2 accumulated, on 8 devices")
    epochs: float = Field(300, ge=0, description="of pre-training, without steps; 0: none")
    steps: int | None = Field(None, ge=0, description="batches of pre-training, in place of epochs")

    finetune_patch_size: int | None = Field(None, description="None: as pre-trained; 8 for segmentation in the paper")
    finetune_lr: float = Field(1e-4, gt=0)
    finetune_min_lr: float = Field(1e-6, ge=0)
    finetune_warmup: float = Field(0.02, ge=0, le=1, description="share of the steps; 1 of 50 epochs")
    finetune_weight_decay: float = Field(0.05, ge=0)
    layer_decay: float = Field(0.75, gt=0, le=1, description="of the learning rate, from layer to layer")
    finetune_drop_path: float = Field(0.6, ge=0, lt=1)
    finetune_crop_scale: Pair = (0.4, 1.0)
    finetune_jitter: float = Field(0.2, ge=0, le=1)
    finetune_batch_size: int = Field(256, ge=1)
    finetune_epochs: float = Field(50, gt=0)
    finetune_steps: int | None = Field(None, ge=1)
    patience: int = Field(15, ge=1, description="validations without a better one before fine-tuning stops")
    segmentation_channels: int = Field(32, ge=1, description="of the decoder at full resolution")

    evaluation_images: int = Field(200, ge=1, description="held-out images on which prediction errors are measured")
    workers: int = Field(0, ge=0, description="processes that prepare batches")

    @model_validator(mode="after")
    def _fitting(self) -> Any:
        for patch in (self.patch_size, self.finetune_patch_size or self.patch_size):
            if self.image_size % patch:
                raise ConfigError(f"image side {self.image_size} is not a multiple of the patch {patch}")
        if self.encoder is not None and self.task == "none":
            raise ConfigError("encoder starts a fine-tuning: set task=classification or task=segmentation too")
        for width in (self.width, self.predictor_width):
            if width % self.heads or width % 4:
                raise ConfigError(f"width {width} is not a multiple of 4 and of the {self.heads} heads")
        if self.task == "segmentation" and (self.finetune_patch_size or self.patch_size) not in (8, 16):
            raise ConfigError("segmentation needs patches of 8 or 16: set finetune_patch_size=8")
        return self

    @property
    def pretrains(self) -> bool:
        """Whether there is a pre-training."""
        return self.encoder is None and (self.epochs if self.steps is None else self.steps) > 0

    @property
    def masks(self) -> MultiBlockMasks:
        """The sampler of masks."""
        side = self.image_size // self.patch_size
        return MultiBlockMasks(
            (side, side), self.enc_mask_scale, self.pred_mask_scale, self.pred_mask_aspect, self.pred_masks,
            self.min_keep, rand_keep=self.rand_keep,
        )  # fmt: skip

    @property
    def transform(self) -> DualTransform:
        """The two views."""
        return DualTransform(
            self.image_size, self.crop_scale, self.crop_ratio, self.flip, self.jitter, self.jitter_p,
            self.ssl_type == "iwm_dual_easy", self.min_overlap,
            ParameterizedTransform(
                self.aug_brightness, self.aug_contrast, self.aug_gamma, self.aug_blur, self.aug_noise,
                self.aug_jitter_p, self.aug_blur_p, self.aug_noise_p,
            ),
            self.aug_norm,
        )  # fmt: skip
