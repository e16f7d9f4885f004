"""MGVGA: circuit representations by masked gate modelling and Verilog-AIG alignment (Wu et al. 2025)."""

from repertory.systems.mgvga.equivalence import pairs_of, restructured
from repertory.systems.mgvga.graph import TYPES, Batch, masked, padded, with_inverters
from repertory.systems.mgvga.model import (
    MGVGA,
    AlignDecoder,
    EquivalenceHead,
    GENConv,
    GraphEncoder,
    QoRHead,
    from_official_keys,
)
from repertory.systems.mgvga.objective import pretraining_loss
from repertory.systems.mgvga.synthesis import OPERATIONS, tried
from repertory.systems.mgvga.system import MGVGASystem
from repertory.systems.mgvga.text import HashedTexts

__all__ = [
    "MGVGA", "OPERATIONS", "TYPES", "AlignDecoder", "Batch", "EquivalenceHead", "GENConv", "GraphEncoder",
    "HashedTexts", "MGVGASystem", "QoRHead", "from_official_keys", "masked", "padded", "pairs_of", "pretraining_loss",
    "restructured", "tried", "with_inverters",
]  # fmt: skip
