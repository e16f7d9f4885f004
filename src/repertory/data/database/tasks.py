"""Task tables: seed times, the SQL that says the target in a window after each, and what kind of answer it is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from repertory.data.database.schema import Answer, Task
from repertory.data.database.store import Database
from repertory.errors import DataError

CLASSES = 50
"""Whole numbers with more different values are quantities."""


def seed_times(window: int, val: int, test: int, first: int, last: int, evaluations: int = 1) -> dict[str, np.ndarray]:
    """When is asked, by part (RelBench, section 3): training backwards from the validation time in steps of the window.

    Args:
        window: seconds that a target looks ahead: a label at t uses rows in (t, t + window].
        val, test: where these parts begin.
        first, last: the earliest and the latest time of the database.
        evaluations: at most so many times of validation and of test.

    Returns:
        ``train``, ``val``, ``test``: times [n] in seconds, ascending.

    Raises:
        DataError: validation does not come before test by a window, test leaves no window of data, or there are fewer
            than three training times; with the numbers.
    """
    if val >= test:
        raise DataError(f"validation begins at {_date(val)}, test at {_date(test)}: validation has to come first")
    if val + window > test:
        raise DataError(
            f"a window of {window / 86400:g} days from validation ({_date(val)}) reaches beyond test ({_date(test)}): "
            "its targets would be those of test"
        )
    if test + window > last:
        raise DataError(
            f"test begins at {_date(test)}, but a window of {window / 86400:g} days does not fit before the last row "
            f"({_date(last)})"
        )
    train = np.arange(val - window, first - 1, -window, dtype=np.int64)[::-1]
    if len(train) < 3:
        raise DataError(
            f"{len(train)} training times between the first row ({_date(first)}) and validation ({_date(val)}) with a "
            f"window of {window / 86400:g} days: at least 3 are needed"
        )
    return {
        "train": train,
        "val": np.arange(val, test - window + 1, window, dtype=np.int64)[:evaluations],
        "test": np.arange(test, last - window + 1, window, dtype=np.int64)[:evaluations],
    }


def _date(time: int) -> str:
    return str(np.datetime64(int(time), "s"))


def task_table(database: Database, task: Task, times: Mapping[str, np.ndarray] | None = None) -> pd.DataFrame:
    """The task's SQL on the database: a row per entity and seed time, sorted by both; with ``split`` where known.

    The SQL reads the tables by their names, ``seed_times`` (column ``time``, a timestamp) and ``$window`` (an
    interval). It returns the task's columns of entity, time and target.

    Args:
        times: seed times by part; None takes those of the task (``seed_times``), or leaves them to the SQL where the
            task names no window.

    Raises:
        DataError: the SQL fails, a column is missing in its answer, or there is no row.
    """
    if times is None and task.window:
        times = seed_times(
            task.window, moment(task.val, f"task '{task.name}': val"), moment(task.test, f"task '{task.name}': test"),
            *database.span, task.evaluations,
        )  # fmt: skip
    if times is None:
        return _checked(database.query(task.sql).df(), task)
    parts = []
    for part, moments in times.items():
        seeds = pd.DataFrame({"time": np.asarray(moments, "datetime64[s]").astype("datetime64[us]")})
        listed = ", ".join(f"(TIMESTAMP '{t}')" for t in seeds["time"])
        values = (
            f"seed_times(time) AS (VALUES {listed})"
            if listed
            else "seed_times(time) AS (SELECT now()::TIMESTAMP LIMIT 0)"
        )
        sql = task.sql.strip().rstrip(";")
        body = f"WITH {values}{', ' + sql[4:].strip() if sql.lower().startswith('with ') else ' ' + sql}"
        body = body.replace("$window", f"INTERVAL '{task.window} seconds'")
        found = _checked(database.query(body).df(), task)
        parts.append(found.assign(split=part))
    made = pd.concat(parts, ignore_index=True)
    if not len(made):
        raise DataError(f"task '{task.name}': its SQL gives no row")
    key = database.places(task.entity, _arrow(made[task.column]))
    made = made[key >= 0]
    cut = database.times[task.entity]
    if cut is not None and len(times.get("test", ())):
        made = made[cut[key[key >= 0]] <= min(times["test"])]  # entities that are not there at the test cut
    return made.sort_values([task.time, task.column], kind="stable").reset_index(drop=True)


def _arrow(column: pd.Series) -> Any:
    import pyarrow as pa

    return pa.array(column, from_pandas=True)


def _checked(frame: pd.DataFrame, task: Task) -> pd.DataFrame:
    for role in ("column", "time", "target"):
        name = getattr(task, role)
        if name not in frame.columns:
            given = ", ".join(map(str, frame.columns))
            raise DataError(
                f"task '{task.name}': its SQL gives no column '{name}' (it gives {given}): name it with {role}"
            )
    return frame


def moment(text: Any, what: str) -> int:
    """A date or time (ISO 8601, a timestamp) in seconds since 1970, UTC.

    Raises:
        DataError: it is none.
    """
    stamp: Any = None
    with suppress(ValueError, TypeError):
        stamp = pd.Timestamp(text)
    if pd.isna(stamp):
        raise DataError(f"{what} '{text}': a date or time is needed, as 2024-01-31 or 2024-01-31T12:00")
    stamp = stamp if stamp.tzinfo is None else stamp.tz_convert("UTC").tz_localize(None)
    return int(np.floor(stamp.timestamp()))


def answer_of(values: pd.Series) -> Answer:
    """What kind of answer targets are: lists are links, two values a yes or no, texts and few whole numbers classes."""
    known = values.dropna()
    if not len(known):
        return "binary"
    if isinstance(known.iloc[0], (list, tuple, np.ndarray)):
        return "link"
    distinct = known.unique()
    if not pd.api.types.is_numeric_dtype(known):
        return "binary" if len(distinct) == 2 and set(distinct) <= {True, False} else "multiclass"
    if set(distinct) <= {0, 1}:
        return "binary"
    whole = bool((np.asarray(distinct, float) % 1 == 0).all())
    return (
        "multiclass"
        if whole and 2 < len(distinct) <= CLASSES and pd.api.types.is_integer_dtype(known)
        else "regression"
    )
