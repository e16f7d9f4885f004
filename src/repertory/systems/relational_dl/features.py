"""Columns as a network takes them: types inferred, statistics learned, rows as pytorch-frame's TensorFrames."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from repertory.data.database.store import Database
from repertory.errors import DataError, MissingExtraError

try:
    with warnings.catch_warnings(action="ignore"):
        import torch_frame  # noqa: F401
    from torch_frame import TensorFrame, stype
    from torch_frame.config.text_embedder import TextEmbedderConfig
    from torch_frame.data.dataset import DataFrameToTensorFrameConverter
    from torch_frame.data.stats import StatType, compute_col_stats
    from torch_frame.utils import infer_df_stype
except ImportError:
    raise MissingExtraError("pytorch-frame", "graphs") from None

LOOKED_AT = 1_000
"""Rows from which a column's type is inferred."""
SUMMED_UP = 1_000_000
"""Rows, at most, that a column's statistics come from."""
CONSTANT = "constant"
"""The one column of a table that has none, of ones."""
SEPARATORS = ("|", ",")
ENCODED = ("numerical", "categorical", "multicategorical", "timestamp", "embedding", "text_embedded")

Plain = dict[str, dict[str, Any]]
"""Of each table: ``types`` (column -> type), ``stats`` (column -> name -> value), ``separators``."""


def learn_columns(database: Database, until: int, text_width: int) -> Plain:
    """Types and statistics of every table's columns, from rows that are known at ``until``.

    Keys are no features. A type that the schema names is taken; others are inferred by pytorch-frame from at most
    1,000 rows.
    """
    known = database.upto(until)
    return {table: _columns(database, table, rows, text_width) for table, rows in known.items()}


def _columns(database: Database, table: str, rows: np.ndarray, text_width: int) -> dict[str, Any]:
    schema = database.schemas[table]
    names = [c for c in database.columns[table] if c not in schema.keys and schema.types.get(c) != "ignore"]
    few = spread(rows, LOOKED_AT)
    types: dict[str, str] = {}
    if names and len(rows):
        looked = read(database, table, names, few)
        with warnings.catch_warnings(action="ignore"):
            found = infer_df_stype(looked)
        for name in sorted(names):  # the order in which pytorch-frame lays them out
            said = schema.types.get(name) or (_type(found[name], looked[name]) if name in found else None)
            if said in ENCODED:
                types[name] = said
    frame = read(database, table, list(types), spread(rows, SUMMED_UP)) if types else pd.DataFrame(index=rows[:1])
    if not types:
        types, frame = {CONSTANT: "numerical"}, pd.DataFrame({CONSTANT: np.ones(max(1, min(len(rows), 2)))})
    stats: dict[str, dict[str, Any]] = {}
    separators: dict[str, str | None] = {}
    for name, kind in types.items():
        if kind == "multicategorical":
            separators[name] = _separator(frame[name])
        if kind in ("text_embedded", "embedding"):
            width = text_width if kind == "text_embedded" else len(frame[name].dropna().iloc[0])
            stats[name] = {"EMB_DIM": width}
            continue
        try:
            computed = compute_col_stats(prepared(frame[name], kind), stype(kind), separators.get(name))
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{table}.{name}: cannot be taken as {kind}: {str(error).splitlines()[0]}") from None
        stats[name] = {key.value: plain(value) for key, value in computed.items()}
        if kind == "numerical" and not np.isfinite(stats[name]["MEAN"]):
            stats[name] |= {"MEAN": 0.0, "STD": 1.0, "QUANTILES": [0.0] * 5}  # nothing is known of it yet
        if kind == "timestamp" and stats[name]["YEAR_RANGE"][0] < 0:
            stats[name] |= {"YEAR_RANGE": [1970, 1970], "MEDIAN_TIME": [1970, 0, 0, 3, 0, 0, 0]}
    return {"types": types, "stats": stats, "separators": separators}


def _type(found: Any, values: pd.Series) -> str:
    """pytorch-frame's type; lists of texts and what it takes for a vector but is none are sets of categories."""
    if found == stype.embedding:
        first = values.dropna().iloc[0]
        return "embedding" if isinstance(first, list) and isinstance(first[0], float) else "multicategorical"
    return str(found.value)


def _separator(values: pd.Series) -> str | None:
    known = values.dropna()
    if not len(known) or not isinstance(known.iloc[0], str):
        return None
    return max(SEPARATORS, key=lambda separator: int(known.str.contains(separator, regex=False).sum()))


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly spread."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def read(database: Database, table: str, columns: list[str], rows: np.ndarray) -> pd.DataFrame:
    """Columns with what pytorch-frame cannot take (times of day, UUIDs, structs) as texts."""
    known = database.columns[table]
    for name in columns:
        if name not in known:
            raise DataError(f"{database.name}: table '{table}' has no column '{name}', which the model was fitted with")
    frame = database.frame(table, columns, rows)
    for name in columns:
        kind = known[name]
        if kind.endswith("[]"):
            frame[name] = frame[name].map(lambda v: v.tolist() if isinstance(v, np.ndarray) else None).astype(object)
        elif kind == "BOOLEAN":
            frame[name] = frame[name].map({True: "true", False: "false"}).astype(object)
        elif not kind.startswith(("TIMESTAMP", "DATE")) and not pd.api.types.is_numeric_dtype(frame[name]):
            texts = frame[name].astype(object)
            frame[name] = texts.where(texts.isna(), texts.astype(str)).astype(object)
    return frame


def prepared(values: pd.Series, kind: str) -> pd.Series:
    """One column as the mapper of its type takes it."""
    if kind == "numerical":
        return pd.to_numeric(values, errors="raise").astype(np.float64)
    if kind == "timestamp":
        return pd.to_datetime(values, errors="coerce")
    if kind == "categorical" and pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all():
        return values.astype("Int64").astype(object).where(values.notna(), None)
    if kind == "text_embedded":
        return values.astype(object).where(values.notna(), "")
    return values.astype(object).where(values.notna(), None) if values.dtype != object else values


def hashed_texts(texts: list[str], width: int) -> Tensor:
    """Frozen vectors [N, width] of texts: words and pairs of words, hashed with signs (Weinberger et al. 2009)."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(n_features=width, ngram_range=(1, 2), norm="l2", alternate_sign=True)
    return torch.from_numpy(hashing.transform(texts).toarray().astype(np.float32))


def statistics(of_table: dict[str, Any]) -> dict[str, dict[StatType, Any]]:
    """As pytorch-frame's encoders take them."""
    times = {"NEWEST_TIME", "OLDEST_TIME", "MEDIAN_TIME"}
    return {
        column: {
            StatType(name): torch.tensor(value).reshape(-1) if name in times else value for name, value in stats.items()
        }
        for column, stats in of_table["stats"].items()
    }


def names_by_type(of_table: dict[str, Any]) -> dict[stype, list[str]]:
    """The columns of each type, in the order in which they are encoded; texts are vectors."""
    found: dict[stype, list[str]] = {}
    for kind in ENCODED:
        names = [c for c, own in of_table["types"].items() if own == kind]
        if names:
            found.setdefault(stype(kind).parent, []).extend(names)
    return found


class RowFeatures:
    """Rows of one database as TensorFrames, by the columns that a model has learned.

    Args:
        database: the tables.
        columns: of ``learn_columns``.
        kept: tables up to so many rows are turned into tensors once and kept; of larger ones, rows are read from
            DuckDB when they are asked for.
    """

    def __init__(self, database: Database, columns: Plain, kept: int = 2_000_000) -> None:
        # not a strong reference: these are kept as long as the database
        self._database, self.columns, self.kept = weakref.ref(database), columns, kept
        self._whole: dict[str, TensorFrame] = {}
        self._converters: dict[str, DataFrameToTensorFrameConverter] = {}

    @property
    def database(self) -> Database:
        """The tables."""
        database = self._database()
        assert database is not None, "the database is gone"
        return database

    def frame(self, table: str, rows: np.ndarray) -> TensorFrame:
        """Rows of a table, in that order."""
        count = self.database.rows[table]
        if count > self.kept:
            return self._read(table, rows)
        if table not in self._whole:
            self._whole[table] = self._read(table, np.arange(count))
        return self._whole[table][torch.from_numpy(rows)]

    def _read(self, table: str, rows: np.ndarray) -> TensorFrame:
        of_table = self.columns[table]
        types = of_table["types"]
        if list(types) == [CONSTANT]:
            ones = torch.ones(len(rows), 1)
            return TensorFrame({stype.numerical: ones}, {stype.numerical: [CONSTANT]})
        frame = read(self.database, table, list(types), rows)
        prepare = {name: prepared(frame[name], kind) for name, kind in types.items()}
        with warnings.catch_warnings(action="ignore"):  # of arrays that are not written to
            return self._converter(table)(pd.DataFrame(prepare, index=np.arange(len(rows))))

    def _converter(self, table: str) -> DataFrameToTensorFrameConverter:
        if table not in self._converters:
            of_table = self.columns[table]
            types, stats = of_table["types"], of_table["stats"]
            texts = {
                name: TextEmbedderConfig(_Hashing(stats[name]["EMB_DIM"]))
                for name, kind in types.items() if kind == "text_embedded"
            }  # fmt: skip
            self._converters[table] = DataFrameToTensorFrameConverter(
                {name: stype(kind) for name, kind in types.items()}, statistics(of_table),
                col_to_sep={name: of_table["separators"].get(name) for name in types},
                col_to_text_embedder_cfg=texts, col_to_time_format=dict.fromkeys(types),
            )  # fmt: skip
        return self._converters[table]


class _Hashing:
    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, texts: list[str]) -> Tensor:
        return hashed_texts(texts, self.width)


_FEATURES: weakref.WeakKeyDictionary[Database, dict[str, RowFeatures]] = weakref.WeakKeyDictionary()


def features_of(database: Database, columns: Plain, kept: int = 2_000_000) -> RowFeatures:
    """The rows of a database for these columns, made once."""
    known = _FEATURES.setdefault(database, {})
    return known.setdefault(f"{kept} {columns}", RowFeatures(database, columns, kept))


def without(frame: TensorFrame, column: str) -> TensorFrame:
    """The frame with one column unknown in every row (missing; of texts, nothing said)."""
    feats = dict(frame.feat_dict)
    for kind, names in frame.col_names_dict.items():
        if column not in names:
            continue
        at, feat = names.index(column), frame.feat_dict[kind]
        if isinstance(feat, Tensor):
            gone = feat.clone()
            gone[:, at] = float("nan") if feat.is_floating_point() else -1
        else:
            parts = [feat[:, i] for i in range(len(names))]
            rows, values, offset = parts[at].num_rows, torch.zeros_like(parts[at].values), parts[at].offset
            if kind != stype.embedding:  # a set of categories: one, which is the missing one
                values, offset = values.new_full((rows,), -1), torch.arange(rows + 1, device=values.device)
            parts[at] = type(feat)(rows, 1, values, offset)
            gone = parts[0] if len(parts) == 1 else type(feat).cat(parts, dim=1)
        feats[kind] = gone
    return TensorFrame(feats, frame.col_names_dict)
