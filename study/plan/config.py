"""From ``params.yaml`` and a scale to one validated plan a run.

A plan is a plain dictionary, written as JSON, and all that a run sees of ``params.yaml``. It also
names the code that the run uses by digests that comments, docstrings and formatting leave alone, so
a run is stale exactly when its parameters, its data or its code changed.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from study.files import write_json
from study.plan.code import Code, notebook_code
from wexlib.names import choose

SCALES = ("smoke", "demo", "cpu", "gpu", "thesis")
ROLES = ("cifar10", "cifar100", "cinic10", "imagenet")
PLAYGROUND = "playground"
#: The role of the runs that `make evidence` starts; a scale that does not name it has none of them.
EVIDENCE = "evidence"


# --- what a key may hold --------------------------------------------------------------------


def _number(low: float, high: float = math.inf, *, whole: bool = False, strict: bool = False):
    kind = "a whole number" if whole else "a number"
    above = f"above {low:g}" if strict else f"of at least {low:g}"
    bound = above + ("" if high == math.inf else f" and at most {high:g}")

    def check(value: object, key: str) -> float | int:
        good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or value > high or value < low:
            good = False
        if not good or (strict and value == low):
            raise ValueError(f"{key}: expected {kind} {bound}, got {value!r}")
        return value if whole else float(value)

    return check


def _flag(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key}: expected true or false, got {value!r}")
    return value


def _one_of(*allowed: str):
    def check(value: object, key: str) -> str:
        return choose(value, allowed, key)

    return check


def _name_in(module: str, table: str, *extra: str):
    """One of the names in ``wexlib.<module>.<table>``: imported only when a plan is made."""

    def check(value: object, key: str) -> str:
        return choose(value, [*extra, *getattr(import_module(f"wexlib.{module}"), table)], key)

    return check


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}: expected a text, got {value!r}")
    return value


def _list_of(check):
    def checked(value: object, key: str) -> list:
        if not isinstance(value, list):
            raise ValueError(f"{key}: expected a list, got {value!r}")
        return [check(item, f"{key}.{i}") for i, item in enumerate(value)]

    return checked


def _seeds(value: object, key: str) -> list[int]:
    """``3`` means the seeds 0, 1, 2; a list names them."""
    if isinstance(value, list):
        seeds = _list_of(_number(0, whole=True))(value, key)
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"{key}: expected different seeds, at least one, got {value!r}")
        return seeds
    return list(range(_number(1, whole=True)(value, key)))


#: The excitation of a run: key -> (check, default). The defaults excite nothing.
WE = {
    "standardize": (_flag, False),
    "attention": (_name_in("attention", "ATTENTIONS", "none", "global"), "none"),
    "skips": (_flag, False),
    "shared": (_flag, False),
    "stacked": (_one_of("none", "location", "magnitude"), "none"),
    "order": (_name_in("attention", "ORDERS"), "sequential"),
    "control": (_name_in("excitation", "CONTROLS"), "none"),
    "start": (_name_in("excitation", "STARTS"), "random"),
    "activation": (_name_in("names", "ACTIVATIONS"), "relu"),
    "gate": (_name_in("names", "ACTIVATIONS"), "sigmoid"),
    "reduction": (_number(1, whole=True), 16),
    "magnitude": (_name_in("magnitude", "FUNCTIONS", "none"), "none"),
    "eps": (_number(0, strict=True), 0.1),
    "layers": (_one_of("conv", "linear", "conv+linear"), "conv"),
    "pretrain": (_number(0), 0),
    "pause": (_number(0), 0),
    "ramp": (_number(0), 0),
}

_OF_LOCATION = ("skips", "stacked", "control", "start")

#: The training of a run: key -> check. Every key has its value in a recipe of ``params.yaml``.
TRAIN = {
    "epochs": _number(1, whole=True),
    "batch": _number(2, whole=True),
    "optimizer": _one_of("sgd", "adam", "adamw"),
    "lr": _number(0, strict=True),
    "momentum": _number(0, 1),
    "weight_decay": _number(0),
    "schedule": _one_of("constant", "step", "cosine", "onecycle"),
    "milestones": _list_of(_number(1, whole=True)),
    "gamma": _number(0, 1, strict=True),
    "precision": _one_of("float32", "bf16"),
    "channels_last": _flag,
}

_RUN_KEYS = ("model", "model_options", "we", "recipe", "train", "seeds")
_SCALE_KEYS = ("seeds", "threads", "data", "models", "train", "recipes")
_DATA_KEYS = ("dataset", "train", "validation", "test", "missing")
_TOP_KEYS = ("scale", "evidence", "model", "data", "we", "train", "recipes", "scales", "runs")


def _mapping(value: object, key: str, allowed: Iterable[str] | None = None) -> dict:
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{key}: expected keys and values, got {value!r}")
    for name in value if allowed is not None else ():
        choose(name, allowed, f"key in {key}:")
    return dict(value)


def _excitation(value: object, key: str) -> dict:
    given = _mapping(value, key, WE)
    we = {
        name: check(given.get(name, default), f"{key}.{name}")
        for name, (check, default) in WE.items()
    }
    for name, (_, default) in WE.items():
        if name in _OF_LOCATION and we[name] != default and we["attention"] in ("none", "global"):
            raise ValueError(
                f"{key}.{name}: {we[name]!r} needs an attention of a layer's own, and "
                f"{key}.attention is {we['attention']}"
            )
    if we["order"] != "sequential" and we["attention"] != "cbam":
        raise ValueError(f"{key}.order: {we['order']!r} needs {key}.attention: cbam")
    if we["shared"] and we["attention"] != "global":
        raise ValueError(f"{key}.shared: true needs {key}.attention: global")
    if (we["pause"] or we["ramp"]) and we["attention"] == we["magnitude"] == "none":
        raise ValueError(f"{key}.pause: nothing to pause: {key} has no attention and no magnitude")
    return we


def _epochs(we: dict, epochs: int, key: str) -> dict:
    """``pretrain``, ``pause`` and ``ramp`` in whole epochs; below 1 they are shares of the run."""
    resolved = {}
    for name in ("pretrain", "pause", "ramp"):
        value = we[name]
        if value >= 1 and value != round(value):
            raise ValueError(
                f"{key}.{name}: expected whole epochs, or below 1 a share of the run's, got {value}"
            )
        resolved[name] = round(value * epochs if value < 1 else value)
    late = max(resolved, key=resolved.get)
    if sum(resolved.values()) >= epochs:
        raise ValueError(
            f"{key}.{late}: pretrain, pause and ramp take {sum(resolved.values())} epochs of "
            f"{epochs}: leave at least one with the excitation on"
        )
    return we | resolved


def _training(layers: list[tuple[str, object]]) -> dict:
    """Later layers win; ``null`` leaves what was."""
    merged, origin = {}, {}
    for key, layer in layers:
        for name, value in _mapping(layer, key, TRAIN).items():
            if value is not None:
                merged[name], origin[name] = TRAIN[name](value, f"{key}.{name}"), key
    missing = [name for name in TRAIN if name not in merged and name not in ("milestones", "gamma")]
    if missing:
        raise ValueError(f"{layers[0][0]}: {', '.join(missing)} is missing: give it a value there")
    if merged["schedule"] == "step":
        if not merged.get("milestones") or "gamma" not in merged:
            raise ValueError(
                f"{origin['schedule']}.schedule: step needs milestones (epochs) and a gamma"
            )
    else:
        merged.pop("milestones", None), merged.pop("gamma", None)
    if merged["optimizer"] != "sgd":
        merged.pop("momentum")
    return merged


# --- plans ----------------------------------------------------------------------------------


def read(path: Path) -> dict:
    """``params.yaml`` by YAML 1.2, as DVC reads it (papermill's YAML 1.1 takes 1e-3 for a text).

    Raises:
        ValueError: not YAML, or an unknown top-level key.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        params = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ValueError(f"{Path(path).name}{line}: not valid YAML: {problem}") from None
    return _mapping(params, "params.yaml", _TOP_KEYS)


def notebooks(folder: Path) -> dict[str, list[str]]:
    """The chapters that each stage of ``dvc.yaml`` lists, in its order."""
    from ruamel.yaml import YAML

    text = (folder / "dvc.yaml").read_text(encoding="utf-8")
    matrices = {
        name: stage.get("matrix", {})
        for name, stage in YAML(typ="safe", pure=True).load(text)["stages"].items()
    }
    return {name: matrix["notebook"] for name, matrix in matrices.items() if "notebook" in matrix}


def data_plans(params: dict, scale: str, datasets: Iterable[str]) -> dict[str, dict]:
    """What each role is at ``scale``: ``{role: {"dataset", "train", …} or {"missing"}}``."""
    spec = _scale(params, scale)
    roles = _mapping(spec.get("data"), f"scales.{scale}.data", (*ROLES, EVIDENCE))
    plans = {}
    for role in (*ROLES, EVIDENCE):
        key = f"scales.{scale}.data.{role}"
        if role == EVIDENCE and role not in roles:
            continue
        if role not in roles:
            raise ValueError(f"{key} is missing: name its dataset there")
        given = _mapping(roles[role], key, _DATA_KEYS)
        if "missing" in given:
            plans[role] = {"role": role, "missing": _text(given["missing"], f"{key}.missing")}
            continue
        count = _number(1, whole=True)
        plans[role] = {
            "role": role,
            "dataset": choose(given.get("dataset"), datasets, f"{key}.dataset"),
            "stand_in": given["dataset"] != role != EVIDENCE,
            "train": None if given.get("train") is None else count(given["train"], f"{key}.train"),
            "validation": _number(0, whole=True)(given.get("validation", 0), f"{key}.validation"),
            "test": None if given.get("test") is None else count(given["test"], f"{key}.test"),
        }
    return plans


def _scale(params: dict, scale: str) -> dict:
    scales = _mapping(params.get("scales"), "scales", SCALES)
    choose(scale, SCALES, "scale")
    if scale not in scales:
        raise ValueError(f"scales.{scale} is missing in params.yaml")
    return _mapping(scales[scale], f"scales.{scale}", _SCALE_KEYS)


def roles(params: dict) -> dict[str, str]:
    """The dataset role of every run of ``params.yaml``, whether or not a scale has it."""
    return {PLAYGROUND: params["data"]} | {
        run: role for role, runs in params["runs"].items() for run in runs
    }


def plan_runs(params: dict, scale: str, datasets: Iterable[str]) -> dict[str, dict]:
    """Every run of ``params.yaml`` at ``scale``, the playground's included, validated.

    Raises:
        ValueError: one sentence that names the key, what is allowed and the nearest match.
    """
    spec = _scale(params, scale)
    recipes = _mapping(params.get("recipes"), "recipes")
    _mapping(spec.get("recipes"), f"scales.{scale}.recipes", recipes)
    _mapping(spec.get("models"), f"scales.{scale}.models")
    of_role = data_plans(params, scale, datasets)

    playground = _mapping(params.get("train"), "train", ["recipe", "seeds", *TRAIN])
    role = choose(params.get("data"), ROLES, "data")
    entries = {
        PLAYGROUND: (
            "",
            role,
            {
                "model": params.get("model"),
                "we": params.get("we"),
                "recipe": playground.pop("recipe", None),
                "seeds": playground.pop("seeds", None),
                "train": playground,
            },
        )
    }
    for role, runs in _mapping(params.get("runs"), "runs", (*ROLES, EVIDENCE)).items():
        if role not in of_role:
            continue
        for name, run in _mapping(runs, f"runs.{role}").items():
            key = f"runs.{role}.{name}"
            if not re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+)*", name) or name == PLAYGROUND:
                raise ValueError(
                    f"{key}: a run's name is of a-z, 0-9, _ and -, and not {PLAYGROUND}"
                )
            if name in entries:
                raise ValueError(f"{key}: another run has this name: choose a different one")
            entries[name] = (key, role, _mapping(run, key, _RUN_KEYS))

    plans = {}
    for name, (key, role, run) in entries.items():
        dot = f"{key}." if key else ""
        model = _text(run.get("model"), f"{dot}model")
        recipe = choose(run.get("recipe"), recipes, f"{dot or 'train.'}recipe")
        options = _mapping((spec.get("models") or {}).get(model), f"scales.{scale}.models.{model}")
        train = _training(
            [
                (f"recipes.{recipe}", recipes[recipe]),
                (f"scales.{scale}.train", spec.get("train")),
                (f"scales.{scale}.recipes.{recipe}", (spec.get("recipes") or {}).get(recipe)),
                (f"{dot}train", run.get("train")),
            ]
        )
        we = _excitation(run.get("we"), f"{dot}we")
        plans[name] = {
            "run": name,
            "scale": scale,
            "data": of_role[role],
            "model": model,
            "model_options": options | _mapping(run.get("model_options"), f"{dot}model_options"),
            "we": _epochs(we, train["epochs"], f"{dot}we"),
            "recipe": recipe,
            "train": train,
            "seeds": _seeds(run.get("seeds") or spec.get("seeds"), f"{dot or 'train.'}seeds"),
            "threads": _number(1, whole=True)(spec.get("threads"), f"scales.{scale}.threads"),
        }
        _check_model(plans[name], key or "model")
    return plans


@lru_cache
def _model_error(model: str, options: str, we: str) -> str | None:
    """Why a model cannot be built or excited so, tried without memory; None if it can."""
    import torch

    from study.plan.network import build

    plan = {"model": model, "model_options": json.loads(options), "we": json.loads(we)}
    try:
        with torch.device("meta"):
            build(plan, seed=0, classes=10, image_size=(32, 32))
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def _check_model(plan: dict, key: str) -> None:
    parts = (plan["model"], json.dumps(plan["model_options"]), json.dumps(plan["we"]))
    if error := _model_error(*parts):
        raise ValueError(f"{key}: {error}")


def write_plans(folder: Path, params: dict, scale: str, datasets: Iterable[str]) -> dict[str, dict]:
    """Write ``build/plan/<scale>/<run>.json`` and ``…/data/<role>.json`` under ``folder``.

    Everything is validated before the first file is written.
    """
    code, notebook = Code(folder), notebook_code(folder / "notebooks" / "train.ipynb")
    plans, roles = plan_runs(params, scale, datasets), data_plans(params, scale, datasets)
    prepare = "from study.data.datasets import prepare\nprepare"
    out = folder / "build" / "plan" / scale
    for role, plan in roles.items():
        write_json(out / "data" / f"{role}.json", plan | {"code": code.reached(prepare, plan)})
    for name, plan in plans.items():
        write_json(out / f"{name}.json", plan | {"code": code.reached(notebook, plan)})
    return plans
