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
                if not reported:
                    self._report(event)
                reported = True

    def _report(self, event: Event) -> None:
        failed = Failed("telemetry.failed", event.request_id if isinstance(event, Decided) else "")
        for sink in self._sinks:
            # A failure here is dropped: reporting it could fail again.
            with contextlib.suppress(Exception):
                sink.handle(failed)
