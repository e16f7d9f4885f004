"""Row encoders, relative time, heterogeneous message passing, head; names as in the official checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repertory.errors import DataError, MissingExtraError
from repertory.systems.relational_dl.features import ENCODED, names_by_type, statistics
from repertory.systems.relational_dl.sampler import EdgeType

try:
    from torch_frame import TensorFrame, stype
    from torch_frame.nn import (
        EmbeddingEncoder,
        LinearEmbeddingEncoder,
        LinearEncoder,
        MultiCategoricalEmbeddingEncoder,
        ResNet,
        TimestampEncoder,
    )
except ImportError:
    raise MissingExtraError("pytorch-frame", "graphs") from None
try:
    with warnings.catch_warnings(action="ignore"):
        import torch_geometric.nn  # noqa: F401
    from torch_geometric.nn import GATv2Conv, PositionalEncoding, SAGEConv
    from torch_geometric.nn.module_dict import ModuleDict
except ImportError:
    raise MissingExtraError("torch-geometric", "graphs") from None

DAY = 86_400

Aggregation = Literal["sum", "mean", "max"]
Convolution = Literal["sage", "gat"]


@dataclass
class Batch:
    """Neighbourhoods of seeds as a network takes them.

    Attributes:
        frames: features of the distinct rows of each table.
        places: [n] where a node's row stands in ``frames``; None: frames hold a row per node.
        times: seconds since 1970 [n] of the nodes of tables that have times.
        owner: [n] which seed a node belongs to.
        edges: [2, E] source and target by edge type.
        seed_times: seconds since 1970 [B].
        entity: table of the seeds, its first B nodes.
        rows: row numbers [n], for tables with an embedding per row, and of destinations.
        nodes_by_hop, edges_by_hop: see ``sampler.Subgraphs``; empty: every node is computed at every layer.
        targets: [B] or [B, labels], whatever the loss takes.
    """

    frames: dict[str, TensorFrame]
    places: dict[str, Tensor] | None
    times: dict[str, Tensor]
    owner: dict[str, Tensor]
    edges: dict[EdgeType, Tensor]
    seed_times: Tensor
    entity: str
    rows: dict[str, Tensor] = field(default_factory=dict)
    nodes_by_hop: dict[str, list[int]] = field(default_factory=dict)
    edges_by_hop: dict[EdgeType, list[int]] = field(default_factory=dict)
    targets: Any = None

    def __len__(self) -> int:
        return len(self.seed_times)

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """The same on a device."""

        def moved(values: Mapping[Any, Any]) -> dict[Any, Any]:
            return {name: value.to(device, non_blocking=non_blocking) for name, value in values.items()}

        return replace(
            self, frames=moved(self.frames), places=None if self.places is None else moved(self.places),
            times=moved(self.times), owner=moved(self.owner), edges=moved(self.edges), rows=moved(self.rows),
            seed_times=self.seed_times.to(device),
            targets=self.targets.to(device) if isinstance(self.targets, Tensor) else self.targets,
        )  # fmt: skip


class NumberEncoder(LinearEncoder):  # type: ignore[misc]
    """pytorch-frame's encoder of numbers, whose weights otherwise become NaN with the first missing number.

    There, the gradient of a weight is the sum over rows of number times gradient, and NaN times 0 is NaN.
    """

    def encode_forward(self, feat: Tensor, col_names: list[str] | None = None) -> Tensor:
        missing = feat.isnan()
        encoded: Tensor = super().encode_forward(feat.nan_to_num(), col_names)
        return encoded.masked_fill(missing[..., None], 0)


class TimeEncoder(TimestampEncoder):  # type: ignore[misc]
    """pytorch-frame's encoder of times; years before those it was fitted with count as the first, and raise nothing."""

    def encode_forward(self, feat: Tensor, col_names: list[str] | None = None) -> Tensor:
        years = torch.maximum(feat[..., :1], self.min_year.view(1, -1, 1))
        encoded: Tensor = super().encode_forward(torch.cat([years, feat[..., 1:]], dim=-1), col_names)
        return encoded


def row_encoder(of_table: dict[str, Any], width: int, channels: int, blocks: int, dropout: float = 0.2) -> ResNet:
    """A table's encoder (pytorch-frame's ResNet): columns to ``width`` numbers each, blocks, ``channels`` out.

    Args:
        of_table: the table's entry of ``features.learn_columns``.
    """
    encoders = {
        stype.categorical: EmbeddingEncoder(), stype.numerical: NumberEncoder(),
        stype.multicategorical: MultiCategoricalEmbeddingEncoder(), stype.embedding: LinearEmbeddingEncoder(),
        stype.timestamp: TimeEncoder(),
    }  # fmt: skip
    return ResNet(
        width, channels, blocks, statistics(of_table), names_by_type(of_table), encoders, dropout_prob=dropout
    )


class HeteroEncoder(nn.Module):
    """One row encoder per table: frames -> [rows, channels]."""

    def __init__(
        self, columns: Mapping[str, dict[str, Any]], width: int, channels: int, blocks: int, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.encoders = ModuleDict({
            table: row_encoder(of_table, width, channels, blocks, dropout) for table, of_table in columns.items()
        })  # fmt: skip

    def forward(self, frames: Mapping[str, TensorFrame]) -> dict[str, Tensor]:
        return {table: self.encoders[table](frame) for table, frame in frames.items()}


class HeteroTemporalEncoder(nn.Module):
    """How long before the seed's time a row became known: sines and cosines of days, then a linear layer."""

    def __init__(self, tables: Sequence[str], channels: int) -> None:
        super().__init__()
        self.encoder_dict = ModuleDict({table: PositionalEncoding(channels) for table in tables})
        self.lin_dict = ModuleDict({table: nn.Linear(channels, channels) for table in tables})

    def forward(
        self, seed_times: Tensor, times: Mapping[str, Tensor], owner: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Seconds since 1970 of seeds [B] and nodes [n] -> [n, channels] by table."""
        made = {}
        for table, at in times.items():
            days = (seed_times[owner[table]] - at) / DAY
            encoded = self.encoder_dict[table](days)
            made[table] = self.lin_dict[table](encoded.to(self.lin_dict[table].weight.dtype))
        return made


class HeteroGNN(nn.Module):
    """Layers of message passing with own weights for every edge type; what comes into a table is summed.

    Args:
        tables: all tables.
        edge_types: (source, relation, target).
        convolution: ``sage`` or ``gat`` (GATv2, heads averaged, no loops).
        aggregation: over neighbours, of ``sage``.
    """

    def __init__(
        self,
        tables: Sequence[str],
        edge_types: Sequence[EdgeType],
        channels: int,
        layers: int,
        convolution: Convolution = "sage",
        aggregation: Aggregation = "sum",
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.edge_types: list[EdgeType] = [(kind[0], kind[1], kind[2]) for kind in edge_types]
        self.isolated = set(tables) - {table for kind in edge_types for table in (kind[0], kind[2])}

        def convolve() -> nn.Module:
            if convolution == "gat":
                return GATv2Conv((channels, channels), channels, heads, concat=False, add_self_loops=False)
            return SAGEConv((channels, channels), channels, aggr=aggregation)

        self.convs = nn.ModuleList(Convolutions(self.edge_types, convolve) for _ in range(layers))
        self.norms = nn.ModuleList(
            ModuleDict({table: nn.LayerNorm(channels) for table in tables}) for _ in range(layers)
        )

    def forward(
        self,
        x: Mapping[str, Tensor],
        edges: Mapping[EdgeType, Tensor],
        nodes_by_hop: Mapping[str, Sequence[int]] | None = None,
        edges_by_hop: Mapping[EdgeType, Sequence[int]] | None = None,
    ) -> dict[str, Tensor]:
        """Nodes [n, channels] by table -> the same after all layers; with hops, only what the seeds need.

        A table that nothing points at is not in the result, unless it has no edge type at all.
        """
        x = dict(x)
        layers: Any = zip(self.convs, self.norms, strict=True)
        for layer, (conv, norms) in enumerate(layers):
            left = len(self.convs) - layer  # hops whose targets still matter
            made: dict[str, list[Tensor]] = {}
            for kind in self.edge_types:
                source, _, target = kind
                if target not in x:
                    continue
                count = sum(nodes_by_hop[target][:left]) if nodes_by_hop else len(x[target])
                if count == 0:
                    continue
                index = edges.get(kind)
                if index is None:
                    index = torch.empty(2, 0, dtype=torch.long, device=x[target].device)
                elif edges_by_hop:
                    index = index[:, : sum(edges_by_hop.get(kind, ())[:left])]
                here = x[target][:count]
                there = x.get(source)
                if there is None:  # no node of it was reached: as if there were none
                    there = here.new_empty(0, here.shape[1])
                made.setdefault(target, []).append(conv.convs[kind]((there, here), index))
            alone = {table: x[table] for table in self.isolated if table in x}
            x = {t: norms[t](torch.stack(parts).sum(0)).relu() for t, parts in made.items()} | alone
        return x


class Convolutions(nn.Module):
    """The convolutions of one layer, by edge type."""

    def __init__(self, edge_types: Sequence[EdgeType], convolve: Any) -> None:
        super().__init__()
        self.convs = ModuleDict({kind: convolve() for kind in edge_types})


class Head(nn.Module):
    """A linear layer (an MLP of one layer)."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.lins = nn.ModuleList([nn.Linear(channels, outputs)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lins[0](x)
        return out


class RelationalModel(nn.Module):
    """Rows encoded, relative time added, messages passed, seeds read out (RelBench, section 4).

    Args:
        columns: by table, of ``features.learn_columns``.
        edge_types: of the database's links, both ways.
        timed: tables that have times.
        shallow: tables with a learned vector per row, and their numbers of rows.
        identity: learn a vector that marks the seed (ID-GNN).
        temporal: encode relative time.
    """

    def __init__(
        self,
        columns: Mapping[str, dict[str, Any]],
        edge_types: Sequence[EdgeType],
        timed: Sequence[str],
        channels: int = 128,
        outputs: int = 1,
        layers: int = 2,
        convolution: Convolution = "sage",
        aggregation: Aggregation = "sum",
        heads: int = 4,
        width: int = 128,
        blocks: int = 4,
        dropout: float = 0.2,
        shallow: Mapping[str, int] | None = None,
        identity: bool = False,
        temporal: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = HeteroEncoder(columns, width, channels, blocks, dropout)
        self.temporal_encoder = HeteroTemporalEncoder(list(timed), channels) if temporal else None
        self.gnn = HeteroGNN(list(columns), edge_types, channels, layers, convolution, aggregation, heads)
        self.head = Head(channels, outputs)
        self.embedding_dict = ModuleDict({t: nn.Embedding(rows, channels) for t, rows in (shallow or {}).items()})
        for embedding in self.embedding_dict.values():
            nn.init.normal_(embedding.weight, std=0.1)
        self.id_awareness_emb = nn.Embedding(1, channels) if identity else None

    def nodes(self, batch: Batch, mark: bool = False) -> dict[str, Tensor]:
        """The nodes [n, channels] of each table before any message.

        Args:
            mark: add the vector that marks the seeds.
        """
        x = self.encoder(batch.frames)
        if batch.places is not None:
            x = {table: x[table][at] for table, at in batch.places.items()}
        if self.temporal_encoder is not None:
            since = self.temporal_encoder(batch.seed_times, batch.times, batch.owner)
            x = {table: x[table] + since[table] if table in since else x[table] for table in x}
        for table, embedding in self.embedding_dict.items():
            if table in x:
                rows = batch.rows[table]
                x[table] = x[table] + embedding(rows)
        if mark:
            if self.id_awareness_emb is None:
                raise DataError("this model was not built to mark its seeds")
            marked = torch.zeros_like(x[batch.entity])
            marked[: len(batch)] = self.id_awareness_emb.weight
            x[batch.entity] = x[batch.entity] + marked
        return x

    def embed(self, batch: Batch) -> Tensor:
        """Vectors [B, channels] of the seeds."""
        x = self.gnn(self.nodes(batch), batch.edges, batch.nodes_by_hop or None, batch.edges_by_hop or None)
        vectors: Tensor = x[batch.entity][: len(batch)]
        return vectors

    def forward(self, batch: Batch) -> Tensor:
        """Outputs [B, outputs] of the seeds."""
        return self.head(self.embed(batch))

    def read_out(self, batch: Batch, destination: str) -> Tensor:
        """Outputs [n, outputs] of every node of ``destination`` around marked seeds (ID-GNN)."""
        x = self.gnn(self.nodes(batch, mark=True), batch.edges)
        if destination not in x:
            x[destination] = x[batch.entity][:0]
        outputs: Tensor = self.head(x[destination])
        return outputs


KEYS = ("encoder.encoders.", "temporal_encoder.", "gnn.convs.", "gnn.norms.", "head.lins.", "embedding_dict.",
        "id_awareness_emb.")  # fmt: skip


def from_official_keys(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The official ``Model``'s state dict in our names: the same, but for wrappers around it.

    Raises:
        DataError: a name is not of that model.
    """
    made = {}
    for name, tensor in state.items():
        short = prefix + name.removeprefix("module.").removeprefix("_orig_mod.")
        if not short.startswith(KEYS):
            raise DataError(f"'{name}' is no weight of a relational model (names begin with {', '.join(KEYS)})")
        made[short] = tensor
    return made


def shape_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a state dict says of the model it fits: configuration, columns (named by their place), edge types, times.

    Raises:
        DataError: it does not hold such a model.
    """
    if "head.lins.0.weight" not in state:
        raise DataError("no 'head.lins.0.weight': not the weights of a relational model")
    tables: dict[str, dict[str, Any]] = {}
    for name, tensor in state.items():
        if name.startswith("encoder.encoders.") and ".encoder.encoder_dict." in name:
            table, _, rest = name.removeprefix("encoder.encoders.").partition(".encoder.encoder_dict.")
            tables.setdefault(table, {})[rest] = tensor
    columns = {table: _columns_of(found) for table, found in tables.items()}
    convs = [n for n in state if n.startswith("gnn.convs.0.convs.") and n.endswith("lin_l.weight")]
    edge_types = [tuple(n.removeprefix("gnn.convs.0.convs.<").split(">")[0].split("___")) for n in convs]
    outputs, channels = state["head.lins.0.weight"].shape
    first = next(iter(columns))
    decoder = state[f"encoder.encoders.{first}.decoder.2.weight"]
    attention = [tensor for name, tensor in state.items() if name.endswith(".att")]
    prefix = f"encoder.encoders.{first}.backbone."
    return {
        "config": {
            "channels": channels, "encoder_channels": decoder.shape[1],
            "blocks": len({n.removeprefix(prefix).split(".")[0] for n in state if n.startswith(prefix)}),
            "layers": len({n.split(".")[2] for n in state if n.startswith("gnn.norms.")}),
            "convolution": "gat" if attention else "sage", "heads": attention[0].shape[1] if attention else 4,
            "temporal": any(n.startswith("temporal_encoder.") for n in state),
        },
        "columns": columns, "edge_types": [list(kind) for kind in edge_types], "outputs": outputs,
        "timed": sorted({n.split(".")[2] for n in state if n.startswith("temporal_encoder.lin_dict.")}),
        "shallow": {n.split(".")[1]: len(t) for n, t in state.items() if n.startswith("embedding_dict.")},
        "identity": "id_awareness_emb.weight" in state,
    }  # fmt: skip


def _columns_of(found: Mapping[str, Tensor]) -> dict[str, Any]:
    """Columns of one table by type and place, with statistics of the sizes that the weights have."""
    types, stats = {}, {}

    def add(kind: str, count: int, of: Any) -> None:
        for n in range(count):
            types[f"{kind} {n}"] = kind
            stats[f"{kind} {n}"] = of(n)

    if (means := found.get("numerical.mean")) is not None:
        spreads = found["numerical.std"]
        add("numerical", len(means), lambda n: {"MEAN": float(means[n]), "STD": float(spreads[n]) - 1e-6})
    if (offset := found.get("categorical.offset")) is not None:
        ends = [*offset.tolist()[1:], len(found["categorical.emb.weight"]) - 1]
        sizes = [end - begin for begin, end in zip(offset.tolist(), ends, strict=True)]
        add("categorical", len(sizes), lambda n: {"COUNT": [list(range(sizes[n])), [1] * sizes[n]]})
    bags = sorted(n for n in found if n.startswith("multicategorical.embs."))
    add("multicategorical", len(bags), lambda n: {
        "MULTI_COUNT": [list(range(len(found[f"multicategorical.embs.{n}.weight"]) - 1)), []]})  # fmt: skip
    if (years := found.get("timestamp.min_year")) is not None:
        medians = found["timestamp.fill_values"]
        add("timestamp", len(years), lambda n: {
            "YEAR_RANGE": [int(years[n]), int(years[n])], "MEDIAN_TIME": medians[n].tolist()})  # fmt: skip
    vectors = sorted(n for n in found if n.startswith("embedding.weight_list."))
    add("embedding", len(vectors), lambda n: {"EMB_DIM": len(found[f"embedding.weight_list.{n}"])})
    assert set(types.values()) <= set(ENCODED)
    return {"types": types, "stats": stats, "separators": {}}
