"""The command line: help, exit codes, errors of one line, JSON."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from repertory import catalog
from repertory.cli import app, main
from repertory.cli.work import _settings
from repertory.embeddings import Embeddings
from repertory.errors import ConfigError

COMMANDS = [command.name for command in app.registered_commands]
ROOT = Path(__file__).parents[1]
TOY = "images:tests/toy/squares.npz"
pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture(scope="module")
def run(tmp_path_factory, toy):
    path = tmp_path_factory.mktemp("runs") / "r"
    assert main(["fit", "toy", "--data", str(ROOT / "tests/toy/squares.npz"), "--out", str(path), "--steps", "2"]) == 0
    return path


def ask(capsys, *arguments):
    code = main(list(map(str, arguments)))
    found = capsys.readouterr()
    return code, found.out, found.err


def one_line(err):
    assert err.count("\n") == 1, err
    assert err.startswith("error: "), err
    return err


def shell(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src", **environment},
    )  # fmt: skip


# -- the program --------------------------------------------------------------------------------------------


def test_list_loads_neither_torch_nor_lightning():
    code = (
        "import sys; from repertory.cli import main; code = main(['list']);"
        "loaded = {m.partition('.')[0] for m in sys.modules};"
        "print(code, sorted(loaded & {'torch', 'lightning', 'timm', 'transformers', 'sklearn', 'pandas', 'plotly'}))"
    )
    done = shell("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 []"


def test_the_module_is_the_same_program():
    done = shell("-m", "repertory", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"repertory \d+\.\d+\.\d+\n", done.stdout)
    done = shell("-m", "repertory", "show", "nothing")
    assert done.returncode == 2
    assert one_line(done.stderr).startswith("error: no system 'nothing'")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(capsys, command, flag):
    code, out, err = ask(capsys, command, flag)
    assert (code, err) == (0, "")
    assert command in out
    assert len(out) > 100


def test_help_of_the_program(capsys):
    code, out, _ = ask(capsys, "--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)
    code, out, err = ask(capsys)
    assert code == 2
    assert "Usage" in out
    assert one_line(err) == "error: no command (repertory --help)\n"


# -- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lisst"], "lisst"),
        (["list", "--famly", "x"], "--famly"),
        (["list", "--family", "visio"], "did you mean 'vision'"),
        (["show"], "Missing argument"),
        (["show", "symil"], "did you mean 'symile'"),
        (["samples", "fetch"], "repertory samples get NAME"),
        (["samples", "get"], "name a sample, or --all"),
        (["samples", "get", "bach-choral"], "did you mean 'bach-chorales'"),
        (["inspect", "no/such/file"], "no such file"),
        (["inspect", "imagez:x"], "unknown kind"),
        (["inspect", "tests/toy/squares.npz"], "could be images or manifest"),
        (["inspect", TOY + "?label=labl"], "did you mean 'label'"),
        (["inspect", TOY, "--system", "nope"], "no system 'nope'"),
        (["fit"], "Missing argument"),
        (["fit", "toy", "--preset", "tin"], "did you mean 'tiny'"),
        (["fit", "toy", "--set", "dimm=3"], "did you mean 'dim'"),
        (["fit", "toy", "--set", "dim"], "name=value"),
        (["fit", "toy", "--set", "dim=many"], "dim"),
        (["fit", "toy", "--set", "dim.x=1"], "has no entries"),
        (["fit", "toy", "--seed", "x"], "--seed"),
        (["fit", "toy", "--steps", "0"], "at least 1"),
        (["fit", "toy", "--steps", "1", "--epochs", "1"], "not both"),
        (["fit", "toy", "--data", "no/such"], "no such file"),
        (["fit", "toy", "--data", "manifest:tests/toy/squares.npz"], "images needed"),
        (["fit", "toy", "--trainer", "max_epoch=1"], "did you mean 'max_epochs'"),
        (["fit", "toy", "--precision", "9"], "refuses precision=9"),
        (["fit", "toy", "--devices", "many"], "refuses devices=many"),
        (["embed", "no/run"], "no run here"),
        (["evaluate", "no/run"], "no run here"),
        (["import", "toy", "no.pth", "--out", "x"], "no official checkpoint is known"),
        (["claim"], "name a system, or --all"),
        (["claim", "symile", "--all"], "name a system, or --all"),
        (["claim", "toy"], "toy has no claim"),
        (["claim", "symile", "--seeds", "0"], "at least 1"),
        (["claim", "symile", "--name", "no"], "has no claim 'no'"),
    ],
)
def test_mistakes(capsys, tmp_path, arguments, says):
    if arguments[0] == "fit" and len(arguments) > 1:
        arguments = [*arguments, "--out", tmp_path / "r"]
        if "--data" not in arguments:
            arguments += ["--data", TOY]
    code, _, err = ask(capsys, *arguments)
    assert code == 2
    assert says in one_line(err)
    assert not (tmp_path / "r").exists()


def test_debug_shows_the_traceback(capsys):
    for arguments in (["--debug", "show", "nope"], ["show", "nope", "--debug"]):
        code, _, err = ask(capsys, *arguments)
        assert code == 2
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith("error: no system 'nope'")


def test_our_own_errors(capsys, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(catalog, "list_systems", broken)
    code, _, err = ask(capsys, "list")
    assert (code, err) == (1, "internal error: ZeroDivisionError: two lines (--debug shows where)\n")
    monkeypatch.setattr(catalog, "list_systems", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert ask(capsys, "list")[0] == 130


# -- what programs read ------------------------------------------------------------------------------------------


def test_json(capsys, run):
    found = {}
    for arguments in (["list"], ["show", "toy"], ["samples"], ["inspect", TOY], ["evaluate", run]):
        code, out, err = ask(capsys, *arguments, "--json")
        assert (code, err) == (0, "")
        found[arguments[0]] = json.loads(out)
    assert "toy" in [card["slug"] for card in found["list"]]
    assert {"name": "dim", "default": 8, "about": ""} in found["show"]["config"]
    assert found["inspect"]["items"] == sum(found["inspect"]["splits"].values())
    assert found["evaluate"] == json.loads((run / "metrics.json").read_text())
    assert {"bach-chorales", "spoken-numbers"} <= {sample["name"] for sample in found["samples"]}


def test_settings():
    found = _settings(["a=1", "b=1e-3", "c=x=y", "d=[1, 2]", "e=true", "f=", "g=timm:resnet18", "h={"], "--set")
    assert found == {"a": 1, "b": 1e-3, "c": "x=y", "d": [1, 2], "e": True, "f": None, "g": "timm:resnet18", "h": "{"}
    with pytest.raises(ConfigError, match="write --set name=value"):
        _settings(["=1"], "--set")


def test_inspect(capsys, tmp_path):
    np.savez(tmp_path / "x.npz", images=np.random.default_rng(0).integers(0, 256, (2, 4, 4), dtype=np.uint8))
    code, out, _ = ask(capsys, "inspect", f"images:{tmp_path}/x.npz")
    assert code == 0
    assert "2 items of kind images" in out
    assert "cannot be divided" in out
    (tmp_path / "d.yaml").write_text("train: images:x.npz\ntest: images:x.npz\n")
    code, out, _ = ask(capsys, "inspect", tmp_path / "d.yaml")
    assert code == 0
    assert "test 2" in out


# -- work ----------------------------------------------------------------------------------------------------------


def test_fit_again(capsys, run):
    data = ROOT / "tests/toy/squares.npz"
    code, _, err = ask(capsys, "fit", "toy", "--data", data, "--out", run, "--steps", "2")
    assert code == 2
    assert "a complete run" in one_line(err)
    code, out, _ = ask(capsys, "fit", "toy", "--data", data, "--out", run, "--steps", "2", "--resume")
    assert code == 0
    assert "complete: nothing to do" in out.replace("\n", " ")
    code, _, err = ask(capsys, "fit", "toy", "--data", data, "--out", run, "--steps", "3", "--resume")
    assert code == 2
    assert "another length" in one_line(err)


def test_runs_get_names_of_their_own(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert ask(capsys, "fit", "toy", "--data", ROOT / "tests/toy/squares.npz", "--steps", "1")[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["toy", "toy-2"]


def test_embed(capsys, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the run knows where its data are
    out = tmp_path / "vectors"
    assert ask(capsys, "embed", run, "--out", out)[0] == 0
    code, _, err = ask(capsys, "embed", run, "--out", out)
    assert code == 2
    assert "already holds embeddings" in one_line(err)
    assert ask(capsys, "embed", run, "--out", out, "--resume")[0] == 0
    assert ask(capsys, "embed", run, "--out", out, "--data", ROOT / "tests/toy/squares.npz", "--only-new")[0] == 0
    with np.load(ROOT / "tests/toy/squares.npz") as file:
        assert len(Embeddings.read(out)) == len(file["images"])
    for wrong, says in ((["--device", "abacus"], "device=abacus"), (["--batch-size", "0"], "at least 1")):
        code, _, err = ask(capsys, "embed", run, "--out", tmp_path / "w", *wrong)
        assert code == 2
        assert says in one_line(err)


def test_evaluate_refuses_what_was_trained_on(capsys, run):
    code, _, err = ask(capsys, "evaluate", run, "--data", ROOT / "tests/toy/squares.npz")
    assert code == 2
    assert "were trained on" in one_line(err)
