"""Dynamic convolutions against loops in float64 written from the formulas."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wexlib.models import build
from wexlib.related import DynamicConv2d, ODConv2d, anneal, replace

LAYERS = [DynamicConv2d, ODConv2d]


def convolve(image, weight, bias, *, stride, padding, dilation, groups):
    """One image (I, H, W) and one weight (O, I/g, kh, kw), multiply and add."""
    outputs, per_group, kh, kw = weight.shape
    image = F.pad(image, (padding[1], padding[1], padding[0], padding[0]))
    height = (image.shape[1] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    width = (image.shape[2] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    result = torch.zeros(outputs, height, width, dtype=image.dtype)
    for o in range(outputs):
        first = o // (outputs // groups) * per_group
        for y in range(height):
            for x in range(width):
                total = 0.0 if bias is None else bias[o]
                for c in range(per_group):
                    for i in range(kh):
                        for j in range(kw):
                            row, column = (
                                y * stride[0] + i * dilation[0],
                                x * stride[1] + j * dilation[1],
                            )
                            total = total + weight[o, c, i, j] * image[first + c, row, column]
                result[o, y, x] = total
    return result


def softmax(scores):
    return scores.exp() / scores.exp().sum()


def sigmoid(scores):
    return 1 / (1 + (-scores).exp())


def linear(layer, v):
    return layer.weight @ v + (0 if layer.bias is None else layer.bias)


def dynamic_reference(layer, images):
    results = []
    for image in images:
        hidden = linear(layer.fc1, image.mean((1, 2))).clamp(min=0)
        pi = softmax(linear(layer.fc2, hidden) / layer.temperature)
        weight = sum(p * w for p, w in zip(pi, layer.weight, strict=True))
        bias = None
        if layer.bias is not None:
            bias = sum(p * b for p, b in zip(pi, layer.bias, strict=True))
        results.append((image, weight, bias))
    return results


def omni_reference(layer, images):
    """In training mode: batch statistics."""
    squeezed = torch.stack([linear(layer.squeeze, image.mean((1, 2))) for image in images])
    spread = ((squeezed - squeezed.mean(0)) ** 2).mean(0)
    normed = (squeezed - squeezed.mean(0)) / (spread + layer.norm.eps).sqrt()
    results = []
    for image, z in zip(
        images, (normed * layer.norm.weight + layer.norm.bias).clamp(min=0), strict=True
    ):
        tau = layer.temperature
        channels = sigmoid(linear(layer.channel, z) / tau)
        weight = torch.zeros_like(layer.weight[0])
        bias = None if layer.bias is None else torch.zeros_like(layer.bias[0])
        kernels, outputs, per_group, kh, kw = layer.weight.shape
        ones = torch.ones(outputs + kh * kw, dtype=image.dtype)
        filters = ones if layer.filter is None else sigmoid(linear(layer.filter, z) / tau)
        spatial = ones if layer.spatial is None else sigmoid(linear(layer.spatial, z) / tau)
        mix = ones if layer.kernel is None else softmax(linear(layer.kernel, z) / tau)
        for k in range(kernels):
            for o in range(outputs):
                first = o // (outputs // layer.groups) * per_group
                for c in range(per_group):
                    for i in range(kh):
                        for j in range(kw):
                            gates = filters[o] * channels[first + c] * spatial[i * kw + j]
                            weight[o, c, i, j] += mix[k] * gates * layer.weight[k, o, c, i, j]
            if bias is not None:
                bias += mix[k] * layer.bias[k]
        results.append((image, weight, bias))
    return results


SHAPES = [
    {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, "groups": 2},
    {"in_channels": 3, "out_channels": 2, "kernel_size": (3, 2), "stride": (2, 1), "bias": False},
    {"in_channels": 3, "out_channels": 4, "kernel_size": 1},
    {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "dilation": 2, "groups": 4},
]


@pytest.mark.parametrize("kernels", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("layer", "reference"), [(DynamicConv2d, dynamic_reference), (ODConv2d, omni_reference)]
)
@torch.no_grad()
def test_layers_against_the_formula(layer, reference, shape, kernels):
    torch.manual_seed(0)
    module = layer(**shape, kernels=kernels, temperature=1.5).double()
    for parameter in module.parameters():
        parameter.copy_(torch.randn_like(parameter))
    images = torch.randn(3, shape["in_channels"], 6, 5, dtype=torch.float64)
    plain = nn.Conv2d(**shape)
    geometry = {key: getattr(plain, key) for key in ("stride", "padding", "dilation", "groups")}
    expected = [convolve(*parts, **geometry) for parts in reference(module, images)]
    torch.testing.assert_close(module(images), torch.stack(expected))


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients(layer):
    torch.manual_seed(0)
    module = layer(4, 4, 3, padding=1, groups=2, kernels=2, temperature=2.0).double().eval()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in module.parameters()]

    def function(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *values), atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS)
def test_an_image_is_convolved_the_same_alone_and_in_a_batch(layer):
    torch.manual_seed(0)
    module, x = layer(3, 5, 3).eval(), torch.randn(4, 3, 6, 6)
    alone = torch.cat([module(image[None]) for image in x])
    torch.testing.assert_close(module(x), alone)


def test_parameters_added():
    shape, weight = {"in_channels": 32, "out_channels": 8, "kernel_size": 3}, 32 * 8 * 9
    dynamic = DynamicConv2d(**shape, kernels=4)
    assert sum(p.numel() for p in dynamic.parameters()) == (
        4 * weight + 4 * 8 + 32 * 8 + 8 + 8 * 4 + 4
    )
    omni = ODConv2d(**shape, bias=False, kernels=4)
    heads = 17 * (32 + 8 + 9 + 4)
    assert sum(p.numel() for p in omni.parameters()) == 4 * weight + 32 * 16 + 2 * 16 + heads


def test_omni_attention_is_left_out_where_it_has_nothing_to_choose():
    depthwise = ODConv2d(4, 4, 3, groups=4, kernels=1)
    assert depthwise.filter is None and depthwise.kernel is None and depthwise.spatial is not None
    pointwise = ODConv2d(4, 4, 1, kernels=2)
    assert pointwise.spatial is None and None not in (pointwise.filter, pointwise.kernel)


@pytest.mark.parametrize(("kernels", "millions"), [(1, 11.94), (4, 44.90)])
def test_omni_resnet18_has_the_published_size(kernels, millions):
    """Published with the authors' code: ResNet-18 on ImageNet, stem and projections plain."""
    with torch.device("meta"):
        model = build("resnet18_imagenet", classes=1000)
        replace(model, ODConv2d, kernels=kernels, where=r"layer\d\.\d\.conv")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


def test_one_dynamic_kernel_is_the_plain_model():
    torch.manual_seed(0)
    model = build("resnet18", classes=3, width=4).eval()
    dynamic = replace(copy.deepcopy(model), DynamicConv2d, kernels=1)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(dynamic(x), model(x))


@pytest.mark.parametrize("layer", LAYERS)
def test_replace_takes_all_but_the_first_and_trains(layer):
    torch.manual_seed(0)
    model = build("resnext29", classes=3, width=4, cardinality=2)
    first = model.layer2[0].conv2.weight.detach().clone()
    assert replace(model, layer, kernels=2) is model
    assert type(model.conv1) is nn.Conv2d
    assert sum(isinstance(m, layer) for m in model.modules()) == 30
    swapped = model.layer2[0].conv2
    assert swapped.weight[0].equal(first) and swapped.groups == 2
    assert abs(swapped.weight[1].std() / first.std() - 1) < 0.2
    F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_replace_keeps_dtype_mode_bias_and_selects():
    model = (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)).double().eval()
    )
    bias = model[2].bias.detach().clone()
    replace(model, DynamicConv2d, where=lambda name, conv: conv.out_channels == 2, kernels=3)
    assert [type(m) for m in model] == [nn.Conv2d, nn.Conv2d, DynamicConv2d]
    assert model[2].weight.dtype == torch.float64 and not model[2].training
    assert all(row.equal(bias) for row in model[2].bias)
    replace(model, ODConv2d, where="^0$")
    assert isinstance(model[0], ODConv2d)


def test_temperature_falls_to_one_and_is_saved():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), DynamicConv2d(4, 4, 1), ODConv2d(4, 4, 1))
    assert model[1].temperature == model[2].temperature == 30
    assert [anneal(model, epoch) for epoch in (0, 5, 10, 99)] == [30, 15.5, 1, 1]
    assert anneal(model, 2, start=5, epochs=4) == 3
    assert model[1].temperature == model[2].temperature == 3
    fresh = nn.Sequential(nn.Conv2d(3, 4, 1), DynamicConv2d(4, 4, 1), ODConv2d(4, 4, 1))
    fresh.load_state_dict(model.state_dict())
    assert fresh[2].temperature == 3


def test_high_temperature_is_uniform_and_low_is_one_kernel():
    torch.manual_seed(0)
    layer = DynamicConv2d(8, 2, 1, kernels=4, temperature=1e6)
    x = torch.randn(5, 8, 2, 2)
    torch.testing.assert_close(layer.attention(x), torch.full((5, 4), 0.25))
    layer.temperature.fill_(1e-6)
    torch.testing.assert_close(layer.attention(x).amax(1), torch.ones(5))


def test_errors():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match="where='layer9' matches none of the model's 2"):
        replace(model, ODConv2d, where="layer9")
    with pytest.raises(ValueError, match="'reflect': only 'zeros' can be dynamic"):
        replace(model, ODConv2d)
    with pytest.raises(ValueError, match="kernels is 0: expected 1 or more"):
        DynamicConv2d(3, 4, 1, kernels=0)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match="0 is parametrized: replace convolutions before exciting"):
        replace(model, DynamicConv2d, where="0")


def test_replaced_kernels_start_at_the_scale_of_the_weight():
    """Also where the weight is far from how torch starts its layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3))
    nn.init.normal_(model[1].weight, std=7.0)
    replace(model, DynamicConv2d, kernels=3)
    for kernel in model[1].weight:
        assert math.isclose(kernel.std().item(), 7.0, rel_tol=0.05)
