"""What the stages of ``dvc.yaml`` call, and ``make``: ``python -m study.cli --help``.

Every failure ends with one sentence and a non-zero exit.
"""

import argparse
import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from study.files import root, write_json, write_text
from study.plan import config
from study.train.record import read_plan, write_not_run

FULL = "the disk is full: free some space, then the same command goes on; nothing was lost"
RESTORE = "git restore results dvc.lock && dvc checkout --allow-missing"


def plan(scale: str) -> None:
    """Validate ``params.yaml``, tables and claims, and write every run's plan at ``scale``."""
    from study.data.sources import DATASETS
    from study.results.claims import read_claims
    from study.results.tables import read_tables

    home = root()
    params = config.read(home / "params.yaml")
    plans = config.write_plans(home, params, scale, DATASETS)
    roles = config.roles(params)
    read_tables(home / "tables.yaml", runs=roles)
    read_claims(home / "claims.yaml", roles)
    print(f"{len(plans)} runs planned at scale {scale}")


def data(scale: str, role: str) -> None:
    """Prepare the arrays of a dataset role."""
    import json

    from study.data.datasets import prepare

    spec = json.loads((root() / "build" / "plan" / scale / "data" / f"{role}.json").read_text())
    folder = root() / "data" / scale / role
    if "missing" in spec:
        write_json(folder / "meta.json", {"missing": spec["missing"]})
        print(f"{role} at scale {scale}: {spec['missing']}")
        return
    prepare(
        spec["dataset"],
        folder,
        train=spec["train"],
        validation=spec["validation"],
        test=spec["test"],
    )


def run(name: str) -> None:
    """Train the run ``<scale>/<run>`` in ``notebooks/train.ipynb``."""
    plan = read_plan(name)
    if "missing" in plan["data"]:
        write_not_run(plan)
        print(f"{name} is not run: it {plan['data']['missing']}")
        return
    executed = root() / "build" / "executed" / f"{name}.ipynb"
    execute(root() / "notebooks" / "train.ipynb", executed, {"run": name, "write": True}, name)


def tables(scale: str) -> None:
    """Write the tables of ``scale`` and the summary that ``dvc exp show`` shows."""
    from study.results.tables import write_summary, write_tables

    print(f"tables {', '.join(write_tables(scale))}")
    write_summary(scale)


def chapter(notebook: str, scale: str) -> None:
    """Run a chapter's notebook for ``scale``."""
    executed = root() / "reports" / scale / f"{notebook}.ipynb"
    # A chapter whose runs are not there has no figure, but the folder.
    (executed.parent / "figures" / notebook).mkdir(parents=True, exist_ok=True)
    execute(
        root() / "notebooks" / f"{notebook}.ipynb",
        executed,
        {"scale": scale, "save": True},
        notebook,
    )


def book(scale: str) -> None:
    """Write the book of ``scale``: static HTML that opens from disk."""
    from study.book.build import build

    print(f"open {build(root(), scale).relative_to(root())}")


def execute(notebook: Path, executed: Path, parameters: dict, title: str) -> None:
    """Run a notebook through papermill; its kernel's progress shows on the terminal.

    Raises:
        RuntimeError: a cell failed; the executed notebook keeps the traceback.
    """
    # papermill takes an unknown parameter for a warning and goes on with the default.
    import papermill

    known = papermill.inspect_notebook(str(notebook))
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(
                f"{notebook.name} has no parameter {parameter!r} in its parameters cell"
            )
    executed.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        # Shards of `make` are watched by it, through the file that it names.
        os.environ.setdefault("WEXLIB_PROGRESS", str(progress))
        with Watch([progress], lambda lines: f"{title}  {lines[0]}"):
            try:
                papermill.execute_notebook(
                    str(notebook),
                    str(executed),
                    parameters=parameters,
                    kernel_name="python3",
                    cwd=str(notebook.parent),
                    start_timeout=300,
                    progress_bar=False,
                    request_save_on_cell_execute=False,
                    autosave_cell_every=0,
                    shutdown_kernel="immediate",
                    extra_arguments=["--IPKernelApp.log_level=ERROR"],
                )
            except papermill.PapermillExecutionError as error:
                where = executed.relative_to(root())
                reason = FULL if "No space left on device" in error.evalue else error.evalue
                raise RuntimeError(f"{reason} (traceback: {where})") from None


class Watch:
    """Show what progress files hold: one line that updates, or, not on a terminal, its changes."""

    def __init__(self, files: list[Path], text: Callable[[list[str]], str]) -> None:
        self.files, self.text = files, text
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def _loop(self) -> None:
        shown, wait = None, 0.5 if sys.stderr.isatty() else 10
        while not self.done.wait(wait):
            lines = [f.read_text() if f.is_file() else "starting" for f in self.files]
            text = self.text(lines)
            if text != shown:
                end = "" if sys.stderr.isatty() else "\n"
                print(f"\r\033[K{text}" if not end else text, end=end, file=sys.stderr, flush=True)
                shown = text


# --- make -----------------------------------------------------------------------------------


def make(scale: str | None, jobs: int | None, reports: bool, evidence: bool) -> None:
    """``dvc repro``, with as many runs at a time as there are cores; or its last stages alone.

    ``evidence`` trains the runs of that role and no others.

    ``params.yaml`` is as it was afterwards; after a kill -9 the next call restores it.
    """
    home = root()
    params, kept = home / "params.yaml", home / "build" / "params.yaml.kept"
    if kept.is_file():
        write_text(params, kept.read_text(encoding="utf-8"))
        kept.unlink()
    text = params.read_text(encoding="utf-8")
    scale = config.choose(scale or config.read(params)["scale"], config.SCALES, "scale")
    changed = _with(text, scale, evidence)
    try:
        if changed != text:
            write_text(kept, text)
            write_text(params, changed)
        if reports:
            if not (home / "results" / scale / "curves").is_dir():
                raise ValueError(
                    f"no results at scale {scale}: make them first, with make SCALE={scale}"
                )
            _reports(home, scale, jobs or _jobs())
        elif evidence:
            _evidence(home, scale, jobs or _jobs())
            # The same plan, noted as params.yaml stands without the evidence's stages.
            write_text(params, _with(text, scale, False))
            _call(home, "repro", "--single-item", "plan")
        else:
            _reproduce(home, scale, jobs or _jobs())
    finally:
        if changed != text:
            write_text(params, text)
            kept.unlink(missing_ok=True)
    print(f"tables: results/{scale}/tables, book: reports/book/{scale}/index.html")


def _with(text: str, scale: str, evidence: bool) -> str:
    text = re.sub(r"(?m)^scale:[ \t]*\S+", f"scale: {scale}", text, count=1)
    return re.sub(r"(?m)^evidence: \[\]", f"evidence: [{scale}]", text) if evidence else text


def _jobs() -> int:
    """Runs take one core each; a GPU takes one run at a time."""
    import shutil

    return (
        1
        if shutil.which("nvidia-smi")
        else len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def _dvc(*words: str, **options: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "dvc", *words], **options)


def _reproduce(home: Path, scale: str, jobs: int) -> None:
    status = _dvc("status", "--json", cwd=home, stdout=subprocess.PIPE, text=True)
    if status.communicate()[0].strip() == "{}":
        print(f"scale {scale}: everything is up to date")
        return
    began = time.monotonic()
    _call(home, "repro", "plan", *(f"data@{scale}-{role}" for role in config.ROLES))
    roles = _roles(home, scale)
    runs = [
        f"playground@{scale}" if name == config.PLAYGROUND else f"run-{role}@{scale}-{name}"
        for name, role in roles.items()
        if role != config.EVIDENCE
    ]
    print(f"{len(runs)} runs at scale {scale}, {jobs} at a time", flush=True)
    _shards(home, runs, jobs, "run")
    _reports(home, scale, jobs)
    _call(home, "repro")
    print(f"scale {scale}: done in {(time.monotonic() - began) / 60:.1f} min")


def _evidence(home: Path, scale: str, jobs: int) -> None:
    began = time.monotonic()
    _call(home, "repro", "plan")
    roles = _roles(home, scale)
    runs = [name for name, role in roles.items() if role == config.EVIDENCE]
    if not runs:
        raise ValueError(
            f"no evidence at scale {scale}: take cpu or gpu, with make evidence SCALE=cpu"
        )
    _call(home, "repro", f"evidence-data@{scale}")
    # In the order of params.yaml, where the biggest question comes first.
    runs = [name for name in config.read(home / "params.yaml")["runs"]["evidence"] if name in runs]
    print(f"{len(runs)} runs of the evidence at scale {scale}, {jobs} at a time", flush=True)
    _shards(home, [f"evidence@{scale}-{name}" for name in runs], jobs, "run")
    _reports(home, scale, jobs)
    print(f"evidence at scale {scale}: done in {(time.monotonic() - began) / 60:.1f} min")


def _reports(home: Path, scale: str, jobs: int) -> None:
    """Tables, chapters and book, which need no more than the result files in Git."""
    chapters = [
        f"{stage}@{scale}-{notebook}"
        for stage, notebooks in config.notebooks(home).items()
        for notebook in notebooks
    ]
    _call(home, "repro", "--single-item", "plan", "tables")
    print(f"{len(chapters)} chapters, {jobs} at a time", flush=True)
    _shards(home, chapters, jobs, "chapter")
    _call(home, "repro", "--single-item", "book")


def _roles(home: Path, scale: str) -> dict[str, str]:
    """The dataset role of each run that is planned at ``scale``."""
    import json

    plans = sorted((home / "build" / "plan" / scale).glob("*.json"))
    return {p.stem: json.loads(p.read_text())["data"]["role"] for p in plans}


def _call(home: Path, *words: str) -> None:
    if code := _dvc(*words, cwd=home).wait():
        raise RuntimeError(f"dvc {words[0]} failed with exit {code}: the reason stands above")


def _shards(home: Path, stages: list[str], jobs: int, what: str) -> None:
    """Several ``dvc repro`` at once, each on its own stages; the first failure stops the others.

    ``what`` a stage makes, in a word.
    """
    jobs = min(jobs, len(stages))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(i) for i in range(jobs)]
        logs = [home / "build" / "log" / f"make-{i}.log" for i in range(jobs)]
        logs[0].parent.mkdir(parents=True, exist_ok=True)
        processes = []
        for i in range(jobs):
            environment = os.environ | {"WEXLIB_PROGRESS": str(files[i])}
            with logs[i].open("w") as log:
                processes.append(
                    _dvc(
                        "--wait-for-lock",
                        "repro",
                        "--single-item",  # without it the shards block each other at plan
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
                line if file.is_file() or not names else names[-1]
                for line, file, names in zip(lines, files, begun, strict=True)
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m study.cli", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for function, names in (
        (plan, ["scale"]),
        (data, ["scale", "role"]),
        (run, ["name"]),
        (tables, ["scale"]),
        (chapter, ["notebook", "scale"]),
        (book, ["scale"]),
    ):
        command = commands.add_parser(function.__name__, help=function.__doc__.splitlines()[0])
        for name in names:
            command.add_argument(name)
        command.set_defaults(function=function)
    command = commands.add_parser("make", help="dvc repro, several runs at a time")
    command.add_argument("--scale")
    command.add_argument("--jobs", type=int)
    command.add_argument(
        "--reports", action="store_true", help="train nothing: tables, chapters and book alone"
    )
    command.add_argument(
        "--evidence", action="store_true", help="the runs of the evidence, and the reports"
    )
    command.set_defaults(function=make)
    options = vars(parser.parse_args(arguments))
    function, _ = options.pop("function"), options.pop("command")
    try:
        function(**options)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last finished epoch", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        print(f"error: {FULL if full else error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
