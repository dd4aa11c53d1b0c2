"""Whether excitation does anything: the evidence's runs, taken together.

Every question is a contrast (:mod:`study.results.contrasts`): 1 and −1 for two runs, 1/4 and −1/4
for the main effect of two by four cells.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from study.files import root
from study.plan import EVIDENCE, SCALES
from study.results.contrasts import BOUNDS, MARGIN, Weights, decide, estimate, pair, same_data
from study.results.files import Results, Run, read_result
from study.results.measures import VALUES
from study.results.text import difference, markdown, p_value, rounded

#: The excitations of the factorial, as runs name them, and their names for a reader.
EXCITATIONS = {"se": "SE", "ours": "CBAM with skips", "mwe": "magnitude"}
#: The rates tried, as runs name them; the factorial's own is between the two.
RATES = ("low", "", "high")
#: The controls of SE's gate, as runs name them.
CONTROLS = ("free", "frozen", "mean")


def cell(excitation: str = "", standardized: bool = False, rate: str = "", model: str = "") -> str:
    """The run of a cell: ``cell("se", True)`` is ``evidence-se-ws``, ``cell()`` evidence-plain."""
    inside = excitation or ("" if standardized else "plain")
    parts = (EVIDENCE, model, inside, "ws" if standardized else "", rate)
    return "-".join(part for part in parts if part)


def cells(excitations: Mapping[str, str] = EXCITATIONS, **options: str) -> dict:
    """The runs of a factorial: ``{(excitation, standardized): run}``, "" for no excitation."""
    return {
        (excitation, standardized): cell(excitation, standardized, **options)
        for standardized in (False, True)
        for excitation in ("", *excitations)
    }


def effects(runs: Mapping[tuple[str, bool], str]) -> dict[str, Weights]:
    """The contrasts of a factorial, standardization by excitation.

    The main effect of standardization over k cells, (1/k)·Σ_e (y_e+WS − y_e); for each excitation
    its effect without and with standardization, their mean (the main effect), and their difference,
    which is the interaction.
    """
    excitations = [e for e, standardized in runs if e and standardized]
    k = len(excitations) + 1
    found = {
        "WS": {run: (1 if standardized else -1) / k for (_, standardized), run in runs.items()}
    }
    for e in excitations:
        name = EXCITATIONS[e]
        bare = {runs[e, False]: 1, runs["", False]: -1}
        standardized = {runs[e, True]: 1, runs["", True]: -1}
        found |= {
            f"{name}, without WS": bare,
            f"{name}, with WS": standardized,
            f"{name}, mean of both": {r: w / 2 for r, w in (bare | standardized).items()},
            f"{name} × WS": {r: -w for r, w in bare.items()} | standardized,
        }
    return found


def pairs(*compared: tuple[str, str]) -> dict[str, Weights]:
    """The contrast of each (run, run) with its own name."""
    return {f"{short(of)} − {short(against)}": pair(of, against) for of, against in compared}


def short(run: str) -> str:
    return run.removeprefix(f"{EVIDENCE}-")


def scales_with_evidence(home: Path | None = None) -> list[str]:
    """The scales that have results of the evidence, the largest first."""
    folder = (home or root()) / "results"
    made = {s: map(read_result, (folder / s).glob(f"{EVIDENCE}-*.json")) for s in reversed(SCALES)}
    return [s for s, results in made.items() if any("test_last" in result for result in results)]


def compare(
    contrasts: Mapping[str, Weights],
    scale: str,
    measure: str = "accuracy",
    home: Path | None = None,
    *,
    family: int = 0,
    common: bool = False,
) -> pd.DataFrame:
    """Each contrast on the seeds that all its runs have; with ``common``, that all runs have.

    Columns: contrast, difference, low, high (95 %), p, p_holm, n, verdict, and the bounds that
    :func:`study.results.contrasts.estimate` explains, which are of accuracy only. The family of
    Holm's correction is ``contrasts``, those that have not run too, or ``family`` of them.

    Raises:
        ValueError: two runs of a contrast were made on different data.
    """
    results, family, rows = Results(scale, home), family or len(contrasts), []
    if common:
        runs = [results[run] for weights in contrasts.values() for run in weights]
        shared = set.intersection(*(set(run.result["seeds"]) for run in runs if run))
        results = Results(scale, home, sorted(shared))
    for name, weights in contrasts.items():
        if not same_data(weights, results):
            raise ValueError(f"{name}: its runs are of different data: make the older ones again")
        bounded = family if measure == "accuracy" else 0
        row = estimate(weights, results, VALUES[measure], family=bounded)
        rows.append({"contrast": name} | dict.fromkeys(BOUNDS, math.nan) | row)
    frame = decide(pd.DataFrame(rows), family)
    return frame[["contrast", "difference", "low", "high", "p", "p_holm", "n", "verdict", *BOUNDS]]


def rates(scale: str, home: Path | None = None) -> pd.DataFrame:
    """The factorial's cells at three peak rates, and which is best on the validation split.

    On the seeds that all three rates have, one at first. Where a side rate is best there it is run
    on the others too, and decides against the middle one on all that the two share; a tie is the
    middle one's.

    Columns: cell, a column for each rate (validation accuracy in percent, mean over the seeds that
    all rates have), best (the rate), seeds (that the decision rests on), run (that ran at it), test
    (its mean), n.
    """
    results, rows = Results(scale, home), []
    for key in cells():
        tried = {run: results[run] for run in (cell(*key, rate) for rate in RATES)}
        if not all(tried.values()) or not same_data(tried, results):
            continue
        lr = {name: run.result["config"]["train"]["lr"] for name, run in tried.items()}
        scores, _ = _validation(tried)
        middle, ahead = cell(*key), max(scores, key=scores.get)
        shared, seeds = _validation({run: tried[run] for run in (middle, ahead)})
        best = max(shared, key=shared.get)  # the first of equal ones: the middle
        test = tried[best].result["test_last"]
        rows.append(
            {"cell": short(middle)}
            | {lr[run]: score for run, score in scores.items()}
            | {
                "best": lr[best],
                "seeds": seeds,
                "run": best,
                "test": sum(test) / len(test),
                "n": len(test),
            }
        )
    return pd.DataFrame(rows)


def _validation(runs: Mapping[str, Run]) -> tuple[dict[str, float], int]:
    """Each run's mean validation accuracy over the seeds that all have, and their number."""
    found = {name: run.last("validation_last") for name, run in runs.items()}
    shared = set.intersection(*map(set, found.values()))
    means = {run: sum(y[seed] for seed in shared) / len(shared) for run, y in found.items()}
    return means, len(shared)


def at_best_rate(chosen: pd.DataFrame) -> dict[tuple[str, bool], str]:
    """The factorial's runs, each cell at the rate that :func:`rates` chose."""
    best = dict(zip(chosen["cell"], chosen["run"], strict=True))
    return {key: best[short(run)] for key, run in cells().items()}


# --- for a reader ---------------------------------------------------------------------------


def show(frame: pd.DataFrame, *, bounds: bool = True) -> str:
    """A frame of :func:`compare` as Markdown, with the bounds unless told."""
    rows = list(frame.itertuples())
    shown = {
        "contrast": [row.contrast for row in rows],
        "points [95 %]": [difference(row) for row in rows],
        "n": [row.n for row in rows],
        f"p (Holm, {len(rows)})": [p_value(row.p_holm) for row in rows],
        "verdict": [row.verdict for row in rows],
    }
    if bounds:
        shown[f"p of ±{MARGIN}"] = [p_value(row.p_equivalence) for row in rows]
    return markdown(shown)


def show_bounds(frame: pd.DataFrame) -> str:
    """How little could be seen, of a frame of :func:`compare`, as Markdown."""
    rows = [row for row in frame.itertuples() if not math.isnan(row.detectable)]
    shown = {
        "contrast": [row.contrast for row in rows],
        "90 % interval": [f"[{rounded(row.low_90)}, {rounded(row.high_90)}]" for row in rows],
        "detectable": [rounded(row.detectable) for row in rows],
        f"detectable (Holm, {len(frame)})": [rounded(row.detectable_holm) for row in rows],
        f"seeds for ±{MARGIN} (Holm, {len(frame)})": [f"{row.seeds:.0f}" for row in rows],
    }
    return markdown(shown)


def show_rates(frame: pd.DataFrame) -> str:
    """A frame of :func:`rates` as Markdown."""
    shown = frame.drop(columns="run").rename(
        columns={name: f"validation at {name:g} (%)" for name in frame if isinstance(name, float)}
        | {"best": "best rate", "seeds": "on seeds", "test": "test there (%)"}
    )
    return shown.to_markdown(index=False, floatfmt=".2f")


def answer(scale: str, home: Path | None = None) -> str:
    """What the factorial says, in three sentences: of the excitations that have all their runs."""
    results = Results(scale, home)
    done = {
        e: name
        for e, name in EXCITATIONS.items()
        if all(results[cell(e, ws)] for ws in (False, True))
    }
    family = len(effects(cells()))
    frame = compare(effects(cells(done)), scale, home=home, family=family)
    rows = {row.contrast: row for row in frame.itertuples()}
    if not done or not rows["WS"].n:
        return "The factorial is not complete yet."

    def said(row) -> str:
        return f"{difference(row)} points ({row.verdict}, n = {row.n})"

    means = [f"{name} {said(rows[f'{name}, mean of both'])}" for name in done.values()]
    shown = "ours" if "ours" in done else next(iter(done))
    name, plain, ws = done[shown], cell(), cell("", True)
    mixed, alone = (
        pd.Series(estimate(pair(run, plain), results)) for run in (cell(shown, True), ws)
    )
    return (
        f"Weight standardization changes the test accuracy by {said(rows['WS'])}, the mean over "
        f"{len(done) + 1} pairs of networks that differ in nothing else. What excitation changes, "
        f"the mean of its differences with and without standardization, is {'; '.join(means)}. "
        f"Compared as the thesis does, {name} with standardization against a plain network "
        f"without, the difference is {difference(mixed)} points: of these standardization alone "
        f"has {difference(alone)}, and {name} adds {said(rows[f'{name}, with WS'])}. (One peak "
        f"rate, one training subset and test set; each 95 % interval for itself, verdicts by "
        f"Holm's correction over {family} contrasts.)"
    )


def scores(runs: Mapping[tuple[str, bool], str], scale: str) -> pd.DataFrame:
    """Test accuracies of a factorial, a row for each cell and seed."""
    results = Results(scale)
    return pd.DataFrame(
        [
            {"excitation": EXCITATIONS.get(e, "none"), "WS": ws, "seed": seed, "accuracy": y}
            for (e, ws), run in runs.items()
            if results[run]
            for seed, y in VALUES["accuracy"](results[run]).items()
        ]
    )


def cost(scale: str, home: Path | None = None) -> pd.DataFrame:
    """What the evidence took, by part: runs, seeds trained, and hours of one core or GPU."""
    folder = (home or root()) / "results" / scale
    rows = []
    for path in sorted(folder.glob(f"{EVIDENCE}-*.json")):
        seeds = len(read_result(path)["seeds"])
        note = json.loads((folder / "provenance" / path.name).read_text(encoding="utf-8"))
        rows.append((_part(path.stem), 1, seeds, note["seconds"] / 3600))
    frame = pd.DataFrame(rows, columns=["part", "runs", "seeds", "hours"])
    frame = frame.groupby("part", as_index=False, sort=False).sum()
    frame.loc[len(frame)] = ["all", *frame.drop(columns="part").sum()]
    return frame


def _part(run: str) -> str:
    first, *rest = short(run).split("-")
    if first in ("resnext", "mixer"):
        return first
    if set(CONTROLS) & set(rest):
        return "controls"
    return "rates" if set(RATES) & set(rest) else "factorial"
