"""Claims of the thesis that are no matter of chance: code decides them.

Each function returns whether the claim holds, and what was found.
"""

import torch
from torch import Tensor, nn

from wexlib import magnitude
from wexlib.attach import excite, fold
from wexlib.attention import BAM, CBAM, SE, Attention, Triplet
from wexlib.excitation import Location, Standardize
from wexlib.magnitude import Magnitude
from wexlib.models import resnet18, resnext29
from wexlib.parametrization import Excitation

ATTENTIONS = (SE(), CBAM(), BAM(), Triplet())


def _weight(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _excited(excitation: Excitation, layer: nn.Module) -> nn.Module:
    return excite(layer, excitation, generator=torch.Generator().manual_seed(0))


def attention_takes_weights() -> tuple[bool, str]:
    """SE, CBAM, BAM and triplet on a 3×3 convolution's weight: a finite gate that varies."""
    weight = _weight(16, 32, 3, 3)
    taken = []
    for attention in ATTENTIONS:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            gate = Location(attention).build(weight, generator=generator)(weight) / weight
        if gate.isfinite().all() and gate.std() > 0:
            taken.append(type(attention).__name__)
    return len(taken) == len(ATTENTIONS), ", ".join(taken)


@torch.no_grad()
def excitation_folds_away() -> tuple[bool, str]:
    """ResNet-18 excited, then folded: a plain one's layers and tensors, and the excited outputs."""
    methods = [[Standardize(), Location(attention)] for attention in ATTENTIONS]
    methods += [[Location(CBAM(activation="leaky_relu"), skips=True)], [Magnitude()]]
    images = _weight(4, 3, 32, 32)
    plain = resnet18(classes=10, width=8)
    shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    kinds = [type(module) for module in plain.modules()]
    deviation, same = 0.0, True
    for method in methods:
        model = _excited(method, resnet18(classes=10, width=8)).eval()
        excited = model(images)
        fold(model)
        same &= {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
        same &= [type(module) for module in model.modules()] == kinds
        deviation = max(deviation, ((model(images) - excited).abs().max() / excited.std()).item())
    outputs = f"outputs within {deviation:.0e}" if deviation else "equal outputs"
    return same and deviation < 1e-4, f"{len(methods)} methods: the plain layers, {outputs}"


def linear_layers_have_no_channels() -> tuple[bool, str]:
    """Whether SE finds nothing to gate in a linear layer's weight."""
    layer = _excited(Location(SE()), nn.Linear(64, 32))
    gate = layer.weight / layer.parametrizations.weight.original
    gated = bool((gate.std(0) > 0).all())
    return not gated, f"SE on a 64 → 32 linear layer gates {'every' if gated else 'no'} input"


def novel_function_raises_large_weights() -> tuple[bool, str]:
    """The thesis's function against its slope at zero: the largest weights, and tenths of them."""
    u = torch.tensor([-1, -0.1, 0.1, 1], dtype=torch.float64) / 1.1
    slope = 0.5 / torch.log10(torch.tensor(2.0, dtype=torch.float64))
    low, small_low, small_high, high = (magnitude.thesis(u) / (u * slope)).tolist()
    found = (
        f"the largest positive weight × {high:.2f}, the largest negative × {low:.2f}, a tenth of "
        f"them × {small_high:.2f} and {small_low:.2f}"
    )
    return min(low, high) > 1 > max(small_low, small_high), found


def triplet_has_fewer_parameters() -> tuple[bool, str]:
    """What each adds to the thesis's ResNeXt-29."""

    def added(attention: Attention) -> int:
        with torch.device("meta"):
            model = resnext29(classes=100)
        plain = sum(p.numel() for p in model.parameters())
        return sum(p.numel() for p in excite(model, Location(attention)).parameters()) - plain

    counts = {type(a).__name__: added(a) for a in (SE(), CBAM(), Triplet())}
    found = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return counts["Triplet"] < min(counts["SE"], counts["CBAM"]), f"added to ResNeXt-29: {found}"
