"""Which weights of a model: what a name, a type or a function selects, and what is excited."""

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wexlib.attention import FeatureAttention
from wexlib.layer import ExcitedTensor, excited_tensors
from wexlib.parametrization import Parametrization

Where = str | type | tuple[type, ...] | Callable[[str, nn.Module], bool] | None

CONVOLUTION = nn.modules.conv._ConvNd
TRANSPOSED = nn.modules.conv._ConvTransposeNd
#: Layers whose weights a name selects by any part of it; another module's parameter has to be
#: named itself, so that "encoder" is no position embedding.
LAYERS = (CONVOLUTION, nn.Linear, nn.MultiheadAttention)
#: Classes and parameters of such names are not taken for matrices; a list's name is its parts'.
NO_MATRIX = re.compile(r"Embed|Norm(\dd|$)|Conv(\dd|$)")
NO_MATRIX_NAME = re.compile(r"emb|(^|_)pos|token|^quer(y|ies)$|latent|prompt|bias|table|norm|scale")


def is_layer(module: nn.Module) -> bool:
    return isinstance(module, LAYERS) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' ``Conv1D``, a linear layer that keeps its weight as (in, out)."""
    return any(
        kind.__name__ == "Conv1D" and kind.__module__.partition(".")[0] == "transformers"
        for kind in type(module).__mro__
    )


@dataclass(frozen=True)
class Slot:
    """A tensor of a model: ``name`` is qualified, ``attribute`` its name in ``module``."""

    name: str
    module: nn.Module
    attribute: str

    @property
    def tensor(self) -> ExcitedTensor | None:
        return excited_tensors(self.module).get(self.attribute)

    @property
    def excitation(self) -> Parametrization | None:
        return self.tensor[0] if self.tensor else None


def slots_of(model: nn.Module) -> Iterator[Slot]:
    """Every parameter of two axes or more, and every parametrized tensor; no attention's nets."""
    own = set()
    for prefix, module in model.named_modules():
        if isinstance(module, FeatureAttention | parametrize.ParametrizationList):
            own.update(module.modules())
        if module in own:
            continue
        names = [name for name, p in module.named_parameters(recurse=False) if _wide(p)]
        for computed, parts in hooked(module).items():
            names = [computed, *(name for name in names if name not in parts)]
        if parametrize.is_parametrized(module):
            names += module.parametrizations
        for name in names:
            yield Slot(f"{prefix}.{name}" if prefix else name, module, name)


def _wide(parameter: nn.Parameter) -> bool:
    return nn.parameter.is_lazy(parameter) or parameter.dim() >= 2


def hooked(module: nn.Module) -> dict[str, list[str]]:
    """The tensors that are no parameters but computed of some, ``weight`` of ``weight_orig``."""
    found, own = {}, dict(module.named_parameters(recurse=False))
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and value.dim() >= 2:
            parts = {k: p for k, p in own.items() if k.startswith(f"{name}_")}
            if any(not nn.parameter.is_lazy(p) and p.shape == value.shape for p in parts.values()):
                found[name] = list(parts)
    return found


def bare_matrix(slot: Slot) -> bool:
    """Whether it looks like a matrix of no linear layer, convolution or recurrent layer."""
    parameter = slot.module._parameters.get(slot.attribute)
    return not (
        parameter is None
        or nn.parameter.is_lazy(parameter)
        or parameter.dim() not in (2, 3)
        or min(parameter.shape) < 2
        or isinstance(slot.module, (nn.Linear, CONVOLUTION, nn.RNNBase))
        or NO_MATRIX_NAME.search(slot.name.rstrip(".0123456789").rpartition(".")[2])
        or any(NO_MATRIX.search(kind.__name__) for kind in type(slot.module).__mro__)
    )


def matcher(model: nn.Module, where: Where) -> Callable[[Slot], bool]:
    if where is None:
        # A layer that is passed itself was asked for.
        return lambda slot: (
            isinstance(slot.module, CONVOLUTION) or (slot.module is model and is_layer(model))
        )
    if isinstance(where, str):
        try:
            pattern = re.compile(where)
        except re.error as error:
            raise ValueError(f"where={where!r} is no regular expression: {error}") from None

        def named(slot: Slot) -> bool:
            own = 0 if is_layer(slot.module) else len(slot.name) - len(slot.attribute)
            return any(match.end() > own or own == 0 for match in pattern.finditer(slot.name))

        return named
    types = where if isinstance(where, tuple) else (where,)
    if types and all(isinstance(kind, type) for kind in types):
        return lambda slot: isinstance(slot.module, types)
    if callable(where):
        return lambda slot: bool(where(slot.name, slot.module))
    raise TypeError(
        f"where is {where!r}: expected a regular expression, a type or a tuple of types, or a "
        "function of (name, module)"
    )


def check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}: expected a torch module")


def check_whole(model: nn.Module, instead: str) -> None:
    """Raises ValueError, which says what to do ``instead``, if ``model`` is sharded."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    sharded = [name for name, p in model.named_parameters() if isinstance(p, DTensor)]
    for name, module in model.named_modules():
        # Between its forward and its backward pass its parameters may be whole.
        if isinstance(module, FSDPModule | FullyShardedDataParallel):
            sharded.append(name or type(module).__name__)
    if sharded:
        raise ValueError(f"{sharded[0]} is sharded over processes: {instead}")


#: What to do with a sharded model where a whole one is needed.
GATHER = "gather the full state_dict into an excited model that is not sharded, and {} that one"


def select(model: nn.Module, where: Where) -> list[Slot]:
    check_model(model)
    matches = matcher(model, where)
    slots = list(slots_of(model))
    found = [slot for slot in slots if matches(slot)]
    if found:
        return found
    if where is None and not slots:
        raise ValueError(f"{type(model).__name__} has no weight: there is nothing to excite")
    if _asks_linear(where):
        slots.sort(key=bare_matrix, reverse=True)
    names = [slot.name for slot in slots]
    asked = "the default, every convolution," if where is None else f"where={where!r}"
    raise ValueError(
        f"{asked} matches no weight: expected one of {', '.join(names[:3])}"
        f"{f', … ({len(names)} in all)' if len(names) > 3 else ''}"
        f"{'; ask for linear layers with where=nn.Linear' if where is None else ''}"
    )


def _asks_linear(where: Where) -> bool:
    return nn.Linear in (where if isinstance(where, tuple) else (where,))


def warn_of_left_out(model: nn.Module, where: Where, chosen: list[Slot]) -> None:
    """``where=nn.Linear`` reads as all matrices, and not all of them are of an nn.Linear."""
    if not _asks_linear(where):
        return
    left = [slot for slot in slots_of(model) if slot not in chosen and bare_matrix(slot)]
    # The first of each kind.
    kinds = {(type(slot.module).__name__, slot.attribute): slot.name for slot in left[::-1]}
    if kinds:
        names = ", ".join(f"{name} ({kind})" for (kind, _), name in [*kinds.items()][::-1])
        warnings.warn(
            f"where=nn.Linear leaves out {len(left)} weights that multiply matrices but are of no "
            f"nn.Linear, such as {names}: excite them too, by type or name, with axis= where "
            "their filters are not on axis 0, or leave them out silently by where=lambda name, "
            "layer: isinstance(layer, nn.Linear)",
            stacklevel=3,
        )


def excited(model: nn.Module, where: Where = None) -> list[Slot]:
    """The excited tensors of ``model``, all or those that ``where`` selects.

    Raises:
        ValueError: there is none.
    """
    check_model(model)
    matches = (lambda slot: True) if where is None else matcher(model, where)
    found = [slot for slot in slots_of(model) if slot.excitation and matches(slot)]
    if not found:
        which = "has no excited weight" if where is None else f"has none where {where!r} matches"
        raise ValueError(f"{type(model).__name__} {which}: excite it first")
    return found
