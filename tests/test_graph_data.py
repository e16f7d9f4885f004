"""Graphs: nodes of a whole, and the layouts in which graphs come."""

from __future__ import annotations

import gzip
import pickle
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.data import Data
from torch_geometric.datasets import KarateClub

from repertory import data
from repertory.data.graph import Nodes, per_class
from repertory.errors import DataError

TRIANGLE = [[0, 1, 1, 2, 2, 0, 2, 3], [1, 0, 2, 1, 0, 2, 3, 2]]


def graph(**changes):
    plain = {
        "x": torch.arange(12.0).reshape(4, 3), "edge_index": torch.tensor(TRIANGLE), "y": torch.tensor([0, 1, 0, 1]),
        "train_mask": torch.tensor([True, True, False, False]), "val_mask": torch.tensor([False, False, True, False]),
        "test_mask": torch.tensor([False, False, False, True]),
    }  # fmt: skip
    made = {name: value for name, value in {**plain, **changes}.items() if value is not None}
    return Data(**made)


def test_take_keeps_the_graph():
    splits = data.open(graph(), "graph")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [2, 1, 1]
    assert splits.rule == "source"
    assert splits.test.graph is splits.all.graph
    assert splits.test.places.tolist() == [3]
    assert splits.test.neighbours(2).tolist() == [0, 1, 3]
    assert splits.test.preview(0).text == "1 neighbours"
    assert splits.train.labels().tolist() == ["0", "1"]


def test_the_digest_is_of_features_label_and_neighbours():
    same = data.open(graph(), "graph").all.contents
    changed = graph()
    changed.x[0] += 1
    relabelled = graph(y=torch.tensor([0, 0, 0, 1]))
    fewer = graph(edge_index=torch.tensor(TRIANGLE)[:, :6])
    shuffled = graph(edge_index=torch.tensor(TRIANGLE).flip(1))
    for other, moved in ((changed, [0]), (relabelled, [1]), (fewer, [2, 3]), (shuffled, [])):
        contents = data.open(other, "graph").all.contents
        assert np.flatnonzero((contents != same).any(1)).tolist() == moved


def test_nodes_without_label_or_split_are_embedded_and_not_divided():
    y = torch.tensor([0, 1, 0, 1, -1, 0])
    x, edges = torch.rand(6, 2), torch.tensor([[0, 1, 4, 5], [1, 0, 5, 4]])
    masks = {"train_mask": torch.tensor([0, 1]), "val_mask": torch.tensor([2]), "test_mask": torch.tensor([3])}
    splits = data.open(Data(x=x, edge_index=edges, y=y, **masks), "graph")
    assert len(splits.all) == 6
    assert splits.all.units.ids.tolist() == ["0", "1", "2", "3"]
    assert splits.all.units is splits.all.units
    assert len(splits.train) == 2
    free = data.open(Data(x=x, edge_index=edges, y=y), "graph")
    assert free.rule == "random"
    assert sorted(np.concatenate([p.ids for p in (free.train, free.val, free.test)])) == ["0", "1", "2", "3", "5"]
    bad = x.clone()
    bad[4] = torch.nan
    with pytest.raises(DataError, match=r"features of 1 nodes in no split are not finite .first: 4"):
        data.open(Data(x=bad, edge_index=edges, y=y), "graph")


def test_graphs_side_by_side(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        random = np.random.default_rng(seed)
        frame = pd.DataFrame({"id": ["n0", "n1", "n2"], "w": random.random(3), "label": ["x", "y", "x"]})
        (tmp_path / name).mkdir()
        frame.to_csv(tmp_path / name / "nodes.csv", index=False)
        (tmp_path / name / "edges.csv").write_text("source,target\nn0,n1\nn1,n2\n")
    (tmp_path / "both.yaml").write_text("kind: graph\ntrain: a\ntest: b\nundirected: true\n")
    splits = data.open(tmp_path / "both.yaml")
    assert len(splits.all) == 6
    assert splits.test.graph.edge_index.shape == (2, 8)
    assert splits.test.neighbours(4).tolist() == [3, 5]
    assert len(set(splits.all.names)) == 6
    with pytest.raises(DataError, match="1 and 2 features do not fit"):
        Nodes.concat([splits.all, Nodes.wrap(Data(x=torch.rand(2, 2), edge_index=torch.tensor([[0], [1]])))], "ab")


def test_features_from_the_graph_itself():
    bare = graph(x=None, num_nodes=4)
    with pytest.raises(DataError, match="no features: add features=degree"):
        data.open(bare, "graph")
    assert data.open(bare, "graph", features="degree").all.graph.x.argmax(1).tolist() == [2, 2, 3, 1]
    assert torch.equal(data.open(bare, "graph", features="identity").all.graph.x, torch.eye(4))
    with pytest.raises(DataError, match="features=size"):
        data.open(bare, "graph", features="size")
    club = data.open(KarateClub()[0], "graph")
    assert len(club.all) == 34


def test_directed_graphs_stay_so_unless_asked():
    one_way = graph(edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]))
    assert data.open(one_way, "graph").all.graph.edge_index.shape[1] == 3
    both = data.open(one_way, "graph", undirected=True).all.graph
    assert both.is_undirected()
    assert both.edge_index.shape[1] == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_index": torch.tensor([[0, 9], [9, 0]])}, "an edge names node 9, but there are 4 nodes"),
        ({"edge_index": torch.tensor([[0, -2], [-2, 0]])}, "an edge names node -2"),
        ({"edge_index": torch.empty(2, 0, dtype=torch.long)}, "there is no edge"),
        ({"edge_index": torch.rand(2, 4)}, r"integers \[2, edges\] are needed"),
        ({"edge_index": None}, "has no edge_index"),
        ({"y": torch.tensor([0.0, 1, 0, 1])}, "labels are float32"),
        ({"y": torch.tensor([0, -1, 0, 1])}, "1 training nodes have no label .first: node 1"),
        ({"y": torch.tensor([0, -7, 0, 1])}, r"1 labels are below -1 .first: node 1, -7"),
        ({"y": torch.zeros(4, 3, dtype=torch.long)}, "one class a node"),
        ({"train_mask": torch.zeros(4, dtype=torch.bool)}, "train_mask is empty"),
        ({"train_mask": torch.tensor([0, 8])}, "node numbers from 0 to 3"),
        ({"train_mask": torch.ones(3, dtype=torch.bool)}, "3 entries for 4 nodes"),
        ({"train_mask": torch.ones(4, 2, dtype=torch.bool)}, "choose one split"),
        ({"val_mask": torch.tensor([1])}, "1 nodes are in train_mask and val_mask .first: 1"),
        ({"x": torch.full((4, 3), torch.nan)}, "0: features holds nan"),
        ({"x": torch.rand(4)}, r"features \[4\]"),
    ],
)
def test_bad_graphs(changes, message):
    with pytest.raises(DataError, match=message):
        data.open(graph(**changes), "graph")


def test_duplicates_are_merged_and_said():
    with pytest.warns(UserWarning, match="2 edges occur more than once .such as 0 to 1. and were merged"):
        made = data.open(graph(edge_index=torch.tensor([[0, 0, 0, 1], [1, 1, 1, 0]])), "graph")
    assert made.all.graph.edge_index.shape == (2, 2)


def test_per_class():
    labels = np.repeat(["a", "b"], 10)
    split = per_class([*labels, None], 3, 4, seed=1)
    assert [(split[start : start + 10] == "train").sum() for start in (0, 10)] == [3, 3]
    assert split[20] is None
    assert (split == "val").sum() == 8
    with pytest.raises(DataError, match="class 'a' has 10 nodes: too few"):
        per_class(labels, 5, 5)


# -- tables ----------------------------------------------------------------------------------------------------


def _tables(folder, **changes):
    nodes = pd.DataFrame({
        "id": ["007", "b", "c", "d"], "w1": [1.0, 2, 3, 4], "w2": [0, 1, 0, 1], "label": ["x", "y", "x", None],
        "split": ["train", "train", "val", None], "town": ["p", "q", "r", "s"],
    }).assign(**changes)  # fmt: skip
    nodes.to_csv(folder / "nodes.csv", index=False)
    nodes.to_parquet(folder / "people.parquet")
    (folder / "edges.csv").write_text("source,target,kind\n007,b,1\nb,c,1\nc,d,2\n")
    pd.DataFrame({"a": ["007", "b", "c"], "z": ["b", "c", "d"]}).to_parquet(folder / "links.parquet")


def test_tables(tmp_path):
    _tables(tmp_path)
    folder = data.open(f"graph:{tmp_path}?undirected=true")
    assert folder.all.ids.tolist() == ["007", "b", "c", "d"]
    assert folder.all.graph.x.tolist() == [[1, 0], [2, 1], [3, 0], [4, 1]]
    assert folder.all.graph.edge_index.tolist() == [[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]
    assert folder.all.units.ids.tolist() == ["007", "b", "c"]
    assert folder.all.column("town").tolist() == ["p", "q", "r", "s"]
    named = data.open(
        f"graph:{tmp_path}/people.parquet?edges=links.parquet&source=a&target=z&undirected=true&features=w*"
    )
    assert named.all.fingerprint == folder.all.fingerprint
    one = data.open(f"graph:{tmp_path}?features=w2&undirected=true")
    assert one.all.graph.x.shape == (4, 1)
    assert one.all.column("w1").tolist() == [1, 2, 3, 4]
    other = data.open(f"graph:{tmp_path}?label=town&split=random&undirected=true&features=degree")
    assert other.all.units.ids.tolist() == ["007", "b", "c"]


def test_tables_with_numbers_as_labels_and_lists_as_features(tmp_path):
    _tables(tmp_path, label=[0, 1, 0, None])
    assert data.open(f"graph:{tmp_path}").all.column("label").tolist() == ["0", "1", "0", None]
    _tables(tmp_path, label=[0, 1, 0, -1])
    assert data.open(f"graph:{tmp_path}").all.column("label").tolist() == ["0", "1", "0", None]
    pd.DataFrame({"id": list("ab"), "features": [[1.0, 2], [3, 4]]}).to_parquet(tmp_path / "lists.parquet")
    (tmp_path / "e.csv").write_text("source,target\na,b\nb,a\n")
    listed = data.open(f"graph:{tmp_path}/lists.parquet?edges=e.csv", split="random")
    assert listed.all.graph.x.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("change", "source", "message"),
    [
        ({}, "nodes.csv", "name the table of edges"),
        ({}, "nodes.csv?edges=nothing.csv", "no such file"),
        ({}, "?id=who", "no column 'who'"),
        ({}, "?source=who", "no column 'who'.*name it with source=COLUMN"),
        ({}, "?features=w9", "features=w9: no such column"),
        ({}, "?features=town", "features town"),
        ({"id": ["007", "b", "b", "d"]}, "", "'b' is listed more than once"),
        ({"id": ["007", "b", "c", "e"]}, "", r"1 edges name a node .* .first: row 3, target 'd'"),
        ({"w1": [1.0, np.nan, 3, 4]}, "", "b: features holds nan"),
        ({"label": [0.5, 1, 0, 1]}, "", "labels are float64"),
        ({"split": ["train", "train", "val", "train"]}, "", "1 training nodes have no label .first: node d"),
    ],
)
def test_bad_tables(tmp_path, change, source, message):
    _tables(tmp_path, **change)
    with pytest.raises(DataError, match=message):
        data.open(f"graph:{tmp_path}/{source}" if source[:1] != "?" else f"graph:{tmp_path}{source}")


# -- published layouts -------------------------------------------------------------------------------------------


def _as_python_2(value):
    made = pickle.dumps(value, protocol=2)
    return made.replace(b"scipy.sparse._csr\n", b"scipy.sparse.csr\n").replace(b"numpy._core.", b"numpy.core.")


def _planetoid(folder, isolated=False):
    """12 nodes in 2 classes: 4 of training, 8 in allx, test nodes 8 .. 11 out of order (10 missing where isolated)."""
    random = np.random.default_rng(0)
    x = random.integers(0, 2, (12, 5)).astype(np.float32)
    y = np.eye(2, dtype=np.int32)[np.arange(12) % 2]
    listed = [11, 8, 9] if isolated else [11, 8, 10, 9]
    links = defaultdict(list, {i: [(i + 1) % 12] for i in range(12)})
    parts = {"allx": sp.csr_matrix(x[:8]), "tx": sp.csr_matrix(x[listed]), "x": sp.csr_matrix(x[:4]), "ally": y[:8],
             "ty": y[listed], "y": y[:4], "graph": links}  # fmt: skip
    for name, value in parts.items():
        (folder / f"ind.tiny.{name}").write_bytes(_as_python_2(value))
    (folder / "ind.tiny.test.index").write_text("\n".join(map(str, listed)) + "\n")
    return x, y


@pytest.mark.parametrize("isolated", [False, True])
def test_planetoid(tmp_path, isolated):
    x, y = _planetoid(tmp_path, isolated)
    splits = data.open(f"graph:{tmp_path}")
    known = [n for n in range(12) if not (isolated and n == 10)]
    assert splits.all.graph.x.numpy()[known].tolist() == x[known].tolist()
    assert [splits.all.column("label")[n] for n in known] == [str(label) for label in y.argmax(1)[known]]
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [4, 4, 3 if isolated else 4]
    assert splits.all.graph.is_undirected()
    assert splits.all.graph.edge_index.shape == (2, 24)
    if isolated:
        assert splits.all.graph.x[10].tolist() == [0] * 5
        assert splits.all.column("label")[10] is None


def test_planetoid_refuses_what_is_no_data(tmp_path):
    _planetoid(tmp_path)
    whole = (tmp_path / "ind.tiny.graph").read_bytes()
    for attack, message in (
        (b"cos\nsystem\n(S'touch /tmp/never'\ntR.", r"holds (os|posix)\.system"),
        (b"ccopy_reg\n_reconstructor\n(c__builtin__\nlist\nc__builtin__\nobject\nNtR.", "holds a list where a matrix"),
        (whole[:20], "not a pickle that can be read"),
        (pickle.dumps({0: ["a"]}, 2), "do not fit together"),
    ):
        (tmp_path / "ind.tiny.graph").write_bytes(attack)
        with pytest.raises(DataError, match=message):
            data.open(f"graph:{tmp_path}")
    (tmp_path / "ind.other.graph").write_bytes(whole)
    with pytest.raises(DataError, match="it holds other, tiny: choose one with name=other"):
        data.open(f"graph:{tmp_path}")
    with pytest.raises(DataError, match=r"ind\.other\.allx: no such file"):
        data.open(f"graph:{tmp_path}?name=other")


def test_citation_full(tmp_path):
    words = sp.csr_matrix(np.array([[0, 3.0], [1, 0], [1, 1], [0, 2]]))
    links = sp.csr_matrix(([1.0, 1, 1], ([0, 1, 2], [1, 2, 3])), shape=(4, 4))
    arrays = {f"{part}_{of}": getattr(matrix, of) for part, matrix in (("adj", links), ("attr", words))
              for of in ("data", "indices", "indptr", "shape")}  # fmt: skip
    np.savez(tmp_path / "c.npz", **arrays, labels=np.array([0, 1, 1, 0]), names=np.array([{}], dtype=object))
    splits = data.open(f"graph:{tmp_path}/c.npz?train=0&split=random")
    assert splits.all.graph.x.tolist() == [[0, 1], [1, 0], [1, 1], [0, 1]]
    assert splits.all.graph.edge_index.shape == (2, 6)
    assert splits.all.labels().tolist() == ["0", "1", "1", "0"]
    with pytest.raises(DataError, match="class '0' has 2 nodes: too few for 20 of training, 30 of validation"):
        data.open(f"graph:{tmp_path}/c.npz")
    for bad in (b"no zip", pickle.dumps([1])):
        (tmp_path / "c.npz").write_bytes(bad)
        with pytest.raises(DataError, match=r"c.npz: in no layout known here: .*an .npz with adj_data"):
            data.open(f"graph:{tmp_path}/c.npz")
        with pytest.raises(DataError, match="cannot be read as a CitationFull graph"):
            data.open(f"graph:{tmp_path}/c.npz?layout=citation-full")


def test_ogb(tmp_path):
    tables = {
        "raw/edge": "0,1\n1,2\n2,3\n", "raw/node-feat": "0.5,1\n0,1\n-1,2\n3,4\n", "raw/node-label": "4\n2\n4\n2\n",
        "raw/node_year": "2000\n2001\n2002\n2003\n", "split/time/train": "0\n1\n", "split/time/valid": "2\n",
        "split/time/test": "3\n",
    }  # fmt: skip
    for name, text in tables.items():
        path = tmp_path / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))
    splits = data.open(f"graph:{tmp_path}?undirected=true")
    assert splits.train.labels().tolist() == ["4", "2"]
    assert splits.test.column("year").tolist() == [2003]
    assert splits.all.graph.edge_index.shape == (2, 6)
    with pytest.raises(DataError, match="by=year; valid: time"):
        data.open(f"graph:{tmp_path}?by=year")
    (tmp_path / "raw" / "edge.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read as a table of numbers"):
        data.open(f"graph:{tmp_path}")


def test_the_sample_is_the_graph_that_it_says():
    splits = data.open("digits-graph", "graph")
    ends, labels = splits.all.graph.edge_index.numpy(), splits.all.labels()
    assert ends.shape == (2, 20142)
    assert (labels[ends[0]] == labels[ends[1]]).mean() == pytest.approx(0.959, abs=5e-4)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [200, 300, 1297]
    with pytest.raises(DataError, match="train=0"):
        data.open("digits-graph?train=0")
