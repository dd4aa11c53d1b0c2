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

from wexlib.config import EVIDENCE, SCALES
from wexlib.files import root
from wexlib.measures import VALUES, Run
from wexlib.result_files import read_curves, read_result
from wexlib.results import difference, number, p_value
from wexlib.statistics import LEVEL, PAIRS_FOR_VERDICT, detectable, equivalence, holm, paired

#: The excitations of the factorial, as runs name them, and their names for a reader.
EXCITATIONS = {"se": "SE", "ours": "CBAM with skips", "mwe": "magnitude"}
#: Percentage points that are taken for no difference.
MARGIN = 0.5
#: The rates tried, as runs name them; the factorial's own is between the two.
RATES = ("low", "", "high")

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
    """A run's number by ``measure``, a key of :data:`wexlib.measures.VALUES`, for each seed."""
    result = read_result(scale, run, home)
    if result is None or "not_run" in result:
        return {}
    return VALUES[measure][0](Run(result, read_curves(scale, [run], home)))


def compare(
    contrasts: Mapping[str, Contrast],
    scale: str,
    measure: str = "accuracy",
    home: Path | None = None,
) -> pd.DataFrame:
    """Each contrast on the seeds that all its runs have.

    Columns: contrast, difference, low, high (95 %), p, p_holm, n, verdict, p_equivalence, bound,
    detectable. ``p_equivalence`` is that of two one-sided tests against ±:data:`MARGIN`, by Holm's
    correction too; ``bound`` the smallest margin at which they alone would give 5 %;
    ``detectable`` the true difference that this n finds in four of five such experiments. All three
    are of accuracy only, and they and verdicts take five seeds.
    """
    rows = []
    for name, weights in contrasts.items():
        found = {run: values(run, scale, measure, home) for run in weights}
        seeds = sorted(set.intersection(*map(set, found.values())))
        sums = {s: sum(w * found[run][s] for run, w in weights.items()) for s in seeds}
        row = paired(sums, dict.fromkeys(seeds, 0.0))
        enough = row["pairs"] >= PAIRS_FOR_VERDICT
        bounds = dict.fromkeys(("p_equivalence", "bound", "detectable"), math.nan)
        if enough and measure == "accuracy":
            p, bound = equivalence(list(sums.values()), MARGIN)
            least = detectable(list(sums.values()))
            bounds = {"p_equivalence": p, "bound": bound, "detectable": least}
        rows.append({"contrast": name} | row | bounds | {"enough": enough})
    frame = pd.DataFrame(rows).rename(columns={"pairs": "n"})
    frame["p_holm"] = holm(list(frame["p"].where(frame["enough"])))
    frame["p_equivalence"] = holm(list(frame["p_equivalence"]))
    frame["verdict"] = [_verdict(row) for row in frame.itertuples()]
    columns = "contrast difference low high p p_holm n verdict p_equivalence bound detectable"
    return frame[columns.split()]


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

    Columns: cell, a column for each rate (validation accuracy in percent, mean over the seeds that
    all the cell's rates have), best (the rate), run (that ran at it), test (its mean), n.
    """
    rows = []
    for key in cells():
        runs = [cell(*key, rate) for rate in RATES]
        tried = {run: read_result(scale, run, home) for run in runs}
        if not all(tried.values()):
            continue
        shared = set.intersection(*(set(result["seeds"]) for result in tried.values()))
        scores = {}
        for run, result in tried.items():
            validation = dict(zip(result["seeds"], result["validation_last"], strict=True))
            scores[run] = sum(validation[seed] for seed in shared) / len(shared)
        best = max(scores, key=scores.get)
        test = tried[best]["test_last"]
        rows.append(
            {"cell": short(cell(*key))}
            | {tried[run]["config"]["train"]["lr"]: score for run, score in scores.items()}
            | {
                "best": tried[best]["config"]["train"]["lr"],
                "run": best,
                "test": sum(test) / len(test),
                "n": len(test),
            }
        )
    return pd.DataFrame(rows)


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
        "difference (points)": [difference(row) for row in rows],
        "n": [row.n for row in rows],
        "p (Holm)": [p_value(row.p_holm) for row in rows],
        "verdict": [row.verdict for row in rows],
    }
    if bounds:
        shown |= {
            f"p of ±{MARGIN}": [p_value(row.p_equivalence) for row in rows],
            "at most": [number(row.bound) for row in rows],
            "detectable": [number(row.detectable) for row in rows],
        }
    return pd.DataFrame(shown).to_markdown(index=False, disable_numparse=True)


def show_rates(frame: pd.DataFrame) -> str:
    """A frame of :func:`rates` as Markdown."""
    shown = frame.drop(columns="run").rename(
        columns={name: f"validation at {name:g} (%)" for name in frame if isinstance(name, float)}
        | {"best": "best rate", "test": "test there (%)"}
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
        f"cells, n = {rows['WS'].n}. Excitation does so, with and without it, by: "
        f"{'; '.join(means)}."
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
    """What the evidence took, by model: runs, seeds trained, and hours of one core or GPU."""
    folder = (home or root()) / "results" / scale
    rows = []
    for path in sorted(folder.glob(f"{EVIDENCE}-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        note = json.loads((folder / "provenance" / path.name).read_text(encoding="utf-8"))
        rows.append((result["config"]["model"], 1, len(result["seeds"]), note["seconds"] / 3600))
    frame = pd.DataFrame(rows, columns=["model", "runs", "seeds", "hours"])
    return frame.groupby("model", as_index=False).sum()
