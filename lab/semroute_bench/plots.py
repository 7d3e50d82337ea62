"""The plots of a run, as SVG; they need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semroute_lab.evaluate.plots import COLUMN_INCHES, GREY, STYLE

SERVER = "#0072B2"
SERIES = {"bare": ("session alone", "#222222"), "pipeline": ("pipeline in process", "#56B4E9")}
SERIES["server"] = ("server", SERVER)
"""Key to label and color (Okabe and Ito, 2008)."""


def draw(run: Mapping[str, Any], folder: Path) -> None:
    """Write the plots of a run to `folder`; ImportError without matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        for name, panels, fill in (("bench-length", 1, _lengths), ("bench-load", 2, _load)):
            figure = Figure(figsize=(COLUMN_INCHES * panels, 2.3), layout="constrained")
            fill(run, *figure.subplots(1, panels, squeeze=False)[0])
            figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})


def _lengths(run: Mapping[str, Any], axes: Any) -> None:
    """CPU per decision by the prompt's length: the part above the session is ours."""
    rows = run["lengths"]
    for key, (label, color) in SERIES.items():
        axes.plot([row[key] for row in rows], color=color, marker="o", markersize=3, label=label)
    axes.set_xticks(range(len(rows)), [str(row["tokens"]) for row in rows])
    axes.set(xlabel="tokens of the prompt", ylabel="CPU ms per decision")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _load(run: Mapping[str, Any], shares: Any, times: Any) -> None:
    """Outcomes of arrivals and time of a decision by rate."""
    rows, deadline = run["open loop"]["rates"], run["open loop"]["deadline ms"]
    places, decided = range(len(rows)), [row["decided"] for row in rows]
    fallen = [row["fallen back"] for row in rows]
    shares.bar(places, decided, color=SERVER, width=0.6, label="decided")
    shares.bar(places, fallen, bottom=decided, color=GREY, width=0.6, label="fallen back")
    shares.set_ylabel("share of requests")
    shares.legend(frameon=False, loc="lower left")
    for quantile, style in (("p50", "-"), ("p99", "--")):
        values = [row["ms"][quantile] for row in rows]
        times.plot(values, style, color=SERVER, marker="o", markersize=3, label=quantile)
    times.axhline(deadline, color=GREY, linewidth=0.8)
    times.annotate("deadline", (0, deadline), va="bottom", color=GREY)
    times.set_ylabel("decision, ms")
    times.set_ylim(bottom=0)
    times.legend(frameon=False)
    for axes in (shares, times):
        axes.set_xticks(places, [f"{row['share of knee']:g}" for row in rows])
        axes.set_xlabel("arrivals over the saturation point")
