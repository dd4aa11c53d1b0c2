"""Boxes and arrows for the block diagrams, on plain matplotlib.

Lengths are inches, y grows upward. A part is a text, with its kind in front of a bar: "ReLU",
"net|V₁", "weight|W". Its size follows from the text, and the figure's from all parts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import Bbox

SIZE, SMALL, LARGE = 9, 8, 11  # of a part's text, a note's, the title's, in points
LINE = 1.3 / 72  # from a line to the next, for each point of the text's size
SHEET = 0.05  # from a tensor's sheet to the next
INK = "0.15"
XY = tuple[float, float]
FILLS = {
    kind: sns.light_palette(sns.color_palette("colorblind")[colour], 8)[shade]
    for kind, colour, shade in (("weight", 0, 2), ("net", 1, 2), ("map", 2, 2), ("mark", 3, 3))
}


class Node(NamedTuple):
    """A part in its place: its centre, half its width and half its height."""

    x: float
    y: float
    w: float = 0.0
    h: float = 0.0

    def face(self, x: float, y: float) -> XY:
        """Where an arrow to or from (x, y), level with it or above or below, meets it."""
        right, up = np.sign(np.round((x - self.x, y - self.y), 6))
        return self.x + right * self.w, self.y + up * self.h


class Diagram:
    """Parts, arrows and notes; :meth:`figure` gives them as a figure of their size."""

    def __init__(self, title: str):
        self.title = title
        self.axes = Figure((1, 1)).add_axes((0, 0, 1, 1))  # an inch is 1
        self.axes.axis("off")

    def note(self, x: float, y: float, text: str, *, size: float = SMALL, **options) -> None:
        """A text, centred. Each line is a text of its own, so that it is centred in every font."""
        options |= {"size": size, "ha": "center", "va": "center", "color": INK, "zorder": 5}
        lines = text.split("\n")
        for i, line in enumerate(lines):
            self.axes.text(x, y + ((len(lines) - 1) / 2 - i) * LINE * size, line, **options)

    def _box(self, node: Node, style: str = "square,pad=0", **options) -> None:
        corner = node.x - node.w, node.y - node.h
        options |= {"boxstyle": style, "clip_on": False}
        self.axes.add_patch(FancyBboxPatch(corner, 2 * node.w, 2 * node.h, **options))

    def place(self, part: str, x: float, y: float, *, side: XY = (0, 0)) -> Node:
        """Draw a part with its centre at (x, y), or with the middle of a side there.

        One character is an operation, in a circle. A weight or a map is a stack of sheets.
        """
        kind, _, text = part.rpartition("|")
        lines = text.split("\n")
        width = max(TextPath((0, 0), line, size=SIZE).get_extents().width for line in lines) / 72
        # Up to 4 % are for fonts that run wider than the one that was measured.
        w, h = max(0.52 * width + 0.09, 0.17), len(lines) * LINE * SIZE / 2 + 0.07
        style, reach, sheets = "round,pad=0,rounding_size=0.06", 0.0, [0.0]
        if kind in ("weight", "map"):
            style, reach, sheets = "square,pad=0", SHEET, [SHEET, 0.0, -SHEET]
        elif len(text) == 1:
            style, w, h = "circle,pad=0", 0.15, 0.15
        node = Node(x - side[0] * (w + reach), y - side[1] * (h + reach), w + reach, h + reach)
        look = {"facecolor": FILLS.get(kind, "white"), "edgecolor": INK, "linewidth": 0.9}
        for shift in sheets:
            sheet = Node(node.x + shift, node.y + shift, w, h)
            self._box(sheet, style, zorder=2 + (shift == sheets[-1]), **look)
        self.note(*sheet[:2], text, size=SIZE)
        return node

    def row(self, *parts: str | Node, at: XY = (0, 0), down=False, gap=0.25) -> list[Node]:
        """Parts joined by arrows, to the right or down; a node among them stays in its place.

        ``at``: the middle of the first one's left side, or of its top in a row that goes down.
        """
        (x, y), nodes, side = at, [], (0, 1) if down else (-1, 0)
        for part in parts:
            node = part if isinstance(part, Node) else self.place(part, x, y, side=side)
            if nodes:
                self.arrow(nodes[-1], node)
            nodes.append(node)
            x, y = (node.x, node.y - node.h - gap) if down else (node.x + node.w + gap, node.y)
        return nodes

    def arrow(self, a: Node, b: Node, via: str = "-", at: float = 0) -> None:
        """From a to b, straight or along the strokes of ``via``: - goes level, | up or down.

        ``at``: where the middle one of three strokes lies.
        """
        corners = {
            "-": [],
            "-|": [(b.x, a.y)],
            "|-": [(a.x, b.y)],
            "|-|": [(a.x, at), (b.x, at)],
            "-|-": [(at, a.y), (at, b.y)],
        }[via]
        first, last = (corners[0], corners[-1]) if corners else (b[:2], a[:2])
        path = Path([a.face(*first), *corners, b.face(*last)])
        style = {"arrowstyle": "-|>,head_length=3.5,head_width=2", "linewidth": 0.9, "color": INK}
        self.axes.add_patch(FancyArrowPatch(path=path, clip_on=False, zorder=1, **style))

    def frame(self, nodes: Sequence[Node], text: str, *, pad: float = 0.16) -> None:
        """A dashed frame around nodes, its text above."""
        centres, halves = np.split(np.array(nodes), 2, axis=1)
        low, high = (centres - halves).min(0) - pad, (centres + halves).max(0) + pad
        around = Node(*(low + high) / 2, *(high - low) / 2)
        self._box(around, fill=False, edgecolor="0.45", linestyle="--", zorder=0)
        self.note(around.x, high[1] + 0.11, text)

    def figure(self) -> Figure:
        """The figure, as large as what is drawn and its title."""
        axes, figure = self.axes, self.axes.figure
        title = axes.set_title(self.title, size=LARGE, color=INK, y=1, pad=-13)
        drawn = Bbox.union([a.get_window_extent() for a in (*axes.patches, *axes.texts)])
        box = drawn.transformed(axes.transData.inverted())
        spare = max(title.get_window_extent().width / figure.dpi - box.width, 0) / 2 + 0.08
        box = Bbox.from_extents(box.x0 - spare, box.y0 - 0.08, box.x1 + spare, box.y1 + 0.35)
        figure.set_size_inches(box.size)
        axes.set(xlim=box.intervalx, ylim=box.intervaly)
        return figure
