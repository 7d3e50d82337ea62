"""Everything that happens in the sidecar, as frozen events. Pure.

The code where an event happens calls `emit`; each sink in `telemetry/` handles the types it needs.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from semroute_extproc.outcome import Outcome
from semroute_extproc.policy.context import Shadow
from semroute_extproc.request.usage import Usage
from semroute_extproc.request.view import Api


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
    decided_ns: int
    ended_ns: int
    """Nanoseconds since the epoch of the stream's start, the complete body and the outcome."""
    observed: bool  # Envoy runs in observability mode: the decision was recorded but not applied.


class Accounted(Event, frozen=True):
    """A pool has answered."""

    request_id: str
    api: Api | None
    pool: str
    rule: str
    model: str  # the routed model that the client named, else the pool's
    tenant: str  # bounded, for metrics
    served: str  # the pool's model
    finish: str  # as the pool wrote it; `error` for a status that is not 2xx
    problem: str  # why the usage is missing or estimated: `no_usage`, `cut`, `encoding`, …
    usage: Usage
    dollars: float
    baseline_dollars: float
    cache_saved_dollars: float
    first_token_seconds: float | None  # from the request's last byte, of a stream
    tokens_per_second: float | None  # after the first, of a stream
    parents: tuple[str, ...]  # as in `Decided`
    started_ns: int
    ended_ns: int
    """Nanoseconds since the epoch of the request's first byte and the answer's last."""


class Shadowed(Event, frozen=True):
    """A shadow policy decided after its request was routed."""

    shadow: Shadow


class OutcomeReported(Event, frozen=True):
    """Someone says how good the answer to a request was."""

    request_id: str
    outcome: float  # 0 to 1
    source: str
    label: str = ""  # `good` or `bad`, if it was given as a label
    pool: str = ""  # that got the request; empty if the request is not in the decision log


class RecordsWritten(Event, frozen=True):
    """Records of the decision log were written, or lost for the reason `lost`. Emitted from any thread."""

    count: int
    lost: str = ""  # `queue`, `disk` or `error` (a metric label)
    problem: str = ""


class Failed(Event, frozen=True):
    """An unexpected exception, logged as `where`; emitted inside its `except` block."""

    where: str
    request_id: str = ""


class StreamRefused(Event, frozen=True):
    """A stream was refused because `server.streams_max` were open."""


class CacheLookup(Event, frozen=True):
    """A text was looked up in the signal cache."""

    hit: bool


class RemoteEncoded(Event, frozen=True):
    """An encoder on a server was asked."""

    bundle: str
    result: str  # `ok`, `hedged` (the second server answered), or a cause that begins with `remote_`


class OutOfMemory(Event, frozen=True):
    """A GPU had too little memory for a pass, which is halved. Emitted from any thread."""

    bundle: str


class EncoderLost(Event, frozen=True):
    """A GPU keeps failing for `reason`; the process drains and exits. Emitted once, from any thread."""

    bundle: str
    reason: str = ""


class Scraped(Event, frozen=True):
    """A pool's metrics page was scraped; `load` is empty after a failure or if the page was removed."""

    pool: str
    load: Mapping[str, float]
    failed: bool


class EnvoyChecked(Event, frozen=True):
    """Envoy's view of its clusters was read: each name, and why it takes no request or an empty string."""

    clusters: Mapping[str, str]  # empty if unknown
    failed: bool


class ProfilesRead(Event, frozen=True):
    """The profiles of a `clusters` strategy changed; each problem or thin profile is one sentence."""

    strategy: str
    used: int | None  # How many profiles are used; None for a strategy that was removed.
    problems: Sequence[str] = ()
    models: Sequence[str] = ()  # Profiled models that a pool serves; `without_pool` lists the others.
    without_pool: Sequence[str] = ()
    thin: Sequence[str] = ()


class Reloaded(Event, frozen=True):
    """A configuration went live: the first (generation 1), a changed one or a restored one."""

    sha256: str
    generation: int
    changed: bool = True


class ReloadRejected(Event, frozen=True):
    """A changed configuration was rejected; without problems, the exception being handled is the cause."""

    problems: Sequence[str]


class SessionStoreError(Event, frozen=True):
    """A conversation was not looked up in the store: `timeout`, `error` or `paused` (a metric label)."""

    what: str


class SharedStoreFailed(Event, frozen=True):
    """An exchange with the shared store failed; a key of `state.shared.PROBLEMS` (a metric label)."""

    what: str


class LogDropped(Event, frozen=True):
    """Log lines could not be written: their reader is slow or gone. Emitted from any thread."""

    lines: int


Emit = Callable[[Event], None]
"""A function that takes any event and returns quickly: the bus, and each sink behind it."""


def ignore(_: Event) -> None:
    """An `Emit` that drops the event."""
