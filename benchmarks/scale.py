"""What grows with the data: embedding ten million rows, and searching a million vectors.

``python -m benchmarks.scale`` (about 6 GB of disk in the temporary folder).
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.measure import record, seconds
from repertory import data
from repertory.card import Card, Config
from repertory.contract import System
from repertory.data import Items, Preview, Splits, digest
from repertory.embeddings import Embeddings
from repertory.evaluation.knn import neighbours
from repertory.index import build_index

ROWS, WIDTH = 10_000_000, 64
VECTORS, QUERIES, SINGLE, K = 1_000_000, 200, 20, 10
RATE = 100_003
"""Rows that the generator repeats after: the data themselves take no memory."""


class Rows(Items):
    """Rows of numbers that are made when they are read."""

    kind = "rows"

    def __init__(self, n: int) -> None:
        super().__init__(f"{i:08d}" for i in range(n))
        self.rows = np.arange(n)
        self.table = np.random.default_rng(0).normal(size=(RATE, WIDTH)).astype(np.float32)

    def check(self, index: int) -> str:
        return digest(self.values(slice(index, index + 1)).tobytes())

    def values(self, where: slice) -> np.ndarray:
        """[rows, WIDTH] float32."""
        return self.table[self.rows[where] % RATE]

    def _select(self, indices: np.ndarray) -> None:
        self.rows = self.rows[indices]

    def _extend(self, parts: Sequence[Rows]) -> None:
        self.rows = np.concatenate([part.rows for part in parts])

    @classmethod
    def wrap(cls, source: Any) -> Rows:
        return cls(int(source))

    def preview(self, index: int) -> Preview:
        return Preview(text=str(self.rows[index]))


class Rotation(System):
    """A linear map: the smallest system, so that what is measured is the way of the vectors."""

    card = Card(
        slug="rotation", title="Rotation", system="Rotation", families=("benchmark",), kind="rows", key=("id",),
        sample="none", check="none", metrics=(), paper="", authors="", venue="", code="", licence="",
    )  # fmt: skip

    class Config(Config):
        """Of the benchmark."""

        batch_size: int = 4096

    def _build(self) -> nn.Module:
        return nn.Linear(WIDTH, WIDTH)

    def _fit(self, *args: Any) -> None:
        """Nothing is learned."""

    def _embed(self, items: Rows, batch_size: int) -> Iterator[Embeddings]:
        for start in range(0, len(items), batch_size):
            where = slice(start, start + batch_size)
            vectors = self.model(torch.from_numpy(items.values(where)).to(self.device))
            yield Embeddings.build(vectors.cpu().numpy(), id=items.ids[where])


def embed(folder: str, rows: int) -> None:
    """Opens, checks and embeds ``rows`` in this process, goes on with what is there, and prints the peak memory."""
    torch.set_num_threads(1)
    system = Rotation()
    system.model = system._build().eval()
    with torch.no_grad():
        system.model.weight.copy_(torch.eye(WIDTH))
        system.model.bias.zero_()
    start = time.perf_counter()
    splits: Splits = data.open(Rows(rows))
    opened = time.perf_counter()
    made = system.embed_to(folder, splits, resume=True)
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(made, round(opened - start, 1), round(end - opened, 1), round(peak))


def measured(folder: str, rows: int) -> tuple[int, float, float, int]:
    """Items embedded, seconds to open and to embed, and peak MB of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.scale", "embed", folder, str(rows)]
    made, opened, embedded, peak = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return int(made), float(opened), float(embedded), int(peak)


def streaming() -> None:
    """Peak memory of embedding ten million rows, at once and when most of them are there."""
    with tempfile.TemporaryDirectory() as folder:
        part = f"{folder}/vectors"
        made, opened, embedded, peak = measured(part, ROWS)
        again, _, resumed, peak_again = measured(part, ROWS)
        gigabytes = sum(file.stat().st_size for file in Path(part).iterdir()) / 1e9
        _, _, _, small = measured(f"{folder}/small", ROWS // 100)
    assert (made, again) == (ROWS, 0)
    record("_scale", "embed ten million rows", {
        "megabytes": peak, "megabytes_of_100_000_rows": small, "megabytes_resumed": peak_again, "limit": 2000,
        "seconds": {"open and check": opened, "embed": embedded, "resume": resumed},
        "sizes": {"rows": ROWS, "width": WIDTH, "gigabytes": round(gigabytes, 2)},
    })  # fmt: skip


def vectors(n: int, seed: int) -> np.ndarray:
    """[n, WIDTH] float32 in 1000 clusters that overlap."""
    centres = np.random.default_rng(0).normal(size=(1000, WIDTH))
    random = np.random.default_rng(seed)
    return (centres[random.integers(0, 1000, n)] + random.normal(size=(n, WIDTH))).astype(np.float32)


def searching() -> None:
    """Recall and speed of the index on a million vectors against exact search: query by query, and in one batch."""
    bank, queries = vectors(VECTORS, 1), vectors(QUERIES, 2)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        index = build_index(Embeddings.build(bank, "r", id=np.arange(VECTORS).tolist()), f"{folder}/index")
        built = time.perf_counter() - start
        steps = {"exact": lambda: neighbours(queries, bank, K), "index": lambda: index.search(queries, K)}
        times = seconds(steps, repeats=3)
        exact, found = (step()[0] for step in steps.values())
        one_by_one = {
            "exact": lambda: [neighbours(query[None], bank, K) for query in queries[:SINGLE]],
            "index": lambda: [index.search(query[None], K) for query in queries[:SINGLE]],
        }
        alone = seconds(one_by_one, repeats=3)
    recall = np.mean([len(np.intersect1d(a, b)) for a, b in zip(exact, found, strict=True)]) / K
    record("_scale", "search a million vectors", {
        "recall_at_10": round(float(recall), 4), "ratio": round(alone["exact"] / alone["index"], 1),
        "ratio_in_one_batch": round(times["exact"] / times["index"], 1),
        "milliseconds_a_query": {name: round(1000 * s / SINGLE, 3) for name, s in alone.items()},
        "milliseconds_a_query_in_one_batch": {name: round(1000 * s / QUERIES, 3) for name, s in times.items()},
        "seconds_to_build": round(built, 1),
        "sizes": {"vectors": VECTORS, "width": WIDTH, "queries": QUERIES, "k": K, "index": "IVF, 8-bit scalars"},
    })  # fmt: skip


def main() -> None:
    searching()
    streaming()


if __name__ == "__main__":
    if sys.argv[1:2] == ["embed"]:
        embed(sys.argv[2], int(sys.argv[3]))
    else:
        main()
