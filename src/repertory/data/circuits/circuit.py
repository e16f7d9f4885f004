"""One combinational circuit as an and-inverter graph, with its Verilog text where there is one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from repertory.data.items import digest
from repertory.errors import DataError, MissingExtraError

INPUT, OUTPUT, AND, NOT = range(4)
FAN_INS = {INPUT: 0, OUTPUT: 1, AND: 2, NOT: 1}
NAMES = ("input", "output", "AND", "NOT")


@dataclass(frozen=True, eq=False)
class Circuit:
    """An and-inverter graph.

    Attributes:
        node_type: [n] integers: 0 primary input, 1 primary output, 2 AND, 3 NOT (where inverters are nodes already).
        edge_index: [2, e] integers, fan-in and gate.
        edge_type: [e] integers, 1 where the edge is inverted.
        names: of the nodes, where they have any; empty otherwise.
        verilog: its source text; empty where there is none.
        text: [w] a stored vector of that text, or None.
        recipes: [r, s] integers, steps of logic synthesis that were tried, or None.
        results: [r, k] what they came to (nodes, area, delay, ...).
    """

    node_type: np.ndarray
    edge_index: np.ndarray
    edge_type: np.ndarray
    names: tuple[str, ...] = ()
    verilog: str = ""
    text: np.ndarray | None = None
    recipes: np.ndarray | None = None
    results: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.node_type)

    def name(self, node: int) -> str:
        """A node for messages: ``AND node 12 'n_3'``."""
        named = f" '{self.names[node]}'" if self.names and self.names[node] else ""
        return f"{NAMES[int(self.node_type[node])]} node {node}{named}"

    def check(self) -> str:
        """Refuses what is no combinational AIG; a digest of the content otherwise.

        Raises:
            DataError: types, edges or fan-ins that do not fit, or a cycle, with the node.
        """
        types, edges, inverted = self.node_type, self.edge_index, self.edge_type
        for array, what in ((types, "node_type"), (edges, "edge_index"), (inverted, "edge_type")):
            if array.dtype.kind not in "iu":
                raise DataError(f"{what} is {array.dtype}; integers are needed")
        if types.ndim != 1 or not len(types):
            raise DataError(f"node_type has the shape {types.shape}; [nodes] is needed")
        wrong = np.flatnonzero((types < 0) | (types > NOT))
        if len(wrong):
            raise DataError(f"node {wrong[0]} has type {types[wrong[0]]}; 0 input, 1 output, 2 AND, 3 NOT are known")
        if edges.ndim != 2 or len(edges) != 2:
            raise DataError(f"edge_index has the shape {edges.shape}; [2, edges] is needed")
        if not edges.shape[1]:
            raise DataError("no edges: nothing connects its nodes")
        if inverted.shape != (edges.shape[1],):
            raise DataError(f"edge_type has the shape {inverted.shape} for {edges.shape[1]} edges")
        if not np.isin(inverted, (0, 1)).all():
            raise DataError(f"edge_type holds {np.setdiff1d(inverted, (0, 1))[0]}; 0 plain and 1 inverted are known")
        outside = np.argwhere((edges < 0) | (edges >= len(types)))
        if len(outside):
            row, column = outside[0]
            raise DataError(f"edge {column} names node {edges[row, column]}; there are nodes 0..{len(types) - 1}")
        found = np.bincount(edges[1], minlength=len(types))
        needed = np.array([FAN_INS[kind] for kind in range(4)])[types]
        if (found != needed).any():
            node = int(np.flatnonzero(found != needed)[0])
            raise DataError(f"{self.name(node)} has {found[node]} fan-ins; it needs {needed[node]}")
        if (self.levels < 0).any():
            raise DataError(f"a cycle through {self.name(self._on_cycle())}: only combinational circuits are read")
        if self.text is not None and (self.text.ndim != 1 or not np.isfinite(self.text).all()):
            raise DataError(f"its text vector of shape {self.text.shape} is no row of finite numbers")
        if self.results is not None and not np.isfinite(self.results).all():
            raise DataError("its synthesis results hold NaN or infinity")
        arrays = [a for a in (self.text, self.recipes, self.results) if a is not None]
        return digest(*(np.ascontiguousarray(a).tobytes() for a in (types, edges, inverted, *arrays)), self.verilog)

    @cached_property
    def levels(self) -> np.ndarray:
        """[n] the longest way from an input to each node, in gates; -1 on cycles and behind them."""
        n = len(self.node_type)
        source, target = self.edge_index
        by_source = np.argsort(source, kind="stable")
        targets, starts = target[by_source], np.searchsorted(source[by_source], np.arange(n + 1))
        waiting = np.bincount(target, minlength=n)
        levels, level = np.full(n, -1), 0
        ready = np.flatnonzero(waiting == 0)
        while len(ready):
            levels[ready] = level
            first, last = starts[ready], starts[ready + 1]
            lengths = last - first
            reached = targets[np.repeat(last - np.cumsum(lengths), lengths) + np.arange(lengths.sum())]
            np.subtract.at(waiting, reached, 1)
            met = np.unique(reached)
            ready, level = met[waiting[met] == 0], level + 1
        return levels

    def _on_cycle(self) -> int:
        """A node on a cycle: going backwards among nodes that were never ready must come round."""
        source, target = self.edge_index
        stuck = self.levels < 0
        inside = stuck[source] & stuck[target]
        before = dict(zip(target[inside].tolist(), source[inside].tolist(), strict=True))
        node, seen = next(iter(before)), set()
        while node not in seen:
            seen.add(node)
            node = before[node]
        return int(node)

    @property
    def counts(self) -> dict[str, int]:
        """Inputs, outputs, AND gates, inverters, and the depth in levels of gates."""
        kinds = np.bincount(self.node_type, minlength=4)
        inverters = int(kinds[NOT]) + int((self.edge_type == 1).sum())
        gates = self.levels[self.node_type == OUTPUT]
        return {
            "inputs": int(kinds[INPUT]), "outputs": int(kinds[OUTPUT]), "gates": int(kinds[AND]),
            "inverters": inverters, "depth": max(0, int(gates.max(initial=1)) - 1),
        }  # fmt: skip

    def simulate(self, patterns: np.ndarray) -> np.ndarray:
        """Values of all nodes under input patterns, 64 a word.

        Args:
            patterns: [inputs, words] uint64, a row per primary input in the order of the nodes.

        Returns:
            [n, words] uint64. All 2^k patterns of k <= 16 inputs are ``exhaustive(k)``; aigverse simulates whole truth
            tables alone, which circuits with more inputs have no memory for.
        """
        values = np.zeros((len(self.node_type), patterns.shape[1]), np.uint64)
        values[self.node_type == INPUT] = patterns
        by_target = np.argsort(self.edge_index[1], kind="stable")
        source, target = self.edge_index[:, by_target]
        flip = np.where(self.edge_type[by_target] == 1, ~np.uint64(0), np.uint64(0))
        first = np.searchsorted(target, np.arange(len(self.node_type)))
        for level in range(1, int(self.levels.max()) + 1):
            here = np.flatnonzero(self.levels == level)
            one = first[here]
            made = values[source[one]] ^ flip[one, None]
            both = self.node_type[here] == AND
            other = one[both] + 1
            made[both] &= values[source[other]] ^ flip[other, None]
            values[here] = np.where((self.node_type[here] == NOT)[:, None], ~made, made)
        return values

    def aig(self) -> Any:
        """The same as an ``aigverse.networks.Aig``; gates that are there twice become one.

        Raises:
            MissingExtraError: aigverse is not installed.
        """
        network = aigverse("networks").Aig()
        self.build(network, [network.create_pi() for _ in range(int((self.node_type == INPUT).sum()))])
        return network

    def build(self, network: Any, inputs: list[Any]) -> list[Any]:
        """Adds gates and outputs to an aigverse network over given inputs: the signal of each node."""
        fan_ins: list[list[tuple[int, int]]] = [[] for _ in self.node_type]
        for source, target, inverted in zip(*self.edge_index.tolist(), self.edge_type.tolist(), strict=True):
            fan_ins[target].append((source, inverted))
        signals: list[Any] = [None] * len(self.node_type)
        given = iter(inputs)
        for node in range(len(self.node_type)):
            if self.node_type[node] == INPUT:
                signals[node] = next(given)
        for node in np.argsort(self.levels, kind="stable").tolist():
            kind = int(self.node_type[node])
            if kind == INPUT:
                continue
            made = [~signals[source] if inverted else signals[source] for source, inverted in fan_ins[node]]
            signals[node] = network.create_and(*made) if kind == AND else ~made[0] if kind == NOT else made[0]
        for node in np.flatnonzero(self.node_type == OUTPUT).tolist():
            network.create_po(signals[node])
        return signals

    @classmethod
    def of_aig(cls, network: Any, names: Mapping[int, str] | None = None, verilog: str = "") -> Circuit:
        """From an aigverse network; outputs that are constant are left out, with the constant itself.

        Args:
            names: of its nodes by index.

        Raises:
            DataError: it has registers.
        """
        registers = getattr(network, "num_registers", 0)
        if registers or not network.is_combinational:
            raise DataError(
                f"a sequential network ({registers or 'with'} registers): only combinational circuits are read"
            )
        tensors = network.to_graph_tensors(levels=False)
        kinds = np.asarray(tensors["node_attr"])[:, 0].astype(np.int64)
        edges = np.asarray(tensors["edge_index"]).astype(np.int64)
        inverted = np.asarray(tensors["edge_attr"])[:, 0].astype(np.int64)
        dropped = kinds == 0
        for kind in (2, 3):  # what hangs on the constant alone: outputs
            fed = edges[1][dropped[edges[0]]]
            dropped[fed[kinds[fed] == kind]] = True
        kept = ~(dropped[edges[0]] | dropped[edges[1]])
        place = np.cumsum(~dropped) - 1
        node_type = np.array([INPUT, INPUT, AND, OUTPUT])[kinds][~dropped]
        named = tuple((names or {}).get(int(i), "") for i in np.flatnonzero(~dropped)) if names else ()
        return cls(node_type, place[edges[:, kept]], inverted[kept], named, verilog)

    @classmethod
    def of_fields(cls, fields: Any, what: str = "the graph") -> Circuit:
        """From torch_geometric's Data, or a mapping, with ``node_type``, ``edge_index`` and ``edge_type``.

        Raises:
            DataError: one of them is missing.
        """
        taken: dict[str, Any] = {}
        for name in ("node_type", "edge_index", "edge_type"):
            value = fields.get(name) if isinstance(fields, Mapping) else getattr(fields, name, None)
            if value is None:
                raise DataError(
                    f"{what} has no '{name}': node_type (0 input, 1 output, 2 AND), edge_index [2, edges] and "
                    "edge_type (1 inverted) are needed"
                )
            taken[name] = _integers(value)
        return cls(**taken)


def _integers(values: Any) -> np.ndarray:
    """An array, its numbers as int64 where they are integers and as they are elsewhere."""
    array = np.asarray(values)
    return array.astype(np.int64) if array.dtype.kind in "iub" else array


def exhaustive(inputs: int) -> np.ndarray:
    """All patterns of at most 16 inputs: [inputs, words] uint64; below six inputs they repeat within the word."""
    rows = np.arange(2 ** max(6, inputs))
    bits = (rows[None, :] >> np.arange(inputs)[:, None]) & 1
    return np.packbits(bits.astype(np.uint8), axis=1, bitorder="little").view(np.uint64)


def aigverse(module: str) -> Any:
    """A module of aigverse.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(f"aigverse.{module}")
    except ImportError:
        raise MissingExtraError("aigverse", "graphs") from None
