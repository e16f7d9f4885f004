"""The Symile loss, forward and backward, against the straightforward form: products of rows, anchor by anchor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import compare
from repertory.systems.symile.objective import SymileLoss


def straightforward_n(representations: list[Tensor], scale: Tensor) -> Tensor:
    losses = []
    for a, anchor in enumerate(representations):
        others = representations[:a] + representations[a + 1 :]
        negatives = torch.ones_like(anchor)
        positives = anchor.clone()
        for other in others:
            negatives = negatives * other.clone()[torch.randperm(len(other))]
            positives = positives * other
        eye = torch.eye(len(anchor))
        logits = anchor @ negatives.T
        logits = torch.where(eye.bool(), positives.sum(1).expand(len(anchor), -1), logits)
        losses.append(F.cross_entropy(scale * logits, torch.arange(len(anchor))))
    return sum(losses) / len(losses)


def straightforward_n_squared(representations: list[Tensor], scale: Tensor) -> Tensor:
    losses = []
    for a, anchor in enumerate(representations):
        y, z = representations[:a] + representations[a + 1 :]
        products = torch.cat([y * z.roll(shift, 0) for shift in range(len(z))])
        logits = anchor @ products.T
        losses.append(F.cross_entropy(scale * logits, torch.arange(len(anchor))))
    return sum(losses) / len(losses)


FORMS: dict[str, Callable[[list[Tensor], Tensor], Tensor]] = {
    "straightforward n": straightforward_n,
    "straightforward n_squared": straightforward_n_squared,
    "ours n": SymileLoss("n"),
    "ours n_squared": SymileLoss("n_squared"),
}


def step(form: str, batch: int, dim: int) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    representations = [
        F.normalize(torch.randn(batch, dim, generator=generator), dim=1).requires_grad_() for _ in range(3)
    ]
    scale = torch.tensor(10.0, requires_grad=True)
    return lambda: FORMS[form](representations, scale).backward()


def main() -> None:
    for negatives, batch, dim in (("n_squared", 256, 128), ("n", 1024, 128), ("n", 280, 8192)):
        forms = (partial(step, f"{who} {negatives}", batch, dim) for who in ("ours", "straightforward"))
        sizes = {"batch": batch, "dim": dim, "modalities": 3}
        compare("symile", f"loss {negatives}, B {batch}, d {dim}", *forms, sizes)


if __name__ == "__main__":
    main()
