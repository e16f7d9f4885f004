"""Texts of users and items: profiles by a chat model, vectors by an embedder, each behind one callable."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from repertory.data import Splits
from repertory.data.interactions import Interactions
from repertory.data.samples.movielens_100k_wordllama import WORDLLAMA, WordVectors
from repertory.errors import DataError

Profile = Callable[[str, str], str]
"""``profile(instruction, prompt) -> answer``: a chat model, local or remote, as the user wires it."""
Embed = Callable[[Sequence[str]], np.ndarray]
"""``embed(texts) -> [N, width]``: any frozen text embedder."""

SHAPE = (
    'Answer with one JSON object and nothing else: {"summarization": "...", "reasoning": "..."}, where reasoning says '
    "in short what the summarization rests on."
)
ITEM = f"You are told about an item. Summarise in at most 200 words which kind of user would enjoy it. {SHAPE}"
USER = f"You are told which items a user has chosen. Summarise in at most 100 words what this user will like. {SHAPE}"
NOTHING = ("", "none", "nan", "null")
"""Texts that say nothing."""
SHOWN = 3
"""Ids that a warning names."""


# -- profiles ----------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a chat model said: the summary, what it rests on, and whether it had the asked form."""

    text: str
    reasoning: str
    valid: bool


def parse_answer(answer: str) -> Answer:
    """The JSON object of an answer; where it is none, or empty, the raw answer, not valid."""
    try:
        said = json.loads(answer)
        text = str(said["summarization"] or "").strip()
        if text.lower() not in NOTHING:
            return Answer(text, str(said.get("reasoning") or ""), True)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    return Answer(str(answer or "").strip(), "", False)


def described(data: Splits[Interactions], profile: Profile, *, most: int = 20, seed: int = 0) -> Splits[Interactions]:
    """The same data with a profile of every item, and then of every user from the items' profiles (section 4.1.2).

    Only training interactions are told to the model. Items are described by title and text (their description), or else
    by their other columns and by reviews (a column ``review`` of the interactions).

    Args:
        profile: ``profile(instruction, prompt) -> answer``.
        most: reviews of an item, and items of a user, that a prompt holds, drawn from ``seed``.

    Returns:
        Data with columns ``text`` and ``reasoning``. An answer that is not the asked JSON is kept as it is, with a
        warning that names the id; an empty one leaves the text that was there.
    """
    items, train, random = data.all, data.train, np.random.default_rng(seed)
    pairs = np.asarray(train.table.pairs)
    reviews = np.full(len(pairs), "", dtype=object)
    if "review" in train.table.columns.column_names:
        reviews = np.array([str(r or "") for r in train.table.columns["review"].to_pylist()], dtype=object)
    first = len(items.users)
    if len(items) != first + len(items.items):
        raise DataError("profiles are written for all users and items of the data: nobody may be left out")
    text, title = items.text("text"), items.text("title")
    attributes = _attributes(items)
    reasoning, invalid = np.full(len(items), "", dtype=object), []

    def ask(node: int, instruction: str, prompt: Any) -> None:
        answer = parse_answer(profile(instruction, json.dumps(prompt, ensure_ascii=False)))
        reasoning[node] = answer.reasoning
        if not answer.valid:
            invalid.append(str(items.ids[node]))
        if answer.text.lower() not in NOTHING:
            text[node] = answer.text

    def some(rows: np.ndarray) -> np.ndarray:
        return np.sort(random.choice(rows, min(most, len(rows)), replace=False))

    by_item, by_user = (_grouped(pairs[:, side], count) for side, count in ((1, len(items.items)), (0, first)))
    for number, rows in enumerate(by_item):
        node = first + number
        known = {"title": title[node]} | ({"description": text[node]} if text[node] else attributes[node])
        if not text[node]:
            known["reviews"] = [reviews[row] for row in some(rows[reviews[rows] != ""])]
        ask(node, ITEM, known)
    for number, rows in enumerate(by_user):
        chosen = [(first + pairs[row, 1], reviews[row]) for row in some(rows)]
        ask(number, USER, [
            {"title": title[node], "description": text[node]} | ({"review": review} if review else {})
            for node, review in chosen
        ])  # fmt: skip
    if invalid:
        warnings.warn(
            f"{len(invalid)} answers are not the asked JSON and are kept as they are: {', '.join(invalid[:SHOWN])}"
            + (", ..." if len(invalid) > SHOWN else ""),
            stacklevel=2,
        )
    return _replaced(data, items.with_texts(list(text), reasoning=list(reasoning)))


def embedded(data: Splits[Interactions], embed: Embed) -> Splits[Interactions]:
    """The same data with vectors of the texts of all users and items that have one.

    Args:
        embed: ``embed(texts) -> [N, width]``.

    Raises:
        DataError: as many vectors as texts are needed.
    """
    items = data.all
    texts = texts_of(items)
    there = np.array([bool(text) for text in texts])
    if not there.any():
        raise DataError(f"{data.source}: nobody has a text")
    made = np.asarray(embed(list(texts[there])), dtype=np.float32)
    if made.ndim != 2 or len(made) != there.sum():
        raise DataError(f"{len(made)} vectors for {there.sum()} texts: one each is needed")
    vectors = np.full((len(items), made.shape[1]), np.nan, np.float32)
    vectors[there] = made
    return _replaced(data, items.with_vectors(vectors))


def _replaced(data: Splits[Interactions], items: Interactions) -> Splits[Interactions]:
    return Splits(items, data.source, "source", data.rejected, data.membership)


def _grouped(numbers: np.ndarray, count: int) -> list[np.ndarray]:
    return np.split(np.argsort(numbers, kind="stable"), np.bincount(numbers, minlength=count).cumsum()[:-1])


def _attributes(items: Interactions) -> list[dict[str, str]]:
    """Whatever else than title and text is known of each, as texts."""
    others = [name for name in items.columns.column_names if name not in ("side", "title", "text", "reasoning")]
    rows = items.columns.select(others).to_pylist()
    return [
        {name: str(v) for name, v in row.items() if v is not None and str(v).lower() not in NOTHING} for row in rows
    ]


# -- vectors -----------------------------------------------------------------------------------------------------


def texts_of(items: Interactions) -> np.ndarray:
    """The text of each [N]; of an item without one its title and other columns; of a user without one nothing.

    Texts that say nothing ("None") count as missing, with a warning that names them.
    """
    text, title, side = items.text("text"), items.text("title"), items.columns["side"].to_numpy()
    nothing = np.array([bool(t) and t.lower() in NOTHING for t in text])
    if nothing.any():
        names = ", ".join(items.ids[nothing][:SHOWN])
        warnings.warn(f"{nothing.sum()} texts say nothing and count as missing ({names})", stacklevel=2)
    text[nothing] = ""
    lacking = np.flatnonzero((text == "") & (side == "item"))
    for n, known in zip(lacking, _attributes(items.take(lacking)), strict=True):
        text[n] = " ".join(part for part in (title[n], *known.values()) if part)
    return text


class Embedder(Protocol):
    """A text embedder that a run can hold: ``embed(texts)``, and what makes it again."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray: ...

    def assets(self) -> dict[str, Any]: ...


class Tfidf:
    """TF-IDF of words, reduced by a truncated SVD: no network, no other package.

    Args:
        vocabulary: words. idf: [words]. axes: [width, words].
    """

    def __init__(self, vocabulary: Sequence[str], idf: np.ndarray, axes: np.ndarray) -> None:
        self.vocabulary, self.idf, self.axes = list(vocabulary), idf, axes

    @classmethod
    def fit(cls, texts: Sequence[str], width: int) -> Tfidf:
        """Learns words and axes from texts.

        Raises:
            DataError: there is no word in them.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = TfidfVectorizer(sublinear_tf=True)
        try:
            counts = words.fit_transform(texts)
        except ValueError:
            raise DataError("there is no word in the texts") from None
        width = max(1, min(width, min(counts.shape) - 1))
        axes = TruncatedSVD(width, random_state=0).fit(counts).components_
        return cls(list(words.get_feature_names_out()), words.idf_.astype(np.float32), axes.astype(np.float32))

    @cached_property
    def _words(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = TfidfVectorizer(sublinear_tf=True, vocabulary=self.vocabulary)
        words.idf_ = self.idf.astype(np.float64)
        return words

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray(self._words.transform(list(texts)) @ self.axes.T, dtype=np.float32)

    def assets(self) -> dict[str, Any]:
        """What ``__init__`` takes."""
        return {"vocabulary": self.vocabulary, "idf": self.idf, "axes": self.axes}


class WordLlama(WordVectors):
    """Static vectors of the package wordllama (256 numbers).

    Raises:
        DataError: its data are not here yet; the message names the command.
    """

    def __init__(self) -> None:
        if not WORDLLAMA.there:
            raise DataError("wordllama's vectors are not here yet: repertory samples get movielens-100k-wordllama")
        super().__init__(WORDLLAMA.folder)

    def assets(self) -> dict[str, Any]:
        """Nothing: the table is the package's."""
        return {}


def embedder_of(assets: Mapping[str, Any]) -> Embedder | None:
    """The embedder of a run; None where the data brought vectors.

    Raises:
        DataError: wordllama's data are not here.
    """
    if assets["embedder"] == "tfidf":
        return Tfidf(assets["vocabulary"], assets["idf"], assets["axes"])
    return WordLlama() if assets["embedder"] == "wordllama" else None


def check_vectors(vectors: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Which rows [N] have a vector: a row of NaN alone has none.

    Raises:
        DataError: a vector is zero, or holds NaN or infinity beside numbers; cosines with it would be undefined.
    """
    there = ~np.isnan(vectors).all(axis=1)
    bad = there & ~(np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1))
    if bad.any():
        row = int(bad.argmax())
        what = "zero" if np.isfinite(vectors[row]).all() else "not finite"
        names = ", ".join(ids[bad][:SHOWN]) + (", ..." if bad.sum() > SHOWN else "")
        raise DataError(
            f"{bad.sum()} text vectors are zero or not finite ({names}; the first is {what}): mend their texts"
        )
    return there


def completed(vectors: np.ndarray, ids: np.ndarray, users: int, pairs: np.ndarray) -> np.ndarray:
    """Text vectors of all [N, width]: a user without one has the mean direction of the chosen items'.

    Args:
        vectors: [N, width], rows of NaN where there is no text. pairs: [interactions, 2], of the training.

    Raises:
        DataError: an item has none, or a vector cannot be used.
    """
    there = check_vectors(vectors, ids)
    if not there[users:].all():
        lacking = ids[users:][~there[users:]]
        raise DataError(
            f"{len(lacking)} items have neither text nor title ({', '.join(lacking[:SHOWN])}): variant=base needs none"
        )
    vectors = vectors.astype(np.float32)
    units = vectors[users:] / np.linalg.norm(vectors[users:], axis=1, keepdims=True)
    lacking = np.flatnonzero(~there[:users])
    if len(lacking):
        sums = np.zeros((users, vectors.shape[1]), np.float32)
        np.add.at(sums, pairs[:, 0], units[pairs[:, 1]])
        alone = ~(np.abs(sums) > 1e-12).any(axis=1)
        sums[alone] = units.mean(axis=0)  # who has chosen nothing is like everybody
        vectors[lacking] = sums[lacking]
    return vectors
