"""``repertory runs``: the runs under a folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from repertory import catalog
from repertory.cli.look import Json, console, table
from repertory.errors import UserError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast, where libyaml is there."""
SHOWN = 2
"""Headline metrics of a run."""


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.", metavar="FOLDER")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """The runs under a folder, newest first: system, data, items, metrics, age, size, state."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder" + ("; fit writes runs there" if folder == Path("runs") else ""))
    found = [run for path in folder.rglob("config.yaml") if (run := _described(path.parent)) is not None]
    found.sort(key=lambda run: -run["changed"])
    if as_json:
        print(json.dumps(found, indent=1))
        return
    made = table("run", "system", "data", "items", "metrics", "age", "size", "state")
    for column in (3, 5, 6):
        made.columns[column].no_wrap = True
    for run in found:
        metrics = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in run["metrics"].items())
        items = "/".join(map(str, run["items"].values()))
        made.add_row(
            str(Path(run["run"]).relative_to(folder)), f"[bold cyan]{run['slug']}[/]", _short(run["data"]), items,
            metrics or "–", _age(time.time() - run["changed"]), _size(run["bytes"]), run["state"],
            style="" if run["state"] == "complete" else "yellow",
        )  # fmt: skip
    console.print(made)
    count = f"{len(found)} run{'' if len(found) == 1 else 's'} in {folder}"
    console.print(f"[dim]{count}; items: train/val/test; repertory evaluate RUN measures one[/]")


def _described(path: Path) -> dict[str, Any] | None:
    """What is known of the run in a folder; None where it holds none. Reads no weights, imports no torch."""
    try:
        record = yaml.load((path / "config.yaml").read_text(encoding="utf-8"), LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        record = None
    if not isinstance(record, dict) or "slug" not in record:
        # somebody else's config.yaml, unless the other files of a run lie beside it
        if not (path / "weights.safetensors").exists():
            return None
        record = {"slug": "?", "state": "damaged"}
    weights = path / "weights.safetensors"
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    state = record.get("state", "complete" if weights.exists() else "unfinished")
    checkpoints = [p.name for p in (path / "state").glob("*-*")]
    if state == "unfinished" and checkpoints:
        state = f"unfinished, at {max(checkpoints)}"
    return {
        "run": str(path), "slug": record["slug"], "data": str(record.get("source", "?")),
        "items": record.get("items", {}), "metrics": _headline(path / "metrics.json", record["slug"]),
        "changed": max(file.st_mtime for file in files), "bytes": sum(file.st_size for file in files), "state": state,
    }  # fmt: skip


def _headline(path: Path, slug: str) -> dict[str, float]:
    """The first metrics that the system's card names, of those that were measured."""
    try:
        measured = {n: m["value"] for n, m in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    entry = catalog.entries().get(slug)
    named = [name for name in (entry.card.metrics if entry else ()) if name in measured]
    return {name: measured[name] for name in (named or list(measured))[:SHOWN] if measured[name] is not None}


def _short(source: str) -> str:
    """A source without the folders before its last part."""
    path, mark, query = source.partition("?")
    kind, colon, rest = path.rpartition(":")
    return f"{kind}{colon}{Path(rest).name if '/' in rest else rest}{mark}{query}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "now"


def _size(number: float) -> str:
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
