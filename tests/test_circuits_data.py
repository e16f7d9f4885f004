"""Circuits: AIGER and Verilog files, objects in memory, what is refused."""

import numpy as np
import pytest

from repertory import data
from repertory.data.circuits import Circuit, Circuits, exhaustive, read_verilog
from repertory.errors import DataError

pytest.importorskip("aigverse")
from aigverse.algorithms import equivalence_checking, simulate_nodes
from aigverse.generators import (
    carry_lookahead_adder,
    random_aig,
    ripple_carry_adder,
    ripple_carry_multiplier,
)
from aigverse.io import write_aiger, write_verilog
from aigverse.networks import SequentialAig

C17 = """
// ISCAS-85
module c17 (N1, N2, N3, N6, N7, N22, N23);
  input N1, N2, N3, N6, N7;
  output N22, N23;
  wire N10, N11, N16, N19;
  nand NAND2_1 (N10, N1, N3), NAND2_2 (N11, N3, N6);
  nand #1 NAND2_3 (N16, N2, N11);
  nand (N19, N11, N7); /* without
  a name */
  nand NAND2_5 (N22, N10, N16);
  nand NAND2_6 (N23, N16, N19);
endmodule
"""
ASSIGNED = """
module c17_assign (G1, G2, G3, G6, G7, G22, G23);
  input  G1, G2, G3, G6, G7;
  output G22, G23;
  wire G10, G11, G16, G19;
  assign G10 = ~G1 | ~G3;
  assign G11 = ~G3 | ~G6;
  assign G16 = ~G2 | ~G11;
  assign G19 = ~G11 | ~G7;
  assign G22 = ~G10 | ~G16;
  assign G23 = ~G16 | ~G19;
endmodule
"""


def small(**fields):
    """AND of two inputs, one inverted, to one output."""
    made = {
        "node_type": np.array([0, 0, 2, 1]), "edge_index": np.array([[0, 1, 2], [2, 2, 3]]),
        "edge_type": np.array([0, 1, 0]),
    }  # fmt: skip
    return Circuit(**{**made, **fields})


# -- Verilog ------------------------------------------------------------------------------------------------------


def test_verilog_computes_what_aigverse_wrote(tmp_path):
    network = ripple_carry_multiplier(4)
    write_verilog(network, tmp_path / "m.v")
    assert equivalence_checking(network, read_verilog((tmp_path / "m.v").read_text()).aig())


def test_gates_and_assignments_are_the_same_circuit():
    assert equivalence_checking(read_verilog(C17).aig(), read_verilog(ASSIGNED).aig())


def test_verilog_keeps_names_and_counts():
    circuit = read_verilog(C17)
    assert circuit.counts == {"inputs": 5, "outputs": 2, "gates": 6, "inverters": 8, "depth": 3}
    assert set(circuit.names) >= {"N1", "N7", "N10", "N16", "N22", "N23"}
    assert circuit.verilog == C17


@pytest.mark.parametrize(
    ("gate", "table"),
    [("and", "0001"), ("or", "0111"), ("nand", "1110"), ("nor", "1000"), ("xor", "0110"), ("xnor", "1001")],
)
def test_every_primitive(gate, table):
    circuit = read_verilog(f"module m (input a, input b, output y); {gate} g (y, a, b); endmodule")
    values = circuit.simulate(exhaustive(2))[circuit.node_type == 1][0, 0]
    assert "".join(str(int(values) >> k & 1) for k in range(4)) == table


def test_vectors_constants_and_escaped_names():
    circuit = read_verilog(
        "module m (a, y, z); input [2:0] a; output y; output \\z[0] ; wire w; and g (w, a[0], a[1], a[2]);"
        " buf (y, w); assign \\z[0] = ~(a[0] ^ 1'b1) & w; endmodule".replace("y, z)", "y, \\z[0] )")
    )
    values = circuit.simulate(exhaustive(3))[circuit.node_type == 1][:, 0]
    assert [int(v) & 255 for v in values] == [128, 128]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("module m (input a, output reg y);\nalways @(posedge a) y <= a;\nendmodule", "line 1: 'reg' is behavioural"),
        ("module m (a, y); input a; output y;\nalways @(*) y = a;\nendmodule", "line 2: 'always' is behavioural"),
        ("module m (a, b, y); input a, b; output y;\n assign y = a + b;\nendmodule", "line 2: '[+]' in an assign"),
        ("module m (a, b, y); input a, b; output y;\n assign y = a ? b : a;\nendmodule", "line 2: '[?]' in an assign"),
        (
            "module m (c, a, y); input c, a; output y;\n dff r (.D (a), .Q (y));\nendmodule",
            "'r' is an instance of 'dff'",
        ),
        ("module m (a, y); input a; output y; sub s (y, a); endmodule", "'s' is an instance of 'sub', another module"),
        ("module m (a, y); input a; output y; wire w;\n and A (y, a, w);\n and B (w, a, y);\nendmodule", "on a cycle"),
        ("module m (a, y); input a; output y; and A (y, a, w); endmodule", "'w', an input of gate 'A', has no driver"),
        ("module m (a, y); input a; output y; not A (y, a); buf B (y, a); endmodule", "wire 'y' is driven twice"),
        ("module m (a, y); input a; output y; endmodule", "output 'y' has no driver"),
        ("module m (a, y); input [1:0] a; output y; not g (y, a); endmodule", "'a' is used whole"),
        ("module m (a, y); input a; output y; and g (y, a); endmodule", "has too few inputs"),
        ("module m (a, y); input a; output y; assign y = (a & ; endmodule", "cannot be read"),
        ("module m (a, y); input a; output y; not g (y, a)", "never ends"),
        ("module a (x); input x; endmodule module b (x); input x; endmodule", "a second module"),
        ("", "no module"),
        ("module m (a, y); input a; output y; assign y = 1'b0; endmodule", "all its outputs are constant"),
    ],
)
def test_bad_verilog(text, said):
    with pytest.raises(DataError, match=said) as error:
        read_verilog(text)
    assert "\n" not in str(error.value)


def test_a_cycle_is_named_by_its_gate():
    with pytest.raises(DataError, match=r"gate '[AB]' is on a cycle \((y -> w|w -> y)"):
        read_verilog("module m (a, y); input a; output y; wire w; and A (y, a, w); and B (w, a, y); endmodule")


# -- AIGER --------------------------------------------------------------------------------------------------------


def test_aiger_ascii_and_binary(tmp_path):
    adder = ripple_carry_adder(3)
    write_aiger(adder, tmp_path / "adder.aig")
    (tmp_path / "and.aag").write_text("aag 3 2 0 2 1\n2\n4\n6\n7\n6 2 5\ni0 one\ni1 two\no0 yes\no1 no\n")
    splits = data.open(str(tmp_path), "circuits")
    assert list(splits.all.ids) == ["adder", "and"]
    first, second = splits.all.circuits
    assert equivalence_checking(adder, first.aig())
    assert second.names == ("one", "two", "", "yes", "no")
    assert second.counts == {"inputs": 2, "outputs": 2, "gates": 1, "inverters": 2, "depth": 1}


def test_aiger_gates_in_any_order(tmp_path):
    (tmp_path / "m.aag").write_text("aag 5 3 0 1 2\n2\n4\n6\n8\n8 10 6\n10 2 4\n")
    circuit = data.open(str(tmp_path / "m.aag"), "circuits").all.circuits[0]
    assert int(circuit.simulate(exhaustive(3))[-1, 0]) & 255 == 128


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("aag 3 1 1 1 1\n2\n4 6\n6\n6 2 4\nl0 state\n", "1 latches .'state'.: sequential"),
        ("aag 3 1 0 1 2\n2\n4\n4 2 6\n6 2 4\n", "a cycle through AND gate"),
        ("aag 3 2 0 1 1\n2\n4\n6\n", "ends too early"),
        ("aag 3 2 0 1 1\n2\n4\n6\n6 2 8\n", "no AND gate"),
        ("aag 4 2 0 1 1\n2\n4\n6\n6 2 8\n", "neither an input nor a gate"),
        ("hello\n", "no AIGER file"),
        ("aag 1 1 0 1 0\n2\n1\n", "no edges"),
    ],
)
def test_bad_aiger(tmp_path, text, said):
    (tmp_path / "bad.aag").write_text(text)
    with pytest.raises(DataError, match=said):
        data.open(str(tmp_path / "bad.aag"), "circuits")


def test_verilog_beside_aiger_is_its_text(tmp_path):
    write_aiger(ripple_carry_adder(2), tmp_path / "adder.aig")
    (tmp_path / "adder.v").write_text("module adder; assign s = a + b; endmodule")
    items = data.open(str(tmp_path), "circuits").all
    assert len(items) == 1
    assert "a + b" in items.circuits[0].verilog


# -- folders, tables, text vectors -----------------------------------------------------------------------------------


def folder(tmp_path):
    for family, width in (("adders", 2), ("adders", 3), ("others", 4)):
        (tmp_path / family).mkdir(exist_ok=True)
        write_aiger(ripple_carry_adder(width), tmp_path / family / f"a{width}.aig")
    return tmp_path


def test_subfolders_are_families(tmp_path):
    items = data.open(str(folder(tmp_path)), "circuits").all
    assert list(items.ids) == ["adders/a2", "adders/a3", "others/a4"]
    assert list(items.labels()) == ["adders", "adders", "others"]
    assert list(items.column("inputs")) == [4, 6, 8]


def test_tables_of_paths(tmp_path):
    folder(tmp_path)
    (tmp_path / "list.csv").write_text("id,path,family,year\n007,adders/a2.aig,x,1999\nb,others/a4.aig,y,2001\n")
    items = data.open(str(tmp_path / "list.csv"), "circuits").all
    assert list(items.ids) == ["007", "b"]
    assert list(items.labels()) == ["x", "y"]
    assert list(items.column("year")) == [1999, 2001]


def test_bad_files_can_be_skipped(tmp_path):
    (folder(tmp_path) / "bad.v").write_text("module m; initial x = 1; endmodule")
    with pytest.raises(DataError, match=r"bad: bad\.v: line 1: 'initial' is behavioural"):
        data.open(str(tmp_path), "circuits")
    assert [r.id for r in data.open(f"{tmp_path}?on_error=skip&max_bad=1", "circuits").rejected] == ["bad"]


@pytest.mark.parametrize("suffix", ["npz", "npy", "parquet"])
def test_text_vectors(tmp_path, suffix):
    names = ["adders/a2", "adders/a3", "others/a4"]
    vectors = {name: np.full(4, k, np.float32) for k, name in enumerate(names)}
    path = folder(tmp_path) / f"texts.{suffix}"
    if suffix == "npz":
        np.savez(path, **vectors)
    elif suffix == "npy":
        np.save(path, {name: vector[None] for name, vector in vectors.items()}, allow_pickle=True)
    else:
        import pandas as pd

        pd.DataFrame({"id": names, "vector": [v.tolist() for v in vectors.values()]}).to_parquet(path)
    if suffix == "parquet":
        (tmp_path / "keep").mkdir()
        path = path.rename(tmp_path / "keep" / path.name)
    items = data.open(f"circuits:{tmp_path}?layout=circuits&vectors={path}", "circuits").all
    assert [circuit.text.tolist() for circuit in items.circuits] == [[k] * 4 for k in range(3)]


@pytest.mark.parametrize(
    ("bad", "said"),
    [(None, "no text vector for 'others/a4'"), (np.ones(3, np.float32), "'others/a4' has 3 numbers, others 4"),
     (np.full(4, np.nan, np.float32), "'others/a4' is no row of finite floats")],
)  # fmt: skip
def test_bad_text_vectors(tmp_path, bad, said):
    vectors = {"adders/a2": np.ones(4, np.float32), "adders/a3": np.ones(4, np.float32)}
    np.savez(folder(tmp_path) / "texts.npz", **vectors, **({} if bad is None else {"others/a4": bad}))
    with pytest.raises(DataError, match=said):
        data.open(f"{tmp_path}?vectors=texts.npz", "circuits")


# -- objects in memory ---------------------------------------------------------------------------------------------


def test_objects_of_the_field():
    import torch
    from torch_geometric.data import Data

    adder = ripple_carry_adder(2)
    graph = Data(
        node_type=torch.tensor([0, 0, 2, 1]), edge_index=torch.tensor([[0, 1, 2], [2, 2, 3]]),
        edge_type=torch.tensor([0, 1, 0]),
    )  # fmt: skip
    items = data.open({"adder": adder, "and": graph}, "circuits").all
    assert list(items.ids) == ["adder", "and"]
    assert equivalence_checking(adder, items.circuits[0].aig())
    del graph.edge_type
    with pytest.raises(DataError, match="no 'edge_type'"):
        data.open([graph], "circuits")
    with pytest.raises(DataError, match="sequential"):
        data.open([SequentialAig()], "circuits")
    with pytest.raises(DataError, match="is no circuit"):
        data.open([3], "circuits")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"node_type": np.array([0.0, 0, 2, 1])}, "node_type is float64"),
        ({"node_type": np.array([0, 0, 7, 1])}, "node 2 has type 7"),
        ({"edge_index": np.array([[0, 1, 9], [2, 2, 3]])}, "edge 2 names node 9"),
        ({"edge_index": np.array([[0, 2], [2, 3]]), "edge_type": np.array([0, 0])}, "AND node 2 has 1 fan-ins"),
        ({"edge_index": np.array([[0, 1, 2, 0], [2, 2, 3, 3]]), "edge_type": np.zeros(4, int)}, "output node 3 has 2"),
        ({"edge_index": np.zeros((2, 0), int), "edge_type": np.zeros(0, int)}, "no edges"),
        ({"edge_type": np.array([0, 2, 0])}, "edge_type holds 2"),
        ({"edge_type": np.array([0, 1])}, "for 3 edges"),
        ({"edge_type": np.array([0, 1.0, 0])}, "edge_type is float64"),
        ({"text": np.array([np.nan])}, "no row of finite numbers"),
    ],
)
def test_bad_graphs(fields, said):
    with pytest.raises(DataError, match=f"bad: .*{said}"):
        data.open(Circuits(["bad"], [small(**fields)]), "circuits")


def test_a_cycle_is_named_by_its_node():
    circuit = Circuit(
        np.array([0, 2, 2, 1]), np.array([[0, 2, 1, 0, 2], [1, 1, 2, 2, 3]]), np.zeros(5, int), ("a", "p", "q", "y")
    )
    with pytest.raises(DataError, match=r"a cycle through AND node [12] '[pq]'"):
        circuit.check()


# -- simulation ----------------------------------------------------------------------------------------------------


def test_simulation_agrees_with_aigverse():
    network = random_aig(num_pis=6, num_gates=60, seed=3)
    circuit = Circuit.of_aig(network)
    values = circuit.simulate(exhaustive(6))
    tables = simulate_nodes(network)
    gates = np.flatnonzero(circuit.node_type == 2)
    for node, gate in zip(network.gates(), gates, strict=True):
        assert int(values[gate, 0]) == int(tables[node].to_hex(), 16)


def test_round_trip_through_aigverse():
    network = carry_lookahead_adder(4)
    assert equivalence_checking(network, Circuit.of_aig(Circuit.of_aig(network).aig()).aig())


def test_constant_outputs_are_left_out():
    network = ripple_carry_adder(2)
    network.create_po(network.get_constant(True))
    assert Circuit.of_aig(network).counts == Circuit.of_aig(ripple_carry_adder(2)).counts


@pytest.mark.parametrize(("source", "circuits"), [("generated-circuits", 42), ("real-circuits?nodes=500", 15)])
def test_samples(source, circuits):
    splits = data.open(source, "circuits")
    assert len(splits.all) == circuits
    assert all(len(part) for part in (splits.train, splits.val, splits.test))
    assert all(circuit.verilog for circuit in splits.all.circuits)
