"""What is special to FMAE-IAT: masking, the reversal, thresholds, checkpoints, layouts of its data sets, bad input."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from zlib import crc32

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn

from repertory import catalog, data
from repertory.data.images import Images
from repertory.errors import ConfigError, DataError, MissingExtraError, UserError
from repertory.nn.mae import MAE, MaskedEncoder
from repertory.nn.mae import from_official as mae_from_official
from repertory.nn.schedules import layer_decay_groups
from repertory.systems.fmae_iat import (
    BP4D,
    DISFA,
    FMAEIAT,
    AdversarialViT,
    action_unit_scores,
    from_official,
    identity_adversarial_loss,
    identity_probe,
)
from repertory.systems.fmae_iat.layouts import DISFA_FOLDS, READERS, _environment, read_folds, subject_of
from repertory.systems.fmae_iat.metrics import f1_of, grouped_counts
from repertory.systems.fmae_iat.model import encoder_state, shape_of
from repertory.systems.fmae_iat.training import scaled

SHAPE = {"image_size": 16, "patch_size": 8, "width": 32, "depth": 2, "heads": 4}
SMALL = "synthetic-actions?images=120&subjects=8&side=16&aus=12,25"
CHECK = "synthetic-actions?images=160&subjects=10&side=32&aus=1,12,25"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def small_model(reversal: float = 2.0, layers: int = 1, outputs: int = 3, subjects: int = 5) -> AdversarialViT:
    torch.manual_seed(0)
    model = AdversarialViT(outputs, subjects, reversal, layers, **SHAPE)
    nn.init.normal_(model.vit.head.weight, generator=torch.Generator().manual_seed(2))
    return model.eval()


def batch(n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, 16, 16, generator=generator)
    return images, (torch.rand(n, 3, generator=generator) < 0.5).float(), torch.arange(n) % 5


def gradients(reversal: float) -> dict[str, Tensor]:
    model, (images, actions, subjects) = small_model(reversal), batch()
    logits, subject_logits = model.both(images)
    identity_adversarial_loss(logits, actions, subject_logits, subjects).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def small_system(**options) -> FMAEIAT:
    settings = {
        "steps": 2,
        "finetune_steps": 4,
        "batch_size": 16,
        "finetune_batch_size": 16,
        "image_size": 16,
        **options,
    }
    return FMAEIAT(FMAEIAT.Config.build("tiny", **settings))


# --- the reversal ---------------------------------------------------------------------------------------------------


def test_the_backbone_follows_minus_lambda_times_the_identity_gradient():
    plain, one, three = gradients(0.0), gradients(1.0), gradients(3.0)
    for name, of_actions in plain.items():
        if not name.startswith("identity"):
            assert torch.allclose(three[name] - of_actions, 3 * (one[name] - of_actions), atol=1e-5)
    assert not torch.allclose(plain["vit.pos_embed"], one["vit.pos_embed"])
    assert torch.allclose(plain["vit.head.weight"], one["vit.head.weight"])
    assert torch.allclose(one["identity.0.weight"], three["identity.0.weight"])  # the head itself is not reversed


def test_without_lambda_there_is_no_identity_head():
    model = small_model(0.0)
    assert model.identity is None
    assert model.both(batch()[0])[1] is None
    images, actions, _ = batch()
    losses = identity_adversarial_loss(model(images), actions)
    assert torch.equal(losses.loss, losses.actions)
    assert losses.identity == 0


def test_the_identity_loss_is_binary_cross_entropy_of_one_hot_subjects():
    logits, subject_logits = torch.zeros(2, 3), torch.randn(2, 4)
    subjects = torch.tensor([1, 3])
    made = identity_adversarial_loss(logits, torch.ones(2, 3), subject_logits, subjects)
    expected = -torch.stack(
        [
            nn.functional.logsigmoid(subject_logits[i, j] if j == subjects[i] else -subject_logits[i, j])
            for i in range(2)
            for j in range(4)
        ]
    ).mean()
    assert made.identity.item() == pytest.approx(expected.item(), rel=1e-5)
    assert made.actions.item() == pytest.approx(math.log(2), rel=1e-5)


def test_units_that_are_not_coded_are_left_out_of_the_loss():
    logits, actions = torch.randn(3, 2), torch.tensor([[1.0, 0.0], [float("nan"), 1.0], [0.0, 0.0]])
    known = ~actions.isnan()
    expected = nn.functional.binary_cross_entropy_with_logits(logits[known], actions[known])
    assert torch.allclose(identity_adversarial_loss(logits, actions).loss, expected)


def test_inference_ignores_the_identity_head():
    images = batch()[0]
    model = small_model()
    before = model(images)
    nn.init.normal_(model.identity[0].weight)
    assert torch.equal(model(images), before)
    assert torch.allclose(model.both(images)[0], before, atol=1e-6)


@pytest.mark.parametrize(("layers", "widths"), [(1, [5]), (2, [16, 5]), (3, [16, 8, 5])])
def test_identity_heads_of_the_ablation(layers, widths):
    linear = [layer for layer in small_model(layers=layers).identity if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == widths
    with pytest.raises(ConfigError, match="identity head of 4 layers"):
        small_model(layers=4)


def test_wrong_arguments_of_the_model():
    with pytest.raises(ConfigError, match=r"reversal=-1: lambda cannot be negative"):
        small_model(-1)
    with pytest.raises(ConfigError, match=r"subjects=0 with reversal=2"):
        small_model(2.0, subjects=0)
    with pytest.raises(ConfigError, match="reversal"):
        FMAEIAT.Config.build(reversal=-0.5)
    with pytest.raises(DataError, match="subject 7 is outside the 4"):
        identity_adversarial_loss(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 4), torch.tensor([7]))
    with pytest.raises(DataError, match=r"logits \(1, 2\), truth \(1, 3\)"):
        identity_adversarial_loss(torch.zeros(1, 2), torch.ones(1, 3))


def test_bfloat16_autocast():
    model, (images, actions, subjects) = small_model(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        logits, subject_logits = model.both(images)
        loss = identity_adversarial_loss(logits, actions, subject_logits, subjects).loss
    loss.backward()
    assert loss.dtype == torch.float32
    whole = identity_adversarial_loss(*_pair(model, images, actions, subjects)).loss
    assert loss.item() == pytest.approx(whole.item(), rel=0.05)


def _pair(model, images, actions, subjects):
    logits, subject_logits = model.both(images)
    return logits, actions, subject_logits, subjects


def test_layer_decay_and_weight_decay():
    model = small_model(layers=2)
    groups = layer_decay_groups(model, 0.1, 0.05, 0.5)
    of = {id(p): g for g in groups for p in g["params"]}
    rate = {n: of[id(p)]["lr"] for n, p in model.named_parameters()}
    decay = {n: of[id(p)]["weight_decay"] for n, p in model.named_parameters()}
    for name in ("vit.head.weight", "vit.fc_norm.weight", "identity.0.weight", "identity.2.bias"):
        assert rate[name] == pytest.approx(0.1)
    assert rate["vit.blocks.1.attn.qkv.weight"] == pytest.approx(0.05)
    assert rate["vit.pos_embed"] == rate["vit.patch_embed.proj.weight"] == pytest.approx(0.0125)
    assert decay["vit.pos_embed"] == decay["vit.cls_token"] == decay["vit.head.bias"] == 0
    assert decay["vit.head.weight"] == 0.05
    assert scaled(5e-4, 64) == pytest.approx(1.25e-4)


# --- thresholds and areas ---------------------------------------------------------------------------------------------


def units(n: int = 300, k: int = 4, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = (rng.random((n, k)) < (0.1, 0.3, 0.5, 0.8)[:k]).astype(np.float32)
    scores = (0.6 * rng.random((n, k)) + 0.3 * truth).astype(np.float32)
    return truth, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
def test_counts_and_areas_are_those_of_scikit_learn(ties):
    truth, scores = units(ties=ties)
    made = action_unit_scores(truth, scores)
    for t in range(0, 99, 7):
        threshold = made.thresholds[t]
        for unit in range(4):
            expected = f1_score(truth[:, unit], scores[:, unit].astype(np.float64) > threshold, zero_division=0)
            assert made.f1[t, unit] == pytest.approx(expected, abs=1e-12)
    areas = [roc_auc_score(truth[:, unit], scores[:, unit]) for unit in range(4)]
    np.testing.assert_allclose(made.auc, areas, atol=1e-12)
    threshold, best = made.best
    assert best == made.mean_f1.max() == pytest.approx(made.at(threshold).mean())
    assert threshold == made.thresholds[made.mean_f1.argmax()]


def test_units_without_positives_are_not_averaged_silently():
    truth, scores = units()
    truth[:, 1] = 0
    truth[:, 2] = 1
    truth[0, 3] = np.nan
    made = action_unit_scores(truth, scores)
    assert made.defined.tolist() == [True, False, False, True]
    assert np.isnan(made.f1[:, 1:3]).all()
    assert np.isnan(made.auc[1:3]).all()
    assert made.mean_auc == pytest.approx(made.auc[[0, 3]].mean())
    known = truth[1:, 3], scores[1:, 3] > 0.5
    assert made.at(0.5)[3] == pytest.approx(f1_score(*known))
    nothing = action_unit_scores(truth[:, 1:2], scores[:, 1:2])
    assert np.isnan(nothing.best).all()
    assert math.isnan(nothing.mean_auc)


def test_counts_by_subject_add_up():
    truth, scores = units()
    counts = grouped_counts(truth, scores > 0.5, np.arange(len(truth)) % 7)
    assert counts.shape == (7, 3, 4)
    np.testing.assert_allclose(f1_of(counts.sum(0)), action_unit_scores(truth, scores).at(0.5))


def test_bad_scores():
    truth, scores = units()
    with pytest.raises(DataError, match="NaN or infinite"):
        action_unit_scores(truth, scores * np.nan)
    with pytest.raises(DataError, match="both need"):
        action_unit_scores(truth[:, :2], scores)
    with pytest.raises(DataError, match="both need"):
        action_unit_scores(truth[:0], scores[:0])
    with pytest.raises(DataError, match="1, 0 or NaN"):
        action_unit_scores(truth * 2, scores)
    with pytest.raises(DataError, match="not among"):
        action_unit_scores(truth, scores).at(0.505)


def test_identity_probe():
    rng = np.random.default_rng(0)
    subjects = np.repeat(["a", "b", "c"], 40)
    vectors = rng.standard_normal((120, 4)).astype(np.float32)
    leaking = vectors + 4 * (subjects[:, None] == np.array(["a", "b", "c", "d"]))
    (found, chance), (silent, _) = identity_probe(leaking, subjects), identity_probe(vectors, subjects)
    assert found.value > 0.9 > 0.6 > silent.value
    assert chance == pytest.approx(1 / 3)
    assert found.higher_is_better is False
    assert identity_probe(vectors[:2], subjects[:2]) is None
    assert identity_probe(vectors[:3], np.array(["a", "b", "c"])) is None


# --- checkpoints ------------------------------------------------------------------------------------------------------


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names of a fine-tuned model as the official ones."""
    made = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        head = {"0": "ID_head.", "2": "ID_head2.", "4": "ID_head3."}
        made[rest if part == "vit" else head[rest.split(".")[0]] + rest.split(".")[1]] = torch.randn_like(value)
    return made


def block_names(prefix: str, depth: int) -> set[str]:
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return {f"{prefix}.{i}.{layer}.{kind}" for i in range(depth) for layer in layers for kind in ("weight", "bias")}


def both(*names: str) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


@pytest.mark.parametrize("layers", [1, 3])
def test_official_fine_tuned_checkpoint_loads_strictly(layers):
    model = small_model(layers=layers, outputs=12, subjects=7)
    state = official(model.state_dict())
    heads = ("ID_head", "ID_head2", "ID_head3")[:layers]
    expected = (
        {"cls_token", "pos_embed"} | both("patch_embed.proj", "fc_norm", "head", *heads) | block_names("blocks", 2)
    )
    assert state.keys() == expected
    model.load_state_dict(from_official(state), strict=True)
    system = FMAEIAT.from_official({"model": state, "epoch": 19})
    assert system.outputs == [f"AU{unit}" for unit in BP4D]
    assert len(system.assets["subjects"]) == 7
    assert torch.equal(system.model["tuned"].vit.head.weight, state["head.weight"])
    table = system.predict(Images(["a", "b"], list(np.random.default_rng(0).integers(0, 256, (2, 20, 20), np.uint8))))
    assert table.column_names == ["id", *system.outputs]


def test_official_masked_autoencoder_loads_strictly_and_starts_a_fine_tuning(tmp_path):
    model = MAE(MaskedEncoder(**SHAPE), decoder_width=32, decoder_depth=1, decoder_heads=1)
    names = {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed"} | block_names("blocks", 2)
    names |= block_names("decoder_blocks", 1)
    names |= both("patch_embed.proj", "norm", "decoder_embed", "decoder_norm", "decoder_pred")
    renamed = mae_from_official({name: name for name in names})
    assert renamed.keys() == model.state_dict().keys()
    state = {name: torch.randn_like(model.state_dict()[ours]) for ours, name in renamed.items()}
    torch.save({"model": state, "epoch": 49}, tmp_path / "fmae.pth")
    system = FMAEIAT.from_official(tmp_path / "fmae.pth")
    assert torch.equal(system.model["mae"].encoder.norm.weight, state["norm.weight"])
    assert shape_of(state, heads=4) == {**SHAPE, "mlp_ratio": 4.0}
    assert system.config.decoder_width == 32
    system.save(tmp_path / "run")
    run = catalog.create("fmae_iat", "tiny", encoder=f"run:{tmp_path / 'run'}", image_size=32, finetune_steps=1)
    run.fit(CHECK)
    assert run.model["tuned"].vit.pos_embed.shape == (1, 17, 32)  # resized from 2 x 2 to 4 x 4 patches
    with pytest.raises(UserError, match="no autoencoder"):
        run.reconstruct(run.splits.test)
    run.save(tmp_path / "tuned")
    again = catalog.load(tmp_path / "tuned")
    assert again.predict(CHECK).equals(run.predict(CHECK))


def test_checkpoints_that_lack_keys():
    state = official(small_model().state_dict())
    for name in ("blocks.1.attn.qkv.bias", "cls_token"):
        with pytest.raises(DataError, match=rf"lacks keys of the encoder: {name}"):
            encoder_state({k: v for k, v in state.items() if k != name})
        with pytest.raises(UserError, match="lacks keys of the encoder"):
            FMAEIAT.from_official({k: v for k, v in state.items() if k != name})
    with pytest.raises(UserError, match="keys begin with backbone"):
        FMAEIAT.from_official({"backbone.weight": torch.zeros(1)})
    seven = FMAEIAT.from_official(official(small_model(0.0, outputs=7).state_dict()))
    assert seven.config.task == "expression"
    eight = FMAEIAT.from_official(official(small_model(outputs=8).state_dict()))
    assert eight.outputs == [f"AU{unit}" for unit in DISFA]


# --- layouts ---------------------------------------------------------------------------------------------------------


def picture(seed: int, side: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def write_picture(path: Path, seed: int, side: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, side).save(path)


def opened(path: Path, options: str = "") -> data.Splits:
    return data.open(f"images:{path}{options}", "images", READERS)


def write_lines(file: Path, rows: list[tuple[str, list[int]]]) -> None:
    for seed, (image, _) in enumerate(rows):
        write_picture(file.parent / image, crc32(image.encode()) + seed)
    file.write_text("".join(json.dumps({"img_path": i, "AUs": a}) + "\n" for i, a in rows), encoding="utf-8")


def test_bp4d_lines(tmp_path):
    rows = [(f"2{s}_{t}/{f:04d}.jpg", [4, 10, 999]) for s in ("F01", "M02", "F03") for t in (11, 12) for f in (1, 2)]
    rows[0] = (rows[0][0], [999])
    write_lines(tmp_path / "all.json", rows)
    splits = opened(tmp_path / "all.json")
    assert splits.all.roles == {"label": tuple(f"AU{u}" for u in BP4D), "group": ("subject",)}
    assert splits.all.column("AU4").sum() == splits.all.column("AU10").sum() == 11
    assert splits.all.column("AU1").sum() == 0
    assert set(splits.all.column("subject")) == {"F01", "M02", "F03"}
    assert splits.rule == "group:subject"
    (tmp_path / "folds.txt").write_text("F01 F03\nM02\n", encoding="utf-8")
    (tmp_path / "folds.json").write_text('[["F01", "F03"], ["M02"]]', encoding="utf-8")
    for file in ("folds.txt", "folds.json"):
        fold = opened(tmp_path / "all.json", f"?folds={file}&fold=2")
        assert set(fold.test.column("subject")) == {"M02"}
        assert not set(fold.train.column("subject")) & {"M02"}


def test_train_and_test_lines_must_not_share_subjects(tmp_path):
    write_lines(tmp_path / "train_fold1.json", [(f"F00{s}_1/{f}.jpg", [12]) for s in (1, 2, 3) for f in range(3)])
    write_lines(tmp_path / "test_fold1.json", [(f"F00{s}_2/{f}.jpg", [1]) for s in (3, 4) for f in range(3)])
    splits = opened(tmp_path, "?aus=1,12")
    assert splits.rule == "source"
    assert set(splits.test.column("subject")) == {"F003", "F004"}
    with pytest.raises(DataError, match=r"both the training and the test part: F003; .*split=group:subject"):
        small_system().fit(splits)


def test_disfa_lines(tmp_path):
    rows = [(f"LeftVideoSN{s:03d}/{f}.jpg", [25] if f else []) for s in (1, 6, 3) for f in range(2)]
    write_lines(tmp_path / "disfa.jsonl", rows)
    splits = opened(tmp_path / "disfa.jsonl", "?fold=2")
    assert splits.all.roles["label"] == tuple(f"AU{u}" for u in DISFA)
    assert set(splits.test.column("subject")) == {"SN006"}
    assert sum(map(len, DISFA_FOLDS)) == len(set(sum(DISFA_FOLDS, ()))) == 27


def test_bad_lines(tmp_path):
    write_lines(tmp_path / "a.json", [("F001_1/1.jpg", [4]), ("F001_1/2.jpg", [5])])
    with pytest.raises(DataError, match=r"a\.json, line 2: action unit 5 is none of 1, 2, 4"):
        opened(tmp_path / "a.json")
    (tmp_path / "F001_1" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"F001_1/2\.jpg: no such image, but .*line 2"):
        opened(tmp_path / "a.json", "?aus=4,5")
    write_picture(tmp_path / "F001_1" / "2.jpg", 1)
    with pytest.raises(DataError, match=r"aus=4;5"):
        opened(tmp_path / "a.json", "?aus=4;5")
    with pytest.raises(DataError, match=r"fold=1 needs folds=FILE"):
        opened(tmp_path / "a.json", "?aus=4,5&fold=1")
    write_lines(tmp_path / "b.json", [("subject_one/1.jpg", [4])])
    with pytest.raises(DataError, match=r"b\.json, line 1: subject_one/1\.jpg: no subject in this path; .*F001"):
        opened(tmp_path / "b.json")
    (tmp_path / "c.json").write_text('{"img_path": "F001_1/1.jpg"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"c\.json, line 1: expected"):
        opened(tmp_path / "c.json")
    (tmp_path / "F001_1" / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"F001_1/1\.jpg: cannot be decoded"):
        opened(tmp_path / "a.json", "?aus=4,5")


def test_subjects_in_paths():
    assert subject_of("2F01_11/0012.jpg") == ("F01", BP4D)
    assert subject_of("faces/M015_T3/12.jpg") == ("M015", BP4D)
    assert subject_of("F001/T1/12.jpg")[0] == "F001"
    assert subject_of("frames/RightVideoSN032/1.png") == ("SN032", DISFA)
    assert subject_of("LeftVideoSN001_Comp/1.png")[0] == "SN001"
    for bad in ("F0001_1/2.jpg", "SN1/1.jpg", "F001.jpg", "XF01_1/1.jpg"):
        with pytest.raises(DataError, match="no subject in this path"):
            subject_of(bad)


def test_folds(tmp_path):
    file = tmp_path / "folds.txt"
    file.write_text("a, b\nc\n", encoding="utf-8")
    assert read_folds(file) == [["a", "b"], ["c"]]
    file.write_text("a b\nb c\n", encoding="utf-8")
    with pytest.raises(DataError, match="in two folds: b"):
        read_folds(file)
    file.write_text("a b\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 fold; at least 2"):
        read_folds(file)
    file.write_text("[1, 2", encoding="utf-8")
    with pytest.raises(DataError, match="not a list of lists"):
        read_folds(file)
    with pytest.raises(DataError, match="no such file of folds"):
        read_folds(tmp_path / "none.txt")


def write_bp4d(path: Path, value: str = "1") -> None:
    (path / "AU_OCC").mkdir(parents=True)
    for subject in ("F001", "M002", "F003"):
        for task in ("T1", "T8"):
            header = "0," + ",".join(map(str, range(1, 26)))
            rows = [
                ",".join([str(f), *(value if u == 12 else "9" if u == 3 else "0" for u in range(1, 26))])
                for f in (7, 8)
            ]
            (path / "AU_OCC" / f"{subject}_{task}.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
            for frame in (6, 7, 8):
                write_picture(
                    path / "Sequences" / subject / task / f"{frame:04d}.jpg", frame + crc32((subject + task).encode())
                )


def test_bp4d_as_delivered(tmp_path):
    write_bp4d(tmp_path / "bp4d")
    splits = opened(tmp_path / "bp4d")
    assert len(splits.all) == 12
    assert splits.all.ids[0] == "F001/T1/7"
    assert splits.all.column("AU12").sum() == 12
    assert splits.all.column("AU1").sum() == 0
    three = opened(tmp_path / "bp4d", "?aus=3,12")
    assert np.isnan(three.all.column("AU3").astype(float)).all()
    with pytest.raises(DataError, match=r"line 1: no column of (action )?unit 99"):
        opened(tmp_path / "bp4d", "?aus=99")
    (tmp_path / "bp4d" / "Sequences" / "F001" / "T1" / "0008.jpg").unlink()
    with pytest.raises(DataError, match=r"F001_T1\.csv, line 3: no image of frame 8 of F001 T1"):
        opened(tmp_path / "bp4d")
    write_bp4d(tmp_path / "other", value="5")
    with pytest.raises(DataError, match=r"line 2: AU12 is '5'; expected 0, 1 or 9"):
        opened(tmp_path / "other")


def write_disfa(path: Path) -> None:
    for subject in ("SN001", "SN006", "SN003"):
        folder = path / "ActionUnit_Labels" / subject
        folder.mkdir(parents=True)
        for unit in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26):
            lines = [f"{frame},{frame if unit == 12 else 0}" for frame in range(1, 5)]
            (folder / f"{subject}_au{unit}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for frame in range(1, 5):
            write_picture(
                path / "Frames" / f"LeftVideo{subject}_comp" / f"{frame}.png", frame + crc32(subject.encode())
            )


def test_disfa_as_delivered(tmp_path):
    write_disfa(tmp_path)
    splits = opened(tmp_path, "?fold=3")
    assert splits.all.column("AU12").tolist() == [0, 1, 1, 1] * 3
    assert set(splits.test.column("subject")) == {"SN003"}
    assert opened(tmp_path, "?least=4").all.column("AU12").tolist() == [0, 0, 0, 1] * 3
    table = tmp_path / "ActionUnit_Labels" / "SN001" / "SN001_au12.txt"
    table.write_text("1,0\n2,7\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"SN001_au12\.txt, line 2: '2,7': expected frame,intensity"):
        opened(tmp_path)
    table.write_text("1,0\n", encoding="utf-8")
    with pytest.raises(DataError, match="frame 2 has an intensity of AU1, but none of AU12"):
        opened(tmp_path)
    (tmp_path / "ActionUnit_Labels" / "SN7").mkdir()
    (tmp_path / "ActionUnit_Labels" / "SN7" / "SN7_au1.txt").write_text("1,0\n", encoding="utf-8")
    table.unlink()
    with pytest.raises(DataError, match=r"SN001_au12\.txt: no such file"):
        opened(tmp_path)


def write_lmdb(folder: Path, names: list[str], extra: dict[str, bytes] | None = None) -> None:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 20) as database, database.begin(write=True) as records:
        for name, value in {"__len__": b"3", **(extra or {})}.items():
            records.put(name.encode(), value)
        for seed, name in enumerate(names):
            buffer = io.BytesIO()
            picture(seed + len(str(folder))).save(buffer, "JPEG")
            records.put(name.encode(), buffer.getvalue())


def test_face9m_lmdb(tmp_path, monkeypatch):
    write_lmdb(tmp_path / "all" / "celeba", ["0", "1", "2"])
    write_lmdb(tmp_path / "all" / "vgg_face", ["0", "1"])
    write_lmdb(tmp_path / "one", ["a"], {"b": b"no picture"})
    splits = opened(tmp_path / "all")
    assert splits.all.ids.tolist() == ["celeba/0", "celeba/1", "celeba/2", "vgg_face/0", "vgg_face/1"]
    assert splits.all.column("source").tolist() == ["celeba"] * 3 + ["vgg_face"] * 2
    assert splits.all.image(4).size == (12, 12)
    with pytest.raises(DataError, match=r"b: .*record 'b' is no image"):
        opened(tmp_path / "one")
    _environment.cache_clear()
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(MissingExtraError, match="lmdb is not installed"):
        opened(tmp_path / "all")


def test_faces_are_filtered_as_face9m_was(tmp_path):
    for name, size in {"large": (240, 230), "small": (223, 300), "long": (230, 360), "tall": (230, 345)}.items():
        rng = np.random.default_rng(len(name))
        Image.fromarray(rng.integers(0, 256, (size[1], size[0]), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    assert opened(tmp_path, "?layout=faces").all.ids.tolist() == ["large.png", "tall.png"]
    with pytest.raises(DataError, match="no picture of at least 900 pixels"):
        opened(tmp_path, "?layout=faces&least=900")


# --- the system -----------------------------------------------------------------------------------------------------


def test_expressions_of_a_folder_by_class(tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("train", 32), ("val", 12), ("test", 8)):
        for place, name in enumerate(("happy", "sad")):
            for i in range(n):
                pixels = rng.integers(0, 100, (16, 16, 3), dtype=np.uint8)
                pixels[..., 2 * place] += 150  # red or blue
                (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    system = small_system(task="expression", steps=0, finetune_steps=40, finetune_base_lr=0.05).fit(
        f"images:{tmp_path}"
    )
    assert system.outputs == ["happy", "sad"]
    metrics = system.evaluate()
    assert metrics["accuracy"].value > 0.8
    assert {"mean_recall", "probe_accuracy"} <= set(metrics)
    found = system.predict()
    np.testing.assert_allclose(np.array(found["happy"]) + np.array(found["sad"]), 1, atol=1e-5)
    assert "Probability of each expression" in system.figures(system.splits.test)


@pytest.fixture(scope="module")
def fitted():
    return small_system().fit(SMALL)


def test_thresholds_are_told_apart(fitted):
    metrics = fitted.evaluate()
    scores = fitted.scores(fitted.splits.test)
    assert metrics["f1"].value == pytest.approx(scores.at(fitted.threshold).mean())
    assert metrics["f1_at_0.5"].value == pytest.approx(scores.at(0.5).mean())
    assert metrics["f1_best_on_test"].value == pytest.approx(scores.mean_f1.max())
    assert fitted.threshold == pytest.approx(fitted.scores(fitted.splits.val).best[0])
    assert metrics["f1"].value <= metrics["f1_best_on_test"].value + 1e-9


def test_a_unit_that_is_never_shown_is_named(fitted):
    items = fitted.splits.test
    part = items.take(items.column("AU25") == 0)
    metrics = fitted.evaluate(Images(part.ids, part.sources, part.columns.drop_columns(["split"]), part.roles))
    assert math.isnan(metrics["AU25/f1"].value)
    assert math.isnan(metrics["AU25/auc"].value)
    assert metrics["f1"].value == pytest.approx(metrics["AU12/f1"].value)
    assert "undefined, without a positive or a negative: AU25" in metrics["f1"].about


def test_reconstructions_depend_on_the_id_alone(fitted):
    items = fitted.splits.test
    whole, part = fitted.reconstruct(items), fitted.reconstruct(items.take([5, 2]))
    assert torch.equal(whole.masking.mask[[5, 2]], part.masking.mask)
    assert torch.allclose(whole.predicted[[5, 2]], part.predicted, atol=1e-5)


def test_the_encoder_serves_others(fitted):
    encoder = fitted.encoder
    assert encoder(torch.randn(2, 3, 16, 16)).shape == (2, 64)
    assert encoder.dense(torch.randn(2, 3, 16, 16)).shape == (2, 64, 2, 2)
    alone = small_system(task="none").fit(SMALL)
    assert alone.encoder(torch.randn(2, 3, 16, 16)).shape == (2, 64)
    assert alone.encoder.dense(torch.randn(2, 3, 16, 16)).shape == (2, 64, 2, 2)
    with pytest.raises(UserError, match="not fine-tuned"):
        alone.predict()


def test_data_that_do_not_fit():
    items = data.open(SMALL, "images").all
    faces = {"ids": items.ids, "sources": items.sources}
    columns = items.columns.drop_columns(["split"])

    def of(**changed):
        return Images(**faces, columns={**columns.to_pydict(), **changed}, roles=changed.pop("roles", items.roles))

    labels = {"label": items.roles["label"]}
    with pytest.raises(DataError, match=r"reversal=0\.02 needs subjects: .*group=COLUMN"):
        small_system().fit(Images(**faces, columns=columns, roles=labels))
    with pytest.raises(DataError, match="action units are columns of 1 and 0"):
        small_system().fit(Images(**faces, columns=columns, roles={"group": ("subject",)}))
    with pytest.raises(DataError, match="'AU12' is 3"):
        small_system().fit(of(AU12=[3] + [0] * (len(items) - 1)))
    with pytest.raises(DataError, match="'AU12' is not both 0 and 1"):
        small_system().fit(of(AU12=[0] * len(items)))
    with pytest.raises(DataError, match=r"column 'subject' is empty|have no 'subject'"):
        small_system().fit(of(subject=[None, *columns["subject"].to_pylist()[1:]]))
    small_system(reversal=0.0, finetune_steps=1, steps=1).fit(Images(**faces, columns=columns, roles=labels))


def test_one_subject_is_warned_of():
    items = data.open(SMALL, "images").all
    columns = items.columns.drop_columns(["subject"]).append_column("subject", [["one"] * len(items)])
    split = np.array(columns["split"].to_pylist())
    names = np.where(split == "train", "one", np.where(split == "val", "two", "three"))
    columns = columns.drop_columns(["subject"]).append_column("subject", [names.tolist()])
    with pytest.warns(UserWarning, match="one subject only, 'one'"):
        small_system(finetune_steps=1, steps=1).fit(Images(items.ids, items.sources, columns, items.roles))


def test_configurations_that_cannot_be():
    build = FMAEIAT.Config.build
    with pytest.raises(ConfigError, match="image side 30 is not a multiple of the patch 16"):
        build(image_size=30)
    with pytest.raises(ConfigError, match="width 30 is not a multiple"):
        build(width=30)
    with pytest.raises(ConfigError, match="hides all or none"):
        build(image_size=32, patch_size=16, mask_ratio=0.9)
    with pytest.raises(ConfigError, match="set task=action_units"):
        build(encoder="run:x")
    with pytest.raises(ConfigError, match="nothing to train"):
        build(epochs=0)
    with pytest.raises(ConfigError, match="not a ViT"):
        catalog.create("fmae_iat", "tiny", encoder="timm:resnet18?pretrained=false").fit(SMALL)
    paper = build()
    assert (paper.width, paper.depth, paper.heads, paper.batch_size, paper.epochs) == (1024, 24, 16, 512, 50)
    assert build("bp4d").reversal == 2
    assert build("disfa").reversal == 0.5
    assert build("rafdb").finetune_batch_size == 32


def test_the_sample_makes_identity_a_shortcut():
    splits = data.open("synthetic-actions?images=360&subjects=12&side=16&aus=12,25", "images")
    rates = {
        part: np.array(
            [items.column("AU12")[items.column("subject") == s].mean() for s in set(items.column("subject"))]
        )
        for part, items in (("train", splits.train), ("test", splits.test))
    }
    assert (np.abs(rates["train"] - 0.5) > 0.2).all()
    assert (np.abs(rates["test"] - 0.5) < 0.3).all()
    assert not set(splits.train.column("subject")) & set(splits.test.column("subject"))
    for bad, message in (("aus=3", "'3' is not drawn"), ("images=3", "at least 6 people"), ("side=8", "16 pixels")):
        with pytest.raises(DataError, match=message):
            data.open(f"synthetic-actions?{bad}", "images")
