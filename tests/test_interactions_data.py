"""Interactions: layouts, merging, what is wrong with them, and what a part of them is."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from repertory import data
from repertory.data.interactions import Interactions, interactions_of
from repertory.errors import DataError


@pytest.fixture
def frame():
    random = np.random.default_rng(0)
    keys = random.choice(20 * 15, 120, replace=False)
    return pd.DataFrame({"user": keys // 15, "item": keys % 15, "rating": random.integers(1, 6, 120), "time": keys})


def _opened(path, **options):
    return data.open(path, "interactions", **options)


def test_frames_matrices_and_arrays_say_the_same(frame):
    matrix = scipy.sparse.coo_matrix((np.ones(120), (frame["user"], frame["item"])), shape=(20, 15))
    array = frame[["user", "item"]].to_numpy()
    prints = {_opened(source).fingerprint for source in (frame, matrix, array)}
    assert len(prints) == 1


def test_parts_keep_everybody_and_nodes_keep_their_interactions(frame):
    splits = _opened(frame)
    everybody = len(splits.all)
    assert everybody == 35
    assert sum(len(part.units) for part in (splits.train, splits.val, splits.test)) == 120
    assert len(splits.test) == everybody
    few = splits.all.take(["user" in i for i in splits.all.ids])
    assert len(few) == 20
    assert len(few.units) == 0
    assert len(few.table) == 120
    assert "interactions" in splits.all.preview(0).text


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_tables_with_what_is_known_of_users_and_items(frame, tmp_path, suffix):
    items = pd.DataFrame({"id": range(16), "name": [f"item number {n}" for n in range(16)]})
    for name, table in (("log", frame), ("items", items)):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "parquet":
            table.to_parquet(path)
        else:
            table.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    np.save(tmp_path / "vectors.npy", np.ones((16, 3), np.float32))
    source = f"interactions:{tmp_path}/log.{suffix}?items=items.{suffix}&item_vectors=vectors.npy&at_least=3"
    splits = _opened(source)
    assert len(splits.all.units) == (frame["rating"] >= 3).sum()
    assert len(splits.all.items) == 16  # one of them without interactions
    assert splits.all.text("title")[-1] == "item number 15"
    assert np.isnan(splits.all.vectors[0]).all()
    assert splits.all.vectors[-1].tolist() == [1, 1, 1]


def test_written_folders_are_read_again(frame, tmp_path):
    items = _opened(frame).all
    items = items.with_texts([f"text of {i}" for i in items.ids]).with_vectors(np.random.rand(35, 4))
    again = _opened(items.write(tmp_path / "written")).all
    assert again.fingerprint == data.open(items).fingerprint
    assert again.columns.column_names == items.columns.column_names


def test_atomic_files(tmp_path):
    (tmp_path / "small.inter").write_text("user_id:token\titem_id:token\trating:float\na\t1\t5\nb\t1\t2\na\t2\t4\n")
    (tmp_path / "small.item").write_text('item_id:token\tmovie_title:token_seq\n1\tSay "Yes"\n2\tNo\n3\tMaybe\n')
    items = _opened(tmp_path).all
    assert items.users.tolist() == ["a", "b"]
    assert items.items.tolist() == ["1", "2", "3"]
    assert items.text("title")[2:].tolist() == ['Say "Yes"', "No", "Maybe"]
    assert len(_opened(f"interactions:{tmp_path}?at_least=4").all.units) == 2
    (tmp_path / "small.user").write_text("user_id\na\n")
    with pytest.raises(DataError, match="'user_id' has no type"):
        _opened(tmp_path)


def test_movielens_as_distributed(tmp_path):
    old, new, latest = (tmp_path / name for name in ("100k", "1m", "latest"))
    for folder in (old, new, latest):
        folder.mkdir()
    (old / "u.data").write_text("1\t2\t5\t880\n2\t1\t3\t881\n")
    marks = "|".join(["0", "1"] + ["0"] * 17)
    (old / "u.item").write_text(
        f"1|Café (1995)|01-Jan-1995||http://x|{marks}\n2|B|01-Jan-1996||http://y|{marks}\n", "latin-1"
    )
    (new / "ratings.dat").write_text("1::2::5::880\n2::1::3::881\n")
    (new / "movies.dat").write_text("1::Café (1995)::Action\n2::B::Comedy|Drama\n", "latin-1")
    (latest / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,5.0,880\n2,1,3.0,881\n")
    (latest / "movies.csv").write_text("movieId,title,genres\n1,Café (1995),Action\n2,B,Comedy\n")
    for folder in (old, new, latest):
        items = _opened(folder).all
        assert items.text("title")[2:].tolist() == ["Café (1995)", "B"]
        assert items.text("genres")[2] == "Action"
        assert items.units.columns["rating"].to_pylist() == [5.0, 3.0]
    (new / "ratings.dat").write_text("1::2::5\n")
    with pytest.raises(DataError, match=r"line 1 has 3 fields; 4 are needed"):
        _opened(new)


def test_repeated_pairs_are_merged_into_the_last(frame):
    with pytest.warns(UserWarning, match="2 rows repeat a pair"):
        items = _opened(pd.concat([frame, frame.iloc[:2].assign(rating=9)])).all
    assert len(items.units) == 120
    assert sorted(items.units.columns["rating"].to_pylist())[-2:] == [9, 9]


def test_sources_of_several_parts_share_users_and_items(frame, tmp_path):
    frame.iloc[:80].to_csv(tmp_path / "train.csv", index=False)
    frame.iloc[70:].to_csv(tmp_path / "test.csv", index=False)
    (tmp_path / "both.yaml").write_text("kind: interactions\ntrain: train.csv\ntest: test.csv\n")
    splits = _opened(tmp_path / "both.yaml")
    assert (len(splits.all.users), len(splits.all.items), len(splits.all.units)) == (20, 15, 130)
    assert len(splits.test.units) == 50
    names = splits.all.users[splits.test.table.pairs[:, 0]]
    assert names.tolist() == frame["user"].iloc[70:].astype(str).tolist()


def _with(change):
    def made(frame):
        table = frame.copy()
        change(table)
        return table

    return made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with(lambda t: t.insert(0, "u", t.pop("user"))), "no column 'user'"),
        (_with(lambda t: t.__setitem__("item", t["item"].where(t.index != 3))), r"row 4: column 'item' is empty"),
        (lambda t: t.iloc[:0], "empty: there is no interaction"),
    ],
)
def test_bad_tables_are_refused(frame, change, message):
    with pytest.raises(DataError, match=message):
        _opened(change(frame))


def test_bad_vectors_and_tables_of_items_are_refused(frame):
    items = pd.DataFrame({"id": range(14)})
    with pytest.raises(DataError, match=r"item '14' is out of range: it is not among the 14 items"):
        interactions_of(frame, "log", items=items, complete=True)
    with pytest.raises(DataError, match=r"12 text vectors of items for 15 items"):
        interactions_of(frame, "log", vectors={"item": np.ones((12, 2))})
    with pytest.raises(DataError, match=r"3 text vectors for 20 users and 15 items"):
        interactions_of(frame, "log").with_vectors(np.ones((3, 2)))
    with pytest.raises(DataError, match="names '1' twice"):
        interactions_of(frame, "log", items=pd.DataFrame({"id": [1, 1]}))
    with pytest.raises(DataError, match="at_least=3, but there is no column of ratings"):
        interactions_of(frame.drop(columns="rating"), "log", at_least=3.0)
    with pytest.raises(DataError, match="item number 99 is out of range: there are 2 items"):
        data.open(Interactions.of(2, 2, np.array([[0, 99], [1, 0]])))
    with pytest.raises(DataError, match="holds no interactions"):
        _opened(object())


def test_empty_rows_are_left_out_on_request(frame):
    frame["user"] = frame["user"].where(frame.index != 5)
    splits = _opened(frame, on_error="skip", max_bad="0.1")
    assert [r.id for r in splits.rejected] == ["row 6"]
    assert len(splits.all.units) == 119


def test_the_sample_has_titles_and_terms():
    from repertory.data.samples import SAMPLES

    sample = SAMPLES["movielens-100k"]
    items = _opened("movielens-100k?users=30&at_least=5").all
    assert len(items.users) == 30
    assert "Toy Story Animation Children's Comedy 1990s" in items.text("text")
    assert "no redistribution" in sample.licence.replace("\n", " ")
    with pytest.raises(DataError, match="users=-1"):
        _opened("movielens-100k?users=-1")
