"""The excitations of a layer's weight: standardize, location, magnitude."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wexlib import magnitude
from wexlib.attention import Attention
from wexlib.names import choose
from wexlib.ops.affine import Affine, largest
from wexlib.parametrization import register
from wexlib.recipe import Excitation, Gated, Recipe, Switched, chain, flat, seeded, spatial

STARTS = ("random", "identity")
CONTROLS = ("none", "free", "frozen", "mean")


# --- Standardize ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standardize(Recipe):
    """Weight standardization (Qiao et al. 2019): every filter gets mean 0 and deviation 1.

        Ŵ = (W − mean) / (std(W) + 1e-5), over all axes but the first

    std is unbiased and the constant is outside the root, as in the authors' code. A filter of one
    element has no deviation and passes unchanged; a constant filter becomes zeros. No parameters.
    Not paused by ``pause``.
    """

    name = "standardize"

    def _build(self, weight, groups, generator):
        return Standardization()


class Standardization(Excitation):
    """See :class:`Standardize`."""

    def compute(self, x: Affine) -> Affine:
        return x if x.shape[1:].numel() == 1 else x.standardized()


# --- Location ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Location(Recipe):
    """Location-based weight excitation: W' = W ⊙ multiplier(W), an attention on the weight.

    The filter axis is the attention's batch, the input channel its channel: all filters of a layer
    share its nets. With SE it is the original (Quader et al. 2020), with ``CBAM(activation=
    "leaky_relu")`` and ``skips`` the thesis's novel module (3.2, 4.1). Formulas, nets and
    parameters: see the attention. Hidden width comes from all input channels of the layer (axis 1
    times groups), the nets' width from axis 1; spatial nets have the layer's own kernel.

    At the start the nets are as torch starts such layers, uniform in ±1/√fan_in, weights and
    biases.

    Args:
        attention: SE(), CBAM(), BAM() or Triplet().
        skips: W + attended W; CBAM has a form of its own.
        start: ``identity`` starts the last layer of each net at zero and divides the multiplier by
            its value there, so W' = W exactly and a trained network keeps its function; gradients
            reach those layers at once, and the others after the first step. A division, and not a
            large bias, because a gate pushed to its end would have no gradient.
        control: ``none``, or what the gate is compared with. ``free``: the multiplier is a
            parameter of its own, which starts where fresh nets put it and no longer sees the
            weight (as many numbers as the multiplier has). ``frozen``: the nets keep their random
            start. ``mean``: every entry of the multiplier is replaced by their mean, a number.
        stacked: recipes for the weights of ``fc1`` and ``fc2`` themselves (thesis chapter 8:
            stacked weight excitation); the authors' two are [Standardize(), Location(SE())] and
            [Standardize(), Magnitude()]. Theirs gave NaN where fc2 has one input; here such
            one-element filters pass.

    Raises:
        TypeError: ``attention`` is none.
        ValueError: unknown start or control, ``identity`` with a gate that is zero at zero, or
            ``stacked`` with an attention that has no fc1.
    """

    attention: Attention
    skips: bool = False
    start: str = "random"
    control: str = "none"
    stacked: tuple[Recipe, ...] = ()

    name = "location"

    def __post_init__(self):
        if not isinstance(self.attention, Attention):
            raise TypeError(
                f"attention is {self.attention!r}: expected SE(), CBAM(), BAM() or Triplet()"
            )
        if not isinstance(self.skips, bool):
            raise TypeError(f"skips is {self.skips!r}: expected True or False")
        choose(self.start, STARTS, "start")
        choose(self.control, CONTROLS, "control")
        object.__setattr__(self, "stacked", flat(self.stacked) if self.stacked else ())

    def __str__(self) -> str:
        parts = [type(self.attention).__name__.lower()]
        parts += ["skips"] if self.skips else []
        parts += [self.control] if self.control != "none" else []
        parts += [f"stacked {chain(self.stacked)}"] if self.stacked else []
        return f"location({', '.join(parts)})"

    def _build(self, weight, groups, generator):
        return LocationExcitation(self, weight, groups, generator)


class LocationExcitation(Gated):
    """See :class:`Location`. The attention's nets are direct children: fc1, fc2, spatial, …"""

    def __init__(
        self, recipe: Location, weight: Tensor, groups: int, generator: torch.Generator | None
    ):
        super().__init__(weight)
        self.recipe, self.attention, self.rest = recipe, recipe.attention, 1.0
        kernel = tuple(weight.shape[2:]) or (1, 1)
        nets = seeded(
            lambda: self.attention.nets(weight.shape[1], kernel, groups=groups), generator
        )
        for name, net in nets.items():
            self.add_module(name, net.to(weight.device, weight.dtype))
        if recipe.start == "identity":
            self._start_at_identity()
        if recipe.stacked:
            self._stack(generator)
        if recipe.control == "frozen":
            for net in nets.values():
                net.requires_grad_(False)
        if recipe.control == "free":
            with torch.no_grad():
                wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
                free = self.multiplier(spatial(wide)).to(weight.dtype)
            for name in nets:
                delattr(self, name)
            self.free = nn.Parameter(free)

    def _start_at_identity(self) -> None:
        for name, net in self.named_children():
            if name != "fc1":
                last = net[-1] if isinstance(net, nn.Sequential) else net
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        self.rest = self.attention.resting(skips=self.recipe.skips)
        if self.rest == 0:
            raise ValueError(
                f"start 'identity' needs a multiplier that is not zero at rest, and that of "
                f"{self.attention} is: choose the gate 'sigmoid', or skips=True"
            )

    def _stack(self, generator: torch.Generator | None) -> None:
        if not hasattr(self, "fc1"):
            raise ValueError(
                f"stacked excites fc1 and fc2, which {self.attention} has not: use SE(), CBAM() or "
                "BAM()"
            )
        for net in (self.fc1, self.fc2):
            inner = chain(self.recipe.stacked).build(net.weight, generator=generator)
            register(net, "weight", inner)

    def compute(self, x: Affine) -> Affine:
        if not self.attention.pools:
            x = Affine(x.dense())
        if self.rest != 1 or self.recipe.control in ("free", "mean"):
            return super().compute(x)
        strength = self.strength.to(x.dtype)
        return Affine(self.attention.attend(self, x, strength, skips=self.recipe.skips))

    def maps(self, x: Tensor | Affine) -> tuple[Tensor, ...]:
        if isinstance(x, Affine) and not self.attention.pools:
            x = x.dense()
        return self.attention.maps(self, x, skips=self.recipe.skips)

    def gates(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[float, float] | None]:
        return (() if hasattr(self, "free") else self.maps(x)), self.attention.range()

    def multiplier(self, x: Tensor | Affine) -> Tensor:
        if hasattr(self, "free"):
            return self.free.to(x.dtype)
        m = self.attention.combine(self.maps(x), skips=self.recipe.skips)
        if self.rest != 1:
            m = m / self.rest
        return m.mean() if self.recipe.control == "mean" else m

    def extra_repr(self) -> str:
        return repr(self.recipe)


# --- Magnitude -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Magnitude(Recipe):
    """Magnitude-based weight excitation: W' = M·φ(W / M), M = (1 + ε)·max|W| over the whole tensor.

    ``artanh`` is the original (Quader et al. 2020, thesis equation 3.8): no weight shrinks, the
    largest grows by 1.67 at ε = 0.1 and by 1.44 at 0.2. The others: :mod:`wexlib.magnitude`;
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
        choose(self.function, magnitude.FUNCTIONS, "magnitude function")
        if isinstance(self.eps, bool) or not isinstance(self.eps, int | float) or not self.eps > 0:
            raise ValueError(f"eps is {self.eps!r}: expected a number above 0, such as 0.1")

    def __str__(self) -> str:
        return f"magnitude({self.function})"

    def _build(self, weight, groups, generator):
        return MagnitudeExcitation(self, weight)


class MagnitudeExcitation(Switched):
    """See :class:`Magnitude`. ``shape`` holds the three numbers of ``learnable``, else nothing."""

    def __init__(self, recipe: Magnitude, weight: Tensor):
        super().__init__(weight)
        self.recipe, self.shape = recipe, None
        if recipe.function == "learnable":
            self.shape = nn.Parameter(torch.zeros(3, dtype=weight.dtype, device=weight.device))

    def compute(self, x: Affine) -> Affine:
        strength = self.strength.to(x.dtype)
        if self.recipe.function == "artanh":
            return Affine(x.artanh(self.recipe.eps, strength))
        weight, m = largest(x.dense(), self.recipe.eps)
        shape = None if self.shape is None else self.shape.to(x.dtype)
        excited = magnitude.apply(self.recipe.function, weight, m, shape)
        return Affine(torch.lerp(weight, excited, strength))

    def extra_repr(self) -> str:
        return repr(self.recipe)
