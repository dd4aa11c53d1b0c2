"""Where a scale's numbers come from, in words: data, runs, commits, machines, versions."""

import json
from collections import Counter
from pathlib import Path

from study.plan import EVIDENCE, REAL
from study.results.files import read_result


def origins(home: Path, scale: str) -> list[dict[str, str]]:
    """Where numbers come from: first those of ``scale``, then of real scales that have results."""
    others = [other for other in REAL if other != scale]
    found = [origin(home / "results" / name) for name in (scale, *others)]
    return [found[0], *(entry for entry in found[1:] if "Commit" in entry)]


def origin(folder: Path) -> dict[str, str]:
    """Data and runs of a scale's results, and of real ones commits, machines, versions and days.

    Embedded runs are the same everywhere, and so is what is said of them.
    """
    runs, sets = [], {}
    for path in sorted(folder.glob("*.json")):
        result = read_result(path)
        if "test_last" in result:
            runs.append(path.name)
            name, role = result["data"]["dataset"], result["data"]["role"]
            sets.setdefault(name, set()).add(name if role == EVIDENCE else role)
    if not runs:
        return {"Scale": folder.name, "Runs": "none yet"}
    found = {
        "Scale": folder.name,
        "Data": "; ".join(
            (f"{name}, also" if name in roles else name) + f" in the place of {', '.join(others)}"
            if (others := sorted(roles - {name}))
            else name
            for name, roles in sorted(sets.items())
        ),
        "Runs": f"{len(runs)}",
    }
    if folder.name not in REAL:
        return found
    notes = [
        json.loads((folder / "provenance" / name).read_text(encoding="utf-8")) for name in runs
    ]

    def counted(texts: list[str]) -> str:
        counts = Counter(texts).most_common()
        return "; ".join(text if len(counts) == 1 else f"{text} ({n})" for text, n in counts)

    days = sorted({note["finished"][:10] for note in notes})
    return found | {
        "Runs": f"{len(notes)}, finished {' to '.join(dict.fromkeys((days[0], days[-1])))}",
        "Commit": counted(
            [n["commit"][:10] + (" with later changes" if n["dirty"] else "") for n in notes]
        ),
        "Machine": counted(
            [n["machine"] + ("" if n["device"] == "cpu" else f", {n['device']}") for n in notes]
        ),
        "Versions": counted([f"Python {n['python']}, torch {n['torch']}" for n in notes]),
    }
