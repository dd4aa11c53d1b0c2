"""The files of a run: where they are, and what they hold."""

import json
import sys
from pathlib import Path

import pytest
import torch
from clones import PROJECT

from study.files import PLAYGROUND
from study.plan.code import Code, notebook_code
from study.train import live, record
from study.train.loop import fit, start
from wexlib import load


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained():
    """A plan, its data and its runs of two seeds, an epoch each; and what they called."""
    we = {"standardize": True, "attention": "cbam", "magnitude": "artanh"}
    data, plan = live.digits(train=64, test=50), live.plan("resnet18", we=we, epochs=1)
    plan |= {"code": {"start": "digest"}, "model_options": {"width": 8}, "seeds": [0, 3]}
    runs = {seed: start(plan, data, seed) for seed in plan["seeds"]}
    called = set()

    def note(frame, event, _):
        if event == "call" and Path(frame.f_code.co_filename).is_relative_to(PROJECT):
            called.add((frame.f_globals["__name__"], frame.f_code.co_qualname.split(".")[0]))

    for seed, run in runs.items():
        sys.setprofile(note)
        list(fit(run, plan, data, seed))
        sys.setprofile(None)
    return plan, data, runs, called


def files_of(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.glob("*/**/*") if path.is_file()}


def test_a_finished_run_is_four_files_and_its_models(home, trained):
    plan, data, runs, _ = trained
    plan = plan | {"run": "a"}
    unfinished = record.state_file(plan, 0)
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    result = record.write_results(plan, data, runs)
    assert files_of(home) == {
        "results/demo/a.json",
        "results/demo/curves/a.csv",
        "results/demo/provenance/a.json",
        "models/demo/a.safetensors",
    }
    assert result == json.loads((home / "results/demo/a.json").read_text())
    assert result["seeds"] == [0, 3] and result["config"]["code"] == {"start": "digest"}
    assert result["test_last"] == [runs[seed].history[-1]["test_accuracy"] for seed in (0, 3)]
    assert len((home / "results/demo/curves/a.csv").read_text().splitlines()) == 3
    for seed, run in runs.items():
        loaded = load(home / "models/demo/a.safetensors", seed=seed).state_dict()
        own = run.model.state_dict()
        assert loaded.keys() == own.keys()
        assert all(torch.equal(loaded[name], own[name]) for name in loaded)


def test_the_playground_has_its_own_folder_and_a_number_for_dvc(home, trained):
    plan, data, runs, _ = trained
    assert plan["run"] == PLAYGROUND
    result = record.write_results(plan, data, runs)
    names = ("result.json", "curves.csv", "provenance.json", "metrics.json")
    made = {f"playground/{name}" for name in names} | {"models/playground.safetensors"}
    assert files_of(home) == made
    shown = json.loads((home / "playground/metrics.json").read_text())
    assert shown == {
        "accuracy": round(sum(result["test_last"]) / 2, 2),
        "train_accuracy": round(sum(result["train_last"]) / 2, 2),
        "parameters": result["parameters"],
    }


@pytest.mark.parametrize("name", ["a", PLAYGROUND])
def test_a_run_that_cannot_be_had_leaves_every_file_that_dvc_expects(home, name):
    plan = {"run": name, "scale": "cpu", "data": {"missing": "needs ImageNet"}}
    result = record.write_not_run(plan)
    files = record.Files.of(plan)
    for path in (files.result, files.curves, files.provenance, files.checkpoint):
        assert path.is_file()
    assert json.loads(files.result.read_text()) == result
    assert (home / "playground/metrics.json").is_file() == (name == PLAYGROUND)


def test_an_unfinished_seed_is_named_by_its_plan_and_outlives_a_queued_copy(home, monkeypatch):
    plan = {"run": "a", "scale": "demo", "lr": 1}
    here = record.state_file(plan, 0)
    assert here.parent.parent == home / "build" / "unfinished" / "demo"
    assert record.state_file(plan | {"lr": 2}, 0) != here
    copy = home / ".dvc" / "tmp" / "exps" / "x"
    copy.mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        (copy / name).touch()
    monkeypatch.chdir(copy)
    assert record.state_file(plan, 0) == here


def test_whatever_a_run_calls_is_part_of_its_code(trained, monkeypatch):
    monkeypatch.setattr("study.plan.code._digest", set)  # the names instead
    plan, _, _, called = trained
    code = Code(PROJECT).reached(notebook_code(PROJECT / "notebooks/train.ipynb"), plan)
    own = {(module, name) for module, name in called if module.startswith(("wexlib", "study"))}
    named = {(module, name) for module, name in own if not name.startswith("<")}
    assert {("study.train.loop", "fit"), ("wexlib.attention", "CBAM")} <= named
    assert [(module, name) for module, name in named if name not in code.get(module, ())] == []
