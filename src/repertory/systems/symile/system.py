"""Symile: one encoder per modality, trained so that the product of all of a row's representations is large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from repertory import card
from repertory.card import EncoderAddress
from repertory.contract import Splits
from repertory.data.manifest import Manifest
from repertory.embeddings import Embeddings
from repertory.errors import ConfigError
from repertory.evaluation import Metric, Metrics
from repertory.systems.symile import figures
from repertory.systems.symile.baselines import PairwiseCLIPLoss, pairwise_similarity
from repertory.systems.symile.data import READERS, UNKNOWN, Inputs, learn_layout, text_layout
from repertory.systems.symile.information import total_correlation_bound
from repertory.systems.symile.model import (
    CXREncoder,
    ECGEncoder,
    GapFilled,
    ImageEncoder,
    LabsEncoder,
    LinearEncoder,
    PretrainedEncoder,
    SpeechEncoder,
    SymileModel,
    TextEncoder,
    WordsEncoder,
    first_layer_of,
)
from repertory.systems.symile.objective import SymileLoss, mip_similarity
from repertory.systems.symile.official import read_official
from repertory.systems.symile.retrieval import draw_candidates, listed_candidates, retrieval_scores, retrieve
from repertory.training import Shuffled, Stage, StageModule, TorchSystem, batches_of


class Symile(TorchSystem):
    """Contrastive learning for two modalities or more through total correlation (Saporta et al. 2024)."""

    readers = READERS

    class Config(card.Config):
        """Hyperparameters; those of the paper's Symile-M3 and Symile-MIMIC models by default."""

        presets = {
            "tiny": {
                "dim": 128, "normalize": True, "log_scale": 3.5, "batch_size": 256, "steps": 30, "lr": 1e-3,
                "image_encoder": "small", "image_size": 8,
            },
            "spoken-numbers": {
                "dim": 128, "normalize": True, "log_scale": 3.5, "batch_size": 256, "steps": 500, "validate_every": 100,
                "lr": 2e-3,
                "image_encoder": "small", "image_size": 8,
            },
        }  # fmt: skip

        objective: Literal["symile", "clip"] = Field("symile", description="clip: the pairwise baseline")
        negative_sampling: Literal["n", "n_squared"] = Field("n", description="negatives an anchor: B, or all B^(M-1)")
        dim: int = Field(8192, ge=1, description="width of the representations (recalled, not confirmed: 8192)")
        normalize: bool = Field(False, description="L2-normalise them (the paper: for binary XOR only)")
        log_scale: float = Field(-6.0, description="initial s; logits are multiplied by exp(s)")
        freeze_scale: bool = Field(False, description="keep s as it is")
        encoders: dict[str, EncoderAddress] = Field(
            {}, description="a pretrained encoder of images or (hf:) text, by modality"
        )
        freeze_encoders: bool = Field(True, description="train only what follows a pretrained image encoder")
        image_encoder: Literal["resnet50", "small"] = Field("resnet50", description="for images without an address")
        vector_encoder: Literal["linear", "labs", "bare"] = Field(
            "linear", description="for vectors: linear + LayerNorm, the laboratory network, or a linear map alone (XOR)"
        )
        image_size: int = Field(320, ge=8, description="side in pixels")
        audio_rate: int = Field(22050, description="samples a second")
        audio_seconds: float = Field(1.0, gt=0, description="length of the audio that is heard")
        audio_bands: int = Field(32, description="bands of the log-mel spectrogram")
        text_words: int = Field(64, ge=1, description="words of a text that are read")
        batch_size: int = Field(280, ge=2)
        lr: float = Field(1e-3, gt=0, description="of AdamW; not in the paper's text as known here")
        weight_decay: float = Field(0.01, ge=0)
        epochs: float = Field(50, gt=0, description="passes over the data, without steps")
        steps: int | None = Field(None, description="batches, in place of epochs")
        validate_every: int | None = Field(None, description="batches between validations; None: a pass")
        target: str | None = Field(None, description="the modality that evaluation retrieves; None: the first")
        candidates: int = Field(10, ge=2, description="among so many")
        workers: int = Field(0, ge=0, description="processes that prepare batches")

    def _learn(self, splits: Splits[Manifest]) -> dict[str, Any]:
        layout, means = learn_layout(splits.train, self.config)
        for name in self.config.encoders:
            if name not in layout or layout[name]["kind"] not in ("image", "text"):
                raise ConfigError(f"encoders.{name}: no image or text of this name; modalities are {', '.join(layout)}")
            if layout[name]["kind"] == "text":
                layout[name] |= text_layout(self.config.encoders[name], self._encoders[name], self.config.text_words)
        if self.config.target is not None and self.config.target not in layout:
            raise ConfigError(f"target: no modality '{self.config.target}'; there are {', '.join(layout)}")
        return {"modalities": layout, **means}

    def _build(self) -> nn.Module:
        encoders = {name: self._modality_encoder(name, about) for name, about in self.assets["modalities"].items()}
        return SymileModel(encoders, self.config.log_scale, self.config.freeze_scale, self.config.normalize)

    def _modality_encoder(self, name: str, about: dict[str, Any]) -> nn.Module:
        config, dim, kind = self.config, self.config.dim, about["kind"]
        if kind == "vector" and config.vector_encoder == "linear":
            return LinearEncoder(about["shape"][0], dim, missingness=about["gaps"])
        if kind == "text" and name in self._encoders:
            return self._text_encoder(name, about)
        if kind == "text":
            return WordsEncoder(len(about["vocabulary"]) + UNKNOWN + 1, about["length"], dim)
        encoder: nn.Module
        if name in self._encoders:
            encoder = PretrainedEncoder(self._encoders[name], dim, frozen=config.freeze_encoders)
        elif kind == "vector":
            width = about["shape"][0]
            encoder = LabsEncoder(dim, width) if config.vector_encoder == "labs" else nn.Linear(width, dim)
        elif kind == "image":
            encoder = ImageEncoder(dim) if config.image_encoder == "small" else CXREncoder(dim)
        elif kind == "array":
            encoder = CXREncoder(dim) if len(about["shape"]) == 3 and about["shape"][0] == 3 else ECGEncoder(dim)
        else:
            encoder = SpeechEncoder(config.audio_bands, dim)
        return GapFilled(encoder, dim) if about["gaps"] else encoder

    def _text_encoder(self, name: str, about: dict[str, Any]) -> nn.Module:
        """Embeddings and first layer of a pretrained language model, fine-tuned, as in Symile-M3."""
        pretrained = self._encoders[name].module
        config = type(pretrained.config).from_dict(pretrained.config.to_dict() | {"vocab_size": about["tokens"]})
        encoder = TextEncoder(config, self.config.dim)
        taken = first_layer_of(pretrained, about["tokens"] - pretrained.config.vocab_size)
        encoder.load_state_dict(taken, strict=False)
        return encoder

    def stages(self, splits: Splits[Manifest]) -> list[Stage]:
        config = self.config
        train, val = self._collate(splits.train), self._collate(splits.val)
        module = Contrast(self.model, self._loss(), config.lr, config.weight_decay)
        return [
            Stage(
                "contrast",
                module,
                Shuffled(len(splits.train), config.batch_size, train),
                epochs=config.epochs,
                steps=config.steps,
                validation=[batch for batch in batches_of(len(splits.val), config.batch_size, val) if _rows(batch) > 1],
                validate_every=config.validate_every,
                keep_best="val_loss",
            )
        ]

    def _loss(self) -> nn.Module:
        if self.config.objective == "clip":
            return PairwiseCLIPLoss(gather=True)
        return SymileLoss(self.config.negative_sampling, gather=True)

    def _collate(self, items: Manifest) -> Any:
        """From row numbers to inputs by modality."""
        missing = set(self.assets["modalities"]) - set(items.modalities)
        if missing:
            raise ConfigError(f"the data lack modality {', '.join(sorted(missing))}, which the model was fitted with")
        inputs = {
            name: Inputs(
                items.modalities[name],
                about,
                self.config,
                self.assets.get(f"mean.{name}"),
                self._encoders.get(name),
            )
            for name, about in self.assets["modalities"].items()
        }
        return lambda rows: {name: of_rows(rows) for name, of_rows in inputs.items()}

    def _embed(self, data: Manifest, batch_size: int) -> Iterator[Embeddings]:
        collate = self._collate(data)
        names = np.array(list(self.assets["modalities"]))
        present = np.stack([data.modalities[name].index >= 0 for name in names], axis=1)
        for rows in batches_of(len(data), batch_size, lambda rows: rows):
            encoded = self.model(_to(collate(rows), self.device))
            vectors = torch.stack([encoded[name] for name in names], dim=1).float().cpu().numpy()
            which, modality = np.nonzero(present[rows])
            yield Embeddings.build(vectors[which, modality], id=data.ids[rows[which]], modality=names[modality])

    def _evaluate(self, splits: Splits[Manifest]) -> Metrics:
        test, target = splits.test, self.target
        scores, _ = self.retrieval(test)
        correct = (retrieve(scores) == 0).double().numpy()
        metrics = {
            "retrieval_accuracy": Metric.of(
                correct, seed=0, about=f"{target} from the other modalities, among {scores.shape[1]} candidates"
            )
        }
        if len(test) > 1:
            loss = self._test_loss(test)
            size = min(self.config.batch_size, len(test))
            metrics["loss"] = Metric(loss, about=f"on held-out rows, batches of {size}", higher_is_better=False)
            if self.config.objective == "symile":
                bound = total_correlation_bound(loss, size)
                metrics["total_correlation_bound"] = Metric(bound, about="nats; log B - loss, a lower bound")
        return Metrics(metrics) | self.probe(splits, modality=target).prefixed(f"{target}/")

    def _test_loss(self, test: Manifest) -> float:
        """Mean loss over whole batches of held-out rows."""
        collate, size, loss = self._collate(test), min(self.config.batch_size, len(test)), self._loss()
        losses = []
        for start in range(0, len(test) - size + 1, size):
            encoded = self.model(_to(collate(np.arange(start, start + size)), self.device))
            losses.append(float(loss(list(encoded.values()), self.model.logit_scale.exp())))
        return float(np.mean(losses))

    @property
    def target(self) -> str:
        """The modality that evaluation retrieves from the others."""
        return self.config.target or next(iter(self.assets["modalities"]))

    def retrieval(self, items: Manifest) -> tuple[Tensor, np.ndarray | None]:
        """Zero-shot retrieval of the target from the other modalities, over the rows that hold all.

        Returns:
            scores [rows, candidates], the right one first; and the label of each candidate, where labels are known.
        """
        complete = items.take(items.present.all(axis=1))
        encoded = self.represent(complete)
        labels = complete.labels()
        asked = np.arange(len(complete))
        if complete.roles.get("candidate_of"):
            asked, listed = listed_candidates(complete.ids, complete.labels("candidate_of"))
        else:
            listed = draw_candidates(complete.ids, labels, self.config.candidates, self.record.get("seed", 0))
        queries = [encoded[name][torch.from_numpy(asked)] for name in encoded if name != self.target]
        similarity = mip_similarity if self.config.objective == "symile" else pairwise_similarity
        scores = retrieval_scores(queries, encoded[self.target], torch.from_numpy(listed), similarity)
        return scores, None if labels is None or labels.ndim > 1 else labels[listed]

    @torch.inference_mode()
    def represent(self, items: Manifest) -> dict[str, Tensor]:
        """Representations [rows, dim] of every modality, those of missing ones included."""
        collate = self._collate(items)
        self.model.eval()
        parts = [self.model(_to(batch, self.device)) for batch in batches_of(len(items), 1024, collate)]
        return {name: torch.cat([part[name] for part in parts]).float().cpu() for name in parts[0]}

    def figures(self, data: Manifest) -> dict[str, Any]:
        scores, labels = self.retrieval(data)
        return figures.of_retrieval(scores, labels, self.target)

    @classmethod
    def from_official(cls, checkpoint: Any) -> Symile:
        """From a Lightning checkpoint of the experiments whose encoders all take vectors (see ``official``)."""
        config, assets, weights = read_official(checkpoint)
        return cls(cls.Config.build(**config))._imported(assets, weights, str(checkpoint)[:200])


class Contrast(StageModule):
    """One step: encode every modality, compare with the loss; AdamW, no schedule."""

    def __init__(self, model: SymileModel, loss: nn.Module, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.model, self.loss, self.lr, self.weight_decay = model, loss, lr, weight_decay

    def training_step(self, batch: dict[str, tuple[Tensor, ...]]) -> Tensor:
        return self._step(batch, "loss")

    def validation_step(self, batch: dict[str, tuple[Tensor, ...]]) -> None:
        self._step(batch, "val_loss")

    def _step(self, batch: dict[str, tuple[Tensor, ...]], name: str) -> Tensor:
        loss = self.loss(list(self.model(batch).values()), self.model.logit_scale.exp())
        self.log(name, loss, batch_size=_rows(batch))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.lr, weight_decay=self.weight_decay)


def _rows(batch: dict[str, tuple[Tensor, ...]]) -> int:
    return len(next(iter(batch.values()))[0])


def _to(batch: dict[str, tuple[Tensor, ...]], device: torch.device) -> dict[str, tuple[Tensor, ...]]:
    return {name: tuple(tensor.to(device) for tensor in tensors) for name, tensors in batch.items()}
