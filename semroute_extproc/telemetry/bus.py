"""Dispatches events: from `emit` to every sink, and in a sink by type to a handler."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from semroute_extproc.events import Decided, Emit, Event, Failed, ignore


def by_type(handlers: Mapping[type[Event], Callable[[Any], None]]) -> Emit:
    """A sink that ignores every other event."""
    return lambda event: handlers.get(type(event), ignore)(event)


def to_all(*sinks: Emit) -> Emit:
    """Passes each event to every sink, from any thread, and never raises.

    The failure of a sink does not affect other sinks; it is reported as `telemetry.failed`, once per event.
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
