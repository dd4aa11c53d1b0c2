"""Losses and measures of the tasks, against loops over pixels and numbers worked by hand."""

import math

import pytest
import torch

from study.train.tasks import IGNORED, TASKS, cross_entropy, scores_of


def _scores(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(*shape, generator=generator, dtype=torch.float64)
    targets = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    return scores, targets


def test_overlap_by_hand():
    """Two classes and one that never occurs, six pixels, one of them ignored."""
    truth = torch.tensor([[0, 0, 0, 1, 1, IGNORED]])
    taken = torch.tensor([[0, 0, 1, 1, 1, 0]])
    scores = torch.nn.functional.one_hot(taken, 3).movedim(-1, 1).double()
    task = TASKS["segmentation"]
    counts = task.count(scores, truth)
    assert counts.tolist() == [[2, 1, 0], [0, 2, 0], [0, 0, 0]]
    measured = task.measure(counts)
    assert measured["iou"] == pytest.approx(100 * (2 / 3 + 2 / 3) / 2)
    assert measured["accuracy"] == pytest.approx(100 * 4 / 5)


def test_overlap_against_sets_of_pixels():
    scores, truth = _scores(4, 5, 6, 7)
    truth[0, :2] = IGNORED
    task = TASKS["segmentation"]
    parts = [task.count(scores[i : i + 1], truth[i : i + 1]) for i in range(4)]
    measured = task.measure(sum(parts))
    taken = scores.argmax(1)
    overlaps = []
    for k in range(5):
        of_truth, of_taken = (
            {
                (b, i, j)
                for b in range(4)
                for i in range(6)
                for j in range(7)
                if truth[b, i, j] != IGNORED and labels[b, i, j] == k
            }
            for labels in (truth, taken)
        )
        overlaps.append(len(of_truth & of_taken) / len(of_truth | of_taken))
    assert measured["iou"] == pytest.approx(100 * sum(overlaps) / 5)
    known = truth != IGNORED
    right = (taken == truth)[known].double().mean().item()
    assert measured["accuracy"] == pytest.approx(100 * right)


@pytest.mark.parametrize("task", ["classification", "video"])
def test_accuracy_adds_up_over_batches(task):
    scores, labels = _scores(50, 4)
    counts = sum(TASKS[task].count(scores[i : i + 7], labels[i : i + 7]) for i in range(0, 50, 7))
    right = sum(
        row.argmax().item() == label.item() for row, label in zip(scores, labels, strict=True)
    )
    assert TASKS[task].measure(counts) == {"accuracy": 100 * right / 50}
    assert counts.sum() == 50


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_of_maps_is_that_of_their_pixels(reduction):
    scores, truth = _scores(3, 4, 5, 2)
    truth[1, 3:] = IGNORED
    losses = [
        math.log(sum(math.exp(s) for s in scores[b, :, i, j])) - scores[b, truth[b, i, j], i, j]
        for b in range(3)
        for i in range(5)
        for j in range(2)
        if truth[b, i, j] != IGNORED
    ]
    expected = sum(losses) / (len(losses) if reduction == "mean" else 1)
    assert cross_entropy(scores, truth, reduction).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_scores_are_what_torchvision_calls_out():
    scores = torch.randn(2, 3)
    assert scores_of(scores) is scores and scores_of({"out": scores, "aux": None}) is scores
