"""Result files to tables and statistics. No number of ours comes from anywhere else.

``tables.yaml`` says which run stands in which row, and what the thesis reported there. A row's mean
and standard deviation are over its seeds; its difference is against the table's plain row, paired
on equal seeds. A verdict takes real data and at least five pairs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from study.files import root, write_json, write_text
from study.plan.config import SCALES
from study.results.files import EMBEDDED, of_seeds, older_code, read_curves, read_result
from study.results.statistics import LEVEL, PAIRS_FOR_VERDICT, holm, paired, roughness
from wexlib.names import choose

PROTOCOLS = {
    "test_last": "test accuracy at the last epoch",
    "test_best_epoch": "test accuracy at the best epoch on the test set (the thesis's protocol)",
}

_TABLE_KEYS = ("title", "setting", "remark", "curves", "scales", "rows")
_ROW_KEYS = ("row", "run", "thesis", "plain", "ours", "remark")


def read_tables(path: Path, runs: Sequence[str] | Mapping | None = None) -> dict[str, dict]:
    """``tables.yaml``, checked; with ``runs``, every run that it names must be one of them.

    Raises:
        ValueError: one sentence that names the table and the row.
    """
    from ruamel.yaml import YAML

    tables = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    for number, table in tables.items():
        for key in table:
            choose(key, _TABLE_KEYS, f"key in table {number}:")
        for name in table.get("scales", ()):
            choose(name, SCALES, f"scale of table {number}:")
        for i, row in enumerate(table["rows"], 1):
            place = f"table {number}, row {i}"
            for key in row:
                choose(key, _ROW_KEYS, f"key in {place}:")
            if "row" not in row or not row.keys() & {"run", "thesis"}:
                raise ValueError(f"{place}: expected a row's name and a run or what the thesis had")
            if "run" in row and runs is not None:
                choose(row["run"], runs, f"run in {place}:", summary="a run of params.yaml")
        if sum(row.get("plain", False) for row in table["rows"]) != 1:
            raise ValueError(f"table {number}: expected exactly one row with plain: true")
    return tables


def table(
    number: str,
    scale: str,
    protocol: str = "test_last",
    home: Path | None = None,
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """One table as a frame, a row for each of the thesis's and of ours; of ``seeds``, if given.

    Columns: row, run, data, thesis, mean, sd, n, difference, low, high, p, p_holm, verdict, gap,
    roughness, parameters, status, remark. Accuracies and differences are in percent and percentage
    points. ``gap`` is training minus validation accuracy after the last epoch, ``roughness``
    that of the validation accuracy's curve (:func:`roughness`); both are means over seeds, and NaN
    where a scale has no validation split.
    """
    choose(protocol, PROTOCOLS, "protocol")
    home = home or root()
    tables = read_tables(home / "tables.yaml")
    rows = tables[choose(number, tables, "table")]["rows"]
    results = {
        row["run"]: of_seeds(read_result(scale, row["run"], home), seeds)
        for row in rows
        if "run" in row
    }
    scores = {
        run: dict(zip(result["seeds"], result[protocol], strict=True))
        for run, result in results.items()
        if result and "not_run" not in result
    }
    plain = next(row["run"] for row in rows if row.get("plain"))
    frame = pd.DataFrame([_row(row, results, scores, plain, home) for row in rows])
    frame["p_holm"] = holm(list(frame["p"]))
    real = {run for run in scores if results[run]["data"]["dataset"] not in EMBEDDED}
    frame["verdict"] = [
        _verdict(row) if row.run in real and row.pairs >= PAIRS_FOR_VERDICT else ""
        for row in frame.itertuples()
    ]
    columns = "row run data thesis mean sd n difference low high p p_holm verdict gap roughness"
    return frame[[*columns.split(), "parameters", "status", "remark"]]


def _row(row: dict, results: dict, scores: dict, plain: str, home: Path) -> dict:
    nan, run = math.nan, row.get("run", "")
    thesis = row.get("thesis", nan)
    found = {
        "row": row["row"],
        "run": run,
        "data": "",
        "thesis": sum(thesis) / len(thesis) if isinstance(thesis, list) else thesis,
        "mean": nan,
        "sd": nan,
        "n": 0,
        "gap": nan,
        "roughness": nan,
        "parameters": nan,
        "status": "",
        **paired({}, {}),
    }
    remarks = ["ours"] if row.get("ours") else []
    remarks += [row["remark"]] if "remark" in row else []
    if isinstance(thesis, list):
        remarks.append(f"thesis: {', '.join(f'{x:.2f}' for x in thesis)}")
    result = results.get(run)
    if run in scores:
        values = list(scores[run].values())
        found |= {
            "data": result["data"]["dataset"],
            "mean": sum(values) / len(values),
            "n": len(values),
            "sd": pd.Series(values).std() if len(values) > 1 else nan,
            "parameters": result["parameters"],
        }
        if result["data"]["validation"]:
            pairs = zip(result["train_last"], result["validation_last"], strict=True)
            curves = read_curves(result["scale"], [run], home)
            curves = curves[curves["seed"].isin(result["seeds"])].groupby("seed")
            rough = curves["validation_accuracy"].agg(lambda curve: roughness(list(curve)))
            found |= {"gap": sum(a - b for a, b in pairs) / len(values), "roughness": rough.mean()}
        # Results that were made before the scale's data were changed are no pairs.
        if run != plain and plain in scores and result["data"] == results[plain]["data"]:
            found |= paired(scores[run], scores[plain])
        if older := older_code(result, home):
            remarks.append(older)
    elif run:
        found["status"] = f"not run: {result['not_run']}" if result else "not run yet"
    return found | {"remark": "; ".join(remarks)}


def _verdict(row) -> str:
    if math.isnan(row.p_holm):
        return ""
    if row.p_holm >= LEVEL:
        return "undecided"
    return "higher" if row.difference > 0 else "lower"


def caption(number: str, frame: pd.DataFrame, scale: str, protocol: str = "test_last") -> str:
    """What a table shows: scale, data, epochs, number of seeds, protocol, and what to know."""
    entry = read_tables(root() / "tables.yaml")[number]
    ran = frame[frame["n"] > 0]
    shown, verdict = "nothing was run.", ""
    if len(ran):
        made = [read_result(scale, run) for run in ran["run"]]
        images = _span(result["data"]["train"] for result in made)
        epochs = _span(result["config"]["train"]["epochs"] for result in made)
        shown = (
            f"ours on {' and '.join(sorted(set(ran['data'])))}, {images} training images for "
            f"{epochs} epochs, n = {_span(ran['n'])}, {PROTOCOLS[protocol]}; mean ± sd, and the "
            "difference to the plain row with its 95 % interval."
        )
        if not any(frame["verdict"]):
            verdict = " No verdict: it takes real data and five seeds."
    theirs = "The thesis" if frame["thesis"].notna().any() else "Ours"
    remarks = set(frame["remark"])
    every = f" Every row: {remarks.pop()}." if len(remarks) == 1 and any(remarks) else ""
    return (
        f"Table {number}. {entry['title']}. {theirs}: {entry['setting']}. "
        f"Scale {scale}: {shown}{verdict}{every} {entry.get('remark', '')}".strip()
    )


def _span(values: Iterable[int]) -> str:
    """``3``, or ``2 to 8``."""
    found = {int(value) for value in values}
    return " to ".join(f"{value:,}" for value in sorted({min(found), max(found)}))


def number(x: float, sign: str = "") -> str:
    """Two decimals, a minus that is one, and a dash for NaN."""
    return "–" if math.isnan(x) else f"{x:{sign}.2f}".replace("-", "−")


def p_value(p: float) -> str:
    """Three decimals, and what they would round to nothing as such."""
    return "–" if math.isnan(p) else f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def difference(row) -> str:
    """A row's difference with its interval, if it has one."""
    interval = "" if math.isnan(row.low) else f" [{number(row.low)}, {number(row.high)}]"
    return number(row.difference, "+") + interval


def readable(frame: pd.DataFrame, *, curves: bool = False) -> pd.DataFrame:
    """The frame for a reader: rounded, dashes where there is nothing.

    ``curves`` shows the gap and the roughness too; the thesis's column goes where it has nothing.
    """

    def ours(row) -> str:
        if row.status:
            return row.status
        if not row.n:
            return "–"
        return number(row.mean) + ("" if math.isnan(row.sd) else f" ± {row.sd:.2f}")

    rows = list(frame.itertuples())
    shown = {"row": [row.row for row in rows]}
    if frame["thesis"].notna().any():
        shown["thesis (%)"] = ["–" if math.isnan(r.thesis) else f"{r.thesis:.6g}" for r in rows]
    shown |= {
        "ours (%)": [ours(row) for row in rows],
        "n": [str(row.n) if row.n else "–" for row in rows],
        "difference": [difference(row) for row in rows],
    }
    if curves:
        shown["gap (points)"] = [number(row.gap, "+") for row in rows]
        shown["roughness (points)"] = [number(row.roughness) for row in rows]
    if any(frame["verdict"]):
        shown["p (Holm)"] = [p_value(row.p_holm) for row in rows]
        shown["verdict"] = [row.verdict or "–" for row in rows]
    # What is to be said of every row, the caption says.
    remarks = {} if frame["remark"].nunique() == 1 else {"remark": [row.remark for row in rows]}
    return pd.DataFrame(shown | remarks)


def _shown(
    number: str, scale: str, protocol: str, seeds: Sequence[int] | None = None, runs: str = ""
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """A table's frame, the same for a reader, and its caption."""
    frame = table(number, scale, protocol, seeds=seeds)
    frame = frame[frame["run"].str.contains(runs)]
    curves = read_tables(root() / "tables.yaml")[number].get("curves", False)
    return frame, readable(frame, curves=curves), caption(number, frame, scale, protocol)


def show(
    number: str,
    scale: str,
    protocol: str = "test_last",
    *,
    seeds: Sequence[int] | None = None,
    runs: str = "",
    others: bool = False,
) -> str:
    """A table with its caption as Markdown.

    Args:
        number: as in ``tables.yaml``.
        scale: whose results are shown.
        protocol: a key of :data:`PROTOCOLS`.
        seeds: these seeds only; all unless given.
        runs: rows whose run matches this regular expression only.
        others: below it, what the other scales have of the same rows.
    """
    _, shown, text = _shown(number, scale, protocol, seeds, runs)
    if shown.empty:
        return f"Table {number} has no row whose run matches {runs!r}."
    text = f"{text}\n\n{shown.to_markdown(index=False, disable_numparse=True)}"
    return text + _beside(number, scale, protocol, seeds, runs) if others else text


def _beside(number: str, scale: str, protocol: str, seeds: Sequence[int] | None, runs: str) -> str:
    """A table's rows at every other scale that has results of them, as Markdown; else nothing."""
    columns, names = {}, []
    for other in SCALES:
        frame, shown, _ = _shown(number, other, protocol, seeds, runs)
        if other == scale or not frame["n"].any():
            continue
        data = sorted(set(frame.loc[frame["n"] > 0, "data"]))
        names.append(f"{other}, on {' and '.join(data)}")
        columns |= {f"{other}: {key}": shown[key] for key in ("ours (%)", "n", "difference")}
        rows = shown["row"]
    if not columns:
        return ""
    together = pd.DataFrame({"row": rows} | columns)
    return (
        f"\n\nTable {number} at other scales: {'; '.join(names)}.\n\n"
        f"{together.to_markdown(index=False, disable_numparse=True)}"
    )


def write_tables(scale: str) -> list[str]:
    """Write each table as ``results/<scale>/tables/table_6_2.{csv,md,tex}``; return their names."""
    tables = read_tables(root() / "tables.yaml")
    numbers = [number for number, entry in tables.items() if scale in entry.get("scales", SCALES)]
    for number in numbers:
        stem = root() / "results" / scale / "tables" / f"table_{number.replace('.', '_')}"
        frame, shown, text = _shown(number, scale, "test_last")
        write_text(stem.with_suffix(".csv"), frame.to_csv(index=False, lineterminator="\n"))
        write_text(stem.with_suffix(".md"), f"{show(number, scale)}\n")
        latex = shown.drop(columns="remark", errors="ignore").map(_latex)
        latex.columns = [_latex(column) for column in latex.columns]
        write_text(
            stem.with_suffix(".tex"),
            latex.to_latex(
                index=False,
                caption=_latex(text),
                label=f"tab:{stem.name}",
                column_format="l" + "r" * (latex.shape[1] - 1),
            ),
        )
    return numbers


def _latex(text: str) -> str:
    for plain, escaped in {
        "\\": r"\textbackslash{}",
        "%": r"\%",
        "_": r"\_",
        "&": r"\&",
        "#": r"\#",
        "±": r"$\pm$",
        "−": r"$-$",
        "–": "--",
        "×": r"$\times$",
    }.items():
        text = text.replace(plain, escaped)
    return text


def write_summary(scale: str) -> dict:
    """``results/<scale>/summary.json``, what ``dvc metrics`` and ``dvc exp show`` show.

    The mean test accuracy at the last epoch: the playground's, and of each run in a table that the
    thesis reported.
    """
    tables = read_tables(root() / "tables.yaml")
    runs = dict.fromkeys(["playground"])
    for entry in tables.values():
        runs |= dict.fromkeys(r["run"] for r in entry["rows"] if "run" in r and "thesis" in r)
    summary = {}
    for run in runs:
        result = read_result(scale, run)
        if result and "test_last" in result:
            summary[run] = round(sum(result["test_last"]) / len(result["test_last"]), 2)
    write_json(root() / "results" / scale / "summary.json", summary)
    return summary
