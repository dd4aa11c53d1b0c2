"""Tables and statistics from result files, against numbers worked by hand."""

import json
import math

import pytest

from study.files import root
from study.results import contrasts, readme, statistics
from study.results import files as result_files
from study.results import tables as results

CODE = {"train": "0123456789abcdef"}


def put(home, run, scores, *, scale="cpu", dataset="cifar100", train=5000, code=CODE, **extra):
    folder = home / "results" / scale
    (folder / "provenance").mkdir(parents=True, exist_ok=True)
    result = {
        "run": run,
        "scale": scale,
        "data": {"dataset": dataset, "train": train, "validation": 500},
        "config": {"code": code, "train": {"epochs": 10}},
        "parameters": 10,
        "seeds": list(range(len(scores))),
        "test_last": scores,
        "test_best_epoch": [score + 1 for score in scores],
        "train_last": [score + 5 for score in scores],
        "validation_last": [score + 2 for score in scores],
    }
    (folder / f"{run}.json").write_text(json.dumps(result | extra))
    (folder / "provenance" / f"{run}.json").write_text(json.dumps({"commit": "abcdef0123"}))
    (folder / "curves").mkdir(exist_ok=True)
    curve = [0, 2, 0, 2, 0]
    rows = [f"{s},{e},{y}" for s in range(len(scores)) for e, y in enumerate(curve, 1)]
    lines = ["seed,epoch,validation_accuracy", *rows]
    (folder / "curves" / f"{run}.csv").write_text("\n".join(lines))


@pytest.fixture
def home(tmp_path):
    (tmp_path / "tables.yaml").write_text(
        '"1":\n  title: A table\n  setting: somewhere\n  rows:\n'
        "    - {row: Plain, run: plain, thesis: 50, plain: true}\n"
        "    - {row: Better, run: better, thesis: [51, 53]}\n"
        "    - {row: Noisy, run: noisy, ours: true}\n"
        "    - {row: Later, run: later}\n"
        "    - {row: Quoted, thesis: 60}\n"
    )
    put(tmp_path, "plain", [10.0, 11.0, 12.0, 13.0, 14.0])
    put(tmp_path, "better", [12.0, 13.0, 14.0, 15.0, 17.0])
    put(tmp_path, "noisy", [8.0, 13.0, 10.0, 16.0, 14.0])
    return tmp_path


def test_a_paired_difference_by_hand():
    """d = 1, 2, 3: mean 2, sd 1, t = 2·√3; t(0.975, 2) = 4.302653; p = 1 − t/√(t² + 2)."""
    ours, plain = {0: 2.0, 1: 4.0, 2: 6.0, 9: 99.0}, {0: 1.0, 1: 2.0, 2: 3.0, 5: 0.0}
    found = contrasts.t_test(contrasts.pair("a", "b"), {"a": ours, "b": plain})
    half, t = 4.302652729911275 / math.sqrt(3), 2 * math.sqrt(3)
    assert found["n"] == 3 and found["difference"] == 2
    assert found["low"] == pytest.approx(2 - half)
    assert found["high"] == pytest.approx(2 + half)
    assert found["p"] == pytest.approx(1 - t / math.sqrt(t * t + 2))


def test_equal_differences_have_no_p():
    plain = {0: 80.0, 1: 70.2, 2: 60.3, 3: 50.4, 4: 40.5}
    ours = {seed: score + 0.1 for seed, score in plain.items()}
    found = contrasts.t_test(contrasts.pair("a", "b"), {"a": ours, "b": plain})
    assert found["difference"] == pytest.approx(0.1) and math.isnan(found["p"])


def test_two_pairs_have_no_interval_and_none_have_nothing():
    two = statistics.paired_t([1.0, 2.0])
    assert two["difference"] == 1.5 and math.isnan(two["low"]) and math.isnan(two["p"])
    assert math.isnan(statistics.paired_t([])["difference"]) and statistics.paired_t([])["n"] == 0


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    adjusted = statistics.holm([math.nan, 0.02])
    assert math.isnan(adjusted[0]) and adjusted[1] == 0.02


def test_roughness_of_a_line_is_zero_and_of_a_zigzag_four():
    assert statistics.roughness([1, 3, 5, 7]) == 0
    assert statistics.roughness([0, 2, 0, 2, 0]) == 4
    assert math.isnan(statistics.roughness([1, 2]))


def test_a_table_by_hand(home):
    frame = results.table("1", "cpu", home=home).set_index("row")
    assert frame.loc["Plain", "mean"] == 12 and frame.loc["Plain", "n"] == 5
    assert frame.loc["Plain", "sd"] == pytest.approx(math.sqrt(2.5))
    assert math.isnan(frame.loc["Plain", "difference"])
    # d = 2, 2, 2, 2, 3: mean 2.2, error 0.2, t = 11.
    assert frame.loc["Better", "difference"] == pytest.approx(2.2)
    assert frame.loc["Better", "high"] - 2.2 == pytest.approx(2.7764451 * 0.2)
    assert frame.loc["Better", "verdict"] == "higher"
    assert frame.loc["Better", "thesis"] == 52
    assert frame.loc["Noisy", "verdict"] == "undecided"
    assert frame.loc["Later", "status"] == "not run yet"
    assert frame.loc["Quoted", "thesis"] == 60 and frame.loc["Quoted", "n"] == 0
    best = results.table("1", "cpu", "test_best_epoch", home=home).set_index("row")
    assert best.loc["Plain", "mean"] == 13
    assert frame.loc["Plain", "gap"] == pytest.approx(3)
    assert frame.loc["Plain", "roughness"] == pytest.approx(4)
    assert math.isnan(frame.loc["Later", "gap"])


def test_a_table_of_some_seeds_by_hand(home):
    frame = results.table("1", "cpu", home=home, seeds=[1, 4, 9]).set_index("row")
    assert frame.loc["Plain", "mean"] == (11 + 14) / 2 and frame.loc["Plain", "n"] == 2
    assert frame.loc["Better", "difference"] == pytest.approx((2 + 3) / 2)
    assert frame.loc["Better", "gap"] == pytest.approx(3)
    frame = results.table("1", "cpu", home=home, seeds=[9]).set_index("row")
    assert frame.loc["Plain", "status"] == "not run: of the seeds [9] it has none"


def test_what_other_scales_have_stands_below(home):
    for name in ("plain", "better"):
        result = json.loads((home / "results" / "cpu" / f"{name}.json").read_text())
        put(home, name, result["test_last"], scale="gpu")
    shown = results.show("1", "gpu", others=True, home=home)
    above, below = shown.split("Table 1 at other scales: cpu, on cifar100.")
    assert "+2.20 [1.64, 2.76]" in above and "+2.20 [1.64, 2.76]" in below
    assert "demo" not in below and "| Noisy" in below
    assert "other scales" not in results.show("1", "gpu", others=False, home=home)
    only = results.show("1", "gpu", runs="better|later", home=home)
    assert "| Plain" not in only and "| Better" in only and "Quoted" not in only
    none = results.show("1", "gpu", runs="nothing", others=True, home=home)
    assert none == "Table 1 has no row whose run matches 'nothing'."


def test_real_data_stand_first_and_embedded_below_and_apart(home):
    """Asked for demo: the largest real scale, then the other real ones, then demo's, folded."""
    put(home, "plain", [90.0, 91.0], scale="demo", dataset="digits100")
    put(home, "better", [50.0, 51.0], scale="gpu")
    shown = results.show("1", "demo", others=True, home=home)
    places = [shown.index(f"Scale {scale}: ours on") for scale in ("gpu", "demo")]
    rest = shown.index("Table 1 at other scales: cpu, on cifar100.")
    assert places[0] < rest < shown.index("<details><summary>") < places[1]
    assert "90.50" not in shown[: places[1]] and "90.50" in shown[places[1] :]
    assert "a check of the machinery, no verdict" in shown[places[1] :]
    assert shown.endswith("</details>")
    only = results.show("1", "demo", home=home)
    assert "Scale gpu" not in only and "90.50" in only
    asked = results.show("1", "cpu", others=True, home=home)  # real itself
    assert asked.startswith("Table 1. A table. The thesis: somewhere. Scale cpu:")
    assert "Table 1 at other scales: gpu, on cifar100." in asked and "demo" not in asked


def test_a_sentence_says_what_a_table_shows(home):
    def end() -> str:
        return results.show("1", "cpu", home=home).rpartition("\n\n")[2]

    last = "1 row has no verdict yet."
    assert end() == f"Against Plain, Better (+2.20) is higher; 1 is undecided. {last}"
    put(home, "better", [10.1, 10.9, 12.1, 12.9, 14.0])
    assert end() == f"Against Plain, Better (+0.00) is equal within 0.5; 1 is undecided. {last}"
    put(home, "better", [14.0, 13.0, 12.0, 11.0, 10.0])
    assert end() == f"Against Plain, 2 are undecided. {last}"
    put(home, "better", [8.0, 9.0])  # too few seeds for a verdict
    put(home, "noisy", [8.0, 9.0])
    assert "Against" not in end()


def test_a_row_with_standardization_is_compared_with_standardization_alone(home):
    for name, we in (
        ("plain", {"standardize": False, "attention": "none"}),
        ("better", {"standardize": True, "attention": "none"}),
        ("noisy", {"standardize": True, "attention": "se"}),
    ):
        path = home / "results" / "cpu" / f"{name}.json"
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"config": result["config"] | {"we": we}}))
    frame = results.table("1", "cpu", home=home).set_index("row")
    assert frame.loc["Better", "against"] == "Plain"
    assert frame.loc["Noisy", "against"] == "Better"
    assert frame.loc["Noisy", "difference"] == pytest.approx(0.2 - 2.2)
    shown = results.show("1", "cpu", home=home)
    assert "the difference to the plain row, or of a row with WS to WS alone," in shown
    assert "| against" in shown and "Against Better, 1 is undecided." in shown


def test_a_difference_says_on_how_many_pairs_it_is(home):
    put(home, "better", [12.0, 13.0, 14.0])
    frame = results.table("1", "cpu", home=home).set_index("row")
    assert frame.loc["Better", "pairs"] == 3 and "| pairs" not in results.show(
        "1", "cpu", home=home
    )
    put(home, "plain", [10.0, 11.0])
    assert "| pairs" in results.show("1", "cpu", home=home)


def test_other_schedules_are_not_compared(home):
    path = home / "results" / "cpu" / "better.json"
    result = json.loads(path.read_text())
    result["config"]["train"]["epochs"] += 1
    path.write_text(json.dumps(result))
    assert results.table("1", "cpu", home=home).set_index("row").loc["Better", "pairs"] == 0


def test_a_caption_says_how_much_was_trained(home):
    put(home, "noisy", [8.0, 13.0], scale="cpu", train=300)
    many = "ours on cifar100, 300 to 5,000 training images for 10 epochs, n = 2 to 5, "
    assert many in results.show("1", "cpu", home=home)
    assert "Scale thesis: nothing was run.\n" in results.show("1", "thesis", home=home)


def test_curves_beside_have_a_panel_for_each_scale(home):
    put(home, "plain", [1.0, 2.0], scale="demo", dataset="digits100")
    curves = result_files.curves_beside("demo", ["plain", "better"], home=home)
    assert list(dict.fromkeys(curves["panel"])) == ["cpu: cifar100", "demo: digits100"]
    alone = result_files.curves_beside("demo", ["plain", "better"], home=home, others=False)
    assert set(alone["panel"]) == {"demo: digits100"}
    some = result_files.curves_beside("demo", ["plain"], seeds=[1], home=home)
    assert set(some["seed"]) == {1}
    assert result_files.curves_beside("demo", ["never"], home=home).empty


def test_a_segmentation_shows_its_metric_and_its_pixels(home):
    extra = {"metric": "mean IoU"}
    for run, scores in (("plain", [10.0, 11.0]), ("better", [12.0, 13.0])):
        put(home, run, scores, dataset="voc", **extra)
        lines = ["seed,epoch,test_accuracy,validation_iou", "0,1,50,1", "0,2,60,2", "1,1,80,3"]
        (home / "results" / "cpu" / "curves" / f"{run}.csv").write_text("\n".join(lines))
    frame = results.table("1", "cpu", home=home).set_index("row")
    assert frame.loc["Plain", "metric"] == "mean IoU" and frame.loc["Plain", "pixels"] == 70
    shown = results.show("1", "cpu", home=home)
    assert "test accuracy and mean IoU at the last epoch" in shown  # noisy is of images
    assert "| pixels (%)   |" in shown and "| 70.00        |" in shown
    put(home, "noisy", [1.0], dataset="voc", **extra)
    (home / "results" / "cpu" / "curves" / "noisy.csv").write_text("\n".join(lines[:2]))
    assert "n = 1 to 2, test mean IoU at the last epoch" in results.show("1", "cpu", home=home)


def test_what_a_row_costs_is_shown_where_it_is_asked(home):
    text = (home / "tables.yaml").read_text()
    assert "parameters" not in results.show("1", "cpu", home=home)
    (home / "tables.yaml").write_text(text.replace("setting", "cost: true\n  setting"))
    assert "| parameters   |" in results.show("1", "cpu", home=home)
    assert "seconds" not in results.show("1", "cpu", home=home)
    note = {"commit": "a", "seconds": 7200.0}
    (home / "results/cpu/provenance/plain.json").write_text(json.dumps(note))
    frame = results.table("1", "cpu", home=home, seeds=[0]).set_index("row")
    assert frame.loc["Plain", "seconds"] == 1440  # of each of five
    assert "| 1,440" in results.show("1", "cpu", home=home)
    put(home, "plain", [1.0], scale="demo")
    (home / "results/demo/provenance/plain.json").write_text(json.dumps(note))
    assert math.isnan(results.table("1", "demo", home=home)["seconds"].iloc[0])


def test_other_data_are_no_pairs(home):
    put(home, "plain", [10.0, 11.0, 12.0, 13.0, 14.0], dataset="digits100")
    frame = results.table("1", "cpu", home=home).set_index("row")
    assert frame.loc["Better", "mean"] == 14.2 and math.isnan(frame.loc["Better", "difference"])
    assert frame.loc["Better", "verdict"] == ""


def test_a_table_is_written_as_data_as_markdown_and_for_latex(home, monkeypatch):
    monkeypatch.setattr(results, "root", lambda: home)
    monkeypatch.setattr(result_files, "root", lambda: home)
    text = (home / "tables.yaml").read_text()
    elsewhere = text.replace('"1":', '"2":').replace("setting", "scales: [gpu]\n  setting")
    (home / "tables.yaml").write_text(text + elsewhere.replace("A table", "50 % of it"))
    assert results.write_tables("cpu") == ["1"]
    folder = home / "results" / "cpu" / "tables"
    assert (folder / "table_1.md").read_text() == results.show("1", "cpu") + "\n"
    assert "better,cifar100,52.0,14.2," in (folder / "table_1.csv").read_text()
    latex = (folder / "table_1.tex").read_text()
    assert r"Better & 52 & 14.20 $\pm$ 1.92 & 5 & +2.20 [1.64, 2.76] &" in latex
    assert r"ours (\%)" in latex and r"\label{tab:table_1}" in latex
    assert results.write_tables("gpu") == ["1", "2"]
    assert r"Table 2. 50 \% of it" in (folder.parents[1] / "gpu/tables/table_2.tex").read_text()


def test_the_summary_is_of_the_runs_that_the_thesis_reported(home, monkeypatch):
    put(home, "playground", [99.0])
    monkeypatch.setattr(results, "root", lambda: home)
    monkeypatch.setattr(result_files, "root", lambda: home)
    assert results.write_summary("cpu") == {"plain": 12, "better": 14.2}
    path = home / "results" / "cpu" / "summary.json"
    assert json.loads(path.read_text()) == {"plain": 12, "better": 14.2}


def test_a_file_is_read_once(home):
    cpu = result_files.Results("cpu", home)
    first = cpu["plain"]
    (home / "results" / "cpu" / "plain.json").unlink()
    assert cpu["plain"] is first and cpu.status("plain") == ""
    assert cpu["later"] is None and cpu.status("later") == "not run yet"


def test_no_verdict_from_embedded_data_or_from_four_seeds(home):
    put(home, "better", [12.0, 13.0, 14.0, 15.0, 17.0], dataset="digits100")
    assert not any(results.table("1", "cpu", home=home)["verdict"].iloc[:2])
    put(home, "better", [12.0, 13.0, 14.0, 16.0])
    assert not any(results.table("1", "cpu", home=home)["verdict"].iloc[:2])


def test_a_table_names_what_was_not_run_and_what_older_code_made(home):
    path = home / "results" / "cpu" / "later.json"
    path.write_text(json.dumps({"run": "later", "scale": "cpu", "not_run": "needs a dataset"}))
    plan = home / "scales" / "cpu" / "plan" / "noisy.json"
    plan.parent.mkdir(parents=True)
    plan.write_text(json.dumps({"code": {"train": "another"}}))
    frame = results.table("1", "cpu", home=home).set_index("row")
    assert frame.loc["Later", "status"] == "not run: needs a dataset"
    assert "made by older code (commit abcdef0)" in frame.loc["Noisy", "remark"]
    assert "older code" not in frame.loc["Plain", "remark"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("title:", "tilte:", "did you mean 'title'"),
        ("plain: true", "plain: false", "exactly one row with plain: true"),
        ("thesis: 50, plain", "theses: 50, plain", "did you mean 'thesis'"),
        ("{row: Later, run: later}", "{row: Later}", "a run or what the thesis had"),
        ("run: better", "run: beter", "did you mean 'better'"),
        ("thesis: 50, plain", "thesis: [50, x], plain", "thesis.1: expected a number"),
        ("title: A table", "title: [A table]", "title: expected a text"),
        ("{row: Later, run: later}", "~", "a run or what the thesis had"),
        ("run: plain, thesis: 50", "thesis: 50", "and a run"),
        ("setting: somewhere", "rows_: 1", "unknown key in table 1"),
    ],
)
def test_a_bad_tables_file_is_one_sentence(home, old, new, sentence):
    path = home / "tables.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match="table 1") as error:
        results.read_tables(path, runs=["plain", "better", "noisy", "later"])
    assert sentence in str(error.value)


def test_the_block_goes_between_the_markers_and_nowhere_else():
    begin, end = readme.MARKERS
    text = f"head\n{begin}\nold\n{end}\ntail\n"
    once = readme.with_block(text, "new")
    assert once == f"head\n{begin}\nnew\n{end}\ntail\n"
    assert readme.with_block(once, "new") == once
    with pytest.raises(ValueError, match="put them back"):
        readme.with_block("no markers", "new")


def test_the_readme_shows_the_committed_results():
    text = (root() / "README.md").read_text(encoding="utf-8")
    if not (root() / "results" / "cpu" / "evidence-plain.json").is_file():
        pytest.skip("no results at scale cpu")
    assert readme.with_block(text, readme.readme_block("cpu")) == text
