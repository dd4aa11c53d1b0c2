"""A small network, images for it, and what it is excited with."""

import torch
from torch import nn

from wexlib import CBAM, SE, Location, Magnitude, Standardize
from wexlib.models import build

OURS = [Standardize(), Location(CBAM("leaky_relu"), skips=True), Magnitude()]
SE_WS = [Standardize(), Location(SE())]


def resnet(**options) -> nn.Module:
    return build("resnet18", classes=10, width=4, **options).eval()


def images(n=2) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))
