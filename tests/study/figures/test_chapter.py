"""The object that every notebook starts with."""

import json
import shutil

import pytest
from matplotlib.figure import Figure

from study.figures import chapter as module
from study.figures.chapter import Chapter
from study.files import root


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """What is displayed, in a project that has its settings and the runs of one table."""
    home = root()
    for name in ("params", "recipes", "runs", "dvc", "tables"):
        shutil.copy(home / f"{name}.yaml", tmp_path)
    scale = tmp_path / "scales" / "demo" / "scale.yaml"
    scale.parent.mkdir(parents=True)
    shutil.copy(home / "scales" / "demo" / "scale.yaml", scale)
    for file in ("mixer.json", "mixer-mwe.json", "curves/mixer.csv", "curves/mixer-mwe.csv"):
        for scale in ("cpu", "demo"):
            (tmp_path / "results" / scale / file).parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    displayed = []
    monkeypatch.setattr(module, "display", displayed.append)
    monkeypatch.setattr("IPython.display.display", displayed.append)
    return displayed


def put(scale, run, dataset):
    folder = root() / "results" / scale
    result = {
        "data": {"dataset": dataset, "train": 1, "validation": 0},
        "config": {"code": {}, "train": {"epochs": 2}},
        "seeds": [0],
        "test_last": [50.0],
        "parameters": 1,
    }
    (folder / f"{run}.json").write_text(json.dumps(result))
    lines = ["seed,epoch,test_accuracy", "0,1,40", "0,2,50"]
    (folder / "curves" / f"{run}.csv").write_text("\n".join(lines))


def test_the_scale_is_that_of_params_unless_given(shown):
    assert Chapter("03_preliminary").scale == "demo"
    assert Chapter("03_preliminary", "cpu").scale == "cpu"


def test_a_figure_is_saved_by_its_number_where_it_is_asked(shown):
    figure = Figure()
    Chapter("06_results").show(figure, "6.1")
    assert shown == [figure] and not (root() / "reports").exists()
    chapter = Chapter("06_results", save=True)
    chapter.show(figure, "6.1")
    chapter.show(figure, "paused")
    names = sorted(path.name for path in chapter.folder.iterdir())
    assert names == ["figure_6_1.svg", "paused.svg"]
    assert chapter.folder == root() / "reports" / "demo" / "figures" / "06_results"


def test_curves_of_real_data_come_first_and_missing_ones_are_named(shown):
    lines = {("mixer", "test_accuracy"): "plain", ("mixer-mwe", "test_accuracy"): "MWE"}
    Chapter("06_results").curves(lines, "Figure 6.5. Mixer", "6.5")
    assert "“Figure 6.5. Mixer” needs runs that are not there" in shown.pop().data
    for run in ("mixer", "mixer-mwe"):
        put("demo", run, "digits100")
        put("cpu", run, "cifar100")
    Chapter("06_results").curves(lines, "Figure 6.5. Mixer", "6.5")
    panels = [axes.get_title() for axes in shown.pop().axes]
    assert panels == ["cpu: cifar100", "demo: digits100"]
    Chapter("06_results", runs="mwe", others=False).curves(lines, "Mixer", "6.5")
    (axes,) = shown.pop().axes
    assert axes.get_title() == "demo: digits100"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["MWE"]


def test_a_table_of_real_data_comes_first(shown):
    put("demo", "mixer", "digits100")
    put("cpu", "mixer", "cifar100")
    text = Chapter("03_preliminary").table("3.1").data
    assert 0 < text.index("Scale cpu: ours on cifar100") < text.index("Scale demo: ours on digits")
    assert "cpu" not in Chapter("03_preliminary", others=False).table("3.1").data
