"""Parts: segments_and_prompt_error, transformer, world_model."""

from __future__ import annotations

import numpy as np
import torch
from einops import repeat
from torch import Tensor

from repertory.systems.meta_dt.data import Steps, encode_all, errors_of
from repertory.systems.meta_dt.model import MetaDecisionTransformer, Prompt, WorldModel
from repertory.systems.meta_dt.objective import (
    action_loss,
    step_errors,
    window_errors,
    window_probabilities,
    world_loss,
)
from tests.parity.runner import Fixture


def world_model(fixture: Fixture) -> dict[str, Tensor]:
    x, model = fixture.inputs, WorldModel.from_official(fixture.state)
    context = model.encode(x["seg_states"], x["seg_actions"], x["seg_rewards"])
    errors = model.errors(x["state"], x["action"], x["reward"], x["next_state"], context)
    losses = world_loss(errors)
    return {
        "context": context,
        "reward_pred": errors["reward"] + x["reward"],
        "next_state_pred": errors["state"] + x["next_state"],
        "loss_reward": losses["reward"],
        "loss_state": losses["state"],
    }


def segments_and_prompt_error(fixture: Fixture) -> dict[str, Tensor]:
    x, config = fixture.inputs, fixture.config
    model = WorldModel.from_official(fixture.state)
    horizon, length = config["context_horizon"], config["prompt_length"]
    lengths = np.diff(np.flatnonzero(x["terminals"].numpy()), prepend=-1)
    steps = Steps(x["observations"], x["actions"], x["rewards"].unsqueeze(-1), x["next_observations"], lengths)
    segments = [part.transpose(0, 1) for part in steps.segments(torch.arange(len(steps)), horizon)]
    contexts = encode_all(model, steps, horizon)
    errors = errors_of(model, steps, contexts)
    first = step_errors({name: error[: lengths[0]] for name, error in errors.items()})
    sums = window_errors(first, length, horizon)
    return {
        "seg_states": segments[0],
        "seg_actions": segments[1],
        "seg_rewards": segments[2],
        "contexts": contexts,
        "step_errors": first.unsqueeze(-1),
        "window_start": horizon + torch.arange(len(sums)),
        "window_error": sums,
        "window_prob": window_probabilities(sums),
        "returns_to_go": steps.to_go[: lengths[0], 0],
    }


def transformer(fixture: Fixture) -> dict[str, Tensor]:
    x, config = fixture.inputs, fixture.config
    model = MetaDecisionTransformer.from_official(fixture.state, heads=config["n_head"]).eval()
    names = ("states", "contexts", "actions", "returns_to_go", "timesteps", "attention_mask")
    window = [x[name] for name in names]
    steps, present = config["dt_horizon"], x["attention_mask"]
    given = [x[f"prompt_{name}"] for name in ("states", "actions", "returns_to_go", "timesteps", "mask")]
    prompt = Prompt(*(part[:, : config["prompt_length"]] for part in given))
    if config["prompt_length"] == steps:  # the official branch: all prompts in front of every item
        batch = len(present)
        prompt = Prompt(*(repeat(part.flatten(0, 1), "t ... -> b t ...", b=batch) for part in prompt))
    state, action, to_go = model(*window)
    state_p, action_p, to_go_p = model(*window, prompt)
    history = slice(0, steps - 2)
    padded = [torch.cat([torch.zeros_like(part[1:2, :2]), part[1:2, history]], dim=1) for part in window[:-1]]
    there = torch.cat([torch.zeros(1, 2), torch.ones(1, steps - 2)], dim=1)
    last = model.actions(*padded, there, Prompt(*(part[1:2] for part in prompt)))[0, -1]
    return {
        "action_preds": action,
        "state_preds": state,
        "return_preds": to_go,
        "action_preds_prompt": action_p,
        "state_preds_prompt": state_p,
        "return_preds_prompt": to_go_p,
        "loss": action_loss(action, x["actions"], present),
        "loss_prompt": action_loss(action_p, x["actions"], present),
        "get_action": last,
    }


PARTS = {
    "segments_and_prompt_error": segments_and_prompt_error,
    "transformer": transformer,
    "world_model": world_model,
}
