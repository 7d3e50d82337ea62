"""Figures of a report, as PNG and SVG: safe for color-blind readers, labeled in place.

Needs matplotlib (extra `train`). Everything is drawn from the plain report. Colors: Okabe and Ito (2008).
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLUMN_INCHES, PAGE_INCHES = 3.4, 7.0  # Width of one column of a two-column page, and of both
GREY, INK, PALE = "#8a8a8a", "#222222", "#dddddd"
OWN = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#7B3294")  # Colors of the rows that a figure is about
REFERENCES = {"random": GREY, "length": "#D55E00", "oracle": INK}  # Rows beside every strategy of a pair
FIXED = {"ZeroRouter": GREY, "oracle": INK}  # Rows beside every strategy of a pool
DASHES = {"random": (4, 2), "ZeroRouter": (4, 2), "oracle": (1, 1.2)}
DARK = {
    "#ffffff": "#0d1117",
    INK: "#e6edf3",
    GREY: "#9198a1",
    PALE: "#3d444d",
    "#0072b2": "#58a6ff",
    "#d55e00": "#ff8f40",
    "#009e73": "#2fc79a",
    "#7b3294": "#c38be0",
}
"""Color in light mode to color in dark mode; others are the same in both."""

STYLE: dict[str, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "font.family": "DejaVu Sans",
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 7.5),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 7),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    "lines.linewidth": 1.2,
    "svg.hashsalt": "semroute",
}
SMALL: dict[str, Any] = {"fontsize": 6}  # A note within a panel

Report = dict[str, Any]
Lines = Mapping[str, tuple[Any, Any]]  # Name of a row to the x and y of its curve


def draw(report: Report, directory: Path) -> list[Path]:
    """Draw the figures of a plain report into `directory`; returns the files, PNG and SVG of each."""
    import matplotlib as mpl

    directory.mkdir(parents=True, exist_ok=True)
    stem = report["data"]["file"].split(".")[0]
    kinds = {"pair": _pair, "intent": _intent, "pool": _pool, "mixed": _mixed, "robustness": _robustness}
    written: list[Path] = []
    with mpl.rc_context(STYLE):
        for name, figure in kinds[report["kind"]](report).items():
            png, svg = (directory / f"{name}_{stem}.{suffix}" for suffix in ("png", "svg"))
            figure.savefig(png, dpi=300, metadata={"Software": None})
            svg.write_text(as_svg(figure), encoding="utf-8")
            written += [png, svg]
    return written


def as_svg(figure: Any) -> str:
    """A figure as SVG that follows the reader's dark mode; call it within `STYLE`."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
    # matplotlib writes colors into style attributes, which only an `!important` rule overrides.
    rules = "\n".join(
        f'[style*="{what}: {light}"] {{{what}: {dark} !important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    return text.replace("</style>", f"\n@media (prefers-color-scheme: dark) {{\n{rules}\n}}</style>", 1)


def _panels(colors: Mapping[str, str], left: Lines, right: Lines, bold: Sequence[str] = ()) -> Any:
    """A page-wide figure with two panels of curves in percent; `bold` rows are in front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE_INCHES, 2.6), layout="constrained")
    panels = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    for axes, lines in zip(panels, (left, right), strict=True):
        for name, (x, y) in lines.items():
            front = name in bold
            dashes = {"dashes": DASHES[name]} if name in DASHES else {}
            axes.plot(x, y, color=colors[name], lw=1.7 if front else 1.0, zorder=3 + front, **dashes)
        _percent(axes, "xy")
        axes.set_xlim(0, 1)
    return (figure, *panels)


def _percent(axes: Any, which: str) -> None:
    """Ticks of some axes in percent."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for letter in which:
        axis = getattr(axes, f"{letter}axis")
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %".replace("-", "−")))


def _key(axes: Any, entries: Sequence[tuple[str, str]], colors: Mapping[str, str]) -> None:
    """A legend without a box: colored names with their figures, stacked in the lower right corner."""
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "zorder": 10}
    for i, (name, figure) in enumerate(entries[::-1]):
        text, style = f"{name}  {figure}".rstrip(), {"color": colors[name], "ha": "right", "va": "bottom"}
        axes.annotate(text, (0.99, 0.03), (0, i * 9.0), **place, **style)


def _lower(axes: Any, share: float) -> None:
    """Extend the y axis downward by a share of its span, to make room for the key."""
    bottom, ceiling = axes.get_ylim()
    axes.set_ylim(bottom - share * (ceiling - bottom), ceiling)


def _short(value: float) -> str:
    return f"{value:.3f}".lstrip("0")


def _pair(report: Report) -> dict[str, Any]:
    kinds = dict.fromkeys(row["strategy"] for row in report["routers"] if "apgr" in row and row["strategy"])
    return {f"pair_{kind}": pair_strategy(report, kind) for kind in kinds}


def pair_strategy(
    report: Report, kind: str, published: Sequence[tuple[float, float]] = (), source: str = ""
) -> Any:
    """One kind of strategy next to a random router, length and the oracle, from a plain pair report.
    Left: quality by strong share. Right: the gap recovered beyond a random router. `published` are points
    (strong share, share of the gap recovered) from `source`.
    """
    curves, weak, strong = report["curves"], report["models"]["weak"], report["models"]["strong"]
    share, gap = np.asarray(curves["strong_share"]), strong - weak
    rows = {row["name"]: row for row in report["routers"] if "apgr" in row}
    own = [name for name, row in rows.items() if row["strategy"] == kind and name != "random"]
    colors = REFERENCES | dict(zip(own, OWN, strict=False))
    quality = {name: np.asarray(curves["quality"][name]) for name in colors}
    lift = {name: (share, (y - weak) / gap - share) for name, y in quality.items() if name != "oracle"}
    figure, left, right = _panels(colors, {name: (share, y) for name, y in quality.items()}, lift, own)
    left.axhline(strong, color=PALE, lw=0.6, zorder=0)
    left.text(0.99, strong + 0.02 * gap, "always strong", va="bottom", ha="right", color=GREY, **SMALL)
    for name in lift:
        if band := curves["lift_interval"].get(name):
            right.fill_between(share, band["low"], band["high"], color=colors[name], alpha=0.13, lw=0)
    if curves["lift_interval"]:
        note: dict[str, Any] = {"transform": right.transAxes, "ha": "right", "va": "top"}
        right.text(0.99, 0.97, "bands: 95 %", color=GREY, **note, **SMALL)
    for x, recovered in published:
        dot: dict[str, Any] = {"color": OWN[0], "ms": 4.5, "marker": "D", "lw": 0, "zorder": 6}
        left.plot([x], [weak + recovered * gap], **dot)
        right.plot([x], [recovered - x], **dot)
    if kind == "weighted":
        # Weighted routing is a random router; its two ends are the strategy `fixed`.
        colors["random"] = OWN[0]
        place: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
        left.annotate("fixed", (0, weak), (8, -1), color=OWN[0], **place, **SMALL)
        left.plot([0, 1], [weak, strong], color=OWN[0], marker="o", ms=5, zorder=5, clip_on=False)
    # The report calls some rows by other names than their strategy's.
    said = {name: kind for name in ("ours", "random") if rows.get(name, {}).get("strategy") == kind}
    ranked = sorted((name for name in rows if name in colors), key=lambda name: -rows[name]["apgr"]["value"])
    entries = [(said.get(name, name), _short(rows[name]["apgr"]["value"])) for name in ranked]
    inks = {said.get(name, name): colors[name] for name in ranked}
    if published:
        entries.insert(1, (f"◆ {source}", ""))
        inks[f"◆ {source}"] = OWN[0]
    _key(left, entries, inks)
    left.set(xlabel="requests sent to the strong model", ylabel="quality (APGR at right)")
    left.set_ylim(weak - 0.06 * gap, None)
    right.set(xlabel="requests sent to the strong model", ylabel="gap recovered beyond random")
    return figure


def _pool(report: Report) -> dict[str, Any]:
    return {
        f"pool_{name}_{kind}".replace(" ", "_"): pool_strategy(setting, kind)
        for name, setting in report["settings"].items()
        for kind in dict.fromkeys(row["strategy"] for row in setting["routers"] if row["strategy"])
    }


def pool_strategy(setting: Report, kind: str) -> Any:
    """One kind of strategy next to the best fixed mix and the oracle: quality by cost, and beyond the mix."""
    curves, cost = setting["curves"], np.asarray(setting["curves"]["cost"])
    area = {row["name"]: row["area"]["value"] for row in setting["routers"]}
    own = [row["name"] for row in setting["routers"] if row["strategy"] == kind]
    colors = dict(zip(own, OWN, strict=False)) | FIXED
    quality = {name: np.asarray(curves["quality"][name]) for name in colors}
    lift = {name: (cost, y - quality["ZeroRouter"]) for name, y in quality.items() if name != "oracle"}
    figure, left, right = _panels(colors, {name: (cost, y) for name, y in quality.items()}, lift, own)
    _key(left, [(name, _short(area[name])) for name in sorted(colors, key=lambda n: -area[n])], colors)
    _lower(left, 0.25)
    left.set(xlabel="cost, relative to the most expensive model", ylabel="quality (area at right)")
    right.set(xlabel="cost, relative to the most expensive model", ylabel="quality − ZeroRouter")
    return figure


def _intent(report: Report) -> dict[str, Any]:
    """Accuracy by confidence, and on the most confident rows."""
    rows = {row["name"]: row for row in report["models"] if row["name"] in report["reliability"]}
    colors = dict(zip(rows, OWN, strict=False))
    left = {name: (table["confidence"], table["observed"]) for name, table in report["reliability"].items()}
    right = {name: (curve["coverage"], curve["accuracy"]) for name, curve in report["abstention"].items()}
    figure, calibration, abstention = _panels(colors, left, right, ("bundle",))
    calibration.plot([0, 1], [0, 1], color=PALE, lw=0.8, zorder=0)
    for name, points in left.items():
        calibration.plot(*points, ".", color=colors[name], clip_on=False)
    _key(calibration, [(name, f"ECE {row['ece']:.3f}") for name, row in rows.items()], colors)
    _key(abstention, [(name, f"{row['accuracy']['value']:.3f}") for name, row in rows.items()], colors)
    _lower(abstention, 0.45)
    calibration.set(xlabel="confidence", ylabel="accuracy")
    abstention.set(xlabel="rows answered, most confident first", ylabel="accuracy on them (all at right)")
    return {"intent_calibration": figure}


Series = Sequence[tuple[str, Sequence[Any]]]  # Color, and an estimate (or None) of every row


def _dots(names: Sequence[str], panels: Mapping[str, Series]) -> Any:
    """Two panels with a row for each name: estimates as dots with their intervals, in percent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE_INCHES, 0.17 * len(names) + 0.9), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, (label, series) in zip(both, panels.items(), strict=True):
        for color, estimates in series:
            for y, found in enumerate(estimates):
                if found and found["value"] is not None:
                    ends = [found["value"] if found[end] is None else found[end] for end in ("low", "high")]
                    axes.plot(ends, [y, y], color=color, lw=0.9, clip_on=False)
                    axes.plot([found["value"]], [y], color=color, marker="o", ms=3.2, clip_on=False)
        axes.set_xlabel(label)
        _percent(axes, "x")
    both[0].set_yticks(range(len(names)), names)
    both[0].invert_yaxis()
    return figure


def _mixed(report: Report) -> dict[str, Any]:
    """Difficulty, and the share sent to the strong model, by kind and language."""
    groups = [*report["kinds"], *report["languages"]]
    score, sent, longest = ([row[key] for row in groups] for key in ("score", "strong_share", "longest"))
    sides = [(REFERENCES["length"], longest), (OWN[0], sent)]
    panels = {
        "mean difficulty": [(OWN[0], score)],
        "sent to the strong model; red: the same by length": sides,
    }
    return {"mixed": _dots([row["name"] or "–" for row in groups], panels)}


def _robustness(report: Report) -> dict[str, Any]:
    """The share of decisions that each perturbation keeps."""
    rows = report["perturbations"]

    def of(kind: str, group: str | None = None) -> list[Any]:
        return [row[kind] if group in (None, row["group"]) else None for row in rows]

    flips = [(REFERENCES["length"], of("hard_to_easy", "easy")), (OWN[1], of("easy_to_hard", "hard"))]
    said = "same decision; red: strong to weak, green: weak to strong"
    panels = {"same domain": [(OWN[0], of("same_domain"))], said: [(OWN[0], of("same_decision")), *flips]}
    return {"robustness": _dots([row["name"] for row in rows], panels)}
