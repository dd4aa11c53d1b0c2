"""The excitations as one would first write them from the formulas, for comparison.

One eager operation after the other, as in the authors' layers, and computed anew at every look at
the weight; formulas as in :mod:`wexlib.excitation`. Convolutions' weights (rank 4) only.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize


def standardized(weight: Tensor) -> Tensor:
    centred = weight - weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
    return centred / (centred.flatten(1).std(1) + 1e-5).view(-1, 1, 1, 1)


class Standardize(nn.Module):
    def __init__(self, weight: Tensor, groups: int):
        super().__init__()

    def forward(self, weight: Tensor) -> Tensor:
        return standardized(weight)


class SE(nn.Module):
    """W ⊙ σ(V2·relu(V1·avgpool(W) + b1) + b2), with or without standardization before it."""

    def __init__(self, weight: Tensor, groups: int, standardize: bool = True):
        super().__init__()
        channels = weight.shape[1]
        hidden = max(channels * groups // 16, 1)
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.standardize = standardize

    def forward(self, weight: Tensor) -> Tensor:
        if self.standardize:
            weight = standardized(weight)
        pooled = F.avg_pool2d(weight, weight.shape[2:])
        return weight * torch.sigmoid(self.fc2(F.relu(self.fc1(pooled))))


class PlainSE(SE):
    def __init__(self, weight: Tensor, groups: int):
        super().__init__(weight, groups, standardize=False)


class NovelCBAM(SE):
    """CBAM with leaky ReLU and skips: S1 = W⊙Ac, W1 = W + S1, S2 = W1⊙As, W1 + S1 + S2."""

    def __init__(self, weight: Tensor, groups: int):
        super().__init__(weight, groups)
        kernel = tuple(weight.shape[2:])
        self.spatial = nn.Conv2d(2, 1, kernel, padding=tuple(k // 2 for k in kernel))

    def forward(self, weight: Tensor) -> Tensor:
        weight = standardized(weight)
        scores = [
            self.fc2(F.leaky_relu(self.fc1(pool(weight, weight.shape[2:]))))
            for pool in (F.avg_pool2d, F.max_pool2d)
        ]
        s1 = weight * torch.sigmoid(scores[0] + scores[1])
        w1 = weight + s1
        pooled = torch.cat([w1.max(1, keepdim=True)[0], w1.mean(1, keepdim=True)], 1)
        s2 = w1 * torch.sigmoid(self.spatial(pooled))
        return w1 + s1 + s2


class Magnitude(nn.Module):
    """M·½·ln((1 + W/M) / (1 − W/M)), M = 1.1·max|W|, after standardization."""

    def __init__(self, weight: Tensor, groups: int):
        super().__init__()

    def forward(self, weight: Tensor) -> Tensor:
        weight = standardized(weight)
        m = 1.1 * torch.max(weight.max(), -weight.min())
        return m * 0.5 * torch.log((1 + weight / m) / (1 - weight / m))


def excite(model: nn.Module, layer: type[nn.Module]) -> nn.Module:
    """``layer`` on every convolution of ``model``, in place."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for module in convolutions:
        excitation = layer(module.weight, module.groups).to(module.weight)
        parametrize.register_parametrization(module, "weight", excitation, unsafe=True)
    return model
