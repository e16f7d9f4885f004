"""The page of the explorer: its parts, and what happens when one is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dash
import numpy as np
from dash import ClientsideFunction, Input, Output, State, dcc, html, no_update

from repertory.errors import UserError, first_line
from repertory.figures import template
from repertory.reporting.explorer.exploration import Exploration
from repertory.reporting.explorer.server import protect
from repertory.reporting.items import thumbnail
from repertory.reporting.page import page_part

NEIGHBOURS = 10
PREDICTED = 50
"""Rows of an answer that are shown."""

CONFIG: Any = {
    "responsive": True, "displaylogo": False, "scrollZoom": True, "doubleClick": "reset",
    "showSendToCloud": False, "plotlyServerURL": "",  # nothing leaves the page
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}  # fmt: skip

# As the report's. The WebGL part of plotly compiles its drawing functions at run time; Dash asks its own server.
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval' {hashes}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src data:; font-src 'self' data:; connect-src 'self'; worker-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = """<!doctype html>
<html lang="en"><head>{%metas%}<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">
<title>{%title%}</title><style>PAGE_CSS</style>{%css%}</head>
<body>{%app_entry%}{%config%}{%scripts%}{%renderer%}</body></html>"""


def build(exploration: Exploration, *, title: str, about: str = "", token: str | None = None) -> dash.Dash:
    """The Dash application over an exploration, which answers only to those who may ask (see ``server.protect``)."""
    app = dash.Dash(
        __name__, title=f"{title} – explore", update_title="",
        index_string=PAGE.replace("PAGE_CSS", page_part("page.css")),
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}], add_log_handler=False,
    )  # fmt: skip
    app.layout = _layout(exploration, title, about)
    _wire(app, exploration)
    hashes = " ".join(app.csp_hashes())
    protect(app.server, lambda: POLICY.format(hashes=hashes), token)
    return app


def _layout(exploration: Exploration, title: str, about: str) -> html.Div:
    views = {name: exploration.view_label(name) for name in exploration.projection.views}
    columns = {name: name for name in exploration.columns}
    groups = {"": "all"} | {name: name for name in exploration.groups}
    shown, total = len(exploration.projection.rows), len(exploration.embeddings)
    count = f"{shown:,} of {total:,} vectors" if shown < total else f"{total:,} vectors"
    asks = "Text or id" if exploration.text_modality else "Id"
    return html.Div([
        html.Header([
            html.H1(title),
            html.P([f"{count} of width {exploration.embeddings.width}", html.Span(about)], className="about"),
        ]),
        html.Div([
            _choice("colour", "Colour", columns, next(iter(columns), None)),
            _choice("view", "View", views, next(iter(views))),
            html.Div([
                html.Label(asks, htmlFor="query"),
                _typed("query", _example(exploration)),
                html.Button("Find", id="ask", n_clicks=0),
                html.Span(id="message", role="status"),
            ], className="ask", role="search"),
        ], className="controls"),
        html.Main([
            html.Div([
                html.Div(dcc.Graph(id="map", config=CONFIG, responsive=True, figure=_EMPTY), className="canvas"),
                html.Ul(id="legend"),
                html.P("Near points are near in the space of the embeddings; distances between far groups mean little "
                       "in t-SNE and UMAP. Neighbours are those of the whole vectors, not of the plane.",
                       className="note"),
            ], className="plane"),
            html.Aside([
                html.Div(html.P("Point at an item to see it; click to keep it and to list its neighbours.",
                                className="hint"), id="item", **_LIVE),
                html.Div([
                    html.Div([html.H2("Nearest"), _choice("among", "among", groups, "")], className="head"),
                    html.Ol(id="neighbours"),
                ], id="near", hidden=True),
                *([_prediction()] if exploration.predicts else []),
            ]),
        ], className="map"),
        *(dcc.Store(id=name) for name in ("plane", "colours", "hovered", "chosen", "rings")),
        dcc.Store(id="templates", data={n: template(n == "dark").to_plotly_json() for n in ("light", "dark")}),
    ], id="explorer")  # fmt: skip


_LIVE: dict[str, Any] = {"aria-live": "polite"}
_AXIS = {"visible": False, "showgrid": False, "zeroline": False}
_CLEAR = "rgba(0,0,0,0)"
_EMPTY = {"layout": {"xaxis": _AXIS, "yaxis": _AXIS, "paper_bgcolor": _CLEAR, "plot_bgcolor": _CLEAR}}


def _example(exploration: Exploration) -> str:
    text = exploration.preview(0, 8).get("text", "") if exploration.text_modality else ""
    return text if 0 < len(text) < 40 else str(exploration.embeddings.table[exploration.embeddings.key[0]][0])


def _choice(key: str, label: str, options: dict[str, str], value: str | None) -> html.Div:
    """A list to choose from; hidden where there is no choice."""
    listed = [{"value": value, "label": label} for value, label in options.items()]
    picker = dcc.Dropdown(listed, value, id=key, clearable=False, searchable=len(listed) > 12)
    return html.Div([html.Label(label, htmlFor=key), picker], className="choice", hidden=len(options) < 2)


def _typed(key: str, example: str) -> dcc.Input:
    return dcc.Input(id=key, type="text", placeholder=example, autoComplete="off", spellCheck=False)


def _prediction() -> html.Div:
    return html.Div([
        html.H2("Predict"),
        html.P("What the system says of the kept item, or of the data named here.", className="note"),
        html.Div([
            _typed("source", "a path or sample"),
            html.Button("Predict", id="predict", n_clicks=0),
        ], className="ask"),
        html.Div(id="answer", **_LIVE),
    ], id="prediction")  # fmt: skip


def _wire(app: dash.Dash, exploration: Exploration) -> None:
    def here(name: str) -> ClientsideFunction:
        return ClientsideFunction("explorer", name)

    app.clientside_callback(
        here("draw"), Output("map", "figure"), Input("plane", "data"), Input("colours", "data"),
        State("templates", "data"),
    )  # fmt: skip
    app.clientside_callback(
        here("hover"), Output("hovered", "data"), Input("map", "hoverData"), State("chosen", "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    app.clientside_callback(
        here("ask"), Output("chosen", "data"), Input("query", "n_submit"), Input("ask", "n_clicks"),
        State("query", "value"), prevent_initial_call=True,
    )  # fmt: skip
    app.clientside_callback(here("mark"), Input("rings", "data"), prevent_initial_call=True)

    @app.callback(Output("plane", "data"), Input("view", "value"))
    def place(view: str) -> dict[str, Any]:
        return exploration.plane(view)

    @app.callback(Output("colours", "data"), Input("colour", "value"))
    def colour(name: str | None) -> dict[str, Any]:
        return exploration.colours(name) if name else {}

    @app.callback(Output("item", "children", allow_duplicate=True), Input("hovered", "data"), prevent_initial_call=True)
    def show(row: int | None) -> Any:
        return no_update if row is None else _item(exploration, row, kept=False)

    @app.callback(
        Output("item", "children"), Output("near", "hidden"), Output("neighbours", "children"), Output("rings", "data"),
        Output("message", "children"), Input("chosen", "data"), Input("among", "value"), prevent_initial_call=True,
    )  # fmt: skip
    def choose(chosen: dict[str, Any] | None, among: str) -> tuple[Any, ...]:
        if not chosen:
            return html.P("Point at an item to see it; click to keep it.", className="hint"), True, [], {}, ""

        def answer() -> tuple[Any, ...]:
            query = chosen["row"] if "row" in chosen else exploration.find(chosen["query"])
            found = exploration.neighbours(query, NEIGHBOURS, among or "")
            row = None if isinstance(query, np.ndarray) else query
            item = _item(exploration, row, kept=True) if row is not None else _query(chosen["query"])
            rings = {"row": row, "near": [near for near, _ in found]}
            return item, False, [_neighbour(exploration, *pair) for pair in found], rings, ""

        return _told(answer, lambda message: (no_update, no_update, no_update, no_update, message))

    if exploration.predicts:

        @app.callback(
            Output("answer", "children"), Input("predict", "n_clicks"), State("source", "value"),
            State("rings", "data"), prevent_initial_call=True,
        )  # fmt: skip
        def predict(_: int, source: str | None, rings: dict[str, Any] | None) -> Any:
            def answer() -> Any:
                return _answer(exploration.predict((rings or {}).get("row"), source or ""))

            return _told(answer, lambda message: html.P(message, className="error"))


def _told(answer: Callable[[], Any], otherwise: Callable[[str], Any]) -> Any:
    """The answer, or what is wrong in one line; a live page must not die of a question."""
    try:
        return answer()
    except UserError as error:
        return otherwise(" ".join(str(error).split()))
    except Exception as error:
        return otherwise(f"{type(error).__name__}: {first_line(error)}")


def _preview(exploration: Exploration, row: int, size: int) -> dict[str, Any]:
    return _told(lambda: exploration.preview(row, size), lambda message: {"text": f"cannot be shown: {message}"})


def _item(exploration: Exploration, row: int, *, kept: bool) -> list[Any]:
    """An item with all that is known of it."""
    card, name = _preview(exploration, row, 320), exploration.name(row)
    parts: list[Any] = []
    if "image" in card:
        parts.append(html.Img(src=card["image"], alt=f"Item {name}", className="small" if card["small"] else ""))
    parts.append(html.Div([html.H2(name), _clear() if kept else None], className="head"))
    if "audio" in card:
        parts.append(html.Audio(src=card["audio"], controls=True))
    if "text" in card:
        parts.append(html.P(card["text"]))
    values = exploration.values(row).items()
    return [*parts, html.Dl([html.Div([html.Dt(key), html.Dd(_text(value))]) for key, value in values])]


def _query(text: str) -> list[Any]:
    return [html.Div([html.H2(f"“{text}”"), _clear()], className="head"), html.P("your text", className="hint")]


def _clear() -> html.Button:
    return html.Button("Clear", className="plain", title="Escape", **_data(clear="yes"))


def _neighbour(exploration: Exploration, row: int, cosine: float) -> html.Li:
    card, name = _preview(exploration, row, 96), exploration.name(row)
    classes = "small" if card.get("small") else ""
    sound = {**_data(audio=card.get("audio")), "aria-label": f"Play {name}"}
    return html.Li([
        html.Img(src=card["image"], alt="", className=classes) if "image" in card else html.Span(className="none"),
        html.Div([
            html.Button(name, className="plain name", **_data(row=str(row))),
            html.P(card["text"], className="text") if "text" in card else None,
        ]),
        html.Button(className="play", **sound) if "audio" in card else None,
        html.Span(f"{cosine:.3f}".replace("-", "−"), className="cosine", title="cosine similarity"),
    ])  # fmt: skip


def _data(**values: Any) -> dict[str, Any]:
    return {f"data-{name}": value for name, value in values.items()}


def _answer(table: Any) -> list[Any]:
    """An answer's first rows; masks and other pictures that it names are shown."""

    def cell(value: Any) -> Any:
        if isinstance(value, str) and value.endswith(".png"):
            from PIL import Image

            return html.Img(src=thumbnail(Image.open(value), 160), alt="")
        return _text(value)

    head = html.Thead(html.Tr([html.Th(name.replace("_", " ")) for name in table.column_names]))
    rows = [html.Tr([html.Td(cell(v)) for v in row.values()]) for row in table.slice(0, PREDICTED).to_pylist()]
    if len(table) == 1:  # one item's answers are read down
        pairs = table.to_pylist()[0].items()
        return [html.Dl([html.Div([html.Dt(k.replace("_", " ")), html.Dd(cell(v))]) for k, v in pairs])]
    rest = [html.P(f"The first {PREDICTED} of {len(table):,} rows.", className="note")] * (len(table) > PREDICTED)
    return [html.Div(html.Table([head, html.Tbody(rows)]), className="wide"), *rest]


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)
