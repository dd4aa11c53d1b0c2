"""Contrasts: weighted sums of runs, taken seed by seed and tested against zero.

Every comparison is one. With weights w of runs r and their numbers y on seed s,

    c_s = Σ_r w_r · y_{r,s}

on the seeds that all the runs have: 1 and −1 for a row of a table against its plain row or for a
claim on two runs, ¼ and −¼ for a main effect over four cells. Runs of a seed share the network's
start and the batches, so what they have in common drops out, and the c_s are tested as paired
differences are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd

from study.results.files import EMBEDDED, Results, Run
from study.results.measures import VALUES, accuracy, epochs_to
from study.results.statistics import (
    LEVEL,
    PAIRS_FOR_VERDICT,
    detectable,
    equivalence,
    holm,
    paired_t,
    seeds_needed,
)

#: The weight of each run.
Weights = Mapping[str, float]
#: A number of each run, for each seed.
Scores = Mapping[str, Mapping[int, float]]

#: Percentage points that are taken for no difference.
MARGIN = 0.5
EQUAL = f"equal within {MARGIN}"
UNDECIDED = "undecided"
#: What is said of a contrast of real data with enough seeds.
VERDICTS = ("higher", "lower", EQUAL, UNDECIDED)
#: How little could be seen: see :func:`estimate`.
BOUNDS = ("p_equivalence", "low_90", "high_90", "detectable", "detectable_holm", "seeds")
#: No estimate: a run is missing, or no seed is common.
NONE = {"data": "", "real": False, **paired_t([])}


def pair(of: str, against: str = "") -> Weights:
    """The difference of two runs, or one alone, which is compared with zero."""
    return {of: 1, against: -1} if against else {of: 1}


def on_seeds(weights: Weights, scores: Scores) -> list[float]:
    """c_s = Σ_r w_r·y_{r,s} for the seeds that all the runs have, in their order."""
    seeds = sorted(set.intersection(*(set(scores[run]) for run in weights)))
    return [sum(w * scores[run][seed] for run, w in weights.items()) for seed in seeds]


def t_test(weights: Weights, scores: Scores) -> dict:
    """The paired t-test of a contrast: :func:`study.results.statistics.paired_t`."""
    largest = max((abs(y) for run in weights for y in scores[run].values()), default=0.0)
    # Sums of rounded numbers that are all equal differ in their last bits.
    return paired_t(on_seeds(weights, scores), rounding=1e-12 * largest)


def same_data(weights: Weights, results: Results) -> bool:
    """Whether the runs that were made had the same data, and as many steps of the same schedule.

    A change of a scale parts the results made before it from those made after it.
    """
    trained = [results[run].trained_on for run in weights if results[run]]
    return all(other == trained[0] for other in trained[1:])


def estimate(
    weights: Weights,
    results: Results,
    value: Callable[[Run], Mapping[int, float]] = accuracy,
    *,
    family: int = 0,
) -> dict:
    """A contrast's difference with its 95 % interval, p, n, and the data; :data:`NONE` without.

    With ``family``, the number of contrasts that are taken together, also the :data:`BOUNDS`, for
    accuracies in percent; NaN below five seeds. ``p_equivalence`` is p of two one-sided tests
    against ±:data:`MARGIN`, and before it is corrected (:func:`decide`) belongs to the interval
    from low_90 to high_90; ``detectable`` the
    true difference that this n finds in four of five such experiments at 5 %, ``detectable_holm``
    at 5 % over the family, Holm's first step; ``seeds`` those with which two one-sided tests would
    find "no difference" as often at that level, if there were none.
    """
    bounds = dict.fromkeys(BOUNDS if family else (), math.nan)
    if not all(results[run] for run in weights) or not same_data(weights, results):
        return NONE | bounds
    scores = {run: value(results[run]) for run in weights}
    data = results[next(iter(weights))].dataset
    found = {"data": data, "real": data not in EMBEDDED, **t_test(weights, scores)}
    if family and found["n"] >= PAIRS_FOR_VERDICT:
        c = on_seeds(weights, scores)
        least = (detectable(c, level) for level in (LEVEL, LEVEL / family))
        known = (*equivalence(c, MARGIN), *least, seeds_needed(c, MARGIN, LEVEL / family))
        bounds = dict(zip(BOUNDS, known, strict=True))
    return found | bounds if found["n"] else NONE | bounds


def measured(measure: str, of: str, against: str, results: Results, expects: str) -> dict:
    """The estimate of ``of`` minus ``against`` by a key of ``study.results.measures.MEASURES``.

    Without ``against`` it is that of ``of`` alone, of a measure that is a number of one run.

    ``expects`` is the sign that is claimed, higher, lower or not higher: :func:`every_epoch` asks.
    """
    weights = pair(of, against)
    if measure in VALUES:
        # Half a point is a bound for accuracies: a family of one gives its p.
        family = int(measure == "accuracy")
        return estimate(weights, results, VALUES[measure], family=family)
    found = estimate(weights, results)
    if not found["n"]:
        return found
    if measure == "epochs":
        goals = {seed: 0.9 * y for seed, y in accuracy(results[against]).items()}
        return estimate(weights, results, partial(epochs_to, goals))
    curves = {run: results[run].metric_curve("test") for run in weights}
    return found | every_epoch(weights, curves, expects)


def every_epoch(
    weights: Weights, curves: Mapping[str, Mapping[int, Sequence[float]]], expects: str
) -> dict:
    """A contrast of curves, epoch by epoch; the claim is on all epochs at once.

    If every mean difference has the claimed sign, p is the greatest of the epochs' (an
    intersection-union test, Berger 1982). If some have the other sign, one of them is enough to
    contradict the claim, and p is their smallest times the number of epochs (Bonferroni). Reported
    is the epoch of that p, without an interval, which would be of a chosen epoch; without such a p,
    the epoch that speaks most against the claim.
    """
    length = min((len(c) for run in weights for c in curves[run].values()), default=0)
    found = [
        t_test(weights, {run: {s: c[i] for s, c in curves[run].items()} for run in weights})
        for i in range(length)
    ]
    if not found:
        return paired_t([])
    sign = -1 if expects == "lower" else 1
    contrary = [each for each in found if each["difference"] * sign <= 0]
    tested = [each for each in contrary if not math.isnan(each["p"])]
    if tested:
        worst = min(tested, key=lambda each: each["p"])
        return worst | {"p": min(1.0, worst["p"] * length), "low": math.nan, "high": math.nan}
    if contrary or any(math.isnan(each["p"]) for each in found):
        return min(found, key=lambda each: each["difference"] * sign) | {"p": math.nan}
    return max(found, key=lambda each: each["p"])


def decide(frame: pd.DataFrame, family: int | None = None, *, every: bool = False) -> pd.DataFrame:
    """A frame of estimates with p_holm and verdict; p_equivalence, where it has it, corrected too.

    Holm's correction is over what can decide, real data and five seeds, or over ``every`` row that
    has a p; over ``family`` tests where some are still to be made. Verdicts: *higher* or *lower*
    where p_holm is below 5 %; *equal within* :data:`MARGIN` where p_equivalence is; else
    *undecided*; or why there is none. Either kind is wrong anywhere in the frame with at most 5 %.
    """
    frame = frame.copy()
    decides = frame["real"].astype(bool) & (frame["n"] >= PAIRS_FOR_VERDICT)
    frame["p_holm"] = holm(list(frame["p"].where(decides | every)), family)
    if "p_equivalence" in frame:
        frame["p_equivalence"] = holm(list(frame["p_equivalence"].where(decides)), family)
    frame["verdict"] = [_verdict(row) for row in frame.itertuples()]
    return frame


def _verdict(row) -> str:
    if not row.n:
        return "not run"
    if not row.real:
        return "no verdict: embedded data"
    if row.n < PAIRS_FOR_VERDICT:
        return f"no verdict: n < {PAIRS_FOR_VERDICT}"
    if row.p_holm < LEVEL:
        return "higher" if row.difference > 0 else "lower"
    equal = getattr(row, "p_equivalence", math.nan) < LEVEL
    return EQUAL if equal else UNDECIDED
