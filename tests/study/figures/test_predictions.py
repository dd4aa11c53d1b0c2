"""Figures of what networks make of test examples."""

import pytest
import torch

import wexlib
from study.data.datasets import prepare
from study.figures import predictions as module
from wexlib import SE, Location, models

SIZES = {"train": 8, "validation": 0, "test": 5}


@pytest.mark.parametrize(
    ("dataset", "model", "names"),
    [
        ("scenes", "fcn", ["masks_true", "masks_predicted"]),
        ("moving-digits", "resnet18_3d", ["clips"]),
    ],
)
def test_predictions_stand_beside_the_truth(tmp_path, monkeypatch, dataset, model, names):
    monkeypatch.setattr(module, "root", lambda: tmp_path)
    prepare(dataset, tmp_path / "data" / "demo" / "role", **SIZES)
    classes = 11 if dataset == "scenes" else 4
    torch.manual_seed(0)
    network = wexlib.excite(models.build(model, classes=classes, width=8), Location(SE())).eval()
    file = tmp_path / "models" / "demo" / "run.safetensors"
    file.parent.mkdir(parents=True)
    options = {"classes": classes, "image_size": [48, 48], "options": {"width": 8}}
    wexlib.save(file, network, model=model, **options)
    figures = dict(module.predictions("demo", "role", "run", count=3))
    assert list(figures) == names
    if dataset == "moving-digits":
        data = module.load(tmp_path / "data" / "demo" / "role")
        inputs, targets = next(iter(module.loader(data, "test", batch_size=3)))
        found = network(inputs).argmax(1)
        named = [data.meta["class_names"][i] for i in (*targets, *found)]
        rows = [axes.get_ylabel() for axes in figures["clips"].axes if axes.get_ylabel()]
        assert rows == [f"{named[i]}, taken for {named[3 + i]}" for i in range(3)]


def test_without_the_network_it_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "root", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        next(module.predictions("demo", "role", "run"))
