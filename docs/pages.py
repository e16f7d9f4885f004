"""A hook of MkDocs: pages from what is written once elsewhere (cards, configurations, results, README, readers).

A line ``{{ name }}`` or ``{{ name(argument) }}`` in a page stands for what the function ``name`` in ``TEXTS`` returns.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from repertory import catalog
from repertory.card import Card
from repertory.data import KINDS, kind_of
from repertory.data.samples import SAMPLES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from docs.tables import mean, parts, read_json, systems, times  # noqa: E402

COMMIT = re.compile(r"(?<=@ [0-9a-f]{7})[0-9a-f]+")
"""What a short commit leaves out."""
MOVED = {
    "docs/": "", "ARCHITECTURE.md": "architecture.md", "CONTRIBUTING.md": "adding-a-system.md",
}  # fmt: skip
"""Where the repository's own pages are on the site."""


# -- what stands elsewhere ---------------------------------------------------------------------------------------------


def section(file: str, first: str = "", last: str = "") -> str:
    """A Markdown file of the repository from its heading ``first`` (else: after its title) up to ``last``."""
    text = (ROOT / file).read_text(encoding="utf-8")
    text = text[text.index(f"## {first}\n") :] if first else text.split("\n", 1)[1]
    text = text[: text.index(f"\n## {last}\n")] if last else text
    for here, there in MOVED.items():
        text = text.replace(f"]({here}", f"]({there}")
    return text.strip()


def code(file: str) -> str:
    """A file of the repository as a block of code."""
    language = {".py": "python", ".md": "markdown"}[Path(file).suffix]
    return f'```{language} title="{Path(file).name}"\n{(ROOT / file).read_text(encoding="utf-8").strip()}\n```'


def system_rows(folder: str = "") -> str:
    """The README's table of systems, with links to their pages in ``folder``."""
    return re.sub(r"^\| \*\*(\w+)\*\*", rf"| [**\1**]({folder}\1.md)", systems(), flags=re.MULTILINE)


def layouts(kind: str) -> str:
    """The layouts of a kind of data: those that every system reads, and those of single systems."""
    rows = ["| layout | what it is | options | read by |", "|---|---|---|---|"]
    known = [(reader, "every system") for reader in kind_of(kind).readers]
    for slug, entry in catalog.entries().items():
        if entry.card.kind == kind:
            known += [(reader, f"[{slug}](systems/{slug}.md)") for reader in entry.load().readers]
    for reader, who in known:
        options = [f"`{name}`" for name in list(inspect.signature(reader.read).parameters)[1:]]
        rows.append(f"| `{reader.name}` | {_cell(reader.about)} | {' '.join(options)} | {who} |")
    return "\n".join(rows)


def kinds() -> str:
    """A line for each kind of data."""
    rows = ["| kind | an item is | systems |", "|---|---|---|"]
    for kind in KINDS:
        who = [f"[{slug}](systems/{slug}.md)" for slug, e in catalog.entries().items() if e.card.kind == kind]
        about = (inspect.getdoc(kind_of(kind)) or "").split("\n")[0]
        rows.append(f"| `{kind}` | {_cell(about.rstrip('.'))} | {', '.join(who)} |")
    return "\n".join(rows)


def samples() -> str:
    """The samples."""
    rows = ["| sample | kind | what it is | licence |", "|---|---|---|---|"]
    rows += [f"| `{s.name}` | `{s.kind}` | {_cell(s.about)} | {_cell(s.licence)} |" for s in SAMPLES.values()]
    return "\n".join(rows)


TEXTS: dict[str, Callable[..., str]] = {
    "section": section, "code": code, "system_rows": system_rows, "layouts": layouts, "kinds": kinds,
    "samples": samples,
}  # fmt: skip


# -- a page for each system --------------------------------------------------------------------------------------------


def page(card: Card, config: Any, module: str) -> str:
    """A system: its card, what was measured here, its configuration, its building blocks."""
    paper = f"[{card.paper}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else card.paper
    text = [
        f"# {card.title}",
        f"{card.authors}. {paper}. {card.venue}.\n{{ .facts }}",
        "```bash\n" + "\n".join(commands(card)) + "\n```",
        f"| | |\n|---|---|\n| learns&nbsp;from | [`{card.kind}`](../your-data.md#{card.kind}) |\n"
        f"| one&nbsp;vector&nbsp;is&nbsp;of | {', '.join(f'`{name}`' for name in card.key)}"
        f"{'' if card.inductive else ' (of what it was fitted to)'} |\n"
        f"| families | {', '.join(card.families)} |\n"
        f"| verbs | {', '.join(('fit', 'embed', 'evaluate', *card.verbs))} |\n"
        f"| sample | `{card.sample}` |\n"
        f"| official&nbsp;code | {_cell(COMMIT.sub('', card.code))} |\n"
        f"| licences | {_cell(card.licence)} |",
    ]
    for title, body in card.sections.items():
        text.append(f"## {title}\n\n{body}")
        if title == "Claim":
            text.append(measured(card.slug))
    return "\n\n".join([*text, configuration(config), blocks(module)]) + "\n"


def commands(card: Card) -> list[str]:
    """The first commands of a newcomer."""
    run = f"runs/{card.slug}"
    return [f"repertory fit {card.slug}", f"repertory evaluate {run}", f"repertory embed {run}"]


def measured(slug: str) -> str:
    """What was measured here: parity, claims, speed."""
    text = []
    if claims := read_json("claims/results.json").get(slug):
        text.append("### Measured here")
        text.append("Means over the seeds; the gap is to the best baseline, with its paired 95 % interval. "
                    "The rule is in [Evaluating](../evaluating.md#claims).")  # fmt: skip
        rows = ["| claim | method | baseline | gap | verdict |", "|---|---|---|---|---|"]
        for name, r in claims.items():
            rows.append(
                f"| **{name}**: {_cell(r['finding'])} | {r['method']} {mean(r, r['method']):.3g} | "
                f"{r['baseline']} {mean(r, r['baseline']):.3g} | "
                f"{r['gap']:.3g} ({r['gap_low']:.3g} to {r['gap_high']:.3g}) | "
                f"<span class='verdict'>{r['verdict']}</span> |"
            )
        text.append("\n".join(rows))
    if number := parts(slug):
        text.append(f"{number} parts that were computed by the official code are reproduced at their tolerance: "
                    f"`python -m tests.parity --slug {slug}`.")  # fmt: skip
    speeds = {name: e for name, e in read_json("benchmarks/results.json").get(slug, {}).items() if "ratio" in e}
    if speeds:
        rows = ["| step | against the straightforward form | sizes |", "|---|---|---|"]
        for name, e in speeds.items():
            sizes = ", ".join(f"{k} {v}" for k, v in e.get("sizes", {}).items())
            rows.append(f"| {name} | {times(e['ratio'])} as fast | {_cell(sizes)} |")
        text.append("\n".join(rows))
    return "\n\n".join(text)


def configuration(config: Any) -> str:
    """Every hyperparameter, and what the presets change."""
    presets = config.presets
    rows = ["## Configuration", "",
            "The defaults are the paper's. `--set name=value` changes one; `--preset` takes a column.", "",
            f"| option | default | {' | '.join(f'`{name}`' for name in presets)} | meaning |",
            "|---|---|" + "---|" * len(presets) + "---|"]  # fmt: skip
    for name, field in config.model_fields.items():
        default = field.get_default(call_default_factory=True)
        cells = [_value(values[name]) if name in values else "" for values in presets.values()]
        rows.append(f"| `{name}` | {_value(default)} | {' | '.join(cells)} | {_cell(field.description or '')} |")
    return "\n".join(rows)


def blocks(module: str) -> str:
    """The system and the building blocks that its package exports."""
    names = importlib.import_module(module).__all__
    own = [f"::: {module}.{name}\n    options: {{heading_level: 3}}" for name in names]
    return "\n\n".join([f"## Building blocks\n\nAll of them can be imported from `{module}`.", *own])


def _cell(text: str) -> str:
    """Plain text as Markdown in a cell; what stands between double backticks is code."""
    plain, *rest = " ".join(text.split()).split("``")
    pieces = [re.sub(r"([*_<>\[\]|])", r"\\\1", plain)]
    for i, piece in enumerate(rest):
        pieces.append(f"`{piece}`" if i % 2 == 0 else re.sub(r"([*_<>\[\]|])", r"\\\1", piece))
    return "".join(pieces)


def _value(value: Any) -> str:
    return f"`{value}`".replace("|", "\\|") if value not in ("", None) else "–"


# -- MkDocs ------------------------------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lists the pages of the systems in the navigation."""
    pages = [{card.title: f"systems/{card.slug}.md"} for card in catalog.list_systems()]
    for entry in config.nav or []:
        if entry.get("Systems") == "systems/":
            entry["Systems"] = ["systems/index.md", *pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the systems."""
    for slug, entry in catalog.entries().items():
        text = page(entry.card, entry.load().Config, entry.module)
        files.append(File.generated(config, f"systems/{slug}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills in what stands elsewhere."""

    def fill(match: re.Match[str]) -> str:
        return TEXTS[match[1]](*(argument.strip() for argument in match[2].split(",")) if match[2] else ())

    return re.sub(r"^\{\{ (\w+)(?:\((.*)\))? \}\}$", fill, markdown, flags=re.MULTILINE)
