"""What the judge remembers: scores it gave, and whether it is worth asking.

Pure: the clock is an argument, seconds on any clock that never goes back.
"""

from __future__ import annotations

from collections import OrderedDict


class Scores:
    """A bounded cache: the least recently used score goes first, and none outlives its time."""

    def __init__(self, entries_max: int, seconds: float) -> None:
        """With `entries_max` 0 nothing is kept."""
        self._entries_max = entries_max
        self._seconds = seconds
        self._scores: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def get(self, key: bytes, now: float) -> float | None:
        """The score of `key` if it is still fresh."""
        found = self._scores.get(key)
        if found is None:
            return None
        score, until = found
        if now >= until:
            del self._scores[key]
            return None
        self._scores.move_to_end(key)
        return score

    def put(self, key: bytes, score: float, now: float) -> None:
        """Keep a score."""
        self._scores[key] = (score, now + self._seconds)
        self._scores.move_to_end(key)
        while len(self._scores) > self._entries_max:
            self._scores.popitem(last=False)

    def __len__(self) -> int:
        return len(self._scores)


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
        """Whether to ask now; while it is open, whoever is allowed is the probe.

        The probe must say `succeeded`, `failed` or `gave_up` later, the others what they learn.
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
        """The probe was not asked after all, or whoever asked went away: that says nothing of the judge."""
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Requests are kept away, except for a probe."""
        return self._open_until is not None
