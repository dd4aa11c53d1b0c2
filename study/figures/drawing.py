"""A kit for block diagrams: parts in a line, arrows between them, a figure that fits them.

Lengths are inches; x grows to the right, y up. A part's size follows from its text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from matplotlib.path import Path

SIZE = 9  # of the text, in points
SMALL = 8
LINE = 1.3  # from a line to the next, in sizes of the text
PAD = 0.09  # between a text and its box
GAP = 0.3  # between two parts
DEPTH = 0.13  # of a tensor's side and top
FOOT = 0.2  # the line below a tensor that has its shape

_PALETTE = sns.color_palette("colorblind")
#: What a part's colour says.
KINDS = {
    "plain": "white",
    "weight": sns.light_palette(_PALETTE[0], 8)[2],
    "map": sns.light_palette(_PALETTE[2], 8)[2],
    "net": sns.light_palette(_PALETTE[1], 8)[2],
    "mark": sns.light_palette(_PALETTE[3], 8)[3],
}
MARK = _PALETTE[3]
INK = "0.15"


@dataclass(frozen=True)
class Part:
    """What is drawn: a ``box``, an ``op`` in a circle, or a ``tensor``, its shape written below."""

    form: str
    text: str
    kind: str = "plain"
    shape: str = ""


def net(text: str) -> Part:
    """A box that has parameters."""
    return Part("box", text, "net")


def marked(text: str) -> Part:
    """A box that the diagram is about."""
    return Part("box", text, "mark")


def tensor(text: str, shape: str, kind: str = "weight") -> Part:
    return Part("tensor", text, kind, shape)


def _part(part: Part | str) -> Part:
    """A text as a part: a character in a circle, × and + broadcast; else a plain box."""
    if isinstance(part, Part):
        return part
    return Part("op" if len(part) == 1 else "box", part)


@dataclass(frozen=True)
class Node:
    """A part in its place: the centre, half its width and height, what is on and below it."""

    x: float
    y: float
    w: float
    h: float
    head: float = 0.0
    foot: float = 0.0

    def face(self, dx: int, dy: int) -> tuple[float, float]:
        """Where arrows meet it: the middle of a side."""
        return self.x + dx * self.w, self.y + dy * (self.h + (self.head if dy > 0 else self.foot))


@lru_cache
def measure(text: str, size: float = SIZE) -> tuple[float, float]:
    """Width and height of a text, which may have several lines."""
    figure = Figure(dpi=100)
    FigureCanvasAgg(figure)
    extent = figure.text(0, 0, text, fontsize=size).get_window_extent()
    return extent.width / 100, extent.height / 100


def sized(part: Part, x: float, y: float) -> Node:
    """The node that a part takes at (x, y)."""
    width, height = measure(part.text)
    w, h = width / 2 + PAD, height / 2 + PAD
    if part.form == "op":
        return Node(x, y, 0.15, 0.15)
    if part.form == "tensor":
        return Node(x, y, max(w, 0.26), max(h, 0.26), DEPTH, FOOT if part.shape else 0)
    return Node(x, y, w, h)


class Diagram:
    """Parts, arrows and notes; :meth:`figure` gives them as a figure of their size."""

    def __init__(self, title: str):
        self.title = title
        self._figure = Figure()
        FigureCanvasAgg(self._figure)
        self.axes = self._figure.add_axes((0, 0, 1, 1))
        self.bounds = [0.0, 0.0, 0.0, 0.0]  # left, right, bottom, top

    def _reach(self, x: float, y: float, w: float = 0.0, h: float = 0.0) -> None:
        left, right, bottom, top = self.bounds
        self.bounds = [min(left, x - w), max(right, x + w), min(bottom, y - h), max(top, y + h)]

    def text(self, x: float, y: float, text: str, *, size: float = SMALL, **options) -> None:
        """A note, centred. Each line is a text, so that it is centred in every font."""
        lines = text.split("\n")
        for i, line in enumerate(lines):
            middle = y + ((len(lines) - 1) / 2 - i) * LINE * size / 72
            self.axes.text(
                x,
                middle,
                line,
                fontsize=size,
                ha="center",
                va="center",
                color=INK,
                zorder=4,
                **options,
            )
        width, height = measure(text, size)
        self._reach(x, y, width / 2, height / 2)

    def place(self, part: Part | str, x: float, y: float) -> Node:
        """Draw a part with its centre at (x, y)."""
        part = _part(part)
        node = sized(part, x, y)
        left, right, bottom, top = x - node.w, x + node.w, y - node.h, y + node.h
        line = {"facecolor": KINDS[part.kind], "edgecolor": INK, "linewidth": 0.9, "zorder": 3}
        if part.form == "op":
            self.axes.add_patch(Circle((x, y), node.w, **line))
        elif part.form == "box":
            corners = "round,pad=0,rounding_size=0.06"
            self.axes.add_patch(
                FancyBboxPatch((left, bottom), right - left, top - bottom, corners, **line)
            )
        else:
            d = DEPTH
            lid = [(left, top), (left + d, top + d), (right + d, top + d), (right, top)]
            side = [(right, top), (right + d, top + d), (right + d, bottom + d), (right, bottom)]
            front = [(left, bottom), (left, top), (right, top), (right, bottom)]
            for corners in (lid, side, front):
                self.axes.add_patch(Polygon(corners, **line))
            self._reach(right + d, top + d)
        self.text(x, y, part.text, size=SIZE)
        self._reach(x, y, node.w, node.h)
        if part.shape:
            self.text(x, bottom - FOOT / 2, part.shape)
        return node

    def line(
        self,
        parts: Sequence[Part | str],
        x: float,
        y: float,
        *,
        down: bool = False,
        gap: float = GAP,
        centred: int | None = None,
    ) -> list[Node]:
        """Parts joined by arrows: to the right, the first one's left side at x; or down from y.

        A text is a plain box, or a circle where it is one character.
        ``centred``: the number of the part that has its centre at x instead.
        """
        parts = [_part(part) for part in parts]
        places, along = [], 0.0
        for part in parts:
            node = sized(part, 0, 0)
            if down:
                places.append((x, y - along - node.h - node.head))
                along += 2 * node.h + node.head + node.foot + gap
            else:
                label = measure(part.shape, SMALL)[0] / 2 if part.shape else 0
                half = max(node.w, label)
                places.append((x + along + half, y))
                along += half + max(node.w + node.head, label) + gap
        shift = 0.0 if centred is None else places[centred][0] - x
        nodes = [self.place(p, px - shift, py) for p, (px, py) in zip(parts, places, strict=True)]
        for a, b in zip(nodes, nodes[1:], strict=False):
            self.arrow(a, b)
        return nodes

    def arrow(self, a: Node, b: Node, *, over: float | None = None, beside: float | None = None):
        """From a to b: straight where they are level, else round one corner, out of a's side.

        ``over``: out of a's top or bottom, along the height y = over, and into b's top or bottom.
        ``beside``: out of a's left or right, along x = beside, and into b's left or right.
        """
        dx, dy = b.x - a.x, b.y - a.y
        right, up = (1 if dx > 0 else -1), (1 if dy > 0 else -1)
        if over is not None:
            side_a, side_b = (1 if over > a.y else -1), (1 if over > b.y else -1)
            points = [a.face(0, side_a), (a.x, over), (b.x, over), b.face(0, side_b)]
        elif beside is not None:
            side_a, side_b = (1 if beside > a.x else -1), (1 if beside > b.x else -1)
            points = [a.face(side_a, 0), (beside, a.y), (beside, b.y), b.face(side_b, 0)]
        elif abs(dy) < 1e-6:
            points = [a.face(right, 0), b.face(-right, 0)]
        elif abs(dx) < 1e-6:
            points = [a.face(0, up), b.face(0, -up)]
        else:
            points = [a.face(right, 0), (b.x, a.y), b.face(0, -up)]
        self.path(points)

    def corner(self, a: Node, b: Node) -> None:
        """From a to b round one corner, out of a's top or bottom and into b's side."""
        up, right = (1 if b.y > a.y else -1), (1 if b.x > a.x else -1)
        self.path([a.face(0, up), (a.x, b.y), b.face(-right, 0)])

    def path(self, points: Sequence[tuple[float, float]]) -> None:
        """An arrow along straight lines."""
        self.axes.add_patch(
            FancyArrowPatch(
                path=Path(points),
                arrowstyle="-|>,head_length=3.5,head_width=2",
                linewidth=0.9,
                color=INK,
                shrinkA=0,
                shrinkB=0,
                zorder=2,
            )
        )
        for point in points:
            self._reach(*point)

    def frame(self, nodes: Sequence[Node], text: str, *, pad: float = 0.16, mark: bool = False):
        """A dashed frame around nodes, its text above."""
        left = min(n.x - n.w for n in nodes) - pad
        right = max(n.x + n.w + n.head for n in nodes) + pad
        bottom = min(n.face(0, -1)[1] for n in nodes) - pad
        top = max(n.face(0, 1)[1] for n in nodes) + pad
        colour = MARK if mark else "0.45"
        size = (right - left, top - bottom)
        self.axes.add_patch(
            Rectangle(
                (left, bottom), *size, fill=False, edgecolor=colour, linestyle="--", linewidth=1.1
            )
        )
        self._reach(left, bottom), self._reach(right, top)
        self.text((left + right) / 2, top + 0.11, text)

    def figure(self) -> Figure:
        """The figure, as large as what is drawn and its title."""
        left, right, bottom, top = self.bounds
        spare = max(measure(self.title, 11)[0] - (right - left), 0) / 2
        left, right = left - spare - 0.1, right + spare + 0.1
        bottom, top = bottom - 0.1, top + 0.45
        self._figure.set_size_inches(right - left, top - bottom)
        self.axes.set(xlim=(left, right), ylim=(bottom, top))
        self.axes.axis("off")
        self.axes.set_title(self.title, fontsize=11, y=1.0, pad=-13)
        return self._figure
