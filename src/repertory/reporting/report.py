"""A run's report: what was run on what, learning curves, metrics, the map, the system's own figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from repertory.contract import System
from repertory.data import Items, Preview
from repertory.embeddings import Embeddings
from repertory.evaluation import Metrics
from repertory.reporting.page import EmbeddingMap, Headline, Picture, Rejected, Report
from repertory.reporting.projection import project

MAPPED = 2000
"""At most so many points are on the map."""


def write_report(
    system: System,
    metrics: Metrics,
    path: Path,
    *,
    data: Any = None,
    headlines: Sequence[Headline] = (),
    show_paths: bool = False,
) -> Path:
    """Writes the page about a fitted system and returns its path.

    Args:
        system: the fitted system.
        metrics: what ``evaluate`` returned.
        path: of the page.
        data: what was evaluated; None is the run's own held-out split.
        headlines: the punch line, where there is one.
        show_paths: let paths and names of this machine stay.
    """
    items, _ = system._held_out(data)
    if len(items) > MAPPED:
        items = items.take(np.sort(np.random.default_rng(0).choice(len(items), MAPPED, replace=False)))
    record = system.record
    config = {name: value for name, value in record["config"].items() if value not in ({}, None)}
    run = {
        "system": system.card.slug,
        "data": record["source"] if data is None else str(data),
        "split": record["rule"],
        "items": ", ".join(f"{part} {n}" for part, n in record.get("items", {}).items()),
        "data fingerprint": record.get("fingerprint", "")[:16],
        "seed": record["seed"],
    }
    rows = system.run.read_metrics() if system.run is not None else []
    page = Report(
        title=system.card.title,
        purpose=system.card.purpose,
        headlines=headlines,
        facts={"Run": run, "Configuration": config, "Versions": record["versions"]},
        curves=[(row["stage"], row["step"], row["name"], row["value"]) for row in rows],
        metrics=metrics,
        embedding_map=_map(system.embed(items), items),
        pictures=[Picture(figure, title) for title, figure in system.figures(items).items()],
        rejected=_rejected(path.parent),
        show_paths=show_paths,
    )
    page.write(path)
    return path


def _map(embeddings: Embeddings, items: Items) -> EmbeddingMap:
    """The plane of at most ``MAPPED`` vectors; the items that they stand for appear on hover."""
    if len(embeddings) > MAPPED:
        rows = np.sort(np.random.default_rng(0).choice(len(embeddings), MAPPED, replace=False))
        embeddings = embeddings.take(rows)
    projection = project(embeddings.vectors, most=MAPPED)
    embeddings = embeddings.take(projection.rows)
    position = {value: i for i, value in enumerate(items.ids)}
    names = [*embeddings.key[1:], *embeddings.columns]
    previews: dict[Any, Preview] = {}
    for value in embeddings.column(embeddings.key[0]):
        if value in position and value not in previews:
            previews[value] = items.preview(position[value])
    ids = [" / ".join(map(str, key)) for key in zip(*(embeddings.column(k) for k in embeddings.key), strict=True)]
    return EmbeddingMap(
        projection,
        ids,
        {name: embeddings.table[name].to_pylist() for name in names},
        [previews.get(value) for value in embeddings.column(embeddings.key[0])],
    )


def _rejected(folder: Path) -> list[Rejected]:
    """What the fit left out: one line per reason, with the first id."""
    path = folder / "rejected.parquet"
    if not path.exists():
        return []
    rows = pq.read_table(path).to_pylist()
    counts = Counter(row["reason"] for row in rows)
    first = {row["reason"]: row["id"] for row in reversed(rows)}
    return [Rejected(first[reason], reason, count) for reason, count in counts.most_common()]
