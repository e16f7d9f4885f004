"""Variants x seeds -> one table with intervals, and verdicts by fixed rules: of claims, and of comparisons."""

from __future__ import annotations

import json
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from repertory.card import Claim
from repertory.errors import UserError
from repertory.runs import versions, write_atomic

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
DRAWS = 10_000
BEST, AS_GOOD, WORSE = "best", "as good", "worse"
RESAMPLED = 2_000
"""Draws of test items in a comparison."""
BLOCK = 4_000_000
"""Weights of items held at once."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""From weights [draws, items] to values [draws], at most 1 and the higher the better; NaN where a draw leaves one
undefined."""


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
        seconds: of computing, all processes together; what claims share counts for the first.
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


def claim_on(claim: Claim, splits: Any, source: str) -> Claim:
    """The claim's question asked of other data: by its ``on``, with the margin 0 (is the method better here?).

    Raises:
        UserError: the claim can be asked of its own data alone.
    """
    if claim.on is None:
        raise UserError(f"claim '{claim.name}' can be asked of its own data alone ({claim.data}): leave --data out")
    variants = {name: partial(measure, splits) for name, measure in claim.on.items()}
    return replace(
        claim, name=f"{claim.name} on {source}", data=source, variants=variants, baselines=tuple(list(variants)[1:]),
        margin=0.0, chance=None, on=None,
    )  # fmt: skip


def run_claims(
    slug: str,
    claims: Sequence[Claim],
    seeds: int | None = None,
    watch: Callable[[Claim, str, int, float], None] | None = None,
    processes: int = 1,
) -> list[Result]:
    """Runs every variant of the claims with every seed.

    All that a seed asks for is measured in one process, so what a system's claims keep (``functools.cache``) serves
    all of them; the seeds that are left when each process has had as many as the others are divided by variants.

    Args:
        slug: the claims' system.
        claims: what is compared.
        seeds: how many seeds, from 0; None takes each claim's number.
        watch: told (claim, variant, seed, value) as they come.
        processes: how many measure at once, each with its share of the cores.

    Raises:
        UserError: a variant gave a value that is not finite.
    """
    numbers = [seeds or claim.seeds for claim in claims]
    asked: dict[tuple[int, str], list[tuple[int, str, Callable[[int], float]]]] = {}
    whole = max(numbers) // processes * processes
    for seed in range(max(numbers)):
        for index, (claim, n) in enumerate(zip(claims, numbers, strict=True)):
            for name, variant in claim.variants.items() if seed < n else ():
                asked.setdefault((seed, "" if seed < whole else name), []).append((index, name, variant))
    values: list[dict[str, dict[int, float]]] = [{name: {} for name in claim.variants} for claim in claims]
    spent = [0.0] * len(claims)
    jobs = (delayed(_measure)(seed, variants) for (seed, _), variants in asked.items())
    pool = Parallel(
        n_jobs=min(processes, len(asked)), return_as="generator_unordered", pre_dispatch="n_jobs",
        initializer=_begin,
    )  # fmt: skip
    for seed, index, name, value, seconds in chain.from_iterable(pool(jobs)):
        claim = claims[index]
        if not np.isfinite(value):
            raise UserError(f"{slug}, claim '{claim.name}': '{name}' with seed {seed} gave {value}: no verdict")
        values[index][name][seed] = value
        spent[index] += seconds
        if watch is not None:
            watch(claim, name, seed, value)
    ordered = [
        {name: np.array([found[seed] for seed in range(n)]) for name, found in of.items()}
        for of, n in zip(values, numbers, strict=True)
    ]
    return [_result(slug, *each) for each in zip(claims, ordered, spent, strict=True)]


def _begin() -> None:
    """A process of its own: it may start others, as the platform does, and repeats no warnings."""
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    warnings.simplefilter("ignore")


def _measure(
    seed: int, variants: list[tuple[int, str, Callable[[int], float]]]
) -> list[tuple[int, int, str, float, float]]:
    """(seed, claim, variant, value, seconds) of what one seed asks for."""
    found = []
    for index, name, variant in variants:
        start = time.perf_counter()
        found.append((seed, index, name, float(variant(seed)), time.perf_counter() - start))
    return found


def _result(slug: str, claim: Claim, values: dict[str, np.ndarray], seconds: float) -> Result:
    sign = 1.0 if claim.higher_is_better else -1.0
    best = max(claim.baselines, key=lambda name: sign * float(values[name].mean()))
    gaps = sign * (values[claim.method] - values[best])
    verdict, low, high = judge(gaps, claim.margin)
    measured = [Measured(name, tuple(found.tolist()), *interval(found)) for name, found in values.items()]
    return Result(
        slug=slug, claim=claim.name, finding=claim.finding, metric=claim.metric, unit=claim.unit, method=claim.method,
        baseline=best, measured=measured, gap=float(gaps.mean()), gap_low=low, gap_high=high, margin=claim.margin,
        verdict=verdict, seconds=seconds, chance=claim.chance,
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


@dataclass(frozen=True)
class Standing:
    """Where one candidate of a comparison stands.

    Attributes:
        values: by seed. low, high: 95 % interval of their mean.
        gap: mean less that of the best (0 of the best itself). gap_low, gap_high: its interval, by the rule.
        verdict: ``best``, ``as good`` (not distinguishable from it) or ``worse``.
    """

    values: tuple[float, ...]
    low: float
    high: float
    gap: float
    gap_low: float
    gap_high: float
    verdict: str

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.values))


def against_best(statistics: Sequence[Sequence[Statistic]], groups: np.ndarray, seed: int = 0) -> list[Standing]:
    """The rule of comparisons: paired bootstrap over test items and seeds.

    Each of 2,000 draws takes the test items with replacement, the same for all candidates (whole groups where items
    belong to groups, so that one patient's images stay together), and for each candidate its seeds with replacement.
    The best is the candidate with the highest mean over its seeds. Another one is *as good* where the interval of its
    difference from the best contains 0, else *worse*. Intervals of differences are at 1 - 0.05 / (candidates - 1), so
    that all of them together err in 5 % (Bonferroni). The spread between S seeds is widened by sqrt(S / (S - 1)),
    since few draws from few values understate it; one seed has none.

    Args:
        statistics: of each candidate, one per seed, on the same test items in the same order.
        groups: [items], what is drawn together; all different where items are independent.

    Returns:
        One standing per candidate, in their order.
    """
    names, members = np.unique(groups, return_inverse=True)
    random = np.random.default_rng(seed)
    values = [np.array([float(of(np.ones((1, len(members))))[0]) for of in seeds]) for seeds in statistics]
    drawn: list[list[np.ndarray]] = [[] for _ in statistics]
    rows = max(1, BLOCK // len(members))
    for start in range(0, RESAMPLED, rows):
        n = min(rows, RESAMPLED - start)
        counts = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n)
        weights = counts[:, members].astype(np.float64)
        for candidate, seeds in enumerate(statistics):
            found = np.stack([of(weights) for of in seeds])  # [seeds, draws]
            centre, spread = found.mean(axis=0), np.sqrt(len(seeds) / max(1, len(seeds) - 1))
            chosen = random.integers(len(seeds), size=found.shape)
            drawn[candidate].append(centre + spread * (np.take_along_axis(found, chosen, 0).mean(axis=0) - centre))
    means = [np.concatenate(parts) for parts in drawn]
    best = int(np.argmax([v.mean() for v in values]))
    tail = 0.05 / max(1, len(statistics) - 1) / 2
    standings = []
    for index, (of_seeds, of_draws) in enumerate(zip(values, means, strict=True)):
        mean = float(of_seeds.mean())
        low, high = map(float, np.nanquantile(np.minimum(of_draws, 1), [0.025, 0.975]))
        gap_low, gap_high = map(float, np.nanquantile(of_draws - means[best], [tail, 1 - tail]))
        verdict = BEST if index == best else AS_GOOD if gap_low <= 0 <= gap_high else WORSE
        standings.append(
            Standing(
                tuple(of_seeds.tolist()), min(low, mean), max(high, mean), mean - float(values[best].mean()),
                gap_low, gap_high, verdict,
            )
        )  # fmt: skip
    return standings
