"""``make``: ``dvc repro`` of a scale, with as many stages at a time as there are cores or GPUs."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from study.files import clear, root
from study.notebook import Watch
from study.plan import config

RESTORE = "git restore results dvc.lock scales && dvc checkout --allow-missing"


def make(scale: str | None, jobs: int | None, only: str | None) -> None:
    """Reproduce a scale, by default that of ``params.yaml``, several stages at a time.

    Where another one is at work, or what it started and was killed over, this one waits for it.

    Args:
        scale: its name.
        jobs: how many at a time.
        only: ``evidence``, those runs and what is written of them; ``reports``, tables, chapters
            and book of the results that are there.
    """
    home = root()
    with alone(home):
        _make(home, scale, jobs, only)


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Hold the lock of the folder's ``make``, and clear away what a killed one left."""
    file = home / "build" / "make.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        os.set_inheritable(lock.fileno(), True)  # shares outlive a killed make: they hold it too
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another make is at work in this folder: waiting for its end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        for path in (home / "dvc.lock", *home.glob("scales/*/dvc.lock")):
            clear(path)
        rwlock = home / ".dvc" / "tmp" / "rwlock"
        try:
            rwlock.is_file() and json.loads(rwlock.read_text(encoding="utf-8"))
        except ValueError:
            rwlock.unlink()  # DVC writes it in place, and would stop at half of one
        yield


def _make(home: Path, scale: str | None, jobs: int | None, only: str | None) -> None:
    own = config.read(home)["scale"]
    scale = config.choose(scale or own, config.SCALES, "scale")
    began, target = time.monotonic(), f"scales/{scale}/dvc.yaml"
    chapters = [
        f"{target}:{stage}@{notebook}"
        for stage, notebooks in config.notebooks(home, scale).items()
        for notebook in notebooks
    ]
    if only == "reports":
        if not (home / "results" / scale / "curves").is_dir():
            raise ValueError(
                f"no results at scale {scale}: make them first, with make SCALE={scale}"
            )
        # Chapters on data say where there are none.
        (home / "data" / scale).mkdir(parents=True, exist_ok=True)
        call(home, "--single-item", f"{target}:plan", f"{target}:tables")
        _shares(home, chapters, jobs or _jobs(), "chapter")
        call(home, "--single-item", f"{target}:book")
    else:
        data, runs = stages_of(home, scale, only)
        targets = [target] if scale != own else [target, "dvc.yaml"]
        if not _changed(home, *targets):
            print(f"scale {scale}: everything is up to date")
            return
        call(home, f"{target}:plan")
        call(home, *data)
        each = processes_of(home, scale)
        _shares(home, list(runs.values()), jobs or _jobs(each), "run", each)
        call(home, "--single-item", f"{target}:tables")
        _shares(home, chapters, jobs or _jobs(), "chapter")
        call(home, *(["--single-item", f"{target}:book"] if only else targets))
    print(f"tables: results/{scale}/tables, book: reports/book/{scale}/index.html")
    print(f"scale {scale}: done in {(time.monotonic() - began) / 60:.1f} min")


def stages_of(home: Path, scale: str, only: str | None = None) -> tuple[list[str], dict[str, str]]:
    """The stages of a scale's data, and that of each run; ``only`` those of a role.

    Raises:
        ValueError: the scale has no such role.
    """
    settings, target = config.read(home, scale), f"scales/{scale}/dvc.yaml"
    runs, known = config.roles(settings), config.data_roles(settings, scale)
    roles = [r for r in dict.fromkeys(runs.values()) if r in known and only in (None, r)]
    if not roles:
        raise ValueError(
            f"no evidence at scale {scale}: take cpu or gpu, with make evidence SCALE=cpu"
        )
    stages = {run: f"{target}:run-{role}@{run}" for run, role in runs.items() if role in roles}
    return [f"{target}:data@{role}" for role in roles], stages


def processes_of(home: Path, scale: str) -> int:
    """Of each run of a scale; its plan has looked at the number."""
    return config.read(home, scale)["scales"][scale].get("processes", 1)


def _gpus() -> list[str]:
    """The machine's GPUs, those of them that ``CUDA_VISIBLE_DEVICES`` names if it is set."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    there = [str(i) for i in range(len(re.findall("^GPU ", listed.stdout, re.MULTILINE)))]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return there
    named = [name.strip() for name in named.split(",")]
    # As CUDA reads it: up to the first that is not there; a name may be a GPU's identifier.
    known = (name in there or name.startswith(("GPU-", "MIG-")) for name in named)
    return [name for name, _ in zip(named, takewhile(bool, known), strict=False)]


def _places(processes: int) -> list[str]:
    """The GPUs of each run that may go on at a time, one a process; where they are few, all."""
    gpus = _gpus()
    places = [",".join(gpus[i : i + processes]) for i in range(0, len(gpus), processes)]
    return places[: max(1, len(gpus) // processes)]


def _jobs(processes: int = 1) -> int:
    """A GPU takes one process at a time, of a run or a chapter; without one a core does."""
    if places := _places(processes):
        return len(places)
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return max(1, len(affinity(0)) // processes)


def dvc(*words: str, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "study.dvc", "--wait-for-lock", *words]
    return subprocess.Popen(command, close_fds=False, **options)


def _changed(home: Path, *targets: str) -> dict:
    status = dvc("status", "--json", *targets, cwd=home, stdout=subprocess.PIPE, text=True)
    answer = status.communicate()[0]
    if status.returncode:
        raise RuntimeError("dvc status failed: the reason stands above")
    return json.loads(answer)


def call(home: Path, *words: str) -> None:
    if code := dvc("repro", *words, cwd=home).wait():
        raise RuntimeError(f"dvc repro failed with exit {code}: the reason stands above")


def _shares(home: Path, stages: list[str], jobs: int, what: str, processes: int = 1) -> None:
    """Several ``dvc repro`` at once, each on its own stages; the first failure stops the others.

    ``what`` a stage makes, in a word; it takes ``processes``, each a GPU where there are some.
    """
    jobs, gpus = min(jobs, len(stages)), _places(processes)
    # Of each share: its GPUs, and their names where there are others.
    sees = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(jobs)]
    names = [f"GPU {seen['CUDA_VISIBLE_DEVICES']}: " if gpus[1:] else "" for seen in sees]
    on = f", on {','.join(set(names)).count(',') + 1} GPUs" if gpus[1:] else ""
    print(f"{len(stages)} {what}s, {jobs} at a time{on}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(i) for i in range(jobs)]
        logs = [home / "build" / "log" / f"make-{i}.log" for i in range(jobs)]
        logs[0].parent.mkdir(parents=True, exist_ok=True)
        processes = []
        for i in range(jobs):
            environment = os.environ | sees[i] | {"WEXLIB_PROGRESS": str(files[i])}
            with logs[i].open("w") as log:
                processes.append(
                    dvc(
                        "repro",
                        "--single-item",  # without it the shares block each other at plan
                        *stages[i::jobs],
                        cwd=home,
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

        def text(lines: list[str]) -> str:
            begun = [re.findall(r"Running stage '.*@(.*)'", log.read_text()) for log in logs]
            done = sum(map(len, begun))
            # A chapter says nothing of its own: its name then.
            lines = [
                name + (line if file.is_file() or not started else started[-1])
                for name, line, file, started in zip(names, lines, files, begun, strict=True)
            ]
            return f"{what} {done} of {len(stages)}   " + "   |   ".join(lines)

        failed = None  # the first that failed: the others are interrupted then, and fail too
        try:
            with Watch(files, text):
                while failed is None and any(p.poll() is None for p in processes):
                    time.sleep(0.2)
                    failed = next((i for i, p in enumerate(processes) if p.poll()), None)
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGINT)
            for process in processes:
                process.wait()
        if failed is not None:
            log = logs[failed]
            sys.stdout.write("".join(log.read_text().splitlines(keepends=True)[-8:]))
            raise RuntimeError(
                f"a {what} failed: the reason stands above, all of it in {log.relative_to(home)}; "
                f"`make` again goes on; lost outputs come back by `{RESTORE}`"
            )
