"""Meta-DT: a world model says which task this is, a decision transformer acts on it and on its own best experience."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import nn

from repertory import card
from repertory.contract import Length
from repertory.data import Splits
from repertory.data.trajectories import Trajectories
from repertory.embeddings import Embeddings
from repertory.errors import ConfigError, DataError
from repertory.evaluation import Metric, Metrics
from repertory.runs import seeded
from repertory.systems.meta_dt import figures
from repertory.systems.meta_dt.acting import Actor, Played
from repertory.systems.meta_dt.data import READERS, Steps, encode_all, errors_of
from repertory.systems.meta_dt.model import MetaDecisionTransformer, MetaDT, WorldModel
from repertory.systems.meta_dt.official import read_official
from repertory.systems.meta_dt.prompts import Scaling
from repertory.systems.meta_dt.stages import PolicyStage, Windows, WorldStage
from repertory.training import Shuffled, Stage, TorchSystem, batches_of

VALIDATED = 2048
"""Windows of held-out tasks that the policy is validated on."""


class MetaDTSystem(TorchSystem):
    """Offline meta reinforcement learning as conditional sequence modelling (Wang et al. 2024)."""

    readers = READERS

    class Config(card.Config):
        """Hyperparameters; the paper's for the point robot by default."""

        presets = {
            "tiny": {
                "context_hidden": 32, "world_epochs": 2, "world_batch_size": 256, "hidden": 32, "layers": 1,
                "horizon": 6, "prompt_length": 4, "batch_size": 32, "steps": 30, "warm_train": 10, "warmup": 5,
                "lr": 1e-3, "episodes": 2,
            },
            "point-robot": {
                "context_hidden": 64, "world_epochs": 8, "world_batch_size": 256, "world_lr": 3e-3, "hidden": 64,
                "layers": 1, "horizon": 4, "dropout": 0.0, "return_scale": 10.0, "target_return": -8.0,
                "batch_size": 64, "steps": 3000, "warm_train": 600, "unprompted": 0.5, "warmup": 20, "lr": 4e-3,
                "episodes": 5,
            },
        }  # fmt: skip

        follow: Literal["paper", "official"] = Field(
            "paper",
            description="official: prompts begin by a draw in proportion to the error, not at the largest; when "
            "acting, contexts of the first steps see no history",
        )
        decoder: Literal["reward", "state", "both"] = Field(
            "reward", description="what the world model predicts: what tasks differ in (rewards, dynamics)"
        )
        context: bool = Field(True, description="false: the ablation without task representation (z = 0)")
        prompt: Literal["error", "random", "none"] = Field(
            "error", description="which part of a good trajectory is the prompt; none: zero-shot, never any"
        )
        context_dim: int = Field(16, ge=1, description="width of the task representation z")
        context_horizon: int = Field(4, ge=1, description="steps before, from which z is made")
        context_hidden: int = Field(128, ge=1, description="width of the GRU and of the decoders")
        world_epochs: float = Field(301, gt=0, description="passes over the transitions")
        world_batch_size: int = Field(128, ge=1)
        world_lr: float = Field(1e-3, gt=0, description="of Adam")
        world_clip: float = Field(1.0, gt=0, description="largest norm of the world model's gradients")
        horizon: int = Field(20, ge=1, description="steps that the policy sees")
        prompt_length: int = Field(5, ge=1, description="steps of a prompt")
        hidden: int = Field(128, ge=1, description="width of the transformer")
        layers: int = Field(3, ge=1)
        heads: int = Field(1, ge=1)
        dropout: float = Field(0.1, ge=0, lt=1, description="of attention and residuals")
        max_ep_len: int | None = Field(None, ge=1, description="timesteps with an embedding; None: the longest episode")
        return_scale: float | None = Field(
            None, gt=0, description="what returns to go are divided by; None: the largest absolute return (official: "
            "10 for the point robot, 500 for cheetah-vel)",
        )  # fmt: skip
        target_return: float | None = Field(
            None, description="what the agent asks for when it acts; None: the best return in the training data"
        )
        batch_size: int = Field(128, ge=1, description="windows")
        lr: float = Field(1e-4, gt=0, description="of AdamW")
        weight_decay: float = Field(1e-4, ge=0)
        warmup: int = Field(10_000, ge=1, description="steps in which the learning rate rises")
        clip: float = Field(0.25, gt=0, description="largest norm of the policy's gradients")
        steps: int = Field(100_000, ge=1, description="batches of the policy")
        warm_train: int = Field(20_000, ge=0, description="batches of the policy before the first with prompts")
        unprompted: float = Field(
            0.0, ge=0, le=1, description="share of the windows after those that have no prompt either, so that the "
            "first episode in a task, which has none, is not forgotten",
        )  # fmt: skip
        episodes: int = Field(10, ge=0, description="per task in evaluation; 0: the agent does not act there")
        workers: int = Field(0, ge=0, description="processes that prepare batches")

        @property
        def prompt_choice(self) -> str:
            """Which part of a trajectory becomes the prompt."""
            return "random" if self.prompt == "random" else "sampled" if self.follow == "official" else "largest"

    # -- fit -----------------------------------------------------------------------------------------

    def _check(self, splits: Splits[Trajectories], length: Length, trainer: Mapping[str, Any]) -> None:
        super()._check(splits, length, trainer)
        config = self.config
        if config.hidden % config.heads:
            raise ConfigError(f"heads={config.heads}: the width {config.hidden} cannot be divided by it")
        for part in (splits.train, splits.val):
            _needs_tasks(part)
            for name, episode in zip(part.ids, part.episodes, strict=True):
                low, high = episode.actions.min(), episode.actions.max()
                if low < -1 or high > 1:
                    raise DataError(
                        f"{name}: its actions reach from {low:.4g} to {high:.4g}; the policy's lie in -1..1: divide "
                        "them by the bound of the action space"
                    )
                if config.max_ep_len is not None and len(episode) > config.max_ep_len:
                    raise ConfigError(f"max_ep_len={config.max_ep_len}: {name} has {len(episode)} steps")
            longest, needed = max(map(len, part.episodes)), config.context_horizon + config.prompt_length
            if config.prompt != "none" and longest < needed:
                raise DataError(
                    f"the longest of {len(part)} episodes has {longest} steps; context and prompt need {needed} "
                    "(context_horizon + prompt_length): shorten them, or set prompt=none"
                )

    def _learn(self, splits: Splits[Trajectories]) -> dict[str, Any]:
        train = splits.train
        states = np.concatenate([episode.observations for episode in train.episodes]).astype(np.float64)
        returns = train.returns()
        scale = self.config.return_scale or float(np.abs(returns).max())
        if scale == 0:
            raise DataError("all returns are 0: there is nothing to scale by; set return_scale")
        return {
            "state_dim": states.shape[1],
            "action_dim": train.episodes[0].actions.shape[1],
            "state_mean": states.mean(axis=0),
            "state_std": states.std(axis=0),
            "return_scale": scale,
            "target_return": float(returns.max() if self.config.target_return is None else self.config.target_return),
            "max_ep_len": self.config.max_ep_len or max(map(len, train.episodes)),
        }

    def _build(self) -> nn.Module:
        config, widths = self.config, (self.assets["state_dim"], self.assets["action_dim"], self.config.context_dim)
        world = WorldModel(*widths, config.context_hidden, config.decoder, use_context=config.context)
        policy = MetaDecisionTransformer(
            *widths, config.hidden, config.layers, config.heads, config.dropout, self.assets["max_ep_len"]
        )
        return MetaDT(world, policy)

    def stages(self, splits: Splits[Trajectories]) -> list[Stage]:
        config = self.config
        train, val = Steps.of(splits.train), Steps.of(splits.val)
        starts, val_starts = _starts(train), _starts(val)
        val_starts = val_starts[:: max(1, len(val_starts) // VALIDATED)]
        return [
            Stage(
                "world",
                WorldStage(self.model, train, val, config),
                Shuffled(len(train), config.world_batch_size, torch.from_numpy),
                epochs=config.world_epochs,
                validation=list(batches_of(len(val), 8192, torch.from_numpy)),
                keep_best="val_loss",
            ),
            Stage(
                "policy",
                PolicyStage(self.model, splits.train, splits.val, self.scaling, config),
                Shuffled(len(starts), config.batch_size, lambda rows: torch.from_numpy(starts[rows])),
                steps=config.steps,
                validation=list(batches_of(len(val_starts), 512, lambda rows: torch.from_numpy(val_starts[rows]))),
            ),
        ]

    @property
    def scaling(self) -> Scaling:
        """How the policy sees states, returns and timesteps."""
        assets = self.assets
        return Scaling(assets["state_mean"], assets["state_std"], assets["return_scale"], assets["max_ep_len"])

    # -- vectors -------------------------------------------------------------------------------------

    def _embed(self, data: Trajectories, batch_size: int) -> Iterator[Embeddings]:
        self._fits(data)
        for start in range(0, len(data), batch_size):
            part = data.take(np.arange(start, min(start + batch_size, len(data))))
            steps = Steps.of(part).to(self.device)
            contexts = encode_all(self.model.world, steps, self.config.context_horizon)
            ids = np.repeat(part.ids, [len(episode) for episode in part.episodes])
            yield Embeddings.build(contexts.float().cpu().numpy(), id=ids, step=steps.time.cpu().numpy())

    def _fits(self, data: Trajectories) -> None:
        """Refuses data of other spaces than the model's."""
        for name, width in (("observations", self.assets["state_dim"]), ("actions", self.assets["action_dim"])):
            found = getattr(data.episodes[0], name).shape[1]
            if found != width:
                raise DataError(f"{data.ids[0]}: {name} have width {found}; the model was fitted to {width}")

    # -- evaluate ------------------------------------------------------------------------------------

    def _evaluate(self, splits: Splits[Trajectories]) -> Metrics:
        test, seed = splits.test, self.record.get("seed", 0)
        step = min(self.config.context_horizon, max(map(len, test.episodes)) - 1)
        probe = self.probe(splits, step=step)
        _needs_tasks(test)
        metrics = {}
        for name, errors in self.prediction_errors(test).items():
            about = f"squared error of the world model's {name} on held-out tasks, after {step} steps, per episode"
            metrics[f"{name}_error"] = Metric.of(errors, seed, higher_is_better=False, about=about)
        loss = self.action_errors(test)
        about = "squared error of the policy's actions on held-out tasks, per window, without prompt"
        metrics["action_error"] = Metric.of(loss, seed, higher_is_better=False, about=about)
        for name, totals, about in self._returns(test, seed):
            metrics[name] = Metric.of(totals, seed, higher_is_better=True, about=about)
        return Metrics(metrics) | probe

    def _returns(self, test: Trajectories, seed: int) -> Iterator[tuple[str, np.ndarray, str]]:
        played = self.play(test, self.config.episodes, seed)
        if not played:
            return
        totals = np.array([[one.total for one in own] for own in played.values()])
        tasks = f"held-out tasks: {len(totals)}"
        yield "zero_shot_return", totals[:, 0], f"the agent's first episode, {tasks}"
        if totals.shape[1] > 1:
            later = "its second episode" if totals.shape[1] == 2 else f"its episodes 2 to {totals.shape[1]}"
            yield "few_shot_return", totals[:, 1:].mean(axis=1), f"{later}, {tasks}"
        yield "data_return", _by_task(test, test.returns()), f"the behaviour in the data, {tasks}"

    def prediction_errors(self, items: Trajectories) -> dict[str, np.ndarray]:
        """Mean squared prediction error of each decoder per episode [episodes], over steps with a whole context (over
        all steps where an episode is shorter)."""
        steps = Steps.of(items).to(self.device)
        with torch.inference_mode():
            found = errors_of(self.model.world, steps, encode_all(self.model.world, steps, self.config.context_horizon))
        starts = steps.starts.cpu().numpy()
        first = np.minimum(self.config.context_horizon, [len(episode) - 1 for episode in items.episodes])
        made = {}
        for name, error in found.items():
            squared = error.square().mean(dim=-1).double().cpu().numpy()
            rows = [squared[s + f : s + len(e)].mean() for s, f, e in zip(starts, first, items.episodes, strict=True)]
            made[name] = np.array(rows)
        return made

    @torch.inference_mode()
    def action_errors(self, items: Trajectories) -> np.ndarray:
        """Mean squared error of the policy's actions in each window [windows], without prompt."""
        windows = Windows(self.model, items, self.scaling.to(self.device), self.config, self.device)
        losses = []
        for rows in torch.from_numpy(_starts(windows.steps)).split(512):
            window = windows.window(rows.to(self.device))
            error = (self.model.policy.actions(*window) - window[2]).square().mean(dim=-1) * window[5]
            losses.append(error.sum(dim=1) / window[5].sum(dim=1))
        return torch.cat(losses).double().cpu().numpy()

    def play(self, items: Trajectories, episodes: int, seed: int = 0) -> dict[str, list[Played]]:
        """The agent's episodes in the environments of the items' tasks, by task; none where these are not known."""
        if not episodes or "environment" not in items.columns.column_names:
            return {}
        from repertory.systems.meta_dt import environment

        frame = items.columns.select(["task", "environment"]).to_pandas().dropna().drop_duplicates("task")
        frame = frame[[environment.known(address) for address in frame["environment"]]].sort_values("task")
        if frame.empty:
            return {}
        made = [environment.make(address) for address in frame["environment"]]
        with seeded(seed, "play"):
            played = self.actor.play(made, episodes, self.assets["target_return"], seed)
        for env in made:
            env.close()
        return dict(zip(frame["task"].astype(str), played, strict=True))

    @property
    def actor(self) -> Actor:
        """The agent."""
        self._needs_fit()
        return Actor(self.model, self.scaling, self.config, self.assets["action_dim"])

    def figures(self, data: Trajectories) -> dict[str, Any]:
        _needs_tasks(data)
        played = self.play(data, max(self.config.episodes, 2), self.record.get("seed", 0))
        first = self.config.context_horizon
        errors = self.actor.errors(data.episodes)
        made = figures.of_errors(errors, first, self.config.prompt_length)
        if not played:
            return made
        baseline = float(data.returns().mean())
        return figures.of_play(played, _goals(data, list(played)), baseline) | made

    # -- acting --------------------------------------------------------------------------------------

    def act(
        self,
        environment: str | Any,
        episodes: int = 10,
        seed: int = 0,
        task: float | None = None,
        target_return: float | None = None,
    ) -> pa.Table:
        """Acts in one task, episode after episode: the first without a prompt, then prompted by its own best.

        Args:
            environment: a gymnasium id (``repertory/PointRobot-v0``; options after ``?``), or an environment.
            episodes: how many.
            seed: of everything random; of the task, too, where none is given.
            task: the environment's option ``task``.
            target_return: what is asked of the agent; None: the configuration's, else the best in the training data.

        Returns:
            A row per step: environment, episode, step, observation, action, reward, error (of the world model),
            prompted.

        Raises:
            UserError: no such environment, or its spaces are not those that the model was fitted to.
        """
        self._needs_fit()
        if episodes < 1:
            raise ConfigError(f"episodes={episodes}: at least 1 is needed")
        from repertory.systems.meta_dt.environment import make

        options = {} if task is None else {"task": task}
        env = make(environment, **options) if isinstance(environment, str) else environment
        target = self.assets["target_return"] if target_return is None else target_return
        with seeded(seed, "act"):
            played = self.actor.play([env], episodes, float(target), seed)[0]
        name = environment if isinstance(environment, str) else getattr(env.spec, "id", type(env).__name__)
        lengths = [len(one.episode) for one in played]
        columns = {
            "environment": [name] * sum(lengths),
            "episode": np.repeat(np.arange(len(played)), lengths),
            "step": np.concatenate([np.arange(length) for length in lengths]),
            "observation": [row for one in played for row in one.episode.observations.tolist()],
            "action": [row for one in played for row in one.episode.actions.tolist()],
            "reward": np.concatenate([one.episode.rewards for one in played]),
            "error": np.concatenate([one.errors for one in played]),
            "prompted": np.repeat([one.prompted for one in played], lengths),
        }
        return pa.table(columns)

    # -- official checkpoints ------------------------------------------------------------------------

    @classmethod
    def from_official(cls, checkpoint: str | Path | Mapping[str, Any]) -> MetaDTSystem:
        """From the official world model and policy: a folder that holds both files, or their state dicts together.

        Checkpoints do not hold the statistics of the training states, the return scale and the best return; a mapping
        may bring them as ``state_mean``, ``state_std`` [state_dim], ``return_scale`` and ``target_return``.
        """
        config, assets, weights = read_official(checkpoint)
        return cls(cls.Config.build(**config))._imported(assets, weights, str(checkpoint)[:200])


def _starts(steps: Steps) -> np.ndarray:
    """The steps that windows begin at: all but the last of an episode (as in the official code)."""
    time, length = steps.time.cpu().numpy(), steps.length.cpu().numpy()
    return np.flatnonzero((time < length - 1) | (length == 1))


def _needs_tasks(items: Trajectories) -> None:
    if "task" not in items.columns.column_names:
        raise DataError("no column 'task': meta-learning needs to know which episodes belong to one task")


def _by_task(items: Trajectories, values: np.ndarray) -> np.ndarray:
    _, index = np.unique(items.column("task").astype(str), return_inverse=True)
    return np.bincount(index, values) / np.bincount(index)


def _goals(items: Trajectories, tasks: list[str]) -> dict[str, np.ndarray]:
    """Where the point robot's goals are, by task."""
    if "angle" not in items.columns.column_names:
        return {}
    from repertory.data.samples.point_robot import goal_at

    angles = dict(zip(items.column("task").astype(str), items.column("angle"), strict=True))
    return {task: goal_at(float(angles[task])) for task in tasks}
