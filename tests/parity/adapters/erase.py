"""ERASE: noise, denoising, the encoder in both forms, pseudo-labels and the loss on the fixtures' graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.systems.erase.labels import column_normalised, denoised, propagated, prototypes, semantic, similarity
from repertory.systems.erase.model import GraphAttentionEncoder, from_official_keys
from repertory.systems.erase.noise import corrupted, transition_matrix
from repertory.systems.erase.objective import CodingRateReduction, coding_rate
from repertory.systems.erase.sampler import Neighbours
from tests.parity.runner import Fixture


def noise_and_denoising(f: Fixture) -> dict[str, Tensor]:
    c, given = f.config, f.inputs
    train = given["train_mask"].nonzero()[:, 0]
    clean = given["y"][train].numpy()
    asymmetric = transition_matrix(c["classes"], c["asymm_ratio"], "asymmetric", given["asymm_flip_to"].numpy())
    symmetric = transition_matrix(c["classes"], c["symm_ratio"], "symmetric")
    noisy = torch.from_numpy(corrupted(clean, asymmetric, given["asymm_uniform"].numpy()))
    labels = given["y"].clone()
    labels[train] = noisy
    edges = (given["edge_index"], len(labels))
    scores = denoised(noisy, train, *edges, c["classes"], c["T"], c["alpha"], torch.float64)
    return {
        "asymm_labels": labels,
        "symm_train_labels": torch.from_numpy(corrupted(clean, symmetric, given["symm_uniform"].numpy())),
        "adj": column_normalised(*edges, dtype=torch.float64).to_dense(),
        "denoised": scores,
        "denoised_argmax": scores.argmax(1),
    }


def encoder(f: Fixture) -> dict[str, Tensor]:
    c, x, edges = f.config, f.inputs["x"], f.inputs["edge_index"]
    sizes = (c["in_channels"], c["n_hidden"], c["n_embedding"], c["heads"], c["layers"], c["type"])
    small, large = (GraphAttentionEncoder(*sizes, form=form).eval() for form in ("full", "sampled"))
    for model in (small, large):
        model.load_state_dict(from_official_keys(f.state))
    in_order = edges[:, edges[0].argsort(stable=True)]
    return {
        "z": small(x, edges),
        "z_large_training": large(x, edges),
        "z_large_inference": large.embed(x, Neighbours(in_order, len(x))),
    }


def loss(f: Fixture) -> dict[str, Tensor]:
    c, given = f.config, f.inputs
    z, train = given["z"].requires_grad_(), given["train_mask"].nonzero()[:, 0]
    means = prototypes(z.detach()[train], given["denoised"][train].argmax(1), c["classes"])
    said = semantic(given["denoised"], similarity(z.detach(), means), c["beta"])
    spread = propagated(said, given["adj"].to_sparse_csr(), c["T"], c["alpha"])
    reduction = CodingRateReduction(c["eps"], c["gam1"], c["gam2"])
    value, rate, class_rate = reduction(z, spread.argmax(1), c["classes"])
    value.backward()
    plain = CodingRateReduction(c["eps"])(z, spread.argmax(1), c["classes"])
    return {
        "semantic": said,
        "propagated": spread,
        "pseudo_labels": spread.argmax(1),
        "rate": rate,
        "class_rate": class_rate,
        "rate_plain": coding_rate(z, c["eps"]),
        "class_rate_plain": plain.class_rate,
        "loss": value,
        "loss_masked_form": value,
        "loss_given_labels": reduction(z, given["given_labels"], c["classes"]).loss,
        "grad_z": z.grad,
        "grad_z_masked_form": z.grad,
    }


PARTS = {"noise_and_denoising": noise_and_denoising, "encoder": encoder, "loss": loss}
