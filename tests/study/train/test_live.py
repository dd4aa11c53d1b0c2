"""What chapters train: the digits, a plan, pruning and training on, a minimum in closed form."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from study.train import live
from study.train.loop import start


@pytest.fixture(scope="module")
def data():
    return live.digits(train=100, test=100)


def test_digits_are_the_embedded_set(data):
    assert data.meta["dataset"] == "digits10"
    assert data.images("train").shape == (100, 3, 8, 8)
    assert len(data.labels("validation")) == 0 and len(data.labels("test")) == 100


def test_a_plan_has_the_excitation_asked_for_and_is_checked():
    plan = live.plan("resnet18", we={"attention": "se", "standardize": True}, epochs=2)
    assert plan["train"]["epochs"] == 2 and plan["model"] == "resnet18"
    assert plan["train"]["batch"] == 32, "small batches: a few epochs are steps enough"
    assert plan["we"]["attention"] == "se" and plan["we"]["standardize"]
    with pytest.raises(ValueError, match="we.attention"):
        live.plan("resnet18", we={"attention": "sea"})


def test_training_goes_on_from_a_model(data):
    plan = live.plan("resnet18", epochs=1)
    run = live.train(plan, data)
    assert len(run.history) == 1
    again = live.train(plan, data, start(plan, data, live.SEED).model)
    for a, b in zip(run.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_pruned_copies_are_trained_on_and_the_model_is_left_alone(data):
    plan = live.plan("resnet18", epochs=1)
    model = live.train(plan, data).model.eval()
    before = copy.deepcopy(model.state_dict())
    whole, half = live.prune_and_retrain(model, data, plan, [0, 0.5])
    assert whole["before"] == live.accuracy(model, data, plan)
    assert (whole["pruned"], half["pruned"]) == (0, 0.5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_minimum_is_that_of_least_squares():
    torch.manual_seed(0)
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    net = nn.Linear(3, 1, bias=False).double()
    value = live.minimize(net, lambda network: F.mse_loss(network(x), y))
    best = torch.linalg.lstsq(x, y).solution
    assert net.weight.detach().T == pytest.approx(best, abs=1e-6)
    assert value == pytest.approx(F.mse_loss(x @ best, y).item())
