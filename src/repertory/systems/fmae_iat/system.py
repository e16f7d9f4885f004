"""FMAE-IAT: faces as a masked autoencoder sees them, fine-tuned to action units without knowing whose face it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms import v2

from repertory.contract import Length
from repertory.data import Splits
from repertory.data.images import Images
from repertory.data.labels import class_indices, class_names
from repertory.data.transforms.images import IMAGENET_MEAN, IMAGENET_STD, Pixels, augmented, plain
from repertory.embeddings import Embeddings
from repertory.encoders import Convention, Encoder, prefixes, read_checkpoint
from repertory.errors import ConfigError, DataError, UserError
from repertory.evaluation import Metric, Metrics, describe, linear_probe, resampled_interval
from repertory.nn.mae import MAE, MaskedEncoder, Reconstruction
from repertory.nn.mae import from_official as mae_from_official
from repertory.nn.vit import load_encoder
from repertory.runs import Run, seeded
from repertory.supervised import Supervised
from repertory.systems.fmae_iat import figures
from repertory.systems.fmae_iat.config import Config
from repertory.systems.fmae_iat.data import (
    Faces,
    action_units,
    check_exclusive,
    subject_column,
    subject_indices,
    subjects_of,
)
from repertory.systems.fmae_iat.layouts import BP4D, DISFA, READERS
from repertory.systems.fmae_iat.metrics import (
    ActionUnitScores,
    action_unit_scores,
    f1_of,
    grouped_counts,
    identity_probe,
)
from repertory.systems.fmae_iat.model import (
    AdversarialViT,
    encoder_state,
    from_official,
    patch_map,
    pooled,
    shape_of,
)
from repertory.systems.fmae_iat.training import ActionUnitTraining, Pretraining, scaled
from repertory.training import Fixed, Shuffled, Stage, TorchSystem, batches_of

AT_ONCE = 64
"""Images of a batch where nothing is trained."""
EXPRESSIONS = 7
"""Classes of RAF-DB."""


class FMAEIAT(TorchSystem):
    """Masked autoencoder of faces and identity-adversarial training (Ning, Salah, Onal Ertugrul, FG 2025)."""

    readers = READERS

    Config = Config

    # -- the model -----------------------------------------------------------------------------------------------------

    def _check(self, splits: Splits[Images], length: Length, trainer: Mapping[str, Any]) -> None:
        super()._check(splits, length, trainer)
        for encoder in self._encoders.values():
            if not isinstance(encoder.module, (MaskedEncoder, VisionTransformer)):
                raise ConfigError(f"encoder {encoder.address}: not a ViT of a run of fmae_iat or of timm")
            encoder_state(encoder.module.state_dict())
        if self.config.task != "none":
            check_exclusive(splits)
        learned = self._learn(splits)
        if len(learned.get("subjects", ())) == 1:
            warnings.warn(
                f"{splits.source}: one subject only, '{learned['subjects'][0]}': the identity loss has nothing to tell "
                "apart; set reversal=0",
                stacklevel=2,
            )

    def _learn(self, splits: Splits[Images]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for encoder in self._encoders.values():
            vit: Any = encoder.module
            made["encoder"] = shape_of(vit.state_dict(), vit.blocks[0].attn.num_heads)
        if self.config.task == "expression":
            label, classes = class_names(splits)
            class_indices(splits.val, label, classes)
            return made | {"label": label, "classes": classes}
        if self.config.task == "none":
            return made
        units = list(splits.train.roles.get("label", ()))
        if not units:
            raise DataError(f"{splits.source}: action units are columns of 1 and 0: name them with label=AU1,AU2,...")
        for unit, column in zip(units, action_units(splits.train, units).T, strict=True):
            if not {0, 1} <= set(column):
                raise DataError(f"{splits.source}: action unit '{unit}' is not both 0 and 1 in the training part")
        action_units(splits.val, units)
        made["units"] = units
        if self.config.reversal > 0:
            if subject_column(splits.all) is None:
                raise DataError(
                    f"{splits.source}: reversal={self.config.reversal:g} needs subjects: name the column that says who "
                    "is seen with group=COLUMN, or set reversal=0"
                )
            made["subjects"] = sorted(set(subjects_of(splits.train).tolist()))
        return made

    @property
    def outputs(self) -> list[str]:
        """Names of the action units or classes that fine-tuning answers."""
        names: list[str] = self.assets.get("units") or self.assets.get("classes") or []
        return names

    @property
    def threshold(self) -> float:
        """The probability from which a unit counts as found, chosen on the validation part."""
        return float(self.assets.get("threshold", 0.5))

    def _build(self) -> nn.Module:
        c, model = self.config, nn.ModuleDict()
        if c.pretrains or c.task == "none":
            encoder = MaskedEncoder(**c.shape)
            model["mae"] = MAE(encoder, c.decoder_width, c.decoder_depth, c.decoder_heads, c.norm_pixels, c.mlp_ratio)
        if c.task != "none":
            subjects = len(self.assets.get("subjects", ()))
            shape = {**c.shape, **self.assets.get("encoder", {}), "image_size": c.image_size, "drop_path": c.drop_path}
            if c.image_size % shape["patch_size"]:
                raise ConfigError(f"image side {c.image_size} is not a multiple of the encoder's patches")
            reversal = c.reversal if subjects else 0.0
            model["tuned"] = AdversarialViT(len(self.outputs), subjects, reversal, c.identity_layers, **shape)
            tuned: Any = model["tuned"]
            for given in self._encoders.values():
                load_encoder(tuned.vit, encoder_state(given.module.state_dict()))
        return model

    @property
    def encoder(self) -> Encoder:
        """The fine-tuned encoder (mean of patch tokens, normalised), or else the pre-trained one (their mean)."""
        self._needs_fit()
        convention = Convention(self.config.image_size, IMAGENET_MEAN, IMAGENET_STD, 3)
        if "tuned" in self.model:
            vit = self.model["tuned"].vit

            def vector(module: Any, x: Tensor) -> Tensor:
                return module.forward_head(module.forward_features(x), pre_logits=True)

            def dense(module: Any, x: Tensor) -> Tensor:
                return patch_map(module.forward_features(x))

            return Encoder(vit, vit.embed_dim, vector, dense, convention)
        masked = self.model["mae"].encoder
        return Encoder(masked, masked.width, pooled, lambda module, x: patch_map(module(x)), convention)

    # -- fit -----------------------------------------------------------------------------------------------------------

    def stages(self, splits: Splits[Images]) -> list[Stage]:
        c, stages = self.config, []
        if c.pretrains:
            varied = v2.Compose([v2.RandomHorizontalFlip(c.flip), self._whole])
            size, n = c.batch_size, len(splits.val)
            stages.append(
                Stage(
                    "pretrain",
                    Pretraining(self.model["mae"], c),
                    Shuffled(len(splits.train), size, Pixels(splits.train, varied)),
                    epochs=c.epochs,
                    steps=c.steps,
                    validation=Fixed(min(n, 4 * size), size, Pixels(splits.val, self._whole), "validation"),
                )
            )
        if c.task == "none":
            return stages
        varied = augmented(
            c.image_size, scale=c.crop_scale, flip=c.flip, auto_augment=c.auto_augment, erase=c.erase
        )  # fmt: skip
        size, tuned = c.finetune_batch_size, self.model["tuned"]
        train, val = (
            Pixels(items, transform, self._labels(items))
            for items, transform in ((splits.train, varied), (splits.val, self._whole))
        )
        subjects = self.assets.get("subjects")
        units = c.task == "action_units"
        module: Any = ActionUnitTraining(tuned, c) if units else self._classification(tuned)
        stages.append(
            Stage(
                "finetune",
                module,
                Shuffled(
                    len(splits.train),
                    size,
                    Faces(train, subject_indices(splits.train, subjects) if subjects else None),
                ),
                epochs=c.finetune_epochs,
                steps=c.finetune_steps,
                validation=Fixed(len(splits.val), size, val, "validation"),
                keep_best="val/auc" if units else "val/accuracy",
                best_is="max",
                begin=self._take_pretrained if c.pretrains else None,
            )
        )
        return stages

    def _classification(self, tuned: AdversarialViT) -> Supervised:
        c = self.config
        return Supervised(
            tuned, len(self.outputs), scaled(c.finetune_base_lr, c.finetune_batch_size), c.finetune_min_lr,
            c.finetune_warmup, c.finetune_weight_decay, c.layer_decay, smoothing=c.smoothing,
        )  # fmt: skip

    def _fit(self, splits: Splits[Images], run: Run, length: Length, trainer: Mapping[str, Any]) -> None:
        super()._fit(splits, run, length, trainer)
        if self.config.task == "action_units":
            self.model.eval()
            with seeded(run.record.get("seed", 0), "threshold"):
                best, _ = self.scores(splits.val).best
            self.assets["threshold"] = 0.5 if np.isnan(best) else best

    def _take_pretrained(self) -> None:
        load_encoder(self.model["tuned"].vit, encoder_state(self.model["mae"].encoder.state_dict()))

    @property
    def _whole(self) -> Any:
        """What is embedded and tested: the whole picture, without a crop."""
        return plain(self.config.image_size, crop=None)

    def _labels(self, items: Images) -> Tensor:
        if self.config.task == "expression":
            return class_indices(items, self.assets["label"], self.outputs)
        return torch.from_numpy(action_units(items, self.outputs)).float()

    # -- embed, predict, evaluate --------------------------------------------------------------------------------------

    def _embed(self, data: Images, batch_size: int) -> Iterator[Embeddings]:
        encoder, pixels = self.encoder, Pixels(data, self._whole)
        for rows in batches_of(len(data), min(batch_size, AT_ONCE), lambda rows: rows):
            vectors = encoder(pixels(rows)["images"].to(self.device))
            yield Embeddings.build(vectors.float().cpu().numpy(), id=data.ids[rows])

    @torch.inference_mode()
    def probabilities(self, items: Images) -> np.ndarray:
        """Of each action unit, or of each class, ``[N, outputs]`` float32.

        Raises:
            UserError: this run was not fine-tuned.
        """
        self._needs_fit()
        if "tuned" not in self.model:
            raise UserError(
                "this run is not fine-tuned: fit with task=action_units or task=expression (encoder=run:RUN starts "
                "from this run)"
            )
        self.model.eval()
        parts = []
        for batch in batches_of(len(items), AT_ONCE, Pixels(items, self._whole)):
            logits = self.model["tuned"](batch["images"].to(self.device)).float()
            parts.append((logits.softmax(1) if self.config.task == "expression" else logits.sigmoid()).cpu())
        return torch.cat(parts).numpy()

    def predict(self, data: Any = None) -> pa.Table:
        """The probability of each action unit (or expression) in each face; None takes the held-out split.

        Returns:
            ``id`` and a column of probabilities per output.

        Raises:
            UserError: this run was not fine-tuned.
        """
        items, _ = self._held_out(data)
        found = self.probabilities(items)
        return pa.table({"id": items.ids.tolist(), **{name: found[:, i] for i, name in enumerate(self.outputs)}})

    def scores(self, items: Images) -> ActionUnitScores:
        """Counts at all thresholds and areas under the ROC curves, on items with the action units' columns."""
        return action_unit_scores(action_units(items, self.outputs), self.probabilities(items))

    @torch.inference_mode()
    def reconstruct(self, items: Images) -> Reconstruction:
        """What the autoencoder draws; the mask of each image is a function of the run's seed and the id.

        Raises:
            UserError: this run has no autoencoder.
        """
        self._needs_fit()
        if "mae" not in self.model:
            raise UserError("this run has no autoencoder: it was fine-tuned from another encoder")
        noise = []
        for name in items.ids:
            with seeded(self.record.get("seed", 0), "mask", str(name)):
                noise.append(torch.rand(self.config.patches))
        images = self.transformed(items)
        made: Reconstruction = self.model["mae"](images, torch.stack(noise).to(self.device), self.config.mask_ratio)
        return made

    def transformed(self, items: Images) -> Tensor:
        """All items as the model sees them, ``[N, 3, S, S]``."""
        return Pixels(items, self._whole)(np.arange(len(items)))["images"].to(self.device)

    def _evaluate(self, splits: Splits[Images]) -> Metrics:
        names = splits.test.roles.get("label", ())
        metrics = self._probe_units(splits, names) if len(names) > 1 else self.probe(splits)
        metrics |= self._identity_leakage(splits)
        if "mae" in self.model:
            n = min(len(splits.test), self.config.evaluation_images)
            rows = np.sort(np.random.default_rng(0).choice(len(splits.test), n, replace=False))
            errors = [
                float(self.reconstruct(splits.test.take(rows[i : i + AT_ONCE])).loss) for i in range(0, n, AT_ONCE)
            ]
            sizes = [min(AT_ONCE, n - i) for i in range(0, n, AT_ONCE)]
            about = f"mean squared error of hidden patches, {n} held-out faces"
            value = float(np.average(errors, weights=sizes))
            metrics |= {"reconstruction_error": Metric(value, higher_is_better=False, about=about)}
        if "tuned" in self.model and set(self._columns) <= set(splits.test.columns.column_names):
            of = self._unit_metrics if self.config.task == "action_units" else self._expression_metrics
            metrics |= of(splits.test)
        return metrics

    @property
    def _columns(self) -> list[str]:
        return self.assets.get("units") or [self.assets.get("label", "")]

    def _probe_units(self, splits: Splits[Images], names: tuple[str, ...]) -> Metrics:
        """A linear probe of the units that are coded everywhere and vary, and the geometry of the vectors."""
        seed = self.record.get("seed", 0)
        test = self._select(splits.test, {})
        train = None if splits.rule == "none" else self._select(splits.train, {})
        shown, columns = {}, []
        for part, found in (("test", test), ("train", train)):
            if found is not None:
                shown[part] = np.stack([found.column(name).astype(np.float64) for name in names], axis=1)
        for i in range(len(names)):
            if all({0.0, 1.0} == set(values[:, i]) for values in shown.values()):
                columns.append(i)
        if not columns:
            return self.probe(splits)
        made = linear_probe(
            test.vectors,
            shown["test"][:, columns],
            train_vectors=None if train is None else train.vectors,
            train_labels=None if train is None else shown["train"][:, columns],
            task="multilabel",
            seed=seed,
        )
        return made.metrics | describe(test.vectors, seed=seed)

    def _identity_leakage(self, splits: Splits[Images]) -> Metrics:
        items = splits.test if splits.rule == "none" else splits.train
        column = subject_column(items)
        if column is None:
            return Metrics()
        chosen = self._select(items, {})
        subjects = chosen.column(column).astype(str)
        probed = identity_probe(chosen.vectors, subjects, self.record.get("seed", 0))
        return Metrics() if probed is None else Metrics({"identity_probe_accuracy": probed[0]})

    def _unit_metrics(self, items: Images) -> Metrics:
        truth, found = action_units(items, self.outputs), self.probabilities(items)
        scores, seed, chosen = action_unit_scores(truth, found), self.record.get("seed", 0), self.threshold
        groups = subjects_of(items) if subject_column(items) else items.ids
        over = f"{len(items)} faces of {len(set(groups))} people" if subject_column(items) else f"{len(items)} faces"
        lacking = [name for name, there in zip(self.outputs, scores.defined, strict=True) if not there]
        over += f"; undefined, without a positive or a negative: {', '.join(lacking)}" if lacking else ""

        def f1(threshold: float, how: str) -> Metric:
            counts = grouped_counts(truth, found > threshold, groups)[..., scores.defined]
            value = float(f1_of(counts.sum(0)).mean()) if scores.defined.any() else np.nan
            about = f"F1, mean over {int(scores.defined.sum())} units, {how}, {over}"
            if len(counts) < 2 or np.isnan(value):
                return Metric(value, higher_is_better=True, about=about)
            low, high = resampled_interval(
                lambda w: np.nanmean(f1_of(np.einsum("dg,gck->dck", w, counts)), axis=-1), len(counts), seed
            )
            return Metric(value, min(low, value), max(high, value), True, about)

        best, highest = scores.best
        metrics = {
            "f1": f1(chosen, f"threshold {chosen:.2f} chosen on the validation part"),
            "f1_at_0.5": f1(0.5, "threshold 0.5"),
            "f1_best_on_test": Metric(
                highest, higher_is_better=True,
                about=f"F1 as officially reported, the one threshold {best:.2f} chosen on this very part, {over}",
            ),
            "auc": Metric(scores.mean_auc, higher_is_better=True, about=f"area under the ROC curve, mean, {over}"),
        }  # fmt: skip
        at_chosen = f1_of(grouped_counts(truth, found > chosen, groups).sum(0))
        for i, name in enumerate(self.outputs):
            share = f"{int(scores.positives[i])} of {int(scores.positives[i] + scores.negatives[i])} shown"
            value = float(at_chosen[i]) if scores.defined[i] else np.nan
            metrics[f"{name}/f1"] = Metric(
                value, higher_is_better=True, about=f"{name}, threshold {chosen:.2f}, {share}"
            )
            metrics[f"{name}/auc"] = Metric(float(scores.auc[i]), higher_is_better=True, about=f"{name}, {share}")
        return Metrics(metrics)

    def _expression_metrics(self, items: Images) -> Metrics:
        truth, seed = self._labels(items).numpy(), self.record.get("seed", 0)
        hits = (self.probabilities(items).argmax(1) == truth).astype(float)
        recalls = [float(hits[truth == i].mean()) for i in np.unique(truth)]
        over = f"{len(items)} held-out faces, {len(self.outputs)} expressions"
        return Metrics({
            "accuracy": Metric.of(hits, seed, higher_is_better=True, about=over),
            "mean_recall": Metric(float(np.mean(recalls)), higher_is_better=True, about=f"over classes, {over}"),
        })  # fmt: skip

    def figures(self, data: Images) -> dict[str, Any]:
        with torch.inference_mode():
            return figures.of_faces(self, data)

    # -- official checkpoints ------------------------------------------------------------------------------------------

    @classmethod
    def from_official(cls, checkpoint: str | Path | Mapping[str, Any]) -> FMAEIAT:
        """From a pre-trained masked autoencoder or a fine-tuned model; sizes are read from the shapes.

        Twelve outputs are taken as the units of BP4D, eight beside an identity head as those of DISFA, seven without
        one as RAF-DB's expressions; others are numbered units. The number of heads is that of the paper's sizes, else
        64 (decoder: 32) channels a head.

        Raises:
            UserError: neither, or keys of the encoder are missing; lists them.
        """
        read = read_checkpoint(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
        state: Mapping[str, Any] = read.get("model", read)  # type: ignore[assignment]
        source = str(checkpoint)[:200] if isinstance(checkpoint, (str, Path)) else "state dict"
        tuned, autoencoder = "head.weight" in state, "decoder_pred.weight" in state
        if not (tuned or autoencoder):
            raise UserError(
                "not an FMAE checkpoint: expected the keys of a masked autoencoder (decoder_pred.weight, ...) or of a "
                f"fine-tuned model (head.weight, ...); keys begin with {', '.join(prefixes(state)) or 'nothing'}"
            )
        settings: dict[str, Any] = shape_of(encoder_state(state))
        assets: dict[str, Any] = {}
        if tuned:
            identity = [state[k] for k in state if k.startswith("ID_head") and k.endswith("bias")]
            subjects, count = (len(identity[-1]) if identity else 0), len(state["head.bias"])
            known = BP4D if count == len(BP4D) else DISFA if count == len(DISFA) and identity else ()
            names = [f"AU{unit}" for unit in known] or [f"output {i}" for i in range(count)]
            if count == EXPRESSIONS and not identity:
                settings |= {"task": "expression"}
                assets |= {"classes": names, "label": "label"}
            else:
                settings |= {"task": "action_units"}
                assets |= {"units": names, "subjects": [f"subject {i}" for i in range(subjects)]}
            settings |= {"epochs": 0, "reversal": 1.0 if subjects else 0.0}
            settings |= {"identity_layers": max(1, len(identity))}
            weights = {f"tuned.{k}": v for k, v in from_official(state).items()}
        else:
            width = state["decoder_embed.weight"].shape[0]
            depth = len({k.split(".")[1] for k in state if k.startswith("decoder_blocks.")})
            settings |= {"decoder_width": width, "decoder_depth": depth, "decoder_heads": max(1, width // 32)}
            weights = {f"mae.{k}": v for k, v in mae_from_official(state).items()}
        return cls(cls.Config.build(**settings))._imported(assets, weights, source)
