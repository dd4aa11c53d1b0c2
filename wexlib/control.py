"""An excited model in training: pause and resume, compute all weights first, average the nets."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from wexlib.layer import LENT, tensors_of
from wexlib.lending import lend
from wexlib.parametrization import Switched
from wexlib.where import Where, check_model, check_whole, excited

#: Who else than the loop computes all weights at once, on a kind of device.
LENDERS = {"cuda": lend}


def resume(model: nn.Module, *, strength: float = 1.0, where: Where = None) -> nn.Module:
    """Turn excitations on, in place; standardization was never off.

    Args:
        model: an excited model.
        strength: 0 off, 1 on; between them location blends its multiplier with 1 and magnitude its
            result with the weight.
        where: which weights, as in :func:`excite`; None is all.

    Raises:
        ValueError: ``strength`` is not from 0 to 1, or nothing excited is selected.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength!r}: expected a number from 0 (off) to 1 (on)")
    for slot in excited(model, where):
        for part in slot.excitation.modules():
            if isinstance(part, Switched):
                part.switch(strength)
    return model


def pause(model: nn.Module, *, where: Where = None) -> nn.Module:
    """Turn excitations off, in place (thesis 3.4: paused weight excitation).

    Weights are then as they were, to the last bit, but for standardization, which is not paused.
    The optimizer keeps its state; the nets get zero gradients, and weight decay still acts on them.

    Raises:
        ValueError: nothing excited is selected.
    """
    return resume(model, strength=0.0, where=where)


@contextmanager
def precompute(model: nn.Module) -> Iterator[None]:
    """Within it every excited weight of ``model`` is computed once, before all else.

        with precompute(model):
            scores = model(images)

    The many small operations of the excitations then run one after the other, and so they do in
    the backward pass, not each between two convolutions that push them out of the caches: a step
    of ResNet-18 on a CPU is some percent faster. It costs memory: the gradients of all excited
    weights are held at once, as many bytes as the weights. Around more than one batch, in
    evaluation, it saves all but the first computation.

    Inside, parameters and strength stay as they are, or what was computed is no longer theirs. It
    reaches this model's weights in this thread and nothing else; what is excited inside, copies,
    the replicas of ``nn.DataParallel``, a compiled model, and layers under activation checkpointing
    compute their own, as they would without it. A model that has no excited weight is let through.

    On a GPU the weights are computed by one launch of a CUDA graph, and all their gradients by one
    in the backward pass, when the gradients of all weights are there. The graphs are captured at
    the second use that finds parameters, buffers, layers and modes as the first one did, and again
    when those have changed; ``pause``, ``resume``, an optimizer's step and ``load_state_dict``
    write in place and change nothing of it. What no graph can hold goes on as above: modules with
    hooks, tensors of several devices or dtypes, an excitation that looks at numbers (said once), a
    block within another, and one that begins before the backward pass of the last. What is
    computed inside is the same tensors at every step: do not write to them, and keep a ``clone``
    of what you need after the next block begins. A second backward pass after that raises
    RuntimeError. Within a step that is captured whole
    (:class:`wexlib.ops.capture.Captured`) the weights are computed on a stream of their own
    instead, and each layer waits for its own.

    Gradients are new tensors at every backward pass, so accumulation, ``retain_graph`` and several
    backward passes of one block add up as always; with ``create_graph=True`` they are computed by
    operations. ``DistributedDataParallel`` gets those of the excited layers together, at the end of
    its backward pass. Autocast has no say: excitations compute in the parameters' precision.
    """
    tensors = list(tensors_of(model))
    if tensors:
        check_whole(model, "leave out precompute, as each layer is gathered when it is its turn")
    lender = LENDERS.get(tensors[0].original.device.type) if tensors else None
    before = {tensor: LENT.tensors[tensor] for tensor in tensors if tensor in LENT.tensors}
    with lender(model, tensors) if lender else nullcontext() as lent:
        try:
            if lent is None:
                lent = {tensor: tensor() for tensor in tensors}
            LENT.tensors.update(lent)
            yield
        finally:
            for tensor in tensors:
                LENT.tensors.pop(tensor, None)
            LENT.tensors.update(before)


@torch.no_grad()
def average(model: nn.Module) -> nn.Module:
    """Average the layers' ``Global`` nets, in place: call it after each optimizer step.

    The authors' global excitation: V1 and V2 of every layer become their mean over layers; biases
    and the optimizer's state stay each layer's own. After the first call this is one shared net
    that learns from the mean of the layers' gradients, where ``shared=True`` learns from their
    sum.

    Raises:
        ValueError: nothing in ``model`` is excited by Global().
    """
    check_model(model)
    parts = [part for part in model.modules() if getattr(part, "averaged", ())]
    if not parts:
        raise ValueError(f"{type(model).__name__} has no Global() excitation: excite it with one")
    for net in parts[0].averaged:
        weights = [getattr(part, net).weight for part in parts]
        mean = torch.stack(weights).mean(0)
        for weight in weights:
            weight.copy_(mean)
    return model


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of ``model`` in three lists, for an optimizer that treats them differently.

        groups = parameter_groups(model)
        torch.optim.SGD([
            {"params": groups["weights"], "weight_decay": 5e-4},
            {"params": groups["nets"]},
            {"params": groups["rest"]},
        ], lr=0.1)

    ``weights`` are the stored weights of the excited tensors, ``nets`` the excitations' own
    parameters, ``rest`` all others: every parameter in one of them, once, in the model's order,
    frozen ones too. An excited weight is no parameter of its layer, so a recipe that goes through
    the layers and asks for ``layer.weight`` misses it: let it sort ``rest`` alone, and add the
    other two. A plain model has the rest only.
    """
    check_model(model)
    weights, nets = set(), set()
    for tensor in tensors_of(model):
        weights.add(tensor.original)
        nets.update(tensor[0].parameters())
    groups = {"weights": [], "nets": [], "rest": []}
    for parameter in model.parameters():
        kind = "weights" if parameter in weights else "nets" if parameter in nets else "rest"
        groups[kind].append(parameter)
    return groups
