"""The functions of a weight in torch's operations: on any device, recorded, differentiated twice.

W is (N, C, *space), and x = (W − centre) ⊙ scale, each a number for a filter, (N, 1), or both None
for 0 and 1. A statistic hands W on beside it, so that both gradients may be kept in one tensor.
"""

import torch
from torch import Tensor

#: Below this the largest magnitude counts as this: an all-zero weight then divides by no zero, and
#: keeps the gradient that it has in the limit.
SMALLEST = 2.0**-100


def like(gate: Tensor, x) -> Tensor:
    """(N, C) -> (N, C, 1, …), of the rank of x."""
    return gate.reshape(*gate.shape, *[1] * (len(x.shape) - 2))


def maximum(x: Tensor, axis: int, keepdim: bool = False) -> Tensor:
    """The maximum over an axis; of equal ones the first gets the gradient."""
    # A trace is checked without gradients, and has to be the same then.
    if torch._C._is_tracing() or (x.requires_grad and torch.is_grad_enabled()):
        return x.max(axis, keepdim).values
    return x.amax(axis, keepdim)  # on a CPU the faster one, but for its gradient


def apart(weight: Tensor) -> Tensor:
    """W. Where statistics add to its gradient in place: with a gradient of its own."""
    return weight


def pool_space(weight: Tensor, peaks: bool) -> tuple[Tensor, Tensor]:
    """W, and the mean of every kernel, (N, C), with ``peaks`` below it its maximum, (2N, C)."""
    if weight.shape[2:].numel() == 1:
        mean = weight.flatten(1)
        return weight, torch.cat([mean, mean]) if peaks else mean
    mean = weight.mean(tuple(range(2, weight.dim())))
    return weight, torch.cat([mean, maximum(weight.flatten(2), 2)]) if peaks else mean


def pool_channels(
    weight: Tensor, centre: Tensor | None, scale: Tensor | None, gate: Tensor
) -> tuple[Tensor, Tensor]:
    """W, and of x ⊙ gate over axis 1 the maximum and the mean, (N, 2, *space); gate (N, C)."""
    x = dense(weight, centre, scale, gate)
    return weight, torch.cat([maximum(x, 1, True), x.mean(1, keepdim=True)], 1)


def standardize(weight: Tensor, peaks: bool) -> tuple[Tensor, None, None, None]:
    """A weight, its centre and scale, and what is pooled of x, that x may be (W − mean) / (std +
    1e-5), std unbiased: here x itself, and nothing else."""
    std, mean = torch.std_mean(weight, tuple(range(1, weight.dim())), keepdim=True)
    return (weight - mean) / (std + 1e-5), None, None, None


def dense(
    weight: Tensor, centre: Tensor | None, scale: Tensor | None, gate: Tensor | None
) -> Tensor:
    """x ⊙ gate; gate (N, C), or None for 1."""
    # The centre before all else, so that a filter of equal weights gives zeros.
    x = weight if centre is None else weight - like(centre, weight)
    x = x if scale is None else x * like(scale, x)
    return x if gate is None else x * like(gate, x)


def two_gates(
    weight: Tensor,
    centre: Tensor | None,
    scale: Tensor | None,
    a: Tensor,
    b: Tensor,
    strength: Tensor,
    skips: bool,
) -> Tensor:
    """x ⊙ m, m = a ⊙ b, or with ``skips`` (1 + a) ⊙ (1 + b) + a, blended with 1 by ``strength``, 0
    for 1; a (N, C); b (N, 1, *space)."""
    a = like(a, weight)
    m = (1 + a) * (1 + b) + a if skips else a * b
    return dense(weight, centre, scale, None) * torch.lerp(m.new_ones(()), m, strength)


def largest(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, and M = (1 + ε)·max|x|, one number for the whole tensor, in the graph."""
    return x, (1 + eps) * maximum(x.abs().flatten(), 0).clamp(min=SMALLEST)


def artanh(
    weight: Tensor, centre: Tensor | None, scale: Tensor | None, strength: Tensor, eps: float
) -> Tensor:
    """M·artanh(x / M), M = (1 + ε)·max|x|, blended with x by ``strength``, 0 for x."""
    x, m = largest(dense(weight, centre, scale, None), eps)
    return torch.lerp(x, m * torch.atanh(x / m), strength)
