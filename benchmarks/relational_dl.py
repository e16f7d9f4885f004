"""The sampler, the row encoder and a training step against their straightforward forms, on one core.

Run with ``python -m benchmarks.relational_dl``. The database has the sizes of nycflights13, drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import HeteroConv, SAGEConv

from benchmarks.measure import compare, record, seconds
from repertory.data.database import Database, TableSchema
from repertory.systems.relational_dl import RelationalModel, TemporalGraph
from repertory.systems.relational_dl.data import Neighbourhoods
from repertory.systems.relational_dl.features import learn_columns
from repertory.systems.relational_dl.model import Batch, HeteroGNN
from repertory.systems.relational_dl.sampler import EdgeType, links_as_edges

PLANES, AIRPORTS, FLIGHTS, DAYS = 3_322, 100, 336_776, 365
SEEDS, FANOUT = 128, 64
FEW = 16
"""Seeds that the straightforward sampler is timed on."""
SCHEMAS = {
    "planes": TableSchema("id"), "airports": TableSchema("id"),
    "flights": TableSchema(None, "landed", {"plane": "planes", "origin": "airports", "dest": "airports"}),
}  # fmt: skip


@cache
def database() -> Database:
    random = np.random.default_rng(0)
    landed = np.datetime64("2013-01-01", "us") + random.integers(0, DAYS * 86_400, FLIGHTS) * np.timedelta64(
        10**6, "us"
    )
    flights = {
        "plane": random.integers(0, PLANES, FLIGHTS), "origin": random.integers(0, 3, FLIGHTS),
        "dest": random.integers(0, AIRPORTS, FLIGHTS), "landed": landed,
        "carrier": random.choice(list("abcdefgh"), FLIGHTS),
        **{name: random.normal(size=FLIGHTS) for name in ("delay", "distance", "hour", "air_time")},
    }  # fmt: skip
    tables = {
        "planes": pd.DataFrame({"id": np.arange(PLANES), "year": random.normal(2000, 9, PLANES),
                                "seats": random.normal(150, 50, PLANES)}),
        "airports": pd.DataFrame({"id": np.arange(AIRPORTS), "lat": random.normal(size=AIRPORTS),
                                  "lon": random.normal(size=AIRPORTS)}),
        "flights": pd.DataFrame(flights),
    }  # fmt: skip
    return Database(tables, SCHEMAS)


def seeds(count: int) -> tuple[np.ndarray, np.ndarray]:
    random, (first, last) = np.random.default_rng(1), database().span
    return random.integers(0, PLANES, count), random.integers((first + last) // 2, last, count)


def one_by_one(graph: TemporalGraph, rows: np.ndarray, times: np.ndarray, fanouts: list[int]) -> int:
    """A node and an edge type at a time, as the rule is written; returns the number of edges."""
    edges = 0
    for row, time in zip(rows, times, strict=True):
        seen, frontier = {("planes", int(row))}, [("planes", int(row))]
        for fanout in fanouts:
            found = []
            for table, node in frontier:
                for kind, near in graph.neighbours.items():
                    if kind[2] != table:
                        continue
                    known = near.source[near.start[node] : near.start[node + 1]]
                    moments = graph.times[kind[0]]
                    if moments is not None:
                        known = known[moments[known] <= time]
                    drawn = known if len(known) <= fanout else np.random.choice(known, fanout, replace=False)
                    edges += len(drawn)
                    found += [(kind[0], int(source)) for source in drawn]
            frontier = list(dict.fromkeys(node for node in found if node not in seen))
            seen |= set(frontier)
    return edges


def sampler() -> None:
    """Edges a second: short neighbour lists that are taken whole, and long ones that are drawn from."""
    graph = TemporalGraph.of(database())
    for name, fanouts in (("2 hops, 64 and 32", [64, 32]), ("3 hops, 32, 32 and 32", [32, 32, 32])):
        rows, times = seeds(512)
        edges = sum(e.shape[1] for e in graph.sample("planes", rows, times, fanouts).edges.values())
        slow_edges = one_by_one(graph, rows[:FEW], times[:FEW], fanouts)
        spent = seconds({
            "ours": lambda fanouts=fanouts, rows=rows, times=times: graph.sample("planes", rows, times, fanouts),
            "straightforward": lambda fanouts=fanouts, rows=rows, times=times: one_by_one(
                graph, rows[:FEW], times[:FEW], fanouts),
        })  # fmt: skip
        ours, slow = edges / spent["ours"], slow_edges / spent["straightforward"]
        record("relational_dl", f"sampler, {name}", {
            "ratio": round(ours / slow, 1), "edges_per_second": {"ours": round(ours), "straightforward": round(slow)},
            "sizes": {"seeds": 512, "edges": edges, "fanouts": fanouts, "device": "cpu, 1 thread"},
        })  # fmt: skip


def model(width: int = 128, blocks: int = 4) -> tuple[RelationalModel, list[EdgeType], Any]:
    torch.manual_seed(0)
    kinds = list(links_as_edges(database()))
    columns = learn_columns(database(), database().span[1], 8)
    return RelationalModel(columns, kinds, ["flights"], 128, width=width, blocks=blocks), kinds, columns


def batch(share_rows: bool, kinds: list[EdgeType], columns: Any, multiplicity: float = 2.9) -> Batch:
    """Seeds whose flights recur: the same planes at several times, as in a training table."""
    near = Neighbourhoods(database(), columns, kinds, [FANOUT, FANOUT // 2], "last", share_rows)
    rows, times = seeds(SEEDS)
    few = max(1, round(SEEDS / multiplicity))
    times = np.repeat(times[:few], -(-SEEDS // few))[:SEEDS] + np.arange(SEEDS)
    made = near.batch("planes", np.repeat(rows[:few], -(-SEEDS // few))[:SEEDS], times)
    for kind in kinds:  # PyG takes no edge type for granted that is not there
        made.edges.setdefault(kind, torch.empty(2, 0, dtype=torch.long))
    return made


def encoding(share_rows: bool) -> Callable[[], Any]:
    made, kinds, columns = model()
    given = batch(share_rows, kinds, columns)

    def step() -> Any:
        x = made.encoder(given.frames)
        if given.places is not None:
            x = {table: x[table][at] for table, at in given.places.items()}
        sum(z.sum() for z in x.values()).backward()

    return step


def training(form: str) -> Callable[[], Any]:
    """A step of everything; straightforward: every copy encoded, every node computed in every layer by PyG."""
    made, kinds, columns = model()
    given = batch(form == "ours", kinds, columns)
    if form != "ours":
        given.nodes_by_hop, given.edges_by_hop = {}, {}
        made.gnn = Straightforward(made.gnn, kinds)  # type: ignore[assignment]
    optimizer = torch.optim.Adam(made.parameters(), 0.005)
    truth = torch.rand(SEEDS).round()

    def step() -> None:
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(made(given)[:, 0], truth).backward()
        optimizer.step()

    return step


class Straightforward(nn.Module):
    """PyG's ``HeteroConv`` of ``SAGEConv`` over the whole batch, with the norms of ours."""

    def __init__(self, gnn: HeteroGNN, kinds: list[EdgeType]) -> None:
        super().__init__()
        self.norms = gnn.norms
        self.convs = nn.ModuleList(
            HeteroConv({kind: SAGEConv((128, 128), 128, aggr="sum") for kind in kinds}, aggr="sum") for _ in gnn.convs
        )

    def forward(self, x: dict[str, Tensor], edges: dict[EdgeType, Tensor], *_: Any) -> dict[str, Tensor]:
        for conv, norms in zip(self.convs, self.norms, strict=True):
            x = {table: norms[table](z).relu() for table, z in conv(x, edges).items()}
        return x


def messages(form: str) -> Callable[[], Any]:
    """Two layers over all nodes, nothing left out: the path that parity takes."""
    made, kinds, columns = model(8, 1)
    given = batch(True, kinds, columns)
    gnn = made.gnn if form == "ours" else Straightforward(made.gnn, kinds)
    x = {table: torch.randn(len(rows), 128, requires_grad=True) for table, rows in given.owner.items()}

    def step() -> Any:
        sum(z.sum() for z in gnn(x, given.edges).values()).backward()

    return step


def main() -> None:
    torch.set_num_threads(1)
    sampler()
    _, kinds, columns = model(8, 1)
    given = batch(True, kinds, columns)
    nodes = {table: len(at) for table, at in given.places.items()}  # type: ignore[union-attr]
    distinct = {table: frame.num_rows for table, frame in given.frames.items()}
    sizes = {"nodes": nodes, "distinct rows": distinct, "channels": 128, "blocks": 4,
             "mean multiplicity": round(sum(nodes.values()) / sum(distinct.values()), 2)}  # fmt: skip
    compare("relational_dl", "row encoding", partial(encoding, True), partial(encoding, False), sizes, repeats=5)
    compare("relational_dl", "training step", partial(training, "ours"), partial(training, "pyg"), sizes, repeats=5)
    compare("relational_dl", "message passing, nothing left out", partial(messages, "ours"), partial(messages, "pyg"),
            {"nodes": nodes, "channels": 128}, repeats=9)  # fmt: skip


if __name__ == "__main__":
    main()
