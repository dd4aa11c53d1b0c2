"""The kernels of a GPU against the naive loops, by Triton's interpreter, which computes on a CPU.

It has to be on before Triton is imported, so the tests run in a process of their own.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from methods import METHODS, deviation
from tape import Tape
from torch import nn

from wexlib import CBAM, SE, Location, Magnitude, Standardize, control, excite, ops, pause
from wexlib.layer import tensors_of
from wexlib.lending import lend
from wexlib.models import resnet18
from wexlib.ops import capture, fused
from wexlib.parametrization import chain

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
by_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")
#: Shapes that take one tile, several, and part of one.
LOOPS = [
    ("standardize", (3, 5, 3, 3)),
    ("standardize + location, SE", (2, 18, 2, 4)),
    ("location, CBAM", (2, 3, 2, 3, 2)),
    ("standardize + the novel module", (1, 33, 9, 9)),
    ("magnitude, artanh", (3, 5, 1, 3)),
    ("magnitude, artanh", (2, 260)),
    ("global, each channel", (2, 5, 3)),
    ("control, mean gate", (2, 4, 3, 3)),
]
GROUPS = [
    ("standardize", (3, 5, 3, 3)),
    ("location, SE with a skip", (2, 20)),
    ("location, SE", (5, 3, 1, 3)),
    ("standardize + location, SE", (1, 130, 1, 1)),
    ("location, CBAM", (2, 3, 2, 3, 2)),
    ("standardize + the novel module", (2, 18, 2, 4)),
    ("standardize + the novel module", (3, 2, 3)),
    ("magnitude, artanh, ε 0.2", (3, 5, 1, 3)),
    ("standardize + SE + magnitude", (2, 17, 3)),
]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
WS, OURS = Standardize(), Location(CBAM("leaky_relu"), skips=True)


def kind(excitation):
    return str(chain(excitation))


def test_the_kernels_by_the_interpreter():
    if INTERPRETED or not fused.has_triton():
        pytest.skip("there is no Triton, or this is that process")
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def kernels(monkeypatch):
    """A CPU's loops are those of a GPU; the kernels that were launched, by name."""
    from wexlib.ops import gpu

    monkeypatch.setitem(fused.CALLS, "cpu", fused.CALLS["cuda"])
    monkeypatch.setattr(fused, "library", lambda: True)
    launched, launch = [], gpu.launch

    def counted(kernel, *arguments, **constants):
        launched.append(kernel.fn.__name__)
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(gpu, "launch", counted)
    return launched


@pytest.fixture
def groups(kernels, monkeypatch):
    """And its whole excitations too, their nets' gradients in several blocks."""
    from wexlib.ops import gpu

    monkeypatch.setattr(gpu, "BLOCK", 4)
    monkeypatch.setitem(ops.GROUPS, "cpu", ops.GROUPS["cuda"])
    return kernels


@pytest.fixture
def by_formulas(monkeypatch):
    """Calls a function without any kernel."""

    def call(function, *arguments):
        with monkeypatch.context() as without:
            without.setattr(fused, "fits", lambda *tensors: False)
            return function(*arguments)

    return call


@pytest.fixture
def counts(groups, monkeypatch):
    """Launches are counted and not made."""
    from wexlib.ops import gpu

    monkeypatch.setattr(gpu, "launch", lambda kernel, *a, **c: groups.append(kernel.fn.__name__))
    return groups


def check(name, shape, launched):
    """Deviations from the loops in float64, in every memory format."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dtype, within in ((torch.float64, 1e-13), (torch.float32, 3e-5)):
        weight = (drawn * 0.3 + 0.1).to(dtype)
        formats = [weight]
        if weight.dim() in FORMATS:
            formats.append(weight.to(memory_format=FORMATS[weight.dim()]))
        if dtype == torch.float32:
            formats = formats[-1:]  # the interpreter is slow
        found = [deviation(METHODS[name], weight) for weight in formats]
        forward, backward = map(max, zip(*found, strict=True))
        print(f"{name}, {shape}, {dtype}: {forward:.1e} {backward:.1e}, {sorted(set(launched))}")
        assert forward <= within and backward <= within
        assert launched


@by_interpreter
@pytest.mark.parametrize(("name", "shape"), LOOPS, ids=str)
def test_the_loops_give_what_the_naive_loops_give(name, shape, kernels):
    check(name, shape, kernels)


@by_interpreter
@pytest.mark.parametrize(("name", "shape"), GROUPS, ids=str)
def test_the_whole_excitations_give_what_the_naive_loops_give(name, shape, groups):
    check(name, shape, groups)
    assert not set(groups) & {"dense", "standardized", "artanh"}


def built(excitation, weights):
    return [
        chain(excitation).build(w, generator=torch.Generator().manual_seed(i))
        for i, w in enumerate(weights)
    ]


def drawn(*shapes):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@by_interpreter
@pytest.mark.parametrize("excitation", [[WS, OURS], [WS, Magnitude()]], ids=kind)
def test_weights_have_the_same_bits_in_any_company(excitation, groups):
    weights = drawn((2, 3, 3, 3), (3, 20, 3, 3), (2, 5, 2, 2), (2, 7, 3, 3))
    modules = built(excitation, weights)
    groups.clear()
    together = ops.together(modules, weights)
    parameters = [p for module in modules for p in module.parameters()]
    upstream = [x.detach().sin() for x in weights]
    found = torch.autograd.grad(together, weights + parameters, upstream)
    assert Counter(groups)["excite" if len(parameters) else "excite_artanh"] == 2
    for i, (module, weight) in enumerate(zip(modules, weights, strict=True)):
        alone = module(weight)
        assert torch.equal(alone, together[i])
        own = torch.autograd.grad(alone, [weight, *module.parameters()], upstream[i])
        where = [i] + [
            4 + j for j, p in enumerate(parameters) if any(p is q for q in module.parameters())
        ]
        assert all(torch.equal(x, found[j]) for x, j in zip(own, where, strict=True))


@by_interpreter
def test_a_weight_that_nothing_asks_for_has_no_gradient(groups):
    weights = drawn((2, 3, 3, 3), (2, 3, 3, 3))
    modules = built([WS, Location(SE())], weights)
    first, _ = ops.together(modules, weights)
    first.sum().backward()
    assert weights[0].grad.any() and modules[0].location.fc1.weight.grad is not None
    assert weights[1].grad is modules[1].location.fc1.weight.grad is None


@by_interpreter
@pytest.mark.parametrize("excitation", [[WS, OURS], [Magnitude()]], ids=kind)
def test_a_gradient_can_be_differentiated_again(excitation, groups, by_formulas):
    (weight,) = drawn((2, 3, 2, 2))
    (module,) = built(excitation, [weight])
    inputs = [weight, *module.parameters()]

    def second():
        (slope,) = torch.autograd.grad(module(weight).sin().sum(), weight, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), inputs)

    for one, other in zip(second(), by_formulas(second), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@by_interpreter
@pytest.mark.parametrize("excitation", [OURS, Location(SE()), Magnitude()], ids=kind)
def test_a_paused_weight_is_the_stored_one(excitation, groups):
    layer = pause(excite(nn.Conv2d(18, 3, 3), excitation))
    assert torch.equal(layer.weight, layer.parametrizations.weight.original)
    assert layer.weight.data_ptr() != layer.parametrizations.weight.original.data_ptr()
    assert groups


@by_interpreter
@pytest.mark.parametrize("excitation", [[WS], [WS, OURS], [WS, Magnitude()]], ids=kind)
def test_a_constant_filter_and_one_that_is_no_number(excitation, groups, by_formulas):
    weight = drawn((4, 18, 3, 3))[0].detach()
    weight[1], weight[2, 3, 1, 1] = 0.25, float("nan")
    (module,), x = built(excitation, [weight]), weight.requires_grad_()

    def found():
        out = module(x)
        return out, *torch.autograd.grad(out.nansum(), x)

    for one, other in zip(found(), by_formulas(found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3, equal_nan=True)


@by_interpreter
def test_a_captured_step_computes_the_weights_of_a_shape_in_one_launch(groups, monkeypatch):
    monkeypatch.setitem(capture.GRAPHS, "cpu", Tape)
    monkeypatch.setitem(control.LENDERS, "cpu", lend)
    monkeypatch.setattr(capture.WHOLE, "within", True)
    layers = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 2, 1)
    model = excite(nn.Sequential(*layers), [WS, Location(SE())])

    def found():
        groups.clear()
        with control.precompute(model):
            return [layer.weight for layer in model]

    alone = [layer.weight for layer in model]
    assert all(map(torch.equal, found(), alone)) and groups == ["excite"] * 2
    called = []
    model[0].parametrizations.weight[0].location.register_forward_hook(lambda *_: called.append(1))
    for one, other in zip(found(), alone, strict=True):
        torch.testing.assert_close(one, other)
    assert called == [1] and len(groups) > 2


#: Launches of a step of ResNet-18, forward and backward: with one layer after another by the
#: loops, by whole excitations, and with all layers together.
LAUNCHES = {
    "standardize": ([WS], 80, 40, 4),
    "SE": ([WS, Location(SE())], 80, 60, 9),
    "CBAM with skips": ([WS, OURS], 120, 80, 12),
    "magnitude": ([WS, Magnitude()], 140, 80, 8),
    "SE and magnitude": ([WS, Location(SE()), Magnitude()], 180, 140, 17),
}


@by_interpreter
@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_of_a_resnet18(name, counts, monkeypatch):
    excitation, *expected = LAUNCHES[name]
    tensors = list(tensors_of(excite(resnet18(classes=10), excitation)))
    modules, weights = [t[0] for t in tensors], [t.original for t in tensors]

    def step(compute):
        counts.clear()
        sum(x.sum() for x in compute()).backward()
        return len(counts)

    together = step(lambda: ops.together(modules, weights))
    whole = step(lambda: [module(w) for module, w in zip(modules, weights, strict=True)])
    monkeypatch.delitem(ops.GROUPS, "cpu")
    loops = step(lambda: [module(w) for module, w in zip(modules, weights, strict=True)])
    print(f"{name}: {loops} launches by the loops, {whole} one by one, {together} together")
    assert [loops, whole, together] == expected
