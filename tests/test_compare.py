"""Which representation is best: the rule, what can be compared, what is refused, what is written."""

import json
from html import escape

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from repertory import catalog
from repertory.card import Claim
from repertory.cli import main
from repertory.comparison import Budget, compare, read_vectors
from repertory.comparison.candidates import Pretrained, _pixels
from repertory.data.images import Images
from repertory.data.manifest import manifest_from_table
from repertory.embeddings import Embeddings
from repertory.encoders import Convention
from repertory.errors import ConfigError, DataError, UserError
from repertory.experiments import against_best, claim_on, run_claims

torch.set_num_threads(1)
N = 150
ENCODER = "timm:test_resnet?pretrained=false"
pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture(scope="module")
def images():
    """Noise with a bright left or right half: the label; how bright: a number."""
    random = np.random.default_rng(0)
    pixels = random.uniform(0, 0.4, (N, 8, 8))
    side, light = random.integers(2, size=N), random.uniform(0.1, 0.6, N)
    for i in range(N):
        pixels[i, :, 4 * side[i] : 4 * side[i] + 4] += light[i]
    columns = {
        "label": np.where(side, "right", "left"), "light": light, "right": side, "bright": (light > 0.35).astype(int),
        "patient": [f"p{i // 3}" for i in range(N)],
    }  # fmt: skip
    return Images([f"{i:03d}" for i in range(N)], list(pixels), columns, {"label": ("label",)})


@pytest.fixture(scope="module")
def stored(images, tmp_path_factory):
    """Good vectors (the pixels) and bad ones (noise), each in every format."""
    folder = tmp_path_factory.mktemp("vectors")
    pixels = np.stack([np.asarray(s, np.float32).ravel() for s in images.sources])
    noise = np.random.default_rng(1).normal(size=(N, 6)).astype(np.float32)
    order = np.random.default_rng(2).permutation(N)  # matched by id, not by place
    ids = np.array([str(i) for i in images.ids])[order]
    pd.DataFrame(pixels[order]).rename(columns=str).assign(id=ids).to_csv(folder / "pixels.csv", index=False)
    pd.DataFrame({"id": ids, "v": list(pixels[order])}).to_parquet(folder / "pixels.parquet")
    np.savez(folder / "pixels.npz", ids=ids, vectors=pixels[order])
    np.save(folder / "pixels.npy", pixels[order])
    (folder / "ids.txt").write_text("\n".join(ids))
    Embeddings.build(pixels[order], id=list(ids)).write(folder / "ours.parquet")
    np.savez(folder / "noise.npz", id=sorted(ids), vectors=noise)
    np.savez(folder / "few.npz", id=ids[:100], vectors=pixels[order][:100])
    return folder


# -- the rule ------------------------------------------------------------------------------------------------


def hits(*accuracies, n=400, seed=0):
    """A candidate: per seed which of n test items it gets right."""
    random = np.random.default_rng(seed)
    rows = [random.permutation(np.arange(n) < round(a * n)).astype(float) for a in accuracies]
    return [lambda weights, row=row: weights @ row / weights.sum(-1) for row in rows]


def test_the_rule():
    best, same, worse = hits(0.9, 0.9, 0.9), hits(0.89, 0.9, 0.88, seed=1), hits(0.6, 0.6, 0.6, seed=2)
    found = against_best([worse, best, same], np.arange(400))
    assert [s.verdict for s in found] == ["worse", "best", "as good"]
    assert found[1].gap == found[1].gap_low == found[1].gap_high == 0
    for s in found:
        assert s.low <= s.mean <= s.high <= 1
        assert s.gap_low <= s.gap <= s.gap_high
    assert found == against_best([worse, best, same], np.arange(400))  # no randomness


def test_pairing_sees_small_differences_that_are_everywhere():
    random = np.random.default_rng(0)
    base = random.uniform(size=400)
    one, other = (lambda w: w @ base / w.sum(-1)), (lambda w: w @ (base - 0.01) / w.sum(-1))
    assert [s.verdict for s in against_best([[one], [other]], np.arange(400))] == ["best", "worse"]


def test_seeds_widen_the_interval():
    steady, shaky = hits(0.8, 0.8, 0.8, n=4000), hits(0.6, 0.8, 1.0, n=4000)
    a, b = against_best([steady, shaky], np.arange(4000))
    assert b.high - b.low > 5 * (a.high - a.low)
    assert "worse" not in (a.verdict, b.verdict)


def test_groups_are_drawn_as_wholes():
    row = np.repeat(np.arange(40) % 2, 10).astype(float)
    statistic = [lambda w: w @ row / w.sum(-1)]
    alone, together = (
        against_best([statistic, statistic], groups)[0] for groups in (np.arange(400), np.arange(400) // 10)
    )
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_more_comparisons_ask_for_more():
    pair = [hits(0.9, n=300), hits(0.85, n=300, seed=1)]
    few = against_best(pair, np.arange(300))[1]
    many = against_best(pair + [hits(0.5, n=300, seed=s) for s in range(2, 8)], np.arange(300))[1]
    assert many.gap_high - many.gap_low > few.gap_high - few.gap_low


# -- the comparison ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(images, stored, tmp_path_factory):
    lines = []
    runs = tmp_path_factory.mktemp("runs")
    asked = ["toy?dim=8&batch_size=8", f"vectors:{stored / 'pixels.npz'}", f"vectors:{stored / 'noise.npz'}"]
    made = compare(asked, images, seeds=2, budget="20", runs=runs, watch=lines.append)
    return made, lines, runs, asked


def test_a_mix(found, stored):
    made, lines, _, _ = found
    rows = {row.candidate.rpartition("/")[2]: row for row in made.rows}
    assert made.rows[0].verdict == "best"
    assert rows["noise.npz"].verdict == "worse"
    assert rows["pixels.npz"].mean > 0.9
    assert rows["noise.npz"].low < made.chance + 0.1
    assert (made.task, made.metric, made.train, made.test, made.seeds) == ("classes", "accuracy", 120, 15, 2)
    toy = rows["toy?dim=8&batch_size=8"]
    assert (toy.width, toy.length, toy.what, len(toy.values)) == (8, "20 steps", "fitted here", 2)
    assert toy.fit_seconds > 0
    assert all(row.embed_seconds >= 0 and row.knn is not None for row in made.rows)
    assert len(lines) == 2 + 1 + 1  # stored vectors are the same for every seed


def test_goes_on_where_it_stopped(found, images, monkeypatch):
    made, _, runs, asked = found
    assert len(list(runs.glob("toy-*/weights.safetensors"))) == 2
    monkeypatch.setattr("repertory.training.TorchSystem._fit", lambda *a: pytest.fail("was fitted already"))
    again = compare(asked, images, seeds=2, budget="20", runs=runs)
    old, new = ({r.candidate: r for r in c.rows}[asked[0]] for c in (made, again))
    assert (old.values, old.fit_seconds, old.length) == (new.values, new.fit_seconds, new.length)


def test_everything_is_written(found, tmp_path):
    made = found[0]
    for suffix in ("md", "tex", "html", "json", "csv"):
        made.write(tmp_path / f"c.{suffix}")
    assert (tmp_path / "c.md").read_text().count("\n|") == 1 + len(made.rows)
    tex = (tmp_path / "c.tex").read_text()
    assert tex.count(r"\\") == 1 + len(made.rows)
    assert "\\textbf{" in tex and "batch\\_size" in tex  # noqa: PT018
    plain = json.loads((tmp_path / "c.json").read_text(), parse_constant=pytest.fail)
    assert [row["candidate"] for row in plain["rows"]] == [row.candidate for row in made.rows]
    assert len(pd.read_csv(tmp_path / "c.csv")) == len(made.rows)
    page = (tmp_path / "c.html").read_text()
    assert escape(made.finding) in page
    assert str(tmp_path.parent) not in page  # no path of this machine
    assert "https://" not in page.partition("<script>")[0]
    with pytest.raises(ConfigError, match="suffix"):
        made.write(tmp_path / "c.docx")


@pytest.mark.parametrize(
    ("label", "task", "metric"),
    [("light", "regression", "R²"), ("right,bright", "multilabel", "AUROC"), ("patient", None, None)],
)
def test_by_the_type_of_the_label(images, stored, label, task, metric):
    asked = [f"vectors:{stored / 'pixels.npz'}", f"vectors:{stored / 'noise.npz'}"]
    if task is None:  # a class that is not in the training part
        with pytest.raises(DataError, match="does not occur in training"):
            compare(asked, images.take(np.arange(0, N, 3)), label=label)
        return
    made = compare(asked, images, label=label, seeds=1)
    assert (made.task, made.metric, made.label) == (task, metric, label.replace(",", ", "))
    assert made.best.candidate == asked[0]
    assert made.rows[1].verdict == "worse"
    assert made.best.knn is None
    assert made.best.mean > made.chance + 0.2


def test_without_labels_and_groups(images, stored):
    asked = [f"vectors:{stored / 'pixels.npz'}", f"vectors:{stored / 'noise.npz'}"]
    light = [None if i % 4 == 0 else float(v) for i, v in enumerate(images.column("light"))]
    gaps = Images(images.ids, images.sources, {"light": light, "patient": images.columns["patient"]},
                  {"label": ("light",), "group": ("patient",)})  # fmt: skip
    made = compare(asked, gaps, seeds=1)
    assert made.rule == "group:patient"
    assert made.groups is not None
    assert made.groups <= made.test
    assert 20 < made.unlabelled < 40
    assert "without a label" in made.method


@pytest.mark.parametrize(
    "name", ["pixels.csv", "pixels.parquet", "pixels.npz", "pixels.npy?ids={0}/ids.txt", "ours.parquet"]
)
def test_vectors_from_files(images, stored, name):
    made = read_vectors(f"{stored}/{name.format(stored)}")
    place = {i: n for n, i in enumerate(made.column("id"))}
    want = np.stack([np.asarray(s, np.float32).ravel() for s in images.sources])
    np.testing.assert_allclose(made.vectors[[place[i] for i in images.ids]], want, rtol=1e-6)


def test_python_objects(images, stored):
    half = images.take(np.arange(75))
    system = catalog.create("toy", steps=3).fit(half)
    made = compare([system, read_vectors(f"{stored}/pixels.npz")], images.take(np.arange(75, N)), seeds=1)
    assert {row.candidate for row in made.rows} == {"toy", "embeddings"}


def test_encoders(images, stored):
    few = images.take(np.arange(40))
    made = compare([ENCODER, f"vectors:{stored / 'pixels.npz'}"], few, seeds=2)
    encoder = next(row for row in made.rows if row.candidate == ENCODER)
    assert (encoder.what, encoder.width, len(set(encoder.values))) == ("encoder, untrained", 96, 2)
    color = Pretrained(ENCODER)
    color.load()
    color.prepare(few)
    np.testing.assert_allclose(  # nothing depends on what else is in the batch
        color.vectors(few, 0)[7:9], color.vectors(few.take([7, 8]), 0), rtol=1e-4, atol=1e-5
    )
    pixels = _pixels(Image.new("RGB", (50, 20), (255, 0, 0)), Convention(16, (0.5, 0.5, 0.5), (0.5, 0.25, 0.5)))
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, 3, 3].tolist() == [1, -2, -1]
    assert _pixels(Image.new("RGB", (9, 9), (255,) * 3), Convention(4, (0.5,), (0.5,), 1)).tolist() == [[[1.0] * 4] * 4]


# -- budgets -------------------------------------------------------------------------------------------------


def test_budgets(images, monkeypatch):
    assert Budget.parse("500") == Budget(steps=500)
    assert [Budget.parse(t).seconds for t in ("90s", "5m", "0.5h")] == [90, 300, 1800]
    for text in ("5.5", "0", "-3s", "soon", "nans", "s"):
        with pytest.raises(ConfigError, match="expected steps"):
            Budget.parse(text)
    import time as clock

    spent = [0.0]
    monkeypatch.setattr("repertory.comparison.candidates.time.perf_counter", lambda: spent[0])

    def fit(self, splits, steps=None, epochs=None, **options):
        spent[0] += 1 + 0.1 * steps  # a second to start, ten steps a second
        self.model = self.record = None
        return self

    assert clock
    from repertory.comparison.candidates import Fitted

    monkeypatch.setattr("tests.toy.Toy.fit", fit)
    assert Fitted("toy")._affordable(None, 60)["steps"] == pytest.approx(590, abs=15)
    assert Fitted("toy")._affordable(None, 0.5) == {"steps": 1}


# -- what is refused -----------------------------------------------------------------------------------------


def test_data_that_a_run_was_trained_on(images, tmp_path, stored):
    catalog.create("toy", steps=2).fit(images, run=tmp_path / "r")
    vectors = f"vectors:{stored / 'pixels.npz'}"
    made = compare([str(tmp_path / "r"), vectors], images, seeds=1)  # its own held-out split
    assert {row.what for row in made.rows} == {"run", "vectors"}
    other = Images(images.ids[::-1], images.sources, {"label": images.column("label")}, images.roles)  # other ids
    with pytest.raises(DataError, match="for comparison were trained on"):
        compare([str(tmp_path / "r"), vectors], other)


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (["toy"], {}, "at least two"),
        (["toy", "toy"], {}, "named twice"),
        (["toy", "tay"], {}, "did you mean 'toy'"),
        (["toy", "no/such/run"], {}, "no run here"),
        (["toy", "symile"], {}, "symile reads manifest"),
        (["toy", "toy?dmi=3"], {}, "did you mean 'dim'"),
        (["toy", "vectors:{}/nothing.npz"], {}, "no such file"),
        (["toy", "vectors:{}/pixels.npy"], {}, "give them as .ids=FILE"),
        (["toy", "vectors:{}/pixels.csv?id=name"], {}, "no column 'name'"),
        (["toy", "vectors:{}/pixels.csv?sep=x"], {}, "unknown option 'sep'"),
        (["vectors:{0}/few.npz", "vectors:{0}/noise.npz"], {}, "items have no vector .first: "),
        (["toy", "timm:test_resnett?pretrained=false"], {}, "did you mean"),
        (["toy", "vectors:{}/noise.npz"], {"label": "species"}, "no column 'species'"),
        (["toy", "vectors:{}/noise.npz"], {"seeds": 0}, "seeds=0"),
        (["toy", "vectors:{}/noise.npz"], {"budget": "soon"}, "expected steps"),
    ],
)  # fmt: skip
def test_mistakes(images, stored, asked, options, message):
    with pytest.raises(UserError, match=message) as caught:
        compare([a.format(stored) for a in asked], images, kind="images", **options)
    assert "\n" not in str(caught.value)


def test_no_label(images, stored):
    bare = Images(images.ids, images.sources, {"light": images.column("light")})
    with pytest.raises(DataError, match="no label: name a column with --label"):
        compare([f"vectors:{stored / 'noise.npz'}", f"vectors:{stored / 'pixels.npz'}"], bare)


# -- the command line ----------------------------------------------------------------------------------------


def test_the_command(images, tmp_path, capsys):
    for i, label in enumerate(images.column("label")[:60]):
        path = tmp_path / "images" / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.image(i).save(path)
    assert Image.open(path).size == (8, 8)
    names = [f"{label}/{i}.png" for i, label in enumerate(images.column("label")[:60])]
    for name in ("a", "b"):
        table = np.random.default_rng(ord(name)).normal(size=(60, 3))
        pd.DataFrame(table, columns=list("xyz")).assign(id=names).to_csv(tmp_path / f"{name}.csv", index=False)
    asked = ["compare", f"vectors:{tmp_path / 'a.csv'}", f"vectors:{tmp_path / 'b.csv'}"]
    data = ["--data", str(tmp_path / "images"), "--seeds", "1"]
    assert main([*asked, *data, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2
    assert main([*asked, *data, "--out", str(tmp_path / "c.md")]) == 0
    assert "is best" in capsys.readouterr().out
    assert (tmp_path / "c.md").exists()
    for wrong, message in ((["--out", "c.docx"], "suffix"), (["--task", "clases"], "did you mean 'classes'")):
        assert main([*asked, *data, *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


# -- a claim on other data -----------------------------------------------------------------------------------


def test_a_claim_on_other_data():
    made = Claim(
        "c", "f", "p", "its own data", "m", {"method": float, "base": float, "other": float}, ("base",), margin=5,
        on={"method": lambda splits, seed: splits + seed, "base": lambda splits, seed: seed},
    )  # fmt: skip
    [result] = run_claims("toy", [claim_on(made, 3, "mine.csv")])
    assert (result.claim, result.margin, result.gap, result.verdict) == ("c on mine.csv", 0, 3, "reproduced")
    assert [m.variant for m in result.measured] == ["method", "base"]
    with pytest.raises(UserError, match=r"its own data alone \(its own data\)"):
        claim_on(Claim("c", "f", "p", "its own data", "m", {"a": float, "b": float}, ("b",)), 3, "mine.csv")
    with pytest.raises(ConfigError, match="'on' needs a, then"):
        Claim("c", "f", "p", "d", "m", {"a": float, "b": float}, ("b",), on={"b": max, "a": max})


def test_claims_of_systems_on_other_data(capsys, tmp_path):
    random = np.random.default_rng(0)
    b = random.integers(2, size=(60, 4)).astype(np.float32)
    np.savez(tmp_path / "m.npz", a=b + 0.1, b=b + 0.2, c=b[:, :1] * np.ones((1, 3), np.float32))
    assert main(["claim", "symile", "--name", "xor", "--data", str(tmp_path / "m.npz")]) == 2
    assert "its own data alone" in capsys.readouterr().err
    assert main(["claim", "--all", "--data", str(tmp_path / "m.npz")]) == 2
    assert "name one system" in capsys.readouterr().err
    assert any(claim.on for claim in catalog.entry("symile").claims())
    assert [c.name for c in catalog.entry("music_word2vec").claims() if c.on] == [
        "circle-of-fifths",
        "circle-of-fifths-nce",
    ]


# -- models of the Hugging Face hub --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A language model and an image model with random weights, saved as the hub has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, ViTConfig, ViTImageProcessor, ViTModel

    folder = tmp_path_factory.mktemp("hub")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "red", "blue", "bird", "boat", "on", "water"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder / "text")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(words), **small)).save_pretrained(folder / "text")
    ViTModel(ViTConfig(image_size=16, patch_size=8, **small)).save_pretrained(folder / "image")
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.1] * 3).save_pretrained(folder / "image")
    return folder


def test_hub_models(hub, images):
    texts = [f"a {'red' if i % 2 else 'blue'} {'bird on water' if i % 3 else 'boat'}" for i in range(40)]
    items = manifest_from_table(
        pd.DataFrame({"caption": texts, "vector": [np.ones(2)] * 40, "label": [t.split()[1] for t in texts]}), hub
    )
    one = Pretrained(f"hf:{hub / 'text'}")
    one.load()
    one.prepare(items)
    together = one.vectors(items, 0)
    assert together.shape == (40, 8)
    alone = np.concatenate([one.vectors(items.take([i]), 0) for i in range(3)])
    np.testing.assert_allclose(together[:3], alone, atol=1e-6)  # no padding takes part
    with pytest.raises(ConfigError, match="reads texts; the data are of kind images"):
        one.prepare(images)
    other = Pretrained(f"hf:{hub / 'image'}")
    other.load()
    other.prepare(images)
    assert (other.look.size, other.look.mean) == (16, (0.1, 0.1, 0.1))
    assert other.vectors(images.take([0, 1]), 0).shape == (2, 8)
    with pytest.raises(ConfigError, match="one image an item; the data have 0 columns of images"):
        other.prepare(items)
