"""All excited weights of a model at once, on a GPU: by a graph, or beside a step's other work."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import _has_any_global_hook

from wexlib.layer import LENT, ExcitedTensor, below
from wexlib.ops import together
from wexlib.ops.capture import GRAPHS, WHOLE, Replayed, capturing, reason
from wexlib.ops.loops import recorded
from wexlib.parametrization import Parametrization, Switched

#: These compute the same in training and in evaluation.
UNMOVED = (Parametrization, ExcitedTensor, nn.Linear, nn.modules.conv._ConvNd, nn.Sequential)
PLAIN = (Tensor, nn.Parameter)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Known:
    """Of a model what was found at the last use, what was captured, and its graphs, if it has."""

    found = captured = replayed = None


#: Beside the models, so that copies and files of them hold no graph.
KNOWN: WeakKeyDictionary[nn.Module, Known] = WeakKeyDictionary()


@contextmanager
def lend(
    model: nn.Module, tensors: list[ExcitedTensor]
) -> Iterator[dict[ExcitedTensor, Tensor] | None]:
    """The tensors, computed; None where each is to be computed as it is."""
    device = tensors[0].original.device
    if WHOLE.within or capturing(device):
        beside = GRAPHS[device.type].beside(device)
        shapes, lent, waits = defaultdict(list), {}, {}
        for tensor in tensors:
            shapes[tensor.original.shape].append(tensor)
        for alike in shapes.values():
            values, done = beside.compute(partial(_computed, alike))
            for tensor, value in zip(alike, values, strict=True):
                lent[tensor], waits[tensor] = value, partial(beside.wait, value, done)
        before, LENT.waits = LENT.waits, LENT.waits | waits
        try:
            yield lent
        finally:
            LENT.waits = before
            beside.join()
        return
    replayed = _replayed(model, tensors)
    if replayed is None or not replayed.take():
        yield None
        return
    try:
        for tensor in tensors:
            tensor.check()
            vars(tensor)["_seen"] = None  # it may be what is overwritten now
            for part in below(tensor):
                if isinstance(part, Switched):
                    part.current_strength(part.strength.dtype)
        yield dict(zip(tensors, replayed(), strict=True))
    finally:
        replayed.give_back()


def _replayed(model: nn.Module, tensors: list[ExcitedTensor]) -> Replayed | None:
    """The graphs of a model as it is now, captured if it was so at the last use too."""
    found = _all_that_counts(tensors)
    if found is None:
        return None
    known = KNOWN.setdefault(model, Known())
    if known.captured != found and torch.is_grad_enabled():
        again, known.found = known.found == found, found
        if again:
            known.captured, known.replayed = found, None
            try:
                known.replayed = _capture(tensors)
            except Exception as error:
                name = type(model).__name__
                why = reason(error)
                warnings.warn(
                    f"the excitations of {name} are not captured as a CUDA graph: {why}",
                    stacklevel=6,
                )
    return known.replayed if known.captured == found else None


def _all_that_counts(tensors: list[ExcitedTensor]) -> list | None:
    """All that a captured computation depends on; None where it cannot be captured."""
    if (
        recorded()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._autograd._top_saved_tensors_default_hooks(False)
        or _has_any_global_hook()
    ):
        return None
    found = [torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()]
    for tensor in tensors:
        for module in below(tensor):
            own = vars(module)
            if any(map(own.get, HOOKS)):
                return None
            found.append(id(module))
            if own["training"] and not isinstance(module, UNMOVED):
                found.append("training")
            for x in (*own["_parameters"].values(), *own["_buffers"].values()):
                if type(x) in PLAIN:
                    found += id(x), x.data_ptr(), x.shape, x.stride(), x.dtype, x.requires_grad
                elif x is not None:
                    return None
    return found


def _capture(tensors: list[ExcitedTensor]) -> Replayed | None:
    """Their graphs; None for tensors of several devices or dtypes, or nets that keep a state."""
    every = _Every(tensors)
    parameters = list(every.parameters())
    state = any(name != "strength" for m in below(every) for name in m._buffers)
    if state or len({(p.device, p.dtype) for p in parameters}) > 1:
        return None
    at = {id(p): i for i, p in enumerate(parameters)}
    # Each place once: a shared net's has many names, and would be put back wrongly.
    places = {
        f"{path}.{name}": at[id(p)]
        for path, module in every.named_modules()
        for name, p in module._parameters.items()
        if p is not None
    }

    def compute(given: list[Tensor]) -> list[Tensor]:
        own = {name: given[i] for name, i in places.items()}
        return functional_call(every, own, (), tie_weights=False)

    return Replayed(compute, parameters)


class _Every(nn.Module):
    """Excited tensors as one module, for others in the place of their parameters."""

    def __init__(self, tensors: list[ExcitedTensor]):
        super().__init__()
        self.tensors = nn.ModuleList(tensors)

    def forward(self) -> list[Tensor]:
        return _computed(self.tensors)


def _computed(tensors: Iterable[ExcitedTensor]) -> list[Tensor]:
    """In few launches, but for those that have to be called."""
    tensors = list(tensors)
    excited = together([t[0] for t in tensors], [t.original for t in tensors])
    hooked = [any(map(vars(t).get, HOOKS)) for t in tensors]
    each = zip(tensors, excited, hooked, strict=True)
    return [t() if called or x is None else x for t, x, called in each]
