"""RelBench: the modules of the room on the fixtures' tables, graphs and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch_frame import TensorFrame, stype

from repertory.data.database import Database, TableSchema, task_table
from repertory.systems.relational_dl import metrics as measures
from repertory.systems.relational_dl.model import (
    Batch,
    HeteroEncoder,
    HeteroGNN,
    HeteroTemporalEncoder,
    RelationalModel,
    from_official_keys,
)
from repertory.systems.relational_dl.objective import entity_loss
from repertory.systems.relational_dl.sampler import ALL, TemporalGraph, links_as_edges
from repertory.systems.relational_dl.tasks import driver_dnf, driver_position
from tests.parity.runner import Fixture


def _dates(days: Any) -> np.ndarray:
    return np.asarray(days).astype("datetime64[D]").astype("datetime64[us]")


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _edges(f: Fixture) -> dict[tuple[str, str, str], Tensor]:
    return {tuple(name.split("__")): t for name, t in _under(f.inputs, "edge.").items()}  # type: ignore[misc]


def database_to_graph(f: Fixture) -> dict[str, Tensor]:
    given = {name: t.numpy() for name, t in f.inputs.items()}
    frames = {
        "product": pd.DataFrame({"id": given["product.key"]}),
        "customer": pd.DataFrame({"id": given["customer.key"], "joined": _dates(given["customer.time_days"])}),
        "review": pd.DataFrame({
            "cid": given["review.customer_key"], "pid": given["review.product_key"],
            "when": _dates(given["review.time_days"]),
        }),
    }  # fmt: skip
    schemas = {
        "product": TableSchema("id"),
        "customer": TableSchema("id", "joined"),
        "review": TableSchema(None, "when", {"cid": "customer", "pid": "product"}),
    }
    database = Database(frames, schemas)
    edges = {f"edge.{'__'.join(kind)}": torch.from_numpy(np.stack(e)) for kind, e in links_as_edges(database).items()}
    day = next(name for name in f.outputs if name.startswith("rows_upto_day"))
    upto = database.upto(int(day.removeprefix("rows_upto_day")) * 86_400)
    return edges | {
        "customer.order": torch.from_numpy(database.order["customer"]),
        "review.customer_index": torch.from_numpy(database.links["review", "cid"]),
        "review.product_index": torch.from_numpy(database.links["review", "pid"]),
        "time.customer": torch.from_numpy(database.times["customer"]),
        "time.review": torch.from_numpy(database.times["review"]),
        day: torch.tensor([len(upto[table]) for table in frames]),
    }


def _columns(f: Fixture) -> dict[str, dict[str, Any]]:
    return {
        table: {
            "types": {name: kind for kind, names in of["columns"].items() for name in names}, "stats": of["stats"],
            "separators": {},
        }
        for table, of in f.config["tables"].items()
    }  # fmt: skip


def _frames(f: Fixture) -> dict[str, TensorFrame]:
    made = {}
    for table, of in f.config["tables"].items():
        feats = {stype(kind): f.inputs[f"{table}.{kind}"] for kind in of["columns"]}
        if stype.numerical in feats:
            numbers = feats[stype.numerical]
            feats[stype.numerical] = numbers.masked_fill(numbers == -1e9, torch.nan)
        made[table] = TensorFrame(feats, {stype(kind): names for kind, names in of["columns"].items()})
    return made


def table_encoder(f: Fixture) -> dict[str, Tensor]:
    c = f.config
    encoder = HeteroEncoder(_columns(f), c["resnet_channels"], c["channels"], c["resnet_layers"]).eval()
    state = from_official_keys(f.state, prefix="encoder.")
    encoder.load_state_dict({name.removeprefix("encoder."): t for name, t in state.items()})
    return encoder(_frames(f))


def temporal_and_gnn(f: Fixture) -> dict[str, Tensor]:
    c, x = f.config, _under(f.inputs, "x.")
    times, owner, edges = _under(f.inputs, "time."), _under(f.inputs, "batch."), _edges(f)
    temporal = HeteroTemporalEncoder(list(times), c["channels"]).eval()
    temporal.load_state_dict(_under(f.state, "temporal."))
    made = {f"temporal.{t}": z for t, z in temporal(f.inputs["seed_time"], times, owner).items()}
    for kind in ("sage", "gat"):
        gnn = HeteroGNN(list(x), list(edges), c["channels"], c["layers"], kind, c["aggr"], c["heads"]).eval()
        gnn.load_state_dict(_under(f.state, f"{kind}."))
        made |= {f"{kind}.{table}": z for table, z in gnn(x, edges).items()}
    return made


def full_model(f: Fixture) -> dict[str, Tensor]:
    c, state = f.config, from_official_keys(f.state)
    edges, times = _edges(f), _under(f.inputs, "time.")
    model = RelationalModel(
        _columns(f), list(edges), list(times), c["channels"], len(f.state["head.lins.0.bias"]), c["layers"],
        c.get("conv", "sage"), c["aggr"], c.get("heads", 4), c["resnet_channels"], c["resnet_layers"],
        shallow={table: len(state[f"embedding_dict.{table}.weight"]) for table in c["shallow"]},
        identity="id_awareness_emb.weight" in state,
    ).eval()  # fmt: skip
    model.load_state_dict(state)
    frames = _frames(f)
    batch = Batch(
        frames, None, times, _under(f.inputs, "batch."), edges, f.inputs["seed_time"], "customer",
        {table: torch.arange(frame.num_rows) for table, frame in frames.items()},
    )  # fmt: skip
    prediction = model(batch)
    loss = entity_loss(prediction, f.inputs["target"], "binary")
    loss.backward()
    grads = {name: model.get_parameter(name.removeprefix("grad.")).grad for name in f.outputs if "grad." in name}
    return grads | {"prediction": prediction, "loss": loss, "dst_readout": model.read_out(batch, "product")}


def metrics(f: Fixture) -> dict[str, Tensor]:
    given = {name: t.numpy() for name, t in f.inputs.items()}
    found = measures.of_probabilities(given["labels"], given["probs"])
    found |= measures.of_numbers(given["target"], given["prediction"])
    links = measures.of_links(given["hits"], given["counts"])
    found |= {f"link.{name}": values.mean() for name, values in links.items()}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


def task_tables(f: Fixture) -> dict[str, Tensor]:
    c, given = f.config, {name: t.numpy() for name, t in f.inputs.items()}
    frames = {
        "drivers": pd.DataFrame({"driverId": np.arange(c["drivers"])}),
        "results": pd.DataFrame({
            "driverId": given["driver"], "date": _dates(given["day"]), "positionOrder": given["position"],
            "statusId": given["status"],
        }),
    }  # fmt: skip
    schemas = {"drivers": TableSchema("driverId"), "results": TableSchema(None, "date", {"driverId": "drivers"})}
    database = Database(frames, schemas)
    val, test = (str(_dates(c[f"{part}_day"])) for part in ("val", "test"))
    made = {}
    for name, task in (("position", driver_position(val, test)), ("dnf", driver_dnf(val, test))):
        table = task_table(database, task)
        for part, rows in table.groupby("split"):
            days = rows["date"].to_numpy().astype("datetime64[D]").astype(np.int64)
            made[f"{name}.{part}.day"] = torch.from_numpy(days)
            made[f"{name}.{part}.driver"] = torch.from_numpy(rows["driverId"].to_numpy())
            made[f"{name}.{part}.target"] = torch.from_numpy(rows[task.target].to_numpy())
    return made


def temporal_neighbourhood(f: Fixture) -> dict[str, Tensor]:
    tables, edges = f.config["node_types"], _edges(f)
    times = {table: t.numpy() for table, t in _under(f.inputs, "time.").items()}
    given = {kind: (e[0].numpy(), e[1].numpy()) for kind, e in edges.items()}
    nodes = {
        table: max([len(times.get(table, ())), *(1 + int(e[side].max()) for kind, e in edges.items()
                    for side, name in ((0, kind[0]), (1, kind[2])) if name == table)])
        for table in tables
    }  # fmt: skip
    found = TemporalGraph(nodes, times, given).sample(
        f.config["seed_type"], f.inputs["seed_nodes"].numpy(), f.inputs["seed_time"].numpy(), [ALL] * f.config["hops"]
    )
    return {"reached": torch.from_numpy(found.reached(tables))}


PARTS = {
    "database_to_graph": database_to_graph,
    "table_encoder": table_encoder,
    "temporal_and_gnn": temporal_and_gnn,
    "full_model": full_model,
    "metrics": metrics,
    "task_tables": task_tables,
    "temporal_neighbourhood": temporal_neighbourhood,
}
