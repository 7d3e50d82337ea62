"""A circuit breaker. Pure; the clock is an argument, in seconds of any clock that never goes back."""

from __future__ import annotations


class Breaker:
    """Open after `failures_max` failures in a row, then one probe at a time.

    closed ──failures_max failures──▶ open ──seconds──▶ half-open ──success──▶ closed
                                       ▲                    │
                                       └──────failure───────┘
    """

    def __init__(self, failures_max: int, seconds: float) -> None:
        self._failures_max, self._seconds = failures_max, seconds
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False

    def allows(self, now: float) -> bool:
        """Whether to ask now; a request that an open breaker allows is the probe.

        Report the probe with `succeeded`, `failed` or `gave_up`, other requests with what they learn.
        """
        if self.paused(now) or self._probing:
            return False
        self._probing = self.is_open
        return True

    def paused(self, now: float) -> bool:
        """Open, and too early for a probe."""
        return self._open_until is not None and now < self._open_until

    def succeeded(self) -> None:
        """A usable answer."""
        self._failures, self._open_until, self._probing = 0, None, False

    def failed(self, now: float) -> None:
        """No usable answer."""
        self._failures += 1
        self._probing = False
        if self.is_open or self._failures >= self._failures_max:
            self._open_until = now + self._seconds

    def gave_up(self) -> None:
        """The probe was not sent or was cancelled, which says nothing about the other side."""
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Requests are refused, except for a probe."""
        return self._open_until is not None
