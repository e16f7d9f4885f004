"""PiVeM: the modules of the room on the fixtures' weights and events."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from repertory.contract import Length
from repertory.data import Splits
from repertory.data.events import Events
from repertory.runs import Run
from repertory.systems.pivem import PiecewiseVelocityModel, PiVeM, from_official_keys
from repertory.systems.pivem.model import OFFICIAL
from repertory.systems.pivem.objective import Cells, negative_log_likelihood
from tests.parity.runner import Fixture


def _model(f: Fixture) -> PiecewiseVelocityModel:
    c = f.config
    model = PiecewiseVelocityModel(c["N"], c["bins"], c["dim"], c["k"], c["prior_lambda"], c["last_time"])
    model.to(f.state["_BaseModel__x0"].dtype).load_state_dict(from_official_keys(f.state))
    return model


def _cells(f: Fixture) -> Cells:
    c = f.config
    return Cells.of(f.inputs["event_pairs"], f.inputs["event_times"], c["N"], c["bins"], c["last_time"], "official")


def trajectory_and_coefficients(f: Fixture) -> dict[str, Tensor]:
    model, nodes, bins = _model(f), f.config["N"], f.config["bins"]
    x0, v = model.centred()
    count, residual, squared = _cells(f).dense(nodes, bins)
    return {
        "x0_centred": x0,
        "v_centred": v,
        "position": model.position(f.inputs["nodes"], f.inputs["times"], "official"),
        "log_intensity": model.log_intensity(f.inputs["query_pairs"].T, f.inputs["times"], "official"),
        "pairs": torch.triu_indices(nodes, nodes, 1).T,
        "count": count,
        "alpha1": residual,
        "alpha2": squared,
    }


def likelihood(f: Fixture) -> dict[str, Tensor]:
    model = _model(f)
    nll = negative_log_likelihood(*model.trajectories(), model.beta, model.width, _cells(f))
    nll.backward()
    start, end = f.inputs["intervals"].T
    pairs = f.inputs["interval_pairs"]
    return {
        "nll": nll,
        "integral": model.integral(f.inputs["pairs"]),
        "interval_integral": model.expected(pairs, start, end, "official"),
        "interval_integral_numeric": model.expected(pairs, start, end),
        "grad_x0": model.x0.grad,
        "grad_v": model.v.grad,
        "grad_beta": model.beta.grad,
    }


def prior(f: Fixture) -> dict[str, Tensor]:
    model = _model(f)
    value = model.prior(*model.centred())
    value.backward()
    grads = {
        "grad_" + name.removeprefix("_BaseModel__"): parameter.grad
        for name, ours in OFFICIAL.items()
        if (parameter := model.get_parameter(ours)).grad is not None
    }
    return grads | {
        "bin_factor": model.prior.bin_factor(),
        "node_factor": model.prior.node_factor(),
        "neg_log_prior": value,
        "neg_log_prior_batch": model.prior(*model.centred(), f.inputs["batch_nodes"]),
        "neg_log_prior_dense": value,
    }


def training(f: Fixture) -> dict[str, Tensor]:
    c = f.config
    config = PiVeM.Config(
        bins=c["bins"], dim=c["dim"], rank=c["k"], prior_scale=c["prior_lambda"], epochs=c["epochs"], lr=c["lr"],
        batches_per_epoch=c["steps_per_epoch"], follow="official",
        nodes_per_batch=None if c["batch_size"] >= c["N"] else c["batch_size"],
    )  # fmt: skip
    events = Events.of(range(c["N"]), f.inputs["event_pairs"].numpy(), f.inputs["event_times"].numpy())
    splits = Splits(events, "memory", "none", [], np.full(len(events.units), "train", object))
    system = PiVeM(config)
    system.assets = system._learn(splits) | {"origin": 0.0, "span": c["last_time"], "last_time": c["last_time"]}
    system.model = system._build()
    system.model.load_state_dict(from_official_keys(f.state))
    run = Run.create(None, {"slug": "pivem", "seed": c["seed"], "config": config.model_dump(mode="json")})
    precision = "64-true" if f.state["_BaseModel__x0"].dtype == torch.float64 else "32-true"
    system._fit(splits, run, Length(), {"precision": precision, "accelerator": "cpu"})
    logged = {
        name: torch.tensor([row["value"] for row in run.metrics if row["name"] == name]) for name in ("loss", "nll")
    }
    weights = {official: system.model.get_parameter(ours) for official, ours in OFFICIAL.items()}
    return weights | {"loss_by_epoch": logged["loss"], "nll_by_epoch": logged["nll"]}


PARTS = {
    "trajectory_and_coefficients": trajectory_and_coefficients,
    "likelihood": likelihood,
    "prior": prior,
    "training": training,
}
