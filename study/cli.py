"""What the stages of ``dvc.yaml`` call, and ``make``: ``python -m study.cli --help``.

Every failure ends with one sentence and a non-zero exit.
"""

import argparse
import errno
import importlib.util
import json
import os
import shutil
import sys

from study.files import PLAYGROUND, clear, root, write_json
from study.notebook import FULL, execute


def plan(scale: str | None) -> None:
    """Validate the settings and write the plans of a scale, or, without one, the playground's."""
    from study.data.sources import DATASETS
    from study.plan import config

    home = root()
    if scale is None:
        for name in ("plan", "data"):
            clear(home / PLAYGROUND / f"{name}.json")
        made = config.write_playground(home, DATASETS)
        print(f"the playground is planned at scale {made['scale']}")
        return
    from study.results.claims import read_claims
    from study.results.tables import read_tables

    roles = config.roles(config.read(home, scale))
    read_tables(home / "tables.yaml", runs=roles)
    read_claims(home / "claims.yaml", roles)
    print(f"{len(config.write_plans(home, scale, DATASETS))} runs planned at scale {scale}")


def data(name: str) -> None:
    """Prepare the arrays of a role, ``<scale>/<role>``, or those of the ``playground``."""
    from study.data.datasets import prepare

    scale, _, role = name.partition("/")
    plans = root() / "scales" / scale / "plan" / "data"
    file = root() / PLAYGROUND / "data.json" if name == PLAYGROUND else plans / f"{role}.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    folder = root() / "data" / name
    clear(folder)
    if "missing" in spec:
        write_json(folder / "meta.json", {"missing": spec["missing"]})
        print(f"{name}: {spec['missing']}")
        return
    sizes = {key: spec.get(key) for key in ("size", "train", "validation", "test")}
    prepare(spec["dataset"], folder, **sizes)


def run(name: str) -> None:
    """Train ``<scale>/<run>``, or ``playground``, in ``notebooks/train.ipynb``."""
    from study.plan import REAL
    from study.train.pinned import ENVIRONMENT
    from study.train.record import Files, read_plan, state_file, write_not_run

    plan = read_plan(name)
    states = (state_file(plan, seed) for seed in plan.get("seeds", []))
    files = Files.of(plan)
    for path in (*vars(files).values(), files.result.with_name("metrics.json"), *states):
        clear(path)
    if "missing" in plan["data"]:
        write_not_run(plan)
        print(f"{name} is not run: {plan['data']['missing']}")
        return
    executed = root() / "build" / "executed" / f"{name}.ipynb"
    pinned = {} if plan["scale"] in REAL else ENVIRONMENT
    parameters = {"run": name, "write": True}
    execute(root() / "notebooks" / "train.ipynb", executed, parameters, name, pinned)


def tables(scale: str) -> None:
    """Write the tables of a scale and their summary."""
    from study.results.tables import write_summary, write_tables

    clear(root() / "results" / scale / "summary.json")
    print(f"tables {', '.join(write_tables(scale))}")
    write_summary(scale)


def chapter(scale: str, notebook: str) -> None:
    """Run a chapter's notebook for a scale."""
    from study.train.pinned import ENVIRONMENT

    executed = root() / "reports" / scale / f"{notebook}.ipynb"
    # A chapter whose runs are not there has no figure, but the folder.
    (executed.parent / "figures" / notebook).mkdir(parents=True, exist_ok=True)
    parameters = {"scale": scale, "save": True}
    # What a chapter trains as it is read is embedded data.
    path = root() / "notebooks" / f"{notebook}.ipynb"
    execute(path, executed, parameters, notebook, ENVIRONMENT)


def book(scale: str) -> None:
    """Write the book of a scale: static HTML that opens from disk."""
    from study.book.build import build

    print(f"open {build(root(), scale).relative_to(root())}")


def compare(scale: str) -> None:
    """Say how many results of a scale equal those recorded of it."""
    from study.results import digests

    recorded = digests.read(scale)
    print(
        f"scale {scale}: {digests.compare(scale, recorded) if recorded else 'nothing is recorded'}"
    )


def make(scale: str | None, jobs: int | None, only: str | None) -> None:
    """``dvc repro`` of a scale, several stages at a time."""
    from study.repro import make

    make(scale, jobs, only)


def submit(scale: str, runs: list[str], gpus: int | None, hours: float) -> None:
    """Submit a scale's runs, all or those named, as jobs of a Slurm cluster."""
    from study.submit import submit

    jobs = submit(scale, runs, gpus, hours)
    print(
        f"{len(jobs)} jobs from {jobs[0].job_id} on, their logs in build/jobs: when they are done"
    )
    print(f"`make SCALE={scale}` writes tables, chapters and book")


def _this_environment() -> None:
    """``dvc`` may be called by its path, and then ``python`` is another one: go on in its own."""
    if importlib.util.find_spec("papermill"):
        return
    own = root() / ".venv" / "bin" / "python"
    if own.is_file() and str(own.parent.parent) != sys.prefix:
        os.execv(own, [str(own), "-m", "study.cli", *sys.argv[1:]])
    raise RuntimeError(
        f"the packages of this project are not in {sys.executable}: activate its environment, "
        "`source .venv/bin/activate`, or make it by `make setup`"
    )


def _full(error: Exception) -> bool:
    """Whether the disk is: what then fails in DVC or papermill says it in its own way, or not."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or shutil.disk_usage(".").free < 1 << 20


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m study.cli", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for function, names in (
        (plan, ["scale"]),
        (data, ["name"]),
        (run, ["name"]),
        (tables, ["scale"]),
        (chapter, ["scale", "notebook"]),
        (book, ["scale"]),
        (compare, ["scale"]),
        (submit, ["scale"]),
        (make, []),
    ):
        command = commands.add_parser(function.__name__, help=function.__doc__.splitlines()[0])
        for name in names:
            command.add_argument(name, nargs="?" if function is plan else None)
        command.set_defaults(function=function)
    command = commands.choices["submit"]
    command.add_argument("runs", nargs="*", help="those to submit; none: all")
    command.add_argument("--gpus", type=int, help="of each job; by default one a process")
    command.add_argument("--hours", type=float, default=24, help="of each job, then queued again")
    command = commands.choices["make"]
    command.add_argument("--scale")
    command.add_argument("--jobs", type=int, help="how many at a time; one a core or GPU")
    command.add_argument(
        "--only",
        choices=["evidence", "reports"],
        help="the evidence's runs; or tables, chapters and book of the results that are there",
    )
    options = vars(parser.parse_args(arguments))
    function, _ = options.pop("function"), options.pop("command")
    try:
        _this_environment()
        function(**options)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last finished epoch", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {FULL if _full(error) else error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
