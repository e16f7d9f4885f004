"""A point robot that seeks goals it is not told: the benchmark itself, a few lines of arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from repertory.data.samples import Sample
from repertory.data.trajectories import Episode, Trajectories
from repertory.errors import DataError

REACH = 0.1
"""How far the robot moves at most in a step, along each axis."""
STEPS = 20


def goal_at(angle: np.ndarray | float) -> np.ndarray:
    """The goal [..., 2] at an angle (radians) on the unit half circle."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def move(position: np.ndarray, action: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The next position [..., 2] and the reward [...]: minus the distance to the goal from there."""
    after = position + np.clip(action, -REACH, REACH)
    return after, -np.linalg.norm(after - goal, axis=-1)


def build(
    packages: dict[str, Path],
    goals: int = 50,
    episodes: int = 20,
    noise: float = 0.1,
    elsewhere: float = 0.0,
    seed: int = 0,
) -> Trajectories:
    """Episodes of a scripted policy that knows the goal and goes there with a noise of its own.

    The action is ``clip(0.5 (goal - position) + sigma normal, -0.1, 0.1)``, sigma uniform in 0 to ``noise`` for each
    episode, as of policies between good and poor; episodes start anywhere in the square from -1 to 1.

    Args:
        goals: number of tasks, at angles drawn from ``seed``.
        episodes: of each task.
        noise: largest standard deviation of what is added to actions.
        elsewhere: share of the episodes that go to a random point of the half disc instead, so that actions tell less
            of the goal.
    """
    if goals < 1 or episodes < 1 or noise < 0:
        raise DataError(f"goals={goals}, episodes={episodes}, noise={noise:g}: at least 1, 1 and 0 are needed")
    random = np.random.default_rng(seed)
    angles = np.round(random.uniform(0, np.pi, goals), 6)
    goal = np.repeat(goal_at(angles)[:, None], episodes, axis=1)
    sigma = random.uniform(0, noise, (goals, episodes, 1))
    position = random.uniform(-1, 1, goal.shape)
    radius = np.sqrt(random.uniform(size=sigma.shape))
    point = radius * goal_at(random.uniform(0, np.pi, (goals, episodes)))
    target = np.where(random.uniform(size=sigma.shape) < elsewhere, point, goal)
    taken = []
    for _ in range(STEPS):
        action = np.clip(0.5 * (target - position) + sigma * random.standard_normal(goal.shape), -REACH, REACH)
        after, reward = move(position, action, goal)
        taken.append((position, action, reward, after))
        position = after
    parts = [np.stack(part, axis=2).astype(np.float32) for part in zip(*taken, strict=True)]
    tasks = {
        f"goal-{number:02d}": [Episode(*(part[number, n] for part in parts)) for n in range(episodes)]
        for number in range(goals)
    }
    environments = [f"repertory/PointRobot-v0?task={angle}" for angle in angles]
    return Trajectories.of(tasks, {"label": ("angle",)}, environment=environments, angle=angles)


SAMPLE = Sample(
    name="point-robot",
    kind="trajectories",
    about="1,000 episodes of a point robot with 50 hidden goals on a half circle; simulated here, by a noisy script",
    licence="generated",
    build=build,
)
