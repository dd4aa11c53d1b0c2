"""Measure how fast excitation is, and write results/benchmarks: ``python -m benchmarks --help``."""

import argparse
from pathlib import Path

import pandas as pd
import torch

from benchmarks import cases, loading, whole_run
from benchmarks.measure import machine
from benchmarks.report import write_report
from study.files import root, write
from study.train import memory

#: One CSV each. Times on the CPU, and on a GPU too where there is one; those in ONCE once.
PARTS = {
    "exact": cases.exact,
    "bits": cases.bits,
    "launches": cases.launches,
    "train": cases.train,
    "inference": cases.infer,
    "scaling": cases.scaling,
    "passes": cases.passes,
    "memory": cases.memory,
    "cost": cases.cost,
    "recipe": cases.recipe,
    "allocator": whole_run.allocator,
    "loader": whole_run.loader,
    "loading": loading.loading,
    "epoch": whole_run.epoch,
    "start": whole_run.start,
    "compile": cases.compile,
}
ONCE = {"passes", "start"}
#: Of which ``gpu`` measures what 4 minutes of a GPU allow; without one it tries them on the CPU.
GPU = ("train", "launches", "inference", "bits", "exact")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parts = f"of {', '.join(PARTS)}; or gpu: the most of a GPU in 4 minutes"
    parser.add_argument("parts", nargs="*", metavar="part", help=parts)
    parser.add_argument("--quick", action="store_true", help="a small network and few rounds")
    parser.add_argument("--out", type=Path, help="the folder for the results")
    options = parser.parse_args()
    gpu, only = torch.cuda.is_available(), options.parts == ["gpu"]
    if not only and (unknown := set(options.parts) - set(PARTS)):
        known = f"{', '.join(PARTS)}, or gpu alone"
        parser.error(f"no part {', '.join(sorted(unknown))}: choose of {known}")
    quick = options.quick or (only and not gpu)
    if only and quick:
        print("this tries the command: nothing of what it measures says anything", flush=True)
    if quick:
        torch.set_num_threads(1)  # of no use to so small a network
    memory.keep_freed()  # as a run does
    size = cases.QUICK if quick else cases.FULL
    if only:
        size = cases.TRY_GPU if quick else cases.GPU
    out = options.out or root() / ("build" if quick else "results") / "benchmarks"
    devices = [torch.device("cpu")] + [torch.device("cuda")] * gpu
    if gpu:
        cases.deterministic()
    # Compiling takes minutes on a CPU, so there it is measured only when asked for.
    names = options.parts or [name for name in PARTS if name != "compile" or gpu]
    for name in GPU if only else names:
        last = only or name == "cost"
        measured = devices[-1:] if last else devices[:1] if name in ONCE else devices
        rows, path = [], out / f"{name}.csv"
        for device in measured:
            if name == "compile" and device.type == "cpu" and gpu:
                continue
            print(f"{name} on {device.type}", flush=True)
            rows += [row | machine(device) for row in PARTS[name](size, device)]
        if not rows:
            continue
        frame = pd.DataFrame(rows)
        if only and path.is_file():  # what other devices have given stays
            before = pd.read_csv(path)
            frame = pd.concat([before[before["device"] != devices[-1].type], frame])
        write(
            path,
            lambda path, f=frame: f.to_csv(path, index=False, float_format="%.6g"),
        )
    write_report(out)


if __name__ == "__main__":
    main()
