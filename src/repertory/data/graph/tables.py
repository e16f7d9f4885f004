"""A graph from a table of nodes and a table of edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from repertory.data.graph.nodes import Nodes
from repertory.data.tables import ids_of, read_table, to_arrow
from repertory.errors import DataError, first_line, nearest

NAMES = {
    "id": ("id", "node", "node_id", "name"),
    "source": ("source", "src", "from", "node1", "id1", "i", "u"),
    "target": ("target", "dst", "to", "destination", "node2", "id2", "j", "v"),
    "label": ("label", "y", "class", "target"),
    "features": ("features", "x", "embedding"),
}
"""What tables call their columns."""


def _column(frame: pd.DataFrame, role: str, given: str, name: str) -> str:
    known = {str(column).lower(): str(column) for column in frame.columns}
    for candidate in (given,) if given else NAMES[role]:
        if candidate.lower() in known:
            return known[candidate.lower()]
    raise DataError(
        f"{name}: no column '{given or NAMES[role][0]}' (there are {', '.join(map(str, frame.columns))}): "
        f"name it with {role}=COLUMN"
    )


def read_tables(
    path: Path,
    edges: str = "",
    id: str = "",
    source: str = "",
    target: str = "",
    features: str = "",
    undirected: bool = False,
) -> Nodes:
    """A table of nodes and one of edges (CSV, TSV, Parquet): a folder with ``nodes.*`` and ``edges.*``, or one file.

    Args:
        path: the folder, or the table of nodes; a column ``split`` may name the split, an empty label is unknown.
        edges: the table of edges beside the table of nodes.
        id, source, target: names of the columns; empty ones are found by their usual names.
        features: the columns that are features, joined by commas (``word_*`` stands for all that begin so), or
            ``degree`` or ``identity``; empty: a column of lists called features, else every column of numbers but id,
            label and split.
        undirected: every edge is listed once and goes both ways.

    Raises:
        DataError: a table or column is missing, an edge names a node that is not there, a node is listed twice.
    """
    nodes_file, edges_file = path, path.parent / edges
    if path.is_dir():
        nodes_file, edges_file = _table_in(path, "nodes"), path / edges if edges else _table_in(path, "edges")
    elif not edges:
        raise DataError(f"{path}: name the table of edges that lies beside it: edges=edges.csv")
    nodes, pairs = read_table(nodes_file, id), _read_edges(edges_file)
    key = _column(nodes, "id", id, str(nodes_file))
    names = ids_of(nodes, key)
    columns = [_column(pairs, role, given, str(edges_file)) for role, given in (("source", source), ("target", target))]
    ends = _ends(pairs, names, columns, str(edges_file))
    label = next((str(c) for c in nodes.columns if str(c).lower() in NAMES["label"]), None)
    stand_in = features if features in ("degree", "identity") else ""
    kept = [key, "split", *([label] if label else [])]
    x, used = (None, []) if stand_in else _table_features(nodes, features, kept, str(nodes_file))
    rest = nodes.drop(columns=[key, *used]).convert_dtypes()
    labels = None
    if label is not None:
        column = rest.pop(label)
        if pd.api.types.is_integer_dtype(column):
            labels = column.fillna(-1).to_numpy(np.int64)
        else:
            labels = column.to_numpy(np.float64 if pd.api.types.is_float_dtype(column) else object)
    table = to_arrow(rest)
    return Nodes.of(
        x, ends, names=names, labels=labels, columns={name: table[name] for name in table.column_names},
        source=str(path), undirected=undirected, features=stand_in, nodes=len(names),
    )  # fmt: skip


def _table_in(folder: Path, stem: str) -> Path:
    found = [p for p in sorted(folder.glob(f"{stem}.*")) if {".csv", ".tsv", ".parquet"} & set(p.suffixes)]
    if len(found) != 1:
        raise DataError(f"{folder}: {len(found)} tables called {stem}.csv, .tsv or .parquet: one is needed")
    return found[0]


def _read_edges(path: Path) -> pd.DataFrame:
    """As texts, so that 007 stays 007."""
    frame = read_table(path)
    if path.suffix != ".parquet":
        frame = pd.read_csv(path, sep="\t" if ".tsv" in path.suffixes else ",", dtype=str)
    return frame


def _ends(pairs: pd.DataFrame, names: list[str], columns: list[str], source: str) -> np.ndarray:
    place = pd.Index(names)
    if place.has_duplicates:
        twice = place[place.duplicated()][0]
        raise DataError(f"node '{twice}' is listed more than once: each node needs one row")
    ends = []
    for column in columns:
        asked = pairs[column].astype(str)
        found = place.get_indexer(pd.Index(asked))
        if (found < 0).any():
            row = int((found < 0).argmax())
            raise DataError(
                f"{source}: {int((found < 0).sum())} edges name a node that is not in the table of nodes "
                f"(first: row {row + 1}, {column} '{asked.iloc[row]}')"
            )
        ends.append(found)
    return np.array(ends, dtype=np.int64)


def _table_features(nodes: pd.DataFrame, features: str, kept: list[str], source: str) -> tuple[np.ndarray, list[str]]:
    columns = [str(c) for c in nodes.columns]
    if features:
        used = []
        for asked in features.split(","):
            found = [c for c in columns if c.startswith(asked[:-1])] if asked.endswith("*") else [asked]
            if not found or not set(found) <= set(columns):
                raise DataError(f"{source}: features={asked}: no such column{nearest(asked, columns)}")
            used += found
    else:
        lists = [c for c in columns if c.lower() in NAMES["features"] and nodes[c].dtype == object]
        used = lists or [c for c in columns if c not in kept and pd.api.types.is_numeric_dtype(nodes[c])]
    if not used:
        raise DataError(f"{source}: the nodes have no features: add features=COLUMNS, features=degree or identity")
    try:
        parts = [np.stack([np.asarray(v, np.float32) for v in nodes[c]]).reshape(len(nodes), -1) for c in used]
    except (ValueError, TypeError) as error:
        raise DataError(f"{source}: features {', '.join(used[:3])}: {first_line(error)}") from None
    return np.concatenate(parts, axis=1), used
