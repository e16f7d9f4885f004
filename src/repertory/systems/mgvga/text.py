"""Vectors of Verilog texts: stored ones, hashed words (TF-IDF), or a language model's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from sklearn.feature_extraction.text import HashingVectorizer

from repertory.data.circuits import Circuit
from repertory.encoders import Encoder
from repertory.errors import ConfigError, DataError

Texts = Literal["vectors", "verilog", "none"]
WORD = re.compile(r"(?<!\w)\d+(?!\w)|[A-Za-z_]+")
"""Whole numbers, and names without their numbers: n_123 and n_124 are one word."""


def words(verilog: str) -> list[str]:
    """The words of a text."""
    return WORD.findall(verilog)


class HashedTexts:
    """Words hashed to ``width`` numbers: sublinear counts, times what ``fit`` learns of their rarity, length 1.

    Args:
        width: of the vectors. rarity: [width], as ``fit`` returns it.
    """

    def __init__(self, width: int, rarity: np.ndarray | None = None) -> None:
        self.counts = HashingVectorizer(n_features=width, analyzer=words, norm=None, alternate_sign=False)
        self.rarity = np.ones(width, np.float32) if rarity is None else rarity

    def fit(self, texts: Sequence[str]) -> np.ndarray:
        """Inverse document frequencies [width] of the texts, smoothed as in scikit-learn."""
        seen = np.asarray((self.counts.transform(texts) > 0).sum(axis=0)).ravel()
        self.rarity = (np.log((1 + len(texts)) / (1 + seen)) + 1).astype(np.float32)
        return self.rarity

    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """[n, width] float32."""
        counts = self.counts.transform(texts).toarray()
        weighted = np.log1p(counts) * self.rarity
        return (weighted / np.linalg.norm(weighted, axis=1, keepdims=True).clip(1e-12)).astype(np.float32)


class LanguageModel:
    """Mean token vectors of a ``hf:`` encoder, frozen.

    Args:
        encoder: as ``repertory.encoders`` makes it. tokens: of a text, the rest is cut off.
    """

    def __init__(self, encoder: Encoder, tokens: int) -> None:
        from transformers import AutoTokenizer

        address = encoder.address or ""
        if not address.startswith("hf:"):
            raise ConfigError(f"text_encoder={address}: a language model is given as hf:NAME")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(address.removeprefix("hf:").partition("?")[0])
        except (OSError, ValueError) as error:
            raise ConfigError(f"{address}: no tokenizer can be had ({' '.join(str(error).split())[:120]})") from None
        self.encoder, self.tokens = encoder.freeze(), tokens

    @torch.no_grad()
    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """[n, width] float32."""
        rows = []
        for text in texts:
            given = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=self.tokens)
            device = next(self.encoder.parameters()).device
            rows.append(self.encoder({name: value.to(device) for name, value in given.items()}).float().cpu().numpy())
        return np.concatenate(rows)


def stored(names: Iterable[str], circuits: Iterable[Circuit], width: int | None = None) -> np.ndarray:
    """The stored text vectors [n, w] of designs.

    Raises:
        DataError: a design has none, or one of another width than ``width`` (the first one's where None).
    """
    rows = []
    for name, circuit in zip(names, circuits, strict=True):
        if circuit.text is None:
            raise DataError(f"design '{name}' has no text vector: give one (vectors=FILE), or set text=verilog")
        width = len(circuit.text) if width is None else width
        if len(circuit.text) != width:
            raise DataError(f"design '{name}': its text vector has {len(circuit.text)} numbers; {width} are needed")
        rows.append(circuit.text.astype(np.float32))
    return np.stack(rows)
