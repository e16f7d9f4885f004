"""Episodes as flat arrays: segments, windows and prompts are indices into them, gathered when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repertory.data import Reader
from repertory.data.pickles import read_pickle
from repertory.data.trajectories import Episode, Trajectories, episodes_of
from repertory.errors import DataError

PADDED_ACTION = -10.0
"""The action of a step before the episode, in training."""


class Steps(nn.Module):
    """Episodes laid end to end, as buffers that move with a module and are not stored.

    Args:
        states, actions, rewards, next_states: [N, width], [N, width], [N, 1], [N, width], float32.
        lengths: of each episode; they sum to N.

    Attributes:
        time: [N] number of each step in its episode.
        length: [N] length of each step's episode.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    to_go: Tensor
    time: Tensor
    length: Tensor
    starts: Tensor

    def __init__(
        self, states: Tensor, actions: Tensor, rewards: Tensor, next_states: Tensor, lengths: np.ndarray
    ) -> None:
        super().__init__()
        lengths = np.asarray(lengths, np.int64)
        starts = np.cumsum(lengths) - lengths
        whole = rewards[:, 0].double()
        before = torch.cat([whole.new_zeros(1), whole.cumsum(0)])
        ends = torch.from_numpy(np.repeat(starts + lengths, lengths))
        rows = {
            "states": states, "actions": actions, "rewards": rewards, "next_states": next_states,
            "to_go": (before[ends] - before[:-1]).float().unsqueeze(-1),
            "time": torch.from_numpy(np.arange(lengths.sum()) - np.repeat(starts, lengths)),
            "length": torch.from_numpy(np.repeat(lengths, lengths)),
            "starts": torch.from_numpy(starts),
        }  # fmt: skip
        for name, tensor in rows.items():
            self.register_buffer(name, tensor, persistent=False)

    @classmethod
    def of(cls, items: Trajectories) -> Steps:
        """The episodes of opened items, in their order."""
        episodes = items.episodes

        def joined(name: str) -> Tensor:
            return torch.from_numpy(np.concatenate([getattr(e, name) for e in episodes]).astype(np.float32))

        return cls(
            joined("observations"), joined("actions"), joined("rewards").unsqueeze(-1), joined("next_observations"),
            np.array([len(e) for e in episodes]),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.time)

    def segments(self, rows: Tensor, horizon: int) -> tuple[Tensor, Tensor, Tensor]:
        """States, actions, rewards [h, R, width] of the ``horizon`` steps before each of ``rows`` [R], zero before
        the episode began (section 4.1)."""
        back = torch.arange(horizon, 0, -1, device=rows.device).unsqueeze(-1)
        there = (self.time[rows] >= back).unsqueeze(-1)
        index = (rows - back).clamp_min(0)
        return tuple(part[index] * there for part in (self.states, self.actions, self.rewards))  # type: ignore[return-value]

    def windows(self, rows: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
        """Steps [R, K] of the windows that begin at ``rows`` [R], and which of them are there; the left is padded
        where the episode ends earlier."""
        held = (self.length[rows] - self.time[rows]).clamp_max(horizon).unsqueeze(-1)
        offset = torch.arange(horizon, device=rows.device) - (horizon - held)
        return rows.unsqueeze(-1) + offset.clamp_min(0), offset >= 0


def encode_all(world: Any, steps: Steps, horizon: int, size: int = 2048) -> Tensor:
    """z of every step [N, context_dim]."""
    rows = torch.arange(len(steps), device=steps.time.device)
    return torch.cat([world.encode(*steps.segments(part, horizon)) for part in rows.split(size)])


def errors_of(world: Any, steps: Steps, contexts: Tensor) -> dict[str, Tensor]:
    """Prediction minus truth of each decoder on every step, given its z."""
    return world.errors(steps.states, steps.actions, steps.rewards, steps.next_states, contexts)


# -- the layout of the paper's data sets ------------------------------------------------------------------------------


def read_official(path: Path, prompts: bool = False) -> Trajectories:
    """The folder of a data set: ``dataset_task_0.pkl`` (or ``.npz``) and so on, transitions laid end to end.

    Args:
        path: the folder.
        prompts: take ``dataset_task_prompt0.pkl`` (lists of trajectories) in place of the transitions.
    """
    stem = "dataset_task_prompt" if prompts else "dataset_task_"
    files = [p for p in path.iterdir() if p.suffix in (".pkl", ".npz") and p.stem.removeprefix(stem).isdigit()]
    if not files:
        raise DataError(f"{path}: no file {stem}0.pkl, {stem}1.pkl, ... in it")
    tasks: dict[str, list[Episode]] = {}
    for file in sorted(files, key=lambda p: int(p.stem.removeprefix(stem))):
        content = dict(np.load(file, allow_pickle=False)) if file.suffix == ".npz" else read_pickle(file)
        name = file.stem.removeprefix(stem)
        if isinstance(content, list):
            tasks[name] = [episode for part in content for episode in episodes_of(part, file.name, whole=True)]
        elif isinstance(content, dict):
            tasks[name] = episodes_of(content, file.name)
        else:
            raise DataError(f"{file}: holds {type(content).__name__}; a dict of arrays or a list of them is needed")
    return Trajectories.of(tasks)


READERS = (
    Reader("meta-dt", "a folder of dataset_task_0.pkl (or .npz), ...: transitions of one task each",
           lambda p: p.is_dir() and any(p.glob("dataset_task_*")), read_official),
)  # fmt: skip
