"""The explorer: what it answers, who may ask, and that a browser draws it and can be used."""

from __future__ import annotations

import base64
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

import repertory
from repertory.cli import explore as command
from repertory.cli import main
from repertory.embeddings import Embeddings
from repertory.errors import UserError
from repertory.reporting.explorer import Exploration, gather
from repertory.reporting.explorer.app import CONFIG, build
from repertory.reporting.explorer.exploration import with_scores
from repertory.reporting.explorer.server import bind, is_loopback
from repertory.reporting.projection import Projection

DATA = "spoken-numbers?triples=1200"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "run"
    repertory.create("symile", "tiny").fit(DATA, run=path)
    return path


@pytest.fixture(scope="module")
def exploration(run) -> Exploration:
    return gather(repertory.load(run), run)[0]


def numbers(n: int, width: int = 4) -> Embeddings:
    vectors = np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)
    made = Embeddings.build(vectors, id=[f"item{i}" for i in range(n)])
    columns = {"size": np.arange(n, dtype=float), "kind": np.array(["a", "b", None], dtype=object)[np.arange(n) % 3]}
    return made.with_columns(made.column("id"), pa.table(columns))


# -- what it answers ---------------------------------------------------------------------------------------


def test_neighbours_are_the_nearest_by_cosine(exploration):
    vectors = exploration.embeddings.vectors / np.linalg.norm(exploration.embeddings.vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[5]
    cosines[5] = -np.inf
    found = exploration.neighbours(5, 7)
    np.testing.assert_allclose([c for _, c in found], np.sort(cosines)[::-1][:7], atol=1e-6)
    assert 5 not in [row for row, _ in found]
    for row, cosine in exploration.neighbours(5, 4, among="text"):
        assert exploration.embeddings.column("modality")[row] == "text"
        assert cosine == pytest.approx(float(cosines[row]), abs=1e-6)
    assert exploration.groups == ["audio", "image", "text"]


def test_fewer_vectors_than_neighbours():
    few = Exploration(numbers(3))
    assert len(few.neighbours(0, 10)) == 2
    assert Exploration(numbers(1)).neighbours(0, 10) == []
    assert list(Exploration(numbers(1)).projection.views) == ["PCA"]


def test_a_text_is_embedded_as_the_system_does(exploration):
    items, embeddings = exploration.items, exploration.embeddings
    text = items.preview(3).text
    row = exploration.find(f"{items.ids[3]} / text")
    assert embeddings.column("id")[row] == items.ids[3]
    np.testing.assert_allclose(exploration.find(f" {text} "), embeddings.vectors[row], atol=1e-5)
    assert exploration.neighbours(exploration.find(text), 1, among="text")[0][1] == pytest.approx(1, abs=1e-5)


def test_an_id_that_is_not_there_says_what_is():
    plain = Exploration(numbers(30))
    assert plain.find("item7") == 7
    assert plain.find("ITEM29") == 29
    for typed, message in (
        ("", "type an id"),
        ("item2", None),
        ("em2", "11 ids hold 'em2'"),
        ("itme7", "did you mean"),
    ):
        if message is None:
            assert plain.find(typed) == 2
            continue
        with pytest.raises(UserError, match=message):
            plain.find(typed)
    with pytest.raises(UserError, match="ids look like item0"):
        plain.find("???")


def test_previews_are_the_items(exploration):
    card = exploration.preview(0, 96)
    assert card["image"].startswith("data:image/")
    assert card["audio"].startswith("data:audio/wav")
    assert card["text"]
    assert card["small"]
    assert Exploration(numbers(3)).preview(0, 96) == {}


def test_coordinates_and_colours_are_packed(monkeypatch):
    monkeypatch.setattr("repertory.reporting.explorer.exploration.TSNE", 40)
    many = Exploration(numbers(90))
    assert next(iter(many.projection.views)) == "PCA"  # t-SNE places a sample only
    assert many.view_label("t-SNE") == "t-SNE of 40 sampled"
    plane, colours = many.plane("PCA"), many.colours("size")
    x = np.frombuffer(base64.urlsafe_b64decode(plane["x"]["bdata"]), "<f4")
    np.testing.assert_array_equal(x, many.projection.views["PCA"][:, 0])
    assert "rows" not in plane
    assert colours["numbers"]["dtype"] == "f4"
    kinds = many.colours("kind")
    codes = np.frombuffer(base64.urlsafe_b64decode(kinds["codes"]["bdata"]), "<i1")
    assert kinds["names"] == ["a", "b"]
    assert codes[:6].tolist() == [0, 1, -1, 0, 1, -1]


def test_two_hundred_thousand_points_stay_small():
    many = Exploration(numbers(200_000))
    points = np.random.default_rng(1).normal(size=(200_000, 2)).astype(np.float32)
    many.__dict__["projection"] = Projection(np.arange(200_000), {"PCA": points}, (0.5, 0.4), 200_000)
    assert len(str(many.plane("PCA"))) < 2.3e6
    assert len(str(many.colours("kind"))) < 3e5
    many.neighbours(0)
    start = time.perf_counter()
    assert len(many.neighbours(17)) == 10
    assert time.perf_counter() - start < 1  # some milliseconds on an idle core


def test_umap_comes_first_where_it_is_asked_for(monkeypatch):
    asked = {}

    class UMAP:  # the real one compiles for half a minute
        def __init__(self, **options):
            asked.update(options)

        def fit_transform(self, vectors):
            return vectors[:, :2].astype(np.float64)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    made = Exploration(numbers(12), umap=True, seed=3)
    assert list(made.projection.views) == ["UMAP", "t-SNE", "PCA"]
    assert made.projection.views["UMAP"].dtype == np.float32
    assert asked["metric"] == "cosine"
    assert asked["random_state"] == 3
    assert asked["n_neighbors"] == 11
    assert "UMAP" not in Exploration(numbers(5), umap=True).projection.views


def test_scores_are_carried_along():
    made = with_scores(
        numbers(4), pa.table({"id": ["item3", "item2", "item1", "item0"], "score": [3.0, 2.0, 1.0, 0.0]})
    )
    assert made.column("score").tolist() == [0, 1, 2, 3]
    assert "score" not in with_scores(numbers(4), pa.table({"id": ["item3"], "score": [1.0]})).columns


class Predicting:
    """A system that predicts, as far as the explorer sees one."""

    class card:
        verbs = ("predict",)

    def predict(self, data, *, out=None):
        if data == "nowhere":
            raise UserError("nowhere: no such file")
        return pa.table({"id": [str(i) for i in data.ids], "positive": [0.75] * len(data), "out": [str(out)]})


def test_predict_asks_about_the_kept_item(exploration, run):
    before = sorted(run.rglob("*"))
    asking = Exploration(exploration.embeddings, exploration.items, Predicting())
    table = asking.predict(4)
    assert table["id"].to_pylist() == [exploration.embeddings.column("id")[4]]
    assert not Path(table["out"][0].as_py()).is_relative_to(run)  # nothing is written into the run
    assert sorted(run.rglob("*")) == before
    with pytest.raises(UserError, match="choose an item"):
        asking.predict()
    with pytest.raises(UserError, match="no such file"):
        asking.predict(source="nowhere")
    assert not exploration.predicts
    ids = {getattr(part, "id", None) for part in build(asking, title="P").layout._traverse()}
    assert {"predict", "source", "answer"} <= ids


# -- where the vectors come from ---------------------------------------------------------------------------


def test_vectors_of_this_run_are_taken_and_no_others(run, tmp_path):
    system = repertory.load(run)
    made, note = gather(system, run)
    assert note.endswith("embedded now")
    assert not (run / "embeddings").exists()
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    system.embed_to(copy / "embeddings")
    stored, note = gather(system, copy)
    assert str(copy / "embeddings") in note
    np.testing.assert_array_equal(stored.embeddings.vectors, made.embeddings.vectors)

    manifest = copy / "embeddings" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(system.fingerprint, "0" * 32))
    assert gather(system, copy)[1].endswith("embedded now")
    manifest.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        gather(system, copy)


def test_vectors_of_other_data_are_shown_without_items(run, tmp_path):
    system, copy = repertory.load(run), tmp_path / "run"
    shutil.copytree(run, copy)
    other = "spoken-numbers?triples=900"
    system.embed_to(copy / "embeddings", other)
    made, note = gather(system, copy)
    assert "--data" in note
    assert made.preview(0, 96) == {}
    assert made.text_modality is None
    made, _ = gather(system, copy, other)
    assert made.preview(0, 96)["text"]


# -- who may ask -------------------------------------------------------------------------------------------


def test_this_machine_alone_is_answered_without_a_token(exploration):
    client = build(exploration, title="Symile").server.test_client()
    answer = client.get("/", headers={"Host": "localhost:8050"})
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "http" not in policy
    assert b"https://" not in answer.data
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    crossed = {"Host": "localhost:8050", "Origin": "https://evil.example"}
    assert client.post("/_dash-update-component", json={}, headers=crossed).status_code == 403
    assert CONFIG["showSendToCloud"] is False
    assert CONFIG["plotlyServerURL"] == ""


def test_a_token_opens_and_is_kept_in_a_cookie(exploration):
    server = build(exploration, title="Symile", token="secret").server
    for path in ("/", "/_dash-layout", "/?token=wrong", "/?token=", "/?token=sécret", "/assets/explorer.js"):
        answer = server.test_client().get(path)
        assert answer.status_code == 403, path
        assert b"secret" not in answer.data
    client = server.test_client()
    answer = client.get("/?token=secret")
    assert answer.status_code == 302
    assert answer.headers["Location"] == "/"
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert client.get("/").status_code == 200
    assert client.get("/_dash-layout").status_code == 200
    assert server.test_client().get("/_dash-layout?token=secret").status_code == 200


def test_other_addresses_need_a_token(run, monkeypatch, capsys):
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.8.8.8")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.5", "example.org", "localhost.example.org")))
    tokens = []

    class Stopped:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def serve_forever(self):
            pass

    def build_(exploration, **options):
        tokens.append(options["token"])
        return build(exploration, **options)

    monkeypatch.setattr("repertory.reporting.explorer.app.build", build_)
    monkeypatch.setattr("repertory.reporting.explorer.server.serving", lambda app, listening: Stopped())
    assert main(["explore", str(run), "--host", "0.0.0.0", "--port", "0", "--no-browser"]) == 0
    shown = capsys.readouterr().out
    assert len(tokens[0]) >= 32
    assert shown.count(tokens[0]) == 1
    assert main(["explore", str(run), "--port", "0", "--no-browser"]) == 0
    assert tokens[1] is None
    assert "http://127.0.0.1:" in capsys.readouterr().out


# -- mistakes ----------------------------------------------------------------------------------------------


def one_line(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_port_in_use_is_one_line(run, capsys):
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert main(["explore", str(run), "--port", str(port), "--no-browser"]) == 2
        assert one_line(capsys) == f"error: port {port} is in use: choose another with --port, or 0 for any free one"


def test_wrong_folders_and_hosts_are_one_line(tmp_path, capsys):
    start = ["explore", "--port", "0", "--no-browser"]
    assert main([*start, str(tmp_path / "none")]) == 2
    assert "no run here" in one_line(capsys)
    (tmp_path / "config.yaml").write_text("format: 1\nslug: symile\nconfig: {}\n")
    assert main([*start, str(tmp_path)]) == 2
    assert "has not come to its end" in one_line(capsys)
    assert main([*start, str(tmp_path), "--host", "no.such.host.invalid"]) == 2
    assert "--host no.such.host.invalid" in one_line(capsys)


@pytest.mark.parametrize(("module", "package"), [("dash", "dash"), ("umap", "umap-learn")])
def test_a_missing_extra_is_named(run, capsys, monkeypatch, module, package):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == module else object())
    assert main(["explore", str(run), "--umap", "--no-browser"]) == 2
    assert one_line(capsys) == f"error: {package} is not installed: pip install 'repertory[explore]'"


# -- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture
def address(run):
    """Where the command itself serves, in a process of its own."""
    start = [sys.executable, "-m", "repertory", "explore", str(run), "--port", "0", "--no-browser"]
    served = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in served.stdout:
        lines.append(line)
        if line.startswith("http://"):
            break
    assert lines, "".join(lines)
    assert lines[-1].startswith("http://127.0.0.1:"), "".join(lines)
    yield lines[-1].split()[0]
    served.send_signal(signal.SIGINT)
    assert served.wait(20) == 0  # Ctrl-C is how one leaves
    assert "Traceback" not in served.stdout.read()


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver

    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for option in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--window-size=1200,900",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield made
    made.quit()


POINT = """
const place = document.querySelector("#map .js-plotly-plot"), { xaxis, yaxis, _size } = place._fullLayout;
const box = place.getBoundingClientRect();
for (const { x, y, customdata } of place.data) for (let i = 0; i < x.length; i++) if (customdata[i] === arguments[0])
  return [box.left + _size.l + xaxis.d2p(x[i]), box.top + _size.t + yaxis.d2p(y[i])];
"""


def test_a_browser_explores(browser, address, exploration):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def wait(condition):
        return WebDriverWait(browser, 20, poll_frequency=0.05).until(lambda _: condition())

    def text(selector: str) -> str:
        return browser.execute_script("return document.querySelector(arguments[0])?.innerText || ''", selector)

    def traces() -> list[str]:
        return browser.execute_script(
            "return document.querySelector('#map .js-plotly-plot').data.map((trace) => trace.name)"
        )

    def neighbours() -> list[int]:
        return [int(e.get_attribute("data-row")) for e in browser.find_elements(By.CSS_SELECTOR, "#neighbours .name")]

    browser.get(address)
    wait(lambda: browser.execute_script("return document.documentElement.dataset.drawn"))
    assert f"{len(exploration.embeddings)} vectors" in text(".about")
    assert len(traces()) == 10  # the digits

    row = browser.execute_script("return document.querySelector('#map .js-plotly-plot').data[0].customdata[3]")
    x, y = browser.execute_script(POINT, row)
    mouse = ActionChains(browser, duration=50)
    mouse.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    mouse.perform()
    wait(lambda: browser.find_elements(By.CSS_SELECTOR, "#item img"))
    assert not neighbours()
    mouse.click().perform()
    wait(lambda: len(neighbours()) == 10)
    kept = text("#item h2")  # points may lie on one another
    row = exploration.find(kept)
    expected = exploration.neighbours(row)
    shown = [float(e.text.replace("−", "-")) for e in browser.find_elements(By.CSS_SELECTOR, "#neighbours .cosine")]
    np.testing.assert_allclose(shown, [cosine for _, cosine in expected], atol=6e-4)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#neighbours img")) == 10
    assert len(browser.find_elements(By.CSS_SELECTOR, "#neighbours .play")) == 10
    assert browser.find_elements(By.CSS_SELECTOR, "#item audio")
    rings = "return document.querySelector('#map .js-plotly-plot').layout.shapes.length"
    wait(lambda: browser.execute_script(rings) > 1)

    second = neighbours()[1]
    browser.find_element(By.CSS_SELECTOR, f"#neighbours [data-row='{second}']").click()
    wait(lambda: text("#item h2") == exploration.name(second))

    browser.find_element(By.ID, "colour").click()  # colours change, coordinates are not sent again
    browser.get_log("performance")
    option = wait(lambda: browser.find_elements(By.XPATH, "//*[contains(@class, 'dash-options-list-option')]"
                                                          "[normalize-space()='modality']"))[0]  # fmt: skip
    option.click()
    wait(lambda: traces() == ["audio", "image", "text"])
    asked = [
        entry["message"] for entry in browser.get_log("performance") if "Network.requestWillBeSent" in entry["message"]
    ]
    assert any("colours.data" in message for message in asked)
    assert not any("plane.data" in message for message in asked)

    query = browser.find_element(By.ID, "query")
    typed = exploration.items.preview(2).text
    query.send_keys(typed, Keys.ENTER)
    wait(lambda: typed in text("#item h2"))
    assert neighbours() == [near for near, _ in exploration.neighbours(exploration.find(typed))]
    query.send_keys(Keys.CONTROL, "a")
    query.send_keys(exploration.name(11), Keys.ENTER)
    wait(lambda: text("#item h2") == exploration.name(11))
    query.send_keys(Keys.CONTROL, "a")
    query.send_keys(Keys.BACKSPACE, Keys.ENTER)
    wait(lambda: "type a text or an id" in text("#message"))
    browser.find_element(By.CSS_SELECTOR, "[data-clear]").click()
    wait(lambda: not neighbours())

    assert "Share chart" not in browser.page_source
    assert not [line for line in browser.get_log("browser") if "WebGL" not in line["message"]]
    urls = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(url.startswith((address, "data:", "blob:")) for url in urls)
    assert socket.gethostname() not in browser.page_source
