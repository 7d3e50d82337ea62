"""A circuit breaker. Pure; the time is an argument, in seconds of any monotonic clock."""


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
        """Whether to send a request now; one that an open breaker allows is the probe.

        The caller must end the probe with `succeeded`, `failed` or `gave_up`, and report other results.
        """
        if self._probing or (self._open_until is not None and now < self._open_until):
            return False
        self._probing = self.is_open
        return True

    def succeeded(self) -> None:
        """Record a usable answer."""
        self._failures, self._open_until, self._probing = 0, None, False

    def failed(self, now: float) -> None:
        """Record the lack of a usable answer."""
        self._failures += 1
        self._probing = False
        if self.is_open or self._failures >= self._failures_max:
            self._open_until = now + self._seconds

    def gave_up(self) -> None:
        """End a probe that was not sent or was cancelled; it says nothing about the endpoint."""
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether requests other than a probe are refused."""
        return self._open_until is not None
