"""Databases in memory: frames with their keys, and RelBench's own objects, told by what they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from repertory.data.database.rows import ACCEPTED, Rows, rows_of
from repertory.data.database.schema import TableSchema, Task
from repertory.data.database.sources import relbench_words
from repertory.data.database.store import Database
from repertory.data.database.tasks import task_table
from repertory.errors import DataError

PARTS = ("train", "val", "test")


def of_relbench(database: Any) -> Database:
    """RelBench's ``Database``: ``table_dict`` of tables with ``df`` and their keys."""
    tables = {str(name): table.df for name, table in database.table_dict.items()}
    schemas = {
        str(name): TableSchema(table.pkey_col, table.time_col, dict(table.fkey_col_to_pkey_table))
        for name, table in database.table_dict.items()
    }
    return Database(tables, schemas)


def wrapped(source: Any, words: Mapping[str, str]) -> Rows:
    """Rows from an object in memory.

    Args:
        source: see ``rows.ACCEPTED``.
        words: ``entity``, ``column``, ``target``, ``answer`` where the source does not say; empty ones are left.

    Raises:
        DataError: it is none of these, or something is missing.
    """
    said = {name: value for name, value in words.items() if value and name != "task"}
    if isinstance(source, Mapping) and "tables" in source:
        schemas = {t: TableSchema.of(t, plain) for t, plain in dict(source.get("schema", {})).items()}
        return _asked(Database(dict(source["tables"]), schemas), source.get("task"), said)
    if isinstance(source, (tuple, list)) and len(source) == 2:
        database, task = source
        if hasattr(database, "get_db"):
            # with the test part's rows: each is asked at its time, and sees none from after it
            database = database.get_db(upto_test_timestamp=False)
        if hasattr(database, "table_dict"):
            database = of_relbench(database)
        if isinstance(database, Database):
            return _asked(database, task, said)
    raise DataError(f"{type(source).__name__} holds no database with a task: give {ACCEPTED}")


def _asked(database: Database, task: Any, said: Mapping[str, str]) -> Rows:
    if hasattr(task, "get_table"):
        tables = {part: task.get_table(part, mask_input_cols=False) for part in PARTS}
        frame = pd.concat([tables[part].df.assign(split=part) for part in PARTS], ignore_index=True)
        first = tables["train"]
        words = relbench_words("", frame, first.fkey_col_to_pkey_table, first.time_col, "the task")
        return rows_of(database, Task.of("", {**{k: v for k, v in words.items() if k != "name"}, **said}), frame)
    if isinstance(task, Task):
        column = task.column or database.key_of(task.entity)
        return rows_of(database, task, task_table(database, replace(task, column=column)))
    if isinstance(task, pd.DataFrame):
        return rows_of(database, Task.of("", dict(said)), task)
    if isinstance(task, Mapping):
        plain = {**task, **said}
        frame = plain.pop("table", None)
        asked = Task.of(str(plain.pop("name", "")), plain)
        if frame is None:
            frame = task_table(database, replace(asked, column=asked.column or database.key_of(asked.entity)))
        return rows_of(database, asked, frame)
    raise DataError("a database without a task: give what is asked as 'task' (entity, table or sql, target)")
