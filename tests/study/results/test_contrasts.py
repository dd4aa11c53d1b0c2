"""The one engine of comparisons, on numbers worked by hand."""

import json
import math

import pandas as pd
import pytest

from study.results import contrasts
from study.results.contrasts import decide, estimate, on_seeds, pair, t_test
from study.results.files import Results

SCORES = {
    "a": {0: 1.0, 1: 4.0, 2: 9.0, 7: 3.0},
    "b": {2: 1.0, 1: 2.0, 0: 3.0},
    "c": {0: 2.0, 1: 2.0, 2: 4.0, 9: 5.0},
}


def put(home, run, scores, *, dataset="cifar100", train=10):
    folder = home / "results" / "cpu"
    folder.mkdir(parents=True, exist_ok=True)
    data = {"dataset": dataset, "train": train}
    result = {"data": data, "seeds": list(range(len(scores))), "test_last": scores}
    (folder / f"{run}.json").write_text(json.dumps(result))


def frame(*rows) -> pd.DataFrame:
    """Estimates of (difference, p, n, real)."""
    return pd.DataFrame(rows, columns=["difference", "p", "n", "real"])


def test_a_weighted_sum_is_taken_on_the_seeds_that_all_have():
    weights = {"a": 0.5, "b": 0.5, "c": -1}
    assert on_seeds(weights, SCORES) == [0, 1, 1]  # (1 + 3)/2 − 2, (4 + 2)/2 − 2, (9 + 1)/2 − 4
    found = t_test(weights, SCORES)
    assert found["n"] == 3 and found["difference"] == pytest.approx(2 / 3)
    # sd² = 1/3, error = 1/3, t = 2; p = 1 − t/√(t² + 2) for two degrees of freedom.
    assert found["p"] == pytest.approx(1 - 2 / math.sqrt(6))
    assert found["high"] - found["low"] == pytest.approx(2 * 4.302652729911275 / 3)


def test_a_pair_is_the_first_minus_the_second():
    assert on_seeds(pair("a", "b"), SCORES) == [-2, 2, 8]


def test_rounding_is_no_deviation():
    """0.1 + 0.2 − 0.3 is not 0 in binary; equal differences have no p, however they round."""
    scores = {"a": {s: 0.1 * s + 0.2 for s in range(5)}, "b": {s: 0.1 * s for s in range(5)}}
    assert len(set(on_seeds(pair("a", "b"), scores))) > 1
    assert math.isnan(t_test(pair("a", "b"), scores)["p"])


def test_missing_runs_and_other_data_are_no_estimate(tmp_path):
    put(tmp_path, "plain", [1.0, 2.0, 4.0])
    put(tmp_path, "se", [2.0, 4.0, 5.0])
    cpu = Results("cpu", tmp_path)
    found = estimate(pair("se", "plain"), cpu)
    assert found["difference"] == pytest.approx(4 / 3)
    assert (found["data"], found["real"]) == ("cifar100", True)
    assert estimate(pair("se", "never"), cpu)["n"] == 0
    put(tmp_path, "se", [2.0, 4.0, 5.0], train=20)
    cpu = Results("cpu", tmp_path)
    assert not contrasts.same_data(pair("se", "plain"), cpu)
    assert estimate(pair("se", "plain"), cpu)["n"] == 0
    put(tmp_path, "se", [2.0, 4.0, 5.0], dataset="digits100")
    put(tmp_path, "plain", [1.0, 2.0, 4.0], dataset="digits100")
    assert not estimate(pair("se", "plain"), Results("cpu", tmp_path))["real"]


def test_bounds_take_a_family_and_five_seeds(tmp_path):
    put(tmp_path, "plain", [1.0, 2.0, 3.0, 4.0, 5.0])
    put(tmp_path, "se", [1.1, 1.9, 3.2, 3.8, 5.0])
    put(tmp_path, "few", [1.1, 1.9, 3.2, 3.8])
    cpu = Results("cpu", tmp_path)
    assert not set(contrasts.BOUNDS) & set(estimate(pair("se", "plain"), cpu))
    found = estimate(pair("se", "plain"), cpu, family=4)
    # d = 0.1, −0.1, 0.2, −0.2, 0: mean 0, sd² = 0.025; ± t(0.95, 4)·√0.005
    assert found["high_90"] == pytest.approx(2.1318467863 * math.sqrt(0.005))
    assert found["detectable"] < found["detectable_holm"]
    assert math.isnan(estimate(pair("few", "plain"), cpu, family=4)["detectable"])


def test_every_verdict():
    rows = [(1.0, 0.001, 5, True), (-1.0, 0.001, 5, True), (1.0, 0.5, 5, True)]
    rows += [(1.0, 0.001, 4, True), (1.0, 0.001, 5, False), (math.nan, math.nan, 0, False)]
    found = decide(frame(*rows))
    assert list(found["verdict"]) == [
        "higher",
        "lower",
        "undecided",
        "no verdict: n < 5",
        "no verdict: embedded data",
        "not run",
    ]
    # Three can decide: 3 × 0.001, then 2 × 0.001, which Holm raises to the first, then 0.5.
    assert list(found["p_holm"][:3]) == pytest.approx([0.003, 0.003, 0.5])
    assert found["p_holm"][3:].isna().all()
    assert list(decide(frame(*rows), every=True)["p_holm"][:3]) == pytest.approx(
        [0.005, 0.005, 0.5]
    )
    assert decide(frame(*rows), family=60)["verdict"][0] == "undecided"  # 60 × 0.001


def test_equal_is_what_two_one_sided_tests_say_after_correction():
    rows = frame((0.1, 0.4, 5, True), (0.1, 0.4, 5, True)).assign(p_equivalence=[0.03, 0.01])
    assert list(decide(rows)["verdict"]) == ["equal within 0.5"] * 2  # 0.03 and 2 × 0.01
    assert list(decide(rows, family=4)["verdict"]) == ["undecided", "equal within 0.5"]
