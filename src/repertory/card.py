"""What a system declares: its card, its configuration, its claims. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import pydantic
import yaml

from repertory.errors import ConfigError, nearest

VERBS = ("predict", "generate", "score", "explain", "attack", "search", "act", "analyze")
SECTIONS = (
    "Purpose", "Inputs", "Outputs", "Method", "Results", "Claim", "Differences", "Limits", "Citation",
)  # fmt: skip

ADDRESS = "encoder address"
EncoderAddress = Annotated[str, ADDRESS]
"""A config field of this type holds an address; the catalog resolves it and injects the encoder."""


class Card(pydantic.BaseModel, extra="forbid", frozen=True):
    """The front matter of a system's ``card.md`` and the prose below it."""

    slug: str = pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str
    system: str = pydantic.Field(description="name of the System subclass in the system's package")
    families: tuple[str, ...]
    kind: str = pydantic.Field(description="kind of data, as in repertory.data")
    key: tuple[str, ...] = pydantic.Field(description="the columns that say what one vector stands for")
    inductive: bool = True
    verbs: tuple[str, ...] = ()
    sample: str = pydantic.Field(description="the source used without --data")
    check: str = pydantic.Field(description="a small source for the contract suite")
    metrics: tuple[str, ...] = pydantic.Field(description="what evaluate returns on the sample, at least")
    paper: str
    authors: str
    venue: str
    arxiv: str | None = None
    code: str = pydantic.Field(description="the official code: repository @ commit, licence")
    licence: str = pydantic.Field(description="what a user must know about the licences of code, data, weights")
    prose: str = ""

    @pydantic.field_validator("verbs")
    @classmethod
    def _known_verbs(cls, verbs: tuple[str, ...]) -> tuple[str, ...]:
        for verb in verbs:
            if verb not in VERBS:
                raise ValueError(f"unknown verb '{verb}'{nearest(verb, VERBS)}")
        return verbs

    @classmethod
    def read(cls, path: Path) -> Card:
        """Reads ``card.md``.

        Raises:
            ConfigError: the front matter is missing or does not fit, with the file and the field.
        """
        text = path.read_text(encoding="utf-8")
        match = re.match(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
        if match is None:
            raise ConfigError(f"{path}: no front matter between two lines '---'")
        try:
            return cls(**yaml.safe_load(match[1]), prose=match[2].strip())
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    @cached_property
    def sections(self) -> dict[str, str]:
        """The prose by its ``## `` headings."""
        parts = re.split(r"^## +(.+)$", self.prose, flags=re.MULTILINE)
        return {title.strip(): body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}

    @property
    def purpose(self) -> str:
        """The first paragraph of the section Purpose, on one line."""
        return " ".join(self.sections.get("Purpose", self.title).split("\n\n")[0].split())


class Config(pydantic.BaseModel, extra="forbid", frozen=True, validate_default=True):
    """Every hyperparameter of a system with its default (the paper's) and its description.

    A subclass adds fields and may add presets: ``presets = {"tiny": {"dim": 16}}``.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def build(cls, preset: str | None = None, **values: Any) -> Self:
        """The configuration of a preset with ``values`` on top; ``a.b`` sets an entry of a mapping.

        Raises:
            ConfigError: an unknown preset or field (with the nearest valid name), or a value that does not fit.
        """
        if preset is not None and preset not in cls.presets:
            raise ConfigError(f"unknown preset '{preset}'{nearest(preset, cls.presets)}")
        merged: dict[str, Any] = {**(cls.presets[preset] if preset else {})}
        for name, value in values.items():
            field_name, _, entry = name.partition(".")
            if field_name not in cls.model_fields:
                raise ConfigError(f"unknown option '{field_name}'{nearest(field_name, cls.model_fields)}")
            if entry:
                info = cls.model_fields[field_name]
                whole = merged.get(field_name, info.get_default(call_default_factory=True))
                if not isinstance(whole, Mapping):
                    raise ConfigError(f"{name}: '{field_name}' has no entries")
                value = {**whole, entry: value}
            merged[field_name] = value
        try:
            return cls(**merged)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{where + ': ' if where else ''}{message} (got {first['input']!r})") from None

    def to_yaml(self) -> str:
        """YAML from which ``from_yaml`` makes an equal configuration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """The configuration in ``text``; unknown keys are errors, as in ``build``."""
        return cls.build(**(yaml.safe_load(text) or {}))


@dataclass(frozen=True)
class Claim:
    """A finding of a paper, small: variants with equal budgets, compared on one metric.

    ``variants`` maps a name to a function of the seed that trains, measures on held-out data and
    returns the metric. The first variant is the method. The claim is *reproduced* where the method
    beats every variant named in ``baselines`` by more than ``margin`` (see ``repertory.experiments``).

    ``on``, where the question makes sense elsewhere, maps names of variants, the method first, to functions of
    (splits, seed) that ask it of any data of the system's kind; None: of the claim's own data alone.
    """

    name: str
    finding: str
    paper: str
    data: str
    metric: str
    variants: Mapping[str, Callable[[int], float]]
    baselines: tuple[str, ...]
    margin: float = 0.0
    higher_is_better: bool = True
    seeds: int = 3
    chance: float | None = None
    unit: str = ""
    notes: str = ""
    on: Mapping[str, Callable[[Any, int], float]] | None = None
    method: str = field(init=False)

    def __post_init__(self) -> None:
        names = list(self.variants)
        object.__setattr__(self, "method", names[0])
        if not self.baselines:
            raise ConfigError(f"claim '{self.name}': there is no baseline to compare with")
        for name in self.baselines:
            if name not in names[1:]:
                raise ConfigError(f"claim '{self.name}': no variant '{name}'{nearest(name, names[1:])}")
        asked = list(self.on or names)
        if len(asked) < 2 or asked[0] != self.method or set(asked) - set(names):
            raise ConfigError(f"claim '{self.name}': 'on' needs {self.method}, then others of {', '.join(names[1:])}")
