"""CheXWorld: radiograph representations from predicting what is hidden, elsewhere, or was taken otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from repertory.contract import Length
from repertory.data import Splits
from repertory.data.images import Images
from repertory.data.transforms.images import IMAGENET_MEAN, IMAGENET_STD
from repertory.embeddings import Embeddings
from repertory.encoders import Convention, Encoder, prefixes, read_checkpoint
from repertory.errors import ConfigError, DataError, UserError
from repertory.evaluation import Metric, Metrics, auroc, average_precision, describe, linear_probe, resampled_interval
from repertory.nn.vit import VisionTransformer, resize_state
from repertory.systems.chexworld import figures
from repertory.systems.chexworld.config import Config
from repertory.systems.chexworld.data import READERS, Crops, Examples, findings, is_finding, read_mask
from repertory.systems.chexworld.finetuning import Answer, FineTuning, dice, indicators, probabilities
from repertory.systems.chexworld.model import Classifier, Predictor, WorldModel
from repertory.systems.chexworld.pretraining import Diagnosis, Pretraining, diagnose
from repertory.systems.chexworld.segmentation import UNetAdapter
from repertory.training import Fixed, Shuffled, Stage, TorchSystem, batches_of


class CheXWorld(TorchSystem):
    """World models of radiographs: local structure, layout, domain (Yue et al., CVPR 2025)."""

    readers = READERS

    Config = Config

    # -- the model -----------------------------------------------------------------------------------------------

    def _check(self, splits: Splits[Images], length: Length, trainer: Mapping[str, Any]) -> None:
        super()._check(splits, length, trainer)
        for encoder in self._encoders.values():
            if not isinstance(encoder.module, VisionTransformer):
                raise ConfigError(f"encoder {encoder.address}: not the encoder of a CheXWorld run, give run:RUN")
        c = self.config
        if c.pretrains:
            for aspect in (0.0, 1.0):
                c.masks.block_size(c.pred_mask_scale, c.pred_mask_aspect, (0.0, aspect))  # refuses grids too coarse
        self._learn(splits)

    def _learn(self, splits: Splits[Images]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for encoder in self._encoders.values():
            vit: Any = encoder.module
            made["encoder"] = {
                "width": vit.width, "depth": len(vit.blocks), "heads": vit.heads, "patch_size": vit.patch_size,
                "mlp_ratio": vit.blocks[0].mlp.fc1.out_features / vit.width,
            }  # fmt: skip
        if self.config.task == "classification":
            names = splits.train.roles.get("label", ())
            if not names:
                raise DataError(f"{splits.source}: classification needs labels: name them with label=COLUMN,COLUMN")
            if len(names) > 1 or is_finding(splits.train, names[0]):
                values = findings(splits.train, names)
                for name, column in zip(names, values.T, strict=True):
                    if not {0, 1} <= set(column):
                        raise DataError(f"{splits.source}: finding '{name}' is not both 0 and 1 in the training part")
                findings(splits.val, names)
                made["findings"] = list(names)
            else:
                classes = sorted(set(splits.train.column(names[0]).astype(str)))
                if len(classes) < 2:
                    raise DataError(f"{splits.source}: column '{names[0]}' has one class only, '{classes[0]}'")
                made |= {"classes": classes, "label": names[0]}
        if self.config.task == "segmentation":
            _masks(splits.train)
        return made

    @property
    def answer(self) -> Answer:
        """What fine-tuning answers."""
        if self.config.task == "segmentation":
            return "mask"
        return "findings" if "findings" in self.assets else "classes"

    @property
    def answers(self) -> list[str]:
        """Names of the findings or classes."""
        names: list[str] = self.assets.get("findings") or self.assets.get("classes") or []
        return names

    def _vit(self, **options: Any) -> VisionTransformer:
        c = self.config
        shape = {"width": c.width, "depth": c.depth, "heads": c.heads, "mlp_ratio": c.mlp_ratio,
                 "patch_size": c.patch_size, **self.assets.get("encoder", {})}  # fmt: skip
        vit = VisionTransformer(**{"image_size": c.image_size, **shape, **options}, init=c.init)
        vit.pos_embed.mul_(c.position_scale)
        return vit

    def _build(self) -> nn.Module:
        c, model = self.config, nn.ModuleDict()
        if c.pretrains or c.task == "none":
            grid = c.image_size // c.patch_size
            predictor = Predictor(
                grid, c.width, c.predictor_width, c.predictor_depth, c.heads, conditioning=c.conditioning,
                general_position=c.ssl_type == "iwm_dual", unify_embed=c.unify_embed, init=c.init,
            )  # fmt: skip
            model["world"] = WorldModel(
                self._vit(), predictor, c.target_last_k, c.target_norm, c.iwm_disable, c.rel_pos_disable,
                c.reverse_pred,
            )  # fmt: skip
        if c.task != "none":
            patch = {"patch_size": c.finetune_patch_size} if c.finetune_patch_size else {}
            vit = self._vit(drop_path=c.finetune_drop_path, **patch)
            for encoder in self._encoders.values():
                vit.load_state_dict(resize_state(encoder.module.state_dict(), vit.patch_size, c.image_size))
            if c.task == "classification":
                model["tuned"] = Classifier(vit, len(self.answers))
            else:
                model["tuned"] = UNetAdapter(vit, 1, c.segmentation_channels)
        return model

    @property
    def _final(self) -> VisionTransformer:
        """The encoder of the last stage: the fine-tuned one, or else the target encoder."""
        vit: VisionTransformer = (
            self.model["tuned"].feature_model if "tuned" in self.model else self.model["world"].target_encoder
        )
        return vit

    @property
    def encoder(self) -> Encoder:
        """The fine-tuned encoder, or else the target encoder: the mean of its tokens, and their map."""
        self._needs_fit()
        vit = self._final

        def dense(module: nn.Module, x: Tensor) -> Tensor:
            return rearrange(module(x), "b (h w) d -> b d h w", h=x.shape[-2] // vit.patch_size)

        convention = Convention(self.config.image_size, IMAGENET_MEAN, IMAGENET_STD, 3)
        return Encoder(vit, vit.width, lambda module, x: module(x).mean(1), dense, convention)

    # -- fit -----------------------------------------------------------------------------------------------------

    def stages(self, splits: Splits[Images]) -> list[Stage]:
        c, stages = self.config, []
        if c.pretrains:
            crops = [Crops(items, c.transform, c.masks) for items in (splits.train, splits.val)]
            stages.append(
                Stage(
                    "pretrain",
                    Pretraining(self.model["world"], c),
                    Shuffled(len(splits.train), c.batch_size, crops[0]),
                    epochs=c.epochs,
                    steps=c.steps,
                    validation=Fixed(min(len(splits.val), 4 * c.batch_size), c.batch_size, crops[1], "validation"),
                )
            )
        if c.task != "none":
            train, val = self._examples(splits.train, augment=True), self._examples(splits.val)
            size = c.finetune_batch_size
            best = "val/dice" if self.answer == "mask" else "val/auroc"
            judged = self.answer == "mask" or _both_sides(val.labels, len(self.answers))
            stages.append(
                Stage(
                    "finetune",
                    FineTuning(self.model["tuned"], c, self.answer),
                    Shuffled(len(splits.train), size, train),
                    epochs=c.finetune_epochs,
                    steps=c.finetune_steps,
                    validation=Fixed(len(splits.val), size, val, "validation"),
                    keep_best=best if judged else "val/loss",
                    best_is="max" if judged else "min",
                    patience=c.patience,
                    begin=self._take_pretrained if c.pretrains else None,
                )
            )
        return stages

    def _take_pretrained(self) -> None:
        start, vit = self.model["world"].target_encoder, self.model["tuned"].feature_model
        vit.load_state_dict(resize_state(start.state_dict(), vit.patch_size, vit.grid[0] * vit.patch_size))

    def _examples(self, items: Images, augment: bool = False, truth: bool = True) -> Examples:
        c, mask = self.config, self.answer == "mask"
        return Examples(
            items,
            c.image_size,
            c.transform,
            scale=c.finetune_crop_scale if augment else None,
            jitter=c.finetune_jitter,
            whole=mask,
            labels=self._labels(items) if truth and not mask else None,
            masks=_masks(items) if truth and mask else None,
        )

    def _labels(self, items: Images) -> Tensor:
        if self.answer == "findings":
            return torch.from_numpy(findings(items, self.answers)).float()
        values = items.column(self.assets["label"]).astype(str)
        unknown = set(values) - set(self.answers)
        if unknown:
            raise DataError(f"class '{min(unknown)}' does not occur in training; there are {', '.join(self.answers)}")
        return torch.from_numpy(np.searchsorted(self.answers, values))

    # -- embed, predict, evaluate --------------------------------------------------------------------------------

    def _embed(self, data: Images, batch_size: int) -> Iterator[Embeddings]:
        vit = self._final
        examples = Examples(data, self.config.image_size, self.config.transform)
        for rows in batches_of(len(data), batch_size, lambda rows: rows):
            tokens = vit(examples(rows)["images"].to(self.device))
            yield Embeddings.build(tokens.mean(1).float().cpu().numpy(), id=data.ids[rows])

    def predict(self, data: Any = None, *, out: str | Path | None = None) -> pa.Table:
        """What a fine-tuned run says of each image; None takes the held-out split.

        Returns:
            ``id`` and a probability per finding or class; or ``id``, ``mask`` (the path of a PNG, 0 and 255, as large
            as the image) and, where the true masks are known, ``dice``.

        Args:
            out: the folder for masks; None: ``predictions`` in the run's folder.

        Raises:
            UserError: the run was not fine-tuned, or masks have no folder to go to.
        """
        items, _ = self._held_out(data)
        if "tuned" not in self.model:
            raise UserError(
                "this run is not fine-tuned: fit with task=classification or task=segmentation (encoder=run:RUN "
                "starts from this run)"
            )
        if self.answer == "mask":
            return self._write_masks(items, out)
        p = torch.cat(list(self._answers(items))).numpy()
        return pa.table({"id": items.ids.tolist(), **{name: p[:, i] for i, name in enumerate(self.answers)}})

    @torch.inference_mode()
    def _answers(self, items: Images) -> Iterator[Tensor]:
        """Probabilities ``[B, ...]`` batch by batch."""
        self.model.eval()
        examples = self._examples(items, truth=False)
        for batch in batches_of(len(items), min(64, self.config.finetune_batch_size), examples):
            yield probabilities(self.model["tuned"](batch["images"].to(self.device)), self.answer).cpu()

    def _write_masks(self, items: Images, out: str | Path | None) -> pa.Table:
        folder = Path(out) if out is not None else self.run.path / "predictions" if self.run and self.run.path else None
        if folder is None:
            raise UserError("masks are files: name a folder for them with out=FOLDER")
        folder.mkdir(parents=True, exist_ok=True)
        known = "mask" in items.columns.column_names
        rows: dict[str, list[Any]] = {"id": [], "mask": []} | ({"dice": []} if known else {})
        for i, (name, p) in enumerate(zip(items.ids, (p for part in self._answers(items) for p in part), strict=True)):
            size = items.image(i).size
            mask = Image.fromarray((255 * p[0].numpy()).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
            mask = mask.point(lambda v: 255 * (v > 127))
            path = folder / f"{str(name).replace('/', '_')}.png"
            mask.save(path)
            rows["id"].append(str(name))
            rows["mask"].append(str(path))
            if known:
                truth = read_mask(items.columns["mask"][i].as_py(), size)
                rows["dice"].append(float(dice(*(torch.from_numpy(np.array(m) > 127)[None] for m in (mask, truth)))))
        return pa.table(rows)

    def _evaluate(self, splits: Splits[Images]) -> Metrics:
        metrics = Metrics()
        names = splits.test.roles.get("label", ())
        several = len(names) > 1 or (len(names) == 1 and is_finding(splits.test, names[0]))
        metrics |= self._probe_findings(splits) if several else self.probe(splits)
        if "world" in self.model:
            metrics |= self._world_metrics(splits.test)
        if "tuned" in self.model:
            metrics |= self._tuned_metrics(splits.test)
        return metrics

    def _probe_findings(self, splits: Splits[Images]) -> Metrics:
        """A linear probe per finding, on the images for which it is known."""
        names, seed = splits.test.roles["label"], self.record.get("seed", 0)
        test, truth = self._select(splits.test, {}).vectors, findings(splits.test, names)
        inside = splits.rule == "none"
        train = test if inside else self._select(splits.train, {}).vectors
        taught = truth if inside else findings(splits.train, names)
        metrics, probed = Metrics(), []
        for name, y, t in zip(names, truth.T, taught.T, strict=True):
            known, learned = ~np.isnan(y), ~np.isnan(t)
            if not ({0, 1} <= set(y) and {0, 1} <= set(t)):
                continue
            of = {} if inside else {"train_vectors": train[learned], "train_labels": t[learned, None]}
            made = linear_probe(test[known], y[known, None], task="multilabel", seed=seed, **of)
            metrics |= made.metrics.prefixed(f"{name}/")
            probed.append(name)
        for measure in ("probe_auroc", "probe_ap", "probe_accuracy"):
            values = [metrics[f"{name}/{measure}"].value for name in probed]
            if values:
                about = f"linear probe, mean over {len(probed)} findings"
                metrics |= {measure: Metric(float(np.mean(values)), higher_is_better=True, about=about)}
        return metrics | describe(test, seed=seed)

    def diagnose(self, items: Images) -> Diagnosis:
        """Prediction errors on up to ``evaluation_images`` images, the same ones each time."""
        self._needs_fit()
        if "world" not in self.model:
            raise UserError("this run has no world model: it was fine-tuned from another encoder")
        n = min(len(items), self.config.evaluation_images)
        rows = np.sort(np.random.default_rng(0).choice(len(items), n, replace=False))
        self.model.eval()
        crops = Crops(items, self.config.transform, self.config.masks)
        return diagnose(self.model["world"], crops, rows, self.record.get("seed", 0))

    def _world_metrics(self, items: Images) -> Metrics:
        d, seed = self.diagnose(items), self.record.get("seed", 0)

        def ratio(above: np.ndarray, below: np.ndarray, about: str) -> Metric:
            low, high = resampled_interval(lambda w: (w @ above) / (w @ below), len(above), seed)
            value = float(above.sum() / below.sum())
            return Metric(value, min(low, value), max(high, value), higher_is_better=False, about=about)

        over = f"over {len(d.intra)} held-out images"
        error = (d.intra + self.config.extra_weight * d.extra) / (1 + self.config.extra_weight)
        return Metrics(
            {
                "prediction_error": Metric.of(error, seed, higher_is_better=False, about=f"mean squared error, {over}"),
                "target_variance": Metric(d.target_variance, about=f"of targets, {over}; near 0: collapse, at most 1"),
                "target_content": Metric(
                    d.content, about="share of it that is not the position's", higher_is_better=True
                ),
                "domain_ratio": ratio(d.intra, d.retold, f"error, told the augmentation / told another, {over}"),
                "layout_ratio": ratio(d.extra, d.misplaced, f"error, told the displacement / told none, {over}"),
            }
        )

    def _tuned_metrics(self, items: Images) -> Metrics:
        seed = self.record.get("seed", 0)
        if self.answer == "mask":
            if "mask" not in items.columns.column_names:
                return Metrics()
            examples = self._examples(items)
            pairs = zip(
                self._answers(items), batches_of(len(items), min(64, self.config.finetune_batch_size), examples)
            )
            scores = torch.cat([dice(p > 0.5, batch["masks"] > 0.5) for p, batch in pairs]).numpy()
            return Metrics({"finetuned/dice": Metric.of(scores, seed, higher_is_better=True, about="mean over images")})
        if not set(self.assets.get("findings", [self.assets.get("label")])) <= set(items.columns.column_names):
            return Metrics()
        labels = self._labels(items).numpy()
        p = torch.cat(list(self._answers(items))).numpy().astype(np.float64)
        truth, metrics = indicators(labels, len(self.answers)), Metrics()
        for i, name in enumerate(self.answers):
            known = ~np.isnan(truth[:, i])
            y, s = truth[known, i], p[known, i]
            if not {0, 1} <= set(y):
                continue
            for measure, area in (("auroc", auroc), ("ap", average_precision)):
                low, high = resampled_interval(lambda w: area(y, s, w), len(y), seed)  # noqa: B023
                value = float(area(y, s, np.ones(len(y))))
                metrics |= {f"finetuned/{name}/{measure}": Metric(value, low, high, True, f"{len(y)} held-out images")}
        for measure in ("auroc", "ap"):
            values = [m.value for name, m in metrics.items() if name.endswith(f"/{measure}")]
            if values:
                metrics |= {f"finetuned/{measure}": Metric(float(np.mean(values)), higher_is_better=True,
                                                          about=f"mean over {len(values)}")}  # fmt: skip
        if self.answer == "classes":
            hits = (p.argmax(1) == labels).astype(float)
            metrics |= {"finetuned/accuracy": Metric.of(hits, seed, higher_is_better=True, about="held-out images")}
        return metrics

    def figures(self, data: Images) -> dict[str, Any]:
        with torch.inference_mode():
            return figures.of_radiographs(self, data)

    # -- official checkpoints --------------------------------------------------------------------------------------

    @classmethod
    def from_official(cls, checkpoint: str | Path | Mapping[str, Any]) -> CheXWorld:
        """From a pre-training checkpoint (``encoder.``, ``target_encoder.``, ``predictor.``) or a fine-tuned classifier
        (``feature_model.``, ``head.``); sizes are read from the shapes.

        Heads cannot be read from shapes: 64 channels each, as in every size but the smaller predictor's.

        Raises:
            UserError: neither; names the prefixes found.
        """
        read = read_checkpoint(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
        state: Mapping[str, Any] = read.get("model", read)  # type: ignore[assignment]
        found = {key.split(".")[0] for key in state}
        source = str(checkpoint)[:200] if isinstance(checkpoint, (str, Path)) else "state dict"
        pretrained, tuned = {"encoder", "target_encoder", "predictor"} <= found, {"feature_model", "head"} <= found
        if not (pretrained or tuned):
            raise UserError(
                "not a CheXWorld checkpoint: expected keys with encoder., target_encoder. and predictor., or "
                f"feature_model. and head.; prefixes found: {', '.join(prefixes(state)) or 'none'}"
            )
        try:
            settings = _shape(state, "target_encoder." if pretrained else "feature_model.")
            assets: dict[str, Any] = {}
            if pretrained:
                settings |= _predictor_shape(state)
                weights = {f"world.{key}": value for key, value in state.items()}
            else:
                classes = len(state["head.bias"])
                settings |= {"task": "classification", "epochs": 0}
                assets["findings"] = [f"finding {i}" for i in range(classes)]
                weights = {f"tuned.{key}": value for key, value in state.items()}
        except KeyError as error:
            raise UserError(f"not a whole CheXWorld checkpoint: no tensor {error}") from None
        return cls(cls.Config.build(**settings))._imported(assets, weights, source)


def _shape(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    kernel, positions = state[f"{prefix}patch_embed.proj.weight"], state[f"{prefix}pos_embed"]
    width, _, patch, _ = kernel.shape
    hidden = state[f"{prefix}blocks.0.mlp.fc1.weight"].shape[0]
    return {
        "width": width, "patch_size": patch, "image_size": patch * round(positions.shape[1] ** 0.5),
        "depth": _blocks(state, f"{prefix}blocks."), "heads": HEADS.get(width, max(1, width // 64)),
        "mlp_ratio": hidden / width,
    }  # fmt: skip


def _predictor_shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    width = state["predictor.predictor_embed.weight"].shape[0]
    first, last = state["predictor.policy_net.0.weight"], "predictor.policy_net.4.weight" in state
    token = "token" if first.shape[1] > 5 else "token_bare"
    return {
        "predictor_width": width, "predictor_depth": _blocks(state, "predictor.predictor_blocks."),
        "conditioning": "feat" if last else token,
        "ssl_type": "iwm_dual" if "predictor.predictor_pos_mlp.weight" in state else "iwm_dual_easy",
    }  # fmt: skip


def _blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix))


HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
"""By width, for checkpoints."""


def _masks(items: Images) -> list[Any]:
    if "mask" not in items.columns.column_names:
        raise DataError("segmentation needs masks: a table with columns of image and mask paths (mask=COLUMN)")
    masks: list[Any] = items.columns["mask"].to_pylist()
    return masks


def _both_sides(labels: Tensor | None, classes: int) -> bool:
    """Whether an area under the ROC curve is defined for some finding."""
    assert labels is not None
    truth = indicators(labels.numpy(), classes)
    return any({0, 1} <= set(column) for column in truth.T)
