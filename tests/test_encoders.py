"""Encoders by address, and how a run stores them."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from repertory import catalog, data, encoders
from repertory.card import Card, Config, EncoderAddress
from repertory.embeddings import Embeddings
from repertory.encoders import Encoder, resolve, stored_weights, with_stored_weights
from repertory.errors import ConfigError, UserError
from repertory.runs import Run
from repertory.training import Shuffled, Stage, StageModule, TorchSystem, batches_of

FRESH = "timm:resnet18?pretrained=false"


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return resolve(FRESH)


def test_timm(fresh):
    fresh.eval()
    images = torch.rand(2, 3, 64, 64)
    assert fresh.width == 512
    assert (fresh.convention.size, fresh.convention.channels) == (224, 3)
    assert fresh(images).shape == (2, 512)
    torch.testing.assert_close(fresh.dense(images).mean((2, 3)), fresh(images))


def test_tokens_become_a_map():
    torch.manual_seed(0)
    encoder = resolve("timm:vit_tiny_patch16_224?pretrained=false").eval()
    assert encoder.dense(torch.rand(1, 3, 224, 224)).shape == (1, 192, 14, 14)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("resnet18", "not an encoder address"),
        ("tim:resnet18", "not an encoder address"),
        ("timm:resnet81?pretrained=false", "timm knows no model 'resnet81'; did you mean 'resnet"),
        ("timm:resnet18?pretrain=false", "unknown option 'pretrain'; did you mean 'pretrained'"),
        ("timm:resnet18?pretrained=maybe", "expected true or false"),
        ("file:x.pth", "name the timm architecture"),
        ("file:x.pth?arch=resnet18", "x.pth: no such file"),
        ("file:x.pth?arc=resnet18", "did you mean 'arch'"),
    ],
)
def test_addresses_that_cannot_be(address, says):
    with pytest.raises(UserError, match=says) as error:
        resolve(address)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("address", ["timm:resnet18", "timm:resnet18?pretrained=true", "hf:no-such/model"])
def test_unreachable_weights_give_one_line(monkeypatch, address):
    import transformers

    def offline(*args, **kwargs):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", offline)
    with pytest.raises(UserError, match="cannot be fetched") as error:
        resolve(address)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_file(tmp_path, fresh, suffix):
    path = tmp_path / f"gewichte ü.{suffix}"
    state = {k: v.clone() for k, v in fresh.module.state_dict().items()}
    save_file(state, path) if suffix == "safetensors" else torch.save({"state_dict": state, "epoch": 3}, path)
    encoder = resolve(f"file:{path}?arch=resnet18")
    assert encoder.sha256() == fresh.sha256()
    assert not encoder.freeze().by_reference  # a file may change: it is stored whole
    for wrong, says in (("resnet34", "does not fit resnet34"), ("vit_tiny_patch16_224", "keys begin with"),
                        ("resnet10t", "does not fit")):  # fmt: skip
        with pytest.raises(UserError, match=says) as error:
            resolve(f"file:{path}?arch={wrong}")
        assert "\n" not in str(error.value)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=f"gewichte ü.{suffix}"):
        resolve(f"file:{path}?arch=resnet18")


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return type(self.mark).touch, (self.mark,)


def test_checkpoints_execute_nothing(tmp_path):
    torch.save({"model": Payload(tmp_path / "executed")}, tmp_path / "x.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("x.pth", "list.pth"):
        with pytest.raises(UserError, match=name):
            resolve(f"file:{tmp_path}/{name}?arch=resnet18")
    assert not (tmp_path / "executed").exists()


def test_frozen_encoders_stay_in_eval_mode(fresh):
    torch.manual_seed(0)
    encoder = resolve(FRESH).freeze()
    model = torch.nn.Sequential(encoder, torch.nn.Linear(512, 2)).train()
    assert not encoder.training
    assert not any(m.training for m in encoder.modules())
    assert model[1].training
    assert not any(p.requires_grad for p in encoder.parameters())


def small(address, seed=0):
    torch.manual_seed(seed)
    return Encoder(
        torch.nn.Linear(4, 3), 3, lambda module, x: module(x), address=address, skeleton="timm:x?pretrained=false"
    )


def test_storage_by_reference():
    public, own = small("timm:x").freeze(), small(None, 1).freeze()
    model = torch.nn.ModuleDict({"a": public, "b": own, "head": torch.nn.Linear(3, 1)})
    stored = stored_weights(model)
    assert {k for k in stored if k.startswith("a.")} == {"a.sha256"}
    assert "b.module.weight" in stored
    complete = with_stored_weights(model, stored)
    assert complete.keys() == model.state_dict().keys()
    assert stored.keys() == stored_weights(model).keys()  # unchanged by reading
    with torch.no_grad():
        public.module.weight[0, 0] += 1
    with pytest.raises(UserError, match="the weights of timm:x are not those"):
        with_stored_weights(model, stored)


def test_what_is_stored_whole():
    assert small("timm:x").freeze().by_reference
    assert not small("timm:x").by_reference  # trained
    for address in (None, "file:x", "run:x", "timm:x?pretrained=false"):
        assert not small(address).freeze().by_reference, address


def test_no_dense_features():
    with pytest.raises(ConfigError, match="gives no dense features"):
        small("timm:x").dense(torch.ones(1, 4))


# -- a system that starts from an encoder ---------------------------------------------------------------------


class Head(StageModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch):
        return self.model["head"](self.model["base"](batch)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.model["head"].parameters(), 0.1)


class Probe(TorchSystem):
    """A linear map on a frozen encoder."""

    card = Card(
        slug="probe",
        title="t",
        system="Probe",
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

        encoder: EncoderAddress = FRESH

    def _build(self):
        return torch.nn.ModuleDict({"base": self._encoder.freeze(), "head": torch.nn.Linear(self._encoder.width, 2)})

    def stages(self, splits):
        x = self._x(splits.train)
        return [Stage("fit", Head(self.model), Shuffled(len(x), 2, x.__getitem__), steps=2)]

    def _x(self, items):
        arrays = [np.asarray(items.image(i).convert("RGB"), np.float32) / 255 for i in range(len(items))]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    def _embed(self, items, batch_size):
        for part in batches_of(len(items), batch_size, items.take):
            yield Embeddings.build(self.model["head"](self.model["base"](self._x(part))).numpy(), id=part.ids)


@pytest.fixture
def probe(monkeypatch):
    class Found:
        card, load = Probe.card, staticmethod(lambda: Probe)

    monkeypatch.setattr(catalog, "entry", lambda slug: Found)
    return data.open(np.random.default_rng(0).integers(0, 256, (6, 32, 32), dtype=np.uint8), "images")


def test_a_run_with_fresh_frozen_weights_loads(probe, tmp_path):
    """Fresh weights are frozen but public nowhere: they are stored, and are the same for the same configuration."""
    first = catalog.create("probe").fit(probe, run=tmp_path / "r")
    assert Run.open(tmp_path / "r").record["encoders"][""]["by_reference"] is False
    torch.rand(3)
    loaded = catalog.load(tmp_path / "r")
    assert loaded.embed(probe.test).table.equals(first.embed(probe.test).table)
    assert catalog.create("probe").fit(probe).fingerprint == first.fingerprint
    with pytest.raises(UserError, match="starts from other encoders"):
        Probe.load(tmp_path / "r")


def test_an_encoder_made_in_python(probe, tmp_path):
    own = Encoder(
        torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()), 12, lambda module, x: module(x)
    )
    made = Probe(encoder=own).fit(probe, run=tmp_path / "r")
    with pytest.raises(UserError, match="made in Python"):
        catalog.load(tmp_path / "r")
    assert Probe.load(tmp_path / "r", encoder=own).embed(probe.test).table.equals(made.embed(probe.test).table)


def test_a_changed_public_encoder_is_noticed(probe, tmp_path, monkeypatch):
    torch.manual_seed(0)
    public = resolve(FRESH)
    monkeypatch.setattr(encoders, "resolve", lambda address: public)
    public.address = "timm:resnet18"
    Probe(Probe.Config(encoder="timm:resnet18"), encoder=public).fit(probe, run=tmp_path / "r")
    assert (tmp_path / "r" / "weights.safetensors").stat().st_size < 100_000
    catalog.load(tmp_path / "r")
    with torch.no_grad():
        next(public.module.parameters()).mul_(1.5)
    with pytest.raises(UserError, match="the weights of timm:resnet18 are not those"):
        catalog.load(tmp_path / "r")
