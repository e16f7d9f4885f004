"""Known values, invariances and errors of the evaluation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from repertory import evaluation as E
from repertory.errors import DataError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def blobs(rng) -> tuple[np.ndarray, np.ndarray]:
    """Three clusters far apart on the sphere, 40 points each."""
    labels = np.repeat(["ash", "elm", "oak"], 40)
    centres = 10 * np.eye(8)[:3]
    return centres[np.repeat(range(3), 40)] + rng.normal(size=(120, 8)) * 0.3, labels


@pytest.fixture
def rotation(rng) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(8, 8)))[0]


def test_metrics_survive_json():
    metrics = E.Metrics({"a": E.Metric(0.5, 0.4, 0.6, True, "share"), "b": E.Metric(math.nan)})
    again = E.Metrics.from_dict(json.loads(json.dumps(metrics.to_dict(), allow_nan=False)))
    assert again["a"] == metrics["a"]
    assert math.isnan(again["b"].value)
    assert list(again) == ["a", "b"]
    assert list(metrics.prefixed("x ")) == ["x a", "x b"]
    with pytest.raises(DataError, match="not a table of metrics"):
        E.Metrics.from_dict({"a": {"wrong": 1}})


@pytest.mark.parametrize("binary", [True, False])
def test_bootstrap_has_the_width_of_the_normal_interval(rng, binary):
    items = rng.random(800) < 0.3 if binary else rng.normal(size=800)
    low, high = E.bootstrap(items, seed=1)
    assert low < items.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * items.std() / math.sqrt(800), rel=0.1)
    assert E.bootstrap(items, seed=1) == (low, high)


def test_bootstrap_covers(rng):
    inside = 0
    for trial in range(200):
        low, high = E.bootstrap(rng.normal(size=60), seed=trial, draws=300)
        inside += low <= 0 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_pairing_sharpens_a_difference(rng):
    hard = rng.normal(size=400)
    difference = E.paired_difference(hard + 0.1, hard + rng.normal(size=400) * 0.05, seed=0)
    assert 0.09 < difference.low < difference.value < difference.high < 0.11
    with pytest.raises(DataError, match="same ones"):
        E.paired_difference([1, 2], [1], seed=0)


def test_areas_equal_scikit_learn(rng):
    truth, scores = (rng.random(300) < 0.3).astype(int), rng.integers(0, 9, 300) / 9
    weights = rng.integers(0, 4, (5, 300)).astype(float)
    for row, roc, ap in zip(weights, E.auroc(truth, scores, weights), E.average_precision(truth, scores, weights)):
        assert roc == pytest.approx(roc_auc_score(truth, scores, sample_weight=row))
        assert ap == pytest.approx(average_precision_score(truth, scores, sample_weight=row))
    assert np.isnan(E.auroc(np.ones(3, int), np.arange(3.0), np.ones((1, 3)))).all()


def test_perfect_clusters_score_one(blobs):
    metrics = E.describe(*blobs)
    for name in (
        "probe_accuracy",
        "probe_balanced_accuracy",
        "probe_auroc",
        "probe_ap",
        "knn_accuracy",
        "recall@1",
        "mrr",
        "nmi",
        "ari",
    ):
        assert metrics[name].value == pytest.approx(1), name
    assert metrics["alignment"].value < 0.05
    assert metrics["median_rank"].value == 1


def test_random_labels_score_chance(rng):
    vectors, labels = rng.normal(size=(600, 16)), rng.integers(0, 2, 600)
    metrics = E.describe(vectors, labels)
    for name in ("probe_accuracy", "probe_auroc", "knn_accuracy", "recall@1"):
        assert abs(metrics[name].value - 0.5) < 0.07, name
    assert abs(metrics["ari"].value) < 0.02
    assert metrics["effective_rank"].value > 15


def test_intervals_hold_their_value(rng):
    labels = rng.integers(0, 3, 200)
    vectors = rng.normal(size=(200, 8)) + np.eye(8)[labels] * 1.5
    for name, metric in E.describe(vectors, labels).items():
        assert metric.about, name
        assert metric.low is None or metric.low <= metric.value <= metric.high, name


def test_rotation_changes_nothing(blobs, rotation, rng):
    vectors, labels = blobs
    vectors = vectors + rng.normal(size=vectors.shape) * 4
    turned = vectors @ rotation
    before, after = E.describe(vectors, labels), E.describe(turned, labels)
    for name in ("knn_accuracy", "recall@1", "mrr", "alignment", "uniformity", "effective_rank", "rankme", "nmi"):
        assert after[name].value == pytest.approx(before[name].value, rel=1e-6), name
    np.testing.assert_array_equal(
        E.neighbours(vectors, vectors, 5, exclude_self=True)[0], E.neighbours(turned, turned, 5, exclude_self=True)[0]
    )


def test_neighbours_by_chunks_equal_the_full_matrix(rng, monkeypatch):
    queries, bank = rng.normal(size=(50, 6)), rng.normal(size=(70, 6))
    cosine = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        bank / np.linalg.norm(bank, axis=1, keepdims=True)
    ).T
    monkeypatch.setattr(E.neighbours.__globals__["blocks"], "__defaults__", (150,))
    indices, values = E.neighbours(queries, bank, 4)
    np.testing.assert_array_equal(indices, np.argsort(-cosine, axis=1)[:, :4])
    np.testing.assert_allclose(values, -np.sort(-cosine, axis=1)[:, :4])
    itself, _ = E.neighbours(bank, bank, 1)
    np.testing.assert_array_equal(itself[:, 0], np.arange(70))
    assert (E.neighbours(bank, bank, 69, exclude_self=True)[0] != np.arange(70)[:, None]).all()
    with pytest.raises(DataError, match="k=71"):
        E.neighbours(queries, bank, 71)


def test_retrieval_known_ranks():
    targets = np.eye(4)
    queries = np.array([[4, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1.0]])  # ranks 1, 2, 3, 4
    metrics = E.retrieval(queries, targets, ks=(1, 2))
    assert metrics["recall@1"].value == 0.25
    assert metrics["recall@2"].value == 0.5
    assert metrics["mrr"].value == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert metrics["median_rank"].value == 2.5


def test_collapsed_vectors_retrieve_by_chance():
    metrics = E.retrieval(np.ones((9, 3)), np.ones((9, 3)), ks=(1,))
    assert metrics["recall@1"].value == 0
    assert metrics["median_rank"].value == 5


def test_retrieval_by_label_leaves_singletons_out(blobs):
    vectors, labels = blobs
    labels = labels.copy()
    labels[0] = "yew"
    assert "119 queries" in E.label_retrieval(vectors, labels)["mrr"].about
    with pytest.raises(DataError, match="no label has a second item"):
        E.label_retrieval(vectors, np.arange(120))


def test_geometry_known_values(rng):
    x = rng.normal(size=(30, 5))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    square = ((unit[:, None] - unit[None]) ** 2).sum(-1)
    off = ~np.eye(30, dtype=bool)
    assert E.uniformity(x) == pytest.approx(math.log(np.exp(-2 * square[off]).mean()))
    labels = np.arange(30) % 4
    assert E.class_alignment(x, labels) == pytest.approx(square[off & (labels[:, None] == labels)].mean())
    assert E.alignment(x, 3 * x) == pytest.approx(0)
    assert E.alignment(x, -x) == pytest.approx(4)
    assert E.uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-12)
    assert E.rankme(np.eye(6)) == pytest.approx(6, rel=1e-4)
    assert E.effective_rank(np.vstack([np.eye(6), -np.eye(6)])) == pytest.approx(6)
    assert E.effective_rank(np.ones((5, 3))) == 0
    line = rng.normal(size=(40, 1)) * np.ones((1, 7)) + 3
    assert E.effective_rank(line) == pytest.approx(1, abs=1e-5)
    tall, wide = rng.normal(size=(50, 4)), rng.normal(size=(4, 50))
    for m in (tall, wide):
        s = np.linalg.svd(m, compute_uv=False)
        s = s / s.sum()
        assert E.rankme(m) == pytest.approx(math.exp(-(s * np.log(s)).sum()), rel=1e-4)


def test_probe_multilabel_and_regression(rng):
    vectors = rng.normal(size=(300, 6))
    labels = (vectors[:, :2] + 0.3 * rng.normal(size=(300, 2)) > 0).astype(int)
    probe = E.linear_probe(vectors, labels)
    assert probe.task == "multilabel"
    assert probe.scores.shape == (300, 2)
    areas = [roc_auc_score(labels[:, c], probe.scores[:, c]) for c in range(2)]
    assert probe.metrics["probe_auroc"].value == pytest.approx(np.mean(areas))
    assert np.mean(areas) > 0.9
    target = vectors @ rng.normal(size=6) + 0.1
    exact = E.linear_probe(vectors[:200], target[:200], train_vectors=vectors[200:], train_labels=target[200:])
    assert exact.task == "regression"
    assert exact.metrics["probe_r2"].value == pytest.approx(1, abs=1e-3)
    assert E.linear_probe(vectors, rng.normal(size=300)).metrics["probe_r2"].value < 0.1
    assert E.linear_probe(vectors, rng.integers(1, 90, 300), task="regression").task == "regression"


def test_probe_learns_from_the_training_part_only(blobs):
    vectors, labels = blobs
    renamed = np.array(["elm", "oak", "ash"])[np.searchsorted(["ash", "elm", "oak"], labels)]
    probe = E.linear_probe(vectors, labels, train_vectors=vectors, train_labels=renamed)
    assert probe.metrics["probe_accuracy"].value == 0


def test_float32_and_constant_features(blobs):
    vectors, labels = blobs
    vectors = np.hstack([vectors, np.ones((120, 1))]).astype(np.float32)
    assert E.describe(vectors, labels.astype(object))["probe_accuracy"].value == 1


ROWS = np.arange(24.0).reshape(8, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: E.describe(np.where(ROWS == 7, np.nan, ROWS)), "row 2 is NaN"),
        (lambda: E.describe(np.empty((0, 3))), "at least one"),
        (lambda: E.describe(np.arange(3.0)), r"shape \(3,\)"),
        (lambda: E.describe(ROWS.astype(complex)), "complex"),
        (lambda: E.describe(ROWS, ["a"] * 7), "8 vectors"),
        (lambda: E.describe(ROWS, ["a"] * 8), r"only one class \('a'\)"),
        (lambda: E.describe(ROWS, ["a"] * 7 + ["b"]), "class 'b' has one member"),
        (lambda: E.describe(ROWS, ["a"] * 7 + [None]), "row 7 has no label"),
        (lambda: E.describe(ROWS, [1.0] * 7 + [np.nan]), "row 7 has no label"),
        (lambda: E.describe(ROWS, [0, 1] * 4, ROWS), "train_labels: missing"),
        (lambda: E.describe(ROWS, [0, 1] * 4, ROWS[:, :2], [0, 1] * 4), "width 2"),
        (lambda: E.describe(ROWS, [0, 1] * 3 + [2, 2], ROWS, [0, 1] * 4), "class '2' does not occur"),
        (lambda: E.describe(ROWS, np.full((8, 2), 3)), "only 0 and 1"),
        (lambda: E.describe(ROWS, np.eye(8, 2)[:, ::-1] * 0), "column 0 has a single value"),
        (lambda: E.knn(ROWS[:1], [1]), "no neighbour"),
        (lambda: E.uniformity(ROWS[:1]), "no pairs"),
        (lambda: E.clustering(ROWS, np.zeros(8)), "1 clusters"),
        (lambda: E.retrieval(ROWS, ROWS[:4]), "row i must belong"),
        (lambda: E.bootstrap([], 0), "finite numbers"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(DataError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
