"""Put excitations on a model's weights and take them off; put attention on its feature maps.

An excitation is a parametrization (``torch.nn.utils.parametrize``) of a tensor that the model
already has, so every model will do. What follows from that:

* Initialize and load plain checkpoints first, attach last: ``nn.init`` on an excited weight changes
  nothing. Build the optimizer after attaching.
* The ``state_dict`` has ``conv1.parametrizations.weight.original`` and, for the excitation,
  ``conv1.parametrizations.weight.0.…``. A model that loads it is excited alike first.
* ``torch.save(model)`` refuses; save the ``state_dict``.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wexlib.attention import Attention, FeatureAttention
from wexlib.parametrization import (
    Excitation,
    Parametrization,
    _QueryKeyValue,
    _Transposed,
    chain,
    draw,
    exchange,
    register,
    seeded,
)

# --- Which weights -------------------------------------------------------------------------------

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
    def excitation(self) -> Parametrization | None:
        if not parametrize.is_parametrized(self.module, self.attribute):
            return None
        first = self.module.parametrizations[self.attribute][0]
        return first if isinstance(first, Parametrization) else None


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
    names = [slot.name for slot in slots]
    asked = "the default, every convolution," if where is None else f"where={where!r}"
    raise ValueError(
        f"{asked} matches no weight: expected one of {', '.join(names[:3])}"
        f"{f', … ({len(names)} in all)' if len(names) > 3 else ''}"
        f"{'; ask for linear layers with where=nn.Linear' if where is None else ''}"
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


# --- Excite and fold ------------------------------------------------------------------------------


def _check_slot(slot: Slot) -> None:
    if parametrize.is_parametrized(slot.module, slot.attribute):
        state = "already excited" if slot.excitation else "already parametrized by something else"
        raise ValueError(
            f"{slot.name} is {state}: fold the model, or select other weights by where"
        )
    if nn.parameter.is_lazy(getattr(slot.module, slot.attribute)):
        raise ValueError(f"{slot.name} has no shape yet: run the lazy layer once, then excite it")
    if isinstance(slot.module, nn.RNNBase):
        raise ValueError(
            f"{slot.name} is of a recurrent layer, which reads flat copies of its weights and "
            "would not see the excitation: select other weights by where"
        )


def _attach(slot: Slot, make: Callable[[Tensor, int, str], Parametrization]) -> Parametrization:
    """The slot's excitation, of parts that ``make`` makes for weights with filters first."""
    weight = getattr(slot.module, slot.attribute).detach()
    if slot.attribute == "in_proj_weight":
        parts = zip("qkv", weight.chunk(3), strict=True)
        return _QueryKeyValue(*(make(part, 1, f"{slot.name}.{name}") for name, part in parts))
    groups = slot.module.groups if isinstance(slot.module, CONVOLUTION) else 1
    if isinstance(slot.module, TRANSPOSED):
        return _Transposed(make(exchange(weight, groups), groups, slot.name), groups)
    return make(weight, groups, slot.name)


def _streams(generator: torch.Generator | None) -> Callable[[str], torch.Generator]:
    """A random stream for each name, from ``generator`` or from a look at the global stream."""
    seed = draw(generator)

    def own(name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    return own


def excite(
    model: nn.Module,
    excitation: Excitation | Iterable[Excitation],
    *,
    where: Where = None,
    shared: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Excite weights of ``model``, in place, and return it.

        >>> excite(model, [Standardize(), Location(SE())])
        >>> excite(model, Location(CBAM(activation="leaky_relu"), skips=True), where="layer3")

    Args:
        model: any module; a single layer too.
        excitation: one, or several in the order in which they are applied.
        where: which weights. None: every convolution's, and no linear layer's (if ``model`` is
            itself a layer: that one). A string: a regular expression searched in the weight's
            qualified name, such as ``layer3.0.conv1.weight``; a parameter that is not of a
            convolution, linear or attention layer has to be matched in its own, last name. A type
            or a tuple of types: such layers. A function: gets the weight's qualified name and its
            module.
        shared: one excitation for all of them, instead of one each: its parameters count once, its
            ``state_dict`` keys repeat at every layer, and pausing it anywhere pauses it everywhere.
        generator: where the start of the attention nets comes from; torch's global stream unless
            given, which is left as it was found either way. A weight's nets start from it and the
            weight's name, so they are the same whatever else is excited.

    Raises:
        TypeError: ``model``, ``excitation`` or ``where`` is of a wrong kind.
        ValueError: nothing matches; a weight is excited already; a weight cannot be excited; or
            the layers do not fit one shared excitation. The model is then as it was.
    """
    excitation = chain(excitation)
    slots = select(model, where)
    check_whole(model, "excite the model before it is sharded")
    for slot in slots:
        _check_slot(slot)
    own = _streams(generator)

    def make(weight: Tensor, groups: int, name: str) -> Parametrization:
        return excitation.build(weight, groups, generator=own(name))

    if shared:
        make = _one_for_all(make)
    built = [_attach(slot, make) for slot in slots]
    for slot, made in zip(slots, built, strict=True):
        register(slot.module, slot.attribute, made)
    return model


def _one_for_all(make: Callable[[Tensor, int, str], Parametrization]):
    """``make`` that gives everyone the first one's excitation, if it fits."""
    first: list[tuple[str, Parametrization]] = []

    def sizes(excitation: Parametrization) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in excitation.state_dict().items()}

    def share(weight: Tensor, groups: int, name: str) -> Parametrization:
        if not first:
            first.append((name, make(weight, groups, name)))
        owner, excitation = first[0]
        if sizes(make(torch.empty_like(weight, device="meta"), groups, name)) != sizes(excitation):
            raise ValueError(
                f"{owner} and {name} need nets of different sizes and cannot share one excitation: "
                "select layers of one width by where, or use Global(), which fits every width"
            )
        return excitation

    return share


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Replace every excited weight by its value, in place: plain layers, plain parameters.

    Outputs are the same to the last bit, and the ``state_dict`` fits a model that was never
    excited. Parameters stay the same objects, but a tensor that several layers share gets one of
    its own in each where their excitations differ. A plain model stays as it is.
    """
    check_model(model)
    slots = [slot for slot in slots_of(model) if slot.excitation]
    if slots:
        check_whole(model, GATHER.format("fold"))
    # All first: a shared tensor must not be seen half folded.
    values = [getattr(slot.module, slot.attribute) for slot in slots]
    folded: dict[nn.Parameter, Tensor] = {}
    for slot, value in zip(slots, values, strict=True):
        parametrize.remove_parametrizations(slot.module, slot.attribute, leave_parametrized=False)
        parameter = getattr(slot.module, slot.attribute)
        if parameter not in folded:
            folded[parameter] = value
            parameter.data = value
        elif not torch.equal(folded[parameter], value):
            own = nn.Parameter(value, requires_grad=parameter.requires_grad)
            setattr(slot.module, slot.attribute, own)
    return model


# --- Attention on feature maps -------------------------------------------------------------------


def _attend(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return module.feature_attention(output)


def attend(
    model: nn.Module,
    attention: Attention,
    *,
    where: Where,
    generator: torch.Generator | None = None,
) -> nn.Module:
    r"""Put attention on the output of blocks or stages, in place: its published form.

        >>> attend(model, SE(), where=r"^layer[1-4]\.[01]$")

    Each selected module gets a child ``feature_attention`` and passes its output through it; names
    and types stay. Its channels are those of the last convolution inside.

    Args:
        model: any convolutional model.
        attention: SE(), CBAM(), BAM() or Triplet().
        where: which modules: a regular expression searched in the module's name, a type or a
            tuple of types, or a function of the name and the module.
        generator: as in :func:`excite`.

    Raises:
        TypeError: ``attention`` is none, or ``where`` is of a wrong kind.
        ValueError: nothing matches, it has no convolution, or it has attention already.
    """
    if not isinstance(attention, Attention):
        raise TypeError(f"attention is {attention!r}: expected SE(), CBAM(), BAM() or Triplet()")
    check_model(model)
    matches = matcher(model, where)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name and matches(Slot(name, module, name.rpartition(".")[2]))
    ]
    if not found:
        raise ValueError(f"where={where!r} matches no module of {type(model).__name__}")
    check_whole(model, "put attention on the model before it is sharded")
    own = _streams(generator)
    built = []
    for name, module in found:
        inside = [part for part in module.modules() if isinstance(part, CONVOLUTION)]
        if not inside or hasattr(module, "feature_attention"):
            state = "has attention already" if inside else "has no convolution"
            raise ValueError(f"{name} {state}: select blocks or stages without by where")
        last = inside[-1]
        rank = len(last.kernel_size)
        attended = seeded(
            lambda c=last.out_channels, r=rank: FeatureAttention(attention, c, rank=r), own(name)
        )
        built.append(attended.to(last.weight.device, last.weight.dtype))
    for (_, module), attended in zip(found, built, strict=True):
        module.feature_attention = attended
        module.register_forward_hook(_attend)
    return model
