"""``repertory runs``: what lies under a folder, without loading it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from repertory.cli import main


def make(path, complete=True, age=0, **record):
    path.mkdir(parents=True)
    made = {
        "slug": "symile", "source": "manifest:/data/far/away/items.csv?label=species",
        "items": {"train": 80, "val": 10, "test": 10}, **record,
    }  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump(made))
    if complete:
        (path / "weights.safetensors").write_bytes(b"x" * 5000)
    else:
        (path / "state").mkdir()
        (path / "state" / "contrast-40").write_bytes(b"x")
    for file in path.rglob("*"):
        os.utime(file, (os.stat(file).st_mtime - age,) * 2)


def metrics(path, **values):
    (path / "metrics.json").write_text(json.dumps({name: {"value": value} for name, value in values.items()}))


def test_what_is_listed(tmp_path, capsys):
    make(tmp_path / "old", age=7200)
    make(tmp_path / "deep" / "new")
    metrics(tmp_path / "deep" / "new", loss=1.5, nothing=None, retrieval_accuracy=0.84)
    make(tmp_path / "half", complete=False, age=60)
    make(tmp_path / "stranger", slug="gone", age=90)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("server: 1")  # somebody else's
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.yaml").write_text("{")
    (tmp_path / "bad" / "weights.safetensors").write_bytes(b"")
    assert main(["runs", str(tmp_path), "--json"]) == 0
    found = {Path(run["run"]).name: run for run in json.loads(capsys.readouterr().out)}
    assert set(found) == {"old", "new", "half", "stranger", "bad"}
    assert list(found)[-1] == "old"
    assert found["half"]["state"] == "unfinished, at contrast-40"
    assert found["bad"]["state"] == "damaged"
    assert found["new"]["state"] == "complete"
    assert found["new"]["metrics"] == {"retrieval_accuracy": 0.84, "loss": 1.5}  # the card's headline first
    assert found["new"]["bytes"] > 5000
    assert found["stranger"]["slug"] == "gone"
    assert main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "5 runs" in shown
    assert "/data/far" not in shown


def test_mistakes(tmp_path, capsys):
    assert main(["runs", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["runs", str(tmp_path)]) == 0
    assert "0 runs" in capsys.readouterr().out


def test_loads_no_torch(tmp_path):
    make(tmp_path / "run")
    code = (
        f"import sys; from repertory.cli import main; print(main(['runs', {str(tmp_path)!r}]), 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}/src"},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
