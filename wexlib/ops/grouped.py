"""Whole excitations in Triton, of many layers in one launch: one program a filter.

Statistics of standardization, what is pooled, the nets, the gates and the result are one kernel,
the gradient of the weights is another, and the products that give the nets' gradients are a third;
the spatial nets' are a fourth. M·artanh(x / M) asks for a number of the whole layer, and so two
each way.

A table of integers (:data:`FIELDS`, layers) says where each layer's tensors lie, counted from one
of them, and what shape they have. Beside the result each filter leaves a record for the backward
pass: its centre, scale and deviation; then what its net saw and gave, in the order in which it is
computed. An order of additions depends on a layer's own shape, so that a layer's numbers are the
same in any company.
"""

import triton
import triton.language as tl

from wexlib.ops.kernels import (
    SMALLEST,
    _artanh,
    _first_of_all,
    _first_of_filter,
    _larger,
    _sum,
    _tile,
)

#: A layer's row: its first program, as filter and as block of channels; its filters, channels,
#: places, hidden numbers and the last two sides of its kernel; where weight, result, record,
#: slopes and the nets' gradients begin; and the parameters.
FIELDS = (
    "start block n c k h k2 k3 weight result record slopes gradients strength "
    "fc1 bias1 fc2 bias2 conv bias"
).split()


@triton.jit
def _program(table, L, row: tl.constexpr, BL: tl.constexpr):
    """The layer of this program, and its number there."""
    layers = tl.arange(0, BL)
    starts = tl.load(table + row * L + layers, layers < L, 1 << 60)
    layer = tl.sum((starts <= tl.program_id(0)).to(tl.int32), 0) - 1
    return layer, tl.program_id(0) - tl.load(table + row * L + layer)


@triton.jit
def _shape(table, L):
    """N, C, K, hidden numbers."""
    n, c = tl.load(table + 2 * L).to(tl.int32), tl.load(table + 3 * L).to(tl.int32)
    return n, c, tl.load(table + 4 * L).to(tl.int32), tl.load(table + 5 * L).to(tl.int32)


@triton.jit
def _record(C, K, H, NET: tl.constexpr):
    """Numbers of a record, and where in it the pooled ones, the gates and the maps begin.

    From 3 on the hidden numbers, for CBAM those of the means and of the maxima; the means, for
    CBAM then the maxima and their places; the gates; for CBAM the maximum and mean of each place,
    the maximum's channel, and the second gate.
    """
    pooled = 3 + NET * H
    gates = pooled + (2 * NET - 1) * C
    return gates + C + (NET - 1) * 4 * K, pooled, gates, gates + C


@triton.jit
def _meets(table, L, K, BK: tl.constexpr):
    """Of a place seen (first) and a place of the map (second): which of the flat kernel's numbers
    joins them, padded as "same", and whether one does."""
    K2, K3 = tl.load(table + 6 * L).to(tl.int32), tl.load(table + 7 * L).to(tl.int32)
    K1 = K // (K2 * K3)
    k = tl.arange(0, BK)
    first, second, third = k // (K2 * K3), k // K3 % K2, k % K3
    i = first[:, None] - first[None, :] + (K1 - 1) // 2
    j = second[:, None] - second[None, :] + (K2 - 1) // 2
    m = third[:, None] - third[None, :] + (K3 - 1) // 2
    inside = (i >= 0) & (i < K1) & (j >= 0) & (j < K2) & (m >= 0) & (m < K3)
    return (i * K2 + j) * K3 + m, inside & (k < K)[:, None] & (k < K)[None, :]


@triton.jit
def _mean(w, C, K, LAST: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr):
    """From the first number on, so that a filter of equal ones has exactly their value."""
    first, total = tl.load(w), tl.zeros([BK, BC], w.dtype.element_ty)
    for c0 in range(0, C, BC):
        c, k, i, mask = _tile(c0, 0, C, K, LAST, BC, BK)
        total += tl.where(mask, tl.load(w + i, mask, 0.0) - first, 0.0)
    return first + _sum(total) / (C * K)


@triton.jit
def _keep(record, middle, squares, C, K, STANDARDIZE: tl.constexpr):
    """The scale, with centre and deviation written down; 1 where nothing is standardized."""
    scale, deviation = middle * 0 + 1, middle * 0 + 1
    if STANDARDIZE:
        deviation = tl.sqrt(squares / (C * K - 1))
        scale = 1 / (deviation + 1e-5)
        # A constant filter has no direction in which its deviation grows.
        deviation = tl.where(deviation == 0, float("inf"), deviation)
    tl.store(record, middle)
    tl.store(record + 1, scale)
    tl.store(record + 2, deviation)
    return scale


@triton.jit
def _first_layer(p, H, C, c, h):
    """The part of fc1 for some channels: (hidden, channels)."""
    return tl.load(p + h[:, None] * C + c[None, :], (h < H)[:, None] & (c < C)[None, :], 0.0)


@triton.jit
def _second_layer(p, H, C, c, h):
    """The part of fc2 for some channels: (channels, hidden)."""
    return tl.load(p + c[:, None] * H + h[None, :], (c < C)[:, None] & (h < H)[None, :], 0.0)


@triton.jit
def _activate(x, SLOPE: tl.constexpr):
    return tl.where(x > 0, x, x * SLOPE)


@triton.jit
def _slope(x, d, SLOPE: tl.constexpr):
    return tl.where(x > 0, d, d * SLOPE)


@triton.jit
def excite(
    w,
    p,
    table,
    y,
    record,
    L,
    STANDARDIZE: tl.constexpr,
    NET: tl.constexpr,
    SKIP: tl.constexpr,
    SLOPE: tl.constexpr,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BH: tl.constexpr,
    BL: tl.constexpr,
):
    """The excited weight; NET is 0 for none, 1 for SE, 2 for CBAM."""
    layer, n = _program(table, L, 0, BL)
    table += layer
    N, C, K, H = _shape(table, L)
    dtype = w.dtype.element_ty
    w += tl.load(table + 8 * L) + n * C * K
    y += tl.load(table + 9 * L) + n * C * K
    size, pooled, gates, maps = 3, 0, 0, 0
    if NET > 0:
        size, pooled, gates, maps = _record(C, K, H, NET)
    record += tl.load(table + 10 * L) + n * size
    middle = tl.zeros([], dtype)
    if STANDARDIZE:
        middle = _mean(w, C, K, LAST, BC, BK)

    h = tl.arange(0, BH)
    squares = tl.zeros([BK, BC], dtype)
    hidden, hidden_of_maxima = tl.zeros([BH], dtype), tl.zeros([BH], dtype)
    if STANDARDIZE or NET > 0:
        for c0 in range(0, C, BC):
            c, k, i, mask = _tile(c0, 0, C, K, LAST, BC, BK)
            x = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0)
            squares += x * x
            if NET > 0:
                mean = tl.sum(x, 0) / K
                tl.store(record + pooled + c, mean, c < C)
                v = _first_layer(p + tl.load(table + 14 * L), H, C, c, h)
                hidden += tl.sum(v * mean[None, :], 1)
                if NET > 1:
                    x = tl.where(mask, x, float("-inf"))
                    maximum = tl.where(mean == mean, tl.max(x, 0), mean)
                    tl.store(record + pooled + C + c, maximum, c < C)
                    tl.store(record + pooled + 2 * C + c, tl.argmax(x, 0).to(dtype), c < C)
                    maximum = tl.where(c < C, maximum, 0.0)
                    hidden_of_maxima += tl.sum(v * maximum[None, :], 1)
    scale = _keep(record, middle, _sum(squares), C, K, STANDARDIZE)

    on = tl.zeros([], dtype)
    total, best, at = tl.zeros([BK], dtype), tl.zeros([BK], dtype), tl.zeros([BK], tl.int32)
    best -= float("inf")
    if NET > 0:
        on = tl.load(p + tl.load(table + 13 * L))
        bias = tl.load(p + tl.load(table + 15 * L) + h, h < H, 0.0)
        # What standardizes it is known by now, and the net is linear so far.
        hidden = hidden * scale + bias
        tl.store(record + 3 + h, hidden, h < H)
        hidden = _activate(hidden, SLOPE)
        if NET > 1:
            hidden_of_maxima = hidden_of_maxima * scale + bias
            tl.store(record + 3 + H + h, hidden_of_maxima, h < H)
            hidden += _activate(hidden_of_maxima, SLOPE)
    for c0 in range(0, C, BC):
        c, k, i, mask = _tile(c0, 0, C, K, LAST, BC, BK)
        x = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0)
        if NET == 0:
            tl.store(y + i, x * scale, mask)
        else:
            v = _second_layer(p + tl.load(table + 16 * L), H, C, c, h)
            gate = tl.sum(v * hidden[None, :], 1)
            gate += NET * tl.load(p + tl.load(table + 17 * L) + c, c < C, 0.0)
            gate = 1 / (1 + tl.exp(-gate))
            tl.store(record + gates + c, gate, c < C)
            gate += SKIP
            if NET == 1:
                m = gate * on + (1 - on)
                tl.store(y + i, x * (m * scale)[None, :], mask)
            else:
                x *= gate[None, :]
                total += tl.sum(x, 1)
                best, at = _larger(best, at, tl.where(mask, x, float("-inf")), c0, 1)
    if NET > 1:
        k = tl.arange(0, BK)
        best = tl.where(k < K, tl.where(total == total, best, total) * scale, 0.0)
        total *= scale / C
        tl.store(record + maps + k, best, k < K)
        tl.store(record + maps + K + k, total, k < K)
        tl.store(record + maps + 2 * K + k, at.to(dtype), k < K)
        number, inside = _meets(table, L, K, BK)
        conv = p + tl.load(table + 18 * L) + number
        second = tl.load(conv, inside, 0.0) * best[:, None]
        second += tl.load(conv + K, inside, 0.0) * total[:, None]
        second = tl.sum(second, 0) + tl.load(p + tl.load(table + 19 * L))
        second = 1 / (1 + tl.exp(-second))
        tl.store(record + maps + 3 * K + k, second, k < K)
        tl.debug_barrier()  # the gates that other threads have written
        for c0 in range(0, C, BC):
            c, k, i, mask = _tile(c0, 0, C, K, LAST, BC, BK)
            gate = tl.load(record + gates + c, c < C, 0.0) + SKIP
            m = gate[None, :] * (second + 2 * SKIP)[:, None] * on + (1 - on - on * SKIP)
            tl.store(y + i, (tl.load(w + i, mask, 0.0) - middle) * scale * m, mask)


@triton.jit
def excite_backward(
    w,
    p,
    table,
    g,
    record,
    d_w,
    slopes,
    L,
    STANDARDIZE: tl.constexpr,
    NET: tl.constexpr,
    SKIP: tl.constexpr,
    SLOPE: tl.constexpr,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BH: tl.constexpr,
    BL: tl.constexpr,
):
    """The weight's gradient, and the slopes of what its net computed: of the gates (C) and hidden
    numbers before their functions, and for CBAM of the second gate (K)."""
    layer, n = _program(table, L, 0, BL)
    table += layer
    N, C, K, H = _shape(table, L)
    dtype = w.dtype.element_ty
    w += tl.load(table + 8 * L) + n * C * K
    g += tl.load(table + 9 * L) + n * C * K
    d_w += tl.load(table + 9 * L) + n * C * K
    size, pooled, gates, maps = 3, 0, 0, 0
    if NET > 0:
        size, pooled, gates, maps = _record(C, K, H, NET)
        slopes += tl.load(table + 11 * L) + n * (C + NET * H + (NET - 1) * K)
    record += tl.load(table + 10 * L) + n * size
    middle, scale, deviation = tl.load(record), tl.load(record + 1), tl.load(record + 2)

    h, k = tl.arange(0, BH), tl.arange(0, BK)
    on = tl.zeros([], dtype)
    d_hidden, d_of_maxima = tl.zeros([BH], dtype), tl.zeros([BH], dtype)
    second, d_maximum, d_mean = tl.zeros([BK], dtype), tl.zeros([BK], dtype), tl.zeros([BK], dtype)
    at = tl.zeros([BK], tl.int32)
    if NET > 0:
        on = tl.load(p + tl.load(table + 13 * L))
    if NET > 1:
        b = tl.load(record + maps + 3 * K + k, k < K, 0.0)
        second = b + 2 * SKIP
        at = tl.load(record + maps + 2 * K + k, k < K, -1.0).to(tl.int32)
        slope = tl.zeros([BK], dtype)
        for c0 in range(0, C, BC):
            c, k, i, mask = _tile(c0, 0, C, K, LAST, BC, BK)
            x = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0) * scale
            gate = tl.load(record + gates + c, c < C, 0.0) + SKIP
            slope += tl.sum(x * tl.load(g + i, mask, 0.0) * gate[None, :], 1)
        slope *= on * b * (1 - b)
        tl.store(slopes + C + 2 * H + k, slope, k < K)
        number, inside = _meets(table, L, K, BK)
        conv = p + tl.load(table + 18 * L) + number
        slope = tl.where(k < K, slope, 0.0)
        d_maximum = tl.sum(tl.load(conv, inside, 0.0) * slope[None, :], 1)
        d_mean = tl.sum(tl.load(conv + K, inside, 0.0) * slope[None, :], 1) / C
    if NET > 0:
        for c0 in range(0, C, BC):
            c, k, i, mask = _tile(c0, 0, C, K, LAST, BC, BK)
            x = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0) * scale
            d = tl.load(g + i, mask, 0.0) * on
            if NET > 1:
                d = d * second[:, None] + d_mean[:, None]
                d += tl.where(c[None, :] == at[:, None], d_maximum[:, None], 0.0)
            gate = tl.load(record + gates + c, c < C, 0.0)
            slope_of_gate = tl.sum(x * d, 0) * gate * (1 - gate)
            tl.store(slopes + c, slope_of_gate, c < C)
            v = _second_layer(p + tl.load(table + 16 * L), H, C, c, h)
            d_hidden += tl.sum(v * slope_of_gate[:, None], 0)
        of_hidden = record + 3 + h
        if NET > 1:
            d_of_maxima = _slope(tl.load(of_hidden + H, h < H, 0.0), d_hidden, SLOPE)
            tl.store(slopes + C + H + h, d_of_maxima, h < H)
        d_hidden = _slope(tl.load(of_hidden, h < H, 0.0), d_hidden, SLOPE)
        tl.store(slopes + C + h, d_hidden, h < H)

    # Once for the sums over the filter, where it is standardized, and once for the result.
    sums, products = tl.zeros([BK, BC], dtype), tl.zeros([BK, BC], dtype)
    rest, factor = tl.zeros([], dtype), tl.zeros([], dtype)
    for step in tl.static_range(1 - STANDARDIZE, 2):
        for c0 in range(0, C, BC):
            c, k, i, mask = _tile(c0, 0, C, K, LAST, BC, BK)
            x = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0) * scale
            d = tl.load(g + i, mask, 0.0)
            if NET > 0:
                gate = tl.load(record + gates + c, c < C, 0.0) + SKIP
                v = _first_layer(p + tl.load(table + 14 * L), H, C, c, h)
                if NET == 1:
                    d *= (gate * on + (1 - on))[None, :]
                else:
                    d *= gate[None, :] * second[:, None] * on + (1 - on - on * SKIP)
                    seen = tl.where(c[None, :] == at[:, None], d_maximum[:, None], 0.0)
                    d += (seen + d_mean[:, None]) * gate[None, :]
                    place = tl.load(record + pooled + 2 * C + c, c < C, -1.0).to(tl.int32)
                    peak = tl.sum(v * d_of_maxima[:, None], 0)
                    d += tl.where(k[:, None] == place[None, :], peak[None, :], 0.0)
                d += (tl.sum(v * d_hidden[:, None], 0) / K)[None, :]
            if step == 0:
                d = tl.where(mask, d, 0.0)
                sums += d
                products += d * x
            else:
                tl.store(d_w + i, (d - rest) * scale - x * factor, mask)
        if step == 0:
            rest = _sum(sums) / (C * K)
            factor = _sum(products) / (deviation * (C * K - 1))


@triton.jit
def _up(x):
    """To 16 bytes."""
    return (x + 3) // 4 * 4


@triton.jit
def nets_backward(
    table,
    record,
    slopes,
    gradients,
    L,
    NET: tl.constexpr,
    SLOPE: tl.constexpr,
    BC: tl.constexpr,
    BH: tl.constexpr,
    BN: tl.constexpr,
    BL: tl.constexpr,
):
    """The gradients of fc1 and fc2, for a block of channels, over all filters."""
    layer, block = _program(table, L, 1, BL)
    table += layer
    N, C, K, H = _shape(table, L)
    dtype = record.dtype.element_ty
    size, pooled, gates, maps = _record(C, K, H, NET)
    record += tl.load(table + 10 * L)
    slopes += tl.load(table + 11 * L)
    Q = C + NET * H + (NET - 1) * K
    c, h = block * BC + tl.arange(0, BC), tl.arange(0, BH)
    first, second = tl.zeros([BH, BC], dtype), tl.zeros([BC, BH], dtype)
    bias_1, bias_2 = tl.zeros([BH], dtype), tl.zeros([BC], dtype)
    for n0 in range(0, N, BN):
        n = n0 + tl.arange(0, BN)
        by_c, by_h = (n < N)[:, None] & (c < C)[None, :], (n < N)[:, None] & (h < H)[None, :]
        scale = tl.load(record + n * size + 1, n < N, 0.0)
        hidden = tl.zeros([BN, BH], dtype)
        for i in tl.static_range(NET):  # of the means, of the maxima
            x = tl.load(record + n[:, None] * size + 3 + i * H + h[None, :], by_h, 0.0)
            hidden += _activate(x, SLOPE)
            x = tl.load(record + n[:, None] * size + pooled + i * C + c[None, :], by_c, 0.0)
            d = tl.load(slopes + n[:, None] * Q + C + i * H + h[None, :], by_h, 0.0)
            bias_1 += tl.sum(d, 0)
            first = _multiply(tl.trans(d), x * scale[:, None], first)
        d = tl.load(slopes + n[:, None] * Q + c[None, :], by_c, 0.0)
        bias_2 += tl.sum(d, 0) * NET
        second = _multiply(tl.trans(d), hidden, second)
    gradients += tl.load(table + 12 * L)
    by_c, by_h = (h < H)[:, None] & (c < C)[None, :], (c < C)[:, None] & (h < H)[None, :]
    tl.store(gradients + h[:, None] * C + c[None, :], first, by_c)
    gradients += _up(H * C)
    tl.store(gradients + h, bias_1, h < tl.where(block == 0, H, 0))
    gradients += _up(H)
    tl.store(gradients + c[:, None] * H + h[None, :], second, by_h)
    tl.store(gradients + _up(H * C) + c, bias_2, c < C)


@triton.jit
def _multiply(a, b, c):
    return tl.dot(a, b, c, input_precision="ieee", out_dtype=c.dtype)


@triton.jit
def spatial_backward(
    table,
    record,
    slopes,
    gradients,
    L,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    """The gradients of CBAM's spatial net: one program a layer."""
    table += tl.program_id(0)
    N, C, K, H = _shape(table, L)
    dtype = record.dtype.element_ty
    size, pooled, gates, maps = _record(C, K, H, 2)
    record += tl.load(table + 10 * L) + maps
    slopes += tl.load(table + 11 * L) + C + 2 * H
    k = tl.arange(0, BK)
    of_maxima, of_means = tl.zeros([BK, BK], dtype), tl.zeros([BK, BK], dtype)
    bias = tl.zeros([BK], dtype)
    for n0 in range(0, N, BN):
        n = n0 + tl.arange(0, BN)
        mask = (n < N)[:, None] & (k < K)[None, :]
        seen = record + n[:, None] * size + k[None, :]
        d = tl.load(slopes + n[:, None] * (C + 2 * H + K) + k[None, :], mask, 0.0)
        bias += tl.sum(d, 0)
        of_maxima = _multiply(tl.trans(tl.load(seen, mask, 0.0)), d, of_maxima)
        of_means = _multiply(tl.trans(tl.load(seen + K, mask, 0.0)), d, of_means)
    gradients += tl.load(table + 12 * L) + 2 * _up(H * C) + _up(H) + _up(C)
    number, inside = _meets(table, L, K, BK)
    for i in range(0, K):
        here = inside & (number == i)
        tl.store(gradients + i, _sum(tl.where(here, of_maxima, 0.0)))
        tl.store(gradients + K + i, _sum(tl.where(here, of_means, 0.0)))
    tl.store(gradients + _up(2 * K), tl.sum(bias, 0))


@triton.jit
def find_largest(
    w,
    table,
    record,
    L,
    STANDARDIZE: tl.constexpr,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BL: tl.constexpr,
):
    """Each filter's centre, scale, deviation, and largest |x|: a record of four."""
    layer, n = _program(table, L, 0, BL)
    table += layer
    N, C, K, H = _shape(table, L)
    dtype = w.dtype.element_ty
    w += tl.load(table + 8 * L) + n * C * K
    record += tl.load(table + 10 * L) + n * 4
    middle = tl.zeros([], dtype)
    if STANDARDIZE:
        middle = _mean(w, C, K, LAST, BC, BK)
    squares, best = tl.zeros([BK, BC], dtype), tl.zeros([BK, BC], dtype)
    for c0 in range(0, C, BC):
        c, k, i, mask = _tile(c0, 0, C, K, LAST, BC, BK)
        x = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0)
        squares += x * x
        best = tl.maximum(best, tl.abs(x))
    total, found = _sum(squares), tl.max(tl.max(best, 0), 0)
    scale = _keep(record, middle, total, C, K, STANDARDIZE)
    tl.store(record + 3, tl.where(total == total, found, total) * scale)


@triton.jit
def _m(record, N, FACTOR: tl.constexpr):
    """M, the largest |x| of the layer, and the first filter that has it."""
    top, first = _first_of_all(record + 3, 4, N)
    return tl.where(top < SMALLEST, SMALLEST, top) * FACTOR, top, first


@triton.jit
def excite_artanh(
    w,
    p,
    table,
    y,
    record,
    L,
    FACTOR: tl.constexpr,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BL: tl.constexpr,
):
    layer, n = _program(table, L, 0, BL)
    table += layer
    N, C, K, H = _shape(table, L)
    w += tl.load(table + 8 * L) + n * C * K
    y += tl.load(table + 9 * L) + n * C * K
    record += tl.load(table + 10 * L)
    m, top, first = _m(record, N, FACTOR)
    middle, scale = tl.load(record + n * 4), tl.load(record + n * 4 + 1)
    on = tl.load(p + tl.load(table + 13 * L))
    for c0 in range(0, C, BC):
        c, k, i, mask = _tile(c0, 0, C, K, LAST, BC, BK)
        x = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0)
        tl.store(y + i, (1 - on) * (x * scale) + on * (m * _artanh(x * (scale / m))), mask)


@triton.jit
def sum_artanh(
    w,
    p,
    table,
    g,
    record,
    sums,
    L,
    FACTOR: tl.constexpr,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BL: tl.constexpr,
):
    """Over each filter Σ d_x, Σ d_x·x, and M times its part of d_M: three numbers."""
    layer, n = _program(table, L, 0, BL)
    table += layer
    N, C, K, H = _shape(table, L)
    dtype = w.dtype.element_ty
    w += tl.load(table + 8 * L) + n * C * K
    g += tl.load(table + 9 * L) + n * C * K
    record += tl.load(table + 10 * L)
    m, top, first = _m(record, N, FACTOR)
    middle, scale = tl.load(record + n * 4), tl.load(record + n * 4 + 1)
    on = tl.load(p + tl.load(table + 13 * L))
    by_one, by_x = tl.zeros([BK, BC], dtype), tl.zeros([BK, BC], dtype)
    by_m = tl.zeros([BK, BC], dtype)
    for c0 in range(0, C, BC):
        c, k, i, mask = _tile(c0, 0, C, K, LAST, BC, BK)
        u = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0) * (scale / m)
        d, slope = tl.load(g + i, mask, 0.0), 1 / (1 - u * u)
        by_m += d * (_artanh(u) - u * slope)
        d *= (1 - on) + on * slope
        by_one += d
        by_x += d * u
    sums += tl.load(table + 11 * L) + n * 3
    tl.store(sums, _sum(by_one))
    tl.store(sums + 1, _sum(by_x) * m)
    tl.store(sums + 2, _sum(by_m) * (m * on))


@triton.jit
def excite_artanh_backward(
    w,
    p,
    table,
    g,
    record,
    d_w,
    sums,
    L,
    STANDARDIZE: tl.constexpr,
    FACTOR: tl.constexpr,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BL: tl.constexpr,
):
    layer, n = _program(table, L, 0, BL)
    table += layer
    N, C, K, H = _shape(table, L)
    dtype = w.dtype.element_ty
    w += tl.load(table + 8 * L) + n * C * K
    g += tl.load(table + 9 * L) + n * C * K
    d_w += tl.load(table + 9 * L) + n * C * K
    record += tl.load(table + 10 * L)
    sums += tl.load(table + 11 * L)
    m, top, first = _m(record, N, FACTOR)
    record += n * 4
    middle, scale, deviation = tl.load(record), tl.load(record + 1), tl.load(record + 2)
    on = tl.load(p + tl.load(table + 13 * L))
    # Through M all numbers reach the layer's largest one.
    at, peak = -1, tl.zeros([], dtype)
    total, products = tl.load(sums + n * 3), tl.load(sums + n * 3 + 1)
    if n == first:
        parts = tl.zeros([256], dtype)
        for n0 in range(0, N, 256):
            i = n0 + tl.arange(0, 256)
            parts += tl.load(sums + i * 3 + 2, i < N, 0.0)
        place, at, sign = _first_of_filter(w, middle, C, K, LAST, BC, BK)
        peak = tl.where(top >= SMALLEST, tl.sum(parts, 0) / m * sign, 0.0) * FACTOR
        total += peak
        products += peak * ((tl.load(w + at) - middle) * scale)
    rest, factor = tl.zeros([], dtype), tl.zeros([], dtype)
    if STANDARDIZE:
        rest, factor = total / (C * K), products / (deviation * (C * K - 1))
    for c0 in range(0, C, BC):
        c, k, i, mask = _tile(c0, 0, C, K, LAST, BC, BK)
        x = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0) * scale
        u = x / m
        d = tl.load(g + i, mask, 0.0) * ((1 - on) + on / (1 - u * u))
        d += tl.where(i == at, peak, 0.0)
        tl.store(d_w + i, (d - rest) * scale - x * factor, mask)
