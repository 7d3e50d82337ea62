"""A run in which every aim holds, and rounds of its ratios."""

from __future__ import annotations

from statistics import stdev
from typing import Any

from semroute_bench import report
from semroute_bench.measuring import each

RATIOS = {
    "server cpu / bare": 1.1,
    "busy server cpu / bare": 1.08,
    "server cpu / passes": 1.05,
    "busy server cpu / passes": 1.04,
    "server rate / passes": 0.95,
    "pipeline cpu / bare": 1.05,
    "server rate / bare": 0.9,
    "own cpu / yardstick": 1.2,
    "own named cpu / yardstick": 0.2,
    "named rate / floor": 0.85,
    "named cpu / floor": 1.25,
    "two workers / one": 1.05,
}

HERE = {"cpu": "C", "instructions": ["avx2"], "cores": 2, "load_before": 0.1}


def run(**changes: Any) -> dict[str, Any]:
    """A run in which every aim holds."""
    times = {"p50": 10.0, "p90": 20.0, "p99": 90.0, "p999": 100.0}
    row = {
        "share of knee": 3.0,
        "sent": 100,
        "answered": 1.0,
        "decided": 0.4,
        "fallen back": 0.6,
        "ms": times,
    }
    medians = {
        "bare session": 10.0,
        "Envoy alone": 2.0,
        "do-nothing processor": 2.5,
        "do-nothing processor with the pass": 12.6,
        "named model": 2.8,
        "routed model": 12.7,
    }
    figures = {
        "machine": {"cores": 2},
        "ratios": RATIOS,
        "medians": {"bare cpu ms": 10.0},
        "lengths": [{"tokens": 16, "read": 16, "bare": 4.0, "pipeline": 5.0, "server": 6.0}],
        "bodies": [{"body": "2 KB", "model": "routed", "bytes": 2000, "cpu ms": 20.0, "p50 ms": 21.0}],
        "open loop": {
            "deadline ms": 100.0, "knee a second": 100.0, "rates": [row],
            "after overload": {**row, "decided": 1.0},
        },
        "gateway": {"ms": {path: {"p50": value} for path, value in medians.items()}},
        "start seconds": 1.5,
        "growth": {"requests": 1000, "workers": 2, "warm MiB": [200.0, 190.0], "after MiB": [200.2, 190.1]},
        "gpu": {"left out": "no CUDA device"},
    }  # fmt: skip
    return {**figures, **changes}


def rounds(sigma: float, **medians: float) -> dict[str, list[float]]:
    """Five rounds of each watched ratio, `sigma` apart as a share of it."""
    shape = (-1.26, -0.63, 0.0, 0.63, 1.26)  # of standard deviation 1
    values = {name: medians.get(name, RATIOS[name]) for name in report.WATCHED}
    return {name: [value * (1 + sigma * step) for step in shape] for name, value in values.items()}


def recorded(sigma: float) -> dict[str, Any]:
    """A recorded run of seven such rounds."""
    return {"ratios": RATIOS, "rounds": 7, "spreads": each(stdev, rounds(sigma)), "machine": HERE}
