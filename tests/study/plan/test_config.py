"""The settings to plans: what is taken, what is refused and in which words."""

import copy
import json
from pathlib import Path

import pytest

from study.data.sources import DATASETS
from study.files import root
from study.plan import config

PROJECT = root(Path(__file__).parent)
EVERY = {scale: config.read(PROJECT, scale) for scale in config.SCALES}
PARAMS = EVERY["demo"] | {"scales": {s: read["scales"][s] for s, read in EVERY.items()}}


@pytest.fixture
def params():
    return copy.deepcopy(PARAMS)


def plan_runs(params, scale):
    return config.plan_runs(params, scale, DATASETS)


def plan_all(params, scale):
    """The runs, and the playground."""
    playground = config.plan_playground(params, scale, DATASETS)
    return plan_runs(params, scale) | {playground["run"]: playground}


def test_every_run_is_planned_at_every_scale(params):
    for scale in config.SCALES:
        plans = plan_all(params, scale)
        roles = [r for r in params["runs"] if r in params["scales"][scale]["data"]]
        assert set(plans) == {config.PLAYGROUND, *(n for r in roles for n in params["runs"][r])}
        for plan in plans.values():
            json.dumps(plan, allow_nan=False)


def test_a_scale_overrides_a_recipe_and_a_run_overrides_a_scale(params):
    recipe, scale = params["recipes"]["resnext-10"], params["scales"]["demo"]
    assert plan_runs(params, "thesis")["resnext10"]["train"]["lr"] == recipe["lr"]
    del scale["recipes"]["resnext-10"]["lr"]
    scale["train"]["lr"] = 0.5
    assert plan_runs(params, "demo")["resnext10"]["train"]["lr"] == 0.5
    scale["recipes"]["resnext-10"]["lr"] = 0.25
    assert plan_runs(params, "demo")["resnext10"]["train"]["lr"] == 0.25
    params["runs"]["cifar100"]["resnext10"]["train"] = {"lr": 0.125}
    plans = plan_runs(params, "demo")
    assert plans["resnext10"]["train"]["lr"] == 0.125
    assert plans["resnext10-se"]["train"]["lr"] == 0.25


def settings(folder, **texts):
    """A folder with the project's settings, and other texts for some of them."""
    for name in ("params", "recipes", "runs", "scales/demo/scale"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = texts.get(name, (PROJECT / f"{name}.yaml").read_text(encoding="utf-8"))
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def test_numbers_are_read_by_yaml_1_2(tmp_path):
    copied = settings(tmp_path, params="scale: demo\ntrain: {lr: 1e-3, weight_decay: 1e-06}\n")
    assert config.read(copied)["train"] == {"lr": 0.001, "weight_decay": 1e-06}


def test_the_thesis_scale_takes_the_recipes_as_they_are(params):
    for plan in plan_all(params, "thesis").values():
        recipe = params["recipes"][plan["recipe"]]
        given = {k: v for k, v in recipe.items() if k in plan["train"]}
        own = params["runs"].get(plan["data"]["role"], {}).get(plan["run"], {})
        assert plan["train"] == {"sync_batch_norm": False} | given | own.get("train", {})
        assert plan["model_options"] == own.get("model_options", {})


def test_pause_ramp_and_pretrain_are_epochs_or_shares_of_the_run(params):
    def planned(**we):
        params["we"] = {"attention": "se"} | we
        params["train"]["epochs"] = 10
        return plan_all(params, "demo")["playground"]["we"]

    keys = ("pretrain", "pause", "ramp")
    shares = planned(pretrain=0.1, pause=0.25, ramp=0.4)
    assert [shares[key] for key in keys] == [1, 2, 4]
    whole = planned(pause=3, ramp=2)
    assert [whole[key] for key in keys] == [0, 3, 2]
    with pytest.raises(ValueError, match="we.pause: expected whole epochs, or below 1 a share"):
        planned(pause=1.5)
    with pytest.raises(ValueError, match="we.pause: pretrain, pause and ramp take 10 epochs of 10"):
        planned(pause=7, ramp=3)


def test_a_run_of_other_scales_is_planned_and_says_where_it_is_trained(params):
    params["runs"]["cifar100"]["resnext"]["scales"] = ["cpu", "thesis"]
    assert "missing" not in plan_runs(params, "cpu")["resnext"]["data"]
    assert plan_runs(params, "demo")["resnext"]["data"] == {
        "role": "cifar100",
        "task": "classification",
        "missing": "trained at cpu, thesis",
    }


def test_the_playground_takes_a_folder_and_a_set_of_torchvision(params, tmp_path):
    for dataset in (str(tmp_path), "torchvision:FashionMNIST"):
        params["dataset"] = dataset
        data = config.plan_playground(params, "demo", DATASETS)["data"]
        assert (data["role"], data["task"], data["dataset"]) == ("own", "classification", dataset)


OWN_MODEL = "from torch import nn\n\n\ndef net(classes, width=4):\n    "


def test_a_model_of_ones_own_is_planned_with_the_digest_of_its_file(tmp_path, monkeypatch):
    copied = settings(tmp_path)
    for name in ("dvc.yaml", "notebooks", "study", "wexlib"):
        (tmp_path / name).symlink_to(PROJECT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    params = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    params = params.replace("model: resnet18 ", "model: own_of_test:net ")
    (copied / "params.yaml").write_text(params, encoding="utf-8")
    codes = []
    for body in ("return nn.Conv2d(3, classes, 1)", "return  nn.Conv2d(3, classes, 1) # why", "4"):
        (tmp_path / "own_of_test.py").write_text(f"{OWN_MODEL}{body}\n", encoding="utf-8")
        if body == "4":  # it is imported already, and would still give a layer
            plan = {"model": "own_of_test:net"}
            codes.append(config._code_of(plan, "", config.Code(tmp_path)))
        else:
            config.write_playground(copied, DATASETS)
            codes.append(json.loads((tmp_path / "playground/plan.json").read_text())["code"])
    digests = [code["own_of_test"] for code in codes]
    assert digests[0] == digests[1] != digests[2]
    data = json.loads((tmp_path / "playground" / "data.json").read_text())
    assert data["role"] == "cifar100" and "study.data.datasets" in data["code"]


BAD = [
    ("we.actvation", "relu", ["key in we", "'actvation'", "did you mean 'activation'"]),
    ("we.attention", "cbm", ["we.attention", "'cbm'", "did you mean 'cbam'"]),
    ("we.activation", "leaky", ["we.activation", "did you mean 'leaky_relu'"]),
    ("we.magnitude", "artan", ["we.magnitude", "did you mean 'artanh'"]),
    ("we.standardize", "yes", ["we.standardize", "true or false", "'yes'"]),
    ("we.eps", 0, ["we.eps", "above 0"]),
    ("we.reduction", 1.5, ["we.reduction", "whole number"]),
    ("we.skips", True, ["we.skips", "needs an attention"]),
    ("we.order", "parallel", ["we.order", "needs we.attention: cbam"]),
    ("we.attention", ["se", "cbm"], ["we.attention.1", "'cbm'", "did you mean 'cbam'"]),
    ("we.attention", ["se"], ["we.attention", "a name, or a list of two or more", "['se']"]),
    ("we.attention", ["se", "none"], ["we.attention", "a list of two or more"]),
    ("we.attention", ["global", "global"], ["we.skips", "needs an attention of a layer's own"]),
    ("we.stacked", ["magnitude", "location"], ["we.stacked: magnitude", "name it last"]),
    ("we.on", "maps", ["we.on", "one of weights, features"]),
    ("we.on", "features", ["we.skips", "leave it out with we.on: features"]),
    ("we.where", "layer(3", ["we.where", "no regular expression"]),
    ("we.where", "layer9", ["model: resnet18 has no layer", "'layer9' in its name"]),
    ("pretrained", "none.pt", ["pretrained: none.pt is no file", "path of a checkpoint"]),
    ("pretrained", "torchvision", ["torchvision has no weights of resnet18"]),
    ("train.precision", "fp8", ["train.precision", "one of float32, bf16, fp16"]),
    ("train.lr", "fast", ["train.lr", "a number above 0", "'fast'"]),
    ("train.lr", float("nan"), ["train.lr", "nan"]),
    ("train.lr", True, ["train.lr", "a number above 0"]),
    ("train.epochs", 0, ["train.epochs", "at least 1"]),
    ("train.seeds", [1, 1], ["train.seeds", "different seeds"]),
    ("train.recipe", "resnet-164", ["train.recipe", "did you mean 'resnext-164'"]),
    ("runs.cifar100.resnext10.train", {"schedule": "step"}, ["resnext10.train.sch", "milestones"]),
    ("model", "resnet19", ["model", "'resnet19'", "did you mean 'resnet18'"]),
    ("model", "study.nothing:net", ["model study.nothing:net", "No module named"]),
    ("model", "torch.nn:net", ["model torch.nn:net", "expected module:function"]),
    ("model", "builtins:repr", ["model builtins:repr: expected a torch module, got str"]),
    ("dataset", "cifar", ["dataset", "did you mean 'cifar10'"]),
    ("dataset", "own", ["unknown dataset 'own'", "a folder's path"]),
    ("dataset", "/no/such", ["dataset: /no/such is no folder"]),
    ("runs.cifar100.resnext.epochs", 3, ["key in runs.cifar100.resnext", "'epochs'"]),
    (
        "runs.cifar100.resnext.model",
        "resnext",
        ["runs.cifar100.resnext: unknown model", "did you mean 'resnext29'"],
    ),
    ("runs.cifar100.Bad Name", {}, ["runs.cifar100.Bad Name", "a run's name"]),
    ("runs.cifar10.resnext", {}, ["resnext", "another run has this name"]),
    ("scales.demo.scale", "smoke", ["scales.demo.scale", "'smoke'", "one of demo"]),
    ("scales.demo.seeds", 10**9, ["seeds", "at most 1000"]),
    ("scales.demo.models.mixer", {"dim": 2**62}, ["runs.cifar100.mixer: RuntimeError"]),
    ("runs.cifar100.resnext.seeds", 0, ["runs.cifar100.resnext.seeds", "at least 1"]),
    ("runs.cifar100.resnext.seeds", [], ["runs.cifar100.resnext.seeds", "different seeds"]),
    ("runs.cifar100", [1], ["runs.cifar100", "keys and values"]),
    ("runs.cifar100.resnext.scales", ["cpuu"], ["resnext.scales.0", "did you mean 'cpu'"]),
    ("scales.demo.processes", 0, ["scales.demo.processes", "at least 1"]),
    ("scales.demo.threads", 0, ["scales.demo.threads", "at least 1"]),
    ("scales.demo.data.cifar10.dataset", "digits", ["scales.demo.data.cifar10.dataset"]),
    ("scales.demo.models.resnet18.wdth", 3, ["wdth"]),
    ("scales.demo.recipes.resnext-165", {}, ["did you mean 'resnext-164'"]),
]


@pytest.mark.parametrize(("key", "value", "words"), BAD, ids=[f"{k}={v}" for k, v, _ in BAD])
def test_a_bad_value_is_one_sentence(params, key, value, words):
    if key in ("we.skips", "we.on") or value == ["global", "global"]:
        params["we"] |= {"attention": "none" if key == "we.skips" else "se", "skips": True}
    *path, last = key.split(".")
    place = params
    for name in path:
        place = place[name]
    place[last] = value
    with pytest.raises(ValueError) as error:
        plan_all(params, "demo")
    sentence = str(error.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


def test_an_unknown_scale_names_the_nearest(params):
    with pytest.raises(ValueError, match="unknown scale 'gpuu': .*did you mean 'gpu'"):
        plan_runs(params, "gpuu")


def test_broken_yaml_names_the_line(tmp_path):
    with pytest.raises(ValueError, match=r"params\.yaml, line \d+: not valid YAML"):
        config.read(settings(tmp_path, params="scale: demo\nwe: {a: 1\n"))


ODD = {
    "train: {lr: 2001-01-01}": r"params.yaml: train.lr: expected a text, a number, .*datetime",
    "train: {lr: 2001-13-01}": r"params.yaml: not valid YAML: ValueError: month must be in 1..12",
    "train: {lr: .nan}": r"params.yaml: train.lr: expected a number below .*, got nan",
    f"train: {{lr: {'9' * 400}}}": r"params.yaml: train.lr: expected a number below .*, got 9999",
    "we: {1: relu}": r"params.yaml: we: expected a text as a key, got 1: put it in quotes",
    'we: {"a\\nb": relu}': r"params.yaml: we: expected a text as a key, got 'a\\nb'",
    "we: &a {we: *a}": r"params.yaml: expected a few levels of keys, got too many",
    f"we: {'[' * 5000}": r"params.yaml: (expected a few levels|not valid YAML: RecursionError)",
    "we: !!bool x": r"params.yaml: not valid YAML: KeyError: 'x'",
    "we: {a: 1, a: 2}": r"params.yaml, line 2: not valid YAML: found duplicate key",
    "we: \0": r"params.yaml: not valid YAML: .*control char|special char",
}


@pytest.mark.parametrize("text", ODD)
def test_what_yaml_has_and_a_plan_has_not_is_one_sentence(tmp_path, text):
    with pytest.raises(ValueError, match=ODD[text]) as error:
        config.read(settings(tmp_path, params=f"scale: demo\n{text}\n"))
    assert "\n" not in str(error.value)


def test_another_encoding_names_the_line(tmp_path):
    folder = settings(tmp_path)
    (folder / "runs.yaml").write_bytes("runs:\n  # für\n".encode("latin-1"))
    with pytest.raises(ValueError, match="runs.yaml, line 2: not UTF-8: save it as such"):
        config.read(folder)


def test_a_settings_file_that_is_gone_is_named(tmp_path):
    folder = settings(tmp_path)
    (folder / "runs.yaml").unlink()
    with pytest.raises(ValueError, match="runs.yaml is missing: bring it back by git restore"):
        config.read(folder)


def test_a_key_at_the_top_that_nobody_knows_is_named(tmp_path):
    with pytest.raises(ValueError, match="key in params.yaml: 'data': expected"):
        config.read(settings(tmp_path, params="scale: demo\ndata: cifar10\n"))


def test_nothing_is_written_when_something_is_wrong(tmp_path):
    runs = (PROJECT / "runs.yaml").read_text(encoding="utf-8")
    folder = settings(tmp_path, runs=runs.replace("model: mixer,", "model: mixr,", 1))
    with pytest.raises(ValueError, match="runs.cifar100.mixer: .*did you mean 'mixer'"):
        config.write_plans(folder, "demo", DATASETS)
    assert not (folder / "scales" / "demo" / "plan").exists()
