"""What the systems for images share: masking, the masked autoencoder, gradient reversal, transforms, labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

import repertory.data
from repertory.data.images import Images
from repertory.data.labels import class_indices, class_names
from repertory.data.transforms.images import Pixels, Views, augmented, plain
from repertory.errors import ConfigError, DataError
from repertory.nn.gradient_reversal import reverse_gradient
from repertory.nn.mae import MAE, MaskedEncoder, from_official
from repertory.nn.masking import (
    fill,
    masked_mean,
    normalise_patches,
    patch_errors,
    patchify,
    random_masking,
    unpatchify,
)
from repertory.nn.vit import classifier, load_encoder


def small(**options):
    return MaskedEncoder(**{"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2, **options})


def test_masking_keeps_the_least_noise_and_fill_puts_tokens_back():
    noise = torch.rand(3, 10)
    seen = random_masking(noise, 0.75)
    assert seen.keep.shape == (3, 2)
    assert torch.equal(seen.keep, noise.argsort(1)[:, :2])
    assert torch.equal(seen.mask.sum(1), torch.full((3,), 8.0))
    tokens = torch.arange(10.0)[None, :, None].expand(3, -1, 1)
    full = fill(tokens.gather(1, seen.keep[..., None]), torch.full((1, 1, 1), -1.0), seen.restore)
    assert torch.equal(full, torch.where(seen.mask[..., None] > 0, -1.0, tokens))


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_a_ratio_outside_0_to_1_is_refused(ratio):
    with pytest.raises(ConfigError, match=r"0\.\.1"):
        random_masking(torch.rand(1, 4), ratio)


def test_patches_go_back_to_the_image_and_are_normalised():
    images = torch.randn(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(unpatchify(patches, 4, (2, 3)), images)
    assert torch.equal(patches[0, 1, :3], images[0, :, 0, 4])  # row, column, channel
    normal = normalise_patches(patches)
    assert torch.allclose(normal.var(-1), torch.ones(2, 6), atol=1e-4)
    assert masked_mean(patch_errors(patches, patches), torch.ones(2, 6)) == 0


def test_the_loss_is_that_of_hidden_patches_alone():
    torch.manual_seed(0)
    model = MAE(small(), 16, 1, 2, norm_pixels=False)
    images, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    made = model(images, noise)
    hidden = made.masking.mask[0].nonzero()[0, 0]
    row, column = divmod(int(hidden), 4)
    changed = images.clone()
    changed[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
    again = model(changed, noise)
    assert torch.allclose(made.latent, again.latent)  # a hidden patch is not seen
    assert not torch.allclose(made.loss, again.loss)
    with torch.no_grad():
        model.decoder.pred.weight.zero_()
        model.decoder.pred.bias.zero_()
    errors = patchify(images, 4).square().mean(-1)
    assert torch.allclose(model(images, noise).loss, masked_mean(errors, made.masking.mask))


def test_the_names_of_official_checkpoints():
    model = MAE(small(), 16, 1, 2)
    official = {}
    for name, value in model.state_dict().items():
        place, _, rest = name.partition(".")
        official[f"decoder_{rest}" if place == "decoder" else rest if place == "encoder" else name] = value
    assert "decoder_pos_embed" in official
    assert "blocks.0.attn.qkv.weight" in official
    model.load_state_dict(from_official(official))


def test_gradients_are_reversed():
    x = torch.ones(3, requires_grad=True)
    y = reverse_gradient(x, 2.0)
    assert torch.equal(y, x)
    (3 * y).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), -6.0))


def test_an_encoder_goes_into_a_classifier_of_another_image_size():
    encoder, model = small(), classifier(5, 32, 4, 3, 16, 2, 2)
    load_encoder(model, encoder.state_dict())
    assert torch.equal(model.pos_embed[:, 0], encoder.pos_embed[:, 0])
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    lacking = {name: value for name, value in encoder.state_dict().items() if not name.startswith("blocks.1")}
    with pytest.raises(DataError, match=r"lacks blocks\.1"):
        load_encoder(model, lacking)
    with pytest.raises(DataError, match="does not fit"):
        load_encoder(classifier(5, 32, 4, 3, 32, 2, 2), encoder.state_dict())


def test_the_encoder_sees_other_sides_and_names_a_bad_one():
    assert small()(torch.randn(1, 3, 24, 16)).shape == (1, 25, 16)
    with pytest.raises(DataError, match="18 x 16"):
        small()(torch.randn(1, 3, 18, 16))


BICUBIC = InterpolationMode.BICUBIC
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_transforms_give_the_channels_of_the_mean(channels):
    mean = std = (0.5,) * channels
    for transform in (plain(8, mean, std), plain(8, mean, std, crop=None), augmented(8, mean, std, erase=0.5),
                      augmented(8, mean, std, auto_augment="rand-m9-mstd0.5-inc1")):  # fmt: skip
        for picture in (PICTURE, PICTURE.convert("L")):
            made = transform(picture)
            assert made.shape == (channels, 8, 8)
            assert made.dtype == torch.float32
    whole = plain(30, mean, std, crop=None)(Image.new("RGB", (5, 5), (255, 0, 0)))
    assert whole.max() == (1 if channels == 3 else whole.min())


@pytest.mark.parametrize("mean", [(0.4,), (0.485, 0.456, 0.406)])
@pytest.mark.parametrize("crop", [None, 0.875])
def test_plain_images_are_torchvisions_bit_for_bit(mean, crop):
    std = tuple(m / 2 for m in mean)
    resized = [9, 9] if crop is None else [round(9 / crop)]
    geometry = [v2.Resize(resized, BICUBIC), v2.CenterCrop([9, 9])]
    whole = v2.Compose([*geometry, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    for picture in (PICTURE, PICTURE.convert("L"), PICTURE.resize((9, 9))):
        shown = picture.convert("L" if len(mean) == 1 else "RGB")
        assert torch.equal(plain(9, mean, std, crop)(picture), whole(shown))


def test_batches_of_pixels_and_of_views():
    splits = repertory.data.open("digits")
    column, names = class_names(splits)
    assert names == [str(i) for i in range(10)]
    labels = class_indices(splits.train, column, names)
    batch = Pixels(splits.train, plain(8, (0.5,), (0.5,), crop=None), labels)(np.array([4, 1]))
    assert batch["images"].shape == (2, 1, 8, 8)
    assert [names[i] for i in batch["labels"]] == [splits.train.column("label")[i] for i in (4, 1)]
    two = Views(splits.train, (augmented(8), augmented(8)))(range(3))["views"]
    assert [view.shape for view in two] == [(3, 3, 8, 8)] * 2
    assert not torch.equal(*two)


def test_labels_that_cannot_be_learned():
    images = [np.full((4, 4), i, np.uint8) + np.arange(4, dtype=np.uint8) for i in range(10)]
    with pytest.raises(DataError, match="label=COLUMN"):
        class_names(repertory.data.open(images, "images"))
    with pytest.raises(DataError, match="one class only, 'a'"):
        class_names(repertory.data.open((images, ["a"] * 10), "images"))
    items = Images.wrap((images, ["a"] * 9 + ["z"]))
    with pytest.raises(DataError, match="item 9: class 'z'"):
        class_indices(items, "label", ["a", "b"])


def test_photographs_are_tiles_of_ten_pictures():
    items = repertory.data.open("photographs?each=5&side=16").all
    assert len(items) == 50
    assert len(set(items.column("label"))) == 10
    assert items.image(0).size == (16, 16)
    with pytest.raises(DataError, match="holds no tile"):
        repertory.data.open("photographs?side=2000")
