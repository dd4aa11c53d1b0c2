"""Train one run: its start, its loop, its step.

What a seed determines goes by streams of its own (:func:`derive`): the backbone's start, the
attention's start, the order of the batches and their augmentation. So the same seed gives the same
backbone and the same batches whatever is attached, and a run that was killed goes on from its last
epoch, or from within a long one, to the same last bit.

On a GPU a step is captured as a CUDA graph and replayed (:mod:`wexlib.ops.capture`). In a process
group (``torchrun -m study.train``) every process takes its share of each batch.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from study.data.loader import Data, loader
from study.plan.network import attach, build, derive
from study.train import memory
from study.train.evaluation import Evaluation, Sums, autocast, rank_and_world
from study.train.state import Run, random_state, set_random_state, set_rate
from study.train.tasks import TASKS, cross_entropy, scores_of
from wexlib.control import average, precompute, resume
from wexlib.ops.capture import Captured

EVALUATION_BATCH = 500
#: Seconds of an epoch after which its state is kept.
SAVE_AFTER = 600
#: Steps after which several processes ask whether it is time.
ASK_EVERY = 50
CPU = torch.device("cpu")


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU


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


def loaders(data: Data, plan: dict, seed: int, on: torch.device) -> dict:
    """``train`` in the order and augmentation that ``seed`` gives; the others as they lie."""
    common = {
        "device": on,
        "channels_last": plan["train"]["channels_last"],
        "part": rank_and_world(),
    }
    # Of maps and clips so many would not fit.
    batch = EVALUATION_BATCH if data.task == "classification" else plan["train"]["batch"]
    splits = {
        name: loader(data, name, batch_size=batch, **common)
        for name in ("validation", "test")
        if data.count(name)
    }
    splits["train"] = loader(
        data,
        "train",
        batch_size=plan["train"]["batch"],
        shuffle=True,
        augment=True,
        seed=derive(seed, "batches"),
        **common,
    )
    return splits


def _check_channels_last(model: nn.Module, on: torch.device) -> None:
    """oneDNN without AVX-512 writes past its buffers there (torch 2.15, seen as a crash)."""
    for name, module in model.named_modules():
        if on.type == "cpu" and isinstance(module, nn.Conv2d) and module.in_channels < 8:
            if module.kernel_size == (1, 1) and module.stride != (1, 1):
                raise ValueError(
                    f"{name}: a strided 1×1 convolution of {module.in_channels} channels can crash "
                    "in channels_last on a CPU: take a width of at least 8, or channels_last: false"
                )


def _repeat_bits() -> None:
    """Of kernels that give a GPU's results in an order of chance take those that do not."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs, and nothing reads it


def start(plan: dict, data: Data, seed: int, saved: Path | None = None) -> Run:
    """A run at its beginning, or where the file ``saved`` left it."""
    on, train = device(), plan["train"]
    if on.type == "cpu":
        torch.set_num_threads(plan["threads"])  # sums depend on it in their last bits
        memory.keep_freed()
    else:
        _repeat_bits()
    state = Run.read(saved) if saved else None
    begun = len(state["history"]) + (state["within"] is not None) if state else 0
    sizes = {"classes": data.classes, "image_size": data.image_size}
    pretrain = plan["we"]["pretrain"]
    model = build(plan, seed, **sizes, plain=pretrain > 0).to(on)
    if train["channels_last"]:
        _check_channels_last(model, on)
        model = model.to(memory_format=torch.channels_last)
    if begun > pretrain > 0:
        attach(model, plan["we"], seed)
    if train["sync_batch_norm"] and rank_and_world()[1] > 1:
        if on.type == "cpu":
            raise ValueError("train.sync_batch_norm: true needs GPUs: set it to false on a CPU")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    run = Run.of(model, train)
    if state:
        run.restore(state)
    return run


def _training_step(run: Run, plan: dict, sums: Sums) -> Callable[[Tensor, Tensor], None]:
    """One step on a batch, or on this process's share of one."""
    on, world = sums.loss.device, rank_and_world()[1]
    network = run.model
    if world > 1:
        network = nn.parallel.DistributedDataParallel(network)
    averaged = "global" in plan["we"]["attention"] and not plan["we"]["shared"]

    def losses(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimized, and what the epoch's sum gets."""
        if world == 1:
            loss = cross_entropy(scores, targets, "mean" if len(targets) else "sum")
            return loss, loss.detach() * len(targets)
        counted = sums.task.count(scores.detach(), targets).sum()
        whole = torch.stack([counted, torch.full_like(counted, len(targets))])
        distributed.all_reduce(whole)
        loss = cross_entropy(scores, targets, "sum") / whole[0]
        # The processes' gradients are averaged, and are to be added.
        return world * loss, loss.detach() * whole[1]

    def step(images: Tensor, targets: Tensor) -> None:
        run.optimizer.zero_grad(set_to_none=True)
        with precompute(run.model), autocast(plan["train"], on):
            scores = scores_of(network(images))
        loss, added = losses(scores, targets)
        run.scaler.scale(loss).backward()
        run.scaler.step(run.optimizer)
        run.scaler.update()
        if averaged:
            average(run.model)
        sums.add(added, scores.detach(), targets)

    return step if world > 1 else Captured(step)


def fit(run: Run, plan: dict, data: Data, seed: int, saved: Path | None = None) -> Iterator[dict]:
    """Train to the last epoch; yield each epoch's row of the curves.

    Raises:
        FloatingPointError: the loss is no longer finite; what was saved before stays.
    """
    train, on = plan["train"], next(run.model.parameters()).device
    (rank, world), splits = rank_and_world(), loaders(data, plan, seed, on)
    steps = len(splits["train"])
    sums = Sums(TASKS[plan["data"]["task"]], data.classes, on)
    step = evaluation = None
    for epoch in range(len(run.history), train["epochs"]):
        began, within = time.perf_counter(), run.within
        if epoch == plan["we"]["pretrain"] > 0 and not within:
            run.excite(plan, seed)
            step = None
        if step is None:
            step = _training_step(run, plan, sums)
            evaluation = Evaluation(run.model, plan, data.classes)
        if plan["we"]["pause"] or plan["we"]["ramp"]:
            resume(run.model, strength=strength(plan["we"], epoch))
        torch.manual_seed(derive(seed, f"dropout of epoch {epoch}"))
        sums.reset()
        if within:
            for tensor, value in zip(sums.tensors, within["sums"], strict=True):
                tensor.copy_(value)
            sums.leave_to_first()
            set_random_state(within["random"])
        splits["train"].epoch, splits["train"].first = epoch, within["steps"] if within else 0
        run.model.train()
        for i, (images, targets) in enumerate(splits["train"], splits["train"].first):
            set_rate(run.optimizer, learning_rate(train, epoch * steps + i, steps))
            if world > 1:  # draws of its own, that follow from the step alone
                torch.manual_seed(derive(seed, f"dropout of step {i} of epoch {epoch}, {rank}"))
            step(images, targets)
            if saved and _due(began, i, on):
                sums.gather()
                run.seconds += time.perf_counter() - began
                began, done = time.perf_counter(), [tensor.cpu() for tensor in sums.tensors]
                run.within = {"steps": i + 1, "sums": done, "random": random_state()}
                if rank == 0:
                    run.save(saved)
                sums.leave_to_first()
        run.within = None
        sums.gather()
        if (bad := sums.bad.item()) < steps:
            raise FloatingPointError(
                f"{plan['run']}: the loss is not finite at step {bad + 1} of epoch "
                f"{epoch + 1} (seed {seed}): lower train.lr; the epochs before it are kept"
            )
        row = {
            "seed": seed,
            "epoch": epoch + 1,
            "lr": learning_rate(train, epoch * steps + steps - 1, steps),
            "train_loss": sums.loss.item() / data.count("train"),
        }
        measured = sums.task.measure(sums.counts.cpu())
        row |= {f"train_{name}": value for name, value in measured.items()}
        for buffer in run.model.buffers() if world > 1 else ():
            distributed.broadcast(buffer, 0)
        for split in ("validation", "test"):
            values = evaluation(splits[split]) if split in splits else {}
            row |= {f"{split}_{name}": values.get(name) for name in ("loss", *measured)}
        run.history.append(row)
        run.seconds += time.perf_counter() - began
        if saved and rank == 0:
            run.save(saved)
        yield row


def _due(began: float, step: int, on: torch.device) -> bool:
    """Whether the state within an epoch is to be kept; of several processes the first decides."""
    due = time.perf_counter() - began > SAVE_AFTER
    if rank_and_world()[1] == 1:
        return due
    if (step + 1) % ASK_EVERY:
        return False
    answer = torch.tensor(int(due), device=on)
    distributed.broadcast(answer, 0)
    return bool(answer.item())
