"""The bus: every event goes to every sink, and a sink that fails stops neither the others nor the caller."""

from __future__ import annotations

import contextlib

from semroute_extproc.events import Decided, Event, Failed, Sink


class Bus:
    """Distributes events; `emit` may be called from any thread and never raises."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def emit(self, event: Event) -> None:
        """Give the event to every sink; a failure is reported once per event as `telemetry.failed`."""
        reported = False
        for sink in self._sinks:
            try:
                sink.handle(event)
            except Exception:
                request_id = event.request_id if isinstance(event, Decided) else ""
                for other in () if reported else self._sinks:
                    # A failure here is dropped: reporting it could fail again.
                    with contextlib.suppress(Exception):
                        other.handle(Failed("telemetry.failed", request_id))
                reported = True
