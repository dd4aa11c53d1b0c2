"""Whether excitation does anything: the evidence's runs, taken together.

Every question is a contrast, a weighted sum of runs taken seed by seed: 1 and −1 for two runs,
1/4 and −1/4 for the main effect of two by four cells. Its values on n seeds are tested against zero
as a pair's differences are, and against the bound ±:data:`MARGIN` for equivalence.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from study.files import root
from study.plan.config import EVIDENCE, SCALES
from study.results.files import read_curves, read_result
from study.results.measures import VALUES, Run
from study.results.statistics import (
    LEVEL,
    PAIRS_FOR_VERDICT,
    detectable,
    equivalence,
    holm,
    paired,
    seeds_needed,
)
from study.results.tables import difference, number, p_value

#: The excitations of the factorial, as runs name them, and their names for a reader.
EXCITATIONS = {"se": "SE", "ours": "CBAM with skips", "mwe": "magnitude"}
#: Percentage points that are taken for no difference.
MARGIN = 0.5
#: The rates tried, as runs name them; the factorial's own is between the two.
RATES = ("low", "", "high")
#: The controls of SE's gate, as runs name them.
CONTROLS = ("free", "frozen", "mean")

#: What :func:`compare` says about how little could be seen.
BOUNDS = ("p_equivalence", "low_90", "high_90", "detectable", "detectable_holm", "seeds")

Contrast = Mapping[str, float]


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


def effects(runs: Mapping[tuple[str, bool], str]) -> dict[str, Contrast]:
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


def pairs(*compared: tuple[str, str]) -> dict[str, Contrast]:
    """The contrast of each (run, run) with its own name."""
    return {f"{short(of)} − {short(against)}": {of: 1, against: -1} for of, against in compared}


def short(run: str) -> str:
    return run.removeprefix(f"{EVIDENCE}-")


def scales_with_evidence(home: Path | None = None) -> list[str]:
    """The scales that have results of the evidence, the largest first."""
    folder = (home or root()) / "results"
    return [s for s in reversed(SCALES) if any((folder / s).glob(f"{EVIDENCE}-*.json"))]


def values(run: str, scale: str, measure: str, home: Path | None = None) -> dict[int, float]:
    """A run's number by ``measure``, a key of ``study.results.measures.VALUES``, for each seed."""
    return _values(read_result(scale, run, home), scale, measure, home)


def _values(result: dict | None, scale: str, measure: str, home: Path | None) -> dict[int, float]:
    if result is None or "not_run" in result:
        return {}
    return VALUES[measure][0](Run(result, read_curves(scale, [result["run"]], home)))


def compare(
    contrasts: Mapping[str, Contrast],
    scale: str,
    measure: str = "accuracy",
    home: Path | None = None,
) -> pd.DataFrame:
    """Each contrast on the seeds that all its runs have.

    Columns: contrast, difference, low, high (95 %), p, p_holm, n, verdict, p_equivalence, low_90,
    high_90, detectable, detectable_holm, seeds. The family of Holm's correction is ``contrasts``,
    those that have not run too. ``p_equivalence`` is that of two one-sided tests against
    ±:data:`MARGIN`, by Holm's correction too, and belongs to the 90 % interval; ``detectable`` the
    true difference that this n finds in four of five such experiments at 5 %, and at the 5 % over
    the family of Holm's first step; ``seeds`` those with which two one-sided tests would find "no
    difference" as often, if there were none. All these are of accuracy only, and they and verdicts
    take five seeds.

    Raises:
        ValueError: two runs of a contrast were made on different data.
    """
    runs = dict.fromkeys(run for weights in contrasts.values() for run in weights)
    results = {run: read_result(scale, run, home) for run in runs}
    scores = {run: _values(result, scale, measure, home) for run, result in results.items()}
    rows = []
    for name, weights in contrasts.items():
        data = [results[run]["data"] for run in weights if results[run]]
        if any(other != data[0] for other in data[1:]):
            raise ValueError(f"{name}: its runs are of different data: make the older ones again")
        seeds = sorted(set.intersection(*(set(scores[run]) for run in weights)))
        sums = {s: sum(w * scores[run][s] for run, w in weights.items()) for s in seeds}
        row = paired(sums, dict.fromkeys(seeds, 0.0))
        enough = row["pairs"] >= PAIRS_FOR_VERDICT
        bounds = dict.fromkeys(BOUNDS, math.nan)
        if enough and measure == "accuracy":
            d = list(sums.values())
            least = [detectable(d, level) for level in (LEVEL, LEVEL / len(contrasts))]
            known = (*equivalence(d, MARGIN), *least, seeds_needed(d, MARGIN))
            bounds = dict(zip(BOUNDS, known, strict=True))
        rows.append({"contrast": name} | row | bounds | {"enough": enough})
    frame = pd.DataFrame(rows).rename(columns={"pairs": "n"})
    frame["p_holm"] = holm(list(frame["p"].where(frame["enough"])), len(frame))
    frame["p_equivalence"] = holm(list(frame["p_equivalence"]), len(frame))
    frame["verdict"] = [_verdict(row) for row in frame.itertuples()]
    return frame[["contrast", "difference", "low", "high", "p", "p_holm", "n", "verdict", *BOUNDS]]


def _verdict(row) -> str:
    if not row.n:
        return "not run"
    if not row.enough:
        return "no verdict: n < 5"
    if row.p_holm < LEVEL:
        return "higher" if row.difference > 0 else "lower"
    return f"equal within {MARGIN}" if row.p_equivalence < LEVEL else "undecided"


def rates(scale: str, home: Path | None = None) -> pd.DataFrame:
    """The factorial's cells at three peak rates, and which is best on the validation split.

    On the seeds that all three rates have, one at first. Where a side rate is best there it is run
    on the others too, and decides against the middle one on all that the two share; a tie is the
    middle one's.

    Columns: cell, a column for each rate (validation accuracy in percent, mean over the seeds that
    all rates have), best (the rate), seeds (that the decision rests on), run (that ran at it), test
    (its mean), n.
    """
    rows = []
    for key in cells():
        runs = [cell(*key, rate) for rate in RATES]
        tried = {run: read_result(scale, run, home) for run in runs}
        if not all(tried.values()):
            continue
        lr = {run: result["config"]["train"]["lr"] for run, result in tried.items()}
        scores, _ = _validation(tried)
        middle, ahead = cell(*key), max(scores, key=scores.get)
        shared, seeds = _validation({run: tried[run] for run in (middle, ahead)})
        best = max(shared, key=shared.get)  # the first of equal ones: the middle
        test = tried[best]["test_last"]
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


def _validation(results: Mapping[str, dict]) -> tuple[dict[str, float], int]:
    """Each run's mean validation accuracy over the seeds that all have, and their number."""
    found = {
        run: dict(zip(result["seeds"], result["validation_last"], strict=True))
        for run, result in results.items()
    }
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
    return pd.DataFrame(shown).to_markdown(index=False, disable_numparse=True)


def show_bounds(frame: pd.DataFrame) -> str:
    """How little could be seen, of a frame of :func:`compare`, as Markdown."""
    rows = [row for row in frame.itertuples() if not math.isnan(row.detectable)]
    shown = {
        "contrast": [row.contrast for row in rows],
        "90 % interval": [f"[{number(row.low_90)}, {number(row.high_90)}]" for row in rows],
        "detectable": [number(row.detectable) for row in rows],
        f"detectable (Holm, {len(frame)})": [number(row.detectable_holm) for row in rows],
        f"seeds for ±{MARGIN}": [f"{row.seeds:.0f}" for row in rows],
    }
    return pd.DataFrame(shown).to_markdown(index=False, disable_numparse=True)


def show_rates(frame: pd.DataFrame) -> str:
    """A frame of :func:`rates` as Markdown."""
    shown = frame.drop(columns="run").rename(
        columns={name: f"validation at {name:g} (%)" for name in frame if isinstance(name, float)}
        | {"best": "best rate", "seeds": "on seeds", "test": "test there (%)"}
    )
    return shown.to_markdown(index=False, floatfmt=".2f")


def reading(frame: pd.DataFrame) -> str:
    """The factorial in two sentences, from the frame of its :func:`effects`."""
    rows = {row.contrast: row for row in frame.itertuples()}

    def said(row) -> str:
        return f"{difference(row)} points ({row.verdict})"

    means = [f"{name} {said(rows[f'{name}, mean of both'])}" for name in EXCITATIONS.values()]
    return (
        f"Standardization changes the test accuracy by {said(rows['WS'])}, the mean over four "
        f"cells, n = {rows['WS'].n}. Excitation, the mean of its differences with and without "
        f"standardization: {'; '.join(means)}."
    )


def scores(runs: Mapping[tuple[str, bool], str], scale: str) -> pd.DataFrame:
    """Test accuracies of a factorial, a row for each cell and seed."""
    return pd.DataFrame(
        [
            {"excitation": EXCITATIONS.get(e, "none"), "WS": ws, "seed": seed, "accuracy": y}
            for (e, ws), run in runs.items()
            for seed, y in values(run, scale, "accuracy").items()
        ]
    )


def cost(scale: str, home: Path | None = None) -> pd.DataFrame:
    """What the evidence took, by part: runs, seeds trained, and hours of one core or GPU."""
    folder = (home or root()) / "results" / scale
    rows = []
    for path in sorted(folder.glob(f"{EVIDENCE}-*.json")):
        seeds = len(json.loads(path.read_text(encoding="utf-8"))["seeds"])
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
