"""The report page: what it shows, what it must never show, and that a browser draws it."""

from __future__ import annotations

import base64
import getpass
import json
import re
import shutil
import socket
import subprocess
import time
import wave
from io import BytesIO

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

from repertory.data import Preview
from repertory.errors import DataError
from repertory.evaluation import Metric, Metrics
from repertory.reporting import (
    EmbeddingMap,
    Headline,
    Picture,
    Rejected,
    Report,
    bars_with_intervals,
    heatmap,
    image_grid,
    learning_curves,
    project,
    sanitise,
    sanitise_source,
    sources,
    thumbnail,
    wav,
)  # fmt: skip

EVIL = "</script><script>boom()</script><img src=x onerror=boom()>"


def report(**changes) -> Report:
    rng = np.random.default_rng(0)
    plane = project(rng.normal(size=(60, 8)) + np.eye(8)[np.arange(60) % 3] * 8, seed=1)
    sound = (rng.normal(size=400), 8000)
    items = [Preview(image=rng.random((9, 12)), audio=sound, text=f"{EVIL} {i}") for i in range(60)]
    parts = {
        "title": f"Symile {EVIL}",
        "purpose": "Learns from everything at once.",
        "headlines": [Headline("accuracy", Metric(0.9, 0.85, 0.94, True), Metric(0.6, 0.5, 0.7, True))],
        "facts": {"Data": {"data": "images:/home/ann/birds?label=species", "items": 60}, EVIL: {EVIL: EVIL}},
        "curves": [("fit", s, name, 1 / (s + 1)) for s in range(50) for name in ("train/loss", "val/loss")],
        "metrics": Metrics({"knn_accuracy": Metric(0.9, 0.85, 0.94, True, EVIL), "rank": Metric(float("nan"))}),
        "embedding_map": EmbeddingMap(
            plane, [f"/home/ann/birds/{i}.png" for i in range(60)],
            {EVIL: [EVIL, "b", None] * 20, "size": np.arange(60.0)}, items,
        ),
        "pictures": [Picture(heatmap(np.eye(4), title="/home/ann/x"), "Heat", "of /mnt/disk/ann/run.csv")],
        "rejected": [Rejected("a.png", "cannot read '/home/ann/my birds/a.png'", 2)],
    }  # fmt: skip
    return Report(**{**parts, **changes})


@pytest.fixture(scope="module")
def page() -> str:
    return report().html()


def own(page: str) -> str:
    """The page without plotly's library."""
    assert page.count(get_plotlyjs()) == 1
    return page.replace(get_plotlyjs(), "")


def data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_everything_is_there(page):
    for part in ("result", "run", "learning", "metrics", "map", "figures", "rejected"):
        assert f'<section id="{part}"' in page, part
    for text in (
        "+0.300",
        "better",
        "0.850 to 0.940",
        "images:…/birds?label=species",
        "2 items were rejected",
        "of …/run.csv",
    ):
        assert text in page, text
    shown = data(page)
    assert len(shown["figures"]) == 2
    assert len(shown["map"]["ids"]) == 60
    assert shown["map"]["ids"][0] == "…/0.png"
    assert shown["map"]["items"][3]["image"].startswith("data:image/")
    assert shown["map"]["items"][3]["text"].endswith(" 3")


def test_empty_parts_are_left_out():
    bare = Report("Symile", "Learns.").html()
    assert "<section" not in bare
    assert "<h1>Symile</h1>" in bare


def test_nothing_typed_becomes_markup(page):
    page = own(page)
    assert EVIL not in page
    assert "<script>boom" not in page
    assert "<img src=x" not in page
    assert page.count("<script") == 3
    assert page.count("</script>") == 3
    assert data(page)["map"]["items"][0]["text"].startswith(EVIL)  # whole, as a text


def test_no_request_leaves_the_page(page):
    page = own(page)
    assert "default-src 'none'" in page
    assert "showSendToCloud: false" in page
    assert not re.findall(r"""(?:src|href|action)=["'](?!#|data:)""", page)
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org)", page)


def test_no_path_host_or_user(page, monkeypatch):
    for word in ("/home", "/mnt", "ann/", "my birds"):
        assert word not in re.sub(r"data:[a-z/]+;base64,[\w+/=]+", "", own(page)), word
    assert "/home/ann/birds" in report(show_paths=True).html()
    monkeypatch.setattr(socket, "gethostname", lambda: "zeus42.lab.example")
    monkeypatch.setattr(socket, "getfqdn", lambda: "zeus42.lab.example")
    monkeypatch.setattr(getpass, "getuser", lambda: "annika")
    sources._machine.cache_clear()
    try:
        text = own(report(purpose="Run by annika on zeus42 (zeus42.lab.example), not by Annikas.").html())
    finally:
        sources._machine.cache_clear()
    assert "zeus42" not in text
    assert "annika" not in text
    assert "Run by … on … (…), not by Annikas." in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/data/birds.csv", "…/birds.csv"),
        ("images:/home/ann/birds?label=species", "images:…/birds?label=species"),
        ("/home/ann", "…"),
        ("/Users/ann/", "…"),
        ("~/runs/a.yaml", "…/a.yaml"),
        ("../../ann/x.csv", "…/x.csv"),
        ("file:///srv/ann/x.png is broken", "…/x.png is broken"),
        (r"C:\Users\ann\x.csv", "…/x.csv"),
        (r"\\server\share\x.csv", "…/x.csv"),
        ("error ('/srv/my data/x.csv'): bad", "error ('…/x.csv'): bad"),
        ("/srv/a, /srv/b.", "…/a, …/b."),
        ("s3://key:secret@bucket/a.csv", "s3://bucket/a.csv"),
        ("train/val at 3 km/h, 1/2, a / b", "train/val at 3 km/h, 1/2, a / b"),
        ("C(/F)=C/F and F/C=C/F", "C(/F)=C/F and F/C=C/F"),
    ],
)
def test_sanitise(text, expected):
    assert sanitise(text) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("table:data/ann/my birds.csv?label=x", "table:…/my birds.csv?label=x"),
        ("runs/ann/x", "…/x"),
        ("birds", "birds"),
        ("timm:resnet50", "timm:resnet50"),
        ("https://example.org/a/b.csv", "https://example.org/a/b.csv"),
    ],
)
def test_sanitise_source(source, expected):
    assert sanitise_source(source) == expected


def test_projection_is_deterministic_and_capped():
    vectors = np.random.default_rng(0).normal(size=(130, 7))
    first, second = (project(vectors, seed=3, most=100, tsne_most=40) for _ in range(2))
    np.testing.assert_array_equal(first.views["t-SNE"], second.views["t-SNE"])
    assert first.rows.shape == (100,)
    assert (np.diff(first.rows) > 0).all()
    assert first.total == 130
    assert np.isfinite(first.views["t-SNE"]).all(1).sum() == 40
    assert np.isfinite(first.views["PCA"]).all()
    apart = project(np.repeat(np.eye(3) * 50, 30, axis=0) + np.random.default_rng(1).normal(size=(90, 3)))
    groups = apart.views["t-SNE"].reshape(3, 30, 2)
    assert groups.std(axis=1).max() < np.linalg.norm(groups[0].mean(0) - groups[1].mean(0))


@pytest.mark.parametrize("vectors", [np.ones((1, 4)), np.ones((30, 4)), np.arange(30.0)[:, None], np.eye(3)])
def test_projection_of_little(vectors):
    plane = project(vectors)
    assert plane.views["PCA"].shape == (len(vectors), 2)
    assert np.isfinite(plane.views["PCA"]).all()


def test_map_lengths_must_agree():
    with pytest.raises(DataError, match="59 colour for 60 points"):
        EmbeddingMap(project(np.eye(60)), range(60), {"colour": [0] * 59})


def test_learning_curves_share_a_figure_and_are_thinned():
    rows = [("fit", s, n, 10.0 ** (-s / 1000)) for s in range(5000) for n in ("train/loss", "val_loss", "accuracy")]
    figures = learning_curves(rows)
    assert list(figures) == ["loss", "accuracy"]
    assert [t.name for t in figures["loss"].data] == ["train", "validation"]
    assert len(figures["loss"].data[0].x) == 400
    assert figures["loss"].layout.yaxis.type == "log"
    assert list(learning_curves([("a", 0, "x", 1.0), ("b", 0, "x", float("nan"))])) == ["a · x", "b · x"]


def test_figures_hold_what_they_were_given():
    bars = bars_with_intervals({"m": {"acc": Metric(0.5, 0.4, 0.7)}, "b": {"acc": Metric(0.3)}})
    assert [trace.name for trace in bars.data] == ["m", "b"]
    assert bars.data[0].error_x.array[0] == pytest.approx(0.2)
    grid = image_grid(np.linspace(0, 1, 5 * 4 * 6).reshape(5, 4, 6), columns=3)
    picture = Image.open(BytesIO(base64.b64decode(grid.data[0].source.split(",")[1])))
    assert picture.size == (3 * 6 + 2, 2 * 4 + 1)
    assert picture.getpixel((0, 0))[0] == 0
    assert image_grid(np.zeros((2, 3, 4, 4, 3), np.uint8), row_titles=["a", "b"]).layout.yaxis.ticktext == ("a", "b")
    for wrong in (lambda: heatmap(np.zeros(3)), lambda: image_grid(np.zeros((3, 3)))):
        with pytest.raises(DataError):
            wrong()


def test_media_are_small_and_readable():
    picture = Image.open(
        BytesIO(base64.b64decode(thumbnail(np.random.default_rng(0).random((300, 600, 3))).split(",")[1]))
    )
    assert picture.size == (72, 36)
    with wave.open(BytesIO(base64.b64decode(wav(np.zeros((96_000, 2)), 48_000).split(",")[1]))) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (11_025, 22_050)


def test_five_thousand_points_are_quick_and_small(tmp_path):
    rng = np.random.default_rng(0)
    plane = project(rng.normal(size=(5000, 32)), tsne_most=200)
    items = [Preview(image=image) for image in rng.random((5000, 40, 40, 3))]
    many = EmbeddingMap(
        plane, np.arange(5000), {"class": rng.integers(0, 9, 5000), "size": rng.normal(size=5000)}, items
    )
    start = time.perf_counter()
    report(embedding_map=many).write(tmp_path / "report.html")
    assert time.perf_counter() - start < 15  # about two seconds on an idle core
    assert (tmp_path / "report.html").stat().st_size < 8e6
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
def test_a_browser_draws_it_without_complaint(tmp_path):
    path = tmp_path / "report.html"
    scatter = go.Figure(go.Scatter(x=[1, 2], y=[1, 3]))
    report(pictures=[Picture(image_grid(np.zeros((3, 8, 8))), "Grid"), Picture(scatter, "Line")]).write(path)
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
        "--virtual-time-budget=20000", "--dump-dom",
    ]  # fmt: skip
    command = ["chromium", *options, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    browser = subprocess.run(command, capture_output=True, text=True, timeout=120)
    console = [line for line in browser.stderr.splitlines() if "CONSOLE" in line and "WebGL" not in line]
    assert not console
    assert 'data-drawn="4"' in browser.stdout  # a learning curve, two pictures, the map
    assert browser.stdout.count('class="main-svg"') >= 4
    assert "scatterlayer" in browser.stdout
    assert re.search(r'id="map-plot"[^>]*>.*?<(canvas|path class="point")', browser.stdout, re.DOTALL)
