"""A scale's runs as jobs of a Slurm cluster, by submitit: one array, a job a run."""

import os
import signal

from submitit import AutoExecutor
from submitit.helpers import Checkpointable

from study.files import root
from study.plan import SCALES
from study.repro import alone, call, dvc, processes_of, stages_of
from wexlib.names import choose


class Stage(Checkpointable):
    """``dvc repro`` of one stage; a job whose time is over is queued again, and goes on."""

    def __call__(self, stage: str) -> None:
        process = dvc("repro", "--single-item", stage, cwd=root(), start_new_session=True)
        try:
            code = process.wait()
        except BaseException:  # what submitit raises where the job's time is over
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise
        if code:
            raise RuntimeError(f"{stage} failed with exit {code}: the reason stands above")


def submit(scale: str, runs: list[str], gpus: int | None, hours: float) -> list:
    """Make a scale's plan and data here and submit its runs; the jobs.

    Without Slurm (no ``srun``) they start on this machine, all at once.

    Args:
        scale: its name.
        runs: those to submit; none: all.
        gpus: of each job; by default one a process.
        hours: after which a job is stopped and queued again.

    Raises:
        ValueError: no such scale or run.
    """
    home = root()
    data, stages = stages_of(home, choose(scale, SCALES, "scale"))
    runs = [choose(run, stages, "run") for run in runs] or list(stages)
    with alone(home):
        call(home, f"scales/{scale}/dvc.yaml:plan")
        call(home, *data)
    processes = processes_of(home, scale)
    executor = AutoExecutor(folder=home / "build" / "jobs" / "%j")
    executor.update_parameters(
        name=f"wexlib-{scale}",
        timeout_min=round(60 * hours),
        gpus_per_node=processes if gpus is None else gpus,
        cpus_per_task=4 * processes,
    )
    return executor.map_array(Stage(), [stages[run] for run in runs])
