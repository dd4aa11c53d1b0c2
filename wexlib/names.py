"""One sentence for a name that nobody knows."""

from collections.abc import Iterable
from difflib import get_close_matches


def choose(name: object, allowed: Iterable[str], what: str, *, summary: str = "") -> str:
    """Return ``name`` if it is one of ``allowed``; ``summary`` stands for a list too long to read.

    Raises:
        ValueError: names ``what`` was asked for, what is allowed, and the nearest match.
    """
    allowed = list(allowed)
    if name in allowed:
        return name
    near = get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    expected = summary or f"one of {', '.join(allowed)}"
    raise ValueError(f"unknown {what} {name!r}: expected {expected}{hint}")
