"""What excitations are, and the modules that they make: parametrizations, weight -> weight.

An excitation is a frozen dataclass; ``excitation.build(weight, groups=1)`` makes a module for a
weight, and ``module(weight)`` is the excited weight, of the same shape, dtype and memory format. A
weight has its filters on axis 0, its (group's) input channels on axis 1 and space on the rest, rank
2 to 5; rank 2 counts as a 1×1 kernel. Modules compute in float32 at least, outside autocast.
"""

import copy
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from wexlib.attention import Attention
from wexlib.names import spell
from wexlib.ops import together
from wexlib.ops.deferred import DeferredWeight
from wexlib.ops.loops import recorded

Made = TypeVar("Made")


class Parametrization(nn.Module):
    """A parametrization. Subclasses give ``compute``, on float32 or float64 outside autocast.

    A chain hands its parts a weight that is not multiplied out yet, and gets such a one back.
    """

    #: What it was built from.
    excitation: "Excitation"
    #: The axes of the layer's tensor that number the filters, and as ``excite`` was given them.
    axes: tuple[int, ...] = (0,)
    axis: int | tuple[int, ...] | None = None
    #: The nets that ``average`` makes equal in all layers.
    averaged: tuple[str, ...] = ()
    #: Whether it excites several tensors.
    shared = False

    def forward(self, weight: Tensor | DeferredWeight) -> Tensor | DeferredWeight:
        if isinstance(weight, DeferredWeight):
            return self.compute(weight)
        if torch._C._is_tracing() and torch.onnx.is_in_onnx_export():
            return self._untraced(weight)
        (whole,) = together([self], [weight])
        if whole is not None:
            return whole
        kind = weight.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if autocast else nullcontext():
            wide = weight if weight.dtype.itemsize >= 4 else weight.float()
            excited = self.compute(DeferredWeight(spatial(wide))).dense()
        excited = excited if excited.shape == weight.shape else excited.view_as(weight)
        return excited.to(weight.dtype)

    @torch.no_grad()
    def _untraced(self, weight: Tensor) -> Tensor:
        """The excited weight, a constant of the file: ONNX export that traces (``dynamo=False``)
        has no artanh, and nothing of a weight is to be computed where the file is used."""
        state = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)
        try:
            return self(weight)
        finally:
            torch._C._set_tracing_state(state)

    def __prepare_scriptable__(self):
        # torch.jit.script asks every module for it, before it compiles any.
        raise RuntimeError(
            "torch.jit.script cannot compile an excitation: fold the model first, or use "
            "torch.jit.trace or torch.export"
        )

    def _set_qconfig(self, qconfig: object) -> None:
        # torch.ao.quantization gives every module one, and would go on to quantize the nets.
        raise RuntimeError("an excited model cannot be quantized: fold it first")

    qconfig = property(None, _set_qconfig)

    @property
    def configuration(self) -> str:
        """What a ``state_dict`` of it belongs to."""
        axes = "" if self.axes == (0,) else f", axis={self.axes}"
        return f"{spell(self.excitation)}{axes}{', shared' if self.cores[0].shared else ''}"

    @property
    def cores(self) -> "tuple[Parametrization, ...]":
        """What ``excitation`` built: itself, or what it brings a layer's order of axes to."""
        return (self,)

    def state_dict(self, *args, destination=None, prefix="", keep_vars=False):
        state = super().state_dict(
            *args, destination=destination, prefix=prefix, keep_vars=keep_vars
        )
        if self.shared and destination is not None and not keep_vars:
            # Whoever averages what a state_dict holds does so once, at the first tensor's.
            others = {t.data_ptr() for k, t in state.items() if not k.startswith(prefix)}
            for key, tensor in state.items():
                if key.startswith(prefix) and tensor.data_ptr() in others:
                    state[key] = tensor.clone()
        return state

    def compute(self, x: DeferredWeight) -> DeferredWeight:
        """The excited weight (N, C, *space) of a weight (N, C, *space)."""
        raise NotImplementedError

    def shown(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """What ``inspect`` shows of a weight (N, C, *space)."""
        return {}


def spatial(weight: Tensor) -> Tensor:
    """(N, C, *space), a linear layer's weight as a 1×1 kernel."""
    return weight[:, :, None, None] if weight.dim() == 2 else weight


class Switched(Parametrization):
    """An excitation that can be paused: the buffer ``strength`` is 0 off, 1 on, between a blend.

    Both ends are exact to the last bit. A buffer, so it is saved, and ramped without a branch.

    Averages of a model (``AveragedModel``, timm's ``ModelEma``) are copies whose tensors are
    written over, ``strength`` too. An average of on and off means nothing: a copy whose
    ``strength`` was changed other than by ``resume``, ``pause`` or ``load_state_dict`` takes that
    of the model that it was copied from.
    """

    #: What it was copied from, and the strength as it was set: the buffer, its version, its value.
    _source: Callable[[], "Switched | None"] | None = None
    _set: tuple[Tensor, int, Tensor] | None = None

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("strength", torch.ones((), dtype=weight.dtype, device=weight.device))
        self._settle()

    def switch(self, strength: float) -> None:
        self.strength.fill_(strength)
        self._settle()

    def current_strength(self, dtype: torch.dtype) -> Tensor:
        if self._set and not recorded() and self._set[0] is self.strength:
            _, version, value = self._set
            if self.strength._version != version:
                source = self._source and self._source()
                if source and not torch.equal(self.strength, value):
                    with torch.no_grad():
                        self.strength.copy_(source.current_strength(self.strength.dtype))
                self._settle()
        return self.strength.to(dtype)

    def _settle(self) -> None:
        own = self.strength
        known = not (own.is_inference() or recorded())
        vars(self)["_set"] = (own, own._version, own.clone()) if known else None

    def __getstate__(self) -> dict:
        self.current_strength(torch.float32)
        return {k: v for k, v in vars(self).items() if k not in ("_source", "_set")}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._settle()

    def __deepcopy__(self, memo: dict) -> "Switched":
        replica = memo[id(self)] = self.__new__(type(self))
        replica.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        replica._source = weakref.ref(self)
        return replica

    def _apply(self, *args, **kwargs):
        self.current_strength(torch.float32)
        applied = super()._apply(*args, **kwargs)
        self._settle()
        return applied

    def _save_to_state_dict(self, *args) -> None:
        self.current_strength(torch.float32)
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._settle()


class Gated(Switched):
    """W' = W ⊙ multiplier(W)."""

    def multiplier(self, x: Tensor | DeferredWeight) -> Tensor:
        """What a weight (N, C, *space) is multiplied with; it broadcasts to it."""
        raise NotImplementedError

    def gates(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[float, float] | None]:
        """The gated maps of a weight (N, C, *space), and the ends of their range, if it has."""
        raise NotImplementedError

    def shown(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        return {"gates": self.gates(x)[0], "multiplier": self.multiplier(x)}

    def compute(self, x: DeferredWeight) -> DeferredWeight:
        return DeferredWeight(x.blend(self.multiplier(x), self.current_strength(x.dtype)))


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
    if not weight.numel():
        raise ValueError(f"weight has shape {tuple(weight.shape)}: expected no axis of length 0")
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups is {groups!r}: expected a whole number, 1 or more")


class Excitation:
    """What ``excite`` takes."""

    #: What a module of this kind is called in a chain, and so in the ``state_dict``.
    name: str

    def build(
        self, weight: Tensor, groups: int = 1, *, generator: torch.Generator | None = None
    ) -> Parametrization:
        """A module for ``weight``, on its device and in its dtype; global random draws: none.

        Args:
            weight: filters first, 2 to 5 axes.
            groups: of the convolution whose weight it is.
            generator: where the start of the attention nets comes from.

        Raises:
            TypeError: not a floating-point tensor.
            ValueError: not 2 to 5 axes, one of length 0, or groups below 1.
        """
        check(weight, groups)
        module = self._build(weight, groups, generator)
        module.excitation = self
        return module

    def __str__(self) -> str:
        return self.name

    def _build(self, weight, groups, generator) -> Parametrization:
        raise NotImplementedError


# --- Chain ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain(Excitation):
    """Excitations one after the other; each is built on the weight that it will see.

    A list given to ``excite`` is this. In the ``state_dict`` its parts go by their kind
    (``location.fc1.weight``), a second one of a kind as ``location2``.
    """

    excitations: tuple[Excitation, ...]

    name = "chain"

    def __str__(self) -> str:
        return " + ".join(map(str, self.excitations))

    def _build(self, weight, groups, generator):
        parts: dict[str, Parametrization] = {}
        for excitation in self.excitations:
            count = sum(part.rstrip("0123456789") == excitation.name for part in parts)
            part = excitation.build(weight, groups, generator=generator)
            parts[excitation.name + (str(count + 1) if count else "")] = part
            if len(parts) < len(self.excitations):
                with torch.no_grad():
                    weight = part(weight)
        return _Chain(parts)


class _Chain(Parametrization):
    """See :class:`Chain`. A half-precision weight is rounded once, at the end."""

    def __init__(self, parts: dict[str, Parametrization]):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def compute(self, x: DeferredWeight) -> DeferredWeight:
        if torch.compiler.is_exporting() and hasattr(self, "global"):
            # Its code would name this part, and Python has the word for itself.
            raise RuntimeError("torch.export cannot write a chain with Global(): fold it first")
        for part in self.children():
            x = part(x)
        return x


def flat(excitations: Excitation | Iterable[Excitation]) -> tuple[Excitation, ...]:
    """One excitation or many as a tuple.

    Raises:
        TypeError: something in it is no excitation.
        ValueError: it is empty.
    """
    if isinstance(excitations, Excitation):
        return (excitations,)
    if isinstance(excitations, Attention):
        raise TypeError(f"{excitations} is an attention: wrap it as Location({excitations})")
    if isinstance(excitations, type | str) or not isinstance(excitations, Iterable):
        raise TypeError(
            f"{excitations!r} is no excitation: expected Standardize(), Location(…), Magnitude(), "
            "or a list"
        )
    excitations = tuple(part for excitation in excitations for part in flat(excitation))
    if not excitations:
        raise ValueError("no excitation was given: expected at least one, such as Location(SE())")
    return excitations


def chain(excitations: Excitation | Iterable[Excitation]) -> Excitation:
    """A single excitation as it is, several as a :class:`Chain`."""
    excitations = flat(excitations)
    return excitations[0] if len(excitations) == 1 else Chain(excitations)


# --- On a layer ----------------------------------------------------------------------------------


def exchange(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's (I, O/g, *space) as (O, I/g, *space), and the way back."""
    weight = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    return weight[0] if groups == 1 else weight.flatten(0, 1)


class _Transposed(Parametrization):
    """An excitation of a transposed convolution's weight."""

    axes = (1,)

    def __init__(self, filters: Parametrization, groups: int):
        super().__init__()
        self.filters, self.groups, self.excitation = filters, groups, filters.excitation

    @property
    def cores(self):
        return (self.filters,)

    def compute(self, x: DeferredWeight) -> DeferredWeight:
        filters = self.filters(exchange(x.dense(), self.groups))
        return DeferredWeight(exchange(filters, self.groups))


def filters_first(weight: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``axes``, which number the filters, as one axis 0, then the others."""
    return weight.movedim(axes, tuple(range(len(axes)))).flatten(0, len(axes) - 1)


class _Moved(Parametrization):
    """An excitation of a weight whose filters are not on axis 0, or on several axes."""

    def __init__(self, filters: Parametrization, axes: tuple[int, ...]):
        super().__init__()
        self.filters, self.axes, self.excitation = filters, axes, filters.excitation

    @property
    def cores(self):
        return (self.filters,)

    def compute(self, x: DeferredWeight) -> DeferredWeight:
        weight = x.dense()
        filters = self.filters(filters_first(weight, self.axes))
        filters = filters.unflatten(0, [weight.shape[i] for i in self.axes])
        moved = filters.movedim(tuple(range(len(self.axes))), self.axes)
        # In the weight's own memory format.
        same = moved.stride() == weight.stride()
        return DeferredWeight(moved if same else torch.empty_like(weight).copy_(moved))


class _QueryKeyValue(Parametrization):
    """Excitations of ``in_proj_weight``: q, k and v are stacked on axis 0, each has its own."""

    def __init__(self, q: Parametrization, k: Parametrization, v: Parametrization):
        super().__init__()
        self.q, self.k, self.v = q, k, v
        self.excitation, self.axes = q.excitation, q.axes

    @property
    def cores(self):
        return self.q.cores + self.k.cores + self.v.cores

    def compute(self, x: DeferredWeight) -> DeferredWeight:
        parts = zip((self.q, self.k, self.v), x.dense().chunk(3), strict=True)
        return DeferredWeight(torch.cat([excitation(part) for excitation, part in parts]))
