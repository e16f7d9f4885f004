"""What the context is worth on unseen goals: for the world model's predictions, and for the agent's returns."""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from repertory import data
from repertory.card import Claim
from repertory.data import Splits
from repertory.data.trajectories import Trajectories
from repertory.systems.meta_dt.system import MetaDTSystem

WORLD = {"world_epochs": 4}
POLICY = {"horizon": 20, "batch_size": 32, "lr": 3e-3, "steps": 450, "warm_train": 0}
ABLATIONS: dict[str, dict[str, object]] = {
    "meta-dt": {}, "without context": {"context": False}, "without prompt": {"prompt": "none"},
}  # fmt: skip
EPISODES, RESETS = 3, 3


@cache
def _data(seed: int, elsewhere: float = 0.0) -> Splits[Trajectories]:
    """Goals and episodes of a seed; a tenth of the goals is unseen."""
    return data.open(f"point-robot?seed={seed + 10}&elsewhere={elsewhere}", "trajectories")


@cache
def _fitted(variant: str, seed: int) -> MetaDTSystem:
    config = MetaDTSystem.Config.build("point-robot", **{**WORLD, **POLICY, **ABLATIONS[variant]})
    return MetaDTSystem(config).fit(_data(seed), seed=seed)


def reward_error(variant: str, seed: int) -> float:
    """log10 of the mean squared error of predicted rewards on unseen goals, at steps with a whole context."""
    config = MetaDTSystem.Config.build("point-robot", steps=1, **{**WORLD, **ABLATIONS[variant]})
    splits = _data(seed, 0.5)
    system = MetaDTSystem(config).fit(splits, seed=seed)  # its policy is not looked at
    return float(np.log10(system.prediction_errors(splits.test)["reward"].mean()))


@cache
def _returns(variant: str, seed: int) -> np.ndarray:
    """Returns [goals * RESETS, EPISODES] on unseen goals, from the same starts for all variants."""
    system, test = _fitted(variant, seed), _data(seed).test
    played = [own for reset in range(RESETS) for own in system.play(test, EPISODES, 1000 * seed + reset).values()]
    return np.array([[one.total for one in own] for own in played])


def few_shot_return(variant: str, seed: int) -> float:
    """Mean return of the episodes after the first."""
    return float(_returns(variant, seed)[:, 1:].mean())


def zero_shot_return(variant: str, seed: int) -> float:
    """Mean return of the first episodes, which have no prompt."""
    return float(_returns(variant, seed)[:, 0].mean())


DATA = "the sample point-robot, drawn anew for each seed: 40 goals to train on, 5 to choose the world model, 5 unseen"

CLAIMS = (
    Claim(
        name="context-predicts-rewards",
        finding="With z the world model predicts the rewards of tasks it has not seen; without z it cannot.",
        paper="the context captures what tasks differ in (section 4.1; no figure quoted)",
        data=f"{DATA}; half of the episodes go elsewhere",
        metric="log10 of the squared error of predicted rewards on unseen goals, from step 4 on",
        variants={name: partial(reward_error, name) for name in ("meta-dt", "without context")},
        baselines=("without context",),
        margin=1.0,
        higher_is_better=False,
        unit="log10",
        notes="margin 1: ten times as precise",
    ),
    Claim(
        name="ablations",
        finding="On unseen goals the agent earns more with context and prompt than without either.",
        paper="the ablations of section 5 (no figure quoted)",
        data=DATA,
        metric=f"mean return of episodes 2 to {EPISODES} on unseen goals",
        variants={name: partial(few_shot_return, name) for name in ABLATIONS},
        baselines=("without context", "without prompt"),
        unit="return",
        notes="prompts are the agent's own earlier episodes",
    ),
    Claim(
        name="context-zero-shot",
        finding="In the first episode on an unseen goal, without prompt, the agent earns more with context.",
        paper="zero-shot generalisation (section 5; no figure quoted)",
        data=DATA,
        metric="mean return of the first episode on unseen goals",
        variants={name: partial(zero_shot_return, name) for name in ("meta-dt", "without context")},
        baselines=("without context",),
        unit="return",
    ),
)
