"""Real circuits: ISCAS-85, EPFL and other gate-level netlists in Verilog."""

from __future__ import annotations

import re
from pathlib import Path

from repertory.data.circuits import Circuits, circuits_of
from repertory.data.circuits.verilog import read_verilog_file
from repertory.data.samples import Package, Sample
from repertory.errors import DataError

EPFL_ARITHMETIC = {"adder", "bar", "div", "log2", "max", "multiplier", "sin", "sqrt", "square"}
LEFT_OUT = {"c17_assign", "c17_gates", "c17g", "mux_2", "mux_4", "switch"}
"""Copies of c17, and toys."""
TEST = ("c880", "c1908", "router", "cavlc", "c17")
VALIDATION = ("c432", "int2float")
"""Designs; all others are for training, c499 and c1355, which compute the same function, among them."""


def build(packages: dict[str, Path], nodes: int = 2000) -> Circuits:
    """Combinational netlists with their Verilog; label: the family. Designs and their remapped copies stay together.

    Args:
        nodes: only circuits of at most so many inputs, outputs and gates; 0 takes all (minutes, gigabytes).
    """
    if nodes < 0:
        raise DataError(f"nodes={nodes}: a positive number, or 0 for all")
    ids, circuits, families, splits = [], [], [], []
    for file in sorted((packages[NETLISTS.name] / "circuitgraph/netlists").glob("*.v")):
        name, size = file.stem, file.stat().st_size
        if name in LEFT_OUT or (nodes and size > 250 * nodes) or "fflopd" in _head(file) or " ff " in _head(file):
            continue
        circuit = read_verilog_file(file)
        if nodes and len(circuit) > nodes:
            continue
        design = re.sub(r"(?<=\d)g$", "", name)
        ids.append(name)
        circuits.append(circuit)
        families.append(_family(name))
        splits.append("test" if design in TEST else "val" if design in VALIDATION else "train")
    made = circuits_of(ids, circuits, families)
    made.columns = made.columns.append_column("split", [splits])
    return made


def _head(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _family(name: str) -> str:
    if re.match(r"c\d+g?$", name):
        return "ISCAS-85"
    if name.startswith("banyan"):
        return "Banyan"
    if re.match(r"[sb]\d+", name):
        return "ISCAS-89, ITC-99"
    return "EPFL arithmetic" if name in EPFL_ARITHMETIC else "EPFL control"


NETLISTS = Package(
    name="circuitgraph",
    version="0.2.1",
    files=("circuitgraph/netlists/*.v", "circuitgraph-0.2.1.dist-info/LICENSE"),
    sha256=("074612bd25a989b678818cff6ba52dc02c5951ef123fdb3fa09edb59af79c040",),
    licence="MIT",
)

SAMPLE = Sample(
    name="real-circuits",
    kind="circuits",
    about="30 gate-level netlists of ISCAS-85, EPFL and banyan networks, up to 2,000 nodes each, with their Verilog",
    licence="MIT (the package circuitgraph); benchmarks by ISCAS and EPFL",
    build=build,
    packages=(NETLISTS,),
)
