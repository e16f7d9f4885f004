"""Writes the tables in README.md from cards, parity fixtures, claims and benchmarks: ``python -m docs.tables [--check]``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from repertory import catalog

ROOT = Path(__file__).resolve().parent.parent


def _json(path: str) -> dict:
    file = ROOT / path
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def systems() -> str:
    """One row a system."""
    claims, speeds = _json("claims/results.json"), _json("benchmarks/results.json")
    rows = ["| system | learns from | parity | claim | speed |", "|---|---|---|---|---|"]
    for card in catalog.list_systems():
        parts = len(list((ROOT / "tests/parity/fixtures" / card.slug).glob("*.json")))
        found = [
            f"{name}: **{r['verdict']}** ({_mean(r, r['method'])} against {_mean(r, r['baseline'])})"
            for name, r in claims.get(card.slug, {}).items()
        ]
        fast = [f"{name} {e['ratio']:.3g}×" for name, e in speeds.get(card.slug, {}).items() if "ratio" in e]
        rows.append(
            f"| **{card.slug}**: {card.title} ({card.venue}) | {card.kind} | {parts} of {parts} | "
            f"{'<br>'.join(found)} | {'<br>'.join(fast)} |"
        )
    return "\n".join(rows)


def _mean(result: dict, variant: str) -> str:
    values = next(m["values"] for m in result["measured"] if m["variant"] == variant)
    return f"{sum(values) / len(values):.3g}"


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
