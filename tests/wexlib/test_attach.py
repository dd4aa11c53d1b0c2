"""Attaching to models: what is selected, what is promised of copies, checkpoints and folding."""

import copy
import re

import pytest
import torch
from networks import OURS, SE_WS, images, resnet
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from wexlib import (
    BAM,
    CBAM,
    SE,
    Global,
    Location,
    Magnitude,
    Standardize,
    Triplet,
    attend,
    describe,
    excite,
    fold,
    pause,
    remove,
    resume,
)
from wexlib.control import average
from wexlib.models import build
from wexlib.where import excited


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def vit() -> nn.Module:
    return build("vit", classes=10, hidden_dim=16, num_layers=2, num_heads=2, mlp_dim=16).eval()


def names(model) -> list[str]:
    return [slot.name for slot in excited(model)]


# --- What is selected ----------------------------------------------------------------------------


def test_the_default_is_every_convolution_and_no_linear_layer():
    model = excite(resnet(), Location(SE()))
    convolutions = [f"{k}.weight" for k, m in resnet().named_modules() if type(m) is nn.Conv2d]
    assert len(convolutions) == 20 and names(model) == convolutions
    assert "conv1.weight" in names(model) and "layer2.0.downsample.0.weight" in names(model)
    assert type(model.fc) is nn.Linear


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("layer3", 5),
        (r"layer3\.0\.conv1\.weight$", 1),
        (r"conv1|fc", 10),
        (nn.Linear, 1),
        ((nn.Linear, nn.Conv2d), 21),
        (lambda name, module: name.endswith("conv2.weight"), 8),
        (lambda name, module: isinstance(module, nn.Linear), 1),
    ],
)
def test_where(where, count):
    assert len(names(excite(resnet(), Magnitude(), where=where))) == count


def test_a_name_reaches_bare_weights_but_no_embedding_by_its_surroundings():
    model = excite(vit(), Magnitude(), where="encoder")
    assert "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in names(model)
    assert not any("pos_embedding" in name or "ln" in name for name in names(model))
    assert names(excite(vit(), Magnitude(), where="pos_embedding")) == ["encoder.pos_embedding"]


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(4, 6, 3), nn.Conv3d(4, 6, 3), nn.Linear(4, 6), nn.ConvTranspose2d(4, 6, 3)]
)
def test_a_single_layer(layer):
    before = layer.weight.clone()
    assert excite(layer, Location(SE())) is layer
    assert names(layer) == ["weight"] and not torch.equal(layer.weight, before)


def test_query_key_and_value_have_their_own():
    attention = nn.MultiheadAttention(16, 2)
    weight = attention.in_proj_weight.detach().clone()
    excite(attention, SE_WS, where="in_proj_weight")
    module = attention.parametrizations.in_proj_weight[0]
    nets = [part.location.fc1.weight for part in (module.q, module.k, module.v)]
    assert not torch.equal(nets[0], nets[1]) and not torch.equal(nets[1], nets[2])
    for i, part in enumerate((module.q, module.k, module.v)):
        rows = slice(16 * i, 16 * (i + 1))
        assert torch.equal(attention.in_proj_weight[rows], part(weight[rows]))
    x = torch.randn(3, 1, 16)
    expected = F.multi_head_attention_forward(
        x, x, x, 16, 2, attention.in_proj_weight, attention.in_proj_bias, None, None, False, 0.0,
        attention.out_proj.weight, attention.out_proj.bias,
    )[0]  # fmt: skip
    assert torch.equal(attention(x, x, x)[0], expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_has_its_filters_on_axis_1(groups):
    layer = nn.ConvTranspose2d(32, 6, 3, groups=groups)
    inputs, outputs = 32 // groups, 6 // groups
    before = layer.weight.detach().clone()
    excite(layer, SE_WS)
    module = layer.parametrizations.weight[0].filters
    assert module.location.fc1.weight.shape == (2, inputs)
    filters = torch.stack(
        [before[g * inputs : (g + 1) * inputs, o] for g in range(groups) for o in range(outputs)]
    )
    wanted = module(filters)
    for g in range(groups):
        for o in range(outputs):
            got = layer.weight[g * inputs : (g + 1) * inputs, o]
            torch.testing.assert_close(got, wanted[g * outputs + o])
    assert layer.weight.is_contiguous()


# --- Starts --------------------------------------------------------------------------------------


def test_the_global_stream_is_left_as_it_was():
    model = resnet()
    state = torch.get_rng_state()
    excite(model, OURS)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_start_depends_on_the_generator_and_the_weight_s_name_alone():
    def start(model, seed, where=None):
        excite(model, Location(SE()), where=where, generator=torch.Generator().manual_seed(seed))
        return model.layer3[0].conv1.parametrizations.weight[0].fc1.weight

    first = start(resnet(), 7)
    assert torch.equal(first, start(resnet(), 7, where="layer3"))
    assert not torch.equal(first, start(resnet(), 8))
    model = resnet()
    start(model, 7)
    nets = [model.layer3[0].conv2, model.layer3[1].conv1]
    nets = [layer.parametrizations.weight[0].fc1.weight for layer in nets]
    assert not torch.equal(*nets)


def test_the_backbone_keeps_its_start():
    plain, model = resnet(), resnet()
    model.load_state_dict(plain.state_dict())
    excite(model, OURS)
    original = model.conv1.parametrizations.weight.original
    assert torch.equal(original, plain.conv1.weight)


# --- Fold ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "excitation", [OURS, SE_WS, Location(BAM()), Location(Triplet()), Global()]
)
def test_fold_gives_plain_layers_and_the_same_bits(excitation):
    model = excite(resnet(), excitation)
    parameter = model.conv1.parametrizations.weight.original
    expected = model(images())
    assert fold(model) is model
    assert torch.equal(model(images()), expected)
    assert type(model.conv1) is nn.Conv2d and type(model.conv1.weight) is nn.Parameter
    assert model.conv1.weight is parameter
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
    plain = resnet()
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(plain(images()), expected)
    assert torch.equal(fold(model)(images()), expected)


def test_fold_of_vit_and_of_channels_last():
    model = excite(vit(), SE_WS, where="encoder|conv_proj")
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    assert torch.equal(fold(model)(x), expected)
    model = excite(resnet().to(memory_format=torch.channels_last), SE_WS)
    expected = model(images())
    assert torch.equal(fold(model)(images()), expected)
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_fold_while_paused_leaves_the_weight():
    model = resnet()
    before = model.conv1.weight.detach().clone()
    fold(pause(excite(model, Location(SE()))))
    assert torch.equal(model.conv1.weight, before)


def test_tied_weights_stay_tied_only_where_they_are_equal():
    first, second = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    x = torch.randn(1, 4, 9, 9)
    excite(model, Magnitude())
    expected = model(x)
    assert torch.equal(fold(model)(x), expected) and first.weight is second.weight
    excite(model, Location(SE()))
    expected = model(x)
    assert torch.equal(fold(model)(x), expected) and first.weight is not second.weight


class Tied(nn.Module):
    """A table of words and the layer that scores them, of one weight, as language models have."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        return self.head(self.words(x))


class Named(nn.Module):
    """A second attribute names the parameter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.kernel = self.conv.weight

    def forward(self, x):
        return F.conv2d(self.conv(x), self.kernel)


def one_weight(convolutions=2):
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(convolutions)))
    for layer in model:
        layer.weight = model[0].weight
    return model


PIXELS = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))
HELD = {
    "one of two": (one_weight, lambda name, _: name.startswith("0."), PIXELS, "1.weight"),
    "two of three": (
        lambda: one_weight(3),
        lambda name, _: not name.startswith("1."),
        PIXELS,
        "1.weight",
    ),
    "an embedding": (Tied, nn.Linear, torch.arange(11)[None], "words.weight"),
    "an attribute": (Named, "conv", PIXELS, "kernel"),
}


@pytest.mark.parametrize("excitation", [SE_WS, Magnitude()])
@pytest.mark.parametrize("case", HELD)
def test_fold_moves_no_other_holder_of_a_parameter(case, excitation):
    make, where, x, holder = HELD[case]
    model = excite(make(), excitation, where=where)
    shared = model.get_parameter(holder)
    before, expected = shared.detach().clone(), model(x)
    with pytest.warns(UserWarning, match=rf"was the parameter {holder} too"):
        assert torch.equal(fold(model)(x), expected)
    assert model.get_parameter(holder) is shared and torch.equal(shared, before)


def test_fold_moves_no_other_model():
    first, second = resnet(), resnet()
    second.conv1.weight = first.conv1.weight
    second.layer1[0].conv2.weight = first.layer1[0].conv2.weight
    plain = second(images())
    excite(first, OURS)
    expected = first(images())
    with pytest.warns(UserWarning, match="was the parameter another model's weight too"):
        assert torch.equal(fold(first)(images()), expected)
    assert torch.equal(second(images()), plain)
    assert first.conv1.weight is not second.conv1.weight
    # And where the other is excited itself.
    second.layer2[0].conv1.weight = first.layer2[0].conv1.weight
    excite(second, SE_WS), excite(first, OURS)
    before, expected = second(images()), first(images())
    with pytest.warns(UserWarning, match="was the parameter another model's original too"):
        fold(first)
    assert torch.equal(second(images()), before) and torch.equal(first(images()), expected)


def test_a_parameter_stays_the_same_object_when_it_is_folded():
    model = resnet()
    before = dict(model.named_parameters())
    after = dict(fold(excite(model, OURS)).named_parameters())
    assert all(after[name] is p for name, p in before.items()) and len(after) == len(before)


# --- Ways back -----------------------------------------------------------------------------------


def test_fold_a_part():
    model = excite(resnet(), OURS)
    expected = model(images())
    fold(model, where=r"layer[12]\.")
    left = [slot.name for slot in excited(model)]
    assert left and not any(name.startswith(("layer1", "layer2")) for name in left)
    assert type(model.layer1[0].conv1) is nn.Conv2d
    assert torch.equal(model(images()), expected)
    with pytest.raises(ValueError, match="has none where"):
        fold(model, where="layer1")
    assert torch.equal(fold(fold(model))(images()), expected)


@pytest.mark.parametrize("shared", [False, True])
def test_remove_gives_the_stored_weights_back(shared):
    model = resnet().train()
    before = dict(model.named_parameters())
    excite(model, [Standardize(), Global()], shared=shared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(images()).square().mean().backward()
    optimizer.step()
    stored = {slot.name: slot.tensor.original.detach().clone() for slot in excited(model)}
    remove(model, where="layer1")
    assert type(model.layer1[0].conv1) is nn.Conv2d and excited(model)
    remove(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[k] is p for k, p in before.items())
    assert all(torch.equal(after[k], p) for k, p in stored.items())
    with pytest.raises(ValueError, match="excite it first"):
        remove(model)
    excite(model, OURS)  # and again


def test_remove_of_transposed_and_attention_layers():
    model = nn.ModuleList([nn.ConvTranspose2d(4, 6, 3, groups=2), nn.MultiheadAttention(8, 2)])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    remove(excite(model, SE_WS, where=r"0\.|in_proj"))
    after = model.state_dict()
    assert after.keys() == before.keys() and all(
        torch.equal(after[k], v) for k, v in before.items()
    )


# --- Pause ---------------------------------------------------------------------------------------


def test_pause_and_resume():
    model = resnet()
    plain = model(images())
    excite(model, [Location(SE()), Magnitude()])
    on = model(images())
    assert torch.equal(pause(model)(images()), plain)
    saved = copy.deepcopy(model.state_dict())
    assert torch.equal(resume(model)(images()), on)
    model.load_state_dict(saved)
    assert torch.equal(model(images()), plain)
    resume(model)
    pause(model, where="layer3")
    strengths = {k: v.item() for k, v in model.state_dict().items() if k.endswith("strength")}
    assert {v for k, v in strengths.items() if "layer3" in k} == {0.0}
    assert {v for k, v in strengths.items() if "layer3" not in k} == {1.0}
    resume(model, strength=0.5)
    assert not torch.equal(model(images()), on) and not torch.equal(model(images()), plain)


def test_pausing_leaves_standardization():
    model = excite(resnet(), Standardize())
    expected = model(images())
    fold(model)
    other = resnet()
    other.load_state_dict(model.state_dict())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(resnet()(images()), expected)
    assert torch.equal(other(images()), expected)


# --- Parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "excitation", "parameters"),
    [
        ("resnet18_imagenet", 1000, Global(), 11_701_112),
        ("resnext29", 100, Location(SE(), stacked=SE_WS), 39_849_090),
        ("resnext29", 100, Location(SE(), stacked=[Standardize(), Magnitude()]), 37_287_414),
    ],
)
def test_the_authors_parameter_counts(name, classes, excitation, parameters):
    with torch.device("meta"):
        model = excite(build(name, classes=classes), [Standardize(), excitation])
    assert sum(p.numel() for p in model.parameters()) == parameters


# --- Describe ------------------------------------------------------------------------------------


def test_describe():
    model = excite(resnet(), OURS)
    rows = describe(model)
    plain = sum(p.numel() for p in resnet().parameters())
    assert [row["weight"] for row in rows] == names(model)
    assert rows[0]["shape"] == (4, 3, 3, 3)
    assert rows[0]["excitation"] == "standardize + location(cbam, skips) + magnitude(artanh)"
    total = sum(row["parameters"] for row in rows)
    assert total == sum(p.numel() for p in model.parameters()) - plain
    text = str(rows)
    assert len(text.splitlines()) == 22 and text.splitlines()[-1].split() == ["total", str(total)]
    parametrized = model.conv1.parametrizations.weight
    multiplier = parametrized[0].location.multiplier(
        parametrized[0].standardize(parametrized.original)
    )
    assert rows[0]["gate"] == pytest.approx(multiplier.mean().item())
    assert rows[0]["spread"] == pytest.approx(multiplier.std(correction=0).item())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_saturation_is_the_share_of_gates_at_an_end():
    layer = excite(nn.Conv2d(4, 4, 3), Location(SE()))
    part = layer.parametrizations.weight[0]
    nn.init.zeros_(part.fc2.weight)
    with torch.no_grad():
        part.fc2.bias.copy_(torch.tensor([0.0, 9.0, -9.0, 1.0]))
    assert describe(layer)[0]["saturated"] == 0.5
    layer = excite(nn.Conv2d(4, 4, 3), [Location(SE(gate="softplus")), Magnitude()])
    assert describe(layer)[0]["saturated"] is None
    layer = excite(nn.Conv2d(4, 4, 3), Magnitude())
    assert describe(layer)[0]["gate"] is None and " -  " in str(describe(layer))


# --- Attention on feature maps -------------------------------------------------------------------


def test_attend_after_every_block():
    model = resnet()
    keys = set(model.state_dict())
    state = torch.get_rng_state()
    attend(model, CBAM(), where=r"^layer\d\.\d$")
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()
    blocks = [block for i in range(1, 5) for block in getattr(model, f"layer{i}")]
    assert [b.feature_attention.fc1.in_features for b in blocks] == [4, 4, 8, 8, 16, 16, 32, 32]
    assert keys < set(model.state_dict())
    block, x = blocks[0], torch.randn(1, 4, 8, 8)
    attended = block(x)
    block._forward_hooks.clear()
    assert torch.equal(attended, block.feature_attention(block(x)))


def test_attended_copies_stand_alone_and_attention_is_not_excited():
    model = attend(resnet(), CBAM(), where=r"^layer\d$").eval()
    expected = model(images())
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.layer1.feature_attention.fc2.weight)
    assert torch.equal(model(images()), expected) and not torch.equal(twin(images()), expected)
    assert len(names(excite(model, SE_WS))) == 20
    assert not any("feature_attention" in name for name in names(model))


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: excite("resnet18", Magnitude()), TypeError, "model is str: expected a torch mod"),
        (lambda: excite(resnet(), SE()), TypeError, "wrap it as Location(SE("),
        (lambda: excite(resnet(), []), ValueError, "no excitation was given"),
        (lambda: excite(resnet(), Magnitude(), where=3), TypeError, "where is 3: expected a reg"),
        (lambda: excite(resnet(), Magnitude(), where="("), ValueError, "is no regular expression"),
        (
            lambda: excite(resnet(), Magnitude(), where="layr3"),
            ValueError,
            "where='layr3' matches no weight: expected one of conv1.weight, layer1.0.conv1.weight",
        ),
        (
            lambda: excite(nn.Sequential(nn.Linear(2, 2)), Magnitude()),
            ValueError,
            "ask for linear layers with where=nn.Linear",
        ),
        (lambda: excite(nn.ReLU(), Magnitude()), ValueError, "ReLU has no weight"),
        (lambda: excite(resnet(), Magnitude(), where=nn.ReLU), ValueError, "matches no weight"),
        (
            lambda: excite(excite(resnet(), Magnitude(), where="layer3"), Magnitude()),
            ValueError,
            "layer3.0.conv1.weight is already excited: fold the model, or select other weights",
        ),
        (
            lambda: excite(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3)), Magnitude()),
            ValueError,
            "weight is already parametrized by something else",
        ),
        (lambda: excite(nn.LazyConv2d(2, 3), Magnitude()), ValueError, "weight has no shape yet"),
        (
            lambda: excite(nn.LSTM(2, 2), Magnitude(), where="weight"),
            ValueError,
            "weight_ih_l0 is of a recurrent layer",
        ),
        (
            lambda: excite(resnet(), Location(SE()), shared=True),
            ValueError,
            "conv1.weight and layer1.0.conv1.weight need nets of different sizes",
        ),
        (lambda: pause(resnet()), ValueError, "ResNet has no excited weight: excite it first"),
        (
            lambda: pause(excite(resnet(), Magnitude(), where="layer1"), where="layer2"),
            ValueError,
            "where 'layer2' matches",
        ),
        (lambda: resume(excite(resnet(), Magnitude()), strength=2), ValueError, "strength is 2"),
        (lambda: describe(resnet()), ValueError, "no excited weight"),
        (lambda: average(resnet()), ValueError, "has no Global() excitation"),
        (lambda: fold(3), TypeError, "model is int"),
        (lambda: attend(resnet(), "se", where="layer1"), TypeError, "attention is 'se'"),
        (lambda: attend(resnet(), SE(), where="lyr"), ValueError, "matches no module of ResNet"),
        (lambda: attend(resnet(), SE(), where="bn1"), ValueError, "bn1 has no convolution"),
        (
            lambda: attend(attend(resnet(), SE(), where="^layer1$"), SE(), where="^layer[12]$"),
            ValueError,
            "layer1 has attention already",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_errors(make, error, words):
    with pytest.raises(error, match=re.escape(words)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_refusal_leaves_the_model_as_it_was():
    model = resnet()
    excite(model, Magnitude(), where="layer4")
    with pytest.raises(ValueError):
        excite(model, OURS)
    assert all("layer4" in name for name in names(model))
