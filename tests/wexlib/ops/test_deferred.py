"""Passes over a weight: what they find, and that they leave alone what is not theirs."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from wexlib import CBAM, SE, Location, Magnitude, Standardize
from wexlib.attention import like
from wexlib.ops.deferred import DeferredWeight
from wexlib.ops.nets import run
from wexlib.parametrization import Parametrization, chain

CHAINS = [
    [Standardize()],
    [Standardize(), Location(SE())],
    [Standardize(), Location(CBAM("leaky_relu"), skips=True)],
    [Standardize(), Magnitude()],
    [Standardize(), Location(CBAM()), Magnitude()],
    [Location(CBAM())],
    [Magnitude()],
]
SHAPES = [(8, 32, 3, 3), (4, 3, 7, 7), (5, 20, 2), (3, 48, 2, 3, 2), (6, 17, 1, 3), (300, 16, 3, 3)]
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
#: With more channels than a vector of the processor has numbers.
WIDE = [(9, 80, 3, 3), (4, 70, 1, 1), (3, 64, 2, 3, 2), (70, 1000, 3, 3)]


def weights(shape):
    """A weight in each memory format that its rank has."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    yield weight
    if len(shape) in CHANNELS_LAST:
        yield weight.to(memory_format=CHANNELS_LAST[len(shape)])


@pytest.mark.parametrize("shape", SHAPES + WIDE)
def test_maxima_and_their_gradients_go_to_their_places(shape):
    for weight in weights(shape):
        weight.requires_grad_()
        maximum = DeferredWeight(weight).mean_max_space()[len(weight) :]
        expected, place = weight.flatten(2).max(2)
        assert torch.equal(maximum, expected)
        (gradient,) = torch.autograd.grad(maximum.sum(), weight)
        wanted = torch.zeros(weight.flatten(2).shape).scatter(2, place[..., None], 1.0)
        assert torch.equal(gradient.flatten(2), wanted)

        x = DeferredWeight(weight)
        pooled = x.pool_channels(weight.new_ones(shape[:2]))
        expected, place = weight.max(1, keepdim=True)
        assert torch.equal(x.dense(), weight) and torch.equal(pooled[:, :1], expected)
        torch.testing.assert_close(pooled[:, 1:], weight.mean(1, keepdim=True))
        (gradient,) = torch.autograd.grad(pooled[:, :1].sum(), weight)
        assert torch.equal(gradient, torch.zeros(shape).scatter(1, place, 1.0))

        _, m = DeferredWeight(weight).largest(0.5)
        assert m == 1.5 * weight.abs().max()
        (gradient,) = torch.autograd.grad(m, weight)
        wanted = torch.where(weight.abs() == weight.abs().max(), 1.5 * weight.sign(), 0)
        assert torch.equal(gradient, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES + WIDE)
def test_of_equal_maxima_the_first_gets_the_gradient(shape, dtype):
    """As with zeros that pruning leaves; against numpy, whose argmax is the first."""
    for weight in weights(shape):
        weight = (weight > 3).to(dtype).requires_grad_()
        whole = weight.detach().float().numpy()
        pooled = DeferredWeight(weight).pool_channels(weight.new_ones(shape[:2]))
        (gradient,) = torch.autograd.grad(pooled[:, :1].sum(), weight)
        place = torch.from_numpy(whole.argmax(1, keepdims=True))
        assert torch.equal(gradient.float(), torch.zeros(shape).scatter(1, place, 1.0))

        (gradient,) = torch.autograd.grad(
            DeferredWeight(weight).mean_max_space()[len(weight) :].sum(), weight
        )
        place = torch.from_numpy(whole.reshape(*shape[:2], -1).argmax(2, keepdims=True))
        wanted = torch.zeros(shape).flatten(2).scatter(2, place, 1.0)
        assert torch.equal(gradient.float().flatten(2), wanted)


def test_below_the_smallest_m_it_is_a_constant():
    """Against y = M·artanh(x / M), whose slope is 1 / (1 − (x / M)²)."""
    for weight in weights((4, 3, 2, 2)):
        weight = weight.double()
        weight = (weight / weight.abs().max() * 2.0**-101).requires_grad_()
        m = 1.5 * 2.0**-100
        y = DeferredWeight(weight).artanh(0.5, weight.new_ones(()))
        torch.testing.assert_close(y, m * (weight / m).atanh(), rtol=1e-12, atol=0)
        (gradient,) = torch.autograd.grad(y.sum(), weight)
        wanted = 1 / (1 - (weight / m).square())
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e19, 1e30])
@pytest.mark.parametrize("offset", [0, 1, 50])
def test_standardized_weights_of_any_size(scale, offset):
    """Against float64; the squares of large weights leave float32, those of a mean drown theirs."""
    weight = torch.randn(4, 32, 3, 3, generator=torch.Generator().manual_seed(1)) + offset
    double = (weight * scale).double()
    axes = (1, 2, 3)
    wanted = (double - double.mean(axes, keepdim=True)) / (double.std(axes, keepdim=True) + 1e-5)
    out = Standardize().build(weight)(weight * scale)
    torch.testing.assert_close(out, wanted.float(), rtol=1e-5, atol=2e-5 if offset else 1e-5)


@pytest.mark.parametrize("excitation", CHAINS, ids=lambda excitation: str(chain(excitation)))
def test_what_is_handed_in_stays_as_it_was(excitation):
    """Statistics add to the weight's gradient in place: never to one that somebody else holds."""
    weight = torch.randn(8, 32, 3, 3).requires_grad_()
    module = chain(excitation).build(weight)
    before = weight.detach().clone()
    out = module(weight)
    gradient = torch.randn_like(out)
    kept = gradient.clone()
    inputs = [weight, *module.parameters()]
    first = torch.autograd.grad(out, inputs, gradient, retain_graph=True)
    copies = [g.clone() for g in first]
    second = torch.autograd.grad(out, inputs, gradient)
    assert torch.equal(weight, before) and torch.equal(gradient, kept)
    for one, copy, two in zip(first, copies, second, strict=True):
        assert torch.equal(one, copy) and torch.equal(one, two)


@pytest.mark.parametrize("standardize", [False, True])
def test_what_is_looked_at_and_not_used_has_no_part_in_the_gradient(standardize):
    weight = torch.randn(8, 32, 3, 3, dtype=torch.float64).requires_grad_()
    upstream = torch.randn_like(weight)
    gradients = []
    for look in (False, True):
        x = DeferredWeight(weight).standardized() if standardize else DeferredWeight(weight)
        if look:
            x.mean_max_space(), x.pool_channels(torch.ones(8, 32, 1, 1, dtype=torch.float64))
        gradients += torch.autograd.grad(x.dense(), weight, upstream)
    torch.testing.assert_close(*gradients)


def test_expanded_gradients():
    """The gradient of a sum is one number seen many times: it cannot be written to."""
    for excitation in CHAINS:
        weight = torch.randn(8, 32, 3, 3).requires_grad_()
        chain(excitation).build(weight)(weight).sum().backward()
        assert weight.grad.isfinite().all()


@pytest.mark.parametrize("value", [0.1, 0.3, 3.3, 100.7, 1e4, 1e30])
@pytest.mark.parametrize("shape", [(4, 32, 3, 3), (4, 17, 1, 3), (3, 64, 1, 1)])
def test_constant_filters_become_zeros(value, shape):
    for weight in weights(shape):
        for dtype in (torch.float32, torch.float64):
            weight = torch.full_like(weight, value, dtype=dtype)
            for excitation in CHAINS[:5]:
                out = chain(excitation).build(weight)(weight)
                assert torch.equal(out, torch.zeros(shape, dtype=dtype))


class Shifted(Parametrization):
    """x + 2a + its kernels' means: its backward pass hands gradients on as they come."""

    def __init__(self, a, mean_first):
        super().__init__()
        self.a, self.mean_first = torch.nn.Parameter(a), mean_first

    def compute(self, x):
        mean = x.mean_space() if self.mean_first else None
        y = x.dense() + 2 * self.a
        return DeferredWeight(y + like(x.mean_space() if mean is None else mean, x))


@pytest.mark.parametrize("mean_first", [False, True])
def test_an_excitation_of_one_s_own_gets_its_own_gradients(mean_first):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    module = Shifted(torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64), mean_first)
    out = module(weight)
    wanted = weight + 2 * module.a + weight.mean((2, 3), keepdim=True)
    torch.testing.assert_close(out, wanted)
    inputs = (weight, module.a)
    upstream = torch.randn_like(out)
    kept = upstream.clone()
    found = torch.autograd.grad(out, inputs, upstream)
    for gradient, expected in zip(found, torch.autograd.grad(wanted, inputs, kept), strict=True):
        torch.testing.assert_close(gradient, expected)
    assert torch.equal(upstream, kept)


class HalfCBAM(CBAM):
    def combine(self, maps, *, skips=False):
        return 0.5 * super().combine(maps, skips=skips)


class PeakSE(SE):
    def maps(self, nets, x, *, skips=False):
        return (torch.sigmoid(x.amax((2, 3), keepdim=True)),)


class Renamed(SE):
    """The formula is SE's."""


class Declared(SE):
    deferred = True

    def maps(self, nets, x, *, skips=False):
        return super().maps(nets, x, skips=skips)


def test_a_derived_attention_is_as_fast_where_its_formula_is_or_says_so():
    assert Renamed().deferred and Declared().deferred and CBAM().deferred
    assert not PeakSE().deferred and not HalfCBAM().deferred
    assert not CBAM(order="reversed").deferred


@pytest.mark.parametrize("attention", [HalfCBAM(), PeakSE()])
def test_an_attention_that_is_derived_is_what_it_says(attention):
    weight = torch.randn(4, 32, 3, 3)
    module = Location(attention).build(weight)
    torch.testing.assert_close(module(weight), weight * module.multiplier(weight))


@pytest.mark.parametrize("standardize", [False, True])
def test_a_gate_that_all_filters_share(standardize):
    weight = torch.randn(30, 16, 3, 3, dtype=torch.float64).requires_grad_()
    gate = torch.rand(1, 16, 1, 1, dtype=torch.float64).requires_grad_()
    x = DeferredWeight(weight).standardized() if standardize else DeferredWeight(weight)
    upstream = torch.randn_like(weight)
    found = torch.autograd.grad(x.times(gate), (weight, gate), upstream)
    wanted = torch.autograd.grad(
        DeferredWeight(weight).standardized().dense() * gate if standardize else weight * gate,
        (weight, gate),
        upstream,
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("excitation", CHAINS, ids=lambda excitation: str(chain(excitation)))
def test_recorded_and_shapes_only(excitation):
    """By torch.jit.trace, by make_fx, and on tensors without values."""
    weight = torch.randn(8, 32, 3, 3)
    module = chain(excitation).build(weight)
    with torch.no_grad():
        expected = module(weight)
        other = torch.randn(8, 32, 3, 3)
        for record in (
            torch.jit.trace,
            lambda f, w: make_fx(f)(w),
            lambda f, w: make_fx(f, pre_dispatch=True)(w),
        ):
            recorded = record(module, weight)
            torch.testing.assert_close(recorded(weight), expected)
            torch.testing.assert_close(recorded(other), module(other))
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            assert module(fake.from_tensor(weight)).shape == weight.shape


@pytest.mark.parametrize("excitation", CHAINS, ids=lambda excitation: str(chain(excitation)))
def test_gradients_of_every_image_by_vmap(excitation):
    """Functional transforms see through an excitation: images' gradients sum to the batch's."""
    layer = torch.nn.Conv2d(16, 4, 3, dtype=torch.float64)
    module = chain(excitation).build(layer.weight)
    images = torch.randn(5, 16, 6, 6, dtype=torch.float64)

    def loss(weight, image):
        return torch.nn.functional.conv2d(image[None], module(weight)).square().sum()

    weight = layer.weight.detach()
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, images)
    whole = torch.func.grad(lambda w: sum(loss(w, image) for image in images))(weight)
    torch.testing.assert_close(each.sum(0), whole)


@pytest.mark.parametrize("excitation", CHAINS, ids=lambda excitation: str(chain(excitation)))
def test_many_weights_by_vmap(excitation):
    """Weights of one shape in one tensor, as of an ensemble."""
    weights = torch.randn(3, 4, 16, 3, 3, dtype=torch.float64)
    module = chain(excitation).build(weights[0])
    expected = torch.stack([module(weight) for weight in weights])
    torch.testing.assert_close(torch.func.vmap(module)(weights), expected)


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("excitation", [Location(SE()), Location(CBAM()), Magnitude()], ids=str)
def test_a_strength_that_is_learned_gets_its_gradient(excitation, strength):
    weight = torch.randn(4, 8, 3, 3, dtype=torch.float64)
    module = excitation.build(weight)
    module.strength.fill_(strength).requires_grad_()
    loss = module(weight).square().sum()
    (found,) = torch.autograd.grad(loss, module.strength)
    with torch.no_grad():
        sides = [module(weight) for s in (1e-6, -2e-6) if module.strength.add_(s) is not None]
        slope = (sides[0].square().sum() - sides[1].square().sum()) / 2e-6
    torch.testing.assert_close(found, slope, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own
@pytest.mark.parametrize("parts", CHAINS, ids=lambda parts: str(chain(parts)))
def test_forward_derivatives_are_those_of_the_formulas(parts):
    weight, way = torch.randn(2, 4, 8, 3, 3, dtype=torch.float64)
    module = chain(parts).build(weight)
    with forward_ad.dual_level(), torch.no_grad():
        found = forward_ad.unpack_dual(module(forward_ad.make_dual(weight, way))).tangent
    with torch.no_grad():
        slope = (module(weight + 1e-6 * way) - module(weight - 1e-6 * way)) / 2e-6
    torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "net",
    [
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding="same", groups=2),
        nn.Conv2d(4, 1, 3),
        nn.Conv2d(4, 1, 1, stride=2),
        nn.Conv2d(4, 1, 3, padding="same", padding_mode="circular"),
    ],
    ids=str,
)
def test_any_net_is_run_as_it_is(net):
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(run(net, x), net(x))
