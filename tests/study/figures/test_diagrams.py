"""Diagrams as a reader sees them, measured on the figure: nothing overlaps, nothing is cut."""

import inspect
import itertools
import re

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from study.figures import diagrams
from study.figures.drawing import Diagram, net, tensor

DIAGRAMS = {
    name: function
    for name, function in inspect.getmembers(diagrams, inspect.isfunction)
    if function.__module__ == diagrams.__name__ and not name.startswith("_")
}


def problems(figure: Figure) -> list[str]:
    """What is wrong with a diagram, in words."""
    figure.dpi = 100
    figure.draw_without_rendering()
    (axes,) = figure.axes
    texts = {t: t.get_window_extent() for t in figure.findobj(Text) if t.get_text()}
    canvas, found = figure.bbox, []
    for text, extent in texts.items():
        if not (canvas.contains(extent.x0, extent.y0) and canvas.contains(extent.x1, extent.y1)):
            found.append(f"{text.get_text()!r} leaves the canvas")
        if text.get_fontsize() < 8:
            found.append(f"{text.get_text()!r} is smaller than 8 points")
    for (a, first), (b, second) in itertools.combinations(texts.items(), 2):
        if first.overlaps(second):
            found.append(f"{a.get_text()!r} overlaps {b.get_text()!r}")
    for patch in axes.patches:
        path = patch.get_transform().transform_path(patch.get_path())
        box = path.get_extents()
        arrow = isinstance(patch, FancyArrowPatch)
        if not (canvas.contains(box.x0, box.y0) and canvas.contains(box.x1, box.y1)):
            found.append(f"{patch} leaves the canvas")
        for text, extent in texts.items():
            inside = not arrow and path.contains_points(extent.corners()).all()
            if not inside and _touches(path, extent, filled=not arrow):
                found.append(f"{text.get_text()!r} is crossed by {patch}")
    solid = [p.get_window_extent() for p in axes.patches if _is_part(p)]
    for first, second in itertools.combinations(solid, 2):
        if first.overlaps(second):
            found.append(f"parts overlap at {first} and {second}")
    for arrow in (p for p in axes.patches if isinstance(p, FancyArrowPatch)):
        path = arrow.get_transform().transform_path(arrow.get_path())
        for part in solid:
            if _touches(path, part.padded(-2)):
                found.append(f"{arrow} runs through the part at {part}")
    return found


def _touches(path: Path, extent: Bbox, *, filled: bool = False) -> bool:
    """Line by line: of a compound path torn apart, not of what would join its parts."""
    lines = [Path(points) for points in path.to_polygons(closed_only=False)]
    return any(line.intersects_bbox(extent, filled=filled) for line in lines)


def _is_part(patch) -> bool:
    """A box, a circle or the front of a tensor: no arrow, no dashed frame, no slanting side."""
    if isinstance(patch, FancyArrowPatch) or not patch.get_fill():
        return False
    corners = patch.get_path().vertices.round(6)
    slanting = isinstance(patch, Polygon) and max(len(set(x)) for x in corners.T.tolist()) > 2
    return not slanting


def test_the_thesis_s_diagrams_are_all_there():
    titles = [function().axes[0].get_title() for function in DIAGRAMS.values()]
    numbers = {re.match(r"Figure (\d\.\d+)\. \w", title).group(1) for title in titles}
    assert len(numbers) == len(titles)
    assert numbers == {
        *("1.1", "2.2", "2.3", "2.4", "2.5", "2.7", "2.8"),
        *("3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.10", "4.1", "4.2", "4.3"),
    }


@pytest.mark.parametrize("name", DIAGRAMS)
def test_nothing_overlaps_and_nothing_is_cut(name):
    assert problems(DIAGRAMS[name]()) == []


def test_what_overlaps_is_found():
    d = Diagram("Parts on each other")
    d.line([net("one"), tensor("W", "O×I")], 0, 0)
    d.place("two", 0.4, 0.1)
    assert any("'two'" in problem for problem in problems(d.figure()))
    assert any("parts overlap" in problem for problem in problems(d.figure()))


def test_an_arrow_through_a_part_is_found():
    d = Diagram("An arrow from the first to the last of three parts")
    first, _, last = d.line(["one", "two", "three"], 0, 0)
    assert problems(d.figure()) == []
    d.arrow(first, last)
    assert any("runs through" in problem for problem in problems(d.figure()))
