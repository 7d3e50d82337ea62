"""The decision log: sampled decisions and outcomes as JSON Lines or Parquet, written by a thread.

The event loop only puts events into a bounded queue. If the queue is full, or the disk, records are dropped
and counted; requests are never delayed.
"""

import json
import os
import random
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

import msgspec

from semroute_extproc import events as ev
from semroute_extproc.errors import ConfigError
from semroute_extproc.events import Accounted, Decided, Emit, OutcomeReported, Reloaded
from semroute_extproc.settings.process import DecisionLog
from semroute_extproc.telemetry.bus import by_type
from semroute_extproc.telemetry.log import visible
from semroute_extproc.telemetry.record import REQUEST_ID_CHARACTERS_MAX, of_decision, of_outcome, of_usage

QUEUE_MAX = 4_096  # Decisions that wait for the thread
OUTCOMES_MAX = 65_536  # Outcomes and usage that wait; they are small
QUEUE_CHARACTERS_MAX = 64 * 1024**2  # Characters of the requests that wait
BATCH_MAX = 256  # Records written at once
POOLS_MAX = 65_536  # Logged requests whose pool is remembered for their outcomes
PAUSE_SECONDS = 10.0  # Pause of the log after a disk error
CLOSE_SECONDS_MAX = 2.0  # to write the last records

Queued = tuple[Decided | OutcomeReported | Accounted, int]  # an event and its size in characters


class LogFiles:
    """The files of one worker in a folder: `decisions-W.jsonl`, and finished ones with ascending numbers."""

    def __init__(self, folder: Path, worker: int, rotate_bytes: int, keep: int) -> None:
        self._folder, self._worker, self._name = folder, worker, f"decisions-{worker}"
        self._finished = re.compile(rf"(?:{self._name}\.|part-{worker}-)(\d+)\.(?:jsonl|parquet)")
        self._rotate_bytes, self._keep = rotate_bytes, keep
        self._file, self._size = -1, 0

    def append(self, lines: bytes) -> None:
        """Write whole lines; raises OSError, and then the file is as before."""
        if self._file < 0:
            self._open()
        if self._size and self._size + len(lines) > self._rotate_bytes:
            self._rotate()
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._file, lines[written:])
        except OSError:
            if written:
                os.ftruncate(self._file, self._size)
            raise
        self._size += written

    def close(self) -> None:
        """Close the file; `append` opens it again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        """Open the current file, for our user only because it may hold prompts."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{self._name}.jsonl"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size
        if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":
            self._size += os.write(self._file, b"\n")  # A crash cut the last line.

    def _rotate(self) -> None:
        """Finish the file in one step, remove the oldest finished ones, and begin a new file."""
        names = {each: self._finished.fullmatch(each.name) for each in self._folder.rglob("*.*")}
        done = sorted((int(name[1]), each) for each, name in names.items() if name)
        self._finish(done[-1][0] + 1 if done else 1)
        for _, old in done[: max(0, len(done) + 1 - self._keep)]:
            old.unlink(missing_ok=True)
            with suppress(OSError):  # Other files are in its folder.
                old.parent.rmdir()
        self.close()
        self._open()

    def _finish(self, number: int) -> None:
        os.rename(self._folder / f"{self._name}.jsonl", self._folder / f"{self._name}.{number:09}.jsonl")


def log_files(settings: DecisionLog, worker: int) -> LogFiles:
    """The files in the format of the settings; raises ConfigError without the library for it."""
    given = settings.path, worker, settings.rotate_bytes, settings.keep
    if settings.format == "jsonl":
        return LogFiles(*given)
    try:
        from semroute_extproc.telemetry.parquet_files import ParquetFiles
    except ImportError:
        problem = "parquet needs the extra: pip install 'semroute-extproc[parquet]'"
        raise ConfigError([f"telemetry.decision_log.format: {problem}"]) from None
    return ParquetFiles(*given)


class DecisionWriter:
    """The sink that writes the decision log, with a thread of its own until closed."""

    def __init__(
        self, settings: DecisionLog, worker: int, emit: Emit, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._emit, self._clock = settings, emit, clock
        self.logged: Callable[[str, str], object] = lambda _id, _pool: None  # Gets each logged request.
        self._config = ""  # The digest of the live configuration.
        key = settings.key.get_secret_value().encode() if settings.key else secrets.token_bytes(32)
        self._key = key[:64]
        self._files = log_files(settings, worker)
        self._encode = msgspec.json.Encoder().encode
        self._queue = SimpleQueue[Queued | None]()
        self._put = self._taken = 0  # Characters; each counter has one writing thread.
        self._pools = OrderedDict[str, str]()
        self._resume_at = 0.0
        put = self._enqueue
        self.handle = by_type(
            {Decided: self._decided, OutcomeReported: put, Accounted: put, Reloaded: self._reloaded}
        )
        self._thread = Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def pool_of(self, request_id: str) -> str:
        """The pool of a logged request; empty if it is not among the last `POOLS_MAX`."""
        return self._pools.get(request_id[:REQUEST_ID_CHARACTERS_MAX], "")

    def close(self) -> None:
        """Write the remaining records, for at most `CLOSE_SECONDS_MAX`."""
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS_MAX)

    def _reloaded(self, event: Reloaded) -> None:
        self._config = event.sha256

    def _decided(self, event: Decided) -> None:
        if (share := self._settings.sample) < 1.0 and random.random() >= share:  # noqa: S311
            return
        outcome = event.outcome
        view, body = outcome.view, outcome.body
        self._enqueue(event, max(view.characters if view else 0, len(body) if body else 0))

    def _enqueue(self, event: Decided | OutcomeReported | Accounted, size: int = 0) -> None:
        most = QUEUE_MAX if isinstance(event, Decided) else OUTCOMES_MAX
        if self._queue.qsize() >= most or self._put - self._taken + size > QUEUE_CHARACTERS_MAX:
            self._emit(ev.RecordsWritten(1, "queue"))
            return
        if size:  # Only for decisions, which all come from the event loop.
            self._put += size
        self._queue.put((event, size))

    def _run(self) -> None:
        ended = False
        while not ended:
            batch: list[Queued] = []
            with suppress(Empty):
                while len(batch) < BATCH_MAX:
                    found = self._queue.get(block=not batch)
                    if ended := found is None:
                        break
                    batch.append(found)
            lines = [self._line(event) for event, _ in batch]
            self._taken += sum(size for _, size in batch)
            self._write([line for line in lines if line])
        self._files.close()

    def _line(self, event: Decided | OutcomeReported | Accounted) -> bytes:
        """The event's record; empty if that fails, which is counted."""
        try:
            if isinstance(event, Accounted):
                known = event.request_id and self.pool_of(event.request_id)
                return self._encode(of_usage(event)) + b"\n" if known else b""
            if isinstance(event, OutcomeReported):
                return self._encode(of_outcome(event, time.time())) + b"\n"
            record = of_decision(event, self._config, self._settings, self._key)
            if event.request_id:
                self._pools[record["request_id"]] = event.outcome.pool
                self.logged(record["request_id"], event.outcome.pool)
            if len(self._pools) > POOLS_MAX:
                self._pools.popitem(last=False)
            try:
                return self._encode(record) + b"\n"
            except UnicodeEncodeError:  # A lone surrogate, which the standard library escapes.
                return json.dumps(record, separators=(",", ":")).encode() + b"\n"
        except Exception:
            self._emit(ev.Failed("decision_log.failed", event.request_id))
            self._emit(ev.RecordsWritten(1, "error"))
            return b""

    def _write(self, lines: list[bytes]) -> None:
        if not lines:
            return
        if self._clock() < self._resume_at:
            self._emit(ev.RecordsWritten(len(lines), "disk"))
            return
        try:
            self._files.append(b"".join(map(visible, lines)))
            self._emit(ev.RecordsWritten(len(lines)))
        except OSError as error:
            self._resume_at = self._clock() + PAUSE_SECONDS
            with suppress(OSError):
                self._files.close()
            problem = f"{self._settings.path}: {error.strerror or error}"
            self._emit(ev.RecordsWritten(len(lines), "disk", problem))
