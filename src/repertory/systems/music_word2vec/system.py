"""word2vec over slices of polyphonic music: embeddings of what sounds together, from what sounds before and after."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from repertory import card
from repertory.contract import Length, System
from repertory.data import Splits
from repertory.data.music import Music
from repertory.embeddings import Embeddings
from repertory.encoders import prefixes, read_checkpoint
from repertory.errors import ConfigError, DataError, UserError
from repertory.evaluation import Metric, Metrics
from repertory.runs import Run
from repertory.systems.music_word2vec import analysis, figures, replacement
from repertory.systems.music_word2vec.data import READERS, sequences, training_sequences
from repertory.systems.music_word2vec.engines import NceEngine, gensim_vectors
from repertory.systems.music_word2vec.model import OFFICIAL_KEYS, SliceEmbedding, load_word2vec, save_word2vec
from repertory.systems.music_word2vec.objective import SkipGramGroups
from repertory.systems.music_word2vec.slicing import SILENCE, End, Keys, rotate, words
from repertory.systems.music_word2vec.vocabulary import UNK, Vocabulary

GROUPS = 64
"""Official batches in one step of the engine; changes the speed, not the method."""
CURVE = 200
"""Points of the learning curve."""
LEARNING_RATES = {"nce": 0.1, "gensim": 0.025}
BELONGS = {
    "num_skips": "nce", "cross_pieces": "nce", "shuffle": "nce", "batch_size": "nce", "steps": "nce",
    "epochs": "gensim", "shrink_windows": "gensim",
}  # fmt: skip
SMALL, LARGE = 5, 100
"""Neighbourhoods that evaluation replaces slices from."""


class MusicWord2Vec(System):
    """Skip-gram embeddings of slices of polyphonic music (Chuan, Agres and Herremans 2020)."""

    readers = READERS

    class Config(card.Config):
        """Hyperparameters; those of the official code by default."""

        presets = {
            "tiny": {
                "end": "exclusive", "transpositions": True, "vocabulary": 300, "dim": 32, "lr": 0.5, "steps": 4000,
            },
            "bach-chorales": {
                "engine": "gensim", "end": "exclusive", "transpositions": True, "vocabulary": 1000, "dim": 64,
                "negatives": 10, "epochs": 4,
            },
        }  # fmt: skip

        engine: Literal["nce", "gensim"] = Field(
            "nce", description="nce: noise-contrastive estimation, official; gensim: its skip-gram, negative sampling"
        )
        keys: Keys = Field("pitch-class", description="what a slice tells apart: 12 pitch classes, or 88 piano keys")
        beat: float = Field(1.0, gt=0, allow_inf_nan=False, description="length of a slice in quarter notes")
        end: End = Field(
            "inclusive", description="a note that ends on a border: inclusive: is in the slice after it too (official)"
        )
        transpositions: bool = Field(False, description="train on every piece in all twelve keys")
        vocabulary: int = Field(2000, ge=2, description="most frequent slices with a vector of their own, and UNK")
        dim: int = Field(256, ge=1, description="width of the embedding")
        window: int = Field(4, ge=1, description="slices on either side that are context")
        negatives: int = Field(64, ge=1, description="per batch, shared (nce), or per pair (gensim)")
        lr: float | None = Field(
            None, gt=0, description="learning rate; None: 0.1 for nce (official), 0.025 for gensim"
        )
        num_skips: int | None = Field(None, ge=1, description="nce: contexts drawn per slice; None: all (official)")
        cross_pieces: bool | None = Field(
            None,
            description="windows reach into the next piece; None: as the engine does, nce yes (official), gensim no",
        )
        shuffle: bool = Field(
            False, description="nce: batches in a new order each pass; false: corpus order (official)"
        )
        batch_size: int = Field(128, ge=1, description="nce: pairs per batch; also pieces embedded at a time")
        steps: int = Field(1_000_001, ge=1, description="nce: batches")
        epochs: int = Field(5, ge=1, description="gensim: passes over the corpus")
        shrink_windows: bool = Field(False, description="gensim: draw each window's width from 1 to window")

        @field_validator(*BELONGS)
        @classmethod
        def _engine_can(cls, value: Any, info: ValidationInfo) -> Any:
            name, engine = str(info.field_name), info.data.get("engine")
            idle = False if name == "cross_pieces" and value is False else cls.model_fields[name].default
            if engine is not None and engine != BELONGS[name] and value != idle:
                raise ValueError(f"the engine {engine} cannot honour it, {BELONGS[name]} can: leave it out")
            return value

    # -- fit -----------------------------------------------------------------------------------------

    def _check(self, splits: Splits, length: Length, trainer: Mapping[str, Any]) -> None:
        super()._check(splits, length, trainer)
        config = self.config
        if config.engine == "gensim" and length.steps is not None:
            raise ConfigError("steps: the engine gensim makes whole passes over the corpus: give epochs")
        self._sequences = training_sequences(splits.train.pieces, config)
        stream = np.concatenate(self._sequences)
        size = min(config.vocabulary, len(np.unique(stream)) + 1)
        if config.engine == "nce" and config.negatives >= size:
            raise ConfigError(f"negatives={config.negatives}: fewer than the vocabulary's {size} words are needed")
        if len(stream) < 2 * config.window + 1:
            raise DataError(
                f"the corpus has {len(stream)} slices, one window {2 * config.window + 1}: add pieces or narrow it"
            )
        if config.engine == "nce":
            self._pairs(np.zeros(len(stream), dtype=int))

    def _learn(self, splits: Splits) -> dict[str, Any]:
        vocabulary = Vocabulary.build(np.concatenate(self._sequences), self.config.vocabulary)
        return {"words": vocabulary.words.tolist(), "counts": vocabulary.counts.tolist(), "size": vocabulary.size}

    @property
    def vocabulary(self) -> Vocabulary:
        """The words by id, with their counts in the training corpus."""
        self._needs_fit()
        return Vocabulary(np.array(self.assets["words"]), np.array(self.assets["counts"]), self.assets["size"])

    def _build(self) -> SliceEmbedding:
        return SliceEmbedding(self.assets["size"], self.config.dim)

    def _fit(self, splits: Splits, run: Run, length: Length, trainer: Mapping[str, Any]) -> None:
        vocabulary = self.vocabulary
        ids = [vocabulary.encode(sequence) for sequence in self._sequences]
        del self._sequences
        if self.config.engine == "gensim":
            self._fit_gensim(ids, run, length.epochs or self.config.epochs)
        else:
            self._fit_nce(ids, run, length)

    def _fit_nce(self, ids: list[np.ndarray], run: Run, length: Length) -> None:
        config = self.config
        pieces = np.repeat(np.arange(len(ids)), list(map(len, ids))) if config.cross_pieces is False else None
        pairs = self._pairs(np.concatenate(ids), pieces)
        batches = length.steps or (length.epochs * len(pairs) if length.epochs else config.steps)
        engine = NceEngine(
            self.model, pairs, negatives=config.negatives, learning_rate=config.lr or LEARNING_RATES["nce"],
            groups=GROUPS, batches=batches, shuffle=config.shuffle, seed=self.record["seed"],
        )  # fmt: skip
        steps = math.ceil(batches / GROUPS)
        for step in run.steps("nce", steps, state=self.model):
            loss = engine.step(step)
            if step % math.ceil(steps / CURVE) == 0:
                run.log("nce", step, {"loss": loss})

    def _pairs(self, ids: np.ndarray, pieces: np.ndarray | None = None) -> SkipGramGroups:
        config = self.config
        return SkipGramGroups(
            ids, skip_window=config.window, num_skips=config.num_skips, batch_size=config.batch_size, pieces=pieces
        )

    def _fit_gensim(self, ids: list[np.ndarray], run: Run, epochs: int) -> None:
        config = self.config
        vectors = gensim_vectors(
            ids, self.assets["size"], dim=config.dim, window=config.window, negatives=config.negatives, epochs=epochs,
            learning_rate=config.lr or LEARNING_RATES["gensim"], shrink_windows=config.shrink_windows,
            seed=self.record["seed"], watch=lambda epoch, loss: run.log("gensim", epoch, {"loss_per_slice": loss}),
        )  # fmt: skip
        self._set(vectors)

    def _set(self, vectors: torch.Tensor) -> None:
        """Embeddings that come without NCE parameters: these are zero."""
        for parameter in self.model.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            self.model.embeddings.copy_(vectors)

    # -- vectors -------------------------------------------------------------------------------------

    def _embed(self, data: Music, batch_size: int) -> Iterator[Embeddings]:
        vocabulary = self.vocabulary
        for start in range(0, len(data), batch_size):
            part = data.take(np.arange(start, min(start + batch_size, len(data))))
            vectors, lengths, unknown = [], [], []
            for piece, sequence in zip(part.pieces, sequences(part.pieces, self.config), strict=True):
                ids = vocabulary.encode(sequence)
                if not ((ids > 0) & (sequence != SILENCE[self.config.keys])).any():
                    raise DataError(
                        f"{piece.id}: none of its sounding slices is in the vocabulary of {vocabulary.size}"
                    )
                known = ids[ids > 0]
                vectors.append(self.model(torch.from_numpy(known).to(self.device)).mean(dim=0).float().cpu().numpy())
                lengths.append(len(ids))
                unknown.append(len(ids) - len(known))
            counts = pa.table({"slices": lengths, "unknown_slices": unknown})
            yield Embeddings.build(np.stack(vectors), id=part.ids).with_columns(part.ids, counts)

    def words(self) -> Embeddings:
        """The vectors of the vocabulary, L2-normalised, in the order of ids (UNK, then by decreasing count).

        Key ``word``: the slice as text (a code such as ``145``, or nine numbers joined by ``-``). Columns: ``count`` in
        the training corpus, and ``chord``, music21's name where it has one (``C-major triad``).
        """
        vocabulary = self.vocabulary
        names = np.array([UNK, *map(str, vocabulary.known)], dtype=object)
        chords = (
            analysis.chord_names(vocabulary.known) if self.config.keys == "pitch-class" else [None] * len(names[1:])
        )
        columns = pa.table({"count": vocabulary.id_counts, "chord": pa.array([None, *chords], pa.string())})
        return Embeddings.build(self.unit_vectors, self.fingerprint, word=names.tolist()).with_columns(names, columns)

    @property
    def unit_vectors(self) -> np.ndarray:
        """The embedding [word, dim] with rows of unit length, float32; rows by id."""
        self._needs_fit()
        with torch.inference_mode():
            return self.model(torch.arange(self.assets["size"], device=self.device)).float().cpu().numpy()

    def write_word2vec(self, path: str | Path) -> None:
        """Writes the embedding in the word2vec text format (gensim's ``KeyedVectors`` reads it)."""
        self._needs_fit()
        save_word2vec(path, self.vocabulary, self.model.embeddings)

    # -- evaluate ------------------------------------------------------------------------------------

    def _evaluate(self, splits: Splits) -> Metrics:
        embeddings = Embeddings.concat(self._stream(splits.test, None, None))
        known = 1 - embeddings.column("unknown_slices") / embeddings.column("slices")
        about = f"share of the slices that are in the vocabulary, pieces: {len(known)}"
        metrics = {"known_share": Metric.of(known, self._seed, higher_is_better=True, about=about)}
        if self.config.keys == "pitch-class":
            metrics |= {name: m for name, m in self._tonal_metrics(splits.test).items() if np.isfinite(m.value)}
        return Metrics(metrics) | self.probe(splits)

    def _tonal_metrics(self, items: Music) -> dict[str, Metric]:
        vectors, vocabulary = self.unit_vectors, self.vocabulary
        keys = self.key_similarity(items)
        of_keys = f"first 16 slices moved to all keys, pieces: {len(items)}"
        metrics = {
            "fifths_gap": Metric(
                analysis.fifths_gap(vectors, vocabulary), higher_is_better=True,
                about="cosine distance of major triads: the nearest at 2 to 6 fifths less that at 1 fifth",
            ),
            "relative_minor_gap": Metric(
                analysis.relative_minor_gap(vectors, vocabulary), higher_is_better=True,
                about="distance to the minor triad a minor third above less that to the relative minor",
            ),
            "key_gap": Metric(
                analysis.key_gap(keys), higher_is_better=True,
                about=f"similarity of keys 1 fifth apart less that of keys 6 apart; {of_keys}",
            ),
            "key_fifths_correlation": Metric(
                analysis.fifths_correlation(keys), higher_is_better=False,
                about=f"Spearman, distance in fifths and similarity of keys (< 0 by shared slices alone); {of_keys}",
            ),
        }  # fmt: skip
        shares = {k: self._replaced(items, k)[0] for k in (SMALL, LARGE)}
        for k, share in shares.items():
            about = f"substitutes from {k} neighbours that lie in the piece's key (Krumhansl); every 4th slice"
            if share.size:
                metrics[f"in_key_share_{k}"] = Metric.of(share, self._seed, about=about)
        if share.size:
            about = f"gain of in_key_share from {SMALL} to {LARGE} neighbours"
            metrics["in_key_gain"] = Metric.of(shares[LARGE] - shares[SMALL], self._seed, about=about)
        return metrics

    @property
    def _seed(self) -> int:
        return int(self.record.get("seed", 0))

    def key_similarity(self, items: Music) -> np.ndarray:
        """Cosine similarity [12, 12] of keys: the first 16 slices of a piece moved to every key, mean over pieces."""
        vectors, vocabulary = self.unit_vectors, self.vocabulary
        config = self.config
        moved = [
            analysis.key_vectors(piece, vectors, vocabulary, beat=config.beat, end=config.end) for piece in items.pieces
        ]
        return analysis.key_similarity(np.stack(moved))

    def _replaced(self, items: Music, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Per piece with a known slice: share of its substitutes that lie in its key, and their mean tonal distance."""
        vectors, vocabulary, found = self.unit_vectors, self.vocabulary, []
        for piece, codes in zip(items.pieces, sequences(items.pieces, self.config), strict=True):
            codes = codes[::4]
            codes = codes[(codes > 0) & (vocabulary.encode(codes) > 0)]
            if len(codes):
                new = np.array([replacement.substitute(int(c), vectors, vocabulary, k=k) for c in codes])
                in_key = replacement.in_scale_share(new, replacement.krumhansl_scale(piece.notes))
                found.append((in_key, replacement.tonal_distance(codes, new).mean()))
        share, distance = np.array(found).reshape(-1, 2).T
        return share, distance

    # -- the system's own verbs ----------------------------------------------------------------------

    def analyze(self, data: Any = None, chords: tuple[str, ...] | None = None) -> pa.Table:
        """The analyses of the paper's section 4, as rows (analysis, item, to, value).

        A value is null where a chord is not in the vocabulary.

        ``chord distance``: cosine distance of major triads to V, IV, vi, bIII, bII and v. ``triad distance``, ``pair
        distance`` (of the steps I -> V) and ``key similarity`` (of the pieces in ``data``, moved to all keys): means by
        distance in fifths. ``in-key share`` and ``tonal distance`` of substitutes by size of the neighbourhood.
        ``corpus``: statistics of the slices in ``data``.

        Args:
            data: pieces; None takes the held-out split of the run's own data.
            chords: centres of the chord distances, by music21's name or symbol (``"C-major triad"``, ``"F"``); None
                takes all major triads.

        Raises:
            UserError: not fitted; slices of piano keys, which are no chords; a chord that is asked for is unknown, or
                not in the vocabulary.
        """
        items, _ = self._held_out(data)
        self._needs_pitch_classes("analyze")
        vectors, vocabulary = self.unit_vectors, self.vocabulary
        if chords is None:
            centres = rotate(analysis.MAJOR, np.arange(12))
        else:
            centres = np.array([analysis.chord_code(name) for name in chords])
            for code in centres.tolist():
                vocabulary.id(code)
        names = chords or analysis.PITCHES
        rows = [
            ("chord distance", name, role, value)
            for name, values in zip(names, analysis.role_distances(centres, vectors, vocabulary), strict=True)
            for role, value in zip(analysis.ROLES, values, strict=True)
        ]
        keys = self.key_similarity(items)
        for title, profile in (
            ("triad distance", analysis.by_fifths(analysis.triad_distances(vectors, vocabulary))),
            ("pair distance", analysis.by_fifths(analysis.fifth_steps(vectors, vocabulary))),
            ("key similarity", analysis.by_fifths(keys)),
        ):
            rows += [(title, f"{step} fifths", "", value) for step, value in enumerate(profile)]
        rows.append(("key similarity", "Spearman with fifths", "", analysis.fifths_correlation(keys)))
        for k in (5, 20, 50, 100, 300):
            share, distance = self._replaced(items, k)
            rows.append(("in-key share", f"{k} neighbours", "", analysis.mean_of(share)))
            rows.append(("tonal distance", f"{k} neighbours", "", analysis.mean_of(distance)))
        statistics = analysis.corpus_statistics(sequences(items.pieces, self.config))
        rows += [("corpus", name, "", float(value)) for name, value in statistics.items()]
        values = [value if math.isfinite(value) else None for *_, value in rows]
        titles, whose, to, _ = zip(*rows, strict=True)
        return pa.table({"analysis": titles, "item": whose, "to": to, "value": pa.array(values, pa.float64())})

    def generate(self, data: Any = None, n: int = 1, seed: int = 0, k: int = 50, every: int = 4) -> Music:
        """Pieces with replaced slices; ``write`` of the result makes MIDI files.

        Args:
            data: pieces to vary; None takes the held-out split of the run's own data.
            n: how many of them, drawn by ``seed``.
            seed: draws the pieces, and the slice that the replacement starts at.
            k: slices are replaced from their so many nearest ones (``replacement.substitute``); 1 or more.
            every: one slice of so many is replaced, where it sounds and is in the vocabulary.

        Raises:
            UserError: not fitted; slices of piano keys; more pieces asked for than there are; k or every below 1.
        """
        items, name = self._held_out(data)
        self._needs_pitch_classes("generate")
        if every < 1:
            raise ConfigError(f"every={every}: at least 1 is needed")
        if not 1 <= n <= len(items):
            raise ConfigError(f"n={n}: {name} has {len(items)} pieces to vary")
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.permutation(len(items))[:n])
        pieces = [self._varied(items.pieces[i], int(rng.integers(every)), every, k) for i in chosen]
        return Music([f"{items.ids[i]}-varied" for i in chosen], pieces)

    def _varied(self, piece: Any, start: int, every: int, k: int) -> Any:
        vectors, vocabulary, config = self.unit_vectors, self.vocabulary, self.config
        codes = words(piece.notes, config.beat, end=config.end)
        ids = vocabulary.encode(codes)
        replaced = {
            place: replacement.substitute(int(codes[place]), vectors, vocabulary, k=k)
            for place in range(start, len(codes), every)
            if ids[place] and codes[place]
        }
        return replacement.replace_slices(piece, replaced, config.beat) if replaced else piece

    def _needs_pitch_classes(self, verb: str) -> None:
        if self.config.keys != "pitch-class":
            raise ConfigError(f"{verb}: asks for chords, which slices of piano keys are not: fit with keys=pitch-class")

    def figures(self, data: Music) -> dict[str, Any]:
        words_ = self.words()
        made = {"Map of the most frequent slices (t-SNE), coloured by root": figures.word_map(words_, self.vocabulary)}
        if self.config.keys != "pitch-class":
            return made
        vectors, vocabulary = self.unit_vectors, self.vocabulary
        piece = data.pieces[0]
        varied = self._varied(piece, 0, 4, 50)
        return {
            "Major and minor triads (PCA); the line follows the circle of fifths": figures.tonal_map(
                vectors, vocabulary
            ),
            **made,
            "Cosine distance of major triads (rows, along the circle of fifths) to related triads": (
                figures.chord_distances(vectors, vocabulary)
            ),
            "Cosine distance by steps along the circle of fifths": figures.fifths_profile(vectors, vocabulary),
            "Similarity of keys, ordered by fifths": figures.keys(self.key_similarity(data)),
            f"{piece.id}: every 4th slice replaced from its 50 nearest": figures.piano_roll(
                piece, varied, self.config.beat
            ),
        }

    # -- official variables --------------------------------------------------------------------------

    @classmethod
    def from_official(cls, checkpoint: str | Path | Mapping[str, Any]) -> MusicWord2Vec:
        """A fitted system from the variables of the official graph, or from vectors in the word2vec text format (.txt).

        Variables (``embeddings``, ``nce_weights``, ``nce_biases``) come with a vocabulary: ``vocabulary.json`` beside
        the file, or the entry ``vocabulary`` of a mapping. It is the list of words by id, UNK first, or what
        ``Vocabulary.save`` writes. Counts that are not told are 0; word2vec text holds no NCE parameters: zero.

        Raises:
            UserError: a variable is missing, unknown, or has another shape than the vocabulary says.
        """
        if isinstance(checkpoint, (str, Path)) and Path(checkpoint).suffix == ".txt":
            names, vectors = load_word2vec(checkpoint)
            state = {"embeddings": vectors, "nce_weights": 0 * vectors, "nce_biases": 0 * vectors[:, 0]}
            content: Any = names
        elif isinstance(checkpoint, (str, Path)):
            state, beside = read_checkpoint(checkpoint), Path(checkpoint).with_name("vocabulary.json")
            if not beside.exists():
                raise UserError(f"{beside}: no such file: it lists the words by id, UNK first")
            try:
                content = json.loads(beside.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{beside}: not JSON: {error}") from None
        else:
            state = {name: value for name, value in checkpoint.items() if name != "vocabulary"}
            content = checkpoint.get("vocabulary")
        weights = {OFFICIAL_KEYS.get(name.removesuffix(":0"), name): value for name, value in state.items()}
        if set(weights) != set(OFFICIAL_KEYS.values()) or weights["embeddings"].ndim != 2:
            raise UserError(f"expected {', '.join(OFFICIAL_KEYS)}; the keys begin with {', '.join(prefixes(state))}")
        known, counts, size = _vocabulary(content, len(weights["embeddings"]))
        config: dict[str, Any] = {
            "vocabulary": size,
            "dim": int(weights["embeddings"].shape[1]),
            "keys": "piano" if any("-" in str(word) for word in known) else "pitch-class",
        }
        assets = {"words": known, "counts": counts, "size": size}
        return cls(cls.Config.build(**config))._imported(assets, weights, str(checkpoint)[:200])


def _vocabulary(content: Any, rows: int) -> tuple[list[Any], list[int], int]:
    """Words without UNK, their counts, and the size, from the list of words by id or ``Vocabulary.save``'s content."""
    if isinstance(content, dict) and {"codes", "counts"} <= content.keys():
        codes, counts = content["codes"], content["counts"]
    else:
        codes, counts = content, [0] * rows
    if not isinstance(codes, list) or len(codes) != rows or len(counts) != rows or rows < 2 or codes[0] != UNK:
        raise UserError(
            f"vocabulary: expected a list of {rows} words by id, {UNK} first, as there are rows of embeddings"
        )
    try:
        known = [word if "-" in str(word) else int(word) for word in codes[1:]]
    except ValueError as error:
        raise UserError(f"vocabulary: neither a code nor a piano slice: {error}") from None
    return known, [int(count) for count in counts[1:]], rows
