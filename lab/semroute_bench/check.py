"""A short run against recorded ratios: fails where a decision has become clearly dearer.

Only ratios of CPU time within the run are compared, so neither the machine's speed nor what else
runs on it counts much. What remains is noise, and how much of it there is, the rounds themselves say:
a ratio may be above the recorded one by three standard errors of the difference of the two medians,
each from its own run's spread, and by a small share for what differs between runs and not within one.
A quiet machine therefore finds small losses, and a noisy one cries wolf no more often.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from math import sqrt
from typing import Any

ANYWHERE = ("own cpu / floor", "named cpu / floor")
"""Ratios that are compared on every machine: what is ours of a routed decision (the pipeline with recorded
outputs in place of a pass), and a stream that needs no pass, over a do-nothing server's stream."""

WATCHED = (*ANYWHERE, "server cpu / bare", "busy server cpu / bare", "pipeline cpu / bare")
"""Ratios that are compared on a machine like the recorded one: a faster pass, as VNNI makes it, would let
the same decision look dearer. More is worse in all of them."""

ERRORS = 3.0
"""Standard errors of the difference that are noise: one check in about two hundred lies beyond."""

MEDIAN_ERROR = 1.2533
"""Standard error of a median over that of a mean, sqrt(pi / 2), of a normal distribution."""

DRIFT_SHARE = 0.05
"""Of the recorded ratio: what two runs of the same code differ by on top, from other neighbours on the
machine, other placement in memory, other cores."""

Rounds = Mapping[str, list[float]]
"""Name of a ratio to its value in each round."""


def limits(recorded: Mapping[str, Any], now: Rounds, here: Mapping[str, object]) -> dict[str, float]:
    """The most each ratio's median may be on the machine `here`; ValueError if `recorded` has no spreads."""
    if "spreads" not in recorded:
        raise ValueError("the recorded run has no spreads of its rounds: record it anew with semroute bench")
    like = all(recorded["machine"][key] == here[key] for key in ("cpu", "instructions"))
    found = {}
    for name in WATCHED if like else ANYWHERE:
        value, there = recorded["ratios"][name], recorded["spreads"][name]
        own = statistics.stdev(now[name])
        error = MEDIAN_ERROR * sqrt(there**2 / recorded["rounds"] + own**2 / len(now[name]))
        found[name] = value * (1 + DRIFT_SHARE) + ERRORS * error
    return found


def losses(recorded: Mapping[str, Any], now: Rounds, here: Mapping[str, object]) -> Iterator[str]:
    """One line for each ratio that is beyond its limit."""
    for name, limit in limits(recorded, now, here).items():
        value = statistics.median(now[name])
        if value > limit:
            yield f"{name}: {value:.2f}, recorded {recorded['ratios'][name]:.2f}, allowed {limit:.2f}"
