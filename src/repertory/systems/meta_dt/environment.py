"""Environments whose task is an option, in gymnasium's registry: ``gymnasium.make("repertory/AntDir-v0", task=0.5)``.

The MuJoCo ones are gymnasium's own (v5) with another reward, or with other masses, inertias, dampings and frictions.
With ``task=None`` a task is drawn when the environment is first reset, from the reset's seed, and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import yaml

from repertory.data.samples.point_robot import REACH, STEPS, goal_at, move
from repertory.data.trajectories import Episode, Trajectories
from repertory.errors import ConfigError, MissingExtraError, UserError, nearest

try:
    import gymnasium
except ImportError:
    raise MissingExtraError("gymnasium", "control") from None

Behaviour = Callable[[np.ndarray, int, gymnasium.Env, np.random.Generator], np.ndarray]
"""From observation, number of the step, environment and random numbers to an action."""


class PointRobot(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point on a plane, 20 steps from anywhere in the square from -1 to 1; the reward is minus the distance to a
    hidden goal on the unit half circle.

    Args:
        task: the goal's angle in radians, 0 to pi; None: drawn at the first reset.
    """

    metadata = {"render_modes": []}

    def __init__(self, task: float | None = None) -> None:
        self.task = task
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gymnasium.spaces.Box(-REACH, REACH, (2,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if self.task is None:
            self.task = float(self.np_random.uniform(0, np.pi))
        self.position = self.np_random.uniform(-1, 1, 2)
        return self.position, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.position, reward = move(self.position, action, goal_at(self.task or 0.0))
        return self.position, float(reward), False, False, {}


class Rewarded(gymnasium.Wrapper):
    """A MuJoCo environment with the reward of a task, from what the environment says of each step.

    Args:
        env: gymnasium's environment.
        task: what the reward depends on; None: drawn at the first reset.
        draw: draws a task.
        reward: from the task and the step's ``info`` to the reward.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        task: float | None,
        draw: Callable[[np.random.Generator], float],
        reward: Callable[[float, dict[str, float]], float],
    ) -> None:
        super().__init__(env)
        self.task, self.draw, self.reward = task, draw, reward

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        found = self.env.reset(seed=seed, options=options)
        if self.task is None:
            self.task = self.draw(self.env.unwrapped.np_random)
        return found

    def step(self, action: np.ndarray) -> Any:
        observation, _, terminated, truncated, info = self.env.step(action)
        assert self.task is not None, "reset comes before step"
        return observation, float(self.reward(self.task, info)), terminated, truncated, info


class Perturbed(gymnasium.Wrapper):
    """A MuJoCo environment with other body masses and inertias, joint dampings and frictions.

    Each is multiplied by ``1.5 ** u`` with u uniform in -3 to 3, drawn from the task's number; 0 changes nothing.
    """

    PHYSICS = ("body_mass", "body_inertia", "dof_damping", "geom_friction")

    def __init__(self, env: gymnasium.Env, task: int | None) -> None:
        super().__init__(env)
        self.task = task
        if task is not None:
            self._perturb(int(task))

    def _perturb(self, task: int) -> None:
        import mujoco

        random, body = np.random.default_rng(task), self.env.unwrapped
        for name in self.PHYSICS if task else ():
            values = getattr(body.model, name)
            values *= 1.5 ** random.uniform(-3, 3, values.shape)
        mujoco.mj_setConst(body.model, mujoco.MjData(body.model))  # what MuJoCo derives from masses and inertias

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        found = self.env.reset(seed=seed, options=options)
        if self.task is None:
            self.task = int(self.env.unwrapped.np_random.integers(1, 2**31))
            self._perturb(self.task)
            found = self.env.reset(seed=seed, options=options)
        return found


def _mujoco(name: str, **options: Any) -> gymnasium.Env:
    try:
        return gymnasium.make(name, **options).unwrapped
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError):
        raise MissingExtraError("mujoco", "control") from None


def cheetah_vel(task: float | None = None) -> gymnasium.Env:
    """HalfCheetah that shall run at a velocity (0.075 to 3 m/s): minus its distance from it, less control costs."""
    env = _mujoco("HalfCheetah-v5", ctrl_cost_weight=0.05)
    reward = lambda goal, info: info["reward_ctrl"] - abs(info["x_velocity"] - goal)
    return Rewarded(env, task, lambda random: float(random.uniform(0.075, 3.0)), reward)


def cheetah_dir(task: float | None = None) -> gymnasium.Env:
    """HalfCheetah that shall run forwards (1) or backwards (-1): its velocity that way, less control costs."""
    env = _mujoco("HalfCheetah-v5", ctrl_cost_weight=0.05)
    reward = lambda way, info: info["reward_ctrl"] + way * info["x_velocity"]
    return Rewarded(env, task, lambda random: float(random.choice([-1.0, 1.0])), reward)


def ant_dir(task: float | None = None) -> gymnasium.Env:
    """Ant that shall run in a direction (radians, 0 to 2 pi): its velocity that way, costs, and 1 for being upright."""
    env = _mujoco("Ant-v5", include_cfrc_ext_in_observation=False)

    def reward(angle: float, info: dict[str, float]) -> float:
        forward = np.cos(angle) * info["x_velocity"] + np.sin(angle) * info["y_velocity"]
        return forward + info["reward_ctrl"] + info["reward_contact"] + info["reward_survive"]

    return Rewarded(env, task, lambda random: float(random.uniform(0, 2 * np.pi)), reward)


def walker_params(task: int | None = None) -> gymnasium.Env:
    """Walker2d with the physics of a task's number."""
    return Perturbed(_mujoco("Walker2d-v5"), task)


def hopper_params(task: int | None = None) -> gymnasium.Env:
    """Hopper with the physics of a task's number."""
    return Perturbed(_mujoco("Hopper-v5"), task)


ENVIRONMENTS: dict[str, tuple[Callable[..., gymnasium.Env], int]] = {
    "repertory/PointRobot-v0": (PointRobot, STEPS),
    "repertory/HalfCheetahVel-v0": (cheetah_vel, 200),
    "repertory/HalfCheetahDir-v0": (cheetah_dir, 200),
    "repertory/AntDir-v0": (ant_dir, 200),
    "repertory/WalkerParams-v0": (walker_params, 200),
    "repertory/HopperParams-v0": (hopper_params, 200),
}
"""What is registered here, and after how many steps an episode ends."""
for _name, (_build, _steps) in ENVIRONMENTS.items():
    gymnasium.register(_name, _build, max_episode_steps=_steps)


def known(address: str) -> bool:
    """Whether gymnasium knows an environment's id (the part before ``?``)."""
    return address.partition("?")[0] in gymnasium.registry


def make(address: str, **options: Any) -> gymnasium.Env:
    """The environment at an address: a gymnasium id, with options after ``?``: ``repertory/AntDir-v0?task=0.5``.

    Raises:
        UserError: gymnasium does not know it, or it does not take the options.
    """
    name, _, query = str(address).partition("?")
    given = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
    options = {**{key: yaml.safe_load(value) for key, value in given.items()}, **options}
    if not known(name):
        raise UserError(f"no environment '{name}'{nearest(name, [str(n) for n in gymnasium.registry])}")
    try:
        made = gymnasium.make(name, **options)
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError):
        raise MissingExtraError("mujoco", "control") from None
    except (TypeError, gymnasium.error.Error) as error:
        raise ConfigError(f"{address}: {' '.join(str(error).split())[:160]}") from None
    for what in ("observation_space", "action_space"):
        space = getattr(made, what)
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise UserError(f"{address}: its {what.replace('_', ' ')} is {space}; vectors of numbers are needed")
    return made


# -- behaviour data -----------------------------------------------------------------------------------------------


def gait(amplitude: float = 0.6, noise: float = 0.2) -> Behaviour:
    """A scripted behaviour for MuJoCo bodies: each actuator swings like a sine of its own phase, with noise.

    Frequency and phases are drawn anew for each episode, so that some of the episodes run and others do not.
    """
    drawn: dict[str, Any] = {}

    def behave(observation: np.ndarray, step: int, env: gymnasium.Env, random: np.random.Generator) -> np.ndarray:
        box = env.action_space
        assert isinstance(box, gymnasium.spaces.Box)
        if step == 0:
            drawn.update(phase=random.uniform(0, 2 * np.pi, box.shape), frequency=random.uniform(0.1, 0.6))
        swing = amplitude * np.sin(drawn["frequency"] * step + drawn["phase"])
        return np.clip(
            swing + noise * random.standard_normal(box.shape), np.maximum(box.low, -1), np.minimum(box.high, 1)
        )

    return behave


def collect(
    environment: str,
    tasks: Iterable[float],
    episodes: int = 20,
    behaviour: Behaviour | None = None,
    seed: int = 0,
) -> Trajectories:
    """Behaviour data: episodes of a policy in each task.

    Args:
        environment: a gymnasium id that takes ``task``.
        tasks: values of the option ``task``.
        episodes: of each task.
        behaviour: the policy; None takes ``gait()``. A trained one of Stable-Baselines3 is
            ``lambda observation, *_: model.predict(observation)[0]``.
        seed: of everything random.
    """
    behaviour = behaviour or gait()
    found, addresses = {}, []
    for number, task in enumerate(tasks):
        address = f"{environment}?task={task}"
        env, random = make(address), np.random.default_rng([seed, number])
        found[f"{number:03d}"] = [
            _episode(env, behaviour, random, int(random.integers(2**31))) for _ in range(episodes)
        ]
        addresses.append(address)
        env.close()
    return Trajectories.of(found, environment=addresses)


def _episode(env: gymnasium.Env, behaviour: Behaviour, random: np.random.Generator, seed: int) -> Episode:
    observation, _ = env.reset(seed=seed)
    rows, step, over = [], 0, False
    while not over:
        action = behaviour(observation, step, env, random)
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, reward, after))
        observation, step, over = after, step + 1, terminated or truncated
    return Episode(*(np.array(part, np.float32) for part in zip(*rows, strict=True)))
