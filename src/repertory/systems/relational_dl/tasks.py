"""Tasks of the paper that can be stated in SQL alone: those of rel-f1."""

from __future__ import annotations

from repertory.data.database import Task

DAY = 86_400
POSITION = """
SELECT s.time AS date, r.driverId AS driverId, avg(r.positionOrder) AS position
FROM seed_times s JOIN results r ON r.date > s.time AND r.date <= s.time + $window
WHERE r.driverId IN (SELECT driverId FROM results WHERE date > s.time - INTERVAL 1 year)
GROUP BY s.time, r.driverId
"""
DNF = """
SELECT s.time AS date, r.driverId AS driverId, max(CAST(r.statusId <> 1 AS INTEGER)) AS did_not_finish
FROM seed_times s JOIN results r ON r.date > s.time AND r.date <= s.time + $window
WHERE r.driverId IN (SELECT driverId FROM results WHERE date > s.time - INTERVAL 1 year)
GROUP BY s.time, r.driverId
"""


def driver_position(val: str, test: str, evaluations: int = 40) -> Task:
    """Mean finishing position of a driver over the races of the next 60 days."""
    return Task(
        "drivers", "driverId", "date", "position", "regression", sql=POSITION, window=60 * DAY, val=val, test=test,
        evaluations=evaluations, name="driver-position",
    )  # fmt: skip


def driver_dnf(val: str, test: str, evaluations: int = 40) -> Task:
    """Whether a driver does not finish a race of the next 30 days (any status but 1)."""
    return Task(
        "drivers", "driverId", "date", "did_not_finish", "binary", sql=DNF, window=30 * DAY, val=val, test=test,
        evaluations=evaluations, name="driver-dnf",
    )  # fmt: skip
