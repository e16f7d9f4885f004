"""What the paper measures: a ridge probe on few labels, errors of the predictions, and generated images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from repertory.errors import DataError, UserError, first_line
from repertory.nn.masking import patch_errors, random_masking
from repertory.runs import seeded
from repertory.systems.umd.diffusion import Diffusion
from repertory.systems.umd.model import AutoEncoder

NOISE_STEPS = (50, 200, 500, 800, 950)
"""Of 1,000: where the error of the predicted noise is measured."""


def few_shots(labels: ArrayLike, shots: int) -> np.ndarray:
    """Indices of the first ``shots`` items of each class of ``labels`` ``[N]``, in their order."""
    labels = np.asarray(labels)
    return np.sort(np.concatenate([np.flatnonzero(labels == name)[:shots] for name in np.unique(labels)]))


def ridge_probe(
    train: ArrayLike, train_labels: ArrayLike, test: ArrayLike, test_labels: ArrayLike, penalty: float = 1024.0
) -> np.ndarray:
    """Hits ``[N]`` of the paper's few-shot probe: ridge regression of -1/+1 indicators on standardised features.

    Features are standardised by ``train`` ``[M, D]`` (``x - mean`` over ``std + 1e-5``), a constant 100 is appended,
    and the largest of the classes' scores is the answer.

    Raises:
        DataError: one class only, or a class of ``test_labels`` that ``train_labels`` do not have.
    """
    train, test = np.asarray(train, np.float64), np.asarray(test, np.float64)
    classes, y = np.unique(np.asarray(train_labels), return_inverse=True)
    unknown = np.setdiff1d(test_labels, classes)
    if len(classes) < 2 or len(unknown):
        raise DataError(f"labels: class '{(unknown if len(unknown) else classes)[0]}' cannot be probed")
    mean, deviation = train.mean(0), train.std(0) + 1e-5
    x, x_test = (np.column_stack([(z - mean) / deviation, np.full(len(z), 100.0)]) for z in (train, test))
    targets = 2.0 * (y[:, None] == np.arange(len(classes))) - 1
    scores = Ridge(penalty, fit_intercept=False, solver="cholesky").fit(x, targets).predict(x_test)
    return (classes[scores.argmax(1)] == np.asarray(test_labels)).astype(np.float64)


def _drawn(draw: Callable[..., Tensor], shape: Sequence[int], ids: Sequence[str], *key: Any) -> Tensor:
    """Draws ``[B, *shape]``, of which each is a function of key and id."""
    made = []
    for name in ids:
        with seeded(*key, name):
            made.append(draw(*shape))
    return torch.stack(made)


@torch.inference_mode()
def noise_errors(
    model: AutoEncoder,
    diffusion: Diffusion,
    images: Tensor,
    ids: Sequence[str],
    seed: int,
    labels: Tensor | None = None,
) -> Tensor:
    """Mean squared error ``[B]`` of the predicted noise in whole images ``[B, C, H, W]``, mean of ``NOISE_STEPS``.

    The noise of an image is a function of seed and id.
    """
    errors = torch.zeros(len(images), device=images.device)
    noises = _drawn(torch.randn, (len(NOISE_STEPS), *images.shape[1:]), ids, seed, "noise error").to(images.device)
    for share, noise in zip(NOISE_STEPS, noises.unbind(1), strict=True):
        step = share * diffusion.timesteps // 1000
        noised = diffusion.noised(images, step, noise)
        t = torch.full((len(images) if labels is not None else 1, 1), step + 1, device=images.device)
        made = model.autoencode(model.patched(noised), model.condition(t, labels))
        errors += patch_errors(made.noise, model.patched(noise)).mean(1) / len(NOISE_STEPS)
    return errors.cpu()


@torch.inference_mode()
def reconstruction_errors(model: AutoEncoder, images: Tensor, ids: Sequence[str], ratio: float, seed: int) -> Tensor:
    """Mean squared error ``[B]`` of removed patches of clean images; the mask is a function of seed and id."""
    masking = random_masking(_drawn(torch.rand, (model.patches,), ids, seed, "mask").to(images.device), ratio)
    patches = model.patched(images)
    made = model.autoencode(patches, model.condition(torch.zeros(1, 1, device=images.device).long()), masking)
    return ((patch_errors(made.image, patches) * masking.mask).sum(1) / masking.mask.sum(1)).cpu()


def label_hits(real: ArrayLike, labels: ArrayLike, generated: ArrayLike, asked: ArrayLike) -> np.ndarray:
    """Hits ``[M]`` of a linear classifier of ``real`` ``[N, D]`` on ``generated`` ``[M, D]`` of ``asked`` labels."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return (classifier.fit(real, labels).predict(generated) == np.asarray(asked)).astype(np.float64)


def frechet_distance(real: Tensor, generated: Tensor, batch_size: int = 64) -> float:
    """Fréchet Inception distance (Heusel et al. 2017) of uint8 images ``[N, 3, H, W]``, by torchmetrics.

    Raises:
        UserError: torch-fidelity or its Inception weights are not there.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        distance = FrechetInceptionDistance()
    except Exception as error:  # a package that is missing, or a download that fails, in many types
        raise UserError(
            f"FID needs torch-fidelity and its Inception weights ({first_line(error)}): pip install torch-fidelity and "
            "connect once, or set fid=false"
        ) from None
    for part in real.split(batch_size):
        distance.update(part, real=True)
    for part in generated.split(batch_size):
        distance.update(part, real=False)
    return float(distance.compute())
