"""From a pool's gauges to its pressure. Pure; the clock is an argument, in seconds.

Each measure's ramp gives a pressure, and the largest counts. A first-order filter follows it, fast up and
slowly down. The output moves only when the filtered value leaves a dead band around it (a backlash,
without a jump), so gauges that jitter move no request. The feedback through the pools' queues is delayed
by the scrape and by the answers, so without the slow way down the next burst would go straight back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from semroute_extproc.settings.controllers import LoadController, Measure, Ramp

PRESSURE_MIN = 0.005  # A lower pressure counts as none: the filter never quite reaches 0.


def raw_pressure(load: Mapping[str, float], ramps: Mapping[Measure, Ramp]) -> float | None:
    """0 (quiet) to 1 (full) from gauge values; None if no measure with a ramp is known."""
    measures = dict(load)
    if "running" in load and "waiting" in load:
        # At least one running request: a queue in front of nothing is full.
        measures["queue"] = load["waiting"] / max(load["running"], 1.0)
    known = [
        (measures[name] - ramp.begin) / (ramp.full - ramp.begin)
        for name, ramp in ramps.items()
        if math.isfinite(measures.get(name, math.nan))
    ]
    return min(max(*known, 0.0), 1.0) if known else None


class PoolPressure:
    """The pressure of one pool over time."""

    def __init__(self, settings: LoadController, pool: str) -> None:
        self._settings = settings
        self._ramps = settings.pools.get(pool, settings.ramps)
        self._target, self._seen = 0.0, -math.inf
        """The latest raw pressure, and when it was known."""
        self.level, self._updated = 0.0, -math.inf
        """The filtered pressure before the dead band, and the latest time asked for."""
        self._held = 0.0  # The middle of the dead band.

    def observe(self, load: Mapping[str, float], now: float) -> None:
        """Take the pool's gauges; an empty load changes nothing until the last one is stale."""
        raw = raw_pressure(load, self._ramps)
        self.at(now)
        if raw is not None:
            self._target, self._seen = raw, now

    def at(self, now: float) -> float:
        """The pressure, 0..1, falling to 0 once the last load is stale; an earlier `now` changes nothing."""
        if now > self._updated:
            stale = self._seen + self._settings.stale_seconds
            if self._updated < stale < now:
                self._follow(self._target, stale)
            self._follow(self._target if now <= stale else 0.0, now)
            band = self._settings.dead_band
            self._held = min(max(self._held, self.level - band), self.level + band)
        return self.last

    @property
    def last(self) -> float:
        """The pressure at the latest time asked for."""
        # The band is taken off at both ends, so quiet is 0 and full is 1 despite it.
        band = self._settings.dead_band
        pressure = min(max((self._held - band) / (1.0 - 2.0 * band), 0.0), 1.0)
        return pressure if pressure >= PRESSURE_MIN else 0.0

    @property
    def known(self) -> bool:
        """Whether the load was known and not stale at that time."""
        return -math.inf < self._updated <= self._seen + self._settings.stale_seconds

    def _follow(self, target: float, now: float) -> None:
        """First-order lag: the distance to `target` shrinks by e in each time constant."""
        settings = self._settings
        constant = settings.rise_seconds if target > self.level else settings.fall_seconds
        self.level += (target - self.level) * -math.expm1(-(now - self._updated) / constant)
        self._updated = now
