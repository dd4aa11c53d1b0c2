"""Sphinx's settings for the book; ``study.book.build`` collects the pages and calls it.

Nothing of a page comes from the network: equations are MathML, search is Sphinx's own.
"""

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

project = "wexlib"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = [".doctrees", "numbered.md"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = nb_code_prompt_hide = "Code"
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False

html_theme = "sphinx_book_theme"
html_title = "Weight excitation"
html_static_path = ["static"]
html_css_files = ["book.css"]
templates_path = ["templates"]
html_context = {"default_mode": "auto"}
html_copy_source = html_use_index = html_domain_indices = False
# A summary would be fetched, which a page that is opened from disk may not do.
html_show_search_summary = False
html_theme_options = {
    "article_footer_items": ["origins.html"],
    "footer_content_items": [],
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}


def mathml(translator, node: nodes.math | nodes.math_block) -> None:
    """An equation as MathML, which browsers set themselves."""
    latex, block = node.astext(), isinstance(node, nodes.math_block)
    try:
        equation = tex2mathml(latex, as_block=block).replace(">'<", ">′<")
    except MathError as error:
        message = f"equation {latex!r} cannot be set: {error}"
        logging.getLogger(__name__).warning(message, location=node)
        equation = ""
    translator.body.append(f'<div class="equation">{equation}</div>' if block else equation)
    raise nodes.SkipNode


def readable(app, what, name, obj, options, lines: list[str]) -> None:
    """A docstring's indented paragraphs are code, ``*space`` and ``|u|`` in its prose formulas."""
    marks = re.compile(r"(``.*?``)|(?<![\w*])(?=\*\w)|(?=\|)", re.DOTALL)
    blocks = [""] + "\n".join(lines).split("\n\n")
    for i, block in enumerate(blocks):
        if block.startswith("    ") and not blocks[i - 1].startswith((" ", ".", ":", "*", "-")):
            blocks[i] = f"::\n\n{block}"
        else:
            blocks[i] = marks.sub(lambda found: found[1] or "\\", block)
    lines[:] = "\n\n".join(blocks[1:]).split("\n")


def without_returns(app, pagename: str, templatename, context: dict, doctree) -> None:
    """Source code without links to its documentation: they fail where a name has two places."""
    if pagename.startswith("_modules/"):
        context["body"] = re.sub(r'<a class="viewcode-back".*?</a>', "", context["body"])


def setup(app) -> None:
    app.connect("html-page-context", without_returns)
    app.connect("autodoc-process-docstring", readable)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
