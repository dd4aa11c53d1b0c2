"""Weights that are a centre and a scale away from the stored one: x = (W − centre) ⊙ scale.

A standardized weight has this form, with a number for each filter, and what attention looks at
follows from W's own: the mean of a kernel commutes with the map, and so does its maximum, the scale
being positive. So a chain of excitations reads W once for each statistic and once for the result,
and no step in between is written to memory.

A statistic hands W on beside it (see :mod:`wexlib.passes`), and a W that was handed on leaves this
module through :meth:`Affine.dense` only, so that its gradient is nobody else's.
"""

import torch
from torch import Tensor

from wexlib import passes


class Affine:
    """x = (weight − centre) ⊙ scale, of a weight's shape (N, C, *space).

    Args:
        weight: W.
        centre, scale: a number for each filter, (N, 1), or both None for 0 and 1; scale is above 0.
    """

    def __init__(self, weight: Tensor, centre: Tensor | None = None, scale: Tensor | None = None):
        self.weight, self.centre, self.scale = weight, centre, scale
        self._mean: Tensor | None = None
        self._handed_on = False

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def _map(self, pooled: Tensor) -> Tensor:
        return pooled if self.scale is None else (pooled - self.centre) * self.scale

    def _scaled(self, small: Tensor) -> Tensor:
        """scale ⊙ small, of shape (N, …)."""
        if self.scale is None:
            return small
        return small * self.scale.view(-1, *[1] * (small.dim() - 1))

    def mean_space(self) -> Tensor:
        """The mean of every kernel: (N, C)."""
        if self._mean is not None:
            return self._mean
        if self.shape[2:].numel() == 1:
            return self._map(self.weight.flatten(1))
        self.weight, mean = passes.MeanSpace.apply(self.weight)
        self._handed_on, self._mean = True, self._map(mean)
        return self._mean

    def max_space(self) -> Tensor:
        """The maximum of every kernel: (N, C)."""
        if self.shape[2:].numel() == 1:
            return self._map(self.weight.flatten(1))
        inputs = self.weight, self.centre, self.scale
        self.weight, maximum, _ = passes.MaxSpace.apply(*inputs)
        self._handed_on = True
        return maximum

    def pool_channels(self, gate: Tensor) -> Tensor:
        """(N, 2, *space): the maximum of x ⊙ gate over axis 1, then its mean; gate (N, C, 1, …)."""
        inputs = self.weight, self.centre, gate.flatten(1)
        self.weight, maximum, mean, _ = passes.PoolChannels.apply(*inputs)
        self._handed_on = True
        return self._scaled(torch.cat([maximum, mean], 1))

    def standardized(self) -> "Affine":
        """(x − mean) / (std + 1e-5) of every filter, std unbiased."""
        weight, mean, centre, _, scale = passes.Standardized.apply(self.dense())
        result = Affine(weight, centre, scale)
        result._mean = mean
        return result

    def dense(self) -> Tensor:
        """x, computed."""
        if self.scale is not None:
            return passes.Dense.apply(self.weight, self.centre, self.scale)
        return passes.Apart.apply(self.weight) if self._handed_on else self.weight

    def times(self, gate: Tensor) -> Tensor:
        """x ⊙ gate, a number for each kernel, (N, C, 1, …), or what broadcasts to that."""
        gate = (gate.flatten(1) if gate.dim() else gate).expand(self.shape[:2])
        return passes.Dense.apply(self.weight, self.centre, self._scaled(gate))

    def blend(self, multiplier: Tensor, strength: Tensor) -> Tensor:
        """x ⊙ multiplier for ``strength`` 1, x for 0, both to the last bit."""
        # Blended before it meets the weight: where the multiplier is small, so is the cost.
        m = multiplier
        if not passes.is_one(strength):
            m = torch.lerp(m.new_ones(()), m, strength)
        return self.times(m) if all(size == 1 for size in m.shape[2:]) else self.dense() * m

    def times_sum(self, a: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """x ⊙ (q + a ⊙ p): a (N, C, 1, …), p and q (N, 1, *space)."""
        inputs = self.weight, self.centre, a.flatten(1), self._scaled(p), self._scaled(q)
        return passes.TimesSum.apply(*inputs)

    def artanh(self, eps: float, strength: Tensor) -> Tensor:
        """x, for ``strength`` 0, blended with M·artanh(x / M), M = (1 + ε)·max|x| in the graph."""
        return passes.Artanh.apply(self.weight, self.centre, self.scale, strength, eps)[0]


def largest(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x itself, and M = (1 + ε)·max|x|, one number for the whole tensor, in the graph.

    The authors do not detach it: the gradient reaches the largest weight through M too.
    """
    x, maximum, *_ = passes.Largest.apply(x)
    return x, (1 + eps) * maximum.view(())
