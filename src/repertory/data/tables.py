"""Tables from files: CSV, TSV (also gzipped), Parquet."""

from __future__ import annotations

import zlib
from pathlib import Path

import pandas as pd
import pyarrow as pa

from repertory.errors import DataError, first_line


def read_table(path: Path, id: str = "") -> pd.DataFrame:
    """The table in a file; columns of ids (``id``, and one of that name) stay texts, so that 007 does not become 7.

    Raises:
        DataError: it cannot be read, or has no row.
    """
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            separator = "\t" if ".tsv" in path.suffixes else ","
            frame = pd.read_csv(path, sep=separator, low_memory=False, dtype={"id": str, id or "id": str})
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as a table: {first_line(error)}") from None
    if frame.empty:
        raise DataError(f"{path}: empty: there is no row in it")
    return frame


def ids_of(frame: pd.DataFrame, column: str) -> list[str]:
    """A column of ids as texts.

    Raises:
        DataError: a row has none.
    """
    missing = frame[column].isna()
    if missing.any():
        raise DataError(f"column '{column}': row {int(missing.to_numpy().argmax())} is empty; every row needs a name")
    return frame[column].astype(str).tolist()


def to_arrow(frame: pd.DataFrame) -> pa.Table:
    """The columns that are carried along.

    Raises:
        DataError: a column mixes types.
    """
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except pa.ArrowException as error:
        raise DataError(f"a column mixes types: {' '.join(str(a) for a in error.args)[:200]}") from None
