"""The plots that more than one notebook draws, in one style."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats

from wexlib.files import write

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
    set_matplotlib_formats("svg")
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
            "legend.frameon": False,
        },
    )


def learning_curves(
    curves: pd.DataFrame,
    series: Mapping[tuple[str, str], str],
    title: str,
) -> Figure:
    """Accuracy or loss against the epoch: the mean over seeds as a line, every seed as a dot.

    Args:
        curves: as :func:`wexlib.results.read_curves` gives them.
        series: ``{(run, column): label}``, a line each.
        title: the figure's.
    """
    figure = Figure(layout="constrained")  # not pyplot's: a cell shows it once, when asked
    axes = figure.subplots()
    columns = {column for _, column in series}
    for i, ((run, column), label) in enumerate(series.items()):
        rows = curves[curves["run"] == run].dropna(subset=[column])
        if rows.empty:
            continue
        mean = rows.groupby("epoch")[column].mean()
        axes.plot(mean.index, mean, color=f"C{i}", marker=MARKERS[i], markersize=4, label=label)
        if rows["seed"].nunique() > 1:
            axes.scatter(rows["epoch"], rows[column], s=6, color=f"C{i}", alpha=0.4)
    axes.set_xlabel(AXES["epoch"])
    axes.set_ylabel(AXES[columns.pop()] if len(columns) == 1 else "accuracy (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(title)
    axes.legend()
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, the same bytes for the same figure."""
    write(path, lambda temporary: figure.savefig(temporary, format="svg", metadata={"Date": None}))
