"""The loops of :mod:`wexlib.ops.loops` over a weight, in C++ (fused.cpp): compiled, and called.

They are compiled when they are first asked for, in a few seconds, by ``$CXX`` or ``c++``, and kept
in the user's cache: ``python -m wexlib.ops`` says where, or what is missing. On a GPU they are
kernels (:mod:`wexlib.ops.gpu`). Without them a function of a weight is some operations of torch's,
the same to rounding.
"""

import ctypes
import hashlib
import importlib.util
import json
import os
import platform
import secrets
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

SOURCE = Path(__file__).with_suffix(".cpp")
#: Without them a call of the library or a division that might raise a signal keeps a loop from
#: being computed in vectors.
QUIET = ("-fno-math-errno", "-fno-trapping-math")
#: One set of instructions on every x86-64 with AVX2, and no multiplication fused with an addition,
#: so that the same loops give the same bits there.
AVX2 = "x86-64-v3" if torch.cpu.get_capabilities().get("avx2") else "native"
FLAGS = ("-std=c++17", "-O3", f"-march={AVX2}", "-ffp-contract=off", *QUIET, "-shared", "-fPIC")
#: Threads and vectors, or where the compiler has no threads, vectors alone.
OPENMP = ("-fopenmp", "-fopenmp-simd")
TYPES = {torch.float32: "float", torch.float64: "double"}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
#: Weights of fewer numbers are not worth a second thread.
SMALL = 2**14

#: What each loop reads, and after > what it writes; after + it adds to the first of these, a
#: gradient. W is as large as the weight (N, C, K places); f has a number for a filter, N; c for a
#: kernel, N·C; m one or two of these; k for a place, N·K; j two of these; 1 and 3 are as many.
ARGUMENTS = {
    "pool_space": "W>mc",
    "pool_space_backward": "mc+W",
    "standardized": "W>fffmc",
    "standardized_backward": "Wfffmfffmc+W",
    "pool_channels": "Wffc>jk",
    "pool_channels_backward": "Wffcjkj+Wcff",
    "dense": "Wffc>W",
    "dense_backward": "WffcW>Wffc",
    "two_gates": "Wffck11>W",
    "two_gates_backward": "Wffck11W>Wffck",
    "largest": "Wff1>f13",
    "artanh": "Wff11>W",
    "artanh_backward": "Wff1113WW1>Wfff",
}


def load() -> ctypes.CDLL:
    """The library, compiled if it is not there yet for this source, compiler and processor.

    Raises:
        RuntimeError: no compiler, or one that cannot compile it.
        OSError: the cache cannot be written.
    """
    name = os.environ.get("CXX") or "c++"
    processor = torch.cpu.get_capabilities()
    made_of = [SOURCE.read_text(encoding="utf-8"), FLAGS, name, platform.machine()]
    made_of += sorted((k, v) for k, v in processor.items() if isinstance(v, bool | str))
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wexlib"
    path = folder / f"fused-{key}.so"
    if path.is_file():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            pass  # no library, whoever wrote it: compiled anew
    command = shlex.split(name)
    if shutil.which(command[0]) is None:
        raise RuntimeError(
            f"no C++ compiler {command[0]}: install one (Debian and Ubuntu: apt install g++), or "
            "name it by the variable CXX"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(f".{secrets.token_hex(4)}")
    try:
        _compile(command, made)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)
    return ctypes.CDLL(str(path))


def _compile(command: list[str], target: Path) -> None:
    for openmp in OPENMP:
        words = [*command, *FLAGS, openmp, str(SOURCE), "-o", str(target)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode == 0:
            ctypes.CDLL(str(target))
            return
    raise RuntimeError(f"{shlex.join(words)} failed:\n{done.stderr.strip()}")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled loops, or None where they cannot be had."""
    try:
        return load()
    except (OSError, RuntimeError):
        return None


@cache
def _function(name: str, dtype: torch.dtype):
    function = getattr(library(), f"{name}_{TYPES[dtype]}")
    sizes = [ctypes.c_int64] * 3
    function.argtypes = [ctypes.c_int, ctypes.c_int, *sizes, ctypes.POINTER(ctypes.c_void_p)]
    function.restype = None
    return function


@cache
def has_triton() -> bool:
    """Whether there is Triton, which torch brings along for a GPU."""
    return importlib.util.find_spec("triton") is not None


def fits(weight: Tensor, *others: object) -> bool:
    """Whether there is a loop for a weight and the other tensors of a function of it."""
    dtype, device = weight.dtype, weight.device
    if dtype not in TYPES or not weight.numel():
        return False
    for x in (weight, *others):
        if isinstance(x, Tensor) and not (
            x.dtype == dtype
            and x.device == device
            and type(x) in (Tensor, nn.Parameter)
            and not x.is_neg()
        ):
            return False
    if not (weight.is_contiguous() or _channels_last(weight)):
        return False
    return library() is not None if device.type == "cpu" else device.type in CALLS and has_triton()


def _channels_last(x: Tensor) -> bool:
    """Whether filter follows filter, each as (*space, C); the other order is (C, *space)."""
    order = CHANNELS_LAST.get(x.dim())
    return order is not None and x.is_contiguous(memory_format=order)


def laid(x: Tensor, weight: Tensor) -> Tensor:
    """x, of the weight's shape, in its memory format."""
    same = x.is_contiguous() if weight.is_contiguous() else _channels_last(x)
    return x if same else torch.empty_like(weight).copy_(x)


@cache
def _sizes(filters: int, channels: int, places: int) -> dict[str, tuple[int, ...]]:
    """How many numbers an argument of each kind has."""
    kernels, maps = filters * channels, filters * places
    return {
        "W": (kernels * places,),
        "f": (filters,),
        "c": (kernels,),
        "m": (kernels, 2 * kernels),
        "k": (maps,),
        "j": (2 * maps,),
        "1": (1,),
        "3": (3,),
    }


def run(
    name: str,
    weight: Tensor,
    reads: tuple[Tensor | None, ...],
    writes: tuple[Tensor | None, ...],
) -> None:
    """One loop over what :func:`fits`: see :data:`ARGUMENTS`, and fused.cpp for what each is.

    Args:
        name: of the loop.
        weight: of whose shape and memory format all others are.
        reads, writes: None, or left out at the end, is a 0 or 1, or a result that is not wanted.

    Raises:
        ValueError: an argument of another size, or a result in another memory format.
    """
    places = weight.shape[2:].numel()
    shape = *weight.shape[:2], places
    sizes = _sizes(*shape)
    kinds, given = ARGUMENTS[name], []
    for i, x in enumerate((*reads, None, *writes)):
        kind = kinds[i]
        if x is None:
            if kind not in ">+":
                given.append(None)
            continue
        ordered = laid(x, weight) if kind == "W" else x.contiguous()
        if x.numel() not in sizes[kind] or (i > len(reads) and ordered is not x):
            raise ValueError(
                f"argument {len(given)} of {name} has shape {tuple(x.shape)} and strides "
                f"{x.stride()}: expected {' or '.join(map(str, sizes[kind]))} numbers, in order if "
                f"they are written, for a weight of shape {tuple(weight.shape)}"
            )
        given.append(ordered)
    given += [None] * (len(kinds) - 1 - len(given))
    last = places == 1 or not weight.is_contiguous()
    CALLS[weight.device.type](name, weight, given, shape, last)


def _compiled(name: str, weight: Tensor, given: list, shape: tuple, last: bool) -> None:
    pointers = (ctypes.c_void_p * len(given))(*[x if x is None else x.data_ptr() for x in given])
    threads = torch.get_num_threads() if weight.numel() >= SMALL else 1
    _function(name, weight.dtype)(last, threads, *shape, pointers)


def _kernel(name: str, weight: Tensor, given: list, shape: tuple, last: bool) -> None:
    from wexlib.ops.gpu import launch_loop  # Triton, on a GPU only

    launch_loop(name, given, shape, last)


#: Who computes a loop on each kind of device.
CALLS = {"cpu": _compiled, "cuda": _kernel}
