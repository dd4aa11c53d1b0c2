"""Result files to tables. No number of ours comes from anywhere else.

``tables.yaml`` says which run stands in which row, and what the thesis reported there. A row's mean
and standard deviation are over its seeds; its difference is its contrast with the table's plain row
(:mod:`study.results.contrasts`). A verdict takes real data and at least five pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from study.files import read_yaml, root, write_json, write_text
from study.plan import SCALES, keys
from study.results.contrasts import NONE, VERDICTS, decide, estimate, pair
from study.results.files import EMBEDDED, Results, Run, largest_first
from study.results.measures import gap, rough
from study.results.text import PROTOCOLS, caption, latex, markdown, readable, reading, sets
from wexlib.names import choose

#: What a row shows of its run.
_NUMBERS = ("mean", "sd", "pixels", "gap", "roughness", "parameters", "seconds")
#: What a row without real data has for them.
_UNREAL = {"", *EMBEDDED}


def _reported(value: object, key: str) -> object:
    """What the thesis reported: a percentage, or a list of several."""
    percent = keys.number(0, 100)
    return (keys.list_of(percent) if isinstance(value, list) else percent)(value, key)


_TABLE = {
    "title": keys.text,
    "setting": keys.text,
    "remark": keys.text,
    "curves": keys.flag,
    "cost": keys.flag,
    "scales": keys.list_of(keys.one_of(*SCALES)),
    "rows": keys.list_of(keys.mapping),
}
_ROW = {
    "row": keys.text,
    "run": keys.text,
    "thesis": _reported,
    "plain": keys.flag,
    "ours": keys.flag,
    "remark": keys.text,
}


def read_tables(path: Path, runs: Sequence[str] | Mapping | None = None) -> dict[str, dict]:
    """``tables.yaml``, checked; with ``runs``, every run that it names must be one of them.

    Raises:
        ValueError: one sentence that names the table and the row.
    """
    tables = keys.mapping(read_yaml(path, pure=False), "tables.yaml")
    for number, table in tables.items():
        needed = ("title", "setting", "rows")
        tables[number] = table = keys.checked(table, _TABLE, f"table {number}", needed)
        for i, row in enumerate(table["rows"], 1):
            place = f"table {number}, row {i}"
            keys.checked(row, _ROW, place)
            if "row" not in row or not row.keys() & {"run", "thesis"}:
                raise ValueError(f"{place}: expected a row's name and a run or what the thesis had")
            if "run" in row and runs is not None:
                choose(row["run"], runs, f"run in {place}:", summary="a run of runs.yaml")
        if ["run" in row for row in table["rows"] if row.get("plain")] != [True]:
            raise ValueError(
                f"table {number}: expected exactly one row with plain: true, and a run"
            )
    return tables


def table(
    number: str,
    scale: str,
    protocol: str = "test_last",
    home: Path | None = None,
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """One table as a frame, a row for each of the thesis's and of ours; of ``seeds``, if given.

    Columns: row, run, data, thesis, mean, sd, n, against, pairs, difference, low, high, p, p_holm,
    p_equivalence, verdict, gap, roughness, parameters, seconds, metric, pixels, status, remark.
    ``mean`` is of the metric, accuracy or mean IoU, in percent. ``against`` is the row that a
    difference, in percentage points, is to, on so many ``pairs`` of seeds: the plain row, or, of a
    row with weight standardization, the row with nothing else. ``gap`` is training minus validation
    accuracy after the last epoch, ``roughness`` that of the validation accuracy's curve
    (:func:`study.results.statistics.roughness`); both are means over seeds, and NaN where a scale
    has no validation split. ``seconds`` is the time of a seed, with real data, ``pixels`` the
    accuracy of a segmentation's pixels.
    """
    choose(protocol, PROTOCOLS, "protocol")
    home = home or root()
    tables = read_tables(home / "tables.yaml")
    entry = tables[choose(number, tables, "table")]
    return _frame(entry, Results(scale, home, seeds), protocol)


def _frame(entry: dict, results: Results, protocol: str) -> pd.DataFrame:
    runs = [row.get("run", "") for row in entry["rows"]]
    references = _references(entry, results)

    def score(made: Run) -> dict[int, float]:
        return made.last(protocol)

    contrasts = [
        estimate(pair(run, reference), results, score, family=len(runs) - 1) if reference else NONE
        for run, reference in zip(runs, references, strict=True)
    ]
    decided = decide(pd.DataFrame(contrasts), every=True).drop(columns=["data", "real"])
    decided = decided.rename(columns={"n": "pairs"})
    # Why a row has no verdict, its status and the caption say.
    decided["verdict"] = decided["verdict"].where(decided["verdict"].isin(VERDICTS), "")
    names = {row.get("run", ""): row["row"] for row in reversed(entry["rows"])}
    decided["against"] = [names[reference] if reference else "" for reference in references]
    rows = pd.DataFrame([_row(row, results, protocol) for row in entry["rows"]])
    columns = (
        "row run data thesis mean sd n against pairs difference low high p p_holm p_equivalence "
        "verdict gap roughness parameters seconds metric pixels status remark"
    )
    return rows.join(decided).reindex(columns=columns.split())


def _references(entry: dict, results: Results) -> list[str]:
    """The run that each row's difference is to: the plain row's, or, of a row with weight
    standardization, that of the row with nothing else, where the table has both."""
    plain = next(row["run"] for row in entry["rows"] if row.get("plain"))
    runs = [row.get("run", "") for row in entry["rows"]]
    settings = {run: _settings(results[run]) for run in runs if run and results[run]}
    bare = settings.get(plain, {})
    standardized = next(
        (run for run, we in settings.items() if we == bare | {"standardize": True} != bare), ""
    )
    found = []
    for run in runs:
        with_ws = standardized not in ("", run) and settings.get(run, {}).get("standardize")
        reference = standardized if with_ws else plain
        found.append(reference if run not in ("", plain) else "")
    return found


def _settings(run: Run) -> dict:
    return run.result["config"].get("we", {})


def _row(row: dict, results: Results, protocol: str) -> dict:
    """What a row shows beside its difference: what ``tables.yaml`` says, and its run's means."""
    nan, run, thesis = math.nan, row.get("run", ""), row.get("thesis", math.nan)
    remarks = ["ours"] if row.get("ours") else []
    remarks += [row["remark"]] if "remark" in row else []
    if isinstance(thesis, list):
        remarks.append(f"thesis: {', '.join(f'{x:.2f}' for x in thesis)}")
    made = results[run] if run else None
    if made:
        remarks += filter(None, [results.older_code(run)])
    return {
        "row": row["row"],
        "run": run,
        "thesis": sum(thesis) / len(thesis) if isinstance(thesis, list) else thesis,
        "data": "",
        "metric": "",
        "n": 0,
        **dict.fromkeys(_NUMBERS, nan),
        "status": results.status(run) if run else "",
        "remark": "; ".join(remarks),
        **(_means(made, protocol) | {"seconds": results.seconds(run)} if made else {}),
    }


def _means(run: Run, protocol: str) -> dict:
    """A run's mean and standard deviation over seeds, and what else a row shows of it."""
    values = list(run.last(protocol).values())
    found = {
        "data": run.dataset,
        "metric": run.metric,
        "mean": sum(values) / len(values),
        "sd": pd.Series(values).std() if len(values) > 1 else math.nan,
        "n": len(values),
        "parameters": run.result["parameters"],
    }
    if run.metric == "mean IoU":
        pixels = run.curve("test_accuracy").values()
        found["pixels"] = sum(curve[-1] for curve in pixels) / len(pixels)
    if run.data["validation"]:
        gaps = gap(run).values()
        found |= {"gap": sum(gaps) / len(gaps), "roughness": pd.Series(rough(run)).mean()}
    return found


# --- for a reader ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A table at one scale: its frame, the same for a reader, its caption, and what it shows."""

    frame: pd.DataFrame
    readable: pd.DataFrame
    caption: str
    reading: str

    @property
    def markdown(self) -> str:
        parts = (self.caption, markdown(self.readable), self.reading)
        return "\n\n".join(part for part in parts if part)

    @property
    def ran(self) -> bool:
        return bool(self.frame["n"].any())

    @property
    def real(self) -> bool:
        return not set(self.frame["data"]) <= _UNREAL


def _shown(number: str, entry: dict, results: Results, protocol: str, runs: str = "") -> Shown:
    frame = _frame(entry, results, protocol)
    frame = frame[frame["run"].str.contains(runs)]
    return Shown(
        frame,
        readable(frame, curves=entry.get("curves", False), cost=entry.get("cost", False)),
        caption(number, entry, frame, results, protocol),
        reading(frame),
    )


def show(
    number: str,
    scale: str,
    protocol: str = "test_last",
    *,
    seeds: Sequence[int] | None = None,
    runs: str = "",
    others: bool = False,
    home: Path | None = None,
) -> str:
    """A table with its caption as Markdown.

    Args:
        number: as in ``tables.yaml``.
        scale: whose results are shown.
        protocol: a key of :data:`PROTOCOLS`.
        seeds: these seeds only; all unless given.
        runs: rows whose run matches this regular expression only.
        others: what the other scales have of the same rows too. Real data stand first: where
            ``scale`` has none, the table of the largest scale that has; what ``scale`` has of
            embedded data is folded then.
        home: the project's folder; the one around the working folder unless given.
    """
    home = home or root()
    entry = read_tables(home / "tables.yaml")[number]
    tables = {
        each: _shown(number, entry, Results(each, home, seeds), protocol, runs)
        for each in (largest_first(scale) if others else [scale])
    }
    if tables[scale].frame.empty:
        return f"Table {number} has no row whose run matches {runs!r}."
    ran = {each: shown for each, shown in tables.items() if shown.ran}
    real = {each: shown for each, shown in ran.items() if shown.real}
    first = next(iter(real), scale)
    texts = [tables[first].markdown]
    beside = {each: shown for each, shown in real.items() if each != first}
    if beside:
        names = [f"{each}, on {sets(s.frame[s.frame['n'] > 0])}" for each, s in beside.items()]
        columns = {"row": next(iter(beside.values())).readable["row"]}
        for each, shown in beside.items():
            for key in ("ours (%)", "n", "difference"):
                columns[f"{each}: {key}"] = shown.readable[key]
        texts += [f"Table {number} at other scales: {'; '.join(names)}.", markdown(columns)]
    if first != scale and scale in ran and scale not in real:
        summary = f"The same rows on embedded data (scale {scale}): a check of the machinery"
        folded = f"<details><summary>{summary}</summary>"
        texts += [folded, tables[scale].markdown, "</details>"]
    return "\n\n".join(texts)


def write_tables(scale: str) -> list[str]:
    """Write each table as ``results/<scale>/tables/table_6_2.{csv,md,tex}``; return their names."""
    results = Results(scale)
    tables = {
        number: entry
        for number, entry in read_tables(root() / "tables.yaml").items()
        if scale in entry.get("scales", SCALES)
    }
    for number, entry in tables.items():
        stem = results.folder / "tables" / f"table_{number.replace('.', '_')}"
        shown = _shown(number, entry, results, "test_last")
        write_text(stem.with_suffix(".csv"), shown.frame.to_csv(index=False, lineterminator="\n"))
        write_text(stem.with_suffix(".md"), f"{shown.markdown}\n")
        cells = shown.readable.drop(columns="remark", errors="ignore").map(latex)
        text = cells.rename(columns=latex).to_latex(
            index=False,
            caption=latex(shown.caption),
            label=f"tab:{stem.name}",
            column_format="l" + "r" * (cells.shape[1] - 1),
        )
        write_text(stem.with_suffix(".tex"), text)
    return list(tables)


def write_summary(scale: str) -> dict:
    """``results/<scale>/summary.json``: the mean test accuracy at the last epoch, in percent.

    Of each run in a table that the thesis reported; ``dvc metrics`` and ``dvc exp show`` show it.
    """
    results, summary = Results(scale), {}
    for entry in read_tables(root() / "tables.yaml").values():
        for row in entry["rows"]:
            if "thesis" in row and "run" in row and (run := results[row["run"]]):
                scores = run.result["test_last"]
                summary[row["run"]] = round(sum(scores) / len(scores), 2)
    write_json(results.folder / "summary.json", summary)
    return summary
