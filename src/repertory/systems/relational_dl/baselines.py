"""What is done without a graph: gradient-boosted trees on the entity's row, and on aggregates made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from repertory.data import Splits
from repertory.data.database import Rows
from repertory.data.database.store import quoted
from repertory.errors import ConfigError, MissingExtraError

NUMBERS = ("BIGINT", "INTEGER", "SMALLINT", "TINYINT", "DOUBLE", "FLOAT", "DECIMAL", "HUGEINT")
DAYS = (7, 14, 30, 90)
"""Windows before a row's time that are summed up, beside all time."""
ROUNDS, STOP = 300, 20
"""Trees at most, and rounds without a gain in validation after which no more are grown."""


def entity_table(rows: Rows) -> pd.DataFrame:
    """The columns of each row's own entity [N, columns]; texts as categories, times as days before the row's time."""
    database, table = rows.database, rows.task.entity
    schema = database.schemas[table]
    names = [c for c in database.columns[table] if c not in schema.keys and schema.types.get(c) != "ignore"]
    if not names:
        return pd.DataFrame({"constant": np.ones(len(rows))})
    frame = database.frame(table, names, rows.entities)
    made: dict[str, Any] = {}
    for name in names:
        values = frame[name]
        if pd.api.types.is_datetime64_any_dtype(values):
            made[name] = rows.times / 86_400 - values.to_numpy().astype("datetime64[s]").astype(np.int64) / 86_400
        elif pd.api.types.is_numeric_dtype(values):
            made[name] = values.to_numpy(np.float64)
        elif not values.map(lambda v: isinstance(v, (list, np.ndarray))).any():
            made[name] = values.astype(str).astype("category")
    return pd.DataFrame(made)


def aggregates(rows: Rows) -> pd.DataFrame:
    """Of every table that points at the entity, up to each row's time: counts, means of numbers, days since the last.

    Over the windows ``DAYS`` and over all time; beside the entity's own columns.
    """
    database, table = rows.database, rows.task.entity
    parts = [entity_table(rows)]
    asked = pa.table({
        "at_": np.arange(len(rows)), "entity_": rows.columns["entity"],
        "time_": pa.array(rows.times.astype("datetime64[s]").astype("datetime64[us]")),
    })  # fmt: skip
    for (other, column), _ in database.links.items():
        schema = database.schemas[other]
        if schema.links[column] != table or schema.time is None:
            continue
        numbers = [
            c for c, kind in database.columns[other].items()
            if c not in schema.keys and schema.types.get(c) != "ignore" and c != schema.time
            and kind.split("(")[0] in NUMBERS
        ]  # fmt: skip
        time = f"o.{quoted(schema.time)}"
        selected = [f"date_diff('second', max({time}), any_value(a.time_)) / 86400.0 AS {quoted(f'{other} last')}"]
        for days in (None, *DAYS):
            since = "" if days is None else f" FILTER ({time} > a.time_ - INTERVAL {days} days)"
            span = "all" if days is None else f"{days}d"
            selected.append(f"count(o.rowid){since} AS {quoted(f'{other} {span} count')}")
            selected += [f"avg(o.{quoted(c)}){since} AS {quoted(f'{other} {span} {c}')}" for c in numbers]
        found = database.query(
            f"SELECT {', '.join(selected)} FROM asked_ a LEFT JOIN {quoted(other)} o ON o.{quoted(column)} = a.entity_ "
            f"AND {time} <= a.time_ GROUP BY a.at_ ORDER BY a.at_",
            asked_=asked,
        ).df()
        parts.append(found.rename(columns=lambda name, c=column: f"{c} {name}").astype(np.float64))
    made = pd.concat([part.reset_index(drop=True) for part in parts], axis=1)
    return made.loc[:, ~made.columns.duplicated()]


def boosted(splits: Splits[Rows], features: Any, seed: int = 0) -> np.ndarray:
    """What LightGBM says of the test rows: probabilities [N] of a yes, [N, classes], or numbers [N].

    Grown on the training rows until validation gains no more.

    Args:
        features: ``entity_table`` or ``aggregates``.

    Raises:
        ConfigError: the task is of links.
        MissingExtraError: LightGBM is not installed.
    """
    try:
        import lightgbm
    except ImportError:
        raise MissingExtraError("lightgbm", "graphs") from None
    answer = splits.all.task.answer
    if answer in ("link", "multilabel"):
        raise ConfigError(f"trees answer for one target: {answer} is none")
    parts = [splits.train, splits.val, splits.test]
    frames = [features(part) for part in parts]
    whole = pd.concat(frames, ignore_index=True)
    for name in whole.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in whole.dtypes]]:
        whole[name] = whole[name].astype(str).astype("category").cat.codes.astype(np.int32)
    ends = np.cumsum([len(part) for part in parts])
    train, val, test = np.split(whole.to_numpy(np.float64), ends[:-1])
    targets = np.concatenate([part.targets for part in parts[:2]])
    classes = None
    if answer == "multiclass":
        classes, targets = np.unique(targets.astype(str), return_inverse=True)
    objective = {"binary": "binary", "multiclass": "multiclass"}.get(str(answer), "regression_l1")
    settings = {"objective": objective, "learning_rate": 0.1, "num_leaves": 31, "bagging_fraction": 0.8,
                "bagging_freq": 1, "feature_fraction": 0.8, "seed": seed, "verbose": -1, "num_threads": 0,
                "deterministic": True}  # fmt: skip
    if classes is not None:
        settings["num_class"] = len(classes)
    learned = lightgbm.Dataset(train, targets[: ends[0]].astype(np.float64))
    judged = lightgbm.Dataset(val, targets[ends[0] :].astype(np.float64), reference=learned)
    grown = lightgbm.train(
        settings, learned, ROUNDS, [judged], callbacks=[lightgbm.early_stopping(STOP, verbose=False)]
    )
    return np.asarray(grown.predict(test))
