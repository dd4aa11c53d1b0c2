"""What runs are compared by, a number for each seed: accuracy, speed, smoothness, gap.

Accuracy stands for the metric of the run's task, of a segmentation the mean IoU.
"""

from collections.abc import Callable

from study.results.files import Run
from study.results.statistics import roughness


def accuracy(run: Run) -> dict[int, float]:
    """Test accuracy at the last epoch, in percent."""
    return run.last("test_last")


def train_accuracy(run: Run) -> dict[int, float]:
    """Training accuracy over the last epoch, in percent."""
    return run.last("train_last")


def early_accuracy(run: Run) -> dict[int, float]:
    """Test accuracy after 3/5 of the epochs, in percent: the thesis's 30 of 50."""
    return {seed: _after(0.6, curve) for seed, curve in run.metric_curve("test").items()}


def late_gain(run: Run) -> dict[int, float]:
    """What the last 14 of 164 epochs, or as large a share, add to the test accuracy, in points."""
    curves = run.metric_curve("test")
    return {seed: curve[-1] - _after(150 / 164, curve) for seed, curve in curves.items()}


def late_loss(run: Run) -> dict[int, float]:
    """What the last 2/5 of the epochs add to the validation loss, in nats: overfitting, above 0."""
    curves = run.curve("validation_loss")
    return {seed: curve[-1] - _after(0.6, curve) for seed, curve in curves.items()}


def _after(share: float, curve: list[float]) -> float:
    """A curve's value after a share of its epochs, at least one."""
    return curve[max(round(share * len(curve)), 1) - 1]


def gap(run: Run) -> dict[int, float]:
    """Training minus validation accuracy at the last epoch, in percentage points."""
    train, held_out = run.last("train_last"), run.last("validation_last")
    return {s: train[s] - held_out[s] for s in train if held_out[s] is not None}


def rough(run: Run) -> dict[int, float]:
    """Roughness of the validation accuracy's curve (:func:`study.results.statistics.roughness`)."""
    curves = run.metric_curve("validation")
    return {seed: roughness(curve) for seed, curve in curves.items() if len(curve) > 2}


def epochs_to(goals: dict[int, float], run: Run) -> dict[int, float]:
    """The epochs after which each seed's test accuracy first reaches its goal, in percent."""
    curves = run.metric_curve("test")
    return {seed: crossing(goals[seed], curve) for seed, curve in curves.items() if seed in goals}


def crossing(goal: float, curve: list[float]) -> float:
    """The first moment, in epochs, at which a curve reaches ``goal``; its length if it never does.

    The curve has a point after each epoch, and is linear between them.
    """
    for epoch, (before, after) in enumerate(zip(curve, curve[1:], strict=False), 1):
        if before >= goal:
            return epoch
        if after >= goal:
            return epoch + (goal - before) / (after - before)
    return len(curve)


#: The numbers of a run alone.
VALUES: dict[str, Callable[[Run], dict[int, float]]] = {
    "accuracy": accuracy,
    "train_accuracy": train_accuracy,
    "early_accuracy": early_accuracy,
    "late_gain": late_gain,
    "late_loss": late_loss,
    "gap": gap,
    "roughness": rough,
}

#: Those that are a change, whose zero means something: a run alone is compared with it.
ALONE = ("late_gain", "late_loss")

#: What a contrast is of, for a reader, with its unit. The last two take both of two runs.
MEASURES = {
    "accuracy": "accuracy (points)",
    "train_accuracy": "training accuracy (points)",
    "early_accuracy": "accuracy after 3/5 of the epochs (points)",
    "late_gain": "accuracy gained after 150/164 of the epochs (points)",
    "late_loss": "validation loss gained after 3/5 of the epochs (nats)",
    "gap": "training − validation (points)",
    "roughness": "roughness (points)",
    "every_epoch": "accuracy, every epoch (points)",
    "epochs": "epochs to 9/10 of the other's accuracy",
}
