"""What the paper says of one model that does both jobs, on handwritten digits and two cores."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from repertory import data
from repertory.card import Claim
from repertory.data import Splits
from repertory.evaluation import Metrics
from repertory.systems.umd.system import UMD

SETTINGS: dict[str, Any] = {
    "task": "none", "depth": 2, "decoder_depth": 1, "lr": 0.016, "batch_size": 32, "steps": 400,
    "evaluation_images": 200,
}  # fmt: skip
"""The same for all; chosen by errors and probes on images that are not in the test part."""
VARIANTS: dict[str, dict[str, Any]] = {
    "UMD": {},
    "DiT": {"no_noise_prob": 0.0, "noisy_ratio": 0.0},
    "MAE": {"no_noise_prob": 1.0},
}
TRAINED, VALIDATED = 1000, 200


@cache
def _measured(variant: str, seed: int) -> Metrics:
    """Held-out metrics of one model; claims share them."""
    config = UMD.Config.build("digits", **{**SETTINGS, **VARIANTS[variant]})
    return UMD(config).fit(_data(), seed=seed).evaluate()


@cache
def _data() -> Splits[Any]:
    """The digits, a third of them for tests."""
    items = data.open("digits", "images").all
    place = np.random.default_rng(0).permutation(len(items))
    part = np.select([place < TRAINED, place < TRAINED + VALIDATED], ["train", "val"], "test").astype(object)
    return Splits(items, "digits", "source", [], part)


def _noise(variant: str, unit: str) -> Callable[[int], float]:
    """The error of the predicted noise of one variant, as a multiple of another's."""

    def ratio(seed: int) -> float:
        return _measured(variant, seed)["noise_error"].value / _measured(unit, seed)["noise_error"].value

    return ratio


def _probe(variant: str, less: float = 0.0) -> Callable[[int], float]:
    return lambda seed: 100 * _measured(variant, seed)["ridge_accuracy"].value - less


DATA = "1,797 handwritten digits of 8 pixels, 597 of them held out; 20 labels a class for the probe"

CLAIMS = (
    Claim(
        name="generation",
        finding="UMD predicts noise within 10 % of DiT, which learns nothing else",
        paper="after fine-tuning on ImageNet at 64 pixels: FID 19.8 of UMD-B/4, 18.9 of DiT-B/4",
        data=DATA,
        metric="error of the predicted noise / that of DiT",
        variants={"UMD": _noise("UMD", "DiT"), "DiT + 10 %": lambda seed: 1.1},
        baselines=("DiT + 10 %",),
        higher_is_better=False,
    ),
    Claim(
        name="masks alone",
        finding="MAE errs more than ten times as much as UMD when it is asked for noise",
        paper="after fine-tuning on ImageNet at 64 pixels: FID 26.8 of MAE-B/4, 19.8 of UMD-B/4",
        data=DATA,
        metric="error of the predicted noise / that of UMD",
        variants={"MAE": _noise("MAE", "UMD"), "ten times UMD": lambda seed: 10.0},
        baselines=("ten times UMD",),
        notes="predicting no noise at all has an error of 1, about four times UMD's",
    ),
    Claim(
        name="representation",
        finding="a few-shot probe reads from UMD within 2 points of what it reads from MAE",
        paper="100-shot probe on ImageNet: 31.8 % of UMD-B/4, 36.6 % of MAE-B/4, 25.6 % of DiT-B/4",
        data=DATA,
        metric="accuracy of a ridge probe on 200 labelled images",
        variants={
            "UMD": _probe("UMD"),
            "MAE - 2 points": _probe("MAE", 2.0),
            "MAE": _probe("MAE"),
            "DiT": _probe("DiT"),
        },
        baselines=("MAE - 2 points",),
        unit="%",
        chance=10.0,
    ),
)
