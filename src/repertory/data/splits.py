"""Splits: opened and checked data, divided into train, val and test by what the source says or by a rule."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from repertory.data.items import Items
from repertory.data.source import PARTS
from repertory.errors import DataError

I = TypeVar("I", bound=Items)  # noqa: E741

NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
         "test": "test", "testing": "test", "eval": "test"}  # fmt: skip
"""What data sets call their parts."""
SHARES = {"val": 0.1, "test": 0.1}
RULES = "random, group:COLUMN or time:COLUMN"


@dataclass(frozen=True)
class Rejected:
    """An item that was left out, and why."""

    id: str
    reason: str


@dataclass
class Splits(Generic[I]):
    """All items of a source, and how they are divided.

    Attributes:
        all: every usable item.
        source: the name under which the data were asked for.
        rule: ``source`` where the source itself names the splits, else ``random``, ``group:COLUMN``, ``time:COLUMN``;
            ``none`` where everything is one part.
        rejected: what was left out with ``on_error=skip``.
    """

    all: I
    source: str
    rule: str = "random"
    rejected: list[Rejected] = field(default_factory=list)
    assigned: np.ndarray | None = None

    @property
    def fingerprint(self) -> str:
        """Of all items."""
        return self.all.fingerprint

    @cached_property
    def membership(self) -> np.ndarray:
        """[N] of ``train``, ``val``, ``test``, of the units of ``all``.

        Raises:
            DataError: too few items (or groups) to divide.
        """
        given = self.assigned
        if given is not None and self.rule == "none":
            return given
        if given is None:
            return _draw(self.all.units, self.rule, PARTS)
        missing = [part for part in PARTS if not (given == part).any()]
        if not missing:
            return given
        if "train" in missing:
            raise DataError(f"{self.source}: the source names the splits but none is 'train'")
        membership = given.copy()
        train = np.flatnonzero(given == "train")
        group = self.all.units.roles.get("group")
        rule = f"group:{group[0]}" if group else "random"
        membership[train] = _draw(self.all.units.take(train), rule, ("train", *missing))
        return membership

    @cached_property
    def train(self) -> I:
        """What is fitted."""
        return self.all.part(self.membership == "train")

    @cached_property
    def val(self) -> I:
        """What model selection looks at."""
        return self.all.part(self.membership == "val")

    @cached_property
    def test(self) -> I:
        """What is held out."""
        return self.all.part(self.membership == "test")

    @property
    def brings_test(self) -> bool:
        """Whether the source itself names a test split beside a training split."""
        return self.assigned is not None and {"train", "test"} <= set(self.assigned)


def _rank(values: np.ndarray) -> np.ndarray:
    """Positions of ``values`` in the order of their hashes: random, yet independent of the order of rows."""
    hashes = [hashlib.sha256(str(value).encode()).digest() for value in values]
    rank = np.empty(len(values), dtype=np.int64)
    rank[sorted(range(len(values)), key=hashes.__getitem__)] = np.arange(len(values))
    return rank


def _draw(items: Items, rule: str, parts: tuple[str, ...]) -> np.ndarray:
    """Assigns ``parts`` (the first takes what the others leave) by a rule."""
    scheme, _, name = rule.partition(":")
    if scheme == "random" and not name:
        units, inverse = items.ids, np.arange(len(items))
        order = _rank(units)
    elif scheme == "group" and name:
        units, inverse = np.unique(_known(items, name, rule).to_numpy().astype(str), return_inverse=True)
        order = _rank(units)
    elif scheme == "time" and name:
        # one unit per distinct time: equal times stay together
        times = _as_times(_known(items, name, rule), rule).dictionary_encode().combine_chunks()
        units, inverse = times.dictionary, times.indices.to_numpy()
        ranked = pc.rank(units, sort_keys="ascending", tiebreaker="first").to_numpy().astype(np.int64)
        order = len(units) - ranked  # the latest come first: they are the test split
        parts = (parts[0], *reversed(parts[1:])) if len(parts) > 2 else parts
    else:
        raise DataError(f"split={rule}: expected {RULES}")
    if len(units) < len(parts):
        what = f"item{'s' if len(units) != 1 else ''}" if scheme == "random" else f"different '{name}'"
        raise DataError(
            f"{len(units)} {what} cannot be divided into {' and '.join(parts)}; at least {len(parts)} are needed"
        )
    # groups are filled by items, so that a split's share holds where groups differ in size
    sizes = np.bincount(inverse, minlength=len(units))
    # and groups that hold several shares come last, so that they are trained on
    shares = sizes // (min(SHARES.values()) * len(items)) if scheme == "group" else np.zeros(len(units))
    by_order = np.lexsort((order, shares))
    before = np.empty(len(units))
    before[by_order] = np.cumsum(sizes[by_order]) - sizes[by_order]
    position = np.argsort(by_order)
    unit_part = np.full(len(units), parts[0], dtype=object)
    first, stop = 0, 0.0
    for left, part in zip(range(len(parts) - 1, 0, -1), parts[1:], strict=True):
        stop += SHARES[part] * len(items)
        chosen = (position >= first) & (before < stop - 0.5) & (position < len(units) - left)
        chosen |= position == first
        unit_part[chosen] = part
        first = int(position[chosen].max()) + 1
    return unit_part[inverse]


def _known(items: Items, name: str, rule: str) -> pa.ChunkedArray:
    """A column that says for every item where it belongs."""
    items.column(name)  # names what is missing
    missing = pc.is_null(items.columns[name], nan_is_null=True).to_numpy()
    if missing.any():
        first = items.ids[missing.argmax()]
        raise DataError(f"split={rule}: {missing.sum()} of {len(items)} items have no '{name}' (first: {first})")
    return items.columns[name]


def _as_times(column: pa.ChunkedArray, rule: str) -> pa.ChunkedArray:
    """Numbers, dates and times as they are; texts must be ISO 8601, since others have no order as texts."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    try:
        return pa.chunked_array([pa.array(pd.to_datetime(column.to_numpy(), format="ISO8601", utc=True))])
    except ValueError as error:
        raise DataError(f"split={rule}: {str(error).split('. ')[0]}; write dates as 2024-01-31, or numbers") from None
