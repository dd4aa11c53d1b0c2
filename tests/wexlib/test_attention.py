"""Attention on feature maps against its formulas, and the sentence that it is one with location."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wexlib import BAM, CBAM, SE, Location, Triplet
from wexlib.attention import ATTENTIONS, CONVOLUTIONS, FeatureAttention
from wexlib.names import ACTIVATIONS
from wexlib.ops.nets import run, run_along


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batch_norm(norm, y):
    """By the formula, with the batch's mean and biased variance of each channel."""
    axes = [0, *range(2, y.dim())]
    mean = y.mean(axes, keepdim=True)
    variance = (y - mean).square().mean(axes, keepdim=True)
    shape = [1, -1, *[1] * (y.dim() - 2)]
    return (y - mean) / (variance + norm.eps).sqrt() * norm.weight.view(shape) + norm.bias.view(
        shape
    )


def z_pool(x):
    return torch.stack([x.max(1).values, x.sum(1) / x.shape[1]], 1)


def published_map(net, x):
    """σ(BN(7×7 convolution without bias of [max; mean]))."""
    conv, norm = net
    assert conv.bias is None and conv.kernel_size == (7, 7) and norm.momentum == 0.01
    return torch.sigmoid(batch_norm(norm, F.conv2d(z_pool(x), conv.weight, padding=3)))


def mlp(m, z):
    return torch.relu(z @ m.fc1.weight.T + m.fc1.bias) @ m.fc2.weight.T + m.fc2.bias


def se(m, x):
    return x * torch.sigmoid(mlp(m, x.flatten(2).mean(2)))[:, :, None, None]


def cbam(m, x):
    flat = x.flatten(2)
    scores = mlp(m, flat.mean(2)) + mlp(m, flat.max(2).values)
    x = x * torch.sigmoid(scores)[:, :, None, None]
    return x * published_map(m.spatial, x)


def bam(m, x):
    linear, norm = m.fc2
    hidden = torch.relu(x.flatten(2).mean(2) @ m.fc1.weight.T + m.fc1.bias)
    channel = batch_norm(norm, hidden @ linear.weight.T + linear.bias)
    reduce, first, second, (project, last) = m.spatial
    y = torch.relu(F.conv2d(x, reduce.weight, reduce.bias))
    y = torch.relu(F.conv2d(y, first.weight, first.bias, padding=4, dilation=4))
    y = torch.relu(F.conv2d(y, second.weight, second.bias, padding=4, dilation=4))
    space = batch_norm(last, F.conv2d(y, project.weight, project.bias))
    return x + x * torch.sigmoid(channel[:, :, None, None] + space)


def triplet(m, x):
    rows = x.permute(0, 2, 1, 3)
    rows = (rows * published_map(m.axis2, rows)).permute(0, 2, 1, 3)
    columns = x.permute(0, 3, 2, 1)
    columns = (columns * published_map(m.axis3, columns)).permute(0, 3, 2, 1)
    return (rows + columns + x * published_map(m.spatial, x)) / 3


@pytest.mark.parametrize(
    ("attention", "reference"),
    [(SE(), se), (CBAM(), cbam), (BAM(), bam), (Triplet(), triplet)],
    ids=["se", "cbam", "bam", "triplet"],
)
def test_feature_maps_against_the_formula(attention, reference):
    x = torch.randn(3, 32, 9, 8, dtype=torch.float64, requires_grad=True)
    module = FeatureAttention(attention, 32).double()
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    out, expected = module(x), reference(module, x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    inputs = [x, *module.parameters()]
    direction = torch.randn_like(out)
    gradients = torch.autograd.grad((out * direction).sum(), inputs)
    wanted = torch.autograd.grad((expected * direction).sum(), inputs)
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("attention", "parameters"),
    [
        (SE(), 2 * 64 * 4 + 4 + 64),
        (CBAM(), 2 * 64 * 4 + 4 + 64 + 2 * 49 + 2),
        (
            BAM(),
            (2 * 64 * 4 + 4 + 64 + 2 * 64) + (64 * 4 + 4) + 2 * (4 * 4 * 9 + 4) + (4 + 1 + 2),
        ),
        (Triplet(), 3 * (2 * 49 + 2)),
    ],
)
def test_parameters_on_feature_maps(attention, parameters):
    assert sum(p.numel() for p in FeatureAttention(attention, 64).parameters()) == parameters


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_any_rank(name, rank):
    x = torch.randn(2, 20, *[5] * rank)
    out = FeatureAttention(ATTENTIONS[name](), 20, rank=rank)(x)
    assert out.shape == x.shape and out.isfinite().all()


@pytest.mark.parametrize("attention", [SE(), SE("leaky_relu", "tanh")])
def test_location_is_attention_with_filters_for_a_batch(attention):
    weight = torch.randn(6, 32, 3, 3)
    location = Location(attention).build(weight)
    features = FeatureAttention(attention, 32)
    state = {k: v for k, v in location.state_dict().items() if k != "strength"}
    with pytest.warns(UserWarning, match="does not say what"):
        features.load_state_dict(state)
    torch.testing.assert_close(location(weight), features(weight), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_torch_s(name):
    x = torch.linspace(-7, 7, 41)
    expected = x if name == "identity" else getattr(F, name)(x)
    assert torch.equal(ACTIVATIONS[name](x), expected)


def test_recipes_are_values():
    assert SE() == SE("relu", "sigmoid", 16) and hash(CBAM()) == hash(CBAM())
    assert SE(activation="silu") != SE()
    with pytest.raises(AttributeError):
        SE().gate = "tanh"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: SE("rellu"), ValueError, "unknown activation 'rellu'"),
        (lambda: SE("rellu"), ValueError, "did you mean 'relu'?"),
        (lambda: Triplet(gate="sigmod"), ValueError, "unknown gate 'sigmod'"),
        (lambda: SE(reduction=0), ValueError, "reduction is 0: expected a whole number"),
        (lambda: BAM(reduction=1.5), ValueError, "reduction is 1.5"),
        (lambda: CBAM(order="parallell"), ValueError, "did you mean 'parallel'?"),
        (lambda: FeatureAttention("se", 8), TypeError, "attention is 'se': expected one such as"),
        (lambda: FeatureAttention(SE(), 8, rank=4), ValueError, "rank is 4: expected 1, 2 or 3"),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)


KERNELS = [(1,), (4,), (1, 1), (3, 3), (2, 5), (7, 7), (3, 2, 4)]


def assert_same(results, inputs):
    """Two ways to the same numbers, and to the same gradients."""
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(results[1])
    gradients = (torch.autograd.grad(y, inputs, g) for y in results)
    for ours, torchs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (3, 3), (70, 4)])
@pytest.mark.parametrize("one", [False, True], ids=["of the map's size", "of one place"])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_a_small_map_is_convolved_as_any(kernel, inputs, outputs, one):
    side = [1] * len(kernel) if one else kernel
    net = CONVOLUTIONS[len(kernel)](inputs, outputs, side, padding="same").double()
    x = torch.randn(5, inputs, *kernel, dtype=torch.float64, requires_grad=True)
    assert_same((run(net, x), net(x)), [x, *net.parameters()])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("channels", [1, 2, 11])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_along_an_axis_is_a_convolution_with_the_axis_exchanged(kernel, channels):
    net = CONVOLUTIONS[len(kernel)](2, 1, kernel, padding="same").double()
    x = torch.randn(5, channels, *kernel, dtype=torch.float64, requires_grad=True)
    for axis in range(2, x.dim()):
        expected = net(z_pool(x.transpose(1, axis))).transpose(1, axis)
        assert_same((run_along(net, x, axis), expected), [x, *net.parameters()])


@pytest.mark.parametrize("attention", [CBAM(), Triplet()], ids=["cbam", "triplet"])
def test_of_equal_maxima_the_first_gets_the_gradient(attention):
    """As in the published code; against numbers beside each other, of which the first is larger."""
    x = torch.randn(2, 6, 5, 5).double().round().requires_grad_()
    assert len(x.detach().unique()) < 9
    apart = -1e-9 * 4.0 ** torch.arange(6.0)[:, None] * torch.linspace(1, 2, 25)
    m = FeatureAttention(attention, 6).double().eval()
    (gradient,) = torch.autograd.grad(m(x).square().sum(), x)
    (wanted,) = torch.autograd.grad(m(x + apart.view(6, 5, 5).double()).square().sum(), x)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "spatial", nn.Conv2d(2, 1, 7, padding="same")),
        lambda m: setattr(m.spatial, "bias", None),
        lambda m: setattr(m, "fc2", nn.Sequential(m.fc2, nn.BatchNorm1d(4))),
        lambda m: setattr(m.fc2, "bias", None),
    ],
    ids=["7x7", "unbiased spatial", "normalized fc2", "unbiased fc2"],
)
def test_nets_of_another_form_on_a_weight(change):
    m, x = Location(CBAM()).build(torch.empty(6, 4, 3, 3)), torch.randn(6, 4, 3, 3).double()
    change(m)
    m.double().eval()
    scores = [m.fc2(torch.relu(m.fc1(z))) for z in (x.mean((2, 3)), x.amax((2, 3)))]
    x1 = x * torch.sigmoid(sum(scores))[:, :, None, None]
    expected = x1 * torch.sigmoid(m.spatial(z_pool(x1)))
    torch.testing.assert_close(m(x), expected, rtol=1e-12, atol=1e-12)
    with torch.device("meta"):
        assert torch.equal(m(x), m(x))
