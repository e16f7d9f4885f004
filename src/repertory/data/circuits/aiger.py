"""AIGER files, ASCII and binary (Biere 2007), read by aigverse once they are known to be combinational and whole."""

from __future__ import annotations

import re
import tempfile
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from repertory.data.circuits.circuit import Circuit, aigverse
from repertory.errors import DataError

HEADER = re.compile(rb"(aag|aig) (\d+) (\d+) (\d+) (\d+) (\d+)[^\n]*\n")


def read_aiger(path: Path) -> Circuit:
    """The circuit in an ``.aag`` or ``.aig`` file, with the names of its symbol table.

    Raises:
        DataError: no AIGER, latches, a cycle (with the variable), or it ends too early.
    """
    content = path.read_bytes()
    header = HEADER.match(content)
    if header is None:
        raise DataError(f"{path.name}: no AIGER file: the first line must be 'aag M I L O A' or 'aig M I L O A'")
    variables, inputs, latches, outputs, ands = (int(number) for number in header.groups()[1:])
    if latches:
        named = re.search(rb"^l0 (.+)$", content, re.MULTILINE)
        first = f"'{named[1].decode(errors='replace')}'" if named else "the first of them"
        raise DataError(f"{path.name}: {latches} latches ({first}): sequential; only combinational circuits are read")
    io, ascii_ = aigverse("io"), header[1] == b"aag"
    try:
        if ascii_:
            with tempfile.TemporaryDirectory() as folder:
                ordered = Path(folder) / "ordered.aag"
                ordered.write_bytes(_ordered(content, header.end(), inputs, outputs, ands, variables))
                network = io.read_ascii_aiger_into_aig(ordered)
        else:
            network = io.read_aiger_into_aig(path)
    except (RuntimeError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: {' '.join(str(error).split())}") from None
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from None
    if (network.num_pis, network.num_pos) != (inputs, outputs):
        raise DataError(f"{path.name}: ends too early: {inputs} inputs and {outputs} outputs are announced")
    names = {node: network.get_name(network.make_signal(node)) for node in network.pis()
             if network.has_name(network.make_signal(node))}  # fmt: skip
    for number in range(network.num_pos):  # outputs follow the nodes
        if network.has_output_name(number):
            names[network.size + number] = network.get_output_name(number)
    return Circuit.of_aig(network, names)


def _ordered(content: bytes, start: int, inputs: int, outputs: int, ands: int, variables: int) -> bytes:
    """The file with its gates after their fan-ins: aigverse takes others for constants, and cycles too."""
    lines = content[start:].decode("ascii").splitlines()
    if len(lines) < inputs + outputs + ands:
        raise DataError(f"ends too early: {inputs + outputs + ands} lines are announced, {len(lines)} are there")
    gates = {}
    for line in lines[inputs + outputs : inputs + outputs + ands]:
        numbers = [int(word) for word in line.split() if word.isdigit()]
        if len(numbers) != 3 or numbers[0] % 2 or max(numbers) > 2 * variables + 1:
            raise DataError(f"'{line}' is no AND gate 'variable fan-in fan-in'")
        if numbers[0] in gates:
            raise DataError(f"variable {numbers[0]} is defined twice")
        gates[numbers[0]] = numbers
    free = {int(line) for line in lines[:inputs] if line.isdigit()}
    for gate, *fan_ins in gates.values():
        for literal in fan_ins:
            if literal > 1 and literal - literal % 2 not in gates and literal - literal % 2 not in free:
                raise DataError(f"AND gate {gate}: its fan-in {literal} is neither an input nor a gate")
    sorter = TopologicalSorter({gate: [v - v % 2 for v in fan_ins] for gate, *fan_ins in gates.values()})
    try:
        order = [gate for gate in sorter.static_order() if gate in gates]
    except CycleError as error:
        raise DataError(f"a cycle through AND gate {error.args[1][0]}: only combinational circuits are read") from None
    renamed: dict[int, int] = {}
    for line in lines[:inputs]:
        renamed[int(line)] = 2 * (len(renamed) + 1)
    for gate in order:
        renamed[gate] = 2 * (len(renamed) + 1)

    def literal_of(literal: int) -> int:
        if literal > 1 and literal - literal % 2 not in renamed:
            raise DataError(f"output {literal} is neither an input nor a gate")
        return literal if literal < 2 else renamed[literal - literal % 2] + literal % 2

    made = [f"aag {len(renamed)} {inputs} 0 {outputs} {ands}"]
    made += [str(renamed[int(line)]) for line in lines[:inputs]]
    made += [str(literal_of(int(line))) for line in lines[inputs : inputs + outputs]]
    for gate in order:
        made.append(f"{renamed[gate]} " + " ".join(str(literal_of(v)) for v in gates[gate][1:]))
    return "\n".join(made + lines[inputs + outputs + ands :] + [""]).encode()
