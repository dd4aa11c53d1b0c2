"""What the runs of a scale left behind: results and curves, each file read once."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from study.files import digest, root
from study.plan import METRICS, REAL

#: Datasets that come with a package; they decide nothing.
EMBEDDED = ("digits10", "digits100", "scenes", "moving-digits")
#: A metric's name in the curves, by what results call it.
COLUMNS = {shown: name for name, shown in METRICS.items()}


def read_result(path: Path) -> dict:
    """A run's result, once it and its curves prove unchanged; the oldest have no digest.

    Raises:
        ValueError: one of them is not what the run wrote.
    """
    curves = path.parent / "curves" / f"{path.stem}.csv"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        contents = curves.read_bytes() if "digest" in result and curves.is_file() else b""
        if result.get("digest", "") not in ("", digest(result, contents)):
            raise ValueError("their digest is another")
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}, or {curves}, is not what its run wrote ({error}): bring both back by "
            "git restore or dvc checkout --force, or make the run again"
        ) from None
    return result


@dataclass(frozen=True)
class Run:
    """What one run left: its result, and its curves, a row for each seed and epoch."""

    result: dict
    curves: pd.DataFrame

    @property
    def data(self) -> dict:
        return self.result["data"]

    @property
    def dataset(self) -> str:
        return self.data["dataset"]

    @property
    def trained_on(self) -> tuple:
        """What has to be equal for two runs to be compared: data, epochs, batch and schedule."""
        train = self.result.get("config", {}).get("train", {})
        return self.data, *(train.get(key) for key in ("epochs", "batch", "schedule"))

    @property
    def metric(self) -> str:
        """What ``test_last`` and the like are of, in percent."""
        return self.result.get("metric", "accuracy")

    def last(self, key: str) -> dict[int, float]:
        """A number of the result for each seed."""
        return dict(zip(self.result["seeds"], self.result[key], strict=True))

    def metric_curve(self, split: str) -> dict[int, list[float]]:
        """The metric's curve on a split, as :meth:`curve`."""
        return self.curve(f"{split}_{COLUMNS[self.metric]}")

    def curve(self, column: str) -> dict[int, list[float]]:
        """A column of the curves for each seed; empty where the scale has not got it."""
        if column not in self.curves:
            return {}
        rows = self.curves.dropna(subset=[column])
        return {seed: list(group[column]) for seed, group in rows.groupby("seed")}


class Results:
    """The runs of one scale, by name: ``Results("cpu")["resnet18"]`` is a :class:`Run`.

    A name whose run was not made gives None, and :meth:`status` says why. Files are read when they
    are asked for, and once.

    Args:
        scale: one of :data:`study.plan.SCALES`.
        home: the project's folder; the one around the working folder unless given.
        seeds: as if runs had these seeds only; all unless given.
    """

    def __init__(
        self, scale: str, home: Path | None = None, seeds: Sequence[int] | None = None
    ) -> None:
        self.scale, self.home, self.seeds = scale, home or root(), seeds
        self.folder = self.home / "results" / scale
        self._runs: dict[str, Run | None] = {}
        self._status: dict[str, str] = {}
        self._made: dict[str, int] = {}  # of how many seeds, those that are not asked for too

    def __getitem__(self, run: str) -> Run | None:
        if run not in self._runs:
            self._runs[run] = self._read(run)
        return self._runs[run]

    def status(self, run: str) -> str:
        """Why the run has no result; empty where it has one."""
        return "" if self[run] else self._status[run]

    def _read(self, run: str) -> Run | None:
        path = self.folder / f"{run}.json"
        self._status[run] = "not run yet"
        if not path.is_file():
            return None
        result = read_result(path)
        seeds = result.get("seeds", [])
        self._made[run] = len(seeds)
        kept = [i for i, seed in enumerate(seeds) if self.seeds is None or seed in self.seeds]
        if "not_run" in result or not kept:
            none = f"of the seeds {list(self.seeds or [])} it has none"
            self._status[run] = f"not run: {result.get('not_run', none)}"
            return None
        for key, value in result.items():
            if isinstance(value, list) and len(value) == len(seeds):
                result[key] = [value[i] for i in kept]
        path = self.folder / "curves" / f"{run}.csv"
        curves = pd.read_csv(path) if path.is_file() else pd.DataFrame({"seed": []})
        return Run(result, curves[curves["seed"].isin(result["seeds"])])

    def curves(self, runs: Sequence[str]) -> pd.DataFrame:
        """The curves of those of ``runs`` that were made, with a column ``run``."""
        frames = [self[run].curves.assign(run=run) for run in runs if self[run]]
        frames = [frame for frame in frames if len(frame)]
        return pd.concat(frames) if frames else pd.DataFrame()

    def seconds(self, run: str) -> float:
        """The time of a seed, of one core or GPU; NaN with embedded data, whose times are not kept.

        A table of them is an output that DVC compares, and no two times are equal.
        """
        if self.scale not in REAL or not self[run]:
            return math.nan
        return self._provenance(run).get("seconds", math.nan) / self._made[run]

    def _provenance(self, run: str) -> dict:
        path = self.folder / "provenance" / f"{run}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def older_code(self, run: str) -> str:
        """A remark where the present code is not that which made the run's result."""
        plan = self.home / "scales" / self.scale / "plan" / f"{run}.json"
        if not plan.is_file():
            return ""
        planned = json.loads(plan.read_text(encoding="utf-8"))
        if planned["code"] == self[run].result["config"]["code"]:
            return ""
        commit = self._provenance(run).get("commit", "")[:7]
        return f"made by older code (commit {commit or 'unknown'})"


def largest_first(scale: str) -> list[str]:
    """``scale``, then the others with real data from the largest to the smallest."""
    return [scale, *(other for other in reversed(REAL) if other != scale)]


def curves_beside(
    scale: str,
    runs: Sequence[str],
    seeds: Sequence[int] | None = None,
    home: Path | None = None,
    *,
    others: bool = True,
) -> pd.DataFrame:
    """The curves of ``runs`` at ``scale`` and at every scale with real data, which stand first.

    Of ``seeds`` only where given, and of ``scale`` only without ``others``. Columns: those of the
    files, run, and ``panel``, which says scale and data.
    """
    frames = []
    for each in largest_first(scale) if others else [scale]:
        results = Results(each, home, seeds)
        curves = results.curves(runs)
        if not curves.empty:
            dataset = results[curves["run"].iloc[0]].dataset
            frames.append((dataset in EMBEDDED, curves.assign(panel=f"{each}: {dataset}")))
    frames.sort(key=lambda frame: frame[0])  # stable: the rest of the order stays
    return pd.concat([curves for _, curves in frames]) if frames else pd.DataFrame()
