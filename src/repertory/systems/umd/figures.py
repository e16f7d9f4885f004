"""What people look at: reconstructed patches, noise taken away, and generated images of each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from repertory.data.images import Images
from repertory.figures import image_grid
from repertory.nn.masking import unpatchify
from repertory.runs import seeded

if TYPE_CHECKING:
    from repertory.systems.umd.system import UMD

SHOWN = 6
SIDE = 96
STEPS = (50, 200, 400, 600, 800)
OF_A_CLASS, CLASSES = 4, 10


def _picture(image: Tensor) -> np.ndarray:
    """``[C, H, W]`` in -1..1 (of latents: three channels over their range) as RGB uint8 of at least ``SIDE`` pixels."""
    image = image.detach().float().cpu()
    if image.shape[0] > 3:
        image = image[:3] / max(float(image[:3].abs().max()), 1e-6)
    pixels = ((image + 1) * 127.5).round().clamp(0, 255).movedim(0, -1).numpy().astype(np.uint8)
    times = max(1, SIDE // len(pixels))
    return np.broadcast_to(pixels.repeat(times, 0).repeat(times, 1), (*np.multiply(pixels.shape[:2], times), 3))


def of_images(system: UMD, items: Images) -> dict[str, Any]:
    """All pictures, of up to ``SHOWN`` images, by caption."""
    rows = np.unique(np.linspace(0, len(items) - 1, min(SHOWN, len(items))).round().astype(int))
    shown = items.take(rows)
    images = system._batches(shown)(np.arange(len(shown)))["images"].to(system.device)
    system.model.eval()
    made = dict[str, Any]()
    if system._sees_clean:
        made |= _reconstructed(system, shown, images)
    if system.config.no_noise_prob < 1 or system.config.task == "generation":
        made |= _denoised(system, shown, images)
    if system.classes:
        made |= _generated(system)
    return made


def _reconstructed(system: UMD, items: Images, images: Tensor) -> dict[str, Any]:
    model, ratio = system.autoencoder, system.config.clean_ratio
    draws = []
    for name in items.ids:
        with seeded(system.record.get("seed", 0), "figure", name):
            draws.append(torch.rand(model.patches))
    t = torch.zeros(len(images), 1, dtype=torch.long, device=images.device)
    output = model(images, t, ratio=ratio, noise=torch.stack(draws).to(images.device))
    seen = images * (1 - output.mask)  # mid-grey where removed
    whole = images * (1 - output.mask) + output.image * output.mask
    lines = [[_picture(x[i]) for x in (images, seen, whole)] for i in range(len(images))]
    caption = f"Clean images without {ratio:.0%} of their patches, and with these as predicted"
    titles = ["image", "seen", "filled in"]
    return {caption: image_grid(np.array(lines), column_titles=titles, row_titles=_names(items))}


def _denoised(system: UMD, items: Images, images: Tensor) -> dict[str, Any]:
    model, diffusion = system.generator, system.diffusion.to(images.device)
    steps = [share * diffusion.timesteps // 1000 for share in STEPS]
    with seeded(system.record.get("seed", 0), "figure"):
        noise = torch.randn(images.shape).to(images.device)
    columns: list[Tensor] = [images]
    for step in steps:
        noised = diffusion.noised(images, step, noise)
        t = torch.full((len(images), 1), step + 1, device=images.device)
        made = model.autoencode(model.patched(noised), model.condition(t))
        clean = diffusion.clean(noised, step, unpatchify(made.noise, model.patch_size, model.grid),
                                system.config.space == "pixels")  # fmt: skip
        columns += [noised, clean]
    lines = [[_picture(column[i].clamp(-1, 1)) for column in columns] for i in range(len(images))]
    titles = ["image", *(title for step in steps for title in (f"step {step}", "cleaned"))]
    caption = f"Noised at several of {diffusion.timesteps} steps, and the clean image that the predicted noise means"
    return {caption: image_grid(np.array(lines), column_titles=titles, row_titles=_names(items))}


def _generated(system: UMD) -> dict[str, Any]:
    classes = min(len(system.classes), CLASSES)
    labels = torch.arange(classes).repeat(OF_A_CLASS)
    made = system._sample(labels, system.record.get("seed", 0)).reshape(OF_A_CLASS, classes, *_shape(system))
    lines = [[_picture(image) for image in row] for row in made]
    caption = f"Generated images by class (guidance {system.config.guidance:g})"
    return {caption: image_grid(np.array(lines), column_titles=[name[:12] for name in system.classes[:classes]])}


def _shape(system: UMD) -> tuple[int, int, int]:
    model = system.generator
    return model.channels, model.image_size, model.image_size


def _names(items: Images) -> list[str]:
    return [str(name)[-18:] for name in items.ids]
