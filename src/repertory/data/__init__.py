"""Data: opened and checked in one place.

``open(source, kind)`` is called by the public verbs of a system; everything behind it sees clean,
typed items with labels, groups and times, already divided into splits.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from repertory.data.items import ROLES, Items, Preview, Reader, digest, finite, packed
from repertory.data.source import Source, as_text
from repertory.data.splits import NAMES, Rejected, Splits
from repertory.errors import DataError, nearest

__all__ = ["KINDS", "Items", "Preview", "Reader", "Rejected", "Splits", "digest", "finite", "kind_of", "open"]

KINDS = {
    "circuits": "Circuits", "database": "Rows", "events": "Events", "graph": "Nodes",
    "images": "Images", "interactions": "Interactions", "manifest": "Manifest", "music": "Music",
    "trajectories": "Trajectories",
}  # fmt: skip
"""Kinds of data: the module here and its class."""
MAX_BAD = 0.001
CHUNK = 4096
"""Items, at most, that a thread checks at a time."""
OPTIONS = (*ROLES, "split", "on_error", "max_bad", "layout")


def kind_of(name: str) -> type[Items]:
    """The class of a kind of data."""
    if name not in KINDS:
        raise DataError(f"unknown kind of data '{name}'{nearest(name, KINDS)}")
    items: type[Items] = getattr(importlib.import_module(f"repertory.data.{name}"), KINDS[name])
    return items


def open(source: Any, kind: str | None = None, readers: Iterable[Reader] = (), **options: Any) -> Splits:
    """Opens, checks and divides data.

    Args:
        source: a sample's name, a path, ``kind:path?label=income&on_error=skip``, a YAML file with the same
            keys, an in-memory object of the field, ``Items`` or ``Splits``.
        kind: the kind that the caller needs; None takes what the source says.
        readers: layouts known to the caller, tried before the kind's own.
        **options: as in a source (``label="income"``, ``on_error="skip"``), for objects in memory too.

    Raises:
        DataError: nothing there, another kind, an unknown option, a missing column, an unusable item.
    """
    if isinstance(source, Splits):
        if options:
            raise DataError(f"{source.source}: is opened already: {', '.join(options)} cannot be honoured")
        if kind is not None and source.all.kind != kind:
            raise DataError(f"{source.source}: {source.all.kind} given, {kind} needed")
        return source
    parsed = Source.parse(source, tuple(KINDS))
    parsed.options.update({name: as_text(value) for name, value in options.items()})
    if kind is not None and parsed.kind not in (None, kind):
        raise DataError(f"{parsed.name}: {parsed.kind} given, {kind} needed")
    if parsed.parts:
        return _open_parts(parsed, kind, readers)
    items = _read(parsed, kind, tuple(readers))
    if kind is not None and items.kind != kind:
        raise DataError(f"{parsed.name}: {items.kind} given, {kind} needed")
    roles = {role: tuple(parsed.options[role].split(",")) for role in ROLES if role in parsed.options}
    for names in roles.values():
        for name in names:
            if name not in items.columns.column_names:
                raise DataError(f"{parsed.name}: no column '{name}'{nearest(name, items.columns.column_names)}")
    if roles:
        items = copy.copy(items)
        items.roles = {**items.roles, **roles}
    items, rejected = _checked(items, parsed)
    return _divided(items, parsed, rejected)


def _open_parts(parsed: Source, kind: str | None, readers: Iterable[Reader]) -> Splits:
    """Joins parts that lie in several places: only their ids, columns and objects, nothing is copied."""
    if "split" in parsed.options:
        raise DataError(f"{parsed.name}: split={parsed.options['split']}, but it names the splits itself")
    readers = tuple(readers)
    opened = {
        part: open(source, kind or parsed.kind, readers, **parsed.options) for part, source in parsed.parts.items()
    }
    first = next(iter(opened.values())).all
    joined = first.concat([splits.all for splits in opened.values()], list(opened))
    assigned = np.concatenate([np.full(len(s.all.units), part, dtype=object) for part, s in opened.items()])
    rejected = [r for s in opened.values() for r in s.rejected]
    return Splits(joined, parsed.address, "source", rejected, assigned)


def _read(parsed: Source, kind: str | None, readers: tuple[Reader, ...]) -> Items:
    options = {name: value for name, value in parsed.options.items() if name not in OPTIONS}
    if isinstance(parsed.target, Items):
        _accepted(lambda: None, options, parsed.name, skip=())
        return parsed.target
    if not isinstance(parsed.target, str):
        wrap = kind_of(kind or parsed.kind or _needs_kind(parsed.name)).wrap
        return wrap(parsed.target, **_accepted(wrap, options, parsed.name, skip=("source",)))
    from repertory.data import samples

    sample = samples.SAMPLES.get(parsed.target)
    if sample is not None and not Path(parsed.target).exists():
        return sample.load(**_accepted(sample.build, options, parsed.name, skip=("packages",)))
    path = Path(parsed.target)
    if not path.exists():
        raise DataError(f"{parsed.target}: no such file, folder or sample{nearest(parsed.target, samples.SAMPLES)}")
    known = (*readers, *kind_of(kind or parsed.kind or _needs_kind(parsed.name)).readers)
    layout = parsed.options.get("layout")
    if layout is not None:
        chosen = [reader for reader in known if reader.name == layout]
        if not chosen:
            raise DataError(f"{parsed.name}: unknown layout '{layout}'{nearest(layout, [r.name for r in known])}")
    else:
        chosen = [reader for reader in known if reader.matches(path)]
        if not chosen:
            layouts = "; ".join(f"{reader.name} ({reader.about})" for reader in known)
            raise DataError(f"{path}: in no layout known here: {layouts}")
    return chosen[0].read(path, **_accepted(chosen[0].read, options, parsed.name, skip=("path",)))


def _needs_kind(name: str) -> str:
    raise DataError(f"{name}: say which kind of data it is: kind:path, with kind one of {', '.join(KINDS)}")


def _accepted(read: Any, options: dict[str, str], name: str, skip: tuple[str, ...]) -> dict[str, Any]:
    """The options converted to the types that ``read`` declares."""
    parameters = {k: p for k, p in inspect.signature(read, eval_str=True).parameters.items() if k not in skip}
    converted: dict[str, Any] = {}
    for option, value in options.items():
        if option not in parameters:
            raise DataError(f"{name}: unknown option '{option}'{nearest(option, [*parameters, *OPTIONS])}")
        default = parameters[option].default
        try:
            if isinstance(default, bool):
                converted[option] = {"true": True, "false": False}[value.lower()]
            else:
                converted[option] = type(default)(value) if isinstance(default, (int, float)) else value
        except (ValueError, KeyError):
            raise DataError(f"{name}: {option}={value}: expected {type(default).__name__}") from None
    return converted


def _checked(items: Items, parsed: Source) -> tuple[Items, list[Rejected]]:
    """Reads every item once; bad ones are an error, or left out and listed with ``on_error=skip``."""
    on_error = parsed.options.get("on_error", "raise")
    if on_error not in ("raise", "skip"):
        raise DataError(f"{parsed.name}: on_error={on_error}: expected raise or skip")
    try:
        max_bad = float(parsed.options.get("max_bad", MAX_BAD))
    except ValueError:
        raise DataError(f"{parsed.name}: max_bad={parsed.options['max_bad']}: expected a share such as 0.01") from None
    if not len(items):
        raise DataError(f"{parsed.name}: empty: there is no item in it")
    units = items.units
    if units.digests is not None:
        return items, []

    def check(index: int) -> tuple[str | None, str]:
        try:
            return units.check(index), ""
        except DataError as error:
            if on_error == "raise":
                raise DataError(f"{parsed.name}: {units.ids[index]}: {error}") from None
            return None, str(error)

    digests, good = np.empty((len(units), 16), np.uint8), np.ones(len(units), dtype=bool)
    rejected = []
    size = min(CHUNK, -(-len(units) // 64))
    parts = [range(start, min(start + size, len(units))) for start in range(0, len(units), size)]
    with ThreadPoolExecutor(4) as pool:
        for part, results in zip(parts, pool.map(lambda part: list(map(check, part)), parts), strict=True):
            for index, (value, reason) in zip(part, results, strict=True):
                if value is None:
                    good[index] = False
                    rejected.append(Rejected(str(units.ids[index]), reason))
                else:
                    digests[index] = packed([value])[0]
    if len(rejected) > max_bad * len(units):
        raise DataError(
            f"{parsed.name}: {len(rejected)} of {len(units)} items are unusable (first: {rejected[0].id}: "
            f"{rejected[0].reason}); mend them, or allow more with max_bad=SHARE"
        )
    if rejected and not good.any():
        raise DataError(f"{parsed.name}: no item is usable (first: {rejected[0].id}: {rejected[0].reason})")
    usable = items.part(good) if rejected else items
    usable.units.digests = digests[good] if rejected else digests
    return usable, rejected


def _divided(items: Items, parsed: Source, rejected: list[Rejected]) -> Splits:
    rule = parsed.options.get("split")
    units = items.units
    if rule is None and "split" in units.columns.column_names:
        names = units.column("split")
        unknown = sorted({str(name) for name in names} - set(NAMES))
        if unknown:
            raise DataError(f"{parsed.name}: split '{unknown[0]}'{nearest(unknown[0], NAMES)}")
        return Splits(items, parsed.address, "source", rejected, np.array([NAMES[n] for n in names], dtype=object))
    if rule is None and units.roles.get("group"):
        rule = f"group:{units.roles['group'][0]}"
    return Splits(items, parsed.address, rule or items.rule, rejected)
