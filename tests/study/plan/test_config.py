"""params.yaml to plans: what is taken, what is refused and in which words, what a digest sees."""

import copy
import json
from pathlib import Path

import pytest

from study.files import root
from study.plan import config

PROJECT = root(Path(__file__).parent)


PARAMS = config.read(PROJECT / "params.yaml")


@pytest.fixture
def params():
    return copy.deepcopy(PARAMS)


def test_every_run_is_planned_at_every_scale(params):
    for scale in config.SCALES:
        plans = config.plan_runs(params, scale)
        roles = [role for role in params["runs"] if role != "evidence" or scale in ("cpu", "gpu")]
        assert set(plans) == {config.PLAYGROUND, *(n for r in roles for n in params["runs"][r])}
        for plan in plans.values():
            json.dumps(plan, allow_nan=False)


def test_a_scale_overrides_a_recipe_and_a_run_overrides_a_scale(params):
    recipe, scale = params["recipes"]["resnext-10"], params["scales"]["demo"]
    assert config.plan_runs(params, "thesis")["resnext10"]["train"]["lr"] == recipe["lr"]
    del scale["recipes"]["resnext-10"]["lr"]
    scale["train"]["lr"] = 0.5
    assert config.plan_runs(params, "demo")["resnext10"]["train"]["lr"] == 0.5
    scale["recipes"]["resnext-10"]["lr"] = 0.25
    assert config.plan_runs(params, "demo")["resnext10"]["train"]["lr"] == 0.25
    params["runs"]["cifar100"]["resnext10"]["train"] = {"lr": 0.125}
    plans = config.plan_runs(params, "demo")
    assert plans["resnext10"]["train"]["lr"] == 0.125
    assert plans["resnext10-se"]["train"]["lr"] == 0.25


def test_numbers_are_read_by_yaml_1_2(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("train: {lr: 1e-3, weight_decay: 1e-06}\n")
    assert config.read(file)["train"] == {"lr": 0.001, "weight_decay": 1e-06}


def test_the_thesis_scale_takes_the_recipes_as_they_are(params):
    for plan in config.plan_runs(params, "thesis").values():
        recipe = params["recipes"][plan["recipe"]]
        given = {k: v for k, v in recipe.items() if k in plan["train"]}
        own = params["runs"].get(plan["data"]["role"], {}).get(plan["run"], {})
        assert plan["train"] == given | own.get("train", {})
        assert plan["model_options"] == own.get("model_options", {})


def test_pause_ramp_and_pretrain_are_epochs_or_shares_of_the_run(params):
    def planned(**we):
        params["we"] = {"attention": "se"} | we
        params["train"]["epochs"] = 10
        return config.plan_runs(params, "demo")["playground"]["we"]

    keys = ("pretrain", "pause", "ramp")
    shares = planned(pretrain=0.1, pause=0.25, ramp=0.4)
    assert [shares[key] for key in keys] == [1, 2, 4]
    whole = planned(pause=3, ramp=2)
    assert [whole[key] for key in keys] == [0, 3, 2]
    with pytest.raises(ValueError, match="we.pause: expected whole epochs, or below 1 a share"):
        planned(pause=1.5)
    with pytest.raises(ValueError, match="we.pause: pretrain, pause and ramp take 10 epochs of 10"):
        planned(pause=7, ramp=3)


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
    ("train.lr", "fast", ["train.lr", "a number above 0", "'fast'"]),
    ("train.lr", float("nan"), ["train.lr", "nan"]),
    ("train.lr", True, ["train.lr", "a number above 0"]),
    ("train.epochs", 0, ["train.epochs", "at least 1"]),
    ("train.seeds", [1, 1], ["train.seeds", "different seeds"]),
    ("train.recipe", "resnet-164", ["train.recipe", "did you mean 'resnext-164'"]),
    ("runs.cifar100.resnext10.train", {"schedule": "step"}, ["resnext10.train.sch", "milestones"]),
    ("model", "resnet19", ["model", "'resnet19'", "did you mean 'resnet18'"]),
    ("data", "cifar", ["data", "did you mean 'cifar10'"]),
    ("runs.cifar100.resnext.epochs", 3, ["key in runs.cifar100.resnext", "'epochs'"]),
    (
        "runs.cifar100.resnext.model",
        "resnext",
        ["runs.cifar100.resnext: unknown model", "did you mean 'resnext29'"],
    ),
    ("runs.cifar100.Bad Name", {}, ["runs.cifar100.Bad Name", "a run's name"]),
    ("runs.cifar10.resnext", {}, ["resnext", "another run has this name"]),
    ("scales.demo.threads", 0, ["scales.demo.threads", "at least 1"]),
    ("scales.demo.data.cifar10.dataset", "digits", ["scales.demo.data.cifar10.dataset"]),
    ("scales.demo.models.resnet18.wdth", 3, ["wdth"]),
    ("scales.demo.recipes.resnext-165", {}, ["did you mean 'resnext-164'"]),
]


@pytest.mark.parametrize(("key", "value", "words"), BAD, ids=[f"{k}={v}" for k, v, _ in BAD])
def test_a_bad_value_is_one_sentence(params, key, value, words):
    if key == "we.skips":
        params["we"]["attention"] = "none"
    *path, last = key.split(".")
    place = params
    for name in path:
        place = place[name]
    place[last] = value
    with pytest.raises(ValueError) as error:
        config.plan_runs(params, "demo")
    sentence = str(error.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


def test_an_unknown_scale_names_the_nearest(params):
    with pytest.raises(ValueError, match="unknown scale 'gpuu': .*did you mean 'gpu'"):
        config.plan_runs(params, "gpuu")


def test_broken_yaml_names_the_line(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("scale: demo\nwe: {a: 1\n")
    with pytest.raises(ValueError, match=r"params\.yaml, line \d+: not valid YAML"):
        config.read(file)


def test_nothing_is_written_when_something_is_wrong(params, tmp_path):
    (tmp_path / "wexlib").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "train.ipynb").write_text('{"cells": []}')
    params["runs"]["imagenet"]["imagenet"]["model"] = "alexnett"
    with pytest.raises(ValueError, match="alexnet"):
        config.write_plans(tmp_path, params, "demo")
    assert not (tmp_path / "build").exists()


SOURCE = '''
"""A docstring."""
import math
# A comment.
def f(x, *, y=None):
    """What f does."""
    return [x, f"{x:>{y}}" 'b', None]
'''


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.replace("# A comment.", "# Another one."),
        lambda s: s.replace('"""A docstring."""', ""),
        lambda s: s.replace("What f does", "What it does not"),
        lambda s: s.replace("(x, *, y=None)", "(\n    x,\n    *,\n    y=None,\n)"),
        lambda s: s.replace("'b'", '"b"'),
    ],
)
def test_a_digest_leaves_prose_and_formatting_alone(edit):
    assert edit(SOURCE) != SOURCE
    assert config.code_text(edit(SOURCE)) == config.code_text(SOURCE)


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.replace("y=None", "y=0"),
        lambda s: s.replace("None]", "True]"),
        lambda s: s.replace(", None]", "]"),
        lambda s: s.replace("'b'", "'c'"),
        lambda s: s.replace("import math", "import cmath"),
    ],
)
def test_a_digest_sees_code(edit):
    assert edit(SOURCE) != SOURCE
    assert config.code_text(edit(SOURCE)) != config.code_text(SOURCE)


def test_a_run_depends_on_the_modules_that_it_reaches():
    sources = {
        "start": "from wexlib import excite\nfrom wexlib.b import x",
        "attach": "",
        "b": "def f():\n    from wexlib import c",
        "c": "import wexlib.d",
        "d": "",
        "unused": "",
    }
    before = config.code_digests(sources, ["start"])
    assert set(before) == {"start", "attach", "b", "c", "d"}
    after = config.code_digests(sources | {"d": "x = 1", "unused": "y = 2"}, ["start"])
    assert {k for k in after if after[k] != before[k]} == {"d"}


def test_a_run_depends_on_the_cpp_beside_a_module():
    loop = "// why\nint f(int x) { return x / 2; }  // how\n"
    sources = {"start": "import wexlib.b", "b": "", "b.cpp": loop, "c.cpp": ""}

    def digest(text):
        found = config.code_digests(sources | {"b.cpp": text}, ["start"])
        assert set(found) == {"start", "b", "b.cpp"}
        return found["b.cpp"]

    assert digest("/* other\nwords */ " + loop) == digest(loop) != digest("")
    assert digest(loop.replace("why", "because").replace("{ r", "{\n  r")) == digest(loop)
    assert digest(loop.replace("2", "3")) != digest(loop)


def test_the_digest_of_a_notebook_ignores_outputs_and_prose(tmp_path):
    path = PROJECT / "notebooks" / "train.ipynb"
    notebook = json.loads(path.read_text())
    edited = copy.deepcopy(notebook)
    for cell in edited["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = "other words"
        else:
            cell |= {"execution_count": 7, "outputs": [{"output_type": "stream"}]}
    copied = tmp_path / "train.ipynb"
    copied.write_text(json.dumps(edited))
    assert config.notebook_code(copied) == config.notebook_code(path)
    edited["cells"][-1]["source"] = "pass"
    copied.write_text(json.dumps(edited))
    assert config.notebook_code(copied) != config.notebook_code(path)
