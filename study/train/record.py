"""A run is data: its plan goes in, its result files come out.

=========================================  =====================================================
``build/plan/<scale>/<run>.json``          the plan (:mod:`study.plan.config`)
``results/<scale>/<run>.json``             what the seeds determine: equal to the last bit
``results/<scale>/curves/<run>.csv``       a row for each seed and epoch
``results/<scale>/provenance/<run>.json``  time, machine, versions, commit
``models/<scale>/<run>.safetensors``       the trained models, for :func:`wexlib.load`
=========================================  =====================================================
"""

import csv
import hashlib
import io
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from study.files import root, write, write_json, write_text

if TYPE_CHECKING:
    import torch

    from study.data.loader import Data
    from study.train.loop import Run


def read_plan(run: str) -> dict:
    """The plan of ``"<scale>/<run>"``.

    Raises:
        FileNotFoundError: it was not planned.
    """
    path = root() / "build" / "plan" / f"{run}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no plan for run {run!r}: expected <scale>/<run> of params.yaml, by `dvc repro plan`"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def read_data(plan: dict) -> "Data":
    """The prepared arrays of the plan's dataset role."""
    from study.data.loader import load

    return load(root() / "data" / plan["scale"] / plan["data"]["role"])


def state_file(plan: dict, seed: int) -> Path:
    """Where an unfinished seed is kept: named by the plan's content, so that no other resumes it.

    A queued experiment runs in a temporary copy below ``.dvc/tmp``; its state outlives the copy.
    """
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]
    home = root()
    if ".dvc" in home.parts:
        home = Path(*home.parts[: home.parts.index(".dvc")])
    return home / "build" / "unfinished" / plan["scale"] / f"{plan['run']}-{digest}" / f"{seed}.pt"


def say(text: str) -> None:
    """Show progress outside the notebook: the pipeline prints what this file holds."""
    if path := os.environ.get("WEXLIB_PROGRESS"):
        write_text(Path(path), text)


def write_results(plan: dict, data: "Data", runs: dict[int, "Run"]) -> dict:
    """Write the four files of a finished run, the result last; return the result."""
    from wexlib.checkpoint import save

    name, scale, seeds = plan["run"], plan["scale"], list(runs)
    histories = [runs[seed].history for seed in seeds]
    last = [history[-1] for history in histories]
    best = [max(history, key=lambda row: row["test_accuracy"]) for history in histories]
    model = runs[seeds[0]].model
    result = {
        "run": name,
        "scale": scale,
        "data": plan["data"]
        | {"classes": data.classes, "image_size": list(data.image_size)}
        | {split: len(data.labels(split)) for split in ("train", "validation", "test")},
        "config": {k: plan[k] for k in ("model", "model_options", "we", "recipe", "train", "code")},
        "parameters": sum(p.numel() for p in model.parameters()),
        "seeds": seeds,
        "test_last": [row["test_accuracy"] for row in last],
        "test_best_epoch": [row["test_accuracy"] for row in best],
        "best_epoch": [row["epoch"] for row in best],
        "validation_last": [row["validation_accuracy"] for row in last],
        "train_last": [row["train_accuracy"] for row in last],
    }
    models = {seed: run.model for seed, run in runs.items()}
    built_of = {
        "model": plan["model"],
        "classes": data.classes,
        "image_size": data.image_size,
        "options": plan["model_options"],
    }
    write(
        root() / "models" / scale / f"{name}.safetensors",
        lambda temporary: save(temporary, models, **built_of),
    )
    rows = io.StringIO()
    table = csv.DictWriter(rows, fieldnames=histories[0][0], lineterminator="\n")
    table.writeheader()
    for history in histories:
        table.writerows(history)
    folder = root() / "results" / scale
    write_text(folder / "curves" / f"{name}.csv", rows.getvalue())
    on = next(model.parameters()).device
    write_json(
        folder / "provenance" / f"{name}.json",
        provenance(on, sum(run.seconds for run in runs.values())),
    )
    write_json(folder / f"{name}.json", result)
    for seed in seeds:
        state_file(plan, seed).unlink(missing_ok=True)
    return result


def write_not_run(plan: dict) -> dict:
    """The files of a run that cannot be had at this scale: they say why."""
    from safetensors.numpy import save_file

    name, folder = plan["run"], root() / "results" / plan["scale"]
    result = {"run": name, "scale": plan["scale"], "not_run": plan["data"]["missing"]}
    write(root() / "models" / plan["scale"] / f"{name}.safetensors", lambda t: save_file({}, t))
    write_text(folder / "curves" / f"{name}.csv", "seed,epoch\n")
    write_json(folder / "provenance" / f"{name}.json", {})
    write_json(folder / f"{name}.json", result)
    return result


def provenance(on: "torch.device", seconds: float) -> dict:
    """What a number does not depend on, but a reader may ask."""
    import torch

    from wexlib.ops import fused

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root(), capture_output=True, text=True)
        return done.stdout.strip()

    return {
        "seconds": round(seconds, 2),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if on.type == "cuda" else "cpu",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": version("torch"),
        "compiled_passes": on.type == "cpu" and fused.library() is not None,
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "wexlib", "notebooks")),
    }
