"""Engines: where shards are embedded when one process is not enough.

``system.embed_to(folder, data, engine=RayEngine("runs/symile"))`` writes the shards that ``embed_to`` writes alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from repertory.contract import Engine
from repertory.data import Items
from repertory.embeddings import Embeddings
from repertory.errors import ConfigError, MissingExtraError, nearest

ENGINES = ("local", "ray")


def engine_of(name: str, run: Path | str) -> Engine | None:
    """The engine of a name for a run; None for ``local``.

    Raises:
        ConfigError: there is none of that name.
        MissingExtraError: its package is not installed.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine={name}: no engine of this name{nearest(name, ENGINES)}")
    return None if name == "local" else RayEngine(run)


class RayEngine:
    """A pool of Ray workers: each loads the run once and embeds shards, which come back in order.

    A Ray that is initialised already (of a cluster, say) is used; otherwise one is started on this machine.

    Args:
        run: directory of the run, which every worker can read.
        workers: how many; None: one per GPU, or per CPU where there is none.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, run: Path | str, workers: int | None = None) -> None:
        # set before the import; the first one: nothing is reported to Ray's makers
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray.data  # noqa: F401
        except ImportError:
            raise MissingExtraError("ray", "scale") from None
        self.run, self.workers = Path(run).resolve(), workers

    def __call__(
        self, items: Items, starts: range, *, batch_size: int | None = None, device: str | None = None
    ) -> Iterator[Embeddings]:
        """Embeddings of the ``starts.step`` items from each start on, in order."""
        if not len(starts):
            return
        import ray

        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        resources = ray.cluster_resources()
        workers = self.workers or max(1, int(resources.get("GPU") or resources["CPU"]))
        asked = ray.data.from_items([{"start": start} for start in starts], override_num_blocks=len(starts))
        shards = asked.map_batches(
            _Worker,
            fn_constructor_args=(self.run, ray.put(items), starts.step, batch_size, device),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(starts))),
            num_cpus=1,
            num_gpus=int("GPU" in resources),
            max_restarts=0,
        )
        for row in shards.iter_rows():
            with pa.ipc.open_stream(row["shard"]) as stream:
                yield Embeddings(stream.read_all(), tuple(row["key"]), row["fingerprint"])


class _Worker:
    """Loads a run once; embeds one shard a call and packs it, so that Ray never splits it."""

    def __init__(self, run: Path, items: Any, step: int, batch_size: int | None, device: str | None) -> None:
        import ray

        from repertory import catalog

        self.system = catalog.load(run)
        self.items: Items = ray.get(items)
        self.step, self.batch_size, self.device = step, batch_size, device

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        start = int(batch["start"][0])
        only = range(start, start + 1, self.step)
        made = next(self.system.embed_shards(self.items, only, batch_size=self.batch_size, device=self.device))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, made.table.schema) as stream:
            stream.write_table(made.table)
        packed = pa.array([sink.getvalue().to_pybytes()], pa.large_binary())
        return pa.table({"shard": packed, "key": [list(made.key)], "fingerprint": [made.fingerprint]})
