"""Tables from files: CSV, TSV (also gzipped), Parquet."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from repertory.errors import DataError


def read_table(path: Path) -> pd.DataFrame:
    """The table in a file.

    Raises:
        DataError: it cannot be read, has no row, or names a column twice.
    """
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, sep="\t" if ".tsv" in path.suffixes else ",", low_memory=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a table: {str(error).splitlines()[0]}") from None
    if frame.empty:
        raise DataError(f"{path}: empty: there is no row in it")
    return frame
