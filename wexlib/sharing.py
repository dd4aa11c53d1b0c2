"""Global weight excitation (thesis 4.2): location excitation whose net fits layers of any width."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wexlib.activations import ACTIVATIONS, RANGES
from wexlib.attention import like, mean_space, run
from wexlib.names import choose
from wexlib.ops.affine import Affine
from wexlib.recipe import Gated, Recipe, seeded

#: Hidden width of the net that treats channels one by one.
HIDDEN = 16


@dataclass(frozen=True)
class Global(Recipe):
    """Channel excitation by a net of a fixed size, so that one net can serve every layer.

        W' = W ⊙ σ(V2·relu(V1·d + b1) + b2)

    ``excite(model, [Standardize(), Global()], shared=True)`` is one net for all selected layers,
    as the thesis describes it. Without ``shared`` every layer has its own, and ``average(model)``
    after each optimizer step makes V1 and V2 equal: the authors' code, where biases stay apart.

    Two ways to fit the layers' different numbers of input channels:

    * ``width=64``, the authors': d is the kernels' mean, interpolated over the channel index to
      ``width`` numbers (linearly, corners not aligned), and the gates are interpolated back. V1:
      64 → 4, V2: 4 → 64, 580 parameters. It makes neighbours of channels whose order means
      nothing, and of 512 channels it reads a quarter.
    * ``width=None``: each channel is treated alike, by d = [its kernel's mean; the mean of those
      over the filter's channels; their maximum], V1: 3 → 16, V2: 16 → 1, 81 parameters (Zaheer et
      al. 2017, Deep Sets). It reads every channel, and numbering the channels otherwise numbers
      the gates otherwise and changes nothing else.

    Groups do not matter to either. Nets are ``fc1`` and ``fc2``, started as torch starts them.

    Args:
        activation: the hidden function, by torch's functional name.
        gate: the outer function, likewise.
        width: numbers that the net takes, or None.
        reduction: with a width, the hidden width is max(⌊width / reduction⌋, 1).

    Raises:
        ValueError: an unknown function, or a number below 1.
    """

    activation: str = "relu"
    gate: str = "sigmoid"
    width: int | None = 64
    reduction: int = 16

    name = "global"

    def __post_init__(self):
        choose(self.activation, ACTIVATIONS, "activation")
        choose(self.gate, ACTIVATIONS, "gate")
        for field in ("width", "reduction"):
            value = getattr(self, field)
            if value is None and field == "width":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field} is {value!r}: expected a whole number, 1 or more")

    def __str__(self) -> str:
        return "global" if self.width else "global(each channel)"

    def _build(self, weight, groups, generator):
        return GlobalExcitation(self, weight, generator)


class GlobalExcitation(Gated):
    """See :class:`Global`."""

    def __init__(self, recipe: Global, weight: Tensor, generator: torch.Generator | None):
        super().__init__(weight)
        self.recipe = recipe
        inputs, hidden, outputs = 3, HIDDEN, 1
        if recipe.width:
            inputs = outputs = recipe.width
            hidden = max(recipe.width // recipe.reduction, 1)
        nets = seeded(lambda: (nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)), generator)
        self.fc1, self.fc2 = (net.to(weight.device, weight.dtype) for net in nets)

    def multiplier(self, x: Tensor | Affine) -> Tensor:
        pooled = mean_space(x)
        width, channels = self.recipe.width, pooled.shape[1]
        if width:
            gate = _interpolate(self._net(_interpolate(pooled, width)), channels)
        else:
            context = [pooled.mean(1, keepdim=True), pooled.amax(1, keepdim=True)]
            gate = self._net(torch.stack([pooled, *(c.expand_as(pooled) for c in context)], 2))
            gate = gate.squeeze(2)
        return like(gate, x)

    def _net(self, descriptor: Tensor) -> Tensor:
        hidden = ACTIVATIONS[self.recipe.activation](run(self.fc1, descriptor))
        return ACTIVATIONS[self.recipe.gate](run(self.fc2, hidden))

    def gates(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[float, float] | None]:
        return (self.multiplier(x),), RANGES.get(self.recipe.gate)

    def extra_repr(self) -> str:
        return repr(self.recipe)


def _interpolate(x: Tensor, width: int) -> Tensor:
    """(N, C) -> (N, width), linearly over the index of axis 1."""
    return F.interpolate(x[None], size=width, mode="linear", align_corners=False)[0]
