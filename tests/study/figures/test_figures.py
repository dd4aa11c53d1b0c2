"""Every figure has its title, labels with units and a legend, and shows what it was given."""

import numpy as np
import pandas as pd
import pytest

from study.data import digits
from study.data.loader import Data
from study.figures import datasets as dataset_figures
from study.figures import plots as figures


def curves(panels=("demo: digits10", "cpu: cifar10")) -> pd.DataFrame:
    rows = [
        {"run": run, "seed": s, "epoch": e, "test_accuracy": 10.0 * e + s, "panel": panel}
        for panel in panels
        for run in ("a", "b")
        for s in range(2)
        for e in (1, 2, 3)
    ]
    return pd.DataFrame(rows)


def test_learning_curves_have_a_panel_a_scale_and_a_line_a_run():
    series = {("a", "test_accuracy"): "A", ("b", "test_accuracy"): "B"}
    figure = figures.learning_curves(curves(), series, "Title")
    assert figure.get_suptitle() == "Title"
    assert [axes.get_title() for axes in figure.axes] == ["demo: digits10", "cpu: cifar10"]
    for axes in figure.axes:
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "test accuracy (%)")
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["A", "B"]
        assert list(axes.lines[0].get_ydata()) == [10.5, 20.5, 30.5]
        assert len(axes.collections[0].get_offsets()) == 6  # every seed is a dot
    one = figures.learning_curves(curves().drop(columns="panel"), series, "Title")
    assert len(one.axes) == 1


def test_intervals_tell_what_decides():
    frame = pd.DataFrame(
        {
            "compared": ["a − b", "c − d", "e − f"],
            "scale": ["gpu", "cpu", "demo"],
            "data": ["cifar100", "cifar100", "digits100"],
            "n": [5, 3, 1],
            "difference": [1.0, 2.0, 3.0],
            "low": [0.5, 1.0, np.nan],
            "high": [1.5, 3.0, np.nan],
        }
    )
    figure = figures.intervals(frame, "Title")
    (axes,) = figure.axes
    assert axes.get_title() == "Title" and "points" in axes.get_xlabel()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["real data, n ≥ 5", "real data, n < 5", "embedded data (no verdict)"]
    assert [tick.get_text() for tick in axes.get_yticklabels()][0] == "a − b (gpu)"


@pytest.mark.parametrize(("classes", "axes"), [(10, 60), (100, 100)])
def test_samples_show_images_of_the_class_that_stands_above(classes, axes):
    images = np.repeat(np.arange(classes), 6).astype(np.uint8)[:, None, None, None]
    meta = {"classes": classes, "class_names": [f"c{i}" for i in range(classes)]}
    data = Data(meta, {"train": (images.repeat(3, 1), np.repeat(np.arange(classes), 6))})
    figure = dataset_figures.samples(data, "Title")
    assert figure.get_suptitle() == "Title" and len(figure.axes) == axes
    for place in figure.axes[:10]:
        assert place.get_title() == f"c{place.images[0].get_array()[0, 0, 0]}"


def test_figures_of_scenes_and_clips_show_all_of_them():
    names = ["background", *map(str, range(10))]
    images, masks = digits.scenes("train", 3)
    masks[0, 0] = 255
    figure = dataset_figures.scenes(images[:, None].repeat(3, 1), masks, names, "Title")
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    present = sorted({int(label) for label in np.unique(masks)} - {255})
    assert len(figure.axes) == 6 and shown == [names[label] for label in present] + ["ignored"]
    clips = digits.moving_digits("train", 2, frames=4)[0][:, None].repeat(3, 1)
    figure = dataset_figures.clips(clips, ["left", "up"], "Title")
    assert [axes.get_ylabel() for axes in figure.axes[::4]] == ["left", "up"]
    assert all(axes.images for axes in figure.axes)


@pytest.mark.parametrize(("task", "axes"), [("segmentation", 4), ("video", 3 * 2)])
def test_pictures_suit_the_task(task, axes):
    images, targets = (
        (np.zeros((2, 3, 8, 8), np.uint8), np.zeros((2, 8, 8), np.uint8))
        if task == "segmentation"
        else (np.zeros((3, 3, 2, 8, 8), np.uint8), np.array([2, 0, 1]))
    )
    meta = {"task": task, "class_names": ["a", "b", "c"], "classes": 3}
    figure = dataset_figures.pictures(Data(meta, {"train": (images, targets)}), "Title")
    assert len(figure.axes) == axes
    if task == "video":
        assert [place.get_ylabel() for place in figure.axes[::2]] == ["c", "a", "b"]
