"""A circuit breaker. Pure: the clock is an argument, seconds on any monotonic clock."""

from __future__ import annotations


class Breaker:
    """A circuit breaker: open after `failures_max` failures in a row, then one probe at a time.

    closed ──failures_max failures──▶ open ──seconds──▶ half-open ──success──▶ closed
                                       ▲                    │
                                       └──────failure───────┘
    """

    def __init__(self, failures_max: int, seconds: float) -> None:
        self._failures_max = failures_max
        self._seconds = seconds
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False

    def allows(self, now: float) -> bool:
        """Whether to ask now; while it is open, the one that is allowed is the probe.

        The probe must report `succeeded`, `failed` or `gave_up` later, the others only what they learn.
        """
        if self._open_until is None:
            return True
        if now < self._open_until or self._probing:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """An answer that could be used."""
        self._failures = 0
        self._open_until = None
        self._probing = False

    def failed(self, now: float) -> None:
        """No answer that could be used."""
        self._failures += 1
        self._probing = False
        if self._open_until is not None or self._failures >= self._failures_max:
            self._open_until = now + self._seconds

    def gave_up(self) -> None:
        """The probe ended without a result, which says nothing about the endpoint."""
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Requests are kept away, except for a probe."""
        return self._open_until is not None
