"""What the paper says of reading in both directions and of memory, on digits and two cores."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repertory import data
from repertory.card import Claim
from repertory.data import Splits
from repertory.data.images import Images
from repertory.runs import seeded
from repertory.systems.vim.baselines import AttentionLayer
from repertory.systems.vim.model import Mixer
from repertory.systems.vim.system import Vim

SETTINGS: dict[str, Any] = {"lr": 2e-3, "warmup": 0.0, "batch_size": 64, "steps": 200}
"""Beside the preset ``digits``; the same for every variant."""
TOKENS = (256, 1024, 4096)


# -- reading in both directions ---------------------------------------------------------------------------------------


@cache
def _digits() -> Splits[Images]:
    """597 digits of the sample are held out, a third: the usual tenth would leave too few to tell a few points."""
    items = data.open("digits", "images").all
    order = np.random.default_rng(0).permutation(len(items))
    parts = np.full(len(items), "train", object)
    parts[order[:597]], parts[order[597:717]] = "test", "val"
    return Splits(items, "digits", "source", assigned=parts)


def _accuracy(**settings: Any) -> Callable[[int], float]:
    return lambda seed: _accuracy_on(_digits(), seed, **settings)


def _accuracy_on(splits: Splits[Images], seed: int, **settings: Any) -> float:
    config = Vim.Config.build("digits", **{**SETTINGS, **settings})
    fitted = Vim(config).fit(splits, seed=seed)
    items = splits.test
    truth = np.array([str(value) for value in items.column(fitted.assets["label"])])
    found = np.array(fitted.assets["classes"])[fitted.probabilities(items).argmax(1).numpy()]
    return float((found == truth).mean())


# -- memory -----------------------------------------------------------------------------------------------------------


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors made inside the block that are alive at once; ``peak`` is their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (at := _address(leaf)) not in self._known | given:
                storage = leaf.untyped_storage()
                self._known.add(at)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, at, storage.nbytes())
        return made

    def _gone(self, at: int, size: int) -> None:
        self._known.discard(at)
        self.now -= size


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def growth(make: Callable[[int], nn.Module], tokens: tuple[int, ...] = TOKENS, width: int = 96) -> float:
    """Exponent with which the peak memory of a layer's forward pass grows with the number of tokens."""
    peaks = []
    for count in tokens:
        layer, x = make(width).eval(), torch.randn(1, count, width)
        with torch.inference_mode(), Held() as held:
            layer(x)
        peaks.append(held.peak)
    return float(np.polyfit(np.log(tokens), np.log(peaks), 1)[0])


def _growth(make: Callable[[int], nn.Module]) -> Callable[[int], float]:
    def measure(seed: int) -> float:
        with seeded(seed, "growth"):
            return growth(make)

    return measure


CLAIMS = (
    Claim(
        name="bidirectional",
        finding="with the class token in the middle, reading in both directions classifies better than forward alone",
        paper="several points of ImageNet accuracy over reading forward alone; Vim-Ti has 76.1 with both directions",
        data="1,797 handwritten digits of 8 x 8 pixels in 16 patches; 597 held out",
        metric="accuracy",
        variants={
            "both directions": _accuracy(),
            "forward alone": _accuracy(bimamba_type="none"),
            "forward alone, last token": _accuracy(bimamba_type="none", class_token="none", pool="last"),
        },
        baselines=("forward alone",),
        margin=0.02,
        chance=0.1,
        notes="",
        on={"both directions": _accuracy_on, "forward alone": partial(_accuracy_on, bimamba_type="none")},
    ),
    Claim(
        name="memory",
        finding="the peak memory of a mixer's forward pass grows about linearly with the number of tokens",
        paper="linear memory, against quadratic of attention that holds its map",
        data="random tokens of width 96: 256, 1,024 and 4,096 of them",
        metric="exponent of growth: 1 is linear, 2 quadratic",
        variants={"Vim": _growth(Mixer), "attention": _growth(AttentionLayer)},
        baselines=("attention",),
        margin=0.5,
        higher_is_better=False,
    ),
)
