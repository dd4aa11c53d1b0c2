"""What a run's code is: what changes it, and what does not."""

import copy
import json
import shutil
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from study.files import root
from study.plan.code import CHOICES, Code, code_text, cpp_text, notebook_code, parse, words

PROJECT = root(Path(__file__).parent)

SOURCE = '''
"""A docstring."""
import math
# A comment.
def f(x, *, y=None):
    """What f does."""
    return [x, f"{x:>{y}}" 'b', None]
'''


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.replace("# A comment.", "# Another one."),
        lambda s: s.replace('"""A docstring."""', ""),
        lambda s: s.replace("What f does", "What it does not"),
        lambda s: s.replace("(x, *, y=None)", "(\n    x,\n    *,\n    y=None,\n)"),
        lambda s: s.replace("'b'", '"b"'),
    ],
)
def test_a_digest_leaves_prose_and_formatting_alone(edit):
    assert edit(SOURCE) != SOURCE
    assert code_text(parse(edit(SOURCE))) == code_text(parse(SOURCE))


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.replace("y=None", "y=0"),
        lambda s: s.replace("None]", "True]"),
        lambda s: s.replace(", None]", "]"),
        lambda s: s.replace("'b'", "'c'"),
        lambda s: s.replace("import math", "import cmath"),
    ],
)
def test_a_digest_sees_code(edit):
    assert edit(SOURCE) != SOURCE
    assert code_text(parse(edit(SOURCE))) != code_text(parse(SOURCE))


FILES = {
    "wexlib/__init__.py": "from wexlib.layers import excite\n",
    "wexlib/layers.py": """
from wexlib import maths
from wexlib.loops import run

ATTENTIONS = {"se": maths.squeeze, "cbam": maths.block}
UNUSED = 1

def excite(name):
    return ATTENTIONS[name](run)

def unused():
    return UNUSED
""",
    "wexlib/maths.py": """
HALF = 0.5

def squeeze(f):
    return f(HALF)

def block(f):
    return f(2)
""",
    "wexlib/loops.py": "def run(x):\n    return x\n",
    "wexlib/loops.cpp": "// why\nint f(int x) { return x / 2; }  // how\n",
    "study/__init__.py": "",
    "study/loop.py": """
def fit(plan):
    from wexlib import excite
    return excite(plan)
""",
}
START = "from study.loop import fit\nfit(1)"


@pytest.fixture
def digests(tmp_path, monkeypatch):
    """Digests of what START reaches for an attention, after edits of the files above."""
    monkeypatch.setattr("study.plan.code.CHOICES", {"wexlib.layers.ATTENTIONS"})

    def of(attention, **edits):
        for name, text in FILES.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            for old, new in edits.items():
                text = text.replace(*new) if name.endswith(f"{old}.py") else text
            path.write_text(text)
        plan = None if attention is None else {"attention": attention}
        return Code(tmp_path).reached(START, plan)

    return of


def changed(before, after):
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_a_run_reaches_what_it_uses_and_nothing_else(digests):
    modules = {"wexlib.layers", "wexlib.maths", "wexlib.loops", "wexlib.loops.cpp", "study.loop"}
    assert set(digests("se")) - {"start"} == modules
    same = digests("se")
    for edit in (
        {"layers": ("UNUSED = 1", "UNUSED = 2")},
        {"layers": ("return UNUSED", "return 3")},
        {"layers": ("maths.block}", "maths.block, 'bam': maths.HALF}")},
        {"maths": ("return f(2)", "return f(3)")},
        {"maths": ("HALF = 0.5", "HALF = 0.5  # a half")},
        {"maths": ("def squeeze(f):", 'def squeeze(f):\n    """Words."""')},
    ):
        assert digests("se", **edit) == same


def test_a_changed_definition_changes_who_uses_it(digests):
    before = {name: digests(name) for name in ("se", "cbam", None)}
    edit = {"maths": ("HALF = 0.5", "HALF = 0.25")}
    assert changed(before["se"], digests("se", **edit)) == {"wexlib.maths"}
    assert changed(before["cbam"], digests("cbam", **edit)) == set()
    assert changed(before[None], digests(None, **edit)) == {"wexlib.maths"}
    edit = {"loops": ("return x", "return -x")}
    assert changed(before["cbam"], digests("cbam", **edit)) == {"wexlib.loops"}


def test_a_run_depends_on_the_cpp_beside_a_module(digests, tmp_path):
    before = digests("se")
    loop = tmp_path / "wexlib" / "loops.cpp"
    text = loop.read_text()
    loop.write_text("/* other\nwords */ " + text.replace("why", "because").replace("{ r", "{\n r"))
    plan = {"attention": "se"}
    assert Code(tmp_path).reached(START, plan) == before
    loop.write_text(text.replace("2", "3"))
    assert changed(before, Code(tmp_path).reached(START, plan)) == {"wexlib.loops.cpp"}
    assert cpp_text("int a; // b") == "int a;"


def test_broken_code_is_named_with_its_line(digests):
    with pytest.raises(ValueError, match="maths.py, line 2: "):
        digests("se", maths=("HALF = 0.5", "HALF = ="))


def test_every_table_of_choices_is_there_with_texts_as_keys():
    for place in CHOICES:
        module, _, name = place.rpartition(".")
        table = getattr(import_module(module), name)
        assert table and all(isinstance(key, str) for key in table), place


def test_words_are_texts_and_the_keys_of_what_is_not_off():
    plan = {"we": {"standardize": True, "skips": False, "attention": "se", "magnitude": "none"}}
    assert words(plan) == {"standardize", "attention", "se", "none"}


@cache
def of_plans(home):
    start, code = notebook_code(PROJECT / "notebooks" / "train.ipynb"), Code(home)
    return {name: code.reached(start, plan) for name, plan in PLANS.items()}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The project's own code, to be edited."""
    folder = tmp_path_factory.mktemp("code")
    for package in ("wexlib", "study"):
        shutil.copytree(PROJECT / package, folder / package)
    return folder


PLANS = {
    name: {"model": "resnet18", "we": {"standardize": ws, "attention": attention, "magnitude": m}}
    for name, ws, attention, m in (
        ("plain", False, "none", "none"),
        ("ws", True, "none", "none"),
        ("se", False, "se", "none"),
        ("cbam", False, "cbam", "none"),
        ("artanh", False, "none", "artanh"),
    )
}
ON_A_GPU = "plain, on a GPU"
PLANS[ON_A_GPU] = PLANS["plain"] | {"scale": "gpu"}


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("wexlib/models.py", '    "vit": vit,', '    "vit": vit,\n    "mine": vit,', set()),
        ("wexlib/models.py", "class Mixer(", "MINE = 1\n\n\nclass Mixer(", set()),
        ("wexlib/attention.py", "class SE(", "# Why.\nclass SE(", set()),
        ("wexlib/describe.py", "def describe(model", "def describe(network", set()),
        ("wexlib/attention.py", '{"se": SE,', '{"mine": SE, "se": SE,', set()),
        (
            "study/data/sources.py",
            '"digits10": ',
            '"mine": digits.digits10,\n    "digits10": ',
            set(),
        ),
        ("wexlib/ops/kernels.py", "TILE, PLACES = 2048", "TILE, PLACES = 1024", {ON_A_GPU}),
        ("wexlib/ops/gpu.py", "LAST=last", "LAST=not last", {ON_A_GPU}),
        ("wexlib/ops/grouped.py", "deviation + 1e-5", "deviation + 1e-6", {ON_A_GPU}),
        ("wexlib/ops/fused.cpp", "double first = w[0]", "double first = 0", set(PLANS)),
        ("wexlib/models.py", "class ResNet(", "class ResNet(nn.Sequential, ", set(PLANS)),
        ("study/train/loop.py", "EVALUATION_BATCH = 500", "EVALUATION_BATCH = 5", set(PLANS)),
    ],
)
def test_what_an_edit_of_the_project_makes_stale(copied, file, old, new, stale):
    before = of_plans(PROJECT)
    path = copied / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    after = of_plans.__wrapped__(copied)
    path.write_text(text, encoding="utf-8")
    assert {name for name in PLANS if before[name] != after[name]} == stale


def test_the_digest_of_a_notebook_ignores_outputs_and_prose(tmp_path):
    path = PROJECT / "notebooks" / "train.ipynb"
    notebook = json.loads(path.read_text())
    edited = copy.deepcopy(notebook)
    for cell in edited["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = "other words"
        else:
            cell |= {"execution_count": 7, "outputs": [{"output_type": "stream"}]}
    copied = tmp_path / "train.ipynb"
    copied.write_text(json.dumps(edited))
    assert notebook_code(copied) == notebook_code(path)
    edited["cells"][-1]["source"] = "pass"
    copied.write_text(json.dumps(edited))
    assert notebook_code(copied) != notebook_code(path)
