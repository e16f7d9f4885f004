"""Vision Mamba's hyperparameters; Vim-Ti/16 at 224 pixels with the recipe of DeiT by default."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from repertory import card
from repertory.card import EncoderAddress
from repertory.data.transforms.images import IMAGENET_MEAN, IMAGENET_STD
from repertory.errors import ConfigError
from repertory.systems.vim.model import BimambaType, Placement, Pool, grid_side
from repertory.systems.vim.official import Follow
from repertory.systems.vim.scan import Backend

SMALL = {
    "image_size": 8, "patch_size": 2, "stride": 2, "width": 32, "depth": 2, "d_state": 8, "mean": (0.5,), "std": (0.5,),
    "crop": None, "augment": False, "repeats": 1, "mixup": 0.0, "cutmix": 0.0, "ema": 0.0, "lr": 5e-3, "min_lr": 1e-5,
    "warmup": 0.1,
}  # fmt: skip
PLUS = {
    "stride": 8, "epochs": 30, "lr": 5e-6, "min_lr": 1e-5, "weight_decay": 1e-8, "warmup": 5 / 30,
}  # fmt: skip


class Config(card.Config):
    """Hyperparameters; Vim-Ti/16 at 224 pixels and its script's recipe by default."""

    presets = {
        "tiny": {**SMALL, "d_state": 4, "lr": 1e-2, "batch_size": 32, "steps": 64},
        "digits": {**SMALL, "batch_size": 64, "steps": 600},
        "small": {"width": 384, "batch_size": 64, "weight_decay": 0.05, "drop_path": 0.05},
        "base": {"width": 768},
        "plus": PLUS,
    }  # fmt: skip

    encoder: EncoderAddress | None = Field(
        None, description="run:RUN of a trained Vim, whose weights are the start; positions are resized where need be"
    )
    follow: Follow = Field(
        "paper", description="official: as the code where it departs from the paper (see Differences in the card)"
    )

    image_size: int = Field(224, ge=1, description="side of the images in pixels")
    patch_size: int = Field(16, ge=1, description="side of a patch in pixels")
    stride: int = Field(16, ge=1, description="pixels from patch to patch; 8 in the fine-tuned '+' models (729 tokens)")
    width: int = Field(192, ge=1, description="of tokens; 192, 384, 768 for tiny, small, base")
    depth: int = Field(24, ge=1)
    d_state: int = Field(16, ge=1, description="states of a channel")
    d_conv: int = Field(4, ge=1, description="steps that the causal convolution looks at")
    expand: int = Field(2, ge=1, description="channels inside a mixer, as a multiple of the width")
    bimamba_type: BimambaType = Field(
        "v2", description="none: forward alone; v1: two scans of the same tensors; v2: own projections backward, too"
    )
    if_bidirectional: bool = Field(False, description="layers in pairs, the second reading backward")
    if_divide_out: bool = Field(True, description="halve the sum of the two directions of v2")
    init_layer_scale: float | None = Field(None, description="start of a factor gamma per channel; None: none")
    class_token: Placement = Field("middle", description="where the class token stands; double: first and last")
    pool: Pool = Field(
        "mean", description="of tokens, without a class token; max is of logits: there is no vector then"
    )
    positions: bool = Field(True, description="a learned table of positions")
    rope: bool = Field(False, description="rotary positions before each layer")
    rms_norm: bool = Field(True, description="else LayerNorm")
    residual_in_fp32: bool = True
    drop_path: float = Field(0.0, ge=0, lt=1, description="rate at the last layer; 0.05 for small")
    scan: Backend = Field("auto", description="mamba-ssm: that package's CUDA kernel; auto: where it can be used")

    mean: tuple[float, ...] = Field(IMAGENET_MEAN, description="of pixels in 0..1; one value a channel, 1 (grey) or 3")
    std: tuple[float, ...] = IMAGENET_STD
    crop: float | None = Field(
        0.875, gt=0, le=1, description="share of the shorter side that is looked at when tested; None: all, squeezed"
    )
    augment: bool = Field(True, description="vary the training images; else they are shown as in a test")
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = Field(0.5, ge=0, le=1)
    color_jitter: float = Field(0.3, ge=0, description="without a policy")
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    erase: float = Field(0.25, ge=0, le=1, description="probability of an erased rectangle")
    repeats: int = Field(3, ge=1, description="variations of an image in a batch (repeated augmentation)")
    mixup: float = Field(0.8, ge=0)
    cutmix: float = Field(1.0, ge=0)
    smoothing: float = Field(0.1, ge=0, lt=1, description="of labels")

    lr: float = Field(1e-3, gt=0, description="5e-4 for each 512 images of a step; the paper's steps have 1,024")
    min_lr: float = Field(1e-5, ge=0)
    warmup: float = Field(5 / 300, ge=0, le=1, description="share of the steps; 5 of 300 epochs")
    weight_decay: float = Field(0.1, ge=0, description="0.1 for tiny, 0.05 for small")
    layer_decay: float = Field(1.0, gt=0, le=1, description="of the learning rate, from layer to layer")
    clip: float = Field(0.0, ge=0, description="norm of the gradients; 0: not clipped")
    ema: float = Field(0.99996, ge=0, lt=1, description="momentum of the averaged weights, kept beside; 0: none")
    use_average: bool = Field(False, description="validate, embed and predict with the averaged weights")
    batch_size: int = Field(128, ge=1, description="images a device; the paper: 128 on 8 devices")
    epochs: float = Field(300, gt=0, description="without steps")
    steps: int | None = Field(None, ge=1, description="training batches, in place of epochs")
    workers: int = Field(0, ge=0, description="processes that prepare batches")

    @model_validator(mode="after")
    def _fitting(self) -> Any:
        grid_side(self.image_size, self.patch_size, self.stride)
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ConfigError(f"mean has {len(self.mean)} values, std {len(self.std)}: both 1 (grey) or 3 (RGB)")
        if self.if_bidirectional and self.depth % 2:
            raise ConfigError(f"if_bidirectional pairs the layers: depth {self.depth} is not even")
        if self.class_token != "none" and "pool" in self.model_fields_set and self.pool != "mean":
            raise ConfigError(f"pool={self.pool} is for class_token=none; here the class token is {self.class_token}")
        if self.use_average and not self.ema:
            raise ConfigError("use_average needs averaged weights: set ema above 0")
        return self
