"""Interactions: which user chose which item, with texts or vectors that describe users and items."""

from __future__ import annotations

from repertory.data.interactions.files import (
    SUFFIXES,
    in_folder,
    read_atomic,
    read_folder,
    read_interactions,
    read_movielens,
)
from repertory.data.interactions.items import SIDES, Interactions, InteractionTable, interactions_of
from repertory.data.items import Reader

__all__ = [
    "SIDES", "InteractionTable", "Interactions", "interactions_of", "read_atomic", "read_folder", "read_interactions",
    "read_movielens",
]  # fmt: skip


Interactions.readers = (
    Reader("atomic", "RecBole's NAME.inter with NAME.user and NAME.item, the file or its folder",
           lambda p: p.suffix == ".inter" or (p.is_dir() and any(p.glob("*.inter"))), read_atomic),
    Reader("movielens", "MovieLens as distributed: u.data or ratings.dat with their tables",
           lambda p: (p / "u.data").exists() or (p / "ratings.dat").exists(), read_movielens),
    Reader("folder", "a folder with interactions or ratings, users, items (CSV, TSV, Parquet)",
           lambda p: in_folder(p, "interactions", "ratings", "users") is not None, read_folder),
    Reader("table", "a table user, item (CSV, TSV, Parquet), with rating, time, tables and vectors of users and items",
           lambda p: p.is_file() and p.name.endswith(SUFFIXES), read_interactions),
)  # fmt: skip
