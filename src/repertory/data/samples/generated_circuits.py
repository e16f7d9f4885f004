"""Arithmetic and control circuits made by aigverse's generators: families times widths."""

from __future__ import annotations

from pathlib import Path

from repertory.data.circuits import Circuits, circuits_of
from repertory.data.circuits.circuit import Circuit, aigverse
from repertory.data.samples import Sample
from repertory.errors import DataError

FAMILIES = {
    "ripple-carry adder": "ripple_carry_adder", "carry-lookahead adder": "carry_lookahead_adder",
    "multiplier": "ripple_carry_multiplier", "sideways-sum adder": "sideways_sum_adder",
    "multiplexer": "multiplexer", "decoder": "binary_decoder",
}  # fmt: skip


def build(packages: dict[str, Path], widest: int = 8) -> Circuits:
    """Circuits of six families and widths from 2 on; label: the family. Width 5 is for tests, width 7 for validation.

    Their text is one line that names family and width.

    Args:
        widest: bits.
    """
    if widest < 7:
        raise DataError(f"widest={widest}: at least 7, so that there is a width to validate on")
    generators = aigverse("generators")
    ids, circuits, families, widths = [], [], [], []
    for family, generator in FAMILIES.items():
        for width in range(2, widest + 1):
            text = f"// {family}, {width} bits\n"
            made = Circuit.of_aig(getattr(generators, generator)(width), verilog=text)
            if not made.edge_index.size:
                continue
            ids.append(f"{generator}_{width}")
            circuits.append(made)
            families.append(family)
            widths.append(width)
    made_items = circuits_of(ids, circuits, families)
    splits = ["test" if width == 5 else "val" if width == 7 else "train" for width in widths]
    for name, values in (("width", widths), ("split", splits)):
        made_items.columns = made_items.columns.append_column(name, [values])
    return made_items


SAMPLE = Sample(
    name="generated-circuits",
    kind="circuits",
    about="42 adders, multipliers, multiplexers and decoders of 2 to 8 bits",
    licence="made by aigverse (MIT)",
    build=build,
)
