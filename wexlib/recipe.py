"""What recipes and their modules are: a recipe builds, for a weight, a module weight -> weight.

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

from wexlib.attention import Attention
from wexlib.ops.affine import Affine

Made = TypeVar("Made")


class Excitation(nn.Module):
    """A parametrization. Subclasses give ``compute``, on float32 or float64 outside autocast.

    A chain hands its parts a weight that is not multiplied out yet, and gets such a one back.
    """

    #: What it was built from, for ``describe``.
    label: str

    def forward(self, weight: Tensor | Affine) -> Tensor | Affine:
        if isinstance(weight, Affine):
            return self.compute(weight)
        kind = weight.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if autocast else nullcontext():
            wide = weight if weight.dtype.itemsize >= 4 else weight.float()
            excited = self.compute(Affine(spatial(wide))).dense()
        excited = excited if excited.shape == weight.shape else excited.view_as(weight)
        return excited.to(weight.dtype)

    def compute(self, x: Affine) -> Affine:
        """The excited weight (N, C, *space) of a weight (N, C, *space)."""
        raise NotImplementedError


def spatial(weight: Tensor) -> Tensor:
    """(N, C, *space), a linear layer's weight as a 1×1 kernel."""
    return weight[:, :, None, None] if weight.dim() == 2 else weight


class Switched(Excitation):
    """An excitation that can be paused: the buffer ``strength`` is 0 off, 1 on, between a blend.

    Both ends are exact to the last bit. A buffer, so it is saved, and ramped without a branch.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("strength", torch.ones((), dtype=weight.dtype, device=weight.device))


class Gated(Switched):
    """W' = W ⊙ multiplier(W)."""

    def multiplier(self, x: Tensor | Affine) -> Tensor:
        """What a weight (N, C, *space) is multiplied with; it broadcasts to it."""
        raise NotImplementedError

    def gates(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[float, float] | None]:
        """The gated maps of a weight (N, C, *space), and the ends of their range, if it has."""
        raise NotImplementedError

    def compute(self, x: Affine) -> Affine:
        return Affine(x.blend(self.multiplier(x), self.strength.to(x.dtype)))


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

    def compute(self, x: Affine) -> Affine:
        for part in self.children():
            x = part(x)
        return x


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
    if isinstance(recipes, type | str) or not isinstance(recipes, Iterable):
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
