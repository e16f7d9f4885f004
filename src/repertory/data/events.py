"""Events: a graph in continuous time, as a table of (node, node, time)."""

from __future__ import annotations

import copy
import gzip
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from repertory.data.items import Items, Preview, Reader, digest
from repertory.data.tables import read_table, to_arrow
from repertory.errors import DataError, first_line

COLUMNS = {
    "i": ("source", "src", "i", "u", "from", "sender", "node1", "id1"),
    "j": ("target", "dst", "j", "v", "to", "receiver", "node2", "id2", "destination"),
    "t": ("time", "t", "timestamp", "ts", "datetime", "date"),
}
"""What tables of events call the two nodes and the time."""
ACCEPTED = (
    "a DataFrame with columns source, target, time; an array [events, 3] of i, j, t; a pair (pairs [events, 2], "
    "times [events]); or a PyG TemporalData"
)


class EventTable(Items):
    """The events themselves: what is checked, divided and held out.

    Args:
        ids: names the rows (``row 17``).
        nodes: names of all nodes [N].
        pairs: [events, 2] positions in ``nodes``, in the order of the source (the direction, where it has one).
        times: [events], in the source's own unit.
        columns: whatever else is known of each event; ``time`` and ``pair`` are added for ``split=time:time`` and
            ``split=group:pair``.
        bad: why a row cannot be used, by its id.
    """

    kind = "events"

    def __init__(
        self,
        ids: Sequence[str],
        nodes: np.ndarray,
        pairs: np.ndarray,
        times: np.ndarray,
        columns: pa.Table | Mapping[str, Any] | None = None,
        bad: Mapping[str, str] | None = None,
    ) -> None:
        self.nodes = np.asarray(nodes, dtype=object)
        self.pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        self.times = np.asarray(times, dtype=np.float64)
        low, high = np.sort(self.pairs, axis=1).T
        added = {"time": pa.array(self.times), "pair": pa.array(low * len(self.nodes) + high)}
        given = columns if isinstance(columns, pa.Table) else pa.table(dict(columns or {}))
        super().__init__(ids, pa.table({**{name: given[name] for name in given.column_names}, **added}))
        self.bad = dict(bad or {})

    def check(self, index: int) -> str:
        if reason := self.bad.get(self.ids[index]):
            raise DataError(reason)
        (source, target), time = self.pairs[index], self.times[index]
        if not np.isfinite(time):
            raise DataError(f"the time is {time}: a finite number is needed")
        if source == target:
            raise DataError(f"'{self.nodes[source]}' meets itself: an event needs two nodes")
        return digest(f"{self.nodes[source]}\0{self.nodes[target]}\0{time!r}")

    def _select(self, indices: np.ndarray) -> None:
        self.pairs, self.times = self.pairs[indices], self.times[indices]

    def _extend(self, parts: Sequence[EventTable]) -> None:
        raise NotImplementedError("tables of events are joined by Events.concat, which knows their nodes")

    @classmethod
    def wrap(cls, source: Any) -> Items:
        return Events.wrap(source)

    def preview(self, index: int) -> Preview:
        source, target = self.nodes[self.pairs[index]]
        return Preview(text=f"{source} and {target} at {self.times[index]:g}")


class Events(Items):
    """A graph in continuous time: the items are its nodes, the units (what is divided) its events.

    ``take(nodes)`` says which nodes are asked for and leaves the table of events as it is, so that a node keeps its
    neighbours; ``part(events)`` keeps some of the events and all nodes.

    Args:
        ids: the nodes asked for.
        table: the events and all nodes.
        columns: what is known of each node asked for, a row per node.
        moments: the times that vectors are asked for; None leaves them to the system.
    """

    kind = "events"
    rule = "time:time"
    readers: ClassVar[tuple[Reader, ...]]

    def __init__(
        self,
        ids: Sequence[str],
        table: EventTable,
        columns: Any = None,
        roles: Any = None,
        moments: np.ndarray | None = None,
    ) -> None:
        super().__init__(ids, columns, roles)
        self.table, self.moments = table, moments

    @classmethod
    def of(
        cls, nodes: Sequence[Any], pairs: Any, times: Any, columns: Any = None, roles: Any = None, **of_events: Any
    ) -> Events:
        """All ``nodes`` [N] with events between positions ``pairs`` [events, 2] at ``times`` [events]."""
        names = np.array([str(node) for node in nodes], dtype=object)
        rows = [f"row {n}" for n in range(1, len(times) + 1)]
        return cls(list(names), EventTable(rows, names, pairs, times, **of_events), columns, roles)

    @property
    def nodes(self) -> np.ndarray:
        """Names of all nodes [N], asked for or not."""
        return self.table.nodes

    @property
    def asked(self) -> np.ndarray:
        """Positions in ``nodes`` of the nodes asked for."""
        position = {name: n for n, name in enumerate(self.nodes)}
        return np.array([position[name] for name in self.ids], dtype=np.int64)

    @property
    def units(self) -> EventTable:
        """The events among the nodes asked for."""
        if len(self.ids) == len(self.nodes):
            return self.table
        here = np.zeros(len(self.nodes), dtype=bool)
        here[self.asked] = True
        return self.table.take(here[self.table.pairs].all(axis=1))

    def part(self, units: Any) -> Self:
        part = copy.copy(self)
        part.__dict__.pop("fingerprint", None)
        part.table = self.units.take(units)
        return part

    def at(self, moments: Any) -> Self:
        """The same, with vectors asked for at ``moments`` [M], in the unit of the events' times.

        Raises:
            DataError: a moment is not a finite number.
        """
        part = copy.copy(self)
        part.moments = np.atleast_1d(np.asarray(moments, dtype=np.float64))
        if not np.isfinite(part.moments).all():
            raise DataError("a moment is not a finite number")
        return part

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the nodes asked for and the events among them, whatever the order."""
        lines = sorted(self.ids) + sorted(content.tobytes().hex() for content in self.units.contents)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def check(self, index: int) -> str:
        return digest(str(self.ids[index]))

    def _select(self, indices: np.ndarray) -> None:
        """The table stays: nodes keep their neighbours."""

    @classmethod
    def concat(cls, parts: Sequence[Self], names: Sequence[str]) -> Self:
        """Several tables over one set of nodes: a node of the same name is the same node."""
        nodes = np.array(list(dict.fromkeys(name for part in parts for name in part.nodes)), dtype=object)
        position = {name: n for n, name in enumerate(nodes)}
        pairs = [np.array([position[n] for n in part.nodes], np.int64)[part.units.pairs] for part in parts]
        own = [part.units.columns.drop_columns(["time", "pair"]) for part in parts]
        columns = pa.concat_tables(own, promote_options="permissive") if any(c.num_columns for c in own) else None
        rows = [f"{name}: {row}" for part, name in zip(parts, names, strict=True) for row in part.units.ids]
        times = np.concatenate([part.units.times for part in parts])
        table = EventTable(rows, nodes, np.concatenate(pairs), times, columns)
        table.digests = np.concatenate([part.units.contents for part in parts])
        about = pd.concat([part.columns.to_pandas().set_axis(part.ids) for part in parts])
        about = about[~about.index.duplicated()].reindex(nodes)
        roles = {role: columns for part in reversed(parts) for role, columns in part.roles.items()}
        return cls(list(nodes), table, to_arrow(about) if len(about.columns) else None, roles)

    def _extend(self, parts: Sequence[Events]) -> None:
        raise NotImplementedError("concat joins tables of events")

    @classmethod
    def wrap(cls, source: Any) -> Events:
        if isinstance(source, pd.DataFrame):
            return events_of(source, "the DataFrame")
        if all(hasattr(source, name) for name in ("src", "dst", "t")):
            source = np.stack([np.asarray(getattr(source, name), np.float64) for name in ("src", "dst", "t")], axis=1)
        if isinstance(source, (tuple, list)) and len(source) == 2:
            pairs, times = (np.asarray(part) for part in source)
            if pairs.ndim == 2 and pairs.shape[1] == 2 and times.shape == (len(pairs),):
                return events_of(pd.DataFrame({"i": pairs[:, 0], "j": pairs[:, 1], "t": times}), "the arrays")
        if isinstance(source, np.ndarray) and source.ndim == 2 and source.shape[1] == 3:
            ids = source[:, :2]
            ids = ids.astype(np.int64) if source.dtype.kind in "fiu" and (ids == np.floor(ids)).all() else ids
            return events_of(pd.DataFrame({"i": ids[:, 0], "j": ids[:, 1], "t": source[:, 2]}), "the array")
        raise DataError(f"{type(source).__name__} holds no events: give {ACCEPTED}")

    def preview(self, index: int) -> Preview:
        node = self.asked[index]
        mine = (self.table.pairs == node).any(axis=1)
        others = len(np.unique(self.table.pairs[mine])) - 1
        return Preview(text=f"{mine.sum()} events with {max(others, 0)} other nodes")

    def frame(self) -> pd.DataFrame:
        """The events as a table: source, target, time, and what else is known of each."""
        table = self.units
        source, target = (self.nodes[table.pairs[:, side]] for side in (0, 1))
        carried = table.columns.drop_columns(["time", "pair"]).to_pandas()
        return pd.concat([pd.DataFrame({"source": source, "target": target, "time": table.times}), carried], axis=1)

    def write(self, path: str | Path) -> Path:
        """Writes the events to a ``.csv`` or ``.parquet`` that ``repertory.data.open`` reads again.

        Raises:
            DataError: another suffix.
        """
        path = Path(path)
        if path.suffix not in (".csv", ".parquet"):
            raise DataError(f"{path}: events are written as .csv or .parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            self.frame().to_csv(path, index=False)
        else:
            pq.write_table(to_arrow(self.frame()), path)
        return path


def merged(pairs: np.ndarray, times: np.ndarray, gap: float) -> np.ndarray:
    """Which records start a contact: those without a record of the same pair at most ``gap`` before.

    Args:
        pairs: [records, 2], either order. times: [records]. gap: in the unit of ``times``.

    Returns:
        Positions of the records that stay, in the order of time.
    """
    low, high = np.sort(pairs, axis=1).T
    order = np.lexsort((times, high, low))
    pair, time = np.stack([low, high], axis=1)[order], times[order]
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (pair[1:] != pair[:-1]).any(axis=1) | (np.diff(time) > gap)
    kept = order[starts]
    return kept[np.argsort(times[kept], kind="stable")]


def events_of(
    frame: pd.DataFrame,
    name: str,
    i: str = "",
    j: str = "",
    t: str = "",
    about: pd.DataFrame | None = None,
    gap: float = 0.0,
) -> Events:
    """Events from a table with a column for each of the two nodes and the time (numbers, or dates of dtype datetime).

    Args:
        frame: one row per event.
        name: of the table, for errors.
        i, j, t: names of the columns; empty ones are found by their usual names.
        about: what is known of the nodes: ``id`` and further columns.
        gap: records of a pair that follow each other within ``gap`` are one contact, which begins with the first.

    Raises:
        DataError: a column is missing, or there is no row.
    """
    found = {role: _column(frame, role, given, name) for role, given in (("i", i), ("j", j), ("t", t))}
    if not len(frame):
        raise DataError(f"{name}: empty: there is no event in it")
    bad: dict[str, str] = {}
    rows = np.array([f"row {n}" for n in range(1, len(frame) + 1)], dtype=object)
    times, ends = _times(frame[found["t"]], rows, bad), []
    for role in "ij":
        column = frame[found[role]]
        for row in rows[column.isna().to_numpy()]:
            bad.setdefault(row, f"column '{found[role]}' is empty: both nodes must be named")
        ends.append(column.fillna("").astype(str).str.strip().to_numpy(dtype=object))
    known = set(ends[0]) | set(ends[1]) | set([] if about is None else about["id"].astype(str))
    nodes = np.array(sorted(known - {""}, key=_natural) + [""] * ("" in known), dtype=object)
    position = {node: n for n, node in enumerate(nodes)}
    pairs = np.array([[position[node] for node in end] for end in ends], dtype=np.int64).T
    if gap > 0 and not bad:
        kept = merged(pairs, times, gap)
        frame, rows, pairs, times = frame.iloc[kept], rows[kept], pairs[kept], times[kept]
    others = frame.drop(columns=list(found.values()))
    of_events = to_arrow(others.reset_index(drop=True)) if len(others.columns) else None
    of_nodes = None
    if about is not None and len(about.columns) > 1:
        indexed = about.set_index(about["id"].astype(str)).drop(columns="id")
        of_nodes = to_arrow(indexed[~indexed.index.duplicated()].reindex(nodes))
    if "" in known:  # of rows without a node: they are bad, their node is not there
        nodes, of_nodes = nodes[:-1], None if of_nodes is None else of_nodes.slice(0, len(nodes) - 1)
        pairs = np.minimum(pairs, len(nodes) - 1)
    return Events(list(nodes), EventTable(rows.tolist(), nodes, pairs, times, of_events, bad), of_nodes)


def _column(frame: pd.DataFrame, role: str, given: str, name: str) -> str:
    lower = {str(column).lower(): str(column) for column in frame.columns}
    for candidate in (given,) if given else COLUMNS[role]:
        if candidate in frame.columns or candidate.lower() in lower:
            return candidate if candidate in frame.columns else lower[candidate.lower()]
    what = {"i": "the first node", "j": "the second node", "t": "the time"}[role]
    raise DataError(
        f"{name}: no column '{given or COLUMNS[role][0]}' for {what} (there are {', '.join(map(str, frame.columns))}): "
        f"name it with {role}=COLUMN"
    )


def _times(column: pd.Series, rows: np.ndarray, bad: dict[str, str]) -> np.ndarray:
    """Numbers as they are, datetimes as seconds since 1970; what is neither is noted by row."""
    if pd.api.types.is_datetime64_any_dtype(column):
        seconds = (column - pd.Timestamp(0, tz=column.dt.tz)) / pd.Timedelta(seconds=1)
        return seconds.to_numpy(dtype=np.float64)
    times = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    for n in np.flatnonzero(~np.isfinite(times)):
        missing = pd.isna(column.iloc[n])
        said = "the time is missing" if missing else f"time '{column.iloc[n]}' is not a finite number"
        bad[rows[n]] = f"{said}: give numbers (seconds, days, ...), or a Parquet column of timestamps"
    return times


def _natural(name: str) -> tuple[int, int, str]:
    """Numbers by their value, before texts."""
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)


def read_events(
    path: Path, i: str = "", j: str = "", t: str = "", order: str = "", nodes: str = "", gap: float = 0.0
) -> Events:
    """A table of events with a header (CSV, TSV, Parquet), or an edge list without (SocioPatterns, SNAP, KONECT).

    Args:
        path: of the file; lines that begin with ``#`` or ``%`` are comments.
        i, j, t: names of the columns of the two nodes and the time.
        order: of the columns of a file without header: ``tij``, ``ijt``, ``ijwt`` (any other letter is not read).
        nodes: a table of the nodes beside it, with a column ``id`` and whatever is known of them.
        gap: see ``events_of``.

    Raises:
        DataError: it cannot be read, or it is not clear which column is what.
    """
    about = None
    if nodes:
        about = read_table(path.parent / nodes)
        if "id" not in about.columns:
            raise DataError(f"{nodes}: no column 'id' that names the nodes")
    if ".parquet" in path.suffixes:
        return events_of(read_table(path), str(path), i, j, t, about, gap)
    line = next(_lines(path), "")
    separator = "\t" if "\t" in line else "," if "," in line else r"\s+"
    headless = any(_is_number(cell) for cell in re.split(separator, line.strip()))
    try:
        frame = pd.read_csv(
            path, sep=separator, dtype=str, header=None if headless else 0, comment=None if not headless else "#",
            skiprows=_comments(path),
        )  # fmt: skip
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a table: {first_line(error)}") from None
    if headless:
        if i or j or t:
            raise DataError(f"{path}: the file has no header: say the order of its columns, as in order=tij")
        frame, i, j, t = _named(frame, order, path)
    return events_of(frame, str(path), i, j, t, about, gap)


def _lines(path: Path) -> Iterator[str]:
    """Lines that are no comments."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            yield from (line for line in file if line.strip() and line[0] not in "#%")
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as text: {first_line(error)}") from None


def _comments(path: Path) -> int:
    """How many lines of comments come first."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for count, line in enumerate(file):
            if line.strip() and line[0] not in "#%":
                return count
    return 0


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _named(frame: pd.DataFrame, order: str, path: Path) -> tuple[pd.DataFrame, str, str, str]:
    """Names the columns of a file without header; the time is the column that never falls."""
    if order:
        if len(order) > len(frame.columns) or not set("ijt") <= set(order) or len(set(order)) < len(order):
            raise DataError(
                f"{path}: order={order}: name each of its {len(frame.columns)} columns once, i, j, t of them"
            )
        names = list(order)
    else:
        numbers = frame.head(10_000).apply(pd.to_numeric, errors="coerce")
        last = int(np.flatnonzero(numbers.notna().all())[-1]) if numbers.notna().all().any() else 0
        rising = [n for n in {0, last} if len(frame.columns) > 2 and numbers[n].is_monotonic_increasing]
        if len(rising) != 1 or last < 2:
            raise DataError(
                f"{path}: without header it is not clear which column is the time: add order=tij or order=ijt"
            )
        names = ["t", "i", "j"] if rising == [0] else ["i", "j", *"wxyz"[: last - 2], "t"]
    names += [f"column{n}" for n in range(len(names) + 1, len(frame.columns) + 1)]
    return frame.set_axis(names, axis=1), "i", "j", "t"


_SUFFIXES = {".csv", ".tsv", ".parquet", ".txt", ".edges", ".dat"}
Events.readers = (
    Reader("events", "a table source, target, time (CSV, TSV, Parquet), or an edge list t i j, i j t (SNAP, KONECT)",
           lambda p: p.is_file() and bool(set(p.suffixes) & _SUFFIXES or p.name.startswith("out.")), read_events),
)  # fmt: skip
