"""Interactions: which user chose which item, with texts or vectors that describe users and items."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from repertory.data.items import Items, Preview, Reader, digest
from repertory.data.tables import to_arrow
from repertory.errors import DataError, first_line

SIDES = ("user", "item")
COLUMNS = {
    "user": ("user", "user_id", "userid", "uid", "customer", "customer_id", "reviewerid"),
    "item": ("item", "item_id", "itemid", "iid", "movieid", "movie_id", "product", "product_id", "business_id", "asin"),
    "rating": ("rating", "stars", "score", "overall"),
    "time": ("time", "timestamp", "ts", "date", "datetime"),
    "text": ("text", "profile", "description", "summary"),
    "title": ("title", "name", "movie_title", "item_title"),
    "vector": ("vector", "embedding"),
}
"""What tables call users, items, and what is known of them (lower case)."""
ACCEPTED = (
    "a DataFrame with columns user and item; an array [interactions, 2]; a SciPy sparse matrix [users, items]; or a "
    "dict of tables 'interactions', 'users', 'items'"
)


class InteractionTable(Items):
    """The interactions themselves: what is checked, divided and held out.

    Args:
        names: names of all users and of all items.
        pairs: [interactions, 2], number of the user and of the item, each pair once.
        columns: whatever else is known of each (rating, time, ...); ``user`` and ``item`` are added for
            ``split=group:user``.
        bad: why a row cannot be used, by its position.
        ids: of the rows; None names them after user and item.
    """

    kind = "interactions"

    def __init__(
        self,
        names: tuple[np.ndarray, np.ndarray],
        pairs: np.ndarray,
        columns: pa.Table | Mapping[str, Any] | None = None,
        bad: Mapping[int, str] | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        self.names = tuple(np.asarray(of, dtype=object) for of in names)
        self.pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        ends = []
        for of, column in zip(self.names, self.pairs.T, strict=True):
            there = (column >= 0) & (column < len(of))
            end = np.full(len(column), None, dtype=object)
            end[there] = of[column[there]]
            ends.append(end)
        if ids is None:
            ids = [f"user {user}, item {item}" for user, item in zip(*ends, strict=True)]
            for row, reason in (bad or {}).items():
                ids[row] = reason.partition(":")[0]
        given = columns if isinstance(columns, pa.Table) else pa.table(dict(columns or {}))
        added = {side: pa.array(end, pa.string()) for side, end in zip(SIDES, ends, strict=True)}
        super().__init__(ids, pa.table({**{name: given[name] for name in given.column_names}, **added}))
        self.bad = {str(self.ids[row]): reason.partition(": ")[2] for row, reason in (bad or {}).items()}
        if not len(self.pairs):
            self.digests = np.empty((0, 16), np.uint8)

    def check(self, index: int) -> str:
        if reason := self.bad.get(str(self.ids[index])):
            raise DataError(reason)
        for side, number, names in zip(SIDES, self.pairs[index], self.names, strict=True):
            if not 0 <= number < len(names):
                raise DataError(f"{side} number {number} is out of range: there are {len(names)} {side}s")
        user, item = self.pairs[index]
        return digest(f"{self.names[0][user]}\0{self.names[1][item]}")

    def _select(self, indices: np.ndarray) -> None:
        self.pairs = self.pairs[indices]
        if not len(indices):
            self.digests = np.empty((0, 16), np.uint8)

    def _extend(self, parts: Sequence[InteractionTable]) -> None:
        raise NotImplementedError("tables are joined by Interactions.concat, which knows their users and items")

    @classmethod
    def wrap(cls, source: Any) -> Items:
        return Interactions.wrap(source)

    def preview(self, index: int) -> Preview:
        return Preview(text=str(self.ids[index]))


class Interactions(Items):
    """Users and items: the items of the data are both (``user:12``, ``item:7``), the units their interactions.

    ``take(nodes)`` says which users and items are asked for and leaves the table of interactions as it is;
    ``part(interactions)`` keeps some of the interactions and everybody. The columns ``side`` (user, item), ``title``
    and ``text`` say what is known of each, beside whatever else the source carries.

    Args:
        table: the interactions, all users and all items.
        columns: what is known of each user (first) and item.
        vectors: [users + items, width], vectors of their texts; a row of NaN where there is none.
    """

    kind = "interactions"
    readers: ClassVar[tuple[Reader, ...]]

    def __init__(
        self, table: InteractionTable, columns: Any = None, roles: Any = None, vectors: np.ndarray | None = None
    ) -> None:
        users, items = table.names
        known = columns if isinstance(columns, pa.Table) else pa.table(dict(columns or {}))
        sides = pa.array(np.repeat(SIDES, (len(users), len(items))), pa.string())
        every = pa.table({"side": sides, **{n: known[n] for n in known.column_names if n != "side"}})
        super().__init__([*(f"user:{name}" for name in users), *(f"item:{name}" for name in items)], every, roles)
        self.table = table
        self.vectors = None if vectors is None else np.asarray(vectors, dtype=np.float32)
        if self.vectors is not None and (self.vectors.ndim != 2 or len(self.vectors) != len(self.ids)):
            raise DataError(
                f"{len(self.vectors)} text vectors for {len(users)} users and {len(items)} items: one each is needed"
            )

    @classmethod
    def of(cls, users: Any, items: Any, pairs: Any, columns: Any = None, vectors: Any = None, **of_pairs: Any) -> Self:
        """Named ``users`` [U] and ``items`` [I] (or their numbers) with ``pairs`` [interactions, 2] of positions."""
        names = tuple(
            np.array([str(name) for name in (range(of) if isinstance(of, int) else of)], dtype=object)
            for of in (users, items)
        )
        return cls(InteractionTable(names, pairs, of_pairs), columns, vectors=vectors)  # type: ignore[arg-type]

    @property
    def users(self) -> np.ndarray:
        """Names of all users, asked for or not."""
        return self.table.names[0]

    @property
    def items(self) -> np.ndarray:
        """Names of all items, asked for or not."""
        return self.table.names[1]

    @cached_property
    def _position(self) -> dict[str, int]:
        names = (*(f"user:{name}" for name in self.users), *(f"item:{name}" for name in self.items))
        return {name: n for n, name in enumerate(names)}

    @property
    def asked(self) -> np.ndarray:
        """Positions of those asked for, among all users and then all items."""
        position = self._position
        return np.array([position[name] for name in self.ids], dtype=np.int64)

    @property
    def units(self) -> InteractionTable:
        """The interactions among those asked for."""
        if len(self.ids) == len(self.users) + len(self.items):
            return self.table
        here = np.zeros(len(self.users) + len(self.items), dtype=bool)
        here[self.asked] = True
        return self.table.take(here[self.table.pairs + [0, len(self.users)]].all(axis=1))

    def part(self, units: Any) -> Self:
        part = copy.copy(self)
        part.__dict__.pop("fingerprint", None)
        part.table = self.units.take(units)
        return part

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over those asked for with their texts and the interactions among them, whatever the order."""
        lines = sorted(self.check(n) for n in range(len(self)))
        lines += sorted(content.tobytes().hex() for content in self.units.contents)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def check(self, index: int) -> str:
        text = self.columns["text"][index].as_py() if "text" in self.columns.column_names else None
        vector = b"" if self.vectors is None else self.vectors[index].tobytes()
        return digest(str(self.ids[index]), str(text), vector)

    def _select(self, indices: np.ndarray) -> None:
        """The table stays: whoever is asked for keeps its interactions."""
        self.vectors = None if self.vectors is None else self.vectors[indices]

    @classmethod
    def concat(cls, parts: Sequence[Self], names: Sequence[str]) -> Self:
        """Several tables over one set of users and items: who has the same name is the same."""
        every = tuple(
            np.array(list(dict.fromkeys(name for part in parts for name in part.table.names[side])), dtype=object)
            for side in (0, 1)
        )
        place = [{name: n for n, name in enumerate(of)} for of in every]
        pairs = [
            np.stack([
                np.array([place[side][n] for n in part.table.names[side]], np.int64)[part.units.pairs[:, side]]
                for side in (0, 1)
            ], axis=1)
            for part in parts
        ]  # fmt: skip
        own = [part.units.columns.drop_columns(list(SIDES)) for part in parts]
        ids = [f"{name}: {row}" for part, name in zip(parts, names, strict=True) for row in part.units.ids]
        table = InteractionTable(
            every,  # type: ignore[arg-type]
            np.concatenate(pairs),
            pa.concat_tables(own, promote_options="permissive") if any(c.num_columns for c in own) else None,
            ids=ids,
        )
        table.digests = np.concatenate([part.units.contents for part in parts])
        order = [*(f"user:{name}" for name in every[0]), *(f"item:{name}" for name in every[1])]
        about = pd.concat([part.columns.to_pandas().set_axis(part.ids) for part in parts])
        first = ~about.index.duplicated()
        about = about[first].reindex(order)
        vectors: np.ndarray | None = None
        given = [part.vectors for part in parts if part.vectors is not None]
        if given:
            widths = {v.shape[1] for v in given}
            if len(given) < len(parts) or len(widths) > 1:
                raise DataError(f"{' and '.join(names)}: text vectors of one width are needed in every part")
            rows = pd.DataFrame(np.concatenate(given)[first], index=np.concatenate([p.ids for p in parts])[first])
            vectors = rows.reindex(order).to_numpy()
        roles = {role: columns for part in reversed(parts) for role, columns in part.roles.items()}
        return cls(table, to_arrow(about.drop(columns="side")), roles, vectors)

    def _extend(self, parts: Sequence[Interactions]) -> None:
        raise NotImplementedError("concat joins tables of interactions")

    @classmethod
    def wrap(cls, source: Any) -> Interactions:
        import scipy.sparse

        if isinstance(source, pd.DataFrame):
            return interactions_of(source, "the DataFrame")
        if (
            isinstance(source, Mapping)
            and "interactions" in source
            and set(source) <= {"interactions", "users", "items"}
        ):
            return interactions_of(
                source["interactions"], "the table", users=source.get("users"), items=source.get("items")
            )
        if scipy.sparse.issparse(source):
            rows, columns = source.nonzero()
            users, items = source.shape
            return cls.of(users, items, np.stack([rows, columns], axis=1))
        if isinstance(source, np.ndarray) and source.ndim == 2 and source.shape[1] == 2:
            return interactions_of(pd.DataFrame({"user": source[:, 0], "item": source[:, 1]}), "the array")
        raise DataError(f"{type(source).__name__} holds no interactions: give {ACCEPTED}")

    def preview(self, index: int) -> Preview:
        about = self.columns.slice(index, 1).to_pylist()[0]
        node = self._position[str(self.ids[index])]
        side = int(node >= len(self.users))
        number = node - side * len(self.users)
        count = int((self.table.pairs[:, side] == number).sum())
        said = about.get("title") or about.get("text")
        return Preview(text=(f"{said}: " if said else "") + f"{count} interactions")

    # -- texts -------------------------------------------------------------------------------------------------

    def text(self, name: str) -> np.ndarray:
        """A column of texts [N]; an empty one where nothing is known."""
        if name not in self.columns.column_names:
            return np.full(len(self), "", dtype=object)
        values = self.columns[name].to_pylist()
        return np.array(["" if value is None else str(value).strip() for value in values], dtype=object)

    def with_texts(self, texts: Sequence[str], **columns: Sequence[Any]) -> Self:
        """The same with new texts [N] (and further columns), without the vectors of the old ones."""
        made = copy.copy(self)
        made.__dict__.pop("fingerprint", None)
        table = self.columns
        for name, values in {"text": texts, **columns}.items():
            array = pa.array(list(values), from_pandas=True)
            known = table.column_names
            table = (
                table.set_column(known.index(name), name, array) if name in known else table.append_column(name, array)
            )
        made.columns, made.vectors = table, None
        return made

    def with_vectors(self, vectors: np.ndarray) -> Self:
        """The same with vectors [N, width] of their texts.

        Raises:
            DataError: they are not as many.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(self):
            sides = self.columns["side"].to_numpy()
            users, items = (int((sides == side).sum()) for side in SIDES)
            raise DataError(f"{len(vectors)} text vectors for {users} users and {items} items: one each is needed")
        made = copy.copy(self)
        made.__dict__.pop("fingerprint", None)
        made.vectors = vectors
        return made

    # -- files -------------------------------------------------------------------------------------------------

    def write(self, folder: str | Path) -> Path:
        """Writes ``interactions.parquet``, ``users.parquet`` and ``items.parquet``, which ``data.open`` reads again."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        table = self.units
        own = table.columns.drop_columns(list(SIDES))
        written = pa.table({
            **{side: table.columns[side] for side in SIDES}, **{name: own[name] for name in own.column_names}
        })  # fmt: skip
        pq.write_table(written, folder / "interactions.parquet")
        sides = self.columns["side"].to_numpy()
        for side in SIDES:
            rows = np.flatnonzero(sides == side)
            known = self.columns.take(pa.array(rows)).drop_columns(["side"])
            made = {"id": pa.array([str(i).partition(":")[2] for i in self.ids[rows]])}
            made |= {name: known[name] for name in known.column_names if known[name].null_count < len(rows)}
            if self.vectors is not None:
                flat = pa.array(self.vectors[rows].reshape(-1))
                made["vector"] = pa.FixedSizeListArray.from_arrays(flat, self.vectors.shape[1])
            pq.write_table(pa.table(made), folder / f"{side}s.parquet")
        return folder


# -- tables ------------------------------------------------------------------------------------------------------


def interactions_of(
    frame: pd.DataFrame,
    name: str,
    *,
    user: str = "",
    item: str = "",
    rating: str = "",
    time: str = "",
    at_least: float = 0.0,
    users: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
    complete: bool = False,
) -> Interactions:
    """Interactions from a table with a row each, and what is known of users and items from two more.

    A pair that occurs more than once is merged into its last row, with a warning that says how many.

    Args:
        frame: columns for the user and the item, perhaps rating, time and others.
        name: of the table, for errors.
        user, item, rating, time: names of the columns; empty ones are found by their usual names.
        at_least: rows with a lower rating are left out; 0 keeps all.
        users, items: their first column of ids (``id``, or the interactions' name for them), then title, text, vector
            and whatever else is known. Who is in them and has no interaction is there too.
        vectors: text vectors of ``user`` and ``item``, in the order of ``users`` and ``items``, or where these are not
            given, of ids 0, 1, ...
        complete: an interaction with somebody who is not in ``users`` or ``items`` is an error.

    Raises:
        DataError: a column is missing, there is no row, or vectors do not match.
    """
    found = {side: _column(frame, side, given, name) for side, given in (("user", user), ("item", item))}
    rated = _optional(frame, "rating", rating, name)
    timed = _optional(frame, "time", time, name)
    if not len(frame) and users is None and items is None:
        raise DataError(f"{name}: empty: there is no interaction in it")
    if at_least:
        if rated is None:
            raise DataError(
                f"{name}: at_least={at_least:g}, but there is no column of ratings: name it with rating=COLUMN"
            )
        numbers = pd.to_numeric(frame[rated], errors="coerce")
        if numbers.isna().any():
            raise DataError(f"{name}: row {int(numbers.isna().to_numpy().argmax()) + 1}: the rating is not a number")
        frame = frame[(numbers >= at_least).to_numpy()]
        if not len(frame):
            raise DataError(f"{name}: no rating is {at_least:g} or more")
    ends = [_names(frame[found[side]]) for side in SIDES]
    missing = (ends[0] == "") | (ends[1] == "")
    pair = pd.MultiIndex.from_arrays(ends)
    kept = ~pair.duplicated(keep="last") | missing
    if not kept.all():
        warnings.warn(f"{name}: {int((~kept).sum())} rows repeat a pair of user and item: merged", stacklevel=2)
    rows = np.flatnonzero(kept)
    frame, ends, missing = frame.iloc[rows], [end[kept] for end in ends], missing[kept]
    about = {"user": users, "item": items}
    tables = {side: _about(about[side], side, found[side], name) for side in SIDES}
    every, numbers_of = [], []
    for side, end in zip(SIDES, ends, strict=True):
        known, table = pd.unique(end[end != ""]), tables[side]
        listed = table.index.to_numpy(dtype=object) if table is not None else np.empty(0, dtype=object)
        strangers = known[~pd.Index(known).isin(listed)]
        if complete and len(strangers) and table is not None:
            raise DataError(
                f"{name}: {side} '{strangers[0]}' is out of range: it is not among the {len(listed)} {side}s"
            )
        rest = np.array(sorted(strangers, key=_natural), dtype=object)
        every.append(np.concatenate([listed, rest]) if len(listed) else rest)
        numbers_of.append(pd.Index(every[-1]).get_indexer(end))
    bad = {
        int(
            n
        ): f"row {rows[n] + 1}: column '{found[SIDES[int(ends[0][n] != '')]]}' is empty: user and item must be named"
        for n in np.flatnonzero(missing)
    }
    carried = {}
    if rated is not None:
        carried["rating"] = pa.array(pd.to_numeric(frame[rated], errors="coerce"), from_pandas=True)
    if timed is not None:
        carried["time"] = to_arrow(frame[[timed]].reset_index(drop=True))[timed]
    others = frame.drop(columns=[c for c in (*found.values(), rated, timed) if c is not None]).reset_index(drop=True)
    more = to_arrow(others)
    carried |= {column: more[column] for column in more.column_names if column not in (*SIDES, *carried)}
    made = InteractionTable((every[0], every[1]), np.stack(numbers_of, axis=1), carried, bad)
    rows_of = [pd.DataFrame() if table is None else table for table in tables.values()]
    columns, stored = _joined([frame.reindex(of) for frame, of in zip(rows_of, every, strict=True)])
    for side in SIDES if vectors else ():
        if side not in vectors:  # type: ignore[operator]
            continue
        of, given = every[SIDES.index(side)], np.asarray(vectors[side])  # type: ignore[index]
        if given.ndim != 2 or len(given) != len(of):
            raise DataError(f"{name}: {len(given)} text vectors of {side}s for {len(of)} {side}s: one each is needed")
        stored = np.full((sum(map(len, every)), given.shape[1]), np.nan, np.float32) if stored is None else stored
        if stored.shape[1] != given.shape[1]:
            raise DataError(
                f"{name}: text vectors of {stored.shape[1]} and {given.shape[1]} numbers: one width is needed"
            )
        start = 0 if side == "user" else len(every[0])
        stored[start : start + len(of)] = given
    return Interactions(made, columns, vectors=stored)


def _names(column: pd.Series) -> np.ndarray:
    """Ids as texts; 3.0 (a number beside a missing one) is 3."""
    if column.dtype.kind == "f":
        whole = column.dropna()
        if (whole == np.floor(whole)).all():
            column = column.astype("Int64")
    made: np.ndarray = column.astype(object).where(column.notna(), "").astype(str).str.strip().to_numpy(dtype=object)
    return made


def _natural(name: str) -> tuple[int, int, str]:
    """Numbers by their value, before texts."""
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)


def _match(frame: pd.DataFrame, candidates: Iterable[str]) -> str | None:
    lower = {str(column).lower(): str(column) for column in frame.columns}
    return next((lower[name] for name in candidates if name in lower), None)


def _column(frame: pd.DataFrame, side: str, given: str, name: str) -> str:
    found = _optional(frame, side, given, name)
    if found is None:
        raise DataError(
            f"{name}: no column '{side}' (there are {', '.join(map(str, frame.columns))}): name it with {side}=COLUMN"
        )
    return found


def _optional(frame: pd.DataFrame, role: str, given: str, name: str) -> str | None:
    if given and given not in frame.columns:
        raise DataError(f"{name}: no column '{given}' (there are {', '.join(map(str, frame.columns))})")
    return given or _match(frame, COLUMNS[role])


def _about(frame: pd.DataFrame | None, side: str, column: str, name: str) -> pd.DataFrame | None:
    """What is known of one side, by id; title, text and vector under these names."""
    if frame is None:
        return None
    key = _match(frame, (column.lower(), "id", *COLUMNS[side]))
    if key is None:
        raise DataError(f"{name}: the table of {side}s has no column '{column}' or 'id'")
    ids = _names(frame[key])
    if (ids == "").any():
        raise DataError(f"{name}: the table of {side}s: row {int((ids == '').argmax()) + 1} has no id")
    frame = frame.drop(columns=key).set_axis(ids)
    names = {_match(frame, COLUMNS[role]): role for role in ("text", "title", "vector") if role not in frame.columns}
    frame = frame.rename(columns={str(old): new for old, new in names.items() if old is not None})
    if frame.index.duplicated().any():
        twice = frame.index[frame.index.duplicated()][0]
        raise DataError(f"{name}: the table of {side}s names '{twice}' twice")
    return frame


def _joined(known: list[pd.DataFrame]) -> tuple[pa.Table, np.ndarray | None]:
    """Columns of users and items one below the other; vectors apart."""
    sizes = [len(frame) for frame in known]
    vectors = None
    columns: dict[str, Any] = {}
    for column in dict.fromkeys(str(c) for frame in known for c in frame.columns):
        parts = [frame.get(column) for frame in known]
        if column == "vector":
            vectors = _stacked(parts, sizes)
            continue
        given = [part for part in parts if part is not None]
        if len(given) > 1 and given[0].dtype != given[1].dtype:
            parts = [part.map(str, na_action="ignore") for part in given]
        arrays = [pa.nulls(n) if part is None else pa.array(part, from_pandas=True)
                  for part, n in zip(parts, sizes, strict=True)]  # fmt: skip
        kind = next((a.type for a in arrays if not pa.types.is_null(a.type)), pa.string())
        try:
            columns[column] = pa.chunked_array([array.cast(kind) for array in arrays])
        except pa.ArrowException as error:
            raise DataError(f"column '{column}': {first_line(error)}") from None
    return pa.table(columns), vectors


def _stacked(parts: list[pd.Series | None], sizes: list[int]) -> np.ndarray:
    widths = {len(v) for part in parts if part is not None for v in part.dropna()}
    if len(widths) != 1:
        raise DataError(f"text vectors of {sorted(widths)} numbers: one width is needed")
    made = np.full((sum(sizes), widths.pop()), np.nan, np.float32)
    for start, part in zip((0, sizes[0]), parts, strict=True):
        if part is not None and (there := part.notna().to_numpy()).any():
            made[start + np.flatnonzero(there)] = np.stack(list(part[there]))
    return made
