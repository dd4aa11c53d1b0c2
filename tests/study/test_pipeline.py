"""The pipeline as a user runs it: real DVC and papermill in a clone, at the smoke scale."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clones import EVIDENCE, PROJECT, RUNS, clone, shell
from ruamel.yaml import YAML

from study import cli as pipeline

STAGES = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]
#: Those that read runs' results.
CHAPTERS = {f"chapter@smoke-{name}" for name in STAGES["chapter"]["matrix"]["notebook"]}


def ran(output: str) -> set[str]:
    """The stages that dvc says it ran."""
    lines = output.splitlines()
    return {line.split("'")[1] for line in lines if line.startswith("Running stage")}


def test_the_book_without_results_says_what_to_make(tmp_path, monkeypatch, capsys):
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(pipeline, "root", lambda: tmp_path)
    assert pipeline.main(["make", "--reports", "--scale", "cpu"]) == 1
    message = "error: no results at scale cpu: make them first, with make SCALE=cpu\n"
    assert capsys.readouterr().err == message
    assert (tmp_path / "params.yaml").read_text(encoding="utf-8") == text


def test_every_table_is_made_and_params_yaml_is_as_it_was(made):
    assert shell("git status --short params.yaml", made) == ""
    tables = {p.stem for p in (made / "results" / "smoke" / "tables").glob("*.csv")}
    assert {f"table_6_{n}" for n in range(1, 12)} <= tables
    results = [json.loads(p.read_text()) for p in (made / "results" / "smoke").glob("*.json")]
    assert {r["run"] for r in results if "test_last" in r} == RUNS


def test_the_second_time_nothing_runs(made):
    assert "everything is up to date" in shell("python -m study.cli make --scale smoke", made)


def test_a_scale_without_evidence_says_where_there_is_some(made):
    output = shell("python -m study.cli make --evidence --scale demo", made, fails=True)
    assert "error: no evidence at scale demo: take cpu or gpu" in output
    assert shell("git status --short params.yaml", made) == ""


OUTPUTS = (
    "results/smoke/playground.json",
    "results/smoke/curves/playground.csv",
    "models/smoke/playground.safetensors",
)


def test_killed_at_any_moment_and_resumed_equal_to_the_last_bit(made):
    whole = {name: (made / name).read_bytes() for name in OUTPUTS}
    provenance = made / "results/smoke/provenance/playground.json"
    noted = provenance.read_bytes()  # the time, unlike the results, is another
    command = [sys.executable, "-m", "study.cli", "run", "smoke/playground"]
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
    for name in OUTPUTS:
        (made / name).unlink()
    shell("python -m study.cli run smoke/playground", made)
    assert {name: (made / name).read_bytes() for name in OUTPUTS} == whole
    provenance.write_bytes(noted)


@pytest.fixture(scope="module")
def shared(made, tmp_path_factory) -> Path:
    """The same clone, its scale set to smoke as a user would, its results committed and pushed."""
    shell(f"dvc remote add -q -d shared {tmp_path_factory.mktemp('shared') / 'remote'}", made)
    shell("sed -i 's/^scale: demo/scale: smoke/' params.yaml", made)
    shell("git add -A && git add -f results/smoke && git commit -q -m 'Smoke results'", made)
    shell("dvc push -q", made)
    return made


def test_looking_and_rewording_trains_nothing(shared):
    """The notebook as JupyterLab runs it, its prose and a docstring edited."""
    looked = "papermill -p run smoke/playground train.ipynb ../build/looked.ipynb"
    shell(looked, shared / "notebooks")
    assert "up to date" in shell("dvc status", shared)
    notebook, module = shared / "notebooks" / "train.ipynb", shared / "wexlib" / "train.py"
    notebook.write_text(notebook.read_text().replace("# One run", "# One run, reworded"))
    module.write_text(module.read_text().replace("Train one run:", "# Train  one run:"))
    assert ran(shell("dvc repro", shared)) == {"plan@smoke", "book@smoke"}
    chapter = shared / "notebooks" / "06_results.ipynb"
    chapter.write_text(chapter.read_text().replace("# 6. Results", "# 6. The results"))
    assert ran(shell("dvc repro", shared)) == {"chapter@smoke-06_results", "book@smoke"}
    assert "The results" in (shared / "reports/book/smoke/06_results.html").read_text()
    shell("git restore notebooks wexlib && dvc repro", shared)


def test_sharing_and_one_experiment(shared, tmp_path):
    """Pulled into a second clone, nothing runs there but the one experiment."""

    second = clone(shared, tmp_path / "second")
    shell("dvc pull -q", second)
    assert "Running stage" not in shell("dvc repro", second)
    tested = shell(
        f'{sys.executable} -c "from wexlib import load, fold;'
        "print(type(fold(load('models/smoke/playground.safetensors')).conv1).__name__)\"",
        second,
    )
    assert tested.strip() == "Conv2d"

    before = (second / "results/smoke/playground.json").read_text()
    output = shell("dvc exp run -S we.activation=leaky_relu", second)
    assert ran(output) == {
        "plan@smoke",
        "playground@smoke",
        "tables@smoke",
        *CHAPTERS,
        "book@smoke",
    }
    assert (second / "results/smoke/playground.json").read_text() != before
    shown = shell("dvc exp show --csv", second)
    assert "leaky_relu" in shown and "playground" in shown


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("we.actvation=relu", "Key 'actvation' is not in struct"),
        ("we.attention=cbm", "unknown we.attention 'cbm'"),
        ("scale=gpuu", "unknown scale 'gpuu'"),
        ("train.lr=fast", "error: train.lr: expected a number above 0, got 'fast'"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_lost(made, setting, sentence):
    kept = sorted(p.name for p in (made / "results" / "smoke").glob("*.json"))
    assert sentence in shell(f"dvc exp run -S {setting}", made, fails=True)
    assert sorted(p.name for p in (made / "results" / "smoke").glob("*.json")) == kept
    shell("git checkout -q params.yaml dvc.lock", made)


def test_evidence_is_made_when_asked_and_again_to_the_last_bit(made):
    results = made / "results" / "smoke"
    assert not list(results.glob("evidence-*"))
    command = "python -m study.cli make --evidence --scale smoke"
    shell(command, made)
    assert {p.stem for p in results.glob("evidence-*.json")} == set(EVIDENCE)
    assert shell("git status --short params.yaml", made) == ""
    page = (made / "reports/book/smoke/evidence.html").read_text(encoding="utf-8")
    assert "evidence of the scale smoke" in page
    lost = results / "evidence-se-ws.json"
    whole = lost.read_bytes()
    lost.unlink()
    shell(command, made)
    assert lost.read_bytes() == whole
    assert "everything is up to date" in shell("python -m study.cli make --scale smoke", made)
