"""Every method beside its formula in naive.py; docs/methods.md lists them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import naive
import torch
from torch import Tensor, nn

from wexlib import BAM, CBAM, SE, Location, Magnitude, Standardize, Triplet
from wexlib.excitation import Global
from wexlib.parametrization import Excitation, chain

#: (weight's shape, groups)
SHAPES = {
    "3×3": ((2, 32, 3, 3), 1),
    "1×1": ((2, 32, 1, 1), 1),
    "7×7 stem": ((2, 3, 7, 7), 1),
    "grouped by 8": ((8, 4, 3, 3), 8),
    "depthwise": ((4, 1, 3, 3), 4),
    "linear": ((2, 20), 1),
    "1-D": ((2, 17, 3), 1),
    "3-D": ((2, 3, 3, 3, 3), 1),
    "1×3": ((2, 5, 1, 3), 1),
    "2×4": ((2, 5, 2, 4), 1),
}


def weight_of(shape: str) -> tuple[Tensor, int]:
    size, groups = SHAPES[shape]
    generator = torch.Generator().manual_seed(sum(map(ord, shape)))
    return torch.randn(size, generator=generator, dtype=torch.float64) * 0.3 + 0.1, groups


# --- References ----------------------------------------------------------------------------------

Reference = Callable[[nn.Module, Tensor], Tensor]


def nets_of(module: nn.Module) -> dict[str, Tensor]:
    return {k.removeprefix("location."): p for k, p in module.named_parameters()}


def location(excitation: Location) -> Reference:
    attention = excitation.attention
    options = {
        field: getattr(attention, field)
        for field in ("activation", "gate", "order")
        if hasattr(attention, field)
    }
    name = type(attention).__name__

    def reference(module: nn.Module, w: Tensor) -> Tensor:
        return naive.location(w, nets_of(module), name, skips=excitation.skips, **options)

    return reference


def standardized(reference: Reference) -> Reference:
    return lambda module, w: reference(module, naive.standardize(w))


def magnitude(function: str, eps: float = 0.1) -> Reference:
    def reference(module: nn.Module, w: Tensor) -> Tensor:
        return naive.magnitude(w, function, eps, shape=getattr(module, "shape", None))

    return reference


def stacked(inner: Reference) -> Reference:
    """SE whose fc1 and fc2 are excited as 1×1 layers."""

    def reference(module: nn.Module, w: Tensor) -> Tensor:
        nets = {"fc1.bias": module.fc1.bias, "fc2.bias": module.fc2.bias}
        for name in ("fc1", "fc2"):
            parametrized = getattr(module, name).parametrizations.weight
            original = naive.standardize(parametrized.original)
            nets[f"{name}.weight"] = inner(parametrized[0], original)
        return naive.location(w, nets, "SE")

    return reference


def free(module: nn.Module, w: Tensor) -> Tensor:
    return w * module.free.reshape(*w.shape[:2], *[1] * (w.dim() - 2))


def mean(module: nn.Module, w: Tensor) -> Tensor:
    filters = w.reshape(*w.shape, 1, 1) if w.dim() == 2 else w
    nets = nets_of(module)
    gates = [naive.sigmoid(s) for f in filters for s in naive.mlp(nets, naive.means(f), "relu")]
    return w * (sum(gates) / len(gates))


# --- Methods -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """``place``: where the formula stands; "code" is the authors', followed where the text errs."""

    place: str
    excitation: Excitation
    reference: Reference


def _located(place: str, attention, **options) -> Method:
    excitation = Location(attention, **options)
    return Method(place, excitation, location(excitation))


WS_SE, WS_OURS = Location(SE()), Location(CBAM("leaky_relu"), skips=True)
ELEVEN = (
    "sigmoid softsign tanh softplus relu shifted_softplus gelu lecun_tanh leaky_relu star_relu silu"
).split()
PAIRS = (
    "silu relu",
    "relu tanh",
    "relu silu",
    "silu silu",
    "leaky_relu tanh",
    "silu sigmoid",
    "leaky_relu sigmoid",
)
METHODS: dict[str, Method] = {
    "standardize": Method(
        "Qiao et al. 2019; code", Standardize(), lambda module, w: naive.standardize(w)
    ),
    "location, SE": _located("Quader et al. 2020; thesis 3.1.1, eq. 3.1", SE()),
    "location, SE with a skip": _located("code; thesis 4.1.4", SE(), skips=True),
    **{
        f"location, SE, {pair.replace(' ', ' and ')}": _located("thesis 6.5", SE(*pair.split()))
        for pair in PAIRS
    },
    "location, CBAM": _located("thesis 3.1.2, eq. 3.2 to 3.4", CBAM()),
    "location, CBAM reversed": _located("thesis 3.1.2", CBAM(order="reversed")),
    "location, CBAM parallel": _located("thesis 3.1.2", CBAM(order="parallel")),
    "location, CBAM with skips, leaky ReLU": _located(
        "the thesis's novel module, 4.1; code", CBAM("leaky_relu"), skips=True
    ),
    "location, BAM": _located("Park et al. 2018; thesis 3.1.3, eq. 3.5, 3.6", BAM()),
    "location, BAM with a skip": _located("ours", BAM(), skips=True),
    "location, triplet": _located("Misra et al. 2021; thesis 3.1.3", Triplet()),
    "location, triplet with a skip": _located("ours", Triplet(), skips=True),
    "standardize + location, SE": Method(
        "code", chain([Standardize(), WS_SE]), standardized(location(WS_SE))
    ),
    "standardize + the novel module": Method(
        "code", chain([Standardize(), WS_OURS]), standardized(location(WS_OURS))
    ),
    "magnitude, artanh": Method(
        "Quader et al. 2020; thesis 3.5, eq. 3.8", Magnitude(), magnitude("artanh")
    ),
    "magnitude, artanh, ε 0.2": Method(
        "thesis 3.5; code", Magnitude(eps=0.2), magnitude("artanh", 0.2)
    ),
    "magnitude, thesis": Method(
        "thesis 3.3.2, eq. 3.7; code", Magnitude("thesis"), magnitude("thesis")
    ),
    "magnitude, thesis_odd": Method("ours", Magnitude("thesis_odd"), magnitude("thesis_odd")),
    **{
        f"magnitude, {name}": Method("thesis 3.3.1", Magnitude(name), magnitude(name))
        for name in ELEVEN
    },
    "magnitude, learnable": Method(
        "ours; thesis 8", Magnitude("learnable"), magnitude("learnable")
    ),
    "standardize + SE + magnitude": Method(
        "code, unused",
        chain([Standardize(), WS_SE, Magnitude()]),
        lambda module, w: naive.magnitude(location(WS_SE)(module, naive.standardize(w))),
    ),
    "global, averaged": Method(
        "thesis 4.2; code", Global(), lambda module, w: naive.global_(w, nets_of(module))
    ),
    "global, each channel": Method(
        "thesis 4.2; ours",
        Global(width=None),
        lambda module, w: naive.global_(w, nets_of(module), width=None),
    ),
    "stacked, location": Method(
        "thesis 8; code",
        Location(SE(), stacked=[Standardize(), WS_SE]),
        stacked(location(WS_SE)),
    ),
    "stacked, magnitude": Method(
        "thesis 8; code",
        Location(SE(), stacked=[Standardize(), Magnitude()]),
        stacked(magnitude("artanh")),
    ),
    "control, free gate": Method("ours", Location(SE(), control="free"), free),
    "control, mean gate": Method("ours", Location(SE(), control="mean"), mean),
}


def deviation(method: Method, weight: Tensor, groups: int = 1) -> tuple[float, float]:
    """Greatest deviation from the loop, forward and over all gradients, over the largest entry.

    The loop is in float64, whatever the weight is in.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = method.excitation.build(weight, groups)
        for parameter in module.parameters():
            if not parameter.any():  # at zero, many a formula would do
                nn.init.normal_(parameter)
    x = weight.clone().requires_grad_()
    exact, exact_x = copy.deepcopy(module).double(), weight.double().requires_grad_()
    inputs = [x, *(p for p in module.parameters() if p.requires_grad)]
    exact_inputs = [exact_x, *(p for p in exact.parameters() if p.requires_grad)]
    out, expected = module(x), method.reference(exact, exact_x)
    # A gate of relu may be zero everywhere.
    forward = ((out - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()
    direction = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).sin().view_as(out)
    gradients = torch.autograd.grad((out * direction).sum(), inputs)
    references = torch.autograd.grad((expected * direction).sum(), exact_inputs)
    backward = max(
        ((gradient - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3)).item()
        for gradient, wanted in zip(gradients, references, strict=True)
    )
    return forward, backward
