"""The selective scan of Mamba (Gu and Dao 2023): a linear recurrence whose coefficients depend on the input.

In the forward pass the chunked form keeps the states at the boundaries of chunks alone; its backward pass computes the
states inside a chunk again. So its memory is that of a few chunks, not of all steps, and no step writes a gradient of
the length of the sequence, as the recurrence under autograd would.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from repertory.errors import ConfigError, DataError, UserError, nearest

Backend = Literal["auto", "chunked", "mamba-ssm"]
CHUNK = 16
"""Steps a chunk; the states of one still fit into the caches of a CPU core."""


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    chunk: int = CHUNK,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t`` and ``y_t = <C_t, h_t> + D u_t``, then ``y_t SiLU(z_t)``.

    Per channel and state, with ``h`` of 0 before the first step (section 3.1 of the paper): zero-order hold for A,
    Euler for B. The state is kept in float32 (float64 for float64 inputs), under autocast too.

    Args:
        u, delta, z: ``[B, E, L]``.
        A: ``[E, N]``, below 0 in a stable system.
        B, C: ``[B, N, L]``, or ``[B, G, N, L]`` for G groups of E / G channels each.
        D, delta_bias: ``[E]``.
        delta_softplus: whether delta becomes ``softplus(delta + delta_bias)``.
        chunk: steps of which the states are held at once.
        backend: ``mamba-ssm`` is that package's CUDA kernel; ``auto`` takes it where it is installed and can be used.

    Returns:
        ``y`` ``[B, E, L]`` in the dtype of ``u``, and the state after the last step ``[B, E, N]``.

    Raises:
        ConfigError: an unknown backend, or one that these tensors cannot use.
        UserError: mamba-ssm is asked for and not installed.
        DataError: shapes that do not fit together.
    """
    groups = B.shape[1] if B.ndim == 4 else 1
    batch, channels, length = u.shape
    n = A.shape[1]
    of_state = (batch, n, length) if B.ndim == 3 else (batch, groups, n, length)
    for name, tensor, shape in (
        ("delta", delta, u.shape), ("z", z, u.shape), ("A", A, (channels, n)), ("D", D, (channels,)),
        ("delta_bias", delta_bias, (channels,)), ("B", B, of_state), ("C", C, of_state),
    ):  # fmt: skip
        if tensor is not None and tensor.shape != shape:
            raise DataError(f"selective scan: {name} has shape {list(tensor.shape)}, expected {list(shape)}")
    if channels % groups or chunk < 1 or not length:
        raise DataError(f"selective scan: {channels} channels in {groups} groups, {length} steps, chunks of {chunk}")
    if _accelerated(backend, u, n):
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        made: tuple[Tensor, Tensor] = selective_scan_fn(
            u.contiguous(), delta.contiguous(), A.float(), B.contiguous(), C.contiguous(),
            None if D is None else D.float(), z, None if delta_bias is None else delta_bias.float(),
            delta_softplus, True,
        )  # fmt: skip
        return made

    precise = torch.promote_types(u.dtype, torch.float32)
    inputs, delta, A, B, C = (t.to(precise) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(precise)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    if B.ndim == 3:
        B, C = B[:, None], C[:, None]
    by_time = "b (g e) l -> l b g e"
    y, last = _Chunked.apply(
        rearrange(inputs, by_time, g=groups).contiguous(),
        rearrange(delta, by_time, g=groups).contiguous(),
        rearrange(A, "(g e) n -> g n e", g=groups).contiguous(),
        rearrange(B, "b g n l -> l b g n").contiguous(),
        rearrange(C, "b g n l -> l b g n").contiguous(),
        math.ceil(length / math.ceil(length / chunk)),  # chunks of about equal length
    )
    y = rearrange(y, "l b g e -> b (g e) l")
    if D is not None:
        y = y + D.to(precise)[:, None] * inputs
    if z is not None:
        y = y * F.silu(z.to(precise))
    return y.to(u.dtype), rearrange(last, "b g n e -> b (g e) n")


def _accelerated(backend: Backend, u: Tensor, states: int) -> bool:
    """Whether the CUDA kernel is to be used."""
    if backend not in ("auto", "chunked", "mamba-ssm"):
        raise ConfigError(f"unknown scan '{backend}'{nearest(backend, ('auto', 'chunked', 'mamba-ssm'))}")
    able = u.is_cuda and states <= 256 and u.dtype != torch.float64
    if backend == "auto":
        return able and find_spec("mamba_ssm") is not None
    if backend == "mamba-ssm":
        if not able:
            raise ConfigError(
                f"scan=mamba-ssm needs a CUDA device, up to 256 states and at most float32, not {u.device.type}, "
                f"{states} states, {u.dtype}: use scan=chunked"
            )
        if find_spec("mamba_ssm") is None:
            raise UserError("scan=mamba-ssm: the package is not installed: pip install mamba-ssm, or use scan=chunked")
    return backend == "mamba-ssm"


class _Chunked(torch.autograd.Function):
    """The recurrence on time-major tensors: u, delta ``[L, B, G, E]``, A ``[G, N, E]``, B, C ``[L, B, G, N]``.

    Channels come last, where they are many and lie side by side for every operation.
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        length, *outer, channels = u.shape
        y = torch.empty_like(u)
        decay, states = (u.new_empty(chunk, *outer, A.shape[1], channels) for _ in range(2))
        state = torch.zeros_like(states[0])
        starts = range(0, length, chunk)
        kept = u.new_empty(len(starts), *state.shape) if any(ctx.needs_input_grad) else None
        with torch.autocast(u.device.type, enabled=False):
            for i, start in enumerate(starts):
                part = slice(start, min(start + chunk, length))
                if kept is not None:
                    kept[i] = state
                _advance(u[part], delta[part], A, B[part], decay, states, state)
                size = len(u[part])
                torch.matmul(C[part, ..., None, :], states[:size], out=y[part, ..., None, :])
                state = states[size - 1].clone()
        ctx.save_for_backward(u, delta, A, B, C, kept)
        ctx.chunk = chunk
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, kept = ctx.saved_tensors
        length, *outer, channels = u.shape
        grad_u, grad_delta, grad_B, grad_C = (torch.empty_like(t) for t in (u, delta, B, C))
        grad_A, grad_y = torch.zeros_like(A), grad_y.contiguous()
        decay, states, grads = (u.new_empty(ctx.chunk, *outer, A.shape[1], channels) for _ in range(3))
        carry = grad_last  # the gradient of a state, from all later steps
        with torch.autocast(u.device.type, enabled=False):
            for i in reversed(range(len(kept))):
                part = slice(i * ctx.chunk, min((i + 1) * ctx.chunk, length))
                size, du = len(u[part]), delta[part] * u[part]
                a, h, g = decay[:size], states[:size], grads[:size]
                _advance(u[part], delta[part], A, B[part], decay, states, kept[i])
                torch.mul(C[part, ..., None], grad_y[part, ..., None, :], out=g)
                for t in reversed(range(size)):
                    g[t].add_(carry)
                    carry = a[t].mul_(g[t])
                carry = carry.clone()
                torch.matmul(h, grad_y[part, ..., None], out=grad_C[part, ..., None])
                torch.matmul(g, du[..., None], out=grad_B[part, ..., None])
                through = torch.matmul(B[part, ..., None, :], g).squeeze(-2)
                torch.mul(delta[part], through, out=grad_u[part])
                # of the exponent delta A: what passes the decay, times the state that it acted on
                a[0].mul_(kept[i])
                a[1:].mul_(h[:-1])
                torch.addcmul(torch.mul(a, A, out=g).sum(-2), u[part], through, out=grad_delta[part])
                grad_A += a.mul_(delta[part, ..., None, :]).sum((0, 1))
        return grad_u, grad_delta, grad_A, grad_B, grad_C, None


def _advance(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, decay: Tensor, states: Tensor, before: Tensor) -> None:
    """Fills ``decay`` and ``states`` ``[chunk, B, G, N, E]`` for the steps of a chunk, from the state before it."""
    size = len(u)
    torch.mul(delta[..., None, :], A, out=decay[:size]).exp_()
    torch.mul(B[..., None], (delta * u)[..., None, :], out=states[:size])
    for t in range(size):
        states[t].addcmul_(decay[t], before)
        before = states[t]
