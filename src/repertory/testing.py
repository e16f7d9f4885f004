"""The contract as checks that every system must pass, here and in other packages.

    from repertory.testing import CHECKS, Case

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check, case):        # case = Case("my_system", folder), one for the module
        check(case)

Each check is a function of a ``Case``; one tiny fit, made when it is first needed, serves those that only read.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from repertory import catalog, data, runs
from repertory.card import SECTIONS
from repertory.data import Items, Splits
from repertory.embeddings import VECTOR, Embeddings
from repertory.errors import ConfigError, DataError, UserError

TINY = "tiny"


class Case:
    """A system, its small source, and its one tiny fit.

    Args:
        slug: of the system.
        folder: an empty folder for runs.
    """

    def __init__(self, slug: str, folder: Path) -> None:
        self.entry = catalog.entry(slug)
        self.slug, self.folder, self.card = slug, folder, self.entry.card
        self.system_class = self.entry.load()

    def create(self) -> Any:
        """An unfitted system with the tiny preset."""
        return catalog.create(self.slug, TINY)

    @cached_property
    def splits(self) -> Splits:
        """The small source, opened."""
        return data.open(self.card.check, self.card.kind, self.system_class.readers)

    @cached_property
    def fitted(self) -> Any:
        """The system after its tiny fit, in ``run``."""
        return self.create().fit(self.card.check, run=self.run)

    @property
    def run(self) -> Path:
        """The run directory of the tiny fit."""
        return self.folder / "fitted"

    @cached_property
    def copied(self) -> Path:
        """A copy of the tiny fit's run directory, to be spoiled."""
        assert self.fitted
        return Path(shutil.copytree(self.run, self.folder / "copied"))


@contextmanager
def refused(kind: type[UserError] = UserError) -> Iterator[None]:
    """The block must raise an error for people: of this kind, one line, not empty."""
    try:
        yield
    except kind as error:
        message = str(error)
        assert message, "the error says nothing"
        assert "\n" not in message, f"the error has several lines: {message!r}"
        return
    raise AssertionError(f"nothing was refused; {kind.__name__} was expected")


# -- what is declared ------------------------------------------------------------------------------------


def check_card(case: Case) -> None:
    """The card has every section, and the system every verb that the card names."""
    for section in SECTIONS:
        assert any(title.startswith(section) and body for title, body in case.card.sections.items()), (
            f"card.md: no section '{section}'"
        )
    for verb in case.card.verbs:
        assert callable(getattr(case.system_class, verb, None)), (
            f"the card names the verb '{verb}'; there is no such method"
        )


def check_config(case: Case) -> None:
    """Configurations go through YAML unchanged; unknown keys are refused with the nearest valid name."""
    config = case.system_class.Config
    assert TINY in config.presets, "there is no preset 'tiny'"
    for preset in (None, *config.presets):
        made = config.build(preset)
        assert config.from_yaml(made.to_yaml()) == made
    name = next(iter(config.model_fields))
    try:
        config.build(None, **{name + "x": 1})
    except ConfigError as error:
        assert f"'{name}'" in str(error), f"the error does not name the nearest option: {error}"  # noqa: PT017
    else:
        raise AssertionError("an unknown option was accepted")
    with refused(ConfigError):
        config.build("no such preset")


# -- fit, save, load ---------------------------------------------------------------------------------------


def _same_weights(first: Any, second: Any) -> None:
    ours, theirs = first._weights(), second._weights()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, f"weights differ: {different[:5]}"


def check_same_seed_same_weights(case: Case) -> None:
    """Two fits with one seed give identical weights, whatever the random state before."""
    torch.rand(7), np.random.rand(7)
    _same_weights(case.fitted, case.create().fit(case.card.check))


def check_save_and_load(case: Case) -> None:
    """A saved and loaded system gives identical embeddings, and loading needs no data."""
    items = case.splits.test
    before = case.fitted.embed(items)
    case.fitted.save(case.folder / "saved")
    for path in (case.run, case.folder / "saved"):
        after = catalog.load(path).embed(items)
        assert after.fingerprint == before.fingerprint
        assert after.table.equals(before.table)


def check_resume_after_kill(case: Case) -> None:
    """A fit that kills itself and is resumed ends bit for bit where an uninterrupted one ends."""
    path = case.folder / "killed"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "lightning", "repertory.testing"])
    child = context.Process(target=_fit_and_die, args=(case.slug, case.card.check, path, torch.get_num_threads()))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL, f"the fit should have been killed, it ended with {child.exitcode}"
    with refused():
        catalog.load(path)
    with refused():
        case.create().fit(case.card.check, run=path)
    with refused():
        case.create().fit(case.card.check, run=path, resume=True, seed=1)
    states = list((path / "state").glob("[!.]*")) if (path / "state").exists() else []
    resumed = case.create().fit(case.card.check, run=path, resume=True)
    assert bool(states) == bool(resumed.run.resumed_from)
    _same_weights(case.fitted, resumed)
    assert resumed.run.read_metrics() == case.fitted.run.read_metrics()
    again = case.create().fit(case.card.check, run=path, resume=True)
    _same_weights(resumed, again)


def _fit_and_die(slug: str, source: str, path: Path, threads: int) -> None:
    """In a child: fits with a checkpoint at every step and dies after the third, or before the end."""
    torch.set_num_threads(threads)
    runs.FIRST_CHECKPOINT = runs.CHECKPOINT_EVERY = 0.0
    save, saved = runs.Run.save_state, []

    def save_state(self: Any, *args: Any) -> None:
        save(self, *args)
        saved.append(args[:2])
        if len(saved) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def finish(self: Any, *args: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(runs.Run, "save_state", save_state)  # noqa: B010
    setattr(runs.Run, "finish", finish)  # noqa: B010
    catalog.create(slug, TINY).fit(source, run=path)


# -- embed -------------------------------------------------------------------------------------------------


def check_embeddings(case: Case) -> None:
    """Vectors are finite float32 of one width, under the card's key, one row per key, with the data's columns."""
    items = case.splits.test
    made = case.fitted.embed(items)
    assert made.key == case.card.key
    assert made.vectors.dtype == np.float32
    assert made.vectors.shape == (len(made), made.width)
    assert np.isfinite(made.vectors).all()
    keys = list(zip(*(made.table[name].to_pylist() for name in made.key), strict=True))
    assert len(set(keys)) == len(keys), "a key occurs twice"
    assert set(made.column(made.key[0])) <= set(items.ids)
    assert set(items.columns.column_names) <= set(made.table.column_names)
    own = case.fitted.embed()
    assert set(own.column(own.key[0])) <= set(case.splits.test.ids), "embed() without data is not the held-out split"


def check_batch_size_and_order(case: Case) -> None:
    """Vectors depend on neither batch size nor order."""
    items = case.splits.test
    order = np.random.default_rng(0).permutation(len(items))
    whole = case.fitted.embed(items).table.to_pandas().set_index(list(case.card.key))[VECTOR]
    for other in (case.fitted.embed(items, batch_size=3), case.fitted.embed(items.take(order))):
        vectors = other.table.to_pandas().set_index(list(case.card.key))[VECTOR].loc[whole.index]
        np.testing.assert_allclose(np.stack(vectors), np.stack(whole), atol=1e-5, rtol=1e-5)
    with refused(ConfigError):
        case.fitted.embed(items, batch_size=0)


def check_embed_to_shards(case: Case) -> None:
    """Shards hold what ``embed`` gives; a second call needs ``resume`` or ``only_new``, and repeats nothing."""
    items, folder = case.splits.test, case.folder / "shards"
    half = items.take(np.arange(len(items) // 2))
    assert case.fitted.embed_to(folder, half) == len(half)
    with refused():
        case.fitted.embed_to(folder, half)
    assert case.fitted.embed_to(folder, items, only_new=True) == len(items) - len(half)
    read, whole = Embeddings.read(folder), case.fitted.embed(items)
    assert read.table.select(read.key).equals(whole.table.select(whole.key))
    np.testing.assert_allclose(read.vectors, whole.vectors, atol=1e-5)


# -- evaluate ------------------------------------------------------------------------------------------------


def _contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def check_evaluate(case: Case) -> None:
    """``evaluate`` returns the promised metrics, twice the same, and leaves run and system unchanged."""
    before, weights = _contents(case.folder / "fitted" if case.fitted else case.run), case.fitted.fingerprint
    metrics = case.fitted.evaluate()
    missing = [name for name in case.card.metrics if name not in metrics]
    assert not missing, f"promised but not returned: {missing}; returned: {list(metrics)}"
    assert all(np.isfinite(metric.value) for metric in metrics.values())
    assert case.fitted.evaluate().to_dict() == metrics.to_dict()
    assert catalog.load(case.run).evaluate().to_dict() == metrics.to_dict()
    case.fitted.__dict__.pop("fingerprint")
    assert case.fitted.fingerprint == weights
    assert _contents(case.run) == before


def check_overlap_is_refused(case: Case) -> None:
    """Data that were trained on cannot be evaluated on."""
    with refused(DataError):
        case.fitted.evaluate(case.splits.train)
    with refused(DataError):
        case.create().fit(case.card.check, validation=case.splits.train)


def check_figures(case: Case) -> None:
    """Figures are Plotly figures with captions."""
    for caption, figure in case.fitted.figures(case.splits.test).items():
        assert caption.strip()
        assert len(figure.data) or len(figure.layout.images), f"'{caption}' is empty"
        figure.to_json()


# -- bad input --------------------------------------------------------------------------------------------------


def _spoiled(items: Items) -> Items:
    """The items with the first made unusable: NaN where numbers can be NaN, nothing where they cannot."""
    part = items.part(np.arange(len(items.units)))
    part.units.digests = None
    if items.kind == "images":
        part.sources[0] = np.full((8, 8), np.nan, np.float32)  # type: ignore[attr-defined]
    elif items.kind == "manifest":
        for name, modality in part.modalities.items():  # type: ignore[attr-defined]
            index = modality.index.copy()
            index[0] = -1
            part.modalities[name] = type(modality)(modality.kind, modality.values, index)  # type: ignore[attr-defined]
    elif items.kind == "events":
        part.units.times[0] = np.nan  # type: ignore[attr-defined]
    elif items.kind == "interactions":
        part.units.pairs[0] = -1  # type: ignore[attr-defined]
    elif items.kind == "graph":
        part.graph = part.graph.clone()  # type: ignore[attr-defined]
        part.graph.x[part.places[0]] = torch.nan  # type: ignore[attr-defined]
    elif items.kind == "database":
        part.times[0] = np.iinfo(np.int64).min  # type: ignore[attr-defined]
    elif items.kind == "circuits":
        part.circuits[0] = replace(part.circuits[0], edge_index=part.circuits[0].edge_index * 0)  # type: ignore[attr-defined]
    elif items.kind == "music":
        part.pieces[0] = DataError("note 0 is not finite")  # type: ignore[attr-defined]
    elif items.kind == "trajectories":
        first = part.episodes[0]  # type: ignore[attr-defined]
        part.episodes[0] = replace(first, rewards=first.rewards * np.nan)  # type: ignore[attr-defined]
    else:
        raise AssertionError(f"no spoiled items of kind {items.kind} are known here")
    return part


def check_bad_data(case: Case) -> None:
    """Empty, single, not finite, of another kind, without a column: one line each, and no run is left half made."""
    items = case.splits.all
    for number, bad in enumerate((items.take([]), items.take([0]), _spoiled(items), object(), "no/such/file", 3.5)):
        with refused():
            case.create().fit(bad, run=case.folder / f"bad{number}")
        assert not (case.folder / f"bad{number}" / "weights.safetensors").exists()
    for bad in (items.take([]), _spoiled(items), object()):
        with refused():
            case.fitted.embed(bad)
    joined = "&" if "?" in case.card.check else "?"
    with refused(DataError):
        case.fitted.embed(f"{case.card.check}{joined}label=no_such_column")
    assert len(case.fitted.embed(items.take([0])))


def check_bad_items_are_quarantined(case: Case) -> None:
    """With ``on_error=skip`` bad items are listed with their reason; too many are an error again."""
    bad = _spoiled(case.splits.all)
    opened = data.open(bad, on_error="skip", max_bad=1)
    assert [r.id for r in opened.rejected] == [case.splits.all.units.ids[0]]
    assert opened.rejected[0].reason
    assert len(opened.all.units) == len(bad.units) - 1
    with refused(DataError):
        data.open(bad, on_error="skip", max_bad=0)
    path = case.folder / "quarantine"
    runs.Run.create(path, {"slug": case.slug})
    from repertory.contract import _write_rejected

    _write_rejected(path, opened)
    assert pq.read_table(path / "rejected.parquet").num_rows == 1


def check_options_are_honoured_or_refused(case: Case) -> None:
    """What a system cannot do as asked is refused, before a run is begun."""
    path = case.folder / "options"
    for options in (
        {"steps": 1, "epochs": 1},
        {"steps": 0},
        {"trainer": {"no_such_option": 1}},
        {"trainer": {"max_epochs": 3}},
        {"resume": True, "run": None},
    ):
        with refused(UserError):
            case.create().fit(case.card.check, **{"run": path, **options})
    assert not path.exists()
    with refused(UserError):
        case.create().embed(case.card.check)
    with refused(UserError):
        case.system_class.from_official({"no.such.weight": torch.zeros(1)})


# -- the command line, and files that attack --------------------------------------------------------------------------


def check_command_line(case: Case) -> None:
    """The command line does what Python does."""
    from repertory.cli import main

    run = case.folder / "cli"
    assert main(["fit", case.slug, "--data", case.card.check, "--preset", TINY, "--out", str(run)]) == 0
    _same_weights(case.fitted, catalog.load(run))
    assert main(["embed", str(run), "--out", str(case.folder / "cli-vectors")]) == 0
    assert Embeddings.read(case.folder / "cli-vectors").table.equals(case.fitted.embed().table)
    assert main(["evaluate", str(run)]) == 0
    written = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(case.fitted.evaluate().to_dict()))
    page = (run / "report.html").read_text(encoding="utf-8")
    assert str(Path.home()) not in page
    assert str(case.folder) not in page
    for wrong in (
        ["fit", case.slug, "--set", "no_such_option=1"],
        ["fit", case.slug, "--data", "no/such/file", "--out", str(case.folder / "none")],
        ["evaluate", str(case.folder / "none")],
        ["show", case.slug + "x"],
    ):
        assert main(wrong) == 2, f"repertory {' '.join(wrong)} should end with 2"
    assert main(["show", case.slug]) == 0


class _Payload:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


def check_nothing_is_unpickled(case: Case) -> None:
    """Malicious pickles in every plausible place of a run directory execute nothing."""
    mark = case.folder / "executed"
    zipped = io.BytesIO()
    torch.save({"model": _Payload(mark)}, zipped)
    attacks = (pickle.dumps(_Payload(mark)), pickle.dumps({"model": _Payload(mark)}, protocol=2), zipped.getvalue())
    places = {str(p.relative_to(case.copied)) for p in case.copied.rglob("*") if p.is_file()}
    places |= {"assets/more.skops", "assets/more.pkl", "weights.pt", "embeddings/part-00000.parquet", "metrics.parquet"}
    for place in sorted(places):
        for attack in attacks:
            run = Path(shutil.copytree(case.copied, case.folder / "attacked"))
            (run / place).parent.mkdir(parents=True, exist_ok=True)
            (run / place).write_bytes(attack)
            for use in (
                lambda: runs.Run.open(run).read_metrics(),  # noqa: B023
                lambda: catalog.load(run),  # noqa: B023
                lambda: Embeddings.read(run / "embeddings"),  # noqa: B023
            ):
                with suppress(UserError, OSError, ValueError):
                    use()
            shutil.rmtree(run)
    stages = ("first", *(row["stage"] for row in case.fitted.run.read_metrics()))
    for attack in attacks[1:]:
        run = Path(shutil.copytree(case.copied, case.folder / "attacked"))
        (run / "weights.safetensors").unlink()
        (run / "state").mkdir()
        for stage in set(stages):
            (run / "state" / f"{stage}-1").write_bytes(attack)
        with suppress(UserError):
            runs.Run.open(run).load_state(tuple(dict.fromkeys(stages)))
        shutil.rmtree(run)
    assert not mark.exists(), "a pickle was executed"


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_card,
    check_config,
    check_embeddings,
    check_batch_size_and_order,
    check_embed_to_shards,
    check_save_and_load,
    check_evaluate,
    check_figures,
    check_overlap_is_refused,
    check_bad_data,
    check_bad_items_are_quarantined,
    check_options_are_honoured_or_refused,
    check_nothing_is_unpickled,
    check_command_line,
    check_same_seed_same_weights,
    check_resume_after_kill,
)
