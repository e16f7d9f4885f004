"""Meta-DT: offline meta-RL with a world model's task representation and self-guided prompts (Wang et al. 2024)."""

from repertory.systems.meta_dt.acting import Actor, Played
from repertory.systems.meta_dt.data import Steps, encode_all, errors_of
from repertory.systems.meta_dt.model import (
    ContextEncoder,
    MetaDecisionTransformer,
    MetaDT,
    Prompt,
    RewardDecoder,
    StateDecoder,
    WorldModel,
)
from repertory.systems.meta_dt.objective import (
    action_loss,
    step_errors,
    window_errors,
    window_probabilities,
    world_loss,
)
from repertory.systems.meta_dt.prompts import Prompts, Scaling
from repertory.systems.meta_dt.system import MetaDTSystem

__all__ = [
    "Actor", "ContextEncoder", "MetaDT", "MetaDTSystem", "MetaDecisionTransformer", "Played", "Prompt", "Prompts",
    "RewardDecoder", "Scaling", "StateDecoder", "Steps", "WorldModel", "action_loss", "encode_all", "errors_of",
    "step_errors", "window_errors", "window_probabilities", "world_loss",
]  # fmt: skip
