"""Paired differences with their intervals, Holm's correction, the roughness of a curve."""

import math
from collections.abc import Mapping, Sequence

#: The least p at which nothing is decided.
LEVEL = 0.05
PAIRS_FOR_INTERVAL, PAIRS_FOR_VERDICT = 3, 5


def paired(ours: Mapping[int, float], plain: Mapping[int, float]) -> dict:
    """The mean difference over the seeds that both have, its 95 % t interval, and p.

    With d the n differences: mean d ± t(0.975, n − 1)·sd(d)/√n, and the two-sided p of
    t = mean d·√n/sd(d). Interval and p are NaN below three pairs; p is also where all d are equal.
    """
    from scipy import stats

    differences = [ours[seed] - plain[seed] for seed in ours if seed in plain]
    n, nan = len(differences), math.nan
    if not n:
        return {"difference": nan, "low": nan, "high": nan, "p": nan, "pairs": 0}
    mean = sum(differences) / n
    found = {"difference": mean, "low": nan, "high": nan, "p": nan, "pairs": n}
    if n >= PAIRS_FOR_INTERVAL:
        error = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
        half = stats.t.ppf(0.975, n - 1) * error
        found |= {"low": mean - half, "high": mean + half}
        # Differences of rounded numbers that are all equal differ in their last bits.
        if error > 1e-12 * max(map(abs, ours.values())):
            found["p"] = 2 * stats.t.sf(abs(mean) / error, n - 1)
    return found


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p: the k-th smallest of m times m − k + 1, never falling, at most 1.

    NaN stays NaN and does not count.
    """
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    adjusted, running = [math.nan] * len(ps), 0.0
    for k, i in enumerate(order):
        running = max(running, min(1.0, ps[i] * (len(order) - k)))
        adjusted[i] = running
    return adjusted


def roughness(curve: Sequence[float]) -> float:
    """Mean absolute second difference, (1/(n−2))·Σ|y(t−1) − 2y(t) + y(t+1)|; 0 for a line."""
    steps = [a - 2 * b + c for a, b, c in zip(curve, curve[1:], curve[2:], strict=False)]
    return sum(map(abs, steps)) / len(steps) if steps else math.nan
