"""Vision Mamba: the selective scan, and a block of Vim-Ti, against the recurrence under autograd, on one core.

Run with ``python -m benchmarks.vim``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from benchmarks.measure import compare
from repertory.systems.vim.model import Mixer, VisionMamba
from repertory.systems.vim.scan import selective_scan

BATCH, CHANNELS, STATES, LENGTH = 8, 384, 16, 197


def reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """All decays and inputs ``[B, E, L, N]`` first, then a step at a time under autograd."""
    delta = F.softplus(delta + bias[:, None])
    decays = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    inputs = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    state, made = A.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[2]):
        state = decays[:, :, t] * state + inputs[:, :, t]
        made.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    y = torch.stack(made, dim=2) + u * D[:, None]
    return y * F.silu(z), state


def _arguments(length: int = LENGTH) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    u, delta, z, grad = torch.randn(4, BATCH, CHANNELS, length)
    B, C = torch.randn(2, BATCH, STATES, length)
    A = -torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1)
    arguments = [u, delta, A, B, C, torch.ones(CHANNELS), z, torch.full((CHANNELS,), -4.0)]
    return [t.requires_grad_() for t in arguments], grad


def _scan(scan: Callable[..., Any], backward: bool) -> Callable[[], Any]:
    arguments, grad = _arguments()

    def step() -> Any:
        if backward:
            return torch.autograd.grad(scan(*arguments)[0], arguments, grad)
        with torch.no_grad():
            return scan(*arguments)[0]

    return step


def _ours(*arguments: Tensor) -> tuple[Tensor, Tensor]:
    return selective_scan(*arguments, delta_softplus=True)


def _mixed(mixer: Mixer, x: Tensor) -> Tensor:
    """The mixer of both directions, one after the other."""
    xz = rearrange(mixer.in_proj(x), "b l e -> b e l")
    made = []
    for mark, rates, turned in (("", mixer.A_log, False), ("_b", mixer.A_b_log, True)):
        inner, gate = (xz.flip(-1) if turned else xz).chunk(2, dim=1)
        u, delta, B, C, D, bias = mixer._coefficients(inner, mark)
        y, _ = reference(u, delta, -rates.exp(), B[:, 0], C[:, 0], D, gate, bias)
        made.append(y.flip(-1) if turned else y)
    made_: Tensor = mixer.out_proj(rearrange((made[0] + made[1]) / 2, "b e l -> b l e"))
    return made_


def _block(straightforward: bool) -> Callable[[], Any]:
    torch.manual_seed(0)
    model, images = VisionMamba(depth=1), torch.randn(2, 3, 224, 224)
    mixer: Any = model.layers[0].mixer
    if straightforward:
        mixer.forward = partial(_mixed, mixer)

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = model(images).square().mean()
        loss.backward()
        return float(loss.detach())

    return step


def check() -> None:
    """Both forms give the same, to 1e-4 of the largest value; gradients are looked at on fewer steps."""
    arguments, grad = _arguments()
    with torch.no_grad():
        a, b = (scan(*arguments)[0] for scan in (_ours, reference))
    assert (a - b).abs().max() / b.abs().max() < 1e-4, (a - b).abs().max()
    arguments, grad = _arguments(60)
    ours, theirs = (torch.autograd.grad(scan(*arguments)[0], arguments, grad) for scan in (_ours, reference))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() / b.abs().max() < 1e-4, (a - b).abs().max()
    assert abs(_block(False)() - _block(True)()) < 1e-5


def main() -> None:
    torch.set_num_threads(1)
    check()
    sizes = {"batch": BATCH, "channels": CHANNELS, "states": STATES, "tokens": LENGTH, "dtype": "float32"}
    for name, backward, repeats in (("forward and backward", True, 3), ("forward", False, 7)):
        forms = (partial(_scan, scan, backward) for scan in (_ours, reference))
        compare("vim", f"selective scan, {name}", *forms, sizes, repeats)
    sizes = {"model": "Vim-Ti/16, 1 block", "image": 224, "batch": 2, "dtype": "float32"}
    compare("vim", "block, forward and backward", partial(_block, False), partial(_block, True), sizes, 2)


if __name__ == "__main__":
    main()
