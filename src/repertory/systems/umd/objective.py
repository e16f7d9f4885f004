"""UMD's objective (section 3 of the paper): one schedule of noise and masks; MAE, DiT and MaskDiT are its limits."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from repertory.errors import ConfigError, DataError
from repertory.nn.masking import masked_mean, patch_errors, random_masking
from repertory.systems.umd.diffusion import Diffusion
from repertory.systems.umd.model import AutoEncoder, Condition


class Losses(NamedTuple):
    """Scalars: the objective; the loss of clean and of noised images; the latter's parts of noise and image.

    None where the batch has no such images. ``noised`` are the noised images ``[N, C, H, W]``.
    """

    loss: Tensor
    clean: Tensor | None
    noisy: Tensor | None
    noise: Tensor | None
    image: Tensor | None
    noised: Tensor | None


def check_images(images: Tensor) -> None:
    """Refuses pixels that do not lie in -1..1: not finite, 8 bits, or in 0..1.

    Raises:
        DataError: with the range observed.
    """
    low, high = float(images.min()), float(images.max())
    if not (low >= -1.001 and high <= 1.001):
        raise DataError(f"images in {low:.3g}..{high:.3g}: pixels are expected in -1..1 (x / 127.5 - 1 from 8 bits)")
    if low >= 0:
        raise DataError(f"images in {low:.3g}..{high:.3g}: pixels are expected in -1..1 (2 x - 1 from 0..1)")


class MaskedDiffusionLoss(nn.Module):
    """Of B images the last ``int(B no_noise_prob)`` stay clean and lose many patches; the others are noised.

    Clean images at time 0 with ``clean_ratio`` of their patches removed: error of the image on removed patches. Images
    noised at step s, time s + 1, with ``noisy_ratio`` removed: half the error of the noise on seen patches plus half
    the error of the image on removed ones; without a mask both are means over all patches. Both losses are weighted
    by their shares of the batch.

    ==========  =============  ===========  ===========
    limit       no_noise_prob  clean_ratio  noisy_ratio
    ==========  =============  ===========  ===========
    UMD         0.5            0.75         0.375
    MAE         1              0.75
    DiT         0                           0
    MaskDiT     0                           0.5
    ==========  =============  ===========  ===========

    Raises:
        ConfigError: a share or ratio outside its range.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        no_noise_prob: float = 0.5,
        clean_ratio: float = 0.75,
        noisy_ratio: float = 0.375,
    ) -> None:
        super().__init__()
        if not 0 <= no_noise_prob <= 1:
            raise ConfigError(f"no_noise_prob={no_noise_prob}: it must lie in 0..1")
        if not (0 < clean_ratio < 1 and 0 <= noisy_ratio < 1):
            raise ConfigError(
                f"mask ratios {clean_ratio} of clean and {noisy_ratio} of noised images: in 0..1, and clean images "
                "must lose some patches and keep some"
            )
        self.diffusion, self.no_noise_prob = diffusion, no_noise_prob
        self.clean_ratio, self.noisy_ratio = clean_ratio, noisy_ratio

    def clean_images(self, batch: int, warn: bool = True) -> int:
        """How many of a batch stay clean; warns where rounding leaves one of the two losses out."""
        clean = int(batch * self.no_noise_prob)
        if warn and 0 < self.no_noise_prob < 1 and clean in (0, batch):
            inactive = "clean (masked auto-encoding)" if clean == 0 else "noisy (diffusion)"
            warnings.warn(
                f"no_noise_prob={self.no_noise_prob} of {batch} images is {clean}: the {inactive} loss is inactive",
                stacklevel=3,
            )
        return clean

    def forward(
        self,
        model: AutoEncoder,
        images: Tensor,
        labels: Tensor | None = None,
        steps: Tensor | None = None,
        noise: Tensor | None = None,
        clean_masks: Tensor | None = None,
        noisy_masks: Tensor | None = None,
        label_draws: Tensor | None = None,
        checked: bool = False,
    ) -> Losses:
        """The losses of images ``[B, C, H, W]`` in -1..1, of which ``N = B - int(B no_noise_prob)`` are noised.

        Args:
            labels: classes ``[B]``; those of noised images are used, each taken away with the model's probability.
            steps: ``[N, 1]`` in 0..T - 1. noise: ``[N, C, H, W]``. clean_masks, noisy_masks: uniform draws ``[., L]``
                that decide on patches. label_draws: ``[N]`` uniform. None draws them.
            checked: the images are known to lie in -1..1, or are latents.

        Raises:
            DataError: images outside -1..1 or of another size. ConfigError: a ratio that leaves no patch.
        """
        if not checked:
            check_images(images)
        clean, device = self.clean_images(len(images), model.training), images.device
        n = len(images) - clean
        if steps is None:
            steps = torch.randint(self.diffusion.timesteps, (n, 1), device=device)
        noise = torch.randn_like(images[:n]) if noise is None else noise
        noised = self.diffusion.noised(images[:n], steps, noise)
        # one condition per noised image, and one for all clean ones
        t = torch.cat([steps.long() + 1, steps.new_zeros(min(clean, 1), 1)])
        if labels is not None and model.classes is not None:
            labels = model.dropped(labels[:n], label_draws) if model.training else labels[:n]
            labels = torch.cat([labels, labels.new_full((min(clean, 1),), model.classes)])
        told = model.condition(t, labels)
        # the halves keep different numbers of patches, so each is encoded alone; they are decoded together
        halves = []
        if n:
            halves.append(self._encoded(model, noised, told.rows(slice(0, n)), self.noisy_ratio, noisy_masks))
        if clean:
            halves.append(self._encoded(model, images[n:], told.rows(slice(n, n + 1)), self.clean_ratio, clean_masks))
        vectors, tokens, mask = (torch.cat(part) for part in zip(*halves, strict=True))
        each = torch.arange(len(images), device=device).clamp(max=n)
        made = model.decode(vectors, tokens, told.rows(each))

        image_errors = patch_errors(made.image, model.patched(images))
        of_clean = of_noisy = of_noise = of_image = None
        loss = images.new_zeros(())
        if n:
            noise_errors, hidden = patch_errors(made.noise[:n], model.patched(noise)), mask[:n]
            if self.noisy_ratio:
                of_noise, of_image = masked_mean(noise_errors, 1 - hidden), masked_mean(image_errors[:n], hidden)
            else:
                of_noise, of_image = noise_errors.mean(), image_errors[:n].mean()
            of_noisy = (of_noise + of_image) / 2
            loss = loss + of_noisy * (n / len(images))
        if clean:
            of_clean = masked_mean(image_errors[n:], mask[n:])
            loss = loss + of_clean * (clean / len(images))
        return Losses(loss, of_clean, of_noisy, of_noise, of_image, noised if n else None)

    def _encoded(
        self, model: AutoEncoder, images: Tensor, told: Condition, ratio: float, draws: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Representations ``[., D]``, tokens of all patches ``[., L, D]``, and the mask ``[., L]``."""
        patches = model.patched(images)
        if not ratio:
            return *model.encode(patches, told), patches.new_zeros(patches.shape[:2])
        draws = torch.rand(patches.shape[:2], device=images.device) if draws is None else draws
        masking = random_masking(draws, ratio)
        if not masking.keep.shape[1]:
            raise ConfigError(f"a mask ratio of {ratio} leaves no patch: lower it, or take smaller patches")
        vector, tokens = model.encode(patches, told, masking)
        return vector, model.placed(tokens, masking), masking.mask
