"""Contrasts, rates and bounds of the evidence, from result files worked by hand."""

import json
import math

import pytest

from study.results import evidence, statistics

PLAIN = [10.0, 11.0, 12.0, 13.0, 14.0]
NOISE = [0.1, -0.1, 0.2, -0.2, 0.0]


def put(home, run, scores, *, lr=0.1, validation=None, seconds=3600.0, train=100):
    folder = home / "results" / "cpu"
    (folder / "provenance").mkdir(parents=True, exist_ok=True)
    (folder / "curves").mkdir(exist_ok=True)
    result = {
        "run": run,
        "data": {"dataset": "cifar100", "train": train},
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
    said = evidence.answer("cpu", home)
    assert "by +3.25 [3.25, 3.25] points" in said and "magnitude −2.50 [" in said
    # CBAM with skips is noise: what it shows against plain is the four points of WS.
    assert "the difference is +4.00 [3.80, 4.20] points: of these standardization alone" in said
    assert "has +4.00 [4.00, 4.00], and CBAM with skips adds +0.00 [" in said


def test_a_family_and_its_seeds_can_be_given(home):
    put(home, "evidence-se", [y + 1 for y in PLAIN[:3]])
    contrasts = evidence.effects(evidence.cells({"se": "SE", "ours": "CBAM with skips"}))
    assert set(evidence.compare(contrasts, "cpu", home=home)["n"]) == {3, 5}
    assert set(evidence.compare(contrasts, "cpu", home=home, common=True)["n"]) == {3}
    some = evidence.pairs(("evidence-ours", "evidence-plain"))
    alone, of_many = (evidence.compare(some, "cpu", home=home, family=family) for family in (0, 10))
    assert of_many["p_equivalence"][0] == pytest.approx(10 * alone["p_equivalence"][0])


def test_an_answer_is_of_the_cells_that_have_run(home):
    said = evidence.answer("cpu", home)
    assert "the mean over 3 pairs of networks" in said and "magnitude" not in said
    assert "Holm's correction over 13 contrasts" in said, "those to come are counted"
    assert evidence.answer("gpu", home) == "The factorial is not complete yet."


def test_four_seeds_give_an_interval_and_no_verdict(home):
    put(home, "evidence-se", [y + z for y, z in zip(PLAIN, [1.0, 2.0, 1.5, 1.2], strict=False)])
    (row,) = evidence.compare(
        evidence.pairs(("evidence-se", "evidence-plain")), "cpu", home=home
    ).itertuples()
    assert row.contrast == "se − plain" and row.n == 4 and row.low < row.difference < row.high
    assert row.verdict == "no verdict: n < 5"
    assert math.isnan(row.p_holm) and math.isnan(row.detectable)


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
    found = [row[key] for key in ("best", "run", "test", "n", "seeds")]
    assert found == [0.3, "evidence-plain-high", 9, 1, 1]


def test_a_side_rate_decides_on_all_seeds_that_it_shares_with_the_middle_one(home):
    """Ahead on seed 0 by 1, behind on the mean of five by 1; then equal, which is the middle's."""
    put(home, "evidence-plain-high", [9.0], lr=0.3, validation=[5.0])
    for behind in (1.5, 0.25):
        low = [12.0] + [y + 1 - behind for y in PLAIN[1:]]
        put(home, "evidence-plain-low", PLAIN, lr=0.03, validation=low)
        (row,) = evidence.rates("cpu", home).to_dict("records")
        assert row[0.03] == 12 and row[0.1] == 11
        assert (row["run"], row["seeds"]) == ("evidence-plain", 5)
    low = [12.0] + [y + 1 for y in PLAIN[1:]]
    put(home, "evidence-plain-low", PLAIN, lr=0.03, validation=low)
    assert evidence.rates("cpu", home)["run"][0] == "evidence-plain-low"


def test_a_family_counts_what_has_not_run_yet(home):
    """p of one pair, then the same in a family of four, of which three have no runs."""
    put(home, "evidence-se", [y + 1 + z for y, z in zip(PLAIN, NOISE, strict=True)])
    one = evidence.pairs(("evidence-se", "evidence-plain"))
    rest = evidence.pairs(*((f"evidence-{i}", "evidence-plain") for i in range(3)))
    alone, among = (evidence.compare(c, "cpu", home=home).iloc[0] for c in (one, one | rest))
    assert among["p_holm"] == pytest.approx(4 * alone["p_holm"])
    assert among["p_equivalence"] == pytest.approx(min(1, 4 * alone["p_equivalence"]))
    assert "p (Holm, 4)" in evidence.show(evidence.compare(one | rest, "cpu", home=home))


def test_runs_of_different_data_are_not_compared(home):
    put(home, "evidence-se", PLAIN, train=200)
    with pytest.raises(ValueError, match="se − plain: its runs are of different data"):
        evidence.compare(evidence.pairs(("evidence-se", "evidence-plain")), "cpu", home=home)


def test_hours_are_counted_by_part(home):
    put(home, "evidence-se-ws-low", PLAIN, seconds=1800)
    put(home, "evidence-se-free-ws", PLAIN)
    put(home, "evidence-resnext-ours-ws", PLAIN)
    rows = evidence.cost("cpu", home).set_index("part").to_dict("index")
    assert rows["factorial"] == {"runs": 6, "seeds": 30, "hours": 6}
    assert rows["rates"] == {"runs": 1, "seeds": 5, "hours": 0.5}
    assert rows["controls"] == rows["resnext"] == {"runs": 1, "seeds": 5, "hours": 1}
    assert rows["all"] == {"runs": 9, "seeds": 45, "hours": 8.5}


def t4(t):
    """P(T > t) of Student's t with 4 degrees of freedom, in closed form."""
    x = t * t / (1 + t * t / 4)
    return 0.5 - 0.375 * math.sqrt(x) * (1 - x / 12) if t >= 0 else 1 - t4(-t)


def test_equivalence_by_hand():
    """m = 0.1, sd² = 0.025, e = √0.005: t = (0.5 − 0.1)/e; the interval m ± 2.1318468·e."""
    e = math.sqrt(0.005)
    differences = [0.1 + z for z in NOISE]
    p, low, high = statistics.equivalence(differences, 0.5)
    assert p == pytest.approx(t4(0.4 / e)) and low == pytest.approx(0.1 - 2.1318467863 * e)
    assert high == pytest.approx(0.1 + 2.1318467863 * e)
    assert statistics.equivalence([-z for z in differences], 0.5)[0] == pytest.approx(p)
    assert statistics.equivalence(differences, high)[0] == pytest.approx(0.05)
    assert statistics.equivalence(differences, 0.05)[0] > 0.5
    assert (
        statistics.equivalence([0.2] * 5, 0.5)[0] < 0.05 < statistics.equivalence([1.0] * 5, 0.5)[0]
    )


@pytest.mark.parametrize(("level", "edge"), [(0.05, 2.7764451), (0.01, 4.6040949)])
def test_the_detectable_difference_is_found_in_four_of_five_experiments(level, edge):
    """Simulated: n normal differences around δ, a two-sided t-test at ``level``."""
    import numpy

    sample = numpy.array(NOISE)
    delta = statistics.detectable(NOISE, level)
    drawn = numpy.random.default_rng(0).normal(delta, sample.std(ddof=1), size=(40_000, 5))
    t = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(5))
    assert abs((numpy.abs(t) > edge).mean() - 0.8) < 0.01


def test_the_seeds_needed_for_equivalence_are_the_fewest_that_suffice():
    """Simulated: n normal differences around 0, the 90 % interval within ±0.5."""
    import numpy
    from scipy import stats

    differences = [0.5, -0.4, 0.2, -0.6, 0.3]
    needed = statistics.seeds_needed(differences, 0.5)
    found = []
    for n in (needed - 1, needed):
        scale = numpy.array(differences).std(ddof=1)
        drawn = numpy.random.default_rng(0).normal(0, scale, size=(100_000, n))
        half = stats.t.ppf(0.95, n - 1) * drawn.std(1, ddof=1) / math.sqrt(n)
        found.append((abs(drawn.mean(1)) + half < 0.5).mean())
    assert found[0] < 0.8 <= found[1]
    assert statistics.seeds_needed([0.2] * 5, 0.5) == 2
