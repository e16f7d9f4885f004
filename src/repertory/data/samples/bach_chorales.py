"""Bach's chorales from the corpus inside the music21 package."""

from __future__ import annotations

import os
from pathlib import Path

from repertory.data.music import Music
from repertory.data.notes import read_corpus
from repertory.data.samples import Sample, cache


def build(packages: dict[str, Path], pieces: int = 160) -> Music:
    """The first ``pieces`` of the chorales; parsed once (about a minute for all), then kept in the cache."""
    found = read_corpus("bach/bwv*.mxl", cache=cache() / "scores", count=pieces, workers=os.cpu_count() or 1)
    return Music([piece.id for piece in found], found)


SAMPLE = Sample(
    name="bach-chorales",
    kind="music",
    about="160 four-part chorales by J. S. Bach as scores",
    licence="public domain music; encodings from the music21 corpus (BSD-3-Clause)",
    build=build,
)
