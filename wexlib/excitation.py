"""The excitations of a layer's weight: standardize, location, global; :mod:`wexlib.magnitude`."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wexlib.attention import Attention
from wexlib.layer import register
from wexlib.names import ACTIVATIONS, RANGES, choose
from wexlib.ops.deferred import DeferredWeight, mean_space
from wexlib.ops.formulas import like
from wexlib.ops.nets import run
from wexlib.parametrization import (
    Excitation,
    Gated,
    Parametrization,
    chain,
    flat,
    seeded,
    spatial,
)

STARTS = ("random", "identity")
CONTROLS = ("none", "free", "frozen", "mean")


# --- Standardize ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standardize(Excitation):
    """Weight standardization (Qiao et al. 2019): every filter gets mean 0 and deviation 1.

        Ŵ = (W − mean) / (std(W) + 1e-5), over all axes but the first

    std is unbiased and the constant is outside the root, as in the authors' code. A filter of one
    element has no deviation and passes unchanged; a constant filter becomes zeros. No parameters.
    Not paused by ``pause``.
    """

    name = "standardize"

    def _build(self, weight, groups, generator):
        return _Standardize()


class _Standardize(Parametrization):
    """See :class:`Standardize`."""

    def compute(self, x: DeferredWeight) -> DeferredWeight:
        return x if x.shape[1:].numel() == 1 else x.standardized()

    def shown(self, x: Tensor) -> dict[str, Tensor]:
        return {"standardized": self.compute(DeferredWeight(x)).dense()}


# --- Location ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Location(Excitation):
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
        stacked: excitations for the weights of ``fc1`` and ``fc2`` themselves (thesis chapter 8:
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
    stacked: tuple[Excitation, ...] = ()

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
        return _Location(self, weight, groups, generator)


class _Location(Gated):
    """See :class:`Location`. The attention's nets are direct children: fc1, fc2, spatial, …"""

    def __init__(
        self, excitation: Location, weight: Tensor, groups: int, generator: torch.Generator | None
    ):
        super().__init__(weight)
        self.excitation, self.attention, self.rest = excitation, excitation.attention, 1.0
        kernel = tuple(weight.shape[2:]) or (1, 1)
        nets = seeded(
            lambda: self.attention.nets(weight.shape[1], kernel, groups=groups), generator
        )
        for name, net in nets.items():
            self.add_module(name, net.to(weight.device, weight.dtype))
        if excitation.start == "identity":
            self._start_at_identity()
        if excitation.stacked:
            self._stack(generator)
        if excitation.control == "frozen":
            for net in nets.values():
                net.requires_grad_(False)
        if excitation.control == "free":
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
        self.rest = self.attention.resting(skips=self.excitation.skips)
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
            inner = chain(self.excitation.stacked).build(net.weight, generator=generator)
            register(net, "weight", inner)

    def compute(self, x: DeferredWeight) -> DeferredWeight:
        if not self.attention.deferred:
            x = DeferredWeight(x.dense())
        if self.rest != 1 or self.excitation.control in ("free", "mean"):
            return super().compute(x)
        strength = self.current_strength(x.dtype)
        return DeferredWeight(self.attention.excite(self, x, strength, skips=self.excitation.skips))

    def maps(self, x: Tensor | DeferredWeight) -> tuple[Tensor, ...]:
        if isinstance(x, DeferredWeight) and not self.attention.deferred:
            x = x.dense()
        return self.attention.maps(self, x, skips=self.excitation.skips)

    def gates(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[float, float] | None]:
        return (() if hasattr(self, "free") else self.maps(x)), self.attention.range()

    def multiplier(self, x: Tensor | DeferredWeight) -> Tensor:
        if hasattr(self, "free"):
            return self.free.to(x.dtype)
        m = self.attention.combine(self.maps(x), skips=self.excitation.skips)
        if self.rest != 1:
            m = m / self.rest
        return m.mean() if self.excitation.control == "mean" else m

    def extra_repr(self) -> str:
        return repr(self.excitation)


# --- Global --------------------------------------------------------------------------------------

#: Hidden width of the net that treats channels one by one.
HIDDEN = 16


@dataclass(frozen=True)
class Global(Excitation):
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
        return _Global(self, weight, generator)


class _Global(Gated):
    """See :class:`Global`."""

    averaged = ("fc1", "fc2")

    def __init__(self, excitation: Global, weight: Tensor, generator: torch.Generator | None):
        super().__init__(weight)
        self.excitation = excitation
        inputs, hidden, outputs = 3, HIDDEN, 1
        if excitation.width:
            inputs = outputs = excitation.width
            hidden = max(excitation.width // excitation.reduction, 1)
        nets = seeded(lambda: (nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)), generator)
        self.fc1, self.fc2 = (net.to(weight.device, weight.dtype) for net in nets)

    def multiplier(self, x: Tensor | DeferredWeight) -> Tensor:
        pooled = mean_space(x)
        width, channels = self.excitation.width, pooled.shape[1]
        if width:
            gate = _interpolate(self._net(_interpolate(pooled, width)), channels)
        else:
            context = [pooled.mean(1, keepdim=True), pooled.amax(1, keepdim=True)]
            gate = self._net(torch.stack([pooled, *(c.expand_as(pooled) for c in context)], 2))
            gate = gate.squeeze(2)
        return like(gate, x)

    def _net(self, descriptor: Tensor) -> Tensor:
        hidden = ACTIVATIONS[self.excitation.activation](run(self.fc1, descriptor))
        return ACTIVATIONS[self.excitation.gate](run(self.fc2, hidden))

    def gates(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[float, float] | None]:
        return (self.multiplier(x),), RANGES.get(self.excitation.gate)

    def extra_repr(self) -> str:
        return repr(self.excitation)


def _interpolate(x: Tensor, width: int) -> Tensor:
    """(N, C) -> (N, width), linearly over the index of axis 1."""
    return F.interpolate(x[None], size=width, mode="linear", align_corners=False)[0]
