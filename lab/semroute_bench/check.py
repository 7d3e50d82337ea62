"""A short run against recorded ratios: fails where a decision has become clearly more expensive.

Only ratios of CPU time within the run are compared, so the machine's speed and load matter little. The
rounds themselves state how much noise remains: a ratio may be above the recorded one by three standard
errors of the difference of the two medians, each from its own run's spread, and by a small share for
differences between runs. A quiet machine therefore finds small losses, and a noisy one raises no more
false alarms.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from math import sqrt
from typing import Any

ANYWHERE = ("own cpu / floor", "named cpu / floor")
"""Ratios that are compared on every machine: our part of a routed decision (the pipeline with recorded
outputs in place of a pass) and a stream without a pass, over a do-nothing server's stream."""

WATCHED = (*ANYWHERE, "server cpu / bare", "busy server cpu / bare", "pipeline cpu / bare")
"""Ratios that are compared on a machine like the recorded one: next to a faster pass, for example with
VNNI, the same decision would seem more expensive. More is worse in all of them."""

ERRORS = 3.0
"""Standard errors of the difference that count as noise: about one check in two hundred exceeds them."""

MEDIAN_ERROR = 1.2533
"""Standard error of a median over that of a mean, sqrt(pi / 2), of a normal distribution."""

DRIFT_SHARE = 0.05
"""Share of the recorded ratio by which two runs of the same code also differ: other neighbors on the machine,
other placement in memory, other cores."""

Rounds = Mapping[str, list[float]]
"""Name of a ratio to its value in each round."""


def limits(recorded: Mapping[str, Any], now: Rounds, here: Mapping[str, object]) -> dict[str, float]:
    """Upper limit of each ratio's median on the machine `here`; ValueError if `recorded` has no spreads."""
    if "spreads" not in recorded:
        raise ValueError("the recorded run has no spreads of its rounds: record it again with semroute bench")
    like = all(recorded["machine"][key] == here[key] for key in ("cpu", "instructions"))
    found = {}
    for name in WATCHED if like else ANYWHERE:
        value, there = recorded["ratios"][name], recorded["spreads"][name]
        own = statistics.stdev(now[name])
        error = MEDIAN_ERROR * sqrt(there**2 / recorded["rounds"] + own**2 / len(now[name]))
        found[name] = value * (1 + DRIFT_SHARE) + ERRORS * error
    return found


def compare(recorded: Mapping[str, Any], now: Rounds, here: Mapping[str, object]) -> dict[str, bool]:
    """One line per ratio to whether it is beyond its limit."""
    medians = {name: statistics.median(values) for name, values in now.items()}
    return {
        f"{name}: {medians[name]:.2f}, recorded {recorded['ratios'][name]:.2f}, allowed {limit:.2f}": (
            medians[name] > limit
        )
        for name, limit in limits(recorded, now, here).items()
    }
