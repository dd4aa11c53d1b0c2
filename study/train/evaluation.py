"""What a run is measured by: the sums over its steps, and its evaluation on a split."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, distributed, nn

from study.train.tasks import TASKS, Task, cross_entropy, scores_of
from wexlib.control import precompute
from wexlib.ops.capture import Captured

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def rank_and_world() -> tuple[int, int]:
    """The number of this process in its group, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def autocast(train: dict, on: torch.device):
    dtype = PRECISIONS[train["precision"]]
    return torch.autocast(on.type, dtype, enabled=dtype != torch.float32)


class Sums:
    """What steps add up, on the device, so that none waits for the one before.

    ``loss`` is in nats, ``counts`` are the task's, ``bad`` is the first step (from 0) whose loss
    was not finite.
    """

    def __init__(self, task: Task, classes: int, on: torch.device):
        self.task, whole = task, {"device": on, "dtype": torch.int64}
        self.loss = torch.zeros((), device=on, dtype=torch.float64)
        self.counts = torch.zeros(task.size(classes), **whole)
        self.steps, self.bad = torch.zeros((), **whole), torch.zeros((), **whole)
        self.reset()

    @property
    def tensors(self) -> list[Tensor]:
        return [self.loss, self.counts, self.steps, self.bad]

    def reset(self) -> None:
        for tensor in self.tensors:
            tensor.zero_()
        self.bad.fill_(torch.iinfo(torch.int64).max)

    def add(self, loss: Tensor, scores: Tensor, targets: Tensor) -> None:
        earliest = torch.minimum(self.bad, self.steps)
        self.bad.copy_(torch.where(loss.isfinite(), self.bad, earliest))
        self.steps += 1
        self.loss += loss
        self.counts += self.task.count(scores, targets)

    def gather(self) -> None:
        """Add what the other processes have."""
        if rank_and_world()[1] > 1:
            distributed.all_reduce(self.loss)
            distributed.all_reduce(self.counts)
            distributed.all_reduce(self.bad, distributed.ReduceOp.MIN)

    def leave_to_first(self) -> None:
        """What was gathered is the first process's: the others add to nothing."""
        if rank_and_world()[0]:
            self.loss.zero_()
            self.counts.zero_()


class Evaluation:
    """The mean cross-entropy and the task's measures of a model, in percent, on a split."""

    def __init__(self, model: nn.Module, plan: dict, classes: int):
        self.model, self.train = model, plan["train"]
        self.on = next(model.parameters()).device
        self.sums = Sums(TASKS[plan["data"]["task"]], classes, self.on)
        self.step = Captured(self._step)

    def _weights(self, once: bool):
        """Excited weights are computed once; by a step that is captured, in it."""
        return precompute(self.model) if once == (self.on.type == "cpu") else nullcontext()

    def _step(self, images: Tensor, targets: Tensor) -> None:
        with self._weights(once=False), autocast(self.train, self.on):
            scores = scores_of(self.model(images))
        self.sums.add(cross_entropy(scores, targets, "sum"), scores, targets)

    @torch.inference_mode()
    def __call__(self, batches: Iterator) -> dict[str, float]:
        self.model.eval()
        self.sums.reset()
        with self._weights(once=True):
            for images, targets in batches:
                self.step(images, targets)
        self.sums.gather()
        counts = self.sums.counts.cpu()
        mean = self.sums.loss.item() / counts.sum().item()
        return {"loss": mean} | self.sums.task.measure(counts)
