"""Telemetry: one frozen event, told to every sink.

    log    one structured line a decision
    prom   Prometheus metrics
    otel   OpenTelemetry spans

No prompt text, key or header value leaves through any of them, unless the operator set
`telemetry.log_prompts`.
"""

from __future__ import annotations

import re
from typing import Protocol

import msgspec

from semroute_extproc.outcome import Outcome

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)
"""W3C Trace Context, section 3.2; whatever else a client may send is not repeated."""


class Decided(msgspec.Struct, frozen=True):
    """One request has been dealt with."""

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
    """Envoy runs us in observability mode: the decision was recorded and not acted on."""

    @property
    def trace_id(self) -> str:
        """Of the nearest parent that is well formed, 32 hexadecimal digits; empty if none is."""
        found = (_TRACEPARENT.fullmatch(parent) for parent in self.parents)
        return next((match[1] for match in found if match), "")


class Sink(Protocol):
    """Somewhere an event goes."""

    def decided(self, event: Decided) -> None:
        """Take one event; must be quick and must not raise."""
        ...
