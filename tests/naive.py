"""The excitations written from their formulas, one number or one kernel at a time, in float64.

Slow on purpose and independent of wexlib: plain loops, no pooling, convolution or attention code in
common. Nets come as a mapping ``name -> tensor`` with wexlib's names (``fc1.weight``, …).
"""

import itertools
import math

import torch


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


FUNCTIONS = {
    "identity": lambda x: x,
    "relu": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "silu": lambda x: x * sigmoid(x),
    "sigmoid": sigmoid,
    "tanh": lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "softplus": lambda x: torch.log(1 + torch.exp(x)),
    "softsign": lambda x: x / (1 + x.abs()),
    "shifted_softplus": lambda x: torch.log(1 + torch.exp(x)) - math.log(2),
    "lecun_tanh": lambda x: 1.7159 * FUNCTIONS["tanh"](2 * x / 3),
    "star_relu": lambda x: 0.8944 * FUNCTIONS["relu"](x) ** 2 - 0.4472,
}


def standardize(weight):
    """(W − mean) / (std + 1e-5), filter by filter; std divides by n − 1."""
    filters = []
    for filter_ in weight:
        values = filter_.reshape(-1)
        n = len(values)
        if n == 1:
            filters.append(filter_)
            continue
        mean = sum(values) / n
        centred = [v - mean for v in values]
        std = torch.sqrt(sum(c * c for c in centred) / (n - 1))
        filters.append(torch.stack([c / (std + 1e-5) for c in centred]).reshape(filter_.shape))
    return torch.stack(filters)


def linear(nets, name, z):
    """z, a list of numbers -> V·z + b, a list of numbers."""
    weight, bias = nets[f"{name}.weight"], nets[f"{name}.bias"]
    return [
        sum(v * x for v, x in zip(row, z, strict=True)) + b
        for row, b in zip(weight, bias, strict=True)
    ]


def mlp(nets, z, activation):
    hidden = [FUNCTIONS[activation](h) for h in linear(nets, "fc1", z)]
    return linear(nets, "fc2", hidden)


def convolve(nets, name, maps):
    """(C, *space) -> (C', *space): zero padding, ⌊(k − 1) / 2⌋ of it before, the rest after.

    One shifted map at a time: offset d of the kernel meets the place p + d − ⌊(k − 1) / 2⌋.
    """
    weight, bias = nets[f"{name}.weight"], nets[f"{name}.bias"]
    space, kernel = maps.shape[1:], weight.shape[2:]
    padded = maps.new_zeros(len(maps), *(s + k - 1 for s, k in zip(space, kernel, strict=True)))
    middle = [slice((k - 1) // 2, (k - 1) // 2 + s) for s, k in zip(space, kernel, strict=True)]
    padded[(slice(None), *middle)] = maps
    outputs = []
    for kernels, b in zip(weight, bias, strict=True):
        total = b.expand(space)
        for offset in itertools.product(*map(range, kernel)):
            window = [slice(d, d + s) for d, s in zip(offset, space, strict=True)]
            for c in range(len(maps)):
                total = total + kernels[(c, *offset)] * padded[(c, *window)]
        outputs.append(total)
    return torch.stack(outputs)


def means(filter_):
    return [kernel.sum() / kernel.numel() for kernel in filter_]


def maxima(filter_):
    return [max(kernel.reshape(-1)) for kernel in filter_]


def over(filter_, gates):
    """Each channel's kernel times its gate."""
    return torch.stack([kernel * g for kernel, g in zip(filter_, gates, strict=True)])


def max_mean(filter_):
    """(C, *space) -> (2, *space): maximum and mean over channels, place by place."""
    columns = filter_.reshape(len(filter_), -1).T
    return torch.stack(
        [
            torch.stack([max(column) for column in columns]),
            torch.stack([sum(column) / len(column) for column in columns]),
        ]
    ).reshape(2, *filter_.shape[1:])


def se(filter_, nets, *, activation="relu", gate="sigmoid", skips=False):
    gates = [FUNCTIONS[gate](s) for s in mlp(nets, means(filter_), activation)]
    excited = over(filter_, gates)
    return filter_ + excited if skips else excited


def _channel(filter_, nets, activation, gate):
    scores = zip(
        mlp(nets, means(filter_), activation), mlp(nets, maxima(filter_), activation), strict=True
    )
    return [FUNCTIONS[gate](a + b) for a, b in scores]


def _spatial(filter_, nets, gate, name="spatial"):
    return FUNCTIONS[gate](convolve(nets, name, max_mean(filter_)))


def cbam(filter_, nets, *, activation="relu", gate="sigmoid", skips=False, order="sequential"):
    """Step by step, as the thesis's figure 4.2 and the authors' code go."""

    def channel(x):
        gates = _channel(x, nets, activation, gate)
        return torch.stack([g.expand(x.shape[1:]) for g in gates])

    def space(x):
        return _spatial(x, nets, gate).expand(x.shape)

    first, second = (space, channel) if order == "reversed" else (channel, space)
    s1 = filter_ * first(filter_)
    w1 = filter_ + s1 if skips else s1
    s2 = w1 * second(filter_ if order == "parallel" else w1)
    return w1 + s1 + s2 if skips else s2


def bam(filter_, nets, *, activation="relu", gate="sigmoid", skips=False):
    channel = mlp(nets, means(filter_), activation)
    y = filter_
    for i in range(3):
        y = FUNCTIONS[activation](convolve(nets, f"spatial.{i}", y))
    space = convolve(nets, "spatial.3", y)[0]
    excited = torch.stack(
        [
            kernel + kernel * FUNCTIONS[gate](c + space)
            for kernel, c in zip(filter_, channel, strict=True)
        ]
    )
    return filter_ + excited if skips else excited


def triplet(filter_, nets, *, gate="sigmoid", skips=False):
    gated = [filter_ * _spatial(filter_, nets, gate)]
    for axis in range(1, filter_.dim()):
        turned = filter_.transpose(0, axis)
        gates = _spatial(turned, nets, gate, name=f"axis{axis + 1}")
        gated.append((turned * gates).transpose(0, axis))
    excited = sum(gated) / len(gated)
    return filter_ + excited if skips else excited


ATTENTIONS = {"SE": se, "CBAM": cbam, "BAM": bam, "Triplet": triplet}


def location(weight, nets, attention, **options):
    """Filter by filter; a linear layer's weight as 1×1 kernels."""
    filters = weight.reshape(*weight.shape, 1, 1) if weight.dim() == 2 else weight
    excited = torch.stack([ATTENTIONS[attention](f, nets, **options) for f in filters])
    return excited.reshape(weight.shape)


def magnitude(weight, function="artanh", eps=0.1, shape=None):
    values = list(weight.reshape(-1))
    largest = max(abs(v) for v in values)
    m = (1 + eps) * largest
    return torch.stack([_magnitude(v, m, function, shape) for v in values]).reshape(weight.shape)


def _magnitude(w, m, function, shape):
    u = w / m
    if function == "artanh":
        return m * 0.5 * torch.log((1 + u) / (1 - u))
    if function == "thesis":
        return 0.5 * u / torch.log10(1 + torch.exp(-0.3 * u))
    if function == "thesis_odd":
        sign = 1 if u > 0 else -1
        return sign * (0.5 * sign * u) / torch.log10(1 + torch.exp(-0.3 * sign * u))
    if function == "learnable":
        a, b, c = shape
        alpha, beta = (torch.exp(a) - 1) / 4, (torch.exp(b) - 1) / 8
        return m * torch.exp(c) * u * torch.exp(alpha * u**2 + beta * u**4)
    return m * FUNCTIONS[function](u)


def interpolate(values, size):
    """A list of numbers -> ``size`` numbers: linear, centres at (i + ½)·n/size − ½, ends held."""
    n, result = len(values), []
    for i in range(size):
        at = min(max((i + 0.5) * n / size - 0.5, 0), n - 1)
        low = min(int(at), n - 1)
        high = min(low + 1, n - 1)
        result.append(values[low] * (1 - (at - low)) + values[high] * (at - low))
    return result


def global_(weight, nets, *, width=64):
    filters = []
    for filter_ in weight:
        pooled = [kernel.mean() for kernel in filter_]
        if width:
            scores = mlp(nets, interpolate(pooled, width), "relu")
            gates = interpolate([sigmoid(s) for s in scores], len(pooled))
        else:
            context = [sum(pooled) / len(pooled), max(pooled)]
            gates = [sigmoid(mlp(nets, [p, *context], "relu")[0]) for p in pooled]
        filters.append(over(filter_, gates))
    return torch.stack(filters)
