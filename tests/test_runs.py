"""Runs: atomic writes, assets, metrics, exact resume, damaged files."""

import random

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repertory import runs
from repertory.errors import UserError
from repertory.runs import Run, read_assets, reseed, save_weights, seeded, write_assets, write_atomic

RECORD = {
    "slug": "toy",
    "seed": 0,
    "rule": "random",
    "fingerprint": "abc",
    "length": {},
    "trainer": {},
    "config": {"dim": 3},
}


@pytest.fixture
def every_step(monkeypatch):
    monkeypatch.setattr(runs, "FIRST_CHECKPOINT", 0.0)
    monkeypatch.setattr(runs, "CHECKPOINT_EVERY", 0.0)


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_reseed_depends_on_its_key_alone():
    reseed(1, "stage", 5)
    first = draws()
    draws()
    reseed(1, "stage", 5)
    assert draws() == first
    others = []
    for key in ((1, "stage", 6), (2, "stage", 5), (1, "other", 5), ("1", "stage", 5)):
        reseed(*key)
        others.append(draws())
    assert len({*others, first}) == 5


def test_seeded_puts_the_state_back():
    reseed(0)
    expected = [draws(), draws()]
    reseed(0)
    found = [draws()]
    with pytest.raises(RuntimeError), seeded("x"):  # noqa: PT012
        draws()
        raise RuntimeError
    assert [*found, draws()] == expected


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a" / "ü.json"
    write_atomic(path, "old")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new and longer")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_atomic(path, "new")
    assert [p.name for p in path.parent.iterdir()] == ["ü.json"]
    assert path.read_text() == "new"


def test_interrupted_weights_leave_the_run_incomplete(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "r", RECORD)

    def half(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        run.finish({"w": torch.ones(2)}, {})
    assert not run.complete
    with pytest.raises(UserError, match="has not come to its end"):
        Run.open(tmp_path / "r").weights()


# -- assets ----------------------------------------------------------------------------------------------


def test_assets_of_all_types(tmp_path):
    from sklearn.decomposition import PCA

    data = np.random.default_rng(0).normal(size=(20, 3))
    assets = {
        "words": {"ä": 0, "b": [1, 2.5, None, True]}, "side": 8, "name": "é\n", "none": None,
        "mean": np.arange(6.0).reshape(2, 3).T, "scalar": np.array(3.5), "mask": np.array([True, False]),
        "empty": np.zeros((0, 2), np.float32), "small": np.array([1, 2], np.uint8),
        "columns": pa.table({"y": [1, None], "z": ["a", "ö"]}), "pca": PCA(2).fit(data),
    }  # fmt: skip
    write_assets(tmp_path, assets)
    again = read_assets(tmp_path)
    assert again.keys() == assets.keys()
    for name, value in assets.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(again[name], value)
            assert (again[name].dtype, again[name].shape) == (value.dtype, value.shape), name
        elif name == "pca":
            np.testing.assert_array_equal(again[name].transform(data), value.transform(data))
        else:
            assert again[name] == value


def test_estimators_that_could_not_be_loaded_are_refused(tmp_path):
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(2).fit(np.arange(8).reshape(4, 2), [0, 1, 0, 1])
    with pytest.raises(UserError, match="asset 'forest' could not be loaded again"):
        write_assets(tmp_path, {"forest": forest})


@given(st.dictionaries(st.text(max_size=5), st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5,
), max_size=4))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_plain_assets(tmp_path_factory, assets):
    folder = tmp_path_factory.mktemp("assets")
    write_assets(folder, assets)
    assert read_assets(folder) == assets


def test_weights_that_share_memory(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    save_weights(tmp_path / "w", {"a": weight, "b": weight, "c": weight.T, "d": torch.tensor(2)})
    again = runs.load_file(tmp_path / "w")
    assert torch.equal(again["a"], again["b"])
    assert torch.equal(again["c"], weight.T)
    assert again["d"].shape == ()


# -- a run's life --------------------------------------------------------------------------------------------


def test_create_refuses_what_is_in_use(tmp_path):
    run = Run.create(tmp_path / "r", RECORD)
    with pytest.raises(UserError, match="an unfinished run"):
        Run.create(tmp_path / "r", RECORD)
    run.finish({"w": torch.ones(1)}, {})
    with pytest.raises(UserError, match="a complete run"):
        Run.create(tmp_path / "r", RECORD)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    for path in (tmp_path / "other", tmp_path / "other" / "thesis.tex"):
        with pytest.raises(UserError, match="not empty and holds no run"):
            Run.create(path, RECORD)
    with pytest.raises(UserError, match="needs a run directory"):
        Run.create(None, RECORD, resume=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": {"dim": 4}}, "another dim: the run has 3, you gave 4"),
        ({"config": {"dim": 3, "lr": 1}}, "another lr"),
        ({"seed": 1}, "another seed: the run has 0, you gave 1"),
        ({"fingerprint": "xyz"}, "another data fingerprint"),
        ({"rule": "time:t"}, "another rule"),
        ({"validation": "v"}, "another validation"),
        ({"trainer": {"precision": "bf16"}}, "another trainer"),
        ({"slug": "other"}, "another slug"),
    ],
)
def test_resume_names_the_difference(tmp_path, change, named):
    Run.create(tmp_path / "r", RECORD)
    assert Run.create(tmp_path / "r", RECORD, resume=True).record == RECORD
    with pytest.raises(UserError, match=named):
        Run.create(tmp_path / "r", {**RECORD, **change}, resume=True)


class Walk:
    """A fit that draws random numbers and remembers them all."""

    def __init__(self):
        self.path = []

    def state_dict(self):
        return {"path": torch.tensor(self.path, dtype=torch.float64)}

    def load_state_dict(self, state):
        self.path = state["path"].tolist()

    def go(self, run, n=8, stop=None):
        for step in run.steps("rounds", n, state=self):
            if step == stop:
                raise KeyboardInterrupt
            self.path.append(np.random.rand() + torch.rand(1).item() + random.random())
            run.log("rounds", step, {"value": self.path[-1]})
        return self


@pytest.mark.parametrize("stop", [0, 1, 5, 7])
def test_steps_go_on_where_they_were(tmp_path, every_step, stop):
    whole_run = Run.create(tmp_path / "whole", RECORD)
    whole = Walk().go(whole_run)
    with pytest.raises(KeyboardInterrupt):
        Walk().go(Run.create(tmp_path / "r", RECORD), stop=stop)
    np.random.rand(5)
    resumed_run = Run.create(tmp_path / "r", RECORD, resume=True)
    resumed = Walk().go(resumed_run)
    assert resumed.path == whole.path
    assert resumed_run.metrics == whole_run.metrics
    assert resumed_run.resumed_from == (f"rounds-{stop}" if stop else None)


def test_only_the_newest_state_stays(tmp_path, every_step):
    with pytest.raises(KeyboardInterrupt):
        Walk().go(Run.create(tmp_path / "r", RECORD), stop=6)
    assert [p.name for p in (tmp_path / "r" / "state").iterdir()] == ["rounds-6"]


def test_metrics_past_the_checkpoint_are_cut(tmp_path):
    run = Run.create(tmp_path / "r", RECORD)
    for step in range(4):
        run.log("a", step, {"loss": step})
    for step in range(6):
        run.log("b-2", step, {"loss": 10 + step, "lr": np.float32(0.5)})
    run.save_state("b-2", 3, {"x": torch.ones(1)})  # the log ran ahead of the state
    again = Run.open(tmp_path / "r")
    assert again.load_state(("a", "b-2"))[:2] == ("b-2", 3)
    steps = [(row["stage"], row["step"]) for row in again.metrics if row["name"] == "loss"]
    assert steps == [("a", s) for s in range(4)] + [("b-2", s) for s in range(3)]
    assert Run.open(tmp_path / "r").load_state(("c",)) is None


def test_states_are_compared_as_numbers(tmp_path):
    run = Run.create(tmp_path / "r", RECORD)
    run.save_state("a", 9, {})
    content = (tmp_path / "r" / "state" / "a-9").read_bytes()
    for name in ("a-10", ".tmp", "a-x", "z-99"):  # as a kill between writing and clearing leaves them
        (tmp_path / "r" / "state" / name).write_bytes(content)
    assert run.load_state(("a",))[1] == 10


# -- damaged files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 10, -3])
@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("weights.safetensors", lambda run: run.weights()),
        ("assets/assets.json", lambda run: run.assets()),
        ("assets/arrays.safetensors", lambda run: run.assets()),
        ("assets/t.parquet", lambda run: run.assets()),
        ("assets/e.skops", lambda run: run.assets()),
        ("metrics.parquet", lambda run: run.read_metrics()),
        ("state/a-3", lambda run: run.load_state(("a",))),
    ],
)
def test_damaged_files(tmp_path, name, use, keep):
    from sklearn.preprocessing import StandardScaler

    run = Run.create(tmp_path / "r", RECORD)
    run.log("a", 0, {"loss": 1})
    run.finish({"w": torch.ones(4)}, {"v": np.ones(3), "t": pa.table({"a": [1]}), "e": StandardScaler(), "n": 1})
    run.save_state("a", 3, {"x": torch.ones(30)})
    run = Run.open(tmp_path / "r")
    use(run)
    path = tmp_path / "r" / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError) as error:
        use(run)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "seed: 0", "slug: toy\nformat: 99", "\x00"])
def test_damaged_record(tmp_path, text):
    with pytest.raises(UserError, match="no run here"):
        Run.open(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=tmp_path.name) as error:
        Run.open(tmp_path)
    assert "\n" not in str(error.value)
