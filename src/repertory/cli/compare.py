"""``repertory compare``: which representation is best for my data?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from repertory.cli.look import Json, _guess, console, table


def compare(
    candidates: Annotated[
        list[str],
        typer.Argument(
            help="Systems (SLUG, SLUG?preset=tiny&dim=64), runs (folders), timm:NAME, hf:NAME, file:PATH?arch=NAME, "
            "vectors:FILE (Parquet, CSV, npz, npy?ids=FILE; matched by id).",
            metavar="CANDIDATE...",
        ),
    ],
    data: Annotated[
        str,
        typer.Option("--data", help="A sample, a path, kind:path?label=COLUMN, or a YAML file.", metavar="SOURCE"),
    ],
    label: Annotated[
        str | None, typer.Option(help="The column to predict; several of 0 and 1, joined by commas: multi-label.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="classes, multilabel or regression (default: what the labels look like).")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 3,
    budget: Annotated[
        str | None,
        typer.Option(help="Of each fit: batches (500) or a time (90s, 5m, 1h) (default: each configuration's own)."),
    ] = None,
    items: Annotated[
        int | None, typer.Option(min=2, help="Most items of a part that the probe looks at (default: 5000).")
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Folder that keeps the fitted runs; a comparison cut short goes on from there.")
    ] = Path("runs/compare"),
    out: Annotated[
        list[Path] | None, typer.Option(help="A file: .md, .tex, .html, .json or .csv. May be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Which representation is best for my data? Same splits, same probe, paired intervals, time and memory."""
    from repertory import catalog, comparison
    from repertory.errors import ConfigError, nearest

    for path in out or ():
        comparison.writer(path)
    if task is not None and task not in comparison.METRICS:
        raise ConfigError(f"--task {task}{nearest(task, comparison.METRICS)}")
    system = any(c.partition("?")[0] in catalog.entries() or (Path(c.removeprefix("run:")) / "config.yaml").exists()
                 for c in candidates)  # fmt: skip
    found = comparison.compare(
        candidates, data, label=label, task=task, seeds=seeds, budget=budget, most=items or comparison.PROBED,  # type: ignore[arg-type]
        runs=runs, kind=None if system else _guess(data),
        watch=None if as_json else lambda line: console.print(f"[dim]  {line}[/]"),
    )  # fmt: skip
    for path in out or ():
        found.write(path)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    headers, rows = found.cells()
    cut = headers.index("verdict") + 1
    for columns in ([0, *range(2, cut)], [0, 1, *range(cut, len(headers))]):  # both fit into 80 characters
        made = table(*(headers[i] for i in columns))
        for cells, row in zip(rows, found.rows, strict=True):
            style = {"best": "bold green", "as good": "green"}.get(row.verdict, "")
            made.add_row(*(cells[i] for i in columns), style=style)
        console.print()
        console.print(made)
    console.print(f"\n[bold]{found.finding}[/]\n[dim]{found.method}[/]")
    for path in out or ():
        console.print(f"written: [bold]{path}[/]")
