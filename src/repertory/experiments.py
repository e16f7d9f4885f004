"""Variants x seeds -> one table with intervals, and a verdict by one rule."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from repertory.card import Claim
from repertory.errors import UserError
from repertory.runs import versions, write_atomic

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
DRAWS = 10_000


@dataclass(frozen=True)
class Measured:
    """One variant over the seeds: its values, their mean and the bootstrap interval of the mean."""

    variant: str
    values: tuple[float, ...]
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.values))


@dataclass(frozen=True)
class Result:
    """What a claim came to.

    Attributes:
        gap: how much better the method is than the best baseline, mean over the seeds.
        gap_low, gap_high: its paired bootstrap interval.
    """

    slug: str
    claim: str
    finding: str
    metric: str
    unit: str
    method: str
    baseline: str
    measured: list[Measured]
    gap: float
    gap_low: float
    gap_high: float
    margin: float
    verdict: str
    seconds: float
    chance: float | None = None
    versions: dict[str, str] = field(default_factory=versions)


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of a few values."""
    draws = np.random.default_rng(seed).choice(values, (DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def judge(gaps: np.ndarray, margin: float) -> tuple[str, float, float]:
    """The rule: *reproduced* where the interval of the paired gaps lies above ``margin``, *not reproduced* where it
    lies at or below, *inconclusive* between. With fewer than three seeds every verdict is inconclusive."""
    low, high = interval(gaps)
    if len(gaps) < 3:
        return INCONCLUSIVE, low, high
    verdict = REPRODUCED if low > margin else NOT_REPRODUCED if high <= margin else INCONCLUSIVE
    return verdict, low, high


def run_claim(
    slug: str, claim: Claim, seeds: int | None = None, watch: Callable[[str, int, float], None] | None = None
) -> Result:
    """Runs every variant with every seed.

    Args:
        slug: the claim's system.
        claim: what is compared.
        seeds: how many seeds, from 0; None takes the claim's number.
        watch: told (variant, seed, value) as they come.
    """
    start = time.perf_counter()
    n = seeds or claim.seeds
    values: dict[str, list[float]] = {name: [] for name in claim.variants}
    for seed in range(n):
        for name, variant in claim.variants.items():
            value = float(variant(seed))
            if not np.isfinite(value):
                raise UserError(f"{slug}, claim '{claim.name}': '{name}' with seed {seed} gave {value}: no verdict")
            values[name].append(value)
            if watch is not None:
                watch(name, seed, value)
    sign = 1.0 if claim.higher_is_better else -1.0
    best = max(claim.baselines, key=lambda name: sign * float(np.mean(values[name])))
    gaps = sign * (np.array(values[claim.method]) - np.array(values[best]))
    verdict, low, high = judge(gaps, claim.margin)
    measured = [Measured(name, tuple(found), *interval(np.array(found))) for name, found in values.items()]
    return Result(
        slug=slug, claim=claim.name, finding=claim.finding, metric=claim.metric, unit=claim.unit, method=claim.method,
        baseline=best, measured=measured, gap=float(gaps.mean()), gap_low=low, gap_high=high, margin=claim.margin,
        verdict=verdict, seconds=time.perf_counter() - start, chance=claim.chance,
    )  # fmt: skip


def write_result(result: Result, path: Path) -> None:
    """Puts a result into a ``results.json``, beside those of other claims."""
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path}: not JSON: mend or remove it") from None
    known.setdefault(result.slug, {})[result.claim] = asdict(result)
    write_atomic(path, json.dumps(known, indent=1, sort_keys=True) + "\n")


def read_results(path: Path) -> Iterator[dict[str, Any]]:
    """The results in a ``results.json``, in the order of slugs and claims."""
    if path.exists():
        for claims in json.loads(path.read_text(encoding="utf-8")).values():
            yield from claims.values()
