"""Claims and their verdicts, from result files worked by hand."""

import json
import math

import pytest

from study.files import root
from study.results import checks, claims, contrasts, files, measures

PLAIN = [10.0, 11.0, 12.0, 13.0, 14.0]
BETTER = [12.0, 13.0, 14.0, 15.0, 17.0]  # d = 2, 2, 2, 2, 3: mean 2.2, error 0.2, t = 11
NOISY = [8.0, 13.0, 10.0, 16.0, 14.0]
CLAIMS = """
Theme:
  - {claim: Better, where: "1", measure: accuracy, expects: higher, pairs: [[better, plain]]}
  - {claim: Worse, where: "2", measure: accuracy, expects: lower, pairs: [[better, plain]]}
  - {claim: No gain, where: "3", measure: accuracy, expects: not higher, pairs: [[better, plain]]}
  - {claim: Noise, where: "4", measure: accuracy, expects: higher, pairs: [[noisy, plain]]}
  - {claim: Later, where: "5", measure: accuracy, expects: higher, pairs: [[later, plain]]}
  - {claim: Code, where: "6", check: attention_takes_weights}
"""


def put(home, scale, run, scores, *, dataset="cifar100", curves=None):
    """A run's files; ``curves`` holds the test accuracy of each seed's epochs."""
    folder = home / "results" / scale
    (folder / "curves").mkdir(parents=True, exist_ok=True)
    seeds = list(range(len(scores)))
    result = {
        "run": run,
        "scale": scale,
        "data": {"dataset": dataset},
        "config": {"code": {}},
        "seeds": seeds,
        "test_last": scores,
        "train_last": [score + 5 for score in scores],
        "validation_last": [score + 2 for score in scores],
    }
    (folder / f"{run}.json").write_text(json.dumps(result))
    lines = ["seed,epoch,test_accuracy,validation_accuracy"]
    for seed, curve in zip(seeds, curves or [[s] for s in scores], strict=True):
        lines += [f"{seed},{epoch},{y},{y}" for epoch, y in enumerate(curve, 1)]
    (folder / "curves" / f"{run}.csv").write_text("\n".join(lines))


@pytest.fixture
def home(tmp_path):
    (tmp_path / "claims.yaml").write_text(CLAIMS)
    for run, scores in (("plain", PLAIN), ("better", BETTER), ("noisy", NOISY)):
        put(tmp_path, "gpu", run, scores)
    return tmp_path


def p_of(t: float) -> float:
    """Two-sided p of Student's t with 4 degrees of freedom, in closed form."""
    x = t * t / (1 + t * t / 4)
    return 1 - 0.75 * math.sqrt(x) * (1 - x / 12)


def run(curves) -> files.Run:
    import pandas as pd

    rows = [
        {"seed": s, "epoch": e, "test_accuracy": y, "validation_accuracy": y}
        for s, curve in enumerate(curves)
        for e, y in enumerate(curve, 1)
    ]
    result = {"seeds": list(range(len(curves))), "test_last": [curve[-1] for curve in curves]}
    return files.Run(result, pd.DataFrame(rows))


def every_epoch(of, against, expects) -> dict:
    curves = {"of": of.curve("test_accuracy"), "against": against.curve("test_accuracy")}
    return contrasts.every_epoch(contrasts.pair("of", "against"), curves, expects)


def test_every_verdict_by_hand(home):
    frame = claims.evaluate(home).set_index("claim")
    assert list(frame["verdict"]) == [
        "supported",
        "contradicted",
        "contradicted",
        "undecided at n = 5",
        "not run",
        "supported",
    ]
    assert frame.loc["Better", "difference"] == pytest.approx(2.2)
    assert frame.loc["Better", "p"] == pytest.approx(p_of(11))
    # Five are tested, one of them later: those of t = 11 are times 5, and Holm's order leaves them.
    assert frame.loc["Better", "p_holm"] == pytest.approx(5 * p_of(11))
    assert frame.loc["Code", "found"] == "SE, CBAM, BAM, Triplet"


def test_a_theme_in_a_sentence(home):
    """Of what runs decide: code's check is no comparison."""
    better = "better − plain, +2.20 [1.64, 2.76] (accuracy (points), n = 5)"
    assert claims.summary(claims.evaluate(home), "Theme") == (
        "Comparisons: 5; 2 contradicted, 1 supported, 1 undecided, 1 not run. "
        f"{better}: supported; {better}: contradicted; {better}: contradicted."
    )


def test_a_loss_supports_that_nothing_is_gained_and_a_gain_that_nothing_is_lost(home):
    (home / "claims.yaml").write_text(CLAIMS.replace("expects: higher", "expects: not lower", 1))
    assert claims.evaluate(home).set_index("claim").loc["Better", "verdict"] == "supported"
    put(home, "gpu", "better", [score - 5 for score in BETTER])
    frame = claims.evaluate(home).set_index("claim")
    assert frame.loc["No gain", "p_holm"] < 0.05
    assert frame.loc["No gain", "verdict"] == "supported"
    assert frame.loc["Better", "verdict"] == "contradicted"


def test_equality_within_half_a_point_is_shown_and_supports_that_nothing_is_gained(home):
    """d = 0.1, −0.1, 0.1, −0.1, 0: p = P(T > 0.5·√5/0.1), corrected for two claims on it."""
    put(
        home,
        "gpu",
        "better",
        [x + d for x, d in zip(PLAIN, (0.1, -0.1, 0.1, -0.1, 0), strict=True)],
    )
    frame = claims.evaluate(home).set_index("claim")
    assert frame.loc["Better", "verdict"] == "equal within 0.5"
    assert frame.loc["No gain", "verdict"] == "supported"


def test_holm_can_turn_a_verdict(home):
    """d = 1, 2, 3, 4, 0: t = 2·√2, p = 0.047; alone it decides, beside others it does not."""
    put(home, "gpu", "better", [11.0, 13.0, 15.0, 17.0, 14.0])
    frame = claims.evaluate(home).set_index("claim")
    assert frame.loc["Better", "p"] == pytest.approx(p_of(2 * math.sqrt(2)))
    assert frame.loc["Better", "p"] < 0.05 < frame.loc["Better", "p_holm"]
    assert frame.loc["Better", "verdict"] == "undecided at n = 5"
    only = CLAIMS.splitlines()[1:3]
    (home / "claims.yaml").write_text("\n".join(only))
    assert claims.evaluate(home)["verdict"].item() == "supported"


def test_the_best_scale_is_taken(home):
    def taken():
        row = claims.evaluate(home).iloc[0]
        return row["scale"], row["n"], row["verdict"]

    for name, scores in (("plain", [*PLAIN, 15.0]), ("better", [*BETTER, 17.0])):
        put(home, "cpu", name, scores)
        put(home, "demo", name, scores, dataset="digits100")
    assert taken() == ("gpu", 5, "supported")  # not the six seeds of a smaller scale
    put(home, "gpu", "better", BETTER[:3])
    assert taken() == ("cpu", 6, "supported")
    put(home, "cpu", "better", BETTER[:4])
    assert taken() == ("cpu", 4, "no verdict: n < 5")
    for scale in ("cpu", "gpu"):
        put(home, scale, "better", BETTER, dataset="digits100")
    assert taken() == ("demo", 6, "no verdict: embedded data")  # other data are no pairs
    for scale in ("cpu", "gpu"):
        put(home, scale, "plain", PLAIN, dataset="digits100")
    assert taken() == ("gpu", 5, "no verdict: embedded data")
    assert claims.evaluate(home, scales=("demo",)).iloc[0]["scale"] == "demo"
    with pytest.raises(ValueError, match="did you mean 'gpu'"):
        claims.evaluate(home, scales=("gpuu",))


def test_every_epoch_is_supported_by_all_and_contradicted_by_one():
    plain = run([[10.0, 10.0, 10.0]] * 5)
    d = [2.0, 2.0, 2.0, 2.0, 3.0]
    weak = [1.0, 2.0, 3.0, 4.0, 0.0]
    better = run([[10 + x, 10 + y, 10 + x] for x, y in zip(d, weak, strict=True)])
    found = every_epoch(better, plain, "higher")
    assert found["difference"] == pytest.approx(2)  # of the weakest epoch, and so is p
    assert found["p"] == pytest.approx(p_of(2 * math.sqrt(2)))
    found = every_epoch(better, plain, "lower")
    assert found["difference"] == pytest.approx(2.2)
    assert found["p"] == pytest.approx(3 * p_of(11))


def test_an_epoch_without_p_hides_no_contradiction():
    plain = run([[1.0, 10.0]] * 5)
    worse = run([[1.0, 10 - x] for x in (2.0, 2.0, 2.0, 2.0, 3.0)])  # all at chance at first
    found = every_epoch(worse, plain, "higher")
    assert found["p"] == pytest.approx(2 * p_of(11)) and found["difference"] < 0
    assert math.isnan(every_epoch(plain, worse, "higher")["p"])


def test_epochs_to_a_goal_by_hand(home):
    curve = [10.0, 20.0, 30.0, 20.0]
    assert measures.crossing(25, curve) == 2.5
    assert measures.crossing(20, curve) == 2
    assert measures.crossing(5, curve) == 1
    assert measures.crossing(31, curve) == 4
    # 9/10 of the plain run's last accuracy is 18: after 1.8 epochs, and after 1.4.
    put(home, "cpu", "fast", [20.0], curves=[[10.0, 30.0, 20.0]])
    put(home, "cpu", "slow", [20.0], curves=[[10.0, 20.0, 20.0]])
    found = contrasts.measured("epochs", "fast", "slow", files.Results("cpu", home), "lower")
    assert found["difference"] == pytest.approx(1.4 - 1.8)


def run_with(**result):
    return files.Run({"seeds": [0]} | result, None)


def line_of(column, values):
    import pandas as pd

    rows = [{"seed": 0, "epoch": e, column: float(y)} for e, y in enumerate(values, 1)]
    return files.Run({"seeds": [0]}, pd.DataFrame(rows))


def test_the_curve_of_a_segmentation_is_that_of_its_metric():
    made = line_of("test_iou", [1, 2, 3])
    made.result["metric"] = "mean IoU"
    assert made.metric_curve("test") == {0: [1, 2, 3]} and made.curve("test_accuracy") == {}
    assert measures.early_accuracy(made) == {0: 2}


def test_a_run_alone_is_compared_with_zero(home):
    """A rise of the validation accuracy's twin, the loss, by 2, 2, 2, 2 and 3: t = 11."""
    losses = [[1.0, 1.0, 1.0, 2.0, 1.0 + rise] for rise in (2, 2, 2, 2, 3)]
    put(home, "gpu", "over", PLAIN, curves=losses)
    path = home / "results" / "gpu" / "curves" / "over.csv"
    path.write_text(path.read_text().replace("validation_accuracy", "validation_loss"))
    text = "{claim: Over, where: '1', measure: late_loss, expects: higher, pairs: [[over]]}"
    (home / "claims.yaml").write_text(f"Theme:\n  - {text}\n")
    (row,) = claims.evaluate(home).itertuples()
    assert (row.compared, row.n, row.difference) == ("over", 5, pytest.approx(2.2))
    assert row.p == pytest.approx(p_of(11)) and row.verdict == "supported"


def test_the_other_measures_by_hand(home):
    zigzag, line = run([[0.0, 2.0, 0.0, 2.0, 0.0]]), run([[1.0, 2.0, 3.0, 4.0, 5.0]])
    assert measures.rough(zigzag) == {0: 4} and measures.rough(line) == {0: 0}
    assert measures.early_accuracy(zigzag) == {0: 0} and measures.early_accuracy(line) == {0: 3}
    put(home, "cpu", "zigzag", [0.0], curves=[[0.0, 2.0, 0.0, 2.0, 0.0]])
    put(home, "cpu", "line", [5.0], curves=[[1.0, 2.0, 3.0, 4.0, 5.0]])
    cpu = files.Results("cpu", home)
    assert contrasts.measured("roughness", "zigzag", "line", cpu, "lower")["difference"] == 4
    assert measures.train_accuracy(run_with(train_last=[9.0])) == {0: 9}
    long = run([[float(min(epoch, 151)) for epoch in range(1, 165)]])
    assert measures.late_gain(long) == {0: 1} and measures.late_gain(line) == {0: 0}
    assert measures.late_loss(line_of("validation_loss", [5, 4, 3, 4, 7])) == {0: 4}
    narrow = files.Run({"seeds": [0], "train_last": [9.0], "validation_last": [7.0]}, None)
    without = files.Run({"seeds": [0], "train_last": [9.0], "validation_last": [None]}, None)
    assert measures.gap(narrow) == {0: 2} and measures.gap(without) == {}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("where: ", "wher: ", "did you mean 'where'"),
        (", expects: higher", "", "expects is missing"),
        ("measure: accuracy", "measure: acuracy", "did you mean 'accuracy'"),
        ("expects: higher", "expects: more", "expected one of higher, lower, not higher"),
        ("[[better, plain]]", "[[beter, plain]]", "did you mean 'better'"),
        ("[[better, plain]]", "[better]", "pairs of two runs"),
        ("[[better, plain]]", "[[better]]", "accuracy of one run is no test"),
        ("[[better, plain]]", "{better: plain}", "pairs: expected a list"),
        ("{claim: Better, ", "{", "claim is missing"),
        ('where: "1"', "where: ''", "where: expected a text"),
        ("[[better, plain]]", "[[mixer10, plain]]", "compare runs of one"),
    ],
)
def test_a_bad_claims_file_is_one_sentence(home, old, new, sentence):
    path = home / "claims.yaml"
    path.write_text(path.read_text().replace(old, new, 1))
    roles = dict.fromkeys(("plain", "better", "noisy", "later"), "cifar100")
    roles["mixer10"] = "cifar10"
    with pytest.raises(ValueError, match="claim 1 of 'Theme'") as error:
        claims.read_claims(path, roles)
    assert sentence in str(error.value)


def test_the_claims_of_the_project_are_shown():
    frame = claims.evaluate()
    shown = claims.show(frame)
    assert all(claim in shown for claim in frame["claim"])
    assert set(frame.loc[frame["data"].str.startswith("digits"), "verdict"]) <= {
        "no verdict: embedded data"
    }
    themes = claims.read_claims(root() / "claims.yaml")
    assert list(dict.fromkeys(frame["theme"])) == list(themes)


def test_what_code_decides(monkeypatch):
    assert checks.excitation_folds_away()[0]
    assert checks.attention_takes_weights()[0]
    assert not checks.linear_layers_have_no_channels()[0]
    assert not checks.novel_function_raises_large_weights()[0]
    holds, found = checks.triplet_has_fewer_parameters()
    assert holds and "SE 2,768,466" in found  # as counted in the authors' code
    holds, found = checks.mixer_is_faster()
    assert holds and "ResNet-18 555 million" in found  # 0.56 G multiply-adds, as published
    assert checks.feature_attention_stays()[0]
    monkeypatch.setattr(checks, "attend", lambda model, attention, where: model)
    assert not checks.feature_attention_stays()[0]
    monkeypatch.setattr(checks, "fold", lambda model: model)
    assert not checks.excitation_folds_away()[0]
