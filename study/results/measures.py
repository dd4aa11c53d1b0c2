"""What two runs are compared by, paired on equal seeds: accuracy, speed, smoothness, gap."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from study.results.statistics import paired, roughness


@dataclass(frozen=True)
class Run:
    """A run's result and its curves."""

    result: dict
    curves: pd.DataFrame

    def last(self, key: str) -> dict[int, float]:
        """A number of the result for each seed."""
        return dict(zip(self.result["seeds"], self.result[key], strict=True))

    def curve(self, column: str) -> dict[int, list[float]]:
        """A column of the curves for each seed; empty where the scale has not got it."""
        rows = self.curves.dropna(subset=[column])
        return {seed: list(group[column]) for seed, group in rows.groupby("seed")}


def accuracy(run: Run) -> dict[int, float]:
    """Test accuracy at the last epoch, in percent."""
    return run.last("test_last")


def early_accuracy(run: Run) -> dict[int, float]:
    """Test accuracy after 3/5 of the epochs, in percent: the thesis's 30 of 50."""
    curves = run.curve("test_accuracy")
    return {seed: curve[max(round(0.6 * len(curve)), 1) - 1] for seed, curve in curves.items()}


def gap(run: Run) -> dict[int, float]:
    """Training minus validation accuracy at the last epoch, in percentage points."""
    train, held_out = run.last("train_last"), run.last("validation_last")
    return {s: train[s] - held_out[s] for s in train if held_out[s] is not None}


def rough(run: Run) -> dict[int, float]:
    """Roughness of the validation accuracy's curve (:func:`study.results.statistics.roughness`)."""
    curves = run.curve("validation_accuracy")
    return {seed: roughness(curve) for seed, curve in curves.items() if len(curve) > 2}


#: What a run alone has of each seed, and its name and unit for a reader.
VALUES: dict[str, tuple[Callable[[Run], dict[int, float]], str]] = {
    "accuracy": (accuracy, "accuracy (points)"),
    "early_accuracy": (early_accuracy, "accuracy after 3/5 of the epochs (points)"),
    "gap": (gap, "training − validation (points)"),
    "roughness": (rough, "roughness (points)"),
}


def epochs(of: Run, against: Run, expects: str) -> dict:
    """Epochs to 9/10 of the other run's last test accuracy, by linear interpolation."""
    goals = {seed: 0.9 * y for seed, y in against.last("test_last").items()}

    def reached(run: Run) -> dict[int, float]:
        curves = run.curve("test_accuracy")
        return {s: epochs_to(goals[s], curve) for s, curve in curves.items() if s in goals}

    return paired(reached(of), reached(against))


def epochs_to(goal: float, curve: list[float]) -> float:
    """The first moment, in epochs, at which a curve reaches ``goal``; its length if it never does.

    The curve has a point after each epoch, and is linear between them.
    """
    for epoch, (before, after) in enumerate(zip(curve, curve[1:], strict=False), 1):
        if before >= goal:
            return epoch
        if after >= goal:
            return epoch + (goal - before) / (after - before)
    return len(curve)


def every_epoch(of: Run, against: Run, expects: str) -> dict:
    """Test accuracy, epoch by epoch; the claim is on all of them at once.

    If every mean difference has the claimed sign, p is the greatest of the epochs' (an
    intersection-union test, Berger 1982). If some have the other sign, one of them is enough to
    contradict the claim, and p is their smallest times the number of epochs (Bonferroni). Reported
    is the epoch of that p; without one, the epoch that speaks most against the claim.
    """
    ours, plain = of.curve("test_accuracy"), against.curve("test_accuracy")
    length = min(map(len, [*ours.values(), *plain.values()]), default=0)
    found = [
        paired({s: c[i] for s, c in ours.items()}, {s: c[i] for s, c in plain.items()})
        for i in range(length)
    ]
    if not found:
        return paired({}, {})
    sign = -1 if expects == "lower" else 1
    contrary = [each for each in found if each["difference"] * sign <= 0]
    tested = [each for each in contrary if not math.isnan(each["p"])]
    if tested:
        worst = min(tested, key=lambda each: each["p"])
        return worst | {"p": min(1.0, worst["p"] * length)}
    if contrary or any(math.isnan(each["p"]) for each in found):
        return min(found, key=lambda each: each["difference"] * sign) | {"p": math.nan}
    return max(found, key=lambda each: each["p"])


def _difference(value: Callable[[Run], dict[int, float]]) -> Callable[[Run, Run, str], dict]:
    return lambda of, against, expects: paired(value(of), value(against))


#: What is compared: the function, and its name and unit for a reader.
MEASURES: dict[str, tuple[Callable[[Run, Run, str], dict], str]] = {
    **{key: (_difference(value), name) for key, (value, name) in VALUES.items()},
    "every_epoch": (every_epoch, "accuracy, every epoch (points)"),
    "epochs": (epochs, "epochs to 9/10 of the other's accuracy"),
}
