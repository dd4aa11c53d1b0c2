"""What every notebook starts with: its scale, the look of its figures, its tables."""

import re
from collections.abc import Mapping

import torch
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from study.figures.plots import learning_curves, show, style
from study.files import root
from study.plan import config
from study.results import tables
from study.results.files import curves_beside


class Chapter:
    """A notebook's tables and figures at one scale; real data of other scales stand before it.

    Sets the figures' style, torch's seed and one thread, so that a chapter repeats.

    Args:
        name: the notebook's; figures are saved under it.
        scale: whose results are shown; None: that of ``params.yaml``.
        save: whether figures go to ``reports/<scale>/figures/<name>`` too.
        protocol, seeds, runs, others: as :func:`study.results.tables.show` takes them.
    """

    def __init__(
        self,
        name: str,
        scale: str | None = None,
        save: bool = False,
        *,
        protocol: str = "test_last",
        seeds: list[int] | None = None,
        runs: str = "",
        others: bool = True,
    ) -> None:
        self.scale = scale or config.read(root())["scale"]
        self.folder = root() / "reports" / self.scale / "figures" / name if save else None
        self.protocol, self.seeds, self.runs, self.others = protocol, seeds, runs, others
        style()
        torch.manual_seed(0)
        torch.set_num_threads(1)

    def table(self, number: str) -> Markdown:
        """A table of ``tables.yaml`` with its caption."""
        text = tables.show(
            number,
            self.scale,
            self.protocol,
            seeds=self.seeds,
            runs=self.runs,
            others=self.others,
        )
        return Markdown(text)

    def show(self, figure: Figure, name: str) -> None:
        """Show a figure, and save it by its name: "6.1" as ``figure_6_1.svg``."""
        stem = f"figure_{name.replace('.', '_')}" if name[0].isdigit() else name
        show(figure, stem, self.folder)

    def curves(self, lines: Mapping[tuple[str, str], str], title: str, name: str) -> None:
        """Show learning curves, a panel for each scale that has the runs; or say that none has.

        Args:
            lines: ``{(run, column): label}``, a line each.
            title: the figure's.
            name: as in :meth:`show`.
        """
        lines = {key: label for key, label in lines.items() if re.search(self.runs, key[0])}
        names = list(dict.fromkeys(run for run, _ in lines))
        curves = curves_beside(self.scale, names, self.seeds, others=self.others)
        if curves.empty:
            missing = f"“{title}” needs runs that are not there: `make` brings them."
            display(Markdown(missing))
        else:
            self.show(learning_curves(curves, lines, title), name)
