"""Put excitations on a model's weights and take them off: excite, pause, resume, describe, fold.

An excitation is a parametrization (``torch.nn.utils.parametrize``) of a tensor that the model
already has, so every model will do. What follows from that:

* Initialize and load plain checkpoints first, attach last: ``nn.init`` on an excited weight changes
  nothing. Build the optimizer after attaching.
* The ``state_dict`` has ``conv1.parametrizations.weight.original`` and, for the excitation,
  ``conv1.parametrizations.weight.0.…``. A model that loads it is excited by the same recipe first.
* ``torch.save(model)`` refuses; save the ``state_dict``.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wexlib.attention import Attention, FeatureAttention
from wexlib.layout import QueryKeyValue, Transposed, exchange
from wexlib.ops.affine import Affine
from wexlib.parametrization import register
from wexlib.recipe import Excitation, Gated, Recipe, Switched, chain, draw, seeded, spatial
from wexlib.sharing import GlobalExcitation
from wexlib.where import (
    CONVOLUTION,
    TRANSPOSED,
    Slot,
    Where,
    check_model,
    matcher,
    select,
    slots_of,
)


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


def _attach(slot: Slot, make: Callable[[Tensor, int, str], Excitation]) -> Excitation:
    """The slot's excitation, of parts that ``make`` makes for weights with filters first."""
    weight = getattr(slot.module, slot.attribute).detach()
    if slot.attribute == "in_proj_weight":
        parts = zip("qkv", weight.chunk(3), strict=True)
        return QueryKeyValue(*(make(part, 1, f"{slot.name}.{name}") for name, part in parts))
    groups = slot.module.groups if isinstance(slot.module, CONVOLUTION) else 1
    if isinstance(slot.module, TRANSPOSED):
        return Transposed(make(exchange(weight, groups), groups, slot.name), groups)
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
    recipe: Recipe | Iterable[Recipe],
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
        recipe: one recipe, or several in the order in which they are applied.
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
        TypeError: ``model``, ``recipe`` or ``where`` is of a wrong kind.
        ValueError: nothing matches; a weight is excited already; a weight cannot be excited; or
            the layers do not fit one shared excitation. The model is then as it was.
    """
    recipe = chain(recipe)
    slots = select(model, where)
    for slot in slots:
        _check_slot(slot)
    own = _streams(generator)

    def make(weight: Tensor, groups: int, name: str) -> Excitation:
        return recipe.build(weight, groups, generator=own(name))

    if shared:
        make = _one_for_all(make)
    built = [_attach(slot, make) for slot in slots]
    for slot, excitation in zip(slots, built, strict=True):
        register(slot.module, slot.attribute, excitation)
    return model


def _one_for_all(make: Callable[[Tensor, int, str], Excitation]):
    """``make`` that gives everyone the first one's excitation, if it fits."""
    first: list[tuple[str, Excitation]] = []

    def sizes(excitation: Excitation) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in excitation.state_dict().items()}

    def share(weight: Tensor, groups: int, name: str) -> Excitation:
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
    with parametrize.cached():
        before = set(parametrize._cache)
        try:
            for module in model.modules():
                if parametrize.is_parametrized(module):
                    for name, chained in module.parametrizations.items():
                        if isinstance(chained[0], Excitation):
                            getattr(module, name)
            yield
        finally:
            # Torch forgets at the end of the outermost block only.
            for key in set(parametrize._cache) - before:
                del parametrize._cache[key]


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Replace every excited weight by its value, in place: plain layers, plain parameters.

    Outputs are the same to the last bit, and the ``state_dict`` fits a model that was never
    excited. Parameters stay the same objects, but a tensor that several layers share gets one of
    its own in each where their excitations differ. A plain model stays as it is.
    """
    check_model(model)
    slots = [slot for slot in slots_of(model) if slot.excitation]
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
    parts = [part for part in model.modules() if isinstance(part, GlobalExcitation)]
    if not parts:
        raise ValueError(f"{type(model).__name__} has no Global() excitation: excite it with one")
    for weights in ([part.fc1.weight for part in parts], [part.fc2.weight for part in parts]):
        mean = torch.stack(weights).mean(0)
        for weight in weights:
            weight.copy_(mean)
    return model


# --- Describe ------------------------------------------------------------------------------------


class Description(list):
    """Rows (dictionaries) that print as a table; ``pandas.DataFrame`` takes them too."""

    COLUMNS = ("weight", "shape", "excitation", "parameters", "gate", "spread", "saturated")

    def __str__(self) -> str:
        cells = [list(self.COLUMNS)]
        cells += [[self._text(row[name]) for name in self.COLUMNS] for row in self]
        cells.append(["total", "", "", str(sum(row["parameters"] for row in self)), "", "", ""])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        )

    __repr__ = __str__

    @staticmethod
    def _text(value: object) -> str:
        if value is None:
            return "-"
        if isinstance(value, tuple):
            return "×".join(map(str, value))
        return f"{value:.3f}" if isinstance(value, float) else str(value)


@torch.no_grad()
def describe(model: nn.Module) -> Description:
    """What is attached, a row for each excited weight; ``print`` it.

    Columns: the weight's name and shape; its excitation; the parameters that were added (a shared
    one's stand in the row of its first layer); the mean and the standard deviation of the
    location multiplier over its entries; and the share of the gates' entries within 0.01 of an end
    of their function's range, such as 0 and 1. A dash: no gate, or one without ends.

    Raises:
        ValueError: nothing is excited.
    """
    seen: set[nn.Parameter] = set()
    rows = Description()
    for slot in excited(model):
        multipliers: list[Tensor] = []
        ends: list[Tensor] = []

        def look(
            part: Gated, inputs: tuple[Tensor | Affine], multipliers=multipliers, ends=ends
        ) -> None:
            x = inputs[0].dense() if isinstance(inputs[0], Affine) else spatial(inputs[0])
            multipliers.append(part.multiplier(x).flatten())
            maps, limits = part.gates(x)
            if limits:
                low, high = limits[0] + 0.01, limits[1] - 0.01
                ends.extend(((gate < low) | (gate > high)).flatten() for gate in maps)

        parts = [part for part in slot.excitation.modules() if isinstance(part, Gated)]
        hooks = [part.register_forward_pre_hook(look) for part in parts]
        weight = getattr(slot.module, slot.attribute)
        for hook in hooks:
            hook.remove()
        added = [p for p in slot.excitation.parameters() if p not in seen]
        seen.update(added)
        gate = torch.cat(multipliers) if multipliers else None
        rows.append(
            {
                "weight": slot.name,
                "shape": tuple(weight.shape),
                "excitation": slot.excitation.label,
                "parameters": sum(p.numel() for p in added),
                "gate": None if gate is None else gate.mean().item(),
                "spread": None if gate is None else gate.std(correction=0).item(),
                "saturated": torch.cat(ends).float().mean().item() if ends else None,
            }
        )
    return rows


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
