"""Claims: variants, seeds, and the rule of the verdict."""

import json
import os
import time
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from repertory.card import Claim
from repertory.errors import ConfigError, MissingExtraError, UserError
from repertory.experiments import judge, read_results, run_claims, write_result


def run_claim(slug, one, **options):
    return run_claims(slug, [one], **options)[0]


def claim(method, *baselines, **options):
    """A claim whose variants return these values, by seed."""
    variants = {"method": method.__getitem__, **{f"b{i}": b.__getitem__ for i, b in enumerate(baselines)}}
    made = {"name": "c", "finding": "f", "paper": "p", "data": "d", "metric": "accuracy", **options}
    return Claim(variants=variants, baselines=tuple(f"b{i}" for i in range(len(baselines))), **made)


@pytest.mark.parametrize(
    ("method", "baseline", "options", "verdict"),
    [
        ([0.9, 0.91, 0.92], [0.5, 0.5, 0.5], {}, "reproduced"),
        ([0.9, 0.91, 0.92], [0.5, 0.5, 0.5], {"margin": 0.45}, "not reproduced"),
        ([0.9, 0.91, 0.92], [0.5, 0.5, 0.5], {"margin": 0.41}, "inconclusive"),
        ([0.5, 0.5, 0.5], [0.9, 0.8, 0.7], {}, "not reproduced"),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], {}, "not reproduced"),  # equal is not better
        ([0.5, 0.6, 0.9], [0.6, 0.6, 0.6], {}, "inconclusive"),
        ([0.1, 0.2, 0.1], [0.5, 0.5, 0.5], {"higher_is_better": False}, "reproduced"),
        ([0.5, 0.5, 0.5], [0.1, 0.2, 0.1], {"higher_is_better": False}, "not reproduced"),
        ([0.5, 0.9, 1.3], [0.1, 0.5, 0.9], {}, "reproduced"),  # paired: every seed gains the same
        ([0.9, 0.9], [0.1, 0.1], {"seeds": 2}, "inconclusive"),
        ([0.9], [0.1], {"seeds": 1}, "inconclusive"),
    ],
)
def test_verdicts(method, baseline, options, verdict):
    result = run_claim("toy", claim(method, baseline, **options))
    assert result.verdict == verdict
    sign = 1 if options.get("higher_is_better", True) else -1
    assert result.gap == pytest.approx(sign * (np.mean(method) - np.mean(baseline)))
    assert result.gap_low <= result.gap + 1e-12 and result.gap <= result.gap_high + 1e-12  # noqa: PT018


@pytest.mark.parametrize(("higher", "best"), [(True, "b1"), (False, "b0")])
def test_the_best_baseline_counts(higher, best):
    made = claim([0.5] * 3, [0.1] * 3, [0.9] * 3, higher_is_better=higher)
    result = run_claim("toy", made)
    assert result.baseline == best
    assert result.verdict == "not reproduced"
    assert [m.variant for m in result.measured] == ["method", "b0", "b1"]


def test_seeds_and_watching():
    seen = []
    result = run_claim("toy", claim(list(range(9)), [0] * 9), seeds=5, watch=lambda *args: seen.append(args))
    assert result.measured[0].values == (0, 1, 2, 3, 4)
    assert [rest for _, *rest in seen[:3]] == [["method", 0, 0], ["b0", 0, 0], ["method", 1, 1]]


@cache
def _token(seed):
    """Differs with every call that is not answered by what was kept."""
    return os.getpid() * 1e6 + time.perf_counter()


def test_seeds_run_in_processes_and_share_what_is_kept():
    variants = {"a": lambda seed: _token(seed), "b": lambda seed: _token(seed) - 1}
    claims = [
        Claim(name, "f", "p", "d", "m", variants, ("b",), seeds=n, margin=0.5) for name, n in (("x", 3), ("y", 4))
    ]
    first, second = run_claims("toy", claims, processes=2)
    assert first.verdict == second.verdict == "reproduced"
    assert first.measured[0].values == second.measured[0].values[:3]  # kept from one claim to the next
    assert {round(value / 1e6) for value in second.measured[0].values}.isdisjoint({os.getpid()})
    assert len(set(second.measured[0].values)) == 4


def test_a_seed_may_start_processes():
    def loaded(seed):
        return float(sum(len(batch) for batch in DataLoader(range(6), num_workers=1, batch_size=2)))

    made = Claim("x", "f", "p", "d", "m", {"a": loaded, "b": float}, ("b",))
    assert run_claims("toy", [made], processes=2)[0].measured[0].values == (6, 6, 6)


def test_what_a_process_refuses_is_told():
    def missing(seed):
        raise MissingExtraError("gensim", "music")

    made = Claim("x", "f", "p", "d", "m", {"a": missing, "b": float}, ("b",))
    with pytest.raises(MissingExtraError, match="gensim is not installed"):
        run_claims("toy", [made], processes=2)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.floats(-1, 1))
@settings(max_examples=30, deadline=None)
def test_the_rule(gaps, margin):
    verdict, low, high = judge(np.array(gaps), margin)
    assert min(gaps) - 1e-12 <= low <= high <= max(gaps) + 1e-12
    assert (verdict, low, high) == judge(np.array(gaps), margin)  # no randomness
    if len(gaps) < 3:
        assert verdict == "inconclusive"
    elif min(gaps) > margin + 1e-9:
        assert verdict == "reproduced"
    elif max(gaps) < margin - 1e-9:
        assert verdict == "not reproduced"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_verdict_on_what_is_not_a_number(value):
    for made in (claim([0.9, value, 0.9], [0.1] * 3), claim([0.9] * 3, [0.1] * 3, [0.1, 0.1, value])):
        with pytest.raises(UserError, match=r"with seed \d gave (nan|inf)"):
            run_claim("toy", made)


def test_claims_name_their_baselines():
    with pytest.raises(ConfigError, match="no baseline"):
        claim([1])
    with pytest.raises(ConfigError, match="no variant 'clipp'; did you mean 'clip'"):
        Claim("c", "f", "p", "d", "m", {"symile": float, "clip": float}, ("clipp",))
    with pytest.raises(ConfigError, match="no variant 'symile'"):
        Claim("c", "f", "p", "d", "m", {"symile": float, "clip": float}, ("symile",))


def test_results_file(tmp_path):
    path = tmp_path / "claims" / "results.json"
    assert list(read_results(path)) == []
    for slug, name, value in (("b", "x", 0.9), ("a", "y", 0.8), ("b", "x", 0.7)):
        write_result(run_claim(slug, claim([value] * 3, [0.1] * 3, name=name)), path)
    found = list(read_results(path))
    assert [(r["slug"], r["claim"]) for r in found] == [("a", "y"), ("b", "x")]
    assert found[1]["measured"][0]["values"] == [0.7] * 3
    json.loads(path.read_text(), parse_constant=pytest.fail)
    path.write_text('{"a": ')
    with pytest.raises(UserError, match="not JSON"):
        write_result(run_claim("a", claim([1] * 3, [0] * 3)), path)
