"""An excited model is copied, saved, trained and compiled like any other."""

import copy

import pytest
import torch
from networks import OURS, SE_WS, images, resnet
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from wexlib import excite, fold, pause, precompute, resume
from wexlib.where import excited


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_state_dict_round_trip(tmp_path):
    model = resume(excite(resnet(), OURS), strength=0.5)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = excite(resnet(), OURS)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other(images()), model(images()))
    keys = [k for k in model.state_dict() if k.startswith("layer3.0.conv1.")]
    prefix = "layer3.0.conv1.parametrizations.weight."
    assert [k.removeprefix(prefix) for k in keys] == [
        "original",
        *(f"0.location.{k}" for k in ("strength", "fc1.weight", "fc1.bias", "fc2.weight")),
        *(f"0.location.{k}" for k in ("fc2.bias", "spatial.weight", "spatial.bias")),
        "0.magnitude.strength",
    ]


def test_copies_stand_alone():
    """Torch's own copies share a class: folding one would take the weight from the other."""
    model = excite(resnet(), OURS)
    expected = model(images())
    twin, export = copy.deepcopy(model), fold(copy.deepcopy(copy.deepcopy(model)))
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(0.5)
    assert torch.equal(model(images()), expected) and torch.equal(export(images()), expected)
    changed = twin(images())
    with parametrize.cached():
        assert torch.equal(model(images()), expected) and torch.equal(twin(images()), changed)
    fold(model)
    assert torch.equal(twin(images()), changed)


def test_precomputed_weights_are_computed_once_and_train_alike():
    """Before the first layer, with the same gradients; a plain model is let through."""
    plain, model, x = resnet(), excite(resnet(), OURS).double(), images().double()
    calls, order = [], []
    for slot in excited(model):
        slot.excitation.register_forward_hook(lambda *_: calls.append(len(order)))
    model.conv1.register_forward_pre_hook(lambda *_: order.append("conv1"))
    model(x).square().mean().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    count = len(calls)
    model.zero_grad()
    calls.clear(), order.clear()
    with precompute(model):
        model(x)
        model(x).square().mean().backward()
    assert calls == [0] * count and len(order) == 2
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])
    with precompute(plain):
        plain(images())


def test_precompute_forgets_its_weights_inside_another():
    teacher, student = excite(resnet(), SE_WS), excite(resnet(), SE_WS)
    with torch.no_grad(), precompute(teacher):
        for _ in range(2):
            with precompute(student):
                inside = student(images())
            assert torch.equal(inside, student(images()))
            for p in student.parameters():
                p.mul_(0.5)
    assert not parametrize._cache and not parametrize._cache_enabled


def test_a_copy_inside_one_model_stands_alone_too():
    layer = excite(nn.Conv2d(4, 4, 3), SE_WS)
    model = nn.Sequential(layer, copy.deepcopy(layer), layer)
    model = copy.deepcopy(model)
    assert model[0] is model[2] and model[0] is not model[1]
    x = torch.randn(1, 4, 9, 9)
    expected = model(x)
    assert torch.equal(fold(model)(x), expected)


def test_average_of_a_moving_model():
    model = excite(resnet(), OURS)
    average = torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda old, new, n: new)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    average.update_parameters(model)
    assert torch.equal(average(images()), model(images()))


def test_compile_in_one_graph():
    model, x = excite(resnet(), OURS).double(), images().double()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected = model(x)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-10, atol=0)
    pause(model)
    paused = model(x)
    assert not torch.allclose(paused, expected, rtol=1e-2)
    torch.testing.assert_close(compiled(x), paused, rtol=1e-10, atol=0)


def test_gradient_accumulation_is_the_whole_batch():
    model = excite(resnet(), OURS).double()
    x = images(4).double() / 1e6  # in evaluation nothing normalizes the unit weights
    model(x).square().sum().backward()
    whole = {k: p.grad.clone() for k, p in model.named_parameters()}
    model.zero_grad()
    for half in x.chunk(2):
        model(half).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, whole[name], rtol=1e-9, atol=1e-9)


def test_every_parameter_learns():
    model = excite(resnet(), OURS).train()
    F.cross_entropy(model(images(4)), torch.arange(4)).backward()
    without = [k for k, p in model.named_parameters() if p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = excite(resnet(), OURS)
        twin = copy.deepcopy(model)
        parallel = nn.parallel.DistributedDataParallel(model)
        for one in (parallel, twin):
            F.cross_entropy(one.train()(images(4)), torch.arange(4)).backward()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_functional_call():
    model = excite(resnet(), OURS)
    state = {k: v * 0.9 for k, v in model.state_dict().items() if v.is_floating_point()}
    out = torch.func.functional_call(model, state, (images(),))
    own = model.state_dict()
    own.update(state)
    model.load_state_dict(own)
    assert torch.equal(model(images()), out)
