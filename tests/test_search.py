"""Search: every inductive system has it, over the vectors of its own run alone."""

import json

import numpy as np
import pytest
import torch

from repertory import catalog
from repertory.cli import main
from repertory.data.images import Images
from repertory.embeddings import Embeddings
from repertory.errors import ConfigError, DataError, UserError

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return Images([f"{i:02d}" for i in range(40)], list(random.uniform(size=(40, 8, 8))),
                  {"label": [f"c{i % 4}" for i in range(40)]}, {"label": ("label",)})  # fmt: skip


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "r"
    catalog.create("toy", steps=4).fit(images, run=path)
    return path


@pytest.fixture(scope="module")
def system(run):
    return catalog.load(run)


def test_finds_itself_then_the_nearest(system, images):
    index = system.embed(images)
    found = system.search(images.take([3, 7]), index, k=5)
    assert found.column_names == ["id", "rank", "similarity", "neighbour_id", "neighbour_label"]
    rows = found.to_pandas()
    assert rows["id"].tolist() == ["03"] * 5 + ["07"] * 5
    assert rows["rank"].tolist() == [1, 2, 3, 4, 5] * 2
    assert rows.groupby("id")["neighbour_id"].first().tolist() == ["03", "07"]
    units = index.vectors / np.linalg.norm(index.vectors, axis=1, keepdims=True)
    want = np.sort(units[[3, 7]] @ units.T, axis=1)[:, ::-1][:, :5]
    np.testing.assert_allclose(rows["similarity"].to_numpy().reshape(2, 5), want, atol=1e-5)
    assert (rows["neighbour_label"] == [f"c{int(i) % 4}" for i in rows["neighbour_id"]]).all()


def test_indexes_and_queries_of_every_form(system, images, tmp_path):
    index = system.embed(images)
    want = system.search(images, index, k=3)
    index.write(tmp_path / "one.parquet")
    system.embed_to(tmp_path / "shards", images)
    for there in (tmp_path / "one.parquet", tmp_path / "shards", str(tmp_path / "shards")):
        assert system.search(images, there, k=3).equals(want)
    assert system.search(index, index, k=3).equals(want)
    assert len(system.search(images, index, k=99)) == 40 * 40  # at most what is there


def test_vectors_of_another_run_are_refused(system, images):
    index = system.embed(images)
    other = catalog.create("toy", steps=2).fit(images, seed=1).embed(images)
    with pytest.raises(DataError, match="index: vectors of another run"):
        system.search(images, other)
    with pytest.raises(DataError, match="queries: vectors of another run"):
        system.search(other, index)
    with pytest.raises(DataError, match="index: vectors of another run"):
        system.search(images, Embeddings.build(index.vectors, id=index.column("id")))


def test_mistakes(system, images, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="k=0"):
        system.search(images, system.embed(images), k=0)
    with pytest.raises(UserError, match="no embeddings here"):
        system.search(images, tmp_path)
    with pytest.raises(UserError, match="needs an index"):
        system.search(images)
    with pytest.raises(UserError, match="not fitted yet"):
        catalog.create("toy").search(images, tmp_path)
    monkeypatch.setattr(type(system), "card", system.card.model_copy(update={"inductive": False}))
    with pytest.raises(UserError, match="cannot search with new queries"):
        system.search(images, tmp_path)


def test_the_command(run, images, tmp_path, capsys):
    np.savez(tmp_path / "q.npz", images=np.stack(images.sources)[:3])
    np.savez(tmp_path / "all.npz", images=np.stack(images.sources))
    asked = ["search", str(run), "--data", str(tmp_path / "q.npz")]
    assert main(asked) == 2
    assert "no embeddings here" in capsys.readouterr().err
    assert main(["embed", str(run), "--data", str(tmp_path / "all.npz"), "--out", str(tmp_path / "v")]) == 0
    capsys.readouterr()
    assert main([*asked, "--index", str(tmp_path / "v"), "-k", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 6
    assert main([*asked, "--index", str(tmp_path / "v"), "--out", str(tmp_path / "n.csv")]) == 0
    assert len((tmp_path / "n.csv").read_text().splitlines()) == 31
