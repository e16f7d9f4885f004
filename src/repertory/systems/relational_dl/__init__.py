"""Relational deep learning: graph neural networks over databases (Fey et al. 2023; RelBench, Robinson et al. 2024)."""

from repertory.systems.relational_dl.model import (
    Batch,
    HeteroEncoder,
    HeteroGNN,
    HeteroTemporalEncoder,
    RelationalModel,
    from_official_keys,
)
from repertory.systems.relational_dl.objective import entity_loss, membership_loss, pairwise_loss
from repertory.systems.relational_dl.sampler import ALL, Subgraphs, TemporalGraph
from repertory.systems.relational_dl.system import RelationalDL
from repertory.systems.relational_dl.tasks import driver_dnf, driver_position

__all__ = [
    "ALL", "Batch", "HeteroEncoder", "HeteroGNN", "HeteroTemporalEncoder", "RelationalDL", "RelationalModel",
    "Subgraphs", "TemporalGraph", "driver_dnf", "driver_position", "entity_loss", "from_official_keys",
    "membership_loss", "pairwise_loss",
]  # fmt: skip
