"""``make``: which stages it asks DVC for, in which order, and how a share that fails ends."""

import subprocess
import sys

import pytest
from clones import PROJECT

from study import repro
from study.plan import config

RUNS = config.read(PROJECT)["runs"]


@pytest.fixture
def asked(monkeypatch):
    """What :mod:`study.repro` asks for, nothing of it done: ``dvc repro`` and shares."""
    calls = []
    monkeypatch.setattr(repro, "root", lambda: PROJECT)
    monkeypatch.setattr(repro, "_changed", lambda home, *targets: {"plan": targets})
    monkeypatch.setattr(repro, "_call", lambda home, *words: calls.append(words))
    monkeypatch.setattr(repro, "_shares", lambda home, stages, jobs, what: calls.append(stages))
    return calls


def test_a_scale_is_its_plan_data_runs_tables_chapters_and_the_rest(asked):
    repro.make("demo", 2, None)
    plan, data, runs, tables, chapters, rest = asked
    own = "scales/demo/dvc.yaml"
    roles = ["cifar10", "cifar100", "cinic10", "imagenet"]
    assert plan == (f"{own}:plan",)
    assert sorted(data) == [f"{own}:data@{role}" for role in roles]
    assert set(runs) == {f"{own}:run-{role}@{name}" for role in roles for name in RUNS[role]}
    assert tables == ("--single-item", f"{own}:tables")
    assert {f"{own}:lesson@01_introduction", f"{own}:chapter@06_results"} <= set(chapters)
    assert rest == (own, "dvc.yaml")


def test_another_scale_than_that_of_params_leaves_the_playground_alone(asked):
    repro.make("smoke", 2, None)
    assert asked[-1] == ("scales/smoke/dvc.yaml",)


def test_the_evidence_is_its_own_runs_and_what_is_written_of_them(asked):
    repro.make("cpu", 2, "evidence")
    own = "scales/cpu/dvc.yaml"
    assert asked[1] == (f"{own}:data@evidence",)
    assert asked[2] == [f"{own}:run-evidence@{name}" for name in RUNS["evidence"]]
    assert asked[-1] == ("--single-item", f"{own}:book")


def test_the_reports_train_nothing(asked):
    repro.make("cpu", 2, "reports")
    own = "scales/cpu/dvc.yaml"
    assert asked[0] == ("--single-item", f"{own}:plan", f"{own}:tables")
    assert all("@" in stage and ":run" not in stage for stage in asked[1])
    assert asked[2:] == [("--single-item", f"{own}:book")]


def test_where_nothing_changed_nothing_is_asked_for(asked, monkeypatch, capsys):
    monkeypatch.setattr(repro, "_changed", lambda *_: {})
    repro.make("demo", 2, None)
    assert asked == [] and capsys.readouterr().out == "scale demo: everything is up to date\n"


def test_an_unknown_scale_names_the_nearest(asked):
    with pytest.raises(ValueError, match="'gpuu'.*did you mean 'gpu'"):
        repro.make("gpuu", 2, None)


@pytest.fixture
def started(monkeypatch):
    """The processes of :func:`study.repro._shares`: Python, where ``dvc`` would be."""
    processes = []

    def dvc(*words, **options):
        stages = words[words.index("--single-item") + 1 :]
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, *stages], **options)
        processes.append((stages, process))
        return process

    monkeypatch.setattr(repro, "_dvc", dvc)
    return processes


#: Says what it runs; "bad" fails, "long" takes a minute.
PROGRAM = """
import sys, time
for stage in sys.argv[1:]:
    print(f"Running stage 'run@{stage}':", flush=True)
    if stage == "long":
        time.sleep(60)
    if stage == "bad":
        sys.exit("error: this run is bad")
"""


def test_shares_have_every_stage_once(started, tmp_path, capfd):
    repro._shares(tmp_path, list("abcde"), 2, "run")
    assert [stages for stages, _ in started] == [("a", "c", "e"), ("b", "d")]
    assert "5 runs, 2 at a time" in capfd.readouterr().out
    repro._shares(tmp_path, ["a"], 4, "run")
    assert len(started) == 3


def test_the_share_that_fails_stops_the_others_and_says_why(started, tmp_path, capfd):
    with pytest.raises(RuntimeError, match="a run failed: .* all of it in build/log/make-1.log"):
        repro._shares(tmp_path, ["long", "bad"], 2, "run")
    (_, interrupted), (_, failed) = started
    assert interrupted.returncode != 0 and failed.returncode == 1
    assert "error: this run is bad" in capfd.readouterr().out
