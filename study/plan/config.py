"""From the settings and a scale to one validated plan a run.

The settings are ``params.yaml`` (the scale and the playground), ``recipes.yaml``, ``runs.yaml`` and
``scales/<scale>/scale.yaml``. A plan is a plain dictionary, written as JSON, and all that a run
sees of them. It also names the code that the run uses (:mod:`study.plan.code`), so a run is stale
exactly when its parameters, its data or its code changed.
"""

import importlib.util
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from study.files import PLAYGROUND, digest, read_yaml, write_json
from study.plan import EVIDENCE, OWN, ROLES, SCALES
from study.plan.code import Code, code_text, notebook_code, parse
from study.plan.keys import (
    TRAIN,
    epochs_of,
    excitation,
    list_of,
    mapping,
    number,
    one_of,
    optional,
    seeds,
    text,
    training,
)
from wexlib.names import choose

#: What the preparation of data reaches.
PREPARE = "from study.data.datasets import prepare\nprepare"
_PLAYGROUND_KEYS = ("scale", "model", "pretrained", "dataset", "we", "train")
_RUN_KEYS = ("model", "model_options", "pretrained", "we", "recipe", "train", "seeds", "scales")
_SCALE_KEYS = ("scale", "seeds", "threads", "processes", "data", "models", "train", "recipes")
_DATA_KEYS = ("dataset", "size", "train", "validation", "test", "missing")
#: The roles of ``runs.yaml``.
_SHARED_ROLES = [role for role in ROLES if role != OWN]


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
    """What each role is at ``scale``: ``{role: {"dataset", "size", …} or {"missing"}}``."""
    plans = {}
    for role, given in data_roles(params, scale).items():
        key = f"scales.{scale}.data.{role}"
        given, about = mapping(given, key, _DATA_KEYS), {"role": role, "task": ROLES[role]}
        if "missing" in given:
            plans[role] = about | {"missing": text(given["missing"], f"{key}.missing")}
            continue
        count = number(1, whole=True)
        plans[role] = about | {
            "dataset": choose(given.get("dataset"), datasets, f"{key}.dataset"),
            "stand_in": given["dataset"] != role != EVIDENCE,
            **({"size": count(given["size"], f"{key}.size")} if "size" in given else {}),
            "train": optional(count)(given.get("train"), f"{key}.train"),
            "validation": optional(number(0, whole=True))(
                given.get("validation", 0), f"{key}.validation"
            ),
            "test": optional(count)(given.get("test"), f"{key}.test"),
        }
    return plans


def data_roles(params: dict, scale: str) -> dict:
    """What ``scale.yaml`` says of each role that it has."""
    given = _scale(params, scale).get("data")
    return mapping(given, f"scales.{scale}.data", _SHARED_ROLES)


def _scale(params: dict, scale: str) -> dict:
    choose(scale, SCALES, "scale")
    spec = mapping(params["scales"].get(scale), f"scales.{scale}", _SCALE_KEYS)
    choose(spec.get("scale"), [scale], f"scales.{scale}.scale:")
    return spec


def roles(params: dict) -> dict[str, str]:
    """The dataset role of every run of ``runs.yaml``, whether or not a scale has it."""
    by_role = mapping(params.get("runs"), "runs", _SHARED_ROLES)
    return {run: role for role, runs in by_role.items() for run in mapping(runs, f"runs.{role}")}


def plan_runs(params: dict, scale: str, datasets: Iterable[str]) -> dict[str, dict]:
    """Every run of ``runs.yaml`` at ``scale``, validated.

    Raises:
        ValueError: one sentence that names the key, what is allowed and the nearest match.
    """
    of_role, plans = data_plans(params, scale, datasets), {}
    for role, runs in mapping(params.get("runs"), "runs", _SHARED_ROLES).items():
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
    data = _playground_data(params, scale, datasets)
    train = mapping(params.get("train"), "train", ["recipe", "seeds", *TRAIN])
    own = {"recipe": train.pop("recipe", None), "seeds": train.pop("seeds", None), "train": train}
    run = {key: params.get(key) for key in ("model", "pretrained", "we")} | own
    return _plan(params, scale, data, PLAYGROUND, "", run)


def _playground_data(params: dict, scale: str, datasets: Iterable[str]) -> dict:
    """That of a role, of a folder, or of a data set of torchvision."""
    dataset = text(params.get("dataset"), "dataset")
    if "/" not in dataset and not dataset.startswith("torchvision:"):
        plans = data_plans(params, scale, datasets)
        summary = f"one of {', '.join(plans)}, a folder's path, or torchvision:NAME"
        return plans[choose(dataset, plans, "dataset", summary=summary)]
    if "/" in dataset and not Path(dataset).expanduser().is_dir():
        raise ValueError(f"dataset: {dataset} is no folder: expected one that holds your images")
    about = {"role": OWN, "task": ROLES[OWN], "dataset": dataset, "stand_in": False}
    return about | dict.fromkeys(("train", "validation", "test"))


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
    scales = list_of(one_of(*SCALES))(run.get("scales", [scale]), f"{dot}scales")
    if scale not in scales:
        about = {key: data[key] for key in ("role", "task")}
        data = about | {"missing": f"trained at {', '.join(scales)}"}
    count = number(1, whole=True)
    plan = {
        "run": name,
        "scale": scale,
        "data": data,
        "model": model,
        "model_options": options | mapping(run.get("model_options"), f"{dot}model_options"),
        "pretrained": optional(text)(run.get("pretrained"), f"{dot}pretrained"),
        "we": epochs_of(excitation(run.get("we"), f"{dot}we"), train["epochs"], f"{dot}we"),
        "recipe": recipe,
        "train": train,
        "seeds": seeds(spec.get("seeds") if own is None else own, f"{dot or 'train.'}seeds"),
        "threads": count(spec.get("threads"), f"scales.{scale}.threads"),
        "processes": count(spec.get("processes", 1), f"scales.{scale}.processes"),
    }
    _check(plan, key or "model")
    return plan


def _check(plan: dict, key: str) -> None:
    """Build what the plan asks for, which says best what is wrong with it."""
    from study.plan import pretrained
    from study.plan.network import excitation_error, model_error

    we, options = plan["we"], json.dumps(plan["model_options"])
    places = json.dumps({name: we[name] for name in ("layers", "on", "where")})
    if error := model_error(plan["model"], options, places) or excitation_error(json.dumps(we)):
        raise ValueError(f"{key}: {error}")
    if plan["pretrained"]:
        pretrained.check(plan["model"], plan["pretrained"])


def write_plans(home: Path, scale: str, datasets: Iterable[str]) -> dict[str, dict]:
    """Write ``scales/<scale>/plan`` anew: a JSON a run, and one a data set and a chapter.

    Everything is validated before the first file is written.
    """
    params, code = read(home, scale), Code(home)
    plans, roles = plan_runs(params, scale, datasets), data_plans(params, scale, datasets)
    run = _notebook(home, "train")
    files = {name: plan | {"code": _code_of(plan, run, code)} for name, plan in plans.items()}
    for role, plan in roles.items():
        files[f"data/{role}"] = plan | {"code": code.reached(PREPARE, plan)}
    for name in sum(notebooks(home, scale).values(), []):
        files[f"notebooks/{name}"] = {"code": code.reached(_notebook(home, name))}
    folder = home / "scales" / scale / "plan"
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        write_json(folder / f"{name}.json", content)
    return plans


def write_playground(home: Path, datasets: Iterable[str]) -> dict:
    """Write ``playground/plan.json``, and of its data ``playground/data.json``."""
    params, code = read(home), Code(home)
    plan = plan_playground(params, params["scale"], datasets)
    data = plan["data"] | {"code": code.reached(PREPARE, plan["data"])}
    write_json(home / PLAYGROUND / "data.json", data)
    own = plan | {"code": _code_of(plan, _notebook(home, "train"), code)}
    write_json(home / PLAYGROUND / "plan.json", own)
    return plan


def _code_of(plan: dict, run: str, code: Code) -> dict[str, str]:
    """What a run reaches, and of a model of one's own its file."""
    found, (module, own, _) = code.reached(run, plan), plan["model"].partition(":")
    if own:
        file = Path(importlib.util.find_spec(module).origin)
        source = code_text(parse(file.read_text(encoding="utf-8"), file.name))
        found[module] = digest({"source": source})[:16]
    return found


def _notebook(home: Path, name: str) -> str:
    return notebook_code(home / "notebooks" / f"{name}.ipynb")
