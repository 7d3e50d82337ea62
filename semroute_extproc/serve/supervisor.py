"""Several workers as one service: processes on sockets of their own, kept running, asked as one.

A worker is `semroute serve` in a process of its own with the same configuration file, a socket of
its own and an admin socket that only we read. What they share is the file: each watches it and
takes a change by itself, and we say so when they differ for long. One that ends is started again,
the first time at once and then ever later, and the others never notice. One that hangs is killed, and
is then one that ended. One that cannot start because of the configuration or the bundle (78) ends
everything with that status: it would not get any better. If we are killed, the workers see the end
of their standard input and drain.

Memory is not shared, so N workers hold N models. Metrics keep a series a worker, labelled so:
summed here, a worker that starts again would make counters fall.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from semroute_extproc import __version__
from semroute_extproc.config import source as config_source
from semroute_extproc.config.models import Config
from semroute_extproc.serve.exposition import merged
from semroute_extproc.telemetry import log
from semroute_extproc.telemetry.admin import AdminServer, Page, text

EXIT_CONFIG = 78
"""A worker that ends with this cannot be helped by starting it again."""

BACKOFF_SECONDS_MIN = 0.2
BACKOFF_SECONDS_MAX = 30.0
"""Pause before a worker is started again; it doubles each time."""

STEADY_SECONDS = 60.0
"""A worker that has run for so long is started again without the pauses of earlier times."""

POLL_SECONDS = 0.5
"""Between two looks at the workers."""

PAGE_SECONDS_MAX = 2.0
"""How long a worker may take to answer us."""

HUNG_LOOKS = 60
"""Looks in a row that find no life in a worker before it is killed: half a minute as a rule, 150 seconds if
it takes up every question and answers none. Counted and not timed, so that a pause of ours or of the
whole machine is nobody's fault; and so many that a worker is not killed for having too much to do."""

STOP_SECONDS_MAX = 10.0
"""Beyond the drain: how long the workers may take to end before they are killed."""

FOLDER_PREFIX = ".workers-"
"""Beginning of the name of a folder of admin sockets."""

MISMATCH_SECONDS = 30.0
"""How long workers may have different configurations before it is logged."""

logger = structlog.get_logger("semroute.supervisor")


@dataclass(eq=False)
class Worker:
    """One worker process, and what it last said of itself."""

    index: int
    admin: Path
    command: list[str]
    process: asyncio.subprocess.Process | None = None
    ready: bool = False
    sha256: str = ""
    restarts: int = 0
    hangs: int = 0
    answered: bool = False
    """It has answered since it was started: what takes long to start does not hang."""
    in_vain: int = 0
    """Looks in a row that found no life in it."""

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def fetch(self, path: str) -> Page:
        """A page of its admin socket; raises OSError or http.client.HTTPException."""
        connection = _UnixConnection(self.admin)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            kind = response.getheader("content-type", "text/plain")
            return Page(response.status, kind, response.read())
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PAGE_SECONDS_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PAGE_SECONDS_MAX)
        self.sock.connect(str(self._path))


class Supervisor:
    """Runs the workers of one configuration until told to stop."""

    def __init__(self, path: Path, config: Config, folder: Path) -> None:
        """`folder`, ours alone, takes the workers' admin sockets."""
        self._config = config
        self._stop = asyncio.Event()
        self._status = 0
        self._workers = [
            Worker(index, folder / f"w{index}.admin", self._command(path, index, folder / f"w{index}.admin"))
            for index in range(config.server.workers)
        ]
        self._differ_since: float | None = None

    @staticmethod
    def _command(path: Path, index: int, admin: Path) -> list[str]:
        own = ["--worker", str(index), "--worker-admin", f"unix:{admin}"]
        return [sys.executable, "-m", "semroute_extproc", "serve", "--config", str(path), *own]

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, then drain; the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        listen = self._config.admin.listen
        admin = AdminServer(listen, self._pages(), self._forward) if listen is not None else None
        logger.info("supervisor.started", version=__version__, workers=len(self._workers), admin=listen)
        keepers = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        watch = asyncio.create_task(self._watch())
        try:
            await self._stop.wait()
        finally:
            watch.cancel()
            self._send(signal.SIGTERM)
            _, late = await asyncio.wait(
                keepers, timeout=self._config.server.drain_seconds + STOP_SECONDS_MAX
            )
            if late:
                self._send(signal.SIGKILL)
                await asyncio.wait(late)
            if admin:
                admin.close()
            logger.info("supervisor.stopped", status=self._status)
        return self._status

    def _send(self, number: signal.Signals) -> None:
        for worker in self._workers:
            worker.send(number)

    def _reload(self) -> None:
        """Pass SIGHUP on, but not to a worker that is only starting: it would end, and has yet to look."""
        for worker in self._workers:
            if worker.ready:
                worker.send(signal.SIGHUP)

    async def _keep(self, worker: Worker) -> None:
        """Have the worker run until we stop."""
        loop = asyncio.get_running_loop()
        pause = BACKOFF_SECONDS_MIN
        while not self._stop.is_set():
            started = loop.time()
            status = await self._run(worker)
            if self._stop.is_set():
                return
            if status == EXIT_CONFIG and not worker.sha256:
                self._status = EXIT_CONFIG
                self._stop.set()
                return
            ran = loop.time() - started
            pause = BACKOFF_SECONDS_MIN if ran > STEADY_SECONDS else pause
            worker.restarts += 1
            logger.error(
                "worker.ended", worker=worker.index, status=status, ran_seconds=round(ran, 1), pause=pause
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)
            pause = min(2 * pause, BACKOFF_SECONDS_MAX)

    async def _run(self, worker: Worker) -> int | None:
        """Run it to its end; its exit status, None if it could not even be started."""
        worker.answered, worker.in_vain = False, 0
        try:
            # Its standard input is ours to hold: it ends when we do, however we do.
            worker.process = await asyncio.create_subprocess_exec(
                *worker.command, stdin=asyncio.subprocess.PIPE
            )
        except OSError as error:
            logger.error("worker.failed", worker=worker.index, problem=error.strerror or str(error))
            return None
        if self._stop.is_set():
            # Told to stop while it was being started, when there was nobody yet to pass it on to.
            worker.send(signal.SIGTERM)
        status = await worker.process.wait()
        worker.process, worker.ready = None, False
        return status

    async def _watch(self) -> None:
        """Keep what is known of the workers fresh."""
        was_ready = False
        while True:
            await asyncio.gather(*(asyncio.to_thread(self._look, worker) for worker in self._workers))
            for worker in self._workers:
                self._end_if_hung(worker)
            if self._ready() and not was_ready:
                logger.info("supervisor.serving", workers=len(self._workers))
            was_ready = self._ready()
            self._compare()
            await asyncio.sleep(POLL_SECONDS)

    @staticmethod
    def _look(worker: Worker) -> None:
        # A socket that is not there is none of its doing: to start it again would not bring it back.
        alive = True
        state: dict[str, Any] = {}
        try:
            page = worker.fetch("/worker")
            state = json.loads(page.body) if page.status == 200 else {}
            alive = state.get("turning", True)
            worker.answered = True
        except (TimeoutError, BlockingIOError):
            # Blocking: so many of our questions wait that the socket takes no more.
            alive = False
        except (OSError, http.client.HTTPException, ValueError):
            pass
        worker.in_vain = 0 if alive else worker.in_vain + 1
        worker.ready = bool(state.get("ready"))
        worker.sha256 = state.get("sha256", worker.sha256)

    @staticmethod
    def _end_if_hung(worker: Worker) -> None:
        if worker.answered and worker.in_vain >= HUNG_LOOKS:
            worker.hangs, worker.in_vain = worker.hangs + 1, 0
            logger.error("worker.hung", worker=worker.index, looks=HUNG_LOOKS)
            # What stands still cannot heed SIGTERM.
            worker.send(signal.SIGKILL)

    def _compare(self) -> None:
        """Say so when workers have had different configurations for a while."""
        now = asyncio.get_running_loop().time()
        if not self._differ():
            self._differ_since = None
        elif self._differ_since is None:
            self._differ_since = now
        elif now - self._differ_since > MISMATCH_SECONDS:
            self._differ_since = now
            live = {worker.index: worker.sha256[:12] for worker in self._workers}
            logger.error("workers.differ", sha256=live)

    def _differ(self) -> bool:
        return len({worker.sha256 for worker in self._workers if worker.ready}) > 1

    def _ready(self) -> bool:
        return all(worker.ready for worker in self._workers)

    def _pages(self) -> dict[str, Callable[[], Page]]:
        return {
            "/livez": lambda: text(200, "ok\n"),
            "/readyz": lambda: text(200, "ok\n") if self._ready() else text(503, "not ready\n"),
            "/metrics": self._metrics,
            "/workers": self._list,
        }

    def _metrics(self) -> Page:
        """Every worker's metrics with the worker's number, and ours."""
        pages: dict[str, str] = {}
        for worker in self._workers:
            with contextlib.suppress(OSError, http.client.HTTPException):
                pages[str(worker.index)] = worker.fetch("/metrics").body.decode()
        return Page(200, "text/plain; version=0.0.4; charset=utf-8", (merged(pages) + self._own()).encode())

    def _own(self) -> str:
        """What only we know."""
        rows = [
            "# HELP semroute_worker_ready 1 if the worker is serving, else 0.",
            "# TYPE semroute_worker_ready gauge",
            *(f'semroute_worker_ready{{worker="{w.index}"}} {int(w.ready)}' for w in self._workers),
            "# HELP semroute_worker_restarts_total How often the worker ended and was started again.",
            "# TYPE semroute_worker_restarts_total counter",
            *(f'semroute_worker_restarts_total{{worker="{w.index}"}} {w.restarts}' for w in self._workers),
            "# HELP semroute_worker_hangs_total How often the worker hung and was killed.",
            "# TYPE semroute_worker_hangs_total counter",
            *(f'semroute_worker_hangs_total{{worker="{w.index}"}} {w.hangs}' for w in self._workers),
            "# HELP semroute_workers_differ 1 while workers have different configurations, else 0.",
            "# TYPE semroute_workers_differ gauge",
            f"semroute_workers_differ {int(self._differ())}",
        ]
        return "\n".join(rows) + "\n"

    def _list(self) -> Page:
        rows = [
            {
                "worker": worker.index,
                "listen": self._config.server.address(worker.index),
                "pid": worker.process.pid if worker.process else None,
                "ready": worker.ready,
                "restarts": worker.restarts,
                "hangs": worker.hangs,
                "sha256": worker.sha256,
            }
            for worker in self._workers
        ]
        return Page(200, "application/json", (json.dumps(rows, indent=2) + "\n").encode())

    def _forward(self, path: str) -> Page:
        """Any other page comes from the first worker that serves; they are alike."""
        for worker in self._workers:
            if worker.ready:
                try:
                    return worker.fetch(path)
                except (OSError, http.client.HTTPException):
                    continue
        return text(503, "no worker is ready\n")


def serve(path: Path) -> int:
    """Run the workers that the configuration asks for; the exit status.

    Raises ConfigError, or OSError if the admin port cannot be had.
    """
    loaded = config_source.load(path)
    log.configure(loaded.config.telemetry)
    # Beside the workers' own sockets, because it may be the only place that can be written to.
    listen = loaded.config.server.listen
    beside = Path(listen.removeprefix("unix:")).parent if listen.startswith("unix:") else None
    with _own_folder(beside) as folder:

        async def run() -> int:
            return await Supervisor(path, loaded.config, folder).run()

        return asyncio.run(run())


@contextlib.contextmanager
def _own_folder(beside: Path | None) -> Iterator[Path]:
    """A folder of ours alone, mode 0700, removed at the end; first those that killed supervisors left.

    It is locked as long as we live, and the kernel ends the lock however that ends. Raises OSError.
    """
    beside = beside or Path(tempfile.gettempdir())
    for left in beside.glob(FOLDER_PREFIX + "*"):
        with contextlib.suppress(OSError):
            lock = _lock(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
            logger.info("supervisor.cleaned", folder=str(left))
    with contextlib.ExitStack() as stack:
        unlocked = Path(tempfile.mkdtemp(prefix=".new", dir=beside))
        folder = unlocked.with_name(FOLDER_PREFIX + unlocked.name.removeprefix(".new"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        # A file system that knows no locks has nothing removed either.
        with contextlib.suppress(OSError):
            stack.callback(os.close, _lock(unlocked))
        # It has the name that others look for only once it is locked.
        unlocked.rename(folder)
        yield folder


def _lock(folder: Path) -> int:
    """Its descriptor, which holds a lock until it is closed; raises OSError if it is another's."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "another user's", str(folder))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
