"""The book: a scale's executed chapters, the methods, the API and the bibliography as static HTML.

It opens from disk and needs no network: equations are vectors set when it is built, the search
index is a script. A chapter that the scale has not made is listed as such.
"""

import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from html import unescape
from itertools import chain
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from study.book.origin import origins
from study.book.typeset import code_style, markdown
from study.files import write_text
from study.plan import config

HEADINGS = ("h1", "h2", "h3")
#: The pages of ``docs``; the API stands before the last.
DOCUMENTS = ("thesis", "methods", "bibliography")


@dataclass
class Section:
    """A heading and the text below it, up to the next."""

    anchor: str
    title: str
    level: int
    text: str = ""


@dataclass
class Page:
    """A page of the book; without a body, a chapter that the scale has not made."""

    name: str
    title: str
    body: str = ""
    sections: list[Section] = field(default_factory=list)
    #: (anchor, "Table 6.2", its title), in the page's order.
    numbered: list[tuple[str, str, str]] = field(default_factory=list)


# --- Notebooks -----------------------------------------------------------------------------------


def chapters(home: Path) -> list[str]:
    """The notebooks that ``dvc.yaml`` lists: the thesis's chapters, then the others."""
    names = chain.from_iterable(config.notebooks(home).values())
    return sorted(names, key=lambda name: (not name[0].isdigit(), name))


def title_of(notebook: Path) -> str:
    """A notebook's first heading."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    heading = re.search(r"^# +(.+)$", text, re.MULTILINE)
    return heading[1].strip() if heading else notebook.stem


def notebook_html(path: Path, templates: Path) -> tuple[str, dict[str, bytes]]:
    """An executed notebook's cells as HTML, and its figures by file name."""
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor, ExtractOutputPreprocessor

    notebook = nbformat.read(path, as_version=4)
    notebook.cells = joined(notebook.cells)
    exporter = HTMLExporter(
        template_name="notebook",
        extra_template_basedirs=[str(templates)],
        filters={"markdown": markdown, "alternative": alternative, "width": width},
        preprocessors=[
            CoalesceStreamsPreprocessor(),
            ExtractOutputPreprocessor(
                output_filename_template="{unique_key}_{cell_index}_{index}{extension}",
                extract_output_types={"image/svg+xml", "image/png", "image/jpeg"},
            ),
        ],
    )
    body, resources = exporter.from_notebook_node(notebook, {"unique_key": f"figures/{path.stem}"})
    return body, resources.get("outputs", {})


def joined(cells: list) -> list:
    """Cells, with code that shows nothing put before the code that follows it: one fold.

    A cell that is tagged ``show`` is not folded, and stays by itself.
    """
    kept: list = []
    for cell in cells:
        before = kept[-1] if kept else None
        if before and cell.cell_type == before.cell_type == "code" and not before.outputs:
            if "show" not in before.metadata.get("tags", []) + cell.metadata.get("tags", []):
                cell.source = f"{before.source.strip()}\n\n{cell.source.strip()}"
                kept.pop()
        if cell.source.strip() or cell.get("outputs"):
            kept.append(cell)
    return kept


def alternative(svg: str) -> str:
    """What is read in place of a figure: its title, the greatest and longest of its texts."""
    texts = re.findall(r"<text style=\"font-size: ([\d.]+)px[^>]*>([^<]+)", svg)
    _, title = max(texts, key=lambda text: (float(text[0]), len(text[1])), default=("", "figure"))
    return unescape(title.strip())


def width(svg: str) -> str:
    """A figure's own width, below which its text would be too small to read."""
    found = re.search(r'<svg[^>]* width="([\d.]+pt)"', svg)
    return found[1] if found else "auto"


# --- Pages ---------------------------------------------------------------------------------------


def page(name: str, html: str, links: dict[str, str]) -> Page:
    """A page of ``html``: headings and numbered tables and figures get anchors, tables a box.

    ``links`` are the addresses in the book of files in the repository, by file name; a link to
    another file becomes its text.
    """
    soup = BeautifulSoup(html, "html.parser")
    for link in soup.find_all("a", href=True):
        address, _, anchor = link["href"].partition("#")
        if address and "://" not in address:
            if target := links.get(Path(address).name):
                link["href"] = f"{target}#{anchor}" if anchor else target
            else:
                link.unwrap()
    for table in soup.find_all("table"):
        table.attrs.pop("border", None)
        align(table)
        table.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
    used: Counter = Counter()
    sections = [Section("", "", 1)]
    for node in [child for child in soup.children if isinstance(child, Tag)]:
        if node.name in HEADINGS:
            title = node.get_text()
            slug = re.sub(r"[^\w]+", "-", title.lower()).strip("-")
            used[slug] += 1
            node["id"] = slug if used[slug] == 1 else f"{slug}-{used[slug]}"
            sections.append(Section(node["id"], title, int(node.name[1])))
            node.append(soup.new_tag("a", attrs={"class": "anchor", "href": f"#{node['id']}"}))
        elif "code" not in node.get("class", []):
            alternatives = [image["alt"] for image in node.find_all("img", alt=True)]
            sections[-1].text += f" {node.get_text(' ')} {' '.join(alternatives)}"
    for section in sections:
        section.text = " ".join(section.text.split())
    if len(sections) > 1 and not sections[0].text:
        del sections[0]
    numbered = number(soup)
    return Page(name, sections[0].title or name, str(soup), sections, numbered)


def align(table: Tag) -> None:
    """One line of heads; columns of numbers flush right; none without a single entry."""
    heads = table.select("thead > tr")
    if len(heads) == 2:  # pandas: the index has a name
        for above, below in zip(*(head.find_all("th") for head in heads), strict=True):
            above.string = above.get_text() or below.get_text()
        heads[1].decompose()
    rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
    if len({len(row) for row in rows}) != 1:
        return
    for head, *cells in zip(*rows, strict=True):
        text = "".join(cell.get_text().strip() for cell in cells)
        for cell in (head, *cells):
            cell.attrs.pop("style", None)
            if not text:
                cell.decompose()
            elif re.fullmatch(r"[\d.,+−±×e\-–% \[\]]*\d[\d.,+−±×e\-–% \[\]]*", text):
                cell["class"] = "number"


def number(soup: BeautifulSoup) -> list[tuple[str, str, str]]:
    """Give numbered tables and figures an anchor; return (anchor, "Table 6.2", title) of each."""
    numbered: dict[str, tuple[str, str, str]] = {}
    for node in soup.find_all(["p", "figure"]):
        image = node.find("img") if node.name == "figure" else None
        text = image["alt"] if image else node.get_text()
        found = re.match(r"((?:Table|Figure) (?:\d+|E)\.\d+)\. ([^.]+)", text)
        if not found or found[1] in numbered:
            continue
        node["id"] = re.sub(r"[ .]", "-", found[1].lower())
        title = found[2].strip()
        if node.name == "p":
            node["class"] = "caption"
            strong = soup.new_tag("strong", string=f"{found[0]}.")
            first = node.find(string=True)
            first.replace_with(strong, first.removeprefix(f"{found[0]}."))
            if setting := re.search(r"(?:The thesis|Ours): ([^.]+)\.", text):
                title += f", {setting[1]}"
        numbered[found[1]] = (node["id"], found[1], title)
    return list(numbered.values())


# --- The book ------------------------------------------------------------------------------------


def _place(label: str) -> tuple[bool, list[int]]:
    """Where "Table 6.10" stands in the contents: by number, and the evidence's E.1 after all."""
    return " E." in label, [int(number) for number in re.findall(r"\d+", label)]


def build(home: Path, scale: str) -> list[Page]:
    """Write ``reports/book/<scale>`` anew and return its pages, the contents page first."""
    from study.book.reference import reference

    templates, target = home / "book", home / "reports" / "book" / scale
    executed = {name: home / "reports" / scale / f"{name}.ipynb" for name in chapters(home)}
    links = {path.name: f"{name}.html" for name, path in executed.items() if path.is_file()}
    links |= {f"{name}.md": f"{name}.html" for name in DOCUMENTS}
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    pages = []
    for name, path in executed.items():
        if path.name not in links:
            pages.append(Page(name, title_of(home / "notebooks" / path.name)))
            continue
        try:
            body, figures = notebook_html(path, templates)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(home)}: {error}") from None
        for file, content in figures.items():
            (target / file).parent.mkdir(exist_ok=True)
            (target / file).write_bytes(content)
        pages.append(page(name, body, links | {Path(file).name: file for file in figures}))
    for name in DOCUMENTS:
        text = (home / "docs" / f"{name}.md").read_text(encoding="utf-8")
        pages.append(page(name, markdown(text), links))
    pages.insert(-1, page("api", markdown(reference()), links))
    made = [page for page in pages if page.body]
    environment = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbered = [(page.name, *entry) for page in made for entry in page.numbered]
    numbered.sort(key=lambda entry: _place(entry[2]))
    contents = environment.get_template("contents.html.j2").render(pages=pages, numbered=numbered)
    made.insert(0, Page("index", "Contents", contents))
    shared = {"pages": made, "origins": origins(home, scale)}
    for i, current in enumerate(made):
        html = environment.get_template("page.html.j2").render(
            page=current,
            previous=made[i - 1] if i else None,
            following=made[i + 1] if i + 1 < len(made) else None,
            **shared,
        )
        write_text(target / f"{current.name}.html", html)
    index = [
        [f"{page.name}.html#{s.anchor}", page.title, s.title, s.text]
        for page in made
        for s in page.sections
    ]
    write_text(
        target / "search.js",
        f"const SECTIONS = {json.dumps(index, ensure_ascii=False, indent=0)};\n",
    )
    style = (templates / "style.css").read_text(encoding="utf-8")
    write_text(target / "style.css", f"{style}\n{code_style()}")
    shutil.copy(templates / "book.js", target)
    shutil.copy(home / "docs" / "excitation.svg", target)
    return made
