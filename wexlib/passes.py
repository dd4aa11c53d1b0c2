"""Passes over a weight: differentiable functions of W that read and write it as seldom as they can.

W has the shape (N, C, *space). A function of W and of numbers for its filters (N, 1) or kernels
(N, C) has a backward pass derived by hand, which needs nothing of W's size but W and the gradient.

On a CPU some filters are worked on at a time, so that what lies between two operations stays in a
cache, in memory that is used again: fresh memory costs more than the arithmetic. Where every step
has to be a tensor of its own (a second derivative, a graph that is traced), the same lines make
new ones.

A statistic hands W on beside it, so that in the backward pass the gradient arrives in one tensor,
to which the statistic adds its share in place. That tensor has to be nobody else's.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from itertools import repeat

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

#: Below this the largest magnitude counts as this: an all-zero weight then divides by no zero, and
#: keeps the gradient that it has in the limit.
SMALLEST = 2.0**-100

#: On a CPU, numbers that are worked on at a time, in whole filters: 2.4 MB in float32.
AT_A_TIME = 600_000


class Pass(Function):
    """A function of a weight; under ``vmap`` it is run as it is written."""

    generate_vmap_rule = True

    def __init_subclass__(cls):
        super().__init_subclass__()
        # Torch asks for it at every call, and to find it out takes longer than a small pass.
        cls.forward.__signature__ = inspect.signature(cls.forward)


def _traced() -> bool:
    """Whether every step has to be a new tensor: it is differentiated again, traced or mapped."""
    return (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


def _runs(*tensors: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
    """A few filters of each tensor at a time, and None of None."""
    filters = _at_a_time(tensors[0])
    count = -(-tensors[0].shape[0] // filters)
    parts = (repeat(None, count) if tensor is None else tensor.split(filters) for tensor in tensors)
    return zip(*parts, strict=True)


def _at_a_time(weight: Tensor) -> int:
    """Filters in a run."""
    if weight.device.type != "cpu" or _traced():
        return weight.shape[0]
    return min(max(AT_A_TIME // weight[0].numel(), 1), weight.shape[0])


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _result(weight: Tensor) -> Tensor | None:
    """Memory for a result, in the weight's memory format, which no other operand knows.

    None where every step has to be new.
    """
    return None if _traced() else torch.empty_like(weight)


def _scratch(weight: Tensor, count: int) -> Callable[[Tensor], list[Tensor | None]]:
    """Memory for ``count`` results that a run needs for itself, the same for every run."""
    if _traced():
        return lambda part: [None] * count
    memory = [torch.empty_like(weight[: _at_a_time(weight)]) for _ in range(count)]
    return lambda part: [tensor[: len(part)] for tensor in memory]


def _into(memory: Tensor | None) -> dict[str, Tensor]:
    """Where an operation writes its result."""
    return {} if memory is None else {"out": memory}


def _centred(x: Tensor, centre: Tensor | None, **out: Tensor) -> Tensor:
    """x − centre, by itself before all else, so that a filter of equal weights gives zeros."""
    return x if centre is None else torch.sub(x, _space(centre, x), **out)


def _affine(x: Tensor, centre: Tensor | None, scale: Tensor | None, **out: Tensor) -> Tensor:
    """(x − centre) ⊙ scale, (N, 1) or both None for 0 and 1."""
    return x if scale is None else torch.mul(_centred(x, centre, **out), _space(scale, x), **out)


def _slope(scale: Tensor | None, gate: Tensor | None) -> Tensor:
    """scale ⊙ gate, (N, 1) and (N, C), one of which may be None for 1."""
    return gate if scale is None else scale if gate is None else scale * gate


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


def _sum_product(x: Tensor, y: Tensor, small: Tensor) -> Tensor:
    """:func:`_sum_as` of x ⊙ y."""
    scratch, sums = _scratch(x, 1), []
    for x_part, y_part, small_part in _runs(x, y, small):
        (product,) = scratch(x_part)
        sums.append(_sum_as(torch.mul(x_part, y_part, **_into(product)), small_part))
    return _joined(sums)


class MeanSpace(Pass):
    """W -> W, the mean of every kernel (N, C)."""

    @staticmethod
    def forward(weight: Tensor):
        return weight.view_as(weight), _sum_space(weight) / weight.shape[2:].numel()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient, d_mean):
        share = _space(d_mean / gradient.shape[2:].numel(), gradient)
        return gradient + share if _traced() else gradient.add_(share)


class Apart(Pass):
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


class Standardized(Pass):
    """W -> W, and of x, standardized W, the mean of every kernel (N, C); then of every filter of
    W, each (N, 1): the mean, called centre, the unbiased deviation std, inf for a constant filter,
    and scale = 1 / (std + 1e-5)."""

    @staticmethod
    def forward(weight: Tensor):
        mean = _sum_space(weight) / weight.shape[2:].numel()
        centre = mean.mean(1, keepdim=True)
        std = _deviation(weight, centre)
        if std is None:
            axes = tuple(range(1, weight.dim()))
            std, centre = (found[:, None] for found in torch.std_mean(weight, axes))
        scale = torch.reciprocal(std + 1e-5)
        # A constant filter has no direction in which its deviation grows: over inf, the slope is 0.
        std = std.masked_fill(std == 0, math.inf)
        return weight.view_as(weight), (mean - centre) * scale, centre, std, scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], *output[1:])

    @staticmethod
    def backward(ctx, gradient, d_mean, d_centre, d_std, d_scale):
        weight, mean, centre, std, scale = ctx.saved_tensors
        n, size = weight.shape[1:].numel(), weight.shape[2:].numel()
        d_scale = torch.addcmul((d_mean * mean).sum(1, keepdim=True), scale, d_scale)  # times scale
        factor = torch.addcmul(d_std, scale, d_scale, value=-1) / std
        d_mean = d_mean * scale
        rest = (d_centre - d_mean.sum(1, keepdim=True)) / n
        rest = torch.addcmul(rest, centre, factor, value=-1 / (n - 1))
        rest = torch.add(rest, d_mean, alpha=1 / size)
        factor, rest = _space(factor, weight), _space(rest, weight)
        if _traced():
            return torch.addcmul(gradient, weight, factor, value=1 / (n - 1)) + rest
        return gradient.addcmul_(weight, factor, value=1 / (n - 1)).add_(rest)


def _deviation(weight: Tensor, centre: Tensor) -> Tensor | None:
    """The deviation of every filter from its squares, in one pass, or None where it may be coarse.

    It is where the mean makes up most of a filter's squares, or these leave the number format. A
    look at the result costs nothing on a CPU only, where torch's own deviation takes forty times
    as long, and there is nothing to look at while a graph is recorded.
    """
    if weight.device.type != "cpu" or _traced() or _get_current_dispatch_mode() is not None:
        return None
    n = weight.shape[1:].numel()
    squares = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim()))).square_()[:, None]
    variance = torch.addcmul(squares, centre, centre, value=-n)
    # Infinite squares make it no number.
    if not (2 * variance - squares).min().item() > SMALLEST:
        return None
    return variance.div_(n - 1).sqrt_()


class MaxSpace(Pass):
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
        maximum, place = (_joined(values) for values in zip(*parts, strict=True))
        return weight.view_as(weight), maximum[..., 0, 0], place[..., 0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output[2])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx, gradient, d_maximum, _):
        (place,) = ctx.saved_tensors
        kernels = gradient.flatten(2)
        add = kernels.scatter_add if _traced() else kernels.scatter_add_
        return add(2, place, d_maximum[..., None]).view_as(gradient)


class PoolChannels(Pass):
    """W -> W, and of x = (W − centre) ⊙ scale ⊙ gate the maximum over axis 1, and the mean:
    (N, 1, *space) each, and the place of the maximum, one of equal ones."""

    @staticmethod
    def forward(weight: Tensor, centre: Tensor | None, scale: Tensor | None, gate: Tensor):
        scratch, found = _scratch(weight, 1), []
        for part, c, slope in _runs(weight, centre, _slope(scale, gate)):
            (x,) = scratch(part)
            x = torch.mul(_centred(part, c, **_into(x)), _space(slope, part), **_into(x))
            maximum, place = x.max(1, keepdim=True)
            found.append((maximum, x.mean(1, keepdim=True), place))
        return weight.view_as(weight), *(_joined(parts) for parts in zip(*found, strict=True))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output[3])
        ctx.mark_non_differentiable(output[3])

    @staticmethod
    def backward(ctx, gradient, d_maximum, d_mean, _):
        weight, centre, scale, gate, place = ctx.saved_tensors
        slope = _slope(scale, gate)
        d_mean = d_mean / weight.shape[1]
        total = d_mean.flatten(1).sum(1, keepdim=True)
        # What stands at the maxima, kernel by kernel.
        at, d_at = place.flatten(1), d_maximum.flatten(1)
        value = _centred(weight.gather(1, place), centre).flatten(1)
        share = d_at * slope.gather(1, at)
        d_slope = _sum_product(weight, d_mean, slope)
        d_slope = d_slope if centre is None else torch.addcmul(d_slope, centre, total, value=-1)
        d_slope = d_slope.scatter_add(1, at, value * d_at)
        if _traced():
            gradient = torch.addcmul(gradient, _space(slope, weight), d_mean)
        else:
            gradient.addcmul_(_space(slope, weight), d_mean)
        gradient = gradient.scatter_add_(1, place, share.view_as(place))
        if scale is None:
            return gradient, None, None, d_slope
        d_centre = -total * slope.sum(1, keepdim=True) - share.sum(1, keepdim=True)
        return gradient, d_centre, (d_slope * gate).sum(1, keepdim=True), d_slope * scale


class Largest(Pass):
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
        add = gradient.index_add if _traced() else gradient.index_add_
        return add(0, filter_, d_largest * sign)


class Dense(Pass):
    """(W − centre) ⊙ scale ⊙ gate: centre and scale (N, 1), or both None for 0 and 1; gate (N, C),
    or None for 1."""

    @staticmethod
    def forward(
        weight: Tensor, centre: Tensor | None, scale: Tensor | None, gate: Tensor | None
    ) -> Tensor:
        out, slope = _into(_result(weight)), _space(_slope(scale, gate), weight)
        return torch.mul(_centred(weight, centre, **out), slope, **out)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        weight, centre, scale, gate = ctx.saved_tensors
        slope = _slope(scale, gate)
        d_slope, d_centre, d_scale, d_gate = _sum_product(gradient, weight, slope), None, None, None
        if scale is None:
            d_gate = d_slope
        else:
            total = _sum_as(gradient, slope)
            d_slope = torch.addcmul(d_slope, centre, total, value=-1)
            d_centre = -(slope * total).sum(1, keepdim=True)
            if gate is None:
                d_scale = d_slope
            else:
                d_scale, d_gate = (d_slope * gate).sum(1, keepdim=True), d_slope * scale
        d_weight = torch.mul(gradient, _space(slope, weight), **_into(_result(weight)))
        return d_weight, d_centre, d_scale, d_gate


class TimesSum(Pass):
    """(W − centre) ⊙ scale ⊙ (a + b ⊙ places): centre and scale (N, 1), or both None for 0 and 1;
    a and b (N, C), places (N, 1, *space)."""

    @staticmethod
    def forward(
        weight: Tensor,
        centre: Tensor | None,
        scale: Tensor | None,
        a: Tensor,
        b: Tensor,
        places: Tensor,
    ) -> Tensor:
        if scale is not None:
            a, b = a * scale, b * scale
        result, scratch = _result(weight), _scratch(weight, 1)
        for part, c, a_part, b_part, p, out in _runs(weight, centre, a, b, places, result):
            (slope,) = scratch(part)
            slope = torch.addcmul(_space(a_part, part), _space(b_part, part), p, **_into(slope))
            y = torch.mul(_centred(part, c, **_into(out)), slope, **_into(out))
        return y if result is None else result

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        weight, centre, scale, a, b, places = ctx.saved_tensors
        if scale is not None:
            a, b = a * scale, b * scale
        result, scratch, found = _result(weight), _scratch(weight, 2), []
        for part, c, a_part, b_part, p, g, out in _runs(
            weight, centre, a, b, places, gradient, result
        ):
            first, second = scratch(part)
            a_part, b_part = _space(a_part, part), _space(b_part, part)
            product = torch.mul(g, _centred(part, c, **_into(first)), **_into(first))
            d_a = _sum_space(product)
            d_b = _sum_space(torch.mul(product, p, **_into(second)))
            d_places = torch.mul(product, b_part, **_into(second)).sum(1, keepdim=True)
            slope = torch.addcmul(a_part, b_part, p, **_into(second))
            d_weight = torch.mul(g, slope, **_into(out))
            total = d_weight.sum(tuple(range(1, weight.dim())))[:, None]
            found.append((d_a, d_b, d_places, total))
        d_a, d_b, d_places, total = (_joined(parts) for parts in zip(*found, strict=True))
        d_weight = d_weight if result is None else result
        if scale is None:
            return d_weight, None, None, d_a, d_b, d_places
        d_scale = (d_a * a + d_b * b).sum(1, keepdim=True) / scale
        return d_weight, -total, d_scale, d_a * scale, d_b * scale, d_places


class Artanh(Pass):
    """(1 − strength)·x + strength·M·artanh(x / M) of x = (W − centre) ⊙ scale, centre and scale
    (N, 1) or both None for 0 and 1; then M = (1 + ε)·max|x|; then of the largest x its filter,
    and its sign at its place in that filter."""

    @staticmethod
    def forward(
        weight: Tensor, centre: Tensor | None, scale: Tensor | None, strength: Tensor, eps: float
    ):
        axes = tuple(range(1, weight.dim()))
        filters = torch.maximum(
            _affine(weight.amax(axes, keepdim=True), centre, scale),
            -_affine(weight.amin(axes, keepdim=True), centre, scale),
        )
        filter_ = filters.flatten().argmax().view(1)
        value = _affine(
            *(t if t is None else t.index_select(0, filter_) for t in (weight, centre, scale))
        )
        flat = value.flatten()
        place = flat.abs().argmax().view(1)
        known = flat[place].sign() * (filters.max() >= SMALLEST)
        sign = torch.zeros_like(flat).scatter_(0, place, known).view(value.shape)
        m = (1 + eps) * filters.max().clamp(min=SMALLEST)

        result, scratch = _result(weight), _scratch(weight, 1)
        for part, c, s, out in _runs(weight, centre, scale, result):
            (y,) = scratch(part)
            x = _affine(part, c, s, **_into(out))
            y = torch.atanh(torch.div(x, m, **_into(y)), **_into(y))
            y = torch.mul(y, strength * m, **_into(y))
            y = torch.addcmul(y, x, 1 - strength, **_into(out))
        return y if result is None else result, m, filter_, sign

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4], *output)
        ctx.eps = inputs[4]
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    def backward(ctx, gradient, d_m, *_):
        weight, centre, scale, strength, y, m, filter_, sign = ctx.saved_tensors
        axes, one = tuple(range(1, weight.dim())), torch.ones_like(m)
        result, scratch, found = _result(weight), _scratch(weight, 2), []
        for part, c, s, y_part, g, out in _runs(weight, centre, scale, y, gradient, result):
            first, second = scratch(part)
            x = _affine(part, c, s, **_into(first))
            u = torch.div(x, m, **_into(second))
            slope = torch.addcmul(one, u, u, value=-1, **_into(second))
            slope = torch.mul(torch.reciprocal(slope, **_into(second)), strength, **_into(second))
            slope = torch.add(slope, 1 - strength, **_into(second))
            d_weight = torch.mul(g, slope, **_into(out))
            total = d_weight.sum(axes)
            by_x = torch.mul(d_weight, x, **_into(first)).sum(axes)
            by_y = torch.mul(g, y_part, **_into(second)).sum(axes)
            if s is not None:
                d_weight = torch.mul(d_weight, _space(s, part), **_into(out))
            found.append((total, by_x, by_y))
        total, by_x, by_y = (_joined(parts)[:, None] for parts in zip(*found, strict=True))
        d_weight = d_weight if result is None else result
        # y is homogeneous in x and M: y = x·∂y/∂x + M·∂y/∂M.
        d_m = d_m + (by_y - by_x).sum() / m
        d_largest = (1 + ctx.eps) * d_m * sign
        add = d_weight.index_add if _traced() else d_weight.index_add_
        if scale is None:
            return add(0, filter_, d_largest), None, None, None, None
        d_weight = add(0, filter_, d_largest * _space(scale.index_select(0, filter_), weight))
        total = total.index_add(0, filter_, d_largest.sum().view(1, 1))
        by_x = by_x.index_add(0, filter_, (d_m * m * sign.abs().sum()).view(1, 1))
        return d_weight, -total * scale, by_x / scale, None, None
