"""Contrasts, rates and bounds of the evidence, from result files worked by hand."""

import json
import math

import pytest

from wexlib import evidence, statistics

PLAIN = [10.0, 11.0, 12.0, 13.0, 14.0]
NOISE = [0.1, -0.1, 0.2, -0.2, 0.0]


def put(home, run, scores, *, lr=0.1, validation=None, seconds=3600.0):
    folder = home / "results" / "cpu"
    (folder / "provenance").mkdir(parents=True, exist_ok=True)
    (folder / "curves").mkdir(exist_ok=True)
    result = {
        "run": run,
        "config": {"model": "resnet18", "train": {"lr": lr}},
        "seeds": list(range(len(scores))),
        "test_last": scores,
        "train_last": [y + 3 for y in scores],
        "validation_last": validation or [y + 1 for y in scores],
    }
    (folder / f"{run}.json").write_text(json.dumps(result))
    (folder / "provenance" / f"{run}.json").write_text(json.dumps({"seconds": seconds}))
    (folder / "curves" / f"{run}.csv").write_text("seed,epoch,test_accuracy,validation_accuracy\n")


@pytest.fixture
def home(tmp_path):
    """y = plain + 4·WS + 1·SE (+2 more with WS) + noise·CBAM; the magnitude does not run."""
    for ws in (False, True):
        base = [y + 4 * ws for y in PLAIN]
        put(tmp_path, evidence.cell("", ws), base)
        put(tmp_path, evidence.cell("se", ws), [y + 1 + 2 * ws for y in base])
        put(tmp_path, evidence.cell("ours", ws), [y + z for y, z in zip(base, NOISE, strict=True)])
    return tmp_path


def test_the_names_of_cells():
    assert evidence.cell() == "evidence-plain"
    assert evidence.cell("se", True, "low") == "evidence-se-ws-low"
    assert evidence.cell("", True, model="resnext") == "evidence-resnext-ws"
    assert len(evidence.cells()) == 8


def test_the_effects_of_a_factorial_by_hand(home):
    frame = evidence.compare(evidence.effects(evidence.cells()), "cpu", home=home)
    found = dict(zip(frame["contrast"], frame["difference"], strict=True))
    assert found["SE, without WS"] == pytest.approx(1)
    assert found["SE, with WS"] == pytest.approx(3)
    assert found["SE, mean of both"] == pytest.approx(2)
    assert found["SE × WS"] == pytest.approx(2)
    assert found["CBAM with skips × WS"] == pytest.approx(0)
    verdicts = dict(zip(frame["contrast"], frame["verdict"], strict=True))
    assert verdicts["magnitude × WS"] == verdicts["WS"] == "not run"  # WS is over all four cells
    assert verdicts["CBAM with skips, without WS"] == "equal within 0.5"


def test_the_main_effect_is_the_mean_over_cells(home):
    for ws in (False, True):
        put(home, evidence.cell("mwe", ws), [y - ws for y in PLAIN])
    frame = evidence.compare(evidence.effects(evidence.cells()), "cpu", home=home)
    assert frame["difference"][0] == pytest.approx((4 + 6 + 4 - 1) / 4)
    said = evidence.reading(frame)
    assert "by +3.25 [3.25, 3.25] points" in said and "magnitude −2.50 [" in said


def test_four_seeds_give_an_interval_and_no_verdict(home):
    put(home, "evidence-se", [y + z for y, z in zip(PLAIN, [1.0, 2.0, 1.5, 1.2], strict=False)])
    (row,) = evidence.compare(
        evidence.pairs(("evidence-se", "evidence-plain")), "cpu", home=home
    ).itertuples()
    assert row.contrast == "se − plain" and row.n == 4 and row.low < row.difference < row.high
    assert row.verdict == "no verdict: n < 5"
    assert math.isnan(row.p_holm) and math.isnan(row.bound)


def test_curves_are_compared_without_a_margin(home):
    compared = evidence.pairs(("evidence-se", "evidence-plain"))
    (row,) = evidence.compare(compared, "cpu", "gap", home=home).itertuples()
    assert row.difference == 0 and math.isnan(row.p_equivalence)  # both gaps are 3 − 1


def test_rates_are_chosen_on_the_validation_split_of_shared_seeds(home):
    put(home, "evidence-plain-low", [20.0], lr=0.03, validation=[10.9])
    put(home, "evidence-plain-high", [9.0], lr=0.3, validation=[11.1])
    chosen = evidence.rates("cpu", home)
    (row,) = chosen.to_dict("records")  # the other cells have one rate
    assert row[0.03] == 10.9 and row[0.1] == 11 and row[0.3] == 11.1  # of seed 0 alone
    assert (row["best"], row["run"], row["test"], row["n"]) == (0.3, "evidence-plain-high", 9, 1)


def test_hours_are_counted_by_model(home):
    (row,) = evidence.cost("cpu", home).to_dict("records")
    assert row == {"model": "resnet18", "runs": 6, "seeds": 30, "hours": 6}


def t4(t):
    """P(T > t) of Student's t with 4 degrees of freedom, in closed form."""
    x = t * t / (1 + t * t / 4)
    return 0.5 - 0.375 * math.sqrt(x) * (1 - x / 12) if t >= 0 else 1 - t4(-t)


def test_equivalence_by_hand():
    """m = 0.1, sd² = 0.025, e = √0.005: t = (0.5 − 0.1)/e; the bound is m + 2.1318468·e."""
    e = math.sqrt(0.005)
    differences = [0.1 + z for z in NOISE]
    p, bound = statistics.equivalence(differences, 0.5)
    assert p == pytest.approx(t4(0.4 / e)) and bound == pytest.approx(0.1 + 2.1318467863 * e)
    assert statistics.equivalence([-z for z in differences], 0.5)[0] == pytest.approx(p)
    assert statistics.equivalence(differences, bound)[0] == pytest.approx(0.05)
    assert statistics.equivalence(differences, 0.05)[0] > 0.5
    assert (
        statistics.equivalence([0.2] * 5, 0.5)[0] < 0.05 < statistics.equivalence([1.0] * 5, 0.5)[0]
    )


def test_the_detectable_difference_is_found_in_four_of_five_experiments():
    """Simulated: n normal differences around δ, a two-sided t-test at 5 %."""
    import numpy

    sample = numpy.array(NOISE)
    delta = statistics.detectable(NOISE)
    drawn = numpy.random.default_rng(0).normal(delta, sample.std(ddof=1), size=(40_000, 5))
    t = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(5))
    assert abs((numpy.abs(t) > 2.7764451).mean() - 0.8) < 0.01
