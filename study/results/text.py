"""Numbers, frames and their captions as a reader sees them: Markdown and LaTeX."""

import math
from collections.abc import Iterable, Mapping

import pandas as pd

from study.results.contrasts import UNDECIDED, VERDICTS
from study.results.files import EMBEDDED, Results

PROTOCOLS = {
    "test_last": "test {} at the last epoch",
    "test_best_epoch": "test {} at the best epoch on the test set (the thesis's protocol)",
}

_LATEX = {
    "\\": r"\textbackslash{}",
    "%": r"\%",
    "_": r"\_",
    "&": r"\&",
    "#": r"\#",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "×": r"$\times$",
}


def rounded(x: float, sign: str = "") -> str:
    """Two decimals, a minus that is one, and a dash for NaN."""
    return "–" if math.isnan(x) else f"{x:{sign}.2f}".replace("-", "−")


def p_value(p: float) -> str:
    """Three decimals, and what they would round to nothing as such."""
    return "–" if math.isnan(p) else f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def difference(row) -> str:
    """A row's difference with its interval, if it has one."""
    interval = "" if math.isnan(row.low) else f" [{rounded(row.low)}, {rounded(row.high)}]"
    return rounded(row.difference, "+") + interval


def readable(frame: pd.DataFrame, *, curves: bool = False, cost: bool = False) -> pd.DataFrame:
    """A table's frame (:func:`study.results.tables.table`): rounded, dashes where there is nothing.

    ``curves`` shows the gap and the roughness too, ``cost`` parameters and time; a column goes
    where all of it is nothing.
    """

    def ours(row) -> str:
        if row.status:
            return row.status
        if not row.n:
            return "–"
        return rounded(row.mean) + ("" if math.isnan(row.sd) else f" ± {row.sd:.2f}")

    rows = list(frame.itertuples())
    shown = {"row": [row.row for row in rows]}
    if frame["thesis"].notna().any():
        shown["thesis (%)"] = ["–" if math.isnan(r.thesis) else f"{r.thesis:.6g}" for r in rows]
    shown |= {
        "ours (%)": [ours(row) for row in rows],
        "n": [str(row.n) if row.n else "–" for row in rows],
        "difference": [difference(row) for row in rows],
    }
    if frame.loc[frame["difference"].notna(), "against"].nunique() > 1:
        shown["against"] = ["–" if math.isnan(r.difference) else r.against for r in rows]
    if (frame["difference"].notna() & (frame["pairs"] != frame["n"])).any():
        shown["pairs"] = [str(row.pairs) if row.pairs else "–" for row in rows]
    if frame["pixels"].notna().any():
        shown["pixels (%)"] = [rounded(row.pixels) for row in rows]
    if cost:
        counts = [row.parameters for row in rows]
        shown["parameters"] = ["–" if math.isnan(count) else f"{count:,.0f}" for count in counts]
    if cost and frame["seconds"].notna().any():
        times = [row.seconds for row in rows]
        shown["seconds a seed"] = ["–" if math.isnan(time) else f"{time:,.0f}" for time in times]
    if curves:
        shown["gap (points)"] = [rounded(row.gap, "+") for row in rows]
        shown["roughness (points)"] = [rounded(row.roughness) for row in rows]
    if any(frame["verdict"]):
        shown["p (Holm)"] = [p_value(row.p_holm) for row in rows]
        shown["verdict"] = [row.verdict or "–" for row in rows]
    # What is to be said of every row, the caption says.
    remarks = {} if frame["remark"].nunique() == 1 else {"remark": [row.remark for row in rows]}
    return pd.DataFrame(shown | remarks)


def caption(number: str, entry: dict, frame: pd.DataFrame, results: Results, protocol: str) -> str:
    """What a table shows: scale, data, epochs, number of seeds, protocol, and what to know."""
    ran = frame[frame["n"] > 0]
    shown, verdict = "nothing was run.", ""
    if len(ran):
        made = [results[run] for run in ran["run"]]
        images = _span(run.data["train"] for run in made)
        epochs = _span(run.result["config"]["train"]["epochs"] for run in made)
        measured = PROTOCOLS[protocol].format(" and ".join(sorted(set(ran["metric"]))))
        sides = {"×".join(map(str, run.data.get("image_size", ()))) for run in made} - {""}
        pixels = f" of {' or '.join(sorted(sides))} pixels" if sides else ""
        reference = "the plain row" + (
            ", or of a row with WS to WS alone," if ran["against"].nunique() > 2 else ""
        )
        shown = (
            f"ours on {sets(ran)}, {images} training images{pixels} for "
            f"{epochs} epochs, n = {_span(ran['n'])}, {measured}; mean ± sd, and the difference to "
            f"{reference} on equal seeds with its 95 % interval."
        )
        if set(ran["data"]) <= set(EMBEDDED):
            verdict = " Embedded data: a check of the machinery, no verdict."
        elif not any(frame["verdict"]) and frame["difference"].notna().any():
            verdict = " No verdict: it takes five seeds."
    theirs = "The thesis" if frame["thesis"].notna().any() else "As planned"
    remarks = set(frame["remark"])
    every = f" Every row: {remarks.pop()}." if len(remarks) == 1 and any(remarks) else ""
    return (
        f"Table {number}. {entry['title']}. {theirs}: {entry['setting']}. "
        f"Scale {results.scale}: {shown}{verdict}{every} {entry.get('remark', '')}".strip()
    )


def reading(frame: pd.DataFrame) -> str:
    """What a table with verdicts shows, a sentence for each row that others are compared with."""
    decided, sentences = frame[frame["verdict"] != ""], []
    for against, rows in decided.groupby("against", sort=False):
        parts = []
        for verdict in VERDICTS:
            found = rows[rows["verdict"] == verdict]
            named = [f"{row.row} ({rounded(row.difference, '+')})" for row in found.itertuples()]
            if named:
                who = str(len(named)) if verdict == UNDECIDED else ", ".join(named)
                parts.append(f"{who} {'is' if len(named) == 1 else 'are'} {verdict}")
        sentences.append(f"Against {against}, {'; '.join(parts)}.")
    without = (frame["against"] != "").sum() - len(decided)
    if len(decided) and without:
        sentences.append(f"{without} {'row has' if without == 1 else 'rows have'} no verdict yet.")
    return " ".join(sentences)


def sets(ran: pd.DataFrame) -> str:
    return " and ".join(sorted(set(ran["data"])))


def _span(values: Iterable[int]) -> str:
    """``3``, or ``2 to 8``."""
    found = {int(value) for value in values}
    return " to ".join(f"{value:,}" for value in sorted({min(found), max(found)}))


def markdown(columns: pd.DataFrame | Mapping[str, list]) -> str:
    """A frame as a Markdown table, its texts as they are."""
    return pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True)


def latex(text: str) -> str:
    """Text with LaTeX's special characters, and the ones that tables have, escaped."""
    return text.translate(str.maketrans(_LATEX))
