"""Items: one split of one kind of data, the field's own objects behind five names."""

from __future__ import annotations

import abc
import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from repertory.errors import DataError, first_line, nearest

ROLES = ("label", "group", "time", "sensitive")
NARROW = 16
"""Characters up to which texts are kept at a fixed width: beyond, Python's own take less memory."""
BLOCK = 1 << 18
"""Texts that are looked at together."""


@dataclass(frozen=True)
class Reader:
    """Reads one layout of files: ``matches(path)`` says whether it is this one, ``read(path, **options)`` reads it.

    The keyword parameters of ``read`` are the options that the layout takes in a source
    (``kind:path?option=value``).
    """

    name: str
    about: str
    matches: Callable[[Path], bool]
    read: Callable[..., Items]


@dataclass(frozen=True)
class Preview:
    """What an item looks like on a page, as far as it can be shown.

    Attributes:
        image: a PIL image, or an array [H, W] or [H, W, C], uint8 or floats in 0..1.
        audio: samples [T] in -1..1 and their rate in Hz.
        text: any text.
    """

    image: Any = None
    audio: tuple[np.ndarray, int] | None = None
    text: str | None = None


class Items(abc.ABC):
    """Items of one kind: ``ids``, ``columns``, ``len``, ``take(indices)`` and ``fingerprint``.

    Args:
        ids: one unique name per item.
        columns: labels, groups, times and whatever else the source carries, a row per item.
        roles: which columns play which role (``{"label": ("species",)}``).
    """

    kind: ClassVar[str]
    readers: ClassVar[tuple[Reader, ...]] = ()
    rule: ClassVar[str] = "random"
    """How they are divided where the source does not say."""

    def __init__(
        self,
        ids: Iterable[str],
        columns: pa.Table | Mapping[str, Any] | None = None,
        roles: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.ids = texts(ids)
        self.columns = columns if isinstance(columns, pa.Table) else _table(columns or {})
        if self.columns.num_columns and len(self.columns) != len(self.ids):
            raise DataError(f"{len(self.ids)} items but {len(self.columns)} rows of columns")
        in_order = np.sort(self.ids)
        if (in_order[1:] == in_order[:-1]).any():
            names, counts = np.unique(self.ids, return_counts=True)
            raise DataError(f"the id '{names[counts.argmax()]}' occurs {counts.max()} times; ids must be unique")
        self.roles: dict[str, tuple[str, ...]] = dict(roles or {})
        self.digests: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Any) -> Self:
        """The items at ``indices`` (integers or a boolean mask), in that order."""
        indices = np.asarray(indices)
        if indices.dtype == bool:
            if len(indices) != len(self):
                raise IndexError(f"a mask of {len(indices)} for {len(self)} items")
            indices = np.flatnonzero(indices)
        indices = indices.astype(np.int64)
        part = copy.copy(self)
        part.__dict__.pop("fingerprint", None)
        part.ids = self.ids[indices]
        part.columns = self.columns.take(pa.array(indices)) if self.columns.num_columns else self.columns
        part.digests = None if self.digests is None else self.digests[indices]
        part._select(indices)
        return part

    @property
    def units(self) -> Items:
        """What is checked, divided, never both trained and evaluated on: items; of a graph over time, its events."""
        return self

    def part(self, units: Any) -> Self:
        """The items with only these ``units`` (integers or a boolean mask)."""
        return self.take(units)

    @property
    def contents(self) -> np.ndarray:
        """Digests ``[N, 16]`` uint8 of the items' content; reads every item once."""
        if self.digests is None:
            self.digests = packed(map(self.check, range(len(self))))
        return self.digests

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids and contents: equal for equal data, wherever it lies."""
        rows = zip(self.ids, self.contents, strict=True)
        # a sum does not depend on the order of rows, and holds none of them
        total = sum(int.from_bytes(hashlib.sha256(f"{i}\t{d.tobytes().hex()}".encode()).digest()) for i, d in rows)
        return f"{total % 2**256:064x}"

    @abc.abstractmethod
    def _select(self, indices: np.ndarray) -> None:
        """Keeps the field's own objects at ``indices`` (called on a shallow copy)."""

    @classmethod
    def concat(cls, parts: Sequence[Self], names: Sequence[str]) -> Self:
        """Several sets of items as one; an id that occurs twice gets its part's name in front."""
        ids = np.concatenate([part.ids for part in parts])
        if len(set(ids)) < len(ids):
            ids = texts(f"{name}/{i}" for name, part in zip(names, parts, strict=True) for i in part.ids)
        joined = copy.copy(parts[0])
        joined.__dict__.pop("fingerprint", None)
        joined.ids = ids
        tables = [part.columns if part.columns.num_columns else _no_columns(len(part)) for part in parts]
        try:
            joined.columns = pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(f"{' and '.join(names)} do not fit together: {first_line(error)}") from None
        joined.roles = {role: columns for part in reversed(parts) for role, columns in part.roles.items()}
        known = [part.digests for part in parts if part.digests is not None]
        joined.digests = np.concatenate(known) if len(known) == len(parts) else None
        joined._extend(parts)
        return joined

    @abc.abstractmethod
    def _extend(self, parts: Sequence[Self]) -> None:
        """Takes the field's own objects of all ``parts`` (called on a shallow copy of the first)."""

    @abc.abstractmethod
    def check(self, index: int) -> str:
        """Reads item ``index`` whole and returns a digest of its content.

        Raises:
            DataError: it cannot be used; the message says why (the caller adds the id).
        """

    @classmethod
    @abc.abstractmethod
    def wrap(cls, source: Any) -> Items:
        """Items from an in-memory object of the field.

        Raises:
            DataError: the object is not of this kind; the message says what is accepted.
        """

    @abc.abstractmethod
    def preview(self, index: int) -> Preview:
        """What item ``index`` looks like on a page."""

    def column(self, name: str) -> np.ndarray:
        """One column as a NumPy array.

        Raises:
            DataError: there is no such column, with the nearest name.
        """
        if name not in self.columns.column_names:
            raise DataError(f"no column '{name}'{nearest(name, self.columns.column_names)}")
        return self.columns[name].to_numpy()

    def labels(self, role: str = "label") -> np.ndarray | None:
        """The columns of a role: [N] for one, [N, columns] float for several (multi-label), None without."""
        names = self.roles.get(role)
        if not names:
            return None
        if len(names) == 1:
            return self.column(names[0])
        try:
            return np.stack([self.column(name).astype(np.float64) for name in names], axis=1)
        except (ValueError, TypeError):
            raise DataError(f"{', '.join(names)}: several {role} columns must hold numbers") from None


def texts(values: Iterable[Any]) -> np.ndarray:
    """``[N]`` texts: of a fixed width where all are short (a third of the memory), else Python's."""
    given, blocks = iter(values), []
    while block := list(islice(given, BLOCK)):
        made = [str(value) for value in block]
        short = max(map(len, made)) <= NARROW and not any(text.endswith("\0") for text in made)
        blocks.append(np.array(made, dtype=None if short else object))
    return np.concatenate(blocks) if blocks else np.empty(0, dtype=object)


def packed(digests: Iterable[str]) -> np.ndarray:
    """Digests as ``[N, 16]`` uint8."""
    return np.frombuffer(b"".join(map(bytes.fromhex, digests)), np.uint8).reshape(-1, 16)


def _table(columns: Mapping[str, Any]) -> pa.Table:
    """Columns as an Arrow table; what Python and NumPy write for a missing value becomes null."""
    arrays = {}
    for name, values in columns.items():
        try:
            known = isinstance(values, (pa.Array, pa.ChunkedArray))
            arrays[str(name)] = values if known else pa.array(values, from_pandas=True)
        except pa.ArrowException as error:
            raise DataError(f"column '{name}': {first_line(error)}") from None
    return pa.table(arrays)


def _no_columns(rows: int) -> pa.Table:
    return pa.table({"": pa.nulls(rows)}).select([])


def digest(*parts: bytes | str) -> str:
    """A short content hash."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def finite(array: np.ndarray, what: str) -> np.ndarray:
    """``array`` itself; a DataError where it holds NaN or infinity."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))[0]
        raise DataError(f"{what} holds {array[tuple(bad)]} at {tuple(int(b) for b in bad)}")
    return array
