"""What stands in texts: activations and gates by name, and what a ``state_dict`` belongs to."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches

import torch
from torch import Tensor
from torch.nn import functional as F


def choose(name: object, allowed: Iterable[str], what: str, *, summary: str = "") -> str:
    """Return ``name`` if it is one of ``allowed``; ``summary`` stands for a list too long to read.

    Raises:
        ValueError: names ``what`` was asked for, what is allowed, and the nearest match.
    """
    allowed = list(allowed)
    if name in allowed:
        return name
    near = get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    expected = summary or f"one of {', '.join(allowed)}"
    raise ValueError(f"unknown {what} {name!r}: expected {expected}{hint}")


def identity(x: Tensor) -> Tensor:
    return x


#: Elementwise functions without parameters or randomness, at torch's default settings
#: (``leaky_relu``: slope 0.01). Swish is ``silu``.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": identity,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "tanh": torch.tanh,
    "tanhshrink": F.tanhshrink,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
}

#: The ends of the bounded ones, where a gate saturates.
RANGES: dict[str, tuple[float, float]] = {
    "relu6": (0.0, 6.0),
    "softsign": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "hardtanh": (-1.0, 1.0),
}


# --- What a state_dict belongs to ----------------------------------------------------------------

#: The key in a module's metadata of a ``state_dict``: a name -> :func:`spell`'s text.
CONFIGURATION = "wexlib"
#: The list of missing keys of the last loading that was warned of: one warning is enough for each.
_warned: list[list[str] | None] = [None]


def spell(value: object) -> str:
    """An excitation or attention as one writes it, without what is so by default."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(spell, value))}]"
    if not is_dataclass(value):
        return repr(value)
    given = ((field, getattr(value, field.name)) for field in fields(value))
    given = [f"{field.name}={spell(own)}" for field, own in given if own != field.default]
    return f"{type(value).__name__}({', '.join(given)})"


def note(destination: dict, prefix: str, name: str, configuration: str) -> None:
    """Write a configuration into a ``state_dict``'s metadata, where it has such."""
    metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
    if metadata is not None:
        metadata.setdefault(CONFIGURATION, {})[name] = configuration


def compare(
    metadata: dict, name: str, configuration: str, where: str, missing: list, errors: list
) -> None:
    """Add an error if :func:`note` wrote another configuration; warn, once, if it wrote none."""
    saved, where = metadata.get(CONFIGURATION, {}).get(name), where or "this module"
    if saved is None and _warned[0] is not missing:
        _warned[0] = missing
        warnings.warn(
            f"this state_dict does not say what {where} and others were excited by: it is taken "
            f"for {configuration} and what the others of this model have",
            stacklevel=2,
        )
    elif saved is not None and saved != configuration:
        errors.append(
            f"{where} was saved with {saved} and has {configuration} here: excite or attend this "
            "model as the saved one was"
        )
