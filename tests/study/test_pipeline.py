"""The pipeline as a user runs it: real DVC and papermill in a clone, at the smoke scale."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from clones import EVIDENCE, PROJECT, RUNS, clone, shell

from study import cli, repro

OUTPUTS = ("result.json", "curves.csv", "metrics.json")


def ran(output: str) -> set[str]:
    """The stages that dvc says it ran."""
    lines = output.splitlines()
    return {line.split("'")[1] for line in lines if line.startswith("Running stage")}


def test_the_book_without_results_says_what_to_make(tmp_path, monkeypatch, capsys):
    for name in ("params.yaml", "recipes.yaml", "runs.yaml", "scales"):
        (tmp_path / name).symlink_to(PROJECT / name)
    monkeypatch.setattr(repro, "root", lambda: tmp_path)
    assert cli.main(["make", "--only", "reports", "--scale", "cpu"]) == 1
    message = "error: no results at scale cpu: make them first, with make SCALE=cpu\n"
    assert capsys.readouterr().err == message


def test_every_table_is_made_and_git_has_nothing_to_say(made):
    changed = shell("git status --short", made).split()[1::2]
    assert set(changed) <= {"dvc.lock", "playground/", "scales/smoke/dvc.lock"}
    tables = {p.stem for p in (made / "results" / "smoke" / "tables").glob("*.csv")}
    assert {f"table_6_{n}" for n in range(1, 12)} <= tables
    results = [json.loads(p.read_text()) for p in (made / "results" / "smoke").glob("*.json")]
    assert {r["run"] for r in results if "test_last" in r} == RUNS
    assert json.loads((made / "playground/result.json").read_text())["scale"] == "smoke"


def test_the_second_time_nothing_runs(made):
    assert "everything is up to date" in shell("python -m study.cli make", made)
    assert ran(shell("dvc repro", made)) == set()


def test_a_scale_without_evidence_says_where_there_is_some(made):
    output = shell("python -m study.cli make --only evidence --scale smoke", made, fails=True)
    assert "error: no evidence at scale smoke: take cpu or gpu" in output


def test_killed_at_any_moment_and_resumed_equal_to_the_last_bit(made):
    files = [made / "playground" / name for name in OUTPUTS]
    files.append(made / "models" / "playground.safetensors")
    whole = [file.read_bytes() for file in files]
    command = [sys.executable, "-m", "study.cli", "run", "playground"]
    environment = os.environ | {"PYTHONPATH": str(made)}
    for _ in range(5):
        process = subprocess.Popen(
            command, cwd=made, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
        )
        time.sleep(random.uniform(2, 7))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(1.5)  # its kernel ends within a second
    for file in files:
        file.unlink()
    shell("python -m study.cli run playground", made)
    assert [file.read_bytes() for file in files] == whole


def test_a_kernel_that_is_killed_is_named(made):
    notebook = made / "notebooks" / "train.ipynb"
    text = notebook.read_text(encoding="utf-8")
    notebook.write_text(text.replace("runs = {}", "import os; os.kill(os.getpid(), 9)"))
    output = shell("python -m study.cli run playground", made, fails=True)
    notebook.write_text(text, encoding="utf-8")
    assert "playground: its kernel was killed, as the system does when memory runs out" in output


def test_another_kernel_of_the_same_name_is_not_taken(made, tmp_path):
    other = tmp_path / "kernels" / "python3"
    other.mkdir(parents=True)
    kernel = {"argv": ["false", "{connection_file}"], "display_name": "x", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(kernel))
    shell(f"JUPYTER_PATH={tmp_path} python -m study.cli run playground", made)


def test_a_python_without_the_packages_says_what_to_do(made):
    command = "PATH=/usr/bin:/bin python3 -S -m study.cli plan smoke"
    assert "error: the packages of this project are not in" in shell(command, made, fails=True)


@pytest.fixture(scope="module")
def shared(made, tmp_path_factory):
    """The same clone, its results committed and pushed."""
    shell(f"dvc remote add -q -d shared {tmp_path_factory.mktemp('shared') / 'remote'}", made)
    shell("git add -A && git add -f scales/smoke/plan && git commit -qm 'Smoke results'", made)
    shell("dvc push -q", made)
    return made


def test_looking_and_rewording_trains_nothing(shared):
    """The notebook as JupyterLab runs it, its prose and a docstring edited."""
    shell("papermill -p run playground train.ipynb ../build/looked.ipynb", shared / "notebooks")
    assert ran(shell("dvc repro", shared)) == set()
    notebook, module = shared / "notebooks" / "train.ipynb", shared / "study/train/loop.py"
    notebook.write_text(notebook.read_text().replace("# One run", "# One run, reworded"))
    module.write_text(module.read_text().replace("Train one run:", "# Train  one run:"))
    assert ran(shell("dvc repro", shared)) == {"plan", "scales/smoke/dvc.yaml:plan"}
    chapter = shared / "notebooks" / "06_results.ipynb"
    chapter.write_text(chapter.read_text().replace("# 6. Results", "# 6. The results"))
    own = "scales/smoke/dvc.yaml:"
    made = {f"{own}plan", f"{own}chapter@06_results", f"{own}book", "scale"}
    assert ran(shell("dvc repro", shared)) == made
    assert "The results" in (shared / "reports/book/smoke/06_results.html").read_text()
    shell("git restore notebooks study && dvc repro", shared)


def test_sharing_and_one_experiment(shared, tmp_path):
    """Pulled into a second clone, nothing runs there but the one experiment."""
    second = clone(shared, tmp_path / "second")
    shell("dvc pull -q --allow-missing", second)
    assert ran(shell("dvc repro", second)) == set()
    tested = shell(
        f'{sys.executable} -c "from wexlib import load, fold;'
        "print(type(fold(load('models/playground.safetensors')).conv1).__name__)\"",
        second,
    )
    assert tested.strip() == "Conv2d"
    before = (second / "playground/result.json").read_text()
    assert ran(shell("dvc exp run -S we.activation=leaky_relu", second)) == {"plan", "playground"}
    assert (second / "playground/result.json").read_text() != before
    shown = shell(
        "COLUMNS=120 dvc exp show --no-pager --hide-workspace --only-changed --drop '.*/'", second
    )
    assert "accuracy" in shown and "we.activation" in shown and "leaky_relu" in shown
    assert max(map(len, shown.splitlines())) <= 120 and "…" not in shown
    assert "we.activation" in shell("dvc params diff", second)
    assert "playground/metrics.json" in shell("dvc metrics diff --all", second)


def test_in_a_fresh_clone_the_playground_alone_is_made(shared, tmp_path):
    fresh = clone(shared, tmp_path / "fresh")
    assert ran(shell("dvc repro --dry --allow-missing", fresh)) == set()
    output = shell("dvc exp run -S we.activation=leaky_relu playground", fresh)
    assert ran(output) == {"plan", "data", "playground"}


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("we.actvation=relu", "Key 'actvation' is not in struct"),
        ("we.attention=cbm", "unknown we.attention 'cbm'"),
        ("scale=gpuu", "gpuu"),
        ("train.lr=fast", "error: train.lr: expected a number above 0, got 'fast'"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_lost(made, setting, sentence):
    kept = (made / "playground/result.json").read_bytes()
    output = shell(f"dvc exp run -S {setting}", made, fails=True)
    shell("git checkout -q params.yaml", made)
    assert sentence in output
    assert (made / "playground/result.json").read_bytes() == kept


def test_a_grid_by_the_queue(shared):
    shell("dvc exp run --queue -S we.activation=elu,silu,tanh && dvc queue start", shared)
    for _ in range(120):
        status = shell("dvc queue status", shared)
        if status.count("Success") + status.count("Failed") == 3:
            break
        time.sleep(2)
    assert status.count("Success") == 3, status
    shown = shell("dvc exp show --csv --hide-workspace --only-changed --drop '.*/'", shared)
    assert all(name in shown for name in ("elu", "silu", "tanh"))


def test_real_results_stay_in_git_and_evidence_is_made_when_asked(made):
    results = made / "results" / "cpu"
    shell("git rm -rq results/cpu && git commit -qm 'No results'", made)
    command = "python -m study.cli make --only evidence --scale cpu"
    shell(command, made)
    assert {p.stem for p in results.glob("evidence-*.json")} == set(EVIDENCE)
    assert "results/cpu/evidence-plain.json" in shell("git status --short -uall", made)
    page = (made / "reports/book/cpu/evidence.html").read_text(encoding="utf-8")
    assert "evidence of the scale cpu" in page
    lost = results / "evidence-se-ws.json"
    whole = lost.read_bytes()
    lost.unlink()
    shell(command, made)
    assert lost.read_bytes() == whole
