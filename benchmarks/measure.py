"""Time and peak memory of a costly step against the straightforward form, in one run, as a ratio."""

from __future__ import annotations

import gc
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")


def seconds(steps: dict[str, Callable[[], Any]], repeats: int = 7) -> dict[str, float]:
    """Median seconds of each step, run in turn (A B A B ...) after one warm-up of each."""
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _grown(make: Callable[[], Callable[[], Any]], pipe: Any) -> None:
    import torch

    torch.set_num_threads(1)
    step = make()
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def megabytes(make: Callable[[], Callable[[], Any]]) -> float:
    """By how many MB the peak resident memory grows while ``make()()`` runs, in a fresh process.

    ``make`` is a top-level function: it builds the inputs (not counted) and returns the step.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_grown, args=(make, theirs))
    process.start()
    theirs.close()
    grown: float = ours.recv()
    process.join()
    return grown


def record(slug: str, name: str, entry: dict[str, Any]) -> None:
    """Writes ``entry`` under ``slug`` and ``name`` in ``results.json`` with the library versions."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    entry["versions"] = {package: version(package) for package in ("torch", "numpy")}
    results.setdefault(slug, {})[name] = entry
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{slug} / {name}: " + ", ".join(f"{k} {v}" for k, v in entry.items() if k != "versions"))
