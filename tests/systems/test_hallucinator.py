"""What is special to the Hallucinator: extrapolation, losses, the queue, crops of the centre, bad input."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from repertory import catalog, data
from repertory.data.transforms.contrastive import CentreCrop, ContrastiveView, RandomCrop
from repertory.errors import ConfigError, DataError, UserError
from repertory.nn.queue import Queue
from repertory.objectives import contrastive as objective
from repertory.objectives.contrastive import info_nce, negative_cosine, nt_xent, queue_logits
from repertory.systems.hallucinator.model import (
    ConvNet,
    Hallucinator,
    MoCo,
    SimCLR,
    SimSiam,
    build_backbone,
    extrapolate,
    feature_map,
    hallucinate,
    linear_head,
    mlp_head,
    official_state,
    simsiam_head,
    without_head,
)
from repertory.systems.hallucinator.system import HallucinatorSystem
from repertory.systems.hallucinator.training import Pretraining, WarmedUp, cosine_by_epoch, stepped_by_epoch

torch.set_num_threads(1)
B, D = 6, 8


def features(seed: int = 0, rows: int = B, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, rows, D, generator=generator, dtype=dtype)
    return q, k


def siamese(method: str, plugged: bool = True, seed: int = 0, times: int = 1, **options):
    torch.manual_seed(seed)
    encoder = ConvNet(1, widths=(4, 6))
    head = {"moco": mlp_head, "simclr": mlp_head, "simsiam": simsiam_head}[method]
    encoder.fc = head(6, D)
    made = Hallucinator(D, times=times) if plugged else None
    if method == "moco":
        return MoCo(encoder, made, D, **{"queue_size": 24, **options})
    return SimCLR(encoder, made, **options) if method == "simclr" else SimSiam(encoder, made, D, 4)


def pictures(rows: int = B) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, rows, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return a, b


# --- the plug-in -----------------------------------------------------------------------------------------------------


def test_extrapolation_pushes_away_by_the_ratio():
    q, k = features(dtype=torch.float64)
    for r in (0.0, 0.05, 0.1, 1.0):
        e = extrapolate(q, k, r)
        assert torch.allclose((e - k).norm(dim=1), (1 + r) * (q - k).norm(dim=1))
        assert (F.cosine_similarity(e, k) <= F.cosine_similarity(q, k) + 1e-12).all()
    assert torch.equal(extrapolate(q, k, 0), q)
    assert torch.equal(extrapolate(q, k, torch.tensor(0.25)), extrapolate(q, k, 0.25))


def test_the_first_half_is_the_features_and_zero_weights_give_the_bias():
    q, k = features()
    hallucinator = Hallucinator(D)
    made = hallucinator(q, k)
    assert made.shape == (2 * B, D)
    assert torch.equal(made[:B], q)
    with torch.no_grad():
        for name, weight in hallucinator.named_parameters():
            if name.endswith("weight"):
                weight.zero_()
    assert torch.equal(hallucinator(q, k)[B:], hallucinator.mlp[4].bias.expand(B, D))
    assert torch.equal(hallucinate(q, k, 0.1, None)[B:], extrapolate(q, k, 0.1))
    assert sum(p.numel() for p in Hallucinator(128).parameters()) == 164_480


def test_one_ratio_a_batch_from_pythons_generator_and_several_hallucinations():
    q, k = features()
    bare = Hallucinator(D, most=0.1, smooth=False, times=2)
    random.seed(1)
    drawn = [random.uniform(0, 0.1) for _ in range(2)]
    random.seed(1)
    made = bare(q, k)
    assert torch.equal(made, torch.cat([q, extrapolate(q, k, drawn[0]), extrapolate(q, k, drawn[1])]))
    assert not list(bare.parameters())


def test_gradients_reach_both_features():
    q, k = (x.requires_grad_() for x in features())
    Hallucinator(D)(q, k, [0.1]).square().sum().backward()
    assert q.grad.abs().sum() > 0
    assert k.grad.abs().sum() > 0


def test_bad_features_are_refused():
    q, k = features()
    hallucinator = Hallucinator(D)
    with pytest.raises(DataError, match=r"q \[6, 8\] and k \[5, 8\]"):
        hallucinator(q, k[:5])
    with pytest.raises(DataError, match=r"q \[6, 8\] and k \[6, 7\]"):
        hallucinate(q, k[:, :7], 0.1, None)
    with pytest.raises(DataError, match=r"features \[6, 7\]: this Hallucinator takes \[batch, 8\]"):
        hallucinator(q[:, :7], k[:, :7])
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ConfigError, match=r"ratio=.*: must be at least 0"):
            hallucinator(q, k, [bad])
    with pytest.raises(ConfigError, match=r"ratio of shape \[6, 1\]: one number"):
        hallucinate(q, k, torch.rand(B, 1), None)
    with pytest.raises(ConfigError, match="3 ratios for 1 hallucinations"):
        hallucinator(q, k, [0.1, 0.1, 0.1])
    with pytest.raises(ConfigError, match="Hallucinator with ratios up to -1"):
        Hallucinator(D, most=-1)
    for bad in (math.nan, math.inf):
        q[2, 3] = bad
        with pytest.raises(DataError, match="NaN or infinity"):
            hallucinator(q, k)


# --- losses ----------------------------------------------------------------------------------------------------------


def unit(seed: int, rows: int) -> Tensor:
    return F.normalize(features(seed, rows, torch.float64)[0], dim=1)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 40, 1 << 22])
def test_info_nce_is_the_cross_entropy_of_its_logits(times, block, monkeypatch):
    monkeypatch.setattr(objective, "BLOCK", block)
    queries, keys, queue = unit(0, times * B).requires_grad_(), unit(1, B), unit(2, 20)
    logits = queue_logits(queries, keys, queue, 0.2)
    assert torch.allclose(logits[:, 0], (queries * keys.repeat(times, 1)).sum(1) / 0.2)
    slow = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))
    (expected,) = torch.autograd.grad(slow, queries)
    fast = info_nce(queries, keys, queue, 0.2)
    queue.zero_()  # as the queue is written to before the backward pass
    (found,) = torch.autograd.grad(fast, queries)
    assert torch.allclose(fast, slow)
    assert torch.allclose(found, expected)
    with torch.no_grad():
        assert info_nce(queries, keys, queue, 0.2).ndim == 0


def doubled(queries: Tensor, keys: Tensor, temperature: float, masked: bool) -> Tensor:
    """The straightforward form: every copy of a key in a matrix of all against all."""
    copies = keys.repeat(len(queries) // len(keys), 1)
    n = len(queries)
    x = F.normalize(torch.cat([queries, copies]), dim=1)
    logits = x @ x.T / temperature
    out = torch.eye(2 * n, dtype=torch.bool)
    if masked:
        same = torch.arange(n) % len(keys)
        out[n:, n:] |= same[:, None] == same
    logits = logits.masked_fill(out, -math.inf)
    return F.cross_entropy(logits, torch.arange(2 * n).roll(n))


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_nt_xent_is_that_of_all_copies(times, masked):
    queries, keys = (x.requires_grad_() for x in (features(0, times * B, torch.float64)[0], unit(1, B) * 3))
    slow, fast = doubled(queries, keys, 0.3, masked), nt_xent(queries, keys, 0.3, mask_duplicates=masked)
    assert torch.allclose(fast, slow)
    for a, b in zip(*(torch.autograd.grad(loss, (queries, keys)) for loss in (slow, fast)), strict=True):
        assert torch.allclose(a, b)
    assert torch.allclose(nt_xent(queries, keys, 0.3, 0.07, masked), fast * 0.3 / 0.07)


def test_negative_cosine_stops_the_targets():
    p, z = (x.requires_grad_() for x in features())
    loss = negative_cosine(torch.cat([p, 2 * p]), z)
    assert loss.item() == pytest.approx(-F.cosine_similarity(p, z).mean().item(), abs=1e-6)
    loss.backward()
    assert z.grad is None


def test_bad_shapes_and_temperatures_are_refused():
    q, k = features()
    with pytest.raises(DataError, match=r"queries \[6, 8\] and keys \[6, 7\]"):
        nt_xent(q, k[:, :7], 0.1)
    with pytest.raises(DataError, match="6 queries are not a multiple of the 4 keys"):
        negative_cosine(q, k[:4])
    with pytest.raises(DataError, match="queue"):
        info_nce(q, k, torch.randn(5, 7), 0.1)
    for loss in (lambda: nt_xent(q, k, 0), lambda: info_nce(q, k, q, -1), lambda: nt_xent(q, k, 0.1, 0)):
        with pytest.raises(ConfigError, match=r"temperature=.*: a positive number"):
            loss()


# --- the queue -------------------------------------------------------------------------------------------------------


def test_the_queue_is_a_ring_of_buffers():
    queue = Queue(6, 2)
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(6))
    for start in (0, 2, 4, 6):
        queue.enqueue(torch.full((2, 2), float(start)))
    assert queue.keys[:, 0].tolist() == [6, 6, 2, 2, 4, 4]
    assert queue.pointer.tolist() == [2]
    again = Queue(6, 2)
    again.load_state_dict(queue.state_dict())
    assert torch.equal(again.keys, queue.keys)
    with pytest.raises(ConfigError, match=r"queue of 6 keys is not a multiple of the 4 keys of a step: set .*=8"):
        queue.enqueue(torch.zeros(4, 2))
    with pytest.raises(ConfigError, match=r"keys of shape \[2, 3\]: the queue holds keys of length 2"):
        queue.enqueue(torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="a queue of 0 keys"):
        Queue(0, 2)


# --- the methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["moco", "simclr", "simsiam"])
def test_losses_do_not_depend_on_the_order_of_the_batch(method):
    model = siamese(method).double().eval()
    first, second = (x.double() for x in pictures())
    ratios = [0.05, 0.05] if method == "simsiam" else [0.05]
    order = torch.randperm(B)
    value = model.loss(model(first, second, ratios))
    assert torch.allclose(value, model.loss(model(first[order], second[order], ratios)))


@pytest.mark.parametrize("method", ["moco", "simclr", "simsiam"])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_every_part_is_trained(method, times):
    model = siamese(method, plugged=times > 0, times=max(times, 1)).train()
    pairs = model(*pictures())
    model.loss(pairs).backward()
    model.advance(pairs)
    assert all(len(pair.queries) == (1 + times) * B for pair in pairs)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("key_encoder") for name in trained)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    assert any(name.startswith("hallucinator") for name in trained) == (times > 0)


def test_mocos_keys_are_constant_unit_and_queued_once_or_twice():
    once, twice = siamese("moco"), siamese("moco", enqueue="official")
    for model, copies in ((once, 1), (twice, 2)):
        (pair,) = pairs = model.train()(*pictures())
        assert not pair.keys.requires_grad
        assert torch.allclose(pair.keys.norm(dim=1), torch.ones(B), atol=1e-6)
        model.advance(pairs)
        assert model.queue.pointer.item() == copies * B
        assert torch.equal(model.queue.keys[: copies * B], pair.keys.repeat(copies, 1))
    logits = queue_logits(*pair, twice.queue.keys, 0.2)
    assert torch.allclose(logits[:, 0], (pair.queries * pair.keys.repeat(2, 1)).sum(1) / 0.2)


def test_the_key_encoder_follows_with_statistics_of_its_own():
    model = siamese("moco", momentum=0.75)
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(1)
    before = [p.clone() for p in model.key_encoder.parameters()]
    model.eval()(*pictures())
    assert all(torch.equal(a, b) for a, b in zip(before, model.key_encoder.parameters(), strict=True))
    model.train()(*pictures())
    for old, new, online in zip(before, model.key_encoder.parameters(), model.encoder.parameters(), strict=True):
        assert torch.allclose(new, 0.75 * old + 0.25 * online, atol=1e-6)
    means = [e.body[1].running_mean for e in (model.encoder, model.key_encoder)]
    assert not torch.allclose(*means)


def test_views_and_sizes_that_do_not_fit_are_refused():
    first, second = pictures()
    model = siamese("simclr").train()
    with pytest.raises(DataError, match=r"views \[6, 1, 8, 8\] and \[6, 1, 4, 4\]"):
        model(first, second[..., :4, :4])
    with pytest.raises(DataError, match="a batch of 1 image"):
        model(first[:1], second[:1])
    with pytest.raises(ConfigError, match="SimSiam with dim 5, but a Hallucinator for 8"):
        SimSiam(nn.Identity(), Hallucinator(8), dim=5)
    module = Pretraining(model, HallucinatorSystem.Config.build("tiny"), 3)
    with pytest.raises(DataError, match="1 views: two are needed"):
        module.training_step({"views": (first,)})


def test_encoders_without_their_heads():
    resnet = build_backbone("resnet18").eval()
    assert (resnet.width, resnet.conv1.stride, resnet.conv1.kernel_size) == (512, (1, 1), (3, 3))
    resnet.fc = linear_head(512, 7)
    x = torch.randn(2, 3, 16, 16)
    bare = without_head(resnet)
    assert resnet(x).shape == (2, 7)
    assert bare(x).shape == (2, 512)
    assert torch.allclose(feature_map(bare, x).mean((2, 3)), bare(x), atol=1e-5)
    assert bare.conv1.weight is resnet.conv1.weight
    assert "fc.weight" not in bare.state_dict()
    grey = build_backbone("resnet50", channels=1, small_images=False)
    assert (grey.width, tuple(grey.conv1.weight.shape)) == (2048, (64, 1, 7, 7))
    small = ConvNet(1)
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(feature_map(small, x).mean((2, 3)), small(x))


@pytest.mark.filterwarnings("ignore:torch.distributed.nn")
@pytest.mark.parametrize("method", ["moco", "simclr"])
def test_a_group_of_one_process_changes_nothing(method):
    """Gathering and shuffling between devices, and its way back."""

    def step() -> tuple[Tensor, Tensor, nn.Module]:
        model = siamese(method).train()
        pairs = model(*pictures(), [0.05])
        loss = model.loss(pairs)
        model.advance(pairs)
        loss.backward()
        return loss.detach(), pairs[0].keys, model

    loss, keys, model = step()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        gathered_loss, gathered_keys, gathered = step()
    finally:
        dist.destroy_process_group()
    assert torch.allclose(gathered_loss, loss)
    assert torch.allclose(gathered_keys, keys, atol=1e-5)
    for a, b in zip(model.state_dict().values(), gathered.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


# --- official checkpoints --------------------------------------------------------------------------------------------


def officially(model, method: str) -> dict[str, Tensor]:
    """The state dict as the official code names it, from its description."""
    names = {"moco": {"encoder.": "encoder_q.", "key_encoder.": "encoder_k."}, "simclr": {"encoder.": "backbone."}}
    made = {}
    for key, value in model.state_dict().items():
        for ours, theirs in names.get(method, {}).items():
            if key.startswith(ours):
                key = theirs + key.removeprefix(ours)
                break
        if key.startswith("hallucinator.mlp."):
            _, _, layer, kind = key.split(".")
            made[f"module.generator.MLP.{layer}.{kind}"] = value
            key = f"generator.fc{1 + int(layer) // 2}.{kind}"
        key = {"queue.keys": "queue", "queue.pointer": "queue_ptr"}.get(key, key)
        made[f"module.{key}"] = value.T if key == "queue" else value
    return made


@pytest.mark.parametrize("method", ["moco_v1", "moco_v2", "simclr", "simsiam"])
def test_official_checkpoints_become_runs(method, tmp_path):
    encoder = build_backbone("resnet18")
    head = {"moco_v1": linear_head, "simsiam": simsiam_head}.get(method, mlp_head)
    encoder.fc = head(512, 16)
    base = method.partition("_")[0]
    model = (
        MoCo(encoder, Hallucinator(16), 16, queue_size=32)
        if base == "moco"
        else SimCLR(encoder, Hallucinator(16))
        if base == "simclr"
        else SimSiam(encoder, Hallucinator(16), 16, 4)
    )
    state = officially(model, base)
    assert official_state(state).keys() == model.state_dict().keys()
    path = tmp_path / "last.pth"
    torch.save({"optimizer_state": {}, f"{base}_state": state, "boxes": torch.zeros(3, 4), "epoch": 500}, path)
    system = HallucinatorSystem.from_official(path)
    c = system.config
    assert (c.method, c.hallucinate, c.backbone, c.width, c.follow) == (method, "full", "resnet18", 16, "official")
    for key, value in model.state_dict().items():
        assert torch.equal(system.model.state_dict()[f"siamese.{key}"], value)
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    assert system.embed(images).vectors.shape == (3, 512)
    if method == "moco_v2":
        system.save(tmp_path / "run")
        assert np.array_equal(catalog.load(tmp_path / "run").embed(images).vectors, system.embed(images).vectors)
        assert catalog.encoder(f"run:{tmp_path / 'run'}").width == 512
        less = {k: v for k, v in state.items() if "layer4.1.bn2.weight" not in k}
        with pytest.raises(UserError, match="weights do not fit the model"):
            HallucinatorSystem.from_official(less)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"not a Hallucinator checkpoint.*prefixes found: blocks"):
        HallucinatorSystem.from_official({"blocks.0.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="no such file"):
        HallucinatorSystem.from_official(tmp_path / "none.pth")
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="cannot be read safely"):
        HallucinatorSystem.from_official(tmp_path / "bad.pth")
    with pytest.raises(UserError, match="no tensor"):
        HallucinatorSystem.from_official({"encoder.conv1.weight": torch.zeros(64, 3, 3, 3)})


# --- views -----------------------------------------------------------------------------------------------------------


def test_centres_of_crops_lie_in_the_box():
    random.seed(0)
    crop = CentreCrop(8, box=(0.4, 0.3, 0.6, 0.7), scale=(0.1, 0.2))
    places = [crop.draw(60, 40) for _ in range(200)]
    for top, left, height, width in places:
        assert 0.4 * 40 - 1 <= top + height // 2 <= 0.6 * 40
        assert 0.3 * 60 - 1 <= left + width // 2 <= 0.7 * 60
        assert 0.08 <= height * width / 2400 <= 0.22
    rows = np.array([p.top + p.height // 2 for p in places])
    assert np.mean((rows <= 17) | (rows >= 23)) > 0.7  # alpha < 1 prefers the edges of the box


def test_crops_that_never_fit_fall_back_to_the_centre():
    crop = CentreCrop(8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert crop.draw(40, 20) == (0, 10, 20, 20)
    assert crop.draw(20, 40) == (10, 0, 20, 20)
    assert crop.shape(40, 20, 0.5, 0.5) is None
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40), dtype=np.uint8))
    assert crop(picture).size == (8, 8)
    with pytest.raises(ConfigError, match="box"):
        CentreCrop(8, box=(0.8, 0, 0.2, 1))
    with pytest.raises(ConfigError, match="alpha=0"):
        CentreCrop(8, alpha=0)


def test_views_are_grey_or_coloured():
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    for mean, channels in (((0.5,), 1), ((0.5, 0.5, 0.5), 3)):
        view = ContrastiveView(RandomCrop(12), mean, mean, jitter_p=1, grey_p=0.5, blur_p=1)
        for picture in (colour, colour.convert("L")):
            made = view(picture)
            assert made.shape == (channels, 12, 12)
            assert made.isfinite().all()


def test_views_are_those_of_torchvision():
    """The same operations, drawn otherwise: with nothing to draw, the same numbers."""
    from torchvision.transforms import InterpolationMode, v2
    from torchvision.transforms.v2 import functional as TF

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    crop = RandomCrop(12)
    random.seed(5)
    place = crop.draw(20, 24)
    random.seed(5)
    found = ContrastiveView(crop, mean, std, flip=1, jitter_p=0, grey_p=1)(picture)
    expected = TF.resized_crop(picture, *place, [12, 12], InterpolationMode.BILINEAR)
    expected = TF.rgb_to_grayscale(TF.horizontal_flip(expected), 3)
    expected = TF.normalize(v2.functional.to_dtype(TF.to_image(expected), torch.float32, scale=True), mean, std)
    assert torch.allclose(found, expected, atol=1e-6)
    for which, kind in enumerate((TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)):
        half = tuple(0.3 if i == which else 0.0 for i in range(4))
        view = ContrastiveView(lambda image: image, (0, 0, 0), (1, 1, 1), flip=0, jitter=half, jitter_p=1, grey_p=0)
        random.seed(1)
        found = view(picture)
        random.seed(1)
        random.random(), random.random(), random.sample(range(4), 4)
        factor = random.uniform(-0.3, 0.3) if which == 3 else random.uniform(0.7, 1.3)
        expected = torch.from_numpy(np.array(kind(picture, factor))).permute(2, 0, 1) / 255
        assert torch.equal(found, expected)


def test_the_first_epochs_have_plain_crops():
    batches = WarmedUp(10, 4, lambda rows: "random", lambda rows: "centred", warmup=2)
    assert [batches[k] for k in range(6)] == ["random"] * 4 + ["centred"] * 2


# --- schedules -------------------------------------------------------------------------------------------------------


def test_rates_change_by_epoch():
    rates = cosine_by_epoch(0.5, 0.1, 500)
    assert rates[0] == 0.5
    assert rates[250].item() == pytest.approx(0.275)
    assert rates[-1].item() == pytest.approx(0.05, abs=1e-4)
    assert cosine_by_epoch(0.03, 0.0, 100)[-1] > 0
    rates = stepped_by_epoch(10, 100)
    assert [rates[e].item() for e in (0, 59, 60, 79, 80, 99)] == pytest.approx([10, 10, 1, 1, 0.1, 0.1])


class _Trainer:
    accumulate_grad_batches = 1


def optimizer_of(**options):
    config = HallucinatorSystem.Config.build("tiny", method="simsiam", **options)
    module = Pretraining(siamese("simsiam"), config, per_epoch=3)
    module._trainer, module.steps = _Trainer(), 6
    return module, module.configure_optimizers()


def test_simsiams_optimiser_leaves_the_hallucinator_out_only_officially():
    for options, there, groups in (
        ({}, True, 2),
        ({"follow": "official"}, False, 2),
        ({"follow": "official", "fix_pred_lr": False}, True, 1),
    ):
        module, optimizer = optimizer_of(**options)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        parts = dict(module.model.named_children())
        assert all((id(p) in trained) == there for p in parts["hallucinator"].parameters())
        assert all(id(p) in trained for p in parts["predictor"].parameters())
        assert len(optimizer.param_groups) == groups
        assert module.rates.tolist() == pytest.approx([0.1] * 3 + [0.055] * 3)


# --- the system ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> data.Splits:
    """A few of the digits, all classes in each part."""
    splits = data.open("digits?side=16", "images")
    made = splits.all.take(np.arange(300))
    return data.open(made, "images")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "moco_v1", "hallucinate": "extrapolate", "hallucinations": 2},
        {"method": "moco_v2", "follow": "official", "crops": "random"},
        {"method": "simclr", "follow": "official"},
        {"method": "simclr", "hallucinate": "none", "task": "none"},
        {"method": "simsiam", "crop_warmup": 1},
    ],
)
def test_every_method_trains_with_and_without(digits, options):
    system = catalog.create("hallucinator", "tiny", **{"steps": 3, "probe_steps": 2, **options}).fit(digits)
    found = system.compare_views(digits.test)
    assert ("hallucinated" in found) == (options.get("hallucinate", "full") == "full")
    assert found["extrapolated"].mean() <= found["positive"].mean() + 1e-6
    if options.get("method") == "simsiam":
        assert "siamese.predictor.0.weight" in system.model.state_dict()


def test_probe_and_predictions(digits):
    system = catalog.create("hallucinator", "tiny", steps=3, probe_steps=8, workers=0).fit(digits)
    table = system.predict()
    assert table.column_names == ["id", *"0123456789"]
    assert np.allclose(np.stack([table[c].to_numpy() for c in "0123456789"]).sum(0), 1, atol=1e-5)
    assert system.model["probe"].best_accuracy >= 0
    assert 0 <= system.evaluate()["sgd_probe_accuracy_best"].value <= 1
    whole, first = system.compare_views(digits.test), system.compare_views(digits.test.take([0]))
    assert whole["positive"][0] == pytest.approx(first["positive"][0], abs=1e-5)
    bare = catalog.create("hallucinator", "tiny", steps=2, task="none").fit(digits)
    with pytest.raises(UserError, match="no linear probe: fit with task=probe"):
        bare.predict()
    half = catalog.create("hallucinator", "tiny", probe_steps=2).fit(
        digits, steps=2, trainer={"precision": "bf16-mixed", "accumulate_grad_batches": 2}
    )
    assert all(p.isfinite().all() for p in half.model.parameters())


def test_data_and_configurations_that_cannot_be(digits):
    build = HallucinatorSystem.Config.build
    for settings, message in (
        ({"mean": (0.5, 0.5)}, "2 means and 3 deviations"),
        ({"box": (0.5, 0.5, 0.4, 0.6)}, "box"),
        ({"ratio": -0.1}, "ratio"),
        ({"method": "mocco"}, "method"),
        ({"batch_size": 1}, "batch_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(None, **settings)
    for options, message in (
        ({"queue_size": 100}, r"100 keys is not a multiple of the 32 keys of a step: set queue_size=96"),
        ({"queue_size": 96, "follow": "official"}, r"96 keys is not a multiple of the 64 .* queue_size=128"),
    ):
        with pytest.raises(ConfigError, match=message):
            catalog.create("hallucinator", "tiny", **options).fit(digits)
    with pytest.raises(DataError, match="no label"):
        catalog.create("hallucinator", "tiny", queue_size=120).fit(
            np.random.default_rng(0).integers(0, 256, (12, 16, 16), dtype=np.uint8)
        )
    with pytest.raises(DataError, match=r"the loss is nan at step \d+: lower lr=1e\+30|NaN or infinity"):
        catalog.create("hallucinator", "tiny", lr=1e30, steps=6).fit(digits)
