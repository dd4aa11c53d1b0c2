"""SE, CBAM, BAM and triplet attention on any (N, C, *space) tensor.

On a feature map N is the batch and C the channel; on a weight N is the output filter and C the
input channel. That is all the difference between attention and location-based weight excitation,
so both call the code below: an attention is a small frozen dataclass, the nets it asks for are the
direct children of the module that owns them, and ``multiplier(nets, x)`` gives what x is
multiplied with. ``run(net, x)`` is ``net(x)``, and of the pooled values each has the obvious
meaning; how both are computed fast on a weight is the matter of :mod:`wexlib.ops`.

Two forms of the nets differ (``published``):

* On weights (the default) every net is biased and none is normalized: the batch axis is the filter
  there, so batch statistics would tie a layer's filters together, and its running statistics would
  move with every look at the weight. The spatial kernel is the layer's own.
* On feature maps they are as published: 7×7 (CBAM, triplet) or dilated 3×3 (BAM) convolutions
  without bias, followed by batch norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wexlib.names import ACTIVATIONS, RANGES, choose, compare, note, spell
from wexlib.ops.deferred import DeferredWeight, max_mean_channels, mean_max_space, mean_space
from wexlib.ops.formulas import like
from wexlib.ops.nets import mlp, run, run_along

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
ORDERS = ("sequential", "reversed", "parallel")


def _conv(
    inputs: int, outputs: int, kernel: Sequence[int], *, dilation: int = 1, bias: bool = True
) -> nn.Module:
    kind = CONVOLUTIONS[len(kernel)]
    return kind(inputs, outputs, tuple(kernel), padding="same", dilation=dilation, bias=bias)


def _spatial(kernel: Sequence[int], published: bool) -> nn.Module:
    """The map over space from [max; mean]: a biased convolution 2→1, or one with batch norm."""
    if not published:
        return _conv(2, 1, kernel)
    norm = BATCH_NORMS[len(kernel)](1, momentum=0.01)
    return nn.Sequential(_conv(2, 1, kernel, bias=False), norm)


class Attention:
    """What the four have in common.

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
    #: Whether ``maps`` looks at x by :mod:`wexlib.ops` alone, kernel by kernel: x may then be a
    #: :class:`wexlib.ops.deferred.DeferredWeight`, which is computed once, with its multiplier.
    deferred = False

    def __init_subclass__(cls):
        # Whoever writes a formula anew declares anew what it can.
        if {"maps", "combine"} & vars(cls).keys() and "deferred" not in vars(cls):
            cls.deferred = False

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

    def multiplier(
        self, nets: nn.Module, x: Tensor | DeferredWeight, *, skips: bool = False
    ) -> Tensor:
        """What x is multiplied with; it broadcasts to x's (N, C, *space)."""
        return self.combine(self.maps(nets, x, skips=skips), skips=skips)

    def excite(
        self, nets: nn.Module, x: DeferredWeight, strength: Tensor, *, skips: bool = False
    ) -> Tensor:
        """x ⊙ multiplier for ``strength`` 1, x for 0, between them a blend."""
        seen = x if self.deferred else x.dense()
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

    deferred = True

    def nets(self, channels, kernel, *, groups=1, published=False):
        return self._mlp_nets(channels, groups)

    def maps(self, nets, x, *, skips=False):
        activation, gate = ACTIVATIONS[self.activation], ACTIVATIONS[self.gate]
        hidden = activation(run(nets.fc1, mean_space(x)))
        return (like(gate(run(nets.fc2, hidden)), x),)


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
    def deferred(self) -> bool:
        return self.order == "sequential"

    def __post_init__(self):
        super().__post_init__()
        choose(self.order, ORDERS, "order")

    def nets(self, channels, kernel, *, groups=1, published=False):
        return self._mlp_nets(channels, groups) | {"spatial": _spatial(kernel, published)}

    def maps(self, nets, x, *, skips=False):
        """The first map and the second, in the order in which they are applied."""
        activation, gate = ACTIVATIONS[self.activation], ACTIVATIONS[self.gate]

        def channel(x):
            if x.shape[2:].numel() == 1:  # one place: its mean is its maximum
                return like(gate(2 * mlp(nets, activation, mean_space(x))), x)
            return like(gate(mlp(nets, activation, mean_max_space(x), times=2)), x)

        def space(x, first=None):
            return gate(run(nets.spatial, max_mean_channels(x, first)))

        if self.order == "parallel":
            return channel(x), space(x)
        if self.order == "reversed":
            first = space(x)
            return first, channel(x * (1 + first if skips else first))
        first = channel(x)
        return first, space(x, 1 + first if skips else first)

    def excite(self, nets, x, strength, *, skips=False):
        if not self.deferred:
            return super().excite(nets, x, strength, skips=skips)
        return x.two_gates(*self.maps(nets, x, skips=skips), strength, skips=skips)

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
        activation, gate = ACTIVATIONS[self.activation], ACTIVATIONS[self.gate]
        *hidden, project = nets.spatial
        space = x
        for net in hidden:
            space = activation(run(net, space))
        channel = mlp(nets, activation, mean_space(x))
        return (gate(like(channel, x) + run(project, space)),)

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
        axes = range(2, x.dim())
        rotated = [gate(run_along(getattr(nets, f"axis{j}"), x, j)) for j in axes]
        return *rotated, gate(run(nets.spatial, max_mean_channels(x)))

    def combine(self, maps, *, skips=False):
        mean = sum(maps) / len(maps)
        return 1 + mean if skips else mean


ATTENTIONS: dict[str, type[Attention]] = {"se": SE, "cbam": CBAM, "bam": BAM, "triplet": Triplet}


class FeatureAttention(nn.Module):
    """Attention on feature maps, in its published form: x ⊙ multiplier(x), of x's shape.

    Args:
        attention: its nets become direct children (``fc1``, ``fc2``, ``spatial``).
        channels: C of the (N, C, *space) input.
        rank: number of axes of space, 1 to 3.
    """

    def __init__(self, attention: Attention, channels: int, *, rank: int = 2):
        super().__init__()
        if not isinstance(attention, Attention):
            raise TypeError(f"attention is {attention!r}: expected one such as SE() or CBAM()")
        if rank not in CONVOLUTIONS:
            raise ValueError(f"rank is {rank!r}: expected 1, 2 or 3 axes of space")
        self.attention = attention
        for name, net in attention.nets(channels, [attention.side] * rank, published=True).items():
            self.add_module(name, net)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            # Recorded by torch.fx as one call, as torch's own layers are.
            name = x.tracer.path_of_module(self)
            return x.tracer.create_proxy("call_module", name, (x,), {})
        return x * self.attention.multiplier(self, x)

    def __prepare_scriptable__(self):
        # torch.jit.script asks every module for it, before it compiles any.
        raise RuntimeError(
            "torch.jit.script cannot compile attention on feature maps: use torch.jit.trace or "
            "torch.export"
        )

    def extra_repr(self) -> str:
        return repr(self.attention)

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note(destination, prefix, "attention", spell(self.attention))

    def _load_from_state_dict(self, state, prefix, metadata, strict, missing, unexpected, errors):
        if any(key.startswith(prefix) for key in state):
            compare(metadata, "attention", spell(self.attention), prefix[:-1], missing, errors)
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
