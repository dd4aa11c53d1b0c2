"""The loops of :mod:`wexlib.ops.loops` in Triton: one program a filter, in fused.cpp's words.

A program goes over its filter tile by tile, BK places by BC channels, so that a weight of any size
fits, and adds in an order that depends on the weight's shape alone. A null argument means what it
means in fused.cpp. What one loop there does over all filters after another is a second kernel.
"""

import triton
import triton.language as tl

#: Numbers of a tile, and the most places of one.
TILE, PLACES = 2048, 64
#: SMALLEST of formulas.py.
SMALLEST = tl.constexpr(2.0**-100)


def blocks(channels: int, places: int) -> dict[str, int]:
    """The tile for a weight."""
    bk = min(triton.next_power_of_2(places), PLACES)
    return {"BK": bk, "BC": min(triton.next_power_of_2(channels), max(TILE // bk, 32), 256)}


@triton.jit
def _tile(c0, k0, C, K, LAST: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr):
    """Channels (BC), places (BK), where in memory (BK, BC), and what of it is there."""
    c, k = c0 + tl.arange(0, BC), k0 + tl.arange(0, BK)
    if LAST:
        i = k[:, None] * C + c[None, :]
    else:
        i = c[None, :] * K + k[:, None]
    return c, k, i, (c < C)[None, :] & (k < K)[:, None]


@triton.jit
def _larger(best, at, values, start, axis: tl.constexpr):
    """The maximum so far along an axis, and its place: of equal ones the first."""
    found = tl.max(values, axis)
    at = tl.where(found > best, tl.argmax(values, axis) + start, at)
    return tl.maximum(best, found), at


@triton.jit
def _sum(x):
    return tl.sum(tl.sum(x, 0), 0)


@triton.jit
def pool_space(w, pooled, place, N, C, K, LAST: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    dtype = w.dtype.element_ty
    w += n * C * K
    for c0 in range(0, C, BC):
        total, at = tl.zeros([BC], dtype), tl.zeros([BC], tl.int32)
        best = total - float("inf")
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            x = tl.load(w + i, mask, 0.0)
            total += tl.sum(x, 0)
            best, at = _larger(best, at, tl.where(mask, x, float("-inf")), k0, 0)
        c = c0 + tl.arange(0, BC)
        tl.store(pooled + n * C + c, total / K, c < C)
        if place is not None:
            best = tl.where(total == total, best, total)
            tl.store(pooled + (N + n) * C + c, best, c < C)
            tl.store(place + n * C + c, at.to(dtype), c < C)


@triton.jit
def pool_space_backward(
    d_pooled, place, g, N, C, K, LAST: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64)
    g += n * C * K
    for c0 in range(0, C, BC):
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            d = tl.load(g + i, mask, 0.0)
            d += (tl.load(d_pooled + n * C + c, c < C, 0.0) / K)[None, :]
            if place is not None:
                d_maximum = tl.load(d_pooled + (N + n) * C + c, c < C, 0.0)
                at = tl.load(place + n * C + c, c < C, -1.0).to(tl.int32)
                d += tl.where(k[:, None] == at[None, :], d_maximum[None, :], 0.0)
            tl.store(g + i, d, mask)


@triton.jit
def standardized(
    w,
    centre,
    std,
    scale,
    pooled,
    place,
    N,
    C,
    K,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    dtype = w.dtype.element_ty
    w += n * C * K
    first = tl.load(w)
    total = tl.zeros([BC], dtype)
    for c0 in range(0, C, BC):
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            total += tl.sum(tl.where(mask, tl.load(w + i, mask, 0.0) - first, 0.0), 0)
    middle = first + tl.sum(total, 0) / (C * K)
    squares = tl.zeros([BC], dtype)
    for c0 in range(0, C, BC):
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            d = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0)
            squares += tl.sum(d * d, 0)
    deviation = tl.sqrt(tl.sum(squares, 0) / (C * K - 1))
    s = 1 / (deviation + 1e-5)
    tl.store(centre + n, middle)
    tl.store(std + n, tl.where(deviation == 0, float("inf"), deviation))
    tl.store(scale + n, s)
    for c0 in range(0, C, BC):
        total, at = tl.zeros([BC], dtype), tl.zeros([BC], tl.int32)
        best = total - float("inf")
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            d = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0)
            total += tl.sum(d, 0)
            best, at = _larger(best, at, tl.where(mask, d, float("-inf")), k0, 0)
        c = c0 + tl.arange(0, BC)
        tl.store(pooled + n * C + c, total / K * s, c < C)
        if place is not None:
            best = tl.where(total == total, best, total)
            tl.store(pooled + (N + n) * C + c, best * s, c < C)
            tl.store(place + n * C + c, at.to(dtype), c < C)


@triton.jit
def standardized_backward(
    w,
    centre,
    std,
    scale,
    pooled,
    d_centre,
    d_std,
    d_scale,
    d_pooled,
    place,
    g,
    N,
    C,
    K,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    dtype = w.dtype.element_ty
    w, g = w + n * C * K, g + n * C * K
    middle, deviation, s = tl.load(centre + n), tl.load(std + n), tl.load(scale + n)
    sums, products = tl.zeros([BC], dtype), tl.zeros([BC], dtype)
    if d_pooled is not None:
        for c0 in range(0, C, BC):
            c = c0 + tl.arange(0, BC)
            d = tl.load(d_pooled + n * C + c, c < C, 0.0)
            sums += d
            products += d * tl.load(pooled + n * C + c, c < C, 0.0)
            if place is not None:
                d = tl.load(d_pooled + (N + n) * C + c, c < C, 0.0)
                sums += d
                products += d * tl.load(pooled + (N + n) * C + c, c < C, 0.0)
    slope = -s * tl.sum(sums, 0)
    d_s = tl.sum(products, 0)
    if d_centre is not None:
        slope += tl.load(d_centre + n)
    if d_scale is not None:
        d_s += s * tl.load(d_scale + n)
    d_deviation = -s * d_s
    if d_std is not None:
        d_deviation += tl.load(d_std + n)
    factor, rest = d_deviation / (deviation * (C * K - 1)), slope / (C * K)
    for c0 in range(0, C, BC):
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            d = tl.load(g + i, mask, 0.0) + (tl.load(w + i, mask, 0.0) - middle) * factor + rest
            if d_pooled is not None:
                d += (tl.load(d_pooled + n * C + c, c < C, 0.0) * (s / K))[None, :]
                if place is not None:
                    d_maximum = tl.load(d_pooled + (N + n) * C + c, c < C, 0.0) * s
                    at = tl.load(place + n * C + c, c < C, -1.0).to(tl.int32)
                    d += tl.where(k[:, None] == at[None, :], d_maximum[None, :], 0.0)
            tl.store(g + i, d, mask)


@triton.jit
def _form(w, centre, scale, n):
    """A filter's centre and scale; 0 and 1 where they are null."""
    middle = tl.zeros([], w.dtype.element_ty)
    if centre is not None:
        middle = tl.load(centre + n)
    s = tl.zeros([], w.dtype.element_ty) + 1
    if scale is not None:
        s = tl.load(scale + n)
    return middle, s


@triton.jit
def pool_channels(
    w,
    centre,
    scale,
    gate,
    pooled,
    place,
    N,
    C,
    K,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    dtype = w.dtype.element_ty
    w += n * C * K
    middle, s = _form(w, centre, scale, n)
    for k0 in range(0, K, BK):
        total, at = tl.zeros([BK], dtype), tl.zeros([BK], tl.int32)
        best = total - float("inf")
        for c0 in range(0, C, BC):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            x = (tl.load(w + i, mask, 0.0) - middle) * tl.load(gate + n * C + c, c < C, 0.0)
            total += tl.sum(tl.where(mask, x, 0.0), 1)
            best, at = _larger(best, at, tl.where(mask, x, float("-inf")), c0, 1)
        k = k0 + tl.arange(0, BK)
        best = tl.where(total == total, best, total)
        tl.store(pooled + 2 * n * K + k, best * s, k < K)
        tl.store(pooled + (2 * n + 1) * K + k, total * (s / C), k < K)
        tl.store(place + n * K + k, at.to(dtype), k < K)


@triton.jit
def pool_channels_backward(
    w,
    centre,
    scale,
    gate,
    pooled,
    place,
    d_pooled,
    g,
    d_gate,
    d_centre,
    d_scale,
    N,
    C,
    K,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    dtype = w.dtype.element_ty
    w, g = w + n * C * K, g + n * C * K
    pooled, d_pooled = pooled + 2 * n * K, d_pooled + 2 * n * K
    middle, s = _form(w, centre, scale, n)
    by_gate = tl.zeros([BC], dtype)
    for c0 in range(0, C, BC):
        slope = tl.zeros([BC], dtype)
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            at = tl.load(place + n * K + k, k < K, -1.0).to(tl.int32)
            d_maximum = tl.load(d_pooled + k, k < K, 0.0) * s
            d_mean = tl.load(d_pooled + K + k, k < K, 0.0) * (s / C)
            d = d_mean[:, None] + tl.where(c[None, :] == at[:, None], d_maximum[:, None], 0.0)
            a = tl.load(gate + n * C + c, c < C, 0.0)
            tl.store(g + i, tl.load(g + i, mask, 0.0) + d * a[None, :], mask)
            x = tl.load(w + i, mask, 0.0) - middle
            slope += tl.sum(tl.where(mask, x * d, 0.0), 0)
            by_gate += tl.sum(tl.where(mask, d, 0.0), 0) * a
        c = c0 + tl.arange(0, BC)
        tl.store(d_gate + n * C + c, slope, c < C)
    if d_centre is not None:
        tl.store(d_centre + n, -tl.sum(by_gate, 0))
    if d_scale is not None:
        by_scale = tl.zeros([BK], dtype)
        for k0 in range(0, 2 * K, BK):
            k = k0 + tl.arange(0, BK)
            d = tl.load(d_pooled + k, k < 2 * K, 0.0)
            by_scale += d * tl.load(pooled + k, k < 2 * K, 0.0)
        tl.store(d_scale + n, tl.sum(by_scale, 0) / s)


@triton.jit
def dense(
    w,
    centre,
    scale,
    gate,
    y,
    N,
    C,
    K,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    w, y = w + n * C * K, y + n * C * K
    middle, s = _form(w, centre, scale, n)
    for c0 in range(0, C, BC):
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            x = tl.load(w + i, mask, 0.0) - middle
            if gate is not None:
                x *= (tl.load(gate + n * C + c, c < C, 0.0) * s)[None, :]
            else:
                x *= s
            tl.store(y + i, x, mask)


@triton.jit
def dense_backward(
    w,
    centre,
    scale,
    gate,
    g,
    d_weight,
    d_centre,
    d_scale,
    d_gate,
    N,
    C,
    K,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    dtype = w.dtype.element_ty
    w, g, d_weight = w + n * C * K, g + n * C * K, d_weight + n * C * K
    middle, s = _form(w, centre, scale, n)
    sums, products = tl.zeros([BC], dtype), tl.zeros([BC], dtype)
    for c0 in range(0, C, BC):
        slope = tl.zeros([BC], dtype)
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            d = tl.load(g + i, mask, 0.0)
            x = tl.load(w + i, mask, 0.0) - middle
            slope += tl.sum(tl.where(mask, x * d, 0.0), 0)
            if gate is not None:
                d *= (tl.load(gate + n * C + c, c < C, 0.0) * s)[None, :]
            else:
                d *= s
            sums += tl.sum(d, 0)
            tl.store(d_weight + i, d, mask)
        if gate is not None:
            c = c0 + tl.arange(0, BC)
            tl.store(d_gate + n * C + c, slope * s, c < C)
            slope *= tl.load(gate + n * C + c, c < C, 0.0)
        products += slope
    if d_centre is not None:
        tl.store(d_centre + n, -tl.sum(sums, 0))
    if d_scale is not None:
        tl.store(d_scale + n, tl.sum(products, 0))


@triton.jit
def two_gates(
    w,
    centre,
    scale,
    a,
    b,
    strength,
    skips,
    y,
    N,
    C,
    K,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    w, y = w + n * C * K, y + n * C * K
    middle, s = _form(w, centre, scale, n)
    SKIP: tl.constexpr = 0 if skips is None else 1
    on = tl.load(strength)
    for c0 in range(0, C, BC):
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            A = tl.load(a + n * C + c, c < C, 0.0) + SKIP
            B = tl.load(b + n * K + k, k < K, 0.0) + 2 * SKIP
            m = A[None, :] * B[:, None] * on + (1 - on - on * SKIP)
            tl.store(y + i, (tl.load(w + i, mask, 0.0) - middle) * s * m, mask)


@triton.jit
def two_gates_backward(
    w,
    centre,
    scale,
    a,
    b,
    strength,
    skips,
    g,
    d_weight,
    d_centre,
    d_scale,
    d_a,
    d_b,
    N,
    C,
    K,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    dtype = w.dtype.element_ty
    w, g, d_weight = w + n * C * K, g + n * C * K, d_weight + n * C * K
    middle, s = _form(w, centre, scale, n)
    SKIP: tl.constexpr = 0 if skips is None else 1
    on = tl.load(strength)
    sums, products = tl.zeros([BC], dtype), tl.zeros([BC], dtype)
    for c0 in range(0, C, BC):
        slope = tl.zeros([BC], dtype)
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            A = tl.load(a + n * C + c, c < C, 0.0) + SKIP
            B = tl.load(b + n * K + k, k < K, 0.0) + 2 * SKIP
            x = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0)
            d = tl.load(g + i, mask, 0.0)
            slope += tl.sum(x * d * B[:, None], 0)
            d *= A[None, :] * B[:, None] * on + (1 - on - on * SKIP)
            sums += tl.sum(d, 0)
            products += tl.sum(d * x, 0)
            tl.store(d_weight + i, d * s, mask)
        c = c0 + tl.arange(0, BC)
        tl.store(d_a + n * C + c, slope * (s * on), c < C)
    for k0 in range(0, K, BK):
        slope = tl.zeros([BK], dtype)
        for c0 in range(0, C, BC):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            A = tl.load(a + n * C + c, c < C, 0.0) + SKIP
            x = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0)
            slope += tl.sum(x * tl.load(g + i, mask, 0.0) * A[None, :], 1)
        k = k0 + tl.arange(0, BK)
        tl.store(d_b + n * K + k, slope * (s * on), k < K)
    if d_centre is not None:
        tl.store(d_centre + n, -tl.sum(sums, 0) * s)
    if d_scale is not None:
        tl.store(d_scale + n, tl.sum(products, 0))


@triton.jit
def largest(
    w,
    centre,
    scale,
    factor,
    each,
    m,
    at,
    N,
    C,
    K,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    dtype = w.dtype.element_ty
    w += n * C * K
    middle, s = _form(w, centre, scale, n)
    best, total = tl.zeros([BC], dtype), tl.zeros([BC], dtype)
    for c0 in range(0, C, BC):
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            size = tl.where(mask, tl.abs(tl.load(w + i, mask, 0.0) - middle), 0.0)
            best = tl.maximum(best, tl.max(size, 0))
            total += tl.sum(size, 0)
    found, total = tl.max(best, 0), tl.sum(total, 0)
    tl.store(each + n, tl.where(total == total, found, total) * s)


@triton.jit
def _first_of_all(each, stride, N):
    """The largest of what each filter has, and the first filter that has it."""
    best, total = tl.zeros([256], each.dtype.element_ty), tl.zeros([256], each.dtype.element_ty)
    for n0 in range(0, N, 256):
        n = n0 + tl.arange(0, 256)
        x = tl.load(each + n * stride, n < N, 0.0)
        best = tl.maximum(best, x)
        total += x
    top, total = tl.max(best, 0), tl.sum(total, 0)
    first = tl.zeros([256], tl.int32) + N
    for n0 in range(0, N, 256):
        n = n0 + tl.arange(0, 256)
        here = tl.load(each + n * stride, n < N, -1.0) == top
        first = tl.minimum(first, tl.where(here, n, N))
    return tl.where(total == total, top, total), tl.minimum(tl.min(first, 0), N - 1)


@triton.jit
def _first_of_filter(w, middle, C, K, LAST: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr):
    """Of the largest |W − centre| of a filter the first place, as (C, K), and its sign."""
    best = tl.zeros([BC], w.dtype.element_ty)
    for c0 in range(0, C, BC):
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            size = tl.where(mask, tl.abs(tl.load(w + i, mask, 0.0) - middle), 0.0)
            best = tl.maximum(best, tl.max(size, 0))
    top = tl.max(best, 0)
    first = tl.zeros([BC], tl.int32) + C * K
    for c0 in range(0, C, BC):
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            here = mask & (tl.abs(tl.load(w + i, mask, 0.0) - middle) == top)
            place = c[None, :] * K + k[:, None]
            first = tl.minimum(first, tl.min(tl.where(here, place, C * K), 0))
    place = tl.minimum(tl.min(first, 0), C * K - 1)
    i = place
    if LAST:
        i = place % K * C + place // K
    x = tl.load(w + i) - middle
    return place, i, (x > 0).to(w.dtype.element_ty) - (x < 0).to(w.dtype.element_ty)


@triton.jit
def largest_of_all(
    w,
    centre,
    scale,
    factor,
    each,
    m,
    at,
    N,
    C,
    K,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    top, n = _first_of_all(each, 1, N)
    middle, s = _form(w, centre, scale, n)
    place, i, sign = _first_of_filter(w + n.to(tl.int64) * C * K, middle, C, K, LAST, BC, BK)
    tl.store(m, tl.load(factor) * tl.where(top < SMALLEST, SMALLEST, top))
    tl.store(at, n.to(w.dtype.element_ty))
    tl.store(at + 1, place.to(w.dtype.element_ty))
    tl.store(at + 2, tl.where(top >= SMALLEST, sign, 0.0))


@triton.jit
def _artanh(u):
    """By its series up to ⅓, which keeps the small ones' digits, and by a logarithm beyond."""
    TERMS: tl.constexpr = 9 if u.dtype == tl.float32 else 18
    square = u * u
    series = square * 0
    for n in tl.static_range(TERMS):
        series = series * square + 1 / (2 * (TERMS - 1 - n) + 1)
    return tl.where(tl.abs(u) < 1 / 3, u * series, tl.log((1 + u) / (1 - u)) / 2)


@triton.jit
def artanh(
    w,
    centre,
    scale,
    m,
    strength,
    y,
    N,
    C,
    K,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    w, y = w + n * C * K, y + n * C * K
    middle, s = _form(w, centre, scale, n)
    m, on = tl.load(m), tl.load(strength)
    for c0 in range(0, C, BC):
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            x = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0)
            tl.store(y + i, (1 - on) * (x * s) + on * (m * _artanh(x * (s / m))), mask)


@triton.jit
def artanh_backward(
    w,
    centre,
    scale,
    m,
    strength,
    factor,
    at,
    y,
    g,
    d_m,
    d_weight,
    d_centre,
    d_scale,
    part,
    N,
    C,
    K,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    dtype = w.dtype.element_ty
    w, y, g, d_weight = w + n * C * K, y + n * C * K, g + n * C * K, d_weight + n * C * K
    middle, s = _form(w, centre, scale, n)
    m, on = tl.load(m), tl.load(strength)
    sums, by_x, by_y = tl.zeros([BC], dtype), tl.zeros([BC], dtype), tl.zeros([BC], dtype)
    for c0 in range(0, C, BC):
        for k0 in range(0, K, BK):
            c, k, i, mask = _tile(c0, k0, C, K, LAST, BC, BK)
            x = tl.where(mask, tl.load(w + i, mask, 0.0) - middle, 0.0) * s
            u, d = x / m, tl.load(g + i, mask, 0.0)
            by_y += tl.sum(d * tl.load(y + i, mask, 0.0), 0)
            d *= (1 - on) + on / (1 - u * u)
            sums += tl.sum(d, 0)
            by_x += tl.sum(d * x, 0)
            tl.store(d_weight + i, d * s, mask)
    by_m = tl.sum(by_x, 0)
    if d_centre is not None:
        tl.store(d_centre + n, -tl.sum(sums, 0) * s)
    if d_scale is not None:
        tl.store(d_scale + n, by_m / s)
    tl.store(part + n, tl.sum(by_y, 0) - by_m)


@triton.jit
def artanh_backward_of_largest(
    w,
    centre,
    scale,
    m,
    strength,
    factor,
    at,
    y,
    g,
    d_m,
    d_weight,
    d_centre,
    d_scale,
    part,
    N,
    C,
    K,
    LAST: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    parts = tl.zeros([256], w.dtype.element_ty)
    for n0 in range(0, N, 256):
        f = n0 + tl.arange(0, 256)
        parts += tl.load(part + f, f < N, 0.0)
    m, sign = tl.load(m), tl.load(at + 2)
    slope = tl.load(d_m) + tl.sum(parts, 0) / m
    n, place = tl.load(at).to(tl.int64), tl.load(at + 1).to(tl.int32)
    d = tl.load(factor) * slope * sign
    i = place
    if LAST:
        i = place % K * C + place // K
    middle, s = _form(w, centre, scale, n)
    i = n * C * K + i
    tl.store(d_weight + i, tl.load(d_weight + i) + d * s)
    if d_centre is not None:
        tl.store(d_centre + n, tl.load(d_centre + n) - d * s)
    if d_scale is not None:
        tl.store(d_scale + n, tl.load(d_scale + n) + slope * m * tl.abs(sign) / s)


#: What is launched for a loop: over the filters, and then once for all of them.
LOOPS = {
    "pool_space": (pool_space,),
    "pool_space_backward": (pool_space_backward,),
    "standardized": (standardized,),
    "standardized_backward": (standardized_backward,),
    "pool_channels": (pool_channels,),
    "pool_channels_backward": (pool_channels_backward,),
    "dense": (dense,),
    "dense_backward": (dense_backward,),
    "two_gates": (two_gates,),
    "two_gates_backward": (two_gates_backward,),
    "largest": (largest, largest_of_all),
    "artanh": (artanh,),
    "artanh_backward": (artanh_backward, artanh_backward_of_largest),
}
