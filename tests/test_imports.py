"""Who may import whom, by the syntax tree; and that wexlib needs torch, numpy and safetensors."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: A file beside the folders is a room of its own.
ROOMS = "files notebook plan data train results figures book dvc repro submit cli".split()
#: Imports every module of wexlib where whatever else is installed cannot be found, but for what
#: torch itself imports.
ALONE = """
import importlib, sys
import numpy, safetensors.torch, torch
allowed = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names | {"wexlib"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"{name} is not one of torch, numpy and safetensors")
sys.meta_path.insert(0, Blocker())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
#: These are imported where torch brought Triton along, for a GPU.
TRITON = {"wexlib.ops.gpu", "wexlib.ops.grouped", "wexlib.ops.kernels"}
MODULES = sorted(
    {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in ROOT.glob("wexlib/**/*.py")
    }
    - TRITON
)


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return names | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


def test_a_room_imports_only_rooms_before_it_and_wexlib_none():
    for path in ROOT.glob("wexlib/**/*.py"):
        assert not [name for name in imported(path) if name.split(".")[0] == "study"], path
    for path in ROOT.glob("study/**/*.py"):
        room = path.relative_to(ROOT / "study").with_suffix("").parts[0]
        if room == "__init__":
            continue
        own = ROOMS.index(room)
        used = [name.split(".")[1] for name in imported(path) if name.startswith("study.")]
        later = {room for room in used if ROOMS.index(room) > own}
        assert not later, f"{path} imports {later}"


def test_wexlib_needs_torch_numpy_and_safetensors_alone():
    command = [sys.executable, "-c", ALONE, *MODULES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_wexlib_imports_no_triton_where_there_is_no_gpu():
    program = """
import sys, torch, wexlib
weight = torch.randn(4, 32, 3, 3, requires_grad=True)
kinds = [wexlib.Standardize(), wexlib.Location(wexlib.CBAM()), wexlib.Magnitude()]
layer = wexlib.excite(torch.nn.Conv2d(32, 4, 3), kinds)
with wexlib.precompute(layer):
    layer(torch.randn(1, 32, 8, 8)).sum().backward()
assert not [name for name in sys.modules if name.partition(".")[0] == "triton"]
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
