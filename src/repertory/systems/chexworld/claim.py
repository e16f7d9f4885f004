"""What the paper says its three world models are worth, on simulated radiographs and two cores."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from repertory import data
from repertory.card import Claim
from repertory.evaluation import Metrics
from repertory.systems.chexworld.system import CheXWorld

SOURCE = "simulated-radiographs?images=1000&side=32"
SETTINGS: dict[str, Any] = {
    "image_size": 24, "min_keep": 2, "batch_size": 32, "steps": 100, "lr": 3e-3, "position_scale": 0.1,
    "evaluation_images": 100,
}  # fmt: skip
"""Chosen by the variance of the targets and the errors on the validation part, not by any label."""
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "local": {"extra_weight": 0.0, "evaluation_images": 8},
    "random": {"steps": 0, "evaluation_images": 8},
}


@cache
def _measured(variant: str, seed: int) -> Metrics:
    """Held-out metrics of one model; claims share them."""
    config = CheXWorld.Config.build("simulated-radiographs", **{**SETTINGS, **VARIANTS[variant]})
    return CheXWorld(config).fit(_data(), seed=seed).evaluate()


@cache
def _data() -> data.Splits:
    return data.open(SOURCE, "images")


def _metric(variant: str, name: str) -> Callable[[int], float]:
    return lambda seed: _measured(variant, seed)[name].value


DATA = "1,000 simulated radiographs of 32 pixels around real lung masks; no patient on both sides"

CLAIMS = (
    Claim(
        name="domain",
        finding="told how an image was augmented, the predictor errs less than when told of another augmentation",
        paper="a domain world model: the ratio of the errors, asked here to be below 0.95",
        data=DATA,
        metric="error within a crop / error when told of another augmentation",
        variants={"told": _metric("full", "domain_ratio"), "told of another": lambda seed: 1.0},
        baselines=("told of another",),
        margin=0.05,
        higher_is_better=False,
    ),
    Claim(
        name="layout",
        finding="told where the other crop lies, the predictor errs less than when told that it is the same crop",
        paper="a global layout world model: the ratio of the errors, asked here to be below 1",
        data=DATA,
        metric="error about the other crop / error without its displacement",
        variants={"told": _metric("full", "layout_ratio"), "told none": lambda seed: 1.0},
        baselines=("told none",),
        higher_is_better=False,
    ),
    Claim(
        name="probe",
        finding="a linear probe of findings reads more from all three world models than from local structure alone",
        paper="the unified objective is better than each part; the tables' values are not quoted here",
        data=DATA,
        metric="AUROC of a linear probe, mean of three findings",
        variants={
            "all three": _metric("full", "probe_auroc"),
            "local structure": _metric("local", "probe_auroc"),
            "random encoder": _metric("random", "probe_auroc"),
        },
        baselines=("local structure", "random encoder"),
        chance=0.5,
    ),
)
