"""An excited model in training: pause and resume, compute all weights first, average the nets."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

from wexlib.attach import Where, check_model, check_whole, excited
from wexlib.parametrization import Parametrization, Switched


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
                part.strength.fill_(strength)
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

    Inside, parameters and strength stay as they are, or what was computed is no longer theirs. Not
    for ``nn.DataParallel``, whose replicas compute their own, nor with activation checkpointing,
    which would compute the weights anew.

    It is ``torch.nn.utils.parametrize.cached()`` with a look at every excited weight; a model that
    has none is let through.
    """
    if any(isinstance(part, Parametrization) for part in model.modules()):
        check_whole(model, "leave out precompute, as each layer is gathered when it is its turn")
    with parametrize.cached():
        before = set(parametrize._cache)
        try:
            for module in model.modules():
                if parametrize.is_parametrized(module):
                    for name, chained in module.parametrizations.items():
                        if isinstance(chained[0], Parametrization):
                            getattr(module, name)
            yield
        finally:
            # Torch forgets at the end of the outermost block only.
            for key in set(parametrize._cache) - before:
                del parametrize._cache[key]


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
