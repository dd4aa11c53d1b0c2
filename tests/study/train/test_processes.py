"""Several processes: their numbers against one process's, and how they end together."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from clones import PROJECT
from shares import rows_of

from study.data.datasets import prepare
from study.data.sources import DATASETS
from study.files import write_json
from study.plan import config
from study.plan.keys import WE
from study.train import __main__ as together

ENVIRONMENT = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LINEAR = {"layers": "linear"}
#: Without batch norm: model, excitation, training, and how far a loss may be from one process's
#: (relative): float32 sums in another order, over some steps; in 8 or 11 bits, roundings.
PLANS = {
    "mixer": ("mixer", LINEAR | {"magnitude": "artanh"}, {}, 1e-5),
    "vit": ("vit", LINEAR | {"attention": "se"}, {"optimizer": "adamw", "lr": 1e-3}, 1e-5),
    "uneven": ("mixer", LINEAR, {"batch": 7}, 1e-4),
    "stopped": ("mixer", LINEAR | {"attention": "se"}, {"batch": 20}, 1e-5),
    "paused": ("mixer", LINEAR | {"attention": "se", "pause": 1}, {}, 1e-5),
    "attached later": ("mixer", LINEAR | {"attention": "se", "pretrain": 1}, {}, 1e-5),
    "averaged": ("mixer", LINEAR | {"attention": "global"}, {}, 1e-5),
    "masks": ("mixer", {}, {"batch": 7}, 1e-5),
    "bf16": ("mixer", LINEAR, {"precision": "bf16"}, 2e-2),
    "fp16": ("mixer", LINEAR, {"precision": "fp16"}, 2e-3),
}


def plan_of(model: str, we: dict, train: dict) -> dict:
    plan = config.plan_playground(config.read(PROJECT, "smoke"), "smoke", DATASETS)
    plan["model"], plan["model_options"] = model, {}
    if model in ("mixer", "vit"):
        plan["model_options"] = config.read(PROJECT, "smoke")["scales"]["smoke"]["models"][model]
    plan["we"] = {key: default for key, (_, default) in WE.items()} | we
    plan["train"] |= {"epochs": 3, "batch": 50, "schedule": "onecycle", "lr": 0.02} | train
    return plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    prepare("digits10", folder / "digits10", train=120, validation=40, test=61)
    plans = {name: plan_of(*plan[:3]) for name, plan in PLANS.items()}
    plans["masks"]["data"]["task"] = "segmentation"
    plans["batch norm"] = plan_of("resnet18", {"attention": "se"}, {})
    plans["batch norm"]["model_options"] = {"width": 8}
    (folder / "plans.json").write_text(json.dumps(plans))
    return folder


@pytest.fixture(scope="module")
def one(folder):
    return rows_of(folder)


@pytest.fixture(scope="module")
def two(folder):
    """What each of two processes found."""
    command = [*TORCHRUN, Path(__file__).with_name("shares.py"), folder]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", PLANS)
def test_two_processes_give_the_numbers_of_one(one, two, name):
    assert len(two[0][name]) == 3
    for expected, row in zip(one[name], two[0][name], strict=True):
        for key in (key for key in expected if key.endswith("_loss")):
            assert row[key] == pytest.approx(expected[key], rel=PLANS[name][3]), key
        if PLANS[name][3] < 1e-3:
            same = [key for key in expected if not key.endswith("_loss") and key != "begun"]
            assert {key: row[key] for key in same} == {key: expected[key] for key in same}


def test_every_process_has_the_same_rows(two):
    assert two[0] == two[1]


def test_a_run_that_was_stopped_within_an_epoch_went_on_from_there(one, two):
    assert two[0]["stopped"][0]["begun"] == 2 and one["stopped"][0]["begun"] == 0


def test_batch_norm_sees_a_share_of_the_batch_and_the_numbers_are_others(one, two):
    losses = [rows["batch norm"][-1]["test_loss"] for rows in (one, two[0])]
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=0.5)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the data and the plan of one run, ``smoke/mixer``, in two processes."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    prepare("digits10", tmp_path / "data/smoke/cifar10", train=120, validation=40, test=60)
    monkeypatch.chdir(tmp_path)
    write_plan(tmp_path)
    return tmp_path


def write_plan(project: Path, **train: object) -> dict:
    plan = plan_of("mixer", LINEAR, train) | {"run": "mixer", "processes": 2}
    plan["data"] |= {"role": "cifar10"}
    plan["seeds"], plan["code"] = [0, 1], {}
    write_json(project / "scales/smoke/plan/mixer.json", plan)
    return plan


def started(command: list) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, **pipes)


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """Those of a torchrun that has begun to train: it has said a line."""
    process.stdout.readline()
    return [p for p in psutil.Process(process.pid).children() if "study.train" in p.cmdline()]


def ended(processes: list[psutil.Process]) -> bool:
    """Within a while: an orphan may stay a zombie."""
    for _ in range(600):
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            return True
        time.sleep(0.1)
    return False


RUN = [*TORCHRUN, "-m", "study.train", "smoke/mixer"]
RESULTS = ("results/smoke/mixer.json", "results/smoke/curves/mixer.csv")


def test_a_run_is_written_once_and_killed_and_resumed_equal_to_the_last_bit(project):
    write_plan(project, epochs=30)
    process = started(RUN)
    lines, _ = process.communicate()
    assert process.returncode == 0
    line = r"seed [01]  epoch \d+/30  loss \d\.\d{3}  test [\d.]+ %\n"
    assert re.fullmatch(f"({line}){{60}}", lines)
    whole = [(project / name).read_bytes() for name in RESULTS]
    assert not list(project.rglob("*.pt"))
    for name in RESULTS:
        (project / name).unlink()
    process = started(RUN)
    trained = workers(process)
    process.kill()
    process.communicate()
    assert len(trained) == 2 and ended(trained)
    assert not any((project / name).exists() for name in RESULTS) and list(project.rglob("*.pt"))
    rest, _ = started(RUN).communicate()
    assert rest != lines and lines.endswith(rest)
    assert [(project / name).read_bytes() for name in RESULTS] == whole


LAUNCH = "from study.train.processes import torchrun; torchrun('smoke/mixer', 2)"


def test_a_process_that_dies_ends_all_in_a_sentence(project):
    write_plan(project, epochs=1000)
    process = started([sys.executable, "-c", LAUNCH])
    first, second = workers(process)
    second.kill()
    _, error = process.communicate()
    assert error.splitlines()[-1] == (
        "RuntimeError: smoke/mixer: process 2 of 2 failed, and the others were ended: "
        "it was killed (SIGKILL), as the system does when memory runs out"
    )
    assert not first.is_running() and not (project / "results").exists()


def test_what_a_process_raises_is_said(project):
    write_plan(project, lr=1e30)
    error = started([sys.executable, "-c", LAUNCH]).communicate()[1]
    assert re.fullmatch(
        r"RuntimeError: smoke/mixer: process . of 2 failed, and the others were ended: "
        r"mixer: the loss is not finite at step . of epoch 1 \(seed 0\): lower train.lr; .*",
        error.splitlines()[-1],
    )


def test_interrupted_all_end(project):
    write_plan(project, epochs=1000)
    process = started(RUN)
    trained = workers(process)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode != 0 and not any(p.is_running() for p in trained)


@pytest.mark.parametrize(
    ("world", "gpus", "sentence"),
    [
        (3, 0, "mixer is planned for 2 processes, got 3: take --nproc-per-node 2, or plan it anew"),
        (2, 1, "mixer: expected a GPU a process, got 1 for 2: set `processes` in scales/smoke/sc"),
    ],
)
def test_another_number_of_processes_is_refused(project, monkeypatch, world, gpus, sentence):
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": world}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        together.main("smoke/mixer")
