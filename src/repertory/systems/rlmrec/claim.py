"""Texts help recommendation, where they say something about what is chosen."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np

from repertory import data
from repertory.card import Claim
from repertory.data import Splits
from repertory.data.interactions import Interactions
from repertory.systems.rlmrec.simulation import simulated
from repertory.systems.rlmrec.system import RLMRecSystem

SHARED: dict[str, Any] = {
    "layers": 2,
    "reg_weight": 1e-6,
    "lr": 5e-3,
    "batch_size": 2048,
    "patience": None,
    "ks": (20,),
}
SIMULATED = {**SHARED, "epochs": 60, "validate_every": 10}
FILMS = {**SHARED, "batch_size": 4096, "epochs": 40, "validate_every": 5, "text_width": 48}
BASE: dict[str, Any] = {"variant": "base"}
GEN: dict[str, Any] = {"variant": "gen", "mask_ratio": 0.1, "align_weight": 0.1, "align_temperature": 0.2}
CON: dict[str, Any] = {"variant": "con", "align_weight": 0.1, "align_temperature": 0.2}
CON_SMALL = {**CON, "align_weight": 0.01}


def divided(items: Interactions, seed: int, train: float, val: float, test: float) -> Splits[Interactions]:
    """Random shares of the interactions; what is left is not used."""
    place = np.random.default_rng(seed).random(len(items.units))
    parts = np.select([place < train, place < train + val, place < train + val + test], ["train", "val", "test"], "")
    used = items.part(parts != "")
    return Splits(used, "memory", "source", [], parts[parts != ""].astype(object))


def with_noise(splits: Splits[Interactions], share: float, seed: int) -> Splits[Interactions]:
    """The same with random interactions added to training, ``share`` of those that are there."""
    random, items = np.random.default_rng(seed), splits.all
    users, count = len(items.users), len(items.items)
    pairs = items.table.pairs
    keys = pairs[:, 0] * count + pairs[:, 1]
    free = np.setdiff1d(np.arange(users * count), keys)
    added = random.choice(free, round(share * (splits.membership == "train").sum()), replace=False)
    more = np.stack([added // count, added % count], axis=1)
    made = Interactions.of(users, count, np.concatenate([pairs, more]), vectors=items.vectors)
    parts = np.concatenate([splits.membership, np.full(len(added), "train", dtype=object)])
    return Splits(made, "memory", "source", [], parts)


def shuffled(splits: Splits[Interactions], seed: int) -> Splits[Interactions]:
    """The same with text vectors that belong to somebody else."""
    order = np.random.default_rng(seed).permutation(len(splits.all))
    assert splits.all.vectors is not None
    return Splits(splits.all.with_vectors(splits.all.vectors[order]), "memory", "source", [], splits.membership)


def recall(splits: Splits[Interactions], options: dict[str, Any], seed: int) -> float:
    """Recall@20 on the test part, of the epoch with the best on the validation part."""
    system = RLMRecSystem(RLMRecSystem.Config(**options)).fit(splits, seed=seed)
    return float(system.evaluate()["recall_at_20"].value)


@cache
def simulation(seed: int) -> Splits[Interactions]:
    return divided(simulated(seed=seed), seed, 0.25, 0.15, 0.6)


@cache
def movielens() -> Interactions:
    items: Interactions = data.open("movielens-100k", "interactions").all
    return items


@cache
def films(seed: int) -> Splits[Interactions]:
    return divided(movielens(), seed, 0.15, 0.15, 0.5)


@cache
def on_simulation(variant: str, seed: int) -> float:
    splits = simulation(seed)
    if variant == "shuffled":
        return recall(shuffled(splits, seed), {**SIMULATED, **CON}, seed)
    return recall(splits, {**SIMULATED, **{"con": CON, "gen": GEN, "base": BASE}[variant]}, seed)


@cache
def on_films(variant: str, seed: int) -> float:
    options = {"con": CON_SMALL, "con, ten times the weight": CON, "gen": GEN, "base": BASE}[variant]
    return recall(films(seed), {**FILMS, **options}, seed)


def kept_under_noise(variant: str, seed: int) -> float:
    """Recall@20 with a fifth of random interactions added to training, over that without."""
    noisy = with_noise(simulation(seed), 0.2, seed)
    return recall(noisy, {**SIMULATED, **{"con": CON, "base": BASE}[variant]}, seed) / on_simulation(variant, seed)


def anywhere(options: dict[str, Any], splits: Splits[Interactions], seed: int) -> float:
    return recall(splits, {**FILMS, **options}, seed)


WORLD = (
    "400 simulated users and items whose choices and texts follow from the same 8 factors; 24 choices a user, of which "
    "a quarter is trained on, drawn anew for each seed"
)
MOVIES = (
    "MovieLens 100k, ratings of 4 and 5; 15 % of them to train on, 15 % to select, 50 % to test; texts are title, "
    "genres and decade of a film by TF-IDF, of a person the mean of the films'"
)
PAPER = "both variants improve all six backbones on Amazon-book, Yelp and Steam; the table could not be checked"
FINDINGS = {
    "con": ("simulation: Con", "contrast with texts recommends better than the same backbone without texts"),
    "gen": ("simulation: Gen", "reconstruction of texts does too"),
}
CLAIMS = (
    *(
        Claim(
            name=name,
            finding=finding,
            paper=PAPER,
            data=WORLD,
            metric="Recall@20",
            variants={
                v: partial(on_simulation, v) for v in (method, "base", *(["shuffled"] if method == "con" else []))
            },
            baselines=("base", "shuffled") if method == "con" else ("base",),
            margin=0.01,
            notes="shuffled: Con with texts that belong to others" if method == "con" else "",
        )
        for method, (name, finding) in FINDINGS.items()
    ),
    Claim(
        name="noise",
        finding="Con loses less of its recall to random interactions in training than the backbone without texts",
        paper="Gen and Con are reported to be robust to noise; the figures could not be checked",
        data=f"{WORLD}; a fifth of random interactions is added to training",
        metric="share of Recall@20 that is kept",
        variants={v: partial(kept_under_noise, v) for v in ("con", "base")},
        baselines=("base",),
    ),
    Claim(
        name="films: Gen",
        finding="with few interactions of real people, reconstruction of texts recommends better than without texts",
        paper=PAPER,
        data=MOVIES,
        metric="Recall@20",
        variants={v: partial(on_films, v) for v in ("gen", "base")},
        baselines=("base",),
        margin=0.003,
        on={"gen": partial(anywhere, GEN), "base": partial(anywhere, BASE)},
    ),
    Claim(
        name="films: Con",
        finding="so does contrast with a small weight; with ten times the weight it hurts",
        paper=PAPER,
        data=MOVIES,
        metric="Recall@20",
        variants={v: partial(on_films, v) for v in ("con", "base", "con, ten times the weight")},
        baselines=("base", "con, ten times the weight"),
        on={"con": partial(anywhere, CON_SMALL), "base": partial(anywhere, BASE)},
    ),
)
