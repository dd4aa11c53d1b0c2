"""The figures of notebooks/speed.ipynb, from the CSVs of the benchmarks."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

LABELS = {
    "width": "channels in and out, 3×3",
    "kernel": "side of the kernel",
    "depth": "convolutions of a ResNet",
}
MARKERS = {"ours": "o", "layer by layer": "^", "naive": "s", "control": "D"}


def training_ratios(frame: pd.DataFrame, title: str) -> Figure:
    """Training step over the plain one, for each method, batch (images) and memory format.

    Points are medians, lines the quartiles around them.

    Args:
        frame: train.csv, of one device.
        title: the figure's.
    """
    settings = ["batch", "memory_format", "precision", "way"]
    rows = frame[frame["form"].isin(MARKERS)].copy()
    rows["method"] = rows["method"].replace("plain", "plain, again")
    rows["line"] = [
        f"{row.method}, {row.batch}, {row.memory_format.replace('_', ' ')}"
        + (", bf16" if row.precision == "bf16" else "")
        + ("" if row.way == "eager" else f", {row.way}")
        for row in rows.itertuples()
    ]
    rows = rows.sort_values(settings, kind="stable")
    lines = list(dict.fromkeys(rows["line"]))
    figure = Figure(figsize=(7, 0.22 * len(lines) + 1.1), layout="constrained")
    axes = figure.subplots()
    for i, (form, marker) in enumerate(MARKERS.items()):
        part = rows[rows["form"] == form]
        away = [part["ratio"] - part["ratio_low"], part["ratio_high"] - part["ratio"]]
        places = [lines.index(line) for line in part["line"]]
        look = {"color": f"C{i}", "marker": marker, "markersize": 4, "linestyle": "none"}
        axes.errorbar(part["ratio"], places, xerr=away, label=form, elinewidth=1, **look)
    bars = rows.dropna(subset="bar")
    places = [lines.index(line) for line in bars["line"]]
    axes.scatter(bars["bar"], places, marker="|", s=90, color="black", label="bar", zorder=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(lines)), lines)
    axes.invert_yaxis()
    axes.set_xlabel("training step / plain training step (no unit)")
    axes.set_ylabel("method, batch, memory")
    axes.set_title(title)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def scaling(frame: pd.DataFrame, title: str) -> Figure:
    """The excited weights' own time against width, kernel and depth, with the floor.

    Args:
        frame: scaling.csv, of one device.
        title: the figure's.
    """
    methods, sweeps = list(frame["method"].unique()), list(frame["axis"].unique())
    figure = Figure(figsize=(7.2, 2.1 * len(methods) + 0.5), layout="constrained")
    grid = figure.subplots(len(methods), len(sweeps), squeeze=False, sharex="col")
    for line, method in zip(grid, methods, strict=True):
        for axes, sweep in zip(line, sweeps, strict=True):
            part = frame[(frame["method"] == method) & (frame["axis"] == sweep)]
            for i, form in enumerate(("ours", "naive")):
                mine = part[part["form"] == form].sort_values("value")
                color, marker = f"C{i}", MARKERS[form]
                axes.plot(mine["value"], mine["ms"], color=color, marker=marker, label=form)
                axes.fill_between(
                    mine["value"], mine["ms_low"], mine["ms_high"], color=color, alpha=0.2
                )
            mine = part[part["form"] == "ours"].sort_values("value")
            axes.plot(mine["value"], mine["floor_ms"], "k:", label="bandwidth's floor")
            axes.set(xscale="log", yscale="log", title=method)
            axes.set_xticks(mine["value"], mine["value"])
            axes.minorticks_off()
            if axes is line[0]:
                axes.set_ylabel("time (ms)")
            if method == methods[-1]:
                axes.set_xlabel(LABELS[sweep])
    series = grid[0][0].get_legend_handles_labels()
    figure.legend(*series, loc="outside lower center", ncols=len(series[0]))
    figure.suptitle(title)
    return figure


def parts_of_an_epoch(frame: pd.DataFrame, title: str) -> Figure:
    """Seconds of an epoch by part, a bar a method.

    Args:
        frame: epoch.csv, of one device.
        title: the figure's.
    """
    wide = frame.pivot(index="method", columns="part", values="seconds")
    wide = wide.loc[frame["method"].unique(), frame["part"].unique()].fillna(0)
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    left = 0 * wide.iloc[:, 0]
    for part, color in zip(wide, sns.color_palette("colorblind"), strict=False):
        axes.barh(wide.index, wide[part], left=left, color=color, label=part)
        left = left + wide[part]
    axes.invert_yaxis()
    axes.set_xlabel("time (s)")
    axes.set_ylabel("method")
    axes.set_title(title)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
