"""What is special to MGVGA."""

from __future__ import annotations

import io
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from repertory import catalog, data
from repertory.data.circuits import Circuit, Circuits, exhaustive
from repertory.encoders import Encoder
from repertory.errors import ConfigError, DataError, UserError
from repertory.systems.mgvga.data import Pairs, chunks, graph_of, read_fields
from repertory.systems.mgvga.equivalence import pairs_of, restructured
from repertory.systems.mgvga.graph import Batch, masked, padded, with_inverters
from repertory.systems.mgvga.model import MGVGA
from repertory.systems.mgvga.objective import pretraining_loss
from repertory.systems.mgvga.synthesis import OPERATIONS, passed, tried
from repertory.systems.mgvga.system import MGVGASystem
from repertory.systems.mgvga.text import HashedTexts, LanguageModel, words
from repertory.systems.mgvga.training import cosine

pytest.importorskip("aigverse")
from aigverse.algorithms import equivalence_checking
from aigverse.generators import (
    binary_decoder,
    carry_lookahead_adder,
    random_aig,
    ripple_carry_adder,
    ripple_carry_multiplier,
)


def circuits():
    return [Circuit.of_aig(random_aig(num_pis=6, num_gates=g, seed=g)) for g in (12, 40, 90)]


def network(**sizes):
    torch.manual_seed(0)
    model = MGVGA(**{"dim": 16, "layers": 3, "text_width": 12, **sizes})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def items(**fields):
    names = ("adder", "lookahead", "multiplier", "decoder", "adder3", "multiplier3")
    made = [ripple_carry_adder(4), carry_lookahead_adder(4), ripple_carry_multiplier(3), binary_decoder(3),
            ripple_carry_adder(3), ripple_carry_multiplier(2)]  # fmt: skip
    return Circuits(names, [Circuit.of_aig(aig, verilog=f"// {name}") for name, aig in zip(names, made, strict=True)],
                    {"split": ["train", "train", "train", "val", "test", "test"]}, **fields)  # fmt: skip


def tiny(**settings):
    return MGVGASystem(MGVGASystem.Config.build("tiny", **{"steps": 4, "task_steps": 4, **settings}))


# -- graphs -----------------------------------------------------------------------------------------------


def test_inverters_keep_the_function_of_every_output():
    for circuit in circuits():
        types, edges = graph_of(circuit)
        expanded = Circuit(types, edges, np.zeros(edges.shape[1], np.int64))
        expanded.check()
        before, after = (c.simulate(exhaustive(6))[c.node_type == 1] for c in (circuit, expanded))
        assert (before == after).all()
        assert (types == 3).sum() == circuit.edge_type.sum()


def test_a_circuit_is_the_same_alone_and_in_a_batch():
    model, graphs = network(), [graph_of(circuit) for circuit in circuits()]
    nodes, whole = model(Batch.of(graphs))
    alone = [model(Batch.of([graph])) for graph in graphs]
    torch.testing.assert_close(nodes, torch.cat([x for x, _ in alone]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole, torch.cat([x for _, x in alone]), atol=1e-5, rtol=1e-5)


def test_names_of_nodes_do_not_matter():
    model, (types, edges) = network(), graph_of(circuits()[1])
    order = np.random.default_rng(0).permutation(len(types))
    place = np.argsort(order)
    nodes, whole = model.encode(types, edges)
    other, also = model.encode(types[order], place[edges])
    torch.testing.assert_close(whole, also, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(nodes[order], other, atol=1e-5, rtol=1e-5)


def test_copies_of_an_edge_count():
    model = network()
    types, edges = np.array([0, 0, 2, 1]), np.array([[0, 1, 2], [2, 2, 3]])
    edges = np.concatenate([edges, edges[:, :1], edges[:, :1]], axis=1)
    types[0] = 3  # so that the fan-ins differ
    plain, twice = model.encode(types, edges[:, :3])[0], model.encode(types, edges)[0]
    assert (plain[2] - twice[2]).abs().max() > 1e-3
    torch.testing.assert_close(plain[:2], twice[:2])


def test_layer_equals_torch_geometric():
    geometric = pytest.importorskip("torch_geometric.nn")
    model, (types, edges) = network(), graph_of(circuits()[2])
    conv = geometric.GENConv(16, 16, aggr="softmax", t=1.0, learn_t=True, num_layers=2, norm="layer")
    theirs = geometric.DeepGCNLayer(conv, nn.LayerNorm(16), act=None, block="res+")
    theirs.load_state_dict(model.graph_encoder.conv.layer.state_dict())
    batch, x = Batch.of([(types, edges)]), torch.randn(len(types), 16)
    ours = batch.restored(model.graph_encoder.conv(batch.ordered(x), batch))
    torch.testing.assert_close(ours, theirs(x, torch.from_numpy(edges)), atol=1e-5, rtol=1e-5)


def test_padded_edges_are_copies_of_the_first():
    graphs = [graph_of(circuit) for circuit in circuits()]
    batch = padded(graphs, [torch.zeros(len(types)) for types, _ in graphs])
    first = graphs[0][1]
    assert (batch["input_edges"][0, :, first.shape[1] :] == torch.from_numpy(first[:, :1])).all()
    assert batch["input_indegree"][0].sum() == first.shape[1]


@pytest.mark.parametrize(
    ("types", "edges", "said"),
    [
        ([0.5, 1], [[0], [1]], "types: float64"),
        ([0, 4], [[0], [1]], "0[.][.]4"),
        ([0, 1], [[0], [2]], "there are nodes 0[.][.]1"),
        ([0, 1], np.zeros((2, 0), int), "e at least 1"),
        ([], [[0], [1]], "types"),
    ],
)
def test_encode_refuses(types, edges, said):
    with pytest.raises(DataError, match=said):
        network().encode(np.array(types), np.array(edges))


# -- masks and losses -----------------------------------------------------------------------------------------------


def test_latent_masks_keep_the_encoder_output_and_input_masks_do_not():
    model, batch = network(), Batch.of([graph_of(circuits()[1])])
    seen: dict[str, torch.Tensor] = {}
    model.graph_encoder.register_forward_hook(lambda module, given, out: seen.__setitem__("out", out.clone()))
    model.nodes(batch)
    plain = seen["out"]
    mask = batch.ordered(masked(batch.sizes, 0.3))
    model.mask_gates(batch, mask)
    assert torch.equal(seen["out"], plain)
    model.align(batch, mask, torch.zeros(1, 12))
    assert (seen["out"][~mask] - plain[~mask]).abs().max() > 1e-3


def test_masks_are_floors_and_too_small_is_refused():
    sizes = torch.tensor([10, 33])
    mask = masked(sizes, 0.3)
    assert [int(part.sum()) for part in mask.split(sizes.tolist())] == [3, 9]
    with pytest.raises(DataError, match="too small to mask"):
        masked(torch.tensor([10, 3]), 0.3)


def test_gradients_are_finite_in_batches_and_zero_for_queries_and_keys():
    model, batch = network().train(), Batch.of([graph_of(circuit) for circuit in circuits()])
    masks = [batch.ordered(masked(batch.sizes, ratio)) for ratio in (0.3, 0.7)]
    pretraining_loss(model, batch, masks[0], batch, masks[1], torch.randn(3, 12)).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    for name, parameter in model.named_parameters():
        idle = "linear_q" in name or "linear_k" in name or "attn_norm" in name
        assert (parameter.grad.abs().max() == 0) == idle, name


def test_attention_to_one_token_is_its_value():
    model, x, text = network(), torch.randn(19, 16), torch.randn(1, 12)
    attention = model.vg_decoder.layers[0].attn
    q = attention.linear_q(x).view(19, 8, 2).transpose(0, 1)
    k, v = (layer(text).view(1, 8, 2).transpose(0, 1) for layer in (attention.linear_k, attention.linear_v))
    whole = nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(19, 16)
    torch.testing.assert_close(attention.linear_out(whole), attention(text).expand(19, 16))


def test_bfloat16_autocast_is_finite():
    model, batch = network(), Batch.of([graph_of(circuit) for circuit in circuits()])
    mask = batch.ordered(masked(batch.sizes, 0.3))
    with torch.autocast("cpu", torch.bfloat16):
        loss = pretraining_loss(model, batch, mask, batch, mask, torch.randn(3, 12)).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_the_cosine_ends_at_a_tenth():
    rates = cosine(1e-3, 0.1, 1000)
    assert rates[0] == 1e-3
    assert float(rates[-1]) == pytest.approx(1e-4, rel=0.02)


def test_circuits_without_texts_learn_without_alignment():
    made = items().circuits[:3]
    texts = np.full((3, 4), np.nan, np.float32)
    assert Pairs("abc", made, texts, 0.3, 0.7)(np.arange(3)).aligned is None
    texts[1] = 1
    step = Pairs("abc", made, texts, 0.3, 0.7)(np.arange(3))
    assert (step.text == 1).all()
    assert len(step.aligned) == 3


def test_chunks_hold_few_nodes():
    graphs = [graph_of(circuit) for circuit in circuits()]
    assert [part.tolist() for part in chunks(graphs, 2)] == [[0, 1], [2]]
    assert [part.tolist() for part in chunks(graphs, 9, nodes=1)] == [[0], [1], [2]]


# -- official weights -----------------------------------------------------------------------------------------------


def test_an_official_checkpoint_loads_strictly():
    state = MGVGA(16, 3, 12, 2).state_dict()
    assert "graph_encoder.layers.1.layer.conv.aggr_module.t" in state
    assert "vg_decoder.layers.1.attn.linear_out.bias" in state
    system = MGVGASystem.from_official({f"module.{name}": value for name, value in state.items()})
    made = system.network.state_dict()
    assert all(torch.equal(made[name], value) for name, value in state.items())
    with pytest.raises(DataError, match="design 'adder' has no text vector"):
        system.texts(items())
    assert system.embed(items()).width == 16
    with pytest.raises(UserError):
        MGVGASystem.from_official({name: value for name, value in state.items() if "linear_k" not in name})


# -- texts -----------------------------------------------------------------------------------------------


def test_words_and_their_rarity():
    assert words("nand g12__7 (n_3, N22, 1); // 16 bits") == ["nand", "g", "__", "n_", "N", "1", "16", "bits"]
    texts = HashedTexts(64)
    texts.fit(["nand nor", "nand and", "nand xor"])
    made = texts(["nand", "nor nor", ""])
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), [1, 1, 0], rtol=1e-5)
    assert texts.rarity[made[1] > 0] > texts.rarity[made[0] > 0]


def test_language_models_are_named_by_address():
    with pytest.raises(ConfigError, match="hf:NAME"):
        LanguageModel(Encoder(nn.Identity(), 4, lambda m, x: x, address="timm:resnet18"), 8)


def test_stored_vectors_are_checked_by_design():
    made = items()
    made.circuits = [replace(c, text=np.ones(5, np.float32)) for c in made.circuits]
    system = tiny(tasks=()).fit(made)
    assert system.assets["text_width"] == 5
    short = items().take([4])
    short.circuits = [replace(short.circuits[0], text=np.ones(4, np.float32))]
    with pytest.raises(DataError, match="design 'adder3': its text vector has 4 numbers; 5 are needed"):
        system.texts(short)
    made.circuits[1] = replace(made.circuits[1], text=None)
    with pytest.raises(DataError, match="design 'lookahead' has no text vector"):
        tiny(text="vectors").fit(Circuits(made.ids, made.circuits, made.columns))
    made.circuits[1] = replace(made.circuits[1], text=np.full(5, np.nan))
    with pytest.raises(DataError, match="lookahead: its text vector"):
        tiny(text="vectors").fit(Circuits(made.ids, made.circuits, made.columns))


def test_text_that_is_asked_for_has_to_be_there():
    bare = items()
    bare.circuits = [replace(c, verilog="") for c in bare.circuits]
    with pytest.raises(DataError, match="no design has any"):
        tiny(text="verilog").fit(bare)
    system = tiny(tasks=()).fit(bare)
    assert system.assets["text"] == "none"
    with pytest.raises(ConfigError):
        MGVGASystem.Config.build(text="none", text_encoder="hf:some/model")


def test_a_design_too_small_to_mask_is_named():
    small = items()
    wire = Circuit(np.array([0, 1]), np.array([[0], [1]]), np.zeros(1, np.int64))
    small.circuits[0] = wire
    with pytest.raises(DataError, match="adder: 2 nodes, too few to mask"):
        tiny().fit(small)


# -- downstream -----------------------------------------------------------------------------------------------


def test_recipes_keep_the_function():
    circuit = items().circuits[2]
    aig = circuit.aig()
    for operation in range(len(OPERATIONS)):
        assert equivalence_checking(aig, passed(aig, operation))


def test_results_of_synthesis_are_learned_and_predicted():
    system = tiny(tasks=["qor"], recipes=3, recipe_steps=2).fit(items())
    metrics = system.evaluate()
    assert {"qor/gates_error", "qor/depth_error"} <= set(metrics)
    table = system.predict(what="qor")
    assert table.num_rows == 6
    assert {"recipe", "gates", "depth"} <= set(table.column_names)
    with pytest.raises(ConfigError, match=r"tasks=\[equivalence"):
        system.analyze()
    with pytest.raises(ConfigError, match="expected gates or qor"):
        system.predict(what="area")


def test_results_are_standardised_by_design():
    circuit = replace(items().circuits[0], recipes=np.array([[0], [1]]), results=np.array([[10.0, 3], [20, 3]]))
    np.testing.assert_allclose(tried(circuit, 0, 0).standardised, [[-1, 0], [1, 0]])


def test_equal_pairs_are_equal():
    pairs = pairs_of(ripple := Circuit.of_aig(ripple_carry_multiplier(3)))
    assert pairs.exact
    assert pairs.equal.sum() * 2 == len(pairs.equal) > 0
    values = pairs.circuit.simulate(exhaustive(6))
    same = (values[pairs.one] == values[pairs.other]).all(axis=1)
    assert (same == pairs.equal).all()
    assert (pairs.one != pairs.other).all()
    assert restructured(ripple).counts["outputs"] == 2 * ripple.counts["outputs"]


def test_gates_are_told_and_pairs_judged():
    system = tiny().fit(items())
    table = system.predict()
    assert set(table.column("type").to_pylist()) <= {"input", "output", "AND", "NOT"}
    assert table.equals(system.predict())
    assert system.score().column("id").to_pylist() == ["adder3", "multiplier3"]
    found = system.analyze().to_pandas()
    assert found["probability"].between(0, 1).all()
    near = system.search(index=system.embed(items()), k=1).to_pandas()
    assert (near["id"] == near["neighbour_id"]).all()
    with pytest.raises(ConfigError, match=r"tasks=\[qor"):
        system.predict(what="qor")


# -- the paper's layouts ----------------------------------------------------------------------------------------


def geometric(**fields):
    from torch_geometric.data import Data

    return Data(**fields)


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_openabc(tmp_path):
    circuit = items().circuits[0]
    graph = {name: torch.from_numpy(getattr(circuit, name)) for name in ("node_type", "edge_index", "edge_type")}
    for number in range(3):
        made = geometric(**graph, synVec=torch.arange(20) % 7, synID=[number], desName=["adder"])
        with zipfile.ZipFile(tmp_path / f"adder_syn{number}_step0.pt.zip", "w") as archive:
            archive.writestr(f"adder_syn{number}_step0.pt", saved(made))
    columns = [list(range(10, 13)), [0] * 3, [0] * 3, [1.5, 2.5, 3.5], [7.0, 8.0, 9.0]]
    (tmp_path / "synthesisStatistics.pickle").write_bytes(pickle.dumps({"adder": columns}))
    source = f"{tmp_path}?statistics=synthesisStatistics.pickle"
    (read,) = data.open(source, "circuits", MGVGASystem.readers).all.circuits
    assert (read.edge_index == circuit.edge_index).all()
    assert read.recipes.shape == (3, 20)
    assert read.results.tolist() == [[10, 1.5, 7], [11, 2.5, 8], [12, 3.5, 9]]
    (tmp_path / "synthesisStatistics.pickle").write_bytes(pickle.dumps({"other": columns}))
    with pytest.raises(DataError, match="no design 'adder'"):
        data.open(source, "circuits", MGVGASystem.readers)


def test_verilog_pairs(tmp_path):
    names = ["one", "two"]
    for name, circuit in zip(names, items().circuits[:2], strict=True):
        lists = {"node_type": circuit.node_type.tolist(), "edge_type": circuit.edge_type.tolist(), "pi": 8}
        torch.save(geometric(**lists, edge_index=torch.from_numpy(circuit.edge_index)), tmp_path / f"{name}.pt")
    np.save(tmp_path / "texts.npy", {name: np.ones((1, 6), np.float32) for name in names}, allow_pickle=True)
    read = data.open(f"{tmp_path}?vectors=texts.npy", "circuits", MGVGASystem.readers).all
    assert list(read.ids) == names
    assert read.circuits[1].text.shape == (6,)


def test_old_data_are_read_by_their_fields(tmp_path):
    old = geometric()
    old.__dict__.clear()
    old.__dict__.update(edge_index=torch.zeros(2, 1), x=None)
    (tmp_path / "old.pt").write_bytes(saved(old))
    assert list(read_fields(tmp_path / "old.pt")) == ["edge_index"]


class Trap:
    def __reduce__(self):
        return (print, ("called",))


def test_nothing_else_is_unpickled(tmp_path, capsys):
    (tmp_path / "bad.pt").write_bytes(saved({"node_type": Trap()}))
    np.save(tmp_path / "texts.npy", {"a": Trap()}, allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read safely"):
        data.open(str(tmp_path), "circuits", MGVGASystem.readers)
    with pytest.raises(DataError, match="is not read"):
        data.open(f"{tmp_path}?vectors=texts.npy", "circuits", MGVGASystem.readers)
    assert "called" not in capsys.readouterr().out


def test_inverters_are_one_an_edge():
    types, edges = with_inverters(np.array([0, 0, 2, 1]), np.array([[0, 1, 2], [2, 2, 3]]), np.array([1, 0, 1]))
    assert types.tolist() == [0, 0, 2, 1, 3, 3]
    assert edges.tolist() == [[1, 0, 2, 4, 5], [2, 4, 5, 2, 3]]


def test_a_language_model_reads_verilog(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    known = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "adder", "lookahead", "multiplier", "decoder"])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(known), **small)).save_pretrained(tmp_path)
    system = catalog.create("mgvga", "tiny", text_encoder=f"hf:{tmp_path}", steps=2, tasks=())
    system.fit(items(), run=tmp_path / "run")
    assert system.assets["text_width"] == 8
    made = system.texts(items())
    assert np.abs(made[0] - made[2]).max() > 1e-4
    np.testing.assert_allclose(catalog.load(tmp_path / "run").texts(items()), made)
