"""The kernels of a GPU against the naive loops, by Triton's interpreter, which computes on a CPU.

It has to be on before Triton is imported, so the tests run in a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from methods import METHODS, deviation

from wexlib.ops import fused

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
by_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")
#: Methods whose kernels differ, and shapes that take one tile, several, and part of one.
CASES = [
    ("standardize", (3, 5, 3, 3)),
    ("location, SE with a skip", (2, 20)),
    ("standardize + location, SE", (2, 18, 3, 3)),
    ("standardize + the novel module", (2, 18, 2, 4)),
    ("location, CBAM", (2, 3, 2, 3, 2)),
    ("global, each channel", (2, 5, 3)),
    ("control, mean gate", (2, 4, 3, 3)),
    ("magnitude, artanh", (3, 5, 1, 3)),
    ("magnitude, thesis", (2, 3, 3, 3)),
    ("standardize + SE + magnitude", (2, 17, 3)),
    ("standardize + the novel module", (1, 40, 9, 9)),
]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def test_the_kernels_by_the_interpreter():
    if INTERPRETED or not fused.has_triton():
        pytest.skip("there is no Triton, or it is that process")
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def kernels(monkeypatch):
    """A CPU's loops are those of a GPU; the kernels that were launched, by name."""
    from wexlib.ops import gpu

    monkeypatch.setitem(fused.CALLS, "cpu", fused.CALLS["cuda"])
    monkeypatch.setattr(fused, "library", lambda: True)
    launched, launch = [], gpu.launch

    def counted(kernel, *arguments, **constants):
        launched.append(kernel.fn.__name__)
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(gpu, "launch", counted)
    return launched


def formats(weight):
    yield weight
    if weight.dim() in FORMATS:
        yield weight.to(memory_format=FORMATS[weight.dim()])


@by_interpreter
@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def test_a_kernel_gives_what_the_loop_gives(name, shape, kernels):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dtype, within in ((torch.float64, 1e-11), (torch.float32, 3e-5)):
        worst = [deviation(METHODS[name], w) for w in formats((drawn * 0.3 + 0.1).to(dtype))]
        forward, backward = map(max, zip(*worst, strict=True))
        print(f"{name}, {shape}, {dtype}: {forward:.1e} {backward:.1e}")
        assert kernels
        assert forward <= within and backward <= within
