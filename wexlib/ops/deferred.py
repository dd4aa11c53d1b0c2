"""A weight that is computed when it is needed: x = (W − centre) ⊙ scale.

A standardized weight has this form, with a number for each filter, and what attention looks at
follows from W's own: the mean of a kernel commutes with the map, and so does its maximum, the scale
being positive. So a chain of excitations reads W once for what is pooled of it and once for the
result, and no step in between is written to memory.

A statistic hands W on beside it (:mod:`wexlib.ops.formulas`), and a W that was handed on leaves
this module through :meth:`DeferredWeight.dense` only, so that its gradient is nobody else's.
"""

import torch
from torch import Tensor

from wexlib.ops import compute, formulas
from wexlib.ops.loops import recorded


class DeferredWeight:
    """x, of a weight's shape (N, C, *space): the weight W itself, or W standardized.

    What is found on the way to standardize it depends on who looks at it first, so it is not done
    before.
    """

    def __init__(self, weight: Tensor):
        self.weight = weight
        #: A number for each filter, (N, 1), or both None for 0 and 1; the scale is above 0.
        self.centre: Tensor | None = None
        self.scale: Tensor | None = None
        self._to_standardize = self._handed_on = False
        self._pooled: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def standardized(self) -> "DeferredWeight":
        """(x − mean) / (std + 1e-5) of every filter, std unbiased."""
        x = DeferredWeight(self.dense())
        x._to_standardize = True
        return x

    def _settle(self, peaks: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """W, centre and scale; where W is still to be standardized, what is pooled is kept."""
        if self._to_standardize:
            found = compute(formulas.standardize, self.weight, peaks)
            self.weight, self.centre, self.scale, self._pooled = found
            self._to_standardize, self._handed_on = False, True
        return self.weight, self.centre, self.scale

    def _for_kernels(self, gate: Tensor) -> Tensor:
        """(N, C), (N, C, 1, …), or what broadcasts to that -> (N, C)."""
        gate = gate.flatten(1) if gate.dim() > 2 else gate
        return gate if gate.shape == self.shape[:2] else gate.expand(self.shape[:2])

    def mean_space(self) -> Tensor:
        """The mean of every kernel: (N, C)."""
        return self._pool(1)

    def mean_max_space(self) -> Tensor:
        """The mean of every kernel, and below it the maximum: (2N, C)."""
        return self._pool(2)

    def _pool(self, times: int) -> Tensor:
        self._settle(times > 1)
        rows = times * len(self.weight)
        if self._pooled is None or len(self._pooled) < rows:
            # Looked at anew: what standardizes it is known by now.
            x = self.dense() if self.scale is not None else self.weight
            handed, self._pooled = compute(formulas.pool_space, x, times > 1)
            if self.scale is None:
                self.weight, self._handed_on = handed, True
        return self._pooled if len(self._pooled) == rows else self._pooled[:rows]

    def pool_channels(self, gate: Tensor) -> Tensor:
        """(N, 2, *space): the maximum of x ⊙ gate over axis 1, then its mean; gate (N, C)."""
        given = *self._settle(), self._for_kernels(gate)
        self.weight, pooled = compute(formulas.pool_channels, *given)
        self._handed_on = True
        return pooled

    def dense(self) -> Tensor:
        """x, computed."""
        weight, centre, scale = self._settle()
        if scale is not None:
            return compute(formulas.dense, weight, centre, scale, None)
        return compute(formulas.apart, weight) if self._handed_on else weight

    def times(self, gate: Tensor) -> Tensor:
        """x ⊙ gate, a number for each kernel, (N, C, 1, …), or what broadcasts to that."""
        return compute(formulas.dense, *self._settle(), self._for_kernels(gate))

    def blend(self, multiplier: Tensor, strength: Tensor) -> Tensor:
        """x ⊙ multiplier for ``strength`` 1, x for 0, both to the last bit."""
        # Blended before it meets the weight: where the multiplier is small, so is the cost.
        m = multiplier
        # On a GPU a look would wait for all that came before.
        seen = strength.device.type == "cpu" and not (strength.requires_grad or recorded())
        if not seen or strength.item() != 1:
            m = torch.lerp(m.new_ones(()), m, strength)
        return self.times(m) if all(size == 1 for size in m.shape[2:]) else self.dense() * m

    def two_gates(self, a: Tensor, b: Tensor, strength: Tensor, *, skips: bool) -> Tensor:
        """x ⊙ a ⊙ b, or with ``skips`` x ⊙ ((1 + a) ⊙ (1 + b) + a), for ``strength`` 1, x for 0.

        a is (N, C), or (N, C, 1, …); b (N, 1, *space).
        """
        whole = (len(self.weight), 1, *self.shape[2:])
        b = b if b.shape == whole else b.expand(whole)
        given = *self._settle(), self._for_kernels(a), b, strength, skips
        return compute(formulas.two_gates, *given)

    def artanh(self, eps: float, strength: Tensor) -> Tensor:
        """x, for ``strength`` 0, blended with M·artanh(x / M), M = (1 + ε)·max|x| in the graph."""
        return compute(formulas.artanh, *self._settle(), strength, eps)

    def largest(self, eps: float) -> tuple[Tensor, Tensor]:
        """x, computed, and M = (1 + ε)·max|x|, one number for the whole tensor, in the graph.

        The authors do not detach it: the gradient reaches the largest weight through M too.
        """
        return compute(formulas.largest, self.dense(), eps)


# --- What attention looks at, of a tensor or of a deferred weight ---------------------------------


def mean_space(x: Tensor | DeferredWeight) -> Tensor:
    """(N, C, *space) -> (N, C): the mean of every kernel."""
    return x.mean_space() if isinstance(x, DeferredWeight) else formulas.pool_space(x, False)[1]


def mean_max_space(x: Tensor | DeferredWeight) -> Tensor:
    """(N, C, *space) -> (2N, C): the mean, and below it the maximum."""
    return x.mean_max_space() if isinstance(x, DeferredWeight) else formulas.pool_space(x, True)[1]


def max_mean_channels(x: Tensor | DeferredWeight, gate: Tensor | None = None) -> Tensor:
    """(N, C, *space) -> (N, 2, *space): of x ⊙ gate the maximum over axis 1, then its mean."""
    if isinstance(x, DeferredWeight):
        return x.pool_channels(x.weight.new_ones(1, x.shape[1]) if gate is None else gate)
    x = x if gate is None else x * gate
    return torch.cat([formulas.maximum(x, 1, True), x.mean(1, keepdim=True)], 1)
