"""The Hallucinator: one more positive per image, made of its features, for Siamese contrastive learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.contract import Length
from repertory.data import Splits
from repertory.data.images import Images
from repertory.data.labels import class_indices, class_names
from repertory.data.transforms.images import Pixels, Views
from repertory.embeddings import Embeddings
from repertory.encoders import Convention, Encoder, prefixes
from repertory.errors import ConfigError, DataError, UserError
from repertory.evaluation import Metric, Metrics
from repertory.nn.queue import check_queue
from repertory.runs import seeded
from repertory.systems.hallucinator import figures
from repertory.systems.hallucinator.config import Config
from repertory.systems.hallucinator.model import (
    STATES,
    Hallucinator,
    MoCo,
    Siamese,
    SimCLR,
    SimSiam,
    build_backbone,
    extrapolate,
    feature_map,
    linear_head,
    mlp_head,
    official_settings,
    official_state,
    read_official,
    simsiam_head,
    without_head,
)
from repertory.systems.hallucinator.training import LinearProbe, Pretraining, Probing, WarmedUp
from repertory.training import Fixed, Shuffled, Stage, TorchSystem, batches_of

HEADS = {"moco_v1": linear_head, "moco_v2": mlp_head, "simclr": mlp_head, "simsiam": simsiam_head}


class HallucinatorSystem(TorchSystem):
    """Siamese learning with hallucinated positives (Wu, Hobbs and Hovakimyan, ICCV 2023)."""

    Config = Config

    # -- the model -----------------------------------------------------------------------------------------------

    def _check(self, splits: Splits[Images], length: Length, trainer: Mapping[str, Any]) -> None:
        super()._check(splits, length, trainer)
        c, images = self.config, len(splits.train)
        if images < 2:
            raise DataError(f"{splits.source}: {images} image to train on; a batch needs at least 2")
        if c.method.startswith("moco"):
            check_queue(c.queue_size, min(c.batch_size, images) * c.copies)
        self._learn(splits)

    def _learn(self, splits: Splits[Images]) -> dict[str, Any]:
        if self.config.task == "none":
            return {}
        column, classes = class_names(splits)
        class_indices(splits.val, column, classes)
        return {"label": column, "classes": classes}

    def _build(self) -> nn.Module:
        c = self.config
        backbone = build_backbone(c.backbone, len(c.mean), c.small_images)
        width = backbone.width
        backbone.fc = HEADS[c.method](width, c.width)
        smooth, used = c.hallucinate == "full", c.hallucinate != "none"
        hallucinator = Hallucinator(c.width, c.ratio, smooth, c.hallucinations) if used else None
        method: Siamese
        if c.method == "simclr":
            paper = c.follow == "paper"
            method = SimCLR(backbone, hallucinator, c.sharpness, None if paper else 0.07, mask_duplicates=paper)
        elif c.method == "simsiam":
            method = SimSiam(backbone, hallucinator, c.width, c.predictor_width)
        else:
            method = MoCo(
                backbone, hallucinator, c.width, c.queue_size, c.momentum, c.sharpness,
                "once" if c.follow == "paper" else "official",
            )  # fmt: skip
        model = nn.ModuleDict({"siamese": method})
        if self.classes:
            model["probe"] = LinearProbe(width, len(self.classes))
        return model

    @property
    def classes(self) -> list[str]:
        """Of the linear probe; empty without one."""
        names: list[str] = self.assets.get("classes", [])
        return names

    @property
    def encoder(self) -> Encoder:
        """The encoder without its head."""
        self._needs_fit()
        c, encoder = self.config, self.model["siamese"].encoder
        convention = Convention(c.image_size, tuple(c.mean), tuple(c.std), len(c.mean))
        return Encoder(without_head(encoder), encoder.width, lambda module, x: module(x), feature_map, convention)

    # -- fit -----------------------------------------------------------------------------------------------------

    def stages(self, splits: Splits[Images]) -> list[Stage]:
        c, siamese = self.config, self.model["siamese"]
        centred = c.crops == "centre"
        plain, centre = (Views(splits.train, c.views(centred and late)) for late in (False, True))
        batches = WarmedUp(len(splits.train), c.batch_size, plain, centre, c.crop_warmup)
        seen = Views(splits.val, c.views(centred))
        stages = [
            Stage(
                "pretrain",
                Pretraining(siamese, c, len(batches)),
                batches,
                epochs=c.epochs,
                steps=c.steps,
                validation=Fixed(min(len(splits.val), 2 * c.batch_size), c.batch_size, seen, "validation"),
            )
        ]
        if c.task == "probe":
            train, val = (
                Pixels(items, transform, class_indices(items, self.assets["label"], self.classes))
                for items, transform in ((splits.train, c.probed), (splits.val, c.plain))
            )
            shown = Shuffled(len(splits.train), c.probe_batch_size, train)
            stages.append(
                Stage(
                    "probe",
                    Probing(siamese.encoder, self.model["probe"], c, len(shown)),
                    shown,
                    epochs=c.probe_epochs,
                    steps=c.probe_steps,
                    validation=Fixed(len(splits.val), c.probe_batch_size, val, "probe"),
                )
            )
        return stages

    # -- embed, predict, evaluate --------------------------------------------------------------------------------

    def _embed(self, data: Images, batch_size: int) -> Iterator[Embeddings]:
        encoder, pixels = without_head(self.model["siamese"].encoder), Pixels(data, self.config.plain)
        for rows in batches_of(len(data), batch_size, lambda rows: rows):
            features = encoder(pixels(rows)["images"].to(self.device))
            yield Embeddings.build(features.float().cpu().numpy(), id=data.ids[rows])

    def predict(self, data: Any = None) -> pa.Table:
        """What the linear probe says: ``id`` and a probability per class; None takes the held-out split.

        Raises:
            UserError: the run has no linear probe.
        """
        items, _ = self._held_out(data)
        if "probe" not in self.model:
            raise UserError("this run has no linear probe: fit with task=probe")
        p = self._probabilities(items, "fc")
        return pa.table({"id": items.ids.tolist(), **{name: p[:, i] for i, name in enumerate(self.classes)}})

    @torch.inference_mode()
    def _probabilities(self, items: Images, which: str) -> np.ndarray:
        self.model.eval()
        head = self.model["probe"].get_submodule(which)
        logits = [head(torch.tensor(part.vectors).to(self.device)) for part in self._stream(items, None, None)]
        p: np.ndarray = torch.cat(logits).softmax(1).cpu().numpy()
        return p

    def _evaluate(self, splits: Splits[Images]) -> Metrics:
        metrics = self.probe(splits) | self._pair_metrics(splits.test)
        if "probe" in self.model and self.assets["label"] in splits.test.columns.column_names:
            truth = class_indices(splits.test, self.assets["label"], self.classes).numpy()
            for name, which, when in (
                ("sgd_probe_accuracy", "fc", "the last epoch"),
                ("sgd_probe_accuracy_best", "best", "the epoch with the best validation"),
            ):
                hits = (self._probabilities(splits.test, which).argmax(1) == truth).astype(float)
                about = f"linear classifier trained by SGD, after {when}"
                metrics |= {
                    name: Metric.of(hits, self.record.get("seed", 0), higher_is_better=True, about=about)
                }  # fmt: skip
        return metrics

    @torch.inference_mode()
    def compare_views(self, items: Images) -> dict[str, np.ndarray]:
        """Cosines of two views of up to ``evaluation_images`` images, in the space of the loss.

        The views of each image are a function of the run's seed and its id; the ratio is the mean of the drawn ones.

        Returns:
            ``positive``: of the two views, ``[N]``; ``extrapolated`` and (with the MLP) ``hallucinated``: of what is
            made of the first with the second, ``[N]``; ``negative``: of the first with other images' second ones,
            ``[N, N - 1]``.
        """
        self._needs_fit()
        model: Siamese = self.model["siamese"].eval()
        rows = np.sort(np.random.default_rng(0).permutation(len(items))[: self.config.evaluation_images])
        views = self.views(items.take(rows))
        parts = [model.features(*(v[s].to(self.device) for v in views)) for s in _parts(len(rows), 256)]
        q, k = (torch.cat(side).float() for side in zip(*parts, strict=True))
        ratio = self.config.ratio / 2
        made = {"positive": q, "extrapolated": extrapolate(q, k, ratio)}
        if model.hallucinator is not None and model.hallucinator.mlp is not None:
            made["hallucinated"] = model.hallucinator.mlp(torch.cat([q, made["extrapolated"]], dim=1))
        found = {name: F.cosine_similarity(feature, k).cpu().numpy() for name, feature in made.items()}
        if len(q) > 1:
            between = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T
            other = ~torch.eye(len(q), dtype=torch.bool, device=q.device)
            found["negative"] = between[other].reshape(len(q), -1).cpu().numpy()
        return found

    def views(self, items: Images) -> tuple[Tensor, Tensor]:
        """Two views of each image, ``[N, C, S, S]`` each; a function of the run's seed and the ids."""
        pairs = []
        made = Views(items, self.config.views(self.config.crops == "centre"))
        for row, name in enumerate(items.ids):
            with seeded(self.record.get("seed", 0), "views", str(name)):
                pairs.append(made([row])["views"])
        first, second = (torch.cat(side) for side in zip(*pairs, strict=True))
        return first, second

    def _pair_metrics(self, items: Images) -> Metrics:
        found, seed = self.compare_views(items), self.record.get("seed", 0)
        of = {
            "positive": "two views of an image",
            "extrapolated": "the extrapolated feature of a view and the other view",
            "hallucinated": "the hallucinated feature of a view and the other view",
            "negative": "views of different images",
        }
        values = {name: cosines if cosines.ndim == 1 else cosines.mean(1) for name, cosines in found.items()}
        return Metrics(
            {
                f"{name}_cosine": Metric.of(value.astype(float), seed, about=f"mean over {len(value)}: {of[name]}")
                for name, value in values.items()
            }
        )

    def figures(self, data: Images) -> dict[str, Any]:
        with torch.inference_mode():
            return figures.of_images(self, data)

    # -- official checkpoints --------------------------------------------------------------------------------------

    @classmethod
    def from_official(cls, checkpoint: str | Path | Mapping[str, Any]) -> HallucinatorSystem:
        """From a checkpoint with ``moco_state``, ``simclr_state`` or ``simsiam_state``, or one of these state dicts;
        method, sizes and whether there is a Hallucinator are read from names and shapes.

        Temperature, momentum and normalisation are not in a checkpoint: the configuration's defaults.

        Raises:
            UserError: none of them; names the prefixes found.
        """
        read: Mapping[str, Any] = read_official(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
        named = next((read[name] for name in STATES if name in read), read)
        source = str(checkpoint)[:200] if isinstance(checkpoint, (str, Path)) else "state dict"
        state = official_state({k: v for k, v in named.items() if isinstance(v, Tensor)})
        if "encoder.conv1.weight" not in state:
            raise UserError(
                f"not a Hallucinator checkpoint: expected {', '.join(STATES)}, or keys with encoder_q., backbone. or "
                f"encoder.; prefixes found: {', '.join(prefixes(named)) or 'none'}"
            )
        try:
            config = Config.build(**official_settings(state))
        except KeyError as error:
            raise UserError(f"not a whole Hallucinator checkpoint: no tensor {error}") from None
        except ConfigError as error:
            raise UserError(f"a checkpoint of unknown sizes: {error}") from None
        return cls(config)._imported({}, {f"siamese.{name}": value for name, value in state.items()}, source)


def _parts(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))
