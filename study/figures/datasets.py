"""Figures of datasets: samples, classes, equal images, scenes with masks, clips."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from study.data.loader import Data

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


def samples(data: Data, title: str, *, rows: int = 6) -> Figure:
    """The first training images of each class.

    Up to 20 classes: a column for each, ``rows`` deep. More: one image of each of the first 100.
    """
    images, labels, names = data.images("train"), data.labels("train"), data.meta["class_names"]
    many = data.classes > 20
    depth, columns = (1, 10) if many else (rows, data.classes)
    places = [(c, k) for k in range(depth) for c in range(min(data.classes, 100))]
    extra = 0.17 * -(-len(places) // columns) if many else 0.0
    figure, grid = _tiles(-(-len(places) // columns), columns, title, extra=extra)
    for i, (axes, (label, k)) in enumerate(zip(grid.flat, places, strict=True)):
        found = np.flatnonzero(labels == label)
        if k < len(found):
            axes.imshow(images[found[k]].transpose(1, 2, 0), interpolation="nearest")
        if many or i < columns:
            axes.set_title(names[label].replace("_", " "), fontsize=6, pad=2)
    figure.supxlabel("one image a class" if many else "one column a class", fontsize="small")
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
        linewidths=0.5,
        square=True,
        ax=axes,
    )
    axes.set(title=title, xlabel="found in (set, split)", ylabel="images of (set, split)")
    axes.tick_params(axis="x", rotation=90)
    axes.grid(False)
    return figure


def scenes(images: np.ndarray, masks: np.ndarray, title: str) -> Figure:
    """Scenes above their masks, a colour for each digit."""
    figure, grid = _tiles(2, len(images), title, extra=0.35)
    colours = ["#f2f2f2", *sns.color_palette("colorblind", 10)]
    for column, image, mask in zip(grid.T, images, masks, strict=True):
        column[0].imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        column[1].imshow(
            mask, cmap=ListedColormap(colours), vmin=0, vmax=10, interpolation="nearest"
        )
    grid[0, 0].set_ylabel("scene")
    grid[1, 0].set_ylabel("mask")
    names = ["background", *map(str, range(10))]
    figure.legend(
        handles=[Patch(facecolor=c, label=n) for c, n in zip(colours, names, strict=True)],
        loc="outside lower center",
        ncols=11,
        handlelength=0.8,
        columnspacing=0.8,
        fontsize="x-small",
    )
    return figure


def clips(frames: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Clips (N, T, H, W) as strips, a row each, named by their labels."""
    figure, grid = _tiles(*frames.shape[:2], title)
    for row, strip, name in zip(grid, frames, names, strict=True):
        for axes, frame in zip(row, strip, strict=True):
            axes.imshow(frame, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        row[0].set_ylabel(name)
    for t, axes in enumerate(grid[-1], 1):
        axes.set_xlabel(t, fontsize="x-small")
    figure.supxlabel("frame", fontsize="small")
    return figure
