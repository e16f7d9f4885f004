"""FMAE-IAT: F1 over thresholds, the whole evaluation and a training step against the straightforward forms, one core.

Run with ``python -m benchmarks.fmae_iat``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn

from benchmarks.measure import compare
from repertory.systems.fmae_iat import AdversarialViT, action_unit_scores, identity_adversarial_loss

FRAMES, UNITS, SUBJECTS = 20_000, 12, 41
BATCH = 2
SHAPE = {"image_size": 224, "patch_size": 16, "width": 384, "depth": 12, "heads": 6}
"""ViT-S/16: a step of the paper's ViT-L takes ten times as long, in the same proportions."""


def answers() -> tuple[np.ndarray, np.ndarray]:
    """Truth and probabilities ``[FRAMES, UNITS]``."""
    rng = np.random.default_rng(0)
    truth = (rng.random((FRAMES, UNITS)) < np.linspace(0.1, 0.6, UNITS)).astype(np.float32)
    return truth, (1 / (1 + np.exp(-rng.normal(2 * truth - 1, 1.5)))).astype(np.float32)


def ours(areas: bool) -> Callable[[], Any]:
    truth, found = answers()

    def evaluate() -> tuple[float, ...]:
        scores = action_unit_scores(truth, found, areas=areas)
        return *scores.best, *scores.at(0.5), scores.mean_auc

    return evaluate


def straightforward(areas: bool) -> Callable[[], Any]:
    """scikit-learn's F1 of every unit at every threshold."""
    truth, found = answers()

    def evaluate() -> tuple[float, ...]:
        best, highest = 0.0, -1.0
        for threshold in np.arange(1, 100) / 100:
            f1 = [f1_score(truth[:, unit], found[:, unit] > threshold) for unit in range(UNITS)]
            if np.mean(f1) > highest:
                best, highest = float(threshold), float(np.mean(f1))
        half = f1_score(truth, found > 0.5, average=None)
        area = [roc_auc_score(truth[:, unit], found[:, unit]) for unit in range(UNITS)] if areas else [np.nan]
        return best, highest, *half, float(np.mean(area))

    return evaluate


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(BATCH, 3, 224, 224), torch.randint(2, (BATCH, UNITS)).float(), torch.arange(BATCH)


def our_step() -> Callable[[], float]:
    images, actions, subjects = _batch()
    model = AdversarialViT(UNITS, SUBJECTS, 2.0, **SHAPE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        logits, subject_logits = model.both(images)
        loss = identity_adversarial_loss(logits, actions, subject_logits, subjects).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


class ExplicitAttention(nn.Module):
    """Attention whose matrix is written out."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = attention.qkv, attention.proj, attention.num_heads

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * (d // self.heads) ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, d))


def straightforward_step() -> Callable[[], float]:
    """Explicit attention, losses read out every step, an optimiser step parameter by parameter."""
    images, actions, subjects = _batch()
    model = AdversarialViT(UNITS, SUBJECTS, 2.0, **SHAPE)
    for block in model.vit.blocks:
        block.attn = ExplicitAttention(block.attn)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    criterion = nn.BCEWithLogitsLoss()

    def step() -> float:
        logits, subject_logits = model.both(images)
        one_hot = torch.zeros(BATCH, SUBJECTS)
        for i, subject in enumerate(subjects):
            one_hot[i, subject] = 1
        of_actions, of_identities = criterion(logits, actions), criterion(subject_logits, one_hot)
        loss = of_actions + of_identities
        of_actions.item(), of_identities.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    sizes = {"frames": FRAMES, "action units": UNITS, "thresholds": 99}
    for name, areas in (("F1 over thresholds", False), ("evaluation with AUC", True)):
        first, second = ours(areas)(), straightforward(areas)()
        np.testing.assert_allclose(first, second, atol=1e-9)
        compare("fmae_iat", name, partial(ours, areas), partial(straightforward, areas), sizes, repeats=2)
    sizes = {"encoder": "ViT-S/16", "image": 224, "batch": BATCH, "action units": UNITS, "subjects": SUBJECTS}
    compare("fmae_iat", "fine-tuning step", our_step, straightforward_step, sizes, repeats=5)


if __name__ == "__main__":
    main()
