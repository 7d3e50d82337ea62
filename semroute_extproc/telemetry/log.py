"""Structured logs: console on a terminal, JSON otherwise, one canonical line a decision."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from semroute_extproc import outcome as outcomes
from semroute_extproc.events import Decided, Event
from semroute_extproc.settings.process import Telemetry


def configure(settings: Telemetry) -> None:
    """Send structlog and the standard library's loggers through one renderer on stderr."""
    console = _console(settings)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks go without the frames' variables: they hold prompts.
    tracebacks = structlog.processors.ExceptionRenderer(
        structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    )
    renderer: list[Any] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [tracebacks, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # It tells of every change in the configuration's directory: of a log there ten times a second, for ever.
    logging.getLogger("watchfiles").setLevel(max(root.level, logging.WARNING))


def _console(settings: Telemetry) -> bool:
    return settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())


class LogSink:
    """One line a decision, with the facts that also go to Envoy as metadata.

    As JSON it is encoded and written here: the way through structlog and logging to the same bytes
    costs more than everything else that is done for a request whose pool is named.
    """

    def __init__(self, settings: Telemetry, worker: int | None = None) -> None:
        """With `log_prompts` the classified text is part of the line; `worker` is the process's number."""
        self._worker = worker
        self._prompts = settings.log_prompts
        self._console = _console(settings)
        self._log = structlog.get_logger("semroute")
        self._silent = settings.log_level in ("warning", "error")
        self._encode = msgspec.json.Encoder().encode

    def handle(self, event: Event) -> None:
        """See `Sink.handle`."""
        if isinstance(event, Decided):
            self.decided(event)

    def decided(self, event: Decided) -> None:
        """Take a decision."""
        if self._silent:
            return
        facts = self._facts(event)
        if self._console:
            self._log.info("route.decided", **facts)
            return
        if self._worker is not None:
            facts["worker"] = self._worker
        facts["event"] = "route.decided"
        facts["level"] = "info"
        ended = datetime.fromtimestamp(event.ended_ns / 1e9, UTC)
        facts["timestamp"] = ended.isoformat(timespec="microseconds").replace("+00:00", "Z")
        sys.stderr.write(self._encode(facts).decode() + "\n")

    def _facts(self, event: Decided) -> dict[str, Any]:
        outcome = event.outcome
        facts: dict[str, Any] = outcomes.facts(outcome)
        facts["request_id"] = event.request_id
        facts["path"] = event.path
        facts["decision_ms"] = round(outcome.total_ms, 3)
        if event.observed:
            facts["observed"] = True
        if trace_id := event.trace_id:
            facts["trace_id"] = trace_id
        if outcome.signals is not None:
            facts["tokens"] = outcome.signals.tokens
        for name, ms in outcome.milliseconds().items():
            facts[f"{name}_ms"] = round(ms, 3)
        if self._prompts and outcome.text:
            facts["text"] = outcome.text
        return facts
