"""Splits: opened and checked data, divided into train, val and test by what the source says or by a rule."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
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
        """[N] of ``train``, ``val``, ``test``.

        Raises:
            DataError: too few items (or groups) to divide.
        """
        given = self.assigned
        if given is not None and self.rule == "none":
            return given
        if given is None:
            return _draw(self.all, self.rule, PARTS)
        missing = [part for part in PARTS if not (given == part).any()]
        if not missing:
            return given
        if "train" in missing:
            raise DataError(f"{self.source}: the source names the splits but none is 'train'")
        membership = given.copy()
        train = np.flatnonzero(given == "train")
        membership[train] = _draw(self.all.take(train), "random", ("train", *missing))
        return membership

    @cached_property
    def train(self) -> I:
        """What is fitted."""
        return self.all.take(self.membership == "train")

    @cached_property
    def val(self) -> I:
        """What model selection looks at."""
        return self.all.take(self.membership == "val")

    @cached_property
    def test(self) -> I:
        """What is held out."""
        return self.all.take(self.membership == "test")

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
        units, inverse = np.unique(items.column(name).astype(str), return_inverse=True)
        order = _rank(units)
    elif scheme == "time" and name:
        items.column(name)  # names what is missing
        column = items.columns[name]
        if column.null_count:
            raise DataError(f"split=time:{name}: {column.null_count} rows have no time")
        # one unit per distinct time: equal times stay together
        times = column.dictionary_encode().combine_chunks()
        units, inverse = times.dictionary, times.indices.to_numpy()
        ranked = pc.rank(units, sort_keys="ascending", tiebreaker="first").to_numpy().astype(np.int64)
        order = len(units) - ranked  # the latest come first: they are the test split
        parts = (parts[0], *reversed(parts[1:])) if len(parts) > 2 else parts
    else:
        raise DataError(f"split={rule}: expected {RULES}")
    if len(units) < len(parts):
        what = "item" if scheme == "random" else f"distinct value of '{name}'"
        raise DataError(
            f"{len(units)} {what}{'s' if len(units) != 1 else ''} cannot be divided into {' and '.join(parts)}; "
            f"at least {len(parts)} are needed"
        )
    # groups are filled by items, so that a split's share holds where groups differ in size
    sizes = np.bincount(inverse, minlength=len(units))
    by_order = np.argsort(order)
    before = np.empty(len(units))
    before[by_order] = np.cumsum(sizes[by_order]) - sizes[by_order]
    unit_part = np.full(len(units), parts[0], dtype=object)
    position, start = np.empty(len(units), dtype=np.int64), 0.0
    position[by_order] = np.arange(len(units))
    first = 0
    for part in parts[1:]:
        stop = start + SHARES[part] * len(items)
        chosen = (before >= start - 1e-9) & (before < stop - 0.5)
        if not (chosen & (position >= first)).any():
            chosen = position == first
        chosen &= position >= first
        unit_part[chosen] = part
        first = int(position[chosen].max()) + 1
        start = stop
    if not (unit_part == parts[0]).any():
        raise DataError(f"split={rule}: nothing is left to train on; the values of '{name}' are too few or too unequal")
    return unit_part[inverse]
