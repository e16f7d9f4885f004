"""The Hallucinator's hyperparameters; MoCo v2 with a ResNet-18 on images of 32 pixels by default."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from repertory import card
from repertory.data.transforms.contrastive import CentreCrop, ContrastiveView, RandomCrop
from repertory.data.transforms.images import IMAGENET_MEAN, IMAGENET_STD, Transform, augmented, plain
from repertory.errors import ConfigError
from repertory.systems.hallucinator.model import Backbone, Method

Pair = tuple[float, float]
Box = tuple[float, float, float, float]

DIGITS = {
    "backbone": "convnet", "image_size": 16, "mean": (0.3,), "std": (0.3,), "dim": 64, "predictor_width": 16,
    "flip": 0.0, "crop_scale": (0.5, 1.0), "jitter": (0.4, 0.4, 0.0, 0.0), "queue_size": 1024, "momentum": 0.98,
    "lr": 0.1, "batch_size": 64, "task": "probe", "probe_batch_size": 64, "probe_lr": 0.5,
}  # fmt: skip


class Config(card.Config):
    """Hyperparameters; the paper's ResNet-18 on CIFAR with MoCo v2 and the full Hallucinator."""

    presets = {
        "tiny": {
            **DIGITS, "batch_size": 32, "queue_size": 128, "steps": 12, "probe_steps": 12, "evaluation_images": 60,
        },
        "digits": {**DIGITS, "epochs": 60, "probe_epochs": 20},
        "tiny-imagenet": {
            "image_size": 64, "mean": (0.4802, 0.4481, 0.3975), "std": (0.2302, 0.2265, 0.2262),
            "box": (0.15, 0.15, 0.85, 0.85),
        },
        "stl10": {"image_size": 64, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        "imagenet": {
            "backbone": "resnet50", "small_images": False, "image_size": 224, "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD, "box": (0.2, 0.2, 0.8, 0.8), "alpha": 0.6, "crop_warmup": 20, "blur_p": 0.5,
            "lr": 0.03, "decay_rate": 0.0, "batch_size": 256, "epochs": 100,
        },
    }  # fmt: skip

    method: Method = Field("moco_v2", description="what the Hallucinator is plugged into")
    hallucinate: Literal["none", "extrapolate", "full"] = Field(
        "full", description="none: the method itself; extrapolate: without the MLP; full: the paper's"
    )
    follow: Literal["paper", "official"] = Field(
        "paper",
        description="official: keys queued once per positive, twins as negatives and the loss times temperature / 0.07 "
        "(SimCLR), the Hallucinator not trained (SimSiam with fix_pred_lr)",
    )
    ratio: float = Field(0.1, ge=0, description="of extrapolation, drawn from U(0, ratio) once a batch (section 3)")
    hallucinations: int = Field(1, ge=1, description="positives made per image")

    backbone: Backbone = Field("resnet18", description="resnet50 on ImageNet; convnet has three layers, for trials")
    small_images: bool = Field(True, description="first convolution 3 x 3 with stride 1, no max pooling")
    dim: int | None = Field(None, ge=1, description="of the projections; None: 128, with SimSiam 512")
    predictor_width: int = Field(128, ge=1, description="SimSiam's bottleneck")
    temperature: float | None = Field(None, gt=0, description="None: 0.2 in MoCo v2, 0.07 in MoCo v1 and SimCLR")
    queue_size: int = Field(65536, ge=1, description="MoCo: keys in the queue, K")
    momentum: float = Field(0.999, ge=0, le=1, description="MoCo: of the key encoder")
    fix_pred_lr: bool = Field(True, description="SimSiam: the predictor's learning rate does not fall")

    image_size: int = Field(32, ge=4, description="side of the views in pixels")
    mean: tuple[float, ...] = Field((0.4914, 0.4822, 0.4465), description="of a channel in 0..1; one value: grey")
    std: tuple[float, ...] = (0.2023, 0.1994, 0.2010)
    crops: Literal["centre", "random"] = Field("centre", description="of the first view; the second is random")
    box: Box = Field((0.25, 0.25, 0.75, 0.75), description="where centres of crops fall: top, left, bottom, right")
    alpha: float = Field(0.1, gt=0, description="of Beta(alpha, alpha) over the box; 0.6 on ImageNet")
    crop_warmup: float = Field(0, ge=0, description="epochs with random crops only; 20 on ImageNet")
    crop_scale: Pair = Field((0.2, 1.0), description="share of the area that a view covers")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirror image")
    jitter: Box = Field((0.4, 0.4, 0.4, 0.1), description="half-widths of brightness, contrast, saturation, hue")
    jitter_p: float = Field(0.8, ge=0, le=1)
    grey_p: float = Field(0.2, ge=0, le=1)
    blur: Pair = Field((0.1, 2.0), description="sigma in pixels")
    blur_p: float = Field(0.0, ge=0, le=1, description="0.5 on ImageNet")

    lr: float = Field(0.5, gt=0, description="of SGD; 0.03 on ImageNet")
    sgd_momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    decay_rate: float = Field(0.1, ge=0, le=1, description="the rate falls to lr x decay_rate, epoch by epoch")
    batch_size: int = Field(512, ge=2, description="images a device")
    epochs: float = Field(500, ge=0, description="without steps")
    steps: int | None = Field(None, ge=0, description="batches, in place of epochs")

    task: Literal["none", "probe"] = Field("none", description="probe: then train a linear classifier on the encoder")
    probe_lr: float = Field(10.0, gt=0, description="falls to a tenth after 60 % and again after 80 % of the epochs")
    probe_batch_size: int = Field(512, ge=1)
    probe_crop_scale: Pair = (0.08, 1.0)
    probe_epochs: float = Field(100, gt=0)
    probe_steps: int | None = Field(None, ge=1, description="batches, in place of epochs")

    evaluation_images: int = Field(500, ge=2, description="held-out images of which pairs of views are compared")
    workers: int = Field(0, ge=0, description="processes that prepare batches")

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ConfigError(
                f"{len(self.mean)} means and {len(self.std)} deviations: 1 (grey) or 3 of each are needed"
            )
        CentreCrop(self.image_size, box=self.box, alpha=self.alpha)
        return self

    @property
    def width(self) -> int:
        """Of the projections."""
        return self.dim or (512 if self.method == "simsiam" else 128)

    @property
    def sharpness(self) -> float:
        """The temperature."""
        return self.temperature or (0.2 if self.method == "moco_v2" else 0.07)

    @property
    def copies(self) -> int:
        """MoCo: places of the queue that a key takes."""
        return 1 + self.hallucinations if self.follow == "official" and self.hallucinate != "none" else 1

    def views(self, centred: bool) -> tuple[Transform, Transform]:
        """The two views of an image."""
        second = RandomCrop(self.image_size, self.crop_scale)
        first = CentreCrop(self.image_size, self.crop_scale, box=self.box, alpha=self.alpha) if centred else second
        options = (self.mean, self.std, self.flip, self.jitter, self.jitter_p, self.grey_p, self.blur, self.blur_p)
        return ContrastiveView(first, *options), ContrastiveView(second, *options)

    @property
    def plain(self) -> Transform:
        """What is embedded: small images whole, others the centre."""
        return plain(self.image_size, self.mean, self.std, None if self.small_images else 0.875)

    @property
    def probed(self) -> Transform:
        """What the linear probe is trained on: a random crop and a flip."""
        return augmented(self.image_size, self.mean, self.std, self.probe_crop_scale, flip=self.flip)
