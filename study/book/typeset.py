"""Markdown to HTML as the book shows it: equations as vectors, code in two sets of colours."""

import re
import textwrap
from functools import cache
from xml.etree import ElementTree

from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

#: An equation is set at this size, in pixels, and scales with the text around it.
SIZE = 16


@cache
def equation(latex: str, inline: bool) -> str:
    """An equation as SVG in the colour and size of the text.

    Raises:
        ValueError: it is not LaTeX that the typesetter knows.
    """
    from ziamath import Math
    from ziamath.tex import tex2mml

    try:
        mathml = tex2mml(latex, inline=inline)
        if unknown := re.search(r">(\\\w+)<", mathml):
            raise ValueError(f"unknown command {unknown[1]}")
        # The hat of \hat does not stretch, unlike that of \widehat.
        narrow = r'(<mover accent="true">(?:(?!mover).)*)<mo>&#x00302;'
        tree = ElementTree.fromstring(re.sub(narrow, r'\1<mo stretchy="false">&#710;', mathml))
        tree.set("mathcolor", "currentColor")
        typeset = Math(tree, size=SIZE)
    except Exception as error:  # the typesetter raises whatever it runs into
        raise ValueError(f"equation {latex!r} cannot be set: {error or 'not LaTeX'}") from error
    svg = typeset.svgxml()
    for side in ("width", "height"):
        svg.set(side, f"{float(svg.get(side)) / SIZE:.3f}em")
    svg.set("style", f"vertical-align:{typeset.getyofst() / SIZE:.3f}em")
    svg.set("role", "img")
    svg.set("aria-label", latex.strip())
    return ElementTree.tostring(svg, encoding="unicode")


class Renderer(IPythonRenderer):
    """Markdown as notebooks have it, its equations set."""

    def block_code(self, code: str, info: str | None = None) -> str:
        return super().block_code(textwrap.dedent(code), info)

    def inline_math(self, body: str) -> str:
        return equation(body, inline=True)

    def block_math(self, body: str) -> str:
        return f'<span class="equation">{equation(body, inline=False)}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")


def markdown(text: str) -> str:
    """Markdown to HTML."""
    renderer = Renderer(escape=False, exclude_anchor_links=True)
    return re.sub(
        r"\(?<svg .*?</svg>[,.;:!?)’']*", held, MarkdownWithMath(renderer=renderer).render(text)
    )


def held(found: re.Match) -> str:
    """An equation on one line with the bracket or the comma that touches it."""
    alone = found[0].startswith("<") and found[0].endswith(">")
    return found[0] if alone else f'<span class="held">{found[0]}</span>'


def code_style() -> str:
    """The colours of code on light and on dark ground."""
    from pygments.styles import get_style_by_name
    from pygments.token import STANDARD_TYPES

    light, dark = get_style_by_name("xcode"), get_style_by_name("github-dark")
    rules = []
    for token, name in STANDARD_TYPES.items():
        colours = [style.style_for_token(token)["color"] for style in (light, dark)]
        if name and any(colours):
            pair = ", ".join(f"#{colour}" if colour else "var(--ink)" for colour in colours)
            rules.append(f".highlight .{name} {{ color: light-dark({pair}) }}")
    return "\n".join(rules) + "\n"
