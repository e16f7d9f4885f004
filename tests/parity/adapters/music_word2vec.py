"""Parts: midi_slices, vocabulary_and_pairs, nce_step, chord_distances."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.systems.music_word2vec.analysis import chord_distances, chord_roots, pair_distances
from repertory.systems.music_word2vec.model import SliceEmbedding
from repertory.systems.music_word2vec.objective import (
    expected_count,
    nce_loss,
    nce_sgd_steps,
    pairs_from_draws,
)
from repertory.systems.music_word2vec.slicing import piano_numbers, pitch_class_codes, presence
from repertory.systems.music_word2vec.vocabulary import Vocabulary
from tests.parity.runner import Fixture


def midi_slices(fixture: Fixture) -> dict[str, Tensor]:
    notes = fixture.inputs["notes"].numpy()
    outputs = {"words_88": piano_numbers(presence(notes, keys="piano"))}
    for number, beat in enumerate(fixture.config["beats"]):
        outputs[f"pc_{number}"] = presence(notes, beat)
        outputs[f"code_{number}"] = pitch_class_codes(outputs[f"pc_{number}"])
    return {name: torch.from_numpy(value) for name, value in outputs.items()}


def vocabulary_and_pairs(fixture: Fixture) -> dict[str, Tensor]:
    config, codes = fixture.config, fixture.inputs["codes"].numpy()
    vocabulary = Vocabulary.build(codes, config["vocabulary_size"])
    ids = vocabulary.encode(codes)
    centres, contexts, starts = pairs_from_draws(
        ids,
        fixture.inputs["random_draws"].numpy(),
        skip_window=config["skip_window"],
        num_skips=config["num_skips"],
        batch_size=config["batch_size"],
        calls=config["calls"],
    )
    return {
        "vocab_codes": torch.tensor([-1, *vocabulary.known.tolist()]),
        "vocab_counts": torch.from_numpy(vocabulary.id_counts),
        "ids": torch.from_numpy(ids),
        "centres": torch.from_numpy(centres),
        "contexts": torch.from_numpy(contexts),
        "start_index": torch.from_numpy(starts),
    }


def nce_step(fixture: Fixture) -> dict[str, Tensor]:
    config, inputs = fixture.config, fixture.inputs
    model = SliceEmbedding(config["vocabulary"], config["dim"]).to(fixture.state["embeddings"].dtype)
    model.load_official(fixture.state)
    parameters = (model.embeddings, model.nce_weights, model.nce_biases)
    centres, contexts, negatives, num_tries = (
        inputs[name] for name in ("centres", "contexts", "negatives", "num_tries")
    )
    per_pair = nce_loss(*parameters, centres, contexts, negatives, num_tries)

    gradients = torch.autograd.grad(per_pair.mean(), parameters, retain_graph=True)

    # the form that training runs: one group whose n-th centre goes with the n-th context
    group = (centres[None], contexts[None], torch.eye(len(centres))[None], negatives[None], num_tries[None])
    loss = nce_sgd_steps(*parameters, *group, learning_rate=config["learning_rate"])
    return {
        "expected_count_true": expected_count(contexts, config["vocabulary"], num_tries),
        "expected_count_negatives": expected_count(negatives, config["vocabulary"], num_tries),
        "loss_per_pair": per_pair,
        "loss": loss[0],
        "grad.embeddings": gradients[0],
        "grad.nce_weights": gradients[1],
        "grad.nce_biases": gradients[2],
        "embeddings_after_sgd": model.embeddings,
    }


def chord_distances_(fixture: Fixture) -> dict[str, Tensor]:
    embeddings = fixture.inputs["embeddings"].numpy()
    codes, centres, neighbours, pairs = (
        fixture.inputs[name].numpy() for name in ("codes", "centres", "neighbours", "pairs")
    )
    rows = {code: row for row, code in enumerate(codes.tolist())}
    return {
        "root_pitch_class": torch.from_numpy(chord_roots(codes)),
        "cosine_distance": torch.from_numpy(chord_distances(centres, neighbours, embeddings, rows)),
        "pair_distance": torch.from_numpy(pair_distances(pairs, embeddings, rows)),
    }


PARTS = {
    "midi_slices": midi_slices,
    "vocabulary_and_pairs": vocabulary_and_pairs,
    "nce_step": nce_step,
    "chord_distances": chord_distances_,
}
