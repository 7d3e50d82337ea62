"""Figures of a report, as PNG and SVG: colour-blind safe, labelled in place.

Needs matplotlib (extra `train`). Everything is drawn from the plain report, so a figure can be
redrawn from its JSON. Colours are those of Okabe and Ito (2008); an SVG follows its reader's
preference for a dark page.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLUMN_INCHES = 3.4
"""Width of one column of a two-column page."""

CONFUSION_LABELS_MAX = 30
"""A confusion matrix of more classes is not drawn: nobody could read it."""

PAGE_INCHES = 7.0
"""Width of both columns."""

GREY, INK, PALE = "#8a8a8a", "#222222", "#dddddd"
COLOURS = {
    "ours": "#0072B2",
    "bundle": "#0072B2",
    "length": "#D55E00",
    "domain table": "#009E73",
    "subject table": "#CC79A7",
    "similarity": "#56B4E9",
    "similarity, 200 nearest": "#E69F00",
    "factorization": "#7B3294",
    "clusters": "#004D40",
    "intent": "#A6761D",
    "threshold": "#8C564B",
    "judge": "#B22222",
    "oracle": INK,
    "random": GREY,
    "ZeroRouter": GREY,
    "kNN": "#D55E00",
    "K-means, Laplace": "#E69F00",
    "K-means, shrunk": "#009E73",
    "K-means, averaged": "#004D40",
    "LearnedMap": "#0072B2",
    "ridge, refitted": "#56B4E9",
    "clairvoyant": "#CC79A7",
    "tfidf + logistic": "#D55E00",
    "centroid": "#0072B2",
    "logistic": "#009E73",
}
OWN = ("#0072B2", "#009E73", "#CC79A7", "#E69F00")
"""Colours of a strategy's rows in its own figure."""

REFERENCES = ("random", "length", "oracle")
"""What every strategy of a pair is drawn beside."""

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
"""Colour on a white page to colour on a dark one; what is not here is the same on both."""

STYLE = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "svg.hashsalt": "semroute",
}

_SMALL: dict[str, Any] = {"fontsize": 6}
"""A note within a panel."""

DPI = 300


def draw(report: dict[str, Any], directory: Path) -> list[Path]:
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
    # matplotlib writes colours into style attributes, which only an important rule overrules.
    rules = "\n".join(
        f'[style*="{what}: {light}"] {{{what}: {dark} !important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    return text.replace("</style>", f"\n@media (prefers-color-scheme: dark) {{\n{rules}\n}}</style>", 1)


def _figure(height: float, width: float = COLUMN_INCHES) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _line(axes: Any, x: Any, y: Any, name: str) -> None:
    front = name in ("ours", "bundle", "LearnedMap")
    style: dict[str, Any] = {
        "color": COLOURS.get(name, INK),
        "lw": 1.6 if front else 1.1,
        "zorder": 3 + front,
    }
    if name in DASHES:
        style["dashes"] = DASHES[name]
    axes.plot(x, y, **style)


def _key(
    axes: Any,
    entries: list[tuple[str, str]],
    x: float,
    y: float,
    top: bool = False,
    colours: dict[str, str] = COLOURS,
) -> None:
    """Coloured names with a figure each, stacked in a free corner: a legend without a box."""
    step = 9.0
    order = entries if top else entries[::-1]
    for i, (name, figure) in enumerate(order):
        axes.annotate(
            f"{name}  {figure}".rstrip(),
            (x, y),
            xycoords="axes fraction",
            zorder=10,
            xytext=(0, (-i if top else i) * step),
            textcoords="offset points",
            ha="right",
            va="top" if top else "bottom",
            color=colours.get(name, INK),
            fontweight="bold" if name in ("ours", "bundle") else "normal",
        )


def _percent(axes: Any, which: str = "xy", symbol: str = " %") -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for letter in which:
        axis = getattr(axes, f"{letter}axis")
        axis.set_major_locator(MaxNLocator(nbins=6 if symbol else 4, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{100 * value:.3g}{symbol}".replace("-", "−"))
        )


def _pair(report: dict[str, Any]) -> dict[str, Any]:
    figure = _figure(4.3)
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=(1.15, 1.0))
    curves, models = report["curves"], report["models"]
    share = np.asarray(curves["strong_share"])
    gap = models["strong"] - models["weak"]
    rows = {row["name"]: row for row in report["routers"] if "apgr" in row}
    lift = {name: (np.asarray(q) - models["weak"]) / gap - share for name, q in curves["quality"].items()}
    for name, quality in curves["quality"].items():
        _line(top, share, quality, name)
    for q in (0.5, 0.8):
        level = models["weak"] + q * gap
        top.axhline(level, color=PALE, lw=0.6, zorder=0)
        # Right of the oracle's rise and above what a learned router reaches that early.
        x = rows["oracle"][f"cpt{100 * q:.0f}"]["value"] / 100 + 0.03
        top.annotate(
            f"CPT{100 * q:.0f}",
            (x, level),
            xytext=(0, 1.5),
            textcoords="offset points",
            color=GREY,
            fontsize=6,
        )
    ranked = sorted(rows, key=lambda name: -rows[name]["apgr"]["value"])
    _key(top, [(name, f"{rows[name]['apgr']['value']:.3f}") for name in ranked], 0.99, 0.03)
    top.set(ylabel="quality (APGR at right)", ylim=(models["weak"] - 0.06 * gap, None))
    if curves["lift_interval"]:
        low.annotate(
            "bands: 95 %",
            (0.99, 0.97),
            xycoords="axes fraction",
            ha="right",
            va="top",
            color=GREY,
            fontsize=6,
        )
    for name in ("length", "ours"):
        if (band := curves["lift_interval"].get(name)) is None:
            continue
        low.fill_between(share, band["low"], band["high"], color=COLOURS[name], alpha=0.13, lw=0)
    for name, values in lift.items():
        if name != "oracle":
            _line(low, share, values, name)
    low.set(xlabel="requests sent to the strong model", ylabel="gap recovered beyond random", xlim=(0, 1))
    _percent(low)
    _percent(top, "y")
    kinds = dict.fromkeys(row["strategy"] for row in rows.values() if row["strategy"])
    return {"pair": figure, **{f"pair_{kind}": pair_strategy(report, kind) for kind in kinds}}


def pair_strategy(
    report: dict[str, Any], kind: str, published: Sequence[tuple[float, float]] = (), source: str = ""
) -> Any:
    """One kind of strategy beside a random router, length and the oracle; of a plain pair report.

    On the left quality by strong share, on the right the gap recovered beyond a random router.
    `published` are points (strong share, part of the gap recovered) that `source` gives.
    """
    figure = _figure(2.6, PAGE_INCHES)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    curves, models = report["curves"], report["models"]
    share, weak, strong = np.asarray(curves["strong_share"]), models["weak"], models["strong"]
    gap = strong - weak
    rows = {row["name"]: row for row in report["routers"] if "apgr" in row}
    own = [name for name, row in rows.items() if row["strategy"] == kind and name != "random"]
    colours = dict(zip(own, OWN, strict=False)) | {name: COLOURS[name] for name in REFERENCES}
    left.axhline(strong, color=PALE, lw=0.6, zorder=0)
    left.text(0.99, strong + 0.02 * gap, "always strong", va="bottom", ha="right", color=GREY, **_SMALL)
    for name in (*REFERENCES, *own):
        quality = np.asarray(curves["quality"][name])
        style = {"color": colours[name], "lw": 1.8 if name in own else 1.0, "zorder": 3 + (name in own)}
        if name in DASHES:
            style["dashes"] = DASHES[name]
        left.plot(share, quality, **style)
        if name == "oracle":
            continue
        right.plot(share, (quality - weak) / gap - share, **style)
        band = curves["lift_interval"].get(name)
        if band is not None:
            right.fill_between(share, band["low"], band["high"], color=colours[name], alpha=0.13, lw=0)
    for x, recovered in published:
        dot = {"color": OWN[0], "ms": 4.5, "marker": "D", "lw": 0, "zorder": 6}
        left.plot([x], [weak + recovered * gap], **dot)
        right.plot([x], [recovered - x], **dot)
    if kind == "weighted":
        # A mix by weight is a random router, and `fixed` is its two ends.
        colours["random"] = OWN[0]
        left.annotate(
            "fixed", (0, weak), (8, -1), textcoords="offset points", va="center", color=OWN[0], **_SMALL
        )
        left.plot([0, 1], [weak, strong], color=OWN[0], lw=1.8, zorder=4)
        left.plot([0, 1], [weak, strong], color=OWN[0], marker="o", ms=5, lw=0, zorder=5, clip_on=False)
    ranked = sorted((name for name in rows if name in colours), key=lambda name: -_apgr(rows[name]))
    # What a report calls by another name has the strategy's name here.
    renamed = {name for name in ("ours", "random") if rows.get(name, {}).get("strategy") == kind}
    said = {name: kind if name in renamed else name for name in ranked}
    entries = [(said[name], f"{_apgr(rows[name]):.3f}".lstrip("0")) for name in ranked]
    inks = {said[name]: colours[name] for name in ranked}
    if published:
        entries.insert(1, (f"◆ {source}", ""))
        inks[f"◆ {source}"] = OWN[0]
    _key(left, entries, 0.99, 0.03, colours=inks)
    left.set(xlabel="requests sent to the strong model", ylabel="quality (APGR at right)", xlim=(0, 1))
    left.set_ylim(weak - 0.06 * gap, None)
    right.set(xlabel="requests sent to the strong model", ylabel="gap recovered beyond random", xlim=(0, 1))
    if curves["lift_interval"]:
        right.annotate(
            "bands: 95 %", (0.99, 0.97), xycoords="axes fraction", ha="right", va="top", color=GREY, **_SMALL
        )
    _percent(left)
    _percent(right)
    return figure


def _apgr(row: dict[str, Any]) -> float:
    return float(row["apgr"]["value"])


def pool_strategy(setting: dict[str, Any], kind: str) -> Any:
    """One kind of strategy beside the best fixed mix and the oracle; of a setting of a plain pool report.

    On the left quality by cost, on the right what is above the fixed mix.
    """
    figure = _figure(2.6, PAGE_INCHES)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    curves, cost = setting["curves"], np.asarray(setting["curves"]["cost"])
    rows = {row["name"]: row for row in setting["routers"]}
    own = [name for name, row in rows.items() if row["strategy"] == kind]
    colours = dict(zip(own, OWN, strict=False)) | {name: COLOURS[name] for name in ("ZeroRouter", "oracle")}
    base = np.asarray(curves["quality"]["ZeroRouter"])
    for name, colour in colours.items():
        quality = np.asarray(curves["quality"][name])
        style = {"color": colour, "lw": 1.6 if name in own else 1.0, "zorder": 3 + (name in own)}
        if name in DASHES:
            style["dashes"] = DASHES[name]
        left.plot(cost, quality, **style)
        if name != "oracle":
            right.plot(cost, quality - base, **style)
    entries = sorted(colours, key=lambda name: -rows[name]["area"]["value"])
    said = [(name, f"{rows[name]['area']['value']:.3f}".lstrip("0")) for name in entries]
    _key(left, said, 0.99, 0.03, colours=colours)
    bottom, ceiling = left.get_ylim()
    left.set_ylim(bottom - 0.25 * (ceiling - bottom), ceiling)
    left.set(xlabel="cost, relative to the dearest model", ylabel="quality (area at right)", xlim=(0, 1))
    right.set(xlabel="cost, relative to the dearest model", ylabel="quality − ZeroRouter", xlim=(0, 1))
    _percent(left)
    _percent(right)
    return figure


def _intent(report: dict[str, Any]) -> dict[str, Any]:
    figures = {"intent_calibration": _calibration_and_abstention(report)}
    if len(report["labels"]) <= CONFUSION_LABELS_MAX:
        figures["intent_confusion"] = _confusion(report)
    return figures


def _calibration_and_abstention(report: dict[str, Any]) -> Any:
    figure = _figure(4.6)
    top, low = figure.subplots(2, 1)
    rows = {row["name"]: row for row in report["models"]}
    top.plot([0, 1], [0, 1], color=PALE, lw=0.8, zorder=0)
    for name, table in report["reliability"].items():
        sizes = 3.0 + 90.0 * np.asarray(table["share"])
        _line(top, table["confidence"], table["observed"], name)
        dots = {"s": sizes, "color": COLOURS.get(name, INK), "lw": 0, "zorder": 5, "clip_on": False}
        top.scatter(table["confidence"], table["observed"], **dots)
    names = [name for name in rows if name in report["reliability"]]
    _key(top, [(name, f"ECE {rows[name]['ece']:.3f}") for name in names], 0.99, 0.03)
    top.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.01), ylim=(0, 1.02))
    for name, curve in report["abstention"].items():
        _line(low, curve["coverage"], curve["accuracy"], name)
    _key(low, [(name, f"{rows[name]['accuracy']['value']:.3f} at 100 %") for name in names], 0.99, 0.03)
    floor = min(min(curve["accuracy"]) for curve in report["abstention"].values())
    low.set(xlabel="rows answered, most confident first", ylabel="accuracy on them", xlim=(0, 1))
    low.set_ylim(max(0.0, floor - 0.45 * (1.0 - floor)), 1.005)
    for axes in (top, low):
        _percent(axes)
    return figure


def _confusion(report: dict[str, Any]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    matrix = np.asarray(report["confusion"]["counts"], dtype=float)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)
    names = report["confusion"]["labels"]
    figure = _figure(COLUMN_INCHES + 0.1)
    axes = figure.subplots()
    blues = LinearSegmentedColormap.from_list("ink", ["#ffffff", "#9ecae1", "#08519c"])
    axes.imshow(share, cmap=blues, vmin=0.0, vmax=1.0, aspect="auto")
    for i, j in zip(*np.nonzero(share >= 0.015), strict=True):
        colour = "#fdfdfd" if share[i, j] > 0.55 else "#1a1a1a"  # of the cell, whatever the page
        axes.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=5.5, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=55, ha="right", rotation_mode="anchor", fontsize=6)
    axes.set_yticks(range(len(report["labels"])), report["labels"], fontsize=6)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set(xlabel="predicted", ylabel="true (rows in percent)")
    return figure


def _pool(report: dict[str, Any]) -> dict[str, Any]:
    return {
        f"pool_{name.replace(' ', '_')}": _deferral(setting) for name, setting in report["settings"].items()
    }


def _deferral(setting: dict[str, Any]) -> Any:
    figure = _figure(4.5)
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=(1.0, 1.25))
    curves = setting["curves"]
    cost = np.asarray(curves["cost"])
    rows = {row["name"]: row for row in setting["routers"]}
    shown = ("ZeroRouter", "LearnedMap", "clairvoyant", "oracle")
    for name in shown:
        _line(top, cost, curves["quality"][name], name)
    _key(top, [(name, f"{rows[name]['area']['value']:.3f}") for name in shown[::-1]], 0.99, 0.03)
    bottom, ceiling = top.get_ylim()
    top.set_ylim(bottom - 0.2 * (ceiling - bottom), ceiling)
    top.set(ylabel="quality (area at right)")
    base = np.asarray(curves["quality"]["ZeroRouter"])
    for name, quality in curves["quality"].items():
        if name == "oracle":
            continue
        _line(low, cost, np.asarray(quality) - base, name)
    gaps = {
        name: row["area_minus_zero"]["value"]
        for name, row in rows.items()
        if name not in ("ZeroRouter", "oracle")
    }
    ranked = sorted(gaps, key=lambda name: -gaps[name])
    _key(low, [(name, f"{gaps[name]:+.4f}") for name in ranked], 0.99, 0.03)
    bottom, ceiling = low.get_ylim()
    low.set(
        xlabel="cost, relative to the dearest model",
        ylabel="quality − ZeroRouter (area at right)",
        xlim=(0, 1),
    )
    low.set_ylim(bottom - 0.55 * (ceiling - bottom), ceiling)
    _percent(top)
    return figure


def _robustness(report: dict[str, Any]) -> dict[str, Any]:
    rows = report["perturbations"]
    figure = _figure(0.17 * len(rows) + 0.9)
    left, right = figure.subplots(1, 2, sharey=True)
    places = _stacked([row["group"] for row in rows])
    for row, y in zip(rows, places, strict=True):
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
    note = {
        "textcoords": "offset points",
        "xycoords": "axes fraction",
        "fontsize": 6,
        "ha": "right",
        "va": "bottom",
    }
    right.annotate("all prompts", (1.0, 1.0), xytext=(0, 16), color=COLOURS["ours"], **note)
    right.annotate("hard prompts made easy", (1.0, 1.0), xytext=(0, 8), color=COLOURS["length"], **note)
    right.annotate("easy prompts made hard", (1.0, 1.0), xytext=(0, 0), color=COLOURS["domain table"], **note)
    return {"robustness": figure}


def _dot(axes: Any, figure: dict[str, float | None] | None, y: float, colour: str, marker: str) -> None:
    if figure is None or figure["value"] is None:
        return
    if figure["low"] is not None:
        axes.plot([figure["low"], figure["high"]], [y, y], color=colour, lw=0.9, zorder=2, clip_on=False)
    axes.plot([figure["value"]], [y], marker=marker, ms=3.2, color=colour, lw=0, zorder=3, clip_on=False)


def _stacked(groups: list[str]) -> list[float]:
    """Heights from top to bottom, with a gap between groups."""
    y, places = 0.0, []
    for i, group in enumerate(groups):
        y -= 1.0 if i == 0 or groups[i - 1] == group else 1.6
        places.append(y)
    return places
