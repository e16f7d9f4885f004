"""Training: batches by number, stages, what Lightning is asked for and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from repertory import data
from repertory.card import Card, Config
from repertory.embeddings import Embeddings
from repertory.errors import ConfigError, UserError
from repertory.runs import reseed
from repertory.training import Shuffled, Stage, StageModule, TorchSystem, batches_of

N = 20


class Module(StageModule):
    """Least squares with noise; validation draws random numbers where it is told to."""

    def __init__(self, model, system):
        super().__init__()
        self.model, self.system = model, system

    def training_step(self, batch):
        self.system.seen.append((self.step, self.steps, torch.is_autocast_enabled("cpu")))
        loss = (self.model(batch + 0.1 * torch.randn_like(batch)) - batch.sum(1, keepdim=True)).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch):
        if self.system.config.draws:
            torch.rand(5), np.random.rand(5)
        self.system.validations += 1
        worse = self.system.config.worse_after
        self.log("score", float(abs(self.system.validations - worse)) if worse else torch.rand(()))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.system.config.lr)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5), "interval": "step"}]


class ByHand(Module):
    def __init__(self, model, system):
        super().__init__(model, system)
        self.automatic_optimization = False

    def training_step(self, batch):
        optimizer = self.optimizers()
        loss = super().training_step(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class Linear(TorchSystem):
    """A linear map."""

    card = Card(
        slug="linear",
        title="t",
        system="Linear",
        families=("x",),
        kind="images",
        key=("id",),
        sample="none",
        check="none",
        metrics=(),
        paper="",
        authors="",
        venue="",
        code="",
        licence="",
    )

    class Config(Config):
        """Of the test."""

        lr: float = 0.05
        steps: int = 12
        stages: int = 1
        workers: int = 0
        validate_every: int = 0
        draws: bool = False
        by_hand: bool = False
        worse_after: int = 0
        patience: int | None = None
        keep: str | None = None
        share: bool = False

    def _build(self):
        self.seen, self.validations = [], 0
        return nn.Linear(16, 1)

    def stages(self, splits):
        x = self._x(splits.train)
        batches = Shuffled(len(x), 4, x.__getitem__)
        return [
            Stage(
                f"s{i}", (ByHand if self.config.by_hand else Module)(self.model, self),
                batches if self.config.share else Shuffled(len(x), 4, x.__getitem__), steps=self.config.steps,
                validation=[self._x(splits.val)] * 2 if self.config.validate_every else [],
                validate_every=self.config.validate_every or None, keep_best=self.config.keep,
                patience=self.config.patience,
            )
            for i in range(self.config.stages)
        ]  # fmt: skip

    def _x(self, items):
        return torch.from_numpy(
            np.stack([np.asarray(items.image(i), np.float32).ravel() / 255 for i in range(len(items))])
        )

    def _embed(self, items, batch_size):
        for part in batches_of(len(items), batch_size, items.take):
            yield Embeddings.build(self.model(self._x(part)).numpy(), id=part.ids)


@pytest.fixture(scope="module")
def splits():
    return data.open(np.random.default_rng(0).integers(0, 256, (N, 4, 4), dtype=np.uint8), "images")


def fit(splits, trainer=None, steps=None, epochs=None, run=None, **config):
    return Linear(Linear.Config(**config)).fit(splits, trainer=trainer, steps=steps, epochs=epochs, run=run)


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    )


# -- batches ------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_each_epoch_is_a_permutation(n, batch_size, epoch):
    batches = Shuffled(n, batch_size, lambda indices: indices)
    seen = np.concatenate([batches[epoch * len(batches) + i] for i in range(len(batches))])
    assert len(set(seen)) == len(seen) > n - min(batch_size, n)
    assert set(seen) <= set(range(n))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_a_batch_is_independent_of_what_was_asked_before(asked):
    def ask(batches, k):
        reseed(0, "", 0, k, "batch")
        return batches[k]

    made = lambda: Shuffled(17, 4, lambda indices: (*indices, np.random.rand()))
    used = made()
    for k in asked:
        assert ask(used, k) == ask(made(), k)


def test_order_depends_on_seed_stage_and_epoch():
    batches = Shuffled(50, 50, lambda indices: tuple(indices))
    orders = [batches[0], batches[1]]
    batches.stage = "other"
    orders.append(batches[1])
    batches.seed = 1
    orders.append(batches[1])
    assert len(set(orders)) == 4


def test_ranks_share_an_epoch():
    parts = []
    for rank in range(2):
        batches = Shuffled(24, 4, lambda indices: indices)
        batches.rank, batches.world = rank, 2
        assert len(batches) == 3
        parts += [batches[i] for i in range(3)]
    assert sorted(np.concatenate(parts)) == list(range(24))


def test_batches_of():
    assert [b.tolist() for b in batches_of(5, 2, lambda i: i)] == [[0, 1], [2, 3], [4]]


# -- fits -----------------------------------------------------------------------------------------------------


def test_lengths(splits):
    assert len(fit(splits).seen) == 12
    assert len(fit(splits, steps=3).seen) == 3
    per_epoch = len(splits.train) // 4
    assert len(fit(splits, epochs=2).seen) == 2 * per_epoch
    assert [step for step, *_ in fit(splits, steps=3, stages=2).seen] == [0, 1, 2] * 2


def test_workers_change_nothing(splits):
    assert same(fit(splits, workers=0, stages=2), fit(splits, workers=2, stages=2))


def test_validation_draws_change_nothing(splits):
    plain = fit(splits)
    for config in ({"draws": True}, {"draws": False}):
        assert same(plain, fit(splits, validate_every=3, **config))


def test_stages_that_share_their_batches(splits):
    assert same(fit(splits, stages=2, steps=2, share=True), fit(splits, stages=2, steps=2))


def test_accumulation(splits):
    system = fit(splits, trainer={"accumulate_grad_batches": 3}, steps=7)
    assert [step for step, *_ in system.seen] == list(range(7))
    assert {steps for _, steps, _ in system.seen} == {3}  # optimiser steps
    assert not same(system, fit(splits, steps=7))


def test_accumulation_resumes(splits, tmp_path, monkeypatch):
    options = {"trainer": {"accumulate_grad_batches": 2}}
    whole = fit(splits, **options, validate_every=3)
    from repertory import runs

    monkeypatch.setattr(runs, "FIRST_CHECKPOINT", 0.0)
    step = Module.training_step

    def killed(self, batch):
        if self.step == 7:
            raise ZeroDivisionError
        return step(self, batch)

    monkeypatch.setattr(Module, "training_step", killed)
    with pytest.raises(ZeroDivisionError):
        fit(splits, **options, validate_every=3, run=tmp_path / "r")
    monkeypatch.setattr(Module, "training_step", step)
    resumed = Linear(Linear.Config(validate_every=3)).fit(splits, run=tmp_path / "r", resume=True, **options)
    assert resumed.run.resumed_from == "s0-6"
    assert same(whole, resumed)
    assert resumed.run.read_metrics() == whole.run.read_metrics()


def test_keep_best(splits):
    """The score is best at the third of six validations; two batches a validation."""
    best = fit(splits, validate_every=2, keep="score", worse_after=6)
    assert same(best, fit(splits, steps=6))
    assert len(best.seen) == 12


def test_patience(splits):
    system = fit(splits, steps=40, validate_every=2, keep="score", worse_after=4, patience=2)
    assert len(system.seen) == 8  # best after 4 steps, then two validations without a better one
    assert same(system, fit(splits, steps=4))


def test_keep_best_needs_its_value(splits):
    with pytest.raises(RuntimeError, match="keeps the best 'nope', which it does not log"):
        fit(splits, validate_every=2, keep="nope")


def test_manual_optimisation_refuses_accumulation(splits):
    fit(splits, by_hand=True)
    for options in ({"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.0}):
        with pytest.raises(ConfigError, match="optimises by hand"):
            fit(splits, options, by_hand=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_epoch": 1}, "did you mean 'max_epochs'"),
        ({"max_epochs": 1}, "set by repertory"),
        ({"callbacks": []}, "set by repertory"),
        ({"precision": "9"}, "refuses precision=9"),
        ({"devices": "many"}, "refuses devices=many"),
        ({"accelerator": "abacus"}, "refuses accelerator=abacus"),
        ({"accumulate_grad_batches": 0}, "refuses accumulate_grad_batches=0"),
        ({"gradient_clip_val": "much"}, "refuses gradient_clip_val=much"),
    ],
)
def test_lightning_options(splits, tmp_path, options, says):
    with pytest.raises(ConfigError, match=says) as error:
        fit(splits, options, run=tmp_path / "r")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "r").exists()


def test_mixed_precision(splits):
    system = fit(splits, {"precision": "bf16-mixed", "accelerator": "cpu"})
    assert all(cast for *_, cast in system.seen)
    assert system.model.weight.dtype == torch.float32
    assert np.isfinite(system.embed(splits.test).vectors).all()


# -- the contract, as far as it is not tested per system ------------------------------------------------------------


def test_validation_does_not_change_the_callers_splits(splits, tmp_path):
    other = np.random.default_rng(5).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    before = splits.val.ids.tolist()
    Linear().fit(splits, validation=other, run=tmp_path / "r")
    assert splits.val.ids.tolist() == before
    with pytest.raises(UserError, match="another validation"):
        Linear().fit(splits, validation=other[:5], run=tmp_path / "r", resume=True)
    assert Linear().fit(splits, validation=other.copy(), run=tmp_path / "r", resume=True).run.complete


def test_a_run_is_independent_of_the_working_directory(tmp_path, monkeypatch):
    arrays = {"images": np.random.default_rng(0).integers(0, 256, (N, 4, 4), dtype=np.uint8), "t": np.arange(N) / 7}
    np.savez(tmp_path / "ü.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    system = Linear().fit("ü.npz?split=time:t", run="r", seed=np.int64(3))
    vectors = system.embed()
    monkeypatch.chdir("/")
    loaded = Linear.load(tmp_path / "r")
    assert loaded.embed().table.equals(vectors.table)
    np.savez(tmp_path / "ü.npz", images=arrays["images"][::-1], t=arrays["t"])
    with pytest.raises(UserError, match="data have changed"):
        Linear.load(tmp_path / "r").evaluate()


def test_a_complete_run_replaces_everything(splits, tmp_path):
    first = Linear(Linear.Config(lr=0.01)).fit(splits, run=tmp_path / "r")
    second = Linear(Linear.Config(lr=0.01)).fit(splits, seed=1)
    assert second.fingerprint != first.fingerprint
    second.fit(splits, run=tmp_path / "r", resume=True)
    assert second.fingerprint == first.fingerprint
    assert same(first, second)


def test_devices_that_are_not_there(splits):
    system = fit(splits, steps=1)
    for device in ("abacus", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device={device}"):
            system.embed(splits.test, device=device)


def test_embed_to_only_new(splits, tmp_path):
    system = fit(splits, steps=1)
    items = splits.all
    assert system.embed_to(tmp_path / "v", items.take(range(5))) == 5
    assert system.embed_to(tmp_path / "v", items, only_new=True) == N - 5
    assert system.embed_to(tmp_path / "v", items, only_new=True) == 0
    assert sorted(Embeddings.read(tmp_path / "v").column("id")) == sorted(items.ids)
    with pytest.raises(UserError, match="another run"):
        fit(splits, steps=2).embed_to(tmp_path / "v", items, only_new=True)
