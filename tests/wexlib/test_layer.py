"""What an excited layer knows beyond torch's parametrized one: its state_dict, and writes to it."""

import copy
import warnings

import pytest
import torch
from networks import OURS, SE_WS, images, resnet
from torch import nn

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
    excite,
    fold,
    load,
    pause,
    precompute,
    save,
)
from wexlib.where import excited


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def conv(excitation=SE_WS) -> nn.Conv2d:
    return excite(nn.Conv2d(8, 8, 3), excitation)


# --- What a state_dict belongs to ----------------------------------------------------------------

CBAM_ = Location(CBAM())
OTHERS = {
    "gate": (Location(SE()), Location(SE(gate="tanh"))),
    "activation": (Location(SE()), Location(SE(activation="silu"))),
    "skips": (CBAM_, Location(CBAM(), skips=True)),
    "order": (CBAM_, Location(CBAM(order="parallel"))),
    "eps": (Magnitude(), Magnitude(eps=0.2)),
    "function": (Magnitude(), Magnitude("thesis")),
    "start": (Location(SE()), Location(SE(), start="identity")),
    "control": (Location(SE()), Location(SE(), control="mean")),
    "the order of a chain": ([Standardize(), Magnitude()], [Magnitude(), Standardize()]),
    "global": (Global(), Global(gate="tanh")),
    "no parameters at all": (Standardize(), Magnitude("tanh")),
    "stacked": (
        Location(SE(), stacked=[Standardize(), Location(SE())]),
        Location(SE(), stacked=[Standardize(), Location(SE(gate="tanh"))]),
    ),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("case", OTHERS)
def test_another_excitation_s_state_is_refused(case, strict, tmp_path):
    first, second = OTHERS[case]
    if case != "no parameters at all":
        assert conv(first).state_dict().keys() == conv(second).state_dict().keys()
    torch.save(nn.Sequential(conv(first)).state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    nn.Sequential(conv(first)).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"0\.weight was saved with .* and has .* here"):
        nn.Sequential(conv(second)).load_state_dict(state, strict=strict)


def test_a_layer_with_a_name_of_ours_is_excited_as_any_other():
    class Named(nn.Conv2d):
        excited = True

    layer = excite(Named(8, 8, 3), SE_WS)
    assert copy.deepcopy(layer).weight.shape == layer.weight.shape
    with pytest.raises(RuntimeError, match="is computed and cannot be assigned"):
        layer.weight = nn.Parameter(torch.zeros(8, 8, 3, 3))


def test_a_shared_net_is_not_loaded_from_several():
    def pair(shared):
        return excite(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)), SE_WS, shared=shared)

    pair(True).load_state_dict(pair(True).state_dict())
    with pytest.raises(RuntimeError, match="shared"):
        pair(True).load_state_dict(pair(False).state_dict())


def test_filters_on_another_axis_are_another_configuration():
    def linear(axis=None):
        return excite(nn.Sequential(nn.Linear(8, 8)), SE_WS, where="0", axis=axis)

    linear().load_state_dict(linear(0).state_dict())
    with pytest.raises(RuntimeError, match=r"axis=\(1,\)"):
        linear().load_state_dict(linear(1).state_dict(), strict=False)


@pytest.mark.parametrize(
    ("first", "second"), [(SE(), SE(gate="tanh")), (CBAM(), CBAM(order="reversed"))]
)
def test_another_attention_s_state_is_refused(first, second):
    def attended(attention):
        return attend(resnet(), attention, where=r"^layer1\.0$")

    state = attended(first).state_dict()
    attended(first).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"layer1\.0\.feature_attention was saved with"):
        attended(second).load_state_dict(state)


def test_a_state_without_metadata_is_loaded_with_one_warning():
    model, other = excite(resnet(), OURS), excite(resnet(), OURS)
    for _ in range(2):
        with pytest.warns(UserWarning, match="does not say what conv1.weight") as caught:
            other.load_state_dict(dict(model.state_dict()))
        assert len(caught) == 1
    assert torch.equal(other(images()), model(images()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(model.state_dict())


@pytest.mark.parametrize("excitation", [OURS, Location(SE(), stacked=SE_WS), Magnitude()])
def test_a_plain_state_is_loaded_into_the_stored_weights(excitation):
    plain, model = resnet(), excite(resnet(), excitation)
    with torch.no_grad():
        for p in plain.parameters():
            p.mul_(2)
    nets = {k: v.clone() for k, v in model.state_dict().items() if ".weight.0." in k}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = model.load_state_dict(plain.state_dict())
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    for slot in excited(model):
        stored = slot.module.parametrizations[slot.attribute].original
        assert torch.equal(stored, plain.state_dict()[slot.name])
    state = model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in nets.items())
    assert torch.equal(model.bn1.weight, plain.bn1.weight)


@pytest.mark.parametrize("layer", ["convolution", "attention", "transposed", "the model itself"])
def test_a_plain_state_of_other_layers(layer):
    make, where = {
        "convolution": (lambda: nn.Sequential(nn.Conv1d(4, 4, 3)), None),
        "attention": (lambda: nn.Sequential(nn.MultiheadAttention(8, 2)), "in_proj"),
        "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3)), None),
        "the model itself": (lambda: nn.Linear(4, 4), None),
    }[layer]
    plain, model = make(), excite(make(), SE_WS, where=where)
    expected = excite(copy.deepcopy(plain), SE_WS, where=where)
    assign = copy.deepcopy(model)
    model.load_state_dict(plain.state_dict())
    assign.load_state_dict(plain.state_dict(), assign=True)
    expected.load_state_dict(
        {k: v for k, v in model.state_dict().items() if ".0." in k}, strict=False
    )
    for one in (model, assign):
        for slot, other in zip(excited(one), excited(expected), strict=True):
            assert torch.equal(slot.tensor.original, other.tensor.original)


def test_a_plain_state_that_lacks_a_weight_is_an_error():
    state = resnet().state_dict()
    del state["layer1.0.conv1.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*layer1\.0\.conv1"):
        excite(resnet(), OURS).load_state_dict(state)
    state["conv9.weight"] = torch.ones(1)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*conv9"):
        excite(resnet(), OURS).load_state_dict(state)


def test_keys_of_the_state_are_torch_s():
    keys = conv().state_dict().keys()
    prefix = "parametrizations.weight."
    assert [key.removeprefix(prefix) for key in keys] == [
        "bias",
        "original",
        *(f"0.location.{k}" for k in ("strength", "fc1.weight", "fc1.bias")),
        *(f"0.location.{k}" for k in ("fc2.weight", "fc2.bias")),
    ]


def test_a_checkpoint_carries_its_configuration(tmp_path):
    model = excite(resnet(), OURS)
    save(tmp_path / "net.safetensors", model, model="resnet18", classes=10, options={"width": 4})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = load(tmp_path / "net.safetensors")
    assert torch.equal(other(images()), model(images()))


# --- Writes ---------------------------------------------------------------------------------------

WRITES = {
    "init": lambda layer: nn.init.kaiming_normal_(layer.weight),
    "fill_": lambda layer: layer.weight.detach().fill_(1.0),
    "copy_": lambda layer: layer.weight.detach().copy_(torch.ones(8, 8, 3, 3)),
    "clamp_": lambda layer: torch.no_grad()(lambda: layer.weight.clamp_(-0.1, 0.1))(),
    "an element": lambda layer: torch.no_grad()(lambda: layer.weight[0].zero_())(),
    "in the graph": lambda layer: layer.weight.mul_(2.0),
    "foreach": lambda layer: torch.no_grad()(torch._foreach_mul_)([layer.weight], 2.0),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_what_was_computed_is_refused_at_the_next_look(write, inside):
    layer, x = conv(), torch.randn(1, 8, 5, 5)
    expected = layer(x)

    def look():
        with pytest.raises(RuntimeError, match="written to after it was computed"):
            layer(x)

    if inside:
        with precompute(layer):
            WRITES[write](layer)
            look()
    else:
        WRITES[write](layer)
        look()
    assert torch.equal(layer(x), expected)  # told once


@pytest.mark.parametrize("excitation", [SE_WS, OURS, Standardize(), Magnitude(), Global()])
def test_no_write_is_seen_in_training(excitation):
    """Optimizers write in place to what is stored, and what passes unchanged is that itself."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 1, 1))
    model = excite(nn.Sequential(model, nn.Conv2d(1, 4, 1)), excitation)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step in range(4):
        if step == 2:
            model = model.half().float()
            if not isinstance(excitation, Standardize):
                pause(model)
            model = copy.deepcopy(model)
            optimizer = torch.optim.Adam(model.parameters())
        model(torch.randn(2, 3, 6, 6)).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.99)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_reset_parameters_reaches_the_stored_weight(kind):
    layer, plain = excite(kind(8, 8, 3), SE_WS), kind(8, 8, 3)
    nets = {k: v.clone() for k, v in layer.state_dict().items() if ".0." in k}
    for one in (layer, plain):
        torch.manual_seed(1)
        one.reset_parameters()
    assert torch.equal(layer.parametrizations.weight.original, plain.weight)
    assert torch.equal(layer.bias, plain.bias)
    assert all(torch.equal(layer.state_dict()[k], v) for k, v in nets.items())


@pytest.mark.parametrize(
    "init",
    [
        lambda m: nn.init.constant_(m.weight, 2.0),
        lambda m: m.weight.data.fill_(2.0),
        lambda m: setattr(m, "weight", nn.Parameter(torch.full_like(m.weight, 2.0))),
        lambda m: setattr(m.weight, "data", torch.full_like(m.weight, 2.0)),
    ],
)
def test_apply_reaches_the_stored_weight(init):
    model = excite(resnet(), OURS)
    model.apply(lambda m: init(m) if isinstance(m, nn.Conv2d) and m.in_channels > 2 else None)
    stored = [slot.tensor.original for slot in excited(model) if slot.module.in_channels > 2]
    assert stored and all((p == 2).all() and isinstance(p, nn.Parameter) for p in stored)
    assert not (model.conv1.weight == 2).any()


def test_assigning_is_refused():
    """What is assigned may be of the stored weight, or of the excited one, as in fusing."""
    layer, norm, x = conv().eval(), nn.BatchNorm2d(8).eval(), torch.randn(1, 8, 5, 5)
    expected = layer(x)
    for value in (nn.Parameter(torch.randn(8, 8, 3, 3)), torch.randn(8, 8, 3, 3)):
        with pytest.raises(RuntimeError, match="cannot be assigned: assign to the stored one"):
            layer.weight = value
    with pytest.raises(RuntimeError, match="fold the model first"):
        nn.utils.fusion.fuse_conv_bn_eval(layer, norm)
    assert torch.equal(layer(x), expected) and "weight" not in layer._parameters
    given = nn.Parameter(torch.randn(8, 8, 3, 3))
    layer.parametrizations.weight.original = given
    assert torch.equal(layer.weight, layer.parametrizations.weight[0](given))
    fused = nn.utils.fusion.fuse_conv_bn_eval(fold(copy.deepcopy(layer)), norm)
    torch.testing.assert_close(fused(x), norm(layer(x)))


def test_the_norm_can_follow_no_excitation():
    layer, x = conv(), torch.randn(1, 8, 5, 5)
    expected = layer(x)
    for add in (
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
    ):
        with pytest.raises(ValueError, match="only parametrization: fold the model first"):
            add(layer)
        assert torch.equal(layer(x), expected)
    assert not isinstance(fold(layer).weight, property)


def test_a_bias_may_have_a_parametrization_of_its_own():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4), "bias", dim=None)
    layer, x = excite(nn.Sequential(layer), SE_WS, where="weight"), torch.randn(2, 4)
    twin = copy.deepcopy(layer)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(fold(twin)(x), layer(x))


@pytest.mark.parametrize("attention", [SE(), CBAM(), BAM(), Triplet()])
def test_what_an_excitation_reads_is_never_taken_for_a_write(attention):
    layer = conv([Standardize(), Location(attention), Magnitude()])
    for _ in range(3):
        layer(torch.randn(1, 8, 5, 5)).sum().backward()
