"""A short run against recorded ratios: fails where a decision has become clearly more expensive.

Only ratios of CPU time within a run are compared, so the machine's speed and load matter little. A ratio
may be above the recorded one by three standard errors of the difference of the two medians, each from its
own run's spread, and by a small share for differences between runs.
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

ERRORS = 3.0  # standard errors that count as noise: about one check in two hundred exceeds them
MEDIAN_ERROR = 1.2533  # standard error of a median over a mean's, sqrt(pi / 2), of a normal distribution
DRIFT_SHARE = 0.05  # share of the ratio by which two runs of the same code also differ: neighbors, placement

Rounds = Mapping[str, list[float]]
"""Name of a ratio to its value in each round."""


def compare(recorded: Mapping[str, Any], now: Rounds, here: Mapping[str, object]) -> dict[str, bool]:
    """One line per ratio to whether its median on the machine `here` is beyond its limit.

    ValueError if `recorded` has no spreads.
    """
    if "spreads" not in recorded:
        raise ValueError("the recorded run has no spreads of its rounds: record it again with semroute bench")
    like = all(recorded["machine"][key] == here[key] for key in ("cpu", "instructions"))
    lines = {}
    for name in WATCHED if like else ANYWHERE:
        value, there, own = recorded["ratios"][name], recorded["spreads"][name], statistics.stdev(now[name])
        error = MEDIAN_ERROR * sqrt(there**2 / recorded["rounds"] + own**2 / len(now[name]))
        limit, median = value * (1 + DRIFT_SHARE) + ERRORS * error, statistics.median(now[name])
        lines[f"{name}: {median:.2f}, recorded {value:.2f}, allowed {limit:.2f}"] = median > limit
    return lines
