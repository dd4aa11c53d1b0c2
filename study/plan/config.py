"""From the settings and a scale to one validated plan a run.

The settings are ``params.yaml`` (the scale and the playground), ``recipes.yaml``, ``runs.yaml`` and
``scales/<scale>/scale.yaml``. A plan is a plain dictionary, written as JSON, and all that a run
sees of them. It also names the code that the run uses (:mod:`study.plan.code`), so a run is stale
exactly when its parameters, its data or its code changed.
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from study.files import PLAYGROUND, read_yaml, write_json
from study.plan import EVIDENCE, ROLES, SCALES
from study.plan.code import Code, notebook_code
from study.plan.keys import TRAIN, epochs_of, excitation, mapping, number, seeds, text, training
from wexlib.names import choose

_PLAYGROUND_KEYS = ("scale", "model", "dataset", "we", "train")
_RUN_KEYS = ("model", "model_options", "we", "recipe", "train", "seeds")
_SCALE_KEYS = ("scale", "seeds", "threads", "data", "models", "train", "recipes")
_DATA_KEYS = ("dataset", "train", "validation", "test", "missing")


def read(home: Path, scale: str | None = None) -> dict:
    """The settings of a scale, by default that of ``params.yaml``, as one dictionary.

    Its keys are those of ``params.yaml``, ``recipes``, ``runs``, and ``scales`` with that one.

    Raises:
        ValueError: a file is not YAML, or has an unknown key at its top.
    """
    params = mapping(read_yaml(home / "params.yaml"), "params.yaml", _PLAYGROUND_KEYS)
    scale = choose(scale or params.get("scale"), SCALES, "scale")
    for name in ("recipes", "runs"):
        params |= mapping(read_yaml(home / f"{name}.yaml"), f"{name}.yaml", [name])
    return params | {"scales": {scale: read_yaml(home / "scales" / scale / "scale.yaml")}}


def notebooks(home: Path, scale: str) -> dict[str, list[str]]:
    """The chapters that each stage of a scale's ``dvc.yaml`` lists, in its order."""
    stages = read_yaml(home / "scales" / scale / "dvc.yaml")["stages"]
    matrices = {name: stage.get("matrix", {}) for name, stage in stages.items()}
    return {name: matrix["notebook"] for name, matrix in matrices.items() if "notebook" in matrix}


def data_plans(params: dict, scale: str, datasets: Iterable[str]) -> dict[str, dict]:
    """What each role is at ``scale``: ``{role: {"dataset", "train", …} or {"missing"}}``."""
    roles, plans = data_roles(params, scale), {}
    for role in (*ROLES, EVIDENCE):
        key = f"scales.{scale}.data.{role}"
        if role == EVIDENCE and role not in roles:
            continue
        if role not in roles:
            raise ValueError(f"{key} is missing: name its dataset there")
        given = mapping(roles[role], key, _DATA_KEYS)
        if "missing" in given:
            plans[role] = {"role": role, "missing": text(given["missing"], f"{key}.missing")}
            continue
        count = number(1, whole=True)
        plans[role] = {
            "role": role,
            "dataset": choose(given.get("dataset"), datasets, f"{key}.dataset"),
            "stand_in": given["dataset"] != role != EVIDENCE,
            "train": None if given.get("train") is None else count(given["train"], f"{key}.train"),
            "validation": number(0, whole=True)(given.get("validation", 0), f"{key}.validation"),
            "test": None if given.get("test") is None else count(given["test"], f"{key}.test"),
        }
    return plans


def data_roles(params: dict, scale: str) -> dict:
    """What ``scale.yaml`` says of each role that it has."""
    given = _scale(params, scale).get("data")
    return mapping(given, f"scales.{scale}.data", (*ROLES, EVIDENCE))


def _scale(params: dict, scale: str) -> dict:
    choose(scale, SCALES, "scale")
    spec = mapping(params["scales"].get(scale), f"scales.{scale}", _SCALE_KEYS)
    choose(spec.get("scale"), [scale], f"scales.{scale}.scale:")
    return spec


def roles(params: dict) -> dict[str, str]:
    """The dataset role of every run of ``runs.yaml``, whether or not a scale has it."""
    by_role = mapping(params.get("runs"), "runs", (*ROLES, EVIDENCE))
    return {run: role for role, runs in by_role.items() for run in mapping(runs, f"runs.{role}")}


def plan_runs(params: dict, scale: str, datasets: Iterable[str]) -> dict[str, dict]:
    """Every run of ``runs.yaml`` at ``scale``, validated.

    Raises:
        ValueError: one sentence that names the key, what is allowed and the nearest match.
    """
    of_role, plans = data_plans(params, scale, datasets), {}
    for role, runs in mapping(params.get("runs"), "runs", (*ROLES, EVIDENCE)).items():
        if role not in of_role:
            continue
        for name, run in mapping(runs, f"runs.{role}").items():
            key = f"runs.{role}.{name}"
            if not re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+)*", name):
                raise ValueError(f"{key}: a run's name is of a-z, 0-9, _ and -")
            if name in plans:
                raise ValueError(f"{key}: another run has this name: choose a different one")
            plans[name] = _plan(params, scale, of_role[role], name, key, run)
    return plans


def plan_playground(params: dict, scale: str, datasets: Iterable[str]) -> dict:
    """The run of ``params.yaml``, validated as :func:`plan_runs` does."""
    role = choose(params.get("dataset"), ROLES, "dataset")
    train = mapping(params.get("train"), "train", ["recipe", "seeds", *TRAIN])
    own = {"recipe": train.pop("recipe", None), "seeds": train.pop("seeds", None), "train": train}
    run = {"model": params.get("model"), "we": params.get("we")} | own
    return _plan(params, scale, data_plans(params, scale, datasets)[role], PLAYGROUND, "", run)


def _plan(params: dict, scale: str, data: dict, name: str, key: str, run: object) -> dict:
    """One plan; ``key`` is where the run stands, nothing for the playground's own."""
    spec, dot = _scale(params, scale), f"{key}." if key else ""
    run = mapping(run, key, _RUN_KEYS)
    recipes = mapping(params.get("recipes"), "recipes")
    models = mapping(spec.get("models"), f"scales.{scale}.models")
    overrides = mapping(spec.get("recipes"), f"scales.{scale}.recipes", recipes)
    model, own = text(run.get("model"), f"{dot}model"), run.get("seeds")
    recipe = choose(run.get("recipe"), recipes, f"{dot or 'train.'}recipe")
    options = mapping(models.get(model), f"scales.{scale}.models.{model}")
    train = training(
        [
            (f"recipes.{recipe}", recipes[recipe]),
            (f"scales.{scale}.train", spec.get("train")),
            (f"scales.{scale}.recipes.{recipe}", overrides.get(recipe)),
            (f"{dot}train", run.get("train")),
        ]
    )
    plan = {
        "run": name,
        "scale": scale,
        "data": data,
        "model": model,
        "model_options": options | mapping(run.get("model_options"), f"{dot}model_options"),
        "we": epochs_of(excitation(run.get("we"), f"{dot}we"), train["epochs"], f"{dot}we"),
        "recipe": recipe,
        "train": train,
        "seeds": seeds(spec.get("seeds") if own is None else own, f"{dot or 'train.'}seeds"),
        "threads": number(1, whole=True)(spec.get("threads"), f"scales.{scale}.threads"),
    }
    plan["data"] = plan["data"] | {"task": "classification"}
    plan["train"]["sync_batch_norm"] = False
    _check(plan, key or "model")
    return plan


def _check(plan: dict, key: str) -> None:
    """Build what the plan asks for, which says best what is wrong with it."""
    from study.plan.network import excitation_error, model_error

    we, options = json.dumps(plan["we"]), json.dumps(plan["model_options"])
    if error := model_error(plan["model"], options, plan["we"]["layers"]) or excitation_error(we):
        raise ValueError(f"{key}: {error}")


def write_plans(home: Path, scale: str, datasets: Iterable[str]) -> dict[str, dict]:
    """Write ``scales/<scale>/plan`` anew: a JSON a run, and one a data set and a chapter.

    Everything is validated before the first file is written.
    """
    params, code = read(home, scale), Code(home)
    plans, roles = plan_runs(params, scale, datasets), data_plans(params, scale, datasets)
    run, prepare = _notebook(home, "train"), "from study.data.datasets import prepare\nprepare"
    files = {name: plan | {"code": code.reached(run, plan)} for name, plan in plans.items()}
    for role, plan in roles.items():
        files[f"data/{role}"] = plan | {"code": code.reached(prepare, plan)}
    for name in sum(notebooks(home, scale).values(), []):
        files[f"notebooks/{name}"] = {"code": code.reached(_notebook(home, name))}
    folder = home / "scales" / scale / "plan"
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        write_json(folder / f"{name}.json", content)
    return plans


def write_playground(home: Path, datasets: Iterable[str]) -> dict:
    """Write ``playground/plan.json``."""
    params = read(home)
    plan = plan_playground(params, params["scale"], datasets)
    code = Code(home).reached(_notebook(home, "train"), plan)
    write_json(home / PLAYGROUND / "plan.json", plan | {"code": code})
    return plan


def _notebook(home: Path, name: str) -> str:
    return notebook_code(home / "notebooks" / f"{name}.ipynb")
