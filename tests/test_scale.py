"""Several devices, workers, indices, loggers, and a kill in the middle of a shard; each with the real engine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from repertory import loggers
from repertory.data import open as open_data
from repertory.embeddings import Embeddings
from repertory.engines import RayEngine, engine_of
from repertory.errors import ConfigError, DataError, MissingExtraError, UserError
from repertory.index import ExactIndex, LanceIndex, build_index, open_index
from repertory.runs import Run
from tests.toy import Toy

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "CUDA_VISIBLE_DEVICES": ""}


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4), dtype=np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "run"
    Toy(Toy.Config(steps=4)).fit(images(40), run=path)
    return path


# -- several devices ----------------------------------------------------------------------------------------

JOINT = """
import sys, torch, torch.distributed as dist
from repertory.systems.symile import PairwiseCLIPLoss, SymileLoss
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
results = {}
for name, make in {
    "n": lambda **o: SymileLoss("n", **o), "n_squared": lambda **o: SymileLoss("n_squared", **o),
    "pairwise": lambda **o: PairwiseCLIPLoss(**o),
}.items():
    torch.manual_seed(0)
    x, model = torch.randn(3, 12, 7), torch.nn.Linear(7, 5)
    loss = make(gather=True)
    alone = torch.nn.Linear(7, 5)
    alone.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    expected = make()(list(alone(x)), 0.7)
    expected.backward()
    wrapped = DistributedDataParallel(model)
    torch.manual_seed(1 + rank)  # the processes draw apart
    found = loss(list(wrapped(x[:, 6 * rank : 6 * rank + 6])), 0.7)
    found.backward()
    pairs = zip(model.parameters(), alone.parameters())
    results[name] = [abs(found - expected), *((p.grad - q.grad).abs().max() for p, q in pairs)]
    loss.eval()
    mine = list(model(x[:, 6 * rank : 6 * rank + 6]))
    torch.manual_seed(2)
    single = make()(mine, 0.7)
    torch.manual_seed(2)
    results[name].append(abs(loss(mine, 0.7) - single))
worst = max(float(v) for values in results.values() for v in values)
dist.barrier()
dist.destroy_process_group()
assert worst < 1e-5, results
"""


def test_gathered_negatives_are_the_joint_batch():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", JOINT]
    ranks = [subprocess.Popen([*command, str(rank), str(port)], env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.PIPE)
             for rank in range(2)]  # fmt: skip
    for process in ranks:
        errors = process.communicate(timeout=100)[1].decode()
        assert process.returncode == 0, errors[-2000:]


FIT = """
import sys, numpy as np, torch
from tests.toy import Toy

torch.set_num_threads(1)
images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
system = Toy(Toy.Config(steps=12)).fit(
    images, run=sys.argv[1], resume="--resume" in sys.argv,
    trainer={"devices": 2, "strategy": "ddp", "accelerator": "cpu"},
)
assert not torch.distributed.is_initialized()
weights = sum(float(p.abs().sum()) for p in system.model.parameters())
print("weights", system.run.writes, weights, flush=True)
"""


def test_two_processes_fit_one_run(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(FIT)
    command = [sys.executable, str(script), str(tmp_path / "run")]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Child process" not in done.stderr
    lines = sorted(line.split() for line in done.stdout.splitlines() if line.startswith("weights"))
    assert [line[1] for line in lines] == ["False", "True"]
    assert lines[0][2] == lines[1][2]  # both hold the best weights
    made = Run.open(tmp_path / "run")
    assert made.complete
    assert not (tmp_path / "run" / "state").exists()
    logged = {(row["stage"], row["name"]) for row in made.read_metrics()}
    assert logged == {(stage, name) for stage in ("first", "second") for name in ("loss", "val_loss")}
    loaded = Toy.load(tmp_path / "run")
    assert sum(float(p.abs().sum()) for p in loaded.model.parameters()) == float(lines[0][2])


@pytest.mark.parametrize("strategy", ["ddp_spawn", "fsdp", "deepspeed"])
def test_strategies_that_would_lose_weights(strategy, tmp_path):
    with pytest.raises(ConfigError) as error:
        Toy().fit(images(30), trainer={"devices": 2, "strategy": strategy, "accelerator": "cpu"}, run=tmp_path / "r")
    assert strategy in str(error.value)
    assert not (tmp_path / "r").exists()


# -- shards ---------------------------------------------------------------------------------------------------

SLOW = """
import sys, time, torch
from tests.test_scale import images
from tests.toy import Toy
from repertory import contract, embeddings

torch.set_num_threads(1)
contract.SHARD = 10
write = embeddings.Embeddings.write
def slowly(self, path):
    write(self, path)
    if path.name == sys.argv[3]:
        print("written", flush=True)
        time.sleep(60)  # the shard is there, and not in the manifest
embeddings.Embeddings.write = slowly
Toy.load(sys.argv[1]).embed_to(sys.argv[2], images(45, 1), resume=True)
"""


def same(a, b):
    a, b = Embeddings.read(a), Embeddings.read(b)
    np.testing.assert_allclose(a.vectors, b.vectors, atol=1e-5)
    assert a.fingerprint == b.fingerprint
    assert a.table.drop_columns(["vector"]).equals(b.table.drop_columns(["vector"]))


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("repertory.contract.SHARD", 10)


def test_killed_in_the_middle_of_a_shard(run, tmp_path, small_shards):
    command = [sys.executable, "-c", SLOW, str(run), str(tmp_path / "killed"), "part-00002.parquet"]
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"written\n"
        child.send_signal(signal.SIGKILL)
    assert len(list((tmp_path / "killed").glob("*.parquet"))) == 3
    system = Toy.load(run)
    assert system.embed_to(tmp_path / "whole", images(45, 1)) == 45
    assert system.embed_to(tmp_path / "killed", images(45, 1), resume=True) == 25
    same(tmp_path / "whole", tmp_path / "killed")
    for name in ("manifest.json", *(f"part-{i:05d}.parquet" for i in range(5))):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_many_ids_are_looked_up_as_a_set_would(run, tmp_path, small_shards):
    system = Toy.load(run)
    items = open_data(images(45, 1), "images").all
    chosen = items.take(np.random.default_rng(0).permutation(45)[:23])
    assert system.embed_to(tmp_path / "v", chosen) == 23
    assert system.embed_to(tmp_path / "v", items, only_new=True) == 22
    assert system.embed_to(tmp_path / "v", items, only_new=True) == 0
    assert sorted(Embeddings.read(tmp_path / "v").column("id")) == sorted(items.ids)


def test_ray(run, tmp_path, small_shards, toy, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        system, engine = Toy.load(run), RayEngine(run)
        system.embed_to(tmp_path / "local", images(45, 1))
        assert system.embed_to(tmp_path / "ray", images(45, 1)[:20], only_new=True, engine=engine) == 20
        assert system.embed_to(tmp_path / "ray", images(45, 1), only_new=True, engine=engine, batch_size=7) == 25
        assert system.embed_to(tmp_path / "ray", images(45, 1), only_new=True, engine=engine) == 0
        same(tmp_path / "local", tmp_path / "ray")
        parts = sorted(path.name for path in (tmp_path / "local").iterdir())
        assert parts == sorted(path.name for path in (tmp_path / "ray").iterdir())
        # as a kill leaves it: shards beyond the manifest
        shutil.copytree(tmp_path / "local", tmp_path / "killed")
        manifest = json.loads((tmp_path / "killed" / "manifest.json").read_text())
        manifest["rows"] = manifest["rows"][:2]
        (tmp_path / "killed" / "manifest.json").write_text(json.dumps(manifest))
        assert system.embed_to(tmp_path / "killed", images(45, 1), resume=True, engine=engine) == 25
        same(tmp_path / "local", tmp_path / "killed")
    finally:
        ray.shutdown()


def test_engines(run, monkeypatch):
    assert engine_of("local", run) is None
    with pytest.raises(ConfigError, match="did you mean 'ray'"):
        engine_of("rey", run)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"repertory\[scale\]"):
        engine_of("ray", run)


# -- the index ---------------------------------------------------------------------------------------------------


def clusters(n, fingerprint="r", width=16, seed=1):
    centres = np.random.default_rng(0).normal(size=(50, width))
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(0, 50, n)] + 0.5 * random.normal(size=(n, width))
    made = Embeddings.build(vectors, fingerprint, id=[f"v{i}" for i in range(n)])
    return made.with_columns(made.column("id"), pa.table({"y": np.arange(n) % 3}))


@pytest.fixture(scope="module")
def lance(tmp_path_factory):
    folder, vectors = tmp_path_factory.mktemp("lance"), clusters(12_000)
    for i in range(3):
        vectors.take(np.arange(4000 * i, 4000 * (i + 1))).write(folder / f"part-{i:05d}.parquet")
    return folder, vectors, build_index(folder, folder / "made")


def test_index_agrees_with_exact_search(lance):
    folder, vectors, index = lance
    exact, queries = open_index(vectors), clusters(40, seed=2)
    assert (len(index), index.key, index.width, index.fingerprint) == (12_000, ("id",), 16, "r")
    assert index.probes < 110  # not every partition
    rows, similarities = index.search(queries, 10)
    expected, cosines = exact.search(queries, 10)
    assert isinstance(exact, ExactIndex)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(rows, expected)]) >= 9.5
    assert rows.dtype == np.int64
    assert similarities.dtype == np.float32
    assert (np.diff(similarities) <= 1e-6).all()
    np.testing.assert_allclose(similarities[:, 0], cosines[:, 0], atol=1e-5)
    asked = np.array([7, 3, 7, 11_999])
    assert index.keys(asked).equals(exact.keys(asked))
    assert index.keys(asked).to_pydict() == {"id": ["v7", "v3", "v7", "v11999"], "y": [1, 0, 1, 2]}
    many, _ = index.search(queries.vectors[:2], 3000)  # more than the partitions that are looked into hold
    assert many.shape == (2, 3000)
    again = open_index(folder / "made")
    assert isinstance(again, LanceIndex)
    np.testing.assert_array_equal(again.search(queries.vectors[:3], 5)[0], rows[:3, :5])


def test_index_beside_many_vectors(lance, tmp_path, monkeypatch):
    folder, vectors, _ = lance
    assert isinstance(open_index(folder), ExactIndex)
    monkeypatch.setattr("repertory.index.EXACT", 100)
    vectors.take(np.arange(200)).write(tmp_path / "part-00000.parquet")
    index = open_index(tmp_path)
    assert isinstance(index, LanceIndex)
    np.testing.assert_array_equal(index.search(vectors.take([5, 9]), 1)[0].ravel(), [5, 9])
    written = (tmp_path / "index" / "index.json").stat().st_mtime_ns
    open_index(tmp_path)
    assert (tmp_path / "index" / "index.json").stat().st_mtime_ns == written
    vectors.take(np.arange(200, 300)).write(tmp_path / "part-00001.parquet")
    assert len(open_index(tmp_path)) == 300


def test_index_refuses(lance, tmp_path, monkeypatch):
    _, vectors, index = lance
    for one in (index, open_index(vectors)):
        for queries, k, says in (
            (clusters(3, "other"), 5, "another run"),
            (np.ones((2, 3), np.float32), 5, "width"),
            (np.full((1, 16), np.nan), 5, "NaN"),
            (np.ones((1, 16)), 0, "k=0"),
            (np.ones((1, 16)), 12_001, "k=12001"),
        ):
            with pytest.raises(DataError, match=says):
                one.search(queries, k)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        build_index(vectors, tmp_path)
    with pytest.raises(UserError, match="no embeddings here"):
        open_index(tmp_path / "none")
    with pytest.raises(UserError, match="no index here"):
        LanceIndex(tmp_path)
    for fingerprint in "rs":
        clusters(4, fingerprint).write(tmp_path / f"{fingerprint}.parquet")
    with pytest.raises(DataError, match="never mixed"):
        build_index(tmp_path, tmp_path / "mixed")
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(MissingExtraError, match=r"repertory\[scale\]"):
        build_index(vectors, tmp_path / "x")


# -- loggers -----------------------------------------------------------------------------------------------------


def curve(path):
    rows = Run.open(path).read_metrics()
    return [(row["step"], row["value"]) for row in rows if (row["stage"], row["name"]) == ("first", "loss")]


def logged(tmp_path, name):
    Toy(Toy.Config(steps=8)).fit(images(30), run=tmp_path / "run", log=name)
    return curve(tmp_path / "run")


def test_tensorboard(tmp_path):
    expected = logged(tmp_path, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "run"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("first/loss")]
    assert len(found) == 4
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_mlflow(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    expected = logged(tmp_path, "mlflow")
    (values,) = (tmp_path / "mlruns").glob("*/*/metrics/first/loss")
    found = [(int(step), float(value)) for _, value, step in map(str.split, values.read_text().splitlines())]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert next((tmp_path / "mlruns").glob("*/*/params/lr")).read_text() == "0.01"


def test_wandb(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    expected = logged(tmp_path, "wandb")
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    assert content.count(b"first/loss") >= len(expected)
    for _, value in expected:
        assert str(value)[:10].encode() in content


def test_loggers_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    for name, run, error, says in (
        ("tensorbord", tmp_path / "r", ConfigError, "did you mean 'tensorboard'"),
        ("mlflow", None, ConfigError, "run directory"),
    ):
        with pytest.raises(error, match=says):
            Toy().fit(images(30), run=run, log=name)
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"wandb is not installed: pip install 'repertory\[log\]'"):
        Toy().fit(images(30), run=tmp_path / "r", log="wandb")
    assert not (tmp_path / "r").exists()
