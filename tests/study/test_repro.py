"""``make``: which stages it asks DVC for, in which order, and how a share that fails ends."""

import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext

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
    monkeypatch.setattr(repro, "alone", lambda home: nullcontext())
    monkeypatch.setattr(repro, "_changed", lambda home, *targets: {"plan": targets})
    monkeypatch.setattr(repro, "call", lambda home, *words: calls.append(words))
    monkeypatch.setattr(repro, "_shares", lambda home, stages, *_: calls.append(stages))
    return calls


def test_a_scale_is_its_plan_data_runs_tables_chapters_and_the_rest(asked):
    repro.make("demo", 2, None)
    plan, data, runs, tables, chapters, rest = asked
    own = "scales/demo/dvc.yaml"
    roles = ["cifar10", "cifar100", "cinic10", "imagenet", "kinetics", "voc"]
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


#: Takes the lock, starts what lives until its input ends, as a share would, and is killed.
KILLED = """
import os, subprocess, sys
from pathlib import Path
from study import repro
with repro.alone(Path(sys.argv[1])):
    subprocess.Popen([sys.executable, "-c", "input()"], close_fds=False)
    os.kill(os.getpid(), 9)
"""
WAITING = """
import sys
from pathlib import Path
from study import repro
with repro.alone(Path(sys.argv[1])):
    print("at work")
"""


def test_make_waits_for_what_another_one_started_and_was_killed_over(tmp_path):
    command = [sys.executable, "-c", KILLED, tmp_path]
    first = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert first.wait() == -9
    command = [sys.executable, "-uc", WAITING, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
        sentence = second.stdout.readline()
        assert sentence == "another make is at work in this folder: waiting for its end\n"
        first.stdin.close()
        assert second.stdout.read() == "at work\n"


def test_make_clears_what_a_killed_one_left(tmp_path):
    left = tmp_path / "scales" / "demo" / ".dvc.lock.12345678"
    whole, torn = '{"write": {}, "read": {}}', '{"write": {'
    rwlock = tmp_path / ".dvc" / "tmp" / "rwlock"
    for path in (left, left.with_name("dvc.lock"), rwlock):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(whole)
    with repro.alone(tmp_path):
        assert not left.exists() and left.with_name("dvc.lock").read_text() == whole == (
            rwlock.read_text()
        )
    rwlock.write_text(torn)
    with repro.alone(tmp_path):
        assert not rwlock.exists()


def test_dvc_writes_its_lock_whole_or_not_at_all(tmp_path):
    """``python -m study.dvc`` in place of a disk that fills up: in the middle of what it writes."""
    from dvc.utils import serialize

    import study.dvc  # noqa: F401

    lock = tmp_path / "dvc.lock"
    with serialize.modify_yaml(lock) as content:
        content["stages"] = {"run": {"cmd": "python"}}
    whole = lock.read_text()
    assert "cmd: python" in whole
    with pytest.raises(Exception), serialize.modify_yaml(lock) as content:  # noqa: B017
        content |= {"first": "x" * 100_000, "second": object()}
    assert lock.read_text() == whole and list(tmp_path.iterdir()) == [lock]


@pytest.fixture
def started(monkeypatch):
    """The processes of :func:`study.repro._shares`: Python, where ``dvc`` would be."""
    processes = []

    def dvc(*words, **options):
        stages = words[words.index("--single-item") + 1 :]
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, *stages], **options)
        processes.append((stages, process))
        return process

    monkeypatch.setattr(repro, "dvc", dvc)
    return processes


#: Says what it runs, and where; "bad" fails, "long" takes a minute.
PROGRAM = """
import os, sys, time
print("sees", os.environ.get("CUDA_VISIBLE_DEVICES"))
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


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """``machine(n, visible)``: one with ``n`` GPUs, by a stand-in for nvidia-smi; none fails."""

    def build(n, visible=None):
        command = tmp_path / "bin" / "nvidia-smi"
        command.parent.mkdir(exist_ok=True)
        lines = [f"GPU {i}: NVIDIA H200 (UUID: GPU-{i}a)\n  MIG 1g: (UUID: x)" for i in range(n)]
        text = "\n".join(lines) if n else "no devices were found"
        command.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {0 if n else 9}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return build


@pytest.mark.parametrize(
    "there, visible, gpus",
    [
        (0, None, []),
        (1, None, ["0"]),
        (4, None, ["0", "1", "2", "3"]),
        (4, "2,0", ["2", "0"]),
        (4, " 1 , 3 ", ["1", "3"]),
        (2, "", []),
        (2, "-1", []),
        (2, "1,7,0", ["1"]),
        (2, "GPU-1a", ["GPU-1a"]),
    ],
)
def test_gpus_are_those_of_the_machine_that_are_visible(machine, there, visible, gpus):
    machine(there, visible)
    assert repro._gpus() == gpus
    assert repro._jobs() == (len(gpus) or len(os.sched_getaffinity(0)))


def test_a_run_of_several_processes_has_a_gpu_for_each(machine):
    machine(5)
    assert repro._places(2) == ["0,1", "2,3"] and repro._jobs(2) == 2
    machine(1)
    assert repro._places(2) == ["0"] and repro._jobs(2) == 1  # too few: the run says so
    machine(0)
    assert repro._places(2) == [] and repro._jobs(10**6) == 1


def test_where_there_is_no_nvidia_smi_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert repro._gpus() == []


def test_each_share_sees_a_gpu_of_its_own(machine, started, tmp_path, capfd, monkeypatch):
    @contextmanager
    def watch(files, text):
        yield
        print(text(["" for _ in files]))

    monkeypatch.setattr(repro, "Watch", watch)
    machine(3, "2,0")
    repro._shares(tmp_path, list("abc"), 2, "run")
    logs = [(tmp_path / "build" / "log" / f"make-{i}.log").read_text() for i in range(2)]
    assert [log.split("\n")[0] for log in logs] == ["sees 2", "sees 0"]
    out = capfd.readouterr().out
    assert "3 runs, 2 at a time, on 2 GPUs" in out
    assert "run 3 of 3   GPU 2: c   |   GPU 0: b" in out
    machine(0)
    repro._shares(tmp_path, ["a"], 1, "run")
    assert (tmp_path / "build" / "log" / "make-0.log").read_text().startswith("sees None")
    assert "GPU" not in capfd.readouterr().out
