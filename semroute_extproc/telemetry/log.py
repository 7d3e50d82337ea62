"""Structured logs: console on a terminal, JSON otherwise, one line per decision.

A thread writes them, so that a reader that stops reading (a full pipe) never blocks the server.
"""

import atexit
import json
import logging
import os
import re
import select
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import msgspec
import structlog
from structlog.stdlib import ProcessorFormatter

from semroute_extproc import events as ev
from semroute_extproc import outcome as outcomes
from semroute_extproc.settings.base import redacted
from semroute_extproc.settings.process import Telemetry
from semroute_extproc.telemetry.bus import by_type

PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
"""W3C Trace Context, section 3.2; a client's value in any other format is not logged."""

LINES_MAX = 2_048  # Lines that wait for the log's reader; more are dropped and counted
BATCH_SECONDS = 0.05  # Delay of a line, so that lines are written together
FLUSH_SECONDS_MAX = 2.0  # Time to write the last lines when the process ends
VALUE_CHARACTERS_MAX = 256  # of a path or a request ID; Envoy accepts 60 kB of them

log = structlog.get_logger("semroute")


class LineWriter:
    """Writes lines to a file descriptor from a thread of its own; no method waits for the reader."""

    def __init__(self, descriptor: int, lines_max: int = LINES_MAX) -> None:
        self.emit: ev.Emit = ev.ignore
        self._descriptor, self._lines_max = descriptor, lines_max
        self._lines = SimpleQueue[bytes | Event]()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="log", daemon=True)
            self._thread.start()

    def put(self, line: bytes) -> None:
        """Write a line soon, or count it if too many wait."""
        if self._lines.qsize() < self._lines_max:
            self._lines.put(line)
        else:
            self.emit(ev.LogDropped(1))

    def write(self, text: str) -> None:
        """As a text stream, for `logging`; URLs are shown without their secrets."""
        self.put(redacted(text).encode("utf-8", "backslashreplace"))

    def drain(self, seconds: float = FLUSH_SECONDS_MAX) -> bool:
        """Wait until every line is written, for at most `seconds`; returns whether all are."""
        written = Event()
        self._lines.put(written)
        return self._thread is None or written.wait(seconds)

    def _run(self) -> None:
        while True:
            batch = [self._lines.get()]
            time.sleep(BATCH_SECONDS)
            batch += [self._lines.get() for _ in range(self._lines.qsize())]
            lines = [visible(each) for each in batch if isinstance(each, bytes)]
            try:
                for data in _writes(lines):
                    while data:
                        try:
                            data = data[os.write(self._descriptor, data) :]
                        except BlockingIOError:
                            select.select([], [self._descriptor], [])
            except OSError:
                self.emit(ev.LogDropped(len(lines)))
            for each in batch:
                if isinstance(each, Event):
                    each.set()


def visible(line: bytes) -> bytes:
    """A line in UTF-8 whose characters beyond ASCII are printable; others are escaped as in JSON.

    JSON escapes only those below a space. Some others end a line or control a terminal.
    """
    if line.isascii():
        return line
    shown = (c if c.isascii() or c.isprintable() else json.dumps(c)[1:-1] for c in line.decode())
    return "".join(shown).encode()


def _writes(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, together as long as a pipe takes at once: other processes may write to it too."""
    data = b""
    for line in lines:
        if data and len(data) + len(line) > select.PIPE_BUF:
            yield data
            data = b""
        data += line
    yield data


WRITER = LineWriter(2)  # Standard error, for the whole process.


def configure(settings: Telemetry) -> None:
    """Send structlog and the standard library's loggers through one renderer on stderr."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if _console(settings):
        plain = structlog.dev.plain_traceback
        renderer: list[Any] = [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    else:
        # Tracebacks omit local variables, because they hold prompts.
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        rendered = structlog.processors.ExceptionRenderer(tracebacks)
        renderer = [rendered, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler, root = logging.StreamHandler(WRITER), logging.getLogger()
    logging.captureWarnings(True)
    WRITER.start()
    atexit.register(WRITER.drain)
    processors = [ProcessorFormatter.remove_processors_meta, *renderer]
    handler.setFormatter(ProcessorFormatter(foreign_pre_chain=shared, processors=processors))
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # These libraries log every request and every change of a watched file, including the log itself.
    for library in ("watchfiles", "httpx2", "httpcore2"):
        logging.getLogger(library).setLevel(max(root.level, logging.WARNING))


def _console(settings: Telemetry) -> bool:
    return settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())


class LogSink:
    """Logs every event that an operator should see; a decision is one line with its facts.

    A decision as JSON is encoded and written here. For the same bytes, structlog and logging would take
    longer than all other work for a request that names its pool.
    """

    def __init__(self, settings: Telemetry) -> None:
        """With `log_prompts` the classified text is part of the line."""
        self._prompts, self._console = settings.log_prompts, _console(settings)
        self._context = structlog.contextvars.get_contextvars()
        self._encode = msgspec.json.Encoder().encode
        handlers: dict[type[ev.Event], Any] = {
            ev.Failed: lambda event: log.exception(
                event.where, request_id=event.request_id[:VALUE_CHARACTERS_MAX]
            ),
            ev.EncoderLost: lambda event: log.error("gpu.lost", bundle=event.bundle, reason=event.reason),
            ev.ProfilesRead: _profiles_read,
            ev.Reloaded: _reloaded,
            ev.ReloadRejected: _rejected,
            ev.RecordsWritten: _records,
        }
        if settings.log_decisions:
            handlers[ev.Accounted] = _accounted
            handlers[ev.Shadowed] = lambda event: log.info("shadow.decided", **asdict(event.shadow))
            if settings.log_level not in ("warning", "error"):
                handlers[ev.Decided] = self._decided
        self.handle = by_type(handlers)

    def _decided(self, event: ev.Decided) -> None:
        outcome = event.outcome
        facts: dict[str, Any] = outcomes.facts(outcome)
        facts["request_id"] = event.request_id[:VALUE_CHARACTERS_MAX]
        facts["path"] = event.path[:VALUE_CHARACTERS_MAX]
        facts["decision_ms"] = round(outcome.total_ms, 3)
        if event.observed:
            facts["observed"] = True
        if event.parents and (parent := next(filter(None, map(PARENT.fullmatch, event.parents)), None)):
            facts["trace_id"] = parent[1]
        if outcome.signals is not None:
            facts["tokens"] = outcome.signals.tokens
        for name, ms in outcome.milliseconds().items():
            facts[f"{name}_ms"] = round(ms, 3)
        if self._prompts and outcome.text:
            facts["text"] = outcome.text
        if self._console:
            log.info("route.decided", **facts)
            return
        ended = datetime.fromtimestamp(event.ended_ns / 1e9, UTC).isoformat(timespec="microseconds")
        timestamp = ended.replace("+00:00", "Z")
        facts.update(self._context, event="route.decided", level="info", timestamp=timestamp)
        WRITER.put(self._encode(facts) + b"\n")


def _accounted(event: ev.Accounted) -> None:
    facts = msgspec.to_builtins(event)
    log.info("route.answered", **{key: value for key, value in facts.items() if value and key != "parents"})


def _profiles_read(event: ev.ProfilesRead) -> None:
    if event.used is not None:
        about = log.bind(strategy=event.strategy)
        about.info("profiles.read", models=list(event.models), without_pool=list(event.without_pool))
        for problem in event.problems:
            about.error("profile.rejected", problem=problem)
        for certainty in event.thin:
            about.warning("profile.thin", certainty=certainty)


def _records(event: ev.RecordsWritten) -> None:
    if event.problem:
        log.error("decision_log.paused", problem=event.problem)


def _reloaded(event: ev.Reloaded) -> None:
    if not event.changed:
        log.info("config.restored", generation=event.generation)
    elif event.generation > 1:
        log.info("config.reloaded", generation=event.generation, sha256=event.sha256[:12])


def _rejected(event: ev.ReloadRejected) -> None:
    why: Any = {"problems": list(event.problems)} if event.problems else {"exc_info": True}
    log.error("config.rejected", **why)
