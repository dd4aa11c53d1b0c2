"""Look at an excited model: what is attached where, and the tensors on the way from W to W'."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wexlib.ops.deferred import DeferredWeight
from wexlib.parametrization import Gated, Parametrization, spatial
from wexlib.where import Slot, excited


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


def _computed(slot: Slot) -> Tensor:
    """The excited weight, anew; a sharded layer is gathered, so all processes have to ask."""
    chained = slot.module.parametrizations[slot.attribute]
    shards = [(name, p) for name, p in chained.named_parameters() if hasattr(p, "full_tensor")]
    return functional_call(chained, {name: p.full_tensor() for name, p in shards}, ())


def _watch(slot: Slot, look: Callable[[Parametrization, Tensor], None]) -> None:
    """Let ``look`` see each part with the weight (N, C, *space) that it gets; what is computed then
    may differ in its last bits, as it was looked at earlier."""

    def seen(part: Parametrization, inputs: tuple[Tensor | DeferredWeight]) -> None:
        (x,) = inputs
        look(part, x.dense() if isinstance(x, DeferredWeight) else spatial(x))

    hooks = [
        part.register_forward_pre_hook(seen)
        for name, part in slot.excitation.named_modules()
        # Not those of the attention's own nets, which may be excited themselves.
        if isinstance(part, Parametrization) and "parametrizations" not in name
    ]
    try:
        _computed(slot)
    finally:
        for one in hooks:
            one.remove()


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

        def look(part: nn.Module, x: Tensor, multipliers=multipliers, ends=ends) -> None:
            if not isinstance(part, Gated):
                return
            multipliers.append(part.multiplier(x).flatten())
            maps, limits = part.gates(x)
            if limits:
                low, high = limits[0] + 0.01, limits[1] - 0.01
                ends.extend(((gate < low) | (gate > high)).flatten() for gate in maps)

        _watch(slot, look)
        weight = slot.module.parametrizations[slot.attribute].original
        added = [p for p in slot.excitation.parameters() if p not in seen]
        seen.update(added)
        gate = torch.cat(multipliers) if multipliers else None
        rows.append(
            {
                "weight": slot.name,
                "shape": tuple(weight.shape),
                "excitation": str(slot.excitation.excitation),
                "parameters": sum(p.numel() for p in added),
                "gate": None if gate is None else gate.mean().item(),
                "spread": None if gate is None else gate.std(correction=0).item(),
                "saturated": torch.cat(ends).float().mean().item() if ends else None,
            }
        )
    return rows


@torch.no_grad()
def inspect(layer: nn.Module) -> dict[str, Tensor | tuple[Tensor, ...]]:
    """The tensors on the way from the stored weight W to the excited W', in this order.

        >>> inspect(excite(nn.Conv2d(16, 8, 3), [Standardize(), Location(SE())]))["gates"]

    ================  ==========================================================================
    ``stored``        W, the parameter, in the layer's own order of axes
    ``standardized``  Ŵ, where it is standardized: (N, C, *space), filters on axis 0
    ``gates``         a tuple of the attention's gated maps, each broadcasting to (N, C, *space);
                      empty for ``control="free"``
    ``multiplier``    what is made of them and multiplies the weight, before ``resume``'s strength
    ``excited``       W', as the layer uses it
    ================  ==========================================================================

    A magnitude function has no tensor but its result. A linear layer's space is 1×1. What is of a
    second location in a chain, or of k and v beside q, has a number behind its name:
    ``multiplier2``. No tensor carries a gradient.

    Raises:
        ValueError: not exactly one weight in ``layer`` is excited.
    """
    slots = excited(layer)
    if len(slots) > 1:
        raise ValueError(
            f"{type(layer).__name__} has {len(slots)} excited weights: expected a layer with one, "
            f"such as that of {slots[0].name}"
        )
    (slot,) = slots
    stored = slot.module.parametrizations[slot.attribute].original.detach()
    tensors = {"stored": stored.full_tensor() if hasattr(stored, "full_tensor") else stored}

    def look(part: Parametrization, x: Tensor) -> None:
        for key, value in part.shown(x).items():
            count = sum(known.rstrip("0123456789") == key for known in tensors)
            tensors[key + (str(count + 1) if count else "")] = value

    _watch(slot, look)
    return tensors | {"excited": _computed(slot)}
