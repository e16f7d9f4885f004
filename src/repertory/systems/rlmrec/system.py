"""RLMRec: recommendation with embeddings that agree with texts about users and items."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from repertory import data as data_
from repertory.contract import Length
from repertory.data import Splits
from repertory.data.interactions import SIDES, Interactions
from repertory.embeddings import Embeddings
from repertory.encoders import read_checkpoint
from repertory.errors import ConfigError, DataError, UserError
from repertory.evaluation import Metric, Metrics, describe
from repertory.systems.rlmrec import figures
from repertory.systems.rlmrec.alignment import Alignment, Contrastive, Generative
from repertory.systems.rlmrec.backbones import DCCF, GCCF, SGL, AutoCF, Backbone, LightGCN, SimGCL
from repertory.systems.rlmrec.config import Config
from repertory.systems.rlmrec.data import READERS, TripleBatches, numbered
from repertory.systems.rlmrec.graph import Bipartite
from repertory.systems.rlmrec.model import RLMRec, from_official_keys
from repertory.systems.rlmrec.ranking import Chosen, of_rankings, rank
from repertory.systems.rlmrec.texts import (
    SHOWN,
    Embedder,
    Tfidf,
    WordLlama,
    check_vectors,
    completed,
    embedder_of,
    texts_of,
)
from repertory.systems.rlmrec.training import Recommending
from repertory.training import Stage, TorchSystem

HEAD = 0.2
"""Share of the items, the most popular, outside which the long tail begins."""


class Asked(NamedTuple):
    """Users or items of some data: names, numbers in the model (-1: not fitted), vectors."""

    names: np.ndarray
    numbers: np.ndarray
    vectors: Tensor


class RLMRecSystem(TorchSystem):
    """Representation learning with large language models for recommendation (Ren et al. 2024)."""

    Config = Config
    readers = READERS
    model: RLMRec

    # -- the model -----------------------------------------------------------------------------------------------

    def _check(self, splits: Splits[Interactions], length: Length, trainer: Mapping[str, Any]) -> None:
        super()._check(splits, length, trainer)
        items = splits.all
        if splits.rule == "none":
            raise DataError(f"{splits.source}: nothing is left to train on")
        if len(items) != len(items.users) + len(items.items):
            raise DataError(f"{splits.source}: some of the users or items only: a graph is fitted whole")
        if len(items.users) < 2 or len(items.items) < 2:
            raise DataError(f"{len(items.users)} users and {len(items.items)} items: at least 2 of each are needed")
        if max(self.config.ks) > len(items.items):
            raise ConfigError(f"ks={max(self.config.ks)}: there are only {len(items.items)} items to rank")
        train = Chosen(splits.train.table.pairs, len(items.users), len(items.items))
        if self.config.backbone != "autocf" and (train.sizes == len(items.items)).any():
            user = items.users[int(train.sizes.argmax())]
            raise DataError(f"user '{user}' has chosen all {len(items.items)} items: no other is left to compare with")
        if self.config.variant != "base":
            self._text_vectors(splits)

    def _learn(self, splits: Splits[Interactions]) -> dict[str, Any]:
        items, pairs = splits.all, splits.train.table.pairs
        train = Chosen(pairs, len(items.users), len(items.items))
        silent = items.users[train.sizes == 0]
        if len(silent):
            warnings.warn(
                f"{len(silent)} of {len(items.users)} users have no training interaction "
                f"({', '.join(silent[:SHOWN])}): "
                + (
                    "they are placed by their text"
                    if self.config.variant == "con"
                    else "their vectors stay initial ones"
                ),
                stacklevel=2,
            )
        twice = int(train.has(*splits.test.table.pairs.T).sum())
        if twice:
            warnings.warn(
                f"{twice} test interactions are also in training: they can never be recommended", stacklevel=2
            )
        titles = items.text("title")[len(items.users) :]
        made: dict[str, Any] = {
            "users": items.users.tolist(), "items": items.items.tolist(), "pairs": np.asarray(pairs),
            "embedder": "none", "titles": [title or name for title, name in zip(titles, items.items, strict=True)],
        }  # fmt: skip
        if self.config.variant == "base":
            return made
        vectors, embedder = self._text_vectors(splits)
        made |= {"texts": vectors, "embedder": "stored" if embedder is None else self.config.embedder}
        return made | ({} if embedder is None else embedder.assets())

    def _text_vectors(self, splits: Splits[Interactions]) -> tuple[np.ndarray, Embedder | None]:
        """Vectors [N, width] of the texts of all users and items, and what made them, where it was not the data."""
        items, pairs = splits.all, splits.train.table.pairs
        embedder: Embedder | None = None
        vectors = items.vectors
        if vectors is None:
            texts = texts_of(items)
            there = texts != ""
            if not there.any():
                raise DataError(
                    f"{splits.source}: neither texts nor vectors of users and items: variant=base needs none"
                )
            tfidf = self.config.embedder == "tfidf"
            embedder = Tfidf.fit(list(texts[there]), self.config.text_width) if tfidf else WordLlama()
            made = embedder(list(texts[there]))
            vectors = np.full((len(items), made.shape[1]), np.nan, np.float32)
            vectors[there] = made
        return completed(vectors, items.ids, len(items.users), pairs), embedder

    def _build(self) -> nn.Module:
        c, known = self.config, self.assets
        pairs = torch.from_numpy(np.asarray(known["pairs"]))
        graph = Bipartite(len(known["users"]), len(known["items"]), pairs, loops=c.backbone == "gccf")
        backbone = self._backbone(graph)
        alignment = Alignment()
        if c.variant != "base":
            texts, weight, temperature = (
                torch.from_numpy(known["texts"]), c.of("align_weight"), c.of("align_temperature")
            )  # fmt: skip
            alignment = (
                Contrastive(texts, graph.users, backbone.width, weight, temperature, backbone.negatives)
                if c.variant == "con"
                else Generative(texts, graph.users, c.dim, backbone.width, c.of("mask_ratio"), weight, temperature)
            )
        return RLMRec(backbone, alignment, c.of("reg_weight"))

    def _backbone(self, graph: Bipartite) -> Backbone:
        c = self.config
        if c.backbone == "autocf":
            return AutoCF(
                graph, c.dim, c.gcn_layers, c.transformer_layers, c.heads, c.seeds, c.mask_depth, c.fix_steps, c.ssl_reg
            )
        layers = c.of("layers")
        if c.backbone in ("lightgcn", "gccf"):
            return (GCCF if c.backbone == "gccf" else LightGCN)(graph, c.dim, layers, c.keep_rate)
        contrast = (c.of("cl_weight"), c.of("cl_temperature"))
        if c.backbone == "dccf":
            return DCCF(graph, c.dim, layers, c.intents, *contrast)
        if c.backbone == "sgl":
            return SGL(graph, c.dim, layers, c.keep_rate, *contrast, augmentation=c.augmentation)
        return SimGCL(graph, c.dim, layers, c.keep_rate, *contrast, eps=c.of("eps"))

    def stages(self, splits: Splits[Interactions]) -> list[Stage]:
        c, pairs = self.config, np.asarray(self.assets["pairs"])
        held_out = Chosen(splits.val.table.pairs, len(self.assets["users"]), len(self.assets["items"]))
        if splits.val.table.names is not splits.all.table.names:  # another source's
            held_out = self._held(splits.val)
        chosen = self.chosen
        module = Recommending(self.model, c.lr, chosen, held_out, c.ks[-1])
        batches = TripleBatches(pairs, chosen, c.batch_size)
        return [
            Stage(
                "training", module, batches, epochs=c.epochs, validation=[np.flatnonzero(held_out.sizes)],
                validate_every=c.validate_every * len(batches), keep_best=f"val/recall_at_{c.ks[-1]}", best_is="max",
                patience=c.patience,
            )
        ]  # fmt: skip

    def _held(self, items: Interactions) -> Chosen:
        """Interactions by number; all of fitted users and items.

        Raises:
            DataError: somebody was not fitted.
        """
        pairs = numbered(items, self.assets["users"], self.assets["items"])
        strange = (pairs < 0).any(axis=1)
        if strange.any():
            raise DataError(
                f"{strange.sum()} of {len(pairs)} interactions are with users or items that were not fitted "
                f"(first: {items.units.ids[strange.argmax()]})"
            )
        return Chosen(pairs, len(self.assets["users"]), len(self.assets["items"]))

    @property
    def chosen(self) -> Chosen:
        """Training interactions."""
        return Chosen(np.asarray(self.assets["pairs"]), len(self.assets["users"]), len(self.assets["items"]))

    # -- embed ---------------------------------------------------------------------------------------------------

    def _embed(self, data: Interactions, batch_size: int) -> Iterator[Embeddings]:
        sides = [self._side(data, side) for side in SIDES]
        place = {f"{side}:{name}": (n, row) for n, (side, asked) in enumerate(zip(SIDES, sides, strict=True))
                 for row, name in enumerate(asked.names)}  # fmt: skip
        whole = [asked.vectors.float().cpu().numpy() for asked in sides]
        for start in range(0, len(data), batch_size):
            ids = data.ids[start : start + batch_size]
            yield Embeddings.build(np.stack([whole[n][row] for n, row in (place[str(i)] for i in ids)]), id=list(ids))

    @torch.no_grad()
    def _side(self, data: Interactions, side: str) -> Asked:
        """Who of one side is asked for, with vectors: of who was fitted by the graph, else (Con) by text."""
        rows = np.flatnonzero(data.columns["side"].to_numpy() == side)
        names = np.array([str(name).partition(":")[2] for name in data.ids[rows]], dtype=object)
        position = {name: n for n, name in enumerate(self.assets[f"{side}s"])}
        numbers = np.array([position.get(name, -1) for name in names], dtype=np.int64)
        fitted = self.model.embeddings()[SIDES.index(side)]
        vectors = fitted[torch.from_numpy(numbers.clip(0)).to(fitted.device)]
        sizes = np.bincount(np.asarray(self.assets["pairs"])[:, SIDES.index(side)], minlength=len(position))
        known = numbers >= 0
        silent = ~known
        if self.config.variant == "con" and not self.record.get("imported"):
            silent |= known & (sizes[numbers.clip(0)] == 0)
        if silent.any():
            texts = self._texts_for(data, rows[silent], numbers[silent], side)
            placed = self.model.alignment.mlp(torch.from_numpy(texts).to(fitted.device))  # type: ignore[union-attr,operator]
            # contrast aligns directions: the length is that of who was fitted
            seen = fitted[torch.from_numpy(sizes > 0).to(fitted.device)].norm(dim=1).mean()
            vectors[torch.from_numpy(silent).to(fitted.device)] = nn.functional.normalize(placed, dim=1) * seen
        return Asked(names, numbers, vectors)

    def _texts_for(self, data: Interactions, rows: np.ndarray, numbers: np.ndarray, side: str) -> np.ndarray:
        """Text vectors [M, width] of nodes without training interactions: the fit's, or of the data's own texts."""
        first = data.ids[rows][numbers < 0][:SHOWN]
        if self.config.variant != "con":
            raise DataError(
                f"{(numbers < 0).sum()} {side}s were not fitted ({', '.join(first)}): only variant=con can place who "
                "has a text and no interactions"
            )
        if "texts" not in self.assets:
            raise DataError(f"{', '.join(first)}: not fitted, and this run has no texts")
        offset = len(self.assets["users"]) if side == "item" else 0
        made = np.asarray(self.assets["texts"])[numbers.clip(0) + offset].copy()
        new = np.flatnonzero(numbers < 0)
        if not len(new):
            return made
        asked = data.take(rows[new])
        embedder = embedder_of(self.assets)
        if embedder is None:
            given = asked.vectors
            if given is None or given.shape[1] != made.shape[1]:
                raise DataError(
                    f"{side}s that were not fitted ({', '.join(first)}) need text vectors of {made.shape[1]} numbers, "
                    "as those of the fit"
                )
        else:
            given = np.full((len(new), made.shape[1]), np.nan, np.float32)
            texts = texts_of(asked)
            if (texts != "").any():
                given[texts != ""] = embedder(list(texts[texts != ""]))
        there = check_vectors(given, asked.ids)
        if not there.all():
            lacking = ", ".join(asked.ids[~there][:SHOWN])
            raise DataError(
                f"{(~there).sum()} {side}s were not fitted and have no text ({lacking}): they cannot be placed"
            )
        made[new] = given
        return made

    # -- rank ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def recommend(self, data: Interactions, k: int) -> tuple[Asked, np.ndarray, np.ndarray]:
        """The users of ``data``, and for each the k best items [U, k] that it has not chosen, with scores.

        Raises:
            ConfigError: k is less than 1, or more than there are items.
        """
        count = len(self.assets["items"])
        if not 1 <= k <= count:
            raise ConfigError(f"k={k}: there are {count} items to rank: give 1 to {count}")
        asked = self._side(data, "user")
        if not len(asked.names):
            raise DataError("there is no user to recommend anything to")
        known = asked.numbers >= 0
        pairs = np.asarray(self.assets["pairs"])
        row = np.full(len(self.assets["users"]), -1, np.int64)
        row[asked.numbers[known]] = np.flatnonzero(known)
        here = row[pairs[:, 0]] >= 0
        removed = Chosen(np.stack([row[pairs[here, 0]], pairs[here, 1]], axis=1), len(asked.names), count)
        found, scores = rank(asked.vectors, self.model.embeddings()[1], removed, np.arange(len(asked.names)), k)
        return asked, found, scores

    def _evaluate(self, splits: Splits[Interactions]) -> Metrics:
        test, seed, c = splits.test, int(self.record.get("seed", 0)), self.config
        asked, found, _ = self.recommend(test, max(c.ks))
        relevant = self._relevant(test, asked)
        tested = relevant.sizes > 0
        if not tested.any():
            raise DataError("no user has a held-out interaction")
        hits = relevant.has(np.arange(len(asked.names))[:, None], found)[tested]
        made = of_rankings(hits, relevant.sizes[tested], c.ks)
        about = f"{tested.sum():,} users, {len(self.assets['items']):,} items ranked, those of training left out"
        metrics = {
            f"{name}_at_{k}": Metric.of(made[name][:, n], seed, higher_is_better=True, about=about)
            for name in ("recall", "ndcg")
            for n, k in enumerate(c.ks)
        }
        k, popular = max(c.ks), self._popular()
        shown = found[tested]
        metrics[f"coverage_at_{k}"] = Metric(
            len(np.unique(shown)) / len(popular),
            higher_is_better=True,
            about="share of the items that anybody is shown",
        )
        metrics[f"long_tail_at_{k}"] = Metric(
            float(1 - popular[shown].mean()), about=f"share of the shown that is not among the {HEAD:.0%} most popular"
        )
        vectors = torch.cat([self._side(test, side).vectors for side in SIDES]).float().cpu().numpy()
        label = self._label_column(test)
        if label is None:
            return Metrics(metrics) | describe(vectors, seed=seed)
        labels = test.columns[label]
        labelled = np.flatnonzero(~labels.is_null().to_numpy(zero_copy_only=False))
        own = Embeddings.concat(self._stream(test.take(labelled), None, None))
        return Metrics(metrics) | describe(own.vectors, own.column(label), seed=seed)

    def _relevant(self, data: Interactions, asked: Asked) -> Chosen:
        pairs = numbered(data, list(asked.names), self.assets["items"])
        strange = (pairs < 0).any(axis=1)
        if strange.any():
            raise DataError(
                f"{strange.sum()} of {len(pairs)} interactions are with items that were not fitted "
                f"(first: {data.units.ids[strange.argmax()]})"
            )
        return Chosen(pairs, len(asked.names), len(self.assets["items"]))

    def _popular(self) -> np.ndarray:
        """Which items [I] are among the most popular in training."""
        counts = np.bincount(np.asarray(self.assets["pairs"])[:, 1], minlength=len(self.assets["items"]))
        made = np.zeros(len(counts), dtype=bool)
        made[np.argsort(-counts, kind="stable")[: max(1, round(HEAD * len(counts)))]] = True
        return made

    # -- verbs ---------------------------------------------------------------------------------------------------

    def predict(self, data: Any = None, k: int = 10, reasons: int = 2) -> pa.Table:
        """What to recommend to each user of the data.

        Args:
            data: says which users; None takes all of the run's own data. Users who were not fitted are placed by their
                text (variant con only).
            k: length of a list.
            reasons: how many items of each reason.

        Returns:
            A row per user and recommended item, best first: id (``user:...``), rank, item, title, score, and
            ``because``, the titles of the items chosen by that user that are most alike (by text, or without texts by
            embedding); empty for a user who was placed by text.

        Raises:
            ConfigError: k or ``reasons`` cannot be met. DataError: a user was not fitted and cannot be placed.
        """
        items, _ = self._held_out(data)
        if reasons < 0:
            raise ConfigError(f"reasons={reasons}: 0 or more are needed")
        asked, found, scores = self.recommend(items, k)
        titles = np.array(self.assets["titles"], dtype=object)
        because = [[titles[list(own)].tolist() for own in rows] for rows in self._reasons(asked, found, reasons)]
        names = np.array(self.assets["items"], dtype=object)
        return pa.table({
            "id": pa.array(np.repeat([f"user:{name}" for name in asked.names], k), pa.string()),
            "rank": pa.array(np.tile(np.arange(1, k + 1), len(asked.names))),
            "item": pa.array(names[found].reshape(-1), pa.string()),
            "title": pa.array(titles[found].reshape(-1), pa.string()),
            "score": pa.array(scores.reshape(-1)),
            "because": pa.array([own for rows in because for own in rows], pa.list_(pa.string())),
        })  # fmt: skip

    @torch.no_grad()
    def _reasons(self, asked: Asked, found: np.ndarray, most: int) -> list[list[np.ndarray]]:
        """Of each user and recommended item [U][k] the chosen items that are most alike."""
        vectors = self.model.embeddings()[1].float().cpu().numpy()
        if "texts" in self.assets:
            vectors = np.asarray(self.assets["texts"])[len(self.assets["users"]) :]
        units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        made, chosen = [], self.chosen
        for number, row in zip(asked.numbers, found, strict=True):
            own = chosen.of(number) if number >= 0 else np.empty(0, np.int64)
            alike = units[row] @ units[own].T
            made.append(list(own[np.argsort(-alike, axis=1, kind="stable")[:, :most]]))
        return made

    def figures(self, data: Interactions) -> dict[str, Any]:
        c, users = self.config, data.take(data.columns["side"].to_numpy() == "user")
        made: dict[str, Any] = {}
        if len(users):
            some = users.take(np.unique(np.linspace(0, len(users) - 1, figures.USERS).astype(int)))
            listed = self.predict(some, k=min(figures.LISTED, len(self.assets["items"]))).to_pandas()
            made["What some users would be shown, and why"] = figures.of_lists(listed, self._history(some))
            k = min(max(50, *c.ks), len(self.assets["items"]))
            asked, found, _ = self.recommend(data, k)
            relevant = self._relevant(data, asked)
            if (tested := relevant.sizes > 0).any():
                hits = relevant.has(np.arange(len(asked.names))[:, None], found)[tested]
                curves = of_rankings(hits, relevant.sizes[tested], range(1, k + 1))
                made["How much of what was held out is found in lists of length k"] = figures.of_curves(
                    {name: curves[name].mean(axis=0) for name in ("recall", "ndcg")}
                )
            counts = np.bincount(self.chosen.items, minlength=len(self.assets["items"]))
            short = found[:, : max(c.ks)]
            made["Popular items and the long tail: what was chosen, and what is shown"] = figures.of_popularity(
                counts, np.bincount(short.reshape(-1), minlength=len(counts))
            )
        asked = self._side(data, "item")
        if len(asked.names) > 2:
            known = asked.numbers >= 0
            titles = np.array([self.assets["titles"][n] if n >= 0 else name
                               for n, name in zip(asked.numbers, asked.names, strict=True)], dtype=object)  # fmt: skip
            counts = np.where(
                known, np.bincount(self.chosen.items, minlength=len(self.assets["items"]))[asked.numbers.clip(0)], 0
            )
            made["The items, by their embeddings"] = figures.of_items(
                asked.vectors.float().cpu().numpy(), titles, counts
            )
        return made

    def _history(self, users: Interactions) -> dict[str, list[str]]:
        """Titles of some items that each user chose, the least popular first: they say most."""
        titles, chosen, place = (
            self.assets["titles"],
            self.chosen,
            {name: n for n, name in enumerate(self.assets["users"])},
        )
        counts = np.bincount(chosen.items, minlength=len(titles))
        made = {}
        for name in users.ids:
            number = place.get(str(name).partition(":")[2], -1)
            own = chosen.of(number) if number >= 0 else np.empty(0, np.int64)
            made[str(name)] = [titles[n] for n in own[np.argsort(counts[own], kind="stable")]]
        return made

    # -- official checkpoints --------------------------------------------------------------------------------------

    @classmethod
    def from_official(cls, checkpoint: Any, data: Any = None) -> RLMRecSystem:
        """From a state dict of the official code (a file, or the dict).

        The weights say nothing about who chose what: ``data`` says it, or the official files beside the checkpoint
        (``trn_mat.npz`` or ``.pkl``, ...).

        Raises:
            UserError: no data, other names, or sizes that do not match the data.
        """
        state = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
        try:
            weights = from_official_keys(state)
            users, items = weights["backbone.user_embeds"], weights["backbone.item_embeds"]
        except KeyError as error:
            raise UserError(f"not a checkpoint of RLMRec: {error.args[0]}") from None
        if data is None and isinstance(checkpoint, (str, Path)):
            data = Path(checkpoint).parent
        if data is None:
            raise UserError(
                "the weights do not say who has chosen what: give the data, from_official(checkpoint, data)"
            )
        splits = data_.open(data, cls.card.kind, cls.readers)
        counts = [len(splits.all.users), len(splits.all.items)]
        if [len(users), len(items)] != counts:
            raise UserError(
                f"the checkpoint has {len(users)} users and {len(items)} items, "
                f"the data have {counts[0]} and {counts[1]}"
            )
        system = cls(Config.build(**_shape_of(weights)))
        assets = system._learn(splits)
        if "texts" in assets:
            width = (
                weights["alignment.mlp.0.weight"].shape[1]
                if system.config.variant == "con"
                else len(weights["alignment.mlp.2.weight"])
            )
            if np.asarray(assets["texts"]).shape[1] != width:
                raise UserError(
                    f"the checkpoint's texts have {width} numbers, those of the data {assets['texts'].shape[1]}"
                )
        return system._imported(assets, weights, str(checkpoint)[:200])


def _shape_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the names and sizes of weights say about the configuration.

    SGL and SimGCL have the weights of LightGCN, and infer like it.
    """
    made: dict[str, Any] = {"dim": weights["backbone.user_embeds"].shape[1], "variant": "base"}
    if "alignment.mask_token" in weights:
        made["variant"] = "gen"
    elif "alignment.mlp.0.weight" in weights:
        made["variant"] = "con"
    unused = sum(name.startswith("backbone.unused.") for name in weights)
    transformers = sum(name.startswith("backbone.transformer.") for name in weights) // 3
    if unused:
        made |= {"backbone": "gccf", "layers": unused}
    elif transformers:
        made |= {"backbone": "autocf", "transformer_layers": transformers}
    elif "backbone.user_intent" in weights:
        made |= {"backbone": "dccf", "intents": weights["backbone.user_intent"].shape[1]}
    return made
