"""Symile: the modules of the room on the fixtures' weights and inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.systems.symile import baselines, information, model, objective
from tests.parity.runner import Fixture


def _representations(f: Fixture) -> list[Tensor]:
    return [f.inputs[f"rep{m}"].clone().requires_grad_() for m in range(f.config["modalities"])]


def _gradients(loss: Tensor, representations: list[Tensor], log_scale: Tensor) -> dict[str, Tensor]:
    loss.backward()
    grads = {f"grad_rep{m}": r.grad for m, r in enumerate(representations)}
    return grads | {"grad_logit_scale": log_scale.grad, "loss": loss}


def loss_n(f: Fixture) -> dict[str, Tensor]:
    reps, log_scale = _representations(f), f.inputs["logit_scale"].clone().requires_grad_()
    loss = objective.SymileLoss("n")(reps, log_scale.exp(), permutations=f.inputs["perms"])
    logits = {
        f"logits_anchor{a}": objective.logits_n(r, reps[:a] + reps[a + 1 :], f.inputs["perms"][a])
        for a, r in enumerate(reps)
    }
    return _gradients(loss, reps, log_scale) | logits


def loss_n_squared(f: Fixture) -> dict[str, Tensor]:
    reps, log_scale = _representations(f), f.inputs["logit_scale"].clone().requires_grad_()
    loss = objective.SymileLoss("n_squared")(reps, log_scale.exp())
    out = _gradients(loss, reps, log_scale)
    for name in f.outputs:
        if name.startswith("logits_anchor"):
            a = int(name.removeprefix("logits_anchor"))
            out[name] = objective.logits_n_squared(reps[a], reps[:a] + reps[a + 1 :])
    if "loss_experiments_version" in f.outputs:  # three modalities only
        out["loss_experiments_version"] = loss
    return out


def similarity_and_clip_baseline(f: Fixture) -> dict[str, Tensor]:
    names = [name for name in f.inputs if name not in ("candidates", "logit_scale")]
    names.sort(key=lambda name: int(name[1:]))
    reps = [f.inputs[name].clone().requires_grad_() for name in names]
    log_scale, candidates = f.inputs["logit_scale"].clone().requires_grad_(), f.inputs["candidates"]
    scale = f.inputs["logit_scale"].exp()
    queries = [f.inputs[name] for name in names if name.startswith("q")]
    loss = baselines.PairwiseCLIPLoss()(reps, log_scale.exp())
    loss.backward()
    return {
        "clip_loss": loss,
        "mip_scores": objective.mip_similarity(queries, candidates),
        "mip_scores_single_query": objective.mip_similarity([q[0] for q in queries], candidates),
        "retrieval_logits_symile": scale * objective.mip_similarity(queries, candidates),
        "retrieval_logits_clip": scale * baselines.pairwise_similarity(queries, candidates),
        "grad_logit_scale": log_scale.grad,
    } | {f"grad_{name}": r.grad for name, r in zip(names, reps, strict=True)}


def encoders(f: Fixture) -> dict[str, Tensor]:
    c, d = f.config, f.config["d"]
    symile = model.SymileModel(
        {
            "audio": model.LinearEncoder(
                c["audio_feature_dim"], d, missingness="audio_encoder.missingness_embed.weight" in f.state
            ),
            "image": model.LinearEncoder(
                c["image_feature_dim"], d, missingness="image_encoder.missingness_embed.weight" in f.state
            ),
            "labs": model.LabsEncoder(d, inputs=c["labs_inputs"]),
        }
    )
    symile.load_state_dict(model.from_official_keys({"logit_scale": symile.logit_scale, **f.state}))
    symile.eval()
    inputs = {
        name: (f.inputs[f"{name}_feature"], f.inputs[f"{name}_missing"])
        if f"{name}_missing" in f.inputs
        else f.inputs[f"{name}_feature"]
        for name in ("audio", "image")
    }
    return symile(inputs | {"labs": (f.inputs["labs_percentiles"], f.inputs["labs_missingness"])})


def xor_information_terms(f: Fixture) -> dict[str, Tensor]:
    return {"terms": torch.stack(information.xor_information(f.inputs["p_hat"], f.config["d_v"]), dim=-1)}


PARTS = {
    "loss_n": loss_n,
    "loss_n_squared": loss_n_squared,
    "similarity_and_clip_baseline": similarity_and_clip_baseline,
    "encoders": encoders,
    "xor_information_terms": xor_information_terms,
}
