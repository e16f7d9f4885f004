"""Nodes of one graph, which stays whole behind them (PyG's ``Data``)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from repertory.data.items import Items, Preview, Reader, digest, finite
from repertory.errors import DataError, MissingExtraError

ACCEPTED = "a PyG Data with x and edge_index (y, train_mask, val_mask, test_mask where known)"
DEGREES = 64
"""Width of the one-hot degrees that stand for features."""
PARTS = ("train", "val", "test")


class Nodes(Items):
    """Nodes of one graph: ``take`` says which are meant and leaves the graph whole, so that a node keeps its edges.

    What is divided, and never both trained and evaluated on, is nodes too: those that have a label where there are
    labels, and a place in a split where the source names splits. The others can be embedded.

    Args:
        ids: names of the nodes meant.
        graph: PyG ``Data`` with ``x`` [n, features] float32 and ``edge_index`` [2, edges], sorted, each edge once.
        names: of all nodes [n].
        places: positions of the nodes meant among all [N]; None: all.
        columns: what is known of each node meant, a row per node; ``split`` may name its split.
    """

    kind = "graph"
    readers: ClassVar[tuple[Reader, ...]]

    def __init__(
        self,
        ids: Any,
        graph: Any,
        names: np.ndarray,
        places: np.ndarray | None = None,
        columns: Any = None,
        roles: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        super().__init__(ids, columns, roles)
        self.graph, self.names = graph, names
        self.places = np.arange(len(self.ids)) if places is None else places
        ends = np.asarray(graph.edge_index)
        self._start = np.concatenate([[0], np.cumsum(np.bincount(ends[0], minlength=len(names)))])
        self._known: tuple[Any, Nodes] | None = None

    @classmethod
    def of(
        cls,
        x: Any,
        edges: Any,
        *,
        names: Sequence[Any] | np.ndarray | None = None,
        labels: Sequence[Any] | np.ndarray | None = None,
        split: np.ndarray | None = None,
        columns: Mapping[str, Any] | None = None,
        source: str = "the graph",
        undirected: bool = False,
        features: str = "",
        nodes: int | None = None,
    ) -> Nodes:
        """All nodes of a graph.

        Args:
            x: features [n, width], numbers; None where ``features`` says what stands for them.
            edges: [2, edges] positions of source and target; those that occur twice are merged, with a warning.
            names: of the nodes [n]; None: their numbers.
            labels: [n], None where unknown.
            split: [n] of train, val, test, None.
            columns: further columns, a value per node.
            source: where it comes from, for messages.
            undirected: add the reverse of every edge that has none.
            features: ``degree`` (one-hot, up to 63) or ``identity`` (one-hot of the node).
            nodes: their number, where there is no ``x``.

        Raises:
            DataError: an edge names a node that is not there, a label stands for nothing, features are missing.
        """
        if x is None:
            n = 0 if nodes is None else nodes
        else:
            x = np.asarray(x)
            if x.ndim != 2 or x.dtype.kind not in "fiub":
                raise DataError(f"{source}: features {list(x.shape)} of {x.dtype}: numbers [nodes, width] are needed")
            n = len(x)
        if not n:
            raise DataError(f"{source}: empty: there is no node in it")
        ends = _edges(np.asarray(edges), n, source, undirected)
        x = _features(x, ends, n, features, source)
        ids = np.arange(n) if names is None else np.asarray(names, dtype=object)
        held = dict(columns or {})
        if labels is not None:
            held = {"label": _known(np.asarray(labels), n, source), **held}
        if split is not None:
            held["split"] = split
        for name, values in held.items():
            if len(values) != n:
                raise DataError(f"{source}: {len(values)} values of '{name}' for {n} nodes")
        roles = {"label": ("label",)} if labels is not None else {}
        made = cls(ids, _data(x, ends), np.empty(n), columns=held, roles=roles)
        made.names = made.ids
        outside = np.setdiff1d(made.places, made.units.places)
        if labels is not None and "split" in held:
            missing = outside[(made.columns["split"].to_numpy() == "train")[outside]]
            if len(missing):
                raise DataError(
                    f"{source}: {len(missing)} training nodes have no label (first: node {made.names[missing[0]]}): "
                    "take them out of the training split, they are used without label all the same"
                )
        broken = outside[~np.isfinite(x[outside]).all(axis=1)]
        if len(broken):
            raise DataError(
                f"{source}: features of {len(broken)} nodes in no split are not finite (first: {made.names[broken[0]]})"
            )
        return made

    @property
    def units(self) -> Nodes:
        """The nodes that have a label and a place in a split, where the source has labels and splits."""
        columns = [name for name in ("split", *self.roles.get("label", ())) if name in self.columns.column_names]
        key = tuple(columns)
        if self._known is not None and self._known[0] == key:
            return self._known[1]
        known = np.ones(len(self), dtype=bool)
        for name in columns:
            known &= ~pc.is_null(self.columns[name], nan_is_null=True).to_numpy()
        if known.all():
            return self
        self._known = (key, self.take(known))
        return self._known[1]

    def part(self, units: Any) -> Nodes:
        return self.units.take(units)

    def neighbours(self, place: int) -> np.ndarray:
        """Positions of the nodes that the node at ``place`` has an edge to, ascending."""
        ends: np.ndarray = self.graph.edge_index[1].numpy()
        return ends[self._start[place] : self._start[place + 1]]

    def check(self, index: int) -> str:
        place = int(self.places[index])
        features = finite(self.graph.x[place].numpy(), "features")
        label = [str(self.columns[name][index]) for name in self.roles.get("label", ())]
        around = sorted(str(name) for name in self.names[self.neighbours(place)])
        return digest(features.tobytes(), "\0".join(label), "\0".join(around))

    def _select(self, indices: np.ndarray) -> None:
        self.places, self._known = self.places[indices], None

    def _extend(self, parts: Sequence[Nodes]) -> None:
        """Graphs side by side, without an edge between them."""
        widths = {int(part.graph.num_features) for part in parts}
        if len(widths) > 1:
            raise DataError(f"graphs with {' and '.join(map(str, sorted(widths)))} features do not fit together")
        self._known, first, offset = None, 0, 0
        xs, ends, names, places = [], [], [], []
        for part in parts:
            renamed = str(self.ids[first])
            prefix = renamed[: len(renamed) - len(str(part.ids[0]))]
            names += [f"{prefix}{name}" for name in part.names]
            xs.append(np.asarray(part.graph.x))
            ends.append(np.asarray(part.graph.edge_index) + offset)
            places.append(part.places + offset)
            first, offset = first + len(part), offset + len(part.names)
        self.graph, self.places = _data(np.concatenate(xs), np.concatenate(ends, axis=1)), np.concatenate(places)
        self.names = np.array(names, dtype=object)
        counts = np.bincount(np.asarray(self.graph.edge_index)[0], minlength=len(names))
        self._start = np.concatenate([[0], np.cumsum(counts)])

    @classmethod
    def wrap(cls, source: Any, undirected: bool = False, features: str = "") -> Nodes:
        """From a PyG ``Data``.

        Args:
            source: ``y`` is an integer per node, -1 where unknown; a mask may also be a list of node numbers; nodes in
                no mask belong to no split.
            undirected, features: see ``of``.
        """
        if not hasattr(source, "edge_index") or not hasattr(source, "num_nodes"):
            raise DataError(f"{type(source).__name__} holds no graph: give {ACCEPTED}")
        if source.edge_index is None:
            raise DataError(f"the graph has no edge_index: give {ACCEPTED}")
        x = getattr(source, "x", None)
        if x is not None:
            x = np.asarray(x.to_dense().detach().cpu())
        n = int(source.num_nodes or 0)
        split = _masks(source, n)
        y = getattr(source, "y", None)
        return cls.of(
            x,
            np.asarray(source.edge_index.cpu()),
            labels=None if y is None else np.asarray(y.cpu()),
            split=split,
            undirected=undirected,
            features=features,
            nodes=n,
        )

    def preview(self, index: int) -> Preview:
        return Preview(text=f"{len(self.neighbours(int(self.places[index])))} neighbours")


def _data(x: np.ndarray, ends: np.ndarray) -> Any:
    try:
        import torch
        from torch_geometric.data import Data
    except ImportError:
        raise MissingExtraError("torch-geometric", "graphs") from None
    return Data(x=torch.from_numpy(x), edge_index=torch.from_numpy(ends))


def _edges(edges: np.ndarray, n: int, source: str, undirected: bool) -> np.ndarray:
    """Sorted by source and target, each once."""
    if edges.size == 0:
        raise DataError(f"{source}: there is no edge in it")
    if edges.ndim != 2 or len(edges) != 2 or edges.dtype.kind not in "iu":
        raise DataError(f"{source}: edges of shape {list(edges.shape)}, {edges.dtype}: integers [2, edges] are needed")
    edges = edges.astype(np.int64)
    if edges.min() < 0 or edges.max() >= n:
        worst = edges.max() if edges.max() >= n else edges.min()
        raise DataError(f"{source}: an edge names node {worst}, but there are {n} nodes, from 0 to {n - 1}")
    keys, counts = np.unique(edges[0] * n + edges[1], return_counts=True)
    if len(keys) < edges.shape[1]:
        example = keys[counts.argmax()]
        warnings.warn(
            f"{source}: {edges.shape[1] - len(keys)} edges occur more than once (such as {example // n} to "
            f"{example % n}) and were merged",
            stacklevel=4,
        )
    if undirected:
        keys = np.union1d(keys, keys % n * n + keys // n)
    return np.stack([keys // n, keys % n])


def _features(x: np.ndarray | None, ends: np.ndarray, n: int, features: str, source: str) -> np.ndarray:
    if features not in ("", "degree", "identity"):
        raise DataError(f"{source}: features={features}: expected degree or identity")
    if features == "identity":
        return np.eye(n, dtype=np.float32)
    if features == "degree":
        return np.eye(DEGREES, dtype=np.float32)[np.bincount(ends[0], minlength=n).clip(max=DEGREES - 1)]
    if x is None or not x.shape[1]:
        raise DataError(
            f"{source}: the nodes have no features: add features=degree, or features=identity (for this graph alone)"
        )
    return np.ascontiguousarray(x, dtype=np.float32)


def _masks(source: Any, n: int) -> np.ndarray | None:
    """The split of each node from masks or lists of node numbers; None where there are none."""
    split = np.full(n, None, dtype=object)
    found = False
    for part in PARTS:
        mask = getattr(source, f"{part}_mask", None)
        if mask is None:
            continue
        mask, found = np.asarray(mask), True
        if mask.ndim != 1:
            raise DataError(f"{part}_mask has shape {list(mask.shape)}: choose one split, as in {part}_mask[:, 0]")
        if mask.dtype == bool and len(mask) != n:
            raise DataError(f"{part}_mask has {len(mask)} entries for {n} nodes")
        if mask.dtype != bool and (mask.dtype.kind not in "iu" or (mask.size and (mask.min() < 0 or mask.max() >= n))):
            raise DataError(f"{part}_mask: expected booleans, or node numbers from 0 to {n - 1}")
        chosen = np.flatnonzero(mask) if mask.dtype == bool else mask
        if part == "train" and not len(chosen):
            raise DataError("train_mask is empty: name at least one node of each class")
        twice = chosen[split[chosen] != None]  # noqa: E711 (element by element)
        if len(twice):
            raise DataError(f"{len(twice)} nodes are in {split[twice[0]]}_mask and {part}_mask (first: {twice[0]})")
        split[chosen] = part
    return split if found else None


def _known(labels: np.ndarray, n: int, source: str) -> list[str | None]:
    """As texts; None where a label is empty or -1.

    Raises:
        DataError: several a node, fractions, or numbers below -1.
    """
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or len(labels) != n:
        raise DataError(f"{source}: labels have shape {list(labels.shape)} for {n} nodes: one class a node is needed")
    if labels.dtype.kind == "f":
        raise DataError(f"{source}: labels are {labels.dtype}: integers from 0 or texts are needed, -1 where unknown")
    if labels.dtype.kind == "i":
        wrong = np.flatnonzero(labels < -1)
        if len(wrong):
            raise DataError(f"{source}: {len(wrong)} labels are below -1 (first: node {wrong[0]}, {labels[wrong[0]]})")
        return [None if label < 0 else str(label) for label in labels]
    return [None if pd.isna(label) else str(label) for label in labels]


def per_class(labels: Sequence[Any] | np.ndarray, train: int, val: int, seed: int = 0) -> np.ndarray:
    """[n] of train, val, test: ``train`` and ``val`` random nodes of each class, the rest is test; None without label.

    Raises:
        DataError: a class is too small.
    """
    known = np.array([None if label is None else str(label) for label in labels], dtype=object)
    split = known.copy()
    split[known != None] = "test"  # noqa: E711
    random = np.random.default_rng(seed)
    for name in sorted({label for label in known if label is not None}):
        mine = random.permutation(np.flatnonzero(known == name))
        if len(mine) <= train + val:
            raise DataError(
                f"class '{name}' has {len(mine)} nodes: too few for {train} of training, {val} of validation"
            )
        split[mine[:train]], split[mine[train : train + val]] = "train", "val"
    return split
