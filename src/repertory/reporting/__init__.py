"""The report page and its parts: figures in one look, the map of the embeddings, the page itself."""

from __future__ import annotations

from repertory.figures import bars_with_intervals, heatmap, image_grid, learning_curves, styled, template
from repertory.reporting.items import thumbnail, wav
from repertory.reporting.page import EmbeddingMap, Headline, Picture, Rejected, Report
from repertory.reporting.projection import Projection, project
from repertory.reporting.sources import sanitise, sanitise_source

__all__ = [
    "EmbeddingMap", "Headline", "Picture", "Projection", "Rejected", "Report", "bars_with_intervals", "heatmap",
    "image_grid", "learning_curves", "project", "sanitise", "sanitise_source", "styled", "template", "thumbnail", "wav",
]  # fmt: skip
