"""Passes over a weight: differentiable functions of W that read and write it as seldom as they can.

W has the shape (N, C, *space). A function of W and of numbers for its filters (N, 1) or kernels
(N, C) has a backward pass derived by hand, which needs nothing of W's size but W and the gradient.
Each is written down in torch's operations, for any device, and to be differentiated again or
recorded; on a CPU it is one compiled loop, where there is one (:mod:`wexlib.ops.fused`).

A statistic hands W on beside it, so that in the backward pass the gradient arrives in one tensor,
to which the loop adds the statistic's share in place. That tensor has to be nobody else's.
"""

import inspect
import math
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.autograd import Function

from wexlib.ops import fused

#: Below this the largest magnitude counts as this: an all-zero weight then divides by no zero, and
#: keeps the gradient that it has in the limit.
SMALLEST = 2.0**-100

#: What writes operations down: torch.export's fakes, make_fx and functionalization.
RECORDERS = tuple(
    getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL")
)


class AllGiven(inspect.Signature):
    """Of a function without defaults, for which torch looks at every call: that takes 14 µs."""

    def bind(self, *args):
        return SimpleNamespace(args=args, kwargs={}, apply_defaults=lambda: None)


class Pass(Function):
    """A function of a weight; under ``vmap`` it is run as it is written."""

    generate_vmap_rule = True

    def __init_subclass__(cls):
        super().__init_subclass__()
        cls.forward.__signature__ = AllGiven()


def recorded() -> bool:
    """Whether operations are written down and run later, so that no number can be looked at."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
        or (
            torch._C._len_torch_dispatch_stack() > 0
            and any(torch._C._get_dispatch_mode(mode) is not None for mode in RECORDERS)
        )
    )


def is_one(x: Tensor) -> bool:
    """Whether a number is known to be 1; on a GPU a look would wait for all that came before."""
    return x.device.type == "cpu" and not recorded() and x.item() == 1


def _loop(weight: Tensor, *others: Tensor | None) -> bool:
    """Whether the compiled loop does it: nothing is recorded, or will be differentiated again."""
    return not (torch.is_grad_enabled() or recorded()) and fused.fits(weight, *others)


def _space(small: Tensor, like: Tensor) -> Tensor:
    """(N, C) -> (N, C, 1, …)."""
    return small.view(small.shape + (1,) * (like.dim() - 2))


def _filter(x: Tensor) -> tuple[int, ...]:
    """The axes of a filter."""
    return tuple(range(1, x.dim()))


def _kernels(x: Tensor) -> Tensor:
    """(N, C, *space) -> (N, C, the size of space)."""
    return x.reshape(*x.shape[:2], -1)


def _sum_space(x: Tensor) -> Tensor:
    """(N, C, *space) -> (N, C)."""
    return _kernels(x).sum(2)


def _affine(x: Tensor, centre: Tensor | None, scale: Tensor | None) -> Tensor:
    """(x − centre) ⊙ scale, each a number for a filter, (N, 1), or None for 0 and 1."""
    # The centre before all else, so that a filter of equal weights gives zeros.
    x = x if centre is None else x - _space(centre, x)
    return x if scale is None else x * _space(scale, x)


def _slope(scale: Tensor | None, gate: Tensor | None) -> Tensor | None:
    """scale ⊙ gate, where None is 1."""
    return gate if scale is None else scale if gate is None else scale * gate


def _alone(weight: Tensor) -> Tensor:
    """(N, 1), to be filled."""
    return weight.new_empty(len(weight), 1)


def _unfilled(x: Tensor | None) -> Tensor | None:
    """Of x's shape, in order, to be filled."""
    return None if x is None else x.new_empty(x.shape)


def _pool(weight: Tensor, maximum: bool) -> tuple[Tensor, ...]:
    """The mean of every kernel, (N, C), and with ``maximum`` below it its maximum, so (2N, C), and
    the place of the first of equal ones, (N, C)."""
    mean = _sum_space(weight) / weight.shape[2:].numel()
    if not maximum:
        return (mean,)
    largest, place = _kernels(weight).max(2)
    return torch.cat([mean, largest]), place


def _unpool(gradient: Tensor, d_pooled: Tensor, place: tuple[Tensor, ...]) -> Tensor:
    """The gradient and what comes to the weight from :func:`_pool`."""
    d_mean, *d_maximum = d_pooled.view(-1, *gradient.shape[:2])
    gradient = gradient + _space(d_mean / gradient.shape[2:].numel(), gradient)
    for at, share in zip(place, d_maximum, strict=True):
        kernels = _kernels(gradient).scatter_add(2, at.long()[..., None], share[..., None])
        gradient = kernels.view_as(gradient)
    return gradient


class PoolSpace(Pass):
    """W -> W, and what :func:`_pool` finds."""

    @staticmethod
    def forward(weight: Tensor, maximum: bool):
        if _loop(weight):
            found = _for_pool(weight, maximum)
            fused.run("pool_space", weight, (weight,), found)
        else:
            found = _pool(weight, maximum)
        return weight.view_as(weight), *found

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*output[2:])
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    def backward(ctx, gradient, d_pooled, *_):
        place = ctx.saved_tensors
        if _loop(gradient, d_pooled, *place):
            reads = d_pooled, place[0] if place else None
            fused.run("pool_space_backward", gradient, reads, (gradient,))
            return gradient, None
        return _unpool(gradient, d_pooled, place), None


def _for_pool(weight: Tensor, maximum: bool) -> tuple[Tensor, ...]:
    """Tensors for what :func:`_pool` finds."""
    filters, channels = weight.shape[:2]
    pooled = weight.new_empty((1 + maximum) * filters, channels)
    return (pooled, weight.new_empty(filters, channels)) if maximum else (pooled,)


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
    """W -> W; then of every filter of W, each (N, 1), the mean, called centre, the unbiased
    deviation std, inf for a constant filter, and scale = 1 / (std + 1e-5); then of x = (W − centre)
    ⊙ scale what :func:`_pool` finds."""

    @staticmethod
    def forward(weight: Tensor, maximum: bool):
        if _loop(weight):
            found = tuple(_alone(weight) for _ in range(3)) + _for_pool(weight, maximum)
            fused.run("standardized", weight, (weight,), found)
            return weight.view_as(weight), *found
        std, centre = (x[:, None] for x in torch.std_mean(weight, _filter(weight)))
        scale = torch.reciprocal(std + 1e-5)
        # A constant filter has no direction in which its deviation grows: over inf, the slope is 0.
        std = std.masked_fill(std == 0, math.inf)
        pooled, *place = _pool(weight, maximum)
        pooled = (pooled.view(-1, *weight.shape[:2]) - centre) * scale
        return weight.view_as(weight), centre, std, scale, pooled.flatten(0, 1), *place

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], *output[1:])
        ctx.mark_non_differentiable(*output[5:])
        ctx.set_materialize_grads(False)  # what is pooled is asked for by attention only

    @staticmethod
    def backward(ctx, gradient, d_centre, d_std, d_scale, d_pooled, *_):
        weight, centre, std, scale, pooled, *place = ctx.saved_tensors
        if gradient is None:
            gradient = torch.zeros_like(weight)
        given = d_centre, d_std, d_scale, d_pooled
        if _loop(weight, gradient, *given):
            gradient = fused.laid(gradient, weight)
            reads = *ctx.saved_tensors[:5], *given, place[0] if place else None
            fused.run("standardized_backward", weight, reads, (gradient,))
            return gradient, None
        d_centre, d_std, d_scale = (
            torch.zeros_like(scale) if d is None else d for d in (d_centre, d_std, d_scale)
        )
        n, d_scale = weight.shape[1:].numel(), scale * d_scale
        if d_pooled is not None:
            both = (-1, *weight.shape[:2])
            d_scale = d_scale + (d_pooled * pooled).view(both).sum((0, 2))[:, None]
            d_pooled = d_pooled.view(both) * scale
            d_centre = d_centre - d_pooled.sum((0, 2))[:, None]
        factor = torch.addcmul(d_std, scale, d_scale, value=-1) / (std * (n - 1))
        rest = torch.addcmul(d_centre / n, centre, factor, value=-1)
        gradient = torch.addcmul(gradient, weight, _space(factor, weight)) + _space(rest, weight)
        return gradient if d_pooled is None else _unpool(gradient, d_pooled, place), None


class PoolChannels(Pass):
    """W -> W, and of x = (W − centre) ⊙ scale ⊙ gate over axis 1 the maximum and the mean, (N, 2,
    *space), and the place of the maximum, the first of equal ones; centre and scale (N, 1), or both
    None for 0 and 1; gate (N, C)."""

    @staticmethod
    def forward(weight: Tensor, centre: Tensor | None, scale: Tensor | None, gate: Tensor):
        if _loop(weight, centre, scale, gate):
            filters, space = len(weight), weight.shape[2:]
            pooled, place = (weight.new_empty(filters, n, *space) for n in (2, 1))
            fused.run("pool_channels", weight, (weight, centre, scale, gate), (pooled, place))
        else:
            x = _affine(weight, centre, gate)
            maximum, place = x.max(1, keepdim=True)
            pooled = torch.cat([maximum, x.mean(1, keepdim=True)], 1)
            pooled = pooled if scale is None else pooled * _space(scale, pooled)
        return weight.view_as(weight), pooled, place

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx, gradient, d_pooled, _):
        weight, centre, scale, gate, pooled, place = ctx.saved_tensors
        if _loop(*ctx.saved_tensors, d_pooled, gradient):
            gradient, reads = fused.laid(gradient, weight), (*ctx.saved_tensors, d_pooled)
            d_gate, d_centre, d_scale = map(_unfilled, (gate, centre, scale))
            writes = gradient, d_gate, d_centre, d_scale
            fused.run("pool_channels_backward", weight, reads, writes)
            return gradient, d_centre, d_scale, d_gate
        d_scale = None
        if scale is not None:
            d_scale = (d_pooled * pooled).sum(_filter(pooled))[:, None] / scale
            d_pooled = d_pooled * _space(scale, pooled)
        d_maximum, d_mean = d_pooled[:, :1], d_pooled[:, 1:] / weight.shape[1]
        place = place.long()
        d_gate = _sum_space(_affine(weight, centre, None) * d_mean)
        # What stands at the maxima, kernel by kernel.
        at, d_at = place.flatten(1), d_maximum.flatten(1)
        value = _affine(weight.gather(1, place), centre, None).flatten(1)
        share = d_at * gate.gather(1, at)
        d_gate = d_gate.scatter_add(1, at, value * d_at)
        gradient = torch.addcmul(gradient, _space(gate, weight), d_mean)
        gradient = gradient.scatter_add(1, place, share.view_as(place))
        if centre is None:
            return gradient, None, None, d_gate
        total = torch.addcmul(
            share.sum(1, keepdim=True),
            gate.sum(1, keepdim=True),
            d_mean.flatten(1).sum(1, keepdim=True),
        )
        return gradient, -total, d_scale, d_gate


class Dense(Pass):
    """(W − centre) ⊙ scale ⊙ gate: centre and scale (N, 1), or both None for 0 and 1; gate (N, C),
    or None for 1."""

    @staticmethod
    def forward(
        weight: Tensor, centre: Tensor | None, scale: Tensor | None, gate: Tensor | None
    ) -> Tensor:
        if not _loop(weight, centre, scale, gate):
            return _affine(weight, centre, _slope(scale, gate))
        result = torch.empty_like(weight)
        fused.run("dense", weight, (weight, centre, scale, gate), (result,))
        return result

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        weight, centre, scale, gate = ctx.saved_tensors
        if _loop(weight, centre, scale, gate, gradient):
            d_inputs = torch.empty_like(weight), *map(_unfilled, (centre, scale, gate))
            fused.run("dense_backward", weight, (*ctx.saved_tensors, gradient), d_inputs)
            return d_inputs
        d_weight = gradient * _space(_slope(scale, gate), weight)
        d_slope = _sum_space(_affine(weight, centre, None) * gradient)
        d_gate = None if gate is None else d_slope if scale is None else d_slope * scale
        if scale is None:
            return d_weight, None, None, d_gate
        d_centre = -d_weight.sum(_filter(weight))[:, None]
        d_scale = (d_slope if gate is None else d_slope * gate).sum(1, keepdim=True)
        return d_weight, d_centre, d_scale, d_gate


def _multiplier(a: Tensor, b: Tensor, strength: Tensor, skips: bool) -> Tensor:
    """m of :class:`TwoGates`, blended."""
    m = (1 + a) * (1 + b) + a if skips else a * b
    return 1 - strength + strength * m


class TwoGates(Pass):
    """(W − centre) ⊙ scale ⊙ m, m = a ⊙ b, or with ``skips`` (1 + a) ⊙ (1 + b) + a, blended with 1
    by ``strength``, 0 for 1; centre and scale (N, 1), or both None for 0 and 1; a (N, C); b (N, 1,
    *space)."""

    @staticmethod
    def forward(
        weight: Tensor,
        centre: Tensor | None,
        scale: Tensor | None,
        a: Tensor,
        b: Tensor,
        strength: Tensor,
        skips: bool,
    ) -> Tensor:
        given = weight, centre, scale, a, b, strength
        if not _loop(*given):
            m = _multiplier(_space(a, weight), b, strength, skips)
            return _affine(weight, centre, scale) * m
        result = torch.empty_like(weight)
        fused.run("two_gates", weight, (*given, strength if skips else None), (result,))
        return result

    @staticmethod
    def setup_context(ctx, inputs, output):
        *given, ctx.skips = inputs
        ctx.save_for_backward(*given)

    @staticmethod
    def backward(ctx, gradient):
        weight, centre, scale, a, b, strength = ctx.saved_tensors
        if _loop(*ctx.saved_tensors, gradient):
            d_inputs = torch.empty_like(weight), *map(_unfilled, (centre, scale, a, b))
            reads = *ctx.saved_tensors, strength if ctx.skips else None, gradient
            fused.run("two_gates_backward", weight, reads, d_inputs)
            return *d_inputs, None, None
        a = _space(a, weight)
        d_weight = gradient * _multiplier(a, b, strength, ctx.skips)
        d_m = _affine(weight, centre, scale) * gradient * strength
        d_a = _sum_space(d_m * (2 + b if ctx.skips else b))
        d_b = (d_m * (1 + a if ctx.skips else a)).sum(1, keepdim=True)
        if scale is None:
            return d_weight, None, None, d_a, d_b, None, None
        axes = _filter(weight)
        d_scale = (_affine(weight, centre, None) * d_weight).sum(axes)[:, None]
        d_weight = d_weight * _space(scale, weight)
        return d_weight, -d_weight.sum(axes)[:, None], d_scale, d_a, d_b, None, None


def _largest(
    weight: Tensor, centre: Tensor | None, scale: Tensor | None, eps: float, loop: bool
) -> tuple[Tensor, Tensor]:
    """Of x = (W − centre) ⊙ scale, each (N, 1) or None, M = (1 + ε)·max|x|, (1,), max|x| not below
    ``SMALLEST``; and of the largest x its filter, its place in there, and its sign, (3,)."""
    if loop:
        m, at = weight.new_empty(1), weight.new_empty(3)
        reads = weight, centre, scale, weight.new_full((1,), 1 + eps)
        fused.run("largest", weight, reads, (_alone(weight), m, at))
        return m, at
    axes = _filter(weight)
    high = _affine(weight.amax(axes)[:, None], centre, scale)
    low = _affine(weight.amin(axes)[:, None], centre, scale)
    maximum, filter_ = torch.maximum(high, -low).flatten().max(0, keepdim=True)
    # The scale is above 0, and so of no weight within a filter.
    within = (None if x is None else x.index_select(0, filter_) for x in (weight, centre))
    values = _affine(*within, None).flatten()
    place = values.abs().argmax().view(1)
    sign = values[place].sign() * (maximum >= SMALLEST)
    at = torch.cat([filter_.to(sign.dtype), place.to(sign.dtype), sign])
    return (1 + eps) * maximum.clamp(min=SMALLEST), at


def _signs(at: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`_largest` finds of the largest x: its filter, (1,), and its sign at its place in
    that filter, (1, C, *space)."""
    filter_, place, sign = at.split(1)
    places = torch.arange(like.shape[1:].numel(), device=at.device)
    return filter_.long(), (sign * (places == place)).view(1, *like.shape[1:])


class Largest(Pass):
    """x -> x, M, and the rest of what :func:`_largest` finds."""

    @staticmethod
    def forward(x: Tensor, eps: float):
        return x.view_as(x), *_largest(x, None, None, eps, _loop(x))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output[2])
        ctx.eps = inputs[1]
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx, gradient, d_m, _):
        filter_, signs = _signs(*ctx.saved_tensors, gradient)
        return gradient.index_add(0, filter_, (1 + ctx.eps) * d_m * signs), None


class Artanh(Pass):
    """M·artanh(x / M) of x = (W − centre) ⊙ scale, M = (1 + ε)·max|x|, blended with x by
    ``strength``, 0 for x; then what :func:`_largest` finds; centre and scale (N, 1), or both None
    for 0 and 1."""

    @staticmethod
    def forward(
        weight: Tensor, centre: Tensor | None, scale: Tensor | None, strength: Tensor, eps: float
    ):
        loop = _loop(weight, centre, scale, strength)
        m, at = _largest(weight, centre, scale, eps, loop)
        if loop:
            result = torch.empty_like(weight)
            fused.run("artanh", weight, (weight, centre, scale, m, strength), (result,))
        else:
            x = _affine(weight, centre, scale)
            result = torch.lerp(x, m * torch.atanh(x / m), strength)
        return result, m, at

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4], *output)
        ctx.eps = inputs[4]
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx, gradient, d_m, _):
        weight, centre, scale, strength, y, m, at = ctx.saved_tensors
        if _loop(*ctx.saved_tensors, gradient, d_m):
            factor = weight.new_full((1,), 1 + ctx.eps)
            reads = weight, centre, scale, m, strength, factor, at, y, gradient, d_m
            d_inputs = torch.empty_like(weight), *map(_unfilled, (centre, scale))
            fused.run("artanh_backward", weight, reads, (*d_inputs, _alone(weight)))
            return *d_inputs, None, None
        axes = _filter(weight)
        x = _affine(weight, centre, scale)
        slope = torch.lerp(torch.ones_like(m), 1 / (1 - (x / m).square()), strength)
        d_x = gradient * slope
        # y is homogeneous in x and M: y = x·∂y/∂x + M·∂y/∂M. Of x itself: for strength 0 it is y,
        # and what M gets is 0 to the last bit.
        by_x = (d_x * x).sum(axes)[:, None]
        d_m = d_m + ((gradient * y).sum(axes)[:, None] - by_x).sum() / m
        filter_, signs = _signs(at, weight)
        d_largest = (1 + ctx.eps) * d_m * signs
        if scale is None:
            return d_x.index_add(0, filter_, d_largest), None, None, None, None
        of_largest = scale.index_select(0, filter_)
        d_weight = d_x * _space(scale, weight)
        d_weight = d_weight.index_add(0, filter_, d_largest * _space(of_largest, weight))
        d_centre = -d_x.sum(axes)[:, None] * scale
        d_centre = d_centre.index_add(0, filter_, -of_largest * d_largest.sum())
        d_scale = by_x / scale
        shared = (d_m * m * signs.abs().sum()).view(1, 1) / of_largest
        return d_weight, d_centre, d_scale.index_add(0, filter_, shared), None, None
