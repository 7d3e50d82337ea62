"""Figures of a report, as PNG and SVG: colour-blind safe, labelled in place.

Needs matplotlib (extra `train`). Everything is drawn from the plain report, so a figure can be
redrawn from its JSON; an SVG follows its reader's preference for a dark page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from semroute_lab.evaluate.drawing import (
    COLOURS,
    COLUMN_INCHES,
    DPI,
    GREY,
    INK,
    PALE,
    STYLE,
    as_svg,
    key,
    line,
    new_figure,
    percent,
)
from semroute_lab.evaluate.strategy_plots import pair_strategy

CONFUSION_LABELS_MAX = 30
"""A confusion matrix of more classes is not drawn: nobody could read it."""


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


def _pair(report: dict[str, Any]) -> dict[str, Any]:
    figure = new_figure(4.3)
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=(1.15, 1.0))
    curves, models = report["curves"], report["models"]
    share = np.asarray(curves["strong_share"])
    gap = models["strong"] - models["weak"]
    rows = {row["name"]: row for row in report["routers"] if "apgr" in row}
    lift = {name: (np.asarray(q) - models["weak"]) / gap - share for name, q in curves["quality"].items()}
    for name, quality in curves["quality"].items():
        line(top, share, quality, name)
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
    key(top, [(name, f"{rows[name]['apgr']['value']:.3f}") for name in ranked], 0.99, 0.03)
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
            line(low, share, values, name)
    low.set(xlabel="requests sent to the strong model", ylabel="gap recovered beyond random", xlim=(0, 1))
    percent(low)
    percent(top, "y")
    kinds = dict.fromkeys(row["strategy"] for row in rows.values() if row["strategy"])
    return {"pair": figure, **{f"pair_{kind}": pair_strategy(report, kind) for kind in kinds}}


def _intent(report: dict[str, Any]) -> dict[str, Any]:
    figures = {"intent_calibration": _calibration_and_abstention(report)}
    if len(report["labels"]) <= CONFUSION_LABELS_MAX:
        figures["intent_confusion"] = _confusion(report)
    return figures


def _calibration_and_abstention(report: dict[str, Any]) -> Any:
    figure = new_figure(4.6)
    top, low = figure.subplots(2, 1)
    rows = {row["name"]: row for row in report["models"]}
    top.plot([0, 1], [0, 1], color=PALE, lw=0.8, zorder=0)
    for name, table in report["reliability"].items():
        sizes = 3.0 + 90.0 * np.asarray(table["share"])
        line(top, table["confidence"], table["observed"], name)
        dots = {"s": sizes, "color": COLOURS.get(name, INK), "lw": 0, "zorder": 5, "clip_on": False}
        top.scatter(table["confidence"], table["observed"], **dots)
    names = [name for name in rows if name in report["reliability"]]
    key(top, [(name, f"ECE {rows[name]['ece']:.3f}") for name in names], 0.99, 0.03)
    top.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.01), ylim=(0, 1.02))
    for name, curve in report["abstention"].items():
        line(low, curve["coverage"], curve["accuracy"], name)
    key(low, [(name, f"{rows[name]['accuracy']['value']:.3f} at 100 %") for name in names], 0.99, 0.03)
    floor = min(min(curve["accuracy"]) for curve in report["abstention"].values())
    low.set(xlabel="rows answered, most confident first", ylabel="accuracy on them", xlim=(0, 1))
    low.set_ylim(max(0.0, floor - 0.45 * (1.0 - floor)), 1.005)
    for axes in (top, low):
        percent(axes)
    return figure


def _confusion(report: dict[str, Any]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    matrix = np.asarray(report["confusion"]["counts"], dtype=float)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)
    names = report["confusion"]["labels"]
    figure = new_figure(COLUMN_INCHES + 0.1)
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
    figure = new_figure(4.5)
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=(1.0, 1.25))
    curves = setting["curves"]
    cost = np.asarray(curves["cost"])
    rows = {row["name"]: row for row in setting["routers"]}
    shown = ("ZeroRouter", "LearnedMap", "clairvoyant", "oracle")
    for name in shown:
        line(top, cost, curves["quality"][name], name)
    key(top, [(name, f"{rows[name]['area']['value']:.3f}") for name in shown[::-1]], 0.99, 0.03)
    bottom, ceiling = top.get_ylim()
    top.set_ylim(bottom - 0.2 * (ceiling - bottom), ceiling)
    top.set(ylabel="quality (area at right)")
    base = np.asarray(curves["quality"]["ZeroRouter"])
    for name, quality in curves["quality"].items():
        if name == "oracle":
            continue
        line(low, cost, np.asarray(quality) - base, name)
    gaps = {
        name: row["area_minus_zero"]["value"]
        for name, row in rows.items()
        if name not in ("ZeroRouter", "oracle")
    }
    ranked = sorted(gaps, key=lambda name: -gaps[name])
    key(low, [(name, f"{gaps[name]:+.4f}") for name in ranked], 0.99, 0.03)
    bottom, ceiling = low.get_ylim()
    low.set(
        xlabel="cost, relative to the dearest model",
        ylabel="quality − ZeroRouter (area at right)",
        xlim=(0, 1),
    )
    low.set_ylim(bottom - 0.55 * (ceiling - bottom), ceiling)
    percent(top)
    return figure


def _robustness(report: dict[str, Any]) -> dict[str, Any]:
    rows = report["perturbations"]
    figure = new_figure(0.17 * len(rows) + 0.9)
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
        percent(axes, "x", symbol="")
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
