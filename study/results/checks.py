"""Claims of the thesis that are no matter of chance: code decides them.

Each function returns whether the claim holds, and what was found.
"""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wexlib import magnitude
from wexlib.attach import attend, excite, fold
from wexlib.attention import BAM, CBAM, SE, Attention, Triplet
from wexlib.excitation import Location, Standardize
from wexlib.magnitude import Magnitude
from wexlib.models import Mixer, resnet18, resnext29
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


def feature_attention_stays() -> tuple[bool, str]:
    """What attention adds to a forward of ResNet-18: on feature maps, and on weights, folded."""
    model = resnet18(classes=10, width=16)
    plain, added = _multiplications(model), {}
    for attention in ATTENTIONS:
        attended = attend(resnet18(classes=10, width=16), attention, where=r"^layer\d\.\d$")
        added[type(attention).__name__] = 100 * (_multiplications(attended) / plain - 1)
    folded = _multiplications(fold(excite(model, Location(SE()))))
    found = ", ".join(f"{name} +{share:.2g} %" for name, share in added.items())
    return (
        min(added.values()) > 0 and folded == plain,
        f"multiplications of a forward: on feature maps {found}; on weights, folded, as plain",
    )


@torch.no_grad()
def _multiplications(model: nn.Module) -> int:
    """Of one 32×32 image, in convolutions and products of matrices."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() // 2


def mixer_is_faster() -> tuple[bool, str]:
    """Multiplications of a forward of the thesis's networks: time without a machine."""
    models = {"MLP-Mixer": Mixer(classes=100), "ResNet-18": resnet18(classes=100)}
    models["ResNeXt-29"] = resnext29(classes=100)
    counts = {name: _multiplications(model) / 1e6 for name, model in models.items()}
    found = ", ".join(f"{name} {count:,.0f} million" for name, count in counts.items())
    return min(counts, key=counts.get) == "MLP-Mixer", f"multiplications of a 32×32 image: {found}"


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
