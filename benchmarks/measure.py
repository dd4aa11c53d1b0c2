"""Times of cases taken in turn, in one process: a ratio is then one of neighbours in time."""

import gc
import platform
import random
import time
from collections.abc import Callable, Hashable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

#: A measurement lasts this many seconds at least: shorter cases are called several times.
LEAST = 0.02
#: Calls on a GPU before what is captured is captured.
WARM = 5


def interleaved(
    cases: Mapping[Hashable, Callable[[], object]], rounds: int, device: torch.device
) -> dict[Hashable, np.ndarray]:
    """Milliseconds a call of each case, (rounds,) each.

    Every case is warmed up, then measured once a round, in an order drawn anew for each round.
    """
    calls = {}
    for name, case in cases.items():
        _milliseconds(case, 1 if device.type == "cpu" else WARM, device)
        once = _milliseconds(case, 1, device) / 1000
        calls[name] = max(1, round(LEAST / max(once, 1e-6)))
    gc.freeze()  # what is there stays there: no time goes into looking it through
    order, shuffled = list(cases), random.Random(0)
    times = {name: np.empty(rounds) for name in cases}
    for i in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            times[name][i] = _milliseconds(cases[name], calls[name], device)
    gc.unfreeze()
    return times


def _milliseconds(case: Callable[[], object], calls: int, device: torch.device) -> float:
    gc.collect()
    gc.disable()
    try:
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            for _ in range(calls):
                case()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / calls
        began = time.perf_counter()
        for _ in range(calls):
            case()
        return (time.perf_counter() - began) * 1000 / calls
    finally:
        gc.enable()


def quartiles(values: np.ndarray, name: str) -> dict[str, float]:
    """``<name>``, ``<name>_low`` and ``<name>_high``: the median and the quartiles around it."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {name: float(median), f"{name}_low": float(low), f"{name}_high": float(high)}


def compared(times: Mapping[Hashable, np.ndarray], base: Hashable) -> dict[Hashable, dict]:
    """For each case its milliseconds and its ratio to ``base``, round by round."""
    return {
        name: quartiles(values, "ms")
        | quartiles(values / times[base], "ratio")
        | {"rounds": len(values)}
        for name, values in times.items()
    }


def machine(device: torch.device) -> dict[str, str]:
    """What was measured on: processor or GPU, threads, torch, date; no name of a host."""
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    name = f"{name}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "machine": name,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def bandwidth(device: torch.device) -> float:
    """Gigabytes a second, read and written, of a copy far larger than the caches."""
    source = torch.ones(2**26 if device.type == "cpu" else 2**28, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, 15, device)["copy"]
    return 2 * source.nbytes / np.median(times) / 1e6


def multiplications(device: torch.device) -> float:
    """Floating-point operations a second of a product of two large float32 matrices."""
    side = 2048 if device.type == "cpu" else 8192
    a = torch.ones(side, side, device=device)
    out = torch.empty_like(a)
    times = interleaved({"product": lambda: torch.mm(a, a, out=out)}, 15, device)["product"]
    return 2 * side**3 / np.median(times) * 1000
