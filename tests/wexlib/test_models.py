"""Models: parameter counts to the unit, shapes, starts, and torchvision as the reference."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from wexlib import CBAM, SE, Location, Magnitude, Standardize, excite
from wexlib.models import MODELS, build

SMALL = {
    "resnext29": {"width": 4, "cardinality": 2},
    "resnet18": {"width": 4},
    "resnet18_imagenet": {"width": 4},
    "resnet18_3d": {"width": 4},
    "fcn": {"width": 4},
    "mixer": {"dim": 16, "depth": 2},
    "vit": {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16},
}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("resnext29", {"classes": 100}, 34_518_948),
        ("resnext29", {"classes": 10}, 34_426_698),
        ("resnext29", {"classes": 100, "cardinality": 16}, 68_247_460),
        ("resnet18", {"classes": 10}, 11_173_962),
        ("resnet18", {"classes": 100}, 11_173_962 + 46_170),
        ("resnet18", {"classes": 10, "kernel": 7}, 59_998_282),
        ("resnet18_imagenet", {"classes": 1000}, 11_689_512),
        ("mixer", {"classes": 10}, 1_819_530),
        ("mixer", {"classes": 100}, 1_865_700),
    ],
)
def test_parameter_counts(name, options, parameters):
    with torch.device("meta"):
        assert count(build(name, **options)) == parameters


@pytest.mark.parametrize(
    ("name", "options", "attention", "parameters"),
    [
        ("resnext29", {"classes": 100}, "SE", 37_287_414),
        ("resnext29", {"classes": 100}, "CBAM", 37_287_667),
        ("resnet18", {"classes": 10}, "SE", 11_330_628),
        ("resnet18", {"classes": 10}, "CBAM with skips", 11_330_960),
        ("resnet18", {"classes": 10, "kernel": 7}, "SE", 60_154_948),
        ("resnet18", {"classes": 10, "kernel": 7}, "CBAM with skips", 60_156_560),
        ("resnet18", {"classes": 10, "kernel": 9}, "SE", 99_214_404),
        ("resnet18", {"classes": 10, "kernel": 11}, "SE", 148_038_724),
        ("resnet18_imagenet", {"classes": 1000}, "SE", 11_846_178),
        ("resnet18_imagenet", {"classes": 1000}, "CBAM with skips", 11_846_590),
    ],
)
def test_excited_parameter_counts(name, options, attention, parameters):
    location = {
        "SE": Location(SE()),
        "CBAM": Location(CBAM()),
        "CBAM with skips": Location(CBAM(activation="leaky_relu"), skips=True),
    }[attention]
    with torch.device("meta"):
        model = excite(build(name, **options), [Standardize(), location])
    assert count(model) == parameters


def test_magnitude_adds_no_parameter_to_the_mixer():
    with torch.device("meta"):
        model = excite(build("mixer", classes=10), Magnitude(eps=0.2), where=nn.Linear)
    assert count(model) == 1_819_530
    excited = [m for m in model.modules() if parametrize.is_parametrized(m)]
    assert len(excited) == 14


@pytest.mark.parametrize("size", [(16, 16), (16, 32), (32, 32)])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_on_every_embedded_image_size(name, size):
    torch.manual_seed(0)
    model = build(name, classes=7, image_size=size, **SMALL[name])
    clips, places = ((4,) if name == "resnet18_3d" else ()), size if name == "fcn" else ()
    scores = model(torch.randn(2, 3, *clips, *size))
    assert scores.shape == (2, 7, *places)
    F.cross_entropy(scores, torch.randint(7, (2, *places))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnext29", "resnet18", "resnet18_imagenet", "mixer"])
def test_in_channels(name):
    model = build(name, classes=2, in_channels=1, image_size=16, **SMALL[name])
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 2)


@pytest.mark.parametrize("name", MODELS)
def test_one_seed_gives_one_start(name):
    def start(seed):
        torch.manual_seed(seed)
        return build(name, classes=3, **SMALL[name]).state_dict()

    first, again, other = start(1), start(1), start(2)
    assert all(first[key].equal(again[key]) for key in first)
    assert any(not first[key].equal(other[key]) for key in first)


def test_imagenet_resnet_is_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    ours = build("resnet18_imagenet", classes=11).eval()
    reference = torchvision.models.resnet18(num_classes=11).eval()
    for norm in (m for m in reference.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.bias)
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, 48, 64)
    torch.testing.assert_close(ours(x), reference(x))


def test_small_image_resnet_is_torchvisions_with_another_stem():
    torchvision = pytest.importorskip("torchvision")
    reference = torchvision.models.resnet18(num_classes=5)
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    ours = build("resnet18", classes=5).eval()
    ours.load_state_dict(reference.eval().state_dict())
    x = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(ours(x), reference(x))


def test_resnext_stages_are_torchvisions():
    """torchvision's first two stages with 2 groups of 64·2ˢ are ours of cardinality 2."""
    torchvision = pytest.importorskip("torchvision")
    from torchvision.models.resnet import Bottleneck

    reference = torchvision.models.ResNet(Bottleneck, [3, 3, 3, 1], groups=2, width_per_group=64)
    ours = build("resnext29", classes=5, cardinality=2)
    for name in ("layer1", "layer2", "layer3"):
        stage, twin = getattr(ours, name).eval(), getattr(reference, name).eval()
        stage.load_state_dict(twin.state_dict())
        x = torch.randn(2, twin[0].conv1.in_channels, 8, 6)
        torch.testing.assert_close(stage(x), twin(x))


def test_narrow_resnext_keeps_its_groups():
    model = build("resnext29", classes=5, width=8, cardinality=4, base_width=2)
    groups = [m.groups for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(groups) == 31 and groups.count(4) == 9 and groups.count(1) == 22
    assert model.layer1[0].conv2.in_channels == 4 * 2
    assert model.layer3[2].conv3.out_channels == 8 * 16


def test_resnext_starts_as_the_authors_code():
    torch.manual_seed(0)
    model = build("resnext29", classes=50, width=32)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
            error = 4 * std / math.sqrt(2 * module.weight.numel())
            assert abs(module.weight.std().item() - std) < error
    assert abs(model.fc.weight.std().item() - math.sqrt(2 / 512)) < 0.001
    assert not model.fc.bias.any()


def test_imagenet_resnet_starts_as_torchvisions():
    torch.manual_seed(0)
    model = build("resnet18_imagenet", classes=50, width=16)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
            error = 4 * std / math.sqrt(2 * module.weight.numel())
            assert abs(module.weight.std().item() - std) < error
    assert 0.95 < model.fc.weight.abs().max() * math.sqrt(model.fc.in_features) <= 1


def test_small_image_resnet_starts_as_torch_does():
    torch.manual_seed(0)
    for module in build("resnet18", classes=50, width=16).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert 0.95 * bound < module.weight.abs().max() <= bound


def test_mixer_against_the_formula_written_out():
    """One block in float64, patch by patch and token by token."""
    torch.manual_seed(0)
    options = {"patch": 2, "dim": 6, "depth": 1, "token_hidden": 5, "channel_hidden": 3}
    model = build("mixer", classes=4, image_size=(4, 6), **options).double()
    block, image = model.blocks[0], torch.randn(3, 4, 6, dtype=torch.float64)

    def gelu(v):
        return v * 0.5 * (1 + torch.erf(v / math.sqrt(2)))

    def norm(v, layer):
        spread = ((v - v.mean()) ** 2).mean()
        return (v - v.mean()) / (spread + layer.eps).sqrt() * layer.weight + layer.bias

    def perceptron(v, first, second):
        hidden = gelu(first.weight.view(first.weight.shape[:2]) @ v + first.bias)
        return second.weight.view(second.weight.shape[:2]) @ hidden + second.bias

    tokens = []
    for row in range(2):
        for column in range(3):
            values = [
                image[channel, 2 * row + i, 2 * column + j]
                for i in range(2)
                for j in range(2)
                for channel in range(3)
            ]
            tokens.append(model.embed.weight @ torch.stack(values) + model.embed.bias)
    x = torch.stack(tokens)
    normed = torch.stack([norm(token, block.norm1) for token in x])
    mixed = [
        perceptron(normed[:, d], block.token_mixing[0], block.token_mixing[2]) for d in range(6)
    ]
    x = x + torch.stack(mixed, 1)
    x = torch.stack(
        [
            token
            + perceptron(norm(token, block.norm2), block.channel_mixing[0], block.channel_mixing[2])
            for token in x
        ]
    )
    mean = torch.stack([norm(token, model.norm) for token in x]).mean(0)
    expected = model.head.weight @ mean + model.head.bias
    torch.testing.assert_close(model(image[None])[0], expected)


def test_mixer_layers_that_the_authors_excited():
    with torch.device("meta"):
        modules = list(build("mixer", classes=10).modules())
    assert sum(isinstance(m, nn.Linear) for m in modules) == 14
    assert sum(isinstance(m, nn.Linear | nn.Conv1d) for m in modules) == 26


def test_square_vit_is_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    options = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 12}
    ours = build("vit", classes=5, image_size=16, **options).eval()
    reference = torchvision.models.VisionTransformer(16, 4, num_classes=5, **options).eval()
    nn.init.normal_(reference.heads.head.weight)
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours(x), reference(x))


def test_torchvision_models_by_name():
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        assert count(build("resnet50", classes=1000, image_size=32)) == 25_557_032
        assert build("vit_b_32", classes=3, image_size=64).seq_length == 5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"widht": 3}, "unknown option .* resnet18.* did you mean 'width'"),
        ("resnet18", {"width": 0}, "width is 0: expected a whole number"),
        ("resnet18", {"kernel": 4}, "kernel is 4: expected an odd number"),
        ("resnext29", {"cardinality": 2.5}, "cardinality is 2.5: expected a whole number"),
        ("mixer", {"image_size": (16, 30)}, "16×30 has no whole number of patches of 4×4"),
        ("mixer", {"image_size": (16, 16, 3)}, "expected one number, or a height and a width"),
        ("vit", {"num_heads": 3}, "hidden_dim 512 is not a multiple of num_heads 3"),
        ("reznet18", {}, "unknown model 'reznet18'.* did you mean 'resnet18'"),
    ],
)
def test_errors_are_one_sentence(name, options, message):
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=message) as error:
        build(name, classes=2, **options)
    assert "\n" not in str(error.value)


def test_torchvision_refuses_an_option_by_name():
    pytest.importorskip("torchvision")
    with pytest.raises(TypeError, match="model resnet50 refuses its options: .*widht"):
        build("resnet50", classes=2, widht=3)


@pytest.mark.parametrize("name", ["mixer", "vit"])
def test_images_of_another_size_are_refused(name):
    model = build(name, classes=2, image_size=(8, 16), **SMALL[name])
    with pytest.raises(ValueError, match="was built for"):
        model(torch.randn(1, 3, 16, 8))


def test_torchvision_is_imported_only_by_the_models_that_need_it():
    code = (
        "import sys, wexlib.models as m; m.build('mixer', classes=2, dim=8, depth=1);"
        "m.build('resnet18', classes=2, width=2); assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_segmentation_network_scores_every_pixel():
    with torch.device("meta"):
        for pool, stride in ((True, 8), (False, 4)):
            model = build("fcn", classes=21, width=8, pool=pool)
            assert model(torch.zeros(2, 3, 40, 56)).shape == (2, 21, 40, 56)
            seen = model.backbone(torch.zeros(2, 3, 40, 56))["out"]
            assert seen.shape == (2, 64, 40 // stride, 56 // stride)
        theirs = build("fcn_resnet50", classes=21)
        assert theirs(torch.zeros(1, 3, 64, 64))["out"].shape == (1, 21, 64, 64)


def test_clips_are_seen_by_three_dimensional_convolutions():
    from torchvision.models.video import r3d_18

    with torch.device("meta"):
        model, theirs = build("resnet18_3d", classes=400), r3d_18(num_classes=400)
        assert not [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
        assert model(torch.zeros(2, 3, 8, 48, 48)).shape == (2, 400)

    def shapes(model):
        found = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv3d)]
        return found, sum(p.numel() for p in model.parameters())

    assert shapes(model) == shapes(theirs)
