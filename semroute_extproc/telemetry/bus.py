"""From one `emit` to the sinks, and in a sink from an event's type to its handler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from semroute_extproc.events import Decided, Emit, Event, Failed, ignore


def by_type(handlers: Mapping[type[Event], Callable[[Any], None]]) -> Emit:
    """A sink that ignores every other event."""
    return lambda event: handlers.get(type(event), ignore)(event)


def to_all(*sinks: Emit) -> Emit:
    """Gives each event to every sink, in any thread, and never raises.

    A sink that fails stops no other; it is reported once per event, as `telemetry.failed`.
    """

    def emit(event: Event) -> None:
        reported = False
        for sink in sinks:
            try:
                sink(event)
            except Exception:
                request_id = event.request_id if isinstance(event, Decided) else ""
                for other in () if reported else sinks:
                    # A failure here is dropped: reporting it could fail again.
                    with contextlib.suppress(Exception):
                        other(Failed("telemetry.failed", request_id))
                reported = True

    return emit
