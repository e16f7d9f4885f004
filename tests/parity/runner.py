"""Reads parity fixtures, runs a system's adapter on them and compares every output.

A fixture is ``<part>.json`` (config, tolerance, notes) and ``<part>.safetensors`` (tensors whose
names start with ``in.``, ``state.`` or ``out.``). An adapter module holds
``PARTS: dict[str, Callable[[Fixture], dict[str, Tensor]]]``.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FIXTURES = Path(__file__).parent / "fixtures"


@dataclass(frozen=True)
class Fixture:
    """One part of one system: ``inputs``, ``state`` and ``outputs`` without their prefixes."""

    slug: str
    name: str
    config: dict[str, Any]
    tolerance: dict[str, float]
    inputs: dict[str, Tensor]
    state: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def part(self) -> str:
        """The name without the mark of a further variant: ``loss_n_b2`` is of part ``loss_n``."""
        return re.sub(r"_b\d*$", "", self.name)

    @classmethod
    def read(cls, path: Path) -> Fixture:
        meta = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(path.with_suffix(".safetensors"))

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        return cls(
            slug=path.parent.name,
            name=path.stem,
            config=meta.get("config", {}),
            # words ("exact integers") allow no difference
            tolerance=meta["tolerance"] if isinstance(meta["tolerance"], dict) else {"rtol": 0.0, "atol": 0.0},
            inputs=under("in."),
            state=under("state."),
            outputs=under("out."),
        )


def fixtures(root: Path = FIXTURES, slug: str | None = None) -> Iterator[Path]:
    """Paths of the fixtures under ``root`` whose system has an adapter here (or of one system)."""
    for path in sorted(root.glob("*/*.json")):
        adapted = (Path(__file__).parent / "adapters" / f"{path.parent.name}.py").exists()
        if path.parent.name == slug or (slug is None and adapted):
            yield path


def differences(fixture: Fixture) -> list[str]:
    """What does not match, one line per output; empty when the part passes."""
    parts = importlib.import_module(f"tests.parity.adapters.{fixture.slug}").PARTS
    run = parts.get(fixture.name) or parts.get(fixture.part)
    if run is None:
        return [f"no adapter for part '{fixture.part}'"]
    actual = run(fixture)
    wrong = [
        f"{name}: the adapter returns what the fixture does not hold" for name in actual.keys() - fixture.outputs.keys()
    ]
    for name, expected in fixture.outputs.items():
        if name not in actual:
            wrong.append(f"{name}: not returned")
            continue
        value = torch.as_tensor(actual[name]).detach().cpu()
        if value.shape != expected.shape:
            wrong.append(f"{name}: shape {tuple(value.shape)}, expected {tuple(expected.shape)}")
            continue
        try:
            torch.testing.assert_close(
                value.to(torch.float64),
                expected.to(torch.float64),
                rtol=fixture.tolerance["rtol"],
                atol=fixture.tolerance["atol"],
                equal_nan=True,
            )
        except AssertionError:
            gap = (value.to(torch.float64) - expected.to(torch.float64)).abs().max().item()
            wrong.append(f"{name}: largest difference {gap:.3g}, tolerance {fixture.tolerance}")
    return wrong
