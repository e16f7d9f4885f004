"""Rows of a task table: the items of a database are (entity, time)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa

from repertory.data.database.schema import Task
from repertory.data.database.store import NONE, Database
from repertory.data.database.tasks import answer_of
from repertory.data.items import Items, Preview, Reader, digest
from repertory.data.splits import NAMES
from repertory.data.tables import to_arrow
from repertory.errors import DataError

ACCEPTED = (
    "a pair (Database, task table) with a task, a RelBench pair (dataset or database, task), or a dict with 'tables' "
    "(name -> DataFrame), 'schema' (name -> key, time, links) and 'task'"
)


class Rows(Items):
    """Rows of a task table over one database: what is asked of an entity at a time.

    ``take`` says which rows are asked and leaves the database as it is, so that an entity keeps its neighbours; what
    is known at a row's time is for the system to keep apart.

    Args:
        database: the tables.
        task: what is asked.
        entities: row numbers [N] in the entity's table; -1 where there is none of that key.
        times: seconds since 1970 [N].
        keys: the entities' primary keys [N].
        targets: [N] values, lists for links; None where nothing is known of them.
        columns: further columns, ``split`` among them.
    """

    kind = "database"
    rule = "time:time"
    readers: ClassVar[tuple[Reader, ...]] = ()

    def __init__(
        self,
        database: Database,
        task: Task,
        entities: np.ndarray,
        times: np.ndarray,
        keys: Sequence[Any],
        targets: Sequence[Any] | None = None,
        columns: pa.Table | None = None,
    ) -> None:
        self.database, self.task = database, task
        self.entities, self.times = np.asarray(entities, np.int64), np.asarray(times, np.int64)
        stamps = np.where(self.times == NONE, np.datetime64("NaT"), self.times.astype("datetime64[s]"))
        added: dict[str, Any] = {"entity": pa.array(list(keys)), "time": pa.array(stamps.astype("datetime64[us]"))}
        if targets is not None:
            added[task.target] = targets if isinstance(targets, pa.Array) else pa.array(list(targets), from_pandas=True)
        if columns is not None:
            for name in columns.column_names:
                added.setdefault(name, columns[name])
        ids = [f"{key}@{_written(t)}" for key, t in zip(keys, self.times, strict=True)]
        roles = {"label": (task.target,)} if targets is not None and task.answer in ("binary", "multiclass") else {}
        super().__init__(ids, added, roles)
        self.targeted = targets is not None

    @property
    def targets(self) -> np.ndarray:
        """What is to be said, [N].

        Raises:
            DataError: it is not known.
        """
        if not self.targeted:
            raise DataError(f"no column '{self.task.target}': these rows have no target")
        column = self.columns[self.task.target]
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            values = np.empty(len(self), dtype=object)
            values[:] = [np.asarray(v if v is not None else []) for v in column.to_pylist()]
            return values
        return self.column(self.task.target)

    def check(self, index: int) -> str:
        table, key = self.task.entity, self.columns["entity"][index].as_py()
        if key is None:
            raise DataError("the entity is missing")
        if self.entities[index] < 0:
            raise DataError(f"no row of table '{table}' has the {self.database.key_of(table)} {key!r}")
        if self.times[index] == NONE:
            raise DataError("the time is missing: every row is asked at a time")
        born = self.database.times[table]
        if born is not None and born[self.entities[index]] > self.times[index]:
            raise DataError(
                f"the row of '{table}' is of {_written(born[self.entities[index]])}, later than the time it is asked at"
            )
        target = None
        if self.targeted:
            target = self.columns[self.task.target][index].as_py()
            if target is None or (isinstance(target, float) and not np.isfinite(target)):
                raise DataError(f"'{self.task.target}' is {'missing' if target is None else target}")
        return digest(f"{key}\0{self.times[index]}\0{target}")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the rows asked and the database."""
        rows = sorted(content.tobytes().hex() for content in self.contents)
        return hashlib.sha256("\n".join([*rows, self.database.fingerprint]).encode()).hexdigest()

    def _select(self, indices: np.ndarray) -> None:
        self.entities, self.times = self.entities[indices], self.times[indices]

    def _extend(self, parts: Sequence[Rows]) -> None:
        if any(part.database.fingerprint != self.database.fingerprint for part in parts):
            raise DataError("rows of different databases cannot be joined: name one database and one task table")
        self.entities = np.concatenate([part.entities for part in parts])
        self.times = np.concatenate([part.times for part in parts])

    def preview(self, index: int) -> Preview:
        """The entity's own row, as far as it is text."""
        row = self.database.frame(self.task.entity, rows=self.entities[index : index + 1]).iloc[0]
        return Preview(text=", ".join(f"{name} {value}" for name, value in row.items() if not _missing(value))[:400])

    @classmethod
    def wrap(
        cls, source: Any, task: str = "", entity: str = "", column: str = "", target: str = "", answer: str = ""
    ) -> Rows:
        """From memory: see ``repertory.data.database.memory``."""
        from repertory.data.database.memory import wrapped

        return wrapped(source, {"task": task, "entity": entity, "column": column, "target": target, "answer": answer})

    def at(self, time: int, keys: Any = None) -> Rows:
        """Every entity that is known at a time (or those with these keys), asked at it; without targets.

        Raises:
            DataError: no entity is known then.
        """
        born = self.database.times[self.task.entity]
        if keys is None:
            count = self.database.rows[self.task.entity]
            rows = np.arange(count) if born is None else np.flatnonzero(born <= time)
        else:
            rows = self.database.places(self.task.entity, pa.array(keys))
        if not len(rows):
            raise DataError(f"no row of '{self.task.entity}' is known at {_written(time)}")
        names = self.database.keys(self.task.entity, np.maximum(rows, 0)) if keys is None else list(keys)
        asked = Rows(self.database, self.task, rows, np.full(len(rows), time), list(names))
        asked.digests = np.array([list(bytes.fromhex(asked.check(i))) for i in range(len(asked))], np.uint8)
        return asked


def rows_of(database: Database, task: Task, frame: pd.DataFrame) -> Rows:
    """Rows from a task table: a column of entities, one of times, one of targets, maybe ``split`` and others.

    Raises:
        DataError: a column is missing, the entity's table is not there or has no key, or the target is also a column
            of the entity's table, which the model would see.
    """
    from dataclasses import replace

    task = replace(task, column=task.column or database.key_of(task.entity))
    name = f"task '{task.name}'" if task.name else "the task table"
    if not len(frame):
        raise DataError(f"{name}: empty: there is no row in it")
    for role in ("column", "time"):
        if getattr(task, role) not in frame.columns:
            raise DataError(
                f"{name}: no column '{getattr(task, role)}' (there are {', '.join(map(str, frame.columns))}): name it "
                f"with {role}="
            )
    seen = database.columns.get(task.entity, {})
    ignored = {c for c, kind in database.schemas[task.entity].types.items() if kind == "ignore"} if seen else set()
    if task.target in seen and task.target not in ignored | database.schemas[task.entity].keys:
        raise DataError(
            f"{name}: the target '{task.target}' is also a column of table '{task.entity}', which the model would see: "
            f"rename the target, or leave the column out (schema: types: {{{task.target}: ignore}})"
        )
    keys = frame[task.column]
    places = database.places(task.entity, pa.array(keys, from_pandas=True))
    times = _seconds(frame[task.time], f"{name}: {task.time}")
    targets = frame[task.target] if task.target in frame.columns else None
    if targets is not None and targets.isna().all():
        targets = None
    if targets is not None and task.answer is None:
        task = task.answering(answer_of(targets))
    if task.answer == "link":
        database.key_of(task.destination or task.entity)
    others = frame.drop(columns=[c for c in (task.column, task.time, task.target) if c in frame.columns])
    others = others.rename(columns={c: f"task_{c}" for c in ("entity", "time") if c in others.columns})
    if "split" in others.columns and set(others["split"].astype(str)) - set(NAMES):
        others = others.rename(columns={"split": "task_split"})
    columns = to_arrow(others) if len(others.columns) else None
    values = None if targets is None else _plain(targets, task)
    return Rows(database, task, places, times, [None if _missing(k) else k for k in keys.tolist()], values, columns)


def _plain(targets: pd.Series, task: Task) -> list[Any]:
    if task.answer in ("link", "multilabel"):
        return [list(np.asarray(v).tolist()) if isinstance(v, (list, tuple, np.ndarray)) else None for v in targets]
    if task.answer == "binary" and pd.api.types.is_numeric_dtype(targets):
        return [None if _missing(v) else int(v) for v in targets]
    return [None if _missing(v) else v for v in targets.tolist()]


def _seconds(column: pd.Series, what: str) -> np.ndarray:
    """Times [N] in seconds since 1970, NONE where there is none.

    Raises:
        DataError: a text is no time.
    """
    if pd.api.types.is_numeric_dtype(column):
        values = column.to_numpy(np.float64)
        return np.where(np.isfinite(values), np.floor(np.nan_to_num(values)), NONE).astype(np.int64)
    dates = pd.api.types.is_datetime64_any_dtype(column)
    stamps = pd.to_datetime(column, errors="coerce", utc=True, format=None if dates else "ISO8601")
    bad = np.flatnonzero(stamps.isna() & column.notna())
    if len(bad):
        raise DataError(f"{what}: row {bad[0] + 1} is '{column.iloc[bad[0]]}', which is no time")
    found = stamps.dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    return np.where(np.isnat(found), NONE, found.astype(np.int64))


def _missing(value: Any) -> bool:
    return value is None or (np.isscalar(value) and bool(np.any(pd.isna(np.asarray(value, object)))))


def _written(time: int) -> str:
    """A time as people write it, without what is zero at the end."""
    if time == NONE:
        return "?"
    text = str(np.datetime64(int(time), "s"))
    return text.removesuffix("T00:00:00").removesuffix(":00") if text.endswith(":00") else text
