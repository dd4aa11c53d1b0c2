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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a small network and few rounds")
    parser.add_argument("--out", type=Path, help="the folder for the results")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    if options.quick:
        torch.set_num_threads(1)  # of no use to so small a network
    memory.keep_freed()  # as a run does
    size = cases.QUICK if options.quick else cases.FULL
    out = options.out or root() / ("build" if options.quick else "results") / "benchmarks"
    gpu = torch.cuda.is_available()
    devices = [torch.device("cpu")] + [torch.device("cuda")] * gpu
    # Compiling takes minutes on a CPU, so there it is measured only when asked for.
    parts = options.parts or [name for name in PARTS if name != "compile" or gpu]
    for name in parts:
        rows = []
        for device in devices[-1:] if name == "cost" else devices[:1] if name in ONCE else devices:
            if name == "compile" and device.type == "cpu" and gpu:
                continue
            print(f"{name} on {device.type}", flush=True)
            rows += [row | machine(device) for row in PARTS[name](size, device)]
        if not rows:
            continue
        frame = pd.DataFrame(rows)
        write(
            out / f"{name}.csv",
            lambda path, f=frame: f.to_csv(path, index=False, float_format="%.6g"),
        )
    write_report(out)


if __name__ == "__main__":
    main()
