"""Figures of a report, as PNG and SVG: safe for color-blind readers, labelled in place.

Needs matplotlib (extra `train`). Everything is drawn from the plain report, so a figure can be redrawn
from its JSON. An SVG follows its reader's preference for a dark page. Colors are those of Okabe and
Ito (2008) and a few more.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLUMN_INCHES = 3.4  # Width of one column of a two-column page
PAGE_INCHES = 7.0  # Width of both columns
CONFUSION_LABELS_MAX = 30  # A confusion matrix of more classes is not drawn: it would not be readable
GREY, INK, PALE = "#8a8a8a", "#222222", "#dddddd"
COLOURS = {
    name: colour
    for colour, names in {
        "#0072B2": ("ours", "bundle", "LearnedMap", "centroid"),
        "#D55E00": ("length", "kNN", "tfidf + logistic"),
        "#009E73": ("domain table", "K-means, shrunk", "logistic"),
        "#CC79A7": ("subject table", "clairvoyant"),
        "#56B4E9": ("similarity", "ridge, refitted"),
        "#E69F00": ("similarity, 200 nearest", "K-means, Laplace"),
        "#7B3294": ("factorization",),
        "#004D40": ("clusters", "K-means, averaged"),
        "#A6761D": ("intent",),
        "#8C564B": ("threshold",),
        "#B22222": ("judge",),
        GREY: ("random", "ZeroRouter"),
        INK: ("oracle",),
    }.items()
    for name in names
}

OWN = ("#0072B2", "#009E73", "#CC79A7", "#E69F00")
"""Colors of a strategy's rows in its own figure."""

REFERENCES = ("random", "length", "oracle")  # Rows in the figure of every strategy of a pair
DASHES = {"random": (4, 2), "ZeroRouter": (4, 2), "oracle": (1, 1.2), "clairvoyant": (5, 1.5, 1, 1.5)}

DARK = {
    "#ffffff": "#0d1117",
    INK: "#e6edf3",
    GREY: "#9198a1",
    PALE: "#3d444d",
    "#e6e6e6": "#2a313c",
    "#0072b2": "#58a6ff",
    "#d55e00": "#ff8f40",
    "#009e73": "#2fc79a",
    "#7b3294": "#c38be0",
    "#004d40": "#4fb8a6",
    "#8c564b": "#c08a7f",
    "#b22222": "#f0736a",
}
"""Color on a white page to color on a dark one; others are the same on both."""

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
DPI = 300

Report = dict[str, Any]


def draw(report: Report, directory: Path) -> list[Path]:
    """Draw the figures of a plain report into `directory`; returns the files, PNG and SVG of each."""
    import matplotlib as mpl

    directory.mkdir(parents=True, exist_ok=True)
    stem = report["data"]["file"].split(".")[0]
    kinds = {"pair": _pair, "intent": _intent, "pool": _pool, "robustness": _robustness}
    written: list[Path] = []
    with mpl.rc_context(STYLE):
        for name, figure in kinds[report["kind"]](report).items():
            png, svg = (directory / f"{name}_{stem}.{suffix}" for suffix in ("png", "svg"))
            figure.savefig(png, dpi=DPI, metadata={"Software": None})
            svg.write_text(as_svg(figure), encoding="utf-8")
            written += [png, svg]
    return written


def as_svg(figure: Any) -> str:
    """A figure as SVG that is dark where its reader prefers dark pages; call it within `STYLE`."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
    # matplotlib writes colors into style attributes, which only an important rule overrides.
    rules = "\n".join(
        f'[style*="{what}: {light}"] {{{what}: {dark} !important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    return text.replace("</style>", f"\n@media (prefers-color-scheme: dark) {{\n{rules}\n}}</style>", 1)


def _figure(height: float, width: float = COLUMN_INCHES) -> Any:
    """An empty figure, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _line(axes: Any, x: Any, y: Any, name: str) -> None:
    """A curve in the color and the dashes of its name; ours is bolder."""
    front = name in ("ours", "bundle", "LearnedMap")
    style: dict[str, Any] = {
        "color": COLOURS.get(name, INK),
        "lw": 1.6 if front else 1.1,
        "zorder": 3 + front,
    }
    if name in DASHES:
        style["dashes"] = DASHES[name]
    axes.plot(x, y, **style)


def _key(axes: Any, entries: Sequence[tuple[str, str]], colours: Mapping[str, str] = COLOURS) -> None:
    """Colored names with a figure each, stacked in the lower right corner: a legend without a box."""
    for i, (name, figure) in enumerate(entries[::-1]):
        axes.annotate(
            f"{name}  {figure}".rstrip(),
            (0.99, 0.03),
            xycoords="axes fraction",
            zorder=10,
            xytext=(0, i * 9.0),
            textcoords="offset points",
            ha="right",
            va="bottom",
            color=colours.get(name, INK),
            fontweight="bold" if name in ("ours", "bundle") else "normal",
        )


def _bands_note(axes: Any, bands: object) -> None:
    if bands:
        place: dict[str, Any] = {"xycoords": "axes fraction", "ha": "right", "va": "top"}
        axes.annotate("bands: 95 %", (0.99, 0.97), color=GREY, **place, **SMALL)


def _band(axes: Any, share: Any, band: dict[str, Any] | None, colour: str) -> None:
    if band is not None:
        axes.fill_between(share, band["low"], band["high"], color=colour, alpha=0.13, lw=0)


def _percent(axes: Any, which: str = "xy", symbol: str = " %") -> None:
    """Ticks of some axes in percent."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for letter in which:
        axis = getattr(axes, f"{letter}axis")
        axis.set_major_locator(MaxNLocator(nbins=6 if symbol else 4, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{100 * value:.3g}{symbol}".replace("-", "−"))
        )


def _more_room(axes: Any, share: float) -> None:
    """Lower the lower end of the y axis by a share of its span, for the key."""
    bottom, ceiling = axes.get_ylim()
    axes.set_ylim(bottom - share * (ceiling - bottom), ceiling)


def _apgr(row: Report) -> float:
    return float(row["apgr"]["value"])


def _pair(report: Report) -> dict[str, Any]:
    figure = _figure(4.3)
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=(1.15, 1.0))
    curves, models = report["curves"], report["models"]
    share = np.asarray(curves["strong_share"])
    gap = models["strong"] - models["weak"]
    rows = {row["name"]: row for row in report["routers"] if "apgr" in row}
    for name, quality in curves["quality"].items():
        _line(top, share, quality, name)
    for q in (0.5, 0.8):
        level = models["weak"] + q * gap
        top.axhline(level, color=PALE, lw=0.6, zorder=0)
        # Right of the oracle's rise and above the quality of a learned router at that share.
        x = rows["oracle"][f"cpt{100 * q:.0f}"]["value"] / 100 + 0.03
        above: dict[str, Any] = {"xytext": (0, 1.5), "textcoords": "offset points"}
        top.annotate(f"CPT{100 * q:.0f}", (x, level), color=GREY, **above, **SMALL)
    ranked = sorted(rows, key=lambda name: -_apgr(rows[name]))
    _key(top, [(name, f"{_apgr(rows[name]):.3f}") for name in ranked])
    top.set(ylabel="quality (APGR at right)", ylim=(models["weak"] - 0.06 * gap, None))
    _bands_note(low, curves["lift_interval"])
    for name in ("length", "ours"):
        _band(low, share, curves["lift_interval"].get(name), COLOURS[name])
    for name, quality in curves["quality"].items():
        if name != "oracle":
            _line(low, share, (np.asarray(quality) - models["weak"]) / gap - share, name)
    low.set(xlabel="requests sent to the strong model", ylabel="gap recovered beyond random", xlim=(0, 1))
    _percent(low)
    _percent(top, "y")
    kinds = dict.fromkeys(row["strategy"] for row in rows.values() if row["strategy"])
    return {"pair": figure, **{f"pair_{kind}": pair_strategy(report, kind) for kind in kinds}}


def _two_panels(
    shown: Mapping[str, str], own: Sequence[str], x: Any, curves: Mapping[str, tuple[Any, Any]], bold: float
) -> tuple[Any, Any, Any]:
    """A page-wide figure: each shown curve on the left, its lift on the right, but for the oracle."""
    figure = _figure(2.6, PAGE_INCHES)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    for name, colour in shown.items():
        style: dict[str, Any] = {"color": colour, "lw": bold if name in own else 1.0}
        style["zorder"] = 3 + (name in own)
        if name in DASHES:
            style["dashes"] = DASHES[name]
        quality, lift = curves[name]
        left.plot(x, quality, **style)
        if name != "oracle":
            right.plot(x, lift, **style)
    for axes in (left, right):
        _percent(axes)
    return figure, left, right


def pair_strategy(
    report: Report, kind: str, published: Sequence[tuple[float, float]] = (), source: str = ""
) -> Any:
    """One kind of strategy next to a random router, length and the oracle; of a plain pair report.
    On the left quality by strong share, on the right the gap recovered beyond a random router. `published`
    are points (strong share, part of the gap recovered) from `source`.
    """
    curves, models = report["curves"], report["models"]
    share, weak, strong = np.asarray(curves["strong_share"]), models["weak"], models["strong"]
    gap = strong - weak
    rows = {row["name"]: row for row in report["routers"] if "apgr" in row}
    own = [name for name, row in rows.items() if row["strategy"] == kind and name != "random"]
    colours = {name: COLOURS[name] for name in REFERENCES} | dict(zip(own, OWN, strict=False))
    lines = {name: np.asarray(curves["quality"][name]) for name in colours}
    both = {name: (quality, (quality - weak) / gap - share) for name, quality in lines.items()}
    figure, left, right = _two_panels(colours, own, share, both, 1.8)
    left.axhline(strong, color=PALE, lw=0.6, zorder=0)
    left.text(0.99, strong + 0.02 * gap, "always strong", va="bottom", ha="right", color=GREY, **SMALL)
    for name in colours:
        if name != "oracle":
            _band(right, share, curves["lift_interval"].get(name), colours[name])
    for x, recovered in published:
        dot: dict[str, Any] = {"color": OWN[0], "ms": 4.5, "marker": "D", "lw": 0, "zorder": 6}
        left.plot([x], [weak + recovered * gap], **dot)
        right.plot([x], [recovered - x], **dot)
    if kind == "weighted":
        # A mix by weight is a random router, and `fixed` is its two ends.
        colours["random"] = OWN[0]
        place: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
        left.annotate("fixed", (0, weak), (8, -1), color=OWN[0], **place, **SMALL)
        left.plot([0, 1], [weak, strong], color=OWN[0], lw=1.8, zorder=4)
        left.plot([0, 1], [weak, strong], color=OWN[0], marker="o", ms=5, lw=0, zorder=5, clip_on=False)
    # A row with another name in the report has the strategy's name here.
    renamed = {name for name in ("ours", "random") if rows.get(name, {}).get("strategy") == kind}
    ranked = sorted((name for name in rows if name in colours), key=lambda name: -_apgr(rows[name]))
    said = {name: kind if name in renamed else name for name in ranked}
    entries = [(said[name], f"{_apgr(rows[name]):.3f}".lstrip("0")) for name in ranked]
    inks = {said[name]: colours[name] for name in ranked}
    if published:
        entries.insert(1, (f"◆ {source}", ""))
        inks[f"◆ {source}"] = OWN[0]
    _key(left, entries, inks)
    left.set(xlabel="requests sent to the strong model", ylabel="quality (APGR at right)", xlim=(0, 1))
    left.set_ylim(weak - 0.06 * gap, None)
    right.set(xlabel="requests sent to the strong model", ylabel="gap recovered beyond random", xlim=(0, 1))
    _bands_note(right, curves["lift_interval"])
    return figure


def pool_strategy(setting: Report, kind: str) -> Any:
    """One kind of strategy next to the best fixed mix and the oracle; of a setting of a plain pool report.
    On the left quality by cost, on the right the difference to the fixed mix.
    """
    curves, cost = setting["curves"], np.asarray(setting["curves"]["cost"])
    rows = {row["name"]: row for row in setting["routers"]}
    own = [name for name, row in rows.items() if row["strategy"] == kind]
    colours = dict(zip(own, OWN, strict=False)) | {name: COLOURS[name] for name in ("ZeroRouter", "oracle")}
    lines = {name: np.asarray(curves["quality"][name]) for name in colours}
    both = {name: (quality, quality - lines["ZeroRouter"]) for name, quality in lines.items()}
    figure, left, right = _two_panels(colours, own, cost, both, 1.6)
    ranked = sorted(colours, key=lambda name: -rows[name]["area"]["value"])
    _key(left, [(name, f"{rows[name]['area']['value']:.3f}".lstrip("0")) for name in ranked], colours)
    _more_room(left, 0.25)
    expensive = "cost, relative to the most expensive model"
    left.set(xlabel=expensive, ylabel="quality (area at right)", xlim=(0, 1))
    right.set(xlabel=expensive, ylabel="quality − ZeroRouter", xlim=(0, 1))
    return figure


def _intent(report: Report) -> dict[str, Any]:
    figures = {"intent_calibration": _calibration_and_abstention(report)}
    if len(report["labels"]) <= CONFUSION_LABELS_MAX:
        figures["intent_confusion"] = _confusion(report)
    return figures


def _calibration_and_abstention(report: Report) -> Any:
    figure = _figure(4.6)
    top, low = figure.subplots(2, 1)
    rows = {row["name"]: row for row in report["models"] if row["name"] in report["reliability"]}
    top.plot([0, 1], [0, 1], color=PALE, lw=0.8, zorder=0)
    for name, table in report["reliability"].items():
        sizes = 3.0 + 90.0 * np.asarray(table["share"])
        _line(top, table["confidence"], table["observed"], name)
        dots = {"s": sizes, "color": COLOURS.get(name, INK), "lw": 0, "zorder": 5, "clip_on": False}
        top.scatter(table["confidence"], table["observed"], **dots)
    _key(top, [(name, f"ECE {row['ece']:.3f}") for name, row in rows.items()])
    top.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.01), ylim=(0, 1.02))
    for name, curve in report["abstention"].items():
        _line(low, curve["coverage"], curve["accuracy"], name)
    _key(low, [(name, f"{row['accuracy']['value']:.3f} at 100 %") for name, row in rows.items()])
    floor = min(min(curve["accuracy"]) for curve in report["abstention"].values())
    low.set(xlabel="rows answered, most confident first", ylabel="accuracy on them", xlim=(0, 1))
    low.set_ylim(max(0.0, floor - 0.45 * (1.0 - floor)), 1.005)
    for axes in (top, low):
        _percent(axes)
    return figure


def _confusion(report: Report) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    matrix = np.asarray(report["confusion"]["counts"], dtype=float)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)
    names = report["confusion"]["labels"]
    figure = _figure(COLUMN_INCHES + 0.1)
    axes = figure.subplots()
    blues = LinearSegmentedColormap.from_list("ink", ["#ffffff", "#9ecae1", "#08519c"])
    axes.imshow(share, cmap=blues, vmin=0.0, vmax=1.0, aspect="auto")
    for i, j in zip(*np.nonzero(share >= 0.015), strict=True):
        colour = "#fdfdfd" if share[i, j] > 0.55 else "#1a1a1a"  # of the cell, on every page
        axes.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=5.5, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=55, ha="right", rotation_mode="anchor", fontsize=6)
    axes.set_yticks(range(len(report["labels"])), report["labels"], fontsize=6)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set(xlabel="predicted", ylabel="true (rows in percent)")
    return figure


def _pool(report: Report) -> dict[str, Any]:
    return {
        f"pool_{name.replace(' ', '_')}": _deferral(setting) for name, setting in report["settings"].items()
    }


def _deferral(setting: Report) -> Any:
    figure = _figure(4.5)
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=(1.0, 1.25))
    curves, cost = setting["curves"], np.asarray(setting["curves"]["cost"])
    rows = {row["name"]: row for row in setting["routers"]}
    shown = ("ZeroRouter", "LearnedMap", "clairvoyant", "oracle")
    for name in shown:
        _line(top, cost, curves["quality"][name], name)
    _key(top, [(name, f"{rows[name]['area']['value']:.3f}") for name in shown[::-1]])
    _more_room(top, 0.2)
    top.set(ylabel="quality (area at right)")
    base = np.asarray(curves["quality"]["ZeroRouter"])
    for name, quality in curves["quality"].items():
        if name != "oracle":
            _line(low, cost, np.asarray(quality) - base, name)
    gaps = {
        name: row["area_minus_zero"]["value"]
        for name, row in rows.items()
        if name not in ("ZeroRouter", "oracle")
    }
    _key(low, [(name, f"{gaps[name]:+.4f}") for name in sorted(gaps, key=lambda name: -gaps[name])])
    _more_room(low, 0.55)
    label = "cost, relative to the most expensive model"
    low.set(xlabel=label, ylabel="quality − ZeroRouter (area at right)", xlim=(0, 1))
    _percent(top)
    return figure


def _robustness(report: Report) -> dict[str, Any]:
    rows = report["perturbations"]
    figure = _figure(0.17 * len(rows) + 0.9)
    left, right = figure.subplots(1, 2, sharey=True)
    places: list[float] = []
    for row, before in zip(rows, [None, *rows], strict=False):
        # From top to bottom, with a gap between groups.
        step = 1.0 if before is None or before["group"] == row["group"] else 1.6
        y = (places[-1] if places else 0.0) - step
        places.append(y)
        _dot(left, row["domain_flip"], y, COLOURS["ours"], "o")
        _dot(right, row["difficulty_flip"], y, COLOURS["ours"], "o")
        if row["group"] == "easy":
            _dot(right, row["hard_to_easy"], y - 0.32, COLOURS["length"], "D")
        if row["group"] == "hard":
            _dot(right, row["easy_to_hard"], y - 0.32, COLOURS["domain table"], "s")
    left.set_yticks(places, [row["name"] for row in rows])
    for axes, label in ((left, "domain flips, %"), (right, "difficulty flips, %")):
        axes.set(xlabel=label, xlim=(0, None))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color="#e6e6e6", lw=0.5)
        axes.set_axisbelow(True)
        _percent(axes, "x", symbol="")
    place: dict[str, Any] = {"textcoords": "offset points", "xycoords": "axes fraction", "ha": "right"}
    for text, height, name in (
        ("all prompts", 16, "ours"),
        ("hard prompts made easy", 8, "length"),
        ("easy prompts made hard", 0, "domain table"),
    ):
        colour = COLOURS[name]
        right.annotate(text, (1.0, 1.0), xytext=(0, height), color=colour, va="bottom", **place, **SMALL)
    return {"robustness": figure}


def _dot(axes: Any, figure: dict[str, float | None] | None, y: float, colour: str, marker: str) -> None:
    if figure is None or figure["value"] is None:
        return
    if figure["low"] is not None:
        axes.plot([figure["low"], figure["high"]], [y, y], color=colour, lw=0.9, zorder=2, clip_on=False)
    axes.plot([figure["value"]], [y], marker=marker, ms=3.2, color=colour, lw=0, zorder=3, clip_on=False)
