"""Clones of the project in which tests run the real pipeline."""

import os
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from study.files import root

PROJECT = root(Path(__file__).parent)
#: One run of each kind, beside the playground.
KEPT = {
    "cifar100": ["resnext10", "resnext10-se-ws", "resnext10-cbam"],
    "cifar10": ["mixer10-mwe"],
    "cinic10": ["resnet18-ours-ws", "resnet18-mwe"],
    "imagenet": ["imagenet-global-ws"],
    "voc": ["voc-se-ws"],
    "kinetics": ["kinetics-mwe"],
}
#: Of roles that smoke has not.
ELSEWHERE = {"tiny-imagenet": ["tiny"], "jester": ["jester"]}
#: Runs of the evidence, made by a scale with real data.
EVIDENCE = ("evidence-plain", "evidence-se-ws")
RUNS = {run for runs in KEPT.values() for run in runs}


def shell(command: str, cwd: Path, *, fails: bool = False) -> str:
    """Run a command with this environment's programs first in PATH; return all that it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(cwd)}
    done = subprocess.run(
        command,
        shell=True,
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def clone(source: Path, target: Path) -> Path:
    shell(f"git clone -q {source} {target}", source)
    shell("git config user.name test && git config user.email test@localhost", target)
    return target


def small_clone(target: Path) -> Path:
    """A clone with the working tree's files and a few runs, at the scale smoke, nothing made."""
    folder = clone(PROJECT, target)
    shell(
        f"git -C {PROJECT} ls-files -z -co --exclude-standard | "
        f"(cd {PROJECT} && xargs -0 tar c --ignore-failed-read) | tar x",
        folder,
    )
    keep_a_few_runs(folder)
    shell("sed -i 's/^scale: demo/scale: smoke/' params.yaml", folder)
    shell("rm -f dvc.lock scales/*/dvc.lock && rm -rf playground scales/*/plan", folder)
    shell("git add -A && git commit -q --allow-empty -m 'The working tree'", folder)
    return folder


def keep_a_few_runs(folder: Path) -> None:
    """Every table stays; a row whose run goes shows another, as the chapter only reads files.

    The scale cpu gets the data of smoke, so that what it does can be tried in minutes.
    """
    yaml = YAML()
    runs = yaml.load(folder / "runs.yaml")
    kept = KEPT | ELSEWHERE | {"evidence": EVIDENCE}
    runs["runs"] = {role: {n: runs["runs"][role][n] for n in kept[role]} for role in kept}
    for run in runs["runs"]["evidence"].values():
        run["seeds"] = 1
    yaml.dump(runs, folder / "runs.yaml")
    scale = yaml.load(folder / "scales/smoke/scale.yaml") | {"scale": "cpu"}
    scale["data"]["evidence"] = dict(scale["data"]["cifar100"])
    yaml.dump(scale, folder / "scales/cpu/scale.yaml")
    tables = yaml.load(folder / "tables.yaml")
    for row in (row for table in tables.values() for row in table["rows"]):
        if row.get("run", "resnext10") not in RUNS:
            row["run"] = "resnext10"
    yaml.dump(tables, folder / "tables.yaml")
    claims = yaml.load(folder / "claims.yaml")
    for claim in (claim for theme in claims.values() for claim in theme if "pairs" in claim):
        claim["pairs"] = [["resnext10-se-ws", "resnext10"]]
    yaml.dump(claims, folder / "claims.yaml")
