"""A short run against recorded ratios: fails where a decision has become clearly dearer.

Only ratios of CPU time within the run are compared, so neither the machine's speed nor what else
runs on it counts much. The tolerance is a share of the recorded *overhead*, what the ratio has above
1, or a floor for noise, whichever is more. The floors are wide on purpose: a check that cries wolf is
switched off, and what it is there to find doubles an overhead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

WATCHED: Mapping[str, float] = {
    "server cpu / bare": 0.20,
    "busy server cpu / bare": 0.20,
    "pipeline cpu / bare": 0.12,
    "named cpu / floor": 0.45,
}
"""Ratio to the noise that is allowed for it; `named cpu / floor` is the inverse of `floor cpu / named`."""

OVERHEAD_SHARE = 0.5
"""Of the recorded overhead; it may be half as much again before it counts as a loss."""


def watched(ratios: Mapping[str, float]) -> dict[str, float]:
    """The ratios that are compared: more is worse in all of them."""
    return {
        name: 1 / ratios["floor cpu / named"] if name == "named cpu / floor" else ratios[name]
        for name in WATCHED
    }


def limits(recorded: Mapping[str, float]) -> dict[str, float]:
    """The most each ratio may be."""
    return {
        name: value + max(OVERHEAD_SHARE * (value - 1.0), WATCHED[name])
        for name, value in watched(recorded).items()
    }


def losses(recorded: Mapping[str, float], now: Mapping[str, float]) -> Iterator[str]:
    """One line for each ratio that is beyond its limit."""
    bounds = limits(recorded)
    for name, value in watched(now).items():
        if value > bounds[name]:
            was = watched(recorded)[name]
            yield f"{name}: {value:.2f}, recorded {was:.2f}, allowed {bounds[name]:.2f}"
