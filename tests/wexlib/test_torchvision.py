"""excite on torchvision's models, a family each: forward, backward, fold."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models

from wexlib import CBAM, SE, Location, Magnitude, Standardize, excite, fold

CONVOLUTIONS = [Standardize(), Location(CBAM("leaky_relu"), skips=True)]
TRANSFORMER = [Location(SE()), Magnitude()]
LINEAR = (nn.Linear, nn.MultiheadAttention)
#: name -> (input's size after the batch, excitation, where)
MODELS = {
    "resnet18": ((3, 64, 64), CONVOLUTIONS, None),
    "resnext50_32x4d": ((3, 64, 64), CONVOLUTIONS, None),
    "mobilenet_v3_small": ((3, 64, 64), CONVOLUTIONS, None),
    "efficientnet_b0": ((3, 64, 64), CONVOLUTIONS, None),
    "convnext_tiny": ((3, 64, 64), CONVOLUTIONS, None),
    "densenet121": ((3, 64, 64), CONVOLUTIONS, None),
    "vit_b_32": ((3, 224, 224), TRANSFORMER, LINEAR),
    "swin_t": ((3, 64, 64), TRANSFORMER, LINEAR),
    "fcn_resnet50": ((3, 64, 64), CONVOLUTIONS, None),
    "r3d_18": ((3, 4, 32, 32), CONVOLUTIONS, None),
}


def scores(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = model(x)
    return out["out"] if isinstance(out, dict) else out


@pytest.mark.parametrize("name", MODELS)
def test_forward_backward_and_fold(name):
    size, excitation, where = MODELS[name]
    torch.manual_seed(0)
    kind = models.get_model_builder(name)
    backbone = {"weights_backbone": None} if name.startswith("fcn") else {}
    model = kind(weights=None, num_classes=7, **backbone)
    if name.startswith("vit"):
        nn.init.normal_(model.heads.head.weight)  # zeros else, and so every score
    plain = copy.deepcopy(model)
    x = torch.randn(2, *size)

    excite(model, excitation, where=where)
    scores(model, x).square().mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    added = {k: p for k, p in model.named_parameters() if "parametrizations" in k}
    assert added and all(p.grad is not None for p in added.values())

    model.eval()
    with torch.no_grad():
        excited = scores(model, x)
        assert not torch.equal(excited, scores(plain.eval(), x))
        fold(model)
        assert torch.equal(scores(model, x), excited)
        plain.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(scores(plain, x), excited)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
