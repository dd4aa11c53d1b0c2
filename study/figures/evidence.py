"""The figures of the notebook ``evidence``."""

import pandas as pd
from matplotlib.figure import Figure

from study.figures.plots import MARKERS
from study.results.evidence import MARGIN, cells, short


def factorial(frame: pd.DataFrame, title: str) -> Figure:
    """Test accuracy by excitation, with and without standardization: seeds as dots, and means.

    Args:
        frame: as ``study.results.evidence.scores`` gives it. Bars: 95 % t intervals.
        title: the figure's.
    """
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(frame["excitation"]))
    for i, (label, standardized) in enumerate({"without WS": False, "with WS": True}.items()):
        for place, name in enumerate(names):
            chosen = (frame["excitation"] == name) & (frame["WS"] == standardized)
            seeds = frame.loc[chosen, "accuracy"]
            x = place + (i - 0.5) * 0.3
            axes.scatter([x + 0.07] * len(seeds), seeds, s=9, color=f"C{i}", alpha=0.5)
            if len(seeds) > 1:
                axes.errorbar(
                    x - 0.03,
                    seeds.mean(),
                    yerr=_half(seeds),
                    color=f"C{i}",
                    marker=MARKERS[i],
                    capsize=3,
                    label=f"{label}: mean, 95 %" if place == 0 else None,
                )
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="excitation", ylabel="test accuracy (%)", title=title)
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _half(seeds: pd.Series) -> float:
    from scipy import stats

    return stats.t.ppf(0.975, len(seeds) - 1) * seeds.sem()


def effects(frame: pd.DataFrame, title: str) -> Figure:
    """Contrasts with their 95 % intervals beside the band that is taken for no difference.

    Args:
        frame: as ``study.results.evidence.compare`` gives it, in points of accuracy; what has no
            interval is left out.
        title: the figure's.
    """
    rows = frame.dropna(subset=["low"])
    figure = Figure(figsize=(6.4, 1.3 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-MARGIN, MARGIN, color="0.88", label=f"±{MARGIN} points")
    axes.axvline(0, color="black", linewidth=0.8)
    for i, verdict in enumerate(dict.fromkeys(rows["verdict"])):
        chosen = rows["verdict"] == verdict
        places = [-place for place, one in enumerate(chosen) if one]
        half = (rows["high"] - rows["low"])[chosen] / 2
        axes.errorbar(
            rows["difference"][chosen],
            places,
            xerr=half,
            fmt=MARKERS[i],
            color=f"C{i}",
            label=verdict,
        )
    axes.set_yticks([-place for place in range(len(rows))], rows["contrast"])
    axes.set(xlabel="difference of test accuracy (percentage points)", ylabel="contrast")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def rates(frame: pd.DataFrame, title: str) -> Figure:
    """Validation accuracy against the peak rate, a line for each cell.

    Args:
        frame: as :func:`study.results.evidence.rates` gives it.
        title: the figure's.
    """
    tried = [name for name in frame if isinstance(name, float)]
    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    axes = figure.subplots()
    places = {short(run): place for place, run in enumerate(cells().values())}
    for _, row in frame.iterrows():
        ws, i = divmod(places[row["cell"]], len(places) // 2)
        axes.plot(
            tried,
            [row[rate] for rate in tried],
            color=f"C{i}",
            marker=MARKERS[i],
            linestyle="-" if ws else "--",
            label=row["cell"],
        )
    axes.set_xscale("log")
    axes.set_xticks(tried, [f"{rate:g}" for rate in tried])
    axes.minorticks_off()
    axes.set(xlabel="peak learning rate", ylabel="validation accuracy (%)", title=title)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
