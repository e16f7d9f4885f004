"""PiVeM and events: numbers against quadrature and dense algebra, simulation, readers, bad input, official files."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from repertory import catalog, data
from repertory.data.events import Events, merged
from repertory.errors import ConfigError, DataError, UserError
from repertory.systems.pivem import (
    Cells,
    KroneckerPrior,
    PiecewiseVelocityModel,
    PiVeM,
    negative_log_likelihood,
    simulate,
    swapping_groups,
    synthetic_network,
    unit_moments,
)
from repertory.systems.pivem.data import interactions, windows
from repertory.systems.pivem.model import OFFICIAL

torch.set_num_threads(1)


def _model(nodes=6, bins=4, speed=1.0, dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = PiecewiseVelocityModel(nodes, bins, 2, 3, 10.0, **options).to(dtype)
    with torch.no_grad():
        model.v.copy_(speed * torch.randn(model.v.shape, dtype=torch.float64))
    return model


def _cells(nodes=6, bins=4, events=40):
    torch.manual_seed(1)
    pairs = torch.randint(nodes, (3 * events, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]][:events]
    return pairs, torch.rand(len(pairs), dtype=torch.float64)


@pytest.fixture(scope="module")
def groups():
    return swapping_groups(nodes=12, inside=20.0, seed=1)


@pytest.fixture(scope="module")
def fitted(groups):
    return PiVeM(PiVeM.Config.build("tiny")).fit(data.open(groups[0], split="random"), seed=0)


# -- numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-4)])
def test_integral_equals_quadrature(dtype, tolerance):
    torch.manual_seed(0)
    speed = 10 ** (6 * torch.rand(2000, dtype=torch.float64) - 5)
    dx, dv = 3 * torch.randn(2, 2000, dtype=torch.float64), speed * torch.randn(2, 2000, dtype=torch.float64)
    a, p, n2 = -dx.square().sum(0), (dx * dv).sum(0), dv.square().sum(0)
    x, w = np.polynomial.legendre.leggauss(40)
    t = torch.from_numpy(np.concatenate([(x + 1) / 128 + edge for edge in np.arange(64) / 64]))
    weight = torch.from_numpy(np.tile(w / 128, 64))
    density = torch.exp(a[:, None] - 2 * p[:, None] * t - n2[:, None] * t * t)
    known = density @ weight > 1e-12
    made = unit_moments(torch.stack([a, p, n2]).to(dtype)).double()
    for k in range(3):
        reference = density @ (weight * t**k)
        assert ((made[k] - reference).abs()[known] / (density @ weight)[known]).max() < tolerance


@pytest.mark.parametrize("speed", [0.0, 1e-6, 1e-4, 1e-2, 1.0, 30.0])
def test_float32_gradients_are_right_at_every_velocity(speed):
    grads = []
    for dtype in (torch.float32, torch.float64):
        model = _model(speed=speed, dtype=dtype)
        negative_log_likelihood(*model.trajectories(), model.beta, model.width).backward()
        grads.append([p.grad.double() for p in (model.x0, model.v, model.beta)])
    for ours, exact in zip(*grads, strict=True):
        assert (ours - exact).norm() <= 1e-5 * exact.norm() + 1e-9


def test_compensator_gradient_tiles_and_masks():
    model = _model()
    x, v = (z.detach().requires_grad_() for z in model.trajectories())
    beta = model.beta.detach().requires_grad_()
    masked = torch.tensor([[0, 3], [2, 5]])
    assert torch.autograd.gradcheck(lambda *z: negative_log_likelihood(*z, 0.25, None, masked), (x, v, beta))
    whole = negative_log_likelihood(x, v, beta, 0.25)
    torch.testing.assert_close(negative_log_likelihood(x, v, beta, 0.25, tile=1), whole)
    pairs = torch.triu_indices(6, 6, 1).T
    torch.testing.assert_close(model.integral(pairs).sum(), whole)
    rest = negative_log_likelihood(x, v, beta, 0.25, None, masked)
    torch.testing.assert_close(whole - rest, model.integral(masked).sum())


def test_likelihood_equals_the_sum_over_events_and_a_fine_grid():
    model, (pairs, times) = _model(), _cells()
    nll = negative_log_likelihood(*model.trajectories(), model.beta, model.width, Cells.of(pairs, times, 6, 4))
    grid = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    every = torch.triu_indices(6, 6, 1).T
    integral = sum(model.log_intensity(pair.expand(len(grid), 2), grid).exp().mean() for pair in every)
    torch.testing.assert_close(nll, integral - model.log_intensity(pairs, times).sum(), rtol=1e-7, atol=1e-7)


def test_likelihood_is_invariant():
    model, (pairs, times) = _model(), _cells()
    x, v = model.trajectories()
    nll = negative_log_likelihood(x, v, model.beta, 0.25, Cells.of(pairs, times, 6, 4))
    turn = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64))[0]
    moved = negative_log_likelihood(x @ turn + 3, v @ turn + 2, model.beta, 0.25, Cells.of(pairs, times, 6, 4))
    torch.testing.assert_close(moved, nll)
    twice = v.repeat_interleave(2, 0)
    starts = x[0] + (twice.cumsum(0) - twice) / 8
    torch.testing.assert_close(
        negative_log_likelihood(starts, twice, model.beta, 0.125, Cells.of(pairs, times, 6, 8)), nll
    )


def test_bins_whose_width_is_not_a_decimal():
    times = torch.tensor([0, 1 / 3, 2 / 3, 1.0, 0.5])
    cells = Cells.of(torch.tensor([[0, 1]]).expand(5, 2), times, 2, 3)
    assert cells.count.tolist() == [1, 2, 2]
    torch.testing.assert_close(cells.residual, torch.tensor([0.0, 1 / 6, 1 / 3]))


def test_prior_equals_the_dense_density_and_its_gradient():
    torch.manual_seed(0)
    prior = KroneckerPrior(4, 3, 2, 10.0).double()
    with torch.no_grad():
        prior.sigma.fill_(2.0)  # above the clamp, so that its gradient counts
    x0 = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    v = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    inputs = [x0, v, *prior.parameters()]
    factor = torch.kron(
        prior.bin_factor().contiguous(), torch.kron(prior.node_factor(), torch.eye(2, dtype=torch.float64)).contiguous()
    )
    covariance = 100 * (prior.noise**2 * torch.eye(len(factor), dtype=torch.float64) + factor @ factor.T)
    z = torch.cat([x0[None], v]).reshape(-1)
    dense = -torch.distributions.MultivariateNormal(torch.zeros_like(z), covariance).log_prob(z)
    ours = prior(x0, v)
    torch.testing.assert_close(ours, dense)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(dense, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_extrapolation_equals_dense_regression():
    model = _model()
    x0, v = (z.detach() for z in model.centred())
    prior = model.prior
    times = torch.tensor([1.1, 1.4], dtype=torch.float64)
    c = prior.node_factor().detach().double()
    factor = torch.kron(prior.bin_factor().detach().contiguous(), c)
    covariance = prior.noise.detach().double() ** 2 * torch.eye(len(factor), dtype=torch.float64) + factor @ factor.T
    solved = torch.linalg.solve(covariance, torch.cat([x0[None], v]).reshape(-1, 2)).reshape(5, 6, 2)[1:]
    centres = (torch.arange(4, dtype=torch.float64) + 0.5) / 4
    kernel = torch.exp(-((times[:, None] - centres) ** 2) / (2 * prior.length.detach() ** 2))
    expected = torch.einsum("mb,bnd,nk,lk->mld", kernel, solved, c, c)
    torch.testing.assert_close(prior.expected_velocities(x0, v, times), expected)


def test_windows_are_integrated_truly():
    model = _model(speed=3.0)
    pairs, start, end = torch.tensor([[0, 1], [2, 3]]), torch.tensor([0.1, 0.3]), torch.tensor([0.62, 0.31])
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    for n in range(2):
        times = start[n] + (end[n] - start[n]) * grid
        mean = model.log_intensity(pairs[n].expand(len(grid), 2), times).exp().mean()
        torch.testing.assert_close(model.expected(pairs, start, end)[n], mean * (end[n] - start[n]), check_dtype=False)


# -- simulation ---------------------------------------------------------------------------------------------


def test_thinning_gives_poisson_counts():
    model = _model(speed=0.0, bins=5)
    starts, v = (z.detach() for z in model.trajectories())
    counts = np.zeros(15)
    for seed in range(300):
        pairs, times = simulate(starts, v, model.beta.detach() + 1, 0.2, torch.Generator().manual_seed(seed))
        counts += np.bincount(pairs[:, 0] * 6 + pairs[:, 1], minlength=36).reshape(6, 6)[np.triu_indices(6, 1)]
        assert ((times >= 0) & (times <= 1)).all()
    i, j = torch.triu_indices(6, 6, 1)
    mean = (
        300
        * torch.exp(model.beta[i] + model.beta[j] + 2 - (starts[0, i] - starts[0, j]).square().sum(1)).detach().numpy()
    )
    assert (np.abs(counts - mean) < 5 * np.sqrt(mean)).all()


def test_thinning_follows_a_moving_intensity():
    model = _model(nodes=2, bins=3, speed=4.0)
    with torch.no_grad():
        model.beta.fill_(4.0)
    starts, v = (z.detach() for z in model.trajectories())
    times = torch.cat(
        [simulate(starts, v, model.beta.detach(), 1 / 3, torch.Generator().manual_seed(s))[1] for s in range(20)]
    )
    edges = torch.linspace(0, 1, 10, dtype=torch.float64)
    expected = 20 * model.expected(torch.tensor([[0, 1]]).expand(9, 2), edges[:-1], edges[1:]).detach().numpy()
    assert (np.abs(np.histogram(times, edges)[0] - expected) < 5 * np.sqrt(expected) + 5).all()


def test_networks_from_the_prior():
    events = synthetic_network(groups=4, size=3, bins=10, beta=1.0)
    assert len(events) == 12
    assert len(events.units) > 20
    assert data.open(events, split="random").train.units.times.max() <= 1


def test_generate_and_write(fitted, tmp_path):
    twice = fitted.generate(n=2, seed=3)
    assert len(twice) == 24
    assert data.open(twice).fingerprint == data.open(fitted.generate(n=2, seed=3)).fingerprint
    made = fitted.generate(seed=3)
    assert abs(len(made.units) - len(fitted.splits.train.units)) < 0.5 * len(fitted.splits.train.units)
    for name in ("made.csv", "made.parquet"):
        assert data.open(f"events:{made.write(tmp_path / name)}").all.units.times.tolist() == made.units.times.tolist()
    few = fitted.generate(fitted.splits.all.take([0, 3, 4]))
    assert set(few.ids) == {"0", "3", "4"}
    with pytest.raises(ConfigError, match="n=0"):
        fitted.generate(n=0)
    with pytest.raises(DataError, match=r"\.csv or \.parquet"):
        made.write(tmp_path / "made.xlsx")


# -- the system -------------------------------------------------------------------------------------------------


def test_paths_show_the_swap(groups):
    events, memberships = groups
    system = PiVeM(PiVeM.Config.build("tiny", epochs=150)).fit(data.open(events, split="random"))
    i, j = np.triu_indices(12, 1)
    paths = system.positions(np.array(system.period) @ np.array([[0.75, 0.25], [0.25, 0.75]]))
    for at, member, other in zip(paths, memberships, memberships[::-1], strict=True):
        distance, same, crosswise = np.linalg.norm(at[i] - at[j], axis=1), member[i] == member[j], other[i] == other[j]
        assert distance[same].mean() < distance[~same].mean()
        assert distance[same].mean() < distance[crosswise].mean()


def test_stages_add_parameters_and_batches_of_nodes_work(groups):
    splits = data.open(groups[0], split="random")
    system = PiVeM(PiVeM.Config.build("tiny", nodes_per_batch=8, batches_per_epoch=2, epochs=9)).fit(splits, seed=1)
    assert [row["stage"] for row in system.run.metrics if row["name"] == "loss"] == [
        name for name in ("positions", "velocities", "prior") for _ in range(3)
    ]
    assert system.model.v.detach().abs().max() > 0
    without = PiVeM(PiVeM.Config.build("tiny", prior_scale=0.0, epochs=4)).fit(splits)
    assert {row["stage"] for row in without.run.metrics} == {"positions", "velocities"}
    with pytest.raises(DataError, match="without a prior"):
        without.positions([5.0], extrapolate=True)


def test_bf16_autocast_is_the_same(groups):
    splits = data.open(groups[0], split="random")
    config = PiVeM.Config.build("tiny", epochs=6)
    plain, mixed = (PiVeM(config).fit(splits, trainer=t) for t in ({}, {"precision": "bf16-mixed"}))
    torch.testing.assert_close(plain.model.v, mixed.model.v)


def test_pairs_held_out_are_masked(groups):
    system = PiVeM(PiVeM.Config.build("tiny")).fit(data.open(groups[0], split="group:pair"))
    held = {tuple(pair) for pair in interactions(system.splits.test, system.assets["nodes"]).pairs.tolist()}
    assert {tuple(pair) for pair in system.assets["masked"].tolist()} == held
    metrics = system.evaluate()
    assert {"completion_auc", "reconstruction_auc"} <= set(metrics)
    assert "prediction_auc" not in metrics


def test_embeddings_at_moments_and_unknown_nodes(fitted):
    items = fitted.splits.all
    low, high = fitted.period
    made = fitted.embed(items.take([2, 5]).at([low, (low + high) / 2]))
    assert made.key == ("node", "time")
    assert len(made) == 4
    np.testing.assert_allclose(made.vectors[2], fitted.positions([low])[0, 5], atol=1e-6)
    with pytest.raises(DataError, match=r"lies after the training period.*extrapolation"):
        fitted.embed(items.at([high + 1]))
    with pytest.raises(DataError, match="before the training period"):
        fitted.embed(items.at([low - 1]))
    with pytest.raises(DataError, match=r"1 of 2 nodes were not fitted .first: stranger"):
        fitted.embed(Events.of(["0", "stranger"], [[0, 1]], [0.5]))
    assert fitted.positions([high + 0.1], extrapolate=True).shape == (1, 12, 2)


def test_predict(fitted):
    low, high = fitted.period
    whole, first, second = (
        fitted.predict(start=a, end=b)["expected"].to_numpy()
        for a, b in ((None, None), (low, (low + high) / 2), ((low + high) / 2, high))
    )
    np.testing.assert_allclose(first + second, whole, rtol=1e-4)
    table = fitted.predict(fitted.splits.all.take([0, 1]))
    assert table.column_names == ["source", "target", "start", "end", "expected", "probability"]
    later = fitted.predict(end=high + 0.1, extrapolate=True)["expected"].to_numpy()
    assert (later >= whole - 1e-9).all()
    for options, message in (
        ({"start": 0.5, "end": 0.4}, "ends before it starts"),
        ({"end": 3.0}, "extrapolation"),
        ({"data": fitted.splits.all.take([0])}, "two nodes"),
    ):
        with pytest.raises(DataError, match=message):
            fitted.predict(**options)


def test_windows_hold_what_they_say(groups):
    known = interactions(groups[0], groups[0].ids)
    found = windows(known, known, 12, 0.0, 1.0, 0.02, np.random.default_rng(0), most=50)
    assert found.truth.sum() == 50
    for pair, start, end, truth in zip(*found, strict=True):
        mine = known.times[(known.pairs == pair).all(1)]
        assert bool(((mine >= start) & (mine <= end)).any()) == bool(truth)


def test_official_checkpoint(tmp_path):
    source = _model(nodes=5, bins=3, dtype=torch.float32, last_time=0.9)
    state = {official: source.get_parameter(ours).detach() for official, ours in OFFICIAL.items()}
    torch.save([{"nodes_num": 5, "last_time": 0.9, "prior_lambda": 10.0}, state], tmp_path / "official.pt")
    system = PiVeM.from_official(tmp_path / "official.pt")
    assert (system.last_time, system.config.prior_scale, system.config.bins) == (0.9, 10.0, 3)
    nodes = torch.arange(5)
    torch.testing.assert_close(
        torch.from_numpy(system.positions([0.4])[0]), source.position(nodes, torch.full((5,), 0.4)).detach()
    )
    system.save(tmp_path / "run")
    assert catalog.load(tmp_path / "run").fingerprint == system.fingerprint
    with pytest.raises(UserError, match="_BaseModel__beta is missing"):
        PiVeM.from_official({"x": torch.zeros(1)})
    with pytest.raises(UserError, match="no such file"):
        PiVeM.from_official(tmp_path / "none.pt")


# -- data ------------------------------------------------------------------------------------------------------------


def test_sample():
    splits = data.open("hospital-contacts")
    assert len(splits.all) == 75
    assert len(splits.all.units) == 14_037
    assert splits.rule == "time:time"
    assert splits.train.units.times.max() <= splits.test.units.times.min()
    assert set(splits.all.column("role")) == {"patient", "nurse", "doctor", "administration"}
    assert len(splits.test.ids) == 75


def test_layouts_of_the_field_read_the_same(tmp_path):
    rows = [(0.0, "a", "b"), (1.5, "b", "c"), (2.0, "a", "c"), (2.5, "a", "b")]
    frame = pd.DataFrame(rows, columns=["time", "source", "target"])
    frame.to_csv(tmp_path / "header.csv", index=False)
    frame.rename(columns={"source": "who", "target": "whom", "time": "when"}).to_csv(
        tmp_path / "named.tsv", index=False, sep="\t"
    )
    frame.to_parquet(tmp_path / "table.parquet")
    (tmp_path / "tij.tsv").write_text("".join(f"{t}\t{i}\t{j}\tX\tY\n" for t, i, j in rows))
    (tmp_path / "snap.txt").write_text("# a comment\n" + "".join(f"{i} {j} {t}\n" for t, i, j in rows))
    (tmp_path / "out.konect").write_text("% a comment\n" + "".join(f"{i} {j} 1 {t}\n" for t, i, j in rows))
    sources = [
        "header.csv",
        "named.tsv?i=who&j=whom&t=when",
        "table.parquet",
        "tij.tsv?order=tij",
        "snap.txt",
        "out.konect",
    ]
    expected = data.open(frame, "events").fingerprint
    for source in sources:
        assert data.open(f"events:{tmp_path}/{source}").fingerprint == expected, source
    numbers = np.array([[0, 1, 0.5], [1, 2, 0.7]])
    assert (
        data.open(numbers, "events").fingerprint
        == data.open((numbers[:, :2].astype(int), numbers[:, 2]), "events").fingerprint
    )


def test_nodes_gaps_and_splits_of_events(tmp_path):
    (tmp_path / "e.csv").write_text("i,j,t,w\nb,a,0,1\na,b,20,1\na,c,30,2\na,b,60,3\n")
    (tmp_path / "n.csv").write_text("id,team\na,x\nb,y\nc,x\nd,y\n")
    opened = data.open(f"events:{tmp_path}/e.csv?nodes=n.csv&label=team&gap=20&split=random")
    assert opened.all.ids.tolist() == ["a", "b", "c", "d"]
    assert opened.all.labels().tolist() == ["x", "y", "x", "y"]
    assert opened.all.units.times.tolist() == [0, 30, 60]
    assert opened.all.frame()["w"].tolist() == ["1", "2", "3"]
    assert len(opened.all.take([0, 1]).units) == 2
    assert len(opened.all.take([0, 1]).table) == 3
    (tmp_path / "parts.yaml").write_text("kind: events\ntrain: e.csv\ntest: f.csv\n")
    (tmp_path / "f.csv").write_text("i,j,t\na,e,70\n")
    parts = data.open(tmp_path / "parts.yaml")
    assert parts.all.ids.tolist() == ["a", "b", "c", "e"]
    assert parts.test.units.times.tolist() == [70]
    assert len(parts.train.ids) == 4
    pairs, times = np.array([[0, 1], [1, 0], [0, 1], [0, 2]]), np.array([0.0, 20, 60, 10])
    assert merged(pairs, times, 20).tolist() == [0, 3, 2]


def test_official_folder(tmp_path):
    pairs, events = [[7, 3], [3, 9], [3, 7]], [[0.1, 0.2], [0.5], [0.9]]
    for name, value in (("pairs", pairs), ("events", events), ("node2group", {3: 0, 7: 1, 9: 1})):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(value))
    with pytest.warns(UserWarning, match=r"1 pairs .j, i. turned and 1 listed twice merged"):
        items = data.open(tmp_path, "events", PiVeM.readers, split="random").all
    assert items.ids.tolist() == ["3", "7", "9"]
    assert items.labels().tolist() == ["0", "1", "1"]
    assert sorted(items.units.times.tolist()) == [0.1, 0.2, 0.5, 0.9]
    (tmp_path / "events.pkl").write_bytes(pickle.dumps(events[:2]))
    with pytest.raises(DataError, match="3 pairs but 2 lists"):
        data.open(tmp_path, "events", PiVeM.readers)
    (tmp_path / "events.pkl").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(DataError, match=r"holds (os|posix)\.system"):
        data.open(tmp_path, "events", PiVeM.readers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("i,j,t\na,b,0\na,a,1\n", "row 2: 'a' meets itself"),
        ("i,j,t\na,b,0\na,c,\n", "row 2: the time is missing"),
        ("i,j,t\na,b,0\na,c,inf\n", "row 2: time 'inf' is not a finite number"),
        ("i,j,t\na,b,0\na,c,2024-01-03\n", "row 2: time '2024-01-03' is not a finite number"),
        ("i,j,t\na,b,0\n,c,1\n", "row 2: column 'i' is empty"),
        ("i,j,when\na,b,0\n", "no column 'time' for the time.*t=COLUMN"),
        ("i,j,t\n", "empty"),
        ("3 1 2\n1 2 1\n", "not clear which column is the time"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        data.open(f"events:{tmp_path}/bad.csv")


def test_bad_fits(groups, tmp_path):
    splits = data.open(groups[0], split="random")
    for config, message in (({"bins": 10**6}, "different training times"), ({"nodes_per_batch": 99}, "only 12 nodes")):
        with pytest.raises(ConfigError, match=message):
            PiVeM(PiVeM.Config.build("tiny", **config)).fit(splits)
    with pytest.raises(ConfigError, match="bins"):
        PiVeM.Config.build(bins=0)
    with pytest.raises(ConfigError, match="selects nothing by validation"):
        PiVeM(PiVeM.Config.build("tiny")).fit(
            splits, validation=Events.of(["0", "1"], [[0, 1]] * 4, [9.0, 9.1, 9.2, 9.3])
        )
    same = data.open(Events.of("abc", [[0, 1], [1, 2], [0, 2], [0, 1]], [1.0, 1.0, 1.0, 1.0]), split="random")
    with pytest.raises(DataError, match="at 2 times"):
        PiVeM(PiVeM.Config.build("tiny", bins=1)).fit(same)
    lonely = Events.of([*groups[0].ids, "lonely"], groups[0].table.pairs, groups[0].table.times)
    with pytest.warns(UserWarning, match="1 of 13 nodes have no event"):
        PiVeM(PiVeM.Config.build("tiny", epochs=3)).fit(data.open(lonely, split="random"))
