"""PiVeM: node trajectories of a continuous-time dynamic graph (Celikkanat, Nakis and Morup 2022)."""

from repertory.systems.pivem.model import PiecewiseVelocityModel, from_official_keys
from repertory.systems.pivem.objective import Cells, negative_log_likelihood, unit_moments
from repertory.systems.pivem.prior import KroneckerPrior
from repertory.systems.pivem.simulation import draw_from_prior, simulate, swapping_groups, synthetic_network
from repertory.systems.pivem.system import PiVeM

__all__ = [
    "Cells", "KroneckerPrior", "PiVeM", "PiecewiseVelocityModel", "draw_from_prior",
    "from_official_keys", "negative_log_likelihood", "simulate", "swapping_groups",
    "synthetic_network", "unit_moments",
]  # fmt: skip
