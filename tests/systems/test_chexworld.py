"""What is special to CheXWorld: relative positions, the exchange of views, masks, checkpoints, bad input."""

from __future__ import annotations

import gzip
import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from repertory import catalog, data
from repertory.data import images as image_data
from repertory.data.samples import SAMPLES
from repertory.errors import ConfigError, DataError, UserError
from repertory.nn.ema import update_ema
from repertory.nn.positions import frequencies, relative, relative_easy, sincos_2d
from repertory.nn.schedules import cosine_schedule, layer_decay_groups
from repertory.nn.vit import SIZES, VisionTransformer, last_block, resize_state
from repertory.systems.chexworld.augmentation import (
    Box,
    Draws,
    DualTransform,
    ParameterizedTransform,
    relative_position,
)
from repertory.systems.chexworld.data import CHEXPERT_FINDINGS, read_mask
from repertory.systems.chexworld.masks import MultiBlockMasks, stack_masks
from repertory.systems.chexworld.model import Classifier, Predictor, WorldModel, load_encoder, load_official, part_state
from repertory.systems.chexworld.objective import deviations, distance, world_model_loss
from repertory.systems.chexworld.segmentation import UNetAdapter
from repertory.systems.chexworld.system import CheXWorld

GRID, WIDTH, BATCH = 4, 32, 3


def small_encoder(**options) -> VisionTransformer:
    return VisionTransformer(**{"image_size": 32, "patch_size": 8, "width": WIDTH, "depth": 2, "heads": 2, **options})


def small_model(**options) -> WorldModel:
    torch.manual_seed(0)
    of_predictor = {k: options.pop(k) for k in ("conditioning", "general_position", "unify_embed") if k in options}
    predictor = Predictor(GRID, WIDTH, width=24, depth=2, heads=2, **of_predictor)
    return WorldModel(small_encoder(), predictor, **options)


def batch(rel_width: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images, augmented = torch.randn(2, 2, BATCH, 3, 32, 32, generator=generator)
    order = torch.rand(BATCH, GRID * GRID, generator=generator).argsort(-1)
    return {
        "images": images,
        "augmented": augmented,
        "policy": torch.rand(2, BATCH, 5, generator=generator) + 0.5,
        "rel": torch.rand(2, BATCH, rel_width, generator=generator) + 0.1,
        "context_indices": order[:, :8],
        "target_indices": order[:, 8:13],
        "shuffle": torch.tensor([2, 0, 1]),
    }


# --- positions -------------------------------------------------------------------------------------------------------


def test_equal_crops_give_the_query_positions_of_the_same_view():
    predictor = Predictor(GRID, WIDTH, width=24, depth=1, heads=2)
    box = Box(3, 5, 20, 25)
    rel = relative_position(box, box, mirrored=False, width=60)
    assert rel.tolist() == pytest.approx([0, 0, 0, (60 - 2 * 5) / 25])
    indices = torch.arange(GRID * GRID)[None]
    assert torch.equal(predictor.query_positions(indices, rel[None]), predictor.query_positions(indices))


def test_query_positions_have_the_other_channel_order_unless_unified():
    indices = torch.arange(GRID * GRID)[None]
    plain, unified = (Predictor(GRID, WIDTH, width=24, depth=1, heads=2, unify_embed=u) for u in (False, True))
    assert torch.allclose(plain.predictor_pos_embed.roll(12, dims=-1), plain.query_positions(indices), atol=1e-5)
    assert not torch.allclose(plain.predictor_pos_embed, plain.query_positions(indices), atol=1e-2)
    assert torch.allclose(unified.predictor_pos_embed, unified.query_positions(indices), atol=1e-6)


def test_relative_positions_find_the_same_pixel():
    """Patch (r, c) of crop 2 and the place it takes in crop 1 are the same point of the image, mirrored or not."""
    width, grid, omega = 80, 4, frequencies(8)
    first, second = Box(4, 6, 16, 32), Box(8, 14, 16, 32)
    for mirrored in (False, True):
        rel = relative_position(first, second, mirrored, width)
        row, column = 2, 1
        x = second.left + (column + 0.5) * second.width / grid
        x = width - x if mirrored else x
        y = second.top + (row + 0.5) * second.height / grid
        expected = torch.tensor(
            [(y - first.top) / first.height * grid - 0.5, (x - first.left) / first.width * grid - 0.5]
        )
        found = relative_easy(rel[None], grid, omega, torch.tensor([[row * grid + column]]))[0, 0]
        angle = expected[:, None] * omega
        assert torch.allclose(found, torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(), atol=1e-5)


def test_general_positions_agree_with_the_easy_ones_for_equal_sizes():
    first, second, omega = Box(4, 6, 16, 32), Box(8, 14, 16, 32), frequencies(16)
    for mirrored in (False, True):
        easy, general = (relative_position(first, second, mirrored, 80, g)[None] for g in (False, True))
        table = relative(general, GRID, omega)
        assert torch.allclose(table[..., :16], relative_easy(easy, GRID, omega))
        assert torch.equal(table[..., 16:], torch.tensor([0.0] * 4 + [1.0] * 4).repeat(2).expand(1, 16, 16))


def test_positions_need_a_multiple_of_four():
    with pytest.raises(ConfigError, match="multiple of 4, not 30"):
        sincos_2d(4, 30)


# --- vision transformer ----------------------------------------------------------------------------------------------


def test_parameters_are_named_as_in_timm():
    options = {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 0}
    theirs = timm.create_model("vit_tiny_patch16_224", **options)
    ours = VisionTransformer.of_size("tiny")
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(ours.eval()(images), theirs.eval().forward_features(images), atol=1e-5)


def test_sizes_and_initialisations():
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        VisionTransformer.of_size("smal")
    one = VisionTransformer(32, 16, **{**SIZES["giant"], "depth": 1})
    assert one.blocks[0].mlp.fc1.out_features == 6144
    plain, scaled = (small_encoder(width=192, init=i) for i in ("trunc_normal", "trunc_normal_scaled"))
    assert plain.blocks[1].mlp.fc2.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert scaled.blocks[1].mlp.fc2.weight.std().item() == pytest.approx(0.01, rel=0.05)
    bound = math.sqrt(6 / (WIDTH + 3 * WIDTH))
    assert small_encoder(init="xavier").blocks[0].attn.qkv.weight.abs().max() <= bound


def test_last_block_equals_the_block():
    x = torch.randn(2, 9, WIDTH)
    block = small_encoder().blocks[0]
    assert torch.allclose(last_block(block, x, 4), block(x)[:, -4:], atol=1e-6)


def test_sides_and_indices_are_checked():
    model = small_encoder()
    with pytest.raises(DataError, match=r"30 x 32 pixels.*patch 8"):
        model(torch.zeros(1, 3, 30, 32))
    with pytest.raises(DataError, match="index 16 is outside the grid of 4 x 4"):
        model(torch.zeros(1, 3, 32, 32), torch.tensor([[0, 16]]))
    with pytest.raises(ConfigError, match="image side 33 is not a multiple of the patch 8"):
        small_encoder(image_size=33)
    assert model(torch.zeros(1, 3, 16, 48)).shape == (1, 12, WIDTH)


# --- the world model -------------------------------------------------------------------------------------------------


def naive(model: WorldModel, b: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Predictions and targets of every view by a call of its own."""
    s = b["shuffle"]
    keep, ask = [b["context_indices"], b["context_indices"][s]], [b["target_indices"], b["target_indices"][s]]
    context = [model.encoder(b["augmented"][v], keep[v]) for v in (0, 1)]
    predictions = [
        model.predictor(context[of], keep[of], ask[to], b["policy"][of], None if rel is None else b["rel"][rel])
        for of, to, rel in ((0, 0, None), (1, 1, None), (0, 1, 0), (1, 0, 1))
    ]
    return torch.stack(predictions), torch.stack([model.target(b["images"][v], ask[v]) for v in (0, 1)])


@pytest.mark.parametrize("conditioning", ["feat", "feat_res", "feat_silu", "token", "token_bare"])
@pytest.mark.parametrize("general", [False, True])
def test_one_call_equals_separate_calls(conditioning, general):
    model, inputs = small_model(conditioning=conditioning, general_position=general), batch(6 if general else 4)
    for batched, single in zip(model(**inputs), naive(model, inputs), strict=True):
        assert torch.allclose(batched, single, atol=1e-5)


def test_exchanging_the_views_leaves_the_loss_unchanged():
    model, b = small_model(), batch()
    exchanged = {k: b[k].flip(0) for k in ("images", "augmented", "policy", "rel")}
    for k in ("context_indices", "target_indices"):
        exchanged[k] = b[k][b["shuffle"]]
    exchanged["shuffle"] = b["shuffle"].argsort()
    assert torch.allclose(world_model_loss(*model(**b)).loss, world_model_loss(*model(**exchanged)).loss, atol=1e-6)

    first, second = Box(2, 13, 35, 39), Box(8, 7, 35, 39)
    r21, r12 = relative_position(first, second, True, 60), relative_position(second, first, True, 60)
    assert torch.equal(r21[:2], -r12[:2])
    assert torch.equal(r21[2:], r12[2:])


def test_ema_with_momentum_one_changes_nothing_and_zero_copies():
    model = small_model()
    nn.init.normal_(model.encoder.norm.weight)
    before = {k: v.clone() for k, v in model.target_encoder.state_dict().items()}
    model.update_target(1.0)
    assert all(torch.equal(v, before[k]) for k, v in model.target_encoder.state_dict().items())
    model.update_target(0.0)
    assert torch.allclose(model.target_encoder.norm.weight, model.encoder.norm.weight)

    target, online = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    online(torch.randn(8, 2))
    update_ema(target, online, 0.5)
    assert torch.allclose(target.running_mean, online.running_mean / 2)
    assert target.num_batches_tracked == 1


def test_gradients_flow_only_where_they_should():
    model = small_model().train()
    assert not model.target_encoder.training
    world_model_loss(*model(**batch()), reg_weight=0.1).loss.backward()
    assert all(p.grad is None for p in model.target_encoder.parameters())
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("conditioning", ["feat", "token"])
def test_bfloat16_autocast(conditioning):
    model, inputs = small_model(conditioning=conditioning), batch()
    with torch.autocast("cpu", torch.bfloat16):
        half = world_model_loss(*model(**inputs))
    half.loss.backward()
    assert half.loss.dtype == torch.float32
    assert half.loss.item() == pytest.approx(world_model_loss(*model(**inputs)).loss.item(), rel=0.05)


def test_disabled_conditions_do_not_matter():
    inputs = batch()
    moved, retold = {**inputs, "rel": inputs["rel"] + 1}, {**inputs, "policy": inputs["policy"] * 2}
    for model, other in ((small_model(rel_pos_disable=True), moved), (small_model(iwm_disable=True), retold)):
        assert torch.equal(model(**inputs).predictions, model(**other).predictions)
    plain = small_model()
    for other in (moved, retold):
        assert not torch.allclose(plain(**inputs).predictions, plain(**other).predictions, atol=1e-4)
    swapped = {**inputs, "images": inputs["augmented"], "augmented": inputs["images"]}
    assert torch.equal(small_model(reverse_pred=True)(**inputs).targets, plain(**swapped).targets)


def test_target_normalisations():
    inputs = batch()
    for options in ({"target_last_k": 2}, {"target_norm": "in_avg_ln", "target_last_k": 2}):
        targets = small_model(**options)(**inputs).targets
        assert torch.allclose(targets.mean(-1), torch.zeros(2, BATCH, 5), atol=1e-5)
        assert not torch.allclose(targets, small_model()(**inputs).targets, atol=1e-3)
    with pytest.raises(ConfigError, match="target_last_k is 3, the encoder has 2"):
        small_model(target_last_k=3)
    with pytest.raises(ConfigError, match="did you mean 'avg_ln'"):
        small_model(target_norm="avgln")


def test_losses():
    p, t = torch.randn(4, 2, 5, 6), torch.randn(2, 2, 5, 6)
    both = torch.cat([t, t.flip(0)])
    assert torch.allclose(distance(p, both, "l2"), ((p - both) ** 2).mean((1, 2, 3)))
    assert torch.allclose(distance(p, both, "l1")[1], nn.functional.smooth_l1_loss(p[1], t[1]))
    flat_p, flat_t = p[2].flatten(0, 1), t[1].flatten(0, 1)
    correlation = 0.02 * (flat_p @ flat_t.T).square().mean()
    expected = ((flat_p - flat_t).square().sum(-1).mean() + correlation) / 6
    assert torch.allclose(distance(p, both, "unigrad")[2], expected)

    with_mean, without = (world_model_loss(p, t, extra_weight=3.0, extra_mean=m) for m in (True, False))
    assert torch.allclose(with_mean.loss * 4, without.loss)
    assert torch.allclose(without.loss, without.intra + 3 * without.extra)
    hinge = (world_model_loss(p * 0, t, reg_weight=0.5).loss - world_model_loss(p * 0, t).loss).item()
    assert hinge == pytest.approx(0.5 * (1 - 0.01))
    assert torch.allclose(deviations(p), torch.stack([(v.var(1) + 1e-4).sqrt() for v in p]).mean(0))


def test_wrong_number_of_augmentation_parameters():
    inputs = batch()
    with pytest.raises(DataError, match=r"4 augmentation parameters.*policy_dim is 5"):
        small_model()(**{**inputs, "policy": inputs["policy"][..., :4]})
    with pytest.raises(ConfigError, match="did you mean 'token'"):
        small_model(conditioning="tokens")


# --- checkpoints -----------------------------------------------------------------------------------------------------


def official_names(depth: int, predictor_depth: int) -> set[str]:
    def both(*names: str) -> list[str]:
        return [f"{n}.{kind}" for n in names for kind in ("weight", "bias")]

    def block(prefix: str) -> list[str]:
        return both(*(f"{prefix}.{n}" for n in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")))

    encoder = ["pos_embed", *both("patch_embed.proj", "norm"), *(k for i in range(depth) for k in block(f"blocks.{i}"))]
    predictor = ["mask_token", "predictor_pos_embed", *both(*(f"policy_net.{i}" for i in (0, 2, 4)))]
    predictor += both("predictor_embed", "predictor_norm", "predictor_proj")
    predictor += [k for i in range(predictor_depth) for k in block(f"predictor_blocks.{i}")]
    return {
        *(f"{part}.{k}" for part in ("encoder", "target_encoder") for k in encoder),
        *(f"predictor.{k}" for k in predictor),
    }


def test_official_checkpoint_loads_strictly_in_both_directions():
    model = small_model()
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert shapes.keys() == official_names(2, 2)
    checkpoint = {"model": {k: torch.randn(s) for k, s in shapes.items()}, "epoch": 299, "args": None}
    load_official(model, checkpoint)
    assert all(torch.equal(v, checkpoint["model"][k]) for k, v in model.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        load_official(model, {k: v for k, v in checkpoint["model"].items() if k != "predictor.mask_token"})
    assert "predictor_pos_mlp.weight" in small_model(general_position=True).predictor.state_dict()


def test_prefixes_are_matched_from_the_start():
    state = small_model().state_dict()
    assert part_state(state, "encoder").keys() == part_state(state, "target_encoder").keys()
    only = {k: v for k, v in state.items() if not k.startswith("encoder.")}
    with pytest.raises(DataError, match=r"no 'encoder\.' weights; prefixes found: predictor\., target_encoder\."):
        part_state({"model": only}, "encoder")
    with pytest.raises(DataError, match=r"no 'target_encoder\.'.*encoder\., predictor\."):
        part_state({k: v for k, v in state.items() if not k.startswith("target_")})


def test_encoder_loads_for_another_patch_and_image_size():
    small = small_model()
    loaded = load_encoder(small_encoder(image_size=32, patch_size=4), small.state_dict())
    assert loaded.patch_embed.proj.weight.shape == (WIDTH, 3, 4, 4)
    assert loaded.pos_embed.shape == (1, 64, WIDTH)
    same = resize_state(small.encoder.state_dict(), 8, 32)
    assert all(torch.equal(v, same[k]) for k, v in small.encoder.state_dict().items())


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def test_classifier_and_layer_decay():
    model = Classifier(small_encoder(drop_path=0.6), classes=6)
    assert {k.split(".")[0] for k in model.state_dict()} == {"feature_model", "head"}
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(model(images), model.head(model.feature_model(images).mean(1)))

    groups = layer_decay_groups(model, lr=0.1, weight_decay=0.05, layer_decay=0.5)
    of = {id(p): g for g in groups for p in g["params"]}
    rate = {n: of[id(p)]["lr"] for n, p in model.named_parameters()}
    assert rate["head.weight"] == rate["feature_model.norm.weight"] == pytest.approx(0.1)
    assert rate["feature_model.blocks.1.mlp.fc1.weight"] == pytest.approx(0.05)
    assert rate["feature_model.patch_embed.proj.weight"] == pytest.approx(0.0125)
    assert all(of[id(p)]["weight_decay"] == (0.05 if p.ndim > 1 else 0) for p in model.parameters())


@pytest.mark.parametrize("patch", [8, 16])
def test_segmenters(patch):
    model = UNetAdapter(small_encoder(image_size=64, patch_size=patch), classes=2, channels=4)
    logits = model(torch.randn(2, 3, 64, 96))
    assert logits.shape == (2, 2, 64, 96)
    logits.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n.startswith(("fpns", "head")))
    scales = {g["lr_scale"] for g in layer_decay_groups(model, 1.0, 0.05, 0.5)}
    assert scales == {1.0, 0.5, 0.25, 0.125}
    with pytest.raises(ConfigError, match="patch 8 or 16, not 4"):
        UNetAdapter(small_encoder(patch_size=4), classes=2)


def test_schedule():
    values = cosine_schedule(1.0, 0.1, steps=10, warmup=4)
    assert values[:5].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert (values[4:].diff() < 0).all()
    assert values[-1] > 0.1
    with pytest.raises(ConfigError, match="12 steps does not fit into 10"):
        cosine_schedule(1.0, 0.1, steps=10, warmup=12)


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rand_keep", [False, True])
def test_masks(rand_keep):
    sampler = MultiBlockMasks(rand_keep=rand_keep)
    for seed in range(20):
        torch.manual_seed(seed)
        context, target = sampler(16)
        assert context.shape[0] == target.shape[0] == 16
        for mask in (context, target):
            assert mask.min() >= 0
            assert mask.max() < 14 * 14
            assert (mask.diff(dim=1) > 0).all()
        assert context.shape[1] > sampler.min_keep
        assert not (context[:, :, None] == target[:, None]).any()
    torch.manual_seed(seed)
    again = sampler(16)
    assert torch.equal(again.context, context)
    assert torch.equal(again.target, target)


def test_target_blocks_that_are_not_merged():
    context, target = MultiBlockMasks(merge=False)(5)
    assert target.shape[:2] == (5, 4)
    assert (target.diff(dim=-1) > 0).all()
    assert not (context[:, None, :, None] == target[:, :, None]).any()


def test_a_context_that_is_cut_too_far_is_relaxed():
    # two targets leave the only possible context block 6 x 6 minus two halves: nothing
    sampler = MultiBlockMasks(
        grid=(6, 6), context_scale=(1.0, 1.0), target_scale=(0.5, 0.5), target_aspect=(0.5, 0.5), blocks=2
    )
    uniform = torch.zeros(4)
    assert sampler.block_size((0.5, 0.5), (0.5, 0.5), (0.0, 0.0)) == (3, 6)
    corners = torch.tensor([[[0, 0], [3, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]]])
    context, _ = sampler(2, uniform=uniform, top_left=corners)
    assert torch.equal(context, torch.arange(18, 36).expand(2, -1))
    torch.manual_seed(0)
    drawn = sampler(64)
    assert drawn.context.shape[1] > sampler.min_keep


def test_masks_that_cannot_be():
    with pytest.raises(ConfigError, match=r"grid of 4 x 4.*min_keep=10"):
        MultiBlockMasks(grid=(4, 4))(2)
    with pytest.raises(DataError, match=r"one length, not \[3, 4\], on a grid of 4 x 4"):
        stack_masks([torch.arange(3), torch.arange(4)], (4, 4))
    with pytest.raises(DataError, match="index -1 is outside"):
        stack_masks([torch.tensor([-1, 2])], (4, 4))


# --- augmentation ----------------------------------------------------------------------------------------------------


def radiograph(height: int = 52, width: int = 60) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def test_identity_parameters_change_nothing():
    image = radiograph()
    assert ParameterizedTransform()(image, torch.tensor([1.0, 1, 1, 0, 0])).tobytes() == image.tobytes()


def test_grey_images_are_treated_as_three_equal_channels():
    parameters = torch.tensor([1.2, 0.8, 1.5, 1.0, 0.1])
    draws = Draws(
        (Box(2, 13, 35, 39), Box(8, 7, 35, 39)),
        (False, True),
        (parameters, parameters),
        (torch.randn(32, 32, 3), torch.randn(32, 32, 3)),
        (("contrast", 1.3), ("brightness", 0.8)),
    )
    transform = DualTransform(size=32)
    for one, three in zip(transform(radiograph(), draws), transform(radiograph().convert("RGB"), draws), strict=True):
        assert torch.allclose(one, three, atol=0.02)


def test_views_are_a_function_of_the_seed():
    transform = DualTransform(size=32)
    views = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        views.append(transform(np.asarray(radiograph())))
    assert all(torch.equal(a, b) for a, b in zip(views[0], views[1], strict=True))
    assert not torch.equal(views[0].images, views[2].images)
    assert views[0].images.shape == views[0].augmented.shape == (2, 3, 32, 32)
    assert views[0].policy.shape == (2, 5)
    assert views[0].rel.shape == (2, 4)
    assert DualTransform(size=32, same_size=False)(radiograph()).rel.shape == (2, 6)


def test_crops_stay_inside_and_overlap():
    image = radiograph(60, 80)
    transform = DualTransform(size=32, scale=(0.1, 0.2), min_overlap=0.5)
    torch.manual_seed(0)
    for _ in range(100):
        (first, second), flips, parameters, _, _ = transform.draw(image)
        assert second[2:] == first[2:]
        for box in (first, second):
            assert 0 <= box.top <= 60 - box.height
            assert 0 <= box.left <= 80 - box.width
        left = 80 - first.left - first.width if flips[0] != flips[1] else first.left
        assert abs(second.top - first.top) <= first.height / 2
        assert abs(second.left - left) <= first.width / 2
        normalised = transform.augmentation.normalise(torch.stack(parameters))
        assert normalised.abs().max() <= 1 + 1e-6


def test_parameters_on_a_common_scale():
    transform = ParameterizedTransform()
    assert torch.equal(transform.normalise(torch.tensor([1.0, 1, 1, 0, 0])), torch.zeros(5))
    ends = transform.normalise(torch.tensor([[0.6, 1.4, 0.5, 2.0, 0.0], [1.4, 0.6, 2.0, 1.0, 0.2]]))
    assert torch.allclose(ends, torch.tensor([[-1.0, 1, -1, 1, 0], [1, -1, 1, 0.5, 1]]), atol=1e-6)


def test_images_must_have_eight_bits():
    with pytest.raises(DataError, match=r"uint8.*not uint16"):
        DualTransform(size=32)(np.zeros((40, 40), np.uint16))
    with pytest.raises(DataError, match="mode I;16 has more than 8 bits"):
        DualTransform(size=32)(Image.fromarray(np.zeros((40, 40), np.uint16)))


# --- readers ---------------------------------------------------------------------------------------------------------


def write_images(*paths: Path) -> None:
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20), dtype=np.uint8)
        if path.suffix in (".dcm", ".dicom"):
            write_dicom(path, pixels)
        else:
            Image.fromarray(pixels).save(path)


def write_dicom(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2") -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = generate_uid()
    d.Rows, d.Columns, d.SamplesPerPixel, d.PixelRepresentation = *pixels.shape, 1, 0
    d.BitsAllocated, d.BitsStored, d.HighBit = 8, 8, 7
    d.PhotometricInterpretation, d.PixelData = photometric, pixels.tobytes()
    d.save_as(path, enforce_file_format=True)


def opened(path: Path, query: str = ""):
    return data.open(f"images:{path}{query}", "images", CheXWorld.readers)


def rows(splits, *names: str) -> dict:
    table = splits.all.columns.select(names).to_pylist()
    return {i: tuple(row.values()) for i, row in zip(splits.all.ids, table, strict=True)}


NIH_HEADER = ("Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
              "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n")  # fmt: skip


def test_reads_nih(tmp_path):
    names = [f"{p:08d}_{k:03d}.png" for p in range(1, 31) for k in range(2)]
    found = ["Cardiomegaly|Edema", "No Finding"]
    (tmp_path / "Data_Entry_2017.csv").write_text(
        NIH_HEADER
        + "".join(f"{n},{found[i % 2]},0,{int(n[:8])},57,M,PA,2682,2749,0.14,0.14,\n" for i, n in enumerate(names))
    )
    write_images(*(tmp_path / "images" / n for n in names))
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[:50]))
    (tmp_path / "test_list.txt").write_text("\n".join(names[50:]))
    splits = opened(tmp_path)
    assert rows(splits, "Cardiomegaly", "Edema", "Hernia", "patient")[names[0]] == (1, 1, 0, 1)
    assert sorted(splits.test.ids) == names[50:]
    assert splits.rule == "source"
    assert len(splits.val)
    assert not set(splits.train.column("patient")) & set(splits.val.column("patient"))
    assert splits.all.roles["group"] == ("patient",)
    (tmp_path / "images" / names[3]).unlink()
    with pytest.raises(DataError, match=rf"{names[3]}: no such image, but .*Data_Entry_2017\.csv has a row for it"):
        opened(tmp_path)


CHEXPERT_HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding," + ",".join(CHEXPERT_FINDINGS) + "\n"


def test_reads_chexpert(tmp_path):
    root, blank = tmp_path / "CheXpert-v1.0-small", "," * 12

    def lines(part: str, patients: range, values: str) -> str:
        return CHEXPERT_HEADER + "".join(
            f"CheXpert-v1.0-small/{part}/patient{p:05d}/study1/view1_frontal.jpg,Female,68,Frontal,AP,,{values}\n"
            f"CheXpert-v1.0-small/{part}/patient{p:05d}/study1/view2_lateral.jpg,Female,68,Lateral,,,{blank}\n"
            for p in patients
        )

    train, valid = range(1, 31), range(100, 103)
    for part, patients in (("train", train), ("valid", valid)):
        write_images(*(root / f"{part}/patient{p:05d}/study1/view1_frontal.jpg" for p in patients))
        (root / f"{part}.csv").write_text(lines(part, patients, "1.0,-1.0,0.0" + "," * 10))
    with pytest.raises(DataError, match=r"30 uncertain labels \(-1\): say what they mean with uncertain=zeros\|ones"):
        opened(root)
    with pytest.raises(DataError, match="uncertain=maybe: expected zeros, ones, ignore"):
        opened(root, "?uncertain=maybe")
    for policy, value in (("zeros", 0.0), ("ones", 1.0), ("ignore", None)):
        splits = opened(root, f"?uncertain={policy}")
        got = rows(splits, "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Edema")
        assert len(got) == 33
        assert got["train/patient00001/study1/view1_frontal.jpg"] == (1.0, value, 0.0, 0.0)
    assert len(splits.test) == 3
    assert set(splits.val.column("patient")) <= {f"patient{p:05d}" for p in train}
    with pytest.raises(DataError, match=r"view2_lateral\.jpg: no such image, but .*train\.csv"):
        opened(root, "?uncertain=zeros&view=all")


def test_reads_mimic(tmp_path):
    keys = [(10000000 + i, 50000000 + i, f"d{i}", ("train", "validate", "test")[i % 3]) for i in range(6)]
    write_images(*(tmp_path / "files" / f"p{p}"[:3] / f"p{p}" / f"s{s}" / f"{d}.jpg" for p, s, d, _ in keys))
    head = "subject_id,study_id," + ",".join(sorted([*CHEXPERT_FINDINGS, "No Finding"]))
    cells = "," * 13

    def write(name: str, text: str) -> None:
        with gzip.open(tmp_path / f"mimic-cxr-2.0.0-{name}.csv.gz", "wt") as file:
            file.write(text)

    write("chexpert", head + "\n" + "".join(f"{p},{s},1.0{cells}\n" for p, s, *_ in keys))
    lateral = "lateral,10000000,50000000,LATERAL\n"
    write("metadata", "dicom_id,subject_id,study_id,ViewPosition\n" + lateral
          + "".join(f"{d},{p},{s},{'AP' if i % 2 else 'PA'}\n" for i, (p, s, d, _) in enumerate(keys)))  # fmt: skip
    with pytest.raises(DataError, match=r"no table mimic-cxr-2\.0\.0-split"):
        opened(tmp_path)
    write("split", "dicom_id,study_id,subject_id,split\n" + "".join(f"{d},{s},{p},{x}\n" for p, s, d, x in keys))
    splits = opened(tmp_path)
    assert rows(splits, "Atelectasis", "Edema", "view")["d1"] == (1.0, 0.0, "AP")
    assert sorted(splits.test.ids) == ["d2", "d5"]
    assert sorted(splits.val.ids) == ["d1", "d4"]


def test_reads_vindr_and_its_competition(tmp_path):
    ids = [f"f{i:031x}" for i in range(4)]
    write_images(*(tmp_path / "a" / ("test" if i == 3 else "train") / f"{n}.dicom" for i, n in enumerate(ids)))
    (tmp_path / "a" / "annotations").mkdir()
    head = "image_id,rad_id,Aortic enlargement,COPD,Lung tumor,Pneumonia,Tuberculosis,Other diseases,No finding\n"
    marks = [f"{n},R{r},1,0,0,{int(r < 2)},{int(r < 1)},0,0\n" for n in ids[:3] for r in range(3)]
    (tmp_path / "a" / "annotations" / "image_labels_train.csv").write_text(head + "".join(marks))
    test = head.replace("rad_id,", "").replace("diseases", "disease")
    (tmp_path / "a" / "annotations" / "image_labels_test.csv").write_text(test + f"{ids[3]},0,0,0,0,0,0,1\n")
    splits = opened(tmp_path / "a")
    got = rows(splits, "Pneumonia", "Tuberculosis", "No finding")
    assert got == {**dict.fromkeys(ids[:3], (1, 0, 0)), ids[3]: (0, 0, 1)}
    assert list(splits.test.ids) == [ids[3]]

    write_images(*(tmp_path / "b" / "train" / f"{n}.png" for n in ids))
    boxes = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
    (tmp_path / "b" / "train.csv").write_text(
        boxes + f"{ids[0]},Cardiomegaly,3,R1,1,2,3,4\n{ids[0]},No finding,14,R2,,,,\n"
        + "".join(f"{n},No finding,14,R1,,,,\n" for n in ids[1:3]) + f"{ids[3]},Nodule/Mass,8,R1,1,1,9,9\n"
    )  # fmt: skip
    got = rows(opened(tmp_path / "b"), "Cardiomegaly", "Nodule/Mass")
    assert got == {ids[0]: (1, 0), ids[1]: (0, 0), ids[2]: (0, 0), ids[3]: (0, 1)}


def test_reads_rsna(tmp_path):
    ids = [f"p{i}" for i in range(5)]
    write_images(*(tmp_path / "stage_2_train_images" / f"{n}.dcm" for n in ids))
    (tmp_path / "stage_2_train_labels.csv").write_text(
        "patientId,x,y,width,height,Target\np0,264,152,213,379,1\np0,562,152,256,453,1\n"
        + "".join(f"{n},,,,,0\n" for n in ids[1:])
    )
    splits = opened(tmp_path)
    got = rows(splits, "pneumonia", "mask", "patient")
    assert got["p0"] == (1, "boxes:1024x1024:264 152 213 379;562 152 256 453", "p0")
    assert got["p1"][:2] == (0, "")
    mask = np.asarray(read_mask(got["p0"][1], (1024, 1024)))
    assert mask[152, 264] == mask[600, 817] == 255
    assert mask[151, 264] == mask[152, 263] == mask[532, 264] == 0
    assert (mask > 0).sum() == 213 * 379 + 256 * 453
    (tmp_path / "stage_2_detailed_class_info.csv").write_text(
        "patientId,class\np0,Lung Opacity\np0,Lung Opacity\n" + "".join(f"{n},Normal\n" for n in ids[1:])
    )
    assert list(opened(tmp_path).all.labels()[:2]) == ["Lung Opacity", "Normal"]


def test_reads_siim(tmp_path):
    ids = [f"1.2.276.{i}" for i in range(5)]
    write_images(*(tmp_path / "dicom-images-train" / f"s{i}" / f"t{i}" / f"{n}.dcm" for i, n in enumerate(ids)))
    (tmp_path / "train-rle.csv").write_text(
        "ImageId, EncodedPixels\n"
        + f"{ids[0]}, 1024 3 1021 2\n{ids[0]}, 0 1\n"
        + "".join(f"{n}, -1\n" for n in ids[1:])
    )
    got = rows(opened(tmp_path), "pneumothorax", "mask")
    assert got[ids[0]] == (1, "rle:1024x1024:1024 3 1021 2;0 1")
    assert got[ids[1]] == (0, "")
    mask = np.asarray(read_mask(got[ids[0]][1], (1024, 1024)))
    assert sorted(zip(*np.nonzero(mask), strict=True)) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]
    with pytest.raises(DataError, match="runs do not fit into 4 x 4 pixels"):
        read_mask("rle:4x4:3 20", (4, 4))
    with pytest.raises(DataError, match="expected rle:WIDTHxHEIGHT:numbers"):
        read_mask("rle:4x4:a b", (4, 4))
    assert not np.asarray(read_mask(None, (5, 3))).any()


def test_reads_shenzhen_and_medfmc(tmp_path):
    names = [f"CHNCXR_{i:04d}_{i % 2}" for i in range(1, 6)]
    write_images(*(tmp_path / "a" / "CXR_png" / f"{n}.png" for n in names))
    write_images(tmp_path / "a" / "mask" / f"{names[0]}_mask.png")
    got = rows(opened(tmp_path / "a"), "tuberculosis", "patient", "mask")
    assert got[names[0]] == (1, "0001", str(tmp_path / "a" / "mask" / f"{names[0]}_mask.png"))
    assert got[names[1]] == (0, "0002", None)

    names = [f"chest_{i}.png" for i in range(6)]
    write_images(*(tmp_path / "b" / "images" / n for n in names))
    labels = ["1" + ",0" * 18, "0" + ",0" * 17 + ",1"]
    line = [f"{n} {labels[i % 2]}\n" for i, n in enumerate(names)]
    (tmp_path / "b" / "trainval.txt").write_text("".join(line[:4]))
    (tmp_path / "b" / "test_WithLabel.txt").write_text("".join(line[4:]))
    (tmp_path / "b" / "chest_1-shot_train_exp2.txt").write_text("".join(line[:2]))
    (tmp_path / "b" / "chest_1-shot_val_exp2.txt").write_text(line[2])
    splits = opened(tmp_path / "b")
    assert rows(splits, "pleural_effusion", "consolidation")[names[1]] == (0, 1)
    assert list(splits.test.ids) == names[4:]
    few = opened(tmp_path / "b", "?shots=1&experiment=2")
    assert (list(few.train.ids), list(few.val.ids)) == (names[:2], names[2:3])
    with pytest.raises(DataError, match=r"chest_5-shot_train_exp1\.txt: no such list"):
        opened(tmp_path / "b", "?shots=5")
    (tmp_path / "b" / "trainval.txt").write_text("chest_0.png 1,0\n")
    with pytest.raises(DataError, match=r"trainval\.txt: line 1: expected NAME and 19 labels"):
        opened(tmp_path / "b")


def test_reads_a_table_of_images_and_masks(tmp_path):
    write_images(*(tmp_path / f"{kind}/{i}.png" for kind in "im" for i in range(4)))
    (tmp_path / "t.csv").write_text(
        "path,mask\n" + "".join(f"i/{i}.png,{f'm/{i}.png' if i else ''}\n" for i in range(4))
    )
    got = rows(opened(tmp_path / "t.csv"), "mask")
    assert got == {"i/0.png": (None,), **{f"i/{i}.png": (str(tmp_path / f"m/{i}.png"),) for i in (1, 2, 3)}}
    (tmp_path / "m" / "2.png").unlink()
    with pytest.raises(DataError, match=r"m/2\.png: no such image, but .*t\.csv has a row for it"):
        opened(tmp_path / "t.csv")


def test_inverted_dicom_has_dark_air(tmp_path):
    pixels = np.tile(np.arange(20, dtype=np.uint8) * 10, (20, 1))
    write_dicom(tmp_path / "1.dcm", 190 - pixels, "MONOCHROME1")
    write_dicom(tmp_path / "2.dcm", pixels)
    first, second = (np.asarray(image_data.decode(tmp_path / f"{i}.dcm")) for i in (1, 2))
    assert np.array_equal(first, second)


SAMPLE = SAMPLES["simulated-radiographs"]


def test_readers_understand_the_real_label_tables(tmp_path):
    """The first rows of the tables themselves, with small images in their place."""
    tables = SAMPLE.packages[0].folder / "torchxrayvision" / "data"
    with gzip.open(tables / "Data_Entry_2017_v2020.csv.gz", "rt") as file:
        lines = [next(file) for _ in range(41)]
    (tmp_path / "nih").mkdir()
    (tmp_path / "nih" / "Data_Entry_2017_v2020.csv").write_text("".join(lines))
    write_images(*(tmp_path / "nih" / "images" / line.split(",")[0] for line in lines[1:]))
    splits = opened(tmp_path / "nih")
    assert splits.rule == "group:patient"
    assert rows(splits, "Cardiomegaly", "Emphysema", "sex")["00000001_001.png"] == (1, 1, "M")

    with gzip.open(tables / "chexpert_train.csv.gz", "rt") as file:
        lines = [next(file) for _ in range(41)]
    root = tmp_path / "CheXpert-v1.0-small"
    paths = [line.split(",")[0] for line in lines[1:] if ",Frontal," in line]
    write_images(*(tmp_path / path for path in paths))
    (root / "train.csv").write_text("".join(lines))
    got = rows(opened(root, "?uncertain=ignore"), "Cardiomegaly", "Lung Opacity", "Support Devices")
    assert len(got) == len(paths)
    assert got["train/patient00002/study2/view1_frontal.jpg"] == (None, 1.0, 0.0)

    with gzip.open(tables / "siim-pneumothorax-train-rle.csv.gz", "rt") as file:
        lines = [next(file) for _ in range(11)]
    write_images(*(tmp_path / "siim" / f"{line.split(',')[0]}.dcm" for line in lines[1:]))
    (tmp_path / "siim" / "train-rle.csv").write_text("".join(lines))
    splits = opened(tmp_path / "siim")
    for i, mask in enumerate(splits.all.columns["mask"].to_pylist()):
        assert np.asarray(read_mask(mask, (1024, 1024))).any() == bool(splits.all.column("pneumothorax")[i])

    with gzip.open(tables / "vinbigdata-train.csv.gz", "rt") as file:
        lines = [next(file) for _ in range(41)]
    write_images(*{tmp_path / "vin" / "train" / f"{line.split(',')[0]}.png" for line in lines[1:]})
    (tmp_path / "vin" / "train.csv").write_text("".join(lines))
    assert rows(opened(tmp_path / "vin"), "Cardiomegaly")["9a5094b2563a1ef3ff50dc5c7ff71345"] == (1,)


# --- the sample and the system ---------------------------------------------------------------------------------------


def test_the_sample_is_drawn_the_same_each_time_and_keeps_masks_apart(tmp_path, monkeypatch):
    splits = data.open("simulated-radiographs?images=60&side=32", "images")
    again = SAMPLE.load(images=60, side=32)
    assert splits.fingerprint == again.fingerprint
    assert splits.all.labels().shape == (60, 3)
    parts = [set(part.column("patient")) for part in (splits.train, splits.val, splits.test)]
    assert not parts[0] & parts[1] | parts[1] & parts[2] | parts[0] & parts[2]
    assert splits.fingerprint != data.open("simulated-radiographs?images=60&side=32&seed=1", "images").fingerprint
    assert "synthetic" in SAMPLE.about
    for wrong, message in (("images=2", "at least 3 images"), ("masks=heart", "masks=heart: expected lungs")):
        with pytest.raises(DataError, match=message):
            data.open(f"simulated-radiographs?{wrong}", "images")


SOURCE = "simulated-radiographs?images=120&side=48"


def tiny(**settings):
    return catalog.create("chexworld", "tiny", **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("chexworld") / "run"
    return tiny().fit(SOURCE, run=path), path


def test_workers_change_nothing_and_bfloat16_works(run):
    with_workers = tiny(workers=1).fit(SOURCE)
    assert all(
        torch.equal(a, b) for a, b in zip(run[0].model.parameters(), with_workers.model.parameters(), strict=True)
    )
    half = tiny().fit(SOURCE, steps=2, trainer={"precision": "bf16-mixed", "accumulate_grad_batches": 2})
    assert all(p.isfinite().all() for p in half.model.parameters())


def test_diagnosis_is_a_function_of_seed_and_image(run):
    system, _ = run
    items = system.splits.test
    whole, first = system.diagnose(items), system.diagnose(items.take([3]))
    for of in ("intra", "extra", "retold", "misplaced"):
        assert getattr(whole, of)[3] == pytest.approx(getattr(first, of)[0])
    blind = tiny(iwm_disable=True, rel_pos_disable=True, steps=0).fit(SOURCE)
    found = blind.diagnose(items)
    assert np.array_equal(found.intra, found.retold)
    assert np.array_equal(found.extra, found.misplaced)


def test_other_variants_train():
    options = {"ssl_type": "iwm_dual", "conditioning": "token", "target_last_k": 2, "rand_keep": True, "steps": 2}
    system = tiny(**options, aug_noise_p=1.0, loss="unigrad").fit(SOURCE)
    assert system.evaluate()["layout_ratio"].value > 0


def test_a_run_is_fine_tuned_to_findings(run, tmp_path):
    with pytest.raises(UserError, match=r"not fine-tuned.*task=classification"):
        run[0].predict()
    tuned = tiny(task="classification", encoder=f"run:{run[1]}", finetune_steps=3).fit(SOURCE, run=tmp_path / "tuned")
    assert set(tuned.model.keys()) == {"tuned"}
    table = tuned.predict()
    assert table.column_names == ["id", "opacity", "cardiomegaly", "pneumothorax"]
    assert table.num_rows == len(tuned.splits.test)
    again = catalog.load(tmp_path / "tuned")
    assert again.predict().equals(table)
    metrics = again.evaluate()
    assert 0 <= metrics["finetuned/auroc"].value <= 1
    assert "prediction_error" not in metrics
    assert catalog.encoder(f"run:{tmp_path / 'tuned'}").width == 64
    with pytest.raises(UserError, match="no world model"):
        again.diagnose(again.splits.test)


def test_pretraining_flows_into_fine_tuning():
    system = tiny(task="classification", finetune_patch_size=None, finetune_steps=1, finetune_lr=1e-12, steps=3)
    system.fit(SOURCE)
    target, tuned = system.model["world"].target_encoder, system.model["tuned"].feature_model
    assert torch.allclose(target.blocks[0].mlp.fc1.weight, tuned.blocks[0].mlp.fc1.weight, atol=1e-6)
    images = [f for caption, f in system.figures(system.splits.test).items() if "Probabilities" in caption]
    assert len(images) == 1


def test_classes_and_unknown_labels(tmp_path):
    hospital = tiny(task="classification", steps=0, finetune_steps=2).fit(f"{SOURCE}&label=hospital")
    assert hospital.answers == ["A", "B", "C", "D"]
    p = np.stack([hospital.predict()[name].to_numpy() for name in "ABCD"], axis=1)
    assert np.allclose(p.sum(1), 1, atol=1e-5)
    assert "finetuned/accuracy" in hospital.evaluate()
    for options, message in (
        ({"task": "segmentation"}, "segmentation needs masks"),
        ({"task": "classification", "label": "patient,hospital"}, "column 'patient' holds texts"),
    ):
        label = options.pop("label", None)
        with pytest.raises(DataError, match=message):
            tiny(**options, steps=0).fit(SOURCE + (f"&label={label}" if label else ""))
    with pytest.raises(DataError, match="classification needs labels"):
        tiny(task="classification").fit(np.random.default_rng(0).integers(0, 256, (12, 32, 32), dtype=np.uint8))


def test_unknown_findings_are_left_out():
    items = data.open(SOURCE, "images").all
    opacity = items.column("opacity").astype(float)
    opacity[::5] = np.nan
    columns = items.columns.set_column(0, "opacity", [opacity])
    gaps = type(items)(items.ids, items.sources, columns, items.roles)
    system = tiny(task="classification", steps=0, finetune_steps=2).fit(gaps)
    assert np.isfinite(system.evaluate()["opacity/probe_auroc"].value)
    uncertain = items.columns.set_column(0, "opacity", [np.where(np.isnan(opacity), -1, opacity)])
    with pytest.raises(DataError, match=r"column 'opacity' is -1; a finding is 1, 0; say what uncertain means"):
        tiny(task="classification").fit(type(items)(items.ids, items.sources, uncertain, items.roles))


def test_masks_are_learned_and_written(tmp_path):
    source = "simulated-radiographs?images=60&side=48&masks=lungs"
    system = tiny(task="segmentation", steps=0, finetune_steps=40).fit(source, run=tmp_path / "run")
    table = system.predict()
    assert table.column_names == ["id", "mask", "dice"]
    with Image.open(table["mask"][0].as_py()) as mask:
        assert mask.size == (48, 48)
        assert set(np.unique(mask)) <= {0, 255}
    assert system.evaluate()["finetuned/dice"].value == pytest.approx(np.mean(table["dice"].to_numpy()), abs=0.1)
    assert any("Masks" in caption for caption in system.figures(system.splits.test))
    memory = tiny(task="segmentation", steps=0, finetune_steps=1).fit(source)
    with pytest.raises(UserError, match="out=FOLDER"):
        memory.predict()


def test_official_checkpoints_become_runs(tmp_path):
    model = WorldModel(small_encoder(width=64, heads=1), Predictor(GRID, 64, width=24, depth=2, heads=1))
    torch.save({"model": model.state_dict(), "epoch": 299, "args": Namespace(lr=1)}, tmp_path / "pretrained.pth")
    catalog.entry("chexworld").load()
    system = CheXWorld.from_official(tmp_path / "pretrained.pth")
    c = system.config
    assert (c.image_size, c.patch_size, c.width, c.depth, c.predictor_width, c.predictor_depth) == (32, 8, 64, 2, 24, 2)
    assert all(torch.equal(v, system.model.state_dict()[f"world.{k}"]) for k, v in model.state_dict().items())
    system.save(tmp_path / "run")
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 44), dtype=np.uint8)
    assert np.array_equal(catalog.load(tmp_path / "run").embed(images).vectors, system.embed(images).vectors)

    tuned = Classifier(small_encoder(width=64, heads=1), classes=3)
    system = CheXWorld.from_official({"model": tuned.state_dict()})
    assert system.predict(images).column_names == ["id", "finding 0", "finding 1", "finding 2"]

    with pytest.raises(UserError, match=r"prefixes found: encoder, predictor"):
        CheXWorld.from_official({k: v for k, v in model.state_dict().items() if not k.startswith("target")})
    with pytest.raises(UserError, match="weights do not fit the model"):
        CheXWorld.from_official({k: v for k, v in model.state_dict().items() if k != "predictor.mask_token"})


def test_configurations_that_cannot_be():
    build = CheXWorld.Config.build
    for settings, message in (
        ({"image_size": 225}, "image side 225 is not a multiple of the patch 16"),
        ({"encoder": "run:x"}, "set task=classification"),
        ({"width": 100}, "width 100 is not a multiple of 4 and of the 12 heads"),
        ({"task": "segmentation", "image_size": 32, "patch_size": 4, "min_keep": 2}, "finetune_patch_size=8"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(None, **settings)
    with pytest.raises(ConfigError, match=r"grid of 4 x 4.*min_keep=10"):
        catalog.create("chexworld", image_size=64).fit(
            np.random.default_rng(0).integers(0, 256, (12, 32, 32), dtype=np.uint8)
        )
    with pytest.raises(ConfigError, match="not the encoder of a CheXWorld run"):
        catalog.create(
            "chexworld", "tiny", task="classification", encoder="timm:resnet18?pretrained=false"
        ).fit(np.random.default_rng(0).integers(0, 256, (12, 32, 32), dtype=np.uint8))  # fmt: skip
