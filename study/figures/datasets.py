"""Figures of datasets: samples, scenes with masks, clips, classes, equal images."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from study.data.loader import IGNORED, Data, examples

#: Side of a tile in inches.
TILE = 0.62


def _tiles(rows: int, columns: int, title: str, *, extra: float = 0.0) -> tuple[Figure, np.ndarray]:
    """A grid of axes without ticks."""
    size = (TILE * columns + 0.3, TILE * rows + 0.7 + extra)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
    figure.suptitle(title, fontsize="medium")
    return figure, grid


def pictures(data: Data, title: str) -> Figure:
    """Training images, those with masks and clips each in a figure that suits them."""
    if data.task == "classification":
        return samples(data, title)
    if data.task == "segmentation":
        places = range(min(10, data.count("train")))
        return scenes(*examples(data, "train", places), data.meta["class_names"], title)
    labels, names = data.labels("train"), data.meta["class_names"]
    places = np.sort(np.unique(labels, return_index=True)[1][:8])
    frames, _ = examples(data, "train", places)
    return clips(frames, [names[label] for label in labels[places]], title)


def _picture(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")


def samples(data: Data, title: str, *, rows: int = 6) -> Figure:
    """The first training images of each class.

    Up to 20 classes: a column for each, ``rows`` deep. More: one image of each of the first 100.
    """
    labels, names = data.labels("train"), data.meta["class_names"]
    many = data.classes > 20
    depth, columns = (1, 10) if many else (rows, data.classes)
    shown = [(c, k) for k in range(depth) for c in range(min(data.classes, 100))]
    extra = 0.17 * -(-len(shown) // columns) if many else 0.0
    figure, grid = _tiles(-(-len(shown) // columns), columns, title, extra=extra)
    found = {c: np.flatnonzero(labels == c)[:depth] for c in range(min(data.classes, 100))}
    for i, (axes, (label, k)) in enumerate(zip(grid.flat, shown, strict=False)):
        if k < len(found[label]):
            _picture(axes, examples(data, "train", found[label][k : k + 1])[0][0])
        if many or i < columns:
            name = names[label].replace("_", " ")
            axes.set_title(name if len(name) <= 14 else f"{name[:13]}…", fontsize=6, pad=2)
    figure.supxlabel("one image a class" if many else "one column a class", fontsize="small")
    return figure


def scenes(images: np.ndarray, masks: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Images (N, C, H, W) above their masks (N, H, W), a colour for each class that is shown."""
    figure, grid = _tiles(2, len(images), title, extra=0.35)
    present = [label for label in np.unique(masks) if label not in (0, IGNORED)]
    palette = sns.color_palette("colorblind" if len(present) <= 10 else "husl", len(present))
    colours = {0: to_rgb("#f2f2f2"), IGNORED: to_rgb("black")}
    colours |= dict(zip(present, palette, strict=True))
    for column, image, mask in zip(grid.T, images, masks, strict=True):
        _picture(column[0], image)
        painted = np.zeros((*mask.shape, 3))
        for label in np.unique(mask):
            painted[mask == label] = colours[label]
        column[1].imshow(painted, interpolation="nearest")
    grid[0, 0].set_ylabel("image")
    grid[1, 0].set_ylabel("mask")
    labels = {c: names[c] for c in (0, *present)}
    if (masks == IGNORED).any():
        labels[IGNORED] = "ignored"
    letters = 5 + max(map(len, labels.values()))
    figure.legend(
        handles=[Patch(facecolor=colours[c], label=name) for c, name in labels.items()],
        loc="outside lower center",
        ncols=max(1, int(16 * figure.get_figwidth() / letters)),
        handlelength=0.8,
        columnspacing=0.8,
        fontsize="x-small",
    )
    return figure


def clips(frames: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Clips (N, C, T, H, W) as strips, a row each, named by their labels."""
    figure, grid = _tiles(len(frames), frames.shape[2], title)
    for row, clip, name in zip(grid, frames, names, strict=True):
        for axes, frame in zip(row, clip.swapaxes(0, 1), strict=True):
            _picture(axes, frame)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize="x-small")
    for t, axes in enumerate(grid[-1], 1):
        axes.set_xlabel(t, fontsize="x-small")
    figure.supxlabel("frame", fontsize="small")
    return figure


def class_counts(frame: pd.DataFrame, title: str) -> Figure:
    """Images per class, for each set and split of :func:`study.data.audit.class_counts`."""
    sets = list(dict.fromkeys(frame["set"]))
    figure = Figure(figsize=(7.2, 1.5 * len(sets) + 0.8), layout="constrained")
    splits = list(dict.fromkeys(frame["split"]))
    for name, axes in zip(sets, figure.subplots(len(sets), 1, squeeze=False).flat, strict=True):
        rows = frame[frame["set"] == name]
        for i, split in enumerate(splits):
            part = rows[rows["split"] == split]
            axes.step(
                part["class"], part["images"], where="mid", color=f"C{i}", label=split, lw=1.4
            )
        axes.set(title=name, xlabel="class (number)", ylabel="images")
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(splits))
    figure.suptitle(title, fontsize="medium")
    return figure


def equal_images(frame: pd.DataFrame, title: str) -> Figure:
    """The counts of :func:`study.data.audit.equal_images`, none left out."""
    size = 1.9 + 0.44 * len(frame)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    sns.heatmap(
        frame,
        annot=True,
        fmt="d",
        annot_kws={"size": 6},
        cmap="crest",
        cbar=False,
        mask=frame.to_numpy() == 0,
        vmin=0,
        vmax=max(1, frame.to_numpy().max(initial=0)),
        linewidths=0.5,
        square=True,
        ax=axes,
    )
    axes.set(title=title, xlabel="found in (set, split)", ylabel="images of (set, split)")
    axes.tick_params(axis="x", rotation=90)
    axes.grid(False)
    return figure
