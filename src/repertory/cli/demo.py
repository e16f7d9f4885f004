"""``repertory demo``: the main job on real data, in under two minutes."""

from __future__ import annotations


def demo() -> None:
    """Symile on spoken numbers: fit, embed, evaluate, and a report."""
