"""What a comparison came to, as a table in Markdown, LaTeX, CSV and JSON, as a figure, and as a page."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repertory.errors import ConfigError
from repertory.runs import versions, write_atomic

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Row:
    """One candidate, measured.

    Attributes:
        values: the metric by seed; mean, low, high: over seeds and test items, 95 %.
        gap, gap_low, gap_high, verdict: against the best (see ``repertory.experiments.against_best``).
        knn: accuracy of the vote of the 20 nearest, mean over seeds; None where labels are not classes.
        length: what a fit was given. fit_seconds: of one fit; after a resume, of its rest.
        embed_seconds: of all items that the probe looks at, once.
        megabytes: growth of the peak resident memory while fitting and embedding.
    """

    candidate: str
    what: str
    width: int
    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    gap: float
    gap_low: float
    gap_high: float
    verdict: str
    knn: float | None
    length: str
    fit_seconds: float
    embed_seconds: float
    megabytes: float | None


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to; ``rows`` best first.

    Attributes:
        metric: of the linear probe on the test part. chance: what a constant answer gets.
        train, test: items that the probe learned from, and was measured on.
        unlabelled: items of these parts that were left out for want of a label.
        groups: test groups that were drawn as wholes; None where items are independent.
    """

    data: str
    label: str
    task: str
    metric: str
    chance: float
    train: int
    test: int
    unlabelled: int
    groups: int | None
    rule: str
    seeds: int
    budget: str | None
    rows: list[Row]
    fingerprint: str = ""
    versions: dict[str, str] = field(default_factory=versions)

    @property
    def best(self) -> Row:
        """The first row."""
        return self.rows[0]

    @property
    def finding(self) -> str:
        """One sentence for people."""
        others = [self.shown[row.candidate] for row in self.rows if row.verdict == "as good"]
        count = len(self.rows) - 1 - len(others)
        first = f"{self.shown[self.best.candidate]} is best ({self.metric} {self.best.mean:.3f})"
        alike = f"; not distinguishable from it: {', '.join(others)}" if others else ""
        worse = f"; the other {count} are worse" if count > 1 else "; the other is worse" if count else ""
        return f"{first}{alike}{worse}."

    @property
    def shown(self) -> dict[str, str]:
        """What the candidates are called in tables: those with paths by the last part, where that tells them apart."""
        short = {row.candidate: _short(row.candidate) for row in self.rows}
        return {name: text if list(short.values()).count(text) == 1 else name for name, text in short.items()}

    @property
    def method(self) -> str:
        """How it was measured, in two sentences."""
        metric = f"{self.metric[0].upper()}{self.metric[1:]}"
        items = f"{self.train:,} training and {self.test:,} test items"
        items += f"; {self.unlabelled:,} without a label left out" if self.unlabelled else ""
        unit = f"{self.groups} groups of test items" if self.groups else "test items"
        seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        return (
            f"{metric} of a linear probe of '{self.label}' ({items}); a constant answer gets {self.chance:.3f}. "
            f"Intervals: paired bootstrap over {unit} and {seeds}; those of the differences hold together at 95 % "
            "(Bonferroni)."
        )

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows as texts."""
        fitted = any(row.fit_seconds for row in self.rows)
        headers = ["candidate", "what", self.metric, "95 % interval", "vs. the best", "verdict"]
        headers += ["kNN"] if self.best.knn is not None else []
        headers += ["width"] + (["fit (s)"] if fitted else []) + ["embed (s)", "memory (MB)"]
        made = []
        for row in self.rows:
            best = row.verdict == "best"
            cells = [self.shown[row.candidate], row.what + (f", {row.length}" if row.length else ""), f"{row.mean:.3f}"]
            cells += [f"{row.low:.3f} to {row.high:.3f}"]
            cells += ["" if best else f"{row.gap:+.3f} ({row.gap_low:+.3f} to {row.gap_high:+.3f})".replace("-", "−")]
            cells += [row.verdict]
            cells += [f"{row.knn:.3f}"] if row.knn is not None else []
            cells += [str(row.width)] + ([seconds_of(row.fit_seconds)] if fitted else [])
            cells += [seconds_of(row.embed_seconds), "–" if row.megabytes is None else f"{row.megabytes:.0f}"]
            made.append(cells)
        return headers, made

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "finding": self.finding, "method": self.method}

    def json(self) -> str:
        """All numbers, as ``to_dict``."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def markdown(self) -> str:
        """A table, its finding and how it was measured."""
        headers, rows = self.cells()
        lines = [headers, [":--", ":--"] + ["--:"] * (len(headers) - 2), *rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"{table}\n\n{self.finding} {self.method}\n"

    def latex(self) -> str:
        """A table for booktabs: the best and what is as good in bold type."""
        headers, rows = self.cells()
        lines = []
        for cells, row in zip(rows, self.rows, strict=True):
            texts = [_tex(cell) for cell in cells]
            if row.verdict != "worse":
                texts[2] = rf"\textbf{{{texts[2]}}}"
            lines.append("  " + " & ".join(texts) + r" \\")
        return "\n".join([
            r"\begin{table}", r"\centering", rf"\caption{{{_tex(self.finding)} {_tex(self.method)}}}",
            rf"\begin{{tabular}}{{ll{'r' * (len(headers) - 2)}}}", r"\toprule",
            "  " + " & ".join(map(_tex, headers)) + r" \\", r"\midrule", *lines, r"\bottomrule", r"\end{tabular}",
            r"\end{table}", "",
        ])  # fmt: skip

    def csv(self) -> str:
        """One line per candidate, all numbers as they are."""
        import pandas as pd

        frame = pd.DataFrame([asdict(row) for row in self.rows])
        frame["values"] = [" ".join(f"{v:.6g}" for v in row.values) for row in self.rows]
        return frame.to_csv(index=False)

    def figure(self) -> Figure:
        """Left the metric with its interval and the single seeds; right the difference from the best, which decides."""
        from plotly.subplots import make_subplots

        from repertory.figures import PALETTE, styled

        # two panels; the names stand on the left
        figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06, column_widths=[0.55, 0.45])
        looks = {"best": (PALETTE[0], "circle"), "as good": (PALETTE[2], "diamond"), "worse": (PALETTE[1], "square")}
        for verdict, (colour, symbol) in looks.items():
            rows = [row for row in self.rows if row.verdict == verdict]
            if not rows:
                continue
            places = [self.rows.index(row) for row in rows]
            seeds = [(value, self.rows.index(row)) for row in rows for value in row.values if len(row.values) > 1]
            figure.add_scatter(
                x=[value for value, _ in seeds], y=[place for _, place in seeds], mode="markers", showlegend=False,
                marker={"color": colour, "size": 16, "symbol": "line-ns-open", "line": {"width": 1.5}}, opacity=0.55,
                hovertemplate="one seed: %{x:.4f}<extra></extra>", row=1, col=1,
            )  # fmt: skip
            for column, (centre, low, high) in {1: ("mean", "low", "high"), 2: ("gap", "gap_low", "gap_high")}.items():
                x = np.array([getattr(row, centre) for row in rows])
                figure.add_scatter(
                    x=x, y=places, mode="markers", name=verdict, showlegend=column == 1,
                    error_x={"array": np.array([getattr(row, high) for row in rows]) - x,
                             "arrayminus": x - np.array([getattr(row, low) for row in rows]),
                             "color": colour, "thickness": 2, "width": 0},
                    marker={"color": colour, "size": 10, "symbol": symbol}, visible=True,
                    hovertemplate="%{x:.4f}<extra></extra>", row=1, col=column,
                )  # fmt: skip
        figure.update_yaxes(
            tickmode="array", tickvals=list(range(len(self.rows))), range=[len(self.rows) - 0.5, -0.5], zeroline=False,
            ticktext=[self.shown[row.candidate] for row in self.rows],
        )  # fmt: skip
        figure.update_xaxes(title_text=f"{self.metric} of the linear probe", zeroline=False, row=1, col=1)
        figure.update_xaxes(
            title_text="difference from the best", zeroline=True, zerolinewidth=1.5, zerolinecolor="#8f949c",
            row=1, col=2,
        )  # fmt: skip
        return styled(figure, height=120 + 44 * len(self.rows)).update_layout(legend={"y": 1.02})

    def html(self, show_paths: bool = False) -> str:
        """A page that opens offline: finding, table, figure."""
        from plotly.offline import get_plotlyjs

        from repertory.figures import template
        from repertory.reporting.page import POLICY, embedded_json, embedded_script, page_part, plot
        from repertory.reporting.sources import sanitise

        clean = (lambda text: text) if show_paths else sanitise
        content: dict[str, Any] = {
            "figures": {},
            "templates": {name: template(name == "dark").to_plotly_json() for name in ("light", "dark")},
        }
        headers, rows = self.cells()
        lines = "".join(
            f'<tr class="{row.verdict.replace(" ", "-")}"><th scope="row">{escape(clean(cells[0]))}'
            f"<small>{escape(cells[1])}</small></th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells[2:])}</tr>"
            for cells, row in zip(rows, self.rows, strict=True)
        )
        head = f"<th>{headers[0]}</th>" + "".join(f"<th>{escape(name)}</th>" for name in headers[2:])
        facts = {
            "data": clean(self.data), "label": f"{self.label} ({self.task})", "split": self.rule,
            "seeds": self.seeds, "budget": self.budget or "each configuration's own",
            "data fingerprint": self.fingerprint[:16], **self.versions,
        }  # fmt: skip
        listed = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
        drawn = plot(self.figure(), content, clean)
        style = (
            ".compared td,.compared thead th+th{text-align:right;white-space:nowrap;font-size:.875rem}"
            ".compared thead th+th{font-size:.8125rem}.compared th[scope]{overflow-wrap:anywhere}"
            ".compared .best td:nth-child(2),.compared .as-good td:nth-child(2){font-weight:650}"
            ".compared td,.compared th{padding-right:.9rem}.wide{overflow-x:auto}"
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
            f"<title>Comparison – {escape(self.label)}</title>"
            f"<style>{page_part('page.css')}{style}</style></head>\n<body>"
            f'<header><h1>Which representation is best?</h1><p class="purpose">{escape(clean(self.finding))}</p>'
            f'</header>\n<main><section><h2>Result</h2><div class="wide"><table class="compared">'
            f"<thead><tr>{head}</tr></thead>"
            f'<tbody>{lines}</tbody></table></div><p class="note">{escape(self.method)}</p></section>'
            f"<section><h2>Intervals</h2><figure>{drawn}</figure>"
            "<p class='note'>Left: the mean over the seeds with its 95 % interval, and each seed as a stroke. Right: "
            "the difference from the best; where its interval holds 0, the two cannot be told apart.</p></section>"
            f'<section><h2>What was run</h2><div class="groups"><div class="facts long"><dl>{listed}</dl></div></div>'
            "</section></main>\n"
            "<footer>Made by repertory. This page is complete in itself and works offline.</footer>\n"
            f'<script type="application/json" id="data">{embedded_json(content)}</script>\n'
            f"<script>{embedded_script(get_plotlyjs())}</script>\n<script>{page_part('page.js')}</script></body></html>\n"
        )

    def write(self, path: str | Path) -> None:
        """Writes the comparison by the suffix of ``path``: .md, .tex, .html, .json or .csv."""
        path = Path(path)
        write_atomic(path, getattr(self, writer(path))())


WRITERS = {".md": "markdown", ".tex": "latex", ".html": "html", ".csv": "csv", ".json": "json"}


def writer(path: Path) -> str:
    """The method of ``Comparison`` that makes the content of ``path``.

    Raises:
        ConfigError: the suffix is of no format known here.
    """
    if path.suffix not in WRITERS:
        raise ConfigError(f"--out {path}: the suffix must be {', '.join(WRITERS)}")
    return WRITERS[path.suffix]


def seconds_of(value: float) -> str:
    """Seconds as people read them."""
    return "–" if not value else f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _short(name: str) -> str:
    scheme, colon, path = name.rpartition(":")
    return scheme + colon + Path(path).name if scheme in ("", "vectors", "run", "file") and "/" in path else name


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "²": "$^2$", "−": "$-$", "–": "--", "~": r"\textasciitilde{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
