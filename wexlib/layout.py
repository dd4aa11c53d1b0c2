"""Weights that torch stores in another order than filters, input channels, space."""

import torch
from torch import Tensor

from wexlib.ops.affine import Affine
from wexlib.recipe import Excitation


def exchange(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's (I, O/g, *space) as (O, I/g, *space), and the way back."""
    weight = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    return weight[0] if groups == 1 else weight.flatten(0, 1)


class Transposed(Excitation):
    """An excitation of a transposed convolution's weight."""

    def __init__(self, filters: Excitation, groups: int):
        super().__init__()
        self.filters, self.groups, self.label = filters, groups, filters.label

    def compute(self, x: Affine) -> Affine:
        filters = self.filters(exchange(x.dense(), self.groups))
        return Affine(exchange(filters, self.groups))


class QueryKeyValue(Excitation):
    """Excitations of ``in_proj_weight``: q, k and v are stacked on axis 0, each has its own."""

    def __init__(self, q: Excitation, k: Excitation, v: Excitation):
        super().__init__()
        self.q, self.k, self.v, self.label = q, k, v, q.label

    def compute(self, x: Affine) -> Affine:
        parts = zip((self.q, self.k, self.v), x.dense().chunk(3), strict=True)
        return Affine(torch.cat([excitation(part) for excitation, part in parts]))
