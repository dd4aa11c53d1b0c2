"""SE, CBAM, BAM and triplet attention on any (N, C, *space) tensor.

On a feature map N is the batch and C the channel; on a weight N is the output filter and C the
input channel. That is all the difference between attention and location-based weight excitation,
so both call the code below: an attention is a small frozen recipe, the nets it asks for are the
direct children of the module that owns them, and ``multiplier(nets, x)`` gives what x is
multiplied with.

Two forms of the nets differ (``published``):

* On weights (the default) every net is biased and none is normalized: the batch axis is the filter
  there, so batch statistics would tie a layer's filters together, and its running statistics would
  move with every look at the weight. The spatial kernel is the layer's own.
* On feature maps they are as published: 7×7 (CBAM, triplet) or dilated 3×3 (BAM) convolutions
  without bias, followed by batch norm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wexlib.activations import ACTIVATIONS, RANGES
from wexlib.names import choose
from wexlib.ops.affine import Affine
from wexlib.ops.passes import recorded

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
ORDERS = ("sequential", "reversed", "parallel")
#: Numbers of a map, all channels, up to which a convolution of its size is a product of matrices,
#: and those of a filter up to which a convolution of one place is.
LARGEST_MAP, LARGEST_FILTER = 128, 2048


# --- Nets ----------------------------------------------------------------------------------------


def _conv(
    inputs: int, outputs: int, kernel: Sequence[int], *, dilation: int = 1, bias: bool = True
):
    kind = CONVOLUTIONS[len(kernel)]
    return kind(inputs, outputs, tuple(kernel), padding="same", dilation=dilation, bias=bias)


def _spatial(kernel: Sequence[int], published: bool) -> nn.Module:
    """The map over space from [max; mean]: a biased convolution 2→1, or one with batch norm."""
    if not published:
        return _conv(2, 1, kernel)
    norm = BATCH_NORMS[len(kernel)](1, momentum=0.01)
    return nn.Sequential(_conv(2, 1, kernel, bias=False), norm)


def run(net: nn.Module, x: Tensor) -> Tensor:
    """``net(x)`` with the net's parameters in x's dtype, so that half weights compute in float32.

    Even kernels are padded here, as torch's "same" does it, which warns that it copies.
    """
    if isinstance(net, nn.Sequential):
        for part in net:
            x = run(part, x)
        return x
    if isinstance(net, nn.modules.batchnorm._BatchNorm):
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
    return CONVOLVE[len(total)](x, weight, bias, padding=padding, dilation=net.dilation)


def _as_matrix(net: nn.Module, x: Tensor, kernel: Sequence[int]) -> bool:
    """Whether ``net`` is one of ours with that kernel, and x (N, C, *space) has maps so small that
    the convolution is better done as a product of matrices.

    Torch's takes two to ten times as long there, most of it to prepare.
    """
    return (
        type(net) in CONVOLUTIONS.values()
        and net.kernel_size == tuple(kernel)
        and set(net.dilation) == {1}
        and net.bias is not None
        and x.device.type == "cpu"
        and not recorded()
    )


def _multiply(net: nn.Module, rows: Tensor, sliding: int | None = None) -> Tensor:
    """(M, what is looked at) -> (M, places · outputs): see :func:`_meetings`."""
    meets = torch.from_numpy(_meetings(net.in_channels, net.kernel_size, sliding)).to(rows.dtype)
    weight, bias = net.weight.to(rows.dtype), net.bias.to(rows.dtype)
    matrix = torch.mm(meets, weight.flatten(1).t()).view(rows.shape[1], -1)
    bias = bias if len(bias) == 1 else bias.repeat(matrix.shape[1] // len(bias))
    return torch.addmm(bias, rows, matrix)


def run_whole(net: nn.Module, x: Tensor) -> Tensor:
    """``run`` of a net whose kernel is one place, or as large as the maps x (N, C, *space)."""
    space = x.shape[2:]
    if x.shape[1:].numel() <= LARGEST_FILTER and _as_matrix(net, x, [1] * len(space)):
        weight, bias = net.weight.to(x.dtype).flatten(1), net.bias.to(x.dtype)
        return F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
    if _as_matrix(net, x, space):
        if max(net.in_channels, net.out_channels) * space.numel() <= LARGEST_MAP:
            return _multiply(net, x.flatten(1)).view(len(x), *space, -1).movedim(-1, 1)
    return run(net, x)


def run_along(net: nn.Module, x: Tensor, axis: int) -> Tensor:
    """A net 2→1 over [max; mean] of x (N, C, *space) over ``axis``, which then stands in for C.

    Its map has C places along that axis and is as large as the kernel along the others. The result
    has one place along ``axis``.
    """
    space = x.shape[2:]
    if 2 * space.numel() > LARGEST_MAP or not _as_matrix(net, x, space):
        return run(net, _max_mean(x.transpose(1, axis))).transpose(1, axis)
    rows = torch.cat([y.reshape(*x.shape[:2], -1) for y in (_maximum(x, axis), x.mean(axis))], 2)
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


def _over_space(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


def _maximum(x: Tensor, axis: int, keepdim: bool = False) -> Tensor:
    """The maximum over an axis; of equal ones the first gets the gradient, as published."""
    if x.requires_grad and torch.is_grad_enabled():
        return x.max(axis, keepdim).values
    return x.amax(axis, keepdim)  # on a CPU the faster one, but for its gradient


def mean_space(x: Tensor | Affine) -> Tensor:
    """(N, C, *space) -> (N, C)."""
    if isinstance(x, Affine):
        return x.mean_space()
    return x.flatten(1) if x[0, 0].numel() == 1 else x.mean(_over_space(x))


def mean_max_space(x: Tensor | Affine) -> Tensor:
    """(N, C, *space) -> (2N, C): the mean, and below it the maximum."""
    if isinstance(x, Affine):
        return x.mean_max_space()
    return torch.cat([mean_space(x), _maximum(x.flatten(2), 2)])


def _times(x: Tensor | Affine, gate: Tensor) -> Tensor:
    return x.times(gate) if isinstance(x, Affine) else x * gate


def _max_mean(x: Tensor) -> Tensor:
    """(N, C, *space) -> (N, 2, *space): the maximum over axis 1, then its mean."""
    return torch.cat([_maximum(x, 1, True), x.mean(1, keepdim=True)], 1)


def like(gate: Tensor, x: Tensor | Affine) -> Tensor:
    """(N, C) -> (N, C, 1, …)."""
    return gate.reshape(*gate.shape, *[1] * (len(x.shape) - 2))


# --- Recipes -------------------------------------------------------------------------------------


class Attention:
    """What the four recipes have in common.

    ``nets(channels, kernel, groups)`` makes the nets for an axis 1 of ``channels``; the hidden
    width is max(⌊channels·groups / reduction⌋, 1): in a grouped convolution it comes from all of
    the layer's input channels, as in the authors' code.

    ``maps(nets, x)`` are the gated maps, ``combine(maps)`` the one multiplier made of them, and
    ``multiplier(nets, x)`` both: it broadcasts to x. ``nets`` is an object that holds them as
    attributes. ``skips`` adds x itself: the multiplier grows by one, but CBAM has its own form.
    """

    #: Side of the published spatial kernel, on feature maps.
    side = 1
    #: Number of gated maps that the multiplier is made of, equal ones counted once.
    places = 1
    #: Whether x is looked at through its pooled values and kernel by kernel only, and so need not
    #: be computed first: then x may be an :class:`wexlib.ops.affine.Affine`.
    pools = False

    def __post_init__(self):
        for field in ("activation", "gate"):
            if hasattr(self, field):
                choose(getattr(self, field), ACTIVATIONS, field)
        reduction = getattr(self, "reduction", 1)
        if isinstance(reduction, bool) or not isinstance(reduction, int) or reduction < 1:
            raise ValueError(f"reduction is {reduction!r}: expected a whole number, 1 or more")

    def nets(
        self, channels: int, kernel: Sequence[int], *, groups: int = 1, published: bool = False
    ) -> dict[str, nn.Module]:
        raise NotImplementedError

    def maps(self, nets: nn.Module, x: Tensor, *, skips: bool = False) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def combine(self, maps: tuple[Tensor, ...], *, skips: bool = False) -> Tensor:
        (gate,) = maps
        return 1 + gate if skips else gate

    def multiplier(self, nets: nn.Module, x: Tensor, *, skips: bool = False) -> Tensor:
        """What x is multiplied with; it broadcasts to x's (N, C, *space)."""
        return self.combine(self.maps(nets, x, skips=skips), skips=skips)

    def attend(
        self, nets: nn.Module, x: Affine, strength: Tensor, *, skips: bool = False
    ) -> Tensor:
        """x ⊙ multiplier for ``strength`` 1, x for 0, between them a blend."""
        seen = x if self.pools else x.dense()
        return x.blend(self.multiplier(nets, seen, skips=skips), strength)

    def resting(self, *, skips: bool = False) -> float:
        """The multiplier where every net gives zero."""
        gate = ACTIVATIONS[self.gate](torch.zeros((), dtype=torch.float64, device="cpu"))
        return self.combine((gate,) * self.places, skips=skips).item()

    def range(self) -> tuple[float, float] | None:
        """The ends of the gate function, or None where it is unbounded."""
        return RANGES.get(self.gate)

    def _hidden(self, channels: int, groups: int) -> int:
        return max(channels * groups // self.reduction, 1)

    def _mlp_nets(self, channels: int, groups: int) -> dict[str, nn.Module]:
        hidden = self._hidden(channels, groups)
        return {"fc1": nn.Linear(channels, hidden), "fc2": nn.Linear(hidden, channels)}

    def _mlp(self, nets: nn.Module, pooled: Tensor, times: int = 1) -> Tensor:
        """(times·N, C) -> (N, C): V2·activation(V1·z + b1) + b2, summed over the ``times``."""
        hidden = ACTIVATIONS[self.activation](run(nets.fc1, pooled))
        if times == 1:
            return run(nets.fc2, hidden)
        if not isinstance(nets.fc2, nn.Linear) or nets.fc2.bias is None:
            return run(nets.fc2, hidden).unflatten(0, (times, -1)).sum(0)
        # Summed where it is small, as V2 is linear.
        hidden = hidden.unflatten(0, (times, -1)).sum(0)
        weight, bias = (p.to(hidden.dtype) for p in (nets.fc2.weight, nets.fc2.bias))
        return F.linear(hidden, weight, times * bias)


@dataclass(frozen=True)
class SE(Attention):
    """Squeeze and excitation (Hu et al. 2018; on weights Quader et al. 2020, thesis 3.1.1).

        gate = σ(V2·relu(V1·mean_space(x) + b1) + b2)        (N, C, 1, …)

    ``fc1`` is V1, b1: C → h; ``fc2`` is V2, b2: h → C. Parameters: 2·C·h + h + C. Both are biased
    in both forms. At the start of its nets the gate is near ½.

    Args:
        activation: the hidden function, by torch's functional name.
        gate: the outer function, likewise.
        reduction: hidden width is max(⌊all input channels / reduction⌋, 1).

    Raises:
        ValueError: an unknown function, or a reduction below 1.
    """

    activation: str = "relu"
    gate: str = "sigmoid"
    reduction: int = 16

    @property
    def pools(self) -> bool:
        return type(self) is SE

    def nets(self, channels, kernel, *, groups=1, published=False):
        return self._mlp_nets(channels, groups)

    def maps(self, nets, x, *, skips=False):
        return (like(ACTIVATIONS[self.gate](self._mlp(nets, mean_space(x))), x),)


@dataclass(frozen=True)
class CBAM(Attention):
    """Convolutional block attention (Woo et al. 2018; on weights thesis 3.1.2, 3.2, 4.1).

        Ac = σ(MLP(mean_space x) + MLP(max_space x))          (N, C, 1, …)
        x1 = x ⊙ Ac
        As = σ(spatial([max_channel x1; mean_channel x1]))    (N, 1, *space)
        x' = x1 ⊙ As                                          multiplier Ac·As

    With skips, the thesis's novel module: S1 = x ⊙ Ac, x1 = x + S1, S2 = x1 ⊙ As and
    x' = x1 + S1 + S2, that is, the multiplier 1 + 2Ac + (1 + Ac)·As, between 1 and 5. The thesis's
    text does not give this arithmetic; it is that of the authors' code, which adds S1 twice.

    ``fc1``, ``fc2``: as SE. ``spatial``: 2 → 1, max first, mean second. On weights its kernel is
    the layer's own and it is biased (the authors' code; equation 4.4 says 7×7), so 2·k² + 1
    parameters more than SE; on feature maps 7×7 without bias, then batch norm, as published.

    Args:
        activation, gate, reduction: as SE; the thesis's own module has ``leaky_relu``.
        order: where the two maps look. ``sequential``: channel first, space from x1;
            ``reversed``: space first, channel from x ⊙ As; ``parallel``: both from x. The rest of
            the arithmetic stays, with the parts of Ac and As exchanged in ``reversed``.
    """

    activation: str = "relu"
    gate: str = "sigmoid"
    reduction: int = 16
    order: str = "sequential"

    side = 7
    places = 2

    @property
    def pools(self) -> bool:
        return type(self) is CBAM and self.order == "sequential"

    def __post_init__(self):
        super().__post_init__()
        choose(self.order, ORDERS, "order")

    def nets(self, channels, kernel, *, groups=1, published=False):
        return self._mlp_nets(channels, groups) | {"spatial": _spatial(kernel, published)}

    def _channel(self, nets: nn.Module, x: Tensor | Affine) -> Tensor:
        """(N, C)."""
        if x.shape[2:].numel() == 1:
            scores = 2 * self._mlp(nets, mean_space(x))  # one place: its mean is its maximum
        else:
            scores = self._mlp(nets, mean_max_space(x), times=2)
        return ACTIVATIONS[self.gate](scores)

    def _space(self, nets: nn.Module, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.gate](run(nets.spatial, _max_mean(x)))

    def maps(self, nets, x, *, skips=False):
        """The first map and the second, in the order in which they are applied."""

        def first(nets: nn.Module, x: Tensor | Affine) -> Tensor:
            return like(self._channel(nets, x), x)

        second = self._space
        if self.order == "reversed":
            first, second = second, first
        a = first(nets, x)
        if self.order == "parallel":
            return a, second(nets, x)
        return a, second(nets, _times(x, 1 + a if skips else a))

    def attend(self, nets, x, strength, *, skips=False):
        if not self.pools:
            return super().attend(nets, x, strength, skips=skips)
        a = self._channel(nets, x)
        pooled = x.pool_channels(1 + a if skips else a)
        b = ACTIVATIONS[self.gate](run_whole(nets.spatial, pooled))
        return x.two_gates(a, b, strength, skips=skips)

    def combine(self, maps, *, skips=False):
        a, b = maps
        return torch.addcmul(1 + 2 * a, 1 + a, b) if skips else a * b


@dataclass(frozen=True)
class BAM(Attention):
    """Bottleneck attention (Park et al. 2018; on weights thesis 3.1.2, equations 3.5 and 3.6).

        c = V2·relu(V1·mean_space(x) + b1) + b2                               (N, C, 1, …)
        s = f3(relu(f2(relu(f1(relu(f0(x)))))))                               (N, 1, *space)
        x' = x + x ⊙ σ(c + s), that is, the multiplier 1 + σ(c + s)

    f0: 1×1, C → h; f1 and f2: k×k, h → h; f3: 1×1, h → 1; h as in SE. ``fc1``, ``fc2``: as SE;
    ``spatial``: f0 … f3. The paper and the thesis add c and s; the authors' published code
    multiplies them, and has its batch norms inside the branches: this is the paper's reading. On
    weights k is the layer's own kernel, not dilated, which on a 3×3 map would reach padding only;
    on feature maps it is 3 with dilation 4, and each branch ends in a batch norm. At the start the
    multiplier is near 1.5. With skips it is 2 + σ(c + s).

    Parameters: SE's and C·h + h + 2·(h²·k² + h) + h + 1, on weights.

    Args:
        activation, gate, reduction: as SE.
    """

    activation: str = "relu"
    gate: str = "sigmoid"
    reduction: int = 16

    side = 3

    def nets(self, channels, kernel, *, groups=1, published=False):
        hidden = self._hidden(channels, groups)
        one, dilation = [1] * len(kernel), 4 if published else 1
        nets = self._mlp_nets(channels, groups)
        project = _conv(hidden, 1, one)
        if published:
            nets["fc2"] = nn.Sequential(nets["fc2"], nn.BatchNorm1d(channels))
            project = nn.Sequential(project, BATCH_NORMS[len(kernel)](1))
        nets["spatial"] = nn.Sequential(
            _conv(channels, hidden, one),
            _conv(hidden, hidden, kernel, dilation=dilation),
            _conv(hidden, hidden, kernel, dilation=dilation),
            project,
        )
        return nets

    def maps(self, nets, x, *, skips=False):
        activation = ACTIVATIONS[self.activation]
        *hidden, project = nets.spatial
        y = x
        for net in hidden:
            y = activation(run_whole(net, y))
        channel = like(self._mlp(nets, mean_space(x)), x)
        return (ACTIVATIONS[self.gate](channel + run_whole(project, y)),)

    def combine(self, maps, *, skips=False):
        (gate,) = maps
        return 2 + gate if skips else 1 + gate


@dataclass(frozen=True)
class Triplet(Attention):
    """Triplet attention, "rotate to attend" (Misra et al. 2021; on weights thesis 3.1.3).

    One branch for each axis j of space and one for space itself. Branch j exchanges axis j with
    axis 1, and so pools over j; the last pools over axis 1:

        A_j = σ(net_j([max_1 x_j; mean_1 x_j])), exchanged back; multiplier = mean of all A

    On a (N, C, H, W) tensor that is ⅓(A_H + A_W + A_space), with shapes (N, C, 1, W), (N, C, H, 1)
    and (N, 1, H, W). Nets: ``axis2``, ``axis3``, … and ``spatial``, one convolution 2 → 1 each. On
    weights biased, with the layer's own kernel: (rank + 1)·(2·k^rank + 1) parameters; on feature
    maps 7×7 without bias, then batch norm of momentum 0.01, as published.

    Args:
        gate: the outer function, by torch's functional name.
    """

    gate: str = "sigmoid"

    side = 7

    def nets(self, channels, kernel, *, groups=1, published=False):
        names = [f"axis{j}" for j in range(2, 2 + len(kernel))]
        return {name: _spatial(kernel, published) for name in [*names, "spatial"]}

    def maps(self, nets, x, *, skips=False):
        gate = ACTIVATIONS[self.gate]
        rotated = [gate(run_along(getattr(nets, f"axis{j}"), x, j)) for j in _over_space(x)]
        return *rotated, gate(run_whole(nets.spatial, _max_mean(x)))

    def combine(self, maps, *, skips=False):
        mean = sum(maps) / len(maps)
        return 1 + mean if skips else mean


ATTENTIONS: dict[str, type[Attention]] = {"se": SE, "cbam": CBAM, "bam": BAM, "triplet": Triplet}


class FeatureAttention(nn.Module):
    """Attention on feature maps, in its published form: x ⊙ multiplier(x), of x's shape.

    Args:
        attention: the recipe; its nets become direct children (``fc1``, ``fc2``, ``spatial``).
        channels: C of the (N, C, *space) input.
        rank: number of axes of space, 1 to 3.
    """

    def __init__(self, attention: Attention, channels: int, *, rank: int = 2):
        super().__init__()
        if not isinstance(attention, Attention):
            raise TypeError(f"attention is {attention!r}: expected a recipe such as SE() or CBAM()")
        if rank not in CONVOLUTIONS:
            raise ValueError(f"rank is {rank!r}: expected 1, 2 or 3 axes of space")
        self.attention = attention
        for name, net in attention.nets(channels, [attention.side] * rank, published=True).items():
            self.add_module(name, net)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention.multiplier(self, x)

    def extra_repr(self) -> str:
        return repr(self.attention)
