"""Diagrams as a reader sees them, measured on the figure: nothing overlaps, nothing is cut."""

import inspect
import itertools
import re

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Patch
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from study.figures import diagrams
from study.figures.drawing import Diagram

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
    solid = _parts(axes)
    for patch in axes.patches:
        path = patch.get_transform().transform_path(patch.get_path())
        box = path.get_extents()
        if not (canvas.contains(box.x0, box.y0) and canvas.contains(box.x1, box.y1)):
            found.append(f"{patch} leaves the canvas")
        if not _solid(patch):
            crossed = [t.get_text() for t, extent in texts.items() if _touches(path, extent)]
            found += [f"{text!r} is crossed by {patch}" for text in crossed]
    for text, extent in texts.items():
        for part in solid:
            inside = part.contains(*extent.min) and part.contains(*extent.max)
            if part.overlaps(extent) and not inside:
                found.append(f"{text.get_text()!r} is crossed by the part at {part}")
    for first, second in itertools.combinations(solid, 2):
        if first.overlaps(second):
            found.append(f"parts overlap at {first} and {second}")
    for arrow in (p for p in axes.patches if isinstance(p, FancyArrowPatch)):
        path = arrow.get_transform().transform_path(arrow.get_path())
        for part in solid:
            if _touches(path, part.padded(-2)):
                found.append(f"{arrow} runs through the part at {part}")
    return found


def _touches(path: Path, extent: Bbox) -> bool:
    """Line by line: of a compound path torn apart, not of what would join its parts."""
    lines = [Path(points) for points in path.to_polygons(closed_only=False)]
    return any(line.intersects_bbox(extent, filled=False) for line in lines)


def _solid(patch: Patch) -> bool:
    """A box, a circle or a sheet: no arrow, no dashed frame."""
    return patch.get_fill() and not isinstance(patch, FancyArrowPatch)


def _parts(axes: Axes) -> list[Bbox]:
    """Where parts are: a box or a circle, or a tensor's sheets together, the last one in front."""
    found, sheets = [], []
    for patch in axes.patches:
        if _solid(patch):
            sheets.append(patch.get_window_extent())
            if patch.zorder == 3:
                found.append(Bbox.union(sheets))
                sheets = []
    assert found and not sheets
    return found


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
    d.row("net|one", "weight|W\nO×I")
    d.place("two", 0.4, 0.1)
    found = problems(d.figure())
    assert any("'two'" in problem for problem in found)
    assert any("parts overlap" in problem for problem in found)


@pytest.mark.parametrize("through", [False, True])
def test_an_arrow_through_a_part_is_found(through):
    d = Diagram("An arrow from the first to the last of three parts")
    first, _, last = d.row("one", "weight|two", "three")
    if through:
        d.arrow(first, last)
    assert any("runs through" in problem for problem in problems(d.figure())) == through
