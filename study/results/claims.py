"""The thesis's claims, each with the evidence found here and a verdict.

``claims.yaml`` says what is claimed, where, and which runs are compared by which measure. A verdict
takes real data, at least five pairs of seeds, and a two-sided paired t-test whose p, by Holm's
correction over all the claims, is below 5 %. Claims that are no matter of chance are decided by
code (:mod:`study.results.checks`). A claim that nothing is gained is contradicted by a gain
alone; no test can support it.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from study.files import root
from study.plan.config import SCALES
from study.results import checks
from study.results.files import EMBEDDED, older_code, read_curves, read_result
from study.results.measures import MEASURES, Run
from study.results.statistics import LEVEL, PAIRS_FOR_VERDICT, holm, paired
from study.results.tables import difference, p_value
from wexlib.names import choose

EXPECTS = ("higher", "lower", "not higher")
CHECKS = {
    function.__name__: function
    for function in (
        checks.attention_takes_weights,
        checks.excitation_folds_away,
        checks.linear_layers_have_no_channels,
        checks.novel_function_raises_large_weights,
        checks.triplet_has_fewer_parameters,
    )
}
_TESTED = ("claim", "where", "measure", "expects", "pairs")
_CHECKED = ("claim", "where", "check")


# --- the list -------------------------------------------------------------------------------


def read_claims(path: Path, roles: Mapping[str, str] | None = None) -> dict[str, list[dict]]:
    """``claims.yaml``, checked: theme to claims.

    With ``roles``, each run's dataset role, every run that it names must be one of them.

    Raises:
        ValueError: one sentence that names the theme and the claim.
    """
    from ruamel.yaml import YAML

    themes = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    for theme, claims in themes.items():
        for i, claim in enumerate(claims, 1):
            place = f"claim {i} of {theme!r}"
            keys = _CHECKED if "check" in claim else _TESTED
            for key in claim:
                choose(key, (*keys, "remark"), f"key in {place}:")
            for key in keys:
                if key not in claim:
                    raise ValueError(f"{place}: {key} is missing: expected {', '.join(keys)}")
            if "check" in claim:
                choose(claim["check"], CHECKS, f"check in {place}:")
                continue
            choose(claim["measure"], MEASURES, f"measure in {place}:")
            choose(claim["expects"], EXPECTS, f"expects in {place}:")
            for pair in claim["pairs"]:
                _check_pair(pair, place, roles)
    return themes


def _check_pair(pair: object, place: str, roles: Mapping[str, str] | None) -> None:
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError(f"{place}: expected pairs of two runs, got {pair!r}")
    if roles is None:
        return
    for run in pair:
        choose(run, roles, f"run in {place}:", summary="a run of params.yaml")
    of, against = (roles[run] for run in pair)
    if of != against:
        raise ValueError(
            f"{place}: {pair[0]} is of {of} and {pair[1]} of {against}: compare runs of one"
        )


# --- the evidence ---------------------------------------------------------------------------


def evaluate(home: Path | None = None, scales: tuple[str, ...] = SCALES) -> pd.DataFrame:
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
    rows = []
    for theme, claims in read_claims(home / "claims.yaml").items():
        for claim in claims:
            about = {key: claim[key] for key in ("claim", "where")} | {"theme": theme}
            if "check" in claim:
                rows.append(about | _checked(claim))
            else:
                rows += [about | _tested(claim, *pair, home, scales) for pair in claim["pairs"]]
    frame = pd.DataFrame(rows)
    decides = frame["real"] & (frame["n"] >= PAIRS_FOR_VERDICT)
    frame["p_holm"] = holm(list(frame["p"].where(decides)))
    frame["verdict"] = [row.verdict or _verdict(row) for row in frame.itertuples()]
    columns = "theme claim where compared measure scale data n difference low high p p_holm verdict"
    return frame[[*columns.split(), "found", "remark"]]


def _checked(claim: dict) -> dict:
    holds, found = CHECKS[claim["check"]]()
    return {
        "compared": "",
        "measure": "checked by code",
        "scale": "",
        "data": "",
        "n": 0,
        **{key: math.nan for key in ("difference", "low", "high", "p")},
        "real": False,
        "expects": "",
        "verdict": "supported" if holds else "contradicted",
        "found": found,
        "remark": claim.get("remark", ""),
    }


def _tested(claim: dict, of: str, against: str, home: Path, scales: tuple[str, ...]) -> dict:
    measure, name = MEASURES[claim["measure"]]
    found = []
    for scale in reversed([scale for scale in SCALES if scale in scales]):
        results = [read_result(scale, run, home) for run in (of, against)]
        if not all(result and "test_last" in result for result in results):
            continue
        if results[0]["data"] != results[1]["data"]:
            continue  # made before the scale's data were changed
        runs = [Run(result, read_curves(scale, [result["run"]], home)) for result in results]
        data = results[0]["data"]["dataset"]
        older = dict.fromkeys(filter(None, (older_code(result, home) for result in results)))
        about = {"scale": scale, "data": data, "real": data not in EMBEDDED, "older": older}
        found.append(about | measure(*runs, claim["expects"]))
    none = {"scale": "", "data": "", "real": False, "older": {}} | paired({}, {})
    best = max((each for each in found if each["pairs"]), key=_weight, default=none)
    first = [of, against] == claim["pairs"][0]
    remarks = [claim["remark"]] if first and "remark" in claim else []
    return best | {
        "compared": f"{of} − {against}",
        "measure": name,
        "n": best["pairs"],
        "expects": claim["expects"],
        "verdict": "",
        "found": "",
        "remark": "; ".join([*remarks, *best["older"]]),
    }


def _weight(found: dict) -> tuple:
    decides = found["real"] and found["pairs"] >= PAIRS_FOR_VERDICT
    return decides, found["real"], 0 if decides or not found["real"] else found["pairs"]


def _verdict(row) -> str:
    if not row.n:
        return "not run"
    if not row.real:
        return "no verdict: embedded data"
    if math.isnan(row.p_holm) or row.p_holm >= LEVEL:
        return f"undecided at n = {row.n}"
    found = "higher" if row.difference > 0 else "lower"
    if row.expects == "not higher":
        return "contradicted" if found == "higher" else f"undecided at n = {row.n}"
    return "supported" if row.expects == found else "contradicted"


# --- for a reader ---------------------------------------------------------------------------


def show(frame: pd.DataFrame) -> str:
    """Claims as a Markdown table; a claim is named at the first of its rows."""

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
    return pd.DataFrame(shown).to_markdown(index=False, disable_numparse=True)
