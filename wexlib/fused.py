"""The passes of :mod:`wexlib.passes` on a CPU, each one loop over the weight, in C++ (fused.cpp).

They are compiled when they are first asked for, in a few seconds, by ``$CXX`` or ``c++``, and kept
in the user's cache: ``python -m wexlib.fused`` says where, or what is missing. Without them a pass
is what it is on a GPU, some operations of torch's; results are the same to rounding.
"""

import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from wexlib.files import write

SOURCE = Path(__file__).with_suffix(".cpp")
#: Without them a call of the library or a division that might raise a signal keeps a loop from
#: being computed in vectors.
QUIET = ("-fno-math-errno", "-fno-trapping-math")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", *QUIET, "-shared", "-fPIC")
TYPES = {torch.float32: "float", torch.float64: "double"}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
#: Weights of fewer numbers are not worth a second thread.
SMALL = 2**14


def build() -> Path:
    """The library, compiled if it is not there yet for this source and this processor.

    Raises:
        RuntimeError: no compiler, or one that cannot compile it.
        OSError: the cache cannot be written.
    """
    made_of = [SOURCE.read_text(encoding="utf-8"), FLAGS]
    made_of += [platform.machine(), torch.cpu.get_capabilities()]
    key = hashlib.sha256(json.dumps(made_of, default=str).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    path = folder / "wexlib" / f"fused-{key}.so"
    if path.is_file():
        return path
    name = os.environ.get("CXX") or "c++"
    if (compiler := shutil.which(name)) is None:
        raise RuntimeError(
            f"no C++ compiler {name}: install one (Debian and Ubuntu: apt install g++), or name it "
            "by the variable CXX"
        )

    def compile(target: Path) -> None:
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")

    write(path, compile)
    return path


@cache
def library() -> ctypes.CDLL | None:
    """The compiled passes, or None where they cannot be had."""
    try:
        return ctypes.CDLL(str(build()))
    except (OSError, RuntimeError):
        return None


@cache
def _function(name: str, dtype: torch.dtype):
    function = getattr(library(), f"{name}_{TYPES[dtype]}")
    sizes = [ctypes.c_int64] * 3
    function.argtypes = [ctypes.c_int, ctypes.c_int, *sizes, ctypes.POINTER(ctypes.c_void_p)]
    function.restype = None
    return function


def fits(weight: Tensor, *others: Tensor | None) -> bool:
    """Whether there is a loop for a weight and what else a pass is given."""
    dtype = weight.dtype
    if dtype not in TYPES or not weight.numel():
        return False
    for x in (weight, *others):
        if x is not None and not (
            x.dtype == dtype and x.device.type == "cpu" and type(x) in (Tensor, nn.Parameter)
        ):
            return False
    return (weight.is_contiguous() or _channels_last(weight)) and library() is not None


def _channels_last(x: Tensor) -> bool:
    """Whether filter follows filter, each as (*space, C); the other order is (C, *space)."""
    order = CHANNELS_LAST.get(x.dim())
    return order is not None and x.is_contiguous(memory_format=order)


def laid(x: Tensor, weight: Tensor) -> Tensor:
    """x, of the weight's shape, in its memory format."""
    same = x.is_contiguous() if weight.is_contiguous() else _channels_last(x)
    return x if same else torch.empty_like(weight).copy_(x)


def run(name: str, weight: Tensor, *tensors: Tensor | None) -> None:
    """One loop over what :func:`fits`: see fused.cpp for what it is given, and what it writes.

    What is written has to be laid out already: see :func:`laid`. A last argument may be left out.
    """
    shape = weight.shape
    given = [weight]
    for x in tensors:
        given.append(x if x is None else laid(x, weight) if x.shape == shape else x.contiguous())
    pointers = (ctypes.c_void_p * (len(given) + 1))()
    for i, x in enumerate(given):
        pointers[i] = None if x is None else x.data_ptr()
    places = shape[2:].numel()
    last = places == 1 or not weight.is_contiguous()
    threads = torch.get_num_threads() if weight.numel() >= SMALL else 1
    _function(name, weight.dtype)(last, threads, shape[0], shape[1], places, pointers)


if __name__ == "__main__":
    try:
        print(build())
    except (OSError, RuntimeError) as error:
        sys.exit(str(error))
