"""The API reference as Markdown: public names and the modules that a user extends."""

import ast
import importlib
import inspect
import re
import textwrap
from types import ModuleType

import wexlib

#: Modules that are shown whole, since users add to them.
EXTENDED = ("attention", "magnitude", "names")


def reference() -> str:
    """Every public name of wexlib, then every one of the extended modules."""
    parts = [
        "# API reference",
        "What `import wexlib` offers, then the modules to add to: an attention, a magnitude "
        "function, an activation. Each entry ends with its source.",
    ]
    for name in sorted(wexlib.__all__, key=str.lower):
        parts.append(entry(f"wexlib.{name}", getattr(wexlib, name), level=2))
    for name in EXTENDED:
        module = importlib.import_module(f"wexlib.{name}")
        parts += [f"## wexlib.{name}", prose(inspect.getdoc(module))]
        parts += [
            f"`{constant}`: {', '.join(f'`{key}`' for key in names)}."
            for constant, names in constants(module)
        ]
        parts += [
            entry(f"{name}.{key}", value, level=3)
            for key, value in own(module)
            if key not in wexlib.__all__
        ]
    return "\n\n".join(parts)


def constants(module: ModuleType) -> list[tuple[str, list[str]]]:
    """The names that a module's own constants hold, such as those of the magnitude functions."""
    source = inspect.getsource(module)
    return [
        (constant, list(value))
        for constant, value in vars(module).items()
        if re.search(rf"^{constant}\b.* = ", source, re.MULTILINE)
        and isinstance(value, dict | tuple)
        and all(isinstance(key, str) for key in value)
    ]


def own(owner: ModuleType | type) -> list[tuple[str, object]]:
    """The public functions and classes that a module or class defines itself, with a docstring."""
    module = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
    return [
        (name, value)
        for name, value in vars(owner).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module
        and value.__doc__
    ]


def entry(title: str, value: object, level: int) -> str:
    """Heading, signature, docstring, the documented methods, and the source, folded."""
    lines, first = inspect.getsourcelines(value)
    source = textwrap.dedent("".join(lines))
    path = f"{value.__module__.replace('.', '/')}.py"
    parts = [f"{'#' * level} {title}", f"```python\n{signature(source)}\n```"]
    parts.append(prose(inspect.getdoc(value)))
    if inspect.isclass(value):
        for _, method in own(value):
            text = textwrap.dedent(inspect.getsource(method))
            parts += [f"```python\n{signature(text)}\n```", prose(inspect.getdoc(method))]
    parts += [
        f'<details class="code"><summary>Source: {path}, line {first}</summary>',
        f"```python\n{source}```",
        "</details>",
    ]
    return "\n\n".join(parts)


def signature(source: str) -> str:
    """The head of a function as its source has it; of a class, its line and what it is made of."""
    [node] = ast.parse(source).body
    lines = source.splitlines()
    if isinstance(node, ast.FunctionDef):
        return "\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
    head = [lines[node.lineno - 1]]
    for part in node.body:
        if isinstance(part, ast.AnnAssign):
            head.append(f"    {ast.unparse(part)}")
        elif isinstance(part, ast.FunctionDef) and part.name == "__init__":
            head += lines[part.lineno - 1 : part.body[0].lineno - 1]
    return "\n".join(head)


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: indented blocks stay code, sections become lists."""
    blocks: list[tuple[bool, list[str]]] = []
    section = False
    for line in (docstring or "").splitlines():
        if name := re.fullmatch(r"(Args|Raises|Returns):", line):
            section, line = True, f"#### {name[1].replace('Args', 'Arguments')}\n"
        elif section and (item := re.match(r"    (\S[^:]*): (.*)", line)):
            line = f"- ``{item[1]}``: {item[2]}"
        elif section and line.startswith("    "):
            line = f"  {line.strip()}"
        elif line:
            section, line = False, re.sub(r"^\* ", "- ", line)
        code = line.startswith("    ")
        if not blocks or blocks[-1][0] != code and line:
            blocks.append((code, []))
        blocks[-1][1].append(line)
    texts = ["\n".join(lines) for _, lines in blocks]
    return "\n".join(
        text if code else inline(text) for text, (code, _) in zip(texts, blocks, strict=True)
    )


def inline(text: str) -> str:
    """Names in double backticks or of a role as code; all else as it stands."""
    parts = re.split(r"``(.+?)``", re.sub(r":\w+:`~?([^`]+)`", r"``\1``", text), flags=re.DOTALL)
    parts[::2] = [re.sub(r"([\\_<$|\[\]]|(?<!\*)\*(?!\*))", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"`{' '.join(part.split())}`" for part in parts[1::2]]
    return "".join(parts)
