"""Where databases lie: SQLite and PostgreSQL (through ADBC), DuckDB, folders of Parquet or CSV, RelBench's layout."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from repertory.data.database.rows import Rows, rows_of
from repertory.data.database.schema import OWN, TableSchema, Task
from repertory.data.database.store import Database, connect, inferred_times, quoted, with_times
from repertory.data.database.tasks import task_table
from repertory.data.items import Reader
from repertory.data.tables import read_table
from repertory.errors import DataError, MissingExtraError, first_line, nearest

SCHEMA = ("schema.yaml", "schema.yml", "database.yaml", "database.yml")
"""What the file beside the tables is called."""
SUFFIXES = {".sqlite", ".sqlite3", ".db", ".db3", ".duckdb", ".ddb"}
PARTS = ("train", "val", "test")


@dataclass
class Said:
    """What a schema file says: tables, tasks, where the database lies."""

    tables: dict[str, TableSchema] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def read(cls, path: Path) -> Said:
        """From YAML.

        Raises:
            DataError: it cannot be read, or an unknown word stands in it.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise DataError(f"{path}: not YAML: {first_line(error)}") from None
        if not isinstance(content, dict):
            raise DataError(f"{path}: expected the words tables, tasks, source")
        for word in content:
            if word not in ("tables", "tasks", "source"):
                raise DataError(f"{path}: unknown word '{word}'{nearest(str(word), ('tables', 'tasks', 'source'))}")
        return cls(
            {str(t): TableSchema.of(t, plain) for t, plain in (content.get("tables") or {}).items()},
            {str(t): Task.of(t, plain) for t, plain in (content.get("tasks") or {}).items()},
            str(content.get("source", "")),
        )


# -- through ADBC ----------------------------------------------------------------------------------------------


@contextmanager
def adbc(address: str) -> Iterator[Any]:
    """A connection of ADBC's DB-API to ``sqlite:PATH`` or ``postgresql://...``.

    Raises:
        MissingExtraError: the driver is not installed.
        DataError: it cannot be opened.
    """
    scheme = "sqlite" if address.startswith("sqlite:") else "postgresql"
    try:
        if scheme == "sqlite":
            from adbc_driver_sqlite import dbapi
        else:
            from adbc_driver_postgresql import dbapi  # type: ignore[no-redef]
    except ImportError:
        raise MissingExtraError(f"adbc-driver-{scheme}", "graphs") from None
    try:
        connection = dbapi.connect(address.removeprefix("sqlite:"))
    except Exception as error:
        raise DataError(f"{_hidden(address)}: cannot be opened: {first_line(error)}") from None
    try:
        yield connection
    finally:
        connection.close()


def _hidden(address: str) -> str:
    """Without the password."""
    return re.sub(r"(://[^:/@]+):[^@]*@", r"\1:***@", address)


def _ask(connection: Any, sql: str, name: str) -> pd.DataFrame:
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            table: pa.Table = cursor.fetch_arrow_table()
            return table.to_pandas()
    except Exception as error:
        raise DataError(f"{name}: {first_line(error)}") from None


def sqlite_schema(connection: Any, name: str) -> tuple[dict[str, TableSchema], dict[str, dict[str, str]]]:
    """Keys, links and declared types of the tables of a SQLite database."""
    tables = _ask(connection, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid", name)["name"]
    schemas, types = {}, {}
    for table in tables:
        if table.startswith((OWN, "sqlite_")):
            continue
        about = _ask(connection, f"PRAGMA table_info({quoted(table)})", name)
        keys = about[about["pk"] > 0]["name"].tolist()
        links = _ask(connection, f"PRAGMA foreign_key_list({quoted(table)})", name)
        single = links[~links["id"].duplicated(keep=False)] if len(links) else links
        found = {str(row["from"]): str(row["table"]) for _, row in single.iterrows()}
        schemas[table] = TableSchema(keys[0] if len(keys) == 1 and keys[0] not in found else None, None, found)
        types[table] = {str(row["name"]): str(row["type"]).upper() for _, row in about.iterrows()}
    return schemas, types


POSTGRES_KEYS = """
SELECT c.conrelid::regclass::text AS owner, r.relname AS "table", c.contype::text AS kind,
       (SELECT attname FROM pg_attribute WHERE attrelid = c.conrelid AND attnum = c.conkey[1])::text AS "column",
       array_length(c.conkey, 1) AS width, t.relname::text AS target
FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid JOIN pg_namespace n ON n.oid = r.relnamespace
LEFT JOIN pg_class t ON t.oid = c.confrelid
WHERE n.nspname = '{schema}' AND c.contype IN ('p', 'f')
"""


def postgres_schema(
    connection: Any, name: str, namespace: str = "public"
) -> tuple[dict[str, TableSchema], dict[str, dict[str, str]]]:
    """Keys, links and types of the tables of one PostgreSQL schema."""
    columns = _ask(
        connection,
        "SELECT c.table_name::text AS t, c.column_name::text AS c, c.data_type::text AS d FROM "
        "information_schema.columns c JOIN information_schema.tables k USING (table_schema, table_name) WHERE "
        f"c.table_schema = '{namespace}' AND k.table_type = 'BASE TABLE' ORDER BY c.table_name, c.ordinal_position",
        name,
    )
    keys = _ask(connection, POSTGRES_KEYS.format(schema=namespace), name)
    schemas, types = {}, {}
    for table, group in columns.groupby("t", sort=False):
        if str(table).startswith(OWN):
            continue
        mine = keys[(keys["table"] == table) & (keys["width"] == 1)]
        links = {str(r["column"]): str(r["target"]) for _, r in mine[mine["kind"] == "f"].iterrows()}
        key = [c for c in mine[mine["kind"] == "p"]["column"] if c not in links]
        schemas[str(table)] = TableSchema(key[0] if key else None, None, links)
        types[str(table)] = {str(c): str(d).upper() for c, d in zip(group["c"], group["d"], strict=True)}
    return schemas, types


def open_adbc(address: str, said: Said, times: Mapping[str, str], memory: str) -> Database:
    """A database from SQLite or PostgreSQL: the schema from its catalogue, the rows as Arrow into DuckDB.

    Raises:
        DataError: there is no table, or one cannot be read.
    """
    name = _hidden(address)
    with adbc(address) as connection:
        if address.startswith("sqlite:"):
            schemas, types = sqlite_schema(connection, name)
        else:
            schemas, types = postgres_schema(connection, name)
        if not schemas:
            raise DataError(f"{name}: there is no table in it")
        schemas = _completed(name, schemas, types, said, times)
        cursors, tables = [], {}
        for table in schemas:
            cursor = connection.cursor()
            cursors.append(cursor)
            tables[table] = _Lazy(cursor, f"SELECT * FROM {quoted(table)}")
        database = Database(_Reading(tables), schemas, name, memory, lambda table, rows: _ingest(address, table, rows))
        for cursor in cursors:
            cursor.close()
    return database


class _Lazy:
    """A query that is run when its rows are taken in."""

    def __init__(self, cursor: Any, sql: str) -> None:
        self.cursor, self.sql = cursor, sql

    def read(self) -> Any:
        self.cursor.execute(self.sql)
        return self.cursor.fetch_record_batch()


class _Reading(Mapping[str, Any]):
    """Tables by name, each read when it is asked for."""

    def __init__(self, tables: Mapping[str, _Lazy]) -> None:
        self.tables = tables

    def __getitem__(self, name: str) -> Any:
        try:
            return self.tables[name].read()
        except KeyError:
            raise
        except Exception as error:
            raise DataError(f"table '{name}' cannot be read: {first_line(error)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)


def _ingest(address: str, table: str, rows: pa.Table) -> None:
    with adbc(address) as connection:
        try:
            with connection.cursor() as cursor:
                cursor.adbc_ingest(table, rows, mode="replace")
            connection.commit()
        except Exception as error:
            raise DataError(f"{_hidden(address)}: table '{table}' cannot be written: {first_line(error)}") from None


# -- files -------------------------------------------------------------------------------------------------------


def open_duckdb(path: Path, said: Said, times: Mapping[str, str], memory: str) -> Database:
    """A database from a DuckDB file: keys and links from its constraints, rows copied within DuckDB.

    Raises:
        DataError: it is not one, or there is no table.
    """
    with connect() as connection:
        try:
            connection.execute(f"ATTACH '{str(path).replace(chr(39), chr(39) * 2)}' AS source_ (READ_ONLY)")
        except Exception as error:
            raise DataError(f"{path}: not a DuckDB file: {first_line(error)}") from None
        columns = connection.execute(
            "SELECT table_name AS t, column_name AS c, data_type AS d FROM duckdb_columns() WHERE database_name = "
            "'source_' AND NOT internal ORDER BY table_oid, column_index"
        ).df()
        keys = connection.execute(
            "SELECT table_name AS t, constraint_type AS kind, constraint_column_names AS c, referenced_table AS target "
            "FROM duckdb_constraints() WHERE database_name = 'source_'"
        ).df()
        schemas, types = {}, {}
        for table, group in columns.groupby("t", sort=False):
            if str(table).startswith(OWN):
                continue
            mine = keys[(keys["t"] == table) & (keys["c"].map(len) == 1)]
            links = {str(r["c"][0]): str(r["target"]) for _, r in mine[mine["kind"] == "FOREIGN KEY"].iterrows()}
            key = [str(c[0]) for c in mine[mine["kind"] == "PRIMARY KEY"]["c"] if c[0] not in links]
            schemas[str(table)] = TableSchema(key[0] if key else None, None, links)
            types[str(table)] = {str(c): str(d).upper() for c, d in zip(group["c"], group["d"], strict=True)}
        if not schemas:
            raise DataError(f"{path}: there is no table in it")
        schemas = _completed(str(path), schemas, types, said, times)
        tables = _Reading({
            table: _Lazy(_DuckCursor(connection), f"SELECT * FROM source_.{quoted(table)}") for table in schemas
        })  # fmt: skip
        return Database(tables, schemas, str(path), memory, lambda table, rows: _write_duckdb(path, table, rows))


class _DuckCursor:
    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def execute(self, sql: str) -> None:
        self.result = self.connection.cursor().sql(sql)

    def fetch_record_batch(self) -> Any:
        return self.result.to_arrow_reader()


def _write_duckdb(path: Path, table: str, rows: pa.Table) -> None:
    try:
        with connect(path) as connection:
            connection.register("rows_", rows)
            connection.execute(f"CREATE OR REPLACE TABLE {quoted(table)} AS SELECT * FROM rows_")
    except MissingExtraError:
        raise
    except Exception as error:
        raise DataError(f"{path}: table '{table}' cannot be written: {first_line(error)}") from None


def open_folder(folder: Path, said: Said, times: Mapping[str, str], memory: str) -> Database:
    """A database from a folder with a Parquet or CSV file per table; Parquet may carry RelBench's keys.

    Raises:
        DataError: there is no table, or a file that the schema names is missing.
    """
    files = {
        path.name.split(".")[0]: path for path in sorted(folder.iterdir())
        if path.suffix == ".parquet" or ".csv" in path.suffixes or ".tsv" in path.suffixes
    }  # fmt: skip
    files = {table: path for table, path in files.items() if not table.startswith(OWN)}
    if any(schema.read for schema in said.tables.values()) or said.tables:
        chosen = {}
        for table, schema in said.tables.items():
            path = folder / schema.read if schema.read else files.get(table)
            if path is None or not path.exists():
                raise DataError(
                    f"{folder}: table '{table}' has no file '{schema.read or table + '.parquet or .csv'}'"
                    f"{nearest(table, files)}"
                )
            chosen[table] = path
        files = chosen
    if not files:
        raise DataError(f"{folder}: there is no table in it (Parquet or CSV)")
    queries, schemas, types = {}, {}, {}
    with connect() as connection:
        for table, path in files.items():
            text = str(path).replace("'", "''")
            reads = f"read_parquet('{text}')" if path.suffix == ".parquet" else f"read_csv('{text}')"
            queries[table] = f"SELECT * FROM {reads}"
            schemas[table] = relbench_keys(path) if path.suffix == ".parquet" else TableSchema()
            try:
                described = connection.execute(f"DESCRIBE {queries[table]}").fetchall()
            except Exception as error:
                raise DataError(f"{path}: cannot be read as a table: {first_line(error)}") from None
            types[table] = {row[0]: row[1] for row in described}
    schemas = _completed(str(folder), schemas, types, said, times)
    return Database(queries, schemas, str(folder), memory, lambda table, rows: pq.write_table(
        rows, folder / f"{table}.parquet"
    ))  # fmt: skip


def relbench_keys(path: Path) -> TableSchema:
    """Key, time and links as RelBench writes them into a Parquet file's metadata.

    Raises:
        DataError: they are there and cannot be understood.
    """
    metadata = pq.read_schema(path).metadata or {}
    try:
        said = {
            name: json.loads(metadata[name.encode()])
            for name in ("pkey_col", "time_col", "fkey_col_to_pkey_table")
            if name.encode() in metadata
        }
    except ValueError as error:
        raise DataError(f"{path}: the keys in its metadata are not JSON: {first_line(error)}") from None
    return TableSchema(said.get("pkey_col"), said.get("time_col"), said.get("fkey_col_to_pkey_table") or {})


def _completed(
    name: str,
    schemas: dict[str, TableSchema],
    types: Mapping[str, Mapping[str, str]],
    said: Said,
    times: Mapping[str, str],
) -> dict[str, TableSchema]:
    """What was found, with what is said, and the time column of tables that have one column of times."""
    for table in (*said.tables, *times):
        if table not in schemas:
            raise DataError(f"{name}: no table '{table}'{nearest(table, schemas)}")
    schemas = {t: schema.updated(said.tables.get(t, TableSchema())) for t, schema in schemas.items()}
    schemas = with_times(schemas, times)
    known = {t for t, schema in schemas.items() if schema.time} | set(said.tables)
    schemas = with_times(schemas, inferred_times(name, types, known))
    return {t: replace(schema, time=schema.time or None) for t, schema in schemas.items()}


# -- the source as a whole -----------------------------------------------------------------------------------------


def read_database(
    path: Path,
    task: str = "",
    entity: str = "",
    column: str = "",
    target: str = "",
    answer: str = "",
    destination: str = "",
    times: str = "",
    schema: str = "",
    memory: str = "",
) -> Rows:
    """A database and its task.

    Args:
        path: a SQLite or DuckDB file; a folder of Parquet or CSV; a folder whose ``schema.yaml`` names a ``source``
            (``postgresql://user:$PASSWORD@host/name``, or a file); a folder in RelBench's layout (``db``, ``tasks``).
        task: the name of a task in the schema file or below ``tasks``, a table of the database, a Parquet or CSV
            file, or a file of SQL; may be left out where there is one.
        entity, column, target, answer, destination: of the task, where its file does not say (see ``schema.Task``).
        times: which column tells when a row became known: ``orders.placed,customers.joined``.
        schema: a YAML file with what the database itself does not say (keys, links, times, types).
        memory: for DuckDB, at most (``4GB``).

    Raises:
        DataError: something is missing or does not fit; one line says what, in which table, column and row.
    """
    folder = path if path.is_dir() else path.parent
    said = _said(path, folder, schema)
    moments = _pairs(times)
    relbench = path.is_dir() and (path / "db").is_dir()
    source = os.path.expandvars(said.source)
    if "$" in source and "$" in said.source and source == said.source:
        raise DataError(f"{path}: '{said.source}': the environment variable in it is not set")
    if source.startswith(("postgresql://", "postgres://")):
        database = open_adbc(source, said, moments, memory)
    else:
        place = folder / source if source else path / "db" if relbench else path
        if not place.exists():
            raise DataError(f"{path}: the source '{said.source}' is not there")
        database = _open_place(place, said, moments, memory)
    words, frame = _task(path, folder, database, said, task, relbench)
    changes = {"entity": entity, "column": column, "target": target, "destination": destination, "answer": answer}
    asked = Task.of(words.get("name", ""), {
        **{k: v for k, v in words.items() if k != "name"}, **{k: v for k, v in changes.items() if v},
    })  # fmt: skip
    if frame is None:
        frame = task_table(database, replace(asked, column=asked.column or database.key_of(asked.entity)))
    return rows_of(database, asked, frame)


def _said(path: Path, folder: Path, schema: str) -> Said:
    if schema:
        for candidate in (folder / schema, Path(schema)):
            if candidate.exists():
                return Said.read(candidate)
        raise DataError(f"{schema}: no such file beside {path}")
    if path.is_dir():
        for name in SCHEMA:
            if (path / name).exists():
                return Said.read(path / name)
    return Said()


def _pairs(times: str) -> dict[str, str]:
    found = {}
    for pair in filter(None, times.split(",")):
        table, dot, column = pair.strip().rpartition(".")
        if not dot or not table or not column:
            raise DataError(f"times={pair}: write TABLE.COLUMN")
        found[table] = column
    return found


def _open_place(place: Path, said: Said, times: Mapping[str, str], memory: str) -> Database:
    if place.is_dir():
        return open_folder(place, said, times, memory)
    head = place.open("rb").read(16)
    if head.startswith(b"SQLite format 3"):
        return open_adbc(f"sqlite:{place}", said, times, memory)
    return open_duckdb(place, said, times, memory)


def _task(
    path: Path, folder: Path, database: Database, said: Said, name: str, relbench: bool
) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """What is asked, as plain words, and its table where that lies somewhere."""
    known = {**said.tasks}
    folders = {}
    if relbench and (path / "tasks").is_dir():
        folders = {p.name: p for p in sorted((path / "tasks").iterdir()) if p.is_dir()}
    names = [*known, *folders]
    if not name:
        if len(names) != 1:
            raise DataError(
                f"{path}: " + (f"{len(names)} tasks are there ({', '.join(names)}): name one with task="
                               if names else "no task is named: say what is asked with task=FILE or TABLE and entity=")
            )  # fmt: skip
        name = names[0]
    if name in known:
        plain = {k: v for k, v in vars(known[name]).items() if v not in ("", None, 0)}
        if known[name].file:
            return plain, _file(folder / known[name].file)
        if not known[name].sql:
            raise DataError(f"{path}: task '{name}' has neither sql nor file")
        return plain, None
    if name in folders:
        return relbench_task(name, folders[name], database)
    plain = {"name": Path(name).stem}
    for candidate in (folder / name, Path(name)):
        if candidate.is_file() and candidate.suffix == ".sql":
            return plain | {"sql": candidate.read_text(encoding="utf-8")}, None
        if candidate.is_file():
            return plain, _file(candidate)
    raise DataError(f"{path}: no task, file of SQL, Parquet or CSV '{name}'{nearest(name, names) if names else ''}")


def _file(path: Path) -> pd.DataFrame:
    return read_table(path)


def relbench_task(name: str, folder: Path, database: Database) -> tuple[dict[str, Any], pd.DataFrame]:
    """A task of RelBench: ``train.parquet``, ``val.parquet``, ``test.parquet`` with their keys in the metadata.

    Raises:
        DataError: a part is missing, or its metadata do not say which table the entities are of.
    """
    frames = []
    for part in PARTS:
        file = folder / f"{part}.parquet"
        if not file.exists():
            raise DataError(f"{folder}: {part}.parquet is missing")
        frames.append(pd.read_parquet(file).assign(split=part))
    keys = relbench_keys(folder / "train.parquet")
    frame = pd.concat(frames, ignore_index=True)
    return relbench_words(name, frame, keys.links, keys.time, folder), frame


def relbench_words(
    name: str, frame: pd.DataFrame, links: Mapping[str, str], time: str | None, where: Any
) -> dict[str, Any]:
    """A task in our words, from a task table and its links: the linked list column is a link's target."""
    if not links or time is None:
        raise DataError(f"{where}: its keys and its time column are not said (fkey_col_to_pkey_table, time_col)")
    lists = [c for c in links if c in frame and not isinstance(first := frame[c].dropna().iloc[0], str)
             and hasattr(first, "__len__")]  # fmt: skip
    column = next(c for c in links if c not in lists)
    if lists:
        return {"name": name, "entity": links[column], "column": column, "time": time, "target": lists[0],
                "answer": "link", "destination": links[lists[0]]}  # fmt: skip
    rest = [c for c in frame.columns if c not in (column, time, "split", *links)]
    if not rest:
        raise DataError(f"{where}: there is no column of targets")
    return {"name": name, "entity": links[column], "column": column, "time": time, "target": rest[0]}


def is_database(path: Path) -> bool:
    """Whether a path looks like a database."""
    if path.is_dir():
        with suppress(OSError):
            return (
                (path / "db").is_dir()
                or any((path / name).exists() for name in SCHEMA)
                or any(p.suffix in (".parquet", ".csv") for p in path.iterdir())
            )
    return path.suffix in SUFFIXES


READERS = (
    Reader("database", "a SQLite or DuckDB file, a folder of Parquet or CSV with schema.yaml, or RelBench's db, tasks",
           is_database, read_database),
)  # fmt: skip
