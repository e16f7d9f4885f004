"""Self-guided prompts: the part of an own good trajectory that the world model predicts worst (section 4.3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from repertory.systems.meta_dt.data import Steps
from repertory.systems.meta_dt.model import Prompt
from repertory.systems.meta_dt.objective import window_errors, window_probabilities

BEST = 3
"""Trajectories of a task, by return, that prompts are taken from."""


class Scaling(nn.Module):
    """How policies see numbers: states standardised, returns divided by a scale.

    Args:
        mean, std: [state_dim]; 1e-6 is added to the standard deviations.
        return_scale: of returns to go.
        max_ep_len: timesteps stay below it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: np.ndarray, std: np.ndarray, return_scale: float, max_ep_len: int) -> None:
        super().__init__()
        self.return_scale, self.max_ep_len = return_scale, max_ep_len
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32) + 1e-6, persistent=False)

    def states(self, states: Tensor) -> Tensor:
        """[..., state_dim] standardised."""
        return (states - self.mean) / self.std

    def times(self, times: Tensor) -> Tensor:
        """Numbers of steps within the embedding's range."""
        return times.clamp_max(self.max_ep_len - 1)


class Prompts(nn.Module):
    """Prompts from the best trajectories of each task.

    Args:
        steps: the trajectories.
        errors: [N] prediction error of the world model on each step (``objective.step_errors``).
        tasks: [episodes] the task of each, from 0.
        scaling: of what the policy sees.
        length: of a prompt, in steps.
        first: the earliest start: with fewer steps the context is not complete.
        choice: which part: ``largest`` error (the paper), ``sampled`` in proportion to it (the official code), or
            ``random``.

    Attributes:
        usable: [tasks], whether a task has a trajectory that is long enough.
    """

    starts: Tensor
    probabilities: Tensor
    best: Tensor
    counts: Tensor

    def __init__(
        self, steps: Steps, errors: Tensor, tasks: np.ndarray, scaling: Scaling, length: int, first: int, choice: str
    ) -> None:
        super().__init__()
        self.steps, self.scaling, self.length = steps, scaling, length
        device = steps.time.device
        starts = steps.starts.cpu().numpy()
        lengths = steps.length[steps.starts].cpu().numpy()
        returns = steps.to_go[steps.starts, 0].cpu().numpy()
        tasks = np.asarray(tasks)
        long_enough = lengths >= first + length
        best = np.zeros((tasks.max() + 1, BEST), np.int64)
        counts = np.zeros(len(best), np.int64)
        probabilities = torch.zeros(len(starts), max(1, int(lengths.max()) - length + 1), device=device)
        for task in range(len(best)):
            own = np.flatnonzero((tasks == task) & long_enough)
            chosen = own[np.argsort(-returns[own], kind="stable")][:BEST]
            best[task, : len(chosen)], counts[task] = chosen, len(chosen)
            for row in chosen:
                sums = window_errors(errors[starts[row] : starts[row] + lengths[row]], length, first)
                if choice == "random":
                    sums = torch.ones_like(sums)
                elif choice == "largest":
                    sums = (torch.arange(len(sums), device=device) == sums.argmax()).float()
                probabilities[row, first : first + len(sums)] = window_probabilities(sums)
        self.register_buffer("starts", steps.starts, persistent=False)
        self.register_buffer("probabilities", probabilities, persistent=False)
        self.register_buffer("best", torch.from_numpy(best).to(device), persistent=False)
        self.register_buffer("counts", torch.from_numpy(counts).to(device), persistent=False)

    @property
    def usable(self) -> Tensor:
        """[tasks]: whether there is a trajectory to prompt with."""
        return self.counts > 0

    def draw(self, tasks: Tensor) -> Prompt:
        """A prompt for each of ``tasks`` [B]; what it holds is not ``present`` where the task has no trajectory."""
        counts = self.counts[tasks]
        pick = (torch.rand(len(tasks), device=tasks.device) * counts).long()
        episodes = self.best[tasks, pick]
        usable = counts > 0
        weights = torch.where(usable.unsqueeze(-1), self.probabilities[episodes], 1.0)
        begin = torch.multinomial(weights, 1)
        span = begin + torch.arange(self.length, device=tasks.device)
        rows = (self.starts[episodes].unsqueeze(-1) + span).clamp_max(len(self.steps) - 1)
        steps = self.steps
        return Prompt(
            states=self.scaling.states(steps.states[rows]),
            actions=steps.actions[rows],
            returns_to_go=steps.to_go[rows] / self.scaling.return_scale,
            timesteps=self.scaling.times(steps.time[rows]),
            present=usable.unsqueeze(-1).expand(-1, self.length).float(),
        )
