"""Masked gates teach structure that holds in circuits never seen; the right text helps, a wrong one misleads."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
from torch import nn

from repertory import data
from repertory.card import Claim
from repertory.data import Splits
from repertory.data.circuits import Circuits
from repertory.systems.mgvga.system import MGVGASystem

SETTINGS: dict[str, Any] = {"dim": 32, "layers": 4, "lr": 2e-3}


class UntrainedEncoder(MGVGASystem):
    """The same training, but of decoders and heads alone: the encoder stays as it was drawn."""

    def _build(self) -> nn.Module:
        model = super()._build()
        network: Any = model["mgvga"]  # type: ignore[index]
        network.token_emb.requires_grad_(False)
        network.graph_encoder.requires_grad_(False)
        return model


@cache
def _netlists() -> Splits[Circuits]:
    return data.open("real-circuits?nodes=1200", "circuits")


def _told(system: type[MGVGASystem], splits: Splits[Circuits], seed: int) -> float:
    config = system.Config.build(None, **SETTINGS, batch_size=2, steps=150, text_width=256)
    hidden = system(config).fit(splits, seed=seed).hidden(splits.test)
    return float((hidden.said == hidden.truth).mean())


def trained(splits: Splits[Circuits], seed: int) -> float:
    """Share of hidden gates of the test circuits that are told right."""
    return _told(MGVGASystem, splits, seed)


def untrained(splits: Splits[Circuits], seed: int) -> float:
    """The same with an encoder of random weights."""
    return _told(UntrainedEncoder, splits, seed)


def majority(splits: Splits[Circuits], seed: int) -> float:
    """Share of the test circuits' gates that are of the most frequent type."""
    kinds = np.zeros(4)
    for circuit in splits.test.circuits:
        kinds += np.bincount(circuit.node_type, minlength=4)
        kinds[3] += (circuit.edge_type == 1).sum()
    return float(kinds.max() / kinds.sum())


# -- the text -------------------------------------------------------------------------------------------------

WIDTH = 16


def described(items: Circuits, seed: int, shift: int = 0) -> Circuits:
    """Circuits with vectors of their texts: family and width, projected at random, the same for all circuits.

    Args:
        shift: not 0: the family so many places further on, a wrong text.
    """
    families = sorted(set(items.column("family")))
    project = np.random.default_rng(seed).normal(size=(len(families) + 1, WIDTH)).astype(np.float32)
    told = []
    for circuit, family, width in zip(items.circuits, items.column("family"), items.column("width"), strict=True):
        at = (families.index(family) + shift) % len(families)
        told.append(replace(circuit, text=project[at] + width / 8 * project[-1]))
    return Circuits(items.ids, told, items.columns, items.roles)


@cache
def _generated(seed: int) -> Splits[Circuits]:
    return data.open(described(data.open("generated-circuits", "circuits").all, seed), "circuits")


@cache
def _reader(text: str, seed: int) -> MGVGASystem:
    config = MGVGASystem.Config.build(None, **SETTINGS | {"lr": 4e-3}, batch_size=4, steps=150, text=text)
    return MGVGASystem(config).fit(_generated(seed), seed=seed)


def _loss(text: str, seed: int, shift: int = 0) -> float:
    test = _generated(seed).all
    items = described(test, seed, shift).take(test.column("split") == "test")
    return float(_reader(text, seed).hidden(items, aligned=True).losses.mean())


def right_text(seed: int) -> float:
    """Cross-entropy of hidden gates, with the circuit's own text."""
    return _loss("vectors", seed)


def wrong_text(seed: int) -> float:
    """The same model with another family's text."""
    return _loss("vectors", seed, shift=1)


def no_text(seed: int) -> float:
    """A model that was trained without texts."""
    return _loss("none", seed)


VARIANTS = {"pre-trained": trained, "untrained encoder": untrained, "most frequent type": majority}


def _on_netlists(measure: Any, seed: int) -> float:
    return float(measure(_netlists(), seed))


CLAIMS = (
    Claim(
        name="unseen circuits",
        finding="masked gate modelling learns structure that holds in real circuits never seen",
        paper="pre-training by masked gate modelling is the base of all results; its figures could not be checked",
        data="real-circuits of up to 1,200 nodes; tested on c880, c1908 (both also remapped), cavlc, router and c17",
        metric="accuracy of the types of 30 % of the gates, hidden after encoding",
        variants={name: partial(_on_netlists, measure) for name, measure in VARIANTS.items()},
        baselines=("untrained encoder", "most frequent type"),
        on=VARIANTS,
    ),
    Claim(
        name="text",
        finding="the right text helps to tell gates hidden before encoding, against no text and against a wrong one",
        paper="alignment with Verilog adds to masked gate modelling in the ablation; its figures could not be checked",
        data="generated-circuits: six families; width 5 is held out. Texts: family and width, projected to 16 numbers",
        metric="cross-entropy of the types of 70 % of the gates, hidden before encoding",
        variants={"right text": right_text, "no text": no_text, "wrong text": wrong_text},
        baselines=("no text", "wrong text"),
        higher_is_better=False,
        unit="nats",
    ),
)
