"""Vision Mamba: image classification and features without attention, linear in the number of patches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

from repertory.contract import Length
from repertory.data import Splits
from repertory.data.images import Images
from repertory.data.labels import class_indices, class_names
from repertory.data.transforms.images import Pixels, Transform, augmented, plain
from repertory.embeddings import Embeddings
from repertory.encoders import Convention, Encoder, read_checkpoint
from repertory.errors import ConfigError, DataError
from repertory.evaluation import Metric, Metrics
from repertory.systems.vim import figures
from repertory.systems.vim.config import Config
from repertory.systems.vim.data import Repeated
from repertory.systems.vim.model import VisionMamba, check_finite
from repertory.systems.vim.official import load_official, read_shape
from repertory.systems.vim.training import Training, with_average
from repertory.training import Fixed, Shuffled, Stage, TorchSystem, batches_of

TOP = 5


class Vim(TorchSystem):
    """Vision Mamba (Zhu et al., ICML 2024): a classifier, and its features as vectors or maps."""

    Config = Config

    # -- the model -------------------------------------------------------------------------------------------------

    def _check(self, splits: Splits[Images], length: Length, trainer: Mapping[str, Any]) -> None:
        super()._check(splits, length, trainer)
        for encoder in self._encoders.values():
            if not isinstance(encoder.module, VisionMamba):
                raise ConfigError(f"encoder {encoder.address}: not a Vision Mamba: give run:RUN of a vim run")
            if encoder.module.shape["in_channels"] != len(self.config.mean):
                raise ConfigError(
                    f"encoder {encoder.address} takes {encoder.module.shape['in_channels']} channels, mean has "
                    f"{len(self.config.mean)} values"
                )
        class_indices(splits.val, *class_names(splits))

    def _learn(self, splits: Splits[Images]) -> dict[str, Any]:
        label, classes = class_names(splits)
        made: dict[str, Any] = {"label": label, "classes": classes}
        for encoder in self._encoders.values():
            made["encoder"] = encoder.module.shape
        return made

    def _build(self) -> nn.Module:
        c = self.config
        shape = {
            "in_channels": len(c.mean), "patch_size": c.patch_size, "width": c.width, "depth": c.depth,
            "d_state": c.d_state, "d_conv": c.d_conv, "expand": c.expand, "bimamba_type": c.bimamba_type,
            "if_bidirectional": c.if_bidirectional, "if_divide_out": c.if_divide_out,
            "init_layer_scale": c.init_layer_scale, "class_token": c.class_token, "pool": c.pool,
            "positions": c.positions, "rope": c.rope, "rms_norm": c.rms_norm, **self.assets.get("encoder", {}),
        }  # fmt: skip
        model = VisionMamba(
            c.image_size, stride=c.stride, classes=len(self.assets["classes"]), drop_path=c.drop_path,
            residual_in_fp32=c.residual_in_fp32, symmetric_init=c.follow == "paper", scan=c.scan, **shape,
        )  # fmt: skip
        model.decay_rates = c.follow == "official"
        for encoder in self._encoders.values():
            load_official(model, encoder.module.state_dict(), c.follow, head=False)
        return with_average(model, c.ema)

    @property
    def network(self) -> VisionMamba:
        """What embeds and predicts: the trained model, or its average.

        Raises:
            UserError: nothing is fitted yet.
        """
        self._needs_fit()
        network: VisionMamba = self.model["average" if self.config.use_average else "model"]
        return network

    @property
    def encoder(self) -> Encoder:
        """The network without its head: a vector an image, or the map of its patches' tokens."""
        c, network = self.config, self.network
        pooled: Any = lambda module, x: module.vectors(x)
        dense: Any = lambda module, x: module.dense(x)
        return Encoder(network, network.width, pooled, dense, Convention(c.image_size, c.mean, c.std, len(c.mean)))

    # -- fit -------------------------------------------------------------------------------------------------------

    @property
    def tested(self) -> Transform:
        """How images are shown when they are embedded or tested."""
        return plain(self.config.image_size, self.config.mean, self.config.std, self.config.crop)

    @property
    def trained(self) -> Transform:
        """How images are shown in training."""
        c = self.config
        if not c.augment:
            return self.tested
        return augmented(
            c.image_size, c.mean, c.std, c.crop_scale, flip=c.flip, color_jitter=c.color_jitter,
            auto_augment=c.auto_augment, erase=c.erase,
        )  # fmt: skip

    def stages(self, splits: Splits[Images]) -> list[Stage]:
        c, classes = self.config, self.assets["classes"]
        train, val = (class_indices(items, self.assets["label"], classes) for items in (splits.train, splits.val))
        module = Training(
            self.model["model"], self.model["average"] if c.ema else None, c.ema, c.use_average, classes=len(classes),
            lr=c.lr, min_lr=c.min_lr, warmup=c.warmup, weight_decay=c.weight_decay, layer_decay=c.layer_decay,
            clip=c.clip, smoothing=c.smoothing, mixup=c.mixup, cutmix=c.cutmix,
        )  # fmt: skip
        shown = Repeated(Pixels(splits.train, self.trained, train), c.repeats)
        batches = Shuffled(len(splits.train), max(1, c.batch_size // c.repeats), shown)
        return [
            Stage(
                "train",
                module,
                batches,
                epochs=c.epochs / c.repeats,  # a pass shows each image so many times
                steps=c.steps,
                validation=Fixed(len(splits.val), c.batch_size, Pixels(splits.val, self.tested, val), "validation"),
                validate_every=None if c.steps is None else max(1, min(len(batches), c.steps // 4)),
                keep_best="val/accuracy",
                best_is="max",
            )
        ]

    # -- embed, predict, evaluate ------------------------------------------------------------------------------------

    def _embed(self, data: Images, batch_size: int) -> Iterator[Embeddings]:
        network, shown = self.network, Pixels(data, self.tested)
        network.check_vectors()
        check_finite(network)
        for rows in batches_of(len(data), batch_size, lambda rows: rows):
            vectors = network.vectors(shown(rows)["images"].to(self.device))
            yield Embeddings.build(vectors.float().cpu().numpy(), id=data.ids[rows])

    @torch.inference_mode()
    def probabilities(self, items: Images) -> Tensor:
        """Of each class, ``[N, classes]``, on the CPU."""
        network = self.network.eval()
        check_finite(network)
        shown = Pixels(items, self.tested)
        batches = batches_of(len(items), self.config.batch_size, shown)
        return torch.cat([network(batch["images"].to(self.device)).float().softmax(1).cpu() for batch in batches])

    def predict(self, data: Any = None) -> pa.Table:
        """The most probable class of each image; None takes the held-out split.

        Returns:
            ``id``, ``prediction``, its ``probability``, and a column ``p/CLASS`` per class.

        Raises:
            UserError: nothing is fitted yet, or the data cannot be used.
        """
        items, _ = self._held_out(data)
        classes: list[str] = self.assets["classes"]
        p = self.probabilities(items).numpy()
        best = p.argmax(1)
        return pa.table(
            {"id": items.ids.tolist(), "prediction": [classes[i] for i in best], "probability": p.max(1)}
            | {f"p/{name}": p[:, i] for i, name in enumerate(classes)}
        )

    def _evaluate(self, splits: Splits[Images]) -> Metrics:
        metrics = self._accuracies(splits.test)
        if self.network.class_token == "none" and self.network.pool == "max":
            return metrics  # there are no vectors to probe
        return metrics | self.probe(splits)

    def _accuracies(self, items: Images) -> Metrics:
        column, classes = self.assets["label"], self.assets["classes"]
        if column not in items.columns.column_names:
            return Metrics()
        truth = class_indices(items, column, classes).numpy()
        p, seed = self.probabilities(items).numpy(), self.record.get("seed", 0)
        ranks = (p > p[np.arange(len(p)), truth][:, None]).sum(1)
        about = f"of the classifier, {len(truth)} held-out images"
        metrics = Metrics({"accuracy": Metric.of(ranks == 0, seed, higher_is_better=True, about=about)})
        if len(classes) > TOP:
            about = f"true class among the first {TOP} {about}"
            metrics |= {"top5_accuracy": Metric.of(ranks < TOP, seed, higher_is_better=True, about=about)}
        return metrics

    def figures(self, data: Images) -> dict[str, Any]:
        return figures.of_images(self, data)

    # -- official checkpoints ----------------------------------------------------------------------------------------

    @classmethod
    def from_official(cls, checkpoint: str | Path | Mapping[str, Any], **settings: Any) -> Vim:
        """From a released checkpoint (weights under ``model``); sizes are read from the shapes.

        Args:
            checkpoint: a file, or its content.
            **settings: options of the configuration that shapes do not tell, such as ``class_token="head"`` (the
                released models have it in the middle), or an ``image_size`` to which the positions are resized.

        Raises:
            UserError: not the weights of a Vision Mamba, or settings that do not fit them.
        """
        read = read_checkpoint(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
        state: Mapping[str, Tensor] = read.get("model", read)  # type: ignore[assignment]
        shape = read_shape(state)
        channels = shape.pop("in_channels")
        if "head.weight" not in state:
            raise DataError("the checkpoint has no head.weight: no classes to predict")
        count = len(state["head.weight"])
        grey = {} if channels == 3 else {"mean": (0.5,) * channels, "std": (0.5,) * channels}
        config = cls.Config.build(**{"ema": 0.0, **shape, **grey, **settings})
        made = cls(config)
        made.assets = {"label": "label", "classes": _names(count)}
        network = made._build()["model"]  # type: ignore[index]
        load_official(network, state, config.follow)
        weights = {f"model.{name}": value for name, value in network.state_dict().items()}
        source = str(checkpoint)[:200] if isinstance(checkpoint, (str, Path)) else "state dict"
        return made._imported(made.assets, weights, source)


def _names(classes: int) -> list[str]:
    """ImageNet's synsets where there are 1,000 classes, in their order; else numbers."""
    if classes == 1000:
        return list(ImageNetInfo("imagenet-1k").label_names())
    return [f"class {i}" for i in range(classes)]
