"""How far precompute reaches, and averages of a model that is paused, resumed or shared."""

import copy
import gc
import threading

import pytest
import torch
from networks import OURS, SE_WS, images, resnet
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from wexlib import SE, Global, Location, Magnitude, excite, fold, pause, precompute, resume
from wexlib.layer import LENT
from wexlib.where import excited


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def halve(model):
    """The excited tensors' parameters."""
    for slot in excited(model):
        for p in slot.tensor.parameters():
            p.mul_(0.5)


# --- precompute -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["excited", "weight norm"])
def test_a_student_trains_within_its_teacher_s_precompute(kind):
    teacher, student = excite(resnet(), OURS), resnet()
    if kind == "excited":
        excite(student, SE_WS)
    else:
        nn.utils.parametrizations.weight_norm(student.conv1)
    twin = copy.deepcopy(student.train())

    def train(model, target):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            (model(images()) - target()).square().mean().backward()
            optimizer.step()
        return model(images())

    with torch.no_grad():
        fixed = teacher(images()).sign().sign()
    expected = train(twin, lambda: fixed)
    with precompute(teacher):
        assert torch.equal(train(student, lambda: teacher(images()).detach().sign()), expected)


def test_what_is_made_inside_is_its_own():
    with torch.no_grad(), precompute(excite(resnet(), SE_WS)):
        for _ in range(20):
            layer = excite(nn.Conv2d(4, 4, 3), SE_WS)
            assert torch.equal(layer.weight, layer.parametrizations.weight())
            del layer
            gc.collect()


def test_a_model_that_is_folded_and_excited_inside():
    model = excite(resnet(), OURS)
    with torch.no_grad(), precompute(model):
        fold(model)
        plain = model(images())
        excite(model, Magnitude())
        assert not torch.equal(model(images()), plain)
    assert not LENT.tensors


def test_the_inner_of_two_blocks_computes_anew():
    model = excite(resnet(), SE_WS)
    with torch.no_grad(), precompute(model):
        before = model(images())
        halve(model)
        with precompute(model):
            inside = model(images())
        assert not torch.equal(inside, before)
        assert torch.equal(model(images()), before)
    assert torch.equal(model(images()), inside)


def test_a_block_that_fails_leaves_nothing():
    model = excite(resnet(), SE_WS)
    with pytest.raises(KeyError), precompute(model):
        raise KeyError
    assert not LENT.tensors


def test_another_thread_computes_its_own():
    model, found = excite(resnet(), SE_WS), []

    def look():
        with torch.no_grad(), precompute(model):
            found.append(model(images()))

    with torch.no_grad(), precompute(model):
        before = model(images())
        halve(model)
        threads = [
            threading.Thread(target=lambda: found.append(model(images()))),
            threading.Thread(target=look),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.equal(model(images()), before)
    expected = model(images())
    assert len(found) == 2 and all(torch.equal(one, expected) for one in found)


def test_a_copy_made_inside_computes_its_own():
    model = excite(resnet(), SE_WS)
    with torch.no_grad(), precompute(model):
        twin = copy.deepcopy(model)
        halve(twin)
        assert not torch.equal(twin(images()), model(images()))


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_within_precompute(outside, reentrant):
    """Whether the backward pass runs inside the block or after it."""
    model, x = excite(resnet(), OURS).double(), images().double().requires_grad_()
    model(x).square().mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with precompute(model):
        y = model.conv1(x)
        y = checkpoint(
            nn.Sequential(model.bn1, nn.ReLU(), model.layer1), y, use_reentrant=reentrant
        )
        y = model.layer4(model.layer3(model.layer2(y)))
        loss = model.fc(y.mean((2, 3))).square().mean()
        if not outside:
            loss.backward()
    if outside:
        loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


def test_a_compiled_model_within_precompute():
    model = excite(resnet(), SE_WS).double()
    torch._dynamo.reset()
    compiled, x = torch.compile(model, backend="eager"), images().double()
    with torch.no_grad(), precompute(model):
        torch.testing.assert_close(compiled(x), model(x))


# --- Averages -------------------------------------------------------------------------------------


class ByState:
    """An average of all that a state_dict holds, as timm's ModelEmaV2 keeps it."""

    def __init__(self, model, decay=0.9):
        self.module, self.decay = copy.deepcopy(model), decay

    @torch.no_grad()
    def update_parameters(self, model):
        pairs = zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)
        for mine, theirs in pairs:
            mine.copy_(self.decay * mine + (1 - self.decay) * theirs)


class ByLerp(ByState):
    """As timm's ModelEmaV3 keeps it."""

    @torch.no_grad()
    def update_parameters(self, model):
        pairs = zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)
        mine, theirs = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)
        torch._foreach_lerp_(mine, theirs, weight=1 - self.decay)


AVERAGES = {
    "state": ByState,
    "lerp": ByLerp,
    "swa": AveragedModel,
    "swa with buffers": lambda model: AveragedModel(model, use_buffers=True),
    "ema with buffers": lambda model: AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True
    ),
}


def move(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))


@pytest.mark.parametrize("look", ["calls", "saves"])
@pytest.mark.parametrize("switch", ["paused before", "paused between", "ramped", "paused at last"])
@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_is_excited_as_the_model_is(average, switch, look):
    model = excite(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), OURS)
    if switch == "paused before":
        pause(model)
    averaged = AVERAGES[average](model)
    for step in range(6):
        move(model)
        if switch == "ramped":
            resume(model, strength=step / 5)
        if switch == "paused between":
            pause(model) if step < 3 else resume(model)
        averaged.update_parameters(model)
        if switch == "paused before":
            resume(model)
    if switch == "paused at last":
        pause(model)
        averaged.update_parameters(model)
    strength = 0.0 if switch == "paused at last" else 1.0
    ours = averaged.module
    if look == "saves":
        other = excite(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), OURS)
        other.load_state_dict(ours.state_dict())
        ours = other
    expected = excite(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), OURS)
    with torch.no_grad():
        for mine, theirs in zip(expected.parameters(), ours.parameters(), strict=True):
            mine.copy_(theirs)
    resume(expected, strength=strength)
    assert torch.equal(ours(images()), expected(images()))


@pytest.mark.parametrize("excitation", [Location(SE()), Global(), OURS])
@pytest.mark.parametrize("average", ["state", "lerp", "ema with buffers"])
def test_a_shared_net_is_averaged_once(average, excitation):
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(3)))
    excite(model, excitation, shared=True)
    averaged = AVERAGES[average](model)
    if average == "ema with buffers":
        averaged.update_parameters(model)  # the first copies
    expected = {k: v.clone() for k, v in model.named_parameters()}
    for _ in range(3):
        move(model)
        averaged.update_parameters(model)
        for name, p in model.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * p.detach()
    for name, p in averaged.module.named_parameters():
        torch.testing.assert_close(p, expected[name])
    nets = [key for key in model.state_dict() if "fc1.weight" in key]
    assert len(nets) == 3
    state = model.state_dict(keep_vars=True)
    assert len({id(state[key]) for key in nets}) == 1


def test_a_copy_that_is_switched_itself_follows_nobody():
    model = excite(resnet(), SE_WS)
    twin = pause(copy.deepcopy(model))
    for slot in excited(twin):
        strength = slot.excitation.location.strength
        strength.copy_(strength.clone())  # as DistributedDataParallel does before each step
    assert torch.equal(twin(images()), pause(model)(images()))


@pytest.mark.parametrize("move", ["to", "load", "assign", "functional"])
def test_other_ways_to_set_the_strength(move):
    model = pause(excite(nn.Conv2d(4, 4, 3), SE_WS))
    twin = resume(copy.deepcopy(model))
    state = pause(copy.deepcopy(model)).state_dict()
    x = torch.randn(1, 4, 5, 5)
    if move == "to":
        twin = pause(twin.double()).float()
    elif move == "functional":
        assert torch.equal(torch.func.functional_call(twin, state, (x,)), model(x))
        return
    else:
        twin.load_state_dict(state, assign=move == "assign")
    assert torch.equal(twin(x), model(x))
