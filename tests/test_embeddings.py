"""Embeddings and their shards."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repertory.embeddings import VECTOR, Embeddings, Shards
from repertory.errors import DataError, UserError

RNG = np.random.default_rng(0)


def made(n=6, width=4, fingerprint="f", start=0):
    vectors = np.random.default_rng(n + start).normal(size=(n, width))
    return Embeddings.build(
        vectors,
        fingerprint,
        id=[f"é{i + start}" for i in range(n)],
        modality=[("image", "text")[i % 2] for i in range(n)],
    )


def same(a, b):
    assert (a.key, a.fingerprint) == (b.key, b.fingerprint)
    assert a.table.equals(b.table)


@given(st.integers(0, 9), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_round_trip(tmp_path_factory, n, width):
    path = tmp_path_factory.mktemp("e") / "v.parquet"
    embeddings = made(n, width).with_columns(
        np.array([f"é{i}" for i in range(n)], object), pa.table({"y": pa.array(range(n), pa.int64())})
    )
    embeddings.write(path)
    again = Embeddings.read(path)
    same(embeddings, again)
    assert again.vectors.shape == (n, width)
    assert again.vectors.dtype == np.float32
    assert again.columns == ["y"]


def test_build_refuses():
    for vectors, ids, says in (
        (np.ones(3), "abc", "shape"),
        (np.array([[1], [np.inf]]), "ab", "vector 1 is not finite"),
        (np.ones((2, 2)), "abc", "2 vectors but 3 values of key 'id'"),
    ):
        with pytest.raises(DataError, match=says):
            Embeddings.build(vectors, id=list(ids))


def test_rows():
    embeddings = made()
    images = embeddings.where(modality="image")
    assert images.column("id").tolist() == ["é0", "é2", "é4"]
    np.testing.assert_array_equal(images.vectors, embeddings.vectors[::2])
    assert images.where(id="é2").vectors.shape == (1, 4)
    np.testing.assert_array_equal(embeddings.take([4, 1]).vectors, embeddings.vectors[[4, 1]])
    np.testing.assert_array_equal(embeddings.take(embeddings.column("id") == "é1").vectors, embeddings.vectors[[1]])
    sliced = Embeddings(embeddings.table.slice(2, 3), embeddings.key)
    np.testing.assert_array_equal(sliced.vectors, embeddings.vectors[2:5])
    for where, says in (
        ({"modality": "imag"}, "did you mean 'image'"),
        ({"modalty": "image"}, "did you mean 'modality'"),
        ({"modality": 3}, "no row"),
        ({"id": None}, "no row"),
    ):
        with pytest.raises(DataError, match=says):
            embeddings.where(**where)


def test_where_compares_in_the_type_of_the_column():
    embeddings = Embeddings.build(np.ones((3, 1)), id=[1, 2, 3])
    assert len(embeddings.where(id=2)) == 1
    for value in ("two", 2.5):
        with pytest.raises(DataError, match="no row"):
            embeddings.where(id=value)


def test_concat():
    parts = [made(3), made(2, start=3)]
    joined = Embeddings.concat(parts)
    np.testing.assert_array_equal(joined.vectors, np.concatenate([p.vectors for p in parts]))
    for other in (made(fingerprint="g"), made(width=5), Embeddings.build(np.ones((1, 4)), "f", id=["a"])):
        with pytest.raises(DataError, match="never mixed"):
            Embeddings.concat([made(), other])
    with pytest.raises(DataError, match="nothing was embedded"):
        Embeddings.concat([])


def test_carried_columns():
    embeddings = made().take([3, 1, 1])
    carried = embeddings.with_columns(
        np.array([f"é{i}" for i in range(6)], object), pa.table({"y": range(6), "id": range(6)})
    )
    assert carried.column("y").tolist() == [3, 1, 1]
    assert carried.column("id").tolist() == ["é3", "é1", "é1"]
    assert embeddings.columns == []


def test_other_forms():
    embeddings = made()
    frame = embeddings.to_pandas()
    assert list(frame) == ["id", "modality", *(f"vector_{i}" for i in range(4))]
    np.testing.assert_array_equal(frame[[f"vector_{i}" for i in range(4)]].to_numpy(), embeddings.to_numpy())
    rows, cosines = embeddings.neighbours(embeddings, k=3)
    assert rows[:, 0].tolist() == list(range(6))
    np.testing.assert_allclose(cosines[:, 0], 1, atol=1e-6)
    assert (np.diff(cosines) <= 0).all()
    with pytest.raises(DataError, match="between 1 and 6"):
        embeddings.neighbours(embeddings, k=7)
    with pytest.raises(DataError, match="width"):
        embeddings.neighbours(np.ones((1, 3)))


def test_faiss_agrees():
    embeddings = made(40, 8)
    found, rows = embeddings.to_faiss().search(
        embeddings.vectors / np.linalg.norm(embeddings.vectors, axis=1)[:, None], 5
    )
    expected, cosines = embeddings.neighbours(embeddings, 5)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(found, cosines, atol=1e-6)


# -- shards -----------------------------------------------------------------------------------------------


def test_shards(tmp_path):
    shards = Shards(tmp_path / "v", {"run": "f"}, resume=False)
    shards.append(made(3)), shards.append(made(2, start=3))
    read = Embeddings.read(tmp_path / "v")
    same(read, Embeddings.concat([made(3), made(2, start=3)]))
    again = Shards(tmp_path / "v", {"run": "f"}, resume=True)
    assert np.concatenate(list(again.ids("id"))).tolist() == read.column("id").tolist()
    with pytest.raises(UserError, match="already holds embeddings"):
        Shards(tmp_path / "v", {"run": "f"}, resume=False)
    with pytest.raises(UserError, match="another run"):
        Shards(tmp_path / "v", {"run": "g"}, resume=True)


def test_shards_after_a_partial_write(tmp_path):
    folder = tmp_path / "v"
    shards = Shards(folder, {"run": "f"}, resume=False)
    shards.append(made(3))
    made(9).write(folder / "part-00001.parquet")  # killed before it was counted
    (folder / ".part-00002.parquet.tmp").write_bytes(b"PAR1")
    resumed = Shards(folder, {"run": "f"}, resume=True)
    assert resumed.rows == [3]
    resumed.append(made(2, start=3))
    assert len(Embeddings.read(folder)) == 5


def test_damaged_shards(tmp_path):
    folder = tmp_path / "v"
    Shards(folder, {"run": "f"}, resume=False).append(made(3))
    (folder / "part-00000.parquet").rename(folder / "x")
    with pytest.raises(UserError, match="not there"):
        Shards(folder, {"run": "f"}, resume=True)
    (folder / "manifest.json").write_text('{"made": {"ru')
    with pytest.raises(UserError, match="damaged"):
        Shards(folder, {"run": "f"}, resume=True)
    (folder / "part-00000.parquet").write_bytes((folder / "x").read_bytes()[:-30])
    for path in (folder, folder / "part-00000.parquet", folder / "manifest.json", tmp_path / "none", tmp_path):
        with pytest.raises(UserError) as error:
            Embeddings.read(path)
        assert "\n" not in str(error.value)
    pd.DataFrame({"id": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="not embeddings written by repertory"):
        Embeddings.read(tmp_path / "other.parquet")


def test_shards_of_different_runs_or_columns(tmp_path):
    first = made(3)
    first.write(tmp_path / "part-00000.parquet")
    grown = made(2, start=3).with_columns(np.array(["é3", "é4"], object), pa.table({"y": ["a", "b"]}))
    grown.write(tmp_path / "part-00001.parquet")
    assert Embeddings.read(tmp_path).column("y").tolist() == [None, None, None, "a", "b"]
    made(2, fingerprint="g").write(tmp_path / "part-00002.parquet")
    with pytest.raises(DataError, match="never mixed"):
        Embeddings.read(tmp_path)


def test_vectors_cannot_be_changed_by_accident():
    embeddings = made()
    with pytest.raises(ValueError, match="read-only"):
        embeddings.to_numpy()[0] = 0
    assert VECTOR not in embeddings.columns
