"""One sentence for a name that nobody knows."""

from collections.abc import Iterable
from difflib import get_close_matches


def choose(name: object, allowed: Iterable[str], what: str) -> str:
    """Return ``name`` if it is one of ``allowed``.

    Raises:
        ValueError: names ``what`` was asked for, what is allowed, and the nearest match.
    """
    allowed = list(allowed)
    if name in allowed:
        return name
    near = get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {name!r}: expected one of {', '.join(allowed)}{hint}")
