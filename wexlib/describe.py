"""Look at an excited model: what is attached where, and the tensors on the way from W to W'."""

import torch
from torch import Tensor, nn

from wexlib.attach import excited
from wexlib.ops.deferred import DeferredWeight
from wexlib.parametrization import Gated, spatial


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
            part: Gated, inputs: tuple[Tensor | DeferredWeight], multipliers=multipliers, ends=ends
        ) -> None:
            x = inputs[0].dense() if isinstance(inputs[0], DeferredWeight) else spatial(inputs[0])
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
