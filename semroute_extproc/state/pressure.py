"""The load controller: from a pool's gauges to its pressure.

Pure; the clock is an argument, in seconds. Three steps: each measure's ramp gives a pressure and
the largest counts; a first-order filter follows it, fast up and slowly down; and what is told only
moves when the filtered value leaves a dead band around it (a backlash: the hysteresis is the band's
width, and there is no jump), so that gauges which merely jitter move no request. Feedback through
the pools' queues is delayed by the scrape and by the time an answer takes, hence the slow way down:
pressure that fell as fast as it rose would send the next burst straight back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from semroute_extproc.settings.controllers import LoadController, Measure, Ramp

QUEUE = "queue"
"""The measure that is made of two gauges: waiting requests for each running one."""

PRESSURE_MIN = 0.005
"""Less than this is none: a lag would otherwise never quite come to rest."""


def raw_pressure(load: Mapping[str, float], ramps: Mapping[Measure, Ramp]) -> float | None:
    """0 (quiet) to 1 (full); None if no measure with a ramp is known.

    `load` is gauge to value. A measure that is not known takes no part: unknown is not zero, and
    not full either.
    """
    measures = dict(load)
    if "running" in load and "waiting" in load:
        # One running request at least: a queue in front of nothing is a full one.
        measures[QUEUE] = load["waiting"] / max(load["running"], 1.0)
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
        self._target = 0.0
        """Raw pressure that was last known."""
        self._seen = -math.inf
        """When it was."""
        self._level = 0.0
        """The filter's state, at `_updated`."""
        self._updated = -math.inf
        self._held = 0.0
        """The middle of the dead band."""

    def observe(self, load: Mapping[str, float], now: float) -> None:
        """A look at the pool; an empty load says nothing, and the last one counts until it is stale."""
        raw = raw_pressure(load, self._ramps)
        self.at(now)
        if raw is not None:
            self._target, self._seen = raw, now

    def at(self, now: float) -> float:
        """The pressure, 0..1; from `stale_seconds` after the last load on it falls to 0.

        The clock must not run backwards: an earlier `now` than the last changes nothing.
        """
        if now > self._updated:
            stale = self._seen + self._settings.stale_seconds
            if self._updated < stale < now:
                self._follow(self._target, stale)
            self._follow(self._target if now <= stale else 0.0, now)
            band = self._settings.dead_band
            self._held = min(max(self._held, self._level - band), self._level + band)
        return self.last

    @property
    def last(self) -> float:
        """The pressure at the latest time asked for."""
        # The band is taken off at both ends, so that quiet is 0 and full is 1 in spite of it.
        band = self._settings.dead_band
        pressure = min(max((self._held - band) / (1.0 - 2.0 * band), 0.0), 1.0)
        return pressure if pressure >= PRESSURE_MIN else 0.0

    @property
    def level(self) -> float:
        """The filtered pressure before the dead band, then."""
        return self._level

    @property
    def known(self) -> bool:
        """Whether a load was known that was not stale, then."""
        return -math.inf < self._updated <= self._seen + self._settings.stale_seconds

    def _follow(self, target: float, now: float) -> None:
        """First-order lag towards `target`: what is missing shrinks by e with each time constant."""
        seconds = now - self._updated
        rising = target > self._level
        constant = self._settings.rise_seconds if rising else self._settings.fall_seconds
        self._level += (target - self._level) * -math.expm1(-seconds / constant)
        self._updated = now
