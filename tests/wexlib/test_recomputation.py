"""Activation checkpointing: an excited model has the gradients that it has without, to the bit."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

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
    pause,
    resume,
)

EXCITATIONS = {
    "standardize": Standardize(),
    "se": Location(SE()),
    "cbam": Location(CBAM(activation="leaky_relu"), skips=True),
    "bam": Location(BAM()),
    "triplet": Location(Triplet()),
    "free": Location(SE(), control="free"),
    "mean": Location(SE(), control="mean"),
    "stacked": Location(SE(), stacked=(Standardize(), Magnitude())),
    "global": Global(),
    "each channel": Global(width=None),
    "artanh": Magnitude(),
    "learnable": Magnitude("learnable"),
    "chain": [Standardize(), Location(CBAM()), Magnitude()],
}
kinds = pytest.mark.parametrize("excitation", EXCITATIONS.values(), ids=EXCITATIONS)
#: With a loop for each, and without any.
FEW = ["chain", "global", "free"]
few = pytest.mark.parametrize("excitation", [EXCITATIONS[name] for name in FEW], ids=FEW)

anew = partial(checkpoint, use_reentrant=False)
#: What a policy may keep: products of matrices, or what the excitations look at.
KEPT = {
    "products": [torch.ops.aten.convolution.default, torch.ops.aten.addmm.default],
    "looks": [torch.ops.aten.mean.dim, torch.ops.aten.max.dim, torch.ops.aten.sigmoid.default],
}


def network(excitation=None) -> nn.Sequential:
    """Blocks, as the models of timm and transformers have them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Dropout(0.2)),
        nn.Sequential(nn.ConvTranspose2d(8, 8, 1), nn.Tanh()),
        nn.Conv2d(8, 4, 1, bias=False),
    )
    return model if excitation is None else excite(model, excitation)


def images(grad: bool = False) -> torch.Tensor:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return x.requires_grad_(grad)


def each(model, x, of=anew, which=range(4)):
    for i, block in enumerate(model):
        x = of(block, x) if i in which else block(x)
    return x


def selective(kept, model, x):
    return anew(model, x, context_fn=partial(create_selective_checkpoint_contexts, KEPT[kept]))


def without_early_stop(model, x):
    with set_checkpoint_early_stop(False):
        return anew(model, x)


def on_cpu(model, x):
    with save_on_cpu():
        return anew(model, x)


WAYS = {
    "whole": anew,
    "each block": each,
    "some blocks": partial(each, which=[1, 3]),
    "sequential": lambda model, x: checkpoint_sequential(model, 2, x, use_reentrant=False),
    "nested": lambda model, x: anew(partial(each, model), x),
    "no early stop": without_early_stop,
    "debug": partial(anew, debug=True),
    "products kept": partial(selective, "products"),
    "looks kept": partial(selective, "looks"),
    "saved on the cpu": on_cpu,
    "reentrant": lambda model, x: checkpoint(model, x.requires_grad_(), use_reentrant=True),
    "reentrant blocks": lambda model, x: each(
        model, x.requires_grad_(), partial(checkpoint, use_reentrant=True)
    ),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def gradients(model, way, backward=None) -> list[torch.Tensor | None]:
    model.zero_grad()
    torch.manual_seed(2)
    loss = way(model, images()).square().mean()
    (backward or torch.Tensor.backward)(loss)
    return [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()]


def same(found, expected) -> bool:
    return all(
        a is b if b is None else torch.equal(a, b) for a, b in zip(found, expected, strict=True)
    )


def plainly(model, x):
    return model(x)


@ways
@few
def test_gradients_are_those_without(excitation, way):
    model = network(excitation)
    assert same(gradients(model, way), gradients(model, plainly))


@kinds
def test_every_excitation(excitation):
    model = network(excitation)
    expected = gradients(model, plainly)
    for way in ("whole", "some blocks"):
        assert same(gradients(model, WAYS[way]), expected)


@pytest.mark.parametrize("state", ["paused", "half", "frozen", "only nets", "bfloat16", "last"])
@few
def test_in_every_state(excitation, state):
    model = network(excitation)
    if state in ("paused", "half"):
        pause(model) if state == "paused" else resume(model, strength=0.5)
    for name, p in model.named_parameters():
        if state in ("frozen", "only nets"):
            p.requires_grad_(("original" in name) == (state == "frozen"))
    if state == "last":
        model.to(memory_format=torch.channels_last)

    def mixed(way, model, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=state == "bfloat16"):
            return way(model, x.requires_grad_()).float()

    for way in (anew, each):
        found = gradients(model, partial(mixed, way))
        assert same(found, gradients(model, partial(mixed, plainly)))


@pytest.mark.parametrize("shared", [False, True], ids=["a layer twice", "one for all"])
@few
def test_what_is_used_twice(excitation, shared):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)]
    model = nn.Sequential(*(layers if shared else [layers[0]] * 2))
    excite(model, excitation, shared=shared)

    def twice(of, model, x):
        for layer in [*model, *model]:
            x = of(layer, x) if of else layer(x)
        return x

    assert same(gradients(model, partial(twice, anew)), gradients(model, partial(twice, None)))


def again(loss):
    loss.backward(retain_graph=True)
    loss.backward()


@pytest.mark.parametrize("way", ["whole", "some blocks", "no early stop", "reentrant"])
@few
def test_backward_twice(excitation, way):
    model = network(excitation)
    assert same(gradients(model, WAYS[way], again), gradients(model, plainly, again))


@pytest.mark.parametrize("way", ["whole", "some blocks"])
@kinds
def test_double_backward(excitation, way):
    model = network(excitation)

    def penalty(loss):
        parameters = list(model.parameters())
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        sum(g.square().sum() for g in first if g.requires_grad).backward()

    assert same(gradients(model, WAYS[way], penalty), gradients(model, plainly, penalty))


@kinds
def test_saved_tensors_are_unpacked_once(excitation):
    model, packed, unpacked = network(excitation), [], []

    def pack(x):
        packed.append(x)
        return len(packed) - 1, x.detach()

    def unpack(pair):
        unpacked.append(pair[0])
        return pair[1]

    with saved_tensors_hooks(pack, unpack):
        model(images()).square().mean().backward()
    assert packed and len(unpacked) == len(set(unpacked))


@few
def test_dropout_is_that_of_before_or_drawn_anew(excitation):
    """Excitations draw nothing, so that ``preserve_rng_state`` means what it does in any model."""
    model = network(excitation)
    expected = gradients(model, plainly)
    assert same(gradients(model, partial(anew, preserve_rng_state=True)), expected)
    model[1][2].p = 0.0
    expected = gradients(model, plainly)
    assert same(gradients(model, partial(anew, preserve_rng_state=False)), expected)


@pytest.mark.parametrize("attention", [SE(), CBAM(), BAM(), Triplet()], ids=str)
def test_attention_on_feature_maps(attention):
    def fresh():
        torch.manual_seed(0)
        return attend(network(Location(SE())), attention, where="^[12]$").eval()

    assert same(gradients(fresh(), each), gradients(fresh(), plainly))


@few
def test_attention_layers_and_linear_ones(excitation):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    excite(layer, excitation, where="weight$")

    found = gradients(layer, lambda m, x: anew(m, x.flatten(2)[:, :, :8]))
    assert same(found, gradients(layer, lambda m, x: m(x.flatten(2)[:, :, :8])))
