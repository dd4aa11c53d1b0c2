"""An attention's nets, run fast: on a weight's small maps most of a convolution is its preparation.

A net is any module; those that this module knows are done as products of matrices where that pays.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wexlib.ops.deferred import max_mean_channels
from wexlib.ops.formulas import maximum
from wexlib.ops.loops import recorded

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
#: Numbers of a map, all channels, up to which a convolution of its size is a product of matrices,
#: and those of a filter up to which a convolution of one place is.
LARGEST_MAP, LARGEST_FILTER = 128, 2048


def run(net: nn.Module, x: Tensor) -> Tensor:
    """``net(x)``, with parameters in x's dtype, so that half weights compute in float32."""
    if isinstance(net, nn.Sequential):
        for part in net:
            x = run(part, x)
        return x
    space = x.shape[2:]
    if x.dim() > 2 and _ours(net, x):
        one = set(net.kernel_size) == {1}
        if one and x.shape[1:].numel() <= LARGEST_FILTER:
            weight, bias = net.weight.to(x.dtype).flatten(1), net.bias.to(x.dtype)
            return F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
        places = max(net.in_channels, net.out_channels) * space.numel()
        if net.kernel_size == space and places <= LARGEST_MAP:
            return _multiply(net, x.flatten(1)).view(len(x), *space, -1).movedim(-1, 1)
    return _by_torch(net, x)


def _by_torch(net: nn.Module, x: Tensor) -> Tensor:
    """Even kernels are padded here, as torch's "same" does it, which warns that it copies."""
    same = isinstance(net, CONVOLUTIONS) and (net.padding, net.padding_mode) == ("same", "zeros")
    if not (same or isinstance(net, nn.Linear)):
        return net(x)
    weight = net.weight.to(x.dtype)
    bias = None if net.bias is None else net.bias.to(x.dtype)
    if isinstance(net, nn.Linear):
        return F.linear(x, weight, bias)
    total = [d * (k - 1) for d, k in zip(net.dilation, net.kernel_size, strict=True)]
    padding = [t // 2 for t in total]
    if any(t % 2 for t in total):
        x = F.pad(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
        padding = [0] * len(total)
    return CONVOLVE[len(total)](
        x, weight, bias, padding=padding, dilation=net.dilation, groups=net.groups
    )


def _ours(net: nn.Module, x: Tensor) -> bool:
    """Whether ``net`` is a plain, biased convolution of padding "same", and x plain, on a CPU.

    Torch's convolution takes two to ten times as long there, most of it to prepare.
    """
    return (
        type(net) in CONVOLUTIONS
        and (net.padding, net.padding_mode) == ("same", "zeros")
        and set(net.dilation) == {1}
        and net.groups == 1
        and net.bias is not None
        and x.device.type == "cpu"
        and type(x) in (Tensor, nn.Parameter)
        and not recorded()
    )


def _multiply(net: nn.Module, rows: Tensor, sliding: int | None = None) -> Tensor:
    """(M, what is looked at) -> (M, places · outputs): see :func:`_meetings`."""
    meets = torch.from_numpy(_meetings(net.in_channels, net.kernel_size, sliding)).to(rows.dtype)
    weight, bias = net.weight.to(rows.dtype), net.bias.to(rows.dtype)
    matrix = torch.mm(meets, weight.flatten(1).t()).view(rows.shape[1], -1)
    bias = bias if len(bias) == 1 else bias.repeat(matrix.shape[1] // len(bias))
    return torch.addmm(bias, rows, matrix)


def run_along(net: nn.Module, x: Tensor, axis: int) -> Tensor:
    """A net 2→1 over [max; mean] of x (N, C, *space) over ``axis``, which then stands in for C.

    Its map has C places along that axis and is as large as the kernel along the others. The result
    has one place along ``axis``.
    """
    space = x.shape[2:]
    if 2 * space.numel() > LARGEST_MAP or not (_ours(net, x) and net.kernel_size == space):
        return run(net, max_mean_channels(x.transpose(1, axis))).transpose(1, axis)
    rows = torch.cat([y.reshape(*x.shape[:2], -1) for y in (maximum(x, axis), x.mean(axis))], 2)
    size = x.shape[axis]
    if size > 1:
        padded = F.pad(rows, (0, 0, (size - 1) // 2, size // 2))
        rows = torch.cat([padded[:, i : i + x.shape[1]] for i in range(size)], 2)
    out = _multiply(net, rows.flatten(0, 1), axis - 2)
    shape = list(x.shape)
    shape[axis] = 1
    return out.view(shape)


@lru_cache
def _meetings(channels: int, kernel: tuple[int, ...], sliding: int | None) -> np.ndarray:
    """Of ones and zeros: by which of the flat weight's numbers, second index, what is looked at
    counts in what comes out, both together the first index.

    Inputs and outputs are the places of a map of the kernel's size, padded as "same"; inputs once
    for each channel. Along the axis ``sliding`` the map is longer: then the output is one place
    there, the inputs all that the kernel reaches from it, and these are the outermost.
    """
    sides = np.array(kernel)[:, None, None]
    places = np.indices(kernel).reshape(len(kernel), -1)
    ends = places
    if sliding is not None:
        places = places[:, np.argsort(places[sliding], kind="stable")]
        ends = places[:, places[sliding] == (kernel[sliding] - 1) // 2]
    shift = places[:, :, None] - ends[:, None] + (sides - 1) // 2
    inside = ((shift >= 0) & (shift < sides)).all(0)
    flat = np.ravel_multi_index(np.where(inside, shift, 0), kernel)
    size = math.prod(kernel)
    meets = np.zeros((channels, *inside.shape, channels, size), np.float32)
    inputs, outputs = np.nonzero(inside)
    for channel in range(channels):
        meets[channel, inputs, outputs, channel, flat[inside]] = 1
    if sliding is not None:
        # Beside each other for each of the places along the axis: (these, channels, the rest).
        meets = meets.reshape(channels, kernel[sliding], -1, *meets.shape[2:]).swapaxes(0, 1)
    return meets.reshape(-1, channels * size)


def mlp(nets: nn.Module, activation: Callable, pooled: Tensor, times: int = 1) -> Tensor:
    """(times·N, C) -> (N, C): fc2(activation(fc1(pooled))), summed over the ``times``."""
    hidden = activation(run(nets.fc1, pooled))
    if times == 1:
        return run(nets.fc2, hidden)
    if not isinstance(nets.fc2, nn.Linear) or nets.fc2.bias is None:
        return run(nets.fc2, hidden).unflatten(0, (times, -1)).sum(0)
    # Summed where it is small, as fc2 is linear.
    hidden = hidden.unflatten(0, (times, -1)).sum(0)
    weight, bias = (p.to(hidden.dtype) for p in (nets.fc2.weight, nets.fc2.bias))
    return F.linear(hidden, weight, times * bias)
