"""The plots of a run, as SVG; they need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semroute_lab.evaluate.plots import COLUMN_INCHES, GREY, STYLE

SERIES = {"session alone": "#222222", "pipeline in process": "#56B4E9", "server": "#0072B2"}
"""Okabe and Ito (2008)."""


def draw(run: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the plots of a run to `folder`; ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):
        figures = {"bench-length": _length(run), "bench-load": _load(run)}
        paths = []
        for name, figure in figures.items():
            paths.append(folder / f"{name}.svg")
            figure.savefig(paths[-1], bbox_inches="tight", metadata={"Date": None})
    return paths


def _figure(panels: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN_INCHES * panels, 2.3), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _length(run: Mapping[str, Any]) -> Any:
    """CPU a decision by the prompt's length: what is above the session is ours."""
    figure, (axes,) = _figure(1)
    rows = run["lengths"]
    places = range(len(rows))
    for (label, colour), key in zip(SERIES.items(), ("bare", "pipeline", "server"), strict=True):
        axes.plot(places, [row[key] for row in rows], color=colour, marker="o", markersize=3, label=label)
    axes.set_xticks(list(places), [str(row["tokens"]) for row in rows])
    axes.set_xlabel("tokens of the prompt")
    axes.set_ylabel("CPU ms a decision")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _load(run: Mapping[str, Any]) -> Any:
    """What becomes of arrivals, and how long the decision takes, by rate."""
    figure, (shares, times) = _figure(2)
    rows = run["open loop"]["rates"]
    places = list(range(len(rows)))
    labels = [f"{row['share of knee']:g}" for row in rows]
    decided = [row["decided"] for row in rows]
    shares.bar(places, decided, color=SERIES["server"], width=0.6, label="decided")
    fallen = [row["fallen back"] for row in rows]
    shares.bar(places, fallen, bottom=decided, color=GREY, width=0.6, label="fallen back")
    shares.set_ylabel("share of requests")
    shares.legend(frameon=False, loc="lower left")
    for quantile, style in (("p50", "-"), ("p99", "--")):
        values = [row["ms"][quantile] for row in rows]
        times.plot(places, values, style, color=SERIES["server"], marker="o", markersize=3, label=quantile)
    times.axhline(run["open loop"]["deadline ms"], color=GREY, linewidth=0.8)
    times.annotate("deadline", (0, run["open loop"]["deadline ms"]), va="bottom", color=GREY)
    times.set_ylabel("decision, ms")
    times.set_ylim(bottom=0)
    times.legend(frameon=False)
    for axes in (shares, times):
        axes.set_xticks(places, labels)
        axes.set_xlabel("arrivals over the knee")
    return figure
