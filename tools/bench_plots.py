"""Draw the pictures of recorded runs: benchmarks/results/bench-*.svg and docs/load_simulation.svg.

semroute bench --out benchmarks/results
python -m semroute_bench.load_simulation > benchmarks/results/load_simulation.json
python tools/bench_plots.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from semroute_lab.evaluate.plots import COLUMN_INCHES, GREY, STYLE

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

SERVER = "#0072B2"
SERIES = {
    "bare": ("session alone", "#222222"),
    "pipeline": ("pipeline in process", "#56B4E9"),
    "server": ("server", SERVER),
}
"""Path to label and color (Okabe and Ito, 2008)."""

CURVES = {"strong_share": "strong share", "p95_seconds": "95 % latency, s", "quality": "quality"}
"""Key of a simulated curve to the label of its axis."""


def lengths(run: Mapping[str, Any], axes: Any) -> None:
    """CPU per decision by the prompt's length: the part above the session is ours."""
    rows = run["lengths"]
    for key, (label, color) in SERIES.items():
        axes.plot([row[key] for row in rows], color=color, marker="o", markersize=3, label=label)
    axes.set_xticks(range(len(rows)), [str(row["tokens"]) for row in rows])
    axes.set(xlabel="tokens of the prompt", ylabel="CPU ms per decision")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def load(run: Mapping[str, Any], shares: Any, times: Any) -> None:
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


def simulation(report: Mapping[str, Any]) -> Figure:
    """Strong share, tail latency and quality over time, one column per scenario."""
    scenarios = report["scenarios"]
    figure = Figure(figsize=(11, 7.5), layout="tight")
    axes = figure.subplots(len(CURVES), len(scenarios), sharex=True, squeeze=False)
    for column, scenario in enumerate(scenarios):
        for axis, (key, label) in zip(axes[:, column], CURVES.items(), strict=True):
            axis.axvspan(scenario["begin"], scenario["end"], color="0.92", linewidth=0)
            for name, color in (("without", "tab:red"), ("with", "tab:blue")):
                data = scenario[name]["curves"]
                axis.plot(data["seconds"], data[key], color=color, linewidth=1.3, label=f"{name} controller")
            axis.set_yscale("log" if key == "p95_seconds" else "linear")
            axis.set_ylabel("" if column else label)
            axis.grid(alpha=0.3)
        title = f"{scenario['name']}: {scenario['quiet']:g} to {scenario['burst']:g} requests per second"
        axes[0][column].set_title(title)
        axes[-1][column].set_xlabel("seconds")
    axes[0][0].legend(loc="lower right", fontsize="small")
    return figure


def main() -> int:
    """Write every picture."""
    run, simulated = (
        json.loads((RESULTS / f"{name}.json").read_text()) for name in ("bench", "load_simulation")
    )
    with mpl.rc_context(STYLE):
        for name, panels, fill in (("bench-length", 1, lengths), ("bench-load", 2, load)):
            figure = Figure(figsize=(COLUMN_INCHES * panels, 2.3), layout="constrained")
            fill(run, *figure.subplots(1, panels, squeeze=False)[0])
            figure.savefig(RESULTS / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    with mpl.rc_context({"svg.hashsalt": "semroute"}):
        simulation(simulated).savefig(ROOT / "docs" / "load_simulation.svg", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
