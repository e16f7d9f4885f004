"""RLMRec: losses against their plain forms, rankings, texts, cold users, official files, bad input."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F

from repertory import catalog, data
from repertory.data.interactions import Interactions
from repertory.errors import ConfigError, DataError, UserError
from repertory.systems.rlmrec import (
    Alignment,
    AutoCF,
    Bipartite,
    Chosen,
    Contrastive,
    Draws,
    Edges,
    Generative,
    LightGCN,
    RLMRec,
    RLMRecSystem,
    Tfidf,
    Triples,
    described,
    embedded,
    info_nce,
    of_rankings,
    parse_answer,
    rank,
    reconstruction,
    simulated,
)
from repertory.systems.rlmrec.data import TripleBatches, negatives, read_matrix
from repertory.systems.rlmrec.objective import log_sum_exp
from repertory.systems.rlmrec.ranking import best
from repertory.systems.rlmrec.system import _shape_of

torch.set_num_threads(1)
USERS, ITEMS = 30, 40


def _pairs(count=250, seed=0):
    keys = np.random.default_rng(seed).choice(USERS * ITEMS, count, replace=False)
    return np.stack([keys // ITEMS, keys % ITEMS], axis=1)


def _graph(**options):
    return Bipartite(USERS, ITEMS, torch.from_numpy(_pairs()), **options)


def _world(**options):
    return data.open(simulated(users=USERS, items=ITEMS, positives=8, width=6, **options))


def _tiny(**options):
    return RLMRecSystem.Config.build("tiny", **{"ks": (5, 10), **options})


@pytest.fixture(scope="module")
def fitted():
    return RLMRecSystem(_tiny()).fit(_world(), seed=0)


# -- numbers ---------------------------------------------------------------------------------------------------


def test_products_with_sparse_matrices_and_their_gradients_equal_dense_ones():
    torch.manual_seed(0)
    edges = Edges(torch.randint(9, (30,)), torch.randint(9, (30,)), 9)  # not symmetric
    values = torch.rand(len(edges), dtype=torch.float64, requires_grad=True)
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    dense = torch.zeros(9, 9, dtype=torch.float64).index_put((edges.rows, edges.cols), values)
    expected = torch.autograd.grad((dense @ x).square().sum(), (values, x))
    made = torch.autograd.grad(edges.apply_to(values, x).square().sum(), (values, x))
    for ours, theirs in zip(made, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("loops", [False, True])
def test_the_adjacency_is_symmetric_with_spectral_radius_of_at_most_one(loops):
    graph = _graph(loops=loops)
    dense = torch.zeros(70, 70).index_put((graph.rows, graph.cols), graph.adjacency)
    torch.testing.assert_close(dense, dense.T)
    assert torch.linalg.eigvalsh(dense).abs().max() <= 1 + 1e-5


def test_info_nce_counts_copies_as_copies():
    torch.manual_seed(0)
    numbers = torch.randint(6, (20,))
    table, other = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def plain(a, p, k):
        a, p, k = (z / torch.sqrt(1e-8 + z.square().sum(-1, keepdim=True)) for z in (a, p, k))
        return (-(a * p).sum(-1) / 0.2 + torch.log(torch.exp(a @ k.T / 0.2).sum(-1))).sum()

    expected = plain(table[numbers], other[numbers], other[numbers])
    some, counts = numbers.unique(return_counts=True)
    made = info_nce(table[some], other[some], other[some], 0.2, counts, counts)
    torch.testing.assert_close(made, expected)
    for ours, theirs in zip(*(torch.autograd.grad(z, (table, other)) for z in (made, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_info_nce_of_one_row_with_itself_is_nothing_and_does_not_overflow():
    row = torch.randn(1, 8)
    assert abs(info_nce(row, row, row, 0.2)) < 1e-6
    assert torch.isfinite(info_nce(row, -row, torch.cat([row, -row]), 0.005))


def test_log_sum_exp_of_large_logits():
    rows, keys, weights = torch.randn(5, 4) * 30, torch.randn(7, 4) * 10, torch.rand(5)
    torch.testing.assert_close(log_sum_exp(rows, keys, weights), weights @ torch.logsumexp(rows @ keys.T, 1))


def test_reconstruction_does_not_depend_on_the_order_of_nodes():
    mapped, texts, order = torch.randn(12, 6), torch.randn(12, 6), torch.randperm(12)
    torch.testing.assert_close(reconstruction(mapped, texts, 0.5), reconstruction(mapped[order], texts[order], 0.5))


def test_the_step_equals_the_straightforward_one():
    from benchmarks.rlmrec import TEMPERATURE, WEIGHT, WIDTH, Straightforward

    torch.manual_seed(0)
    graph = _graph()
    model = RLMRec(
        LightGCN(graph, 32, 3, 0.8), Contrastive(torch.randn(70, WIDTH), USERS, 32, WEIGHT, TEMPERATURE), 1e-7
    )
    batch = Triples(*(torch.randint(n, (64,)) for n in (USERS, ITEMS, ITEMS)))
    kept = torch.rand(len(graph)) < 0.8
    expected = Straightforward(model)(batch, kept)
    made = torch.stack(list(model(batch, Draws(kept=[kept])).values())).sum()
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(*(torch.autograd.grad(z, list(model.parameters())) for z in (made, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_inference_knows_no_mask_and_no_dropout():
    torch.manual_seed(0)
    backbone = LightGCN(_graph(), 8, 2, 0.5)
    model = RLMRec(backbone, Generative(torch.randn(70, 6), USERS, 8, 8, 0.3, 0.1, 0.2), 1e-6)
    before = model.embeddings()
    model(Triples(*(torch.randint(n, (9,)) for n in (USERS, ITEMS, ITEMS))))
    model.train()
    for first, second in zip(before, model.embeddings(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("augmentation", ["edge_drop", "node_drop", "random_walk"])
def test_sgl_drops_edges_or_nodes(augmentation):
    graph = _graph()
    kept = torch.zeros(len(graph), dtype=torch.bool)
    if augmentation == "node_drop":
        nodes = torch.ones(70, dtype=torch.bool)
        nodes[3] = False
        assert (graph.drop_nodes(0.5, nodes)[(graph.rows == 3) | (graph.cols == 3)] == 0).all()
    assert not graph.drop_edges(0.5, kept).any()
    from repertory.systems.rlmrec import SGL

    model = SGL(graph, 8, 2, 0.5, 0.1, 0.2, augmentation=augmentation)
    view = model.view(model.nodes(), Draws(), 0)
    assert not torch.equal(view, model.propagate(model.nodes()))


def test_autocf_hides_edges_around_its_seeds():
    torch.manual_seed(0)
    backbone = AutoCF(_graph(), 8, 2, 1, 2, 3, 2, 10, 1.0)
    seeds = torch.tensor([2, 5, 40])
    (encoder, values), (decoder, _) = backbone.masked_graphs(seeds, torch.Generator().manual_seed(0))
    hidden = torch.zeros(70, dtype=torch.bool)
    hidden[seeds] = True
    hidden |= (
        backbone.graph.touching(hidden)
        .new_zeros(70)
        .index_fill(0, backbone.graph.cols[hidden[backbone.graph.rows]], True)
    )
    assert not encoder.touching(hidden).any()
    assert torch.isfinite(values).all()
    loops = decoder.rows == decoder.cols
    assert decoder.rows[loops].tolist() == list(range(70))
    assert len(decoder) > len(encoder) + 70
    memory = backbone.memory()
    torch.manual_seed(1)
    first, new = memory.draws(0)
    assert set(new) == {"local"}
    again = backbone.memory()
    again.load_state_dict(memory.state_dict())
    later, none = again.draws(3)  # as after a resume
    assert not none
    assert torch.equal(first.graphs[1][0].rows, later.graphs[1][0].rows)


# -- batches and rankings ----------------------------------------------------------------------------------------


def test_an_epoch_has_every_interaction_once_with_items_that_were_not_chosen():
    pairs = _pairs()
    chosen = Chosen(pairs, USERS, ITEMS)
    batches = TripleBatches(pairs, chosen, 64)
    drawn = [batches[k] for k in range(len(batches))]
    seen = np.concatenate([np.stack([b.users.numpy(), b.positives.numpy()], axis=1) for b in drawn])
    assert sorted(map(tuple, seen)) == sorted(map(tuple, pairs))
    for batch in drawn:
        assert not chosen.has(batch.users.numpy(), batch.negatives.numpy()).any()
    almost = Chosen(np.stack([np.zeros(39, int), np.arange(39)], axis=1), 1, 40)
    assert (negatives(np.zeros(50, int), almost) == 39).all()


def test_rankings_equal_sorting_and_measures_equal_their_definition():
    torch.manual_seed(0)
    users, items = torch.randn(50, 8), torch.randn(1030, 8)
    random = np.random.default_rng(0)
    train = np.stack([random.integers(50, size=400), random.integers(1030, size=400)], axis=1)
    test = np.stack([random.integers(40, size=300), random.integers(1030, size=300)], axis=1)
    removed, relevant = Chosen(train, 50, 1030), Chosen(test, 50, 1030)
    found, scores = rank(users, items, removed, np.arange(50), 10)
    dense = (users @ items.T).numpy()
    dense[train[:, 0], train[:, 1]] = -1e8
    np.testing.assert_array_equal(found, np.argsort(-dense, axis=1, kind="stable")[:, :10])
    np.testing.assert_allclose(scores, np.take_along_axis(dense, found, axis=1), rtol=1e-5)
    assert torch.equal(best(torch.from_numpy(dense), 7), torch.from_numpy(dense).topk(7).indices)
    which = np.flatnonzero(relevant.sizes)
    made = of_rankings(relevant.has(which[:, None], found[which]), relevant.sizes[which], (5, 10))
    for row, user in enumerate(which):
        true = set(relevant.of(user))
        right = [item in true for item in found[user, :5]]
        ideal = sum(1 / np.log2(n + 2) for n in range(min(5, len(true))))
        assert made["recall"][row, 0] == pytest.approx(sum(right) / len(true))
        assert made["ndcg"][row, 0] == pytest.approx(sum(r / np.log2(n + 2) for n, r in enumerate(right)) / ideal)


# -- texts ---------------------------------------------------------------------------------------------------------


def test_answers_of_chat_models():
    assert parse_answer('{"summarization": "fans of noir", "reasoning": "dark"}') == ("fans of noir", "dark", True)
    for wrong in ("just words", '{"summary": 1}', '{"summarization": "None"}', "[1]", '{"summarization": null}'):
        assert parse_answer(wrong) == (wrong, "", False)
    assert parse_answer(None) == ("", "", False)


def _films():
    items = pd.DataFrame(
        {"id": range(ITEMS), "title": [f"film {n}" for n in range(ITEMS)], "genre": ["noir", "war"] * 20}
    )
    pairs = pd.DataFrame(_pairs(), columns=["user", "item"]).assign(review="fine")
    return data.open({"interactions": pairs, "items": items}, "interactions")


def test_profiles_are_written_from_training_alone_and_wrong_answers_are_named():
    asked = []

    def profile(instruction, prompt):
        told = json.loads(prompt)
        asked.append(told)
        if isinstance(told, dict) and told["title"] == "film 3":
            return "not JSON at all"
        return json.dumps({"summarization": "likes noir", "reasoning": "chosen"})

    splits = _films()
    with pytest.warns(UserWarning, match=r"1 answers are not the asked JSON and are kept as they are: item:3"):
        made = described(splits, profile)
    texts = dict(zip(made.all.ids, made.all.text("text"), strict=True))
    assert texts["item:3"] == "not JSON at all"
    assert texts["user:0"] == "likes noir"
    assert {"genre": "noir", "title": "film 0"}.items() <= asked[0].items()
    assert asked[0]["reviews"] == ["fine"] * len(asked[0]["reviews"])
    first = next(told for told in asked if isinstance(told, list))
    own = splits.train.table.pairs
    user = splits.all.users[0]
    assert len(first) == (splits.all.users[own[:, 0]] == user).sum()
    assert first[0]["description"] in ("likes noir", "not JSON at all")
    assert (made.membership == splits.membership).all()
    system = RLMRecSystem(_tiny()).fit(made)
    assert system.assets["embedder"] == "tfidf"


def test_any_callable_embeds_texts():
    made = embedded(_films(), lambda texts: np.random.default_rng(0).normal(size=(len(texts), 5)))
    assert made.all.vectors.shape == (USERS + ITEMS, 5)
    system = RLMRecSystem(_tiny()).fit(made)
    assert system.assets["embedder"] == "stored"
    assert system.model.alignment.mlp[0].in_features == 5
    with pytest.raises(DataError, match=r"1 vectors for 40 texts"):
        embedded(_films(), lambda texts: np.ones((1, 3)))


def test_tfidf_is_made_again_from_its_assets():
    texts = [f"{a} {b}" for a in ("noir", "war", "comedy") for b in ("old", "new", "french")]
    made = Tfidf.fit(texts, 4)
    np.testing.assert_allclose(Tfidf(**made.assets())(texts), made(texts), atol=1e-6)
    with pytest.raises(DataError, match="no word"):
        Tfidf.fit(["", "-"], 4)


def test_static_word_vectors_place_like_words_together():
    from repertory.systems.rlmrec import WordLlama

    made = WordLlama()(["a war film about soldiers", "a movie on the army in battle", "cooking pasta with tomatoes"])
    units = made / np.linalg.norm(made, axis=1, keepdims=True)
    assert units[0] @ units[1] > units[0] @ units[2] + 0.1
    splits = data.open("movielens-100k-wordllama?users=30", "interactions")
    assert splits.all.vectors.shape[1] == 256


def test_texts_that_say_nothing_count_as_missing():
    films = _films()
    texts = ["None" if i == "item:4" else "" for i in films.all.ids]
    spoiled = data.Splits(films.all.with_texts(texts), "memory", "source", [], films.membership)
    with pytest.warns(UserWarning, match=r"1 texts say nothing and count as missing \(item:4\)"):
        RLMRecSystem(_tiny()).fit(spoiled)


# -- the system ----------------------------------------------------------------------------------------------------


def test_texts_help_where_they_tell_who_chooses_what():
    splits = _world(noise=0.2, seed=1)
    made = {}
    for variant in ("base", "con"):
        config = _tiny(variant=variant, epochs=40, align_weight=0.3, dim=16, patience=None, validate_every=40)
        made[variant] = RLMRecSystem(config).fit(splits).evaluate()["recall_at_10"].value
    assert made["con"] > made["base"]


def test_recommendations_leave_out_what_was_chosen_and_give_reasons():
    system = RLMRecSystem(_tiny()).fit(_films())
    made = system.predict(k=5).to_pandas()
    assert len(made) == USERS * 5
    names = np.array(system.assets["users"])[system.assets["pairs"][:, 0]]
    items = np.array(system.assets["items"])[system.assets["pairs"][:, 1]]
    chosen = {(f"user:{u}", str(i)) for u, i in zip(names, items, strict=True)}
    assert not chosen & set(zip(made["id"], made["item"], strict=True))
    assert made["title"].str.startswith("film").all()
    own = dict(zip(system.assets["titles"], system.assets["items"], strict=True))
    row = made.iloc[7]
    assert len(row["because"]) == 2
    assert all((row["id"], own[title]) in chosen for title in row["because"])
    for _, of_user in made.groupby("id"):
        assert of_user["score"].is_monotonic_decreasing
    with pytest.raises(ConfigError, match=r"k=41: there are 40 items"):
        system.predict(k=41)


def test_new_users_are_placed_by_their_text_under_con_alone():
    splits = _world(noise=0.2, seed=2)
    config = {"epochs": 40, "align_weight": 0.3, "dim": 16, "patience": None, "validate_every": 40}
    system = RLMRecSystem(_tiny(**config)).fit(splits)
    # the same people under other names and without interactions
    new = Interactions.of([f"new{n}" for n in range(USERS)], [], np.empty((0, 2)), vectors=splits.all.vectors[:USERS])
    made = system.predict(new, k=10).to_pandas()
    assert (made["because"].map(len) == 0).all()
    pairs = splits.all.table.pairs
    hits = [
        item in pairs[pairs[:, 0] == int(name[8:]), 1]
        for name, item in zip(made["id"], made["item"].astype(int), strict=True)
    ]
    assert np.mean(hits) > 1.3 * 8 / ITEMS
    assert len(system.embed(new)) == USERS
    gen = RLMRecSystem(_tiny(variant="gen")).fit(splits)
    with pytest.raises(DataError, match=r"30 users were not fitted \(user:new0, .*only variant=con can place"):
        gen.predict(new)
    with pytest.raises(DataError, match="need text vectors of 6 numbers"):
        system.predict(Interactions.of(["new"], [], np.empty((0, 2))))


def test_new_people_are_read_from_a_table_of_their_texts(tmp_path):
    system = RLMRecSystem(_tiny()).fit(_films())
    pd.DataFrame({"id": ["ann", "bob"], "text": ["noir", "war"]}).to_csv(tmp_path / "users.csv", index=False)
    made = system.predict(tmp_path, k=4).to_pandas()
    assert made["id"].tolist() == ["user:ann"] * 4 + ["user:bob"] * 4
    pd.DataFrame({"id": ["ann", "bob"], "text": ["noir", None]}).to_csv(tmp_path / "users.csv", index=False)
    with pytest.raises(DataError, match=r"1 users were not fitted and have no text \(user:bob\)"):
        system.predict(tmp_path)


@pytest.mark.parametrize("backbone", ["lightgcn", "dccf", "autocf"])
def test_backbones_train_in_bfloat16(backbone):
    config = _tiny(backbone=backbone, epochs=1, intents=4)
    system = RLMRecSystem(config).fit(_world(), trainer={"precision": "bf16-mixed", "accelerator": "cpu"})
    assert all(torch.isfinite(parameter).all() for parameter in system.model.parameters())


def test_autocf_goes_on_bit_for_bit(tmp_path, monkeypatch):
    from repertory import runs

    monkeypatch.setattr(runs, "FIRST_CHECKPOINT", 0.0)
    monkeypatch.setattr(runs, "CHECKPOINT_EVERY", 0.0)
    config, source = _tiny(backbone="autocf", fix_steps=4, batch_size=64, epochs=4, seeds=5), _world()
    whole = RLMRecSystem(config).fit(source, run=tmp_path / "whole")
    saved = []
    save = runs.Run.save_state

    def killed(self, *args):
        save(self, *args)
        saved.append(args[:2])
        if len(saved) == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "save_state", killed)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            RLMRecSystem(config).fit(source, run=tmp_path / "killed")
    resumed = RLMRecSystem(config).fit(source, run=tmp_path / "killed", resume=True)
    assert resumed.run.resumed_from
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_another_source_selects():
    pairs = _pairs()
    table = Interactions.of(USERS, ITEMS, pairs[:200])
    other = Interactions.of(
        [str(n) for n in reversed(range(USERS))], ITEMS, [[USERS - 1 - u, i] for u, i in pairs[200:]]
    )
    system = RLMRecSystem(_tiny(variant="base")).fit(table, validation=other)
    assert any(row["name"] == "val/recall_at_10" for row in system.run.read_metrics())
    with pytest.raises(DataError, match="users or items that were not fitted"):
        RLMRecSystem(_tiny(variant="base")).fit(table, validation=Interactions.of(["x"], ITEMS, [[0, 1]]))


def test_figures_show_lists_curves_the_long_tail_and_the_map(fitted):
    made = fitted.figures(fitted.splits.test)
    assert len(made) == 4
    assert next(iter(made.values())).data[0].type == "table"


def test_published_settings_fill_what_is_not_given():
    config = RLMRecSystem.Config(backbone="simgcl", variant="gen", like="yelp")
    assert (config.of("align_temperature"), config.of("mask_ratio"), config.of("layers")) == (0.05, 0.01, 3)
    assert RLMRecSystem.Config().of("align_weight") == 1e-2
    assert RLMRecSystem.Config(align_weight=0.5).of("align_weight") == 0.5
    assert RLMRecSystem.Config(backbone="gccf", variant="gen").of("reg_weight") == 1e-7


# -- official files ------------------------------------------------------------------------------------------------


def _official(folder, suffix):
    random, pairs = np.random.default_rng(0), _pairs()
    for stem, part in (("trn_mat", pairs[:180]), ("val_mat", pairs[180:210]), ("tst_mat", pairs[205:])):
        matrix = scipy.sparse.coo_matrix((np.ones(len(part)), tuple(part.T)), shape=(USERS, ITEMS))
        if suffix == "npz":
            scipy.sparse.save_npz(folder / f"{stem}.npz", matrix)
        else:
            (folder / f"{stem}.pkl").write_bytes(pickle.dumps(matrix if stem != "val_mat" else matrix.tocsr()))
    for side, count in (("usr", USERS), ("itm", ITEMS)):
        profiles = {n: {"profile": f"{side} likes {n % 3}", "reasoning": "r"} for n in range(count)}
        (folder / f"{side}_prf.pkl").write_bytes(pickle.dumps(profiles))
        (folder / f"{side}_emb_np.pkl").write_bytes(pickle.dumps(random.normal(size=(count, 6))))


@pytest.mark.parametrize("suffix", ["npz", "pkl"])
def test_the_official_layout(tmp_path, suffix):
    _official(tmp_path, suffix)
    splits = data.open(tmp_path, "interactions", RLMRecSystem.readers)
    assert splits.rule == "source"
    assert [len(p.units) for p in (splits.train, splits.val, splits.test)] == [180, 30, 45]
    assert splits.all.text("text")[USERS + 1] == "itm likes 1"
    assert splits.all.vectors.shape == (70, 6)
    system = RLMRecSystem(_tiny()).fit(tmp_path)
    assert "recall_at_10" in system.evaluate()


def test_the_official_layout_is_refused_where_it_does_not_fit(tmp_path):
    _official(tmp_path, "npz")
    (tmp_path / "itm_emb_np.pkl").write_bytes(pickle.dumps(np.ones((3, 6))))
    with pytest.raises(DataError, match="3 text vectors for 40 rows"):
        data.open(tmp_path, "interactions", RLMRecSystem.readers)
    (tmp_path / "tst_mat.npz").unlink()
    with pytest.raises(DataError, match=r"no tst_mat\.npz or tst_mat\.pkl"):
        data.open(tmp_path, "interactions", RLMRecSystem.readers)


class _Attack:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_holds_anything_else_is_refused_and_not_executed(tmp_path, capsys):
    (tmp_path / "trn_mat.pkl").write_bytes(pickle.dumps(_Attack()))
    with pytest.raises(DataError, match=r"it holds builtins\.print"):
        read_matrix(tmp_path / "trn_mat.pkl")
    assert "executed" not in capsys.readouterr().out


STATES = {
    "lightgcn": {},
    "gccf": {f"gcnLayers.{n}.W": (8, 8) for n in range(2)},
    "dccf": {"user_intent": (8, 5), "item_intent": (8, 5)},
    "autocf": {f"gtLayers.0.{n}Trans": (8, 8) for n in "qkv"},
}


@pytest.mark.parametrize("backbone", STATES)
@pytest.mark.parametrize("variant", ["base", "con", "gen"])
def test_official_checkpoints_load(tmp_path, backbone, variant):
    embeds = [f"{side}_embeds" + (".weight" if backbone == "dccf" else "") for side in ("user", "item")]
    sizes = {embeds[0]: (USERS, 8), embeds[1]: (ITEMS, 8), **STATES[backbone]}
    width = 24 if backbone == "gccf" else 8
    first, last = (6, width) if variant == "con" else (width, 6)
    if variant != "base":
        middle = (6 + width) // 2
        sizes |= {
            "mlp.0.weight": (middle, first),
            "mlp.0.bias": (middle,),
            "mlp.2.weight": (last, middle),
            "mlp.2.bias": (last,),
        }
    if variant == "gen":
        sizes["gene_masker.mask_token" if backbone == "autocf" else "masker.mask_token"] = (1, 8)
    state = {name: torch.randn(*size) for name, size in sizes.items()}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(DataError):
        RLMRecSystem.from_official(tmp_path / "model.pt")  # no data beside it
    _official(tmp_path, "npz")
    system = RLMRecSystem.from_official(tmp_path / "model.pt")
    assert (system.config.backbone, system.config.variant) == (backbone, variant)
    users, _ = system.model.embeddings()
    assert users.shape == (USERS, width)
    assert torch.equal(system.model.backbone.user_embeds.detach(), state[embeds[0]])
    vectors = system.embed(data.open(tmp_path, "interactions", RLMRecSystem.readers).all)
    np.testing.assert_allclose(vectors.vectors[:USERS], users.detach().numpy(), atol=1e-6)
    with pytest.raises(UserError, match="do not say who has chosen what"):
        RLMRecSystem.from_official(state)


def test_shapes_of_checkpoints():
    weights = {"backbone.user_embeds": torch.zeros(3, 8), "backbone.item_embeds": torch.zeros(3, 8)}
    assert _shape_of(weights) == {"dim": 8, "variant": "base"}
    model = RLMRec(LightGCN(_graph(), 8, 2), Alignment(), 0.0)
    assert set(model.state_dict()) == {"backbone.user_embeds", "backbone.item_embeds"}


# -- bad input -----------------------------------------------------------------------------------------------------


def _spoiled_vectors(value):
    splits = _world()
    vectors = splits.all.vectors.copy()
    vectors[3] = value
    vectors[45, 2] = value if value == 0 else np.inf
    if value == 0:
        vectors[45] = 0
    return data.Splits(splits.all.with_vectors(vectors), "memory", "source", [], splits.membership)


def test_text_vectors_that_are_zero_or_not_finite_are_named():
    with pytest.raises(
        DataError, match=r"2 text vectors are zero or not finite \(user:3, item:15; the first is zero\)"
    ):
        RLMRecSystem(_tiny()).fit(_spoiled_vectors(0))
    with pytest.raises(DataError, match=r"1 text vectors are zero or not finite \(item:15; the first is not finite\)"):
        RLMRecSystem(_tiny()).fit(_spoiled_vectors(np.nan))


def test_data_without_texts_are_for_the_base_alone():
    pairs = Interactions.of(USERS, ITEMS, _pairs())
    with pytest.raises(DataError, match="variant=base needs none"):
        RLMRecSystem(_tiny()).fit(pairs)
    assert "texts" not in RLMRecSystem(_tiny(variant="base")).fit(pairs).assets


def test_a_user_who_chose_everything_is_refused():
    pairs = np.concatenate(
        [_pairs()[:0], np.stack([np.full(ITEMS, 4), np.arange(ITEMS)], axis=1), [[0, 0], [1, 1], [2, 3]]]
    )
    splits = data.Splits(
        Interactions.of(USERS, ITEMS, pairs), "memory", "source", [], np.array(["train"] * 41 + ["val", "test"], object)
    )
    with pytest.raises(DataError, match=r"user '4' has chosen all 40 items"):
        RLMRecSystem(_tiny(variant="base")).fit(splits)


def test_users_without_training_interactions_are_counted():
    pairs = _pairs()
    first = pairs[:, 0] == 2
    parts = np.where(first, "test", "train").astype(object)
    parts[np.flatnonzero(~first)[:5]] = "val"
    splits = data.Splits(Interactions.of(USERS, ITEMS, pairs), "memory", "source", [], parts)
    with pytest.warns(
        UserWarning, match=r"1 of 30 users have no training interaction \(2\): their vectors stay initial"
    ):
        RLMRecSystem(_tiny(variant="base")).fit(splits)


def test_test_interactions_that_were_trained_on_are_counted(tmp_path):
    frame = pd.DataFrame(_pairs(), columns=["user", "item"])
    frame.iloc[:200].to_csv(tmp_path / "train.csv", index=False)
    frame.iloc[190:].to_csv(tmp_path / "test.csv", index=False)
    (tmp_path / "parts.yaml").write_text("kind: interactions\ntrain: train.csv\ntest: test.csv\n")
    with pytest.warns(UserWarning, match=r"\d+ test interactions are also in training: they can never be"):
        RLMRecSystem(_tiny(variant="base")).fit(tmp_path / "parts.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"align_temperature": 0.0}, "align_temperature"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"cl_temperature": -1.0}, "cl_temperature"),
        ({"backbone": "ngcf"}, "backbone"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        _tiny(**options)


def test_lists_longer_than_the_items_are_refused():
    with pytest.raises(ConfigError, match="ks=50: there are only 40 items"):
        RLMRecSystem(_tiny(ks=(5, 50))).fit(_world())


def test_strangers_in_evaluation_are_named(fitted):
    pairs = pd.DataFrame({"user": ["0", "1"], "item": ["film z", "39"]})
    with pytest.raises(
        DataError, match=r"1 of 2 interactions are with items that were not fitted \(first: user 0, item film z\)"
    ):
        fitted.evaluate(pairs)


def test_a_run_is_loaded_without_its_data(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    again = catalog.load(tmp_path / "run")
    assert again.predict(fitted.splits.test, k=3).equals(fitted.predict(fitted.splits.test, k=3))
    assert F.cosine_similarity(*again.model.embeddings()[0][:2], dim=0).isfinite()
