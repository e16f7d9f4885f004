"""Structural Verilog: one flat module of gate primitives and assignments of Boolean expressions, as an AIG."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from repertory.data.circuits.circuit import Circuit, aigverse
from repertory.errors import DataError

TOKEN = re.compile(
    r"(?P<skip>\s+|//[^\n]*|/\*.*?\*/|\(\*.*?\*\)|`timescale[^\n]*)|(?P<token>\\\S+|\d*'[sS]?[bBdDhHoO]\s*[\da-fA-FxXzZ_?]+"
    r"|[A-Za-z_][\w$]*(?:\s*\[\s*\d+\s*\])?|\d+(?:\.\d+)?|`\w+|.)",
    re.DOTALL,
)
GATES = ("and", "or", "nand", "nor", "xor", "xnor", "not", "buf")
DECLARATIONS = ("input", "output", "wire", "tri", "supply0", "supply1")
BEHAVIOUR = ("always", "initial", "reg", "case", "function", "task", "integer", "parameter", "localparam", "generate",
             "for", "if", "always_comb", "always_ff", "always_latch", "logic", "specify", "defparam")  # fmt: skip
CONSTANT = re.compile(r"1'[bBdDhH]\s*([01])$")
REMEDY = "synthesise it to gates first (yosys, pyosys), or give its AIGER file with this text beside it"


@dataclass
class _Netlist:
    """What the statements say: how each wire is made, of what, and where."""

    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    vectors: set[str] = field(default_factory=set)
    drivers: dict[str, tuple[str, Any, list[str], str, int]] = field(default_factory=dict)

    def drive(self, wire: str, how: str, formula: Any, of: list[str], gate: str, line: int) -> None:
        for used in (wire, *of):
            if used in self.vectors:
                raise DataError(f"line {line}: '{used}' is used whole: name its bits, as in {used}[0]")
        if wire in self.drivers or wire in self.inputs:
            raise DataError(f"line {line}: wire '{wire}' is driven twice")
        self.drivers[wire] = (how, formula, of, gate, line)


def read_verilog(text: str) -> Circuit:
    """The circuit of a netlist, with the text itself as its ``verilog``.

    Names of wires are kept: an input's, an output's, and of an AND node the first wire that carries its value.

    Raises:
        DataError: behavioural Verilog, other modules or flip-flops, wires driven twice or never, or a cycle; with the
            line or the gate.
    """
    netlist = _Netlist()
    words: list[tuple[str, int]] = []
    line = 1
    for match in TOKEN.finditer(text):
        token = match["token"]
        if token == "endmodule":
            words = []
        elif token == ";":
            if words:
                _statement(netlist, words)
            words = []
        elif token is not None:
            token = token[1:] if token.startswith("\\") else re.sub(r"\s+", "", token)
            words.append((token, line))
        line += match[0].count("\n")
    if words:
        raise DataError(f"line {words[0][1]}: '{words[0][0]}' begins a statement that never ends")
    if not netlist.name:
        raise DataError("no module in it")
    if not netlist.inputs or not netlist.outputs:
        raise DataError(f"module {netlist.name} has no {'inputs' if not netlist.inputs else 'outputs'}")
    return _built(netlist, text)


def _statement(netlist: _Netlist, words: list[tuple[str, int]]) -> None:
    (first, line), tokens = words[0], [word for word, _ in words]
    if first.startswith("`"):
        raise DataError(f"line {line}: '{first}' is for a preprocessor: expand it first")
    if first == "module":
        if netlist.name:
            raise DataError(f"line {line}: a second module, '{tokens[1]}': flatten the design to one")
        netlist.name = tokens[1] if len(tokens) > 1 else ""
        start = next((i for i, token in enumerate(tokens) if token in ("input", "output", "inout")), None)
        if start is not None:  # ports declared in the head
            part: list[str] = []
            for token in [*tokens[start : len(tokens) - 1], "input"]:
                if token in ("input", "output", "inout") and part:
                    _declare(netlist, part, line)
                    part = []
                part.append(token)
    elif first in DECLARATIONS or first == "inout":
        _declare(netlist, tokens, line)
    elif first in GATES:
        _gates(netlist, tokens, line)
    elif first == "assign":
        _assign(netlist, tokens[1:], line)
    elif first in BEHAVIOUR or "@" in tokens:
        raise DataError(f"line {line}: '{first}' is behavioural Verilog: {REMEDY}")
    elif len(tokens) > 3 and "(" in tokens:
        kind = "a flip-flop or latch" if re.search(r"ff|latch|dff|reg", first, re.IGNORECASE) else "another module"
        raise DataError(
            f"line {line}: '{tokens[1]}' is an instance of '{first}', {kind}: only flat combinational netlists of "
            f"{', '.join(GATES)} and assign are read; {REMEDY}"
        )
    else:
        raise DataError(f"line {line}: '{' '.join(tokens[:6])}' is not structural Verilog: {REMEDY}")


def _declare(netlist: _Netlist, tokens: list[str], line: int) -> None:
    kind, rest = tokens[0], [t for t in tokens[1:] if t not in (",", "wire", "signed")]
    if kind == "inout" or kind.startswith("supply"):
        raise DataError(f"line {line}: '{kind}' is not read: only inputs, outputs and wires")
    if "reg" in rest or "logic" in rest:
        raise DataError(f"line {line}: 'reg' is behavioural Verilog: {REMEDY}")
    if "=" in rest:
        raise DataError(f"line {line}: a {kind} with a value: write an assign")
    bits: range | None = None
    if rest and rest[0] == "[":
        bounds = re.fullmatch(r"\[(\d+):(\d+)\]", "".join(rest[: rest.index("]") + 1] if "]" in rest else rest))
        if bounds is None:
            raise DataError(f"line {line}: '{' '.join(tokens[:7])}': a range [high:low] of numbers is needed")
        high, low = int(bounds[1]), int(bounds[2])
        bits = range(high, low - 1, -1) if high >= low else range(high, low + 1)
        rest = rest[rest.index("]") + 1 :]
    if bits is not None:
        netlist.vectors |= set(rest)
    names = rest if bits is None else [f"{name}[{bit}]" for name in rest for bit in bits]
    if kind == "input":
        netlist.inputs += [name for name in names if name not in netlist.inputs]
    elif kind == "output":
        netlist.outputs += [name for name in names if name not in netlist.outputs]


def _gates(netlist: _Netlist, tokens: list[str], line: int) -> None:
    kind, rest = tokens[0], tokens[1:]
    if rest and rest[0] == "#":  # a delay
        rest = rest[rest.index(")") + 1 :] if rest[1] == "(" else rest[2:]
    while rest:
        name = "" if rest[0] == "(" else rest[0]
        rest = rest[1:] if name else rest
        if ")" not in rest or rest[0] != "(":
            raise DataError(f"line {line}: gate '{name or kind}' has no list of wires")
        end = rest.index(")")
        wires = rest[1:end:2]
        if rest[2:end:2] != [","] * (len(wires) - 1):
            raise DataError(f"line {line}: gate '{name or kind}': wires by position are needed, as in (out, in, in)")
        gate = name or f"{kind} in line {line}"
        if len(wires) < 2 or (len(wires) < 3 and kind not in ("not", "buf")):
            raise DataError(f"line {line}: gate '{gate}' ({kind}) has too few inputs")
        made = wires[:-1] if kind in ("not", "buf") else wires[:1]
        of = wires[-1:] if kind in ("not", "buf") else wires[1:]
        for wire in made:
            netlist.drive(wire, kind, None, of, gate, line)
        rest = rest[end + 1 :]
        if rest and rest[0] == ",":
            rest = rest[1:]


def _assign(netlist: _Netlist, tokens: list[str], line: int) -> None:
    if len(tokens) < 3 or tokens[1] != "=":
        raise DataError(f"line {line}: an assign of one wire is needed, as in: assign a = b & ~c")
    if "," in tokens:
        raise DataError(f"line {line}: one assign a statement, please")
    wires: list[str] = []
    source: list[str] = []
    for token in tokens[2:]:
        if token in ("~", "&", "|", "^", "(", ")"):
            source.append(token)
        elif len(token) > 1 or token.isalnum():
            source.append(f"w{len(wires)}")
            wires.append(token)
        else:
            raise DataError(f"line {line}: '{token}' in an assign is behavioural Verilog: {REMEDY}")
    try:  # ~ & ^ | bind in Python as they do in Verilog
        formula = ast.parse("".join(source), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise DataError(f"line {line}: the expression of '{tokens[0]}' cannot be read") from None
    netlist.drive(tokens[0], "assign", formula, wires, f"assign {tokens[0]}", line)


def _built(netlist: _Netlist, text: str) -> Circuit:
    """The gates, each after its fan-ins."""
    drivers = netlist.drivers
    known = set(netlist.inputs)
    for wire, (_, _, of, gate, line) in drivers.items():
        for used in of:
            if used not in known and used not in drivers and not CONSTANT.match(used):
                raise DataError(f"line {line}: '{used}', an input of gate '{gate}', has no driver")
        if CONSTANT.match(wire):
            raise DataError(f"line {line}: gate '{gate}' drives a constant")
    for wire in netlist.outputs:
        if wire not in drivers and wire not in known:
            raise DataError(f"output '{wire}' has no driver")
    try:
        order = list(TopologicalSorter({wire: driver[2] for wire, driver in drivers.items()}).static_order())
    except CycleError as error:
        wires = [wire for wire in error.args[1] if wire in drivers]
        raise DataError(
            f"line {drivers[wires[0]][4]}: gate '{drivers[wires[0]][3]}' is on a cycle ({' -> '.join(wires)}): only "
            "combinational circuits are read"
        ) from None
    network = aigverse("networks").Aig()
    signals = {wire: network.create_pi() for wire in netlist.inputs}
    names = {network.get_node(signal): wire for wire, signal in signals.items()}

    def value(wire: str) -> Any:
        constant = CONSTANT.match(wire)
        return network.get_constant(constant[1] == "1") if constant else signals[wire]

    for wire in order:
        if wire not in drivers:
            continue
        how, formula, of, _, _ = drivers[wire]
        made = [value(used) for used in of]
        signals[wire] = _formula(network, formula, made) if how == "assign" else _gate(network, how, made)
        names.setdefault(network.get_node(signals[wire]), wire)
    for number, wire in enumerate(netlist.outputs):
        network.create_po(signals[wire])
        names[network.size + number] = wire
    circuit = Circuit.of_aig(network, names, text)
    if not circuit.edge_index.size:
        raise DataError(f"module {netlist.name}: all its outputs are constant")
    return circuit


def _gate(network: Any, kind: str, of: list[Any]) -> Any:
    if kind in ("not", "buf"):
        return ~of[0] if kind == "not" else of[0]
    made = {
        "and": network.create_nary_and, "nand": network.create_nary_and, "or": network.create_nary_or,
        "nor": network.create_nary_or, "xor": network.create_nary_xor, "xnor": network.create_nary_xor,
    }[kind](of)  # fmt: skip
    return ~made if kind in ("nand", "nor", "xnor") else made


def _formula(network: Any, node: Any, wires: list[Any]) -> Any:
    if isinstance(node, ast.Name):
        return wires[int(node.id[1:])]
    if isinstance(node, ast.UnaryOp):
        return ~_formula(network, node.operand, wires)
    one, other = _formula(network, node.left, wires), _formula(network, node.right, wires)
    joins = {ast.BitAnd: network.create_and, ast.BitOr: network.create_or, ast.BitXor: network.create_xor}
    return joins[type(node.op)](one, other)


def read_verilog_file(path: Path) -> Circuit:
    """The circuit in a ``.v`` file.

    Raises:
        DataError: as ``read_verilog``, with the file's name.
    """
    try:
        return read_verilog(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise DataError(f"{path.name}: not a text") from None
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from None
