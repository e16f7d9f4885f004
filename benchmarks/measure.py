"""Time and peak memory of a costly step against the straightforward form, in one run, as a ratio."""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")


def seconds(steps: dict[str, Callable[[], Any]], repeats: int = 7) -> dict[str, float]:
    """Median CPU seconds of each step on one thread, run in turn (A B A B ...) after one warm-up of each.

    CPU time, so that a machine that is busy with other work does not decide the ratio.
    """
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _peak(reset: bool = False) -> int:
    """Peak resident memory of this process in KB, since its start or since the last reset.

    ``ru_maxrss`` would be wrong here: a process starts with the peak of the one that started it.
    """
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def _grown(make: Callable[[], Callable[[], Any]], pipe: Any) -> None:
    import torch

    torch.set_num_threads(1)
    step = make()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what making the step freed is not there for the step to take
    before = _peak(reset=True)
    step()
    pipe.send((_peak() - before) / 1024)


def megabytes(make: Callable[[], Callable[[], Any]]) -> float:
    """By how many MB the peak resident memory grows while ``make()()`` runs, in a fresh process (Linux).

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


def compare(
    slug: str,
    name: str,
    ours: Callable[[], Callable[[], Any]],
    straightforward: Callable[[], Callable[[], Any]],
    sizes: dict[str, Any],
    repeats: int = 7,
) -> None:
    """Measures a step of ours against the straightforward form and records both with their ratios.

    ``ours`` and ``straightforward`` are top-level functions (or partials of them) that build the inputs and return the
    step.
    """
    import torch

    torch.set_num_threads(1)
    forms = {"ours": ours, "straightforward": straightforward}
    memory = {who: megabytes(make) for who, make in forms.items()}
    times = seconds({who: make() for who, make in forms.items()}, repeats)
    entry: dict[str, Any] = {
        "ratio": round(times["straightforward"] / times["ours"], 2),
        "cpu_seconds": {who: float(f"{value:.3g}") for who, value in times.items()},
        "megabytes": {who: round(value, 1) for who, value in memory.items()},
        "sizes": {**sizes, "device": "cpu, 1 thread"},
    }
    if memory["straightforward"] >= 1:  # below, the allocator's granularity is all there is to see
        entry["memory_ratio"] = round(memory["ours"] / memory["straightforward"], 2)
    record(slug, name, entry)


def record(slug: str, name: str, entry: dict[str, Any]) -> None:
    """Writes ``entry`` under ``slug`` and ``name`` in ``results.json`` with the library versions."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    entry["versions"] = {package: version(package) for package in ("torch", "numpy")}
    results.setdefault(slug, {})[name] = entry
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{slug} / {name}: " + ", ".join(f"{k} {v}" for k, v in entry.items() if k != "versions"))
