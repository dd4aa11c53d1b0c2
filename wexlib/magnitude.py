"""Magnitude-based excitation and its functions (thesis 3.3 and 3.5): what W / M becomes.

Every function takes u = W / M with M = (1 + ε)·max|W|, the layer's largest magnitude, so |u| ≤ 1 /
(1 + ε), and W' = M·φ(u), but for the thesis's own function, which its code does not scale back.
"""

import math
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wexlib.names import ACTIVATIONS, choose
from wexlib.ops.deferred import DeferredWeight
from wexlib.parametrization import Excitation, Switched


def thesis(u: Tensor) -> Tensor:
    """The thesis's function, equation 3.7: ½u / log10(1 + exp(−0.3u)).

    The logarithm's base is 10 and the result is not multiplied by M: so the authors' code, and the
    text leaves both open. Slope at zero ½ / log10 2 = 1.661. Not odd: against that slope it is
    1.2245 at u = 1/1.1 and 0.826 at −1/1.1, so large negative weights shrink.
    """
    return 0.5 * math.log(10) * u / F.softplus(-0.3 * u)


def thesis_odd(u: Tensor) -> Tensor:
    """sign(u)·thesis(|u|): what the thesis claims of its function, for negative weights too."""
    return 0.5 * math.log(10) * u / F.softplus(-0.3 * u.abs())


def shifted_softplus(u: Tensor) -> Tensor:
    """softplus(u) − ln 2, zero at zero."""
    return F.softplus(u) - math.log(2)


def lecun_tanh(u: Tensor) -> Tensor:
    """1.7159·tanh(2u / 3) (LeCun et al. 1998)."""
    return 1.7159 * torch.tanh(2 / 3 * u)


def star_relu(u: Tensor) -> Tensor:
    """0.8944·relu(u)² − 0.4472 (Yu et al. 2022)."""
    return 0.8944 * F.relu(u).square() - 0.4472


def learnable(u: Tensor, shape: Tensor) -> Tensor:
    """W' / W = e^c·exp(αu² + βu⁴), with α = ¼(e^a − 1), β = ⅛(e^b − 1) and (a, b, c) = ``shape``.

    Future work of the thesis (chapter 8): "some learnable function". What is asked of it:

    * odd and smooth, so that positive and negative weights are treated alike;
    * strictly increasing, so that it never changes which weight is larger: the derivative of
      u·exp(αu² + βu⁴) is exp(…)·(1 + 2αu² + 4βu⁴), and α > −¼, β > −⅛ keep the bracket above
      1 − ½u² − ½u⁴ > 0 for |u| < 1;
    * the identity, to the last bit, at a = b = c = 0, so it can be put on trained weights, and
      weight decay pulls towards "no excitation";
    * a gradient for each number at that start: of u·exp(…), ¼u³, ⅛u⁵ and u;
    * three numbers a layer: a gain, which a following norm removes, and two that bend the curve
      for large weights, up as artanh does or down.
    """
    square = u.square()
    bend = torch.expm1(shape[0]) / 4 + torch.expm1(shape[1]) / 8 * square
    return torch.exp(shape[2] + square * bend)


#: What W' / M is of u = W / M. The eleven functions of thesis 3.3.1 are among them: the thesis
#: gives them no formula; W' = M·φ(W / M), as with the original, is our reading.
SCALED: dict[str, Callable[[Tensor], Tensor]] = {
    "artanh": torch.atanh,
    **{name: function for name, function in ACTIVATIONS.items() if name != "identity"},
    "shifted_softplus": shifted_softplus,
    "lecun_tanh": lecun_tanh,
    "star_relu": star_relu,
}

#: What W' itself is of u.
UNSCALED: dict[str, Callable[[Tensor], Tensor]] = {"thesis": thesis, "thesis_odd": thesis_odd}

#: What ``Magnitude(function=…)`` takes by name; ``artanh`` is the original of Quader et al. 2020. A
#: function of your own is one more entry of :data:`SCALED`: it must take and give a tensor, element
#: by element, and be differentiable for |u| < 1.
FUNCTIONS: Mapping[str, Callable] = ChainMap(UNSCALED, {"learnable": learnable}, SCALED)


def apply(function: str, weight: Tensor, m: Tensor, shape: Tensor | None = None) -> Tensor:
    """W' of the magnitude function by its name, with M = ``m``; ``shape`` are ``learnable``'s.

    ``artanh``: M·artanh(W/M) = M·½·ln((1 + W/M) / (1 − W/M)), equation 3.8.
    """
    u = weight / m
    if function == "learnable":
        return weight * learnable(u, shape)
    return UNSCALED[function](u) if function in UNSCALED else m * SCALED[function](u)


@dataclass(frozen=True)
class Magnitude(Excitation):
    """Magnitude-based weight excitation: W' = M·φ(W / M), M = (1 + ε)·max|W| over the whole tensor.

    ``artanh`` is the original (Quader et al. 2020, thesis equation 3.8): no weight shrinks, the
    largest grows by 1.67 at ε = 0.1 and by 1.44 at 0.2. The others are above;
    ``thesis`` is the thesis's own (equation 3.7), ``learnable`` has three parameters a layer and
    starts as the identity, and the rest have no parameters. M is in the graph. An all-zero weight
    stays zero.

    The authors left a layer's first forward without excitation, a counter that no checkpoint kept;
    here it is always on.

    Args:
        function: one of ``magnitude.FUNCTIONS``.
        eps: ε; 0.1 in the authors' convolutions, 0.2 in their Mixer.

    Raises:
        ValueError: an unknown function, or ε not above 0, which would put the largest weight on
            the pole of artanh.
    """

    function: str = "artanh"
    eps: float = 0.1

    name = "magnitude"

    def __post_init__(self):
        choose(self.function, FUNCTIONS, "magnitude function")
        if isinstance(self.eps, bool) or not isinstance(self.eps, int | float) or not self.eps > 0:
            raise ValueError(f"eps is {self.eps!r}: expected a number above 0, such as 0.1")

    def __str__(self) -> str:
        return f"magnitude({self.function})"

    def _build(self, weight, groups, generator):
        return _Magnitude(self, weight)


class _Magnitude(Switched):
    """See :class:`Magnitude`. ``shape`` holds the three numbers of ``learnable``, else nothing."""

    def __init__(self, excitation: Magnitude, weight: Tensor):
        super().__init__(weight)
        self.excitation, self.shape = excitation, None
        if excitation.function == "learnable":
            self.shape = nn.Parameter(torch.zeros(3, dtype=weight.dtype, device=weight.device))

    def compute(self, x: DeferredWeight) -> DeferredWeight:
        strength = self.current_strength(x.dtype)
        if self.excitation.function == "artanh":
            return DeferredWeight(x.artanh(self.excitation.eps, strength))
        weight, m = x.largest(self.excitation.eps)
        shape = None if self.shape is None else self.shape.to(x.dtype)
        excited = apply(self.excitation.function, weight, m, shape)
        return DeferredWeight(torch.lerp(weight, excited, strength))

    def extra_repr(self) -> str:
        return repr(self.excitation)
