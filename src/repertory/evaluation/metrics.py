"""Numbers with their uncertainty: what every ``evaluate`` returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from repertory.errors import DataError

BLOCK = 4_000_000  # numbers held at once while resampling


@dataclass(frozen=True)
class Metric:
    """One measured number.

    Attributes:
        value: the measurement; NaN where it is undefined.
        low, high: ends of its 95 % interval, or None where none was computed.
        higher_is_better: None where neither direction is better.
        about: one line for people: what was measured on what.
    """

    value: float
    low: float | None = None
    high: float | None = None
    higher_is_better: bool | None = None
    about: str = ""

    @classmethod
    def of(
        cls, per_item: ArrayLike, seed: int, *, higher_is_better: bool | None = None, about: str = "", draws: int = 1000
    ) -> Metric:
        """The mean of one number per item ``[N]``, with its bootstrap interval."""
        low, high = bootstrap(per_item, seed, draws)
        value = float(np.mean(per_item))
        return cls(value, min(low, value), max(high, value), higher_is_better, about)


class Metrics(Mapping[str, Metric]):
    """An immutable, ordered mapping from name to :class:`Metric`; ``a | b`` joins two, the right one winning."""

    def __init__(self, metrics: Mapping[str, Metric] | None = None) -> None:
        self._metrics = dict(metrics or {})

    def __getitem__(self, name: str) -> Metric:
        return self._metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        return len(self._metrics)

    def __or__(self, other: Mapping[str, Metric]) -> Metrics:
        return Metrics({**self._metrics, **other})

    def __repr__(self) -> str:
        def line(name: str, m: Metric) -> str:
            interval = "" if m.low is None else f" [{m.low:.4g}, {m.high:.4g}]"
            return f"{name}: {m.value:.4g}{interval}"

        return "Metrics(" + ", ".join(line(*item) for item in self.items()) + ")"

    def prefixed(self, prefix: str) -> Metrics:
        """The same metrics, each name preceded by ``prefix``."""
        return Metrics({prefix + name: metric for name, metric in self.items()})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain JSON types; numbers that JSON cannot hold (NaN, infinity) become None."""

        def plain(value: Any) -> Any:
            if isinstance(value, (bool, str)) or value is None:
                return value
            return float(value) if math.isfinite(value) else None

        return {name: {k: plain(v) for k, v in asdict(metric).items()} for name, metric in self.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Mapping[str, Any]]) -> Metrics:
        """The inverse of :meth:`to_dict`; a value of None comes back as NaN."""
        try:
            rows = {
                n: Metric(**{**row, "value": math.nan if row["value"] is None else row["value"]})
                for n, row in plain.items()
            }
        except (TypeError, KeyError) as error:
            raise DataError(f"metrics: not a table of metrics ({error}); run evaluate again") from None
        return cls(rows)


def bootstrap(per_item: ArrayLike, seed: int, draws: int = 1000) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``per_item [N]``, items resampled with replacement (Efron 1979)."""
    items = np.asarray(per_item, dtype=np.float64)
    if items.ndim != 1 or not len(items) or not np.isfinite(items).all():
        raise DataError(f"bootstrap: needs a list of finite numbers, one an item; got shape {items.shape}")
    # Resampling N items is one multinomial over their distinct values: for hits and misses two numbers a draw, not N.
    values, counts = np.unique(items, return_counts=True)
    if len(values) > len(items) // 8:
        return resampled_interval(lambda weights: weights @ items / len(items), len(items), seed, draws)
    means = np.random.default_rng(seed).multinomial(len(items), counts / len(items), size=draws) @ values / len(items)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def resampled_interval(
    statistic: Callable[[np.ndarray], np.ndarray], items: int, seed: int, draws: int = 1000
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of any statistic that can weight its items.

    Args:
        statistic: maps weights ``[draws, items]`` (how often each item was drawn) to values ``[draws]``;
            NaN where a draw leaves it undefined, which is then left out.
    """
    rng, rows, values = np.random.default_rng(seed), max(1, BLOCK // items), []
    for start in range(0, draws, rows):
        n = min(rows, draws - start)
        drawn = rng.integers(items, size=(n, items)) + items * np.arange(n)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=n * items).reshape(n, items)
        values.append(statistic(weights.astype(np.float64)))
    values = np.concatenate(values)
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired_difference(first: ArrayLike, second: ArrayLike, seed: int, draws: int = 1000) -> Metric:
    """Mean of ``first - second`` over the same items, with its paired bootstrap interval.

    The two methods share each draw of items, so what is hard for both cancels. An interval without 0 is a difference.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise DataError(
            f"paired difference: {first.shape} and {second.shape} items; both must be measured on the same ones"
        )
    return Metric.of(first - second, seed, about=f"paired difference over {len(first)} items", draws=draws)
