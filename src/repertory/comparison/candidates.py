"""What can be compared: a system to be fitted, a run, an encoder, vectors in a file; each gives every item a vector."""

from __future__ import annotations

import abc
import ctypes
import gc
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
import yaml

from repertory import catalog
from repertory.contract import System, refuse_overlap
from repertory.data import Items, Reader, Splits
from repertory.data.tables import ids_of, read_table
from repertory.embeddings import VECTOR, Embeddings
from repertory.encoders import Convention, Encoder
from repertory.errors import ConfigError, DataError, UserError, first_line, nearest
from repertory.runs import Run, seeded, write_atomic

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
JOINED = 16
"""At most so many vectors of one item are joined side by side."""
BATCH = 64


@dataclass(frozen=True)
class Budget:
    """What each fitted system may spend on one fit: training batches, or seconds; both None: what its config says."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str | None) -> Budget:
        """``"500"`` batches; ``"90s"``, ``"5m"``, ``"1h"``.

        Raises:
            ConfigError: neither.
        """
        if text is None:
            return cls()
        number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "")
        try:
            value = float(number) if unit else int(number)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise ConfigError(f"budget {text}: expected steps such as 500, or a time such as 90s, 5m or 1h")
        return cls(seconds=value * UNITS[unit]) if unit else cls(steps=int(value))


@dataclass
class Cost:
    """Seconds, and by how many MB the peak of the resident memory grew (NaN where the system does not tell)."""

    seconds: float = 0.0
    megabytes: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """Times a block and watches the memory of this process."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what an earlier candidate has freed must not serve this one unseen
    cost, before, start = Cost(), _peak(reset=True), time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - start
    cost.megabytes = max(0.0, (_peak() - before) / 1024)


def _peak(reset: bool = False) -> float:
    """Peak resident memory in KB since the last reset, which sets it to what is resident now."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return float("nan")
    return float(next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "nan"))


class Candidate(abc.ABC):
    """Something that gives every item a vector.

    Attributes:
        name: as it was asked for. called: the same, where no other candidate is called so.
        what: what kind of candidate it is, in a word or two.
        per_seed: whether its vectors depend on the seed.
        kind, readers: the data that it needs, where it needs a kind.
    """

    what: str
    per_seed = False
    kind: str | None = None
    readers: tuple[Reader, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = self.called = name
        self.length = ""

    def load(self) -> None:
        """Takes weights or vectors into memory."""
        return

    def prepare(self, items: Items) -> None:
        """Refuses what cannot work, before anything is fitted."""
        return

    def refuse_overlap(self, test: Items) -> None:
        """Refuses test items that the candidate was trained on."""
        return

    def fit(self, splits: Splits, seed: int, budget: Budget, folder: Path | None) -> Cost:
        """Learns from ``splits.train``; most candidates have nothing to learn."""
        return Cost()

    @abc.abstractmethod
    def vectors(self, items: Items, seed: int) -> np.ndarray:
        """[items, width] float32."""


class Loaded(Candidate):
    """A fitted system: a run, or an object."""

    what = "run"

    def __init__(self, name: str, system: System | None = None) -> None:
        super().__init__(name)
        made = system or catalog.entry(Run.open(name.removeprefix("run:")).record["slug"]).load()
        self.kind, self.readers = _needs_inductive(made.card), made.readers
        self.fitted = system

    def load(self) -> None:
        self.system = self.fitted or catalog.load(self.name.removeprefix("run:"))

    def refuse_overlap(self, test: Items) -> None:
        try:
            refuse_overlap(test, self.system.trained_on, "comparison")
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None

    def vectors(self, items: Items, seed: int) -> np.ndarray:
        return _of_items(self.system.embed(items), items.ids, self.name)


class Fitted(Candidate):
    """A system that is fitted to the training part; ``slug?preset=tiny&dim=64`` sets its configuration."""

    what = "fitted here"
    per_seed = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.slug, _, query = name.partition("?")
        entry = catalog.entry(self.slug)
        self.kind, self.readers = _needs_inductive(entry.card), entry.load().readers
        self.settings: dict[str, Any] = {k: yaml.safe_load(v) for k, v in parse_qsl(query, keep_blank_values=True)}
        self.preset = self.settings.pop("preset", None)
        self.system = catalog.create(self.slug, self.preset, **self.settings)
        self.asked: dict[str, Any] | None = None

    def fit(self, splits: Splits, seed: int, budget: Budget, folder: Path | None) -> Cost:
        run = None if folder is None else folder / f"{self.slug}-{self._digest(splits, budget)}-seed{seed}"
        note = None if run is None else run / "compare.json"
        if self.asked is None and run is not None and (run / "config.yaml").exists():
            length = Run.open(run).record["length"]
            self.asked = {unit: number for unit, number in length.items() if number is not None}
        if self.asked is None:
            self.asked = {} if budget.steps is None else {"steps": budget.steps}
            if budget.seconds is not None:
                self.asked = self._affordable(splits, budget.seconds)
        self.length = "".join(f"{number:,} {unit}" for unit, number in self.asked.items())
        self.system = catalog.create(self.slug, self.preset, **self.settings)
        with measured() as cost:
            self.system.fit(splits, seed=seed, run=run, resume=run is not None, **self.asked)
        if note is not None and note.exists():  # fitted by an earlier comparison
            return Cost(**json.loads(note.read_text(encoding="utf-8")))
        if note is not None:
            write_atomic(note, json.dumps(asdict(cost)))
        return cost

    def _digest(self, splits: Splits, budget: Budget) -> str:
        """Tells apart comparisons whose fits differ."""
        made = (splits.fingerprint, splits.rule, self.name, asdict(budget))
        return hashlib.sha256(repr(made).encode()).hexdigest()[:8]

    def _affordable(self, splits: Splits, seconds: float) -> dict[str, int]:
        """How many steps (passes, of a system that counts those) take about ``seconds``, from short trial fits."""

        def trial(n: int) -> float:
            system = catalog.create(self.slug, self.preset, **self.settings)
            start = time.perf_counter()
            system.fit(splits, steps=n if unit == "steps" else None, epochs=n if unit == "epochs" else None)
            return time.perf_counter() - start

        unit = "steps"
        try:
            first = trial(1)
        except ConfigError:
            unit = "epochs"
            first = trial(1)
        n, last = 1, first
        while last < min(seconds, max(0.05 * seconds, 2 * first)):
            n *= 4
            last = trial(n)
        if n == 1 or last <= first:
            return {unit: 1}
        return {unit: max(1, int((seconds - first) * (n - 1) / (last - first)))}

    def vectors(self, items: Items, seed: int) -> np.ndarray:
        return _of_items(self.system.embed(items), items.ids, self.name)


class Pretrained(Candidate):
    """A frozen encoder from timm, transformers or a checkpoint, fed as its convention says."""

    what = "encoder"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.per_seed = "pretrained=false" in name
        self.what = "encoder, untrained" if self.per_seed else "encoder"
        self.hub = name.removeprefix("hf:").partition("?")[0] if name.startswith("hf:") else None
        importlib.import_module("timm" if self.hub is None else "transformers")

    def load(self, seed: int = 0) -> None:
        with seeded(seed, "encoder"):
            self.encoder = catalog.encoder(self.name).freeze()
        self.loaded = seed
        self.texts = self.hub is not None and self.encoder.module.main_input_name == "input_ids"

    def prepare(self, items: Items) -> None:
        wanted = "text" if self.texts else "image"
        if items.kind == "images" and not self.texts:
            self.read: Callable[[Items, int], Any] = lambda part, index: part.image(index)  # type: ignore[attr-defined]
        elif items.kind == "manifest":
            found = {name: m for name, m in items.modalities.items() if m.kind == wanted}  # type: ignore[attr-defined]
            if len(found) != 1:
                raise ConfigError(
                    f"{self.name} reads one {wanted} an item; the data have {len(found)} columns of {wanted}s"
                )
            ((name, modality),) = found.items()
            if (modality.index < 0).any():
                row = items.ids[int((modality.index < 0).argmax())]
                raise DataError(f"{self.name}: the {wanted} '{name}' is missing in some rows (first: {row})")

            def read(part: Any, index: int) -> Any:
                modality = part.modalities[name]
                return modality.item(int(modality.index[index]))

            self.read = read
        else:
            raise ConfigError(f"{self.name} reads {wanted}s; the data are of kind {items.kind}")
        self.look = None if self.texts else self.encoder.convention or _convention(self.hub or "")

    @torch.inference_mode()
    def vectors(self, items: Items, seed: int) -> np.ndarray:
        if self.per_seed and self.loaded != seed:
            self.load(seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder = self.encoder.to(device)
        if self.texts:
            return _text_vectors(encoder, self.hub or "", [self.read(items, i) for i in range(len(items))])
        assert self.look is not None
        made = []
        for start in range(0, len(items), BATCH):
            rows = range(start, min(start + BATCH, len(items)))
            pixels = torch.stack([_pixels(self.read(items, i), self.look) for i in rows]).to(device)
            made.append(encoder({"pixel_values": pixels} if self.hub else pixels).float().cpu().numpy())
        found = np.concatenate(made)
        if found.ndim != 2:
            raise ConfigError(f"{self.name}: gives {list(found.shape[1:])} for an image, not one vector: try timm:")
        return found


class Stored(Candidate):
    """Vectors that somebody has made already, matched by id."""

    what = "vectors"

    def __init__(self, name: str, embeddings: Embeddings | None = None) -> None:
        super().__init__(name)
        self.given = embeddings

    def load(self) -> None:
        given = self.given
        self.embeddings = read_vectors(self.name.removeprefix("vectors:")) if given is None else given

    def vectors(self, items: Items, seed: int) -> np.ndarray:
        return _of_items(self.embeddings, items.ids, self.name)


def candidate(asked: Any) -> Candidate:
    """What is asked for: a slug (``SLUG?preset=tiny&dim=64``), a run, an encoder's address, ``vectors:FILE``, a fitted
    system, or Embeddings.

    Raises:
        UserError: it is none of these.
    """
    if isinstance(asked, System):
        return Loaded(asked.card.slug, asked)
    if isinstance(asked, Embeddings):
        return Stored("embeddings", asked)
    name = str(asked)
    if name.startswith("vectors:"):
        return Stored(name)
    if name.startswith(("timm:", "hf:", "file:")):
        return Pretrained(name)
    if name.startswith("run:") or (Path(name) / "config.yaml").exists():
        return Loaded(name)
    if name.partition("?")[0] not in catalog.entries() and ("/" in name or Path(name).exists()):
        raise UserError(f"{name}: no run here; files of vectors are given as vectors:FILE")
    return Fitted(name)


def _needs_inductive(card: Any) -> str:
    if not card.inductive:
        raise UserError(f"{card.slug} embeds only what it was fitted to: it cannot be compared on held-out items")
    return str(card.kind)


def _pixels(image: Any, convention: Convention) -> torch.Tensor:
    """[channels, size, size]: resized (bicubic), scaled to 0..1, normalised."""
    from PIL import Image

    image = image.convert("L" if convention.channels == 1 else "RGB")
    image = image.resize((convention.size, convention.size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image, np.float32) / 255)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    mean, std = (torch.tensor(values[: len(pixels)])[:, None, None] for values in (convention.mean, convention.std))
    return (pixels - mean) / std


def _convention(hub: str) -> Convention:
    """What the image processor of a model on the Hugging Face hub says."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(hub)
    except Exception as error:  # hub and network errors of many types
        raise UserError(f"hf:{hub}: its image processor cannot be had: {first_line(error)}") from None
    size = dict(getattr(processor, "crop_size", None) or processor.size)
    side = next((size[name] for name in ("height", "shortest_edge", "width") if size.get(name)), 224)
    return Convention(int(side), tuple(processor.image_mean), tuple(processor.image_std))


def _text_vectors(encoder: Encoder, hub: str, texts: list[str]) -> np.ndarray:
    """Texts of one length go together, so that no padding takes part in the mean over tokens."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(hub)
    except Exception as error:  # hub and network errors of many types
        raise UserError(f"hf:{hub}: its tokenizer cannot be had: {first_line(error)}") from None
    longest = min(tokenizer.model_max_length, getattr(encoder.module.config, "max_position_embeddings", 512))
    tokens = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in texts]
    device = next(encoder.parameters()).device
    found = np.empty((len(texts), encoder.width), np.float32)
    for length in sorted({len(t) for t in tokens}):
        rows = [i for i, t in enumerate(tokens) if len(t) == length]
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            ids = torch.tensor([tokens[i] for i in some], device=device)
            found[some] = encoder({"input_ids": ids}).float().cpu().numpy()
    return found


def _of_items(embeddings: Embeddings, ids: np.ndarray, name: str) -> np.ndarray:
    """One vector per id, in the order of ``ids``; several of one item are joined side by side, zeros where one lacks.

    Raises:
        DataError: an item has none, or two of the same key.
    """
    first, *others = embeddings.key
    owners = embeddings.table[first].to_pylist()
    kinds = list(zip(*(embeddings.table[k].to_pylist() for k in others), strict=True)) if others else [()] * len(owners)
    slots = {kind: i for i, kind in enumerate(sorted(set(kinds), key=str))}
    if len(slots) > JOINED:
        raise DataError(f"{name}: {len(slots)} different ({', '.join(others)}); an item needs one vector, or a few")
    place = {str(value): i for i, value in enumerate(ids)}
    found = np.zeros((len(ids), len(slots), embeddings.width), np.float32)
    seen = np.zeros((len(ids), len(slots)), bool)
    for row, (owner, kind) in enumerate(zip(owners, kinds, strict=True)):
        at = place.get(str(owner))
        if at is None:
            continue
        if seen[at, slots[kind]]:
            raise DataError(f"{name}: two vectors for '{owner}'; ids must be unique")
        seen[at, slots[kind]] = True
        found[at, slots[kind]] = embeddings.vectors[row]
    missing = ~seen.any(axis=1)
    if missing.any():
        raise DataError(
            f"{name}: {missing.sum()} of {len(ids)} items have no vector (first: {ids[missing.argmax()]}); "
            f"its ids look like {owners[0]!r}"
        )
    return found.reshape(len(ids), -1)


def read_vectors(address: str) -> Embeddings:
    """Vectors from a file, each with the id of its item.

    A folder or Parquet file written by ``embed``; Parquet with a column ``id`` and a column of lists or one column per
    dimension; CSV or TSV with a column ``id`` and one column per dimension; ``.npz`` with ``id`` (or ``ids``) and one
    matrix; ``.npy`` with ``?ids=FILE`` (one id a line). ``?id=COLUMN`` names another column of ids.

    Raises:
        UserError: nothing there, no ids, or not numbers.
    """
    text, _, query = address.partition("?")
    options, path = dict(parse_qsl(query)), Path(text)
    for option in options:
        if option not in ("id", "ids"):
            raise ConfigError(f"vectors:{address}: unknown option '{option}'{nearest(option, ('id', 'ids'))}")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.is_dir() or (path.suffix == ".parquet" and _is_ours(path)):
        return Embeddings.read(path)
    ids, vectors = _from_arrays(path, options) if path.suffix in (".npz", ".npy") else _from_table(path, options)
    try:
        return Embeddings.build(np.asarray(vectors, dtype=np.float32), id=[str(i) for i in ids])
    except (DataError, ValueError, TypeError) as error:
        raise DataError(f"{path}: {first_line(error)}") from None


def _is_ours(path: Path) -> bool:
    import pyarrow.parquet as pq

    try:
        return b"repertory" in (pq.read_schema(path).metadata or {})
    except Exception as error:  # a damaged file raises many types
        raise DataError(f"{path}: not Parquet: {first_line(error)}") from None


def _from_arrays(path: Path, options: Mapping[str, str]) -> tuple[Sequence[Any], np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {name: loaded[name] for name in loaded.files} if path.suffix == ".npz" else {VECTOR: loaded}
    except Exception as error:  # zip and header errors of many types
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from None
    if "ids" in options:
        names = Path(options["ids"])
        if not names.exists():
            raise DataError(f"{names}: no such file")
        arrays["id"] = np.array(names.read_text(encoding="utf-8").splitlines())
    column = options.get("id") or next((name for name in ("id", "ids") if name in arrays), "")
    if column not in arrays:
        how = f"?id={column}" if column else "?ids=FILE, one a line"
        raise DataError(f"{path}: no ids: vectors are matched by id{'' if column else f'; give them as {how}'}")
    matrices = [name for name, array in arrays.items() if array.ndim == 2]
    if len(matrices) != 1:
        raise DataError(f"{path}: {len(matrices)} matrices [items, width]; exactly one is needed")
    return arrays[column].tolist(), arrays[matrices[0]]


def _from_table(path: Path, options: Mapping[str, str]) -> tuple[list[str], np.ndarray]:
    column = options.get("id", "id")
    frame = read_table(path, column)
    if column not in frame.columns:
        raise DataError(
            f"{path}: no column '{column}'{nearest(column, map(str, frame.columns))}; name that of the ids with ?id="
        )
    ids, rest = ids_of(frame, column), frame.drop(columns=column)
    lists = [name for name in rest.columns if rest[name].dtype == object and np.ndim(rest[name].iloc[0]) == 1]
    if len(lists) == 1:
        return ids, np.stack([np.asarray(row, np.float32) for row in rest[lists[0]]])
    numbers = rest.select_dtypes("number")
    if len(lists) > 1 or numbers.empty:
        raise DataError(f"{path}: no column of vectors, and no columns of numbers")
    if texts := [str(name) for name in rest.columns if name not in numbers.columns]:
        raise DataError(f"{path}: column '{texts[0]}' holds no numbers; leave it out: the vector is all columns but id")
    return ids, numbers.to_numpy(np.float32)
