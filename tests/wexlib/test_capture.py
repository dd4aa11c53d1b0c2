"""CUDA graphs, with a tape in their place: the same operations in the same order and memory."""

import pytest
import torch
from networks import OURS, SE_WS, resnet
from tape import Beside, Tape
from torch import nn
from torch.nn import functional as F

from wexlib import excite, precompute
from wexlib.ops import capture, deferred, fused
from wexlib.ops.capture import FIRST_CALLS, Captured


@pytest.fixture(autouse=True)
def tape(monkeypatch):
    """A CPU that has graphs, and computes as a GPU does: by formulas, with no look at a number."""
    torch.manual_seed(0)
    monkeypatch.setitem(capture.GRAPHS, "cpu", Tape)
    monkeypatch.setattr(fused, "fits", lambda *_: False)
    monkeypatch.setattr(deferred, "recorded", lambda: True)
    Tape.made.clear()
    Beside.said.clear()


def recorded_tapes():
    return [tape for tape in Tape.made if tape.operations]


# --- A whole step --------------------------------------------------------------------------------


class Training:
    """A training loop as the pipeline's, its step a function."""

    def __init__(self, excitation=OURS, optimizer="sgd", dropout=0.3):
        torch.manual_seed(1)
        self.model = nn.Sequential(resnet().train(), nn.Dropout(dropout), nn.Linear(10, 10))
        if excitation:
            excite(self.model, excitation)
        options = {"lr": torch.tensor(0.1), "weight_decay": 1e-3, "fused": True}
        if optimizer == "sgd":
            self.optimizer = torch.optim.SGD(self.model.parameters(), momentum=0.9, **options)
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), **options)
        self.loss_sum = torch.zeros((), dtype=torch.float64)
        self.correct = torch.zeros((), dtype=torch.int64)

    def step(self, x, labels):
        with precompute(self.model):
            scores = self.model(x)
        loss = F.cross_entropy(scores.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        loss = loss.detach()
        self.loss_sum += loss * len(labels)
        self.correct += (scores.detach().argmax(1) == labels).sum()
        return loss

    def run(self, step, steps=9, rate=0.01):
        torch.manual_seed(2)
        losses = []
        for i in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"].fill_(rate * (i + 1))
            n = 3 if i % 4 == 3 else 4  # a smaller batch now and then
            x = torch.randn(n, 3, 16, 16)
            losses.append(step(x, torch.arange(n) % 10).clone())
        return losses

    def state(self):
        state = self.model.state_dict() | {"loss": self.loss_sum, "correct": self.correct}
        return {key: value.clone() for key, value in state.items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("excitation", [None, SE_WS, OURS], ids=["plain", "SE", "all"])
def test_a_captured_step_trains_to_the_same_bits(excitation, optimizer):
    eager, captured = Training(excitation, optimizer), Training(excitation, optimizer)
    expected = eager.run(eager.step)
    found = captured.run(Captured(captured.step))
    assert all(map(torch.equal, found, expected))
    ours, theirs = captured.state(), eager.state()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    (tape,) = recorded_tapes()
    assert tape.replays == 9 - 2 - FIRST_CALLS  # two smaller batches
