"""Whether runs made here are those that were recorded: equal to the last bit, or near enough.

``digests/<scale>.json`` holds for each run ``{"digest": …, "low": …, "high": …}``: the digest of
what it left, and the interval in which its mean test accuracy, in percent, lies where arithmetic
rounds differently.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from study.files import digest, root, write_json
from study.results.files import Results, read_result

#: What a result holds of what its seeds determine.
NUMBERS = (
    "parameters",
    "seeds",
    "test_last",
    "test_best_epoch",
    "best_epoch",
    "validation_last",
    "train_last",
)
Recorded = Mapping[str, Mapping[str, str | float]]


def digests(scale: str, home: Path | None = None) -> dict[str, str]:
    """Each run's SHA-256 of its numbers and its curves; runs that were not made have none.

    What the run was planned as is left out: a new key of a plan, or other code, is no other result.
    """
    results, found = Results(scale, home), {}
    for path in sorted(results.folder.glob("*.json")):
        result = read_result(path)
        if "test_last" not in result:
            continue  # a run that needs what is not there, or the summary
        numbers = {key: result[key] for key in NUMBERS if key in result}
        curves = results.folder / "curves" / f"{path.stem}.csv"
        found[path.stem] = digest(numbers, curves.read_bytes())
    return found


def prediction_interval(recorded: Sequence[float], n: int) -> tuple[float, float]:
    """The 95 % interval for the mean of n further seeds, from k recorded ones, k ≥ 2.

    With m and s their mean and standard deviation: m ± t(0.975, k − 1)·s·√(1/n + 1/k).
    """
    from scipy import stats

    k = len(recorded)
    mean = sum(recorded) / k
    sd = math.sqrt(sum((y - mean) ** 2 for y in recorded) / (k - 1))
    half = float(stats.t.ppf(0.975, k - 1)) * sd * math.sqrt(1 / n + 1 / k)
    return mean - half, mean + half


def record(
    scale: str, accuracies: Mapping[str, Sequence[float]], home: Path | None = None
) -> Recorded:
    """Write ``digests/<scale>.json`` from the results that are here.

    Args:
        scale: whose results.
        accuracies: each run's test accuracy in percent for each of its recorded seeds, five.
        home: the project's folder; the one around the working folder unless given.
    """
    results, recorded = Results(scale, home), {}
    for run, found in digests(scale, home).items():
        n = len(results[run].result["seeds"])
        low, high = prediction_interval(accuracies[run], n)
        recorded[run] = {"digest": found, "low": round(low, 3), "high": round(high, 3)}
    write_json(results.home / "digests" / f"{scale}.json", recorded)
    return recorded


def read(scale: str, home: Path | None = None) -> Recorded:
    """What ``digests/<scale>.json`` holds; nothing where there is no such file."""
    path = (home or root()) / "digests" / f"{scale}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def compare(scale: str, recorded: Recorded, home: Path | None = None) -> str:
    """One sentence: how many recorded runs are here to the last bit, and where the others lie."""
    results, here = Results(scale, home), digests(scale, home)
    equal, within, outside, missing = [], [], [], []
    for run, entry in recorded.items():
        if run not in here:
            missing.append(run)
        elif here[run] == entry["digest"]:
            equal.append(run)
        else:
            scores = results[run].result["test_last"]
            inside = entry["low"] <= sum(scores) / len(scores) <= entry["high"]
            (within if inside else outside).append(run)
    parts = [f"{len(equal)} of {len(recorded)} runs equal the recorded digests to the last bit"]
    for runs, side in ((within, "within"), (outside, "outside")):
        if len(runs) == 1:
            parts.append(f"1 other lies {side} its interval")
        elif runs:
            parts.append(f"{len(runs)} others lie {side} their interval")
    if outside:
        parts[-1] += f" ({', '.join(outside)})"
    if missing:
        parts.append(f"not run: {', '.join(missing)}")
    return "; ".join(parts)
