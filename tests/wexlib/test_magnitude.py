"""Magnitude functions against hand-worked numbers and the properties claimed of them.

Against their formulas: test_excitation.py.
"""

import math

import pytest
import torch
from methods import ELEVEN

from wexlib import Magnitude
from wexlib.magnitude import FUNCTIONS, learnable, thesis


def test_the_names():
    assert next(iter(FUNCTIONS)) == "artanh" and {"thesis", "learnable", *ELEVEN} <= set(FUNCTIONS)


@pytest.mark.parametrize(("eps", "gain"), [(0.1, 1.6745), (0.2, 1.4387)])
def test_what_artanh_does_to_the_largest_weight(eps, gain):
    weight = torch.tensor([[0.1, 0.5], [-1.0, 0.0]], dtype=torch.float64)
    out = Magnitude(eps=eps).build(weight)(weight)
    assert out[1, 0].item() == pytest.approx(-gain, abs=5e-5)
    assert (out.abs() >= weight.abs()).all()


def test_m_is_in_the_graph():
    """Weights .1, .5, 1: the authors' attached gradient, where a detached M gives 5.762 at 1."""
    weight = torch.tensor([[0.1, 0.5, 1.0]], requires_grad=True)
    Magnitude().build(weight)(weight).sum().backward()
    assert weight.grad[0].tolist() == pytest.approx([1.008, 1.260, 1.583], abs=5e-4)


def test_m_is_one_number_for_the_whole_tensor():
    weight = torch.randn(4, 3, 3, 3)
    weight[0, 0, 0, 0] = 100.0
    out = Magnitude().build(weight)(weight)
    torch.testing.assert_close(out[1:], weight[1:], rtol=2e-3, atol=0)


def test_the_thesis_function_by_its_numbers():
    """Slope at zero ½ / log10 2; relative to it 1.2245 at 1/1.1 and 0.826 at −1/1.1."""
    u = torch.tensor([1e-9, 1 / 1.1, -1 / 1.1], dtype=torch.float64)
    slopes = thesis(u) / u
    assert slopes[0].item() == pytest.approx(0.5 / math.log10(2))
    assert (slopes[1:] / slopes[0]).tolist() == pytest.approx([1.2245, 0.826], abs=5e-4)


@pytest.mark.parametrize("function", ["artanh", "thesis_odd", "learnable", "tanh", "softsign"])
def test_odd_functions(function):
    weight = torch.randn(4, 3, 3, 3)
    module = Magnitude(function).build(weight)
    assert torch.equal(module(-weight), -module(weight))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("fill", [0.0, 1e-35, 1e-30, 1.0, 1e30])
def test_constant_weights(function, fill):
    """Finite; an all-zero weight stays zero, up to M's floor, and has a gradient to leave it by."""
    weight = torch.full((3, 2), fill, requires_grad=True)
    out = Magnitude(function).build(weight)(weight)
    out.sum().backward()
    assert out.isfinite().all() and weight.grad.isfinite().all()
    if fill == 0:
        assert out.abs().max() <= 2**-99
        if function in ("artanh", "learnable", "tanh"):
            assert torch.equal(weight.grad, torch.ones(3, 2))


def test_learnable_starts_as_the_identity_with_a_gradient():
    weight = torch.randn(4, 3, 3, 3)
    module = Magnitude("learnable").build(weight)
    assert torch.equal(module(weight), weight)
    module(weight).pow(3).sum().backward()
    assert (module.shape.grad.abs() > 0).all()


@pytest.mark.parametrize("a", [-20.0, -1.0, 0.0, 3.0])
@pytest.mark.parametrize("b", [-20.0, 0.0, 2.0])
def test_learnable_never_changes_which_weight_is_larger(a, b):
    u = torch.linspace(-1 / 1.1, 1 / 1.1, 2001, dtype=torch.float64)
    out = u * learnable(u, torch.tensor([a, b, -0.5], dtype=torch.float64))
    assert (out.diff() > 0).all()
