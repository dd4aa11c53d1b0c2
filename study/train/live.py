"""What chapters train as they are read: small networks on the embedded digits, in seconds."""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from study.data.datasets import prepare
from study.data.loader import Data, load, loader
from study.data.sources import DATASETS
from study.files import root
from study.plan import config
from study.train.evaluation import Evaluation
from study.train.loop import EVALUATION_BATCH, fit, start
from study.train.pruning import Loss, prune
from study.train.state import Run

SEED = 0


def digits(*, train: int = 800, test: int = 500) -> Data:
    """The embedded set ``digits10`` (1,797 scans, 3×8×8), with no validation split."""
    with tempfile.TemporaryDirectory() as folder:
        prepare("digits10", Path(folder) / "digits10", train=train, test=test)
        return load(Path(folder) / "digits10")


def plan(model: str, *, we: dict | None = None, epochs: int = 3) -> dict:
    """A plan as :mod:`study.plan.config` makes it at the scale demo.

    Args:
        model: a model's name.
        we: the excitation, by the keys of ``params.yaml``; none unless given.
        epochs: of training, by the recipe of the ResNet-18 tables in small batches: more steps.
    """
    changed = {"model": model, "dataset": "cinic10", "we": we or {}}
    changed["train"] = {"recipe": "cinic-50", "epochs": epochs, "batch": 32}
    return config.plan_playground(config.read(root(), "demo") | changed, "demo", DATASETS)


def train(plan: dict, data: Data, model: nn.Module | None = None) -> Run:
    """Train a plan's model, or train ``model`` on by its recipe, to the last epoch."""
    run = start(plan, data, SEED)
    if model is not None:
        run = Run.of(model, plan["train"])
    for _ in fit(run, plan, data, SEED):
        pass
    return run


def accuracy(model: nn.Module, data: Data, plan: dict) -> float:
    """Accuracy on the test images, in percent."""
    batches = loader(data, "test", batch_size=EVALUATION_BATCH)
    return Evaluation(model, plan, data.classes)(batches)["accuracy"]


def prune_and_retrain(
    model: nn.Module, data: Data, plan: dict, amounts: Sequence[float]
) -> list[dict]:
    """Prune copies of a trained model by magnitude, and train each on with its zeros kept.

    Returns:
        A row for each of ``amounts``, with the share ``pruned`` of the weights and the accuracy in
        percent ``before`` and ``after`` the pruned network was trained on by the plan.
    """
    rows = []
    for amount in amounts:
        pruned = prune(copy.deepcopy(model), amount)
        row = {"pruned": amount, "before": accuracy(pruned, data, plan)}
        train(plan, data, pruned)
        rows.append(row | {"after": accuracy(pruned, data, plan)})
    return rows


def cross_entropy_on(images: torch.Tensor, labels: torch.Tensor) -> Loss:
    """The mean cross-entropy on these images, in nats, as a function of the network."""
    return lambda network: nn.functional.cross_entropy(network(images), labels)


def minimize(model: nn.Module, loss: Loss, *, steps: int = 200) -> float:
    """Go to a minimum of ``loss`` by L-BFGS, all images at once; return the loss there."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=steps, history_size=20, line_search_fn="strong_wolfe"
    )

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    optimizer.step(step)
    return loss(model).item()
