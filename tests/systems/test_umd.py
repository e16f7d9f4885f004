"""What is special to UMD: conditions, masks, the limits of its loss, sampling, checkpoints, latents, bad input."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from repertory import catalog, data
from repertory.data.images import Images
from repertory.errors import ConfigError, DataError, UserError
from repertory.systems.umd.data import Latents, Pictures, latents_of, load_vae, pictures_of
from repertory.systems.umd.diffusion import Diffusion
from repertory.systems.umd.evaluation import few_shots, frechet_distance, noise_errors, ridge_probe
from repertory.systems.umd.model import AutoEncoder, Block, from_official_keys, official_shape
from repertory.systems.umd.objective import MaskedDiffusionLoss, check_images
from repertory.systems.umd.system import UMD
from repertory.systems.umd.training import FineTuning, Recipe

SIDE, PATCH, WIDTH, CLASSES = 8, 2, 16, 3


def small(random: bool = True, **options) -> AutoEncoder:
    """A small model; ``random``: with every weight drawn, so that conditions matter."""
    torch.manual_seed(0)
    sizes = {"image_size": SIDE, "patch_size": PATCH, "channels": 1, "width": WIDTH, "depth": 2, "heads": 2}
    model = AutoEncoder(**{**sizes, "decoder_depth": 1, "classes": CLASSES, **options})
    if random:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def images(n: int = 4, channels: int = 1) -> Tensor:
    return torch.rand(n, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def times(*values: int) -> Tensor:
    return torch.tensor(values)[:, None]


# --- the network ----------------------------------------------------------------------------------------------------


def test_an_untrained_network_depends_on_neither_time_nor_label():
    model, x = small(random=False), images(3)
    with torch.no_grad():
        torch.nn.init.normal_(model.class_tokens)  # they start at zero, but learn at once
        outputs = [model(x, times(*t), y) for t, y in (((0, 0, 0), None), ((1, 500, 1000), torch.arange(3)))]
    for first, second in zip(*(output[:3] for output in outputs), strict=True):
        assert torch.equal(first, second)
    trained = small()
    assert not torch.allclose(trained(x, times(0, 0, 0)).image, trained(x, times(1, 500, 1000)).image)
    assert not torch.allclose(
        trained(x, times(5, 5, 5), torch.arange(3)).image, trained(x, times(5, 5, 5)).image, atol=1e-4
    )


def test_the_condition_token_is_put_before_every_block_and_dropped_after_it():
    model, x = small(adaln=False, classes=None), images(2)
    condition = model.condition(times(3, 700))
    tokens = torch.randn(2, 5, WIDTH)
    for block, told in zip(model.encoder.blocks, condition.encoder.unbind(1), strict=True):
        whole = torch.cat([told, tokens], dim=1)
        whole = whole + block.attend(block.qkv(block.norm1(whole)))
        whole = whole + block.mlp(block.norm2(whole))
        assert torch.allclose(block(tokens, told), whole[:, 1:], atol=1e-5)
    assert model(x, times(0, 1)).image.shape == x.shape


@pytest.mark.parametrize("adaln", [True, False])
def test_one_row_of_conditions_serves_all_images_with_the_same_time(adaln):
    model, x = small(adaln=adaln), images(4)
    labels = torch.tensor([2, 0, 2, 0])
    rows, place = labels.unique(return_inverse=True)
    shared = model.autoencode(model.patched(x), model.condition(times(9, 9), rows).rows(place))
    each = model.autoencode(model.patched(x), model.condition(times(9, 9, 9, 9), labels))
    assert torch.allclose(shared.noise, each.noise, atol=1e-5)
    one = model.represent(x)
    assert torch.allclose(one, model(x, times(0, 0, 0, 0)).representation, atol=1e-5)


def test_masks_keep_the_floor_of_the_share_with_the_least_noise_and_hide_the_rest_from_the_encoder():
    model, x = small(), images(2)
    noise = torch.rand(2, 16)
    output = model(x, times(0, 0), ratio=0.7, noise=noise)
    assert output.mask.shape == (2, 1, SIDE, SIDE)
    assert output.mask.mean() == 12 / 16  # int(16 * 0.3) = 4 are kept
    kept = noise.argsort(dim=1)[:, :4]
    for row in range(2):
        shown = output.mask[row, 0, ::PATCH, ::PATCH].flatten() == 0
        assert set(shown.nonzero().flatten().tolist()) == set(kept[row].tolist())
    changed = model(x + output.mask, times(0, 0), ratio=0.7, noise=noise)  # hidden pixels changed
    assert torch.equal(changed.image, output.image)
    assert not torch.allclose(model(x + 1 - output.mask, times(0, 0), ratio=0.7, noise=noise).image, output.image)


def test_guidance_goes_from_no_label_through_the_label_and_beyond():
    model, x, y = small(), images(3), torch.arange(3)
    t = times(40, 40, 40)
    known, unknown = model(x, t, y), model(x, t)
    for scale in (0.0, 1.0, 3.0):
        guided = model(x, t, y, guidance=scale)
        for name in ("image", "noise"):
            with_, without = getattr(known, name), getattr(unknown, name)
            assert torch.allclose(getattr(guided, name), without + scale * (with_ - without), atol=1e-4)
    with pytest.raises(ConfigError, match="give labels"):
        model(x, t, guidance=2.0)
    with pytest.raises(ConfigError, match="eval"):
        model.train()(x, t, y, guidance=2.0)


def test_labels_are_taken_away_with_their_probability():
    model = small(label_dropout=0.25)
    draws = torch.tensor([0.2, 0.3, 0.0, 0.9])
    assert model.dropped(torch.tensor([0, 1, 2, 2]), draws).tolist() == [CLASSES, 1, CLASSES, 2]


def test_rematerialised_and_bfloat16_steps_give_the_same_and_nearly_the_same():
    loss, x = MaskedDiffusionLoss(Diffusion()), images(4)

    def gradient(autocast: bool = False, **options) -> Tensor:
        model = small(**options).train()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss(model, x).loss.backward()
        return model.embedding.weight.grad

    assert torch.allclose(gradient(), gradient(remat=True), atol=1e-6)
    for adaln in (True, False):
        exact, rounded = gradient(adaln=adaln), gradient(True, adaln=adaln)
        assert torch.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.99


def test_bad_times_labels_and_sizes_are_refused():
    model, x = small(), images(2)
    for bad in (torch.tensor([1, 2]), times(0, 1001), times(-1, 3)):
        with pytest.raises(DataError, match=r"expected \[B, 1\].*0\.\.1000"):
            model(x, bad)
    with pytest.raises(DataError, match=r"label 4: there are classes 0\.\.2"):
        model(x, times(1, 1), torch.tensor([0, 4]))
    with pytest.raises(ConfigError, match="no classes"):
        small(classes=None)(x, times(1, 1), torch.tensor([0, 1]))
    for wrong in (images(2, 3), torch.zeros(2, 1, 9, 9), torch.zeros(1, SIDE, SIDE)):
        with pytest.raises(DataError, match=r"expected \[B, 1, 8, 8\]"):
            model(wrong, times(1, 1))
    with pytest.raises(ConfigError, match="not a multiple of the patch"):
        small(patch_size=3)
    with pytest.raises(ConfigError, match="heads"):
        small(heads=3)


# --- the objective --------------------------------------------------------------------------------------------------


def by_hand(model: AutoEncoder, x: Tensor, diffusion: Diffusion, draws: dict[str, Tensor], n: int) -> Tensor:
    """The objective in two passes over whole images."""
    noise, steps = draws["noise"], draws["steps"]
    noised = diffusion.noised(x[:n], steps, noise)
    made = model(noised, steps + 1, ratio=0.375, noise=draws["noisy_masks"])
    seen = 1 - made.mask
    of_noise = ((made.noise - noise) ** 2 * seen).mean() / seen.mean()
    of_image = ((made.image - x[:n]) ** 2 * made.mask).mean() / made.mask.mean()
    clean = model(x[n:], torch.zeros(len(x) - n, 1).long(), ratio=0.75, noise=draws["clean_masks"])
    of_clean = ((clean.image - x[n:]) ** 2 * clean.mask).mean() / clean.mask.mean()
    return (n * (of_noise + of_image) / 2 + (len(x) - n) * of_clean) / len(x)


@pytest.mark.parametrize("adaln", [True, False])
def test_the_objective_is_the_sum_over_two_halves_noisy_first(adaln):
    model, x, diffusion = small(adaln=adaln), images(5), Diffusion()
    draws = {
        "noise": torch.randn(3, 1, SIDE, SIDE), "steps": times(0, 400, 999), "noisy_masks": torch.rand(3, 16),
        "clean_masks": torch.rand(2, 16),
    }  # fmt: skip
    losses = MaskedDiffusionLoss(diffusion)(model, x, **draws)
    assert torch.allclose(losses.loss, by_hand(model, x, diffusion, draws, 3), rtol=1e-4)
    assert torch.allclose(losses.loss, losses.noisy * 0.6 + losses.clean * 0.4)


def test_labels_tell_the_noised_images_alone():
    model, x = small(), images(4)
    loss = MaskedDiffusionLoss(Diffusion())

    def losses(labels: Tensor | None):
        torch.manual_seed(0)
        return loss(model, x, labels)

    none, some, other = (losses(y) for y in (None, torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 0, 0])))
    assert torch.equal(none.clean, some.clean)
    assert not torch.allclose(none.noisy, some.noisy)
    assert torch.equal(some.loss, other.loss)  # the last two are clean


def test_mae_dit_and_maskdit_are_limits():
    model, x, diffusion = small(), images(4), Diffusion()
    mae = MaskedDiffusionLoss(diffusion, no_noise_prob=1.0)(model, x)
    assert mae.noisy is None
    assert torch.equal(mae.loss, mae.clean)
    torch.manual_seed(1)
    dit = MaskedDiffusionLoss(diffusion, no_noise_prob=0.0, noisy_ratio=0.0)(model, x)
    torch.manual_seed(1)
    steps, noise = torch.randint(1000, (4, 1)), torch.randn_like(x)
    made = model(diffusion.noised(x, steps, noise), steps + 1)
    assert dit.clean is None
    assert torch.allclose(dit.loss, ((made.noise - noise).square().mean() + (made.image - x).square().mean()) / 2)
    maskdit = MaskedDiffusionLoss(diffusion, no_noise_prob=0.0, noisy_ratio=0.5)(model, x)
    assert torch.isfinite(maskdit.loss)
    presets = UMD.Config.presets
    assert (presets["mae"]["no_noise_prob"], presets["mae"]["adaln"]) == (1.0, False)
    assert (presets["dit"]["no_noise_prob"], presets["dit"]["noisy_ratio"]) == (0.0, 0.0)
    assert (presets["maskdit"]["no_noise_prob"], presets["maskdit"]["noisy_ratio"]) == (0.0, 0.5)


def test_the_default_configuration_is_the_papers():
    config = UMD.Config()
    assert (config.image_size, config.patch_size, config.width, config.depth, config.decoder_depth) == (
        64,
        4,
        768,
        12,
        4,
    )
    assert (config.no_noise_prob, config.clean_ratio, config.noisy_ratio) == (0.5, 0.75, 0.375)
    assert (config.sampling_steps, config.eta, config.noise_schedule) == (125, 1.0, "cosine")
    assert UMD.Config.build("latent").noise_schedule == "linear"


def test_a_share_that_rounds_to_none_or_all_is_warned_of():
    loss = MaskedDiffusionLoss(Diffusion(), 0.05)
    with pytest.warns(UserWarning, match=r"clean \(masked auto-encoding\) loss is inactive"):
        assert loss.clean_images(16) == 0
    assert loss.clean_images(20) == 1


@pytest.mark.parametrize(
    ("pixels", "observed"),
    [(torch.randint(0, 256, (2, 1, 8, 8)).float(), r"\d+\.\.2\d\d"), (torch.rand(2, 1, 8, 8), r"in 0.*2 x - 1")],
)
def test_images_outside_the_range_are_refused_with_the_range(pixels, observed):
    with pytest.raises(DataError, match=observed):
        MaskedDiffusionLoss(Diffusion())(small(), pixels)
    with pytest.raises(DataError, match="nan"):
        check_images(torch.full((1, 1, 2, 2), math.nan))
    check_images(images())


def test_masks_that_leave_nothing_or_remove_nothing_are_refused():
    for ratio in (0.0, 1.0):
        with pytest.raises(ConfigError, match="lose some patches and keep some"):
            MaskedDiffusionLoss(Diffusion(), clean_ratio=ratio)
    with pytest.raises(ConfigError, match="leaves no patch"):
        MaskedDiffusionLoss(Diffusion(), clean_ratio=0.97)(small(), images())
    with pytest.raises(ConfigError, match=r"clean_ratio=0\.97 leaves none of 16"):
        UMD.Config.build("tiny", clean_ratio=0.97)


# --- diffusion ------------------------------------------------------------------------------------------------------


def test_sampling_with_the_true_noise_gives_the_image_back():
    diffusion, x = Diffusion(), images(2)

    def truth(noised: Tensor, step: int) -> Tensor:
        return diffusion.noise_of(noised, step, x)

    for eta in (0.0, 1.0):
        made = diffusion.sample(truth, torch.randn_like(x), n=20, eta=eta)
        assert torch.allclose(made, x, atol=1e-3)


def test_without_fresh_noise_sampling_is_a_function_of_its_start():
    diffusion, start = Diffusion(), torch.randn(2, 1, 4, 4)
    made = [diffusion.sample(lambda x, step: 0.3 * x, start, n=7, eta=eta) for eta in (0.0, 0.0, 1.0)]
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[0], made[2])


def test_steps_of_sampling_end_once_at_zero_and_outside_1_to_t_they_are_refused():
    diffusion = Diffusion()
    assert diffusion.sampling_steps(10) == [*range(999, 0, -100), 0]
    assert len(diffusion.sampling_steps(300)) == 251  # every fourth, since 300 does not divide 1000
    assert diffusion.sampling_steps(1000)[-3:] == [2, 1, 0]
    assert diffusion.sampling_steps(1) == [999, 0]
    for n in (0, 1001):
        with pytest.raises(ConfigError, match=r"1\.\.1000"):
            diffusion.sampling_steps(n)
    with pytest.raises(ConfigError, match="timesteps"):
        UMD.Config.build("tiny", sampling_steps=2000)


def test_the_schedules_end_in_noise_and_the_posterior_is_that_of_ddpm():
    for schedule in ("cosine", "linear"):
        diffusion = Diffusion(schedule=schedule)
        assert diffusion.alphas_cumprod[0] > 0.999
        assert diffusion.alphas_cumprod[-1] < 1e-3
        assert (diffusion.posterior_variance <= diffusion.betas).all()
        assert (diffusion.posterior_mean_coef1[0], diffusion.posterior_mean_coef2[0]) == (1, 0)
    short = Diffusion(100, "linear")
    assert torch.allclose(short.betas[[0, -1]], torch.tensor([1e-3, 0.2]))


# --- official checkpoints -------------------------------------------------------------------------------------------


def official_state(
    adaln: bool, classes: int | None, width: int = 16, patch: int = 2, side: int = 8
) -> dict[str, Tensor]:
    """A state with the names and layouts of the official code."""
    heads, length = 2, (side // patch) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (patch, patch, 3, width), "embedding/bias": (width,), "pos_embedding": (1, length, width),
        "dec_pos_embedding": (1, length, width), "cls": (1, 4, width), "image_mask_embedding": (1, 1, width),
        "final_conv/kernel": (patch, patch, width, 6), "final_conv/bias": (6,),
    }  # fmt: skip
    trunks = ["time_trunk"] + (["label_trunk"] if classes is not None else [])
    for name in trunks:
        shapes |= {f"{name}/Dense_0/kernel": (width, 2 * width), f"{name}/Dense_0/bias": (2 * width,),
                   f"{name}/Dense_1/kernel": (2 * width, width), f"{name}/Dense_1/bias": (width,)}  # fmt: skip
    if classes is not None:
        shapes["label_emb/embedding/embedding"] = (classes + 1, width)
    for stack, depth in (("Encoder", 3), ("Decoder", 2)):
        block, attention = f"{stack}/ScanCheckpointEncoder1DBlock_0", "MultiHeadDotProductAttention_0"
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            shapes |= {f"{block}/{norm}/scale": (depth, width), f"{block}/{norm}/bias": (depth, width)}
        for name in ("query", "key", "value"):
            shapes |= {f"{block}/{attention}/{name}/kernel": (depth, width, heads, width // heads),
                       f"{block}/{attention}/{name}/bias": (depth, heads, width // heads)}  # fmt: skip
        shapes |= {
            f"{block}/{attention}/out/kernel": (depth, heads, width // heads, width),
            f"{block}/{attention}/out/bias": (depth, width),
            f"{block}/MlpBlock_0/Dense_0/kernel": (depth, width, 4 * width),
            f"{block}/MlpBlock_0/Dense_0/bias": (depth, 4 * width),
            f"{block}/MlpBlock_0/Dense_1/kernel": (depth, 4 * width, width),
            f"{block}/MlpBlock_0/Dense_1/bias": (depth, width),
            f"{stack}/encoder_norm/scale": (width,), f"{stack}/encoder_norm/bias": (width,),
        }  # fmt: skip
        if adaln:
            shapes |= {
                f"{block}/Dense_0/kernel": (depth, width, 6 * width),
                f"{block}/Dense_0/bias": (depth, 6 * width),
            }
    if adaln:
        shapes |= {"final_modulation/kernel": (width, 2 * width), "final_modulation/bias": (2 * width,)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


@pytest.mark.parametrize(("adaln", "classes"), [(True, None), (False, 5), (True, 5)])
def test_an_official_checkpoint_loads_strictly(adaln, classes):
    state = official_state(adaln, classes)
    shape = official_shape(state)
    assert (shape["depth"], shape["decoder_depth"], shape["heads"], shape["classes"]) == (3, 2, 2, classes)
    AutoEncoder(**shape).load_state_dict(from_official_keys(state), strict=True)
    system = UMD.from_official(state)
    assert system.classes == [str(i) for i in range(classes or 0)]
    pictures = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    assert system.embed(pictures).vectors.shape == (3, 16)
    if classes is not None:
        assert len(system.generate(n=2, steps=2)) == 2


def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path):
    state = official_state(True, None)
    np.savez(tmp_path / "big_vision.npz", **{f"params/{name}": value.numpy() for name, value in state.items()})
    assert UMD.from_official(tmp_path / "big_vision.npz").config.depth == 3
    del state["Decoder/encoder_norm/scale"]
    with pytest.raises(UserError, match=r"no tensor 'Decoder/encoder_norm/scale'"):
        UMD.from_official(state)


# --- evaluation -----------------------------------------------------------------------------------------------------


def test_the_ridge_probe_is_the_closed_form_on_whitened_features():
    random = np.random.default_rng(0)
    y, y_test = random.integers(0, 3, 40), random.integers(0, 3, 30)
    x, x_test = random.normal(size=(40, 6)) + y[:, None], random.normal(size=(30, 6)) + y_test[:, None]
    hits = ridge_probe(x, y, x_test, y_test, penalty=64.0)
    mean, deviation = x.mean(0), x.std(0) + 1e-5
    a, b = (np.c_[(z - mean) / deviation, np.full(len(z), 100.0)] for z in (x, x_test))
    values, vectors = np.linalg.eigh(a.T @ a)
    solution = vectors @ np.diag(1 / (values + 64.0)) @ vectors.T @ a.T @ (2.0 * (y[:, None] == np.arange(3)) - 1)
    assert np.array_equal(hits, (b @ solution).argmax(1) == y_test)
    with pytest.raises(DataError, match="class '7'"):
        ridge_probe(x, y, x_test[:1], [7])


def test_few_shots_are_the_first_of_each_class():
    assert few_shots(["b", "a", "b", "b", "a", "a"], 2).tolist() == [0, 1, 2, 4]


def test_noise_errors_do_not_depend_on_the_batch():
    model, x, ids = small(classes=None), images(4), list("abcd")
    together = noise_errors(model, Diffusion(), x, ids, seed=0)
    alone = torch.cat([noise_errors(model, Diffusion(), x[i : i + 1], [ids[i]], seed=0) for i in range(4)])
    assert torch.allclose(together, alone, rtol=1e-4)


def test_fid_without_inception_says_so_in_one_line():
    pytest.importorskip("torchmetrics")
    if not _has_fidelity():
        with pytest.raises(UserError, match="torch-fidelity") as error:
            frechet_distance(torch.zeros(2, 3, 32, 32).byte(), torch.zeros(2, 3, 32, 32).byte())
        assert "\n" not in str(error.value)


def _has_fidelity() -> bool:
    try:
        import torch_fidelity  # noqa: F401
    except ImportError:
        return False
    return True


# --- the system -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> Images:
    items = data.open("digits").all
    return items.take(np.arange(60))


@pytest.fixture(scope="module")
def fitted(pictures) -> UMD:
    return UMD(UMD.Config.build("tiny", steps=3, finetune_steps=3)).fit(pictures)


def test_generated_images_are_data_of_the_classes_asked_for(fitted, pictures, tmp_path):
    made = fitted.generate(n=12, seed=3)
    assert isinstance(made, Pictures)
    assert made.column("label").tolist() == [fitted.classes[i % 10] for i in range(12)]
    assert np.array_equal(*(np.asarray(fitted.generate(n=12, seed=3).image(11)) for _ in range(2)))
    assert not np.array_equal(np.asarray(made.image(0)), np.asarray(fitted.generate(n=12, seed=4).image(0)))
    assert set(fitted.generate(n=3, label="7", guidance=1, steps=3, eta=0).column("label")) == {"7"}
    like = fitted.generate(pictures.take([0, 5]), n=2)
    assert like.column("label").tolist() == np.repeat(pictures.column("label")[[0, 5]], 2).tolist()
    paths = made.write(tmp_path / "made")
    assert len(paths) == 12
    opened = data.open(str(tmp_path / "made"), "images").all
    assert sorted(opened.column("label")) == sorted(made.column("label"))
    with pytest.raises(DataError, match="there already"):
        made.write(tmp_path / "made")


def test_what_cannot_be_generated_is_refused(fitted, pictures):
    with pytest.raises(ConfigError, match="no class 'x'"):
        fitted.generate(label="x")
    with pytest.raises(ConfigError, match="data or label"):
        fitted.generate(pictures.take([0]), label="1")
    with pytest.raises(ConfigError, match=r"1\.\.1000"):
        fitted.generate(steps=1001)
    with pytest.raises(ConfigError, match="at least 1"):
        fitted.generate(n=0)
    plain = UMD(UMD.Config.build("tiny", task="none", steps=1)).fit(pictures)
    assert len(plain.generate(n=2, steps=2)) == 2
    with pytest.raises(ConfigError, match="task=generation"):
        plain.generate(guidance=2.0)
    mae = UMD(UMD.Config.build("tiny", task="none", no_noise_prob=1.0, steps=1)).fit(pictures)
    with pytest.raises(UserError, match="without noise"):
        mae.generate()


def test_models_without_clean_images_are_shown_a_noise_step_that_depends_on_the_id(pictures):
    dit = UMD(UMD.Config.build("tiny", task="none", no_noise_prob=0.0, noisy_ratio=0.0, steps=1)).fit(pictures)
    few = pictures.take([3, 1, 2])
    assert np.allclose(dit.embed(few).vectors, dit.embed(pictures).vectors[[3, 1, 2]], atol=1e-5)
    assert dit.encoder(images(2)).shape == (2, 32)
    assert dit.figures(few)


def test_a_run_starts_the_generation_of_another(fitted, pictures, tmp_path):
    fitted.save(tmp_path / "run")
    options = {"finetune_steps": 1, "ema": 1e-6, "width": 64}  # the run's own width counts
    tuned = catalog.create("umd", "tiny", encoder=f"run:{tmp_path / 'run'}", **options).fit(pictures)
    tuned.save(tmp_path / "tuned")
    assert catalog.load(tmp_path / "tuned").fingerprint == tuned.fingerprint
    assert list(tuned.model) == ["generator"]
    before, after = fitted.model["autoencoder"].state_dict(), tuned.model["generator"].state_dict()
    assert torch.allclose(before["encoder.blocks.0.qkv.weight"], after["encoder.blocks.0.qkv.weight"], atol=1e-4)
    assert tuned.embed(pictures.take([0])).vectors.shape == (1, 32)
    assert tuned.encoder.dense(images(2)).shape == (2, 32, 4, 4)
    with pytest.raises(ConfigError, match="task=generation"):
        UMD.Config.build("tiny", task="none", encoder="run:x")


def test_the_average_moves_at_its_rate_for_256_images():
    model = small().train()
    stage = FineTuning(model, MaskedDiffusionLoss(Diffusion()), Recipe(1e-3, 0.999, 0.0, 0.0, 1.0, 128, ema=1e-2))
    stage._trainer = type("T", (), {"world_size": 1, "accumulate_grad_batches": 2, "precision": "32-true"})()
    assert stage.share == 1.0
    groups = stage.configure_optimizers().param_groups
    spared = {id(p) for p in groups[1]["params"]}
    assert {n for n, p in stage.model.named_parameters() if id(p) in spared} == {
        n for n, _ in model.named_parameters() if n.endswith("bias") or n in ("class_tokens", "mask_token")
    }


def test_generation_needs_classes():
    grey = np.random.default_rng(0).integers(0, 256, (30, SIDE, SIDE), dtype=np.uint8)
    with pytest.raises(DataError, match="no label"):
        UMD(UMD.Config.build("tiny")).fit(grey)
    assert UMD(UMD.Config.build("tiny", task="none", steps=1)).fit(grey).evaluate()["noise_error"].value > 0


# --- latents and layouts --------------------------------------------------------------------------------------------


def latents_file(folder: Path, n: int = 30) -> Path:
    random = np.random.default_rng(0)
    path = folder / "latents.npz"
    np.savez(path, latents=random.normal(size=(n, 4, 4, 4)).astype(np.float32) * 5, label=np.arange(n) % 2)
    return path


def test_latents_are_read_fitted_and_generated_as_latents(tmp_path):
    path = latents_file(tmp_path)
    read = data.open(f"{path}?scale=0.18215", "images", UMD.readers).all
    assert isinstance(read, Latents)
    with np.load(path) as file:
        assert np.allclose(read.latent(3), file["latents"][3] * 0.18215)
    options = {"space": "latents", "channels": 4, "image_size": 4, "steps": 1, "finetune_steps": 1}
    system = UMD(UMD.Config.build("tiny", **options)).fit(f"{path}?scale=0.18215")
    made = system.generate(n=4, steps=2)
    assert isinstance(made, Latents)
    assert made.image(0).mode == "RGB"
    assert isinstance(data.open(str(made.write(tmp_path / "made")[0]), "images", UMD.readers).all, Latents)
    assert system.figures(read.take([0, 1]))
    with pytest.raises(DataError, match=r"latents of shape \[4, 4, 4\]"):
        UMD(UMD.Config.build("tiny", **{**options, "channels": 3})).fit(str(path))
    with pytest.raises(DataError, match="space=latents"):
        UMD(UMD.Config.build("tiny")).fit(str(path))


def test_bad_latents_are_refused(tmp_path):
    bad = {"nan": np.full((30, 4, 4, 4), np.nan, np.float32), "flat": np.zeros((30, 4, 4, 4), np.float32),
           "whole": np.zeros((30, 4, 4, 4), np.int64)}  # fmt: skip
    for name, latents in bad.items():
        np.savez(tmp_path / f"{name}.npz", latents=latents)
        with pytest.raises(DataError, match=r"nan|constant|float \[N, H, H, C\]"):
            data.open(str(tmp_path / f"{name}.npz"), "images", UMD.readers)


class _Vae:
    """Stands in for diffusers' AutoencoderKL."""

    def encode(self, pixels: Tensor):
        latents = torch.nn.functional.avg_pool2d(pixels, 8).repeat(1, 2, 1, 1)[:, :4]
        return type("E", (), {"latent_dist": type("D", (), {"mean": latents})})

    def decode(self, latents: Tensor):
        return type("D", (), {"sample": torch.nn.functional.interpolate(latents[:, :3], scale_factor=8)})


def test_pictures_become_latents_and_back_by_an_auto_encoder(pictures):
    made = latents_of(pictures.take(np.arange(3)), _Vae(), side=32)
    assert made.latent(0).shape == (4, 4, 4)
    assert made.roles["label"] == ("label",)
    latents = torch.from_numpy(np.stack(made.sources)).movedim(-1, 1)
    assert pictures_of(latents, _Vae()).shape == (3, 3, 32, 32)


def test_pictures_without_an_auto_encoder_of_latents_say_what_to_do(pictures):
    with pytest.raises(UserError, match="vae=FOLDER"):
        UMD(UMD.Config.build("tiny", space="latents", channels=4)).fit(pictures)
    try:
        import diffusers  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="diffusers is not installed"):
            load_vae("some/vae")


def test_parquet_files_of_the_hub_are_read_with_their_splits(tmp_path):
    random = np.random.default_rng(0)

    def cell(grey: bool) -> dict:
        buffer = io.BytesIO()
        shape = (9, 7) if grey else (9, 7, 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    for part, n in (("train", 6), ("validation", 2), ("test", 2)):
        table = pa.table({"image": [cell(i % 2 == 0) for i in range(n)], "label": list(range(n))})
        pq.write_table(table, tmp_path / f"{part}-00000-of-00001.parquet")
    splits = data.open(str(tmp_path), "images", UMD.readers)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (6, 2, 2)
    assert splits.train.image(0).size == (7, 9)
    assert splits.train.roles["label"] == ("label",)
    pq.write_table(pa.table({"image": [{"bytes": b"no image", "path": None}]}), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="cannot be decoded"):
        data.open(str(tmp_path / "bad.parquet"), "images", UMD.readers)


@pytest.mark.parametrize("rows", [3, 1])
def test_gradients_of_what_is_computed_again(rows):
    torch.manual_seed(0)
    block = Block(8, 2).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, told = torch.randn(3, 5, 8, dtype=torch.double), torch.randn(rows, 6, 1, 8, dtype=torch.double)
    inputs = [x.requires_grad_(), told.requires_grad_(), *block.parameters()]

    def plainly():
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = told.unbind(1)
        y = x + gate * block.attend(block.qkv(block.norm1(x) * (1 + scale) + shift))
        hidden = block.mlp.fc1(block.norm2(y) * (1 + mlp_scale) + mlp_shift)
        return y + mlp_gate * block.mlp.fc2(torch.nn.functional.gelu(hidden, approximate="tanh"))

    ours, theirs = block(x, told), plainly()
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    gradients = (torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs))
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)
    with torch.no_grad():
        torch.testing.assert_close(block(x, told), plainly())
