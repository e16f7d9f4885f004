"""The layouts in which well-known graphs are published: Planetoid, CitationFull, OGB."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repertory.data.graph.nodes import Nodes, per_class
from repertory.data.pickles import read_pickle
from repertory.errors import DataError, first_line, nearest


def _dense(data: Any, indices: Any, indptr: Any, shape: Any) -> np.ndarray:
    """[rows, columns] float32 of a compressed sparse matrix."""
    made = np.zeros(tuple(int(side) for side in shape), np.float32)
    made[np.repeat(np.arange(len(made)), np.diff(indptr)), indices] = data
    return made


def read_planetoid(path: Path, name: str = "") -> Nodes:
    """Cora, CiteSeer or PubMed as Planetoid publishes them: ``ind.NAME.x``, ``tx``, ``allx``, ``y``, ... (pickles).

    The public split: 20 nodes of each class for training, the next 500 for validation, those of ``test.index``.
    Edges are made undirected. Nodes that no file describes (CiteSeer has 15) have no features and no label.

    Args:
        path: the folder. name: of the graph, where the folder holds several.

    Raises:
        DataError: a file is missing, damaged, or holds anything but numbers.
    """
    there = sorted(file.name.split(".")[1] for file in path.glob("ind.*.graph"))
    if not name and len(there) > 1:
        raise DataError(f"{path}: it holds {', '.join(there)}: choose one with name={there[0]}")
    name = name or there[0]
    if name not in there:
        raise DataError(f"{path}: name={name}{nearest(name, there)}")
    read = {
        part: read_pickle(path / f"ind.{name}.{part}", "latin1") for part in ("allx", "tx", "ally", "ty", "y", "graph")
    }
    try:
        allx, tx = (read[part].toarray() for part in ("allx", "tx"))
        ally, ty, y, links = (read[part] for part in ("ally", "ty", "y", "graph"))
        listed = np.loadtxt(path / f"ind.{name}.test.index", dtype=np.int64, ndmin=1)
        n = max(int(listed.max()) + 1, len(allx))
        x, one_hot = np.zeros((n, allx.shape[1]), np.float32), np.zeros((n, ally.shape[1]))
        x[: len(allx)], one_hot[: len(ally)] = allx, ally
        x[listed], one_hot[listed] = tx, ty
        pairs = [(int(i), int(j)) for i, others in links.items() for j in others]
    except (OSError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: the files of {name} do not fit together: {first_line(error)}") from None
    labels = np.where(one_hot.any(axis=1), one_hot.argmax(axis=1), -1)
    split = np.full(n, None, dtype=object)
    split[: len(y)], split[len(y) : min(len(y) + 500, len(ally))] = "train", "val"
    split[listed[labels[listed] >= 0]] = "test"
    edges = np.unique(np.array(pairs, np.int64).reshape(-1, 2), axis=0).T
    return Nodes.of(x, edges, labels=labels, split=split, source=str(path), undirected=True)


def is_citation_full(path: Path) -> bool:
    """Whether a file is an ``.npz`` with an adjacency matrix in it."""
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return "adj_data.npy" in file.namelist()


def read_citation_full(path: Path, train: int = 20, val: int = 30, seed: int = 0) -> Nodes:
    """An ``.npz`` of the CitationFull graphs: ``adj_data``, ``adj_indices``, ..., ``attr_data``, ..., ``labels``.

    Words are 0 or 1, edges are made undirected.

    Args:
        path: the file.
        train, val: random nodes of each class, the rest is test; train=0 leaves the split to ``split=``.
        seed: of the draw.

    Raises:
        DataError: it cannot be read without unpickling, or an array is missing.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            adjacency, words = (
                [file[f"{part}_{of}"] for of in ("data", "indices", "indptr", "shape")] for part in ("adj", "attr")
            )
            labels = file["labels"]
        x = (_dense(*words) > 0).astype(np.float32)
        starts = np.repeat(np.arange(len(adjacency[2]) - 1), np.diff(adjacency[2]))
        edges = np.unique(np.stack([starts, adjacency[1]]), axis=1)
    except Exception as error:  # zip and header errors of many types
        raise DataError(f"{path}: cannot be read as a CitationFull graph: {first_line(error)}") from None
    split = per_class([None if label < 0 else label for label in labels], train, val, seed) if train else None
    return Nodes.of(x, edges, labels=labels, split=split, source=str(path), undirected=True)


def read_ogb(path: Path, by: str = "", undirected: bool = False) -> Nodes:
    """A node property prediction graph as OGB packs it: ``raw/edge.csv.gz``, ``raw/node-feat.csv.gz``, ...

    Args:
        path: the folder that holds ``raw`` and ``split``.
        by: the folder in ``split`` (``time`` of ogbn-arxiv), where there are several.
        undirected: add the reverse of every edge.

    Raises:
        DataError: a table is missing or cannot be read.
    """
    edges = _numbers(path / "raw" / "edge.csv.gz").T
    x = _numbers(path / "raw" / "node-feat.csv.gz")
    labels = _numbers(path / "raw" / "node-label.csv.gz")
    if labels.shape[1] == 1 and labels.dtype.kind == "f" and (labels[np.isfinite(labels)] % 1 == 0).all():
        labels = np.where(np.isfinite(labels), labels, -1).astype(np.int64)
    folders = sorted(p.name for p in (path / "split").glob("*") if p.is_dir())
    if by not in folders and (by or len(folders) != 1):
        raise DataError(f"{path}: by={by}{nearest(by, folders)}")
    places = np.full(len(x), None, dtype=object)
    for part, file in (("train", "train"), ("val", "valid"), ("test", "test")):
        places[_numbers(path / "split" / (by or folders[0]) / f"{file}.csv.gz")[:, 0]] = part
    columns = {}
    if (path / "raw" / "node_year.csv.gz").exists():
        columns["year"] = _numbers(path / "raw" / "node_year.csv.gz")[:, 0]
    return Nodes.of(x, edges, labels=labels, split=places, columns=columns, source=str(path), undirected=undirected)


def _numbers(path: Path) -> np.ndarray:
    """A table without header."""
    try:
        return pd.read_csv(path, header=None).to_numpy()
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as a table of numbers: {first_line(error)}") from None
