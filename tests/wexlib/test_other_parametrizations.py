"""Weights that something else computes already: refused in a sentence, the model as it was."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import (
    parametrizations,
    parametrize,
    prune,
    remove_spectral_norm,
    remove_weight_norm,
    spectral_norm,
    weight_norm,
)

from wexlib import SE, Location, Magnitude, excite
from wexlib.where import slots_of

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")


def twice_pruned(layer: nn.Module) -> nn.Module:
    return prune.random_unstructured(prune.l1_unstructured(layer, "weight", 0.5), "weight", 0.5)


def third_party(layer: nn.Module) -> nn.Module:
    """A weight that is clipped in a hook, as a spectral norm of one's own does it."""
    bar = nn.Parameter(layer.weight.detach())
    del layer.weight
    layer.weight_bar, layer.weight = bar, bar.detach()
    layer.register_forward_pre_hook(
        lambda module, _: setattr(module, "weight", module.weight_bar.clamp(-1, 1))
    )
    return layer


#: What is on the weight, what names it, and what undoes it.
HOOKED = {
    "weight norm": (
        weight_norm,
        "weight_g and weight_v by WeightNorm: undo that with torch.nn.utils.remove_weight_norm",
        remove_weight_norm,
    ),
    "spectral norm": (
        spectral_norm,
        "weight_orig by SpectralNorm: undo that with torch.nn.utils.remove_spectral_norm",
        remove_spectral_norm,
    ),
    "pruned": (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        "weight_orig by L1Unstructured: undo that with torch.nn.utils.prune.remove",
        lambda layer: prune.remove(layer, "weight"),
    ),
    "pruned twice": (
        twice_pruned,
        "weight_orig by PruningContainer: undo that with torch.nn.utils.prune.remove",
        lambda layer: prune.remove(layer, "weight"),
    ),
    "by a hook of one's own": (
        third_party,
        "weight_bar by something else: undo that, or select other weights by where",
        None,
    ),
}
LAYERS = {
    "convolution": lambda: nn.Conv2d(4, 6, 3),
    "transposed": lambda: nn.ConvTranspose1d(4, 6, 3),
    "linear": lambda: nn.Linear(4, 6),
}
EVERYTHING = [None, "weight", "1.weight$", (nn.Linear, nn.Conv2d, nn.ConvTranspose1d)]


def refuses(model, words, where=None) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        excite(model, [Location(SE()), Magnitude()], where=where)
    assert "\n" not in str(caught.value)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(slot.excitation for slot in slots_of(model))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", HOOKED)
def test_a_tensor_that_a_hook_computes_is_refused_until_it_is_undone(kind, layer):
    wrap, words, undo = HOOKED[kind]
    hooked = wrap(LAYERS[layer]())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), hooked)
    for where in EVERYTHING if layer != "linear" else EVERYTHING[1:]:
        refuses(model, f"1.weight is computed of {words}", where)
    assert [slot.name for slot in slots_of(model)] == ["0.weight", "1.weight"]
    excite(model, Magnitude(), where=r"^0")
    if undo:
        undo(hooked)
        excite(model, Magnitude(), where=r"^1")
        assert parametrize.is_parametrized(hooked, "weight")


def test_what_is_on_another_tensor_of_the_layer_is_no_matter():
    layer = prune.l1_unstructured(nn.Conv2d(4, 6, 3), "bias", 0.5)
    x = torch.randn(1, 4, 5, 5)
    plain = layer(x)
    excite(layer, Location(SE(), start="identity"))
    assert parametrize.is_parametrized(layer, "weight") and torch.equal(layer(x), plain)


def test_other_names_than_weight():
    attention = prune.l1_unstructured(nn.MultiheadAttention(8, 2), "in_proj_weight", 0.5)
    refuses(attention, "in_proj_weight is computed of in_proj_weight_orig by L1U", "in_proj")
    recurrent = weight_norm(nn.LSTM(4, 4), "weight_hh_l0")
    refuses(recurrent, "weight_hh_l0 is computed of weight_hh_l0_g and weight_hh_l0_v", "hh")


def test_the_tool_is_the_one_on_that_tensor():
    layer = weight_norm(prune.l1_unstructured(nn.Linear(4, 6), "bias", 0.5))
    refuses(layer, "weight is computed of weight_g and weight_v by WeightNorm: undo that with")


def test_a_plain_tensor_beside_a_parameter_is_no_matter():
    layer = nn.Linear(4, 6)
    layer.mask, layer.mask_map = torch.ones(6, 6), nn.Parameter(torch.ones(6, 4))
    assert [slot.name for slot in slots_of(layer)] == ["weight", "mask_map"]


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (parametrizations.weight_norm, "_WeightNorm"),
        (parametrizations.spectral_norm, "_SpectralNorm"),
        (parametrizations.orthogonal, "_Orthogonal"),
    ],
)
@pytest.mark.parametrize("layer", LAYERS)
def test_another_parametrization_is_refused_until_it_is_removed(wrap, kind, layer):
    layer = wrap(LAYERS[layer]())
    refuses(layer, f"weight is already parametrized by something else, {kind}: undo that with", "w")
    parametrize.remove_parametrizations(layer, "weight")
    excite(layer, Magnitude())
