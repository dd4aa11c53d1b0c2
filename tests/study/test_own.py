"""A folder of images and a network of one's own, by parameters alone: real DVC, in a clone."""

import csv
import io
import json

import numpy as np
from clones import shell, small_clone
from PIL import Image

import wexlib

NETWORK = """
from torch import nn


def net(classes):
    stem, layer3 = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2)
    pool = nn.AdaptiveAvgPool2d(1)
    parts = {"stem": stem, "layer3": layer3, "pool": pool, "flat": nn.Flatten()}
    model = nn.Sequential()
    for name, part in (parts | {"head": nn.Linear(8, classes)}).items():
        model.add_module(name, part)
    return model
"""


def images(folder, count=20):
    """``count`` images of each of three classes, of one colour channel each."""
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 120, (24, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def test_sixty_images_and_a_network_are_a_line_of_the_experiments(tmp_path, monkeypatch):
    home, photos = small_clone(tmp_path / "home"), tmp_path / "photos"
    images(photos)
    (home / "own_net.py").write_text(NETWORK)
    shell("git add own_net.py && git commit -qm 'A network'", home)
    own = f"-S dataset={photos} -S model=own_net:net -S we.where=layer3 -S train.epochs=8"
    shell(f"dvc exp run {own} -n own playground", home)
    result = json.loads((home / "playground" / "result.json").read_text())
    assert result["data"]["role"] == "own" and result["data"]["dataset"] == str(photos)
    counts = [result["data"][split] for split in ("train", "validation", "test")]
    assert sum(counts) == 60 and min(counts) >= 6
    shown = shell("dvc exp show --csv --hide-workspace --only-changed --drop '.*/'", home)
    table = shown[shown.index("Experiment,") :]
    (line,) = [row for row in csv.DictReader(io.StringIO(table)) if row["Experiment"] == "own"]
    assert float(line["accuracy"]) == round(sum(result["test_last"]) / len(result["test_last"]), 2)
    monkeypatch.syspath_prepend(home)
    from own_net import net

    model = wexlib.load(home / "models" / "playground.safetensors", model=net(3))
    assert [row["weight"] for row in wexlib.describe(model)] == ["layer3.weight"]
