"""What the stages call: in which environment a notebook runs, and how a failure ends."""

import errno
import json
from types import SimpleNamespace

import pytest

from study import cli
from study.notebook import FULL
from study.results import digests
from study.train.pinned import ENVIRONMENT


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project of a run of each kind, its working folder, where no notebook is run."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    for scale, data in (("demo", {}), ("gpu", {}), ("cpu", {"missing": "needs ImageNet"})):
        plan = {"run": "a", "scale": scale, "data": data}
        file = tmp_path / "scales" / scale / "plan" / "a.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(plan))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def executed(home, monkeypatch):
    """The calls of :func:`study.notebook.execute`."""
    calls = []
    monkeypatch.setattr(cli, "execute", lambda *given: calls.append(given))
    return calls


def test_instruction_sets_are_pinned_for_embedded_data_and_chapters_alone(home, executed):
    for arguments in (["run", "demo/a"], ["run", "gpu/a"], ["chapter", "gpu", "06_results"]):
        assert cli.main(arguments) == 0
    assert [call[-1] for call in executed] == [ENVIRONMENT, {}, ENVIRONMENT]
    assert [call[0].name for call in executed] == ["train.ipynb", "train.ipynb", "06_results.ipynb"]
    assert [call[2] for call in executed] == [
        {"run": "demo/a", "write": True},
        {"run": "gpu/a", "write": True},
        {"scale": "gpu", "save": True},
    ]
    assert (home / "reports" / "gpu" / "figures" / "06_results").is_dir()


def test_a_run_without_its_data_is_a_result_that_says_so(home, executed, capsys):
    assert cli.main(["run", "cpu/a"]) == 0
    assert executed == [] and "cpu/a is not run: needs ImageNet" in capsys.readouterr().out
    result = json.loads((home / "results" / "cpu" / "a.json").read_text())
    assert result.pop("digest")
    assert result == {"run": "a", "scale": "cpu", "not_run": "needs ImageNet"}


def test_data_is_prepared_of_a_scale_and_of_the_playground(home, monkeypatch, capsys):
    prepared = []
    monkeypatch.setattr(
        "study.data.datasets.prepare", lambda *given, **sizes: prepared.append(given)
    )
    sizes = {"train": None, "validation": 0, "test": None}
    for place, spec in (
        ("playground/data.json", {"dataset": "/my/images"} | sizes),
        ("scales/demo/plan/data/cifar10.json", {"dataset": "digits10"} | sizes),
        ("scales/demo/plan/data/voc.json", {"missing": "trained elsewhere"}),
    ):
        (home / place).parent.mkdir(parents=True, exist_ok=True)
        (home / place).write_text(json.dumps(spec))
    for name in ("playground", "demo/cifar10", "demo/voc"):
        assert cli.main(["data", name]) == 0
    folder = home / "data"
    assert prepared == [
        ("/my/images", folder / "playground"),
        ("digits10", folder / "demo" / "cifar10"),
    ]
    assert json.loads((folder / "demo/voc/meta.json").read_text()) == {
        "missing": "trained elsewhere"
    }
    assert capsys.readouterr().out == "demo/voc: trained elsewhere\n"


def test_what_a_killed_run_left_is_cleared_before_it_goes_on(home, executed):
    left = [home / "results/demo/curves/.a.csv.12345678", home / "models/demo/.a.safetensors.1"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert cli.main(["run", "demo/a"]) == 0
    assert not any(path.exists() for path in left)


def test_compare_says_what_is_equal_or_that_nothing_is_recorded(home, capsys):
    result = {"run": "a", "config": {"code": {}}, "seeds": [0, 1], "test_last": [50.0, 52.0]}
    curves = home / "results" / "demo" / "curves" / "a.csv"
    curves.parent.mkdir(parents=True)
    curves.write_text("seed,epoch\n")
    curves.parent.with_name("a.json").write_text(json.dumps(result))
    digests.record("demo", {"a": [49.0, 50.0, 51.0, 52.0, 53.0]})
    for scale in ("demo", "gpu"):
        assert cli.main(["compare", scale]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "scale demo: 1 of 1 runs equal the recorded digests to the last bit",
        "scale gpu: nothing is recorded",
    ]


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ValueError("a bad value"), 1, "error: a bad value\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, f"error: {FULL}\n"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, f"error: {FULL}\n"),
        (KeyboardInterrupt(), 130, "interrupted: the same command goes on from"),
    ],
)
def test_every_failure_is_a_sentence_and_an_exit_code(
    home, monkeypatch, capsys, error, code, sentence
):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "execute", fail)
    assert cli.main(["run", "demo/a"]) == code
    assert capsys.readouterr().err.startswith(sentence)


def test_a_full_disk_is_named_whatever_failed_of_it(home, executed, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
    assert cli.main(["run", "demo/b"]) == 1
    assert capsys.readouterr().err == f"error: {FULL}\n"


def test_a_run_that_was_not_planned_says_how_it_is(home, capsys):
    assert cli.main(["run", "demo/b"]) == 1
    assert capsys.readouterr().err.startswith("error: no plan for run 'demo/b': expected playgr")
