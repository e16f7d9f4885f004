"""A database: linked tables in DuckDB; in memory are only keys, as row numbers, and times."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from repertory.data.database.schema import OWN, TableSchema
from repertory.errors import DataError, MissingExtraError, first_line, nearest

NONE = np.iinfo(np.int64).min
"""The time of a row that was always known, and of a missing one."""
LATEST = 4_102_444_800
"""2100-01-01 in seconds: larger whole numbers are no seconds since 1970."""
DANGLING = 0.5
"""A larger share of links that point nowhere is warned of."""

Incoming = Any
"""A pandas frame, an Arrow table or reader, or the text of a query that DuckDB can read."""


def connect(path: str | Path = ":memory:") -> Any:
    """DuckDB without extensions that are fetched at run time.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise MissingExtraError("duckdb", "graphs") from None
    connection = duckdb.connect(str(path))
    connection.execute(
        "SET autoinstall_known_extensions = false; SET autoload_known_extensions = false; SET TimeZone = 'UTC';"
        "SET preserve_insertion_order = true; SET enable_progress_bar = false"
    )
    return connection


class Database:
    """Named tables with keys, links and times; every row has its number.

    A table with a key and a time is sorted by time (ties stay in order); others keep their order. Rows stay in a
    DuckDB file beside the process, so that they may be larger than memory.

    Args:
        tables: by name, what holds the rows.
        schemas: of each table; what is not said is nothing (no key, no link, always known).
        name: for errors.
        memory: at most so much of it for DuckDB (``4GB``).
        write: writes a table (name, Arrow table) back to where the database lies.

    Attributes:
        rows: number of rows of each table.
        times: seconds since 1970 ``[rows]`` int64 of each table, None where it has no time.
        links: row numbers ``[rows]`` int64 of what a row points at, by (table, column); -1 where it points nowhere.
        order: for each table, the number of the incoming row that became row 0, 1, ...

    Raises:
        DataError: a key that is missing or double, a link to a table that is not there or has no key, or whose keys
            can never match, a time that is missing or none, mixed time zones: by table, column and row.
    """

    def __init__(
        self,
        tables: Mapping[str, Incoming],
        schemas: Mapping[str, TableSchema] | None = None,
        name: str = "memory",
        memory: str = "",
        write: Callable[[str, pa.Table], None] | None = None,
    ) -> None:
        self.name, self.write_back = name, write
        self.schemas = {table: (schemas or {}).get(table, TableSchema()) for table in tables}
        if not tables:
            raise DataError(f"{name}: there is no table in it")
        for table in schemas or {}:
            if table not in tables:
                raise DataError(f"{name}: no table '{table}'{nearest(table, tables)}")
        folder = tempfile.mkdtemp(prefix="repertory-")
        self._connection = connect(Path(folder) / "tables.duckdb")
        self._cleanup = weakref.finalize(self, _remove, self._connection, folder)
        if memory:
            try:
                self._connection.execute(f"SET memory_limit = '{memory}'")
            except Exception as error:
                raise DataError(f"memory={memory}: {first_line(error)}") from None
        self.rows: dict[str, int] = {}
        self.columns: dict[str, dict[str, str]] = {}
        self.times: dict[str, np.ndarray | None] = {}
        self.links: dict[tuple[str, str], np.ndarray] = {}
        self.order: dict[str, np.ndarray] = {}
        self.dangling: dict[tuple[str, str], tuple[int, int]] = {}
        self._zones: dict[str, str] = {}
        for table, incoming in tables.items():
            self._take_in(table, incoming)
        for table, schema in self.schemas.items():
            for column, target in schema.links.items():
                self._link(table, column, target)

    # -- reading ------------------------------------------------------------------------------------------------

    def query(self, sql: str, **tables: pa.Table) -> Any:
        """A DuckDB result; tables go by their names, ``rowid`` is the number of a row.

        Args:
            tables: further ones, for this query.

        Raises:
            DataError: DuckDB refuses it.
        """
        cursor = self._connection.cursor()
        try:
            for name, table in tables.items():
                cursor.register(name, table)
            return cursor.execute(sql)
        except Exception as error:
            raise DataError(f"{self.name}: SQL: {first_line(error)}") from None

    def frame(self, table: str, columns: Sequence[str] | None = None, rows: np.ndarray | None = None) -> pd.DataFrame:
        """Some columns of a table, of all rows or of ``rows`` in that order."""
        names = ", ".join(quoted(c) for c in (self.columns[table] if columns is None else columns))
        if rows is None:
            frame: pd.DataFrame = self.query(f"SELECT {names} FROM {quoted(table)} ORDER BY rowid").df()
            return frame
        wanted = pa.table({"row_": rows, "at_": np.arange(len(rows))})
        names = ", ".join(f"t.{quoted(c)}" for c in (self.columns[table] if columns is None else columns))
        sql = f"SELECT {names} FROM wanted_ w JOIN {quoted(table)} t ON t.rowid = w.row_ ORDER BY w.at_"
        frame = self.query(sql, wanted_=wanted).df()
        return frame

    def keys(self, table: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Primary keys of rows.

        Raises:
            DataError: the table has none.
        """
        return self.frame(table, [self.key_of(table)], rows).iloc[:, 0].to_numpy()

    def key_of(self, table: str) -> str:
        """The primary key's column."""
        if table not in self.schemas:
            raise DataError(f"{self.name}: no table '{table}'{nearest(table, self.schemas)}")
        key = self.schemas[table].key
        if key is None:
            raise DataError(f"{self.name}: table '{table}' has no primary key: name it")
        return key

    def places(self, table: str, keys: pa.Array) -> np.ndarray:
        """Row numbers [N] of the rows with these primary keys (compared as texts); -1 where there is none."""
        key = self.key_of(table)
        found = self.query(
            f"SELECT coalesce(t.rowid, -1) AS r FROM asked_ LEFT JOIN {quoted(table)} t ON "
            f"CAST(key_ AS VARCHAR) = CAST(t.{quoted(key)} AS VARCHAR) ORDER BY at_",
            asked_=pa.table({"key_": keys, "at_": np.arange(len(keys))}),
        )
        return np.asarray(found.fetchnumpy()["r"], np.int64)

    @property
    def span(self) -> tuple[int, int]:
        """The earliest and the latest time of any row, in seconds since 1970.

        Raises:
            DataError: no table has a time.
        """
        known = [times for times in self.times.values() if times is not None and len(times)]
        if not known:
            raise DataError(f"{self.name}: no table has a time column: name at least one (schema: time)")
        return int(min(t.min() for t in known)), int(max(t.max() for t in known))

    @cached_property
    def fingerprint(self) -> str:
        """Of all rows, whatever their order."""
        state = hashlib.sha256()
        for table in sorted(self.rows):
            columns = ", ".join(quoted(c) for c in sorted(self.columns[table]))
            digest = self.query(
                f"SELECT bit_xor(md5_number_lower(CAST(row({columns}) AS VARCHAR))) FROM {quoted(table)}"
            )
            state.update(f"{table}\t{self.rows[table]}\t{digest.fetchone()[0]}\t{self.schemas[table]}\n".encode())
        return state.hexdigest()

    def upto(self, time: int) -> dict[str, np.ndarray]:
        """Which rows of each table are known at ``time`` (inclusive): row numbers, in order."""
        return {
            table: np.arange(self.rows[table]) if times is None else np.flatnonzero(times <= time)
            for table, times in self.times.items()
        }

    def describe(self) -> pd.DataFrame:
        """A row per table: rows, key, time, links with what dangles."""
        described = []
        for table, schema in self.schemas.items():
            links = [
                f"{column} -> {target}" + (f" ({lost / max(1, n):.1%} dangling)" if lost else "")
                for column, target in schema.links.items()
                for lost, n in [self.dangling[table, column]]
            ]
            described.append((table, self.rows[table], schema.key or "", schema.time or "", ", ".join(links)))
        return pd.DataFrame(described, columns=["table", "rows", "key", "time", "links"])

    # -- taking in ----------------------------------------------------------------------------------------------

    def _take_in(self, table: str, incoming: Incoming) -> None:
        schema, run = self.schemas[table], self._connection.execute
        try:
            if isinstance(incoming, str):
                run(f"CREATE TABLE incoming_ AS {incoming}")
            else:
                self._connection.register("incoming_view_", _readable(incoming))
                run("CREATE TABLE incoming_ AS SELECT * FROM incoming_view_")
                self._connection.unregister("incoming_view_")
        except Exception as error:
            raise DataError(f"{self.name}: table '{table}' cannot be read: {first_line(error)}") from None
        types = {row[0]: row[1] for row in run("DESCRIBE incoming_").fetchall()}
        for column in (*schema.keys, *schema.types, *([schema.time] if schema.time else [])):
            if column not in types:
                raise DataError(f"{self.name}: table '{table}': no column '{column}'{nearest(column, types)}")
        if schema.key:
            self._check_key(table, schema.key)
        for column, kind in types.items():
            if kind in ("DOUBLE", "FLOAT"):
                first = run(f"SELECT min(rowid) FROM incoming_ WHERE isinf({quoted(column)})").fetchone()[0]
                if first is not None:
                    raise DataError(
                        f"{self.name}: {table}.{column}: row {first + 1} is infinite: write what is unknown as missing"
                    )
        selected, ordered = ["* "], "rowid"
        if schema.time:
            selected = [f"* REPLACE ({self._moment(table, schema.time, types[schema.time])} AS {quoted(schema.time)})"]
            if schema.key:
                ordered = f"{quoted(schema.time)}, rowid"
        run(
            f"CREATE TABLE {quoted(table)} AS SELECT * EXCLUDE (row_) FROM "
            f"(SELECT {selected[0]}, rowid AS row_ FROM incoming_) ORDER BY {ordered.replace('rowid', 'row_')}"
        )
        self.columns[table] = {row[0]: row[1] for row in run(f"DESCRIBE {quoted(table)}").fetchall()}
        self.rows[table] = int(run(f"SELECT count(*) FROM {quoted(table)}").fetchone()[0])
        if schema.time:
            # rounded up: a row is not known before its fraction of a second
            seconds = f"CAST(ceil(epoch({quoted(schema.time)})) AS BIGINT) AS s"
            found = run(f"SELECT {seconds} FROM {quoted(table)} ORDER BY rowid").fetchnumpy()["s"]
            self.times[table] = np.asarray(found, np.int64)
        else:
            self.times[table] = None
        if schema.time and schema.key:
            moment = self._moment(table, schema.time, types[schema.time])
            self.order[table] = run(
                f"SELECT r FROM (SELECT rowid AS r, {moment} AS m FROM incoming_) ORDER BY m, r"
            ).fetchnumpy()["r"]
        else:
            self.order[table] = np.arange(self.rows[table])
        run("DROP TABLE incoming_")

    def _check_key(self, table: str, key: str) -> None:
        name = quoted(key)
        missing = self._connection.execute(
            f"SELECT min(rowid), count(*) FROM incoming_ WHERE {name} IS NULL"
        ).fetchone()
        if missing[1]:
            raise DataError(
                f"{self.name}: {table}.{key}: the primary key is missing in {missing[1]} rows (first: row "
                f"{missing[0] + 1})"
            )
        double = self._connection.execute(
            f"SELECT {name}, count(*), min(rowid), max(rowid) FROM incoming_ GROUP BY {name} HAVING count(*) > 1 "
            "ORDER BY min(rowid) LIMIT 1"
        ).fetchone()
        if double:
            raise DataError(
                f"{self.name}: {table}.{key}: the primary key {double[0]!r} occurs {double[1]} times (rows "
                f"{double[2] + 1} and {double[3] + 1}); keys must be unique"
            )

    def _moment(self, table: str, column: str, kind: str) -> str:
        """The SQL that makes a column of times a timestamp in UTC, once all its values are known to be times."""
        name, where = quoted(column), f"{self.name}: {table}.{column}"
        sql, zone = name, "without time zone"
        if kind in ("VARCHAR", "JSON") or kind.startswith("ENUM"):
            offset = r"[0-9:](\s?(Z|UTC)|\s?[+-][0-9]{2}(:?[0-9]{2})?)$"
            pattern = f"regexp_matches(trim({name}), '{offset}') AND length(trim({name})) > 10"
            aware, total, first = self._connection.execute(
                f"SELECT count(*) FILTER ({pattern}), count({name}), min(rowid) FILTER ({pattern}) FROM incoming_"
            ).fetchone()
            if 0 < aware < total:
                raise DataError(
                    f"{where}: {aware} of {total} times have a time zone (first: row {first + 1}), the others none: "
                    "write all of them in UTC"
                )
            sql, zone = f"try_cast({name} AS TIMESTAMPTZ)", "with time zone" if aware else zone
            sql = f"CAST({sql} AS TIMESTAMP)"
        elif kind.startswith(("BIGINT", "INTEGER", "UBIGINT", "UINTEGER", "SMALLINT", "DOUBLE", "FLOAT", "HUGEINT")):
            worst = self._connection.execute(
                f"SELECT min(rowid) FROM incoming_ WHERE {name} < 0 OR {name} > {LATEST} OR isnan({name}::DOUBLE)"
            ).fetchone()[0]
            if worst is not None:
                raise DataError(
                    f"{where}: row {worst + 1} is no number of seconds since 1970: give timestamps, or such seconds"
                )
            sql = f"make_timestamp(CAST({name} * 1000000 AS BIGINT))"
        elif kind.startswith("TIMESTAMP WITH TIME ZONE"):
            sql, zone = f"CAST({name} AS TIMESTAMP)", "with time zone"
        elif kind.startswith(("TIMESTAMP", "DATE")):
            sql = f"CAST({name} AS TIMESTAMP)"
        else:
            raise DataError(f"{where}: values of type {kind.lower()} are no times: give timestamps or ISO 8601 texts")
        bad = self._connection.execute(
            f"SELECT count(*), min(rowid), arg_min(CAST({name} AS VARCHAR), rowid) FROM incoming_ WHERE {sql} IS NULL "
            f"OR NOT isfinite({sql})"
        ).fetchone()
        if bad[0]:
            said = "is missing" if bad[2] is None else f"is '{bad[2]}', which is no time"
            raise DataError(f"{where}: row {bad[1] + 1} {said} ({bad[0]} such rows): every row needs its time")
        if kind != "DATE" and not kind.startswith(("BIGINT", "INTEGER")):
            for other, its in self._zones.items():
                if its != zone and other != f"{table}.{column}":
                    raise DataError(
                        f"{where}: times {zone}, but {other} has times {its} (from row 1 on): write all of them in UTC"
                    )
            self._zones[f"{table}.{column}"] = zone
        return sql

    def _link(self, table: str, column: str, target: str) -> None:
        where = f"{self.name}: {table}.{column}"
        if target not in self.schemas:
            raise DataError(f"{where}: points to table '{target}', which is not there{nearest(target, self.schemas)}")
        key = self.schemas[target].key
        if key is None:
            raise DataError(f"{where}: points to table '{target}', which has no primary key: name it")
        if self._comparable(table, column, target, key):
            equal = f"a.{quoted(column)} = b.{quoted(key)}"
        else:
            equal = f"CAST(a.{quoted(column)} AS VARCHAR) = CAST(b.{quoted(key)} AS VARCHAR)"
        found = self._connection.execute(
            f"SELECT coalesce(b.rowid, -1) AS r, a.{quoted(column)} IS NOT NULL AS given FROM {quoted(table)} a "
            f"LEFT JOIN {quoted(target)} b ON {equal} ORDER BY a.rowid"
        ).fetchnumpy()
        rows, given = np.asarray(found["r"], np.int64), np.asarray(found["given"], bool)
        lost = int((given & (rows < 0)).sum())
        if lost and lost == given.sum():
            kinds = self.columns[table][column], self.columns[target][key]
            raise DataError(
                f"{where}: 0 of {lost} keys match {target}.{key} ({kinds[0].lower()} against {kinds[1].lower()}; "
                f"first: row {self.order[table][np.argmax(given)] + 1})"
            )
        self.links[table, column] = rows
        self.dangling[table, column] = (lost, int(given.sum()))
        if lost > DANGLING * given.sum():
            first = int(np.flatnonzero(given & (rows < 0))[0])
            warnings.warn(
                f"{where}: {lost} of {given.sum()} keys ({lost / given.sum():.1%}) are not in {target}.{key} (first: "
                f"row {self.order[table][first] + 1}): they are taken as missing", stacklevel=4,
            )  # fmt: skip

    def _comparable(self, table: str, column: str, other: str, key: str) -> bool:
        first, second = self.columns[table][column], self.columns[other][key]
        return first == second or (_is_whole(first) and _is_whole(second))


def _is_whole(kind: str) -> bool:
    return bool(re.fullmatch(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?", kind))


def _remove(connection: Any, folder: str) -> None:
    connection.close()
    shutil.rmtree(folder, ignore_errors=True)


def _readable(incoming: Any) -> Any:
    """Without a frame's index, and with nanoseconds (which DuckDB keeps apart) as microseconds."""
    if isinstance(incoming, pd.DataFrame):
        incoming = incoming.reset_index(drop=True).convert_dtypes(
            infer_objects=True, convert_string=True, convert_integer=False, convert_floating=False,
            convert_boolean=False,
        )  # fmt: skip
        try:
            return pa.Table.from_pandas(incoming, preserve_index=False)
        except pa.ArrowException as error:
            raise DataError(f"a column mixes types: {first_line(error)}") from None
    return incoming


def quoted(name: str) -> str:
    """A name as SQL takes it whatever is in it."""
    return '"' + str(name).replace('"', '""') + '"'


def inferred_times(database_name: str, columns: Mapping[str, Mapping[str, str]], said: Iterable[str]) -> dict[str, str]:
    """The time column of each table that has one column of times.

    Args:
        columns: types of each table's columns.
        said: tables of which it is known.

    Raises:
        DataError: a table has several: which says when a row became known is not for us to guess.
    """
    found: dict[str, str] = {}
    known = set(said)
    for table, types in columns.items():
        moments = [c for c, kind in types.items() if kind.upper().startswith(("TIMESTAMP", "DATE"))]
        if table in known or table.startswith(OWN) or not moments:
            continue
        if len(moments) > 1:
            raise DataError(
                f"{database_name}: table '{table}' has several columns of times ({', '.join(moments)}): say which one "
                f"tells when a row became known: times={table}.{moments[0]}"
            )
        found[table] = moments[0]
    return found


def with_times(schemas: Mapping[str, TableSchema], times: Mapping[str, str]) -> dict[str, TableSchema]:
    """The schemas with these time columns."""
    return {t: replace(schema, time=times.get(t, schema.time)) for t, schema in schemas.items()}
