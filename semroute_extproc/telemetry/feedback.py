"""Outcomes that come back: `POST /outcomes` on the admin port, one JSON object or JSON Lines."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import compress
from threading import Lock
from typing import Annotated, Literal

import msgspec

from semroute_extproc.events import Emit, OutcomeReported
from semroute_extproc.state.shared import SharedState
from semroute_extproc.telemetry.admin import Page, Posts, as_json, text
from semroute_extproc.telemetry.record import REQUEST_ID_CHARACTERS_MAX

PER_SECOND_MAX, BURST_MAX = 500, 20_000  # Outcomes accepted in the long run, and at once
NDJSON, ENCODE = "application/x-ndjson", msgspec.json.Encoder().encode
KNOWN = "/outcomes/known"  # For the supervisor of several workers.
LABELS = {"good": 1.0, "bad": 0.0}

RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=REQUEST_ID_CHARACTERS_MAX)]


class Report(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a client sends: exactly one of score and label."""

    request_id: RequestId
    score: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None
    label: Literal["good", "bad"] | None = None
    source: Annotated[str, msgspec.Meta(pattern="^[a-z0-9_.-]{1,32}$")] = "user"

    def __post_init__(self) -> None:
        if (self.score is None) == (self.label is None):
            raise ValueError("give exactly one of score and label")

    def event(self, pool: str) -> OutcomeReported:
        """The event that reports it."""
        outcome = LABELS[self.label] if self.label else self.score
        assert outcome is not None
        return OutcomeReported(self.request_id, outcome, self.source, self.label or "", pool)


def reports(body: bytes) -> Iterator[Report]:
    """The reports in a body; raises ValueError with the line and the member."""
    decoder = msgspec.json.Decoder(Report)
    one = body.count(b"{") == 1 and body.rstrip().endswith(b"}")  # It may have several lines.
    lines = [body] if one else body.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield decoder.decode(line)
            except ValueError as error:  # msgspec's errors are ValueErrors
                raise ValueError(f"line {number}: {str(error)[0].lower()}{str(error)[1:]}") from None


class Feedback:
    """Takes the outcomes of logged requests; called by the threads of the admin port."""

    def __init__(
        self,
        pool_of: Callable[[str], str],
        emit: Emit,
        shared: SharedState,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shared` knows the requests of other processes, and what was reported to them."""
        self._pool_of, self._emit, self._clock, self._shared = pool_of, emit, clock, shared
        self.posts: Posts = {"/outcomes": self.post, KNOWN: partial(self.post, known_only=True)}
        self._lock, self._left, self._at = Lock(), float(BURST_MAX), clock()

    def post(self, body: bytes, known_only: bool = False) -> Page:
        """Accept all of a body's outcomes or none; with `known_only`, give back those of other requests."""
        try:
            found = list(reports(body))
        except ValueError as error:
            return text(400, f"{error}\n")
        if not found:
            return text(400, "no outcome: send a JSON object, or one in each line\n")
        if not self._admit(len(found)):
            return text(429, f"more than {PER_SECOND_MAX} outcomes per second: send them again later\n")
        pools = {each.request_id: self._pool_of(each.request_id) for each in found}
        pools |= self._shared.pools_of([name for name, pool in pools.items() if not pool])
        taken = [each for each in found if pools[each.request_id] or not known_only]
        new = self._shared.first([ENCODE(each).decode() for each in taken])
        for each in compress(taken, new):
            self._emit(each.event(pools[each.request_id]))
        if not known_only:
            return as_json({"accepted": len(taken)})
        return Page(200, NDJSON, b"\n".join(ENCODE(each) for each in found if not pools[each.request_id]))

    def _admit(self, count: int) -> bool:
        """Take `count` from a bucket that fills by `PER_SECOND_MAX` up to `BURST_MAX`."""
        with self._lock:
            now = self._clock()
            self._left = min(self._left + (now - self._at) * PER_SECOND_MAX, BURST_MAX)
            self._at = now
            admitted = self._left >= count
            self._left -= count * admitted
            return admitted
