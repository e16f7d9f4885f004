"""What is explored: vectors and their places on the plane, the items behind them, and the questions one can ask."""

from __future__ import annotations

import base64
import inspect
import json
import tempfile
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from repertory.contract import System
from repertory.data import Items
from repertory.data.manifest import Manifest, Modality
from repertory.embeddings import Embeddings
from repertory.errors import MissingExtraError, UserError, nearest
from repertory.evaluation.checks import unit
from repertory.reporting.items import encode, thumbnail
from repertory.reporting.page import CATEGORIES, coloured_column
from repertory.reporting.projection import Projection, project

MAPPED = 200_000
"""At most so many points are on the map."""
TSNE = 2_000
"""Up to so many vectors, t-SNE places all of them and is the first view."""
SMALL = 40
"""Images narrower than this many pixels are shown enlarged, pixel by pixel."""


@dataclass
class Exploration:
    """The vectors of a fitted system with what is known of them.

    Attributes:
        embeddings: N vectors.
        items: what the vectors stand for, by the first column of the key; None where they cannot be shown.
        system: answers text queries and ``predict``; None where there are only vectors.
        umap: add a view by UMAP (McInnes et al. 2018) of all points.
    """

    embeddings: Embeddings
    items: Items | None = None
    system: System | None = None
    umap: bool = False
    seed: int = 0
    _busy: threading.Lock = field(default_factory=threading.Lock, repr=False)

    # -- the plane -----------------------------------------------------------------------------------------

    @cached_property
    def projection(self) -> Projection:
        """Where each shown row lies, by view; the first view is the one that shows most and separates best."""
        vectors = self.embeddings.vectors
        made = project(vectors, seed=self.seed, most=MAPPED, tsne_most=TSNE)
        views = dict(made.views)
        if len(made.rows) > TSNE and "t-SNE" in views:
            views["t-SNE"] = views.pop("t-SNE")
        if self.umap and len(made.rows) >= 10:
            views = {"UMAP": umap_plane(vectors[made.rows], self.seed), **views}
        return Projection(made.rows, views, made.explained, made.total)

    def view_label(self, name: str) -> str:
        """What the view shows, in words."""
        points, explained = self.projection.views[name], self.projection.explained
        placed = int(np.isfinite(points[:, 0]).sum())
        label = name if placed == len(self.embeddings) else f"{name} of {placed:,} sampled"
        return f"{label} ({sum(explained):.0%} of the variance)" if name == "PCA" else label

    def plane(self, name: str) -> dict[str, Any]:
        """Coordinates of a view, packed: ``x`` and ``y`` [M] float32, and ``rows`` [M] where M is less than N."""
        points = self.projection.views[name]
        packed = {"view": name, "x": pack(points[:, 0]), "y": pack(points[:, 1])}
        if len(points) < len(self.embeddings):
            packed["rows"] = pack(self.projection.rows.astype(np.int32))
        return packed

    @property
    def columns(self) -> list[str]:
        """What points can be coloured by, the label first."""
        names = [*self.embeddings.key[1:], *self.embeddings.columns]
        labels = self.items.roles.get("label", ()) if self.items is not None else ()
        return sorted(names, key=lambda name: name not in labels)

    def colours(self, name: str) -> dict[str, Any]:
        """A column of the shown points, packed: ``numbers`` float32, or ``codes`` into ``names`` (-1 missing)."""
        column = coloured_column(self.embeddings.table[name].take(pa.array(self.projection.rows)).to_pylist(), str)
        if "numbers" in column:
            return {"numbers": pack(np.array(column["numbers"], dtype=np.float32))}
        codes = pack(np.array(column["codes"], dtype=np.int8))
        return {"names": column["names"], "codes": codes, "other": column["other"]}

    # -- items ---------------------------------------------------------------------------------------------

    def name(self, row: int) -> str:
        """The key of a row as one text."""
        return " / ".join(said(self.embeddings.table[key][row].as_py()) for key in self.embeddings.key)

    def values(self, row: int) -> dict[str, Any]:
        """The columns of a row."""
        return {name: self.embeddings.table[name][row].as_py() for name in self.columns}

    @cached_property
    def _positions(self) -> dict[Any, int]:
        return {} if self.items is None else {value: i for i, value in enumerate(self.items.ids)}

    def preview(self, row: int, size: int) -> dict[str, Any]:
        """``image`` (at most ``size`` pixels; ``small`` where it was tiny), ``audio`` and ``text``, where known."""
        position = self._positions.get(self.embeddings.table[self.embeddings.key[0]][row].as_py())
        if self.items is None or position is None:
            return {}
        item = self.items.preview(position)
        card: dict[str, Any] = dict(encode(item))
        if item.image is not None:
            wide = item.image.width if isinstance(item.image, Image.Image) else np.shape(item.image)[1]
            card |= {"image": thumbnail(item.image, size), "small": wide < SMALL}
        return card

    # -- questions -----------------------------------------------------------------------------------------

    @cached_property
    def _unit(self) -> np.ndarray:
        return unit(self.embeddings.vectors)

    @cached_property
    def groups(self) -> list[str]:
        """Values of the key's second column that neighbours can be sought among, where they are few."""
        if len(self.embeddings.key) < 2:
            return []
        values = sorted(self.embeddings.table[self.embeddings.key[1]].unique().to_pylist())
        return [said(value) for value in values] if 1 < len(values) <= CATEGORIES else []

    @cached_property
    def _members(self) -> dict[str, np.ndarray]:
        values = np.array([said(value) for value in self.embeddings.table[self.embeddings.key[1]].to_pylist()])
        return {name: np.flatnonzero(values == name) for name in self.groups}

    def neighbours(self, query: int | np.ndarray, k: int = 10, among: str = "") -> list[tuple[int, float]]:
        """The k nearest rows by cosine with their similarities, nearest first, the query's own row left out.

        Args:
            query: a row, or a vector [width].
            among: one of ``groups``; empty for all rows.
        """
        whole = not among
        rows = np.arange(len(self.embeddings)) if whole else self._members[among]
        vector = unit(query[None])[0] if isinstance(query, np.ndarray) else self._unit[query]
        cosines = (self._unit if whole else self._unit[rows]) @ vector
        if not isinstance(query, np.ndarray):
            rows, cosines = rows[rows != query], cosines[rows != query]
        k = min(k, len(rows))
        nearest_ = np.argpartition(-cosines, k - 1)[:k] if k else np.empty(0, np.int64)
        nearest_ = nearest_[np.lexsort((nearest_, -cosines[nearest_]))]
        return [(int(rows[i]), float(cosines[i])) for i in nearest_]

    @cached_property
    def _rows(self) -> dict[str, int]:
        """Rows by what people type: the whole key, or its first column."""
        table, key = self.embeddings.table, self.embeddings.key
        first = [said(value) for value in table[key[0]].to_pylist()]
        found = dict(zip(reversed(first), range(len(first) - 1, -1, -1), strict=True))
        if len(key) > 1:
            whole = zip(*(table[name].to_pylist() for name in key), strict=True)
            found |= {" / ".join(map(said, values)): i for i, values in enumerate(whole)}
        return found

    @cached_property
    def text_modality(self) -> str | None:
        """The modality that a typed text is embedded as, where the system has one."""
        if self.system is None or not isinstance(self.items, Manifest) or "modality" not in self.embeddings.key:
            return None
        return next((name for name, m in self.items.modalities.items() if m.kind == "text"), None)

    def find(self, typed: str) -> int | np.ndarray:
        """The row of an id; or, where the system embeds texts, the vector [width] of the text.

        Raises:
            UserError: nothing was typed, or there is no such id.
        """
        typed = typed.strip()
        if not typed:
            raise UserError("type " + ("a text or an id" if self.text_modality else "an id"))
        if typed in self._rows:
            return self._rows[typed]
        if self.text_modality:
            return self._embed_text(typed, self.text_modality)
        alike = [name for name in self._rows if typed.lower() in name.lower()]
        if len(alike) == 1:
            return self._rows[alike[0]]
        if alike:
            raise UserError(f"{len(alike)} ids hold '{typed}': {', '.join(alike[:5])}" + ", …" * (len(alike) > 5))
        near = nearest(typed, list(self._rows)[:5000])
        raise UserError(f"no item '{typed}'" + (near if "did you mean" in near else f"; ids look like {self.name(0)}"))

    def _embed_text(self, text: str, name: str) -> np.ndarray:
        """One row whose other modalities are those of the first row: what they are does not touch the text's vector."""
        assert isinstance(self.items, Manifest)
        assert self.system is not None
        others = {
            other: Modality(m.kind, m.values[max(0, m.index[0]) :][:1], np.minimum(m.index[:1], 0))
            for other, m in self.items.modalities.items()
        }
        row = Manifest(["query"], {**others, name: Modality("text", [text], np.zeros(1, np.int64))})
        with self._busy:
            return self.system.embed(row).where(modality=name).vectors[0]

    @property
    def predicts(self) -> bool:
        """Whether the system has the verb ``predict``."""
        return self.system is not None and "predict" in self.system.card.verbs

    def predict(self, row: int | None = None, source: str = "") -> pa.Table:
        """What the system says of the item of a row, or of a source; files that it makes go to a temporary folder.

        Raises:
            UserError: there is neither, or the system cannot answer.
        """
        assert self.system is not None
        data: Any = source.strip()
        if not data:
            position = (
                None if row is None else self._positions.get(self.embeddings.table[self.embeddings.key[0]][row].as_py())
            )
            if self.items is None or position is None:
                raise UserError("choose an item on the map first" if row is None else "this item's data are not here")
            data = self.items.take([position])
        options = {}
        if "out" in inspect.signature(self.system.predict).parameters:  # type: ignore[attr-defined]
            options["out"] = tempfile.mkdtemp(prefix="repertory-")
        with self._busy:
            return self.system.predict(data, **options)  # type: ignore[attr-defined]


def gather(system: System, run: Path, data: Any = None, *, umap: bool = False) -> tuple[Exploration, str]:
    """The vectors of a run and their items, and a line that says where they come from.

    ``run/embeddings`` is taken where this very run made it, and of ``data`` if they are named; else the data (None:
    the run's held-out split) are embedded now. Nothing is written.

    Raises:
        UserError: there are no vectors, and the data that they could be made from are not there.
    """
    stored, made = None, {}
    manifest = run / "embeddings" / "manifest.json"
    if manifest.exists():
        try:
            made = json.loads(manifest.read_text(encoding="utf-8"))["made"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{manifest}: damaged: embed again into a new folder, or remove it") from None
        if made.get("run") == system.fingerprint:
            stored = Embeddings.read(manifest.parent)
    items: Items | None
    try:
        items, name = system._held_out(data)
        why = "made of other data: --data SOURCE shows the items too"
    except UserError as error:
        if stored is None or data is not None:
            raise
        items, name, why = None, "", f"without the items: {error}"
    if stored is not None and items is not None and made.get("data", items.fingerprint) == items.fingerprint:
        note = f"{manifest.parent}, items of {name}"
    elif stored is not None and data is None:
        items, note = None, f"{manifest.parent}, {why}"
    else:
        stored, note = system.embed(None if data is None else items), f"{name}, embedded now"
    if items is not None and "score" in system.card.verbs:
        stored = with_scores(stored, system.score(items))  # type: ignore[attr-defined]
    return Exploration(stored, items, system, umap, system.record.get("seed", 0)), note


def with_scores(embeddings: Embeddings, scores: pa.Table) -> Embeddings:
    """Carries the columns of ``score`` along where it has one row per item."""
    ids = np.array(scores[embeddings.key[0]].to_pylist(), dtype=object)
    if len(set(ids)) < len(ids) or set(embeddings.column(embeddings.key[0])) - set(ids):
        return embeddings
    return embeddings.with_columns(ids, scores.drop_columns([k for k in embeddings.key if k in scores.column_names]))


def umap_plane(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Points [N, 2] of UMAP (McInnes, Healy, Melville 2018) by cosine, started from the principal components.

    Equal vectors are placed once: else a vector's neighbours would be its own copies, and groups would fall apart.
    """
    try:
        from umap import UMAP
    except ImportError:
        raise MissingExtraError("umap-learn", "explore") from None
    whole = np.ascontiguousarray(vectors).view(np.dtype((np.void, vectors.dtype.itemsize * vectors.shape[1]))).ravel()
    _, first, which = np.unique(whole, return_index=True, return_inverse=True)
    if len(first) < 4:
        return np.stack([which, np.zeros(len(which))], axis=1).astype(np.float32)
    near = min(15, len(first) - 1)
    umap = UMAP(n_neighbors=near, metric="cosine", init="pca", random_state=seed, n_jobs=1)
    return np.asarray(umap.fit_transform(vectors[first]), dtype=np.float32)[which]


def said(value: Any) -> str:
    """A value of a key as people read and type it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def pack(array: np.ndarray) -> dict[str, str]:
    """A vector as the browser takes it: base64 of little-endian numbers, and their type.

    The URL-safe letters, because Dash writes every slash of an answer as six.
    """
    array = np.ascontiguousarray(array)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {
        "dtype": f"{array.dtype.kind}{array.dtype.itemsize}",
        "bdata": base64.urlsafe_b64encode(little.tobytes()).decode(),
    }
