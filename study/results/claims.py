"""The thesis's claims, each with the evidence found here and a verdict.

``claims.yaml`` says what is claimed, where, and which runs are compared by which measure. A verdict
takes real data, at least five pairs of seeds, and a two-sided paired t-test whose p, by Holm's
correction over all the claims, is below 5 %; or, where a claim is on accuracy, two one-sided tests,
corrected likewise, that find less than half a point: *equal within 0.5*. Claims that are no matter
of chance are decided by code (:mod:`study.results.checks`). A claim that nothing is gained, or
lost, is contradicted by a gain, or a loss, and supported by the contrary or by that equality.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from study.files import read_yaml, root
from study.plan import SCALES
from study.plan.keys import checked, list_of, mapping, one_of, text
from study.results import checks
from study.results.contrasts import EQUAL, NONE, UNDECIDED, VERDICTS, decide, measured
from study.results.files import Results
from study.results.measures import ALONE, MEASURES
from study.results.statistics import PAIRS_FOR_VERDICT
from study.results.text import difference, markdown, p_value
from wexlib.names import choose

#: What a claim expects of a difference, and what contradicts it.
EXPECTS = {"higher": "lower", "lower": "higher", "not higher": "higher", "not lower": "lower"}
#: The measure of a claim that is no matter of chance.
CHECKED = "checked by code"
CHECKS = {
    function.__name__: function
    for function in (
        checks.attention_takes_weights,
        checks.excitation_folds_away,
        checks.feature_attention_stays,
        checks.linear_layers_have_no_channels,
        checks.mixer_is_faster,
        checks.novel_function_raises_large_weights,
        checks.triplet_has_fewer_parameters,
    )
}
_CLAIM = {"claim": text, "where": lambda value, key: text(str(value), key)}
_TESTED = _CLAIM | {
    "measure": one_of(*MEASURES),
    "expects": one_of(*EXPECTS),
    "pairs": list_of(lambda value, key: value),
}
_CHECKED = _CLAIM | {"check": one_of(*CHECKS)}


# --- the list -------------------------------------------------------------------------------


def read_claims(path: Path, roles: Mapping[str, str] | None = None) -> dict[str, list[dict]]:
    """``claims.yaml``, checked: theme to claims.

    With ``roles``, each run's dataset role, every run that it names must be one of them.

    Raises:
        ValueError: one sentence that names the theme and the claim.
    """
    themes = mapping(read_yaml(path, pure=False), "claims.yaml")
    for theme, claims in themes.items():
        for i, claim in enumerate(list_of(mapping)(claims, f"theme {theme!r}"), 1):
            place = f"claim {i} of {theme!r}"
            keys = _CHECKED if "check" in claim else _TESTED
            checked(claim, keys | {"remark": text}, place, needed=keys)
            for pair in claim.get("pairs", ()):
                _check_pair(pair, claim["measure"], place, roles)
    return themes


def _check_pair(pair: object, measure: str, place: str, roles: Mapping[str, str] | None) -> None:
    if not isinstance(pair, list) or not 0 < len(pair) < 3:
        raise ValueError(f"{place}: expected pairs of two runs, or one alone, got {pair!r}")
    if len(pair) == 1 and measure not in ALONE:
        raise ValueError(f"{place}: {measure} of one run is no test: name what it is compared with")
    if roles is None:
        return
    for run in pair:
        choose(run, roles, f"run in {place}:", summary="a run of runs.yaml")
    of, against = roles[pair[0]], roles[pair[-1]]
    if of != against:
        raise ValueError(
            f"{place}: {pair[0]} is of {of} and {pair[1]} of {against}: compare runs of one"
        )


# --- the evidence ---------------------------------------------------------------------------


def evaluate(home: Path | None = None, scales: Sequence[str] = SCALES) -> pd.DataFrame:
    """Every claim with its evidence, a row for each pair of runs and each check.

    Each pair is taken at the largest of ``scales`` that has real data and five seeds in common;
    without one, where real data have most seeds; without real data, at the largest that ran.

    Columns: theme, claim, where, compared, measure, scale, data, n, difference, low, high, p,
    p_holm, verdict, found, remark.

    Raises:
        ValueError: an unknown scale, or a fault in ``claims.yaml``.
    """
    home = home or root()
    for scale in scales:
        choose(scale, SCALES, "scale")
    largest_first = [Results(scale, home) for scale in reversed(SCALES) if scale in scales]
    rows = []
    for theme, claims in read_claims(home / "claims.yaml").items():
        for claim in claims:
            about = {key: claim[key] for key in ("claim", "where")} | {"theme": theme}
            if "check" in claim:
                rows.append(about | _checked(claim))
            else:
                rows += [about | _tested(claim, pair, largest_first) for pair in claim["pairs"]]
    frame = pd.DataFrame(rows)
    frame = decide(frame, family=int((frame["checked"] == "").sum()))
    frame["verdict"] = [row.checked or _verdict(row) for row in frame.itertuples()]
    columns = "theme claim where compared measure scale data n difference low high p p_holm verdict"
    return frame[[*columns.split(), "found", "remark"]]


def _checked(claim: dict) -> dict:
    holds, found = CHECKS[claim["check"]]()
    return NONE | {
        "compared": "",
        "measure": CHECKED,
        "scale": "",
        "expects": "",
        "checked": "supported" if holds else "contradicted",
        "found": found,
        "remark": claim.get("remark", ""),
    }


def _tested(claim: dict, compared: list[str], largest_first: Sequence[Results]) -> dict:
    found, (of, *rest) = [], compared
    for results in largest_first:
        estimate = measured(claim["measure"], of, "".join(rest), results, claim["expects"])
        if estimate["n"]:
            older = [results.older_code(run) for run in compared]
            found.append(estimate | {"scale": results.scale, "older": older})
    best = max(found, key=_weight, default=NONE | {"scale": "", "older": []})
    first = compared == claim["pairs"][0]
    remarks = [claim.get("remark", "")] if first else []
    return best | {
        "compared": " − ".join(compared),
        "measure": MEASURES[claim["measure"]],
        "expects": claim["expects"],
        "checked": "",
        "found": "",
        "remark": "; ".join(dict.fromkeys(filter(None, [*remarks, *best["older"]]))),
    }


def _weight(estimate: dict) -> tuple:
    real, n = estimate["real"], estimate["n"]
    decides = real and n >= PAIRS_FOR_VERDICT
    return decides, real, 0 if decides or not real else n


def _verdict(row) -> str:
    """What the contrast's verdict says of the claim."""
    if row.verdict not in VERDICTS:
        return row.verdict
    if row.verdict == EXPECTS[row.expects]:
        return "contradicted"
    none = row.expects in ("not higher", "not lower")
    if row.verdict == row.expects or (none and row.verdict != UNDECIDED):
        return "supported"
    return EQUAL if row.verdict == EQUAL else f"undecided at n = {row.n}"


# --- for a reader ---------------------------------------------------------------------------


def summary(frame: pd.DataFrame, theme: str) -> str:
    """What a theme comes to, for a review: its verdicts counted, and what they rest on."""
    frame = frame[(frame["theme"] == theme) & (frame["measure"] != CHECKED)]
    if frame.empty:
        return ""
    kinds = frame["verdict"].str.replace(" at n.*", "", regex=True)
    counts = [f"{count} {kind}" for kind, count in kinds.value_counts().items()]
    decided = [
        f"{row.compared}, {difference(row)} ({row.measure}, n = {row.n}): {row.verdict}"
        for row in frame[kinds.isin(("supported", "contradicted", EQUAL))].itertuples()
    ]
    said = f"Comparisons: {len(frame)}; {', '.join(counts)}."
    return f"{said} {'; '.join(decided)}." if decided else said


def show(frame: pd.DataFrame, theme: str = "") -> str:
    """Claims as a Markdown table, each named once, at its first row; of one theme, if given, with
    its :func:`summary` below."""
    frame = frame[frame["theme"] == theme] if theme else frame
    rows = list(frame.itertuples())
    again = list(frame.duplicated(["theme", "claim"]))
    shown = {
        "claim": [
            "" if a else f"{row.claim} ({row.where})" for row, a in zip(rows, again, strict=True)
        ],
        "compared": [row.found or f"{row.compared}: {row.measure}" for row in rows],
        "on": [f"{row.scale}: {row.data}, n = {row.n}" if row.n else "–" for row in rows],
        "difference": [difference(row) for row in rows],
        "p (Holm)": [p_value(row.p_holm) for row in rows],
        "verdict": [row.verdict for row in rows],
        "remark": [row.remark for row in rows],
    }
    return f"{markdown(shown)}\n\n{summary(frame, theme)}" if theme else markdown(shown)
