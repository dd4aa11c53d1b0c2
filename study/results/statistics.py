"""Paired differences, their intervals and bounds, Holm's correction, the roughness of a curve."""

import itertools
import math
from collections.abc import Sequence

#: The least p at which nothing is decided.
LEVEL = 0.05
PAIRS_FOR_INTERVAL, PAIRS_FOR_VERDICT = 3, 5


def paired_t(differences: Sequence[float], rounding: float = 0.0) -> dict:
    """The mean of paired differences, its 95 % t interval, and p; keys difference, low, high, p, n.

    With d the n differences: mean d ± t(0.975, n − 1)·sd(d)/√n, and the two-sided p of
    t = mean d·√n/sd(d). Interval and p are NaN below three pairs; p is also where all d are equal,
    their standard error no more than ``rounding``.
    """
    from scipy import stats

    n, nan = len(differences), math.nan
    if not n:
        return {"difference": nan, "low": nan, "high": nan, "p": nan, "n": 0}
    found = {"difference": sum(differences) / n, "low": nan, "high": nan, "p": nan, "n": n}
    if n >= PAIRS_FOR_INTERVAL:
        _, mean, error = _mean_and_error(differences)
        half = stats.t.ppf(0.975, n - 1) * error
        found |= {"low": mean - half, "high": mean + half}
        if error > rounding:
            found["p"] = 2 * stats.t.sf(abs(mean) / error, n - 1)
    return found


def holm(ps: Sequence[float], family: int | None = None) -> list[float]:
    """Holm's (1979) adjusted p: the k-th smallest of m times m − k + 1, never falling, at most 1.

    NaN stays NaN. m is the number of the others, or ``family``, where tests are still to be made.
    """
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    adjusted, running = [math.nan] * len(ps), 0.0
    for k, i in enumerate(order):
        running = max(running, min(1.0, ps[i] * ((family or len(order)) - k)))
        adjusted[i] = running
    return adjusted


def equivalence(differences: Sequence[float], margin: float) -> tuple[float, float, float]:
    """p of two one-sided t-tests against ±margin (Schuirmann 1987), and the 90 % interval.

    With m the mean of the n differences and e = sd/√n, p = P(T_{n−1} > (margin − |m|)/e), and the
    interval m ± t(0.95, n − 1)·e: it lies within ±margin where p is below 5 %.
    """
    from scipy import stats

    n, mean, error = _mean_and_error(differences)
    half = stats.t.ppf(1 - LEVEL, n - 1) * error
    if not error:
        return float(abs(mean) >= margin), mean, mean
    return stats.t.sf((margin - abs(mean)) / error, n - 1), mean - half, mean + half


def detectable(differences: Sequence[float], level: float = LEVEL, power: float = 0.8) -> float:
    """The true mean difference that a two-sided paired t-test at ``level`` finds with this power.

    From n and the sd of ``differences``, taken as the true one: the δ at which the noncentral t of
    n − 1 degrees of freedom and noncentrality δ·√n/sd lies above t(1 − level/2, n − 1), that is,
    is found with its own sign, with probability ``power``.
    """
    from scipy import optimize, stats

    n, _, error = _mean_and_error(differences)
    if not error:
        return 0.0
    edge = stats.t.ppf(1 - level / 2, n - 1)

    def missed(c: float) -> float:
        return power - stats.nct.sf(edge, n - 1, c)

    return optimize.brentq(missed, 0, 2 * edge + 3) * error


def seeds_needed(
    differences: Sequence[float], margin: float, level: float = LEVEL, power: float = 0.8
) -> int:
    """The seeds for which :func:`equivalence` gives ``level`` with this power, without an effect.

    From the sd of ``differences``, taken as the true one: the least n at which |m| stays below
    margin − t(1 − level, n − 1)·sd/√n with probability ``power`` or more. That probability is taken
    as 2·P(T > t(1 − level, n − 1)) − 1, T noncentral t of n − 1 degrees of freedom and
    noncentrality margin·√n/sd.
    """
    from scipy import stats

    n, _, error = _mean_and_error(differences)
    sd = error * math.sqrt(n)

    def found(n: int) -> float:
        edge = stats.t.ppf(1 - level, n - 1)
        return 2 * stats.nct.sf(edge, n - 1, margin * math.sqrt(n) / sd) - 1

    # SciPy gives NaN where the noncentrality is so large that the power is 1.
    return next(n for n in itertools.count(2) if not (sd and found(n) < power))


def _mean_and_error(values: Sequence[float]) -> tuple[int, float, float]:
    """n, the mean, and its standard error sd/√n."""
    n = len(values)
    mean = sum(values) / n
    return n, mean, math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)


def roughness(curve: Sequence[float]) -> float:
    """Mean absolute second difference, (1/(n−2))·Σ|y(t−1) − 2y(t) + y(t+1)|; 0 for a line."""
    steps = [a - 2 * b + c for a, b, c in zip(curve, curve[1:], curve[2:], strict=False)]
    return sum(map(abs, steps)) / len(steps) if steps else math.nan
