"""CUDA graphs, with a tape in their place: the same operations in the same order and memory."""

import copy
import gc
import pickle
import threading
import warnings
import weakref
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from networks import OURS, SE_WS, images, resnet
from tape import Beside, Tape
from test_recomputation import EXCITATIONS, network
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from wexlib import (
    SE,
    Global,
    Location,
    Magnitude,
    Standardize,
    control,
    excite,
    fold,
    parameter_groups,
    pause,
    precompute,
    remove,
    resume,
)
from wexlib.layer import LENT
from wexlib.lending import KNOWN, lend
from wexlib.ops import capture, deferred, fused
from wexlib.ops.capture import FIRST_CALLS, Captured
from wexlib.where import excited


@pytest.fixture(autouse=True)
def tape(monkeypatch):
    """A CPU that has graphs, and computes as a GPU does: by formulas, with no look at a number."""
    torch.manual_seed(0)
    monkeypatch.setitem(capture.GRAPHS, "cpu", Tape)
    monkeypatch.setitem(control.LENDERS, "cpu", lend)
    monkeypatch.setattr(fused, "fits", lambda *_: False)
    monkeypatch.setattr(deferred, "recorded", lambda: True)
    Tape.made.clear()
    Beside.said.clear()


@contextmanager
def without_graphs():
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(capture.GRAPHS, "cpu")
        patch.delitem(control.LENDERS, "cpu")
        yield


def tapes():
    return [tape for tape in Tape.made if tape.operations]


def replays():
    return sum(tape.replays for tape in Tape.made)


# --- A whole step --------------------------------------------------------------------------------


class Training:
    """A training loop as the pipeline's, its step a function."""

    def __init__(self, excitation=SE_WS, optimizer="sgd"):
        torch.manual_seed(1)
        layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2)
        top = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(8, 10)
        self.model = nn.Sequential(*layers, *top)
        if excitation:
            excite(self.model, excitation)
        options = {"lr": torch.tensor(0.1), "weight_decay": 1e-3, "fused": True}
        if optimizer == "sgd":
            self.optimizer = torch.optim.SGD(self.model.parameters(), momentum=0.9, **options)
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), **options)
        self.loss_sum = torch.zeros((), dtype=torch.float64)
        self.correct = torch.zeros((), dtype=torch.int64)

    def step(self, x, labels):
        with precompute(self.model), torch.autocast("cpu", torch.bfloat16):
            scores = self.model(x)
        loss = F.cross_entropy(scores.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        loss = loss.detach()
        self.loss_sum += loss * len(labels)
        self.correct += (scores.detach().argmax(1) == labels).sum()
        return loss

    def run(self, step, steps=9):
        torch.manual_seed(2)
        losses = []
        for i in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"].fill_(0.01 * (i + 1))
            n = 3 if i % 4 == 3 else 4  # a smaller batch now and then
            losses.append(step(torch.randn(n, 3, 8, 8), torch.arange(n) % 10).clone())
        return losses

    def state(self):
        return self.model.state_dict() | {"loss": self.loss_sum, "correct": self.correct}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("excitation", [None, SE_WS, OURS], ids=["plain", "SE", "all"])
def test_a_captured_step_trains_to_the_same_bits(excitation, optimizer):
    eager, captured = Training(excitation, optimizer), Training(excitation, optimizer)
    with without_graphs():
        expected = eager.run(eager.step)
    assert not Tape.made
    found = captured.run(Captured(captured.step))
    assert all(map(torch.equal, found, expected))
    assert same(captured.state(), eager.state())
    (tape,) = tapes()
    assert tape.replays == 9 - 2 - FIRST_CALLS  # two smaller batches


def test_each_call_has_the_same_operations_in_the_same_memory():
    training = Training()
    step = Captured(training.step)
    training.run(step)
    (tape,) = tapes()
    x, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    with Tape(None) as again:  # as it is, written down beside
        again.saved, again.own = {}, set()
        training.step(x, labels)
    names = [str(operation[0]) for operation in again.operations]
    # The captured one clears no gradients that it made itself; it begins with the same.
    assert [str(operation[0]) for operation in tape.operations] == names
    first, second = step(x, labels), step(x, labels)
    assert first is second
    assert step._given[0].data_ptr() != x.data_ptr()


@pytest.mark.parametrize("change", ["shape", "dtype", "strides", "modes", "values"])
def test_arguments_of_another_form_run_as_they_are(change):
    calls = []

    def function(x, word=0):
        calls.append(x)
        return x * 2

    captured, x = Captured(function), torch.randn(2, 3, 4, 4)
    for _ in range(6):
        captured(x)
    assert len(calls) == FIRST_CALLS + 1
    words = ()
    if change == "shape":
        x = x[:1]
    elif change == "dtype":
        x = x.double()
    elif change == "strides":
        x = x.to(memory_format=torch.channels_last)
    elif change == "values":
        words = (1,)
    with torch.set_grad_enabled(change != "modes"):
        for _ in range(6):
            assert torch.equal(captured(x, *words), x * 2)
    assert len(calls) == FIRST_CALLS + 1 + 6


def test_where_there_are_no_graphs_a_function_runs_as_it_is():
    with without_graphs():
        captured = Captured(lambda x: [x])
        x = torch.randn(2)
        assert all(captured(x)[0] is x for _ in range(6))
        assert Captured(lambda: 3)() == 3


@pytest.mark.parametrize("kind", ["looks", "fails"])
def test_what_cannot_be_captured_says_so_once_and_runs_as_it_is(kind):
    total, calls = torch.zeros(()), []

    def function(x):
        calls.append(x)
        if kind == "fails" and len(calls) == FIRST_CALLS + 1:
            raise ValueError("no kernel for it\nand more")
        total.add_(x.sum() if kind == "fails" else x.sum().item())
        return total.clone()

    captured, x = Captured(function), torch.ones(2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = [captured(x).item() for _ in range(8)]
    assert found == [2.0 * (i + 1) for i in range(8)]
    (one,) = said
    why = {"looks": "it waits for a number of the GPU", "fails": "no kernel for it"}[kind]
    assert str(one.message).endswith(f"function is not captured as a CUDA graph: {why}")
    assert __file__ == one.filename


def test_an_error_of_the_function_is_its_own():
    def function(x):
        raise KeyError("mine")

    captured = Captured(function)
    for _ in range(6):
        with pytest.raises(KeyError, match="mine"):
            captured(torch.ones(2))


def test_copies_and_pickles_hold_no_graph():
    captured, x = Captured(torch.sin), torch.ones(2)
    for _ in range(6):
        captured(x)
    for other in (copy.deepcopy(captured), pickle.loads(pickle.dumps(captured))):
        assert torch.equal(other(x), x.sin()) and other._graph.replays == 0


def test_within_a_step_each_layer_waits_for_the_weights_of_its_shape():
    training = Training(None)
    training.model.insert(4, nn.Conv2d(8, 8, 3, groups=2))
    excite(training.model, OURS)
    training.optimizer.add_param_group({"params": [*training.model[4].parameters()]})
    step = Captured(training.step)
    x, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    stem, alike = (8, 3, 3, 3), (8, 4, 3, 3)
    order = ["fork", ("computed", 1, stem), ("computed", 2, alike)]
    order += [("waited", stem, 2), ("waited", alike, 3), ("waited", alike, 3), "join"]
    for _ in range(FIRST_CALLS + 1):
        Beside.said.clear()
        step(x, labels)
        assert Beside.said == order
    assert not LENT.waits and not LENT.tensors
    Beside.said.clear()
    step(x, labels)
    assert not Beside.said  # replayed


def test_a_captured_evaluation_reads_no_weight_that_was_computed_outside():
    """As when precompute is around all batches: its tensors are others at the next evaluation."""
    model = excite(resnet(), SE_WS)

    @torch.inference_mode()
    def evaluate(function):
        with precompute(model):
            return [function(images(n)).clone() for n in (2, 2, 2, 2, 2, 1)]

    captured = Captured(model)
    for _ in range(3):
        found = evaluate(captured)
        assert all(map(torch.equal, found, evaluate(model.forward)))
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.9)
    assert sum(tape.replays for tape in tapes()) == 3 * 5 - FIRST_CALLS


# --- The weights alone, in a loop of one's own ---------------------------------------------------


def train(model, steps, rate=0.01, use=None, batches=1):
    """Some steps of a loop with precompute; gives the gradients of the last."""
    for _ in range(steps):
        model.zero_grad(set_to_none=True)
        for i in range(batches):
            with precompute(model):
                (use or model)(images(1 + i)).square().mean().backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=rate)
    return [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()]


def compared(script, make, least=1, equal=torch.equal):
    """What a script finds of a model, with graphs and without: the same."""
    with without_graphs():
        expected = script(make())
    before = replays()
    found = script(make())
    assert replays() - before >= least, "nothing was replayed"
    for a, b in zip(found, expected, strict=True):
        assert a is b if a is None or b is None else equal(a, b)


def results(model):
    """All that can be compared of a model."""
    grads = [p.grad for p in model.parameters()]
    return [*grads, *model.state_dict().values(), model(images()).detach()]


@pytest.mark.parametrize("excitation", EXCITATIONS.values(), ids=EXCITATIONS)
def test_every_excitation_trains_to_the_same_bits(excitation):
    def script(model):
        train(model, 4)
        return results(model)

    compared(script, partial(network, excitation), least=2 * 3)


def freeze(model, which=lambda name: True, grad=False):
    for name, p in model.named_parameters():
        if "parametrizations" in name and which(name):
            p.requires_grad_(grad)


def replace(model, how):
    for slot in list(excited(model))[:2]:
        stored, tensor = slot.tensor.original, slot.tensor
        new = torch.randn(stored.shape, generator=torch.Generator().manual_seed(3))
        if how == "data":
            stored.data = new
        elif how == "in place, unseen":
            stored.data.copy_(new)
        elif how == "parameter":
            tensor.original = nn.Parameter(new)
        elif how == "parameter, same memory":
            tensor.original = nn.Parameter(stored.detach())
        elif how == "net":
            net = next(m for m in tensor.modules() if isinstance(m, nn.Linear | nn.Conv2d))
            net.weight = nn.Parameter(0.5 * net.weight.detach())


def plain_checkpoint(model):
    torch.manual_seed(5)
    model.load_state_dict(network().state_dict())


def load(model, assign):
    state = copy.deepcopy(model.state_dict())
    for value in state.values():
        value.mul_(0.5)
    model.load_state_dict(state, assign=assign)


def reset(model):
    torch.manual_seed(6)
    for module in model:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


#: What may happen to a model between two steps.
CHANGES = {
    "nothing": lambda model: None,
    "paused": pause,
    "half": partial(resume, strength=0.5),
    "paused and resumed": lambda model: resume(pause(model)),
    "to double and back": lambda model: model.double().float(),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "loaded": partial(load, assign=False),
    "loaded, assigned": partial(load, assign=True),
    "a plain checkpoint": plain_checkpoint,
    "data": partial(replace, how="data"),
    "in place, unseen": partial(replace, how="in place, unseen"),
    "another parameter": partial(replace, how="parameter"),
    "another parameter in its memory": partial(replace, how="parameter, same memory"),
    "another net": partial(replace, how="net"),
    "reset": reset,
    "all frozen": freeze,
    "nets frozen": partial(freeze, which=lambda name: "original" not in name),
    "one more layer": lambda model: excite(model, Standardize(), where=r"^3\."),
    "a part folded": lambda model: fold(model, where="^1"),
    "a part removed": lambda model: remove(model, where="^1"),
    "excited otherwise": lambda model: excite(remove(model, where="^1"), Magnitude(), where="^1"),
    "copied": copy.deepcopy,
    "deterministic": lambda model: torch.use_deterministic_algorithms(True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_between_two_steps_is_seen(change, request):
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))

    def script(model):
        train(model, 3)
        other = change(model)
        model = other if isinstance(other, nn.Module) else model
        return [*train(model, 4), *results(model)]

    compared(
        script,
        lambda: excite(network(), EXCITATIONS["chain"], where=r"^[012]"),
        least=4,
    )


def test_in_place_changes_need_no_new_capture():
    model = excite(network(), SE_WS)
    train(model, 3)
    made = len(Tape.made)
    for change in (pause, resume, partial(load, assign=False), partial(resume, strength=0.3)):
        change(model)
        train(model, 1)
    assert len(Tape.made) == made


def test_a_change_at_every_step_is_never_captured():
    model = excite(network(), SE_WS)
    for i in range(6):
        freeze(model, grad=bool(i % 2))
        train(model, 1)
    assert not Tape.made


def several_backwards(model):
    x = images()
    with precompute(model):
        loss = model(x).square().mean()
    loss.backward(retain_graph=True)
    kept = [p.grad for p in model.parameters()]
    copies = [g.clone() for g in kept]
    model.zero_grad(set_to_none=True)
    (3 * loss).backward()
    assert all(map(torch.equal, kept, copies))


def two_blocks_then_both(model):
    with precompute(model):
        first = model(images(1)).square().mean()
    with precompute(model):
        second = model(images(2)).square().mean()
    (first + second).backward()


def parts_apart(model):
    """Two losses of layers of their own."""
    with precompute(model):
        first, second = model[0].weight.square().sum(), model[2][0].weight.exp().sum()
    second.backward()
    first.backward()


def twice_differentiated(model):
    x = images().requires_grad_()
    with precompute(model):
        loss = model(x).square().mean()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + slope.square().sum()).backward()


def of_its_own_gradient(model):
    with precompute(model):
        loss = model(images()).square().mean()
    slopes = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    sum(slope.square().sum() for slope in slopes).backward()


def unused_layers(model):
    model.zero_grad(set_to_none=True)
    with precompute(model):
        model[1](model[0](images())).mean().backward()
    assert all(p.grad is None for p in model[2].parameters())


def within_checkpoint(model, reentrant):
    with precompute(model):
        y = checkpoint(model[:2], images().requires_grad_(), use_reentrant=reentrant)
        model[2:](y).mean().backward()


def checkpointed_whole(model):
    def forward(x):
        with precompute(model):
            return model(x)

    checkpoint(forward, images(), use_reentrant=False).mean().backward()


def kept_output(model):
    with precompute(model):
        model.kept = model(images())  # and no backward pass


def evaluated(model, mode):
    with mode(), precompute(model):
        model.eval()
        model(images(3))
        model.train()
    train(model, 1)


def in_another_thread(model):
    def work():
        with precompute(model):
            found.append(model(images(1)))

    found = []
    with precompute(model):
        mine = model(images(2))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        with precompute(model):
            inner = model(images(1))
        (mine.mean() + found[0].mean() + inner.mean()).backward()


def compiled(model):
    if "compiled" not in vars(model):
        torch._dynamo.reset()
        vars(model)["compiled"] = torch.compile(model, backend="eager")
    with precompute(model):
        vars(model)["compiled"](images()).mean().backward()


def under_autocast(model):
    with torch.autocast("cpu", torch.bfloat16), precompute(model):
        loss = model(images()).float().mean()
    loss.backward()


def by_groups(model):
    groups = parameter_groups(model)
    options = [{"params": groups["weights"], "lr": 0.1}, {"params": groups["nets"], "lr": 0.2}]
    optimizer = torch.optim.AdamW([*options, {"params": groups["rest"]}])
    for _ in range(3):
        optimizer.zero_grad()
        with precompute(model):
            model(images()).square().mean().backward()
        optimizer.step()


def averaged(model):
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for i in range(4):
        pause(model) if i < 2 else resume(model)
        train(model, 1)
        average.update_parameters(model)
        train(average.module, 1, rate=0)  # with graphs of its own
    return results(average.module)


def as_a_student(model):
    teacher = excite(network(), SE_WS).double()
    for _ in range(3):
        with precompute(teacher), precompute(model):
            (model(images()) - teacher(images()).detach()).square().mean().backward()


#: What a loop may do in a step.
WAYS = {
    "several backward passes": several_backwards,
    "two blocks, then both backward": two_blocks_then_both,
    "parts apart": parts_apart,
    "differentiated twice": twice_differentiated,
    "of its own gradient": of_its_own_gradient,
    "unused layers": unused_layers,
    "within a checkpoint": partial(within_checkpoint, reentrant=False),
    "within a reentrant one": partial(within_checkpoint, reentrant=True),
    "checkpointed whole": checkpointed_whole,
    "an output that is kept": kept_output,
    "no_grad": partial(evaluated, mode=torch.no_grad),
    "inference_mode": partial(evaluated, mode=torch.inference_mode),
    "another thread": in_another_thread,
    "compiled": compiled,
    "autocast": under_autocast,
    "groups": by_groups,
    "averaged": averaged,
    "student": as_a_student,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_whatever_a_loop_does_is_the_same(way, monkeypatch):
    """To rounding in float64, as sums over blocks may be in another order."""
    single = images
    monkeypatch.setitem(globals(), "images", lambda n=2: single(n).double())

    def script(model):
        model.double()
        train(model, 3)
        more = [way(model) for _ in range(3)][-1] or []
        return [*results(model), *more, *train(model, 2)]

    close = partial(torch.allclose, rtol=1e-9, atol=1e-12)
    compared(script, partial(network, EXCITATIONS["chain"]), least=4, equal=close)


def test_a_shared_net_learns_of_the_layers_that_were_used():
    def script(model):
        train(model, 4)
        model.zero_grad(set_to_none=True)
        with precompute(model):
            model[1](model[0](images())).mean().backward()
        assert all(isinstance(p, nn.Parameter) for p in model.parameters())
        return [*results(model), *train(model, 1)]

    compared(script, lambda: excite(network(), Global(), shared=True), least=2 * 4)


def test_accumulation_over_batches():
    def script(model):
        return [*train(model, 4, batches=3), *results(model)]

    compared(script, partial(network, SE_WS), least=2 * 10)


@pytest.mark.parametrize("late", ["new block", "write"])
def test_a_late_backward_pass_says_so(late):
    model = excite(network(), SE_WS)
    train(model, 3)
    x = images().requires_grad_()
    with precompute(model):
        loss = model(x).square().mean()
    loss.backward(retain_graph=True)
    if late == "new block":
        with precompute(model):
            model(images())
        with pytest.raises(RuntimeError, match="modified by an inplace"):
            # It needs the weights, and no gradient of theirs.
            torch.autograd.grad(loss, x, retain_graph=True)
    else:
        with torch.no_grad():
            model[1][0].parametrizations.weight.original.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace|computed anew"):
        loss.backward()


def test_weights_alone_and_a_late_backward_pass():
    model = excite(network(), SE_WS)
    train(model, 3)
    with precompute(model):
        total = model[0].weight.sum()  # whose backward pass needs no weight
    total.backward(retain_graph=True)
    with precompute(model):
        pass
    with pytest.raises(RuntimeError, match="call backward within precompute, or right after it"):
        total.backward()


def test_a_write_to_what_was_replayed_is_refused():
    model = excite(network(), SE_WS)
    train(model, 3)
    with torch.no_grad(), precompute(model):
        nn.init.zeros_(model[0].weight)
        with pytest.raises(RuntimeError, match="write to the stored weight"):
            model(images())
        nn.init.zeros_(model[0].weight)
    with pytest.raises(RuntimeError, match="write to the stored weight"), precompute(model):
        pass
    train(model, 1)


def test_hooks_of_parameters_run_once_a_backward_pass():
    model, ran = excite(network(), SE_WS), []
    stored = model[0].parametrizations.weight.original
    stored.register_hook(lambda g: ran.append("hook"))
    stored.register_post_accumulate_grad_hook(lambda p: ran.append("after"))
    train(model, 4)
    assert ran == ["hook", "after"] * 4 and replays()


def test_a_module_s_hook_sees_every_computation():
    model, ran = excite(network(), SE_WS), []
    train(model, 3)
    before = replays()
    net = model[0].parametrizations.weight[0]
    handle = net.register_forward_hook(lambda *_: ran.append(1))
    train(model, 3)
    assert len(ran) == 3 and replays() == before
    handle.remove()
    train(model, 1)
    assert replays() > before


def test_weights_of_two_layers_that_share_one_and_of_two_precisions():
    def tied():
        model = network()
        model[3].weight = nn.Parameter(torch.randn(8, 8, 1, 1))
        model[2][0].weight = model[3].weight
        return excite(model, SE_WS, where=r"^[023]")

    compared(lambda model: [*train(model, 4), *results(model)], tied)
    Tape.made.clear()
    model = excite(network(), SE_WS)
    model[3].double()
    with torch.no_grad(), precompute(model):
        model[:3](images())
    for _ in range(3):
        with precompute(model):
            model[:3](images()).mean().backward()
    assert not Tape.made


class Looking(nn.Module):
    """A gate that looks at a number."""

    def forward(self, x):
        return x * (2.0 if x.sum().item() > 0 else 1.0)


def test_an_excitation_that_looks_at_numbers_says_so_once(monkeypatch):
    def make():
        model = network(Location(SE()))
        model[0].parametrizations.weight[0].fc2 = nn.Sequential(
            model[0].parametrizations.weight[0].fc2, Looking()
        )
        return model

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        compared(lambda model: [*train(model, 5), *results(model)], make, least=0)
    (one,) = said
    assert str(one.message) == (
        "the excitations of Sequential are not captured as a CUDA graph: it waits for a number of "
        "the GPU"
    )
    assert not replays()


def test_copies_and_files_of_a_model_hold_no_graph():
    model = excite(network(), SE_WS)
    train(model, 3)
    kept = KNOWN[model].replayed
    other, file = copy.deepcopy(model), pickle.dumps(model.state_dict())
    assert kept and other not in KNOWN and KNOWN[model].replayed is kept
    assert len(file) < 50_000
    train(other, 2)
    other.load_state_dict(pickle.loads(file))
    assert torch.equal(other.eval()(images()), model.eval()(images()))


def test_graphs_go_with_their_model():
    model = excite(network(), SE_WS)
    train(model, 3)
    replayed = weakref.ref(KNOWN[model].replayed)
    del model
    gc.collect()
    assert replayed() is None


# --- CUDA itself, by stand-ins for what torch.cuda gives ------------------------------------------


class FakeStream:
    device, device_index = torch.device("cuda", 0), 0

    def __init__(self, said, name):
        self.said, self.name = said, name

    def wait_stream(self, other):
        self.said.append(f"{self.name} waits for {other.name}")

    def record_event(self):
        self.said.append(f"event of {self.name}")
        return f"event of {self.name}"

    def wait_event(self, event):
        self.said.append(f"{self.name} waits for the {event}")


@pytest.fixture
def cuda(monkeypatch):
    """What is asked of ``torch.cuda``, in order; ``cuda.fail`` is raised at the capture's end."""

    class Said(list):
        fail = None

    said, mode = Said(), [0]
    main = FakeStream(said, "main")
    current = [main]

    @contextmanager
    def stream(of):
        current.append(of)
        try:
            yield
        finally:
            current.pop()

    @contextmanager
    def graph(graph, pool, stream, capture_error_mode):
        said.append(f"capture on {stream.name} into {pool}, {capture_error_mode}")
        yield
        if said.fail:
            raise said.fail

    class CUDAGraph:
        def replay(self):
            said.append("replay")

    class Generator:
        def clone_state(self):
            return "a copy"

        def graphsafe_set_state(self, state):
            said.append(f"generator is {state}")

    fakes = {
        "Stream": lambda device: FakeStream(said, "side"),
        "current_stream": lambda device=None: current[-1],
        "stream": stream,
        "graph": graph,
        "CUDAGraph": CUDAGraph,
        "graph_pool_handle": lambda: "a pool",
        "get_sync_debug_mode": lambda: mode[0],
        "set_sync_debug_mode": lambda new: mode.append(new) or mode.__setitem__(0, new),
        "default_generators": [Generator()],
        "is_current_stream_capturing": lambda: False,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    end = "_cuda_endAllocateToPool"
    monkeypatch.setattr(torch._C, end, lambda *of: said.append(f"end {of}"), raising=False)
    said.stream = lambda: current[-1].name
    said.mode = mode
    return said


def test_a_call_runs_on_the_stream_of_the_capture_and_is_watched(cuda):
    graph = capture.Graph(torch.device("cuda", 0))

    def function():
        cuda.append(f"function on {cuda.stream()}, {cuda.mode[0]}")
        if not graph.looked:
            warnings.warn("called a synchronizing CUDA operation (at somewhere)", stacklevel=1)
        warnings.warn("another", stacklevel=1)
        return 3

    for looked in (True, False):
        cuda.clear()
        with pytest.warns(UserWarning, match="^another$") as said:
            assert graph.call(function) == 3
        assert len(said) == 1 and graph.looked is looked and cuda.mode[0] == 0
        order = ["side waits for main", "function on side, warn", "main waits for side"]
        assert cuda == order and cuda.stream() == "main"


def test_a_record_is_replayed_and_the_second_shares_stream_and_memory(cuda):
    first = capture.Graph(torch.device("cuda", 0))
    second = capture.Graph(torch.device("cuda", 0), first)
    assert second.stream is first.stream and not first.capturing()
    gc.enable()
    for graph in (first, second):
        cuda.clear()
        assert graph.record(lambda: gc.isenabled()) is False
        graph.replay()
        assert cuda == ["capture on side into a pool, thread_local", "replay"]
    assert gc.isenabled()


def test_a_capture_that_fails_leaves_nothing_behind(cuda):
    cuda.fail = RuntimeError("operation failed due to a previous error during capture")
    graph = capture.Graph(torch.device("cuda", 0))
    with pytest.raises(RuntimeError, match="previous error"):
        graph.record(lambda: None)
    assert cuda[1:] == ["end (0, 'a pool')", "generator is a copy"]
    assert gc.isenabled() and cuda.stream() == "main"
    assert not capture._CAPTURE.locked()


def test_a_value_computed_beside_is_waited_for_and_joined(cuda):
    capture._stream.cache_clear()
    beside = capture.Beside(torch.device("cuda", 0))

    class Value:
        device = torch.device("cuda", 0)

        def record_stream(self, stream):
            cuda.append(f"used on {stream.name}")

    value, done = beside.compute(Value)
    beside.wait(value, done)
    beside.join()
    assert cuda == [
        "side waits for main",
        "event of side",
        "main waits for the event of side",
        "used on main",
        "main waits for side",
    ]
    capture._stream.cache_clear()
