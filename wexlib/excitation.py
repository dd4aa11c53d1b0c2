"""Weight -> weight: standardize, location, magnitude, and their chain.

A recipe is a frozen dataclass; ``recipe.build(weight, groups=1)`` makes a module for a weight, and
``module(weight)`` is the excited weight, of the same shape, dtype and memory format. A weight has
its filters on axis 0, its (group's) input channels on axis 1 and space on the rest, rank 2 to 5;
rank 2 counts as a 1×1 kernel. Modules compute in float32 at least, outside autocast.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wexlib import magnitude
from wexlib.attention import Attention
from wexlib.names import choose

Made = TypeVar("Made")

STARTS = ("random", "identity")
CONTROLS = ("none", "free", "frozen", "mean")


class Excitation(nn.Module):
    """A parametrization. Subclasses give ``compute``, on float32 or float64 outside autocast."""

    #: What it was built from, for ``describe``.
    label: str

    def forward(self, weight: Tensor) -> Tensor:
        kind = weight.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if autocast else nullcontext():
            wide = torch.promote_types(weight.dtype, torch.float32)
            return self.compute(weight.to(wide)).to(weight.dtype)

    def compute(self, weight: Tensor) -> Tensor:
        raise NotImplementedError


class Switched(Excitation):
    """An excitation that can be paused: the buffer ``strength`` is 0 off, 1 on, between a blend.

    Both ends are exact to the last bit. A buffer, so it is saved, and ramped without a branch.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("strength", torch.ones((), dtype=weight.dtype, device=weight.device))

    def blend(self, off: Tensor, on: Tensor) -> Tensor:
        return torch.lerp(off, on, self.strength.to(on.dtype))


class Gated(Switched):
    """W' = W ⊙ multiplier(W)."""

    @staticmethod
    def view(weight: Tensor) -> Tensor:
        """(N, C, *space), a linear layer's weight as a 1×1 kernel."""
        return weight[:, :, None, None] if weight.dim() == 2 else weight

    def multiplier(self, x: Tensor) -> Tensor:
        """What a weight (N, C, *space) is multiplied with; it broadcasts to it."""
        raise NotImplementedError

    def gates(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[float, float] | None]:
        """The gated maps of a weight (N, C, *space), and the ends of their range, if it has."""
        raise NotImplementedError

    def compute(self, weight: Tensor) -> Tensor:
        x = self.view(weight)
        m = self.multiplier(x)
        # Blended before it meets the weight: where the multiplier is small, so is the cost.
        return (x * self.blend(m.new_ones(()), m)).view_as(weight)


def draw(generator: torch.Generator | None) -> int:
    """A seed from ``generator``, or from a look at torch's global stream, which stays as it is."""
    with torch.random.fork_rng(devices=[]):
        device = "cpu" if generator is None else generator.device
        return torch.randint(2**63 - 1, (), generator=generator, device=device).item()


def seeded(make: Callable[[], Made], generator: torch.Generator | None) -> Made:
    """``make()`` with random draws of its own, on the CPU: torch's global stream stays as it is."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(draw(generator))
        return make()


def check(weight: Tensor, groups: int) -> None:
    """Raises TypeError or ValueError for what cannot be excited."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight is {type(weight).__name__}: expected a tensor")
    if not weight.is_floating_point():
        raise TypeError(f"weight has dtype {weight.dtype}: expected a floating-point weight")
    if not 2 <= weight.dim() <= 5:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}: expected 2 to 5 axes, filters first, then "
            "input channels, then space"
        )
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups is {groups!r}: expected a whole number, 1 or more")


class Recipe:
    """What ``excite`` takes."""

    #: What a module of this kind is called in a chain, and so in the ``state_dict``.
    name: str

    def build(
        self, weight: Tensor, groups: int = 1, *, generator: torch.Generator | None = None
    ) -> Excitation:
        """A module for ``weight``, on its device and in its dtype; global random draws: none.

        Args:
            weight: filters first, 2 to 5 axes.
            groups: of the convolution whose weight it is.
            generator: where the start of the attention nets comes from.

        Raises:
            TypeError: not a floating-point tensor.
            ValueError: not 2 to 5 axes, or groups below 1.
        """
        check(weight, groups)
        module = self._build(weight, groups, generator)
        module.label = str(self)
        return module

    def __str__(self) -> str:
        return self.name

    def _build(self, weight, groups, generator) -> Excitation:
        raise NotImplementedError


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

    def compute(self, weight: Tensor) -> Tensor:
        if weight[0].numel() == 1:
            return weight
        axes = tuple(range(1, weight.dim()))
        std, mean = torch.std_mean(weight, axes, keepdim=True)
        return (weight - mean) * (1 / (std + 1e-5))


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
                free = self.multiplier(self.view(wide)).to(weight.dtype)
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
            parametrize.register_parametrization(net, "weight", inner, unsafe=True)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.attention.maps(self, x, skips=self.recipe.skips)

    def gates(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[float, float] | None]:
        return (() if hasattr(self, "free") else self.maps(x)), self.attention.range()

    def multiplier(self, x: Tensor) -> Tensor:
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

    def compute(self, weight: Tensor) -> Tensor:
        shape = None if self.shape is None else self.shape.to(weight.dtype)
        excited = magnitude.apply(self.recipe.function, weight, self.recipe.eps, shape)
        return self.blend(weight, excited)

    def extra_repr(self) -> str:
        return repr(self.recipe)


# --- Chain ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain(Recipe):
    """Recipes one after the other; each is built on the weight that it will see.

    A list given to ``excite`` is this. In the ``state_dict`` its parts go by their kind
    (``location.fc1.weight``), a second one of a kind as ``location2``.
    """

    recipes: tuple[Recipe, ...]

    name = "chain"

    def __str__(self) -> str:
        return " + ".join(map(str, self.recipes))

    def _build(self, weight, groups, generator):
        parts: dict[str, Excitation] = {}
        for recipe in self.recipes:
            count = sum(part.rstrip("0123456789") == recipe.name for part in parts)
            part = recipe.build(weight, groups, generator=generator)
            parts[recipe.name + (str(count + 1) if count else "")] = part
            if len(parts) < len(self.recipes):
                with torch.no_grad():
                    weight = part(weight)
        return ChainedExcitation(parts)


class ChainedExcitation(Excitation):
    """See :class:`Chain`. A half-precision weight is rounded once, at the end."""

    def __init__(self, parts: dict[str, Excitation]):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def compute(self, weight: Tensor) -> Tensor:
        for part in self.children():
            weight = part(weight)
        return weight


def flat(recipes: Recipe | Iterable[Recipe]) -> tuple[Recipe, ...]:
    """One recipe or many as a tuple.

    Raises:
        TypeError: something in it is no recipe.
        ValueError: it is empty.
    """
    if isinstance(recipes, Recipe):
        return (recipes,)
    if isinstance(recipes, Attention):
        raise TypeError(f"{recipes} is an attention: wrap it as Location({recipes})")
    if isinstance(recipes, type) or not isinstance(recipes, Iterable):
        raise TypeError(
            f"{recipes!r} is no recipe: expected Standardize(), Location(…), Magnitude(), or a list"
        )
    recipes = tuple(part for recipe in recipes for part in flat(recipe))
    if not recipes:
        raise ValueError("no recipe was given: expected at least one, such as Location(SE())")
    return recipes


def chain(recipes: Recipe | Iterable[Recipe]) -> Recipe:
    """A single recipe as it is, several as a :class:`Chain`."""
    recipes = flat(recipes)
    return recipes[0] if len(recipes) == 1 else Chain(recipes)
