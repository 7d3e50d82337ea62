"""Reports as JSON and as tables. `reports.md` documents the JSON, which is stable for scripts."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from semroute_lab.common.metrics import Estimate

NEEDS = {
    "a bundle": ("threshold",),
    "--fit or --cross-fit": ("similarity", "factorization", "clusters", "intent"),
    "--judge": ("judge",),
}
"""Option to the strategies whose rows it adds."""

KIND_ROWS_MIN = 10  # Kinds with fewer rows are not in the table
PAIRS_SHOWN = 12  # Most pairs of kinds in a table, the worst; the JSON has all
DECIMALS = 6  # Digits after the point in the JSON: further ones depend on the order of summation


def plain(value: Any) -> Any:
    """A report as JSON values: estimates become objects, NaN and infinities null, floats rounded."""
    if isinstance(value, Estimate):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return round(float(value), DECIMALS) if math.isfinite(value) else None
    return value


def tables(report: dict[str, Any]) -> list[Table]:
    """The tables of a plain report, for a terminal."""
    draw = {"pair": _pair, "intent": _intent, "pool": _pool, "mixed": _mixed, "robustness": _robustness}
    return draw[report["kind"]](report)


def markdown(report: dict[str, Any]) -> str:
    """The tables of a plain report as Markdown, for a card."""
    parts = []
    for table in tables(report):
        columns = [[column.header, "---", *column.cells] for column in table.columns]
        lines = "\n".join(f"| {' | '.join(map(str, row))} |" for row in zip(*columns, strict=True))
        parts.append(f"{table.title}. {table.caption or ''}".rstrip() + f"\n\n{lines}\n")
    return "\n".join(parts)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Table:
    table = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: float | None, digits: int = 3) -> str:
    """`.652` for .652, `1.252` as it is; a dash for an undefined value."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) and digits > 1 else text


def _interval(figure: dict[str, float | None] | None, sign: bool = False) -> str:
    if figure is None or figure["value"] is None:
        return "–"
    value = ("+" if sign and figure["value"] > 0 else "") + _number(figure["value"])
    low, high = figure["low"], figure["high"]
    return value if low is None else f"{value} [{_number(low)}, {_number(high)}]"


def _subject(report: dict[str, Any]) -> str:
    data, bundle = report["data"], report["bundle"]
    with_bundle = f", {bundle['name']} {bundle['version']} ({bundle['revision']})" if bundle else ""
    splits = ", ".join(f"{name} {rows}" for name, rows in data["splits"].items())
    return f"{data['file']}: {data['rows']} rows{f' ({splits})' if splits else ''}{with_bundle}"


def _pair(report: dict[str, Any]) -> list[Table]:
    models, routers = report["models"], report["routers"]
    caption = f"strong {models['strong']:.4f}, weak {models['weak']:.4f}; CPT and drop in percent"
    caption += _judge(report["judge"]) + _missing(routers)
    names = ["router", "APGR", "exact", "CPT20", "CPT50", "CPT80", "drop 10/20/40 %", "APGR − length"]
    rows = [
        [*_pair_cells(row), _interval(row.get("apgr_minus_length"), sign=True)]
        if "apgr" in row
        else [_named(row), *["–"] * 6, f"quality {_number(row['quality'], 4)}"]
        for row in routers
    ]
    found = [_table(_subject(report), names, rows, caption)]
    if report["within_subject"]:
        title = "within subjects: scores standardized by subject"
        found.append(_table(title, names[:-1], map(_pair_cells, report["within_subject"])))
    if labeled := [row for row in routers if "auroc" in row]:
        cells = [[_named(row), _interval(row["auroc"]), _number(row.get("t"))] for row in labeled]
        said = "\n".join(dict.fromkeys(row["note"] for row in labeled if row.get("note")))
        found.append(_table("is the strong model better?", ["router", "AUROC", "t"], cells, said))
    for section, title, columns in (
        ("calibration", "difficulty as a probability",
         {"ece": "ECE", "auroc": "AUROC", "mean": "mean", "rate": "event rate"}),
        ("threshold", "at a threshold chosen on other data",
         {"threshold": "threshold", "strong_share": "strong share", "quality": "quality", "pgr": "PGR"}),
    ):  # fmt: skip
        if figures := report[section]:
            row = [_number(figures.get(name)) for name in columns]
            found.append(_table(title, list(columns.values()), [row]))
    return found


def _named(row: dict[str, Any]) -> str:
    """A row's name, with its strategy unless the name begins with it."""
    kind = row.get("strategy")
    return row["name"] if kind is None or row["name"].startswith(kind) else f"{row['name']} ({kind})"


def _judge(judge: dict[str, Any] | None) -> str:
    """The line of a caption about the judge."""
    if judge is None:
        return ""
    failed = ", ".join(f"{result} {prompts}" for result, prompts in judge["failed"].items())
    without = sum(judge["failed"].values())
    gave = f"; {without} gave no score ({failed}) and were decided by difficulty" if without else ""
    return f"\njudge: {judge['model']}, {judge['asked']} prompts asked{gave}"


def _missing(rows: list[dict[str, Any]]) -> str:
    """The line of a caption about strategies without a row, and the options that add them."""
    there = {row["strategy"] for row in rows}
    needs = {option: [kind for kind in kinds if kind not in there] for option, kinds in NEEDS.items()}
    said = [f"{', '.join(kinds)} ({option})" for option, kinds in needs.items() if kinds]
    return f"\nnot measured: {'; '.join(said)}" if said else ""


def _pair_cells(row: dict[str, Any]) -> list[str]:
    thresholds = [_number(row[f"cpt{q}"]["value"], 1) for q in (20, 50, 80)]
    drops = " / ".join(_number(row[f"drop{c}"]["value"], 1) for c in (10, 20, 40))
    return [_named(row), _interval(row["apgr"]), _interval(row["apgr_exact"]), *thresholds, drops]


def _intent(report: dict[str, Any]) -> list[Table]:
    fit, count = report["fit"], report["rows"]
    how = "cross-fitted in five folds" if fit["cross_fitted"] else f"fitted on {fit['rows']} rows"
    caption = f"{len(report['labels'])} classes, {count['known']} known and {count['ood']} unknown rows; "
    names = ["model", "accuracy", "macro-F1", "ECE", "acc. at 80 %", "− tfidf", "OOD AUROC", "FPR95"]
    rows = []
    for row in report["models"]:
        ood, calibration = row["ood"] or {}, (row["ece"], row["accuracy_at_coverage"]["0.8"])
        cells = [row["name"], _interval(row["accuracy"]), _interval(row["macro_f1"])]
        cells += [*map(_number, calibration), _interval(row["accuracy_minus_tfidf"], sign=True)]
        rows.append([*cells, _interval(ood.get("auroc")), _number(ood.get("fpr95"))])
    return [_table(_subject(report), names, rows, f"{caption}baselines {how}")]


def _pool(report: dict[str, Any]) -> list[Table]:
    names = ["router", "area ± s.e.", "− ZeroRouter ± s.e.", "wins", "area to 50 %", "QNC %", "never", "peak"]
    found = []
    for name, setting in report["settings"].items():
        caption = f"{setting['pool_size']} unseen models, {setting['validation_rows']} validation prompts, "
        caption += f"{report['trials']} trials; cost: {report['cost']}"
        caption += _judge(report["judge"]) + _missing(setting["routers"])
        rows = []
        for row in setting["routers"]:
            gap, area, qnc = row.get("area_minus_zero"), row["area"], row["qnc"]
            cells = [_named(row), f"{_number(area['value'], 4)} ± {_number(area['se'], 4)}"]
            cells.append(f"{gap['value']:+.4f} ± {gap['se']:.4f}" if gap else "–")
            cells.append(f"{gap['wins']}/{report['trials']}" if gap else "–")
            cells += [_number(row["area_half"]["value"], 4), _number(qnc["median"], 1), str(qnc["never"])]
            rows.append([*cells, _number(row["peak"]["value"], 4)])
        found.append(_table(f"{_subject(report)}, {name}", names, rows, caption))
    return found


def _mixed(report: dict[str, Any]) -> list[Table]:
    share, between, outcomes = _number(report["share"], 2), report["between"], report["outcomes"]
    caption = f"above: difficulty from the threshold {_number(report['threshold'], 4)} (share {share}); "
    caption += "strong: above or unknown; longest: the same share of all rows, by length; "
    caption += "ECE as a probability that a strong model is needed, in parentheses by chance"
    names = [
        "rows",
        "characters",
        "difficulty",
        "above",
        "unknown",
        "strong",
        "longest",
        "hard",
        "gain",
        "ECE",
    ]
    shown = [row for row in report["kinds"] if row["rows"] >= KIND_ROWS_MIN] or report["kinds"]
    caption += f"; kinds of fewer than {KIND_ROWS_MIN} rows count in the total alone"
    kinds = map(_group_cells, (*shown, report["total"]))
    title = f"{_subject(report)}, by kind" if "data" in report else "by kind"
    found = [_table(title, ["kind", *names], kinds, caption)]
    if report["languages"]:
        cells = [[*_group_cells(row)[:-2], _interval(row["auroc"])] for row in report["languages"]]
        found.append(_table("by language", ["language", *names[:-2], "AUROC"], cells))
    if between:
        worst = sorted(report["pairs"], key=lambda pair: pair["ours"]["value"])[:PAIRS_SHOWN]
        rows = [
            [pair["hard"], pair["easy"], "{} / {}".format(*pair["rows"]),
             _interval(pair["ours"]), _interval(pair["length"])]
            for pair in worst
        ]  # fmt: skip
        caption = "; ".join(
            f"{name}: mean {_interval(between[name]['mean'])}, least {_number(between[name]['least'])}, "
            f"{between[name]['below_half']} of {between['pairs']} below .5"
            for name in ("ours", "length")
        )
        names = ["hard", "easy", "rows", "AUROC", "of length"]
        found.append(_table(f"AUROC between kinds, the lowest {len(rows)}", names, rows, caption))
    if outcomes:
        rows = [
            [f"{row['name']}, {row['rule']} threshold", _interval(row["apgr"]), _number(row["threshold"], 4),
             _interval(row["strong_share"]), _interval(row["pgr"])]
            for row in outcomes["routers"]
        ]  # fmt: skip
        caption = f"{outcomes['rows']} rows, strong {outcomes['strong']:.4f}, weak {outcomes['weak']:.4f}; "
        caption += f"a following threshold sends the top {share} of these rows, and unknown text"
        if outcomes["spearman"]:
            caption += f"; rank correlation with the models' mean error {_interval(outcomes['spearman'])}"
        names = ["router", "APGR", "threshold", "strong share", "PGR"]
        found.append(_table("with outcomes", names, rows, caption))
    return found


def _group_cells(row: dict[str, Any]) -> list[str]:
    def short(name: str, digits: int = 2) -> str:
        return _number((row[name] or {"value": None})["value"], digits)

    ece = "–" if row["ece"] is None else f"{_number(row['ece'])} ({_number(row['ece_if_calibrated'])})"
    cells = [row["name"] or "–", str(row["rows"]), short("characters", 0), _interval(row["score"])]
    cells += [short("above"), short("unknown"), _interval(row["strong_share"]), short("longest")]
    return [*cells, short("hard"), short("gain", 3), ece]


def _robustness(report: dict[str, Any]) -> list[Table]:
    caption = f"difficulty threshold {report['threshold']:.4f}, "
    caption += f"strong share {report['strong_share']:.3f} before"
    names = ["perturbation", "changed", "same domain", "same decision", "strong → weak", "weak → strong"]
    flips = ("same_domain", "same_decision", "hard_to_easy", "easy_to_hard")
    found = [_table(_subject(report), [*names, "same by length"], [], caption)]
    rows = report["perturbations"]
    if rows[0]["auroc"]:
        names = ["perturbation", "AUROC", "hard to strong", "easy to strong"]
        found.append(_table("by the column hard", names, []))
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        ends = following is not None and following["group"] != row["group"]
        changed, length = (_number(row[key]["value"], 2) for key in ("changed", "length_same_decision"))
        cells = [changed, *(_interval(row[key]) for key in flips), length]
        found[0].add_row(row["name"], *cells, end_section=ends)
        for table in found[1:]:
            cells = [_interval(row[key]) for key in ("auroc", "hard_strong", "easy_strong")]
            table.add_row(row["name"], *cells, end_section=ends)
    return found
