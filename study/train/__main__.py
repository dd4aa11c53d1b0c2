"""Train one run by several processes, one a GPU, or over gloo on a CPU:

    torchrun --standalone --nproc-per-node 4 -m study.train gpu/resnext-se-ws

Each takes its share of every batch; the first writes the results, once. Stages start the same where
``scale.yaml`` has ``processes`` (:mod:`study.train.processes`).
"""

import os
import sys
import threading
import time

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import record

from study.train.loop import fit, start
from study.train.record import read_data, read_plan, say, state_file, write_results


def _end_with_parent() -> None:
    """What torchrun started would go on writing where torchrun is killed."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _join(plan: dict) -> int:
    """Enter the group of processes that torchrun started; this one's number in it.

    Raises:
        ValueError: it is not the one planned, or has fewer GPUs than processes.
    """
    rank, local, world = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )
    if world != plan["processes"]:
        raise ValueError(
            f"{plan['run']} is planned for {plan['processes']} processes, got {world}: take "
            f"--nproc-per-node {plan['processes']}, or plan it anew with another `processes` in "
            f"scales/{plan['scale']}/scale.yaml"
        )
    if gpus := torch.cuda.device_count():
        if local >= gpus:
            raise ValueError(
                f"{plan['run']}: expected a GPU a process, got {gpus} for {world}: set `processes` "
                f"in scales/{plan['scale']}/scale.yaml to {gpus}"
            )
        torch.cuda.set_device(local)
    if world > 1:
        distributed.init_process_group("nccl" if gpus else "gloo")
    return rank


@record
def main(run: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    plan = read_plan(run)
    first = _join(plan) == 0
    data, runs = read_data(plan), {}
    for seed in plan["seeds"]:
        saved = state_file(plan, seed)
        runs[seed] = start(plan, data, seed, saved)
        for row in fit(runs[seed], plan, data, seed, saved):
            if first:
                print(say(plan, row), flush=True)
    if first:
        write_results(plan, data, runs)
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        time.sleep(1)  # another one's end may be the reason: torchrun names what it sees first
        sys.exit(f"error: {error}")
