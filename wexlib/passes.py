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
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

#: Below this the largest magnitude counts as this: an all-zero weight then divides by no zero, and
#: keeps the gradient that it has in the limit.
SMALLEST = 2.0**-100

#: On a CPU, numbers that are worked on at a time, in whole filters: 2.4 MB in float32.
AT_A_TIME = 600_000

#: Channels from which on their maximum is found in steps.
MANY = 64

#: What writes operations down: torch.export's fakes, make_fx and functionalization.
RECORDERS = tuple(
    getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL")
)


class Pass(Function):
    """A function of a weight; under ``vmap`` it is run as it is written."""

    generate_vmap_rule = True

    def __init_subclass__(cls):
        super().__init_subclass__()
        # Torch inspects the signature at every call: kept, that takes 1 µs, not 7.
        cls.forward.__signature__ = inspect.signature(cls.forward)


def recorded() -> bool:
    """Whether operations are written down and run later, so that no number can be looked at."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or (
            torch._C._len_torch_dispatch_stack() > 0
            and any(torch._C._get_dispatch_mode(mode) is not None for mode in RECORDERS)
        )
    )


def _stepwise() -> bool:
    """Whether every step has to be a new tensor: it is recorded, or differentiated again."""
    return torch.is_grad_enabled() or recorded()


def is_one(x: Tensor) -> bool:
    """Whether a number is known to be 1; on a GPU a look would wait for all that came before."""
    return x.device.type == "cpu" and not recorded() and x.item() == 1


def _runs(*tensors: Tensor | None, scratch: int = 0) -> list[tuple[Tensor | None, ...]]:
    """A few filters of each tensor at a time, and None of None; then memory for ``scratch`` results
    of that size, the same for every run, or None where every step has to be new."""
    weight, stepwise = tensors[0], _stepwise()
    count = filters = weight.shape[0]
    if weight.device.type == "cpu" and not stepwise:
        filters = min(max(AT_A_TIME // weight.shape[1:].numel(), 1), count)
    part = weight if filters == count else weight[:filters]
    memory = [None if stepwise else torch.empty_like(part) for _ in range(scratch)]
    if filters == count:
        return [(*tensors, *memory)]
    none = [None] * -(-count // filters)
    splits = (none if tensor is None else tensor.split(filters) for tensor in tensors)
    runs = zip(*splits, strict=True)
    return [(*parts, *(x[: len(parts[0])] for x in memory)) for parts in runs]


def _joined(found: list[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    """What each run found, of all filters."""
    return (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*found, strict=True))


def _result(weight: Tensor) -> Tensor | None:
    """Memory for a result, in the weight's memory format, which no other operand knows.

    None where every step has to be new.
    """
    return None if _stepwise() else torch.empty_like(weight)


def _in_place(x: Tensor, name: str, *args) -> Tensor:
    """``x.name(*args)``, in place but where every step has to be new; x is nobody else's."""
    return getattr(x, name if _stepwise() else name + "_")(*args)


def _into(memory: Tensor | None) -> dict[str, Tensor]:
    """Where an operation writes its result."""
    return {} if memory is None else {"out": memory}


def _centred(x: Tensor, centre: Tensor | None, **out: Tensor) -> Tensor:
    """x − centre, by itself before all else, so that a filter of equal weights gives zeros."""
    return x if centre is None else torch.sub(x, _space(centre, x), **out)


def _affine(x: Tensor, centre: Tensor | None, scale: Tensor | None, **out: Tensor) -> Tensor:
    """(x − centre) ⊙ scale, each a number for a filter, (N, 1), or None for 0 and 1."""
    x = _centred(x, centre, **out)
    return x if scale is None else torch.mul(x, _space(scale, x), **out)


def _space(small: Tensor, like: Tensor) -> Tensor:
    """(N, C) -> (N, C, 1, …)."""
    return small.view(small.shape + (1,) * (like.dim() - 2))


def _filters(x: Tensor) -> tuple[int, ...]:
    """The axes of a filter."""
    return tuple(range(1, x.dim()))


def _pool(x: Tensor, value: float = 1.0) -> Tensor:
    """(N, C, *space) -> (N, C): the sum over space, times ``value``."""
    if x.shape[2:].numel() == 1:
        return x.flatten(1) * value
    # Torch's sum over so few places takes up to four times as long on a CPU as what stands here.
    if x.device.type == "cpu" and x.is_contiguous():
        kernels = x.view(-1, x.shape[2:].numel())
        return torch.mv(kernels, kernels.new_full(kernels.shape[1:], value)).view(x.shape[:2])
    if x.device.type == "cpu" and x.dim() == 4:
        sums = F.avg_pool2d(x, x.shape[2:], divisor_override=1).flatten(1)
    else:
        sums = x.sum(tuple(range(2, x.dim())))
    return sums if value == 1 else sums * value


def _max_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum over axis 1, and the place of the first of equal ones; x is used up."""
    channels = x.shape[1]
    if (
        (x.device.type, x.stride(1)) != ("cpu", 1)
        or channels < MANY
        or x.dtype.itemsize < 4  # its numbers are too coarse for places
        or _stepwise()
    ):
        return x.max(1, keepdim=True)
    # Where many channels lie side by side torch's search for the place takes up to four times as
    # long as this: the least of the places, after those of smaller numbers are put behind all.
    maximum = x.amax(1, keepdim=True)
    places = torch.arange(channels, dtype=x.dtype, device=x.device)
    places = places.view(-1, *[1] * (x.dim() - 2))
    places = torch.add(places, torch.lt(x, maximum, out=x), alpha=channels, out=x)
    return maximum, places.amin(1, keepdim=True).long()


def _pool_as(x: Tensor, small: Tensor) -> Tensor:
    """The sums of x over what ``small``, (N, C) or (N, 1), is the same for."""
    return _pool(x) if small.shape[1] == x.shape[1] else x.sum(_filters(x))[:, None]


class MeanSpace(Pass):
    """W -> W, the mean of every kernel (N, C)."""

    @staticmethod
    def forward(weight: Tensor):
        return weight.view_as(weight), _pool(weight, 1 / weight.shape[2:].numel())

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient, d_mean):
        share = _space(d_mean / gradient.shape[2:].numel(), gradient)
        return _in_place(gradient, "add", share)


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
        mean = _pool(weight, 1 / weight.shape[2:].numel())
        centre = mean.mean(1, keepdim=True)
        std = _deviation(weight, centre)
        if std is None:
            std, centre = (found[:, None] for found in torch.std_mean(weight, _filters(weight)))
        scale = torch.reciprocal(std + 1e-5)
        # A constant filter has no direction in which its deviation grows: over inf, the slope is 0.
        std = std.masked_fill(std == 0, math.inf)
        return weight.view_as(weight), (mean - centre) * scale, centre, std, scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], *output[1:])
        ctx.set_materialize_grads(False)  # the mean is asked for by attention only

    @staticmethod
    def backward(ctx, gradient, d_mean, d_centre, d_std, d_scale):
        weight, mean, centre, std, scale = ctx.saved_tensors
        n, size = weight.shape[1:].numel(), weight.shape[2:].numel()
        gradient, d_centre, d_std, d_scale = (
            torch.zeros_like(value) if d is None else d
            for value, d in ((weight, gradient), (centre, d_centre), (std, d_std), (scale, d_scale))
        )
        d_scale = scale * d_scale
        if d_mean is not None:
            d_scale = d_scale + (d_mean * mean).sum(1, keepdim=True)
            d_centre = torch.addcmul(d_centre, scale, d_mean.sum(1, keepdim=True), value=-1)
        factor = torch.addcmul(d_std, scale, d_scale, value=-1) / (std * (n - 1))
        rest = torch.addcmul(d_centre / n, centre, factor, value=-1)
        if d_mean is not None:
            rest = torch.addcmul(rest, d_mean, scale, value=1 / size)
        factor, rest = _space(factor, weight), _space(rest, weight)
        return _in_place(_in_place(gradient, "addcmul", weight, factor), "add", rest)


def _deviation(weight: Tensor, centre: Tensor) -> Tensor | None:
    """The deviation of every filter from its squares, in one pass, or None where it may be coarse.

    It is where the mean makes up most of a filter's squares, or these leave the number format. A
    look at the result costs nothing on a CPU only, where torch's own deviation takes forty times
    as long.
    """
    if weight.device.type != "cpu" or _stepwise():
        return None
    n = weight.shape[1:].numel()
    squares = torch.linalg.vector_norm(weight, dim=_filters(weight)).square_()[:, None]
    variance = torch.addcmul(squares, centre, centre, value=-n)
    # Infinite squares make it no number.
    if not (2 * variance - squares).min().item() > SMALLEST:
        return None
    return variance.div_(n - 1).sqrt_()


class MaxSpace(Pass):
    """W -> W, and of x = (W − centre) ⊙ scale the maximum of every kernel (N, C), and the place of
    the first of equal ones; centre and scale (N, 1), or both None for 0 and 1."""

    @staticmethod
    def forward(weight: Tensor, centre: Tensor | None, scale: Tensor | None):
        kernels, found = weight if weight.dim() == 4 else weight.flatten(2).unsqueeze(3), []
        for (part,) in _runs(kernels):
            # Torch finds a maximum over space fastest with the channels innermost; vmap knows no
            # memory format.
            if not torch._C._are_functorch_transforms_active():
                part = part.contiguous(memory_format=torch.channels_last)
            found.append(F.max_pool2d(part, kernels.shape[2:], return_indices=True))
        maximum, place = _joined(found)
        maximum = _affine(maximum.flatten(1), centre, scale)
        return weight.view_as(weight), maximum, place[..., 0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2], *output[1:])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx, gradient, d_maximum, _):
        scale, maximum, place = ctx.saved_tensors
        share, d_centre, d_scale = d_maximum, None, None
        if scale is not None:
            share = d_maximum * scale
            d_centre = -share.sum(1, keepdim=True)
            d_scale = (d_maximum * maximum).sum(1, keepdim=True) / scale
        added = _in_place(gradient.flatten(2), "scatter_add", 2, place, share[..., None])
        return added.view_as(gradient), d_centre, d_scale


class PoolChannels(Pass):
    """W -> W, and of x = (W − centre) ⊙ gate the maximum over axis 1, and the mean: (N, 1, *space)
    each, and the place of the maximum, the first of equal ones; centre (N, 1), or None for 0; gate
    (N, C)."""

    @staticmethod
    def forward(weight: Tensor, centre: Tensor | None, gate: Tensor):
        found = []
        for part, c, gate_part, x in _runs(weight, centre, gate, scratch=1):
            x = torch.mul(_centred(part, c, **_into(x)), _space(gate_part, part), **_into(x))
            found.append((x.mean(1, keepdim=True), *_max_channels(x)))
        mean, maximum, place = _joined(found)
        return weight.view_as(weight), maximum, mean, place

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output[3])
        ctx.mark_non_differentiable(output[3])

    @staticmethod
    def backward(ctx, gradient, d_maximum, d_mean, _):
        weight, centre, gate, place = ctx.saved_tensors
        d_mean = d_mean / weight.shape[1]
        result, found = None if _stepwise() else gradient, []
        runs = _runs(weight, centre, gate, d_mean, gradient, result, scratch=1)
        for part, c, gate_part, d, g, out, x in runs:
            x = torch.mul(_centred(part, c, **_into(x)), d, **_into(x))
            found.append((_pool(x),))
            summed = torch.addcmul(g, _space(gate_part, part), d, **_into(out))
        (d_gate,) = _joined(found)
        # What stands at the maxima, kernel by kernel.
        at, d_at = place.flatten(1), d_maximum.flatten(1)
        value = _centred(weight.gather(1, place), centre).flatten(1)
        share = d_at * gate.gather(1, at)
        d_gate = _in_place(d_gate, "scatter_add", 1, at, value * d_at)
        gradient = _in_place(
            summed if result is None else result, "scatter_add", 1, place, share.view_as(place)
        )
        if centre is None:
            return gradient, None, d_gate
        total = torch.addcmul(
            share.sum(1, keepdim=True),
            gate.sum(1, keepdim=True),
            d_mean.flatten(1).sum(1, keepdim=True),
        )
        return gradient, -total, d_gate


class Dense(Pass):
    """(W − centre) ⊙ slope: centre (N, 1), or None for 0; slope (N, C) or (N, 1)."""

    @staticmethod
    def forward(weight: Tensor, centre: Tensor | None, slope: Tensor) -> Tensor:
        return _affine(weight, centre, slope, **_into(_result(weight)))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        weight, centre, slope = ctx.saved_tensors
        result, found = _result(weight), []
        for part, c, s, g, out, x in _runs(weight, centre, slope, gradient, result, scratch=1):
            x = torch.mul(_centred(part, c, **_into(x)), g, **_into(x))
            d_weight = torch.mul(g, _space(s, part), **_into(out))
            found.append((_pool_as(x, s), d_weight.sum(_filters(part))[:, None]))
        d_slope, total = _joined(found)
        d_weight = d_weight if result is None else result
        return d_weight, None if centre is None else -total, d_slope


class TimesSum(Pass):
    """(W − centre) ⊙ (q + a ⊙ p): centre (N, 1), or None for 0; a (N, C); p and q
    (N, 1, *space)."""

    @staticmethod
    def forward(weight: Tensor, centre: Tensor | None, a: Tensor, p: Tensor, q: Tensor) -> Tensor:
        result = _result(weight)
        runs = _runs(weight, centre, a, p, q, result, scratch=1)
        for part, c, a_part, p_part, q_part, out, slope in runs:
            slope = _slope(q_part, _space(a_part, part), p_part, **_into(slope))
            y = torch.mul(_centred(part, c, **_into(out)), slope, **_into(out))
        return y if result is None else result

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        weight, centre, a, p, q = ctx.saved_tensors
        result, found = _result(weight), []
        runs = _runs(weight, centre, a, p, q, gradient, result, scratch=2)
        for part, c, a_part, p_part, q_part, g, out, first, second in runs:
            a_part = _space(a_part, part)
            slope = _slope(q_part, a_part, p_part, **_into(first))
            d_weight = torch.mul(g, slope, **_into(out))
            total = d_weight.sum(_filters(part))[:, None]
            d_slope = torch.mul(g, _centred(part, c, **_into(first)), **_into(first))
            d_a = _pool(torch.mul(d_slope, p_part, **_into(second)))
            d_p = torch.mul(d_slope, a_part, **_into(second)).sum(1, keepdim=True)
            found.append((total, d_a, d_p, d_slope.sum(1, keepdim=True)))
        total, *d_rest = _joined(found)
        d_weight = d_weight if result is None else result
        return d_weight, None if centre is None else -total, *d_rest


def _slope(q: Tensor, a: Tensor, p: Tensor, **out: Tensor) -> Tensor:
    """q + a ⊙ p."""
    # Torch's addcmul takes four times as long where two of the three are broadcast.
    return torch.add(torch.mul(a, p, **out), q, **out)


def _largest(weight: Tensor, centre: Tensor | None, scale: Tensor | None):
    """Of x = (W − centre) ⊙ scale, each (N, 1) or None, max|x| as (1,), not below ``SMALLEST``;
    of the largest x its filter, (1,), and its sign at its place in that filter, (1, C, *space)."""
    axes = _filters(weight)
    high = _affine(weight.amax(axes, keepdim=True), centre, scale)
    low = _affine(weight.amin(axes, keepdim=True), centre, scale)
    maximum, filter_ = torch.maximum(high, -low).flatten().max(0, keepdim=True)
    # The scale is above 0, and so of no weight within a filter.
    at = (
        None if tensor is None else tensor.index_select(0, filter_) for tensor in (weight, centre)
    )
    values = _centred(*at).flatten()
    place = values.abs().argmax().view(1)
    sign = values[place].sign() * (maximum >= SMALLEST)
    places = torch.arange(values.numel(), device=values.device)
    signs = (sign * (places == place)).view(1, *weight.shape[1:])
    return maximum.clamp(min=SMALLEST), filter_, signs


class Largest(Pass):
    """x -> x, max|x|, and the rest of what :func:`_largest` finds."""

    @staticmethod
    def forward(x: Tensor):
        return x.view_as(x), *_largest(x, None, None)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*output[2:])
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    def backward(ctx, gradient, d_largest, *_):
        filter_, signs = ctx.saved_tensors
        return _in_place(gradient, "index_add", 0, filter_, d_largest * signs)


class Artanh(Pass):
    """M·artanh(x / M) of x = (W − centre) ⊙ scale, M = (1 + ε)·max|x|, blended with x by
    ``strength``, 0 for x; then M and the rest of what :func:`_largest` finds; centre and scale
    (N, 1), or both None for 0 and 1."""

    @staticmethod
    def forward(
        weight: Tensor, centre: Tensor | None, scale: Tensor | None, strength: Tensor, eps: float
    ):
        maximum, filter_, signs = _largest(weight, centre, scale)
        m, whole = (1 + eps) * maximum, is_one(strength)
        over = (1 / m).expand(weight.shape[0], 1) if scale is None else scale / m
        result = _result(weight)
        runs = _runs(weight, centre, scale, over, result, scratch=0 if whole else 1)
        for part, c, s, s_over, out, *scratch in runs:
            y = torch.atanh(_affine(part, c, s_over, **_into(out)), **_into(out))
            y = torch.mul(y, m, **_into(out))
            if not whole:
                x = _affine(part, c, s, **_into(*scratch))
                y = torch.lerp(x, y, strength, **_into(out))
        return y if result is None else result, m, filter_, signs

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4], *output)
        ctx.eps = inputs[4]
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    def backward(ctx, gradient, d_m, *_):
        weight, centre, scale, strength, y, m, filter_, signs = ctx.saved_tensors
        axes, whole, one = _filters(weight), is_one(strength), torch.ones_like(m)
        result, found = _result(weight), []
        runs = _runs(weight, centre, scale, y, gradient, result, scratch=2)
        for part, c, s, y_part, g, out, first, second in runs:
            x = _affine(part, c, s, **_into(first))
            u = torch.div(x, m, **_into(second))
            slope = torch.addcmul(one, u, u, value=-1, **_into(second))
            slope = torch.reciprocal(slope, **_into(second))
            if not whole:
                slope = torch.lerp(one, slope, strength, **_into(second))
            d_weight = torch.mul(g, slope, **_into(out))
            total = d_weight.sum(axes)[:, None]
            # Of x itself: for strength 0 it is y, and what M gets is 0 to the last bit.
            by_x = torch.mul(d_weight, x, **_into(first)).sum(axes)[:, None]
            by_y = torch.mul(g, y_part, **_into(second)).sum(axes)[:, None]
            if s is not None:
                d_weight = torch.mul(d_weight, _space(s, part), **_into(out))
            found.append((total, by_x, by_y))
        total, by_x, by_y = _joined(found)
        d_weight = d_weight if result is None else result
        # y is homogeneous in x and M: y = x·∂y/∂x + M·∂y/∂M.
        d_m = d_m + (by_y - by_x).sum() / m
        d_largest = (1 + ctx.eps) * d_m * signs
        if scale is None:
            d_weight = _in_place(d_weight, "index_add", 0, filter_, d_largest)
            return d_weight, None, None, None, None
        share = d_largest * _space(scale.index_select(0, filter_), weight)
        d_weight = _in_place(d_weight, "index_add", 0, filter_, share)
        total = total.index_add(0, filter_, d_largest.sum().view(1, 1))
        by_x = by_x.index_add(0, filter_, (d_m * m * signs.abs().sum()).view(1, 1))
        return d_weight, -total * scale, by_x / scale, None, None
