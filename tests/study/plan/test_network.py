"""What a plan's network is: where excitation and attention go, and what it starts from."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import wexlib
from study.plan import network, pretrained
from study.plan.keys import excitation
from wexlib import CBAM, SE, Global, Location, Magnitude, Standardize, models

SMALL = {"classes": 3, "image_size": (16, 16)}


def plan(model="resnet18", options=None, origin=None, **we):
    options = {"width": 8} if options is None else options
    made = {"model": model, "model_options": options, "pretrained": origin}
    return made | {"we": excitation(we, "we")}


def build(seed=0, **given):
    return network.build(plan(**given), seed, **SMALL)


def excited(model):
    return [row["weight"] for row in wexlib.describe(model)]


def test_attention_on_features_is_attend_on_every_residual_block():
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = build(attention="cbam", on="features", activation="leaky_relu", reduction=4)
    by_hand = build()
    wexlib.attend(
        by_hand,
        CBAM(activation="leaky_relu", reduction=4),
        where=r"^layer[1-4]\.[01]$",
        generator=torch.Generator().manual_seed(network.derive(0, "attention")),
    )
    assert torch.equal(model.eval()(images), by_hand.eval()(images))
    with pytest.raises(ValueError, match="has no excited weight"):
        wexlib.describe(model)


def test_standardization_and_magnitude_stay_on_weights():
    model = build(attention="se", on="features", standardize=True, magnitude="artanh")
    made = {str(row["excitation"]) for row in wexlib.describe(model)}
    assert made == {"standardize + magnitude(artanh)"}


@pytest.mark.parametrize("on", ["weights", "features"])
def test_where_names_layers(on):
    model = build(attention="se", on=on, where=r"^layer3")
    attended = [n for n, m in model.named_modules() if hasattr(m, "feature_attention")]
    if on == "features":
        assert attended == ["layer3.0", "layer3.1"]
    else:
        assert attended == [] and len(excited(model)) == 5
        assert all(name.startswith("layer3.") for name in excited(model))
    # The end of a layer's name, and not of its weight's.
    model = build(attention="se", where=r"conv2$")
    assert len(excited(model)) == 8 and all("conv2" in name for name in excited(model))


def test_several_attentions_are_a_chain_in_their_order():
    model = build(attention=["se", "global", "cbam"], standardize=True, magnitude="artanh")
    (chain,) = {slot.excitation.excitation for slot in network.slots_of(model) if slot.excitation}
    assert chain.excitations == (
        Standardize(),
        Location(SE()),
        Global(),
        Location(CBAM()),
        Magnitude(),
    )


def test_two_levels_of_stacking_excite_the_nets_of_nets():
    inner = (Standardize(), Location(SE()))
    outer = (Standardize(), Location(SE(), stacked=inner))
    made = network.excitations(excitation({"attention": "se", "stacked": ["location"] * 2}, "we"))
    assert made == [Location(SE(), stacked=outer)]
    images = torch.randn(2, 3, 16, 16)
    model = build(attention="se", stacked=["location"] * 2, options={"width": 32})
    loss = model(images).square().sum()
    loss.backward()
    ends = ".location.fc1.parametrizations.weight.original"
    deepest = [p for n, p in model.named_parameters() if n.count("fc") == 2 and n.endswith(ends)]
    assert loss.isfinite() and len(deepest) == 2 * 20
    assert any(p.grad.abs().sum() > 0 for p in deepest)


def test_a_network_without_blocks_says_what_attention_on_features_needs():
    places = '{"layers": "conv", "on": "features", "where": null}'
    options = '{"dim": 16, "depth": 2}'
    said = network.model_error("mixer", options, places.replace("conv", "linear"))
    assert said.startswith("mixer has no block (BasicBlock, Bottleneck)")
    for model in ("resnet18_3d", "fcn", "r3d_18", "fcn_resnet50", "resnext29"):
        assert network.model_error(model, "{}", places) == ""


def test_a_function_makes_the_model(tmp_path, monkeypatch):
    text = "from torch import nn\n\n\ndef net(n, width=2):\n    return nn.Conv2d(width, n, 1)\n"
    (tmp_path / "nets_of_test.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    model = build(model="nets_of_test:net", options={"width": 5}, attention="se")
    assert model.weight.shape == (3, 5, 1, 1) and excited(model) == ["weight"]


# --- a start from trained weights ---------------------------------------------------------------


@pytest.fixture
def trained(tmp_path):
    """A trained network of 10 classes, in every kind of file."""
    torch.manual_seed(7)
    model = models.build("resnet18", classes=10, width=8)
    torch.save(model.state_dict(), tmp_path / "net.pt")
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    built_of = {"model": "resnet18", "classes": 10, "options": {"width": 8}}
    wexlib.save(tmp_path / "ours.safetensors", model, **built_of)
    return model


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors", "ours.safetensors"])
def test_a_run_starts_from_a_checkpoint_and_keeps_its_own_head(trained, tmp_path, name):
    own, started = build(), build(origin=str(tmp_path / name))
    for key, tensor in started.state_dict().items():
        source = own if key.startswith("fc.") else trained
        assert torch.equal(tensor, source.state_dict()[key]), key


def test_a_head_that_fits_is_taken_too(trained, tmp_path):
    made = network.build(plan(origin=str(tmp_path / "net.pt")), 0, classes=10, image_size=(16, 16))
    assert torch.equal(made.fc.weight, trained.fc.weight)


def test_an_excited_checkpoint_is_folded(trained, tmp_path):
    wexlib.excite(trained, Location(SE()))
    file = tmp_path / "excited.safetensors"
    wexlib.save(file, trained, model="resnet18", classes=10, options={"width": 8})
    folded = wexlib.fold(trained).conv1.weight
    assert torch.equal(build(origin=str(file)).conv1.weight, folded)


def test_what_does_not_fit_is_named(trained, tmp_path):
    with pytest.raises(ValueError, match=r"bn1.bias is \(8,\) in .* and \(16,\) in the model"):
        build(origin=str(tmp_path / "net.pt"), options={"width": 16})
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ValueError, match="text.pt holds no state_dict"):
        build(origin=str(tmp_path / "text.pt"))
    head = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"pretrained: x is \(2, 2\) in here and not in the model"):
        pretrained.start_from(head, {"x": head[0].weight}, "here")


def test_torchvisions_weights_are_those_of_a_network_of_its_layers():
    from torchvision.models import ResNet18_Weights

    assert pretrained._torchvision("resnet18_imagenet") == ResNet18_Weights.DEFAULT
    assert pretrained._torchvision("mobilenet_v3_small").url.startswith("https://")
    with pytest.raises(ValueError, match="torchvision has no weights of mixer: name a checkpoint"):
        pretrained.check("mixer", "torchvision")
