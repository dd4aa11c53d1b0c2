"""The pipeline as a user runs it: real DVC and papermill in a clone, at the smoke scale."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wexlib.files import root

PROJECT = root(Path(__file__).parent)
SMOKE_RUNS = 8


def shell(command: str, cwd: Path, *, fails: bool = False) -> str:
    """Run a command with this environment's programs first in PATH; return all that it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(cwd)}
    done = subprocess.run(
        command,
        shell=True,
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def clone(source: Path, target: Path) -> Path:
    shell(f"git clone -q {source} {target}", source)
    shell("git config user.name test && git config user.email test@localhost", target)
    return target


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A clone with the working tree's files, after `make SCALE=smoke`'s command."""
    folder = clone(PROJECT, tmp_path_factory.mktemp("pipeline") / "clone")
    shell(
        f"git -C {PROJECT} ls-files -z -co --exclude-standard | "
        f"(cd {PROJECT} && xargs -0 tar c --ignore-failed-read) | tar x",
        folder,
    )
    shell("git add -A && git commit -q --allow-empty -m 'The working tree'", folder)
    shell("python -m wexlib.pipeline make --scale smoke", folder)
    return folder


def test_every_table_is_made_and_params_yaml_is_as_it_was(made):
    assert shell("git status --short params.yaml", made) == ""
    tables = {p.stem for p in (made / "results" / "smoke" / "tables").glob("*.csv")}
    assert {f"table_6_{n}" for n in range(1, 12)} <= tables
    ran = [
        p
        for p in (made / "results" / "smoke").glob("*.json")
        if "test_last" in json.loads(p.read_text())
    ]
    assert len(ran) == SMOKE_RUNS


def test_the_second_time_nothing_runs(made):
    assert "everything is up to date" in shell("python -m wexlib.pipeline make --scale smoke", made)


def test_sharing_and_one_experiment(made, tmp_path):
    """Push to a folder, pull into a second clone: nothing runs there but the one experiment."""
    remote = tmp_path / "remote"
    shell(f"dvc remote add -q -d shared {remote}", made)
    # The pipeline's own scale is smoke from here on, as if a user had chosen it.
    shell("sed -i 's/^scale: demo/scale: smoke/' params.yaml", made)
    shell("git add -A && git add -f results/smoke && git commit -q -m 'Smoke results'", made)
    shell("dvc push -q", made)

    second = clone(made, tmp_path / "second")
    shell("dvc pull -q", second)
    assert "Running stage" not in shell("dvc repro", second)
    tested = shell(
        f'{sys.executable} -c "from wexlib import load, fold;'
        "print(type(fold(load('results/smoke/playground.json')).conv1).__name__)\"",
        second,
    )
    assert tested.strip() == "Conv2d"

    before = (second / "results/smoke/playground.json").read_text()
    output = shell("dvc exp run -S we.activation=leaky_relu", second)
    ran = {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}
    assert ran == {"plan@smoke", "playground@smoke", "results@smoke"}
    assert (second / "results/smoke/playground.json").read_text() != before
    shown = shell("dvc exp show --csv", second)
    assert "leaky_relu" in shown and "playground" in shown


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("we.actvation=relu", "Key 'actvation' is not in struct"),
        ("we.attention=cbm", "error: unknown we.attention 'cbm': expected one of none, se, cbam"),
        ("scale=gpuu", "unknown scale 'gpuu'"),
        ("train.lr=fast", "error: train.lr: expected a number above 0, got 'fast'"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_lost(made, setting, sentence):
    kept = sorted(p.name for p in (made / "results" / "smoke").glob("*.json"))
    assert sentence in shell(f"dvc exp run -S {setting}", made, fails=True)
    assert sorted(p.name for p in (made / "results" / "smoke").glob("*.json")) == kept
    shell("git checkout -q params.yaml dvc.lock", made)
