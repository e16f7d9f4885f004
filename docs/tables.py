"""Writes the tables in README.md from cards, fixtures, claims and benchmarks: ``python -m docs.tables [--check]``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from repertory import catalog

ROOT = Path(__file__).resolve().parent.parent


def read_json(path: str) -> dict[str, Any]:
    """What lies in a JSON file of the repository; nothing, where there is none."""
    file = ROOT / path
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def parts(slug: str) -> int:
    """How many parts of a system were computed by the official code."""
    return len(list((ROOT / "tests/parity/fixtures" / slug).glob("*.json")))


def mean(result: dict[str, Any], variant: str) -> float:
    """Of one variant of a claim, over its seeds."""
    values = next(m["values"] for m in result["measured"] if m["variant"] == variant)
    return sum(values) / len(values)


def times(ratio: float) -> str:
    """``1.13×``, ``22.4×``, ``1,620×``."""
    return f"{ratio:,.0f}×" if ratio >= 1000 else f"{ratio:.3g}×"


def systems() -> str:
    """One row a system."""
    claims, speeds = read_json("claims/results.json"), read_json("benchmarks/results.json")
    rows = ["| system | learns from | parity | claim | speed |", "|---|---|---|---|---|"]
    for card in catalog.list_systems():
        found = [
            f"{name}: **{r['verdict']}** ({mean(r, r['method']):.3g} against {mean(r, r['baseline']):.3g})"
            for name, r in claims.get(card.slug, {}).items()
        ]
        fast = [f"{name} {times(e['ratio'])}" for name, e in speeds.get(card.slug, {}).items() if "ratio" in e]
        number = parts(card.slug)
        rows.append(
            f"| **{card.slug}**: {card.title} ({card.venue}) | {card.kind} | {number} of {number} | "
            f"{'<br>'.join(found)} | {'<br>'.join(fast)} |"
        )
    return "\n".join(rows)


def written(text: str) -> str:
    """``text`` with the tables between its markers made anew."""
    pattern = r"(<!-- systems:begin -->\n).*?(<!-- systems:end -->)"
    return re.sub(pattern, lambda m: f"{m[1]}{systems()}\n{m[2]}", text, flags=re.DOTALL)


def main() -> int:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        return int(written(text) != text)
    path.write_text(written(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
