"""The functions of a weight by loops: one, and another for its gradient, in C++ on a CPU
(fused.cpp), in Triton on a GPU (:mod:`wexlib.ops.kernels`).

A gradient that is to be differentiated again, or that no loop fits, is autograd's of the formula.

A statistic hands W on beside it, so that in the backward pass the gradient arrives in one tensor,
to which the loop adds the statistic's share in place. That tensor has to be nobody else's.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function

from wexlib.ops import formulas, fused

#: What writes operations down: torch.export's fakes, make_fx and functionalization.
RECORDERS = tuple(
    getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL")
)


def recorded() -> bool:
    """Whether operations are written down, or differentiated forwards: then they are torch's own,
    and no number can be looked at."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
        or (
            torch._C._len_torch_dispatch_stack() > 0
            and any(torch._C._get_dispatch_mode(mode) is not None for mode in RECORDERS)
        )
    )


def _loop(weight: Tensor, *others: Tensor | None) -> bool:
    """Whether a gradient is the loop's: it fits, and nothing will be differentiated again."""
    return not (torch.is_grad_enabled() or recorded()) and fused.fits(weight, *others)


def _derived(ctx, formula: Callable, inputs: tuple, *gradients: Tensor | None) -> tuple:
    """The gradients of a formula's inputs, by autograd."""
    again, wanted = torch.is_grad_enabled(), ctx.needs_input_grad
    with torch.enable_grad():
        # Views: of inputs that depend on each other each gets its own share.
        inputs = [x.view_as(x) if want else x for x, want in zip(inputs, wanted, strict=True)]
        found = formula(*inputs)
        found = found if isinstance(found, tuple) else (found,)
        pairs = zip(found, gradients, strict=True)
        pairs = [(y, g) for y, g in pairs if g is not None and y.requires_grad]
        asked = [x for x, want in zip(inputs, wanted, strict=True) if want]
        outputs, upstream = zip(*pairs, strict=True)
        shares = torch.autograd.grad(
            outputs, asked, upstream, create_graph=again, allow_unused=True
        )
    shares = iter(shares)
    return tuple(next(shares) if want else None for want in wanted)


def _alone(weight: Tensor) -> Tensor:
    """(N, 1), to be filled."""
    return weight.new_empty(len(weight), 1)


def _unfilled(x: Tensor | None) -> Tensor | None:
    """Of x's shape, in order, to be filled."""
    return None if x is None else x.new_empty(x.shape)


def _for_pool(weight: Tensor, peaks: bool) -> tuple[Tensor, Tensor | None]:
    """Tensors for what is pooled over space, and for the places of the maxima."""
    filters, channels = weight.shape[:2]
    pooled = weight.new_empty((1 + peaks) * filters, channels)
    return pooled, weight.new_empty(filters, channels) if peaks else None


class Apart(Function):
    """See :func:`wexlib.ops.formulas.apart`."""

    @staticmethod
    def forward(ctx, weight):
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clone()


class PoolSpace(Function):
    """See :func:`wexlib.ops.formulas.pool_space`."""

    @staticmethod
    def forward(ctx, weight, peaks):
        pooled, place = _for_pool(weight, peaks)
        fused.run("pool_space", weight, (weight,), (pooled, place))
        ctx.save_for_backward(weight, place)
        ctx.peaks = peaks
        return weight.view_as(weight), pooled

    @staticmethod
    def backward(ctx, gradient, d_pooled):
        weight, place = ctx.saved_tensors
        if not _loop(gradient, d_pooled):
            given = weight, ctx.peaks
            return _derived(ctx, formulas.pool_space, given, gradient, d_pooled)
        fused.run("pool_space_backward", gradient, (d_pooled, place), (gradient,))
        return gradient, None


def _statistics(weight: Tensor, peaks: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What :class:`Standardize` finds."""
    std, mean = torch.std_mean(weight, tuple(range(1, weight.dim())))
    centre, scale = mean[:, None], torch.reciprocal(std + 1e-5)[:, None]
    _, pooled = formulas.pool_space(weight, peaks)
    pooled = (pooled.view(-1, *weight.shape[:2]) - centre) * scale
    return weight, centre, scale, pooled.flatten(0, 1)


class Standardize(Function):
    """W, the mean of every filter and 1 / (std + 1e-5), (N, 1), and, of x = (W − mean) / (std +
    1e-5), what :func:`wexlib.ops.formulas.pool_space` finds."""

    @staticmethod
    def forward(ctx, weight, peaks):
        centre, std, scale = (_alone(weight) for _ in range(3))
        pooled, place = _for_pool(weight, peaks)
        fused.run("standardized", weight, (weight,), (centre, std, scale, pooled, place))
        ctx.save_for_backward(weight, centre, std, scale, pooled, place)
        ctx.peaks = peaks
        ctx.set_materialize_grads(False)  # what is pooled is asked for by attention only
        return weight.view_as(weight), centre, scale, pooled

    @staticmethod
    def backward(ctx, gradient, d_centre, d_scale, d_pooled):
        weight, *found, place = ctx.saved_tensors
        if gradient is None:
            gradient = torch.zeros_like(weight)
        if not _loop(weight, gradient, d_centre, d_scale, d_pooled):
            given = weight, ctx.peaks
            return _derived(ctx, _statistics, given, gradient, d_centre, d_scale, d_pooled)
        gradient = fused.laid(gradient, weight)
        reads = weight, *found, d_centre, None, d_scale, d_pooled, place
        fused.run("standardized_backward", weight, reads, (gradient,))
        return gradient, None


class PoolChannels(Function):
    """See :func:`wexlib.ops.formulas.pool_channels`."""

    @staticmethod
    def forward(ctx, *given):
        weight, space = given[0], given[0].shape[2:]
        pooled, place = (weight.new_empty(len(weight), n, *space) for n in (2, 1))
        fused.run("pool_channels", weight, given, (pooled, place))
        ctx.save_for_backward(*given, pooled, place)
        return weight.view_as(weight), pooled

    @staticmethod
    def backward(ctx, gradient, d_pooled):
        *given, pooled, place = ctx.saved_tensors
        weight, *rest = given
        if not _loop(weight, d_pooled, gradient):
            return _derived(ctx, formulas.pool_channels, given, gradient, d_pooled)
        gradient = fused.laid(gradient, weight)
        d_centre, d_scale, d_gate = map(_unfilled, rest)
        reads, writes = (*given, pooled, place, d_pooled), (gradient, d_gate, d_centre, d_scale)
        fused.run("pool_channels_backward", weight, reads, writes)
        return gradient, d_centre, d_scale, d_gate


class Dense(Function):
    """See :func:`wexlib.ops.formulas.dense`."""

    @staticmethod
    def forward(ctx, *given):
        result = torch.empty_like(given[0])
        fused.run("dense", given[0], given, (result,))
        ctx.save_for_backward(*given)
        return result

    @staticmethod
    def backward(ctx, gradient):
        given = weight, *rest = ctx.saved_tensors
        if not _loop(weight, gradient):
            return _derived(ctx, formulas.dense, given, gradient)
        d_given = torch.empty_like(weight), *map(_unfilled, rest)
        fused.run("dense_backward", weight, (*given, gradient), d_given)
        return d_given


class TwoGates(Function):
    """See :func:`wexlib.ops.formulas.two_gates`."""

    @staticmethod
    def forward(ctx, *given):
        *given, ctx.skips = given
        result, strength = torch.empty_like(given[0]), given[-1]
        reads = *given, strength if ctx.skips else None
        fused.run("two_gates", given[0], reads, (result,))
        ctx.save_for_backward(*given)
        return result

    @staticmethod
    def backward(ctx, gradient):
        given = weight, *rest, strength = ctx.saved_tensors
        if ctx.needs_input_grad[5] or not _loop(weight, gradient):
            return _derived(ctx, formulas.two_gates, (*given, ctx.skips), gradient)
        d_given = torch.empty_like(weight), *map(_unfilled, rest)
        reads = *given, strength if ctx.skips else None, gradient
        fused.run("two_gates_backward", weight, reads, d_given)
        return *d_given, None, None


def _largest(
    weight: Tensor, centre: Tensor | None, scale: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Of x = (W − centre) ⊙ scale M = (1 + ε)·max|x|, (1,); and of the largest x its filter, its
    place in there, and its sign, (3,)."""
    m, at = weight.new_empty(1), weight.new_empty(3)
    reads = weight, centre, scale, weight.new_full((1,), 1 + eps)
    fused.run("largest", weight, reads, (_alone(weight), m, at))
    return m, at


class Largest(Function):
    """See :func:`wexlib.ops.formulas.largest`."""

    @staticmethod
    def forward(ctx, x, eps):
        m, at = _largest(x, None, None, eps)
        ctx.save_for_backward(x, at)
        ctx.eps = eps
        return x.view_as(x), m.view(())

    @staticmethod
    def backward(ctx, gradient, d_m):
        x, at = ctx.saved_tensors
        if not _loop(gradient, d_m):
            return _derived(ctx, formulas.largest, (x, ctx.eps), gradient, d_m)
        # By tensors: on a GPU a look at the place would wait for all that came before.
        n, place = at[:2].long().split(1)
        place = n, *torch.unravel_index(place, x.shape[1:])
        gradient[place] += (1 + ctx.eps) * d_m * at[2]
        return gradient, None


class Artanh(Function):
    """See :func:`wexlib.ops.formulas.artanh`."""

    @staticmethod
    def forward(ctx, *given):
        *given, ctx.eps = given
        weight, centre, scale, strength = given
        m, at = _largest(weight, centre, scale, ctx.eps)
        result = torch.empty_like(weight)
        fused.run("artanh", weight, (weight, centre, scale, m, strength), (result,))
        ctx.save_for_backward(*given, m, at, result)
        return result

    @staticmethod
    def backward(ctx, gradient):
        *given, m, at, result = ctx.saved_tensors
        weight, centre, scale, strength = given
        if ctx.needs_input_grad[3] or not _loop(weight, gradient):
            return _derived(ctx, formulas.artanh, (*given, ctx.eps), gradient)
        factor, zero = weight.new_full((1,), 1 + ctx.eps), weight.new_zeros(1)
        reads = weight, centre, scale, m, strength, factor, at, result, gradient, zero
        d_given = torch.empty_like(weight), *map(_unfilled, (centre, scale))
        fused.run("artanh_backward", weight, reads, (*d_given, _alone(weight)))
        return *d_given, None, None


#: Beside each formula what takes its arguments and gives its results by a loop.
LOOPS: dict[Callable, Callable] = {
    formulas.apart: Apart.apply,
    formulas.pool_space: PoolSpace.apply,
    formulas.standardize: Standardize.apply,
    formulas.pool_channels: PoolChannels.apply,
    formulas.dense: Dense.apply,
    formulas.two_gates: TwoGates.apply,
    formulas.largest: Largest.apply,
    formulas.artanh: Artanh.apply,
}
