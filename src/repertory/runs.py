"""A run: what a fit was made from, what it learned, and how to go on after a kill.

A run directory holds ``config.yaml``, ``weights.safetensors`` (written last: its presence means complete),
``assets/``, ``state/``, ``metrics.parquet``, ``metrics.json``, ``embeddings/`` and ``report.html``.
Nothing in it is ever unpickled: weights are safetensors, state is read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as arrays_to_bytes
from safetensors.torch import load_file, save_file

from repertory.errors import ConfigError, UserError, first_line

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

FORMAT = 1
FIRST_CHECKPOINT = 10.0
CHECKPOINT_EVERY = 60.0
"""Seconds until the first checkpoint, and between later ones."""

Assets = dict[str, Any]
"""What fit learned about the data besides weights: JSON values, NumPy arrays, Arrow tables, scikit-learn estimators."""


def reseed(*key: Any) -> None:
    """Seeds Python, NumPy and torch from a hash of ``key``, so that what follows is a function of it alone."""
    value = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    random.seed(value)
    np.random.seed(value % 2**32)
    # torch.manual_seed queues a call with its stack for each device that is not in use yet: a millisecond a step
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(value)


def leads() -> bool:
    """Whether this process is the first of those that fit together, as torchrun or Lightning started them.

    It alone writes; the others compute the same and write nothing.
    """
    return not any(int(os.environ.get(name) or 0) for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


@contextmanager
def seeded(*key: Any) -> Iterator[None]:
    """Runs a block under ``reseed(*key)`` and puts the random state back as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        reseed(*key)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a file so that a kill leaves either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Stateful(Protocol):
    """What a fit outside Lightning saves and resumes: a torch-style state."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


@dataclass
class Run:
    """A run, in a directory or (``path=None``) in memory only.

    Attributes:
        record: what ``config.yaml`` holds: slug, config, preset, seed, source, rule, fingerprint, versions.
        metrics: one row per logged value: stage, step, name, value.
        resumed_from: the checkpoint that the fit went on from.
        writes: False in the further processes of a fit on several devices: they read the run and change nothing.
        loggers: Lightning loggers that are told each logged value too.
    """

    path: Path | None
    record: dict[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    resumed_from: str | None = None
    writes: bool = True
    loggers: Sequence[Logger] = ()

    # -- life ----------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path | str | None, record: dict[str, Any], *, resume: bool = False) -> Run:
        """A new run, or with ``resume`` the one that lies there, after a check that it is of the same making.

        Raises:
            UserError: the directory is in use, or holds a run of another making; the message names the difference.
        """
        if path is None:
            if resume:
                raise UserError("resume needs a run directory: name it with run=PATH (--out PATH)")
            return cls(None, record)
        path = Path(path)
        if not leads():
            return cls(path, record, writes=False)
        if (path / "config.yaml").exists():
            old = cls.open(path)
            if not resume:
                state = "a complete run" if old.complete else "an unfinished run"
                raise UserError(f"{path} holds {state}: choose another folder, or go on with it by resume (--resume)")
            old._same_making(record)
            return old
        if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
            raise UserError(f"{path} is not empty and holds no run: choose another folder")
        run = cls(path, record)
        run.write_record()
        return run

    def write_record(self) -> None:
        """Writes ``config.yaml``."""
        if self.path is not None and self.writes:
            write_atomic(self.path / "config.yaml", yaml.safe_dump(self.record, sort_keys=False, allow_unicode=True))

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """The run that lies in a directory.

        Raises:
            UserError: there is none, or it was written by a newer version.
        """
        path = Path(path)
        try:
            record = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path}: no run here (config.yaml is missing)") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}/config.yaml: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(record, dict) or "slug" not in record:
            raise UserError(f"{path}/config.yaml: not the record of a run: 'slug' is missing")
        if record.get("format", 0) > FORMAT:
            raise UserError(
                f"{path}: format {record['format']} is newer than this version reads ({FORMAT}); upgrade repertory"
            )
        return cls(path, record)

    @property
    def complete(self) -> bool:
        """Whether the fit came to its end."""
        return self.path is not None and (self.path / "weights.safetensors").exists()

    def _same_making(self, record: dict[str, Any]) -> None:
        for name in ("slug", "seed", "length", "trainer", "fingerprint", "rule", "validation"):
            if self.record.get(name) != record.get(name):
                raise UserError(
                    f"{self.path}: cannot resume with another {name.replace('fingerprint', 'data fingerprint')}: "
                    f"the run has {self.record.get(name)}, you gave {record.get(name)}"
                )
        old, new = self.record["config"], record["config"]
        for name in old.keys() | new.keys():
            if old.get(name) != new.get(name):
                raise ConfigError(
                    f"{self.path}: cannot resume with another {name}: "
                    f"the run has {old.get(name)}, you gave {new.get(name)}"
                )

    # -- metrics over steps ----------------------------------------------------------------------

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Adds values of a step; they reach ``metrics.parquet`` with the next checkpoint and at the end."""
        for name, value in values.items():
            self.metrics.append({"stage": stage, "step": int(step), "name": name, "value": float(value)})
        for logger in self.loggers:
            logger.log_metrics({f"{stage}/{name}": float(value) for name, value in values.items()}, int(step))

    def _write_metrics(self) -> None:
        if self.path is None:
            return
        sink = pa.BufferOutputStream()
        schema = pa.schema(
            [("stage", pa.string()), ("step", pa.int64()), ("name", pa.string()), ("value", pa.float64())]
        )
        pq.write_table(pa.Table.from_pylist(self.metrics, schema=schema), sink)
        write_atomic(self.path / "metrics.parquet", sink.getvalue().to_pybytes())

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.parquet`` (stage, step, name, value)."""
        if self.path is None or not (self.path / "metrics.parquet").exists():
            return self.metrics
        try:
            rows: list[dict[str, Any]] = pq.read_table(self.path / "metrics.parquet").to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path}/metrics.parquet: damaged: {first_line(error)}") from None
        return rows

    # -- state of an unfinished fit ----------------------------------------------------------------

    def save_state(self, stage: str, step: int, state: Mapping[str, Any]) -> None:
        """Writes the state at the start of ``step``; older ones go once it is in place."""
        if self.path is None or not self.writes:
            return
        folder = self.path / "state"
        folder.mkdir(parents=True, exist_ok=True)
        self._write_metrics()
        temporary = folder / ".tmp"
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        final = folder / f"{stage}-{step}"
        temporary.replace(final)
        for old in folder.iterdir():
            if old != final:
                old.unlink()

    def load_state(self, stages: tuple[str, ...]) -> tuple[str, int, dict[str, Any]] | None:
        """Stage, step and state of the newest checkpoint; metrics past it are cut. None without one.

        Raises:
            UserError: the file there is not a checkpoint that can be read safely.
        """
        folder = None if self.path is None else self.path / "state"
        found = [] if folder is None or not folder.exists() else [p for p in folder.iterdir() if p.name != ".tmp"]
        places = []
        for path in found:
            stage, _, number = path.name.rpartition("-")
            if stage in stages and number.isdigit():
                places.append((stages.index(stage), int(number), path))
        if not places:
            self.metrics = []
            return None
        place, step, path = max(places)
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # whatever torch refuses: it is not ours
            raise UserError(f"{path}: not a checkpoint that can be read safely: {first_line(error)}") from None
        order = {name: i for i, name in enumerate(stages)}
        self.metrics = [
            row for row in self.read_metrics()
            if (order.get(row["stage"], -1), row["step"]) < (place, step)
        ]  # fmt: skip
        self.resumed_from = path.name
        return stages[place], step, state

    def steps(self, name: str, n: int, *, state: Stateful, seed: Any = None) -> Iterator[int]:
        """Counts ``n`` steps of a fit that is not trained by Lightning, with the same promises.

        Before each step everything is reseeded from (seed, name, step); state is saved now and then and
        taken up again by resume, so that ``for step in run.steps(...)`` ends bit for bit where it would
        have ended without a kill. ``state`` must hold all that changes from step to step.
        """
        seed = self.record.get("seed", 0) if seed is None else seed
        found = self.load_state((name,))
        start = 0
        if found is not None:
            _, start, values = found
            state.load_state_dict(values)
        clock = Clock()
        for step in progress(range(start, n), name, start, n):
            if step > start and clock.due():
                self.save_state(name, step, state.state_dict())
            reseed(seed, name, step)
            yield step

    # -- the end -------------------------------------------------------------------------------------

    def finish(self, weights: Mapping[str, torch.Tensor], assets: Assets) -> None:
        """Writes assets, metrics and, last, the weights; the state of the fit goes."""
        if self.path is None or not self.writes:
            return
        write_assets(self.path / "assets", assets)
        self._write_metrics()
        save_weights(self.path / "weights.safetensors", weights)
        shutil.rmtree(self.path / "state", ignore_errors=True)

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors of ``weights.safetensors``.

        Raises:
            UserError: the run is not complete, or the file is damaged.
        """
        if not self.complete:
            raise UserError(f"{self.path}: the fit has not come to its end; go on with it by --resume")
        assert self.path is not None
        try:
            return load_file(self.path / "weights.safetensors")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.path}/weights.safetensors: damaged: {error}") from None

    def assets(self) -> Assets:
        """What fit learned about the data besides weights."""
        return {} if self.path is None else read_assets(self.path / "assets")


class Clock:
    """Says when a checkpoint is due."""

    def __init__(self) -> None:
        self.next = time.monotonic() + FIRST_CHECKPOINT

    def due(self) -> bool:
        """Whether it is time; asking starts the next interval."""
        now = time.monotonic()
        if now < self.next:
            return False
        self.next = now + CHECKPOINT_EVERY * (FIRST_CHECKPOINT > 0)
        return True


def progress(iterable: Any, name: str, start: int = 0, total: int | None = None) -> Iterator[Any]:
    """A progress bar on a terminal, nothing elsewhere."""
    import sys

    if not sys.stderr.isatty():
        yield from iterable
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(name, total=total, completed=start)
        for item in iterable:
            yield item
            bar.advance(task)


def save_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Writes tensors as safetensors, atomically; tensors that share memory are written once each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}, temporary)
    temporary.chmod(0o644)  # safetensors lets only the owner read
    temporary.replace(path)


def write_assets(folder: Path, assets: Assets) -> None:
    """One file per asset, by type: JSON, Parquet, safetensors (all arrays together), skops."""
    from sklearn.base import BaseEstimator

    arrays, plain = {}, {}
    for name, value in assets.items():
        if isinstance(value, np.ndarray):
            arrays[name] = np.asarray(value, order="C")
        elif isinstance(value, pa.Table):
            sink = pa.BufferOutputStream()
            pq.write_table(value, sink)
            write_atomic(folder / f"{name}.parquet", sink.getvalue().to_pybytes())
        elif isinstance(value, BaseEstimator):
            import skops.io

            content = skops.io.dumps(value)
            if unknown := skops.io.get_untrusted_types(data=content):
                raise UserError(f"asset '{name}' could not be loaded again: skops does not trust {', '.join(unknown)}")
            write_atomic(folder / f"{name}.skops", content)
        else:
            plain[name] = value
    if arrays:
        write_atomic(folder / "arrays.safetensors", arrays_to_bytes(arrays))
    write_atomic(folder / "assets.json", json.dumps(plain, indent=1, ensure_ascii=False))


def read_assets(folder: Path) -> Assets:
    """The assets in a folder.

    Raises:
        UserError: a file is damaged or holds a type that is not trusted.
    """
    assets: Assets = {}
    for path in sorted(folder.glob("*")):
        try:
            if path.name == "assets.json":
                assets.update(json.loads(path.read_text(encoding="utf-8")))
            elif path.name == "arrays.safetensors":
                assets.update(load_arrays(path))
            elif path.suffix == ".parquet":
                assets[path.stem] = pq.read_table(path)
            elif path.suffix == ".skops":
                import skops.io

                assets[path.stem] = skops.io.load(path, trusted=[])
        except Exception as error:  # every reader has its own types
            raise UserError(f"{path}: cannot be read: {first_line(error)}") from None
    return assets


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("repertory", "torch", "numpy", "lightning", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
