"""Several processes: their numbers against one process's, and how they end together."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clones import PROJECT
from shares import rows_of

from study.data.datasets import prepare
from study.data.loader import load
from study.data.sources import DATASETS
from study.files import root
from study.plan import config
from study.plan.keys import WE
from study.train import __main__ as together
from study.train import loop

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
    plan = config.plan_playground(config.read(root(), "smoke"), "smoke", DATASETS)
    plan["model"], plan["model_options"] = model, {}
    if model in ("mixer", "vit"):
        plan["model_options"] = config.read(root(), "smoke")["scales"]["smoke"]["models"][model]
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
