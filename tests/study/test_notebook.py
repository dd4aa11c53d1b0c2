"""A notebook that papermill runs: its parameters, its kernel's environment, its end."""

import os
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from study.notebook import FULL, execute


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs code in a notebook of a project that holds nothing else."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    parameters = new_code_cell("name = None", id="given", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}

    def run(code, target="made", environment=None, **given):
        notebook = new_notebook(cells=[parameters, new_code_cell(code, id="code")], metadata=kernel)
        nbformat.write(notebook, tmp_path / "a.ipynb")
        done = tmp_path / "build" / f"{target}.ipynb"
        execute(tmp_path / "a.ipynb", done, given, "a", environment)
        return done

    return run


def test_an_unknown_parameter_is_refused_before_anything_runs(run, tmp_path):
    with pytest.raises(ValueError, match="a.ipynb has no parameter 'nmae'"):
        run("", nmae=1)
    assert not (tmp_path / "build").exists()


def test_equal_outputs_are_equal_files_and_the_environment_is_the_kernels(run):
    code = "import os; print(name, os.environ['PINNED'], os.getcwd())"
    first, second = (run(code, target, {"PINNED": "yes"}, name="it") for target in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert f"it yes {first.parent.parent}" in first.read_text()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("raise ValueError('a bad value')", "a bad value"),
        ("import errno; raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))", FULL),
    ],
)
def test_a_cell_that_fails_is_a_sentence_and_its_traceback_is_kept(run, code, sentence):
    with pytest.raises(RuntimeError) as error:
        run(f"import os\n{code}")
    assert str(error.value) == f"{sentence} (traceback: build/made.ipynb)"
    kept = Path("build/made.ipynb").read_text(encoding="utf-8")
    assert '"output_type": "error"' in kept
