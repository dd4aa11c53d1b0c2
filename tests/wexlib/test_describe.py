"""The tensors on the way from W to W'."""

import pytest
import torch
from networks import OURS, SE_WS, resnet
from torch import nn

from wexlib import (
    SE,
    Location,
    Magnitude,
    Standardize,
    describe,
    excite,
    inspect,
    pause,
    precompute,
)


def test_every_tensor_on_the_way():
    layer = excite(nn.Conv2d(16, 8, 3), OURS)
    with torch.no_grad():
        found = inspect(layer)
        assert list(found) == ["stored", "standardized", "gates", "multiplier", "excited"]
        assert torch.equal(found["stored"], layer.parametrizations.weight.original)
        plain = Standardize().build(layer.weight)(found["stored"])
        assert torch.equal(found["standardized"], plain)
        a, b = found["gates"]
        assert a.shape == (8, 16, 1, 1) and b.shape == (8, 1, 3, 3)
        torch.testing.assert_close(found["multiplier"], 1 + 2 * a + (1 + a) * b)
        magnitude = layer.parametrizations.weight[0].magnitude
        located = magnitude(found["standardized"] * found["multiplier"])
        torch.testing.assert_close(found["excited"], located)
        assert torch.equal(found["excited"], layer.weight)
    assert not found["excited"].requires_grad and not found["stored"].requires_grad


@pytest.mark.parametrize(
    ("excitation", "names"),
    [
        (Magnitude(), ["stored", "excited"]),
        (Standardize(), ["stored", "standardized", "excited"]),
        (Location(SE(), control="free"), ["stored", "gates", "multiplier", "excited"]),
        (Location(SE(), stacked=[Location(SE())]), ["stored", "gates", "multiplier", "excited"]),
        (
            [Location(SE()), Location(SE())],
            ["stored", "gates", "multiplier", "gates2", "multiplier2", "excited"],
        ),
    ],
    ids=str,
)
def test_those_that_there_are(excitation, names):
    layer = excite(nn.Linear(20, 6), excitation)
    found = inspect(layer)
    assert list(found) == names and found["excited"].shape == (6, 20)


def test_a_paused_layer_shows_its_multiplier():
    layer = pause(excite(nn.Conv2d(16, 8, 3), Location(SE())))
    found = inspect(layer)
    assert torch.equal(found["excited"], found["stored"]) and (found["multiplier"] < 1).all()


def test_one_layer_at_a_time():
    with pytest.raises(ValueError, match=r"has 20 excited weights: .* that of conv1.weight"):
        inspect(excite(resnet(), SE_WS))
    with pytest.raises(ValueError, match="has no excited weight"):
        inspect(nn.Conv2d(4, 4, 3))


def test_what_was_computed_before_is_seen_all_the_same():
    model = excite(nn.Sequential(nn.Conv2d(16, 8, 3)), Location(SE()))
    with precompute(model):
        assert "gates" in inspect(model[0]) and describe(model)[0]["gate"] > 0


def test_the_gate_of_a_stacked_excitation_is_the_outer_one():
    stacked = Location(SE(), stacked=[Location(SE(), skips=True)])
    model = excite(nn.Sequential(nn.Conv2d(16, 8, 3)), stacked)
    assert describe(model)[0]["gate"] == pytest.approx(
        inspect(model[0])["multiplier"].mean().item()
    )
