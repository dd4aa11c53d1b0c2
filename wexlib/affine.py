"""Weights that are a centre and a scale away from the stored one: x = (W − centre) ⊙ scale.

A standardized weight has this form, with a number for each filter, and what attention looks at
follows from W's own: the mean of a kernel commutes with the map, and so does its maximum, the scale
being positive. So a chain of excitations reads W once for each statistic and once for the result,
and no step in between is written to memory.

A statistic is found by a function that hands W on beside it, so that in the backward pass the
gradient arrives in one tensor, to which the statistic adds its share in place. That tensor has to
be nobody else's, so a W that was handed on leaves this module through :meth:`Affine.dense` only.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

#: Below this the largest magnitude counts as this: an all-zero weight then divides by no zero, and
#: keeps the gradient that it has in the limit.
SMALLEST = 2.0**-100

#: On a CPU, filters for which what lies between two passes is in memory at once: fresh memory costs
#: more than the arithmetic.
AT_A_TIME = 128


class Affine:
    """x = (weight − centre) ⊙ scale, of a weight's shape (N, C, *space).

    Args:
        weight: W.
        centre, scale: a number for each filter, (N, 1), or None for 0 and 1; scale is above 0.
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

    def mean_space(self) -> Tensor:
        """The mean of every kernel: (N, C)."""
        if self.shape[2:].numel() == 1:
            return self._map(self.weight.flatten(1))
        if self._mean is None:
            self.weight, self._mean = _MeanSpace.apply(self.weight)
            self._handed_on = True
        return self._map(self._mean)

    def max_space(self) -> Tensor:
        """The maximum of every kernel: (N, C)."""
        if self.shape[2:].numel() == 1:
            return self._map(self.weight.flatten(1))
        self.weight, maximum, _ = _MaxSpace.apply(self.weight)
        self._handed_on = True
        return self._map(maximum)

    def standardized(self) -> "Affine":
        """(x − mean) / (std + 1e-5) of every filter, std unbiased."""
        weight, mean, centre, _, scale = _Standardize.apply(self.dense())
        result = Affine(weight, centre, scale)
        result._mean = mean
        return result

    def dense(self) -> Tensor:
        """x, computed."""
        if self.scale is not None:
            return _Dense.apply(self.weight, self.centre, self.scale, None)
        return _Apart.apply(self.weight) if self._handed_on else self.weight

    def times(self, gate: Tensor) -> Tensor:
        """x ⊙ gate, a number for each kernel, (N, C, 1, …), or one for all."""
        gate = gate.flatten(1) if gate.dim() else gate.expand(self.shape[:2])
        return _Dense.apply(self.weight, self.centre, self.scale, gate)

    def blend(self, multiplier: Tensor, strength: Tensor) -> Tensor:
        """x ⊙ multiplier for ``strength`` 1, x for 0, both to the last bit."""
        # Blended before it meets the weight: where the multiplier is small, so is the cost.
        m = torch.lerp(multiplier.new_ones(()), multiplier, strength)
        return self.times(m) if all(size == 1 for size in m.shape[2:]) else self.dense() * m


def pool_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, *space) -> x itself, and (N, 2, *space): the maximum over axis 1, then its mean."""
    x, maximum, mean, _ = _PoolChannels.apply(x)
    return x, torch.cat([maximum, mean], 1)


def add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + y ⊙ gate, a gate for each place: (N, 1, *space)."""
    return _Add.apply(x, y, gate)


def largest(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x itself, and M = (1 + ε)·max|x|, one number for the whole tensor, in the graph.

    The authors do not detach it: the gradient reaches the largest weight through M too.
    """
    x, m, *_ = _Largest.apply(x)
    return x, (1 + eps) * m.clamp(min=SMALLEST)


def artanh(x: Tensor, m: Tensor, strength: Tensor) -> Tensor:
    """(1 − strength)·x + strength·M·artanh(x / M)."""
    return _Artanh.apply(x, m, strength)


# --- Passes over a weight ------------------------------------------------------------------------


class _Pass(Function):
    """A function of a weight; under ``vmap`` it is run as it is written."""

    generate_vmap_rule = True


def _traced() -> bool:
    """Whether every step has to be a new tensor: it is differentiated again, traced or mapped."""
    return (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
    )


def _own(gradient: Tensor) -> Tensor:
    """A handed-on weight's gradient, to be added to in place."""
    return gradient.clone() if _traced() else gradient


def _runs(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few filters of each tensor at a time."""
    filters = len(tensors[0])
    if tensors[0].device.type == "cpu" and not _traced():
        filters = min(filters, AT_A_TIME)
    return zip(*(tensor.split(filters) for tensor in tensors), strict=True)


def _space(small: Tensor, like: Tensor) -> Tensor:
    """(N, C) -> (N, C, 1, …)."""
    return small.view(small.shape + (1,) * (like.dim() - 2))


def _sum_space(x: Tensor) -> Tensor:
    """(N, C, *space) -> (N, C)."""
    size = x.shape[2:].numel()
    # Torch's sum over so few places takes up to four times as long on a CPU as what stands here.
    if x.device.type == "cpu" and x.is_contiguous():
        kernels = x.view(-1, size)
        return torch.mv(kernels, kernels.new_ones(size)).view(x.shape[:2])
    if x.device.type == "cpu" and x.dim() == 4:
        return F.avg_pool2d(x, x.shape[2:], divisor_override=1).flatten(1)
    return x.sum(tuple(range(2, x.dim())))


def _sum_as(x: Tensor, small: Tensor) -> Tensor:
    """The sums of x (N, C, *space) over what ``small``, (N, C) or (N, 1), is the same for."""
    if small.shape[1] == x.shape[1]:
        return _sum_space(x)
    return x.sum(tuple(range(1, x.dim())))[:, None]


class _MeanSpace(_Pass):
    """W -> W, the mean of every kernel (N, C)."""

    @staticmethod
    def forward(weight: Tensor):
        return weight.view_as(weight), _sum_space(weight) / weight.shape[2:].numel()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient, d_mean):
        return _own(gradient).add_(_space(d_mean / gradient.shape[2:].numel(), gradient))


class _Apart(_Pass):
    """W -> W, with a gradient of its own."""

    @staticmethod
    def forward(weight: Tensor):
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clone()


class _Standardize(_Pass):
    """W -> W, the mean of every kernel (N, C), and of every filter, each (N, 1): the mean, called
    centre, the unbiased deviation std, and scale = 1 / (std + 1e-5)."""

    @staticmethod
    def forward(weight: Tensor):
        mean, axes = _sum_space(weight) / weight.shape[2:].numel(), tuple(range(1, weight.dim()))
        centre = mean.mean(1, keepdim=True)
        # Squares of weights beyond 1e17 leave float32: they are summed in units of the largest.
        largest = torch.maximum(weight.amax(axes), -weight.amin(axes)).clamp(min=1)[:, None]
        largest = torch.exp2(torch.log2(largest).ceil())  # a power of two, which rounds nothing
        unit = 1 / largest
        norms, rests = [], []
        for run in _runs(_space(-centre * unit, weight), weight, _space(unit, weight)):
            centred = torch.addcmul(*run)
            norms.append(torch.linalg.vector_norm(centred, dim=axes))
            rests.append(centred.mean(axes))
        # What rounding left of the mean: a constant filter becomes zeros.
        centre = centre + torch.cat(rests)[:, None] * largest
        std = torch.cat(norms)[:, None] * largest / (weight.shape[1:].numel() - 1) ** 0.5
        return weight.view_as(weight), mean, centre, std, 1 / (std + 1e-5)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], *output[2:])

    @staticmethod
    def backward(ctx, gradient, d_mean, d_centre, d_std, d_scale):
        weight, centre, std, scale = ctx.saved_tensors
        n = weight.shape[1:].numel()
        d_std = d_std - scale * (scale * d_scale)
        # A constant filter has no direction in which its deviation grows.
        factor = torch.where(std > 0, d_std / std.clamp(min=SMALLEST), 0) / (n - 1)
        rest = d_mean / weight.shape[2:].numel() + (d_centre / n - centre * factor)
        factor, rest = _space(factor, weight), _space(rest, weight)
        if _traced():
            return gradient + weight * factor + rest
        return gradient.addcmul_(weight, factor).add_(rest)


class _MaxSpace(_Pass):
    """W -> W, the maximum of every kernel (N, C), the first of equal ones."""

    @staticmethod
    def forward(weight: Tensor):
        # Torch finds a maximum's place fastest by pooling with the channels innermost.
        kernels = weight if weight.dim() == 4 else weight.flatten(2).unsqueeze(3)
        parts = [
            F.max_pool2d(
                part.contiguous(memory_format=torch.channels_last),
                kernels.shape[2:],
                return_indices=True,
            )
            for (part,) in _runs(kernels)
        ]
        maximum, place = (torch.cat(values) for values in zip(*parts, strict=True))
        return weight.view_as(weight), maximum[..., 0, 0], place[..., 0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output[2])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx, gradient, d_maximum, _):
        (place,) = ctx.saved_tensors
        kernels = _own(gradient).flatten(2).scatter_add_(2, place, d_maximum[..., None])
        return kernels.view_as(gradient)


class _PoolChannels(_Pass):
    """x -> x, and over axis 1 its maximum, one of equal ones, and its mean: (N, 1, *space)."""

    @staticmethod
    def forward(x: Tensor):
        # Torch finds a maximum much faster than its place, so the place is looked for in the
        # remainder class that holds it.
        classes = x.unflatten(1, (math.gcd(x.shape[1], 16), -1))
        maximum, remainder = classes.amax(1).max(1, keepdim=True)
        of_class = remainder[:, None].expand(-1, classes.shape[1], *[-1] * (x.dim() - 1))
        place = classes.gather(2, of_class).argmax(1) * classes.shape[2] + remainder
        return x.view_as(x), maximum, x.mean(1, keepdim=True), place

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output[3])
        ctx.mark_non_differentiable(output[3])

    @staticmethod
    def backward(ctx, gradient, d_maximum, d_mean, _):
        (place,) = ctx.saved_tensors
        gradient = _own(gradient).add_(d_mean / gradient.shape[1])
        return gradient.scatter_add_(1, place, d_maximum)


class _Largest(_Pass):
    """x -> x, max|x|."""

    @staticmethod
    def forward(x: Tensor):
        axes = tuple(range(1, x.dim()))
        filters = torch.maximum(x.amax(axes), -x.amin(axes))
        filter_ = filters.argmax().view(1)
        values = x.index_select(0, filter_).flatten()
        place = values.abs().argmax().view(1)
        sign = torch.zeros_like(values).scatter_(0, place, values[place].sign())
        return x.view_as(x), filters.max(), filter_, sign.view(1, *x.shape[1:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*output[2:])
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    def backward(ctx, gradient, d_largest, *_):
        filter_, sign = ctx.saved_tensors
        return _own(gradient).index_add_(0, filter_, d_largest * sign)


class _Dense(_Pass):
    """(W − centre) ⊙ scale ⊙ gate: centre and scale (N, 1), or both None for 0 and 1; gate (N, C),
    or None for 1."""

    @staticmethod
    def forward(
        weight: Tensor, centre: Tensor | None, scale: Tensor | None, gate: Tensor | None
    ) -> Tensor:
        slope = gate if scale is None else scale if gate is None else scale * gate
        # In the weight's memory format, which no other operand knows.
        result = {} if _traced() else {"out": torch.empty_like(weight)}
        if centre is not None:
            # By itself first, so that a filter of equal weights gives zeros.
            weight = torch.sub(weight, _space(centre, weight), **result)
        return torch.mul(weight, _space(slope, weight), **result)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        weight, centre, scale, gate = ctx.saved_tensors
        slope = gate if scale is None else scale if gate is None else scale * gate
        product = gradient * weight
        d_slope, d_centre, d_scale, d_gate = _sum_as(product, slope), None, None, None
        if scale is None:
            d_gate = d_slope
        else:
            total = _sum_as(gradient, slope)
            d_slope = d_slope - centre * total
            d_centre = -(slope * total).sum(1, keepdim=True)
            if gate is None:
                d_scale = d_slope
            else:
                d_scale, d_gate = (d_slope * gate).sum(1, keepdim=True), d_slope * scale
        # The product's memory is used again, rather than fresh memory.
        result = {} if _traced() else {"out": product}
        return torch.mul(gradient, _space(slope, weight), **result), d_centre, d_scale, d_gate


class _Add(_Pass):
    """x, y, gate -> x + y ⊙ gate, a gate for each place: (N, 1, *space)."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        return torch.addcmul(x, y, gate)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, gradient):
        y, gate = ctx.saved_tensors
        product = gradient * y
        d_gate = product.sum(1, keepdim=True)
        result = {} if _traced() else {"out": product}
        return gradient, torch.mul(gradient, gate, **result), d_gate


class _Artanh(_Pass):
    """x, M, strength -> (1 − strength)·x + strength·M·artanh(x / M)."""

    @staticmethod
    def forward(x: Tensor, m: Tensor, strength: Tensor):
        y = (x / m).atanh_()
        return y.mul_(strength * m).addcmul_(x, 1 - strength)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, gradient):
        x, m, strength, y = ctx.saved_tensors
        u = x / m
        one = torch.ones((), dtype=x.dtype, device=x.device)
        slope = torch.lerp(one, torch.addcmul(one, u, u, value=-1).reciprocal(), strength)
        d_x = gradient * slope
        # y is homogeneous in x and M: y = x·∂y/∂x + M·∂y/∂M.
        d_m = ((gradient * y).sum() - (d_x * x).sum()) / m
        return d_x, d_m, None
