"""The parameters in three lists, and the recipes of others that sort parameters by layer."""

import copy

import pytest
import torch
from networks import OURS, SE_WS, images, resnet
from torch import nn

import wexlib
from wexlib import BAM, SE, Global, Location, Magnitude, Standardize, excite, fold, parameter_groups
from wexlib.models import build

KINDS = ("weights", "nets", "rest")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def named(model: nn.Module) -> dict[str, list[str]]:
    """The groups by the parameters' names; a tied one by its first."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {kind: [names[p] for p in group] for kind, group in parameter_groups(model).items()}


def by_layer(modules) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """A detector's recipe: norms and biases, which do not decay, and every other ``weight``."""
    still, decays = [], []
    for module in modules:
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            still.append(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            still.append(module.weight)
        elif isinstance(getattr(module, "weight", None), nn.Parameter):
            decays.append(module.weight)
    return still, decays


def by_own_parameters(modules) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The same by what each module has itself."""
    still, decays = [], []
    for module in modules:
        for parameter in dict(module.named_parameters(recurse=False)).values():
            norm = isinstance(module, nn.BatchNorm2d)
            (still if norm or parameter.ndim <= 1 else decays).append(parameter)
    return still, decays


def by_name(modules) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The same by the layer's type and the parameter's name, as of a language model."""
    still, decays = [], []
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" or isinstance(module, nn.BatchNorm2d):
                still.append(parameter)
            elif name == "weight" and isinstance(module, nn.Conv2d | nn.Linear):
                decays.append(parameter)
    return still, decays


EXCITATIONS = {
    "se": SE_WS,
    "cbam": OURS,
    "free": [Location(BAM(), control="free"), Magnitude("learnable")],
    "stacked": Location(SE(), stacked=[Standardize(), Location(SE())]),
    "global": Global(),
}


@pytest.mark.parametrize("name", EXCITATIONS)
def test_every_parameter_is_in_one_group_in_the_model_s_order(name):
    model = excite(resnet(), EXCITATIONS[name])
    groups = named(model)
    assert tuple(groups) == KINDS
    stored = ".parametrizations.weight.original"
    plain = {name for name, _ in resnet().named_parameters()}
    order = [name for name, _ in model.named_parameters()]
    inside = [name for name in order if ".parametrizations.weight." in name]
    weights = [name for name in inside if name.removesuffix(stored) + ".weight" in plain]
    assert groups["weights"] == weights and len(weights) == 20
    assert groups["nets"] == [name for name in inside if name not in set(weights)]
    assert groups["nets"]
    assert groups["rest"] == [name for name in order if name not in set(inside)]
    assert {name for name in groups["rest"]} < plain and "fc.weight" in groups["rest"]


@pytest.mark.parametrize("recipe", [by_layer, by_own_parameters, by_name])
@pytest.mark.parametrize("name", EXCITATIONS)
def test_a_recipe_by_layer_sorts_the_rest_and_a_step_moves_everything(name, recipe):
    model = excite(resnet(), EXCITATIONS[name]).train()
    groups = parameter_groups(model)
    rest = set(groups["rest"])
    still, decays = ([p for p in group if p in rest] for group in recipe(model.modules()))
    lists = [still, decays, groups["weights"], groups["nets"]]
    assert sum(map(len, lists)) == len(list(model.parameters()))
    optimizer = torch.optim.AdamW([{"params": group} for group in lists], lr=0.01)
    before = copy.deepcopy(list(model.parameters()))
    model(images(8)).logsumexp(1).sum().backward()
    optimizer.step()
    moved = [not torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True)]
    assert all(moved)


def test_what_a_recipe_by_layer_misses_without_it():
    model = excite(resnet(), SE_WS)
    found = {id(p) for group in by_layer(model.modules()) for p in group}
    missed = [p for p in model.parameters() if id(p) not in found]
    assert [id(p) for p in missed] == [id(p) for p in parameter_groups(model)["weights"]]


def test_a_plain_and_a_folded_model_have_only_the_rest():
    for model in (resnet(), fold(excite(resnet(), SE_WS))):
        groups = parameter_groups(model)
        assert groups["weights"] == groups["nets"] == [] and len(groups["rest"]) == 62
        torch.optim.SGD([{"params": groups[kind]} for kind in KINDS], lr=0.1)


def test_shared_nets_tied_weights_and_frozen_ones_stand_once():
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, bias=False) for _ in range(3)), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    model[1].requires_grad_(False)
    excite(model, Location(SE(), control="frozen"), where=nn.Conv2d, shared=True)
    first = "0.parametrizations.weight"
    nets = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert named(model) == {
        "weights": [f"{first}.original", "1.parametrizations.weight.original"],
        "nets": [f"{first}.0.{net}" for net in nets],
        "rest": ["3.weight", "3.bias"],
    }


def test_a_weight_that_is_tied_to_a_plain_one_is_an_excited_one_s():
    model = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embedding"].weight
    excite(model, Magnitude(), where="head")
    assert named(model) == {"weights": ["embedding.weight"], "nets": [], "rest": []}


def test_attention_layers_and_another_parametrization_beside_ours():
    model = build("vit", classes=10, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=16)
    nn.utils.parametrizations.orthogonal(model.heads.head)
    excite(model, Location(SE()), where=nn.MultiheadAttention)
    groups = named(model)
    own = "encoder.layers.encoder_layer_0.self_attention.parametrizations.in_proj_weight"
    assert groups["weights"] == [f"{own}.original"]
    assert len(groups["nets"]) == 3 * 4 and all(own in name for name in groups["nets"])
    assert "heads.head.parametrizations.weight.original" in groups["rest"]


def test_attention_on_feature_maps_is_of_the_rest():
    model = wexlib.attend(resnet(), SE(), where=r"^layer\d$")
    excite(model, SE_WS)
    groups = named(model)
    assert sum("feature_attention" in name for name in groups["rest"]) == 4 * 4
    assert len(groups["weights"]) == 20


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="model is list: expected a torch module"):
        parameter_groups([nn.Linear(2, 2)])
