"""Reading what runs left behind: results and curves, of one scale or of all."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from study.files import root
from study.plan.config import SCALES

#: Datasets that come with a package; they decide nothing.
EMBEDDED = ("digits10", "digits100")


def read_result(scale: str, run: str, home: Path | None = None) -> dict | None:
    """A run's result, or None before it ran."""
    path = (home or root()) / "results" / scale / f"{run}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_curves(scale: str, runs: Sequence[str], home: Path | None = None) -> pd.DataFrame:
    """The curves of those of ``runs`` that ran: a row for each run, seed and epoch."""
    folder = (home or root()) / "results" / scale / "curves"
    frames = [
        pd.read_csv(folder / f"{run}.csv").assign(run=run)
        for run in runs
        if (folder / f"{run}.csv").is_file()
    ]
    return pd.concat([f for f in frames if len(f)]) if any(map(len, frames)) else pd.DataFrame()


def curves_beside(
    scale: str, runs: Sequence[str], seeds: Sequence[int] | None = None, home: Path | None = None
) -> pd.DataFrame:
    """The curves of ``runs`` at ``scale``, then at every other scale that has some of them.

    Like :func:`read_curves`, of ``seeds`` only where given, with a column ``panel`` that says scale
    and data.
    """
    frames = []
    for each in (scale, *(other for other in SCALES if other != scale)):
        curves = read_curves(each, runs, home)
        if seeds is not None and not curves.empty:
            curves = curves[curves["seed"].isin(seeds)]
        if not curves.empty:
            data = read_result(each, curves["run"].iloc[0], home)["data"]["dataset"]
            frames.append(curves.assign(panel=f"{each}: {data}"))
    return pd.concat(frames) if frames else pd.DataFrame()


def of_seeds(result: dict | None, seeds: Sequence[int] | None) -> dict | None:
    """A result as if it had only those of its seeds that are in ``seeds``."""
    if seeds is None or not result or "not_run" in result:
        return result
    kept = [i for i, seed in enumerate(result["seeds"]) if seed in seeds]
    if not kept:
        return result | {"not_run": f"of the seeds {list(seeds)} it has none"}
    return result | {
        key: [value[i] for i in kept]
        for key, value in result.items()
        if isinstance(value, list) and len(value) == len(result["seeds"])
    }


def older_code(result: dict, home: Path) -> str:
    """A remark where the present code is not that which made the result."""
    plan = home / "build" / "plan" / result["scale"] / f"{result['run']}.json"
    if not plan.is_file():
        return ""
    if json.loads(plan.read_text(encoding="utf-8"))["code"] == result["config"]["code"]:
        return ""
    made = home / "results" / result["scale"] / "provenance" / f"{result['run']}.json"
    commit = json.loads(made.read_text(encoding="utf-8")).get("commit", "")[:7]
    return f"made by older code (commit {commit or 'unknown'})"
