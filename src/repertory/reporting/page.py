"""The report: one HTML file that opens offline, asks nobody for anything, and names no machine."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from repertory.data import Preview
from repertory.errors import DataError
from repertory.evaluation.metrics import Metric, Metrics
from repertory.figures import learning_curves, template
from repertory.reporting.items import encode
from repertory.reporting.projection import Projection
from repertory.reporting.sources import sanitise, sanitise_source

MEDIA = 2_200_000  # bytes of thumbnails and sounds that a page carries
CATEGORIES = 24  # of one column that are told apart; the rest is "other"
REJECTED = 100  # rows that are listed

# No network at all, by the reader's own browser. The WebGL part of plotly compiles its drawing functions at run time.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data:; font-src data:; worker-src blob:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Headline:
    """One line of the punch-line table: the system's number against a baseline's.

    ``scale`` holds the ends of the bars; by default 0 and 1, or 0 and a little more than the largest number.
    """

    name: str
    method: Metric
    baseline: Metric | None = None
    method_name: str = "this system"
    baseline_name: str = "baseline"
    scale: tuple[float, float] | None = None


@dataclass(frozen=True)
class EmbeddingMap:
    """The plane, and what is known of each of its M points (in the order of ``projection.rows``).

    Attributes:
        ids: ``[M]``. columns: name -> ``[M]`` values, what points can be coloured by. items: ``[M]`` or empty.
    """

    projection: Projection
    ids: Sequence[Any]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    items: Sequence[Preview | None] = ()

    def __post_init__(self) -> None:
        lengths = {"ids": self.ids, **self.columns} | ({"items": self.items} if len(self.items) else {})
        for name, values in lengths.items():
            if len(values) != len(self.projection.rows):
                raise DataError(
                    f"map: {len(values)} {name} for {len(self.projection.rows)} points; take projection.rows of them"
                )


@dataclass(frozen=True)
class Picture:
    """A figure of the system's own, with its caption: what is seen and how to read it."""

    figure: go.Figure
    title: str
    caption: str = ""


@dataclass(frozen=True)
class Rejected:
    """An item that was left out, why, and how many there were like it."""

    id: str
    reason: str
    count: int = 1


@dataclass
class Report:
    """Everything that the page shows; a part that is empty is left out of the page.

    Attributes:
        title: the system's name. purpose: one sentence.
        headlines: the punch line. facts: group -> name -> value: data, split, seed, config, versions, time.
        source_facts: names of facts whose value is a data source as a whole, cut to its kind and last part.
        curves: rows of (stage, step, name, value). embedding_map: the plane. pictures: the system's own figures.
        show_paths: paths, host and user name stay as they are; by default they are cut from every text.
    """

    title: str
    purpose: str
    headlines: Sequence[Headline] = ()
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    curves: Iterable[tuple[str, int, str, float]] = ()
    metrics: Metrics = field(default_factory=Metrics)
    embedding_map: EmbeddingMap | None = None
    pictures: Sequence[Picture] = ()
    rejected: Sequence[Rejected] = ()
    source_facts: Sequence[str] = ("data", "source", "validation", "checkpoint", "run", "out")
    show_paths: bool = False

    def write(self, path: str | Path) -> None:
        """Writes the page; a reader of ``path`` sees the old page or the whole new one."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(self.html(), encoding="utf-8")
        os.replace(partial, path)

    def html(self) -> str:
        """The page."""
        clean = (lambda text: text) if self.show_paths else sanitise
        data: dict[str, Any] = {
            "figures": {},
            "templates": {name: template(name == "dark").to_plotly_json() for name in ("light", "dark")},
        }

        def text(value: Any) -> str:
            return escape(clean(str(value)))

        sections = [
            ("result", "Result", _headlines(self.headlines, text)),
            ("run", "What was run", self._facts(text)),
            ("learning", "Learning", _curves(self.curves, data, text)),
            ("metrics", "Metrics", _metrics(self.metrics, text)),
            ("map", "Map of the embeddings", _map(self.embedding_map, data, text, clean)),
            ("figures", "Figures", _pictures(self.pictures, data, text, clean)),
            ("rejected", "Left out", _rejected(self.rejected, text)),
        ]
        sections = [section for section in sections if section[2]]
        links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in sections)
        body = "".join(
            f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{name}</h2>{content}</section>'
            for key, name, content in sections
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
            f"<title>{text(self.title)} – report</title><style>{page_part('page.css')}</style></head>\n<body>"
            f'<header><h1>{text(self.title)}</h1><p class="purpose">{text(self.purpose)}</p>'
            f'<nav aria-label="Sections">{links}</nav></header>\n<main>{body}'
            "<noscript><p>The plots of this page need JavaScript; the tables do not.</p></noscript></main>\n"
            "<footer>Made by repertory. This page is complete in itself and works offline.</footer>\n"
            f'<script type="application/json" id="data">{embedded_json(data)}</script>\n'
            f"<script>{embedded_script(get_plotlyjs())}</script>\n<script>{page_part('page.js')}</script></body></html>\n"
        )

    def _facts(self, text: Callable[[Any], str]) -> str:
        def value(name: str, fact: Any) -> str:
            if isinstance(fact, str) and name in self.source_facts and not self.show_paths:
                return escape(sanitise_source(fact))
            return text(f"{fact:g}" if isinstance(fact, float) else fact)

        def group(name: str, facts: Mapping[str, Any]) -> str:
            rows = "".join(f"<div><dt>{text(k)}</dt><dd>{value(k, v)}</dd></div>" for k, v in facts.items())
            title = f"<h3>{text(name)}</h3>"
            if len(facts) > 10:
                summary = f"<summary>{title} <span>{len(facts)} entries</span></summary>"
                return f'<div class="facts long"><details>{summary}<dl>{rows}</dl></details></div>'
            return f'<div class="facts">{title}<dl>{rows}</dl></div>'

        groups = "".join(group(name, facts) for name, facts in self.facts.items() if facts)
        return f'<div class="groups">{groups}</div>' if groups else ""


def _headlines(headlines: Sequence[Headline], text: Callable[[Any], str]) -> str:
    def bar(metric: Metric, name: str, kind: str, scale: tuple[float, float]) -> str:
        whisker = ""
        if metric.low is not None and metric.high is not None:
            left, right = _share(metric.low, scale), _share(metric.high, scale)
            whisker = f'<i class="whisker" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
        left, right = sorted((_share(metric.value, scale), _share(0, scale)))
        return (
            f'<div class="bar {kind}"><span class="who">{text(name)}</span>'
            f'<span class="track"><i style="left:{left:.2f}%;width:{right - left:.2f}%"></i>{whisker}</span>'
            f"<b>{_number(metric.value)}</b></div>"
        )

    def row(line: Headline) -> str:
        scale = line.scale or _scale([line.method] + ([line.baseline] if line.baseline else []))
        bars, difference = bar(line.method, line.method_name, "method", scale), ""
        if line.baseline:
            bars += bar(line.baseline, line.baseline_name, "baseline", scale)
            change = line.method.value - line.baseline.value
            direction = line.method.higher_is_better
            verdict = "" if direction is None or not change else "better" if (change > 0) == direction else "worse"
            difference = f"<b>{'+' if change > 0 else ''}{_number(change)}</b><small>{verdict}</small>"
        about = f"<small>{text(line.method.about)}</small>" if line.method.about else ""
        return (
            f'<tr><th scope="row">{text(line.name)}{about}</th><td class="bars">{bars}</td>'
            f'<td class="change">{difference}</td></tr>'
        )

    if not headlines:
        return ""
    head = '<thead class="hidden"><tr><th>Measure</th><th>Values</th><th>Difference</th></tr></thead>'
    return f'<table class="headlines">{head}<tbody>{"".join(map(row, headlines))}</tbody></table>'


def _metrics(metrics: Metrics, text: Callable[[Any], str]) -> str:
    def row(name: str, metric: Metric) -> str:
        track = interval = ""
        if math.isfinite(metric.value):
            scale = _scale([metric])
            dot = f'<i class="dot" style="left:{_share(metric.value, scale):.2f}%"></i>'
            if metric.low is not None and metric.high is not None:
                left, right = _share(metric.low, scale), _share(metric.high, scale)
                dot = f'<i class="range" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>{dot}'
                interval = f"{_number(metric.low)} to {_number(metric.high)}"
                track = f'<span class="track" title="{_number(scale[0])} to {_number(scale[1])}">{dot}</span>'
        arrow = {True: "higher is better", False: "lower is better", None: ""}[metric.higher_is_better]
        sign = {True: "↑", False: "↓", None: ""}[metric.higher_is_better]
        about = f"<small>{text(metric.about)}</small>" if metric.about else ""
        return (
            f'<tr><th scope="row">{text(name.replace("_", " "))} <abbr title="{arrow}">{sign}</abbr>{about}</th>'
            f'<td class="number">{_number(metric.value)}</td><td class="interval">{track}</td>'
            f'<td class="ends">{interval}</td></tr>'
        )

    if not metrics:
        return ""
    head = "<thead><tr><th>Measure</th><th>Value</th><th colspan='2'>95 % interval</th></tr></thead>"
    rows = "".join(row(name, metric) for name, metric in metrics.items())
    return f'<table class="metrics">{head}<tbody>{rows}</tbody></table>'


def _curves(curves: Iterable[tuple[str, int, str, float]], data: dict[str, Any], text: Callable[[Any], str]) -> str:
    figures = learning_curves(curves)
    plots = (
        f"<figure><figcaption><h3>{text(name.replace('_', ' '))}</h3></figcaption>{plot(figure, data, str)}</figure>"
        for name, figure in figures.items()
    )
    return f'<div class="curves">{"".join(plots)}</div>' if figures else ""


def _pictures(
    pictures: Sequence[Picture], data: dict[str, Any], text: Callable[[Any], str], clean: Callable[[str], str]
) -> str:
    def one(picture: Picture) -> str:
        caption = f"<p>{text(picture.caption)}</p>" if picture.caption else ""
        heading = f"<figcaption><h3>{text(picture.title)}</h3>{caption}</figcaption>"
        return f"<figure>{heading}{plot(picture.figure, data, clean)}</figure>"

    return "".join(map(one, pictures))


def plot(figure: go.Figure, data: dict[str, Any], clean: Callable[[str], str]) -> str:
    """Puts the figure among the data, in the page's own look and width, and returns its place."""
    plain = _cleaned(json.loads(plotly.io.to_json(figure, validate=False)), clean)
    layout = plain.setdefault("layout", {})
    for name in ("template", "width"):
        layout.pop(name, None)
    if "title" in layout and not layout["title"].get("text"):
        layout.pop("title")
    if not any(layout.get(name) for name in ("title", "showlegend", "updatemenus")):
        layout["margin"] = {"t": 12, **layout.get("margin", {})}
    key = f"plot-{len(data['figures'])}"
    data["figures"][key] = plain
    return f'<div class="plot" id="{key}" style="height:{int(layout.get("height", 360))}px"></div>'


def _cleaned(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return value if value.startswith("data:") else clean(value)
    if isinstance(value, list):
        return [_cleaned(v, clean) for v in value] if any(isinstance(v, (str, list, dict)) for v in value) else value
    if isinstance(value, dict):
        return {k: v if k == "bdata" else _cleaned(v, clean) for k, v in value.items()}
    return value


def _map(
    plane: EmbeddingMap | None, data: dict[str, Any], text: Callable[[Any], str], clean: Callable[[str], str]
) -> str:
    if plane is None:
        return ""
    shown, total = len(plane.projection.rows), plane.projection.total
    items, carried = _items(plane, clean)
    views = {}
    for name, points in plane.projection.views.items():
        placed = int(np.isfinite(points[:, 0]).sum())
        label = f"{name} of {placed:,}" + (f" sampled from {total:,}" if placed < total else "")
        if name == "PCA":
            label += " ({:.0%} and {:.0%} of the variance)".format(*plane.projection.explained)
        views[label] = [_rounded(points[:, 0]), _rounded(points[:, 1])]
    data["map"] = {
        "views": views,
        "ids": [clean(str(i)) for i in plane.ids],
        "columns": {clean(str(name)): coloured_column(values, clean) for name, values in plane.columns.items()},
        "items": items,
    }

    def choice(key: str, label: str, options: Iterable[str]) -> str:
        options = list(options)
        listed = "".join(f"<option>{escape(option)}</option>" for option in options)
        hidden = " hidden" if len(options) < 2 else ""
        return f'<label{hidden}>{label} <select id="{key}">{listed}</select></label>'

    note = f"{shown:,} of {total:,} items are shown. " if shown < total else ""
    if carried and carried < shown:
        note += f"{carried:,} of them carry their picture or sound. "
    return (
        f'<div class="controls">{choice("map-colour", "Colour", data["map"]["columns"])}'
        f"{choice('map-view', 'View', views)}</div>"
        f'<div class="map"><div class="plane"><div class="plot" id="map-plot" role="img" '
        f'aria-label="Map of {shown:,} embeddings"></div><ul id="map-legend"></ul></div>'
        '<aside id="item" aria-live="polite"><p class="hint">Point at an item to see it; click to keep it.</p></aside>'
        "</div>"
        f'<p class="note">{note}Near points are near in the space of the embeddings; distances between far groups mean '
        "little in t-SNE.</p>"
    )


def _items(plane: EmbeddingMap, clean: Callable[[str], str]) -> tuple[list[dict[str, str] | int], int]:
    """Cards of the items in the page's order, pictures and sounds until the page is full; how many carry one."""
    cards: list[dict[str, str] | int] = [0] * len(plane.ids)
    if not len(plane.items):
        return cards, 0
    first = next(iter(plane.projection.views.values()))
    order = np.random.default_rng(0).permutation(len(cards))
    order = order[np.argsort(np.isnan(first[order, 0]), kind="stable")]  # what the first view shows comes first
    room, carried = MEDIA, 0
    for row in order:
        item = plane.items[row]
        if item is None:
            continue
        card = encode(item) if room > 0 else encode(Preview(text=item.text))
        if "text" in card:
            card["text"] = clean(card["text"])
        media = sum(len(card.get(kind, "")) for kind in ("image", "audio"))
        room, carried = room - media, carried + bool(media)
        cards[row] = card or 0
    return cards, carried


def coloured_column(values: Sequence[Any], clean: Callable[[str], str]) -> dict[str, Any]:
    """A column to colour by: numbers, or codes of its most frequent values (-1 missing, the last one "other")."""
    array = np.asarray(values)
    if array.dtype == object:
        missing = np.isin(array.astype(str), ("None", "nan", "NaT", "<NA>"))
        kinds = {type(v) for v, gone in zip(array, missing) if not gone}
        if kinds and all(issubclass(k, (int, float, np.number)) and k is not bool for k in kinds):
            array = np.where(missing, np.nan, array).astype(float)
    else:
        missing = np.zeros(len(array), bool)
    if array.dtype.kind == "f" or (array.dtype.kind in "iu" and len(np.unique(array)) > 12):
        return {"numbers": _rounded(array.astype(float))}
    names, codes, counts = np.unique(array.astype(str), return_inverse=True, return_counts=True)
    present = np.zeros(len(names), bool)
    present[codes[~missing]] = True
    order = [i for i in np.argsort(-counts, kind="stable") if present[i]]
    kept = (
        sorted(order[:CATEGORIES])
        if array.dtype.kind not in "iu"
        else sorted(order[:CATEGORIES], key=lambda i: int(names[i]))
    )
    place = np.full(len(names), len(kept))
    place[kept] = np.arange(len(kept))
    labels = [clean(str(names[i])) for i in kept]
    rest = len(order) - len(kept)
    return {
        "names": labels + ([f"{rest} others"] if rest else []),
        "codes": np.where(missing, -1, place[codes]).tolist(),
        "other": bool(rest),
        "all": [clean(str(v)) for v in array] if rest else None,
    }


def _rejected(rejected: Sequence[Rejected], text: Callable[[Any], str]) -> str:
    if not rejected:
        return ""
    total = sum(row.count for row in rejected)
    rows = "".join(
        f'<tr><td>{text(row.id)}</td><td>{text(row.reason)}</td><td class="number">{row.count:,}</td></tr>'
        for row in rejected[:REJECTED]
    )
    more = (
        f'<p class="note">{len(rejected) - REJECTED:,} further rows are not listed.</p>'
        if len(rejected) > REJECTED
        else ""
    )
    head = "<thead><tr><th>Item</th><th>Reason</th><th>Count</th></tr></thead>"
    return (
        f"<p>{total:,} item{'s were' if total != 1 else ' was'} rejected by the checks of the data.</p>"
        f'<table class="rejected">{head}<tbody>{rows}</tbody></table>{more}'
    )


def _scale(metrics: Sequence[Metric]) -> tuple[float, float]:
    """The usual range of such numbers, so that bars of different metrics can be compared."""
    numbers = [n for m in metrics for n in (m.value, m.low, m.high) if n is not None and math.isfinite(n)]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    if low >= -1 and high <= 1:
        return (0.0, 1.0) if low >= 0 else (-1.0, 1.0)
    return min(0.0, 1.1 * low), max(0.0, 1.1 * high)


def _share(value: float, scale: tuple[float, float]) -> float:
    """Where ``value`` lies on the scale, in percent."""
    return 100 * min(1.0, max(0.0, (value - scale[0]) / (scale[1] - scale[0]))) if math.isfinite(value) else 0.0


def _number(value: Any) -> str:
    """A number as people read it: four figures at most, thousands apart; anything else as its text."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        return escape(str(value))
    if not math.isfinite(value):
        return "–"
    if float(value).is_integer() and abs(value) >= 1 and isinstance(value, (int, np.integer)):
        return f"{int(value):,}".replace("-", "−")
    size = abs(value)
    if value == 0:
        return "0"
    text = (
        f"{value:.1e}"
        if size < 1e-3 or size >= 1e6
        else f"{value:,.{max(0, min(3, 3 - math.floor(math.log10(size))))}f}"
    )
    return text.replace("-", "−")


def _rounded(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.4g}") if math.isfinite(v) else None for v in values.tolist()]


def embedded_json(data: Any) -> str:
    """JSON that no HTML parser can leave: the characters that open tags, entities or comments are escaped."""
    plain = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False, default=list)
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    for character, escaped in escapes.items():
        plain = plain.replace(character, escaped)
    return plain


def embedded_script(code: str) -> str:
    """JavaScript that cannot close its element."""
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def page_part(name: str) -> str:
    """A style sheet or script of the pages, by file name."""
    return resources.files("repertory.reporting").joinpath(name).read_text(encoding="utf-8")
