"""``repertory demo``: the main job on real data, in under two minutes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from repertory import catalog
from repertory.cli.look import console, table

SLUG, PRESET = "symile", "spoken-numbers"
BASELINE = {"objective": "clip", "log_scale": 2.0}
"""The pairwise baseline, with the temperature at which it does best; data, encoders and steps are the same."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the two runs.", metavar="FOLDER")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Training batches, in place of the preset's.")] = None,
) -> None:
    """Fits Symile and pairwise CLIP to spoken numbers, embeds, evaluates, and writes a report."""
    start = time.perf_counter()
    console.print(
        "\n[bold]Spoken numbers.[/] An image shows a handwritten digit. A text names five digits, one in each of five "
        "languages. A voice says 'the number' in one of them:\nthe digit in the image is the word in the spoken "
        "language. No two of the three tell the third; all three together do.\n"
    )
    import torch

    from repertory import data
    from repertory.reporting.page import Headline
    from repertory.reporting.report import write_report
    from repertory.runs import write_atomic

    torch.set_num_threads(1)  # the encoders are small: more threads would only wait for each other
    sample = catalog.entry(SLUG).card.sample
    splits = data.open(sample)
    systems: dict[str, Any] = {}
    for name, settings in (("Symile", {}), ("pairwise CLIP", BASELINE)):
        folder = out / ("symile" if not settings else "clip")
        began = time.perf_counter()
        system = catalog.create(SLUG, PRESET, **settings)
        systems[name] = system.fit(splits, run=folder, seed=seed, steps=steps, resume=True)
        console.print(
            f"  fitted {name} to {len(splits.train):,} triples  [dim]{time.perf_counter() - began:.0f} s  {folder}[/]"
        )
    symile, clip = systems.values()
    symile.splits = clip.splits = splits
    vectors = out / "symile" / "embeddings"
    symile.embed_to(vectors, splits.test, resume=True)
    console.print(f"  embedded {len(splits.test):,} held-out triples  [dim]{vectors}[/]")
    metrics, other = symile.evaluate(), clip.evaluate()
    for name, measured in (("symile", metrics), ("clip", other)):
        write_atomic(out / name / "metrics.json", json.dumps(measured.to_dict(), indent=1))
    ours, theirs = metrics["retrieval_accuracy"], other["retrieval_accuracy"]
    headline = Headline("image found from text and audio, one of ten", ours, theirs, "Symile", "pairwise CLIP", (0, 1))
    page = write_report(symile, metrics, out / "symile" / "report.html", headlines=[headline])
    made = table("image found from text and voice", "right", "95 % interval", "")
    for name, metric, style in (("Symile", ours, "bold green"), ("pairwise CLIP", theirs, ""), ("chance", None, "dim")):
        value = 0.1 if metric is None else metric.value
        interval = "" if metric is None else f"{metric.low:.1%} .. {metric.high:.1%}"
        made.add_row(name, f"{value:.1%}", interval, "█" * round(24 * value), style=style)
    console.print()
    console.print(made)
    console.print(f"\nreport: [bold]{page}[/]  [dim]{time.perf_counter() - start:.0f} s in all[/]")
    console.print("[dim]next: repertory list    repertory fit symile --data YOUR.csv    repertory claim symile[/]")
