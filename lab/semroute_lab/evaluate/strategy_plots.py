"""Figures of one kind of strategy beside what it is held against, of a plain report.

Light and dark, as all figures: what draws them within `STYLE` and writes them with `as_svg` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from semroute_lab.evaluate.drawing import (
    COLOURS,
    DASHES,
    GREY,
    PAGE_INCHES,
    PALE,
    SMALL,
    key,
    new_figure,
    percent,
)

OWN = ("#0072B2", "#009E73", "#CC79A7", "#E69F00")
"""Colours of a strategy's rows in its own figure."""

REFERENCES = ("random", "length", "oracle")
"""What every strategy of a pair is drawn beside."""


def pair_strategy(
    report: dict[str, Any], kind: str, published: Sequence[tuple[float, float]] = (), source: str = ""
) -> Any:
    """One kind of strategy beside a random router, length and the oracle; of a plain pair report.

    On the left quality by strong share, on the right the gap recovered beyond a random router.
    `published` are points (strong share, part of the gap recovered) that `source` gives.
    """
    figure = new_figure(2.6, PAGE_INCHES)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    curves, models = report["curves"], report["models"]
    share, weak, strong = np.asarray(curves["strong_share"]), models["weak"], models["strong"]
    gap = strong - weak
    rows = {row["name"]: row for row in report["routers"] if "apgr" in row}
    own = [name for name, row in rows.items() if row["strategy"] == kind and name != "random"]
    colours = dict(zip(own, OWN, strict=False)) | {name: COLOURS[name] for name in REFERENCES}
    left.axhline(strong, color=PALE, lw=0.6, zorder=0)
    left.text(0.99, strong + 0.02 * gap, "always strong", va="bottom", ha="right", color=GREY, **SMALL)
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
            "fixed", (0, weak), (8, -1), textcoords="offset points", va="center", color=OWN[0], **SMALL
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
    key(left, entries, 0.99, 0.03, colours=inks)
    left.set(xlabel="requests sent to the strong model", ylabel="quality (APGR at right)", xlim=(0, 1))
    left.set_ylim(weak - 0.06 * gap, None)
    right.set(xlabel="requests sent to the strong model", ylabel="gap recovered beyond random", xlim=(0, 1))
    if curves["lift_interval"]:
        right.annotate(
            "bands: 95 %", (0.99, 0.97), xycoords="axes fraction", ha="right", va="top", color=GREY, **SMALL
        )
    percent(left)
    percent(right)
    return figure


def _apgr(row: dict[str, Any]) -> float:
    return float(row["apgr"]["value"])


def pool_strategy(setting: dict[str, Any], kind: str) -> Any:
    """One kind of strategy beside the best fixed mix and the oracle; of a setting of a plain pool report.

    On the left quality by cost, on the right what is above the fixed mix.
    """
    figure = new_figure(2.6, PAGE_INCHES)
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
    key(left, said, 0.99, 0.03, colours=colours)
    bottom, ceiling = left.get_ylim()
    left.set_ylim(bottom - 0.25 * (ceiling - bottom), ceiling)
    left.set(xlabel="cost, relative to the dearest model", ylabel="quality (area at right)", xlim=(0, 1))
    right.set(xlabel="cost, relative to the dearest model", ylabel="quality − ZeroRouter", xlim=(0, 1))
    percent(left)
    percent(right)
    return figure
