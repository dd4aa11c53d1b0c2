"""A checkpoint alone rebuilds its model, to the last bit, or says in a sentence why not."""

import json

import pytest
import torch
from networks import OURS, SE_WS, images, resnet
from safetensors.torch import load_file, save_file
from torch import nn

from wexlib import (
    BAM,
    SE,
    Global,
    Location,
    Magnitude,
    Standardize,
    Triplet,
    attend,
    excite,
    load,
    save,
)
from wexlib import models as library
from wexlib.checkpoint import from_json, to_json
from wexlib.parametrization import chain
from wexlib.where import excited

RESNET = {"model": "resnet18", "classes": 10, "options": {"width": 4}}
EXCITATIONS = [
    OURS,
    SE_WS,
    Location(SE(), stacked=[Standardize(), Location(SE())]),
    Location(SE("silu", reduction=4), start="identity", skips=True),
    [Location(BAM(), control="free"), Magnitude("learnable", eps=0.2)],
    [Location(Triplet()), Location(SE(), control="mean")],
    Global(width=None),
]


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("excitation", EXCITATIONS, ids=lambda e: str(chain(e)))
def test_an_excitation_comes_back_from_its_text(excitation):
    excitation = chain(excitation)
    assert from_json(json.loads(json.dumps(to_json(excitation)))) == excitation


@pytest.mark.parametrize("excitation", [None, *EXCITATIONS], ids=lambda e: str(e and chain(e)))
def test_a_model_comes_back(excitation, tmp_path):
    model = resnet() if excitation is None else excite(resnet(), excitation)
    save(tmp_path / "a", model, **RESNET)
    state = torch.random.get_rng_state()
    again = load(tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not again.training and same(model, again)
    assert torch.equal(again(images()), model(images()))


def test_equal_models_are_equal_files(tmp_path):
    model, file = resnet(), tmp_path / "a.safetensors"
    written = set()
    for _ in range(8):
        save(file, {0: model}, **RESNET)
        written.add(file.read_bytes())
    assert len(written) == 1


def test_several_excitations_and_one_that_is_shared(tmp_path):
    model = resnet()
    excite(model, Global(), where="layer1", shared=True)
    excite(model, Location(SE()), where="layer2.*conv1")
    excite(model, Magnitude(), where="fc")
    save(tmp_path / "a", model, **RESNET)
    again = load(tmp_path / "a")
    assert same(model, again)
    assert [(s.name, s.excitation.excitation) for s in excited(again)] == [
        (s.name, s.excitation.excitation) for s in excited(model)
    ]
    assert len({id(s.excitation) for s in excited(again, "layer1")}) == 1
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())


def test_queries_keys_values_and_transposed_layers(tmp_path, monkeypatch):
    def both(*, classes):
        layers = nn.MultiheadAttention(16, 2), nn.ConvTranspose2d(16, classes, 3)
        return nn.ModuleList(layers)

    monkeypatch.setitem(library.MODELS, "both", both)
    for shared in (False, True):
        model = excite(both(classes=16), Global(), where="in_proj|1", shared=shared)
        save(tmp_path / "a", model, model="both", classes=16)
        again = load(tmp_path / "a")
        assert same(model, again)
        assert len(list(again.parameters())) == len(list(model.parameters()))


def test_seeds_and_paused_models(tmp_path):
    models = {seed: excite(resnet(), SE_WS) for seed in (10, 2)}
    models[2].layer1[0].conv1.parametrizations.weight[0].location.strength.fill_(0.25)
    save(tmp_path / "a", models, **RESNET, image_size=(16, 16))
    assert same(load(tmp_path / "a"), models[10]) and same(load(tmp_path / "a", 2), models[2])
    with pytest.raises(ValueError, match=r"has the seeds \[10, 2\], not 3"):
        load(tmp_path / "a", seed=3)


def test_models_that_are_excited_differently_have_no_file_in_common(tmp_path):
    models = {0: excite(resnet(), Magnitude()), 1: excite(resnet(), Magnitude("thesis"))}
    with pytest.raises(ValueError, match="excited differently"):
        save(tmp_path / "a", models, **RESNET)


def test_what_cannot_be_loaded_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="no checkpoint .*a.safetensors"):
        load(path)
    save_file({"fc.weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="does not say what model it holds"):
        load(path)
    save(path, excite(resnet(), Location(SE())), **RESNET)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="a.safetensors is damaged"):
        load(path)
    path.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(ValueError, match="a.safetensors is damaged, its checksum is another"):
        load(path)
    path.write_bytes(whole.replace(b'reduction\\": 16', b'reduction\\": 17'))
    with pytest.raises(ValueError, match="a.safetensors is damaged, its metadata are others"):
        load(path)
    path.write_bytes(b"nothing of it")
    with pytest.raises(ValueError, match="a.safetensors is damaged"):
        load(path)
    path.write_bytes(whole)
    assert {name.partition(".")[0] for name in load_file(path)} == {"0"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"class": "Locations"}, "unknown class of an excitation 'Locations'.*did you mean"),
        ({"class": "Standardize", "eps": 1}, "Standardize cannot be made of {'eps': 1}"),
        ({"class": "SE", "reduction": 0}, "reduction is 0"),
        ({}, "unknown class of an excitation None"),
    ],
)
def test_texts_that_name_no_excitation(text, message):
    with pytest.raises(ValueError, match=message):
        from_json(text)


def test_what_json_does_not_hold_is_refused():
    with pytest.raises(TypeError, match="cannot be saved"):
        to_json(torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_keeps_its_dtype(dtype, tmp_path):
    path = tmp_path / "net.safetensors"
    model = excite(resnet(), OURS).to(dtype)
    save(path, model, **RESNET)
    other = load(path)
    assert same(model, other)
    assert all(p.dtype == dtype and p.requires_grad for p in other.parameters())


def test_tensors_lie_as_torch_puts_them(tmp_path):
    """Elsewhere products of matrices differ in their last bits."""
    path = tmp_path / "net.safetensors"
    save(path, excite(resnet(), OURS), **RESNET)
    assert not any(p.data_ptr() % 64 for p in load(path).parameters())


def test_a_model_with_attention_on_its_feature_maps_comes_back(tmp_path):
    model = excite(resnet(), Standardize())
    attend(model, BAM(reduction=2), where=r"^layer1\.[01]$")
    attend(model, SE("silu"), where=r"^layer2\.0$")
    model(images())  # its batch norms see something
    save(tmp_path / "a", model.eval(), **RESNET)
    again = load(tmp_path / "a")
    assert same(model, again) and torch.equal(again(images()), model(images()))
    attended = {n: m.feature_attention.attention for n, m in again.named_modules() if _attended(m)}
    assert attended == {
        "layer1.0": BAM(reduction=2),
        "layer1.1": BAM(reduction=2),
        "layer2.0": SE("silu"),
    }
    with pytest.raises(ValueError, match="the models are excited differently"):
        save(tmp_path / "b", {0: model, 1: excite(resnet(), Standardize())}, **RESNET)


def _attended(module):
    return hasattr(module, "feature_attention")


def own(classes=10):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 14 * 14, classes))


def test_a_model_of_ones_own_is_given_to_load(tmp_path):
    model = excite(own(), Location(SE()))
    save(tmp_path / "a", model, model="nets:own", classes=10)
    with pytest.raises(ValueError, match="holds a model of your own, nets:own: .*model=it"):
        load(tmp_path / "a")
    plain = own()
    assert load(tmp_path / "a", model=plain) is plain
    assert same(model, plain) and torch.equal(plain(images()), model(images()))
    with pytest.raises(ValueError, match="does not fit the model: .*size mismatch for 2.weight"):
        load(tmp_path / "a", model=own(classes=3))


def test_a_flipped_bit_anywhere_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    save(path, excite(resnet(), SE_WS), **RESNET)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        place, bit = (torch.randint(n, (), generator=generator).item() for n in (len(content), 8))
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"damaged|does not say what model|has the seeds"):
            load(path)
