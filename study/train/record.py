"""A run is data: its plan goes in, its result files come out.

=========================================  =====================================================
``scales/<scale>/plan/<run>.json``         the plan (:mod:`study.plan.config`)
``results/<scale>/<run>.json``             what the seeds determine: equal to the last bit
``results/<scale>/curves/<run>.csv``       a row for each seed and epoch
``results/<scale>/provenance/<run>.json``  time, machine, versions, commit
``models/<scale>/<run>.safetensors``       the trained models, for :func:`wexlib.load`
=========================================  =====================================================

The playground's are ``playground/plan.json``, ``result.json``, ``curves.csv``, ``provenance.json``
and ``metrics.json``, and ``models/playground.safetensors``.
"""

import csv
import hashlib
import io
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from study.files import PLAYGROUND, digest, root, write, write_json, write_text
from study.plan import METRICS

if TYPE_CHECKING:
    import torch

    from study.data.loader import Data
    from study.train.state import Run


@dataclass(frozen=True)
class Files:
    """Where a run's files are, below the project's folder."""

    result: Path
    curves: Path
    provenance: Path
    checkpoint: Path

    @classmethod
    def of(cls, plan: dict) -> "Files":
        name, home = plan["run"], root()
        if name == PLAYGROUND:
            own = home / PLAYGROUND
            places = own / "result.json", own / "curves.csv", own / "provenance.json"
            return cls(*places, home / "models" / f"{name}.safetensors")
        own = home / "results" / plan["scale"]
        notes = own / "curves" / f"{name}.csv", own / "provenance" / f"{name}.json"
        models = home / "models" / plan["scale"]
        return cls(own / f"{name}.json", *notes, models / f"{name}.safetensors")


#: What a result repeats of its plan.
CONFIG = ("model", "model_options", "pretrained", "we", "recipe", "train", "processes", "code")
#: What a run is made of, for git to say whether it was committed.
CODE = ("notebooks", "study", "wexlib")


def read_plan(run: str) -> dict:
    """The plan of ``"<scale>/<run>"``, or of ``"playground"``.

    Raises:
        FileNotFoundError: it was not planned.
    """
    scale, _, name = run.partition("/")
    path = root() / "scales" / scale / "plan" / f"{name}.json"
    if run == PLAYGROUND:
        path = root() / PLAYGROUND / "plan.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no plan for run {run!r}: expected playground, or <scale>/<run> of runs.yaml, planned "
            "by `dvc repro plan` or `dvc repro scales/<scale>/dvc.yaml:plan`"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def read_data(plan: dict) -> "Data":
    """The prepared data of the plan's dataset role, or of the playground."""
    from study.data.loader import load

    own = plan["run"] == PLAYGROUND
    return load(
        root() / "data" / (PLAYGROUND if own else f"{plan['scale']}/{plan['data']['role']}")
    )


def state_file(plan: dict, seed: int) -> Path:
    """Where an unfinished seed is kept: named by the plan's content, so that no other resumes it.

    A queued experiment runs in a temporary copy below ``.dvc/tmp``; its state outlives the copy.
    """
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]
    home = root()
    if ".dvc" in home.parts:
        home = Path(*home.parts[: home.parts.index(".dvc")])
    return home / "build" / "unfinished" / plan["scale"] / f"{plan['run']}-{digest}" / f"{seed}.pt"


def say(plan: dict, row: dict) -> str:
    """How far a run is, after an epoch with this row: a line, which the pipeline shows too."""
    from study.train.tasks import TASKS

    metric = TASKS[plan["data"]["task"]].metric
    text = (
        f"seed {row['seed']}  epoch {row['epoch']}/{plan['train']['epochs']}"
        f"  loss {row['train_loss']:.3f}  test {row[f'test_{metric}']:.2f} %"
    )
    if path := os.environ.get("WEXLIB_PROGRESS"):
        write_text(Path(path), text)
    return text


def write_results(plan: dict, data: "Data", runs: dict[int, "Run"]) -> dict:
    """Write the four files of a finished run, the result last; return the result."""
    from study.train.tasks import TASKS
    from wexlib.checkpoint import save

    name, scale, seeds = plan["run"], plan["scale"], list(runs)
    metric = TASKS[plan["data"]["task"]].metric
    histories = [runs[seed].history for seed in seeds]
    last = [history[-1] for history in histories]
    best = [max(history, key=lambda row: row[f"test_{metric}"]) for history in histories]
    model = runs[seeds[0]].model
    result = {
        "run": name,
        "scale": scale,
        "data": plan["data"]
        | {"classes": data.classes, "image_size": list(data.image_size)}
        | {split: data.count(split) for split in ("train", "validation", "test")},
        "config": {key: plan[key] for key in CONFIG},
        "parameters": sum(p.numel() for p in model.parameters()),
        "seeds": seeds,
        "metric": METRICS[metric],
        "test_last": [row[f"test_{metric}"] for row in last],
        "test_best_epoch": [row[f"test_{metric}"] for row in best],
        "best_epoch": [row["epoch"] for row in best],
        "validation_last": [row[f"validation_{metric}"] for row in last],
        "train_last": [row[f"train_{metric}"] for row in last],
    }
    models = {seed: run.model for seed, run in runs.items()}
    built_of = {
        "model": plan["model"],
        "classes": data.classes,
        "image_size": data.image_size,
        "options": plan["model_options"],
    }
    files = Files.of(plan)
    write(
        files.checkpoint,
        lambda temporary: save(temporary, models, **built_of),
    )
    rows = io.StringIO()
    table = csv.DictWriter(rows, fieldnames=histories[0][0], lineterminator="\n")
    table.writeheader()
    for history in histories:
        table.writerows(history)
    write_text(files.curves, rows.getvalue())
    result["digest"] = digest(result, rows.getvalue().encode())
    on = next(model.parameters()).device
    write_json(files.provenance, provenance(on, sum(run.seconds for run in runs.values())))
    if name == PLAYGROUND:
        write_json(files.result.with_name("metrics.json"), metrics(result))
    write_json(files.result, result)
    for seed in seeds:
        state_file(plan, seed).unlink(missing_ok=True)
    return result


def write_not_run(plan: dict) -> dict:
    """The files of a run that cannot be had at this scale: they say why."""
    from safetensors.numpy import save_file

    files = Files.of(plan)
    result = {"run": plan["run"], "scale": plan["scale"], "not_run": plan["data"]["missing"]}
    write(files.checkpoint, lambda temporary: save_file({}, temporary))
    write_text(files.curves, curves := "seed,epoch\n")
    result["digest"] = digest(result, curves.encode())
    write_json(files.provenance, {})
    if plan["run"] == PLAYGROUND:
        write_json(files.result.with_name("metrics.json"), {})
    write_json(files.result, result)
    return result


def metrics(result: dict) -> dict:
    """What ``dvc exp show`` has a column for: means over seeds, in percent."""

    def mean(key: str) -> float:
        return round(sum(result[key]) / len(result[key]), 2)

    metric = result["metric"].replace(" ", "_")
    return {
        metric: mean("test_last"),
        f"train_{metric}": mean("train_last"),
        "parameters": result["parameters"],
    }


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
        "dirty": bool(
            git("status", "--porcelain", "--untracked-files=no", "wexlib", "study", "notebooks")
        ),
    }
