"""What the loop has to know of a task: its loss, and what is counted to measure it.

Scores are (B, classes, *places), and targets the numbers of the classes, (B, *places): of an image
or a clip it has no places, of a segmentation one for each pixel.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from study.data.loader import IGNORED


@dataclass(frozen=True)
class Task:
    """A task's measures.

    ``metric`` is the one that results stand behind, a key of what ``measure`` gives. ``count``
    gives the counts of a batch, int64, which add up; their shape for so many classes is ``size``,
    their sum the number of targets. ``measure`` gives the measures of counts, in percent.
    """

    metric: str
    size: Callable[[int], tuple[int, ...]]
    count: Callable[[Tensor, Tensor], Tensor]
    measure: Callable[[Tensor], dict[str, float]]


def scores_of(output: Tensor | Mapping[str, Tensor]) -> Tensor:
    """A model's scores; torchvision's segmentation networks call them ``out``."""
    return output if isinstance(output, Tensor) else output["out"]


def cross_entropy(scores: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """In nats, in float32, of the targets that are not :data:`IGNORED`."""
    if scores.dim() > 2:
        # As rows: of maps a GPU sums it in an order of chance.
        scores, targets = scores.movedim(1, -1).flatten(0, -2), targets.flatten()
        return F.cross_entropy(scores.float(), targets, ignore_index=IGNORED, reduction=reduction)
    return F.cross_entropy(scores.float(), targets, reduction=reduction)


def _hits(scores: Tensor, targets: Tensor) -> Tensor:
    """How many are right, and how many wrong: (2,)."""
    right = (scores.argmax(1) == targets).sum()
    return torch.stack([right, len(targets) - right])


def _accuracy(counts: Tensor) -> dict[str, float]:
    right, wrong = counts.tolist()
    return {"accuracy": 100 * right / (right + wrong)}


def _confusion(scores: Tensor, targets: Tensor) -> Tensor:
    """(classes, classes): how many pixels of each class, first axis, are taken for each."""
    classes = scores.shape[1]
    pairs = targets * classes + scores.argmax(1)
    # One bin more for what is ignored: a look at what is not would make a GPU wait.
    pairs = torch.where(targets == IGNORED, classes**2, pairs).flatten()
    bins = torch.zeros(classes**2 + 1, dtype=torch.int64, device=scores.device)
    return bins.scatter_add_(0, pairs, torch.ones_like(pairs))[:-1].view(classes, classes)


def _overlap(counts: Tensor) -> dict[str, float]:
    """The mean over classes of |truth ∩ prediction| / |truth ∪ prediction|, as PASCAL VOC has it,
    of the classes that occur in either; and the accuracy of a pixel."""
    hits = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - hits
    return {
        "iou": 100 * (hits[union > 0] / union[union > 0]).mean().item(),
        "accuracy": 100 * hits.sum().item() / counts.sum().item(),
    }


_LABELS = Task("accuracy", lambda classes: (2,), _hits, _accuracy)
TASKS = {
    "classification": _LABELS,
    "video": _LABELS,
    "segmentation": Task("iou", lambda classes: (classes, classes), _confusion, _overlap),
}
