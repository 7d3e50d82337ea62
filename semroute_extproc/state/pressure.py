"""Computes a pool's pressure from its gauges. Pure; the time is an argument, in seconds.

Each measure's ramp gives a pressure, and the largest is used. A first-order filter follows it, rising fast
and falling slowly. The output changes only when the filtered value leaves a dead band around it (backlash
without a jump), so that jitter in the gauges moves no requests. The fall is slow because feedback through
the pools' queues is delayed by scrapes and answers: a fast fall would send the next burst straight back.
"""

import math
from collections.abc import Mapping

from semroute_extproc.settings.controllers import LoadController, Measure, Ramp

PRESSURE_MIN = 0.005  # Lower values count as 0, which the filter never reaches exactly.


def raw_pressure(load: Mapping[str, float], ramps: Mapping[Measure, Ramp]) -> float | None:
    """Pressure from 0 (none) to 1 (full); None if the load has no measure with a ramp."""
    measures = dict(load)
    if "running" in load and "waiting" in load:
        # Divide by at least 1: if none is running, one waiting request already counts as a full queue.
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
        self._target, self._seen = 0.0, -math.inf  # The latest raw pressure, and the time of its load.
        self.level, self._updated = 0.0, -math.inf  # The pressure before the dead band, and its time.
        self._held = 0.0  # The middle of the dead band.

    def observe(self, load: Mapping[str, float], now: float) -> None:
        """Update from the pool's gauges; an empty load is ignored until the last one is stale."""
        raw = raw_pressure(load, self._ramps)
        self.at(now)
        if raw is not None:
            self._target, self._seen = raw, now

    def at(self, now: float) -> float:
        """The pressure, 0..1, which falls to 0 once the load is stale; an earlier `now` is ignored."""
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
        """The pressure at the last update."""
        # Rescale to remove the band at both ends, so that the pressure still reaches 0 and 1.
        band = self._settings.dead_band
        pressure = min(max((self._held - band) / (1.0 - 2.0 * band), 0.0), 1.0)
        return pressure if pressure >= PRESSURE_MIN else 0.0

    @property
    def known(self) -> bool:
        """Whether the load was known and not stale at the last update."""
        return -math.inf < self._updated <= self._seen + self._settings.stale_seconds

    def _follow(self, target: float, now: float) -> None:
        """First-order lag: the distance to `target` shrinks by a factor of e per time constant."""
        settings = self._settings
        constant = settings.rise_seconds if target > self.level else settings.fall_seconds
        self.level += (target - self.level) * -math.expm1(-(now - self._updated) / constant)
        self._updated = now
