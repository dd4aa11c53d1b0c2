"""The book: a scale's executed chapters, the methods, the API and the bibliography as HTML.

The pages are collected into ``build/book/<scale>``; Sphinx, as ``book/conf.py`` sets it, does the
rest. A chapter that the scale has not made is a page that says so.
"""

import io
import json
import re
import shutil
from html import escape, unescape
from pathlib import Path

from study.book.origin import origins
from study.files import write_text

#: A table's or figure's title, numbered as in the thesis; ours and the evidence's go on from there.
NUMBERED = r"(Table|Figure) ((?:\d+|E)\.\d+)\. ([^.\n]+)"
NUMBER = r"[\d.,+−±×e\-–% \[\]]*\d[\d.,+−±×e\-–% \[\]]*"


def build(home: Path, scale: str) -> Path:
    """Write ``reports/book/<scale>`` anew and return its first page.

    Raises:
        ValueError: Sphinx has a warning, such as a link that leads nowhere.
    """
    # Sphinx takes a second to import, and the other commands do without it.
    from sphinx.application import Sphinx
    from sphinx.util.console import nocolor
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    source, target = home / "build" / "book" / scale, home / "reports" / "book" / scale
    for folder in (source, target):
        shutil.rmtree(folder, ignore_errors=True)
    collect(home, scale, source)
    nocolor()
    warnings = io.StringIO()
    with patch_docutils(home / "book"), docutils_namespace():
        Sphinx(
            source,
            home / "book",
            target,
            source / ".doctrees",
            "html",
            {"html_context.origins": origins(home, scale)},
            status=None,
            warning=warnings,
        ).build()
    if warnings.getvalue():
        raise ValueError(f"the book has warnings:\n{warnings.getvalue()}")
    return target / "index.html"


# --- Pages ---------------------------------------------------------------------------------------


def chapters(home: Path) -> list[str]:
    """The notebooks that are read: all but the one that runs train in."""
    return sorted(
        path.stem for path in (home / "notebooks").glob("*.ipynb") if path.stem != "train"
    )


def collect(home: Path, scale: str, source: Path) -> None:
    """Put the book's pages into ``source``, all in one folder: links lose their folders."""
    shutil.copytree(home / "docs", source)
    for page in (*source.glob("*.md"), *(home / "book").glob("*.md")):
        write_text(source / page.name, flat(page.read_text(encoding="utf-8")))
    numbered: dict[str, str] = {}
    for name in chapters(home):
        file = f"{name}.ipynb"
        executed = home / "reports" / scale / file
        made = executed.is_file()
        path = executed if made else home / "notebooks" / file
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if not made:
            first, *_ = notebook["cells"]
            heading = "".join(first["source"]).splitlines()[0]
            first["source"] = f"{heading}\n\nThis chapter is not made at scale {scale} yet."
            notebook["cells"] = [first]
        write_text(source / file, json.dumps(shown(notebook, source, name, numbered)))
    write_text(source / "numbered.md", list_of(numbered))


def flat(text: str) -> str:
    """Links between notebooks and documents as they are in the book's one folder."""
    return re.sub(r"\]\((?:\.\./)?(?:docs|notebooks)/", "](", text)


def list_of(numbered: dict[str, str]) -> str:
    """Lists of the tables and of the figures by number, the evidence's after the thesis's."""

    def place(anchor: str) -> tuple[bool, list[int]]:
        return "-e-" in anchor, [int(number) for number in re.findall(r"\d+", anchor)]

    lines: list[str] = []
    for kind in ("table", "figure"):
        anchors = sorted((a for a in numbered if a.startswith(kind)), key=place)
        lines += ["", f"## {kind.title()}s", ""]
        lines += [f"- [{numbered[anchor]}](#{anchor})" for anchor in anchors]
    return "\n".join(lines) + "\n"


# --- Notebooks -----------------------------------------------------------------------------------


def shown(notebook: dict, source: Path, name: str, numbered: dict[str, str]) -> dict:
    """A notebook with its code folded, and tables and figures as MyST has them.

    Code that shows nothing comes before the code that follows it: one fold. A cell that is tagged
    ``show`` is not folded, and stays by itself.
    """
    kept: list[dict] = []
    for i, cell in enumerate(notebook["cells"]):
        text = flat("".join(cell["source"])).strip()
        if cell["cell_type"] == "code":
            folded = "show" not in cell["metadata"].get("tags", [])
            cell["metadata"] = {"tags": ["hide-input"] if folded else []}
            before = kept[-1] if kept else None
            if folded and before and before["metadata"] == cell["metadata"]:
                if not before["outputs"]:
                    text = f"{kept.pop()['source']}\n\n{text}"
            for j, output in enumerate(cell["outputs"]):
                data = output.get("data", {})
                if svg := "".join(data.get("image/svg+xml", "")):
                    path = source / "figures" / f"{name}_{i}_{j}.svg"
                    write_text(path, svg)
                    output["data"] = {"text/markdown": figure(svg, path.name, numbered)}
                elif markdown := "".join(data.get("text/markdown", "")):
                    output["data"] = {"text/markdown": tables(markdown, numbered)}
        cell["source"] = text
        if text or cell.get("outputs"):
            kept.append(cell)
    return notebook | {"cells": kept}


def named(found: re.Match, numbered: dict[str, str]) -> str:
    """The name of a numbered table or figure, which is noted with its title and its setting.

    Where it stands again, of embedded data below the real, it has none.
    """
    kind, number, title = found.groups()
    anchor = f"{kind}-{number}".lower().replace(".", "-")
    if anchor in numbered:
        return ""
    setting = re.match(r"\. (?:The thesis|As planned)(:[^.]+)", found.string[found.end() :])
    numbered[anchor] = escape(f"{number} {title.strip()}{setting[1] if setting else ''}")
    return f":name: {anchor}\n"


def figure(svg: str, file: str, numbered: dict[str, str]) -> str:
    """A figure that is read by its title, or by the longest of its texts."""
    texts = [unescape(text) for text in re.findall(r"<text [^>]*>([^<]+)</text>", svg)]
    title = next((text for text in texts if re.match(NUMBERED, text)), max(texts, key=len))
    found = re.match(NUMBERED, title)
    name = named(found, numbered) if found else ""
    return f"```{{figure}} figures/{file}\n:alt: {title}\n{name}```"


def tables(text: str, numbered: dict[str, str]) -> str:
    """Markdown whose tables have aligned columns, and a caption where one stands before."""
    blocks = text.strip().split("\n\n")
    for i, block in enumerate(blocks):
        if block.startswith("|"):
            blocks[i] = aligned(block)
            if i and (found := re.match(NUMBERED, blocks[i - 1])):
                caption = f"**{found[0]}.**{blocks[i - 1][found.end() + 1 :]}"
                name = named(found, numbered)
                blocks[i] = f"```{{table}} {caption}\n{name}\n{blocks[i]}\n```"
                blocks[i - 1] = ""
    return "\n\n".join(blocks)


def aligned(table: str) -> str:
    """A table with numbers flush right and without the columns that have no entry."""
    rows = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in table.splitlines()]
    columns = [[cell.strip() for cell in column] for column in zip(*rows, strict=True)]
    columns = [column for column in columns if any(column[2:])]
    for column in columns:
        column[1] = "---:" if re.fullmatch(NUMBER, "".join(column[2:])) else ":---"
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))
