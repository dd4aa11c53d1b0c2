"""The switches of :mod:`study.train.pinned`, asked of the libraries themselves."""

import os
import platform
import subprocess
import sys

import pytest

from study.train import pinned

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64's instruction sets")

#: Products, convolutions, sums: what each of the libraries adds up.
TRAINING = """
import hashlib, torch
torch.manual_seed(0)
x = torch.randn(50, 16, 8, 8, requires_grad=True)
y = torch.nn.Conv2d(16, 32, 3)(x).relu().flatten(1)
z = torch.nn.functional.gelu(torch.nn.Linear(32 * 36, 100)(y)).softmax(1)
z.square().sum().backward()
print("bits", hashlib.sha256(x.grad.numpy().tobytes()).hexdigest())
"""


def python(code: str, **more: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in pinned.ENVIRONMENT}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=clean | more, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def bits(text: str) -> str:
    return text.split("bits ")[1].split()[0]


@pytest.fixture(scope="module")
def told():
    """What the libraries say of themselves, pinned, while they train."""
    code = (
        "print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())\n"
        "from numpy._core import _multiarray_umath as umath\n"
        "print('numpy', [n for n in umath.__cpu_dispatch__ if umath.__cpu_features__[n]])"
    )
    verbose = {"ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}
    return python(TRAINING + code, **pinned.ENVIRONMENT, **verbose)


@pytest.mark.parametrize(
    "word", ["AVX2 1\n", "isa:Intel AVX2\n", "CNR:COMPATIBLE", "numpy ['X86_V3']\n"]
)
def test_every_library_takes_its_switch(told, word):
    assert word in told
    assert "avx512" not in told and "CNR:AUTO" not in told and "cannot disable" not in told


def test_bits_follow_the_instruction_sets(told):
    narrow = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    assert bits(python(TRAINING, **pinned.ENVIRONMENT | narrow)) != bits(told)
