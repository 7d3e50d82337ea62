"""Structured logs: console on a terminal, JSON otherwise, one line per decision."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from semroute_extproc import events as ev
from semroute_extproc import outcome as outcomes
from semroute_extproc.settings.process import Telemetry

log = structlog.get_logger("semroute")


def configure(settings: Telemetry) -> None:
    """Send structlog and the standard library's loggers through one renderer on stderr."""
    console = _console(settings)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks without the frames' variables, which hold prompts.
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
    # It logs every change in the watched directory: its own output, if the log is written there.
    logging.getLogger("watchfiles").setLevel(max(root.level, logging.WARNING))


def _console(settings: Telemetry) -> bool:
    return settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())


class LogSink:
    """Logs every event that an operator should see; a decision is one line with its facts.

    A decision as JSON is encoded and written here: structlog and logging would take longer for the
    same bytes than everything else that is done for a request that names its pool.
    """

    def __init__(self, settings: Telemetry, worker: int | None = None) -> None:
        """With `log_prompts` the classified text is part of the line; `worker` is the process's number."""
        self._worker = worker
        self._prompts = settings.log_prompts
        self._console = _console(settings)
        self._encode = msgspec.json.Encoder().encode
        self._handlers: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.Failed: lambda event: log.exception(event.where, request_id=event.request_id),
            ev.EncoderLost: lambda event: log.error("gpu.lost", bundle=event.bundle, reason=event.reason),
            ev.ProfilesRead: self._profiles_read,
            ev.Reloaded: self._reloaded,
            ev.ReloadRejected: self._rejected,
        }
        if settings.log_decisions:
            self._handlers[ev.Shadowed] = lambda event: log.info("shadow.decided", **asdict(event.shadow))
            if settings.log_level not in ("warning", "error"):
                self._handlers[ev.Decided] = self._decided

    def handle(self, event: ev.Event) -> None:
        """See `Sink.handle`."""
        if (handler := self._handlers.get(type(event))) is not None:
            handler(event)

    def _decided(self, event: ev.Decided) -> None:
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
        if self._console:
            log.info("route.decided", **facts)
            return
        if self._worker is not None:
            facts["worker"] = self._worker
        facts["event"] = "route.decided"
        facts["level"] = "info"
        ended = datetime.fromtimestamp(event.ended_ns / 1e9, UTC)
        facts["timestamp"] = ended.isoformat(timespec="microseconds").replace("+00:00", "Z")
        sys.stderr.write(self._encode(facts).decode() + "\n")

    def _profiles_read(self, event: ev.ProfilesRead) -> None:
        if event.used is None:
            return
        strategy, models, without_pool = event.strategy, list(event.models), list(event.without_pool)
        log.info("profiles.read", strategy=strategy, models=models, without_pool=without_pool)
        for problem in event.problems:
            log.error("profile.rejected", strategy=strategy, problem=problem)
        for certainty in event.thin:
            log.warning("profile.thin", strategy=strategy, certainty=certainty)

    def _reloaded(self, event: ev.Reloaded) -> None:
        for note in event.notes:
            log.warning("config.note", note=note)
        if not event.changed:
            log.info("config.restored", generation=event.generation)
        elif event.generation > 1:
            log.info("config.reloaded", generation=event.generation, sha256=event.sha256[:12])

    def _rejected(self, event: ev.ReloadRejected) -> None:
        if event.problems:
            log.error("config.rejected", problems=list(event.problems))
        else:
            log.exception("config.rejected")
