"""The agent at work: several environments in step, one forward pass for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.data.trajectories import Episode, Trajectories
from repertory.errors import UserError
from repertory.systems.meta_dt.data import Steps, encode_all, errors_of
from repertory.systems.meta_dt.model import MetaDT, Prompt
from repertory.systems.meta_dt.objective import step_errors
from repertory.systems.meta_dt.prompts import Prompts, Scaling


@dataclass(frozen=True)
class Played:
    """An episode of the agent.

    Attributes:
        episode: what happened.
        errors: [T] prediction error of the world model at each step.
        prompted: whether the agent had a prompt.
    """

    episode: Episode
    errors: np.ndarray
    prompted: bool

    @property
    def total(self) -> float:
        """The episode's return."""
        return float(self.episode.rewards.sum())


class Actor:
    """Meta-DT as an agent (section 4.3).

    Args:
        model: trained.
        scaling: of what the policy sees.
        config: of the system.
        action_dim: width of actions.
    """

    def __init__(self, model: MetaDT, scaling: Scaling, config: Any, action_dim: int) -> None:
        self.model, self.config, self.action_dim = model.eval(), config, action_dim
        self.device = next(model.parameters()).device
        self.scaling = scaling.to(self.device)

    @torch.inference_mode()
    def play(self, environments: Sequence[Any], episodes: int, target: float, seed: int) -> list[list[Played]]:
        """Several episodes in each environment, each prompted by the agent's own earlier ones (the first by none).

        Args:
            environments: one per task, of gymnasium, with vectors as observations and actions.
            episodes: in each.
            target: the return that is asked for.
            seed: of resets.

        Returns:
            The episodes of each environment.
        """
        for env in environments:
            self._check(env)
        memory: list[list[Played]] = [[] for _ in environments]
        for number in range(episodes):
            prompt = self._prompt(memory) if number and self.config.prompt != "none" else None
            found = self._episode(environments, prompt, target, seed + number * len(environments))
            errors = self.errors(found)
            for own, episode, error in zip(memory, found, errors, strict=True):
                own.append(Played(episode, error, prompt is not None))
        return memory

    def _check(self, env: Any) -> None:
        state_dim = len(self.scaling.mean)
        for what, space, width in (
            ("observations", env.observation_space, state_dim),
            ("actions", env.action_space, self.action_dim),
        ):
            if space.shape != (width,):
                raise UserError(
                    f"{env.spec.id if env.spec else env}: {what} have shape {list(space.shape)}; the model was fitted "
                    f"to width {width}"
                )

    @torch.inference_mode()
    def errors(self, episodes: Sequence[Episode]) -> list[np.ndarray]:
        """Prediction error of the world model at each step of some episodes."""
        steps = Steps.of(Trajectories([str(n) for n in range(len(episodes))], episodes)).to(self.device)
        found = self._step_errors(steps).cpu().numpy()
        return np.split(found, np.cumsum([len(e) for e in episodes])[:-1])

    def _step_errors(self, steps: Steps) -> Tensor:
        contexts = encode_all(self.model.world, steps, self.config.context_horizon)
        return step_errors(errors_of(self.model.world, steps, contexts))

    def _prompt(self, memory: list[list[Played]]) -> Prompt | None:
        """One prompt per environment, from the three best of its episodes."""
        config = self.config
        episodes = [played.episode for own in memory for played in own]
        tasks = np.repeat(np.arange(len(memory)), [len(own) for own in memory])
        steps = Steps.of(Trajectories([str(n) for n in range(len(episodes))], episodes)).to(self.device)
        prompts = Prompts(
            steps, self._step_errors(steps), tasks, self.scaling, config.prompt_length, config.context_horizon,
            config.prompt_choice,
        )  # fmt: skip
        if not prompts.usable.any():
            return None
        return prompts.draw(torch.arange(len(memory), device=self.device))

    def _episode(self, environments: Sequence[Any], prompt: Prompt | None, target: float, seed: int) -> list[Episode]:
        n, before = len(environments), self.config.context_horizon
        observations = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(environments)])
        rows: list[tuple[np.ndarray, ...]] = []
        running, lengths = np.ones(n, bool), np.zeros(n, np.int64)
        history = {
            "states": [self._tensor(np.zeros_like(observations))] * before,
            "actions": [torch.zeros(n, self.action_dim, device=self.device)] * before,
            "rewards": [torch.zeros(n, 1, device=self.device)] * before,
        }
        contexts: list[Tensor] = []
        to_go = [torch.full((n, 1), target / self.scaling.return_scale, device=self.device)]
        while running.any():
            step = len(rows)
            contexts.append(self._context(history, step))
            history["states"].append(self._tensor(observations))
            action = self._action(history, contexts, to_go, prompt, step)
            after, rewards = observations.copy(), np.zeros(n)
            for i in np.flatnonzero(running):
                space = environments[i].action_space
                action[i] = np.clip(action[i], space.low, space.high)
                after[i], rewards[i], terminated, truncated, _ = environments[i].step(action[i].astype(space.dtype))
                lengths[i] += 1
                running[i] = not (terminated or truncated)
            rows.append((observations, action, rewards, after))
            history["actions"].append(self._tensor(action))
            history["rewards"].append(self._tensor(rewards)[:, None])
            to_go.append(to_go[-1] - history["rewards"][-1] / self.scaling.return_scale)
            observations = after
        parts = [np.stack(part, axis=1).astype(np.float32) for part in zip(*rows, strict=True)]
        return [Episode(*(part[i, : lengths[i]] for part in parts)) for i in range(n)]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(array, np.float32)).to(self.device)

    def _context(self, history: dict[str, list[Tensor]], step: int) -> Tensor:
        """z [n, context_dim] from the last h steps; official: of nothing before there are h, and 0 at the start."""
        before = self.config.context_horizon
        segment = [torch.stack(history[name][step : step + before]) for name in ("states", "actions", "rewards")]
        if self.config.follow == "official" and step < before:
            segment = [torch.zeros_like(part) for part in segment]
            if step == 0:
                return torch.zeros_like(self.model.world.encode(*segment))
        return self.model.world.encode(*segment)

    def _action(
        self,
        history: dict[str, list[Tensor]],
        contexts: list[Tensor],
        to_go: list[Tensor],
        prompt: Prompt | None,
        step: int,
    ) -> np.ndarray:
        """The action [n, action_dim] after the last K steps; the official padding would be masked, so there is none."""
        horizon, before = self.config.horizon, self.config.context_horizon
        first = max(0, step + 1 - horizon)
        states = self.scaling.states(torch.stack(history["states"][before + first :], dim=1))
        n, held = states.shape[:2]
        now = torch.zeros(n, 1, self.action_dim, device=self.device)
        taken = [torch.stack(history["actions"][before + first :], dim=1)] if held > 1 else []
        times = self.scaling.times(torch.arange(first, step + 1, device=self.device)).expand(n, -1)
        window = (
            states, torch.stack(contexts[first:], dim=1), torch.cat([*taken, now], dim=1),
            torch.stack(to_go[first:], dim=1), times, torch.ones(n, held, device=self.device),
        )  # fmt: skip
        return self.model.policy.actions(*window, prompt)[:, -1].float().cpu().numpy()
