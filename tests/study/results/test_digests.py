"""Recorded digests and intervals, against result files and numbers worked by hand."""

import json
import math

import pytest

from study.files import digest
from study.results import digests
from study.results.files import Results


def put(home, run, scores, *, code="a", curves="seed,epoch\n0,1\n"):
    folder = home / "results" / "demo"
    (folder / "curves").mkdir(parents=True, exist_ok=True)
    result = {
        "run": run,
        "config": {"model": "resnet18", "code": {"train": code}},
        "seeds": list(range(len(scores))),
        "test_last": scores,
    }
    (folder / f"{run}.json").write_text(json.dumps(result))
    (folder / "curves" / f"{run}.csv").write_text(curves)


@pytest.fixture
def home(tmp_path):
    for run in ("one", "two", "three"):
        put(tmp_path, run, [50.0, 52.0])
    (tmp_path / "results" / "demo" / "summary.json").write_text('{"one": 51}')
    (tmp_path / "results" / "demo" / "later.json").write_text('{"not_run": "needs data"}')
    return tmp_path


def test_a_digest_is_of_numbers_and_curves_and_not_of_the_code(home):
    before = digests.digests("demo", home)
    assert list(before) == ["one", "three", "two"]
    put(home, "one", [50.0, 52.0], code="b")
    put(home, "two", [50.0, 52.000001])
    put(home, "three", [50.0, 52.0], curves="seed,epoch\n0,2\n")
    after = digests.digests("demo", home)
    assert [before[run] == after[run] for run in ("one", "two", "three")] == [True, False, False]


def sealed(home):
    """A result of today: it and its curves have a digest."""
    path = home / "results" / "demo" / "one.json"
    result = json.loads(path.read_text())
    curves = path.parent / "curves" / "one.csv"
    path.write_text(json.dumps(result | {"digest": digest(result, curves.read_bytes())}))
    return path, curves


def test_what_is_recorded_is_the_same_with_and_without_the_results_own_digest(home):
    before = digests.digests("demo", home)
    sealed(home)
    assert digests.digests("demo", home) == before


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("old, new", [(b"0", b"2"), (b'"', b"\xff"), (b"\n", b""), (b"e", b"f")])
def test_a_result_or_curves_that_changed_are_no_numbers(home, which, old, new):
    damaged = sealed(home)[which]
    contents = damaged.read_bytes()
    damaged.write_bytes(contents[:-1] if old not in contents else contents.replace(old, new, 1))
    with pytest.raises(ValueError, match="one.json, or .*one.csv, is not what its run wrote") as e:
        Results("demo", home)["one"]
    assert "\n" not in str(e.value) and "git restore or dvc checkout --force" in str(e.value)
    with pytest.raises(ValueError, match="is not what its run wrote"):
        digests.digests("demo", home)


def test_the_prediction_interval_by_hand():
    """1 to 5: mean 3, sd² = 2.5; t(0.975, 4) = 2.7764451; √(2.5·(1/2 + 1/5)) for two seeds."""
    low, high = digests.prediction_interval([1.0, 2.0, 3.0, 4.0, 5.0], 2)
    half = 2.7764451052 * math.sqrt(2.5 * 0.7)
    assert (low, high) == (pytest.approx(3 - half), pytest.approx(3 + half))


def test_the_prediction_interval_holds_95_of_100_means():
    """Simulated: five recorded seeds and the mean of two more, all of one normal distribution."""
    import numpy

    drawn = numpy.random.default_rng(0).normal(50, 2, size=(4000, 7))
    inside = 0
    for *recorded, first, second in drawn:
        low, high = digests.prediction_interval(recorded, 2)
        inside += low <= (first + second) / 2 <= high
    assert abs(inside / 4000 - 0.95) < 0.015  # four standard errors


def test_what_is_equal_near_and_far_is_one_sentence(home):
    accuracies = dict.fromkeys(("one", "two", "three"), [49.0, 50.0, 51.0, 52.0, 53.0])
    recorded = digests.record("demo", accuracies, home)
    assert digests.read("demo", home) == recorded and digests.read("cpu", home) == {}
    every = "3 of 3 runs equal the recorded digests to the last bit"
    assert digests.compare("demo", recorded, home) == every
    # 51 ± 2.7764451·√(2.5·0.7) = 51 ± 3.673
    assert (recorded["one"]["low"], recorded["one"]["high"]) == (47.327, 54.673)
    put(home, "two", [54.6, 54.7])
    near = (
        "2 of 3 runs equal the recorded digests to the last bit; 1 other lies within its interval"
    )
    assert digests.compare("demo", recorded, home) == near
    put(home, "one", [47.4, 47.4])
    assert digests.compare("demo", recorded, home) == (
        "1 of 3 runs equal the recorded digests to the last bit; 2 others lie within their interval"
    )
    put(home, "three", [54.7, 54.7])
    (home / "results" / "demo" / "one.json").unlink()
    assert digests.compare("demo", recorded, home) == (
        "0 of 3 runs equal the recorded digests to the last bit; 1 other lies within its "
        "interval; 1 other lies outside its interval (three); not run: one"
    )
