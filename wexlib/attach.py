"""Put excitations on a model's weights and take them off; put attention on its feature maps.

An excitation is a parametrization (``torch.nn.utils.parametrize``) of a tensor that the model
already has, so every model will do. What follows from that:

* The parameter is ``conv1.parametrizations.weight.original``; ``conv1.weight`` is computed from it
  when it is read. A write in place to ``conv1.weight`` (``nn.init``, ``clamp_``) reaches what was
  computed and is refused when the weight is read next, and so is assigning to it; a write through
  ``conv1.weight.data`` is seen by nobody: write to the parameter. ``conv1.reset_parameters()`` and
  ``model.apply(…)`` reach it.
* The ``state_dict`` has ``conv1.parametrizations.weight.original`` and, for the excitation,
  ``conv1.parametrizations.weight.0.…``. Its metadata say what the excitation is; a model that is
  excited otherwise refuses it. A plain model's ``state_dict`` is loaded into the parameters.
* ``torch.save(model)`` refuses; save the ``state_dict``.
"""

import gc
import hashlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from wexlib.attention import Attention, FeatureAttention
from wexlib.layer import ExcitedTensor, register
from wexlib.parametrization import (
    Excitation,
    Parametrization,
    _Moved,
    _QueryKeyValue,
    _Transposed,
    chain,
    draw,
    exchange,
    filters_first,
    seeded,
)
from wexlib.where import (
    CONVOLUTION,
    GATHER,
    TRANSPOSED,
    Slot,
    Where,
    bare_matrix,
    check_model,
    check_whole,
    excited,
    hooked,
    is_conv1d,
    matcher,
    select,
    slots_of,
    warn_of_left_out,
)

#: Torch's older tools, whose hooks compute a tensor of others, and what undoes each.
UNDO = {
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
    BasePruningMethod: "torch.nn.utils.prune.remove",
}


# --- Excite and fold ------------------------------------------------------------------------------


def _check_slot(slot: Slot) -> None:
    if slot.excitation:
        raise ValueError(
            f"{slot.name} is already excited: fold the model, or select other weights by where"
        )
    if parametrize.is_parametrized(slot.module, slot.attribute):
        kind = type(slot.module.parametrizations[slot.attribute][0]).__name__
        raise ValueError(
            f"{slot.name} is already parametrized by something else, {kind}: undo that with "
            "torch.nn.utils.parametrize.remove_parametrizations, or select other weights by where"
        )
    if parts := hooked(slot.module).get(slot.attribute):
        tool, undo = _tool(slot)
        raise ValueError(
            f"{slot.name} is computed of {' and '.join(parts)} by {tool}: undo that{undo}, or "
            "select other weights by where"
        )
    if nn.parameter.is_lazy(getattr(slot.module, slot.attribute)):
        raise ValueError(f"{slot.name} has no shape yet: run the lazy layer once, then excite it")
    if isinstance(slot.module, nn.RNNBase):
        raise ValueError(
            f"{slot.name} is of a recurrent layer, which reads flat copies of its weights and "
            "would not see the excitation: select other weights by where"
        )


def _tool(slot: Slot) -> tuple[str, str]:
    """What computes a hooked tensor, and what undoes it."""
    for hook in slot.module._forward_pre_hooks.values():
        for kind, undo in UNDO.items():
            name = getattr(hook, "name", getattr(hook, "_tensor_name", None))
            if isinstance(hook, kind) and name == slot.attribute:
                return type(hook).__name__, f" with {undo}"
    return "something else", ""


Axis = int | tuple[int, ...] | None


def _filter_axes(slot: Slot, axis: Axis) -> tuple[int, ...]:
    """The axes of the slot's weight that number its filters, in order and from 0."""
    dim = getattr(slot.module, slot.attribute).dim()
    own = 1 if isinstance(slot.module, TRANSPOSED) or is_conv1d(slot.module) else 0
    if axis is None:
        if dim == 3 and bare_matrix(slot) and not isinstance(slot.module, nn.Bilinear):
            raise ValueError(
                f"{slot.name} has three axes and is of no known layer: say which number its "
                "filters, such as axis=(0, 2) for (experts, inputs, outputs) or axis=0 for "
                "(filters, inputs, space)"
            )
        return (own,)
    given = axis if isinstance(axis, tuple) else (axis,)
    if not given or not all(isinstance(i, int) and not isinstance(i, bool) for i in given):
        raise TypeError(f"axis is {axis!r}: expected a whole number or a tuple of them")
    if not all(-dim <= i < dim for i in given):
        raise ValueError(
            f"axis={axis!r} is not of {slot.name}: expected {-dim} to {dim - 1}, as it has {dim} "
            "axes"
        )
    axes = tuple(sorted({i % dim for i in given}))
    if len(axes) < len(given):
        raise ValueError(f"axis={axis!r} names an axis of {slot.name} twice: expected each once")
    if len(axes) == dim:
        raise ValueError(
            f"axis={axis!r} is all axes of {slot.name}: expected one to remain, of input channels"
        )
    if axes != (own,) and isinstance(slot.module, CONVOLUTION) and slot.module.groups > 1:
        raise ValueError(
            f"axis={axis!r} does not fit {slot.name}, of a convolution in groups: leave axis out, "
            "its filters are known"
        )
    return axes


def _attach(
    slot: Slot, axis: Axis, make: Callable[[Tensor, int, str], Parametrization]
) -> Parametrization:
    """The slot's excitation, of parts that ``make`` makes for weights with filters first."""
    weight = getattr(slot.module, slot.attribute).detach()
    axes = _filter_axes(slot, axis)
    groups = slot.module.groups if isinstance(slot.module, CONVOLUTION) else 1

    def attach(weight: Tensor, name: str) -> Parametrization:
        if isinstance(slot.module, TRANSPOSED) and axes == (1,):
            return _Transposed(make(exchange(weight, groups), groups, name), groups)
        if axes == (0,):
            return make(weight, groups, name)
        return _Moved(make(filters_first(weight, axes), groups, name), axes)

    if slot.attribute == "in_proj_weight":
        parts = zip("qkv", weight.chunk(3), strict=True)
        made = _QueryKeyValue(*(attach(part, f"{slot.name}.{name}") for name, part in parts))
    else:
        made = attach(weight, slot.name)
    made.axis = axis
    return made


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
    axis: Axis = None,
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
            or a tuple of types: such layers; with nn.Linear, a warning names the matrices that are
            of none. A function: gets the weight's qualified name and its module.
        axis: the axis, or axes, that number the filters: of the others the first is the input
            channels, the rest space. ``axis=1`` for a weight (in, out), ``axis=(0, 2)`` for
            experts (E, in, out), which are E·out filters. None: as the layer has them, known of
            convolutions and transformers' ``Conv1D``, else axis 0; a bare weight of three axes
            has to say.
        shared: one excitation for all of them, instead of one each: its parameters count once, its
            ``state_dict`` keys repeat at every layer, and pausing it anywhere pauses it everywhere.
        generator: where the start of the attention nets comes from; torch's global stream unless
            given, which is left as it was found either way. A weight's nets start from it and the
            weight's name, so they are the same whatever else is excited.

    Raises:
        TypeError: ``model``, ``excitation``, ``where`` or ``axis`` is of a wrong kind.
        ValueError: nothing matches; a weight is excited or parametrized already; a weight cannot
            be excited; ``axis`` does not fit a weight; or the layers do not fit one shared
            excitation. The model is then as it was.
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
    built = [_attach(slot, axis, make) for slot in slots]
    warn_of_left_out(model, where, slots)
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
        excitation.shared = True
        if sizes(make(torch.empty_like(weight, device="meta"), groups, name)) != sizes(excitation):
            raise ValueError(
                f"{owner} and {name} need nets of different sizes and cannot share one excitation: "
                "select layers of one width by where, or use Global(), which fits every width"
            )
        return excitation

    return share


@torch.no_grad()
def fold(model: nn.Module, *, where: Where = None) -> nn.Module:
    """Replace excited weights by their values, in place: plain layers, plain parameters.

    Outputs are the same to the last bit, and the ``state_dict`` fits a model that was never
    excited. A plain model stays as it is.

    A parameter stays the same object, and with it its optimizer's state. One that another module
    holds too, in this model or elsewhere, keeps its value there, and the folded layer gets one of
    its own: a warning names them. Layers that share a parameter and are excited alike share the
    folded one.

    Args:
        model: any module.
        where: which weights, as in :func:`excite`; None is all that are excited.

    Raises:
        ValueError: ``where`` selects no excited weight.
    """
    check_model(model)
    slots = [slot for slot in slots_of(model) if slot.excitation]
    slots = slots if where is None else excited(model, where)
    if slots:
        check_whole(model, GATHER.format("fold"))
    # All first: a shared tensor must not be seen half folded.
    values = [slot.tensor() for slot in slots]
    held = _held(model, [slot.tensor for slot in slots])
    folded: dict[nn.Parameter, list[nn.Parameter]] = defaultdict(list)
    for slot, value in zip(slots, values, strict=True):
        original = slot.tensor.original
        parametrize.remove_parametrizations(slot.module, slot.attribute, leave_parametrized=False)
        known = folded[original]
        parameter = next((p for p in known if torch.equal(p, value)), None)
        if parameter is None:
            if known or original in held:
                parameter = nn.Parameter(value, requires_grad=original.requires_grad)
            else:
                parameter, original.data = original, value
            known.append(parameter)
        setattr(slot.module, slot.attribute, parameter)
        if original in held:
            warnings.warn(
                f"{slot.name} was the parameter {held[original]} too, which keeps its value: they "
                "are two parameters now, and need two in an optimizer and in what ties weights",
                stacklevel=3,
            )
    return model


def _held(model: nn.Module, tensors: list[ExcitedTensor]) -> dict[nn.Parameter, str]:
    """Of the stored parameters those that any other module holds, and where."""
    originals, own = {tensor.original for tensor in tensors}, set(tensors)
    names, held = {module: name for name, module in model.named_modules()}, {}
    for module in gc.get_objects():
        if issubclass(type(module), nn.Module) and module not in own:
            for name, parameter in vars(module).get("_parameters", {}).items():
                if parameter is not None and parameter in originals:
                    where = (
                        f"{names[module]}.{name}" if module in names else f"another model's {name}"
                    )
                    held[parameter] = where.lstrip(".")
    return held


def remove(model: nn.Module, *, where: Where = None) -> nn.Module:
    """Take excitations off and leave the stored weights, in place: the way back from ``excite``.

    Parameters stay the same objects. Outputs are those of the stored weights; :func:`fold` keeps
    the excited ones.

    Args:
        model: an excited model.
        where: which weights, as in :func:`excite`; None is all that are excited.

    Raises:
        ValueError: nothing excited is selected.
    """
    slots = excited(model, where)
    check_whole(model, GATHER.format("remove them from"))
    for slot in slots:
        parametrize.remove_parametrizations(slot.module, slot.attribute, leave_parametrized=False)
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
