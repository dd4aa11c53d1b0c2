"""The book: its builder on small notebooks, and the real one at the smoke scale in a browser."""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas
import pytest
from bs4 import BeautifulSoup
from clones import PROJECT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import wexlib
from study.book import build as book
from study.book import reference
from study.book.typeset import equation, markdown

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
LINKS = (
    "See [two](02_second.ipynb), [methods](../docs/methods.md#the-end), [the parameters]"
    "(../params.yaml), [me](#shown)."
)
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
        outputs=[new_output("stream", text=text) for text in ("This figure ", "needs runs.")],
    ),
]


@pytest.fixture
def small(tmp_path) -> Path:
    """A project of two chapters, of which the scale has made the first."""
    shutil.copytree(PROJECT / "book", tmp_path / "book")
    shutil.copytree(PROJECT / "docs", tmp_path / "docs")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  chapter:\n    matrix:\n      notebook: [01_first, 02_second]\n"
    )
    for folder in ("notebooks", "reports/demo"):
        (tmp_path / folder).mkdir(parents=True)
    nbformat.write(new_notebook(cells=CELLS), tmp_path / "reports/demo/01_first.ipynb")
    second = new_notebook(cells=[new_markdown_cell("# 2. Second & last")])
    nbformat.write(second, tmp_path / "notebooks/02_second.ipynb")
    runs = {
        "demo/a": ("cifar10", {}),
        "demo/b": ("cinic10", {"commit": "f" * 40, "dirty": True}),
        "demo/c": ("cifar10", {}),
        "gpu/a": ("cifar10", {"device": "H100"}),
    }
    for run, (role, change) in runs.items():
        result = tmp_path / f"results/{run}.json"
        note = result.parent / "provenance" / result.name
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(NOTE | change))
        result.write_text(json.dumps({"data": {"dataset": "cifar10", "role": role}}))
    (tmp_path / "results/demo/provenance/d.json").write_text("{}")
    (tmp_path / "results/demo/d.json").write_text('{"not_run": "needs ImageNet"}')
    return tmp_path


@pytest.fixture
def first(small) -> BeautifulSoup:
    book.build(small, "demo")
    return parsed(small / "reports/book/demo/01_first.html")


def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_chapters_come_by_number_and_the_other_notebooks_after():
    names = book.chapters(PROJECT)
    assert [name[:3] for name in names[:8]] == [f"0{n}_" for n in range(1, 9)]
    assert names[8:] == ["evidence", "speed", "your_own"]


def test_code_is_folded_and_set_up_is_one_fold(first):
    folds = first.select("article > details.code:not([open])")
    assert [fold.pre.get_text().strip() for fold in folds] == [
        "scale = None\n\nimport seaborn\n\nprint(1)",
        "table()",
        "draw()",
        "model = None",
        "missing()",
    ]


def test_code_of_a_cell_that_is_tagged_show_is_open(first):
    [code] = first.select("article > details.code[open] > div")
    assert code.get_text().strip() == "fold(model)"


def test_printed_text_is_escaped_and_a_missing_figure_says_so(first):
    texts = [output.get_text().strip() for output in first.select("pre.output")]
    assert texts == [PRINTED, "This figure needs runs."]
    assert not [script for script in first.find_all("script") if "alert" in script.get_text()]


def test_equations_are_vectors_in_the_text_s_size_and_colour(first):
    inline, display, last = first.select("article svg")
    assert inline["aria-label"] == "a < b" and display.parent["class"] == ["equation"]
    for svg in (inline, display):
        assert svg["width"].endswith("em") and svg["height"].endswith("em")
        assert svg.find("path") and svg.find(fill="currentColor")
    assert last.parent["class"] == ["held"] and last.parent.get_text() == "()."
    # Two lines are taller than one.
    assert float(display["height"][:-2]) > 1.5 * float(inline["height"][:-2])
    assert "$" not in first.article.get_text()


@pytest.mark.parametrize("latex", [r"a \foo b", r"\frac{a", ""])
def test_what_is_no_equation_is_an_error_that_names_it(latex):
    with pytest.raises(ValueError, match="cannot be set") as error:
        equation(latex, inline=True)
    assert repr(latex) in str(error.value)


def test_the_error_names_the_notebook(small):
    path = small / "reports/demo/01_first.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell(r"$\foo$")]), path)
    with pytest.raises(ValueError, match=r"reports/demo/01_first.ipynb: .*unknown command \\foo"):
        book.build(small, "demo")


def test_links_lead_into_the_book_or_are_text(first):
    addresses = {link.get_text(): link["href"] for link in first.select("article p a")}
    assert addresses == {"methods": "methods.html#the-end", "me": "#shown"}
    assert "See two," in " ".join(first.article.get_text().split())


def test_a_chapter_that_is_not_made_is_listed_and_not_linked(small):
    pages = book.build(small, "demo")
    assert [page.name for page in pages] == [
        "index",
        "01_first",
        "thesis",
        "methods",
        "api",
        "bibliography",
    ]
    contents = parsed(small / "reports/book/demo/index.html")
    [line] = [item for item in contents.select(".chapters > li") if "Second" in item.get_text()]
    assert "2. Second & last not made at this scale yet" in " ".join(line.get_text().split())
    assert not line.find("a")
    following = parsed(small / "reports/book/demo/01_first.html").select_one("[rel=next]")
    assert following["href"] == "thesis.html"


def test_tables_and_figures_are_numbered_as_in_the_thesis(small, first):
    caption = first.select_one("p#table-6-2.caption")
    assert caption.strong.get_text() == "Table 6.2. CBAM, short."
    image = first.select_one("figure#figure-3-8 img")
    assert image["alt"] == "Figure 3.8. Two <curves>"
    assert (small / "reports/book/demo" / image["src"]).read_text() == SVG
    contents = parsed(small / "reports/book/demo/index.html")
    entries = {a["href"]: " ".join(a.get_text().split()) for a in contents.select(".numbered a")}
    assert entries == {
        "01_first.html#table-6-2": "6.2 CBAM, short, ResNeXt-29, 10 epochs",
        "01_first.html#figure-3-8": "3.8 Two <curves>",
    }


def test_numbers_are_flush_right_and_an_empty_column_goes(first):
    heads = first.select("th")
    assert [head.get_text() for head in heads] == ["row", "thesis (%)", "n"]
    assert [head.get("class") for head in heads] == [None, ["number"], ["number"]]
    assert first.select_one(".scroll > table") and not first.select("td[style]")


def test_a_frame_with_a_named_index_has_one_line_of_heads():
    frame = pandas.DataFrame({"n": [1, 2]}, index=pandas.Index(["a", "b"], name="row"))
    page = book.page("name", frame.to_html(), {})
    assert [
        head.get_text() for head in BeautifulSoup(page.body, "html.parser").select("thead th")
    ] == [
        "row",
        "n",
    ]


def test_every_page_says_where_its_numbers_come_from(small):
    for page in book.build(small, "demo"):
        terms = parsed(small / f"reports/book/demo/{page.name}.html").select("footer dl div")
        assert [(term.dt.get_text(), term.dd.get_text()) for term in terms] == [
            ("Scale", "demo"),
            ("Data", "cifar10, also in the place of cinic10"),
            ("Runs", "3, finished 2026-01-02"),
            ("Commit", "0123456789 (2); ffffffffff with later changes (1)"),
            ("Machine", "Linux x86_64, 2 cores"),
            ("Versions", "Python 3.12.1, torch 2.15.0"),
            ("Scale", "gpu"),
            ("Data", "cifar10"),
            ("Runs", "1, finished 2026-01-02"),
            ("Commit", "0123456789"),
            ("Machine", "Linux x86_64, 2 cores, H100"),
            ("Versions", "Python 3.12.1, torch 2.15.0"),
        ]


def test_the_same_results_give_the_same_bytes(small):
    def bytes_of() -> dict[Path, bytes]:
        book.build(small, "demo")
        return {p: p.read_bytes() for p in (small / "reports/book").rglob("*") if p.is_file()}

    assert bytes_of() == bytes_of()


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
            assert contents.select(f'.numbered a[href="{chapter}.html#{anchor}"]'), label


# --- The API reference and the bibliography ------------------------------------------------------


def test_a_docstring_as_markdown():
    def function(x):
        """Sum *space of ``x`` and :func:`y`, |z| < 1_a_b.

            A = B*C*D

        Args:
            x, y: numbers, in
                two lines.

        Raises:
            ValueError: never.

        * one
          point
        """

    text = reference.prose(reference.inspect.getdoc(function))
    soup = BeautifulSoup(markdown(text), "html.parser")
    assert soup.p.get_text() == "Sum *space of x and y, |z| < 1_a_b."
    assert [code.get_text() for code in soup.p.find_all("code")] == ["x", "y"]
    assert soup.pre.get_text().strip() == "A = B*C*D"
    assert [h.get_text() for h in soup.find_all("h4")] == ["Arguments", "Raises"]
    items = [" ".join(item.get_text().split()) for item in soup.find_all("li")]
    assert items == ["x, y: numbers, in two lines.", "ValueError: never.", "one point"]
    assert not soup.find("em")


def test_the_reference_has_every_public_name_with_its_arguments():
    soup = BeautifulSoup(markdown(reference.reference()), "html.parser")
    heads = {head.get_text(): head for head in soup.find_all(["h2", "h3"])}
    for name in wexlib.__all__:
        code = heads[f"wexlib.{name}"].find_next("pre").get_text()
        for argument in reference.inspect.signature(getattr(wexlib, name)).parameters:
            assert re.search(rf"\b{argument}: ", code), f"{name} without {argument}"
    for name in ("magnitude.thesis", "attention.Attention", "attention.FeatureAttention"):
        assert name in heads
    names = next(p for p in soup.find_all("p") if p.get_text().startswith("ACTIVATIONS"))
    assert "leaky_relu" in names.get_text()


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
        page.on("console", lambda message: troubles.append(f"{page.url}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"{page.url}: {error}"))
        page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
        page.on("request", lambda request: requested(request.url))
        return page

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
    names = sorted(path.stem for path in (made / "reports/book/smoke").glob("*.html"))
    assert {*book.chapters(PROJECT), "index", "thesis", "methods", "api", "bibliography"} == set(
        names
    )
    return names


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
            "[...document.querySelectorAll('article svg[role=img]')]"
            ".map(s => s.getBoundingClientRect()).map(r => [r.width, r.height])"
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
    anchors, links = {}, set()
    for name in names:
        page = visit(name)
        anchors[name] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        links |= set(page.evaluate("[...document.links].map(a => a.href)"))
    folder = (made / "reports/book/smoke").as_uri()
    inside = {link for link in links if link.startswith(folder)}
    assert len(inside) > 100
    assert {urlsplit(link).hostname for link in links - inside} <= {"arxiv.org", "doi.org"}
    for link in inside:
        path = Path(unquote(urlsplit(link).path))
        assert path.is_file(), link
        if fragment := unquote(urlsplit(link).fragment):
            assert fragment in anchors[path.stem], link


def test_search_finds_a_section_and_goes_there(visit):
    page = visit("index")
    page.keyboard.press("/")
    page.keyboard.type("paused standardization")
    hits = page.locator("#found a")
    assert hits.count() > 1 and page.locator("#found mark").count() > 1
    assert "Paused" in hits.first.inner_text()
    page.keyboard.press("Enter")
    page.wait_for_url("**/03_preliminary.html#*")
    anchor = urlsplit(page.url).fragment
    assert page.locator(f"[id='{anchor}']").inner_text().startswith("3.4 Paused")
    page.locator("#search input").fill("nosuchword")
    assert page.locator("#found").inner_text() == "Nothing has “nosuchword”."
    page.keyboard.press("Escape")
    assert page.locator("#found").is_hidden()


def test_the_chosen_theme_stays(visit):
    page = visit("index", theme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator("#theme").click()
    dark = page.evaluate(ground)
    assert luminance(dark) < 0.5 < luminance(light)
    page.goto(page.locator("[rel=next]").evaluate("a => a.href"))
    assert page.evaluate(ground) == dark


def test_contents_and_wide_tables_on_a_phone(visit):
    page = visit("methods", width=390)
    assert page.locator("#contents").is_hidden()
    page.locator("#menu").click()
    assert page.locator("#contents [aria-current]").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#contents").is_hidden()
    wide = page.evaluate(
        "[...document.querySelectorAll('.scroll')].map(b => b.scrollWidth - b.clientWidth)"
    )
    assert max(wide) > 0


def test_code_is_shown_when_asked(visit):
    page = visit("06_results")
    code = page.locator("details.code pre").first
    assert code.is_hidden()
    page.locator("details.code summary").first.click()
    assert code.is_visible()
