"""Rows of a manifest as the tensors that the encoders take, and the layouts of the paper's field."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from repertory.data import Reader
from repertory.data.manifest import Manifest, Modality
from repertory.data.transforms.audio import log_mel, resampled
from repertory.encoders import Encoder
from repertory.errors import ConfigError, DataError

PADDING, MISSING, UNKNOWN = 0, 1, 2
"""The first tokens of a vocabulary; words follow."""
MISSING_TEXT = "[MISSING]"
"""The text that stands where a text is missing, a token of its own for pretrained language models."""
CACHED = 2**31
"""Bytes up to which the prepared inputs of a modality are kept in memory."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def words(text: str) -> list[str]:
    """The words of a text, lower case."""
    return re.findall(r"\w+", text.lower())


def learn_layout(train: Manifest, config: Any) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """What the encoders must know of each modality, and the mean training vector of those that are vectors.

    Raises:
        DataError: a modality is missing in every training row, or vectors differ in width.
    """
    layout, means = {}, {}
    for name, modality in train.modalities.items():
        used = np.unique(modality.index[modality.index >= 0])
        if not len(used):
            raise DataError(f"modality '{name}' is missing in every training row: leave the column out")
        about: dict[str, Any] = {"kind": modality.kind, "gaps": bool((modality.index < 0).any())}
        if modality.kind == "text":
            texts = [words(modality.item(int(i))) for i in used]
            known = sorted({word for text in texts for word in text})
            about |= {"vocabulary": known, "length": min(max(map(len, texts)), config.text_words)}
        elif modality.kind in ("vector", "array"):
            about["shape"] = list(modality.item(int(used[0])).shape)
            if modality.kind == "vector":
                values = np.stack([modality.item(int(i)) for i in used])
                counts = np.bincount(modality.index[modality.index >= 0], minlength=len(modality.values))[used]
                means[f"mean.{name}"] = np.average(values, axis=0, weights=counts).astype(np.float32)
        layout[name] = about
    return layout, means


class Inputs:
    """The inputs of one modality by row: ``inputs(rows)`` is a tuple of tensors whose first axis is the rows.

    The last tensor says which rows are missing (1) where the encoder handles gaps. Distinct values are decoded once
    and kept while they are small enough.
    """

    def __init__(
        self,
        modality: Modality,
        about: Mapping[str, Any],
        config: Any,
        mean: np.ndarray | None,
        encoder: Encoder | None,
    ) -> None:
        self.modality, self.about, self.config, self.mean = modality, about, config, mean
        self.convention = encoder.convention if encoder is not None else None
        self.tokenizer = Tokenizer.from_str(about["tokenizer"]) if "tokenizer" in about else None
        self.vocabulary = {word: i + UNKNOWN + 1 for i, word in enumerate(about.get("vocabulary", ()))}
        self.blank = self._blank()
        self.prepared: Tensor | None = None
        if about["kind"] == "vector" and isinstance(modality.values, np.ndarray):
            if list(modality.values.shape[1:]) != about["shape"]:
                raise DataError(f"shape {list(modality.values.shape[1:])}; the model was fitted with {about['shape']}")
            self.prepared = torch.from_numpy(modality.values.astype(np.float32, copy=False))
        elif self.blank.numel() * self.blank.element_size() * len(modality.values) <= CACHED:
            used = np.unique(modality.index[modality.index >= 0])
            self.prepared = self.blank.expand(len(modality.values), *self.blank.shape).clone()
            for i in used:
                self.prepared[i] = self._prepare(modality.item(int(i)))

    def __call__(self, rows: np.ndarray) -> tuple[Tensor, ...]:
        index = self.modality.index[rows]
        missing = torch.from_numpy(index < 0)
        if self.prepared is not None:
            values = self.prepared[torch.from_numpy(np.maximum(index, 0))]
        else:
            values = torch.stack([self.blank if i < 0 else self._prepare(self.modality.item(int(i))) for i in index])
        if missing.any():
            values = torch.where(missing.view(-1, *[1] * self.blank.ndim), self.blank, values)
        if self.tokenizer is not None:
            return (values, (values != self.about["padding"]).long())
        if self.about["kind"] == "text":
            return (values,)  # a token of its own says that the text is missing
        return (values, missing.long()) if self.about["gaps"] else (values,)

    def _blank(self) -> Tensor:
        """What stands where nothing is: the mean training vector, an empty picture, silence, the token [MISSING]."""
        kind = self.about["kind"]
        if self.tokenizer is not None:
            return self._prepare(MISSING_TEXT)
        if kind == "text":
            tokens = torch.full((self.about["length"],), PADDING)
            tokens[0] = MISSING
            return tokens
        if kind == "vector":
            return torch.from_numpy(np.array(self.mean))
        if kind == "array":
            return torch.zeros(_with_channel(self.about["shape"]))
        if kind == "image":
            return torch.zeros_like(self._prepare(Image.new("RGB", (8, 8))))
        return torch.zeros_like(self._prepare((np.ones(8, np.float32), self.config.audio_rate)))

    def _prepare(self, item: Any) -> Tensor:
        kind = self.about["kind"]
        if self.tokenizer is not None:
            return torch.tensor(self.tokenizer.encode(item).ids)
        if kind == "text":
            found = [self.vocabulary.get(word, UNKNOWN) for word in words(item)][: self.about["length"]]
            return torch.tensor(found + [PADDING] * (self.about["length"] - len(found)))
        if kind == "audio":
            waveform = resampled(*item, self.config.audio_rate)
            samples = np.zeros(int(self.config.audio_seconds * self.config.audio_rate), np.float32)
            samples[: len(waveform)] = waveform[: len(samples)]
            return torch.from_numpy(log_mel(samples[None], self.config.audio_rate, self.config.audio_bands)[0])
        if kind == "image":
            return self._image(item)
        if list(item.shape) != self.about["shape"]:
            raise DataError(f"shape {list(item.shape)}; the model was fitted with {self.about['shape']}")
        return torch.from_numpy(item if kind == "vector" else item.reshape(_with_channel(item.shape)))

    def _image(self, image: Image.Image) -> Tensor:
        size = self.convention.size if self.convention else self.config.image_size
        grey = self.convention is None and self.config.image_encoder == "small"
        image = image.convert("L" if grey else "RGB").resize((size, size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).float() / 255
        if grey:
            return pixels[None]
        mean, std = (self.convention.mean, self.convention.std) if self.convention else IMAGENET
        return ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)


def _with_channel(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape) if len(shape) == 3 else (1, *shape)


def text_layout(address: str, encoder: Encoder, length: int) -> dict[str, Any]:
    """The tokenizer of a ``hf:`` encoder, with the token [MISSING], cutting and padding to ``length`` tokens."""
    from transformers import AutoTokenizer

    if not address.startswith("hf:"):
        raise ConfigError(f"{address}: a text encoder is given as hf:NAME")
    try:
        backend = AutoTokenizer.from_pretrained(address.removeprefix("hf:").partition("?")[0]).backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{address}: no tokenizer can be had ({' '.join(str(error).split())[:120]})") from None
    backend.add_special_tokens([MISSING_TEXT])
    padding = encoder.module.config.pad_token_id or 0
    backend.enable_truncation(length)
    backend.enable_padding(length=length, pad_id=padding)
    tokens = max(backend.get_vocab_size(with_added_tokens=True), encoder.module.config.vocab_size)
    return {"tokenizer": backend.to_str(), "tokens": tokens, "padding": padding}


MIMIC_SPLITS = ("train", "val", "val_retrieval", "test")
MIMIC_TENSORS = ("cxr", "ecg", "labs_percentiles", "labs_missingness")


def read_symile_mimic(path: Path) -> Manifest:
    """The tensors of Symile-MIMIC: ``{cxr,ecg,labs_percentiles,labs_missingness,hadm_id}_{split}.pt`` in a folder.

    Where a split lists retrieval candidates (``label_hadm_id_{split}.pt``: each row is a candidate of that admission)
    evaluation uses them. Files are memory-mapped and never unpickled.
    """
    parts, names = [], []
    for split in MIMIC_SPLITS:
        if not (path / f"hadm_id_{split}.pt").exists():
            continue
        arrays = {name: _tensor(path / f"{name}_{split}.pt") for name in MIMIC_TENSORS}
        admissions = _tensor(path / f"hadm_id_{split}.pt").astype(np.int64)
        labels = path / f"label_hadm_id_{split}.pt"
        queries = _tensor(labels).astype(np.int64) if labels.exists() else admissions
        ids = [
            f"{split}/{query}" if query == own else f"{split}/{query}/{row}"
            for row, (query, own) in enumerate(zip(queries, admissions, strict=True))
        ]
        labs = np.concatenate([arrays["labs_percentiles"], arrays["labs_missingness"]], axis=1).astype(np.float32)
        rows = np.arange(len(ids))
        modalities = {
            "cxr": Modality("array", arrays["cxr"], rows),
            "ecg": Modality("array", arrays["ecg"], rows),
            "labs": Modality("vector", labs, rows),
        }
        columns = {
            "hadm_id": admissions,
            "candidate_of": [f"{split}/{query}" for query in queries],
            "split": ["val" if split == "val_retrieval" else split] * len(ids),
        }
        parts.append(Manifest(ids, modalities, columns, {"candidate_of": ("candidate_of",)}))
        names.append(split)
    return Manifest.concat(parts, names)


def _tensor(path: Path) -> np.ndarray:
    try:
        return torch.load(path, weights_only=True, mmap=True, map_location="cpu").numpy()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # whatever torch refuses
        raise DataError(f"{path}: not a tensor that can be read safely: {str(error).splitlines()[0][:160]}") from None


def read_spoken_digits(path: Path, seed: int = 0) -> Manifest:
    """Recordings in the Free Spoken Digit layout (``{digit}_{speaker}_{take}.wav``) as a task of three modalities.

    Each recording is joined by a handwritten digit of scikit-learn, and by the English word for the sum of the spoken
    and the written digit modulo ten: no two of the three tell the third, all three together do.
    """
    from sklearn.datasets import load_digits

    from repertory.data.samples.spoken_numbers import NUMBERS

    files = sorted(file for file in path.rglob("*.wav") if _TAKE.fullmatch(file.stem))
    if not files:
        raise DataError(f"{path}: no file named {{digit}}_{{speaker}}_{{take}}.wav")
    takes = [_TAKE.fullmatch(file.stem) for file in files]
    spoken = np.array([int(take[1]) for take in takes if take])
    handwritten = load_digits()
    image = np.random.default_rng(seed).permutation(np.resize(np.arange(len(handwritten.target)), len(files)))
    total = (spoken + handwritten.target[image]) % 10
    modalities = {
        "image": Modality("image", list(np.round(handwritten.images * (255 / 16)).astype(np.uint8)), image),
        "text": Modality("text", NUMBERS["en"], total),
        "audio": Modality("audio", [str(file) for file in files], np.arange(len(files))),
    }
    columns = {
        "digit": handwritten.target[image],
        "spoken": spoken,
        "speaker": [take[2] for take in takes if take],
        "take": [int(take[3]) for take in takes if take],
    }
    return Manifest([file.stem for file in files], modalities, columns, {"label": ("digit",)})


_TAKE = re.compile(r"(\d)_([A-Za-z]+)_(\d+)")

READERS = (
    Reader(
        "symile-mimic",
        "cxr_train.pt, ecg_train.pt, labs_percentiles_train.pt, ... of Symile-MIMIC",
        lambda path: (path / "hadm_id_train.pt").exists(),
        read_symile_mimic,
    ),
    Reader(
        "spoken-digits", "{digit}_{speaker}_{take}.wav of the Free Spoken Digit data", Path.is_dir, read_spoken_digits
    ),
)
