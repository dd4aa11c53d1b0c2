"""What a user brings: an attention, a magnitude function, a dataset."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from study.data import sources
from study.data.datasets import prepare
from study.data.loader import load
from wexlib import Location, Magnitude, attend, excite, fold, magnitude
from wexlib.attention import Attention, like, mean_space, run
from wexlib.names import ACTIVATIONS


@dataclass(frozen=True)
class ECA(Attention):
    """Efficient channel attention (Wang et al. 2020): a convolution along the channels."""

    gate: str = "sigmoid"

    def nets(self, channels, kernel, *, groups=1, published=False):
        return {"conv": nn.Conv1d(1, 1, 3, padding="same", bias=not published)}

    def maps(self, nets, x, *, skips=False):
        scores = run(nets.conv, mean_space(x)[:, None])[:, 0]
        return (like(ACTIVATIONS[self.gate](scores), x),)


def test_an_attention_of_ones_own_on_weights_by_loops():
    weight = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    module = Location(ECA()).build(weight)
    (a, b, c), bias = module.conv.weight.flatten().tolist(), module.conv.bias.item()
    expected = weight.clone()
    for filter_ in expected:
        mean = [kernel.mean().item() for kernel in filter_]
        for i in range(6):
            left, right = (mean[i - 1] if i else 0), (mean[i + 1] if i < 5 else 0)
            score = a * left + b * mean[i] + c * right + bias
            filter_[i] /= 1 + math.exp(-score)
    assert torch.allclose(module(weight), expected, rtol=0, atol=1e-12)


def test_it_attaches_to_weights_and_to_feature_maps_and_folds():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    excite(model, Location(ECA(), start="identity"))
    attend(model, ECA(), where=r"^2$")
    images = torch.randn(2, 3, 8, 8)
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    before = model(images)
    assert torch.equal(fold(model)(images), before)
    assert type(model[0]) is nn.Conv2d


def test_a_magnitude_function_of_ones_own(monkeypatch):
    with pytest.raises(ValueError, match="unknown magnitude function 'cubic'"):
        Magnitude("cubic")
    monkeypatch.setitem(magnitude.SCALED, "cubic", lambda u: u + u**3 / 3)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    m = 1.2 * max(abs(w) for w in weight.flatten().tolist())
    expected = [m * (w / m + (w / m) ** 3 / 3) for w in weight.flatten().tolist()]
    excited = Magnitude("cubic", eps=0.2).build(weight)(weight)
    assert excited.flatten().tolist() == pytest.approx(expected, abs=1e-12)


def arrays(count: int, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(count).integers(0, 256, (count, 3, 5, 7), np.uint8)
    return images, np.arange(count) % classes


def test_a_dataset_of_ones_own(monkeypatch, tmp_path):
    source = sources.from_arrays(arrays(20), arrays(8), ["a", "b"], flip=True)
    monkeypatch.setitem(sources.DATASETS, "mine", lambda seed: source)
    prepare("mine", tmp_path / "mine", validation=4)
    data = load(tmp_path / "mine")
    assert data.meta["sizes"] == {"train": 16, "validation": 4, "test": 8}
    assert (data.classes, data.image_size, data.meta["flip"]) == (2, (5, 7), True)
    pixels = arrays(20)[0] / 255
    assert data.meta["mean"] == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-4)
    assert data.meta["sd"] == pytest.approx(pixels.std((0, 2, 3)), abs=1e-4)


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        ((arrays(4)[0] / 255, arrays(4)[1]), arrays(4), "train images are float64"),
        (arrays(4), (arrays(4)[0][:, :1], arrays(4)[1]), "of one shape for train and test"),
        (arrays(4), arrays(4, classes=3), "test labels do not fit: expected 4 whole numbers"),
        ((arrays(4)[0], arrays(3)[1]), arrays(4), "train labels do not fit"),
    ],
)
def test_arrays_of_another_kind_are_one_sentence(train, test, sentence):
    with pytest.raises(ValueError, match="expected") as error:
        sources.from_arrays(train, test, ["a", "b"])
    assert sentence in str(error.value)
