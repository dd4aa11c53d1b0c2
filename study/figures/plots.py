"""The plots that more than one notebook draws, in one style."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats

from study.files import root, write
from study.results.files import EMBEDDED
from study.results.statistics import PAIRS_FOR_VERDICT

if TYPE_CHECKING:
    import torch

AXES = {
    "epoch": "epoch",
    "train_accuracy": "training accuracy (%)",
    "validation_accuracy": "validation accuracy (%)",
    "test_accuracy": "test accuracy (%)",
    "train_loss": "training loss (nats)",
    "test_loss": "test loss (nats)",
}
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]


def style() -> None:
    """One look for every figure: vectors, readable in print and by colour-blind readers."""
    # Without its date a figure is the same bytes each time.
    set_matplotlib_formats("svg", metadata={"Date": None})
    sns.set_theme(
        context="paper",
        style="whitegrid",
        palette="colorblind",
        rc={
            "figure.figsize": (5.2, 3.4),
            "figure.dpi": 120,
            "svg.fonttype": "none",
            "svg.hashsalt": "wexlib",
            "axes.titlesize": "medium",
            "legend.framealpha": 0.9,
        },
    )


def learning_curves(
    curves: pd.DataFrame,
    series: Mapping[tuple[str, str], str],
    title: str,
) -> Figure:
    """Accuracy or loss against the epoch: the mean over seeds as a line, every seed as a dot.

    Args:
        curves: as ``study.results.files.Results.curves`` gives them, or ``curves_beside``: then a
            panel for each of its ``panel``.
        series: ``{(run, column): label}``, a line each.
        title: the figure's.
    """
    if "panel" in curves:
        panels = dict(list(curves.groupby("panel", sort=False)))
    else:
        panels = {"": curves}
    # Not pyplot's: a cell shows it once, when asked.
    figure = Figure(figsize=(1.4 + 3.8 * len(panels), 3.4), layout="constrained")
    columns = {column for _, column in series}
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, rows) in zip(grid, panels.items(), strict=True):
        _learning_curves(axes, rows, series)
        axes.set_xlabel(AXES["epoch"])
        axes.set_ylabel(AXES[next(iter(columns))] if len(columns) == 1 else "accuracy (%)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(name)
        axes.legend()
    figure.suptitle(title, fontsize="medium")
    return figure


def _learning_curves(axes: Axes, curves: pd.DataFrame, series: Mapping) -> None:
    for i, ((run, column), label) in enumerate(series.items()):
        rows = curves[curves["run"] == run].dropna(subset=[column])
        if rows.empty:
            continue
        mean = rows.groupby("epoch")[column].mean()
        axes.plot(mean.index, mean, color=f"C{i}", marker=MARKERS[i], markersize=4, label=label)
        if rows["seed"].nunique() > 1:
            axes.scatter(rows["epoch"], rows[column], s=6, color=f"C{i}", alpha=0.4)


def intervals(frame: pd.DataFrame, title: str) -> Figure:
    """Differences with their 95 % intervals, a line for each pair of runs.

    Args:
        frame: rows of ``study.results.claims.evaluate`` in one unit, percentage points, that ran.
        title: the figure's.
    """
    embedded = frame["data"].isin(EMBEDDED)
    decides = ~embedded & (frame["n"] >= PAIRS_FOR_VERDICT)
    kinds = {
        f"real data, n ≥ {PAIRS_FOR_VERDICT}": decides,
        f"real data, n < {PAIRS_FOR_VERDICT}": ~embedded & ~decides,
        "embedded data (no verdict)": embedded,
    }
    labels = frame["compared"] + " (" + frame["scale"] + ")"
    places = {label: -i for i, label in enumerate(dict.fromkeys(labels))}
    figure = Figure(figsize=(7.2, 1.2 + 0.21 * len(places)), layout="constrained")
    axes = figure.subplots()
    for i, (kind, chosen) in enumerate(kinds.items()):
        rows, place = frame[chosen], [places[label] for label in labels[chosen]]
        if not rows.empty:
            half = (rows["high"] - rows["low"]) / 2
            axes.errorbar(
                rows["difference"], place, xerr=half, fmt=MARKERS[i], color=f"C{i}", label=kind
            )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(list(places.values()), list(places))
    axes.set_ylim(0.7 - len(places), 0.7)
    axes.set(xlabel="difference of test accuracy (percentage points)", ylabel="runs compared")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=len(kinds))
    return figure


def magnitude_functions(names: Sequence[str], title: str, *, eps: float) -> Figure:
    """W' / M against W / M for functions of :mod:`wexlib.magnitude`, and the identity.

    The thesis's own is not multiplied by M; it is shown divided by its slope at zero, 1.661.
    """
    import torch

    from wexlib import magnitude

    u = torch.linspace(-1 / (1 + eps), 1 / (1 + eps), 201, dtype=torch.float64)
    curves = {}
    for name in names:
        if name in magnitude.UNSCALED:
            curves[f"{name} ÷ 1.661"] = magnitude.UNSCALED[name](u) * 2 * math.log10(2)
        else:
            curves[name] = magnitude.SCALED[name](u)
    return _against_identity(u, curves, title)


def learnable_functions(shapes: Mapping[str, Sequence[float]], title: str, *, eps: float) -> Figure:
    """W' / M against W / M for numbers (a, b, c) of the learnable magnitude function."""
    import torch

    from wexlib import magnitude

    u = torch.linspace(-1 / (1 + eps), 1 / (1 + eps), 201, dtype=torch.float64)
    curves = {
        label: u * magnitude.learnable(u, torch.tensor(shape, dtype=u.dtype))
        for label, shape in shapes.items()
    }
    return _against_identity(u, curves, title)


def _against_identity(u: "torch.Tensor", curves: Mapping, title: str) -> Figure:
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    styles = ["-", "--", "-.", ":"]
    for i, (label, values) in enumerate(curves.items()):
        style = styles[i % len(styles)]
        axes.plot(u, values, color=f"C{i}", linestyle=style, linewidth=1.6, label=label)
    axes.plot(u, u, color="black", linewidth=0.8, label="identity")
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    axes.set_xlabel("weight / M (no unit)")
    axes.set_ylabel("excited weight / M (no unit)")
    axes.set_title(title)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def excitation(tensors: Mapping[str, "torch.Tensor"], title: str) -> Figure:
    """A standardized weight of rank 4, the gate that excites it, and their product, as kernels.

    Args:
        tensors: as :func:`wexlib.inspect` gives them.
        title: the figure's.
    """
    panels = {
        "standardized weight W": tensors["standardized"],
        "gate σ(F(W))": tensors["multiplier"],
        "excited weight": tensors["excited"],
    }
    return kernels(panels, title)


def kernels(panels: Mapping[str, "torch.Tensor"], title: str, *, columns: int = 3) -> Figure:
    """Tensors (filter, input channel, row, column) side by side, each kernel a tile.

    The first 8 filters, downwards, and channels, across. What has negative values is shown around
    zero, all such panels on one scale; what has none, from its least to its greatest.
    """
    shown = {name: tensor.detach()[:8, :8] for name, tensor in panels.items()}
    signed = [tensor for tensor in shown.values() if tensor.min() < 0]
    bound = max((tensor.abs().max().item() for tensor in signed), default=None)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.53 * columns, 2.75 * rows + 0.15), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (name, tensor) in zip(grid, shown.items(), strict=False):
        filters, channels, height, width = tensor.shape
        negative = tensor.min() < 0
        sns.heatmap(
            tensor.permute(0, 2, 1, 3).flatten(2).flatten(0, 1).numpy(),
            ax=axes,
            cmap="vlag" if negative else "viridis",
            vmin=-bound if negative else None,
            vmax=bound if negative else None,
            square=True,
            cbar_kws={"orientation": "horizontal", "shrink": 0.8},
        )
        axes.set_xticks([width * (i + 0.5) for i in range(channels)], range(channels), rotation=0)
        axes.set_yticks([height * (i + 0.5) for i in range(filters)], range(filters), rotation=0)
        axes.set(title=name, xlabel="input channel", ylabel="filter")
        if channels == 1:
            axes.set(xticks=[], xlabel="all channels")
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    figure.suptitle(title)
    return figure


def show(figure: Figure, name: str, folder: Path | None) -> None:
    """Show a figure in a notebook, and save it as ``<folder>/<name>.svg`` where there is one."""
    from IPython.display import display

    if folder is not None:
        save(figure, folder / f"{name}.svg")
    display(figure)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, the same bytes for the same figure."""
    write(path, lambda temporary: figure.savefig(temporary, format="svg", metadata={"Date": None}))


if __name__ == "__main__":
    # The README's picture, of a layer that the playground trained.
    from wexlib import inspect, load

    style()
    model = load(root() / "models" / "demo" / "playground.safetensors")
    tensors = inspect(model.layer2[0].conv2)
    figure = excitation(tensors, "A trained layer: weight, SE's gate, product")
    save(figure, root() / "docs" / "excitation.svg")
