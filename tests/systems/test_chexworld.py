"""What is special to CheXWorld: relative positions, the exchange of views, masks, checkpoints, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from repertory.errors import ConfigError, DataError
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
from repertory.systems.chexworld.masks import MultiBlockMasks, stack_masks
from repertory.systems.chexworld.model import CheXWorld, Classifier, Predictor, load_encoder, load_official, part_state
from repertory.systems.chexworld.objective import deviations, distance, world_model_loss
from repertory.systems.chexworld.segmentation import UNetAdapter

GRID, WIDTH, BATCH = 4, 32, 3


def small_encoder(**options) -> VisionTransformer:
    return VisionTransformer(**{"image_size": 32, "patch_size": 8, "width": WIDTH, "depth": 2, "heads": 2, **options})


def small_model(**options) -> CheXWorld:
    torch.manual_seed(0)
    of_predictor = {k: options.pop(k) for k in ("conditioning", "general_position", "unify_embed") if k in options}
    predictor = Predictor(GRID, WIDTH, width=24, depth=2, heads=2, **of_predictor)
    return CheXWorld(small_encoder(), predictor, **options)


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
    with pytest.raises(DataError, match="30 x 32 pixels.*patch 8"):
        model(torch.zeros(1, 3, 30, 32))
    with pytest.raises(DataError, match="index 16 is outside the grid of 4 x 4"):
        model(torch.zeros(1, 3, 32, 32), torch.tensor([[0, 16]]))
    with pytest.raises(ConfigError, match="image side 33 is not a multiple of the patch 8"):
        small_encoder(image_size=33)
    assert model(torch.zeros(1, 3, 16, 48)).shape == (1, 12, WIDTH)


# --- the world model -------------------------------------------------------------------------------------------------


def naive(model: CheXWorld, b: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
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
    assert torch.equal(r21[:2], -r12[:2]) and torch.equal(r21[2:], r12[2:])


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
    assert torch.allclose(target.running_mean, online.running_mean / 2) and target.num_batches_tracked == 1


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
    with pytest.raises(DataError, match="4 augmentation parameters.*policy_dim is 5"):
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
    assert loaded.patch_embed.proj.weight.shape == (WIDTH, 3, 4, 4) and loaded.pos_embed.shape == (1, 64, WIDTH)
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
    assert (values[4:].diff() < 0).all() and values[-1] > 0.1
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
            assert mask.min() >= 0 and mask.max() < 14 * 14
            assert (mask.diff(dim=1) > 0).all()
        assert context.shape[1] > sampler.min_keep
        assert not (context[:, :, None] == target[:, None]).any()
    torch.manual_seed(seed)
    again = sampler(16)
    assert torch.equal(again.context, context) and torch.equal(again.target, target)


def test_target_blocks_that_are_not_merged():
    context, target = MultiBlockMasks(merge=False)(5)
    assert target.shape[:2] == (5, 4) and (target.diff(dim=-1) > 0).all()
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
    with pytest.raises(ConfigError, match="grid of 4 x 4.*min_keep=10"):
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
        (Box(2, 13, 35, 39), Box(8, 7, 35, 39)), (False, True), (parameters, parameters),
        (torch.randn(32, 32, 3), torch.randn(32, 32, 3)), (("contrast", 1.3), ("brightness", 0.8)),
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
    assert views[0].policy.shape == (2, 5) and views[0].rel.shape == (2, 4)
    assert DualTransform(size=32, same_size=False)(radiograph()).rel.shape == (2, 6)


def test_crops_stay_inside_and_overlap():
    image = radiograph(60, 80)
    transform = DualTransform(size=32, scale=(0.1, 0.2), min_overlap=0.5)
    torch.manual_seed(0)
    for _ in range(100):
        (first, second), flips, parameters, _, _ = transform.draw(image)
        assert second[2:] == first[2:]
        for box in (first, second):
            assert 0 <= box.top <= 60 - box.height and 0 <= box.left <= 80 - box.width
        left = 80 - first.left - first.width if flips[0] != flips[1] else first.left
        assert abs(second.top - first.top) <= first.height / 2 and abs(second.left - left) <= first.width / 2
        normalised = transform.augmentation.normalise(torch.stack(parameters))
        assert normalised.abs().max() <= 1 + 1e-6


def test_parameters_on_a_common_scale():
    transform = ParameterizedTransform()
    assert torch.equal(transform.normalise(torch.tensor([1.0, 1, 1, 0, 0])), torch.zeros(5))
    ends = transform.normalise(torch.tensor([[0.6, 1.4, 0.5, 2.0, 0.0], [1.4, 0.6, 2.0, 1.0, 0.2]]))
    assert torch.allclose(ends, torch.tensor([[-1.0, 1, -1, 1, 0], [1, -1, 1, 0.5, 1]]), atol=1e-6)


def test_images_must_have_eight_bits():
    with pytest.raises(DataError, match="uint8.*not uint16"):
        DualTransform(size=32)(np.zeros((40, 40), np.uint16))
    with pytest.raises(DataError, match="mode I;16 has more than 8 bits"):
        DualTransform(size=32)(Image.fromarray(np.zeros((40, 40), np.uint16)))
