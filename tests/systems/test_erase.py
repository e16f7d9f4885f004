"""ERASE: rates, noise, propagation, attention, the sampler, both forms, verbs, bad input, official weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GATv2Conv
from torch_geometric.nn.models import LabelPropagation

from repertory import runs
from repertory.data.graph import per_class
from repertory.errors import ConfigError, DataError, UserError
from repertory.systems.erase import (
    ERASE,
    CodingRateReduction,
    GraphAttentionEncoder,
    Neighbours,
    PseudoLabels,
    class_coding_rate,
    coding_rate,
    column_normalised,
    corrupted,
    denoised,
    from_official_keys,
    propagated,
    prototypes,
    transition_matrix,
)
from repertory.systems.erase.attention import SparseGATConv, SparseGATv2Conv, with_self_loops
from repertory.systems.erase.labels import one_hot, similarity
from repertory.systems.erase.model import regression
from repertory.systems.erase.sampler import subsets
from repertory.systems.erase.system import suspicion

torch.set_num_threads(1)


def blocks(nodes=90, classes=3, seed=0, width=12, **changes):
    """A stochastic block model whose features lean towards their class, as a PyG ``Data``."""
    random = np.random.default_rng(seed)
    y = np.arange(nodes) % classes
    near = random.random((nodes, nodes)) < np.where(y[:, None] == y, 0.25, 0.02)
    near = np.triu(near, 1)
    edges = np.stack(np.nonzero(near | near.T))
    x = random.random((nodes, width)) + 2 * np.eye(width)[y]
    split = per_class(y, 8, 4, seed)
    masks = {f"{part}_mask": torch.from_numpy(split == part) for part in ("train", "val", "test")}
    plain = {"x": torch.from_numpy(x).float(), "edge_index": torch.from_numpy(edges), "y": torch.from_numpy(y), **masks}
    return Data(**{name: value for name, value in {**plain, **changes}.items() if value is not None})


def tiny(**changes):
    return ERASE(ERASE.Config.build("tiny", **{"hidden": 16, "dim": 8, "epochs": 10, "noise": 0.3, **changes}))


@pytest.fixture(scope="module")
def fitted():
    return tiny(epochs=40).fit(blocks())


# -- the loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [5, 40])
def test_rates_equal_their_determinants_and_gradients(width):
    z = torch.randn(30, width, dtype=torch.float64, requires_grad=True)
    labels = torch.cat([torch.arange(24) % 3, torch.full((6,), 4)])  # class 3 is empty
    eye, m = torch.eye(width, dtype=torch.float64), 30
    plain = 0.5 * torch.logdet(eye + 1.5 * width / (m * 0.1) * z.T @ z)
    within = sum(
        len(part) / (2 * m) * torch.logdet(eye + width / (len(part) * 0.1) * part.T @ part)
        for part in (z[labels == k] for k in (0, 1, 2, 4))
    )
    torch.testing.assert_close(coding_rate(z, 0.1, 1.5), plain)
    torch.testing.assert_close(class_coding_rate(z, labels, 5, 0.1), within)
    ours = CodingRateReduction(0.1, 1.5, 3.0)(z, labels, 5).loss
    torch.testing.assert_close(ours, 1.5 * within - 3 * plain)
    for mine, theirs in zip(
        *(torch.autograd.grad(value, z) for value in (ours, 1.5 * within - 3 * plain)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_properties_of_the_rates():
    torch.manual_seed(0)
    z = F.normalize(torch.randn(60, 6, dtype=torch.float64))
    labels = torch.arange(60) % 4
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    rate, within = coding_rate(z, 0.05), class_coding_rate(z, labels, 4, 0.05)
    assert rate > within
    torch.testing.assert_close(class_coding_rate(z, torch.zeros(60, dtype=torch.long), 1, 0.05), rate)
    torch.testing.assert_close(coding_rate(z @ turn, 0.05), rate)
    torch.testing.assert_close(class_coding_rate(z @ turn, labels, 4, 0.05), within)
    torch.testing.assert_close(  # every class has the same covariance
        class_coding_rate(z.repeat(3, 1), torch.arange(3).repeat_interleave(60), 3, 0.05), coding_rate(z, 0.05)
    )
    with pytest.raises(DataError, match="label 3: labels from 0 to 2"):
        class_coding_rate(z, labels, 3, 0.05)
    with pytest.raises(ConfigError, match="eps=0"):
        CodingRateReduction(0.0)


# -- noise and labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["symmetric", "asymmetric"])
def test_noise_follows_its_matrix(noise):
    np.random.seed(0)
    matrix = transition_matrix(4, 0.3, noise)
    np.testing.assert_allclose(matrix.sum(1), 1)
    np.testing.assert_allclose(matrix.diagonal(), 0.7)
    assert ((matrix > 0).sum(1) == (4 if noise == "symmetric" else 2)).all()
    labels = np.repeat(np.arange(4), 20_000)
    counts = np.zeros((4, 4))
    np.add.at(counts, (labels, corrupted(labels, matrix)), 1)
    np.testing.assert_allclose(counts / 20_000, matrix, atol=0.015)
    assert corrupted(np.array([0, 1]), matrix, np.array([1 - 1e-16, 0.0])).max() < 4
    for bad, message in (
        ((1, 0.2), "two classes"),
        ((3, 1.2), "noise 1.2"),
        ((3, 0.2, "asymmetric", [0, 2, 1]), "itself"),
    ):
        with pytest.raises(ConfigError, match=message):
            transition_matrix(*bad)
    with pytest.raises(DataError, match="0 to 3 are needed"):
        corrupted(np.array([4]), matrix)


def test_propagation_keeps_mass_and_columns_sum_to_one():
    edges = blocks().edge_index
    alone = torch.tensor([[0, 5, 5], [0, 5, 6]])  # self-loops and duplicates change nothing
    adjacency = column_normalised(torch.cat([edges, edges[:, :7], alone[:, :2]], 1), 90)
    torch.testing.assert_close(adjacency.to_dense(), column_normalised(edges, 90).to_dense())
    degree = torch.bincount(edges[0], minlength=90)
    torch.testing.assert_close(adjacency.to_dense().sum(0), (degree > 0).float())
    scores = torch.rand(90, 3) * (degree > 0)[:, None]
    torch.testing.assert_close(propagated(scores, adjacency, 4, 0.3).sum(0), scores.sum(0))
    assert torch.equal(propagated(scores, adjacency, 5, 1.0), scores)
    for times, alpha in ((-1, 0.5), (1, 1.5)):
        with pytest.raises(ConfigError, match="alpha in 0"):
            propagated(scores, adjacency, times, alpha)


def test_denoising_stays_among_training_nodes_and_mends_labels():
    graph = blocks(nodes=240)
    np.random.seed(0)
    train = torch.from_numpy(np.sort(np.random.permutation(240)[:150]))
    noisy = torch.from_numpy(corrupted(graph.y[train].numpy(), transition_matrix(3, 0.4)))
    scores = denoised(noisy, train, graph.edge_index, 240, 3, 5, 0.6)
    assert not scores[np.setdiff1d(np.arange(240), train)].any()
    before, after = ((labels == graph.y[train]).float().mean() for labels in (noisy, scores[train].argmax(1)))
    assert after > before + 0.2


def test_large_form_equals_label_propagation_of_pyg():
    graph = blocks()
    train, labels = graph.train_mask.nonzero()[:, 0], graph.y[graph.train_mask]
    pseudo = PseudoLabels(graph.edge_index, 90, labels, train, 3, 0.7, 0.4, 6, "sampled")
    spread = LabelPropagation(6, 0.7)
    clean = spread(F.one_hot(graph.y, 3).float(), graph.edge_index, mask=train)
    torch.testing.assert_close(pseudo.denoised, clean)
    z = torch.rand(90, 5)
    means = prototypes(z[train], clean[train].argmax(1), 3)
    expected = spread(0.4 * clean + 0.6 * similarity(z, means), graph.edge_index, mask=train)
    torch.testing.assert_close(pseudo(z), expected)


def test_an_empty_class_has_no_prototype():
    means = prototypes(torch.rand(4, 3), torch.tensor([0, 0, 2, 2]), 3)
    assert not means[1].any()
    assert torch.equal(similarity(torch.rand(5, 3), means)[:, 1], torch.zeros(5))
    with pytest.raises(DataError, match=r"1 training labels lie outside 0 to 1 .first: node 7, 2"):
        one_hot(torch.tensor([0, 2]), torch.tensor([3, 7]), 9, 2)
    pseudo = PseudoLabels(blocks().edge_index, 90, torch.tensor([0, 0, 2]), torch.tensor([0, 3, 2]), 3, 0.6, 0.6, 1)
    assert pseudo.empty == [1]


# -- attention, sampler --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), [(SparseGATConv, GATConv), (SparseGATv2Conv, GATv2Conv)])
def test_sparse_attention_equals_pyg(ours, theirs):
    torch.manual_seed(0)
    graph, grads, values = blocks(), [], []
    layer, plain = ours(12, 4, 3, add_self_loops=False), theirs(12, 4, 3)
    layer.load_state_dict(plain.state_dict())
    x = graph.x.clone().requires_grad_()
    weight = torch.rand(90, 12)
    for module, edges in ((layer, with_self_loops(graph.edge_index, 90, 90)), (plain, graph.edge_index)):
        values.append(module(x, edges))
        grads.append(torch.autograd.grad((values[-1] * weight).sum(), [x, *module.parameters()]))
    torch.testing.assert_close(*values)
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("convolution", ["GAT", "GATv2"])
@pytest.mark.parametrize(("form", "layers"), [("full", 2), ("full", 3), ("sampled", 2), ("sampled", 3)])
def test_blocks_and_chunks_give_the_whole_graphs_vectors(convolution, form, layers):
    torch.manual_seed(0)
    graph = blocks()
    encoder = GraphAttentionEncoder(12, 8, 6, 2, layers, convolution, form=form).eval()
    near = Neighbours(graph.edge_index, 90)
    whole = encoder(graph.x, graph.edge_index)
    for size in (7, 90):
        chunks = encoder.embed(graph.x, near, size)
        torch.testing.assert_close(whole, chunks.relu())
        assert bool((chunks < 0).any()) == (form == "sampled")
    assert (whole.sum(1) <= 1 + 1e-6).all() or form == "sampled"
    seeds = np.array([5, 60, 3])
    hops = near.blocks(seeds, 90, layers)
    torch.testing.assert_close(encoder(graph.x[hops[0].sources], hops), whole[seeds])


def test_the_sampler_draws_subsets_evenly():
    np.random.seed(0)
    drawn = subsets(np.full(20_000, 5), 3)
    drawn.sort(axis=1)
    assert (np.diff(drawn, axis=1) > 0).all()
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 10
    assert np.abs(counts - 2000).max() < 200
    graph = blocks()
    near = Neighbours(graph.edge_index, 90)
    block = near.block(np.array([4, 9]), 2)
    known = set(map(tuple, graph.edge_index.T.tolist()))
    ends = block.sources[block.edges].T.tolist()
    assert {(j, i) for i, j in map(tuple, ends)} <= known
    assert len(set(map(tuple, ends))) == 4
    assert block.sources[:2].tolist() == [4, 9]


def test_regression_of_one_two_and_missing_classes():
    z = torch.randn(40, 5)
    for labels in (torch.full((40,), 2), (z[:, 0] > 0).long() * 3, torch.arange(40) % 3):
        weight, bias = regression(z, labels, 4)
        said = F.linear(F.normalize(z), weight, bias).softmax(1)
        present = labels.unique()
        assert torch.equal(said[:, present].sum(1).round(decimals=5), torch.ones(40))
        assert set(said.argmax(1).tolist()) <= set(present.tolist())
    labels = (z[:, 0] > 0).long() * 3
    weight, bias = regression(z, labels, 4)
    assert (F.linear(F.normalize(z), weight, bias).argmax(1) == labels).float().mean() > 0.9


# -- the system --------------------------------------------------------------------------------------------------------


def test_it_learns_cleans_and_scores(fitted):
    metrics = fitted.evaluate()
    assert metrics["accuracy"].value > 0.85
    assert metrics["labels_cleaned"].value > metrics["labels_given"].value
    table = fitted.score().to_pandas()
    true = dict(zip(fitted.splits.train.ids, fitted.splits.train.labels(), strict=True))
    wrong = np.array([true[i] != label for i, label in zip(table["id"], table["label"], strict=True)])
    assert wrong.any()
    assert table["score"][wrong].mean() > table["score"][~wrong].mean()
    assert ((table["score"] > 0) == (table["label"] != table["cleaned"])).all()
    assert (np.diff(table["score"]) <= 0).all()
    said = fitted.predict(classes=True).to_pandas()
    np.testing.assert_allclose(said.filter(like="probability of").sum(axis=1), 1, rtol=1e-5)
    assert len(fitted.figures(fitted.splits.test)) == 5


def test_another_graph_of_the_same_width(fitted):
    other = blocks(seed=7, nodes=60, train_mask=None, val_mask=None, test_mask=None)
    assert fitted.embed(other).vectors.shape == (60, 8)
    table = fitted.score(other).to_pandas()
    assert len(table) == 60
    assert fitted.evaluate(other)["accuracy"].value > 0.8
    with pytest.raises(DataError, match="the nodes have 11 features; the model was fitted to 12"):
        fitted.embed(blocks(width=11))
    directed = blocks()
    directed.edge_index = directed.edge_index[:, directed.edge_index[0] != 0]
    with pytest.raises(DataError, match=r"graph must be undirected: \d+ of \d+ edges have no reverse .first: \d+ to 0"):
        fitted.embed(directed)
    with pytest.raises(DataError, match="class that no training node has"):
        fitted.evaluate(blocks(seed=9, classes=4, train_mask=None, val_mask=None, test_mask=None))


def test_validation_on_another_graph():
    system = tiny().fit(blocks(), validation=blocks(seed=5, train_mask=None, val_mask=None, test_mask=None))
    assert "val/accuracy" in {row["name"] for row in system.run.metrics}
    with pytest.raises(DataError, match="validation nodes have 9 features"):
        tiny().fit(blocks(), validation=blocks(seed=5, width=9, train_mask=None, val_mask=None, test_mask=None))


@pytest.mark.parametrize("convolution", ["GAT", "GATv2"])
def test_the_sampled_form(convolution):
    options = {"form": "sampled", "seeds": 10, "neighbours": 3, "lr": 0.01, "validate_every": 1, "times": 10}
    system = tiny(convolution=convolution, epochs=12, **options).fit(blocks(nodes=150))
    assert system.evaluate()["accuracy"].value > 0.7
    again = tiny(convolution=convolution, epochs=12, **options).fit(blocks(nodes=150))
    assert again.fingerprint == system.fingerprint
    steps = [row["step"] for row in system.run.metrics if row["name"] == "val/accuracy"]
    assert steps[:2] == [1, 3]


def test_the_sampled_form_resumes_within_an_epoch(tmp_path, monkeypatch):
    options = {"form": "sampled", "seeds": 8, "epochs": 3, "validate_every": 1}
    whole, cut, saved = tiny(**options).fit(blocks()), tiny(**options), []
    save = runs.Run.save_state

    def save_and_die(self, *args):
        save(self, *args)
        saved.append(args)
        if len(saved) == 4:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        for name in ("FIRST_CHECKPOINT", "CHECKPOINT_EVERY"):
            patch.setattr(runs, name, 0.0)
        patch.setattr(runs.Run, "save_state", save_and_die)
        with pytest.raises(RuntimeError, match="killed"):
            cut.fit(blocks(), run=tmp_path / "run")
    resumed = tiny(**options).fit(blocks(), run=tmp_path / "run", resume=True)
    assert resumed.run.resumed_from
    assert resumed.fingerprint == whole.fingerprint


@pytest.mark.parametrize("form", ["full", "sampled"])
def test_bf16_autocast(form):
    made = tiny(form=form, seeds=10, epochs=3, validate_every=1).fit(blocks(), trainer={"precision": "bf16-mixed"})
    assert np.isfinite(made.embed().vectors).all()


def test_patience_ends_training():
    system = tiny(epochs=200, patience=10, lr=1e-9).fit(blocks())
    assert max(row["step"] for row in system.run.metrics) < 40


def test_clean_labels_and_hidden_ones():
    graph = blocks()
    graph.y[graph.test_mask] = -1
    graph.test_mask = graph.val_mask.clone()
    graph.val_mask = graph.train_mask & (torch.arange(90) % 4 == 0)
    graph.train_mask &= ~graph.val_mask
    system = tiny(noise=0.0, epochs=30).fit(graph)
    assert len(system.embed(graph)) == 90
    assert system.predict(graph).num_rows == 90
    assert "labels_given" not in system.evaluate()
    assert any("changed" in caption for caption in system.figures(system.splits.test))


def test_vectors_of_zeros_are_named():
    system = tiny(epochs=1).fit(blocks())
    with torch.no_grad():
        system.model.encoder.layers[1].lin.weight.zero_()
        system.model.encoder.layers[1].bias.fill_(-1)
    with pytest.warns(UserWarning, match="60 nodes have a vector of zeros .first: node 0"):
        system.embed(blocks(nodes=60))


def test_suspicion():
    score, cleaned = suspicion(np.array([[0.5, 0.25], [0.1, 0.4], [0.0, 0.0]]), np.array([1, 1, 0]))
    np.testing.assert_allclose(score, [np.log(2), -np.log(4), 0], atol=1e-9)
    assert cleaned.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 3}, "heads=3 do not divide hidden=16"),
        ({"alpha": 1.1}, "alpha"), ({"beta": -0.1}, "beta"), ({"eps": 0}, "eps"), ({"times": -1}, "times"),
        ({"layers": 1}, "layers"), ({"convolution": "GCN"}, "convolution"),
    ],
)  # fmt: skip
def test_bad_options(config, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**config)


def test_bad_building_blocks():
    with pytest.raises(ConfigError, match="heads=3 do not divide hidden=16: 15 would be left"):
        GraphAttentionEncoder(4, 16, 8, 3)
    with pytest.raises(ConfigError, match="layers=1"):
        GraphAttentionEncoder(4, 16, 8, 2, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": None}, "the nodes have no labels"),
        ({"y": torch.zeros(90, dtype=torch.long)}, "all training nodes are of class '0'"),
        ({"train_mask": torch.arange(0, 90, 3)[:9]}, "all training nodes are of class '0'"),
        ({"train_mask": torch.tensor([0, 1])}, "class '2' has no training node, but validation nodes"),
    ],
)
def test_bad_data(changes, message):
    graph = blocks()
    if "train_mask" in changes:
        changes = {**changes, "val_mask": torch.tensor([80, 82, 83]), "test_mask": torch.tensor([70, 71])}
    graph = blocks(**changes)
    with pytest.raises(DataError, match=message):
        tiny().fit(graph)


def test_classes_that_vanish():
    x, y = torch.rand(12, 4), torch.tensor([0] * 8 + [1, 2, 1, 2])
    ring = torch.arange(8)
    edges = torch.stack([ring, (ring + 1) % 8])
    star = torch.stack([torch.full((8,), 8), ring])
    both = torch.cat([edges, star, torch.tensor([[9, 10, 9], [10, 11, 11]])], 1)
    graph = Data(
        x=x, y=y, edge_index=torch.cat([both, both.flip(0)], 1), train_mask=torch.tensor([0, 1, 2, 3, 4, 5, 8, 9]),
        val_mask=torch.tensor([6, 11]), test_mask=torch.tensor([7, 10]),
    )  # fmt: skip
    options = {"noise": 0.0, "alpha": 0.1, "epochs": 2}
    with pytest.raises(DataError, match="no training node keeps class '1' once labels are denoised"):
        tiny(**options).fit(graph)
    kept = tiny(**options, empty_class="zero").fit(graph)
    assert not kept.model.prototypes[1].any()


@pytest.mark.parametrize("convolution", ["GAT", "GATv2"])
def test_official_checkpoint(tmp_path, convolution):
    torch.manual_seed(0)
    make = {"GAT": GATConv, "GATv2": GATv2Conv}[convolution]
    official = torch.nn.Module()
    official.layers = torch.nn.ModuleList([make(12, 4, 4), make(16, 4, 4), make(16, 6, 1)])
    state = official.state_dict()
    torch.save(state, tmp_path / "best_model.pth")
    system = ERASE.from_official(tmp_path / "best_model.pth")
    assert {f"encoder.{name}" for name in state} <= set(system.model.state_dict())
    assert (system.config.heads, system.config.layers, system.config.dim) == (4, 3, 6)
    graph = blocks()
    h = F.normalize(graph.x, p=1)
    for i, layer in enumerate(official.layers):
        h = layer(h, graph.edge_index)
        h = F.leaky_relu(h, 0.01) if i < 2 else h
        h = F.normalize(h, p=1) if i != 1 else h
    torch.testing.assert_close(torch.from_numpy(system.embed(graph).vectors), h.relu().detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(system.encoder(graph), h.relu(), rtol=1e-4, atol=1e-6)
    older = {f"module.{name.replace('.lin.', '.lin_src.')}": value for name, value in state.items()}
    assert from_official_keys(older).keys() == state.keys()
    with pytest.raises(UserError, match="imported without classes"):
        system.predict(graph)
    assert "effective_rank" in system.evaluate(graph)
    with pytest.raises(UserError, match="no graph attention network of ERASE"):
        ERASE.from_official({"layers.0.weight": torch.zeros(1)})
