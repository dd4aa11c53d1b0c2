"""Reliability, in figures: what is changed, damaged, killed or full, how often, and what is lost.

``python tests/reliability.py`` does all of it, an hour or more; ``--short`` a little, in a minute;
``settings 500`` one part 500 times. It ends with 1 where anything was lost: a traceback stood for a
sentence, a number or a file was another one.

- ``settings``: a settings file is changed at random, and planned.
- ``damage``: a byte of a file is flipped, or its end cut off, and it is read.
- ``killed``: ``make``, and a run on real data, are killed at random moments and started again.
- ``full``: the disk that ``make`` writes to fills up at random moments.

Two of ``make`` at once finish each of the killed ones.
"""

import argparse
import copy
import hashlib
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from unittest.mock import patch

import psutil
import torch
from clones import PROJECT, clone, shell, small_clone
from ruamel.yaml import YAML

from study import cli, files, repro
from study.data import loader
from study.data.datasets import prepare
from study.notebook import FULL
from study.plan import SCALES, code, config
from study.results import claims, tables
from study.results.files import Results
from study.train import live, record
from study.train.loop import fit, start
from study.train.state import Run
from wexlib import load

LOST = "LOST"
SETTINGS = ("params", "recipes", "runs", "tables", "claims", "scales/{}/scale")

# --- settings ---------------------------------------------------------------------------------

#: Values of YAML, as a person or a program may write them.
ODD = r"""
yes|no|on|~|''|.nan|-.inf|1e999|-1|0|0.5|1.5|1e-3|1e30|-0.0|0x1F|0o17|1_000|true|null|a text|'1'
ä ö|[]|{}|[1]|[[]]|{a: 1}|{1: 2}|{~: 1}|{[a, b]: c}|[a, [b]]|{a: 1, a: 2}|[0, 0]|[0, -1]|'none'
resnet18|2001-01-01|2001-01-01 10:00:00|2001-13-45|!!binary aGk=|!!binary x|!!set {a}
!!omap [a: 1]|!own {a: 1}|!!python/name:os.system|!!float x|!!int x|!!bool x|"a\nb"|"\0"|"\e[31m"
*unknown|&a [*a]|&a {a: *a}|{<<: 1}|{<<: {a: 1}}|[1, 2|{a: 1|"open|@at|%x|`x|- x|a: b: c|>|\t
{width: 1e9}|{width: 0}|{width: -8}|{width: x}|{width: [8]}|{width: 10000000000}|{dim: 0}
{depth: 1.5}|{num_heads: 0}|{num_heads: 7}|{a: ~}|{reduction: 99999999999999999999}
[9999999999999999999]|9007199254740993
"""
ODD = [*ODD.strip().replace("\n", "|").split("|"), "9" * 400, "[" * 5000, "x" * 5000]
KEYS = [
    "1",
    "~",
    "true",
    "1.5",
    "2001-01-01",
    "''",
    "'a b'",
    "ä",
    "[a, b]",
    "? {a: 1}\n",
    "<<",
    "*x",
]


def nodes(value: object) -> list[tuple]:
    """Every container of a tree with one of its keys."""
    keys = list(value if isinstance(value, dict) else range(len(value)))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += nodes(value[key])
    return found


def another_tree(tree: object, chance: random.Random) -> str:
    """A file with a key renamed, removed or added, or with another value."""
    place, key = chance.choice(nodes(tree))
    odd, kind = chance.choice(ODD), chance.choice(["value", "value", "rename", "remove", "add"])
    if kind == "remove":
        del place[key]
    elif isinstance(place, list) or kind == "value":
        place[key] = "@ODD@"
    else:
        value = place[key] if kind == "add" else place.pop(key)
        typo = "".join(chance.sample(str(key), len(str(key))))
        odd = chance.choice([*KEYS, f"'{typo}'", f"{key}s"]) if kind == "rename" else odd
        place["@ODD@" if kind == "rename" else f"{key}_"] = value if kind == "rename" else "@ODD@"
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = chance.choice([True, False, None])
    yaml.dump(tree, text)
    return text.getvalue().replace("'@ODD@'", odd).replace("@ODD@", odd)


def another_text(text: str, chance: random.Random) -> bytes:
    """A file whose lines or bytes are not what they were."""
    lines = text.splitlines(keepends=True)
    i, raw = chance.randrange(len(lines)), text.encode()
    at = chance.randrange(len(raw))
    kind = chance.randrange(14)
    if kind == 0:
        lines.insert(i, lines[i])
    elif kind == 1:
        del lines[i]
    elif kind == 2:
        lines[i] = "\t" + lines[i]
    elif kind == 3:
        lines[i] = " " + lines[i]
    elif kind == 4:
        lines.insert(i, chance.choice(["---\n", "...\n", "%YAML 1.1\n", "? x\n", "<<: *x\n"]))
    elif kind == 5:
        lines = []
    elif kind == 6:
        lines = ["# nothing\n"]
    else:
        odd = [b"\xff", b"\x00", b"\x07", "\ufeff".encode(), "\u2028".encode(), b"\x85"]
        return {
            7: raw[:at],
            8: raw[:at] + chance.choice(odd) + raw[at:],
            9: raw[:at] + bytes([raw[at] ^ 1 << chance.randrange(8)]) + raw[at + 1 :],
            10: text.encode("utf-16"),
            11: chance.randbytes(200),
            12: raw.replace(b"\n", b"\r\n"),
            13: chance.choice(ODD).encode() + b"\n",
        }[kind]
    return "".join(lines).encode()


def another(contents: bytes, chance: random.Random) -> bytes:
    """A settings file with a change in what it says, or in how."""
    text = contents.decode()
    if chance.random() < 0.3:
        return another_text(text, chance)
    return another_tree(YAML(typ="safe").load(text), chance).encode()


def settings(folder: Path, count: int, seed: int) -> Counter:
    """Changed settings, each given to ``plan`` and ``make``: accepted, or refused in a sentence."""

    @cache
    def parsed(name: str, contents: bytes, pure: bool) -> object:
        (folder / "parsed").mkdir(exist_ok=True)
        (folder / "parsed" / name).write_bytes(contents)
        return files.read_yaml(folder / "parsed" / name, pure=pure)

    def read_yaml(path: Path, *, pure: bool = True) -> object:
        return copy.deepcopy(parsed(path.name, path.read_bytes(), pure))

    class Code:
        """The digests, which take seconds, but not what they look for in a plan."""

        def __init__(self, home: Path):
            pass

        def reached(self, start: str, plan: dict | None = None) -> dict:
            return {} if plan is None else {word: "" for word in code.words(plan)}

    outcomes, home = Counter(), folder / "home"
    home.mkdir()
    for path in (*PROJECT.glob("*.yaml"), *PROJECT.glob("scales/*/*.yaml")):
        copied = home / path.relative_to(PROJECT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied)
    (home / "notebooks").symlink_to(PROJECT / "notebooks")
    with ExitStack() as stack:
        for module in (config, tables, claims):
            stack.enter_context(patch.object(module, "read_yaml", read_yaml))
        stack.enter_context(patch.object(config, "Code", Code))
        stack.enter_context(patch.object(repro, "_changed", lambda *_: {}))
        stack.enter_context(chdir(home))
        for i in range(count):
            chance = random.Random(f"{seed} {i}")
            scale = chance.choice(SCALES)
            name = chance.choice(SETTINGS).format(scale) + ".yaml"
            whole = (PROJECT / name).read_bytes()
            (home / name).write_bytes(another(whole, chance))
            outcomes[given_to_plan(scale, name, f"{seed} {i}")] += 1
            (home / name).write_bytes(whole)
    return outcomes


def given_to_plan(scale: str, name: str, case: str) -> str:
    """What ``plan`` makes of the settings; a fault of it is printed."""
    said = io.StringIO()
    for arguments in (["plan", scale], ["plan"], ["make", "--scale", scale]):
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(said):
                code = cli.main(arguments)
        except BaseException as error:  # noqa: BLE001 - this is what is looked for
            print(f"  {case}: {name}: {type(error).__name__}: {error}")
            return f"{LOST}: a traceback"
        if code and not re.fullmatch(r"(error: [^\n]+\n)+", said.getvalue()):
            print(f"  {case}: {name}: {said.getvalue()!r}")
            return f"{LOST}: no sentence"
    return "refused in a sentence" if said.getvalue() else "accepted"


# --- damage -----------------------------------------------------------------------------------


SEEDS = (0, 1)


def small_home(folder: Path) -> Path:
    """A project with prepared data, and a run of two seeds that left everything."""
    home = folder / "small"
    home.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (home / name).touch()
    prepare("digits10", home / "data" / "demo" / "cinic10", train=64, validation=16, test=50)
    with chdir(PROJECT):
        plan = live.plan("resnet18", we={"attention": "se"}, epochs=1)
    plan |= {"run": "a", "code": {}, "model_options": {"width": 8}, "seeds": list(SEEDS)}
    with chdir(home):
        data, runs, states = record.read_data(plan), {}, {}
        for seed in plan["seeds"]:
            state = record.state_file(plan, seed)
            runs[seed] = start(plan, data, seed, state)
            list(fit(runs[seed], plan, data, seed, state))
            states[state] = state.read_bytes()
        record.write_results(plan, data, runs)
    for path, contents in states.items():
        path.write_bytes(contents)
    return home


def read_data(path: Path) -> object:
    data = loader.load(path.parent)
    arrays = [array.tobytes() for pair in data.splits.values() for array in pair]
    return data.meta, arrays


def read_models(path: Path) -> object:
    return [shown(load(path, seed).state_dict()) for seed in SEEDS]


def read_run(path: Path) -> object:
    home = path.parents[3] if path.suffix == ".csv" else path.parents[2]
    run = Results(path.relative_to(home).parts[1], home)[path.stem]
    return run and (run.result, run.curves.to_csv())


def read_state(path: Path) -> object:
    state = Run.read(path)
    return state and shown(state)


def shown(state: object) -> bytes:
    """A tree of tensors as bytes that are equal for equal ones."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


#: Which files, and what a user of theirs reads.
READERS: dict[str, Callable[[Path], object]] = {
    "data/*/*/*": read_data,
    "models/*/*.safetensors": read_models,
    "results/*/*.json": read_run,
    "results/*/curves/*.csv": read_run,
    "build/unfinished/*/*/*.pt": read_state,
}


def damage(folder: Path, count: int, seed: int) -> Counter:
    """One byte of a file flipped, or its end cut off: noticed when it is next read."""
    outcomes, home = Counter(), small_home(folder)
    kinds = {pattern: sorted(home.glob(pattern)) for pattern in READERS}
    whole = {path: READERS[kind](path) for kind, paths in kinds.items() for path in paths}
    for i in range(count):
        chance = random.Random(f"{seed} {i}")
        kind = list(READERS)[i % len(READERS)]
        path = chance.choice(kinds[kind])
        contents = path.read_bytes()
        changed, at = bytearray(contents), chance.randrange(len(contents))
        if chance.random() < 0.7:
            changed[at] ^= 1 << chance.randrange(8)
        else:
            del changed[at:]
        path.write_bytes(changed)
        outcome = read_again(READERS[kind], path, whole[path])
        if outcome.startswith(LOST):
            print(f"  {seed} {i}: {path.relative_to(home)} at byte {at}: {outcome}")
        path.write_bytes(contents)
        outcomes[outcome] += 1
    return outcomes


def read_again(read: Callable[[Path], object], path: Path, whole: object) -> str:
    """What comes of a damaged file."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            found = read(path)
    except (ValueError, FileNotFoundError) as error:
        return f"{LOST}: no sentence" if "\n" in str(error) else "refused in a sentence"
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return f"{LOST}: {type(error).__name__}: {error}"
    if found == whole:
        return "says what it said"
    anew = found is None and said.getvalue().endswith("is damaged: this seed is trained anew\n")
    return "trained anew" if anew else f"{LOST}: another content"


# --- killed, and full -------------------------------------------------------------------------


def fingerprints(home: Path) -> dict[str, str]:
    """Everything that DVC knows a result by, and every result."""
    patterns = ("results/*/*.json", "results/*/curves/*", "results/*/tables/*", "models/**/*")
    patterns += ("data/*/*/*", "reports/**/*", "playground/*", "dvc.lock", "scales/*/dvc.lock")
    paths = {path for pattern in patterns for path in home.glob(pattern) if path.is_file()}

    def fingerprint(path: Path) -> str:
        if path.name == "dvc.lock":  # stages stand in the order in which they ended
            return files.digest(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return {
        str(path.relative_to(home)): fingerprint(path)
        for path in sorted(paths)
        if path.name != "provenance.json"
    }


def differences(home: Path, whole: dict[str, str]) -> list[str]:
    """Files that are others, missing or too many."""
    here = fingerprints(home)
    return sorted(name for name in here.keys() | whole.keys() if here.get(name) != whole.get(name))


def started(home: Path, *words: str, **variables: str) -> subprocess.Popen:
    """A command of the study, started in a folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(home)}
    log = tempfile.TemporaryFile("w+")  # not in the folder, whose disk may be full
    process = subprocess.Popen(
        [sys.executable, "-m", "study.cli", *words],
        cwd=home,
        env=environment | variables,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    process.log = log
    return process


def said(process: subprocess.Popen) -> str:
    """What it has printed."""
    process.log.seek(0)
    return process.log.read()


def kill(process: subprocess.Popen, *, alone: bool) -> None:
    """End it by SIGKILL, and all that it started, or it alone, as where memory runs out."""
    children = []
    with suppress(psutil.NoSuchProcess):
        children = [] if alone else psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def keep_a_few_chapters(pipeline: Path) -> None:
    """Those that take seconds; the others would be most of what is killed."""
    text = pipeline.read_text(encoding="utf-8")
    for kept in ("02_related", "06_results"):
        text = re.sub(rf"notebook: \[.*({kept}\b).*\]", r"notebook: [\1]", text, count=1)
    pipeline.write_text(text, encoding="utf-8")
    shell("git commit -qam 'A few chapters'", pipeline.parent)


def made_undisturbed(folder: Path) -> tuple[Path, dict[str, str]]:
    """A clone in which nothing is made, and what ``make`` makes in another one."""
    empty, whole = folder / "empty", folder / "whole"
    if not whole.is_dir():
        small_clone(empty)
        keep_a_few_chapters(empty / "scales" / "smoke" / "dvc.yaml")
        clone(empty, whole)
        shell("python -m study.cli make", whole)
    return empty, fingerprints(whole)


def killed(folder: Path, count: int, seed: int) -> Counter:
    """``make`` killed at random moments, and finished by two at once: the files are equal."""
    (empty, whole), outcomes, kills, rounds = made_undisturbed(folder), Counter(), 0, 0
    chance = random.Random(seed)
    while kills < count:
        home, rounds, done = clone(empty, folder / f"killed-{rounds}"), rounds + 1, False
        while kills < count and not done:
            process = started(home, "make")
            try:
                done = process.wait(chance.uniform(1, PATIENCE)) == 0
                if not done:
                    outcomes[f"{LOST}: make failed"] += 1
                    print(f"  {seed} {kills}: {said(process)}")
                    break
            except subprocess.TimeoutExpired:
                alone = chance.random() < 0.3
                kill(process, alone=alone)
                outcomes["make killed alone" if alone else "make killed with all it started"] += 1
                kills += 1
        two = [started(home, "make"), started(home, "make")]
        for process in two:
            if process.wait():
                outcomes[f"{LOST}: one of two of make at once failed"] += 1
                print(f"  {seed}: {said(process)}")
        waited = sum("another make is at work in this folder: " in said(p) for p in two)
        outcomes["two of make at once: one waited" if waited else f"{LOST}: none waited"] += 1
        judge(home, whole, outcomes)
    return outcomes


def judge(home: Path, whole: dict[str, str], outcomes: Counter) -> None:
    """Count a finished folder, and let it go where it equals one that nothing disturbed."""
    if others := differences(home, whole):
        outcomes[f"{LOST}: {len(others)} files are others"] += 1
        print(f"  {home}: {others}")
    else:
        outcomes[f"make: all {len(whole)} files equal"] += 1
        shutil.rmtree(home)


def killed_run(folder: Path, count: int, seed: int) -> Counter:
    """A run on real data, alone, killed at random moments."""
    outcomes, chance, kills = Counter(), random.Random(seed), 0
    home = small_clone(folder / "real")
    yaml = YAML()
    scale = yaml.load(home / "scales/cpu/scale.yaml")
    scale["data"]["cinic10"] = {"dataset": "cifar10", "train": 2000, "validation": 100, "test": 500}
    scale["train"]["epochs"] = 6
    yaml.dump(scale, home / "scales/cpu/scale.yaml")
    shell("python -m study.cli plan cpu && python -m study.cli data cpu cinic10", home)
    command, name = ("run", "cpu/resnet18-ours-ws"), "resnet18-ours-ws"
    made = [home / f"results/cpu/{name}.json", home / f"results/cpu/curves/{name}.csv"]
    made.append(home / f"models/cpu/{name}.safetensors")
    process = started(home, *command)
    assert process.wait() == 0, said(process)
    whole = [path.read_bytes() for path in made]
    while kills < count:
        for path in made:
            path.unlink()
        while True:
            process = started(home, *command)
            try:
                if process.wait(chance.uniform(1, PATIENCE) if kills < count else None):
                    outcomes[f"{LOST}: the run failed"] += 1
                    print(f"  {seed} {kills}: {said(process)}")
                break
            except subprocess.TimeoutExpired:
                kill(process, alone=False)
                outcomes["run on CIFAR-10 killed"] += 1
                kills += 1
        equal = [path.read_bytes() if path.is_file() else b"" for path in made] == whole
        outcomes["run: results and models equal" if equal else f"{LOST}: results are others"] += 1
    return outcomes


def ended_full(process: subprocess.Popen) -> str:
    """How a command ended on a full disk."""
    *_, last = said(process).splitlines() or [""]
    if process.returncode == 0:
        return "had just ended"
    if last == f"error: {FULL}" and "Traceback" not in said(process):
        return "full: stopped with one sentence"
    print(said(process))
    return f"{LOST}: no sentence of a full disk"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of a size, in memory; it takes root, or sudo without a password."""
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    folder.mkdir()
    owner = f"size={size},uid={os.geteuid()}"
    subprocess.run([*sudo, "mount", "-t", "tmpfs", "-o", owner, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*sudo, "umount", "--lazy", folder], check=True)


def fill(path: Path) -> None:
    """Write to a file until nothing more fits."""
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 20)):
            pass
        while file.write(b"0"):
            pass


def full(folder: Path, count: int, seed: int) -> Counter:
    """The disk with the project full at random moments of ``make``, then it has space again."""
    (empty, whole), outcomes, fills, rounds = made_undisturbed(folder), Counter(), 0, 0
    chance = random.Random(seed)
    with small_disk(folder / "disk", "500m") as disk:
        while fills < count:
            home, rounds = clone(empty, disk / f"full-{rounds}"), rounds + 1
            (disk / "tmp").mkdir(exist_ok=True)
            while True:
                process = started(home, "make", TMPDIR=str(disk / "tmp"))
                try:
                    failed = process.wait(
                        chance.uniform(1, 4 * PATIENCE) if fills < count else None
                    )
                    if failed:
                        outcomes[f"{LOST}: make failed"] += 1
                        print(f"  {seed} {fills}: {said(process)}")
                    break
                except subprocess.TimeoutExpired:
                    fills += 1
                while process.poll() is None:
                    fill(disk / "filler")
                    time.sleep(0.1)
                (disk / "filler").unlink()
                outcomes[ended_full(process)] += 1
            judge(home, whole, outcomes)
    return outcomes


#: How often, and how often in short.
PARTS = {
    "settings": (settings, 1000, 40),
    "damage": (damage, 200, 40),
    "killed": (killed, 100, 0),
    "killed_run": (killed_run, 100, 0),
    "full": (full, 20, 0),
}
#: The longest that a command is left alone, in seconds.
PATIENCE = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("count", nargs="?", type=int)
    parser.add_argument("--short", action="store_true", help="a minute of it, for every change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder in which everything is done, and kept")
    options = parser.parse_args()
    lost = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        for name in [options.part] if options.part else PARTS:
            part, long, short = PARTS[name]
            if count := options.count or (short if options.short else long):
                began = time.monotonic()
                outcomes = part(folder, count, options.seed)
                lost += sum(n for outcome, n in outcomes.items() if outcome.startswith(LOST))
                figures = ", ".join(f"{n} × {outcome}" for outcome, n in sorted(outcomes.items()))
                print(f"{name}: {figures} ({(time.monotonic() - began) / 60:.1f} min)", flush=True)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
