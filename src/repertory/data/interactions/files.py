"""The layouts in which interactions are published: tables, folders, RecBole's atomic files, MovieLens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repertory.data.interactions.items import SIDES, Interactions, interactions_of
from repertory.data.tables import read_table
from repertory.errors import DataError, first_line

SUFFIXES = (".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz")


def _beside(path: Path, name: str) -> pd.DataFrame | None:
    return read_table(path.parent / name) if name else None


def read_interactions(
    path: Path,
    user: str = "",
    item: str = "",
    rating: str = "",
    time: str = "",
    at_least: float = 0.0,
    users: str = "",
    items: str = "",
    user_vectors: str = "",
    item_vectors: str = "",
) -> Interactions:
    """A table of interactions (CSV, TSV, Parquet) with a header; tables and ``.npy`` vectors beside it.

    Args:
        user, item, rating, time, at_least: see ``interactions_of``.
        users, items: tables beside it, with a column ``id``, and title, text, vector, ...
        user_vectors, item_vectors: ``.npy`` arrays beside it, in the order of ``users`` and ``items``.

    Raises:
        DataError: a file cannot be read, or columns or counts do not match.
    """
    vectors = {}
    for side, file in (("user", user_vectors), ("item", item_vectors)):
        if file:
            try:
                vectors[side] = np.load(path.parent / file, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DataError(f"{path.parent / file}: cannot be read as an array: {first_line(error)}") from None
    return interactions_of(
        read_table(path, user), str(path), user=user, item=item, rating=rating, time=time, at_least=at_least,
        users=_beside(path, users), items=_beside(path, items), vectors=vectors,
    )  # fmt: skip


def in_folder(folder: Path, *stems: str) -> Path | None:
    """The first table of one of these names."""
    return next((folder / (s + x) for s in stems for x in SUFFIXES if (folder / (s + x)).is_file()), None)


def read_folder(path: Path, at_least: float = 0.0) -> Interactions:
    """A folder with ``interactions`` (or ``ratings``), ``users``, ``items`` (or ``movies``), as far as they are there.

    ``users`` alone are people who have chosen nothing yet. Each is CSV, TSV or Parquet: the layout that
    ``Interactions.write`` makes, and MovieLens' ``ratings.csv`` with ``movies.csv``.
    """
    table, users, items = (
        in_folder(path, *stems) for stems in (("interactions", "ratings"), ("users",), ("items", "movies"))
    )
    about: dict[str, Any] = {
        "users": None if users is None else read_table(users),
        "items": None if items is None else read_table(items),
    }
    if table is None:
        return interactions_of(pd.DataFrame(columns=list(SIDES)), str(path), **about)
    return interactions_of(read_table(table), str(table), at_least=at_least, **about)


def read_atomic(path: Path, at_least: float = 0.0) -> Interactions:
    """RecBole's atomic files: ``NAME.inter`` and, where they are there, ``NAME.user`` and ``NAME.item`` beside it."""
    file = path if path.is_file() else next(iter(sorted(path.glob("*.inter"))))
    about: dict[str, Any] = {
        side + "s": _atomic(file.with_suffix("." + side)) if file.with_suffix("." + side).exists() else None
        for side in SIDES
    }
    return interactions_of(_atomic(file), str(file), at_least=at_least, **about)


def _atomic(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=3, encoding="utf-8")
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a table: {first_line(error)}") from None
    for column in frame.columns:
        name, colon, kind = column.partition(":")
        if not colon:
            raise DataError(f"{path}: the header '{column}' has no type: write NAME:token or NAME:float")
        values = frame.pop(column).replace("", None)
        frame[name] = pd.to_numeric(values, errors="coerce") if kind == "float" else values
    return frame


GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


def read_movielens(path: Path, at_least: float = 0.0) -> Interactions:
    """MovieLens as it is distributed: 100k (``u.data``, ``u.item``, ``u.user``) or 1M (``ratings.dat``, ...)."""
    users = items = None
    columns = ["user", "item", "rating", "time"]
    if (path / "u.data").exists():
        frame = _delimited(path / "u.data", "\t", columns)
        if (path / "u.item").exists():
            items = _delimited(path / "u.item", "|", ["id", "title", "released", "video", "url", *GENRES])
            marks = items[list(GENRES)] == "1"
            items["genres"] = [" ".join(np.array(GENRES)[row]) for row in marks.to_numpy()]
            items = items[["id", "title", "released", "genres"]]
        if (path / "u.user").exists():
            users = _delimited(path / "u.user", "|", ["id", "age", "gender", "occupation", "zip"])
    else:
        frame = _delimited(path / "ratings.dat", "::", columns)
        if (path / "movies.dat").exists():
            items = _delimited(path / "movies.dat", "::", ["id", "title", "genres"])
        if (path / "users.dat").exists():
            users = _delimited(path / "users.dat", "::", ["id", "gender", "age", "occupation", "zip"])
    for column in ("rating", "time"):
        frame[column] = pd.to_numeric(frame[column], errors="coerce")
    return interactions_of(frame, str(path), at_least=at_least, users=users, items=items)


def _delimited(path: Path, separator: str, columns: list[str]) -> pd.DataFrame:
    try:
        rows = [line.split(separator) for line in path.read_text(encoding="latin-1").splitlines() if line]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from None
    wrong = next((n for n, row in enumerate(rows, 1) if len(row) != len(columns)), None)
    if wrong is not None:
        raise DataError(f"{path}: line {wrong} has {len(rows[wrong - 1])} fields; {len(columns)} are needed")
    return pd.DataFrame(rows, columns=columns)
