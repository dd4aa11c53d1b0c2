"""The CSVs of the benchmarks as one Markdown file, speed.md, and as notebooks/speed.ipynb asks."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from study.files import write_text
from wexlib.ops import fused

#: What a notebook says in the place of a table.
MISSING = "Not measured yet: run `make bench` on an idle machine, and this cell shows it."


def spread(frame: pd.DataFrame, name: str, digits: int = 3) -> pd.Series:
    """``median [quartile, quartile]`` of ``<name>`` and its ``_low`` and ``_high``."""
    ends = frame[[name, f"{name}_low", f"{name}_high"]].to_numpy()
    return pd.Series([f"{m:.{digits}f} [{lo:.{digits}f}, {hi:.{digits}f}]" for m, lo, hi in ends])


def ratios(frame: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """Ratios to the plain network, one row a setting and method, one column a form."""
    keys = list(dict.fromkeys(tuple(key) for key in frame[index].to_numpy()))
    frame = frame.assign(shown=spread(frame, "ratio").to_numpy())
    rows = []
    for key in keys:
        part = frame[(frame[index] == list(key)).all(axis=1)]
        control = part[part["form"] == "control"]["shown"].item()
        for method in part["method"].unique():
            mine = part[part["method"] == method].set_index("form")
            if method == "plain":
                continue
            row = dict(zip(index, key, strict=True)) | {"method": method}
            for form in ("folded", "ours", "layer by layer", "naive"):
                if form in set(frame["form"]):
                    row[form] = mine["shown"].get(form, "–")
            row["control"] = control
            if "bar" in part:
                bar = mine["bar"].get("ours")
                row["bar"] = "–" if pd.isna(bar) else f"≤ {bar:.2f}"
                row["met"] = (
                    "–" if pd.isna(bar) else "yes" if mine["ratio"]["ours"] <= bar else "no"
                )
            rows.append(row)
    return pd.DataFrame(rows)


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Title and table of each CSV that is in ``folder``."""
    read = {p.stem: pd.read_csv(p) for p in sorted(Path(folder).glob("*.csv"))}
    shown = {}
    if "train" in read:
        frame = read["train"]
        shown["Training step, ratio to plain"] = ratios(
            frame, ["device", "precision", "memory_format", "batch", "way"]
        )
        plain = frame[frame["form"] == "plain"].reset_index(drop=True)
        shown["A plain training step"] = plain[
            ["device", "precision", "memory_format", "batch", "way"]
        ].assign(ms=spread(plain, "ms", 2), tflops=plain["tflops"].round(2))
    if "launches" in read:
        shown["What a training step launches"] = (
            read["launches"]
            .pivot_table(
                index=["device", "counted", "method", "way"],
                columns="form",
                values=["kernels", "loops", "host"],
                sort=False,
                dropna=False,
            )
            .dropna(how="all")
            .pipe(_flat)
        )
    if "exact" in read:
        frame = read["exact"]
        met = frame[["forward", "gradient"]].max(axis=1) <= frame["bar"]
        shown["Worst deviation from a CPU's float64"] = frame[
            ["device", "method", "dtype", "shapes"]
        ].assign(
            **{name: frame[name].map("{:.1e}".format) for name in ("forward", "gradient", "bar")},
            met=met.map({True: "yes", False: "no"}),
        )
    if "bits" in read:
        columns = ["device", "method", "what", "steps", "apart", "numbers"]
        shown["Numbers of a trained model that differ in a bit"] = read["bits"][columns]
    if "inference" in read:
        shown["Inference, ratio to plain"] = ratios(read["inference"], ["device", "batch"])
    if "passes" in read:
        wide = read["passes"].pivot_table(
            index=["memory_format", "method", "way"], columns="form", values=["passes"], sort=False
        )["passes"]
        floor = read["passes"].groupby(["memory_format", "method", "way"], sort=False)["floor"]
        shown["Passes over the weight"] = wide.assign(floor=floor.first()).round(1).reset_index()
    if "memory" in read:
        columns = ["device", "batch", "method", "form", "peak_mb", "more_mb", "multiple", "bar"]
        shown["Peak memory of a training step"] = read["memory"][columns].round(2)
    if "cost" in read:
        frame = read["cost"]
        shown["Cost on one backbone"] = frame[["method", "parameters", "flops"]].assign(
            train_ms=_span(frame, "train"), inference_ms=_span(frame, "inference")
        )
    if "scaling" in read:
        frame = read["scaling"]
        shown["Excited weights alone, forward and backward"] = frame[
            ["device", "axis", "value", "method", "form"]
        ].assign(
            ms=spread(frame, "ms"),
            floor_ms=frame["floor_ms"].round(3),
            times_floor=(frame["ms"] / frame["floor_ms"]).round(1),
        )
    if "epoch" in read:
        methods = read["epoch"].groupby(["device", "method"], sort=False)
        total, floor = methods["seconds"].sum(), methods["floor_s"].first()
        shares = read["epoch"].set_index(["device", "method", "part"])["share"]
        wide = (100 * shares.unstack(sort=False)).round(1).fillna("–")
        times = {"seconds": total.round(2), "times_floor": (total / floor).round(2)}
        shown["Where an epoch's time goes, shares in percent"] = wide.assign(**times).reset_index()
    for name, title, key, value in (
        ("recipe", "Choices of a recipe, plain training step, ms", ["device", "choice"], "ms"),
        (
            "allocator",
            "Memory that is freed, training step, ms",
            ["device", "method", "batch", "memory_format", "freed", "pages"],
            "ms",
        ),
        ("loader", "Loaders, images a second", ["device", "loader"], "images_per_s"),
        (
            "loading",
            "Images from disk, a second",
            ["device", "loader", "share", "megabytes"],
            "images_per_s",
        ),
        ("start", "Start of a process, seconds", ["what"], "s"),
        ("compile", "Compiled training step, ms", ["device", "batch", "method", "form"], "ms"),
    ):
        if name in read:
            frame = read[name]
            digits = 0 if name in ("loader", "loading") else 2
            shown[title] = frame[key].assign(**{value: spread(frame, value, digits)})
            if "ratio" in frame:
                shown[title]["ratio"] = spread(frame, "ratio")
            if name == "compile":
                shown[title]["first_step_s"] = frame["first_step_s"].round(1)
    return shown


def _flat(wide: pd.DataFrame) -> pd.DataFrame:
    """Two levels of columns as one, ``kernels ours``; counts without decimals."""
    wide.columns = [" ".join(name) for name in wide.columns]
    shown = wide.map(lambda count: "–" if pd.isna(count) else f"{count:.0f}")
    return shown.loc[:, (shown != "–").any()].reset_index()


def _span(frame: pd.DataFrame, kind: str) -> pd.Series:
    renamed = {f"{kind}_{a}": b for a, b in (("ms", "t"), ("low", "t_low"), ("high", "t_high"))}
    return spread(frame.rename(columns=renamed), "t", 1)


def machines(folder: Path) -> str:
    """What the CSVs in ``folder`` were measured on, a line each; empty where there is none."""
    parts = [
        pd.read_csv(path)[["machine", "torch", "date"]]
        for path in sorted(Path(folder).glob("*.csv"))
    ]
    rows = pd.concat(parts).drop_duplicates().itertuples(index=False) if parts else []
    return "\n".join(f"{machine}, torch {torch}, {date}" for machine, torch, date in rows)


class Measurements:
    """What the CSVs in ``folder`` hold, for a notebook; what is not there is said to be missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.tables = tables(self.folder)
        self.machines = machines(self.folder) or MISSING

    def by_device(self, name: str) -> Iterator[tuple[str, pd.DataFrame]]:
        """Each device with its rows of ``<name>.csv``."""
        path = self.folder / f"{name}.csv"
        if path.is_file():
            yield from pd.read_csv(path).groupby("device", sort=False)

    def table(self, title: str) -> str:
        """A table of ``tables`` as Markdown; what is the same in every row stands above it."""
        if title not in self.tables:
            return MISSING
        frame = self.tables[title]
        same = [name for name in frame if len(frame) > 1 and frame[name].nunique(dropna=False) == 1]
        shown = frame.drop(columns=same).to_markdown(index=False, disable_numparse=True)
        said = "; ".join(f"{name}: {frame[name].iloc[0]}" for name in same)
        return f"In every row: {said}.\n\n{shown}" if said else shown

    def bars(self) -> str:
        """How many bars of a training step are met, and a line for each that is not."""
        table = self.tables.get("Training step, ratio to plain")
        if table is None:
            return MISSING
        barred = table[table["bar"] != "–"]
        lines = [f"{(barred['met'] == 'yes').sum()} of {len(barred)} bars are met."]
        for row in barred[barred["met"] == "no"].itertuples():
            setting = f"{row.method}, batch {row.batch}, {row.memory_format}, {row.precision}"
            setting += "" if row.way == "eager" else f", {row.way}"
            lines.append(f"Not met on {row.device}: {setting}: {row.ours}, the bar is {row.bar}.")
        return "\n".join(lines)

    def added(self) -> str:
        """Milliseconds that each method adds to a plain training step, as Markdown."""
        frames = [rows for _, rows in self.by_device("train")]
        if not frames:
            return MISSING
        train = pd.concat(frames)
        keys = ["device", "memory_format", "precision", "batch", "way"]
        wide = train.assign(key=train["method"] + " " + train["form"])
        wide = wide.pivot_table(index=keys, columns="key", values="ms")
        mine = [name for name in wide if name.endswith(" ours")]
        extra = wide[mine].sub(wide["plain plain"], axis=0).round(1)
        extra.columns = [name.removesuffix(" ours") for name in mine]
        extra["plain step"] = wide["plain plain"].round(1)
        shown = extra.sort_index().reset_index()
        return shown.to_markdown(index=False, disable_numparse=True)


def backward_loop() -> str:
    """The C++ loop of a gated layer's backward pass, for one filter."""
    functions = fused.SOURCE.read_text(encoding="utf-8").split("\n\n")
    return next(function for function in functions if "void dense_backward" in function)


def write_report(folder: Path) -> None:
    """Write ``speed.md`` from the CSVs beside it."""
    lines = ["# Speed", "", "Made by `make bench`. Medians with their quartiles; ratios are to the"]
    lines += ["plain network in the same round; control is a second plain network.", ""]
    lines += [f"- {line}" for line in machines(folder).splitlines()]
    for title, table in tables(folder).items():
        text = table.to_markdown(index=False, disable_numparse=True)
        lines += ["", f"## {title}", "", text]
    write_text(Path(folder) / "speed.md", "\n".join(lines) + "\n")
