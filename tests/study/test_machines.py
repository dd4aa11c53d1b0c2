"""README's commands for several GPUs and several machines, at the smoke scale."""

import json
import re
import shutil
import signal
import time

import psutil
import pytest
from clones import PROJECT, RUNS, clone, shell, small_clone

from study.train.pinned import ENVIRONMENT

README = (PROJECT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## Several GPUs, several machines")[2].partition("\n## ")[0]
ONE_RUN, CLUSTER, MACHINES = (
    block.replace("gpu/", "smoke/").strip()
    for block in re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
)
OWN = "scales/smoke/dvc.yaml"


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A clone with plans and data, and nothing trained."""
    folder = small_clone(tmp_path_factory.mktemp("machines") / "clone")
    shell(f"dvc remote add -q -d shared {tmp_path_factory.mktemp('remote')}", folder)
    shell(f"dvc repro {OWN}:plan {OWN}:data && dvc push -q", folder)
    shell("git add -A && git commit -qm 'Plans and data'", folder)
    return folder


def copied(planned, target):
    shutil.copytree(planned, target, symlinks=True)
    return target


def result(folder, run):
    return json.loads((folder / f"results/smoke/{run}.json").read_text())


def test_one_run_by_two_processes_as_a_stage_and_by_hand(planned, tmp_path):
    folder, run = copied(planned, tmp_path / "two"), "mixer10-mwe"
    stage = f"dvc repro --single-item {OWN}:run-cifar10@{run}"
    shell(stage, folder)
    one = result(folder, run)
    shell("sed -i 's/^threads: 1/threads: 1\\nprocesses: 2/' scales/smoke/scale.yaml", folder)
    shell(f"dvc repro {OWN}:plan && {stage}", folder)
    two = result(folder, run)
    assert two["test_last"] == one["test_last"]
    executed = (folder / f"build/executed/smoke/{run}.ipynb").read_text()
    shown = f"seed 0: test accuracy {two['test_last'][0]:.2f} %"
    assert shown in executed and "display_data" not in executed
    written = folder / f"results/smoke/{run}.json"
    written.unlink()
    command = ONE_RUN.replace("node 4", "node 2").replace("resnext10-se-ws", run)
    assert run in command
    pinned = " ".join(f"{name}='{value}'" for name, value in ENVIRONMENT.items())
    shell(f"{pinned} {command}", folder)  # as a stage has it at this scale
    assert result(folder, run) == two


def test_jobs_of_a_cluster(planned, tmp_path):
    """Here by submitit's local executor, which takes the place of Slurm where there is none.

    One is told, as by Slurm, that its time is over, and is queued again.
    """
    folder, runs = copied(planned, tmp_path / "jobs"), ["mixer10-mwe", "resnet18-mwe"]
    shell("sed -i 's/epochs: 2,/epochs: 100,/' scales/smoke/scale.yaml", folder)
    command = CLUSTER.replace("submit gpu", f"submit smoke {' '.join(runs)}")
    assert command != CLUSTER
    shell(f"{command} > said 2>&1", folder)  # a pipe would be the jobs' too, and open to their end
    output = (folder / "said").read_text()
    assert "2 jobs from" in output and "`make SCALE=smoke` writes tables" in output
    jobs = folder / "build/jobs"
    assert within(900, lambda: list(folder.glob("build/unfinished/smoke/mixer10-mwe*/0.pt")))
    [pid] = (path.parent.name for path in jobs.glob("*/*.out") if "mixer10" in path.read_text())
    [job] = psutil.Process(int(pid)).children()
    job.send_signal(signal.SIGUSR2)
    assert within(900, lambda: len(list(jobs.glob("*/*_result.pkl"))) == 2)
    assert "Requeued job" in next(jobs.glob(f"{pid}/*.out")).read_text()
    stages = [f"{OWN}:run-cifar10@{runs[0]}", f"{OWN}:run-cinic10@{runs[1]}"]
    assert "Running stage" not in shell(f"dvc repro --single-item {' '.join(stages)}", folder)
    resumed = result(folder, runs[0])
    shell(f"dvc repro --force --single-item {stages[0]}", folder)
    assert result(folder, runs[0]) == resumed


def within(seconds, true):
    """Whether it is true before so many seconds have gone."""
    for _ in range(seconds):
        if true():
            return True
        time.sleep(1)
    return False


def test_shares_of_machines_with_one_remote(planned, tmp_path):
    each, first, second, end, rest = MACHINES.splitlines()
    machines = [clone(planned, tmp_path / name) for name in ("first", "second", "third")]
    for machine, share in zip(machines, (first, second), strict=False):
        shell(f"dvc pull -q --allow-missing && {each}", machine)
        assert "Running stage" in shell(share, machine)
        shell(end, machine)
    assert rest.startswith(f"dvc repro --pull {OWN} ")
    shell(each, machines[2])
    shares = f"{OWN}:run-cifar10 {OWN}:run-cinic10"
    output = shell(rest.replace(OWN, f"--single-item {shares}"), machines[2])
    assert f"Running stage '{OWN}:run-" not in output
    made = {path.stem for path in (machines[2] / "results/smoke").glob("*.json")}
    assert made == {run for run in RUNS if run.startswith(("mixer10", "resnet18"))}
