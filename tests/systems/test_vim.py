"""What is special to Vision Mamba: the scan, directions, class tokens, positions, checkpoints, readers, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from repertory import catalog, data
from repertory.encoders import Encoder
from repertory.errors import ConfigError, DataError, UserError
from repertory.runs import seeded
from repertory.supervised import Supervised
from repertory.systems.vim import figures, scan
from repertory.systems.vim.baselines import AttentionLayer
from repertory.systems.vim.claim import Held, growth
from repertory.systems.vim.data import Repeated
from repertory.systems.vim.model import Mixer, VisionMamba, check_finite, class_places, start_steps
from repertory.systems.vim.official import load_official, options, read_shape, resize_positions
from repertory.systems.vim.scan import selective_scan
from repertory.systems.vim.system import Vim
from repertory.systems.vim.training import Training, with_average

SMALL = {"image_size": 8, "patch_size": 2, "width": 16, "depth": 2, "d_state": 4, "classes": 5}


def small(**kwargs) -> VisionMamba:
    torch.manual_seed(0)
    return VisionMamba(**{**SMALL, **kwargs}).eval()


def pictures(n: int = 2, side: int = 8) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


# --- the scan --------------------------------------------------------------------------------------------------------


def looped(u, delta, A, B, C, D=None, z=None, bias=None, softplus=False):
    """The recurrence, a step at a time."""
    delta = delta if bias is None else delta + bias[:, None]
    delta = F.softplus(delta) if softplus else delta
    each = 1 if B.ndim == 3 else u.shape[1] // B.shape[1]
    B, C = (t[:, None] if t.ndim == 3 else t.repeat_interleave(each, 1) for t in (B, C))
    state, made = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[-1]):
        state = (delta[..., t, None] * A).exp() * state + delta[..., t, None] * B[..., t] * u[..., t, None]
        made.append((state * C[..., t]).sum(-1))
    y = torch.stack(made, -1)
    y = y if D is None else y + D[:, None] * u
    return (y if z is None else y * F.silu(z)), state


def of_scan(batch=2, channels=6, states=4, length=9, groups=0, dtype=torch.float64):
    torch.manual_seed(length)
    shape = (batch, groups, states, length) if groups else (batch, states, length)
    draw = lambda *s: torch.randn(*s, dtype=dtype).requires_grad_()
    A = (-torch.rand(channels, states, dtype=dtype) - 0.1).requires_grad_()
    x, delta, z = (draw(batch, channels, length) for _ in range(3))
    return x, delta, A, draw(*shape), draw(*shape), draw(channels), z, draw(channels)


@pytest.mark.parametrize(("groups", "length", "chunk"), [(0, 1, 16), (0, 16, 16), (0, 33, 16), (2, 37, 5), (3, 20, 64)])
def test_chunks_give_what_the_loop_gives(groups, length, chunk):
    args = of_scan(length=length, groups=groups)
    ours, theirs = selective_scan(*args, True, chunk=chunk), looped(*args, True)
    grads = [torch.randn_like(t) for t in ours]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    pairs = (torch.autograd.grad(out, args, grads) for out in (ours, theirs))
    for a, b in zip(*pairs, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_gradients_by_finite_differences():
    args = of_scan(batch=1, channels=2, states=2, length=5)
    assert torch.autograd.gradcheck(lambda *a: selective_scan(*a, True, chunk=2), args)


def test_the_state_stays_in_float32_under_autocast_and_for_half_inputs():
    args = [t.detach().float() for t in of_scan(length=40)]
    exact, state = selective_scan(*args, True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(selective_scan(*args, True)[0], exact)
    half = [t.half() if i not in (2, 5, 7) else t for i, t in enumerate(args)]
    y, last = selective_scan(*half, True)
    assert y.dtype == torch.float16
    assert last.dtype == state.dtype == torch.float32
    assert (y.float() - exact).abs().max() < 0.02 * exact.abs().max()


def test_long_sequences_neither_overflow_nor_keep_every_state():
    args = [t.detach().float() for t in of_scan(batch=1, channels=4, length=3000)]
    args[1] = args[1] + 6  # decays of exp(-6 * 3000) over all steps
    for t in args:
        t.requires_grad_()
    y, _ = selective_scan(*args, True)
    y.sum().backward()
    assert all(t.grad.isfinite().all() for t in args)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        selective_scan(*args, True)
    assert max(saved) < 4 * 4 * 3000  # fewer numbers than there are states


def test_scans_that_cannot_be():
    args = of_scan()
    with pytest.raises(DataError, match=r"B has shape \[2, 4, 8\], expected \[2, 4, 9\]"):
        selective_scan(*args[:3], args[3][..., 1:], args[4])
    with pytest.raises(DataError, match="6 channels in 4 groups"):
        selective_scan(*args[:3], torch.zeros(2, 4, 4, 9), torch.zeros(2, 4, 4, 9))
    with pytest.raises(ConfigError, match=r"scan=mamba-ssm needs a CUDA device.*cpu.*use scan=chunked"):
        selective_scan(*args, backend="mamba-ssm")
    with pytest.raises(ConfigError, match=r"unknown scan 'chunks'.*did you mean 'chunked'"):
        selective_scan(*args, backend="chunks")


def test_the_kernel_is_taken_where_it_is_and_can_be_used(monkeypatch):
    class OnCuda:
        is_cuda, dtype, device = True, torch.float32, torch.device("cuda")

    assert not scan._accelerated("auto", OnCuda(), 16)
    with pytest.raises(UserError, match="mamba-ssm: the package is not installed"):
        scan._accelerated("mamba-ssm", OnCuda(), 16)
    monkeypatch.setattr(scan, "find_spec", lambda name: name)
    assert scan._accelerated("auto", OnCuda(), 16)
    assert not scan._accelerated("auto", OnCuda(), 300)
    assert not scan._accelerated("chunked", OnCuda(), 16)


# --- the mixer -------------------------------------------------------------------------------------------------------


def test_directions_that_are_alike_mirror_each_other():
    """With equal parameters in both directions, the mixer of a flipped sequence is the flipped output."""
    for kind in ("v1", "v2"):
        mixer = Mixer(16, 4, bimamba_type=kind)
        with torch.no_grad():
            mixer.A_b_log.copy_(mixer.A_log)
            for name in ("conv1d", "x_proj", "dt_proj"):
                if kind == "v2":
                    getattr(mixer, f"{name}_b").load_state_dict(getattr(mixer, name).state_dict())
        x = torch.randn(2, 9, 16)
        same = torch.allclose(mixer(x.flip(1)), mixer(x).flip(1), atol=1e-6)
        assert same == (kind == "v2")  # v1 flips what a causal convolution has made


def test_forward_alone_is_the_mamba_of_transformers():
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    ours = Mixer(16, 4, bimamba_type="none")
    theirs = MambaMixer(MambaConfig(hidden_size=16, state_size=4, conv_kernel=4, expand=2, time_step_rank=1), 0)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 21, 16)
    assert torch.allclose(ours(x), theirs.eval()(x), atol=1e-5)


def test_forward_alone_is_causal():
    x = torch.randn(1, 9, 16).requires_grad_()
    for kind in ("none", "v1", "v2"):
        (gradient,) = torch.autograd.grad(Mixer(16, 4, bimamba_type=kind)(x)[:, 3].sum(), x)
        assert (gradient[:, 4:].abs().max() > 0) == (kind != "none")


def test_options_of_the_mixer():
    x = torch.randn(2, 5, 16)
    torch.manual_seed(0)
    mixer = Mixer(16, 4, init_layer_scale=0.1)
    y = mixer(x)
    mixer.gamma.data.fill_(1.0)
    assert torch.allclose(mixer(x) / 10, y)
    mixer.if_divide_out = False
    assert torch.allclose(mixer(x) / 20, y)
    assert Mixer(16, d_conv=7)(x).shape == x.shape
    with pytest.raises(ConfigError, match="dt_rank 0: at least 1"):
        Mixer(16, dt_rank=0)
    with pytest.raises(ConfigError, match="unknown bimamba_type 'v3'"):
        Mixer(16, bimamba_type="v3")


def test_starts():
    official, symmetric = (Mixer(64, symmetric_init=s) for s in (False, True))
    steps = F.softplus(official.dt_proj.bias)
    assert 1e-3 * 0.99 < steps.min() < steps.max() < 0.1 * 1.01
    assert torch.equal(official.dt_proj_b.bias, torch.zeros(128))
    assert F.softplus(symmetric.dt_proj_b.bias).max() < 0.1 * 1.01
    assert torch.allclose(official.A_b_log.exp(), torch.arange(1.0, 17).expand(128, -1))
    floored = nn.Linear(2, 8)
    start_steps(floored, 1e-9, 1e-8)
    assert torch.allclose(F.softplus(floored.bias), torch.full((8,), 1e-4), rtol=1e-3)
    model = VisionMamba(32, 16, width=64, depth=4, classes=5)
    assert model.layers[0].mixer.out_proj.weight.abs().max() <= 1 / math.sqrt(128) / 2 + 1e-6
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(768**-0.5, rel=0.05)


# --- class tokens, order, drop path ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "v2"])
def test_a_class_token_at_the_head_sees_patches_only_in_both_directions(kind):
    images = pictures().requires_grad_()
    (gradient,) = torch.autograd.grad(small(class_token="head", bimamba_type=kind).vectors(images).sum(), images)
    assert (gradient[..., -2:, -2:].abs().max() > 0) == (kind == "v2")
    assert (gradient.abs().max() > 0) == (kind == "v2")


@pytest.mark.parametrize(
    ("placement", "places"), [("middle", (8,)), ("head", (0,)), ("double", (0, 17)), ("random", (8,)), ("none", ())]
)
def test_placements(placement, places):
    model, images = small(class_token=placement), pictures()
    assert model.places == places
    tokens = model.tokens(images)
    assert tokens.shape == (2, 16 + len(places), 16)
    expected = tokens[:, list(places)].mean(1) if places else tokens.mean(1)
    assert torch.allclose(model.vectors(images), expected)
    assert torch.allclose(model(images), model.head(expected))
    patches = [i for i in range(tokens.shape[1]) if i not in places]
    assert torch.equal(model.dense(images).flatten(2).mT, tokens[:, patches])
    embedded = model.embed(images)
    if placement == "double":
        assert torch.equal(embedded[0, 0], (model.cls_token_head + model.pos_embed[:, :1])[0, 0])
        assert torch.equal(embedded[0, -1], (model.cls_token_tail + model.pos_embed[:, -1:])[0, 0])


def test_middle_of_an_odd_number_of_patches():
    assert class_places("middle", 729) == (364,)
    assert class_places("middle", 196) == (98,)


def test_a_random_place_is_drawn_in_training_only():
    model, images = small(class_token="random"), pictures()
    assert torch.equal(model(images), model(images, place=8))
    model.train()
    found = {tuple(model(images)[0].tolist()) for _ in range(6)}
    assert len(found) > 1
    assert torch.equal(model(images, place=3), model(images, place=3))


def test_pooling_without_a_class_token():
    images = pictures()
    last, most = (small(class_token="none", pool=pool) for pool in ("last", "max"))
    assert torch.equal(last.vectors(images), last.tokens(images)[:, -1])
    assert torch.equal(most(images), most.head(most.tokens(images)).amax(1))
    assert most.features(images).shape == (2, 16, 16)
    with pytest.raises(ConfigError, match="pool=max takes the maximum of logits"):
        most.vectors(images)


def test_layers_in_pairs_read_from_both_ends():
    images = pictures().requires_grad_()
    for bidirectional in (False, True):
        model = small(class_token="head", bimamba_type="none", if_bidirectional=bidirectional)
        (gradient,) = torch.autograd.grad(model.vectors(images).sum(), images)
        assert (gradient[..., -1, -1].abs().max() > 0) == bidirectional
    with pytest.raises(ConfigError, match="depth 3 is not even"):
        small(if_bidirectional=True, depth=3)


def test_drop_path_spares_the_first_two_layers():
    model = small(drop_path=0.3, depth=4)
    assert [layer.drop_path.drop_prob for layer in model.layers] == pytest.approx([0, 0, 0.1, 0.2])
    assert model.drop_path.drop_prob == pytest.approx(0.3)


def test_other_shapes_of_the_model():
    images = pictures(side=8)
    assert small(stride=1).dense(images).shape == (2, 16, 7, 7)
    for options_ in ({"rope": True}, {"positions": False}, {"rms_norm": False}, {"init_layer_scale": 0.5}):
        model = small(**options_)
        assert model(images).shape == (2, 5)
    plain, turned = small(positions=False), small(positions=False, rope=True)
    assert not torch.allclose(plain(images), turned(images), atol=1e-4)


def test_bfloat16_autocast_and_half_precision():
    model, images = small(), pictures()
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.tokens(images)
        logits = model(images)
    assert tokens.dtype == torch.float32  # the stream is not rounded
    assert (logits.float() - exact).abs().max() < 0.05
    logits.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (model.half()(images.half()).float() - exact).abs().max() < 0.02


def test_images_that_do_not_fit():
    model = small()
    with pytest.raises(DataError, match=r"12 x 12 pixels; this model takes 8 x 8: resize.*image_size=12"):
        model(pictures(side=12))
    with pytest.raises(DataError, match=r"\[2, 3, 8, 8\] and torch.uint8: needed are floats"):
        model(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"floats \[B, 3, S, S\]"):
        model(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ConfigError, match="image side 8, patch 16"):
        VisionMamba(8, 16)
    with pytest.raises(ConfigError, match=r"unknown class_token 'mid'.*did you mean"):
        small(class_token="mid")


# --- positions and checkpoints ---------------------------------------------------------------------------------------


def test_positions_are_split_at_the_class_token():
    side, width = 4, 3
    grid = torch.arange(side * side * width, dtype=torch.float32).reshape(1, side * side, width)
    token = torch.full((1, 1, width), -100.0)
    for placement, there in (("middle", 8), ("head", 0)):
        table = torch.cat([grid[:, :there], token, grid[:, there:]], dim=1)
        made = resize_positions(table, 6, placement)
        at = class_places(placement, 36)[0]
        assert torch.equal(made[:, at : at + 1], token)
        patches = torch.cat([made[:, :at], made[:, at + 1 :]], dim=1)
        expected = F.interpolate(grid.reshape(1, 4, 4, 3).permute(0, 3, 1, 2), (6, 6), mode="bicubic")
        assert torch.allclose(patches, expected.permute(0, 2, 3, 1).reshape(1, 36, 3), atol=1e-4)
        assert resize_positions(table, 4, placement) is table
        official = resize_positions(table, 6, placement, "official")
        assert torch.equal(official[:, 0], table[:, 0])
        assert torch.allclose(official, made) == (placement == "head")
    double = torch.cat([token, grid, 2 * token], dim=1)
    made = resize_positions(double, 2, "double")
    assert torch.equal(made[:, [0, -1]], double[:, [0, -1]])
    assert torch.equal(resize_positions(double, 2, "double", "official")[:, :2], double[:, :2])
    with pytest.raises(DataError, match=r"16 positions: without 1 class tokens 15, which is no square grid"):
        resize_positions(grid, 2, "middle")


def official_names(depth: int, tokens: tuple[str, ...] = ("cls_token",)) -> set[str]:
    mixer = ["A_log", "D", "A_b_log", "D_b"]
    mixer += [f"{n}.weight" for n in ("in_proj", "x_proj", "x_proj_b", "out_proj")]
    mixer += [f"{n}.{k}" for n in ("conv1d", "conv1d_b", "dt_proj", "dt_proj_b") for k in ("weight", "bias")]
    layer = ["norm.weight", *(f"mixer.{name}" for name in mixer)]
    return {
        *tokens, "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm_f.weight", "head.weight",
        "head.bias", *(f"layers.{i}.{name}" for i in range(depth) for name in layer),
    }  # fmt: skip


def checkpoint(**kwargs) -> dict[str, Tensor]:
    return {name: torch.randn(value.shape) * 0.1 for name, value in small(**kwargs).state_dict().items()}


def test_official_checkpoint_loads_strictly():
    state = checkpoint()
    assert state.keys() == official_names(2)
    assert checkpoint(class_token="double").keys() == official_names(2, ("cls_token_head", "cls_token_tail"))
    assert "layers.0.mixer.gamma" in checkpoint(init_layer_scale=1.0)
    loaded = load_official(small(), {"model": state})
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(DataError, match=r"does not fit: Missing key.*norm_f\.weight"):
        load_official(small(), {name: value for name, value in state.items() if name != "norm_f.weight"})
    with pytest.raises(DataError, match=r"the checkpoint has two \(cls_token_head.*the model one class token"):
        load_official(small(), checkpoint(class_token="double"))
    with pytest.raises(DataError, match=r"does not fit.*head\.weight"):
        load_official(small(classes=7), state)
    assert load_official(small(classes=7), state, head=False).head.out_features == 7
    assert load_official(small(stride=1), state).pos_embed.shape == (1, 50, 16)


def test_released_sizes():
    state = VisionMamba().state_dict()
    assert state.keys() == official_names(24)
    assert state["pos_embed"].shape == (1, 197, 192)
    assert state["layers.0.mixer.dt_proj.weight"].shape == (384, 12)
    millions = sum(value.numel() for value in state.values()) / 1e6
    assert 6.5 < millions < 7.5
    assert read_shape(state)["image_size"] == 224
    plus = {**state, "pos_embed": torch.zeros(1, 730, 192)}
    assert (read_shape(plus)["stride"], read_shape(plus)["image_size"]) == (8, 224)


def test_from_official(tmp_path):
    state = checkpoint()
    torch.save({"model": state, "epoch": 299}, tmp_path / "vim.pth")
    system = Vim.from_official(tmp_path / "vim.pth")
    images = [np.random.default_rng(i).integers(0, 256, (12, 9, 3), dtype=np.uint8) for i in range(3)]
    vectors = system.embed(images).vectors
    assert vectors.shape == (3, 16)
    model = load_official(small(), state)
    shown = torch.stack([system.tested(Image.fromarray(image)) for image in images])
    assert np.allclose(model.vectors(shown).detach(), vectors, atol=1e-5)
    assert system.predict(images).column_names[:3] == ["id", "prediction", "probability"]
    larger = Vim.from_official({"model": state}, image_size=16)
    assert larger.network.pos_embed.shape == (1, 65, 16)
    assert Vim.from_official(state, class_token="head").network.places == (0,)
    for placement, kind in (("double", "v1"), ("none", "none")):
        other = Vim.from_official(checkpoint(class_token=placement, bimamba_type=kind))
        assert (other.network.class_token, other.network.shape["bimamba_type"]) == (placement, kind)
    with pytest.raises(UserError, match="prefixes found: fc"):
        Vim.from_official({"fc.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="no square grid"):
        Vim.from_official({**state, "pos_embed": torch.zeros(1, 16, 16)})


def test_official_options():
    flags = {"if_cls_token": True, "use_middle_cls_token": True, "final_pool_type": "mean", "bimamba_type": None}
    assert options(flags)["class_token"] == "middle"
    assert options(flags)["bimamba_type"] == "none"
    assert options({"if_cls_token": True})["class_token"] == "head"
    assert options({"if_cls_token": False, "final_pool_type": "none"}) == {
        "bimamba_type": "none", "class_token": "none", "pool": "last",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="middle and double at once"):
        options({**flags, "use_double_cls_token": True})
    with pytest.raises(ConfigError, match="final_pool_type 'all': expected none, mean, max"):
        options({**flags, "final_pool_type": "all"})


# --- training --------------------------------------------------------------------------------------------------------


def test_what_is_decayed():
    model = small()
    spared = model.no_weight_decay()
    assert {"pos_embed", "cls_token", "layers.1.mixer.A_b_log"} <= spared
    model.decay_rates = True  # as the official optimiser
    assert model.no_weight_decay() == {"pos_embed", "cls_token"}
    groups = Supervised.configure_optimizers.__globals__["param_groups_weight_decay"](
        model, 0.1, no_weight_decay_list=tuple(spared)
    )
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert "layers.0.mixer.in_proj.weight" in names
    assert not any(name.endswith((".D", ".D_b", "A_log", "bias", "norm.weight")) for name in names)


def test_follow_and_averages():
    config = Vim.Config.build("tiny", follow="official", ema=0.9)
    system = Vim(config)
    system.assets = {"label": "label", "classes": ["a", "b"]}
    parts = system._build()
    assert set(parts) == {"model", "average"}
    assert parts["model"].decay_rates
    assert torch.equal(parts["model"].layers[0].mixer.dt_proj_b.bias, torch.zeros(64))
    assert not any(p.requires_grad for p in parts["average"].parameters())
    module = Training(parts["model"], parts["average"], 0.9, True, classes=2, lr=1e-3)
    module.step = 1000
    module.trainer = type("T", (), {"accumulate_grad_batches": 1})()  # type: ignore[assignment]
    before = parts["average"].norm_f.weight.clone()
    nn.init.zeros_(parts["model"].norm_f.weight)
    module.on_train_batch_end()
    assert torch.allclose(parts["average"].norm_f.weight, 0.9 * before)
    assert set(with_average(small(), 0.0)) == {"model"}


def test_divergence_names_the_layer():
    model = small()
    model.layers[1].mixer.A_log.data[3, 2] = float("nan")
    with pytest.raises(DataError, match=r"layers\.1\.mixer\.A_log is not finite: the training diverged"):
        check_finite(model)
    module = Training(model, None, 0.0, False, classes=5, lr=1e-3)
    module.log = lambda *a, **k: None  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"layers\.1\.mixer\.A_log"):
        module.training_step({"images": pictures(), "labels": torch.tensor([0, 1])})


def test_repeated_augmentation():
    drawn = []
    Repeated(lambda rows: drawn.append(list(rows)) or {}, 3)(np.array([4, 7]))
    assert drawn == [[4, 4, 4, 7, 7, 7]]


@pytest.mark.parametrize("settings", [
    {"class_token": "middle", "pool": "max"}, {"use_average": True}, {"mean": (0.5, 0.5)},
    {"if_bidirectional": True, "depth": 3}, {"image_size": 1},
])  # fmt: skip
def test_settings_that_contradict_each_other(settings):
    with pytest.raises(ConfigError):
        Vim.Config.build("tiny", **settings)


# --- the system ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    items = data.open("digits", "images").all
    return data.open(items.take(np.arange(0, 240)), "images")


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("vim") / "run"
    settings = {"steps": 4, "class_token": "head", "ema": 0.9, "use_average": True, "augment": True, "flip": 0.0,
                "repeats": 2, "mixup": 0.8, "cutmix": 1.0, "auto_augment": None}  # fmt: skip
    catalog.create("vim", "tiny", **settings).fit(digits, run=path)
    return path


def test_the_full_recipe_on_grey_images(run):
    system = catalog.load(run)
    assert system.network is system.model["average"]
    assert system.encoder.dense(torch.randn(2, 1, 8, 8)).shape == (2, 32, 4, 4)
    assert isinstance(system.encoder, Encoder)


def test_a_run_starts_another_on_larger_images(run, digits):
    settings = {"encoder": f"run:{run}", "image_size": 12, "stride": 2, "steps": 2}
    tuned = catalog.create("vim", "tiny", **settings).fit(digits)
    assert tuned.network.pos_embed.shape == (1, 37, 32)
    assert tuned.network.class_token == "head"  # as in the run
    with pytest.raises(ConfigError, match="takes 1 channels, mean has 3 values"):
        catalog.create("vim", "tiny", **settings, mean=(0.5,) * 3, std=(0.5,) * 3).fit(digits)
    with pytest.raises(ConfigError, match="not a Vision Mamba"):
        catalog.create("vim", "tiny", encoder="timm:resnet18?pretrained=false").fit(digits)


def test_max_pooling_classifies_but_does_not_embed(digits):
    system = catalog.create("vim", "tiny", class_token="none", pool="max", steps=2).fit(digits)
    assert set(system.evaluate()) == {"accuracy", "top5_accuracy"}
    with pytest.raises(ConfigError, match="pool=max"):
        system.embed()
    assert len(system.figures(digits.test)) == 2


def test_predict(run, digits):
    system = catalog.load(run)
    table = system.predict(digits.test).to_pandas()
    assert np.allclose(table.filter(like="p/").sum(axis=1), 1, atol=1e-5)
    best = table.filter(like="p/").to_numpy().max(1)
    assert np.allclose(best, table["probability"])
    assert len(system.predict(digits.test.take([0]))) == 1


def test_saliency_is_blind_where_the_class_token_is():
    images = pictures(3)
    model = small(bimamba_type="none")  # the class token stands at 8 and sees the patches before it
    with seeded(0), torch.inference_mode():
        seen = figures.saliency(model, images)
    assert seen.shape == (3, 16)
    assert (seen[:, :8] > 0).all()
    assert (seen[:, 8:] == 0).all()
    assert (figures.saliency(small(), images) > 0).all()


def test_memory_grows_linearly():
    tokens = (64, 256, 1024)
    ours = growth(lambda width: Mixer(width, 4), tokens, 24)
    theirs = growth(AttentionLayer, tokens, 24)
    assert ours < 1.2
    assert theirs > 1.6
    with Held() as held:
        a = torch.zeros(1000)
        b = a + 1
        del a
        b += 1
        c = b.view(10, 100).exp()
    assert held.peak == 8000
    assert held.now == 8000
    del b, c
    assert held.now == 0
