"""The book: its builder on a small notebook, and the real one at the smoke scale in a browser."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from clones import PROJECT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import wexlib
from study.book import build as book

#: Sphinx and its extensions use what they deprecate themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]

SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20">
<text style="font-size: 8.8px; fill: #262626">a long label of an axis, longer than the title</text>
<text style="font-size: 9.6px; fill: #262626">Figure 3.8. Two &lt;curves&gt;</text></svg>"""
TABLE = """Table 6.2. CBAM, short. The thesis: ResNeXt-29, 10 epochs. Scale demo.

| row | thesis (%) | n | remark |
|:----|:-----------|:--|:-------|
| ResNeXt | 36.78 | 1 | |
| ResNeXt + WS | – | 1 | |
"""
NOTE = {
    "commit": "0123456789abcdef",
    "dirty": False,
    "device": "cpu",
    "machine": "Linux x86_64, 2 cores",
    "python": "3.12.1",
    "torch": "2.15.0",
    "finished": "2026-01-02T03:04:05+00:00",
}


def shown(text: str, kind: str = "text/markdown"):
    return new_output("display_data", data={kind: text, "text/plain": "<Figure>"})


SECTION = "## Shown\n\nBefore\n\n$$\\begin{aligned} a &= b \\\\ &= c \\end{aligned}$$"
PRINTED = "1 < 2 & <script>alert(1)</script>"
LINKS = "See [two](02_related.ipynb), [methods](../docs/methods.md), [me](#shown)."
CELLS = [
    new_markdown_cell(f"# 1. First\n\nIs $a < b$? {LINKS}"),
    new_code_cell("scale = None"),
    new_code_cell("import seaborn"),
    new_code_cell("print(1)", outputs=[new_output("stream", text=PRINTED)]),
    new_markdown_cell(SECTION),
    new_code_cell("table()", outputs=[shown(TABLE)]),
    new_code_cell("draw()", outputs=[shown(SVG, "image/svg+xml")]),
    new_code_cell("model = None"),
    new_code_cell("fold(model)", metadata={"tags": ["show"]}),
    new_markdown_cell("The end, ($x$)."),
    new_code_cell(
        "missing()",
        outputs=[new_output("stream", text=text) for text in ("This figure\n", "needs runs.")],
    ),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A project of which the scale demo has made the first chapter."""
    home = tmp_path_factory.mktemp("book")
    for folder in ("book", "docs", "notebooks"):
        shutil.copytree(PROJECT / folder, home / folder)
    (home / "reports/demo").mkdir(parents=True)
    write(home, CELLS)
    runs = {
        "demo/a": ("cifar10", {}),
        "demo/b": ("cinic10", {}),
        "demo/c": ("cifar10", {"device": "another on every machine"}),
        "gpu/a": ("cifar10", {}),
        "gpu/b": ("cifar10", {"commit": "f" * 40, "dirty": True, "device": "H100"}),
        "gpu/c": ("evidence", {"finished": "2026-01-03T00:00:00+00:00"}),
    }
    for run, (role, change) in runs.items():
        result = home / f"results/{run}.json"
        note = result.parent / "provenance" / result.name
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(NOTE | change))
        data = {"dataset": "cifar10", "role": role}
        result.write_text(json.dumps({"data": data, "test_last": [50.0]}))
    for scale in ("demo", "gpu"):
        (home / f"results/{scale}/provenance/d.json").write_text("{}")
        (home / f"results/{scale}/d.json").write_text('{"not_run": "needs ImageNet"}')
        (home / f"results/{scale}/summary.json").write_text('{"a": 50.0}')
    return home


def write(home: Path, cells: list) -> None:
    notebook = new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    nbformat.write(notebook, home / "reports/demo/01_introduction.ipynb")


@pytest.fixture(scope="module")
def small(home) -> Path:
    """The folder of that project's book."""
    assert book.build(home, "demo") == home / "reports/book/demo/index.html"
    return home / "reports/book/demo"


@pytest.fixture
def first(small) -> BeautifulSoup:
    return parsed(small / "01_introduction.html")


def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def texts(soup: BeautifulSoup, selector: str) -> list[str]:
    return [node.get_text().strip() for node in soup.select(selector)]


def test_chapters_come_by_number_and_the_other_notebooks_after():
    names = book.chapters(PROJECT)
    assert [name[:3] for name in names[:8]] == [f"0{n}_" for n in range(1, 9)]
    assert names[8:] == ["evidence", "speed", "your_own"]


def test_code_is_folded_and_set_up_is_one_fold(first):
    assert texts(first, "details.hide:not([open]) pre") == [
        "scale = None\n\nimport seaborn\n\nprint(1)",
        "table()",
        "draw()",
        "model = None",
        "missing()",
    ]


def test_code_of_a_cell_that_is_tagged_show_is_open(first):
    [code] = [pre for pre in first.select(".cell_input pre") if not pre.find_parent("details")]
    assert code.get_text().strip() == "fold(model)"


def test_printed_text_is_escaped_and_a_missing_figure_says_so(first):
    assert texts(first, ".cell_output .stream pre") == [PRINTED, "This figure\nneeds runs."]
    assert not [script for script in first.find_all("script") if "alert" in script.get_text()]


def test_equations_are_mathml(first):
    inline, display, last = first.select("article math")
    assert inline.get_text(strip=True) == "a<b" and display.parent["class"] == ["equation"]
    assert len(display.find_all("mtr")) == 2
    assert last.parent.get_text(strip=True) == "The end, (x)."
    assert "$" not in first.article.get_text()


def test_links_lead_into_the_book(first):
    addresses = {link.get_text(): link["href"] for link in first.select("article section p > a")}
    assert addresses == {"two": "02_related.html", "methods": "methods.html", "me": "#shown"}


def test_a_chapter_that_is_not_made_says_so(small):
    article = parsed(small / "06_results.html").article
    assert article.h1.get_text().startswith("6. Results")
    assert "This chapter is not made at scale demo yet." in article.get_text()
    contents = parsed(small / "index.html")
    assert contents.select_one('article li > a[href="06_results.html"]')


def test_tables_and_figures_are_numbered_as_in_the_thesis(small, first):
    table = first.select_one("table#table-6-2")
    assert table.caption.strong.get_text() == "Table 6.2. CBAM, short."
    image = first.select_one("figure#figure-3-8 img")
    assert image["alt"] == "Figure 3.8. Two <curves>"
    assert (small / image["src"]).read_text() == SVG
    contents = parsed(small / "index.html")
    assert {
        link["href"]: link.get_text() for link in contents.select("#tables a, #figures a[href*=_]")
    } == {
        "#tables": "#",
        "01_introduction.html#table-6-2": "6.2 CBAM, short: ResNeXt-29, 10 epochs",
        "01_introduction.html#figure-3-8": "3.8 Two <curves>",
    }


def test_numbers_are_flush_right_and_an_empty_column_goes(first):
    heads = first.select("th")
    assert [head.get_text() for head in heads] == ["row", "thesis (%)", "n"]
    assert [head["class"][-1] for head in heads] == ["text-left", "text-right", "text-right"]


def test_every_page_says_where_its_numbers_come_from(small):
    for name in ("index", "01_introduction", "06_results", "methods", "api"):
        terms = parsed(small / f"{name}.html").select(".origins dl div")
        assert [(term.dt.get_text(), term.dd.get_text()) for term in terms] == [
            ("Scale", "demo"),
            ("Data", "cifar10, also in the place of cinic10"),
            ("Runs", "3"),
            ("Scale", "gpu"),
            ("Data", "cifar10"),
            ("Runs", "3, finished 2026-01-02 to 2026-01-03"),
            ("Commit", "0123456789 (2); ffffffffff with later changes (1)"),
            ("Machine", "Linux x86_64, 2 cores (2); Linux x86_64, 2 cores, H100 (1)"),
            ("Versions", "Python 3.12.1, torch 2.15.0"),
        ]


def test_the_reference_has_every_public_name_with_its_arguments_and_its_source(small):
    api = parsed(small / "api.html")
    for name in wexlib.__all__:
        head = api.find("dt", id=f"wexlib.{name}")
        assert head.select_one("a[href^=_modules]"), name
        for argument in inspect.signature(getattr(wexlib, name)).parameters:
            assert re.search(rf"\b{argument}\b", head.get_text()), f"{name} without {argument}"
    for name in ("magnitude.thesis", "attention.Attention", "attention.FeatureAttention"):
        assert api.find("dt", id=f"wexlib.{name}")
    assert "leaky_relu" in api.find("dt", id="wexlib.names.ACTIVATIONS").get_text()
    assert {"Parameters:", "Raises:"} <= set(texts(api, "dl.field-list > dt"))
    # A formula in a docstring is code, and what is marked up by chance is text.
    assert any("relu(" in text and "\n" in text for text in texts(api, "dd pre"))
    assert "(N, C, *space)" in api.get_text() and "|u|" in api.get_text()


def test_the_same_results_give_the_same_bytes(home, small):
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}

    before = contents()
    code = "import pathlib; from study.book.build import build; build(pathlib.Path.cwd(), 'demo')"
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=home, env=environment, check=True)
    assert contents() == before


def test_what_is_wrong_is_an_error_that_names_the_page(home, small):
    shutil.copytree(home, home / "wrong", ignore=shutil.ignore_patterns("book.css", "build"))
    write(home / "wrong", [new_markdown_cell(r"# 1\n\n$a \foo b$ [p](../params.yaml)")])
    with pytest.raises(ValueError, match=r"01_introduction.ipynb.* cannot be set: .*foo") as error:
        book.build(home / "wrong", "demo")
    assert "'../params.yaml'" in str(error.value)


def test_every_figure_and_table_of_the_thesis_is_listed_and_made(made):
    counts = {"Figure": {1: 1, 2: 8, 3: 12, 4: 3, 5: 5, 6: 10}, "Table": {6: 11}}
    expected = {
        f"{kind} {chapter}.{i}"
        for kind, chapters in counts.items()
        for chapter, n in chapters.items()
        for i in range(1, n + 1)
    }
    text = (PROJECT / "docs/thesis.md").read_text(encoding="utf-8")
    listed = dict(
        re.findall(r"(?m)^\| (\w+ [\d.]+) \| \[\d\]\(\.\./notebooks/(\w+)\.ipynb\)", text)
    )
    assert set(listed) == expected
    contents = parsed(made / "reports/book/smoke/index.html")
    for label, chapter in listed.items():
        # The clone has few of the runs that chapter 6 draws.
        if not label.startswith("Figure 6."):
            anchor = label.lower().replace(" ", "-").replace(".", "-")
            assert contents.select(f'article a[href="{chapter}.html#{anchor}"]'), label


# --- The bibliography ----------------------------------------------------------------------------


def test_what_is_cited_is_in_the_bibliography():
    text = (PROJECT / "docs/bibliography.md").read_text(encoding="utf-8")
    works = set(re.findall(r"^- \*\*(.+?)\*\*", text, re.MULTILINE))
    sources = [*PROJECT.glob("wexlib/*.py"), *PROJECT.glob("notebooks/*.ipynb")]
    cited = {
        " ".join(work.split()).replace(" and ", " & ")
        for path in sources
        for work in re.findall(
            r"[A-Z]\w+(?: et\s+al\.| (?:&|and) [A-Z]\w+),? \(?(?:19|20)\d\d",
            path.read_text(encoding="utf-8"),
        )
    }
    assert len(cited) > 10
    assert {work.replace(",", "").replace("(", "") for work in cited} - works == set()
    for right in ("Salimans & Kingma 2016", "Materzynska et al. 2019", "Everingham et al. 2010"):
        assert right in works and text.count(right) == 2


# --- In a browser --------------------------------------------------------------------------------

VIEWS = [(width, theme) for width in (390, 1280) for theme in ("light", "dark")]


@pytest.fixture
def visit(browser, made):
    """Opens a page of the smoke scale's book; any error, or look at the network, fails the test."""
    troubles: list[str] = []
    pages = {}

    def new_page(width: int, theme: str):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=theme)
        page.on("console", said)
        page.on("pageerror", lambda error: troubles.append(f"{page.url}: {error}"))
        page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
        page.on("request", lambda request: requested(request.url))
        return page

    def said(message) -> None:
        if message.type in ("warning", "error"):
            troubles.append(f"{message.page.url}: {message.text}")

    def requested(url: str) -> None:
        if not url.startswith(("file:", "data:")):
            troubles.append(f"network: {url}")

    def visit(name: str, width: int = 1280, theme: str = "light"):
        page = pages.get((width, theme)) or new_page(width, theme)
        pages[width, theme] = page
        page.goto((made / f"reports/book/smoke/{name}.html").as_uri())
        return page

    yield visit
    for page in pages.values():
        page.close()
    assert troubles == []


@pytest.fixture(scope="module")
def names(made) -> list[str]:
    folder = made / "reports/book/smoke"
    pages = {path.stem for path in folder.glob("*.html")}
    others = {"index", "search", "libraries", "thesis", "methods", "api", "bibliography"}
    assert pages == {*book.chapters(PROJECT), *others}
    sources = [f"_modules/wexlib/{path.stem}" for path in folder.glob("_modules/wexlib/*.html")]
    return sorted(pages) + sources


def luminance(color: str) -> float:
    """The relative luminance of the WCAG of ``rgb(…)``."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("width", "theme"), VIEWS)
def test_every_page_is_whole_in_every_view(visit, names, width, theme):
    equations = 0
    for name in names:
        page = visit(name, width, theme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        broken = page.evaluate(
            "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
        )
        assert broken == []
        sizes = page.evaluate(
            "[...document.querySelectorAll('article math')]"
            ".map(m => m.getBoundingClientRect()).map(r => [r.width, r.height])"
        )
        assert all(min(size) > 2 for size in sizes), name
        equations += len(sizes)
        style = "getComputedStyle(document.body)"
        ink, ground = page.evaluate(f"[{style}.color, {style}.backgroundColor]")
        dark, light = sorted([luminance(ink), luminance(ground)])
        assert (light + 0.05) / (dark + 0.05) > 7
        assert (luminance(ground) < 0.5) == (theme == "dark")
    assert equations > 20


def test_every_link_resolves(visit, names, made):
    folder = made / "reports/book/smoke"
    anchors, links = {}, set()
    for name in names:
        page = visit(name)
        found = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        anchors[folder / f"{name}.html"] = {"", *found}
        links |= set(page.evaluate("[...document.links].map(a => a.href)"))
    inside = {link for link in links if link.startswith(folder.as_uri())}
    assert len(inside) > 100
    assert {urlsplit(link).hostname for link in links - inside} <= {"arxiv.org", "doi.org"}
    for link in inside:
        path = Path(unquote(urlsplit(link).path))
        assert unquote(urlsplit(link).fragment) in anchors[path], link


def test_search_finds_a_page_and_goes_there(visit):
    page = visit("index")
    page.keyboard.press("Control+k")
    page.keyboard.type("paused standardization")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=*")
    hits = page.locator("#search-results li a")
    hits.first.wait_for()
    assert hits.count() > 1
    hits.first.click()
    page.wait_for_url("**/03_preliminary.html*")
    page = visit("search")
    page.locator("input[type=search]:visible").first.fill("nosuchword")
    page.keyboard.press("Enter")
    page.get_by_text("did not match any documents").wait_for()


def test_the_chosen_theme_stays(visit):
    page = visit("index", theme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator(".theme-switch-button:visible").click()
    page.locator(".theme-change-button[data-mode=dark]:visible").click()
    dark = page.evaluate(ground)
    assert luminance(dark) < 0.5 < luminance(light)
    page.goto(page.locator("a.right-next").evaluate("a => a.href"))
    assert page.evaluate(ground) == dark


def test_contents_and_wide_tables_on_a_phone(visit):
    page = visit("methods", width=390)
    here = page.locator(".bd-links li.current > a:visible")
    assert here.count() == 0
    page.locator(".primary-toggle:visible").click()
    here.wait_for()
    page.keyboard.press("Escape")
    here.wait_for(state="hidden")
    wide = page.evaluate(
        "[...document.querySelectorAll('.pst-scrollable-table-container')]"
        ".map(b => b.scrollWidth - b.clientWidth)"
    )
    assert max(wide) > 0


def test_code_is_shown_when_asked(visit):
    page = visit("06_results")
    code = page.locator("details.hide pre").first
    assert code.is_hidden()
    page.locator("details.hide summary").first.click()
    assert code.is_visible()


def test_a_table_that_stands_again_has_no_second_name():
    numbered = {}
    text = "Table 6.2. Ten epochs. As planned: x.\n\n| a |\n|---|\n| b |"
    first, again = (book.tables(text, numbered) for _ in range(2))
    assert ":name: table-6-2\n" in first and ":name:" not in again
    assert again == first.replace(":name: table-6-2\n", "") and list(numbered) == ["table-6-2"]
