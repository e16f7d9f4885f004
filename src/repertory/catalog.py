"""The catalog: which systems there are, and how to get one. Imports a system only when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repertory.card import ADDRESS, Card, Claim
from repertory.errors import UserError, nearest

if TYPE_CHECKING:
    from repertory.contract import System
    from repertory.encoders import Encoder

SYSTEMS = Path(__file__).parent / "systems"
GROUP = "repertory.systems"
"""Entry points of other packages: ``my_system = "my_package.my_system"``, a package with a ``card.md``."""


@dataclass(frozen=True)
class Entry:
    """A system that can be asked for: its card, and where its code is."""

    card: Card
    module: str

    def load(self) -> type[System]:
        """Imports the system.

        Raises:
            UserError: its package does not hold what its card names.
        """
        package = importlib.import_module(self.module)
        try:
            system: type[System] = getattr(package, self.card.system)
        except AttributeError:
            raise UserError(f"{self.module} has no '{self.card.system}', which its card.md names") from None
        return system

    def claims(self) -> tuple[Claim, ...]:
        """The system's claims, from ``claim.py``."""
        if importlib.util.find_spec(f"{self.module}.claim") is None:
            return ()
        claims: tuple[Claim, ...] = importlib.import_module(f"{self.module}.claim").CLAIMS
        return claims


@cache
def entries() -> dict[str, Entry]:
    """All systems by slug: those here, and those that other packages announce."""
    found = {}
    for path in sorted(SYSTEMS.glob("*/card.md")):
        found[path.parent.name] = Entry(Card.read(path), f"repertory.systems.{path.parent.name}")
    for point in entry_points(group=GROUP):
        spec = importlib.util.find_spec(point.value)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"entry point '{point.name}' of group {GROUP}: no package '{point.value}'")
        card = Card.read(Path(next(iter(spec.submodule_search_locations))) / "card.md")
        if card.slug in found:
            raise UserError(f"'{card.slug}' of {point.value} is already the slug of {found[card.slug].module}")
        found[card.slug] = Entry(card, point.value)
    return found


def entry(slug: str) -> Entry:
    """The entry of a slug.

    Raises:
        UserError: there is none, with the nearest.
    """
    known = entries()
    if slug not in known:
        raise UserError(f"no system '{slug}'{nearest(slug, known)}")
    return known[slug]


def list_systems(family: str | None = None) -> list[Card]:
    """The cards of all systems, or of a family."""
    return [e.card for e in entries().values() if family is None or family in e.card.families]


def create(slug: str, preset: str | None = None, **settings: Any) -> System:
    """A new system: its configuration from a preset and settings, its encoders from their addresses.

    ``create("symile", dim=128)``; ``create("symile", "tiny", encoders={"image": "run:runs/chexworld"})``.
    """
    system = entry(slug).load()
    config = system.Config.build(preset, **settings)
    return system(config, encoder=_encoders(config))


def load(path: str | Path) -> System:
    """The system of a run directory, of whichever slug."""
    from repertory.runs import Run

    run = Run.open(path)
    system = entry(run.record["slug"]).load()
    encoders = {name: _rebuilt(made) for name, made in run.record.get("encoders", {}).items()}
    return system.load(path, encoder=encoders.get("") or encoders or None)


def encoder(address: str) -> Encoder:
    """The encoder at an address: ``run:RUN``, ``timm:NAME``, ``hf:NAME``, ``file:PATH?arch=NAME``."""
    from repertory.encoders import resolve

    if address.startswith("run:"):
        path = address.removeprefix("run:")
        system = load(path)
        found = system.encoder
        found.address = address
        found.recipe = system.recipe
        return found
    return resolve(address)


def _encoders(config: Any) -> Encoder | dict[str, Encoder] | None:
    """Resolves the fields of a configuration that hold encoder addresses; fresh weights are the same each time."""
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if value and (ADDRESS in info.metadata or ADDRESS in repr(info.annotation)):
            from repertory.runs import seeded

            with seeded("encoders"):
                if isinstance(value, Mapping):
                    return {key: encoder(address) for key, address in value.items()}
                return encoder(value)
    return None


def _rebuilt(made: Mapping[str, Any]) -> Encoder:
    """An encoder as a run was fitted with; unless it is public and frozen, its weights are the run's."""
    from repertory.encoders import from_transformers_config, resolve

    if made["by_reference"]:
        return resolve(made["address"])
    if made["recipe"] and "transformers" in made["recipe"]:
        return from_transformers_config(made["recipe"]["transformers"], made["address"])
    if made["recipe"]:
        found = entry(made["recipe"]["slug"]).load().from_recipe(made["recipe"]).encoder
        found.address, found.recipe = made["address"], made["recipe"]
        return found
    if made["skeleton"] is None:
        raise UserError("the run starts from an encoder made in Python: use its system's load(path, encoder=...)")
    return resolve(made["skeleton"])
