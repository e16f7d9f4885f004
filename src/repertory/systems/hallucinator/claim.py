"""With against without: what the Hallucinator does to a small SimCLR on handwritten digits, in two minutes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from repertory import data
from repertory.card import Claim
from repertory.evaluation import linear_probe
from repertory.systems.hallucinator.system import HallucinatorSystem

SETTINGS: dict[str, Any] = {"method": "simclr", "temperature": 0.2, "task": "none", "steps": 120}
"""SimCLR, because in so few steps MoCo's training loss does not fall."""
VARIANTS = {"Hallucinator": "full", "extrapolation only": "extrapolate", "SimCLR": "none"}


class Measured(NamedTuple):
    """What one model shows on held-out digits: accuracy of a linear probe, mean cosine of two views of an image."""

    accuracy: float
    positive: float


@cache
def _measured(variant: str, seed: int) -> Measured:
    splits = _data()
    config = HallucinatorSystem.Config.build("digits", **SETTINGS, hallucinate=VARIANTS[variant])
    system = HallucinatorSystem(config).fit(splits, seed=seed)
    train, test = system.embed(splits.train), system.embed(splits.test)
    probe = linear_probe(
        test.vectors, test.column("label"), train_vectors=train.vectors, train_labels=train.column("label"), draws=10
    )
    positive = system.compare_views(splits.test)["positive"].mean()
    return Measured(probe.metrics["probe_accuracy"].value, float(positive))


@cache
def _data() -> data.Splits:
    return data.open("digits?side=16", "images")


def _of(variant: str, what: str) -> Callable[[int], float]:
    return lambda seed: getattr(_measured(variant, seed), what)


DATA = "1,797 handwritten digits of 16 pixels; 1,438 to learn from without labels, 179 held out"

CLAIMS = (
    Claim(
        name="probe",
        finding="a linear probe reads more from SimCLR with the Hallucinator than without",
        paper="gains of 0.3 to 3.0 points over MoCo, SimCLR and SimSiam on five data sets of natural images",
        data=DATA,
        metric="accuracy of a linear probe",
        variants={name: _of(name, "accuracy") for name in VARIANTS},
        baselines=("SimCLR",),
        seeds=5,
        chance=0.1,
    ),
    Claim(
        name="confidence",
        finding="with the Hallucinator two views of an image are made less alike than without",
        paper="hallucinated positives share less information, which is meant to counter over-confidence",
        data=DATA,
        metric="mean cosine of two views of a held-out image",
        variants={name: _of(name, "positive") for name in ("Hallucinator", "SimCLR")},
        baselines=("SimCLR",),
        higher_is_better=False,
        seeds=5,
    ),
)
