"""Excitations against loops written from the formulas (naive.py), and what they promise."""

import copy
from pathlib import Path

import pytest
import torch
from methods import METHODS, SHAPES, deviation, weight_of
from torch import nn

from wexlib import BAM, CBAM, SE, Location, Magnitude, Standardize, Triplet, excite
from wexlib.excitation import Global
from wexlib.models import resnet18
from wexlib.parametrization import Chain, chain


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_over_every_shape(name, shape):
    forward, gradients = deviation(METHODS[name], *weight_of(shape))
    assert forward <= 1e-12
    assert gradients <= 1e-9


def test_global_of_each_channel_does_not_depend_on_their_numbers():
    weight, _ = weight_of("3×3")
    module = Global(width=None).build(weight)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(weight[:, order]), module(weight)[:, order])


def test_the_document_lists_every_method_with_its_parameters():
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    assert ", ".join(SHAPES) in text
    with torch.device("meta"):
        plain = sum(p.numel() for p in resnet18(classes=10).parameters())
    rows = ["| method | formula | 64 → 64 | ResNet-18 |", "| --- | --- | ---: | ---: |"]
    for name, method in METHODS.items():
        one = added(method.excitation, (64, 64, 3, 3))
        with torch.device("meta"):
            whole = excite(resnet18(classes=10), method.excitation)
        more = sum(p.numel() for p in whole.parameters()) - plain
        rows.append(f"| {name} | {method.place} | {one:,} | {more:,} |")
    assert [line for line in text.splitlines() if line.startswith("|")] == rows


def test_a_chain_names_its_parts():
    excitation = Chain((Standardize(), Location(SE()), Magnitude()))
    module = excitation.build(weight_of("3×3")[0])
    assert list(dict(module.named_children())) == ["standardize", "location", "magnitude"]


# --- Sizes ---------------------------------------------------------------------------------------


def added(excitation, shape, groups=1) -> int:
    module = excitation.build(torch.empty(shape, device="meta"), groups)
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("shape", "groups", "hidden"),
    [
        ((64, 64, 3, 3), 1, 4),
        ((64, 3, 3, 3), 1, 1),
        ((512, 64, 3, 3), 8, 32),  # from all 512 input channels
        ((32, 1, 3, 3), 32, 2),
        ((10, 48), 1, 3),
    ],
)
def test_sizes_and_counts(shape, groups, hidden):
    inputs = shape[1]
    side, rank = (shape[2], len(shape) - 2) if len(shape) > 2 else (1, 2)
    se = 2 * inputs * hidden + hidden + inputs
    module = Location(CBAM()).build(torch.empty(shape), groups)
    assert isinstance(module.fc1, nn.Linear) and isinstance(module.fc2, nn.Linear)
    assert module.fc1.weight.shape == (hidden, inputs)
    assert module.fc2.weight.shape == (inputs, hidden)
    assert module.spatial.weight.shape == (1, 2, *[side] * rank)
    assert module.spatial.bias.shape == (1,)
    assert added(Standardize(), shape, groups) == 0
    assert added(Location(SE()), shape, groups) == se
    assert added(Location(CBAM()), shape, groups) == se + 2 * side**rank + 1
    assert added(Location(Triplet()), shape, groups) == (rank + 1) * (2 * side**rank + 1)
    bam = se + (inputs * hidden + hidden) + 2 * (hidden**2 * side**rank + hidden) + hidden + 1
    assert added(Location(BAM()), shape, groups) == bam
    assert added(Magnitude(), shape, groups) == 0
    assert added(Magnitude("learnable"), shape, groups) == 3
    assert added(Global(), shape, groups) == 580
    assert added(Global(width=None), shape, groups) == 81


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_spatial_net_has_the_weight_s_own_rank_and_kernel(rank):
    kernel = (3, 2, 5)[:rank]
    module = Location(CBAM()).build(torch.randn(2, 4, *kernel))
    assert isinstance(module.spatial, (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1])
    assert module.spatial.kernel_size == kernel and module.spatial.padding == "same"


@pytest.mark.parametrize("attention", [SE(), CBAM(), BAM(), Triplet()])
def test_nets_start_as_torch_starts_them(attention):
    module = Location(attention).build(torch.randn(8, 640, 3, 3))
    for net in module.modules():
        if isinstance(net, nn.Linear | nn.Conv2d):
            bound = net.weight[0].numel() ** -0.5
            assert net.weight.abs().max() <= bound and net.bias.abs().max() <= bound
    largest = module.fc1.weight.abs().max() * 640**0.5 if hasattr(module, "fc1") else 1
    assert largest > 0.99


def test_the_start_has_a_stream_of_its_own():
    weight = torch.randn(4, 32, 3, 3)
    state = torch.get_rng_state()
    first = Location(SE()).build(weight, generator=torch.Generator().manual_seed(1))
    Location(SE()).build(weight)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    again = Location(SE()).build(weight, generator=torch.Generator().manual_seed(1))
    other = Location(SE()).build(weight, generator=torch.Generator().manual_seed(2))
    assert torch.equal(first.fc1.weight, again.fc1.weight)
    assert not torch.equal(first.fc1.weight, other.fc1.weight)


# --- Start and controls --------------------------------------------------------------------------


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("attention", [SE(), CBAM(), BAM(), Triplet(), SE("silu", "softplus")])
def test_an_identity_start_changes_no_bit_and_learns(attention, skips):
    weight = torch.randn(4, 32, 3, 3, requires_grad=True)
    module = Location(attention, skips, start="identity").build(weight)
    assert torch.equal(module(weight), weight)
    module(weight).square().sum().backward()
    last = module.fc2 if hasattr(module, "fc2") else module.spatial
    assert last.weight.grad.abs().max() > 0


def test_free_starts_as_fresh_nets_and_no_longer_sees_the_weight():
    weight = torch.randn(4, 32, 3, 3)
    excitations = [
        chain([Standardize(), Location(CBAM(), control=control)]) for control in ("none", "free")
    ]
    live, free = (r.build(weight, generator=torch.Generator().manual_seed(3)) for r in excitations)
    torch.testing.assert_close(live(weight), free(weight), rtol=1e-6, atol=1e-7)
    assert {k for k, _ in free.named_parameters()} == {"location.free"}
    multiplier = free.location.multiplier(weight)
    assert torch.equal(multiplier, free.location.multiplier(weight + 1))
    assert not torch.equal(live.location.multiplier(weight), live.location.multiplier(weight + 1))


def test_frozen_nets_take_no_gradient_but_pass_it_on():
    weight = torch.randn(4, 32, 3, 3, requires_grad=True)
    module = Location(SE(), control="frozen").build(weight)
    module(weight).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in module.parameters())
    assert weight.grad.abs().min() > 0


def test_mean_is_one_number_a_layer():
    weight = torch.randn(4, 32, 3, 3)
    same = torch.Generator().manual_seed
    gate = Location(SE()).build(weight, generator=same(4)).multiplier(weight)
    module = Location(SE(), control="mean").build(weight, generator=same(4))
    torch.testing.assert_close(module(weight), weight * gate.mean())


# --- Pause ---------------------------------------------------------------------------------------

SWITCHED = [
    *(Location(a, s) for a in (SE(), CBAM(), BAM(), Triplet()) for s in (False, True)),
    Magnitude(),
    Magnitude("thesis"),
    Global(),
]


@pytest.mark.parametrize("excitation", SWITCHED, ids=str)
def test_strength(excitation):
    """0 is the weight and 1 the excited weight, to the last bit; between them a blend."""
    weight = torch.randn(4, 32, 3, 3)
    module = excitation.build(weight)
    excited = module(weight)
    module.strength.fill_(0)
    assert torch.equal(module(weight), weight)
    module.strength.fill_(0.25)
    torch.testing.assert_close(module(weight), 0.75 * weight + 0.25 * excited)
    saved = copy.deepcopy(module.state_dict())
    module.strength.fill_(1)
    assert torch.equal(module(weight), excited)
    module.load_state_dict(saved)
    assert module.strength == 0.25


def test_standardization_is_not_paused():
    weight = torch.randn(4, 32, 3, 3)
    module = chain([Standardize(), Location(SE()), Magnitude()]).build(weight)
    module.location.strength.fill_(0)
    module.magnitude.strength.fill_(0)
    assert torch.equal(module(weight), Standardize().build(weight)(weight))


# --- Numbers -------------------------------------------------------------------------------------

EXCITATIONS = [
    *(Location(a, s) for a in (SE(), CBAM("leaky_relu"), BAM(), Triplet()) for s in (False, True)),
    *(Magnitude(f) for f in ("artanh", "thesis", "thesis_odd", "learnable", "sigmoid")),
    Global(width=4, reduction=2),
    Global(width=None),
]
CHAINS = [
    Standardize(),
    *EXCITATIONS,
    *(Chain((Standardize(), excitation)) for excitation in EXCITATIONS),
    Chain((Standardize(), Location(CBAM("leaky_relu"), skips=True), Magnitude())),
]


@pytest.mark.parametrize("excitation", CHAINS, ids=str)
@pytest.mark.parametrize("values", ["1e-30", "1e-12", "1e12", "1e30", "zeros", "constant", "spike"])
def test_extreme_weights(excitation, values):
    """No value and no gradient is infinite or undefined."""
    noise = torch.randn(4, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    weight = {
        "zeros": torch.zeros_like(noise),
        "constant": torch.full_like(noise, 0.3),
        "spike": torch.zeros_like(noise).index_put_((torch.tensor([0]),) * 4, torch.tensor(1e30)),
    }.get(values)
    if weight is None:
        weight = noise * float(values)
    weight.requires_grad_()
    module = excitation.build(weight)
    out = module(weight)
    assert out.isfinite().all()
    out.sum().backward()
    for p in (weight, *module.parameters()):
        assert p.grad.isfinite().all()


def test_standardize_has_its_eps_outside_the_root():
    """By hand: ±½·√2·1e-5 has unbiased deviation 1e-5, so ±½·√2·1e-5 / (1e-5 + 1e-5)."""
    weight = torch.tensor([[[-0.5], [0.5]]], dtype=torch.float64) * 2**0.5 * 1e-5
    out = Standardize().build(weight)(weight)
    wanted = torch.tensor([[[-0.25], [0.25]]], dtype=torch.float64) * 2**0.5
    torch.testing.assert_close(out, wanted)


def test_one_element_filters_pass_standardize():
    weight = torch.randn(5, 1, 1, 1)
    assert torch.equal(Standardize().build(weight, 5)(weight), weight)


def test_the_thesis_s_module_has_a_closed_form():
    """W ⊙ (1 + 2Ac + (1 + Ac)·As): with all nets at zero 1 + 1 + 1.5/2 = 2.75; below 5, above 1."""
    weight = torch.randn(4, 32, 3, 3)
    module = Location(CBAM("leaky_relu"), skips=True).build(weight)
    assert 1 < module.multiplier(weight).min() and module.multiplier(weight).max() < 5
    for p in module.parameters():
        nn.init.zeros_(p)
    torch.testing.assert_close(module(weight), 2.75 * weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("excitation", CHAINS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_compute_in_float32(excitation, dtype):
    weight = torch.randn(4, 32, 3, 3, generator=torch.Generator().manual_seed(5)).to(dtype)
    module = excitation.build(weight)
    assert {p.dtype for p in (*module.parameters(), *module.buffers())} <= {dtype}
    out = module(weight)
    assert out.dtype == dtype
    assert torch.equal(out, copy.deepcopy(module).float()(weight.float()).to(dtype))


@pytest.mark.parametrize("excitation", CHAINS, ids=str)
def test_autocast_is_kept_out(excitation):
    weight = torch.randn(4, 32, 3, 3)
    module = excitation.build(weight)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(weight)
    assert torch.equal(out, module(weight))


@pytest.mark.parametrize("excitation", CHAINS, ids=str)
def test_memory_format_is_kept(excitation):
    weight = torch.randn(4, 32, 3, 3).to(memory_format=torch.channels_last)
    module = excitation.build(weight)
    assert module(weight).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(module(weight), module(weight.contiguous()))


@pytest.mark.parametrize("excitation", CHAINS, ids=str)
def test_compile_in_one_graph(excitation):
    weight = torch.randn(4, 32, 3, 3)
    module = excitation.build(weight)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(weight), module(weight))


@pytest.mark.parametrize("excitation", CHAINS, ids=str)
def test_second_derivatives(excitation):
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(2, 3, 2, 1, dtype=torch.float64, generator=generator).requires_grad_()
    module = excitation.build(weight)
    parameters = dict(module.named_parameters())

    def run(w, *values):
        given = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(module, given, (w,))

    inputs = (weight, *parameters.values())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Location("se"), TypeError, "attention is 'se': expected SE()"),
        (lambda: Location(SE), TypeError, "expected SE()"),
        (lambda: Location(SE(), skips=1), TypeError, "skips is 1: expected True or False"),
        (lambda: Location(SE(), start="zero"), ValueError, "unknown start 'zero'"),
        (lambda: Location(SE(), control="frozn"), ValueError, "did you mean 'frozen'?"),
        (
            lambda: Location(SE(gate="tanh"), start="identity").build(torch.ones(2, 2)),
            ValueError,
            "a multiplier that is not zero at rest",
        ),
        (
            lambda: Location(Triplet(), stacked=Standardize()).build(torch.ones(2, 2)),
            ValueError,
            "stacked excites fc1 and fc2",
        ),
        (lambda: Magnitude("artan"), ValueError, "did you mean 'artanh'?"),
        (lambda: Magnitude(eps=0), ValueError, "eps is 0: expected a number above 0"),
        (lambda: Magnitude(eps="x"), ValueError, "eps is 'x'"),
        (lambda: Global(width=0), ValueError, "width is 0: expected a whole number"),
        (lambda: Global(activation="rel"), ValueError, "did you mean 'relu'?"),
        (lambda: chain([]), ValueError, "no excitation was given"),
        (lambda: chain(SE()), TypeError, "wrap it as Location(SE("),
        (lambda: chain(Standardize), TypeError, "is no excitation"),
        (lambda: chain(["se"]), TypeError, "'se' is no excitation"),
        (lambda: Standardize().build(torch.ones(3)), ValueError, "has shape (3,): expected 2 to 5"),
        (
            lambda: Location(SE()).build(torch.ones(0, 3, 3, 3)),
            ValueError,
            "expected no axis of length 0",
        ),
        (lambda: Standardize().build(torch.ones(3, 3).long()), TypeError, "floating-point"),
        (lambda: Standardize().build([1.0]), TypeError, "weight is list: expected a tensor"),
        (lambda: Standardize().build(torch.ones(3, 3), 0), ValueError, "groups is 0"),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)
