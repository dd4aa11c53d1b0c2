"""The compiled passes: against torch's operations, and what becomes of them without a compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_deferred import CHAINS, SHAPES, WIDE, weights

from wexlib import CBAM, SE, Location, Magnitude, Standardize
from wexlib.ops import fused
from wexlib.ops.deferred import DeferredWeight
from wexlib.parametrization import chain

compiled = pytest.mark.skipif(fused.library() is None, reason="there is no C++ compiler")
NARROW = [(7, 33), (2, 40, 1, 1), (3, 1, 3, 3), (8, 2, 3, 3), (3, 2, 2, 3, 2)]
MORE = [[Location(SE(), skips=True)], [Location(SE()), Magnitude()], [Location(CBAM(), skips=True)]]


@pytest.fixture
def loops(monkeypatch):
    """The names of the loops that ran."""
    ran, run = [], fused.run

    def counted(name, *tensors):
        ran.append(name)
        run(name, *tensors)

    monkeypatch.setattr(fused, "run", counted)
    return ran


@pytest.fixture
def by_operations(monkeypatch):
    """Calls a function where there is no library."""

    def call(function, *arguments):
        with monkeypatch.context() as without:
            without.setattr(fused, "library", lambda: None)
            return function(*arguments)

    return call


def found(module, weight, upstream):
    out = module(weight)
    return out, *torch.autograd.grad(out, [weight, *module.parameters()], upstream)


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES + WIDE + NARROW, ids=str)
@pytest.mark.parametrize("excitation", CHAINS + MORE, ids=lambda excitation: str(chain(excitation)))
def test_a_loop_gives_what_the_operations_give(excitation, shape, dtype, loops, by_operations):
    for weight in weights(shape):
        weight = (weight + 0.1).to(dtype).requires_grad_()
        module = chain(excitation).build(weight, generator=torch.Generator().manual_seed(1))
        upstream = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        loops.clear()
        fast = found(module, weight, upstream)
        assert any(name.endswith("_backward") for name in loops)
        count = len(loops)
        slow = by_operations(found, module, weight, upstream)
        assert len(loops) == count
        for one, other in zip(fast, slow, strict=True):
            within = 1e-12 if dtype == torch.float64 else 1e-4
            torch.testing.assert_close(
                one, other, rtol=within, atol=within * other.abs().max().item()
            )
        assert fused.laid(fast[0], weight) is fast[0]


@compiled
@pytest.mark.parametrize("excitation", CHAINS, ids=lambda excitation: str(chain(excitation)))
def test_a_constant_filter_gets_the_gradient_that_the_operations_give(excitation, by_operations):
    for weight in weights((4, 32, 3, 3)):
        weight = torch.full_like(weight, 0.25).requires_grad_()
        module = chain(excitation).build(weight, generator=torch.Generator().manual_seed(1))
        upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
        fast = found(module, weight, upstream)
        slow = by_operations(found, module, weight, upstream)
        for one, other in zip(fast, slow, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@compiled
def test_the_same_to_the_last_bit_for_any_number_of_threads():
    """The loops, that is; what torch computes between them is torch's to promise."""
    threads = torch.get_num_threads()
    gate = torch.rand(65, 48, 1, 1, generator=torch.Generator().manual_seed(2))
    maps = torch.rand(65, 1, 3, 3, generator=torch.Generator().manual_seed(3))
    half = torch.tensor(0.5)
    try:
        for weight in weights((65, 48, 3, 3)):
            weight.requires_grad_()
            each = []
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                x = DeferredWeight(weight).standardized()
                out = [x.mean_max_space(), x.pool_channels(gate), x.times(gate)]
                out += [x.two_gates(gate, maps, half, skips=True), x.artanh(0.1, half)]
                each.append([*out, *torch.autograd.grad([o.sum() for o in out], weight)])
            for other in each[1:]:
                assert all(map(torch.equal, each[0], other))
    finally:
        torch.set_num_threads(threads)


@compiled
def test_artanh_is_within_three_units_of_the_last_place():
    """Against float64, from the smallest numbers to beside the pole, M being 1."""
    u = torch.cat([torch.linspace(-0.9999, 0.9999, 100_001), torch.logspace(-38, -1, 10_001)])
    u = torch.cat([u, torch.tensor([0.0, 1 / 3, -1 / 3, 1e-45, 0.99999994])])[None]
    one, out = torch.ones(1), torch.empty_like(u)
    fused.run("artanh", u, (u, None, None, one, one), (out,))
    wanted = u.double().atanh()
    unit = torch.finfo(torch.float32).eps * wanted.abs() + 1e-45
    assert ((out.double() - wanted).abs() / unit).max() < 3


@compiled
@pytest.mark.parametrize("excitation", CHAINS, ids=lambda excitation: str(chain(excitation)))
@pytest.mark.parametrize(
    "change",
    [lambda w: w.transpose(0, 1).contiguous().transpose(0, 1), lambda w: w[:, ::2]],
    ids=["exchanged", "every other"],
)
def test_weights_that_no_loop_fits(change, excitation):
    weight = change(torch.randn(8, 32, 3, 3, generator=torch.Generator().manual_seed(1)))
    assert not fused.fits(weight)
    module = chain(excitation).build(weight)
    upstream = torch.randn(weight.shape)
    odd = found(module, weight.requires_grad_(), upstream)
    plain = found(module, weight.detach().contiguous().requires_grad_(), upstream)
    for one, other in zip(odd, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@compiled
@pytest.mark.parametrize("excitation", CHAINS, ids=lambda excitation: str(chain(excitation)))
def test_a_number_that_is_none_spreads_as_by_the_operations(excitation, by_operations):
    for weight in weights((8, 32, 3, 3)):
        weight[3, 5, 1, 2] = float("nan")
        weight.requires_grad_()
        module = chain(excitation).build(weight, generator=torch.Generator().manual_seed(1))

        def seen(module=module, weight=weight):
            x, out = DeferredWeight(weight), module(weight)
            pooled = x.mean_max_space(), x.pool_channels(weight.new_ones(8, 32))
            return *pooled, out, *torch.autograd.grad(out.sum(), weight)

        for one, other in zip(seen(), by_operations(seen), strict=True):
            assert torch.equal(one.isnan(), other.isnan()) and one.isnan().any()


@compiled
@pytest.mark.parametrize("shape", [(6, 8, 3, 3), (6, 2, 3, 3)])
def test_gates_in_any_order_and_gates_that_filters_share(shape):
    filters, channels = shape[:2]
    generator = torch.Generator().manual_seed(4)

    def drawn(*size):
        return torch.rand(size, generator=generator, dtype=torch.float64).requires_grad_()

    gates = [drawn(channels, filters).t()[..., None, None], drawn(1, channels, 1, 1)]
    maps = [drawn(3, filters, 3).permute(1, 0, 2)[:, None], drawn(1, 1, 3, 3)]
    for weight in weights(shape):
        weight = weight.double().requires_grad_()
        for a in gates:
            for b in maps:
                x, s = DeferredWeight(weight), torch.tensor(0.7, dtype=torch.float64)
                found = [x.pool_channels(a), x.times(a)]
                found += [x.two_gates(a, b, s, skips=skips) for skips in (False, True)]
                y = weight * a
                pooled = torch.cat([y.amax(1, keepdim=True), y.mean(1, keepdim=True)], 1)
                wanted = [pooled, y]
                wanted += [weight * (0.3 + 0.7 * m) for m in (a * b, 1 + 2 * a + (1 + a) * b)]
                for one, other in zip(found, wanted, strict=True):
                    torch.testing.assert_close(one, other)
                inputs = weight, a, b
                got = torch.autograd.grad([o.sin().sum() for o in found], inputs)
                expected = torch.autograd.grad([o.sin().sum() for o in wanted], inputs)
                for one, other in zip(got, expected, strict=True):
                    torch.testing.assert_close(one, other)


@compiled
def test_an_argument_that_does_not_fit_is_refused():
    weight, centre = torch.randn(4, 3, 2, 2), torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"argument 3 of dense .*\(1, 3\).* expected 12 numbers"):
        reads = weight, centre, centre, torch.ones(1, 3)
        fused.run("dense", weight, reads, (torch.empty_like(weight),))
    with pytest.raises(ValueError, match="in order if they are written"):
        reads = weight, centre, centre, torch.ones(4, 3)
        fused.run("dense", weight, reads, (torch.empty(3, 4, 2, 2).transpose(0, 1),))


def say(**variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "wexlib.ops"]
    environment = os.environ | variables
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@compiled
def test_it_is_compiled_once(tmp_path):
    first = say(XDG_CACHE_HOME=str(tmp_path))
    (library,) = (tmp_path / "wexlib").iterdir()
    assert first.returncode == 0 and first.stdout.strip() == str(library)
    assert first.stderr == ""
    made = library.stat().st_mtime_ns
    assert say(XDG_CACHE_HOME=str(tmp_path)).stdout == first.stdout
    assert library.stat().st_mtime_ns == made
    library.write_text("what a full disk has left")
    assert say(XDG_CACHE_HOME=str(tmp_path)).returncode == 0
    assert library.stat().st_size > 10_000 and len(list(library.parent.iterdir())) == 1


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_it_says_so_and_excites_all_the_same(compiler, tmp_path):
    said = say(CXX=compiler, XDG_CACHE_HOME=str(tmp_path))
    assert said.returncode == 1 and compiler in said.stderr and "Traceback" not in said.stderr
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    program = (
        "import torch; from wexlib import SE, Location; from wexlib.ops import fused\n"
        "weight = torch.randn(4, 32, 3, 3)\n"
        "assert Location(SE()).build(weight)(weight).isfinite().all() and fused.library() is None"
    )
    environment = os.environ | {"CXX": compiler, "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_the_source_is_in_the_package():
    assert fused.SOURCE.is_file() and fused.SOURCE.parent == Path(fused.__file__).parent


def test_standardized_alone_is_one_loop_a_way(loops):
    weight = torch.randn(8, 32, 3, 3, requires_grad=True)
    Standardize().build(weight)(weight).sum().backward()
    if fused.library():
        assert loops == ["standardized", "dense", "dense_backward", "standardized_backward"]
