"""meta_dt: building training windows, contexts of all steps, and a training step of the policy.

The straightforward form copies each segment and window in a Python loop, encodes one trajectory at a time, and
evaluates every block of the transformer at every token, with explicit attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import compare
from repertory.systems.meta_dt.data import PADDED_ACTION, Steps, encode_all
from repertory.systems.meta_dt.model import MetaDecisionTransformer, Prompt, WorldModel

EPISODES, LENGTH, HORIZON, WINDOW, PROMPT = 400, 20, 4, 20, 5
BATCH, HIDDEN, LAYERS = 128, 128, 3


def steps() -> Steps:
    random = torch.Generator().manual_seed(0)
    n = EPISODES * LENGTH
    parts = [torch.randn(n, width, generator=random) for width in (2, 2, 1, 2)]
    return Steps(*parts, np.full(EPISODES, LENGTH))


# -- windows ------------------------------------------------------------------------------------------------------


def windows_ours() -> Callable[[], Any]:
    flat = steps()
    parts = (flat.states, flat.actions, flat.rewards, flat.next_states)

    def build() -> tuple[Steps, Tensor]:
        made = Steps(*parts, np.full(EPISODES, LENGTH))
        return made, torch.nonzero(made.time < made.length - 1)[:, 0]

    return build


def windows_straightforward() -> Callable[[], Any]:
    flat = steps()
    states, actions, rewards = (part.numpy() for part in (flat.states, flat.actions, flat.rewards))

    def build() -> list[np.ndarray]:
        kept: list[list[np.ndarray]] = [[] for _ in range(10)]
        for episode in range(EPISODES):
            rows = slice(episode * LENGTH, (episode + 1) * LENGTH)
            s, a, r = states[rows], actions[rows], rewards[rows, 0]
            for start in range(LENGTH - 1):
                held = min(WINDOW, LENGTH - start)
                pad = WINDOW - held
                kept[0].append(np.concatenate([np.zeros((pad, 2)), s[start : start + held]]))
                kept[1].append(np.concatenate([np.full((pad, 2), PADDED_ACTION), a[start : start + held]]))
                kept[2].append(np.concatenate([np.zeros(pad), r[start : start + held]]))
                to_go = np.array([r[t:].sum() for t in range(start, start + held)])
                kept[3].append(np.concatenate([np.zeros(pad), to_go]))
                kept[4].append(np.concatenate([np.zeros(pad), np.arange(start, start + held)]))
                kept[5].append(np.concatenate([np.zeros(pad), np.ones(held)]))
                kept[6].append(s[4 : 4 + PROMPT].copy())
                kept[7].append(a[4 : 4 + PROMPT].copy())
                kept[8].append(np.cumsum(r[::-1])[::-1][4 : 4 + PROMPT].copy())
                kept[9].append(np.arange(4, 4 + PROMPT))
        return [np.stack(part).astype(np.float32) for part in kept]

    return build


# -- contexts -----------------------------------------------------------------------------------------------------


def contexts_ours() -> Callable[[], Any]:
    torch.manual_seed(0)
    flat, world = steps(), WorldModel(2, 2)
    return torch.inference_mode()(lambda: encode_all(world, flat, HORIZON))


def contexts_straightforward() -> Callable[[], Any]:
    torch.manual_seed(0)
    flat, world = steps(), WorldModel(2, 2)

    @torch.inference_mode()
    def build() -> Tensor:
        found = []
        for episode in range(EPISODES):
            segments = []
            for t in range(LENGTH):
                parts = []
                for array in (flat.states, flat.actions, flat.rewards):
                    own = array[episode * LENGTH : (episode + 1) * LENGTH][max(0, t - HORIZON) : t]
                    parts.append(torch.cat([torch.zeros(HORIZON - len(own), own.shape[1]), own]))
                segments.append(parts)
            found.append(world.encode(*(torch.stack(part, dim=1) for part in zip(*segments, strict=True))))
        return torch.cat(found)

    return build


# -- a training step ----------------------------------------------------------------------------------------------


def explicit(policy: MetaDecisionTransformer) -> Callable[..., Tensor]:
    """All blocks at all tokens; attention as two products, a softmax and a dropout."""

    def attend(attention: Any, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = attention.c_attn(x).chunk(3, dim=-1)
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + mask).softmax(dim=-1)
        return F.dropout(attention.c_proj(F.dropout(weights, attention.dropout) @ v), attention.dropout)

    def actions(*window: Any) -> Tensor:
        tokens, present = policy._tokens(*window)
        n = tokens.shape[1]
        mask = torch.where(torch.ones(n, n).tril().bool(), (1 - present[:, None]) * -1e4, -1e4)
        x = F.dropout(tokens, 0.1)
        for block in policy.transformer.h:
            x = x + attend(block.attn, block.ln_1(x), mask)
            x = x + block.mlp(block.ln_2(x))
        x = policy.transformer.ln_f(x)[:, -3 * WINDOW :].unflatten(1, (WINDOW, 3))
        policy.predict_state(x[:, :, 2]), policy.predict_return(x[:, :, 2])
        return policy.predict_action(x[:, :, 1])

    return actions


def training(straightforward: bool) -> Callable[[], Any]:
    torch.manual_seed(0)
    policy = MetaDecisionTransformer(2, 2, hidden=HIDDEN, layers=LAYERS, max_ep_len=LENGTH)
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-4, weight_decay=1e-4, fused=not straightforward)
    times = torch.arange(WINDOW).expand(BATCH, -1)
    window = (
        torch.randn(BATCH, WINDOW, 2), torch.randn(BATCH, WINDOW, 16), torch.rand(BATCH, WINDOW, 2),
        torch.randn(BATCH, WINDOW, 1), times, torch.ones(BATCH, WINDOW),
    )  # fmt: skip
    prompt = Prompt(
        torch.randn(BATCH, PROMPT, 2), torch.rand(BATCH, PROMPT, 2), torch.randn(BATCH, PROMPT, 1), times[:, :PROMPT],
        torch.ones(BATCH, PROMPT),
    )  # fmt: skip
    actions = explicit(policy) if straightforward else policy.actions

    def step() -> None:
        optimizer.zero_grad()
        (actions(*window, prompt) - window[2]).square().mean().backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.25)
        optimizer.step()

    return step


def training_ours() -> Callable[[], Any]:
    return training(False)


def training_straightforward() -> Callable[[], Any]:
    return training(True)


PARTS = {
    "windows": (windows_ours, windows_straightforward, 3),
    "contexts": (contexts_ours, contexts_straightforward, 3),
    "training step": (training_ours, training_straightforward, 3),
}
SIZES = {
    "episodes": EPISODES, "steps": LENGTH, "context_horizon": HORIZON, "horizon": WINDOW, "prompt": PROMPT,
    "batch": BATCH, "hidden": HIDDEN, "layers": LAYERS,
}  # fmt: skip


def main() -> None:
    stored = (
        sum(buffer.nbytes for buffer in steps().buffers()),
        sum(part.nbytes for part in windows_straightforward()()),
    )
    for name, (ours, straightforward, repeats) in PARTS.items():
        more = {"megabytes stored": " against ".join(f"{n / 1e6:.3g}" for n in stored)} if name == "windows" else {}
        compare("meta_dt", name, ours, straightforward, SIZES | more, repeats)


if __name__ == "__main__":
    main()
