"""What is special to FSFM: masks that know faces, the target network, detection metrics, layouts, bad input."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from repertory import catalog, data
from repertory.data.images import Images
from repertory.data.samples import SAMPLES
from repertory.data.samples.synthetic_faces import build
from repertory.data.samples.synthetic_faces.drawing import CLASSES, Identity, render
from repertory.errors import ConfigError, DataError, UserError
from repertory.nn.mae import MaskedEncoder
from repertory.nn.masking import patch_errors
from repertory.systems.fsfm import FSFM, AntiSpoofing, FaceModel, detector, from_official, fsfm_loss, instance_loss
from repertory.systems.fsfm.data import READERS, Balanced, map_of, read_map, resized, spread_frames, videos_of
from repertory.systems.fsfm.masking import COVERED, GROUPS, PRIORITY, crfr_p, draw_places, region_patches, sample
from repertory.systems.fsfm.metrics import (
    by_video,
    detection,
    equal_error_rate,
    equal_error_threshold,
    half_total_error_rate,
    tpr_at_fpr,
)

torch.set_num_threads(1)
CHECK = "synthetic-faces?images=160&side=32&frames=2"
NAMES = list(GROUPS)


@pytest.fixture(scope="module")
def maps():
    drawn = [render(Identity.draw(np.random.default_rng(i)), 224, np.random.default_rng(i))[1] for i in range(8)]
    return torch.from_numpy(np.stack(drawn))


@pytest.fixture(scope="module")
def splits():
    return data.open(CHECK, "images", READERS)


@pytest.fixture(scope="module")
def pretrained(splits, tmp_path_factory):
    run = tmp_path_factory.mktemp("fsfm") / "pretrained"
    return FSFM(FSFM.Config.build("tiny", task="none", steps=3)).fit(splits, run=run)


def small(**options) -> FaceModel:
    torch.manual_seed(0)
    encoder = MaskedEncoder(32, 8, 3, 32, 2, 4)
    sizes = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "rep_depth": 1, "rep_heads": 4}
    return FaceModel(encoder, **{**sizes, "projection_hidden": 24, "projection_out": 8, **options})


# --- masks -----------------------------------------------------------------------------------------------------------


def test_patches_belong_to_every_region_that_a_pixel_of_theirs_has(maps):
    found = region_patches(maps, 16)
    pooled = lambda classes: torch.nn.functional.max_pool2d(
        torch.isin(maps, torch.tensor(classes, dtype=maps.dtype)).float(), 16
    ).flatten(1) > 0  # fmt: skip
    for i, (name, classes) in enumerate(GROUPS.items()):
        expected = pooled([1]) & pooled([0, 10]) if name == "boundary" else pooled(list(classes))
        assert torch.equal(found[:, i], expected), name
    assert found.any(1).all()
    wide = maps.to(torch.int16)
    assert torch.equal(region_patches(wide, 16), found)
    assert torch.equal(wide, maps.to(torch.int16)), "the maps themselves must not change"


@pytest.mark.parametrize("covered", COVERED)
def test_crfr_p_covers_the_region_and_hides_a_like_part_of_the_others(maps, covered):
    regions = region_patches(maps, 16)
    region = regions[:, NAMES.index(covered)]
    masks = sample(maps, 16, 0.75, "CRFR-P", covered)
    assert (masks.mask.sum(1) == 147).all()
    small_enough = region.sum(1) < 147
    assert torch.equal(masks.region[small_enough].bool(), region[small_enough])
    assert (masks.mask >= masks.region).all()
    # what is left to hide falls on the others in proportion
    left = (147 - region.sum(1)) / (196 - region.sum(1))
    background = regions[:, NAMES.index("background")] & ~regions[:, : NAMES.index("background")].any(1) & ~region
    share = (masks.mask * background).sum(1) / background.sum(1)
    assert torch.allclose(share, left.float(), atol=0.12)


def test_a_region_above_the_budget_is_thinned():
    maps = torch.full((3, 224, 224), 10, dtype=torch.int8)
    masks = sample(maps, 16, 0.75, "CRFR-P", "hair")
    assert torch.equal(masks.mask, masks.region)
    assert (masks.mask.sum(1) == 147).all()


@pytest.mark.parametrize("ratio", [0.75, 0.7, 0.61, 0.9])
@pytest.mark.parametrize("strategy", ["CRFR-P", "CRFR-R", "FRP", "FASKING-I", "random"])
def test_every_strategy_hides_the_share_that_is_asked_for(maps, strategy, ratio):
    masks = sample(maps, 16, ratio, strategy)
    assert set(masks.mask.sum(1).tolist()) <= {math.floor(ratio * 196), math.ceil(ratio * 196)}
    assert bool(masks.region.any()) == strategy.startswith("CRFR")


def test_fasking_hides_eyes_before_skin_and_skin_before_background(maps):
    masks = sample(maps, 16, 0.3, "FASKING-I")
    regions = region_patches(maps, 16, {name: GROUPS[name] for name in PRIORITY})
    assert (masks.mask[regions[:, 0]] == 1).all()
    only_background = regions[:, -1] & ~regions[:, :-1].any(1)
    assert (masks.mask[only_background] == 0).all()


def test_only_regions_that_are_there_are_covered():
    maps = torch.ones(2, 32, 32, dtype=torch.uint8)
    maps[:, 4:8, 4:8] = 6
    for _ in range(5):
        assert torch.equal(sample(maps, 8).region, region_patches(maps, 8)[:, NAMES.index("nose")].float())
    with pytest.raises(DataError, match="no image of the batch shows a region of a face"):
        sample(torch.ones(2, 32, 32, dtype=torch.uint8), 8)
    with pytest.raises(ConfigError, match="covered region 'skin'"):
        sample(maps, 8, covered="skin")
    with pytest.raises(DataError, match="not divided into patches of 7"):
        sample(maps, 7)


def test_places_are_random_orders_within_each_label():
    torch.manual_seed(0)
    labels = torch.randint(-1, 3, (5, 40))
    places = draw_places(labels, 3)
    for row, place in zip(labels, places, strict=True):
        for label in range(3):
            assert sorted(place[row == label].tolist()) == list(range(int((row == label).sum())))
    firsts = [int((draw_places(torch.zeros(1, 4, dtype=torch.int64), 1)[0] == 0).nonzero()) for _ in range(400)]
    assert np.bincount(firsts, minlength=4).min() > 60


def test_masks_are_uniform_over_the_patches_of_a_region(maps):
    torch.manual_seed(0)
    regions = region_patches(maps[:1].expand(400, -1, -1), 16)
    hidden = crfr_p(regions, NAMES.index("nose")).mask.mean(0)
    alone = regions[0, NAMES.index("background")] & ~regions[0, :-1].any(0)
    assert (hidden[alone] - hidden[alone].mean()).abs().max() < 0.12


# --- networks and losses ---------------------------------------------------------------------------------------------


def test_the_target_sees_the_whole_face_and_takes_no_gradient():
    model, images = small().eval(), torch.randn(3, 3, 32, 32)
    mask = torch.zeros(3, 16)
    mask[:, 4:] = 1
    view = model(images, mask, 4)
    other = model(images, 1 - mask, 12)
    assert torch.equal(view.target, other.target)
    assert not view.target.requires_grad
    assert torch.allclose(view.online.norm(dim=1), torch.ones(3))
    # unmasked, without a predictor, both networks say the same
    tokens = model.online.encoder(images, torch.arange(16).expand(3, -1))
    same = torch.nn.functional.normalize(model.online.whole(tokens, torch.arange(16).expand(3, -1)), dim=-1)
    assert torch.allclose(same, view.target, atol=1e-5)


def test_the_encoder_knows_nothing_of_hidden_patches():
    model, images = small().eval(), torch.randn(2, 3, 32, 32)
    mask = torch.zeros(2, 16)
    mask[:, ::2] = 1
    changed = images.clone().unflatten(2, (4, 8)).unflatten(4, (4, 8))
    changed[:, :, :, :, ::2] += 5  # patches with even numbers: every other column of a grid of four
    changed = changed.flatten(4, 5).flatten(2, 3)
    assert torch.allclose(model(images, mask, 8).predicted, model(changed, mask, 8).predicted, atol=1e-5)


def test_the_mask_token_may_pass_the_linear_layer_once():
    model = small().eval()
    tokens, restore = torch.randn(2, 5, 32), torch.stack([torch.randperm(16) for _ in range(2)])
    filled = torch.cat([tokens[:, 1:], model.online.mask_token.expand(2, 12, -1)], 1)
    whole = torch.cat([tokens[:, :1], filled.gather(1, restore[..., None].expand(-1, -1, 32))], 1)
    expected = model.decoder(model.decoder.embed(whole))[:, 1:]
    assert torch.allclose(model.draw(tokens, restore), expected, atol=1e-5)


def test_the_representation_decoder_has_positions_only_where_asked():
    assert not small().online.decoder.pos_embed.any()
    assert small(rep_positions=True).target.decoder.pos_embed.any()


def test_the_target_follows_and_momentum_one_leaves_it():
    model = small()
    before = model.target.projector[0].weight.clone()
    with torch.no_grad():
        model.online.projector[0].weight.add_(1)
    model.update_target(1.0)
    assert torch.equal(model.target.projector[0].weight, before)
    model.update_target(0.9)
    assert torch.allclose(model.target.projector[0].weight, before + 0.1, atol=1e-6)


def test_instance_losses_have_their_ranges():
    same = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    assert instance_loss(same, same, "simsiam").item() == pytest.approx(-0.5)
    assert instance_loss(same, -same, "simsiam").item() == pytest.approx(0.5)
    assert instance_loss(same, same, "byol").item() == pytest.approx(0, abs=1e-6)
    wrong = same.roll(1, 0)
    for kind in ("byol", "infonce", "infonce_positive", "simclr", "simclr_positive"):
        assert instance_loss(same, same, kind) < instance_loss(same, wrong, kind)


def test_an_absent_region_is_left_out_with_a_warning():
    errors, features = torch.rand(2, 4), torch.nn.functional.normalize(torch.randn(2, 8), dim=1)
    with pytest.warns(UserWarning, match="its loss is left out"):
        losses = fsfm_loss(errors, torch.ones(2, 4), torch.zeros(2, 4), features, features)
    assert losses.loss.item() == pytest.approx(errors.mean().item() - 0.05)
    alone = fsfm_loss(errors, torch.ones(2, 4), torch.ones(2, 4), None, None, 1.0, 0.0)
    assert alone.loss.item() == pytest.approx(2 * errors.mean().item())


def test_without_instance_weight_nothing_reaches_the_representation_decoder():
    model, images = small(), torch.randn(2, 3, 32, 32)
    mask = torch.zeros(2, 16)
    mask[:, :12] = 1
    model.losses(images, mask, mask, 4, instance_weight=0.0).loss.backward()
    assert model.online.projector[0].weight.grad is None
    assert model.decoder.pred.weight.grad.any()


def test_features_of_anti_spoofing_are_normalised():
    torch.manual_seed(0)
    model = AntiSpoofing(detector(0, 32, 8, 32, 1, 4), hidden=16).eval()
    images = torch.randn(3, 3, 32, 32)
    raw = torch.relu(model.bottleneck(model.vit(images)))
    norm = raw.norm(dim=1, keepdim=True)
    assert torch.allclose(model.features(images), raw / (2 * norm).sqrt(), atol=1e-6)
    kept, before = model.head.weight.clone(), model(images)
    assert torch.equal(model.head.weight, kept), "a call in evaluation must not change the weights"
    model.dropout.p = 0.0
    trained = model.train()(images)
    assert torch.allclose(trained, before, atol=1e-6)
    assert torch.allclose(model.head.weight.norm(dim=0), torch.ones(16))


# --- official checkpoints --------------------------------------------------------------------------------------------


def official(model: FaceModel, network: str = "online") -> dict[str, torch.Tensor]:
    """The state of ``model`` with the official names."""
    made = {}
    for name, value in model.state_dict().items():
        first, _, rest = name.partition(".")
        if first == "predictor" and network == "online":
            made[f"predictor.projection_head.{rest}"] = value
        elif first == "decoder" and network == "online":
            made[f"decoder_{rest}"] = value
        elif first == network:
            part, _, last = rest.partition(".")
            renamed = {
                "encoder": last,
                "decoder": f"rep_decoder_{last}",
                "projector": f"projector.projection_head.{last}",
            }
            made[renamed.get(part, rest)] = value
    return made


def test_official_names_load_strictly():
    model, other = small(), small(norm_pixels=True)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    state = official(other)
    for name in ("cls_token", "pos_embed", "mask_token", "patch_embed.proj.weight", "blocks.1.attn.qkv.bias",
                 "norm.bias", "rep_decoder_embed.weight", "rep_decoder_pos_embed",
                 "rep_decoder_blocks.0.mlp.fc1.weight",
                 "rep_decoder_norm.weight", "rep_decoder_pred.bias", "projector.projection_head.3.weight",
                 "predictor.projection_head.0.weight", "decoder_embed.weight", "decoder_pos_embed", "decoder_norm.bias",
                 "decoder_blocks.0.norm1.weight", "decoder_pred.weight"):  # fmt: skip
        assert name in state
    model.load_state_dict(from_official(state) | from_official(official(other, "target"), "target"), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_an_official_checkpoint_becomes_a_system(tmp_path, splits):
    torch.manual_seed(0)
    sizes = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 16, "rep_heads": 16}
    model = FaceModel(MaskedEncoder(32, 8, 3, 192, 1, 3), **sizes, projection_hidden=24, projection_out=8)
    torch.save({"model": official(model), "epoch": 3}, tmp_path / "checkpoint-400.pth")
    with pytest.warns(UserWarning, match="VGGFace2"), pytest.warns(UserWarning, match="target network"):
        FSFM.from_official(tmp_path / "checkpoint-400.pth")
    torch.save({"model": official(model, "target")}, tmp_path / "checkpoint-te-400.pth")
    statistics = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1]}
    (tmp_path / "pretrain_ds_mean_std.txt").write_text(json.dumps(statistics) + "\n", encoding="utf-8")
    system = FSFM.from_official(tmp_path / "checkpoint-400.pth")
    assert system.encoder.convention.mean == (0.5, 0.4, 0.3)
    assert (system.config.depth, system.config.rep_depth, system.config.image_size) == (1, 2, 32)
    for name, value in model.state_dict().items():
        assert torch.equal(system.model["faces"].state_dict()[name], value)
    assert system.embed(splits.test).width == 192
    (tmp_path / "pretrain_ds_mean_std.txt").write_text("mean 0.5\n", encoding="utf-8")
    with pytest.raises(UserError, match="three numbers each for mean and std"):
        FSFM.from_official(tmp_path / "checkpoint-400.pth")


@pytest.mark.filterwarnings("ignore:no pretrain")
def test_an_official_detector_becomes_a_system(splits):
    vit = detector(2, 32, 8, 192, 1, 3)
    system = FSFM.from_official({"model": vit.state_dict()})
    table = system.predict(splits.test)
    assert table.column_names == ["id", "video", "fake", "real", "video_fake", "video_real"]
    assert detector(2, 32, 8, 32, 1, 4, pooling="class").norm.eps == 1e-6


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_rates_of_errors_of_a_known_case():
    labels, scores = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0.1, 0.2, 0.3, 0.7, 0.4, 0.6, 0.8, 0.9])
    found = detection(labels, scores)
    assert found.auc == pytest.approx(14 / 16)
    assert equal_error_rate(labels, scores) == pytest.approx(0.25)
    assert found.accuracy == pytest.approx(6 / 8)
    threshold = equal_error_threshold(labels, scores)
    assert half_total_error_rate(labels, scores, threshold) == pytest.approx(0.25)
    assert tpr_at_fpr(labels, scores) == pytest.approx(0.5)
    with pytest.raises(DataError, match="all 3 items are of one class: AUC and error rates are undefined"):
        detection(np.ones(3), np.ones(3))


def test_a_video_is_the_mean_of_its_frames():
    videos = np.array(["b", "a", "b", "a", "c"])
    made = by_video(videos, np.array([1, 0, 1, 0, 1]), np.array([0.2, 0.4, 0.4, 0.0, 0.9]))
    assert made.names.tolist() == ["b", "a", "c"]
    assert made.scores == pytest.approx([0.3, 0.2, 0.9])
    assert made.labels.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="video 'a' has frames of several classes"):
        by_video(videos, np.array([1, 0, 1, 1, 1]), np.zeros(5))


def test_frames_are_spread_over_each_video():
    videos = np.array(["a"] * 6 + ["b"] * 2)
    assert spread_frames(videos, 2).tolist() == [1, 4, 6, 7]
    assert spread_frames(videos, 1).tolist() == [3, 7]
    assert spread_frames(videos, 9).tolist() == list(range(8))


def test_balanced_batches_hold_every_cell_alike():
    cells = np.array(["real A"] * 9 + ["fake A"] * 3 + ["real B"] * 5)
    batches = Balanced(cells, 3, lambda rows: rows)
    for k in range(4):
        assert dict(zip(*np.unique(cells[batches[k]], return_counts=True), strict=True)) == dict.fromkeys(set(cells), 3)


# --- the sample ------------------------------------------------------------------------------------------------------


def test_action_units_move_the_face():
    person = Identity.draw(np.random.default_rng(3))
    shown = lambda **actions: render(
        person, 96, np.random.default_rng(0), {int(k[2:]): v for k, v in actions.items()}, pose=0, noise=0
    )
    image, parsing = shown()
    assert set(range(len(CLASSES))) - {8} <= set(np.unique(parsing))
    assert image.dtype == parsing.dtype == np.uint8
    assert not (parsing == 8).any()
    assert (shown(AU26=1.0)[1] == 8).sum() > 40
    rows = lambda m, *classes: np.nonzero(np.isin(m, classes))[0].mean()
    assert rows(shown(AU2=1.0)[1], 2, 3) < rows(parsing, 2, 3) < rows(shown(AU4=1.0)[1], 2, 3)
    assert (shown(AU7=1.0)[1] == 4).sum() < (parsing == 4).sum()
    assert np.array_equal(shown(AU99=1.0)[0], image)
    again = render(person, 96, np.random.default_rng(0), pose=0, noise=0)
    assert np.array_equal(again[0], image)


def test_forgeries_change_their_region_and_videos_their_person():
    items = build({}, images=96, side=32, frames=2, forgeries="mouth,spoof")
    assert set(items.column("forgery")) == {"none", "mouth", "spoof"}
    labels, videos = items.column("label").astype(str), videos_of(items)
    by_video(videos, labels == "real", np.zeros(len(items)))
    assert map_of(items, 0).shape == (32, 32)
    held = data.open("synthetic-faces?images=240&side=16&frames=2&forgeries=mouth,eyes,face&unseen=eyes,D", "images")
    assert set(held.train.column("forgery")) == {"none", "mouth", "face"}
    assert set(held.test.column("forgery")) <= {"none", "eyes"}
    assert set(held.test.column("camera")) == {"D"}
    assert "D" not in set(held.train.column("camera"))
    assert not set(held.train.column("identity")) & set(held.test.column("identity"))
    with pytest.raises(DataError, match="'ears'"):
        build({}, forgeries="ears")
    with pytest.raises(DataError, match="at least 6 people"):
        build({}, images=10)
    assert SAMPLES["synthetic-faces"].there


# --- layouts ---------------------------------------------------------------------------------------------------------


def write(path, seed, size=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "parsing_maps").mkdir()
    for i in range(12):
        write(tmp_path / "images" / f"n{i:02d}_face.png", i)
        np.save(tmp_path / "parsing_maps" / f"n{i:02d}_face.npy", np.full((1, 32, 32), i % 11, np.int8))
    return tmp_path


def test_the_pretraining_folder_is_read(folder):
    items = data.open(str(folder), "images", READERS).all
    assert len(items) == 12
    assert [int(map_of(items, i).max()) for i in range(12)] == [i % 11 for i in range(12)]
    system = FSFM(FSFM.Config.build("tiny", task="none")).fit(str(folder), steps=1)
    assert system.assets["mean"] == pytest.approx([0.5] * 3, abs=0.02)


def test_an_image_without_its_map_names_both_paths(folder):
    (folder / "parsing_maps" / "n03_face.npy").rename(folder / "parsing_maps" / "n03.npy")
    with pytest.raises(DataError, match=r"no image for 'n03': .*images/n03.png and .*parsing_maps/n03.npy \(2 such"):
        data.open(str(folder), "images", READERS)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (np.zeros((1, 16, 16), np.int8), r"shape \[16, 16\], but image n00_face has 32 x 32 pixels"),
        (np.zeros((1, 32, 32), np.float32), r"shape \[1, 32, 32\], dtype float32, values 0: a parsing map is"),
        (np.full((1, 32, 32), 11, np.int8), r"dtype int8, values 11: .*integers 0..10"),
        (np.zeros((3, 32, 32), np.int8), r"shape \[3, 32, 32\]"),
    ],
)
def test_maps_that_are_none_are_refused_before_training(folder, found, message):
    np.save(folder / "parsing_maps" / "n00_face.npy", found)
    with pytest.raises(DataError, match=message):
        FSFM(FSFM.Config.build("tiny", task="none")).fit(str(folder), steps=1)


def test_without_any_maps_masks_are_random(tmp_path):
    for i in range(12):
        write(tmp_path / f"{i}.png", i)
    with pytest.warns(UserWarning, match="no column 'parsing'.*at random, no region is covered"):
        made = FSFM(FSFM.Config.build("tiny", task="none")).fit(str(tmp_path), steps=1)
    metrics = made.evaluate()
    assert "reconstruction_error" in metrics
    assert "region_error" not in metrics
    assert len(made.figures(made.splits.test)) == 1


def test_frames_of_videos_are_read(tmp_path):
    for part in ("train", "val", "test"):
        for label in ("fake", "real"):
            for n in range(3):
                write(tmp_path / part / label / "c23" / f"{part}{label}_frame_{n}.png", hash((part, label, n)) % 999)
    opened = data.open(str(tmp_path), "images", READERS)
    assert opened.rule == "source"
    assert set(videos_of(opened.test)) == {"c23/testfake", "c23/testreal"}
    assert opened.all.roles == {"label": ("label",), "group": ("video",)}


def test_lists_of_paths_and_labels_are_read(tmp_path):
    for i in range(6):
        write(tmp_path / "faces" / f"v{i // 2}_frame_{i}.png", i)
    lines = [f"faces/v{i // 2}_frame_{i}.png{mark}{i % 2}" for i, mark in enumerate([" ", "\t", ",", ";", " ", " "])]
    (tmp_path / "train.txt").write_text("\n".join(lines[:4]) + "\n\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("\n".join(lines[4:]), encoding="utf-8")
    opened = data.open(str(tmp_path), "images", READERS)
    assert opened.test.column("label").tolist() == ["0", "1"]
    assert videos_of(opened.all).tolist() == [f"faces/v{i // 2}" for i in (4, 5, 0, 1, 2, 3)]
    assert len(data.open(str(tmp_path / "train.txt"), "images", READERS).all) == 4
    (tmp_path / "bad.txt").write_text("faces/v0_frame_0.png\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: expected a path and a label"):
        data.open(str(tmp_path / "bad.txt"), "images", READERS)
    (tmp_path / "bad.txt").write_text("nowhere.png 1\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: no such file"):
        data.open(str(tmp_path / "bad.txt"), "images", READERS)


def test_maps_are_resized_by_their_middle_pixels():
    parsing = np.kron(np.arange(4).reshape(2, 2), np.ones((8, 8), int))
    assert resized(parsing, 2).tolist() == [[0, 1], [2, 3]]
    assert resized(parsing, 16) is parsing
    with pytest.raises(DataError, match="image x: no parsing map"):
        read_map(None, "x")


# --- the system -------------------------------------------------------------------------------------------------------


def test_pretraining_sees_real_faces_only(pretrained, splits):
    assert set(pretrained._real(splits.train).column("label")) == {"real"}
    real = splits.train.take(splits.train.column("label").astype(str) == "real")
    pixels = np.stack([np.asarray(real.image(i)) for i in range(len(real))]) / 255
    assert pretrained.assets["mean"] == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-4)
    assert pretrained.assets["std"] == pytest.approx(pixels.std((0, 1, 2)), abs=1e-4)
    with pytest.raises(UserError, match="not fine-tuned"):
        pretrained.predict()


@pytest.mark.parametrize("options", [{"pooling": "class"}, {"frozen": True}])
def test_fine_tuning_starts_from_another_run(pretrained, splits, options):
    tuned = catalog.create(
        "fsfm", "tiny", task="deepfake", encoder=f"run:{pretrained.run.path}", finetune_steps=2, **options
    ).fit(splits)
    assert tuned.assets["mean"] == pretrained.assets["mean"]
    assert "faces" not in tuned.model
    vit, encoder = tuned.model["tuned"], pretrained.model["faces"].online.encoder
    same = torch.equal(vit.blocks[0].mlp.fc1.weight, encoder.blocks[0].mlp.fc1.weight)
    assert same == options.get("frozen", False)
    table = tuned.predict()
    assert np.allclose(table["fake"].to_numpy() + table["real"].to_numpy(), 1)
    videos = table.to_pandas().groupby("video")[["real", "video_real"]].mean()
    assert np.allclose(videos["real"], videos["video_real"])
    with pytest.raises(UserError, match="reconstructs nothing"):
        tuned.diagnose(splits.test)


def test_anti_spoofing_across_cameras(pretrained):
    source = "synthetic-faces?images=240&side=32&frames=3&forgeries=spoof&unseen=D"
    tuned = catalog.create(
        "fsfm", "tiny", task="antispoof", encoder=f"run:{pretrained.run.path}", domain="camera", spoof_steps=2,
        spoof_images=2,
    ).fit(source)  # fmt: skip
    metrics = tuned.evaluate()
    assert 0 <= metrics["hter"].value <= 1
    assert len(tuned.figures(tuned.splits.test)) == 2
    with pytest.raises(DataError, match="no column 'cam'"):
        catalog.create("fsfm", "tiny", task="antispoof", domain="cam").fit(source)


def test_classes_are_shown_where_none_is_real(splits):
    with pytest.raises(DataError, match=r"no class 'live' among \{fake: 0, real: 1\}: .*real=CLASS"):
        FSFM(FSFM.Config.build("tiny", real="live")).fit(splits)


def test_one_class_in_the_test_set_is_said(splits):
    tuned = FSFM(FSFM.Config.build("tiny", steps=0, finetune_steps=1)).fit(splits)
    real = splits.test.take(splits.test.column("label").astype(str) == "real")
    with pytest.raises(DataError, match="of one class: AUC and error rates are undefined"):
        tuned.evaluate(real)


def test_a_ratio_that_is_no_whole_number_says_what_is_done(splits):
    with pytest.warns(UserWarning, match="mask_ratio 0.7 of 16 patches is 11.2: the encoder sees 4, 12 are hidden"):
        FSFM(FSFM.Config.build("tiny", task="none", mask_ratio=0.7)).fit(splits, steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, "not a multiple of the patch"),
        ({"heads": 5}, "not a multiple of 4 and of its 5 heads"),
        ({"task": "none", "encoder": "run:x"}, "set task=deepfake or task=antispoof"),
        ({"mask_ratio": 0.99}, "patches 0 would be seen"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        FSFM.Config.build("tiny", **options)


def test_an_encoder_of_another_kind_is_refused(splits):
    system = catalog.create("fsfm", "tiny", encoder="timm:resnet18?pretrained=false")
    with pytest.raises(ConfigError, match="not a ViT with a class token"):
        system.fit(splits)


def test_a_column_of_images_with_maps_in_memory_is_accepted(splits):
    items = Images(splits.all.ids[:20].tolist(), splits.all.sources[:20], splits.all.columns.slice(0, 20))
    assert FSFM(FSFM.Config.build("tiny", task="none")).fit(items, steps=1).embed().width == 32


def test_the_error_of_a_patch_is_measured_in_normalised_pixels():
    model, images = small().eval(), torch.rand(1, 3, 32, 32)
    target = model.pixels(images)
    assert torch.allclose(target.mean(-1), torch.zeros(1, 16), atol=1e-5)
    assert torch.allclose(target.var(-1), torch.ones(1, 16), atol=1e-3)
    assert patch_errors(target, target).max() == 0
    assert not torch.allclose(small(norm_pixels=False).pixels(images).var(-1), torch.ones(1, 16), atol=0.1)
