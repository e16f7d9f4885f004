"""Events as scaled times and pairs of numbered nodes, the layout of the official code, and queries about links."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from repertory.data import Reader
from repertory.data.events import Events
from repertory.data.pickles import read_pickle
from repertory.errors import DataError


class Interactions(NamedTuple):
    """Undirected events: ``pairs`` [E, 2] of node numbers, i < j; ``times`` [E]."""

    pairs: np.ndarray
    times: np.ndarray


def interactions(events: Events, nodes: Sequence[str]) -> Interactions:
    """The events among the nodes asked for, as positions in ``nodes``.

    Raises:
        DataError: a node asked for is not among ``nodes``.
    """
    place = places(events, nodes)
    table = events.units
    number = np.full(len(events.nodes), -1, dtype=np.int64)
    number[events.asked] = place
    return Interactions(np.sort(number[table.pairs], axis=1), table.times)


def places(events: Events, nodes: Sequence[str]) -> np.ndarray:
    """Positions in ``nodes`` of the nodes asked for.

    Raises:
        DataError: one is not among them: nodes that were not fitted have no trajectory.
    """
    position = {name: n for n, name in enumerate(nodes)}
    unknown = [name for name in events.ids if name not in position]
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(events.ids)} nodes were not fitted (first: {unknown[0]}): "
            "PiVeM knows the trajectories of the nodes it was fitted to and of no others"
        )
    return np.array([position[name] for name in events.ids], dtype=np.int64)


class Windows(NamedTuple):
    """Questions 'do i and j meet in this interval?': ``pairs`` [M, 2], ``start``, ``end``, ``truth`` [M] of 0 and 1."""

    pairs: np.ndarray
    start: np.ndarray
    end: np.ndarray
    truth: np.ndarray


def windows(
    asked: Interactions, known: Interactions, nodes: int, low: float, high: float, radius: float,
    random: np.random.Generator, most: int = 5000,
) -> Windows:  # fmt: skip
    """Windows around events, and as many of equal length around random moments without an event of their pair.

    Args:
        asked: the events asked about; at most ``most`` of them are drawn.
        known: all events, so that no window counted as empty holds one.
        nodes: their number. low, high: ends of the period from which windows are taken; they are cut there.
        radius: half of a window's length.
    """
    chosen = np.sort(random.choice(len(asked.times), min(most, len(asked.times)), replace=False))
    pairs, times = asked.pairs[chosen], asked.times[chosen]
    span = 2 * (max(high, known.times.max()) - min(low, known.times.min()) + 2 * radius) + 1.0
    keys = np.sort((known.pairs[:, 0] * nodes + known.pairs[:, 1]) * span + (known.times - min(low, known.times.min())))
    empty_pairs, empty_times = [np.empty((0, 2), np.int64)], [np.empty(0)]
    wanted, found = len(times), 0
    for _ in range(100):
        drawn = random.integers(nodes, size=(2 * wanted, 2))
        drawn = np.sort(drawn[drawn[:, 0] != drawn[:, 1]], axis=1)
        moments = random.uniform(low, high, len(drawn))
        key = (drawn[:, 0] * nodes + drawn[:, 1]) * span + (moments - min(low, known.times.min()))
        free = np.searchsorted(keys, key - radius, "left") == np.searchsorted(keys, key + radius, "right")
        empty_pairs.append(drawn[free])
        empty_times.append(moments[free])
        found += int(free.sum())
        if found >= wanted:
            break
    else:
        raise DataError(f"too few windows without an event: radius {radius:g} covers nearly all of the time")
    pairs = np.concatenate([pairs, np.concatenate(empty_pairs)[:wanted]])
    times = np.concatenate([times, np.concatenate(empty_times)[:wanted]])
    truth = np.repeat([1, 0], wanted)
    return Windows(pairs, np.clip(times - radius, low, high), np.clip(times + radius, low, high), truth)


def read_official(path: Path) -> Events:
    """A folder of the official code: ``pairs.pkl``, ``events.pkl`` and, where it is there, ``node2group.pkl``.

    ``pairs`` is a list of [i, j], ``events`` a list of lists of times in the same order. Pairs listed as (j, i), or
    twice, are merged, with a warning that says how many.

    Raises:
        DataError: a file is missing, holds other types than lists and numbers, or the two differ in length.
    """
    pairs, events = (read_pickle(path / name) for name in ("pairs.pkl", "events.pkl"))
    if len(pairs) != len(events):
        raise DataError(f"{path}: {len(pairs)} pairs but {len(events)} lists of times")
    try:
        ends = np.array([[int(i), int(j)] for i, j in pairs], dtype=np.int64).reshape(-1, 2)
        times = np.array([float(t) for row in events for t in np.atleast_1d(row)])
    except (TypeError, ValueError):
        raise DataError(f"{path}: expected pairs [i, j] of integers and lists of times") from None
    if not len(times):
        raise DataError(f"{path}: empty: there is no event in it")
    low_high = np.sort(ends, axis=1)
    merged = int((ends[:, 0] > ends[:, 1]).sum()), len(ends) - len(np.unique(low_high, axis=0))
    if any(merged):
        warnings.warn(f"{path}: {merged[0]} pairs (j, i) turned and {merged[1]} listed twice merged", stacklevel=2)
    counts = [len(np.atleast_1d(row)) for row in events]
    names = np.unique(ends)
    columns, roles = None, None
    if (path / "node2group.pkl").exists():
        groups = read_pickle(path / "node2group.pkl")
        try:
            columns = {"group": [str(groups[int(node)]) for node in names]}
        except (KeyError, IndexError, TypeError):
            raise DataError(f"{path}/node2group.pkl: a node has no group") from None
        roles = {"label": ("group",)}
    return Events.of(names, np.repeat(np.searchsorted(names, low_high), counts, axis=0), times, columns, roles)


READERS = (
    Reader(
        "pivem",
        "a folder with pairs.pkl and events.pkl, as the official code reads",
        lambda path: (path / "pairs.pkl").exists(),
        read_official,
    ),
)
