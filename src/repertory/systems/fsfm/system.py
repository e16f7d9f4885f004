"""FSFM: a face security model, pre-trained on real faces alone, fine-tuned to find forged ones."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import timm.models
import torch
from einops import rearrange
from torch import Tensor, nn

from repertory.contract import Length
from repertory.data import Splits
from repertory.data.images import Images
from repertory.data.labels import class_indices, class_names
from repertory.data.transforms.images import Pixels, Transform, augmented, plain
from repertory.embeddings import Embeddings
from repertory.encoders import Convention, Encoder, prefixes, read_checkpoint
from repertory.errors import ConfigError, DataError, UserError
from repertory.evaluation import Metric, Metrics, auroc, resampled_interval
from repertory.nn.mae import MaskedEncoder
from repertory.nn.vit import load_encoder
from repertory.runs import Run
from repertory.systems.fsfm import figures
from repertory.systems.fsfm.config import Config
from repertory.systems.fsfm.data import (
    PARSING,
    READERS,
    Balanced,
    MaskedFaces,
    channel_statistics,
    map_of,
    spread_frames,
    videos_of,
)
from repertory.systems.fsfm.finetuning import DeepfakeDetection, SpoofDetection, both_sides
from repertory.systems.fsfm.masking import COVERED, Strategy
from repertory.systems.fsfm.metrics import (
    by_video,
    check_both,
    detection,
    equal_error_threshold,
    half_total_error_rate,
    tpr_at_fpr,
)
from repertory.systems.fsfm.model import AntiSpoofing, FaceModel, detector, from_official
from repertory.systems.fsfm.pretraining import Diagnosis, Pretraining, diagnose
from repertory.training import Fixed, Shuffled, Stage, TorchSystem, batches_of

VGGFACE2 = ((0.54822075, 0.42340535, 0.36546516), (0.27891761, 0.24385408, 0.23493893))
"""Mean and deviation of the paper's pre-training faces."""
STATISTICS = "pretrain_ds_mean_std.txt"


class FSFM(TorchSystem):
    """Masked faces, covered regions and one identity in two views (Wang et al., CVPR 2025)."""

    readers = READERS

    Config = Config

    # -- the model -----------------------------------------------------------------------------------------------

    def _check(self, splits: Splits[Images], length: Length, trainer: Mapping[str, Any]) -> None:
        super()._check(splits, length, trainer)
        c = self.config
        for encoder in self._encoders.values():
            if not isinstance(encoder.module, MaskedEncoder | timm.models.VisionTransformer):
                raise ConfigError(f"encoder {encoder.address}: not a ViT with a class token: give run:RUN of an fsfm")
        if c.pretrains:
            if self._masking(splits.all) != c.masking:
                warnings.warn(
                    f"{splits.source}: no column '{PARSING}' of parsing maps (.npy files, or images/ and parsing_maps/ "
                    "in one folder): patches are hidden at random, no region is covered",
                    stacklevel=2,
                )
            elif c.masking != "random":
                for items in (self._real(splits.train), self._real(splits.val)):
                    for i in range(len(items)):
                        map_of(items, i)
            if c.patches * c.mask_ratio % 1:
                warnings.warn(
                    f"mask_ratio {c.mask_ratio} of {c.patches} patches is {c.patches * c.mask_ratio:g}: the encoder "
                    f"sees {c.kept}, {c.patches - c.kept} are hidden from it",
                    stacklevel=2,
                )
        if c.task != "none":
            self._classes(splits)
        if c.task == "antispoof" and c.domain:
            splits.train.column(c.domain)

    def _classes(self, splits: Splits[Images]) -> tuple[str, list[str]]:
        label, classes = class_names(splits)
        if self.config.real not in classes:
            numbered = ", ".join(f"{name}: {i}" for i, name in enumerate(classes))
            raise DataError(
                f"{splits.source}: no class '{self.config.real}' among {{{numbered}}}: name the class of real faces "
                "with real=CLASS"
            )
        return label, classes

    def _real(self, items: Images) -> Images:
        """The faces to pre-train on: the real ones where the labels name them, else all."""
        names = items.roles.get("label", ())
        real = items.column(names[0]).astype(str) == self.config.real if len(names) == 1 else np.zeros(len(items), bool)
        return items.take(real) if real.any() else items

    def _learn(self, splits: Splits[Images]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for encoder in self._encoders.values():
            vit: Any = encoder.module
            made["encoder"] = {
                "width": vit.cls_token.shape[-1], "depth": len(vit.blocks), "heads": vit.blocks[0].attn.num_heads,
                "patch_size": vit.patch_embed.patch_size[0],
                "mlp_ratio": vit.blocks[0].mlp.fc1.out_features / vit.cls_token.shape[-1],
            }  # fmt: skip
            convention = encoder.convention
            if convention is not None:
                made |= {"mean": list(convention.mean), "std": list(convention.std)}
        if "mean" not in made:
            made["mean"], made["std"] = channel_statistics(self._real(splits.train))
        if self.config.task != "none":
            made["label"], made["classes"] = self._classes(splits)
        return made

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits; empty without fine-tuning."""
        names: list[str] = self.assets.get("classes", [])
        return names

    @property
    def positive(self) -> int:
        """Number of the class of real faces."""
        return self.classes.index(self.config.real)

    def _build(self) -> nn.Module:
        c, model = self.config, nn.ModuleDict()
        if c.pretrains or c.task == "none":
            encoder = MaskedEncoder(c.image_size, c.patch_size, 3, c.width, c.depth, c.heads, c.mlp_ratio)
            model["faces"] = FaceModel(
                encoder, c.decoder_width, c.decoder_depth, c.decoder_heads, c.rep_depth, c.rep_heads,
                c.projection_hidden, c.projection_out, c.mlp_ratio, c.norm_pixels, c.rep_positions,
            )  # fmt: skip
        if c.task != "none":
            shape = {"width": c.width, "depth": c.depth, "heads": c.heads, "patch_size": c.patch_size,
                     "mlp_ratio": c.mlp_ratio, **self.assets.get("encoder", {})}  # fmt: skip
            spoof = c.task == "antispoof"
            vit = detector(
                0 if spoof else len(self.classes), c.image_size, drop_path=0.0 if spoof or c.frozen else c.drop_path,
                pooling=c.pooling, **shape,
            )  # fmt: skip
            for start in self._encoders.values():
                load_encoder(vit, start.module.state_dict())
            model["tuned"] = AntiSpoofing(vit, len(self.classes), c.spoof_hidden, c.spoof_dropout) if spoof else vit
            if c.frozen:
                vit.requires_grad_(False)
                for part in (vit.head, vit.fc_norm):
                    part.requires_grad_(True)
        return model

    @property
    def _vit(self) -> timm.models.VisionTransformer:
        """The fine-tuned ViT."""
        tuned: Any = self.model["tuned"]
        return tuned.vit if isinstance(tuned, AntiSpoofing) else tuned

    @property
    def encoder(self) -> Encoder:
        """The fine-tuned encoder, or else the online one: what a head sees, and the map of patch tokens."""
        self._needs_fit()
        convention = Convention(self.config.image_size, tuple(self.assets["mean"]), tuple(self.assets["std"]), 3)
        if "tuned" in self.model:
            vit = self._vit
            return Encoder(vit, vit.embed_dim, _pooled_vit, _dense_vit, convention)
        encoder = self.model["faces"].online.encoder
        return Encoder(encoder, encoder.width, _pooled_encoder, _dense_encoder, convention)

    # -- fit -----------------------------------------------------------------------------------------------------

    @cached_property
    def _plain(self) -> Transform:
        return plain(self.config.image_size, self.assets["mean"], self.assets["std"], crop=None)

    def _masking(self, items: Images) -> Strategy:
        """As configured; random where there are no parsing maps at all."""
        return self.config.masking if PARSING in items.columns.column_names else "random"

    def _masked(self, items: Images) -> MaskedFaces:
        c = self.config
        return MaskedFaces(items, self._plain, c.image_size, c.patch_size, c.mask_ratio, self._masking(items))

    def stages(self, splits: Splits[Images]) -> list[Stage]:
        c, stages = self.config, []
        if c.pretrains:
            train, val = self._real(splits.train), self._real(splits.val)
            stages.append(
                Stage(
                    "pretrain",
                    Pretraining(self.model["faces"], c, self._masking(train).startswith("CRFR")),
                    Shuffled(len(train), c.batch_size, self._masked(train)),
                    epochs=c.epochs,
                    steps=c.steps,
                    validation=Fixed(min(len(val), 4 * c.batch_size), c.batch_size, self._masked(val), "validation"),
                )
            )
        if c.task != "none":
            stages.append(self._finetuning(splits))
        return stages

    def _finetuning(self, splits: Splits[Images]) -> Stage:
        c, mean, std = self.config, self.assets["mean"], self.assets["std"]
        spoof = c.task == "antispoof"
        train, val = splits.train, splits.val
        if spoof:
            train = train.take(spread_frames(videos_of(train), c.train_frames))
        varied = augmented(
            c.image_size, mean, std, c.finetune_crop_scale, flip=c.flip, auto_augment=c.auto_augment or None,
            erase=c.erase,
        )  # fmt: skip
        labels, known = (class_indices(items, self.assets["label"], self.classes) for items in (train, val))
        collate = Pixels(train, varied, labels)
        if spoof:
            domain = train.column(c.domain).astype(str) if c.domain else np.full(len(train), "")
            cells = np.char.add(np.char.add(labels.numpy().astype(str), " "), domain.astype(str))
            module: Any = SpoofDetection(self.model["tuned"], self.positive, c.spoof_lr, c.spoof_weight_decay)
            batches: Any = Balanced(cells, c.spoof_images, collate)
        else:
            lr = c.finetune_base_lr * c.finetune_batch_size / 256
            module = DeepfakeDetection(
                self.model["tuned"], self.positive, classes=len(self.classes), lr=lr, min_lr=c.finetune_min_lr,
                warmup=c.finetune_warmup, weight_decay=c.finetune_weight_decay, layer_decay=c.layer_decay,
                smoothing=c.smoothing, mixup=c.mixup, cutmix=c.cutmix,
            )  # fmt: skip
            batches = Shuffled(len(train), c.finetune_batch_size, collate)
        judged = both_sides(known, self.positive)
        return Stage(
            "finetune",
            module,
            batches,
            epochs=None if spoof else c.finetune_epochs,
            steps=c.spoof_steps if spoof else c.finetune_steps,
            validation=Fixed(len(val), c.finetune_batch_size, Pixels(val, self._plain, known), "validation"),
            keep_best="val/auc" if judged else "val/loss",
            best_is="max" if judged else "min",
            begin=self._take_pretrained if c.pretrains else None,
        )

    def _take_pretrained(self) -> None:
        load_encoder(self._vit, self.model["faces"].online.encoder.state_dict())

    def _fit(self, splits: Splits[Images], run: Run, length: Length, trainer: Mapping[str, Any]) -> None:
        super()._fit(splits, run, length, trainer)
        if self.config.task != "none":
            self.model.eval()
            self.assets["threshold"] = self._threshold(splits.val)

    def _threshold(self, items: Images) -> float:
        """The score of the videos of ``items`` at which both errors are closest; 0.5 where only one class is there."""
        truth, scores = self._truth(items), self._scores(items)
        videos = by_video(videos_of(items), truth, scores)
        if len(set(videos.labels)) < 2:
            return 0.5
        return min(equal_error_threshold(videos.labels, videos.scores), 1.0)

    # -- embed, predict, evaluate --------------------------------------------------------------------------------

    def _embed(self, data: Images, batch_size: int) -> Iterator[Embeddings]:
        encoder, collate = self.encoder, Pixels(data, self._plain)
        for rows in batches_of(len(data), batch_size, lambda rows: rows):
            vectors = encoder(collate(rows)["images"].to(self.device))
            yield Embeddings.build(vectors.float().cpu().numpy(), id=data.ids[rows])

    @torch.inference_mode()
    def _probabilities(self, items: Images) -> np.ndarray:
        """``[N, classes]`` float64."""
        collate, size = Pixels(items, self._plain), min(64, self.config.finetune_batch_size)
        parts = [
            self.model["tuned"](batch["images"].to(self.device)).double().softmax(1).cpu()
            for batch in batches_of(len(items), size, collate)
        ]
        return torch.cat(parts).numpy()

    def _scores(self, items: Images) -> np.ndarray:
        """Probability of the real class, ``[N]``."""
        scores: np.ndarray = self._probabilities(items)[:, self.positive]
        return scores

    def _truth(self, items: Images) -> np.ndarray:
        """1 for real faces, ``[N]``."""
        return (class_indices(items, self.assets["label"], self.classes) == self.positive).long().numpy()

    def predict(self, data: Any = None) -> pa.Table:
        """How probable a fine-tuned run finds each class; None takes the held-out split.

        Returns:
            ``id``, ``video``, a probability of each class for the image, and (``video_CLASS``) for its video: the mean
            over its frames.

        Raises:
            UserError: the run was not fine-tuned.
        """
        items, _ = self._held_out(data)
        if "tuned" not in self.model:
            raise UserError(
                "this run is not fine-tuned: fit with task=deepfake or task=antispoof (encoder=run:RUN starts from "
                "this run)"
            )
        self.model.eval()
        p, names = self._probabilities(items), videos_of(items)
        videos = by_video(names, np.zeros(len(items), int), p)
        columns = {name: p[:, i] for i, name in enumerate(self.classes)}
        means = {f"video_{name}": videos.scores[videos.of, i] for i, name in enumerate(self.classes)}
        return pa.table({"id": items.ids.tolist(), "video": names.tolist(), **columns, **means})

    def _evaluate(self, splits: Splits[Images]) -> Metrics:
        metrics = Metrics()
        if "tuned" in self.model and self.assets["label"] in splits.test.columns.column_names:
            metrics |= self._detection_metrics(splits.test)
        if "faces" in self.model:
            metrics |= self._face_metrics(splits.test)
        return metrics | self.probe(splits)

    def diagnose(self, items: Images, regions: Sequence[str] = COVERED) -> Diagnosis:
        """Errors and likeness on up to ``evaluation_images`` real faces, the same ones each time.

        Where there are parsing maps each of ``regions`` is covered once; without them masks are random.
        """
        self._needs_fit()
        if "faces" not in self.model:
            raise UserError("this run reconstructs nothing: it was fine-tuned from another encoder")
        faces = self._real(items)
        n = min(len(faces), self.config.evaluation_images)
        rows = np.sort(np.random.default_rng(0).choice(len(faces), n, replace=False))
        regions = regions if PARSING in faces.columns.column_names else ()
        self.model.eval()
        seed = self.record.get("seed", 0)
        return diagnose(self.model["faces"], self._masked(faces), rows, self.config.kept, regions, seed)

    def _face_metrics(self, items: Images) -> Metrics:
        found, seed = self.diagnose(items), self.record.get("seed", 0)
        over = f"{len(found.hidden)} held-out faces"
        unit = "mean squared error, pixels normalised a patch" if self.config.norm_pixels else "mean squared error"
        made = {
            "reconstruction_error": Metric.of(
                found.hidden, seed, higher_is_better=False, about=f"{unit}, of hidden patches, {over}"
            )
        }
        for name, errors in found.regions.items():
            made[f"{name}/region_error"] = Metric.of(
                errors, seed, higher_is_better=False, about=f"{unit}, where the region is covered, {len(errors)} faces"
            )
        if found.regions:
            mean = float(np.mean([errors.mean() for errors in found.regions.values()]))
            about = f"mean over {len(found.regions)} covered regions, {over}"
            made["region_error"] = Metric(mean, higher_is_better=False, about=about)
        if np.isfinite(found.other).all():
            made["view_likeness"] = Metric.of(
                found.same - found.other, seed, higher_is_better=True,
                about=f"cosine of masked and whole view, same face less other faces, {over}",
            )  # fmt: skip
        return Metrics(made)

    def _detection_metrics(self, items: Images) -> Metrics:
        if self.config.task == "antispoof":
            items = items.take(spread_frames(videos_of(items), self.config.test_frames))
        truth, scores, seed = self._truth(items), self._scores(items), self.record.get("seed", 0)
        check_both(truth)
        videos = by_video(videos_of(items), truth, scores)
        made: dict[str, Metric] = {}
        for unit, y, s in (("frame", truth, scores), ("video", videos.labels, videos.scores)):
            found, over = detection(y, s), f"{len(y)} held-out {unit}s"
            low, high = resampled_interval(lambda w: auroc(y, s, w), len(y), seed)  # noqa: B023
            made |= {
                f"{unit}_auc": Metric(found.auc, min(low, found.auc), max(high, found.auc), True, over),
                f"{unit}_eer": Metric(found.eer, higher_is_better=False, about=f"equal error rate, {over}"),
                f"{unit}_accuracy": Metric.of(
                    ((s > 0.5) == y).astype(float), seed, higher_is_better=True, about=f"at a score of 0.5, {over}"
                ),
            }
        threshold = float(self.assets.get("threshold", 0.5))
        made["hter"] = Metric(
            half_total_error_rate(videos.labels, videos.scores, threshold),
            higher_is_better=False,
            about=f"half total error rate of videos, at {threshold:.3g}, the equal error of the validation part",
        )
        made["tpr_at_fpr_1"] = Metric(
            tpr_at_fpr(videos.labels, videos.scores),
            higher_is_better=True,
            about="real videos that pass where at most 1 % of forged ones do",
        )
        return Metrics(made)

    def figures(self, data: Images) -> dict[str, Any]:
        with torch.inference_mode():
            return figures.of_faces(self, data)

    # -- official checkpoints --------------------------------------------------------------------------------------

    @classmethod
    def from_official(cls, checkpoint: str | Path | Mapping[str, Any]) -> FSFM:
        """From a pre-training checkpoint (``checkpoint-N.pth``, its target network ``checkpoint-te-N.pth`` and
        ``pretrain_ds_mean_std.txt`` beside it, where they are there), or from a fine-tuned ViT; sizes are read from
        the shapes, numbers of heads from the widths.

        Without the target network it starts as a copy of the online one; without statistics those of VGGFace2 are
        taken. Both are said in a warning.

        Raises:
            UserError: neither; names the prefixes found.
        """
        path = Path(checkpoint) if isinstance(checkpoint, str | Path) else None
        state = _weights(checkpoint)
        source = str(path)[:200] if path else "state dict"
        pretrained, tuned = "rep_decoder_embed.weight" in state, "head.weight" in state
        if "patch_embed.proj.weight" not in state or not (pretrained or tuned):
            raise UserError(
                "not an FSFM checkpoint: expected patch_embed. and blocks. with rep_decoder_embed. and projector., or "
                f"with head.; prefixes found: {', '.join(prefixes(state)) or 'none'}"
            )
        try:
            settings = _shape(state)
            assets: dict[str, Any] = dict(zip(("mean", "std"), _statistics(path), strict=True))
            if pretrained:
                settings |= _decoder_shape(state)
                weights = from_official(state, "online") | from_official(_target(path, state), "target")
                weights = {f"faces.{name}": value for name, value in weights.items()}
            else:
                settings |= {
                    "task": "deepfake", "epochs": 0, "pooling": "mean" if "fc_norm.weight" in state else "class"
                }  # fmt: skip
                classes = len(state["head.bias"])
                assets |= {
                    "label": "label",
                    "classes": ["fake", "real"] if classes == 2 else [f"class {i}" for i in range(classes)],
                }
                if classes != 2:
                    settings["real"] = assets["classes"][-1]
                weights = {f"tuned.{name}": value for name, value in state.items()}
        except KeyError as error:
            raise UserError(f"not a whole FSFM checkpoint: no tensor {error}") from None
        return cls(cls.Config.build(**settings))._imported(assets, weights, source)


def _pooled_encoder(module: nn.Module, images: Tensor) -> Tensor:
    return module(images)[:, 1:].mean(1)


def _dense_encoder(module: Any, images: Tensor) -> Tensor:
    return rearrange(module(images)[:, 1:], "b (h w) d -> b d h w", h=images.shape[-2] // module.patch_size)


def _pooled_vit(module: Any, images: Tensor) -> Tensor:
    vectors: Tensor = module.forward_head(module.forward_features(images), pre_logits=True)
    return vectors


def _dense_vit(module: Any, images: Tensor) -> Tensor:
    tokens = module.forward_features(images)[:, 1:]
    return rearrange(tokens, "b (h w) d -> b d h w", h=images.shape[-2] // module.patch_embed.patch_size[0])


def _weights(checkpoint: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    read = read_checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
    return dict(read.get("model", read))


def _target(path: Path | None, online: Mapping[str, Tensor]) -> dict[str, Tensor]:
    beside = path.with_name(path.name.replace("checkpoint-", "checkpoint-te-", 1)) if path else None
    if beside is not None and beside != path and beside.exists():
        return _weights(beside)
    warnings.warn("no target network beside the checkpoint: it starts as a copy of the online one", stacklevel=3)
    return {k: v for k, v in online.items() if not k.startswith(("decoder_", "predictor."))}


def _statistics(path: Path | None) -> tuple[list[float], list[float]]:
    file = path.with_name(STATISTICS) if path else None
    if file is None or not file.exists():
        warnings.warn(
            f"no {STATISTICS} beside the checkpoint: mean and deviation of VGGFace2 are taken; vectors are wrong if it "
            "was pre-trained on other faces",
            stacklevel=3,
        )
        return list(VGGFACE2[0]), list(VGGFACE2[1])
    try:
        read = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
        mean, std = ([float(x) for x in read[name]] for name in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3:
            raise ValueError
    except (ValueError, KeyError, TypeError, IndexError):
        raise UserError(f"{file}: expected a line of JSON with three numbers each for mean and std") from None
    return mean, std


HEADS = {192: 3, 384: 12, 768: 12, 1024: 16, 1280: 16}
"""By width, for checkpoints."""


def _shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    return {
        "width": width, "patch_size": patch,
        "image_size": patch * round((state["pos_embed"].shape[1] - 1) ** 0.5), "depth": _blocks(state, "blocks."),
        "heads": HEADS.get(width, max(1, width // 64)), "mlp_ratio": len(state["blocks.0.mlp.fc1.bias"]) / width,
    }  # fmt: skip


def _decoder_shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    hidden, out = state["projector.projection_head.0.bias"], state["projector.projection_head.3.bias"]
    width, own = len(state["decoder_embed.bias"]), len(state["rep_decoder_embed.bias"])
    return {
        "decoder_width": width, "decoder_depth": _blocks(state, "decoder_blocks."),
        "decoder_heads": 16 if width % 16 == 0 else 1, "rep_depth": _blocks(state, "rep_decoder_blocks."),
        "rep_heads": 16 if own % 16 == 0 else 1, "projection_hidden": len(hidden), "projection_out": len(out),
        "rep_positions": bool(state["rep_decoder_pos_embed"].any()),
    }  # fmt: skip


def _blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max((int(k.removeprefix(prefix).split(".")[0]) for k in state if k.startswith(prefix)), default=-1)
