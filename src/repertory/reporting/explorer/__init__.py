"""The explorer: the map of a run's embeddings, live in the browser."""

from __future__ import annotations

from repertory.reporting.explorer.exploration import Exploration, gather

__all__ = ["Exploration", "gather"]
