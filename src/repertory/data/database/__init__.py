"""Databases: linked tables with times, and what is asked of their rows at a time."""

from __future__ import annotations

from repertory.data.database.rows import Rows, rows_of
from repertory.data.database.schema import TableSchema, Task
from repertory.data.database.sources import READERS, read_database
from repertory.data.database.store import NONE, Database
from repertory.data.database.tasks import seed_times, task_table

Rows.readers = READERS

__all__ = [
    "NONE",
    "READERS",
    "Database",
    "Rows",
    "TableSchema",
    "Task",
    "read_database",
    "rows_of",
    "seed_times",
    "task_table",
]
