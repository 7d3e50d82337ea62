"""Everything that happens in the sidecar, as frozen events, and the one way to report it.

Pure. The code that notices something builds an event and calls `emit`. The sinks in `telemetry/`
(log, metrics, spans) take the events that concern them. A telemetry failure never affects a decision.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from semroute_extproc.outcome import Outcome
from semroute_extproc.policy.shadow import Shadow

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)
"""W3C Trace Context, section 3.2; anything else that a client sends is not repeated."""


class Event(msgspec.Struct, frozen=True):
    """Base of every event."""


class Decided(Event, frozen=True):
    """One request has been handled."""

    outcome: Outcome
    request_id: str
    path: str
    parents: tuple[str, ...]
    """W3C `traceparent` values, nearest parent first; possibly none, possibly malformed."""
    started_ns: int
    """When the stream began, nanoseconds since the epoch."""
    decided_ns: int
    """When the body was complete and the decision began."""
    ended_ns: int
    observed: bool
    """Envoy runs in observability mode: the decision was recorded but not applied."""

    @property
    def trace_id(self) -> str:
        """Of the nearest well-formed parent, 32 hexadecimal digits; empty if there is none."""
        for parent in self.parents:
            if match := _TRACEPARENT.fullmatch(parent):
                return match[1]
        return ""


class Shadowed(Event, frozen=True):
    """A shadow policy decided after its request had been answered."""

    shadow: Shadow


class Failed(Event, frozen=True):
    """An unexpected exception; emitted while it is being handled, so that the log can show it."""

    where: str
    """Log event name: `decision.failed`, `exchange.failed`, `telemetry.failed`, `watch.failed`."""
    request_id: str = ""


class StreamRefused(Event, frozen=True):
    """A stream was refused because `server.streams_max` were open."""


class CacheLookup(Event, frozen=True):
    """A text was looked up in the signal cache."""

    hit: bool


class OutOfMemory(Event, frozen=True):
    """A GPU had too little memory for a pass, which is halved. Emitted from any thread."""

    bundle: str


class EncoderLost(Event, frozen=True):
    """A GPU keeps failing: the process drains and exits. Emitted once, from any thread."""

    bundle: str
    reason: str = ""
    """One sentence: what failed."""


class Scraped(Event, frozen=True):
    """A pool's metrics page was scraped, with or without success."""

    pool: str
    load: Mapping[str, float]
    """Gauge to value; empty if the scrape failed or the pool has no metrics page any more."""
    failed: bool


class ProfilesRead(Event, frozen=True):
    """The profiles of a `clusters` strategy changed."""

    strategy: str
    used: int | None
    """How many profiles are used; None for a strategy that was removed."""
    problems: Sequence[str] = ()
    models: Sequence[str] = ()
    """Profiled models that a pool serves."""
    without_pool: Sequence[str] = ()
    """Profiled models that no pool serves."""
    thin: Sequence[str] = ()
    """One sentence for each profile with too few answers."""


class Reloaded(Event, frozen=True):
    """A configuration is live: the first, a changed one, or the restored one (`changed` is false)."""

    sha256: str
    generation: int
    """1 for the first configuration of the process; each change adds 1."""
    changed: bool = True
    notes: Sequence[str] = ()
    """Deprecated settings that the configuration uses, one sentence each."""


class ReloadRejected(Event, frozen=True):
    """A changed configuration was rejected; the last good one stays live."""

    problems: Sequence[str]
    """Empty for an unexpected exception; the event is emitted while it is being handled."""


class SessionStoreError(Event, frozen=True):
    """The shared session store did not answer."""

    what: str
    """`timeout`, `error`, `paused`, `write_error` or `write_dropped`; a metric label."""


Emit = Callable[[Event], None]


class Sink(Protocol):
    """A receiver of events."""

    def handle(self, event: Event) -> None:
        """Take one event, quickly. Unknown events are ignored."""
        ...


def ignore(_: Event) -> None:
    """An `Emit` without sinks: for explain, check and tests."""
