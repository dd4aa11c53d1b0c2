"""Train one run: its model, its loop, its evaluation.

What a seed determines goes by streams of its own (:func:`derive`): the backbone's start, the
attention's start, the order of the batches and their augmentation. So the same seed gives the same
backbone and the same batches whatever is attached, and a run that was killed goes on from its last
epoch to the same last bit.
"""

import hashlib
import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from study.data.loader import Data, Loader
from study.files import write
from study.plan.network import attach, build, derive
from study.train import memory
from wexlib.control import average, precompute, resume

EVALUATION_BATCH = 500


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def optimizer_of(model: nn.Module, train: dict) -> torch.optim.Optimizer:
    """All parameters in one group, attention, biases and norms decayed too: the authors' choice."""
    options = {"lr": train["lr"], "weight_decay": train["weight_decay"], "fused": True}
    if train["optimizer"] == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=train["momentum"], **options)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train["optimizer"]]
    return kind(model.parameters(), **options)


def learning_rate(train: dict, step: int, steps: int) -> float:
    """The rate of step ``step`` (from 0) of ``steps`` in an epoch.

    ``constant``: lr. ``step``: lr·gamma^(milestones passed), at the start of an epoch (from 0).
    ``cosine``: lr·½(1 + cos πt) over the run, t in [0, 1). ``onecycle``: linear from 0 to lr over
    the first 3/10 of the steps, then linear to 0.
    """
    lr, t = train["lr"], step / (steps * train["epochs"])
    if train["schedule"] == "step":
        return lr * train["gamma"] ** sum(step // steps >= m for m in train["milestones"])
    if train["schedule"] == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * t))
    if train["schedule"] == "onecycle":
        t = (step + 1) / (steps * train["epochs"] + 1)
        return lr * min(t / 0.3, (1 - t) / 0.7)
    return lr


def strength(we: dict, epoch: int) -> float:
    """How far the excitation is on in an epoch (from 0): 0 while paused, then 1, or a ramp up."""
    return min(max((epoch - we["pause"] + 1) / (we["ramp"] + 1), 0.0), 1.0)


def autocast(train: dict, on: torch.device):
    return torch.autocast(on.type, torch.bfloat16, enabled=train["precision"] == "bf16")


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Loader, train: dict) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in percent; excited weights are computed once."""
    model.eval()
    loss, correct, count = 0.0, 0, 0
    with precompute(model):
        for images, labels in loader:
            with autocast(train, images.device):
                scores = model(images)
            loss += F.cross_entropy(scores.float(), labels, reduction="sum").item()
            correct += (scores.argmax(1) == labels).sum().item()
            count += len(labels)
    return loss / count, 100 * correct / count


def loaders(data: Data, plan: dict, seed: int, on: torch.device) -> dict[str, Loader]:
    """``train`` in the order and augmentation that ``seed`` gives; the others as they lie."""
    common = {"device": on, "channels_last": plan["train"]["channels_last"]}
    splits = {
        name: Loader(data, name, batch_size=EVALUATION_BATCH, **common)
        for name in ("validation", "test")
        if len(data.labels(name))
    }
    splits["train"] = Loader(
        data,
        "train",
        batch_size=plan["train"]["batch"],
        shuffle=True,
        augment=True,
        seed=derive(seed, "batches"),
        **common,
    )
    return splits


@dataclass
class Run:
    """The state of one seed's training, all that is needed to go on.

    ``history`` holds one row an epoch; ``seconds`` the time spent, over every start.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    history: list[dict] = field(default_factory=list)
    seconds: float = 0.0

    def excite(self, plan: dict, seed: int) -> None:
        """Attach the excitation to the plain network that was trained so far."""
        attach(self.model, plan["we"], seed)
        self.optimizer = optimizer_of(self.model, plan["train"])

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "seconds": self.seconds,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        contents = buffer.getvalue()
        # Its digest first: torch reads a changed byte as another weight.
        sealed = hashlib.sha256(contents).digest() + contents
        write(path, lambda temporary: temporary.write_bytes(sealed))

    @staticmethod
    def read(path: Path) -> dict | None:
        """The state that :meth:`save` wrote; none where there is no file, or a damaged one."""
        if not path.is_file():
            return None
        sealed = path.read_bytes()
        if hashlib.sha256(sealed[32:]).digest() == sealed[:32]:
            return torch.load(io.BytesIO(sealed[32:]), weights_only=True, map_location="cpu")
        print(f"{path} is damaged: this seed is trained anew", flush=True)
        return None

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.seconds = state["history"], state["seconds"]


def _check_channels_last(model: nn.Module, on: torch.device) -> None:
    """oneDNN without AVX-512 writes past its buffers there (torch 2.15, seen as a crash)."""
    for name, module in model.named_modules():
        if on.type == "cpu" and isinstance(module, nn.Conv2d) and module.in_channels < 8:
            if module.kernel_size == (1, 1) and module.stride != (1, 1):
                raise ValueError(
                    f"{name}: a strided 1×1 convolution of {module.in_channels} channels can crash "
                    "in channels_last on a CPU: take a width of at least 8, or channels_last: false"
                )


def start(plan: dict, data: Data, seed: int, saved: Path | None = None) -> Run:
    """A run at its beginning, or where the file ``saved`` left it."""
    on = device()
    if on.type == "cpu":
        torch.set_num_threads(plan["threads"])  # sums depend on it in their last bits
        memory.keep_freed()
    state = Run.read(saved) if saved else None
    plain = (len(state["history"]) if state else 0) <= plan["we"]["pretrain"] > 0
    sizes = {"classes": data.classes, "image_size": data.image_size}
    model = build(plan, seed, **sizes, plain=plain).to(on)
    if plan["train"]["channels_last"]:
        _check_channels_last(model, on)
        model = model.to(memory_format=torch.channels_last)
    run = Run(model, optimizer_of(model, plan["train"]))
    if state:
        run.restore(state)
    return run


def fit(run: Run, plan: dict, data: Data, seed: int, saved: Path | None = None) -> Iterator[dict]:
    """Train to the last epoch; yield each epoch's row of the curves.

    Raises:
        FloatingPointError: the loss is no longer finite; what was saved before stays.
    """
    train, on = plan["train"], next(run.model.parameters()).device
    splits = loaders(data, plan, seed, on)
    steps = len(splits["train"])
    averaged = plan["we"]["attention"] == "global" and not plan["we"]["shared"]
    for epoch in range(len(run.history), train["epochs"]):
        began = time.perf_counter()
        if epoch == plan["we"]["pretrain"] > 0:
            run.excite(plan, seed)
        if plan["we"]["pause"] or plan["we"]["ramp"]:
            resume(run.model, strength=strength(plan["we"], epoch))
        torch.manual_seed(derive(seed, f"dropout of epoch {epoch}"))
        splits["train"].epoch = epoch
        run.model.train()
        loss_sum = torch.zeros((), device=on, dtype=torch.float64)
        correct = torch.zeros((), device=on, dtype=torch.int64)
        bad = torch.full((), steps, device=on)
        count = 0
        for i, (images, labels) in enumerate(splits["train"]):
            for group in run.optimizer.param_groups:
                group["lr"] = learning_rate(train, epoch * steps + i, steps)
            with precompute(run.model), autocast(train, on):
                scores = run.model(images)
            loss = F.cross_entropy(scores.float(), labels)
            run.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            run.optimizer.step()
            if averaged:
                average(run.model)
            # Sums stay on the device, so that a step never waits for the one before.
            loss = loss.detach()
            bad = torch.where(loss.isfinite(), bad, bad.clamp(max=i))
            loss_sum += loss * len(labels)
            correct += (scores.detach().argmax(1) == labels).sum()
            count += len(labels)
        if bad.item() < steps:
            raise FloatingPointError(
                f"{plan['run']}: the loss is not finite at step {bad.item() + 1} of epoch "
                f"{epoch + 1} (seed {seed}): lower train.lr; the epochs before it are kept"
            )
        row = {
            "seed": seed,
            "epoch": epoch + 1,
            "lr": run.optimizer.param_groups[0]["lr"],
            "train_loss": loss_sum.item() / count,
            "train_accuracy": 100 * correct.item() / count,
        }
        for name in ("validation", "test"):
            row[f"{name}_loss"], row[f"{name}_accuracy"] = (
                evaluate(run.model, splits[name], train) if name in splits else (None, None)
            )
        run.history.append(row)
        run.seconds += time.perf_counter() - began
        if saved:
            run.save(saved)
        yield row
