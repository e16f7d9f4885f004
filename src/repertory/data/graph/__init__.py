"""Graphs: an item is a node, and the whole graph stays behind the items."""

from __future__ import annotations

from pathlib import Path

from repertory.data.graph.nodes import Nodes, per_class
from repertory.data.graph.published import is_citation_full, read_citation_full, read_ogb, read_planetoid
from repertory.data.graph.tables import read_tables
from repertory.data.items import Reader

__all__ = ["Nodes", "per_class", "read_citation_full", "read_ogb", "read_planetoid", "read_tables"]


def _holds_tables(path: Path) -> bool:
    if path.is_dir():
        return any(path.glob("nodes.*")) and any(path.glob("edges.*"))
    return bool({".csv", ".tsv", ".parquet"} & set(path.suffixes))


Nodes.readers = (
    Reader("planetoid", "a folder with ind.NAME.graph and its sisters (Cora, CiteSeer, PubMed)",
           lambda p: p.is_dir() and any(p.glob("ind.*.graph")), read_planetoid),
    Reader("ogb", "a folder with raw/edge.csv.gz, raw/node-feat.csv.gz and split, as OGB packs it",
           lambda p: (p / "raw" / "edge.csv.gz").exists(), read_ogb),
    Reader("citation-full", "an .npz with adj_data, attr_data and labels (CitationFull)",
           is_citation_full, read_citation_full),
    Reader("tables", "a folder with nodes.* and edges.*, or a table of nodes with edges=FILE (CSV, TSV, Parquet)",
           _holds_tables, read_tables),
)  # fmt: skip
