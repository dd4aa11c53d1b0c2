"""One excitation for many layers: shared outright, or averaged after every step."""

import copy

import pytest
import torch
from torch import nn

from wexlib import CBAM, Location, Standardize, describe, excite, pause
from wexlib.control import average
from wexlib.excitation import Global
from wexlib.where import excited


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def widths() -> nn.Module:
    """Four convolutions of four widths, each with batch norm."""
    model = nn.Sequential()
    for i, o, k in [(3, 24, 3), (24, 64, 1), (64, 80, 3), (80, 7, 3)]:
        model.extend([nn.Conv2d(i, o, k, padding=k // 2), nn.BatchNorm2d(o), nn.SiLU()])
    return model.double()


def test_shared_is_one_module():
    model = excite(widths(), [Standardize(), Global()], shared=True)
    modules = {slot.excitation for slot in excited(model)}
    assert len(modules) == 1 and len(excited(model)) == 4
    added = sum(p.numel() for p in model.parameters())
    assert added == sum(p.numel() for p in widths().parameters()) + 580
    twin = copy.deepcopy(model)
    assert len({slot.excitation for slot in excited(twin)}) == 1
    pause(model, where="^0")
    assert all(slot.excitation.get_submodule("global").strength == 0 for slot in excited(model))


def test_layers_of_one_width_can_share_location():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3))
    excite(model, Location(CBAM()), shared=True)
    assert len({slot.excitation for slot in excited(model)}) == 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_averaged_nets_are_one_net_with_the_mean_gradient(momentum):
    """The authors' averaging after every step, against true sharing at 1/4 of the rate."""
    averaged = excite(widths(), [Standardize(), Global()])
    shared = excite(widths(), [Standardize(), Global()], shared=True)
    originals = zip(excited(averaged), excited(shared), strict=True)
    with torch.no_grad():
        for ours, theirs in originals:
            lists = [s.module.parametrizations.weight for s in (ours, theirs)]
            lists[1].original.copy_(lists[0].original)
            theirs.module.bias.copy_(ours.module.bias)
        average(averaged)
        one = excited(shared)[0].excitation.get_submodule("global")
        first = excited(averaged)[0].excitation.get_submodule("global")
        one.load_state_dict(first.state_dict())

    def nets(model):
        parts = {slot.excitation.get_submodule("global") for slot in excited(model)}
        for part in parts:
            nn.init.zeros_(part.fc1.bias).requires_grad_(False)
            nn.init.zeros_(part.fc2.bias).requires_grad_(False)
        return [w for part in parts for w in (part.fc1.weight, part.fc2.weight)]

    def optimizer(model, rate):
        inside = nets(model)
        known = set(inside)
        rest = [p for p in model.parameters() if p not in known and p.requires_grad]
        groups = [{"params": rest}, {"params": inside, "lr": rate}]
        return torch.optim.SGD(groups, lr=0.05, momentum=momentum)

    models = [averaged, shared]
    optimizers = [optimizer(averaged, 0.05), optimizer(shared, 0.05 / 4)]
    generator = torch.Generator().manual_seed(2)
    start = one.fc1.weight.detach().clone()
    for _ in range(20):
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=generator)
        for model, step in zip(models, optimizers, strict=True):
            step.zero_grad()
            (model(x) - x.mean()).square().mean().backward()
            step.step()
        average(averaged)
    assert (one.fc1.weight - start).abs().max() > 1e-4
    for slot in excited(averaged):
        part = slot.excitation.get_submodule("global")
        for name in ("fc1", "fc2"):
            ours, theirs = getattr(part, name).weight, getattr(one, name).weight
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_average_leaves_biases():
    model = excite(widths(), Global())
    biases = [slot.excitation.fc1.bias.clone() for slot in excited(model)]
    weights = [slot.excitation.fc1.weight.clone() for slot in excited(model)]
    average(model)
    mean = sum(weights) / 4
    for slot, bias in zip(excited(model), biases, strict=True):
        torch.testing.assert_close(slot.excitation.fc1.weight, mean)
        assert torch.equal(slot.excitation.fc1.bias, bias)


def test_a_shared_excitation_counts_once():
    model = excite(widths(), Global(), shared=True)
    assert [row["parameters"] for row in describe(model)] == [580, 0, 0, 0]
