"""What a run's code is: the definitions that it reaches, without comments, docstrings and layout.

From the code cells of ``train.ipynb`` on, every name leads to its definition at the top level of a
module of wexlib or study, and that to the next. Of the tables in :data:`CHOICES` only the entries
are followed that a plan asks for, so a new model, attention or data set changes no other run.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from study.plan import OWN

PACKAGES = ("wexlib", "study")
#: Tables from which a plan chooses by name: dictionaries with texts as keys.
CHOICES = {
    "wexlib.names.ACTIVATIONS",
    "wexlib.names.RANGES",
    "wexlib.attention.ATTENTIONS",
    "wexlib.magnitude.SCALED",
    "wexlib.magnitude.UNSCALED",
    "wexlib.control.LENDERS",
    "wexlib.models.MODELS",
    "wexlib.ops.GROUPS",
    "wexlib.ops.capture.GRAPHS",
    "wexlib.ops.fused.CALLS",
    "study.data.loader.STREAMS",
    "study.data.sources.DATASETS",
    "study.plan.network.EXCITATIONS",
    "study.plan.network.STACKED",
    "study.train.tasks.TASKS",
}
#: Modules that change no number: they look at a network, or start what trains it.
LOOKING = {"wexlib.describe", "study.train.processes"}
Statements = list[ast.stmt]


def code_text(tree: object) -> str:
    """A syntax tree without docstrings and empty fields, the same on every Python."""
    if isinstance(tree, list):
        return f"[{', '.join(map(code_text, tree))}]"
    if not isinstance(tree, ast.AST):
        return repr(tree)
    fields = dict(ast.iter_fields(tree))
    if isinstance(tree, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if ast.get_docstring(tree, clean=False) is not None:
            fields["body"] = fields["body"][1:]
    shown = (f"{k}={code_text(v)}" for k, v in fields.items() if v is not None and v != [])
    return f"{type(tree).__name__}({', '.join(shown)})"


def cpp_text(source: str) -> str:
    """C++ without comments and formatting."""
    return " ".join(re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL).split())


def notebook_code(path: Path) -> str:
    """The code cells of a notebook as one source, each after its tags."""
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a notebook: restore it with git restore {path}") from None
    return "\n".join(
        f"{cell['metadata'].get('tags', [])!r}\n{''.join(cell['source'])}"
        for cell in cells
        if cell["cell_type"] == "code"
    )


def words(plan: object, key: str = "") -> set[str]:
    """What a plan asks for by name: its texts, and the keys whose value is not nothing."""
    if key in ("run", "role") and plan != OWN:
        return set()  # what stands in for a data set is not that one
    if isinstance(plan, dict):
        return set().union(*(words(value, name) for name, value in plan.items()))
    if isinstance(plan, list):
        return set().union(*(words(value, key) for value in plan))
    if plan in (None, False, 0, "none"):
        return {"none"}
    return {key, plan} if isinstance(plan, str) else {key}


def devices(plan: dict) -> set[str]:
    """The kinds of device that the plan's scale is made for: the kernels of a GPU are no part of
    what a run on a CPU is."""
    return {"cpu", "cuda"} if plan.get("scale") in ("gpu", "thesis") else {"cpu"}


class Code:
    """The modules of a checkout, parsed once, and what is reached in them.

    Args:
        home: the folder that holds the packages.

    Raises:
        ValueError: a file is no Python; it is named, with the line.
    """

    def __init__(self, home: Path):
        self.home, self.modules = home, {}
        for package in PACKAGES:
            for path in sorted((home / package).rglob("*.py")):
                name = ".".join(path.relative_to(home).with_suffix("").parts)
                source = path.read_text(encoding="utf-8")
                self.modules[name.removesuffix(".__init__")] = parse(source, path.name)

    @cache  # noqa: B019 - one object a command
    def _read(self, node: ast.AST) -> tuple[str, tuple[str, ...]]:
        """A node's text, and the names that it uses."""
        return code_text(node), tuple(dict.fromkeys(_names(node)))

    @cache  # noqa: B019
    def _definitions(self, module: str) -> tuple[dict[str, Statements], dict[str, str]]:
        """A module's definitions, "" for its loose statements, and what its imports name."""
        found: dict[str, Statements] = {}
        imports: dict[str, str] = {}
        for node in self.modules[module].body:
            imports |= _imports(node)
            for name in _defined(node):
                found.setdefault(name, []).append(node)
        return found, imports

    def reached(self, start: str, plan: dict | None = None) -> dict[str, str]:
        """Digests of what ``start``, a source, reaches for a plan: its own and each module's.

        Without a plan every entry of the tables is followed.
        """
        asked, texts, seen = None if plan is None else words(plan) | devices(plan), {}, set()
        tree = parse(start, "the notebook")
        imports = _imports(tree)
        todo = [imports.get(name, name) for name in _names(tree)]
        for target in todo:  # grows as it is read
            if target in seen or not (place := self._place(target)):
                continue
            seen.add(target)
            module, name = place
            if module in LOOKING:
                continue
            definitions, imports = self._definitions(module)
            if name in imports:
                todo.append(imports[name])
                continue
            for node in definitions.get(name, ()):
                parts = _chosen(node, asked) if f"{module}.{name}" in CHOICES else [node]
                read = [self._read(part) for part in parts]
                texts.setdefault(module, {}).setdefault(name, []).extend(text for text, _ in read)
                for used in (used for _, names in read for used in names):
                    head, _, rest = used.partition(".")
                    known = imports.get(head, f"{module}.{head}" if head in definitions else "")
                    todo.append(".".join(filter(None, (known, rest))) if known else "")
            todo.append(f"{module}.")
        for module in list(texts):
            path = self.home / Path(*module.split(".")).with_suffix(".cpp")
            if path.is_file():
                texts[f"{module}.cpp"] = {"": [cpp_text(path.read_text(encoding="utf-8"))]}
        texts["start"] = {"": [code_text(tree)]}
        return {module: _digest(texts[module]) for module in sorted(texts)}

    def _place(self, target: str) -> tuple[str, str] | None:
        """The module and the name in it that a dotted name leads to."""
        parts = target.split(".")
        for i in range(len(parts), 0, -1):
            module = ".".join(parts[:i])
            if module in self.modules:
                return module, parts[i] if i < len(parts) else ""
        return None


def parse(source: str, name: str = "source") -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"{name}, line {error.lineno}: {error.msg}") from None


def _imports(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for, inside functions too."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                a.asname or a.name: a.name for a in node.names if a.asname or "." not in a.name
            }
    return found


def _defined(node: ast.stmt) -> Iterable[str]:
    """The names that a statement defines; "" for one that defines none."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return []
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return []
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    return [n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)] or [""]


def _names(tree: ast.AST) -> Iterator[str]:
    """Every name that is used, with the attributes behind it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            parts, inner = [node.attr], node.value
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name):
                yield ".".join([inner.id, *reversed(parts)])


def _chosen(node: ast.stmt, asked: set[str] | None) -> list[ast.AST]:
    """The values of a table's entries that are asked for."""
    entries = zip(node.value.keys, node.value.values, strict=True)
    return [value for key, value in entries if asked is None or key is None or key.value in asked]


def _digest(definitions: dict[str, list[str]]) -> str:
    return hashlib.sha256(json.dumps(definitions, sort_keys=True).encode()).hexdigest()[:16]
