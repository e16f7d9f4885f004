"""The documentation does what it says: every command and every example in README.md and docs/ is run, as written.

What takes long is cut short, and nothing else is changed:

- a sample is the small source that the card of its system names for checks (``check``);
- ``fit`` without ``--steps`` makes one pass over the data, and on files takes the preset ``tiny``, which fits a laptop;
- ``fit`` on several devices takes one, and ``embed --engine ray`` this process; ``explore`` starts its server and ends
  it at once;
- the variants of a claim return numbers at once.

The files that the examples name (``patients.csv``, ``scans/``, ``midi/``, ...) are made in the folder where they run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from docs import pages
from repertory import catalog, experiments
from repertory.cli import main
from repertory.data.notes import write_midi
from repertory.data.samples import Sample
from repertory.data.source import Source

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(bash|python|yaml title=\"([^\"\n]+)\")[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language, file name and text of the fenced blocks that run."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language.split()[0], file, text) for language, file, text in found]


def commands(text: str) -> list[list[str]]:
    """The lines of a bash block, without comments and with continued lines joined."""
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [words for words in lines if words]


# -- the reader's own files --------------------------------------------------------------------------------------------


def picture(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the examples name."""
    rng = np.random.default_rng(0)
    rows = ["xray,report,finding,patient"]
    for i in range(40):
        picture(tmp_path / f"xrays/{i:02d}.png", rng)
        rows.append(f"xrays/{i:02d}.png,the lungs of case {i} are clear,{'edema' if i % 2 else 'none'},p{i // 2}")
    (tmp_path / "patients.csv").write_text("\n".join(rows) + "\n")
    for i in range(30):
        picture(tmp_path / f"scans/{i:02d}.png", rng)
        picture(tmp_path / f"old-archive/{i:02d}.png", rng)
        picture(tmp_path / f"classes/{'finding' if i % 2 else 'normal'}/{i:02d}.png", rng)
    (tmp_path / "old-archive/30.png").write_bytes(b"not an image")
    for hospital in "ab":
        rows = ["file,finding,patient"]
        for i in range(20):
            picture(tmp_path / f"hospital-{hospital}/{i:02d}.png", rng)
            rows.append(f"{i:02d}.png,{'edema' if i % 2 else 'none'},{hospital}{i // 2}")
        (tmp_path / f"hospital-{hospital}/scans.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "midi").mkdir()
    for i in range(12):
        notes = [(beat, 1, pitch) for beat in range(64) for pitch in rng.choice(np.arange(48, 72), 3, replace=False)]
        write_midi(np.array(notes, dtype=float), tmp_path / f"midi/{i:02d}.mid")
    meetings = [f"{'abcdefgh'[i % 8]},{'abcdefgh'[(i + 1 + i % 7) % 8]},{i}" for i in range(200)]
    (tmp_path / "meetings.csv").write_text("source,target,time\n" + "\n".join(meetings) + "\n")
    (tmp_path / "shop").mkdir()
    customers = [f"{i},2024-01-{1 + i % 20:02d},{20 + i}" for i in range(30)]
    (tmp_path / "shop/customers.csv").write_text("\n".join(["id,joined,age", *customers]) + "\n")
    days = np.datetime64("2024-01-25") + rng.integers(0, 170, 400)
    orders = [f"{day},{rng.integers(30)},{rng.uniform(1, 9):.2f}" for day in np.sort(days)]
    (tmp_path / "shop/orders.csv").write_text("\n".join(["placed,customer,price", *orders]) + "\n")
    (tmp_path / "citations").mkdir()
    papers = [
        f"p{i},{'theory' if i % 2 else 'practice'}," + ",".join(map(str, rng.poisson(1 + i % 2, 4))) for i in range(80)
    ]
    (tmp_path / "citations/nodes.csv").write_text("\n".join(["id,label,a,b,c,d", *papers]) + "\n")
    cited = {(i, j) for i in range(80) for j in rng.integers(80, size=3) if i < j}
    (tmp_path / "citations/edges.csv").write_text(
        "\n".join(["source,target", *(f"p{i},p{j}" for i, j in sorted(cited))]) + "\n"
    )
    (tmp_path / "store").mkdir()
    bought = [f"u{i},{j},{rng.integers(1, 6)}" for i in range(40) for j in rng.choice(30, 8, replace=False)]
    (tmp_path / "store/interactions.csv").write_text("\n".join(["user,item,rating", *bought]) + "\n")
    goods = [f"{j},thing {j},{'red' if j % 2 else 'blue'} thing of size {j % 5}" for j in range(30)]
    (tmp_path / "store/items.csv").write_text("\n".join(["id,title,text", *goods]) + "\n")
    (tmp_path / "netlists").mkdir()
    for i in range(12):
        gates = [f"  {rng.choice(['and', 'or', 'xor', 'nand'])} (w[{g}], {a}, {b});" for g in range(12) for a, b in [
            rng.choice([f"x[{n}]" for n in range(4)] + [f"w[{n}]" for n in range(g)], 2, replace=False)]]  # fmt: skip
        lines = [f"module m{i} (x, y);", "  input [3:0] x;", "  output y;", "  wire [11:0] w;", *gates]
        (tmp_path / f"netlists/m{i}.v").write_text("\n".join([*lines, "  buf (y, w[11]);", "endmodule", ""]))
    names = [f"{'finding' if i % 2 else 'normal'}/{i:02d}.png" for i in range(30)]
    vectors = ["id," + ",".join(f"x{d}" for d in range(4))]
    vectors += [f"{name}," + ",".join(f"{x:.3f}" for x in rng.normal(size=4)) for name in names]
    (tmp_path / "mine.csv").write_text("\n".join(vectors) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- what is cut short -------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small samples, claims that cost nothing, a server that ends."""
    small = {}
    for card in catalog.list_systems():
        parsed = Source.parse(card.check, ())
        small[parsed.target] = parsed.options
    load, run = Sample.load, experiments.run_claims
    converted = lambda options: {name: int(v) if v.isdigit() else v for name, v in options.items()}
    monkeypatch.setattr(
        Sample, "load", lambda self, **options: load(self, **{**converted(small.get(self.name, {})), **options})
    )
    at_once = lambda claim: replace(
        claim, variants={name: lambda seed, n=n: 1.0 / (n + 1) for n, name in enumerate(claim.variants)}
    )
    monkeypatch.setattr(
        experiments, "run_claims", lambda slug, claims, *rest: run(slug, list(map(at_once, claims)), *rest[:-1])
    )
    monkeypatch.setattr("werkzeug.serving.BaseWSGIServer.serve_forever", lambda self: None)


def cut(words: list[str]) -> list[str]:
    """A command, cut short where it would take long."""
    for option in ("--devices", "--strategy", "--precision", "--engine"):
        if option in words:
            at = words.index(option)
            words = [*words[:at], *words[at + 2 :]]
    if words[:2] == ["repertory", "explore"]:
        return [*words, "--port", "0"]  # any free one
    if words[:2] != ["repertory", "fit"]:
        return words
    if "--data" in words and "--preset" not in words:
        words = [*words, "--preset", "tiny"]
    if not {"--steps", "--epochs"} & set(words):
        words = [*words, "--epochs", "1"]
    return words


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.usefixtures("short")
def test_page_runs_as_written(page, desk, capsys):
    names: dict = {}
    for language, file, text in blocks(page):
        if language == "yaml":
            (desk / file).write_text(text)
        elif language == "python":
            exec(compile(text, str(page), "exec"), names)
        else:
            for words in commands(text):
                assert words[0] == "repertory", f"{page.name}: {' '.join(words)}: not a command of repertory"
                code = main(cut(words)[1:])
                said = capsys.readouterr()
                assert code == 0, f"{page.name}: {' '.join(words)}\n{said.err}"


@pytest.mark.parametrize("slug", catalog.entries())
@pytest.mark.usefixtures("short", "desk")
def test_page_of_a_system_runs_as_written(slug, capsys):
    for line in pages.commands(catalog.entry(slug).card):
        assert main(cut(shlex.split(line))[1:]) == 0, f"{line}\n{capsys.readouterr().err}"


def test_site_builds_without_warnings(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = list((tmp_path / "site").rglob("*.html"))
    loaded = re.compile(r"<(?:link|script|img)[^>]+(?:href|src)=\"?(https?://[^\s\">]+)")
    outside = {found for page in made for found in loaded.findall(page.read_text(encoding="utf-8"))}
    assert not outside, f"the site loads from elsewhere: {sorted(outside)}"
    for slug in catalog.entries():
        assert (tmp_path / "site/systems" / slug / "index.html").exists()


def test_readme_is_up_to_date():
    done = subprocess.run([sys.executable, "-m", "docs.tables", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "the tables in README.md are old: python -m docs.tables"
