"""What texts ask for by name: activations and gates, and one sentence for an unknown name."""

from collections.abc import Callable, Iterable
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
