"""Dynamic convolutions, which the thesis's section 2 compares with and torch has not.

Their weight depends on the image; that of weight excitation on the weight alone. Pruning is in
torch.nn.utils.prune; weight and spectral normalization are in torch.nn.utils.parametrizations.
"""

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize


class _Kernels(nn.Module):
    """K parallel kernels of one convolution, mixed anew for each image.

    ``weight`` (K, O, I/g, kh, kw) and ``bias`` (K, O) or None start as K of torch's convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        kernels: int,
        temperature: float,
    ):
        super().__init__()
        if kernels < 1:
            raise ValueError(f"kernels is {kernels}: expected 1 or more")
        side = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, side
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        bound = 1 / math.sqrt(in_channels // groups * math.prod(side))
        weight = torch.empty(kernels, out_channels, in_channels // groups, *side)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound))
        biases = torch.empty(kernels, out_channels).uniform_(-bound, bound) if bias else None
        self.bias = None if biases is None else nn.Parameter(biases)
        # In the state_dict: a loaded model attends as it did when it was saved.
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    @classmethod
    def in_place_of(cls, conv: nn.Conv2d, **options) -> "_Kernels":
        """A layer of the shape of ``conv``: the first kernel is its weight, the others are drawn
        with its standard deviation; each has its bias."""
        if conv.padding_mode != "zeros":
            raise ValueError(f"padding_mode is {conv.padding_mode!r}: only 'zeros' can be dynamic")
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
        shape = {name: getattr(conv, name) for name in (*names, "groups")}
        layer = cls(**shape, bias=conv.bias is not None, **options).to(conv.weight)
        with torch.no_grad():
            layer.weight.copy_(torch.randn_like(layer.weight) * conv.weight.std())
            layer.weight[0] = conv.weight
            if conv.bias is not None:
                layer.bias.copy_(conv.bias.expand_as(layer.bias))
        return layer.train(conv.training)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve image n of (N, I, H, W) with ``weight[n]`` of (N, O, I/g, kh, kw), or all of
        them with the one weight of (1, …); ``bias`` likewise (N, O) or (1, O).

        One grouped convolution: images become groups.
        """
        n = len(weight)
        y = F.conv2d(
            x.reshape(-1, n * self.in_channels, *x.shape[2:]),
            weight.flatten(0, 1),
            None if bias is None else bias.flatten(),
            self.stride,
            self.padding,
            self.dilation,
            n * self.groups,
        )
        return y.reshape(len(x), self.out_channels, *y.shape[2:])

    def extra_repr(self) -> str:
        shape = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        return f"{shape}, stride={self.stride}, groups={self.groups}, kernels={len(self.weight)}"


class DynamicConv2d(_Kernels):
    """Dynamic convolution: attention over K kernels (Chen et al. 2020, equations 2 and 3).

    ::

        π = softmax((V2·relu(V1·mean(x) + b1) + b2) / τ)    (N, K)
        y = (Σ_k π_k W_k) * x + Σ_k π_k b_k

    with the mean over space and hidden width h = max(⌊I / reduction⌋, 1). The temperature τ starts
    high, so that at first all kernels learn: see :func:`anneal`. The paper does not say whether the
    linear layers have biases; here they have. They start as torch starts them.

    Adds (K − 1)·|W|, the same for the bias, and I·h + h + h·K + K parameters.

    Args:
        kernels: K, 4 in the paper.
        reduction: of the hidden width, 4 in the paper.
        temperature: τ at the start, 30 in the paper.
        the others: as ``nn.Conv2d``.
    """

    def __init__(
        self, *args, kernels: int = 4, reduction: int = 4, temperature: float = 30.0, **kwargs
    ):
        super().__init__(*args, kernels=kernels, temperature=temperature, **kwargs)
        hidden = max(self.in_channels // reduction, 1)
        self.fc1 = nn.Linear(self.in_channels, hidden)
        self.fc2 = nn.Linear(hidden, kernels)

    def attention(self, x: Tensor) -> Tensor:
        """π, (N, K)."""
        scores = self.fc2(F.relu(self.fc1(x.mean((2, 3)))))
        return (scores / self.temperature).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        pi = self.attention(x)
        weight = torch.einsum("nk,koihw->noihw", pi, self.weight)
        return self.convolve(x, weight, None if self.bias is None else pi @ self.bias)


class ODConv2d(_Kernels):
    """Omni-dimensional dynamic convolution (Li et al. 2022, equation 2).

    ::

        z  = relu(bn(V·mean(x)))                              (N, h), h = max(⌊I / reduction⌋, 16)
        αs = σ((Vs·z + bs) / τ)   a kernel's positions         (N, kh·kw)
        αc = σ((Vc·z + bc) / τ)   input channels               (N, I)
        αf = σ((Vf·z + bf) / τ)   filters                      (N, O)
        αw = softmax((Vw·z + bw) / τ)   kernels                (N, K)
        y  = (Σ_k αw_k αf αc αs W_k) * x + Σ_k αw_k b_k

    As in the authors' code, where the paper's prose leaves it open: the K kernels share αs, αc and
    αf; αs is 1 where the kernel is 1×1, αf where each channel is convolved alone, αw where K = 1;
    V has no bias, but a batch norm after it (training needs two images); linear weights start from
    N(0, 2 / outputs), their biases from 0, so every gate from about ½. The bias is not in the
    paper, whose convolutions have none.

    Args:
        kernels: K; the paper has 1 and 4.
        reduction: of the hidden width, 16 in the paper.
        temperature: τ at the start, 30 in the authors' code, for every K.
        the others: as ``nn.Conv2d``.
    """

    def __init__(
        self, *args, kernels: int = 4, reduction: int = 16, temperature: float = 30.0, **kwargs
    ):
        super().__init__(*args, kernels=kernels, temperature=temperature, **kwargs)
        hidden, positions = max(self.in_channels // reduction, 16), math.prod(self.kernel_size)
        depthwise = self.groups == self.in_channels == self.out_channels
        self.squeeze = nn.Linear(self.in_channels, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.channel = nn.Linear(hidden, self.in_channels)
        self.filter = None if depthwise else nn.Linear(hidden, self.out_channels)
        self.spatial = None if positions == 1 else nn.Linear(hidden, positions)
        self.kernel = None if kernels == 1 else nn.Linear(hidden, kernels)
        for layer in (self.squeeze, self.channel, self.filter, self.spatial, self.kernel):
            if layer is not None:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.norm(self.squeeze(x.mean((2, 3)))))

        def gate(layer: nn.Linear) -> Tensor:
            return torch.sigmoid(layer(z) / self.temperature)

        weight, bias = self.weight, self.bias
        if self.kernel is not None:
            mix = (self.kernel(z) / self.temperature).softmax(1)
            weight = torch.einsum("nk,koihw->noihw", mix, weight)
            bias = None if bias is None else mix @ bias
        if self.spatial is not None:
            weight = weight * gate(self.spatial).view(-1, 1, 1, *self.kernel_size)
        # Gates of channels and filters cost less on the images than on a weight for each image.
        y = self.convolve(x * gate(self.channel)[:, :, None, None], weight, None)
        if self.filter is not None:
            y = y * gate(self.filter)[:, :, None, None]
        return y if bias is None else y + bias[:, :, None, None]


def replace(
    model: nn.Module,
    layer: type[DynamicConv2d] | type[ODConv2d],
    *,
    where: str | Callable[[str, nn.Conv2d], bool] | None = None,
    **options,
) -> nn.Module:
    """Put dynamic convolutions in the place of a model's ``nn.Conv2d``, in place; returns it.

    The first kernel is the replaced weight; what else is new is drawn from torch's global
    generator, in the order of the layers.

    Args:
        model: the model.
        layer: :class:`DynamicConv2d` or :class:`ODConv2d`.
        where: a regular expression searched in the layer's qualified name, or a predicate of name
            and layer. Unless given: every convolution but the first, as in both papers.
        options: ``kernels``, ``reduction``, ``temperature`` of the layer.

    Raises:
        ValueError: nothing matches, or a match is parametrized or pads with other than zeros.
    """
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    if where is None:
        chosen = list(convs)[1:]
    elif callable(where):
        chosen = [name for name, conv in convs.items() if where(name, conv)]
    else:
        chosen = [name for name in convs if re.search(where, name)]
    if not chosen:
        raise ValueError(
            f"nothing to replace: where={where!r} matches none of the model's {len(convs)} "
            "convolutions"
        )
    for name in chosen:
        if parametrize.is_parametrized(convs[name]):
            raise ValueError(
                f"{name} is parametrized: replace convolutions before exciting, or fold"
            )
    for name in chosen:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.in_place_of(convs[name], **options))
    return model


def anneal(model: nn.Module, epoch: float, *, start: float = 30.0, epochs: int = 10) -> float:
    """Set the temperature τ of all dynamic convolutions for ``epoch``, from 0, and return it.

    Linear from ``start`` to 1 over the first ``epochs``, then 1, as in both papers. A fraction of
    an epoch anneals within it.
    """
    tau = max(1.0, start - (start - 1) * epoch / epochs)
    for module in model.modules():
        if isinstance(module, _Kernels):
            module.temperature.fill_(tau)
    return tau
