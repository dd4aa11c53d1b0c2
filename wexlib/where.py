"""Which weights of a model ``where`` selects."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from wexlib.attention import FeatureAttention
from wexlib.recipe import Excitation

Where = str | type | tuple[type, ...] | Callable[[str, nn.Module], bool] | None

CONVOLUTION = nn.modules.conv._ConvNd
TRANSPOSED = nn.modules.conv._ConvTransposeNd
#: Layers whose weights a name selects by any part of it; another module's parameter has to be
#: named itself, so that "encoder" is no position embedding.
LAYERS = (CONVOLUTION, nn.Linear, nn.MultiheadAttention)


@dataclass(frozen=True)
class Slot:
    """A tensor of a model: ``name`` is qualified, ``attribute`` its name in ``module``."""

    name: str
    module: nn.Module
    attribute: str

    @property
    def excitation(self) -> Excitation | None:
        if not parametrize.is_parametrized(self.module, self.attribute):
            return None
        first = self.module.parametrizations[self.attribute][0]
        return first if isinstance(first, Excitation) else None


def slots_of(model: nn.Module) -> Iterator[Slot]:
    """Every parameter of two axes or more, and every parametrized tensor; no attention's nets."""
    own = set()
    for prefix, module in model.named_modules():
        if isinstance(module, FeatureAttention | parametrize.ParametrizationList):
            own.update(module.modules())
        if module in own:
            continue
        names = [name for name, p in module.named_parameters(recurse=False) if _wide(p)]
        if parametrize.is_parametrized(module):
            names += module.parametrizations
        for name in names:
            yield Slot(f"{prefix}.{name}" if prefix else name, module, name)


def _wide(parameter: nn.Parameter) -> bool:
    return nn.parameter.is_lazy(parameter) or parameter.dim() >= 2


def matcher(model: nn.Module, where: Where) -> Callable[[Slot], bool]:
    if where is None:
        # A layer that is passed itself was asked for.
        return lambda slot: (
            isinstance(slot.module, CONVOLUTION)
            or (slot.module is model and isinstance(model, LAYERS))
        )
    if isinstance(where, str):
        try:
            pattern = re.compile(where)
        except re.error as error:
            raise ValueError(f"where={where!r} is no regular expression: {error}") from None

        def named(slot: Slot) -> bool:
            own = 0 if isinstance(slot.module, LAYERS) else len(slot.name) - len(slot.attribute)
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


def select(model: nn.Module, where: Where) -> list[Slot]:
    check_model(model)
    matches = matcher(model, where)
    slots = list(slots_of(model))
    found = [slot for slot in slots if matches(slot)]
    if found:
        return found
    if where is None and not slots:
        raise ValueError(f"{type(model).__name__} has no weight: there is nothing to excite")
    names = [slot.name for slot in slots]
    asked = "the default, every convolution," if where is None else f"where={where!r}"
    raise ValueError(
        f"{asked} matches no weight: expected one of {', '.join(names[:3])}"
        f"{f', … ({len(names)} in all)' if len(names) > 3 else ''}"
        f"{'; ask for linear layers with where=nn.Linear' if where is None else ''}"
    )
