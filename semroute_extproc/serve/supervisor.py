"""Several workers as one service: separate processes, kept running and queried as one.

A worker is `semroute serve` in its own process with the same configuration file, its own socket and an
admin socket that only the supervisor reads. Each watches the file and reloads by itself; the supervisor
logs when workers differ for long. A worker that ends is restarted, first at once and then with growing
pauses; one that hangs is killed and restarted. One that cannot start because of the configuration or
the bundle (78) ends everything with that status. If the supervisor is killed, the workers see the end of
their standard input and drain.

Memory is not shared, so N workers hold N models.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import structlog
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from semroute_extproc import __version__
from semroute_extproc.config import source as config_source
from semroute_extproc.config.models import Config
from semroute_extproc.errors import Exit
from semroute_extproc.serve.exposition import merged
from semroute_extproc.settings.process import WORKER
from semroute_extproc.telemetry import log
from semroute_extproc.telemetry.admin import AdminServer, Page, Pages, as_json, text
from semroute_extproc.telemetry.prom import CONTENT_TYPE

logger = structlog.get_logger("semroute.supervisor")


@dataclass(frozen=True, slots=True)
class Timing:
    """The supervisor's intervals, in seconds."""

    probe: float = 0.5
    """Between two probes of the workers."""
    answer_max: float = 2.0
    """For a worker's answer."""
    failed_probes_max: int = 60
    """Failed probes in a row after which a worker is killed: 30 seconds as a rule, 150 if each times out.

    Counted instead of timed, so that a pause of the supervisor or the whole machine kills no worker."""
    backoff_min: float = 0.2
    backoff_max: float = 30.0
    """Pause before a worker is restarted; it doubles each time."""
    steady: float = 60.0
    """A worker that has run for this long is restarted with the shortest pause."""
    stop_max: float = 10.0
    """For the workers to end after the drain, before they are killed."""
    differing_probes_max: int = 60
    """Probes in a row after which it is logged that workers have different configurations."""


@dataclass(eq=False)
class Worker:
    """One worker process, and the result of the last probe."""

    index: int
    admin: Path
    command: list[str]
    client: httpx2.Client
    """Of its admin socket."""
    process: asyncio.subprocess.Process | None = None
    ready: bool = False
    sha256: str = ""
    restarts: int = 0
    hangs: int = 0
    answered: bool = False
    """It has answered since it was started; until then it is starting and not hung."""
    failed_probes: int = 0
    """In a row."""

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def fetch(self, path: str) -> Page:
        """A page of its admin socket; raises httpx2.HTTPError."""
        response = self.client.get(path)
        return Page(
            response.status_code, response.headers.get("content-type", "text/plain"), response.content
        )

    def probe(self) -> None:
        """Ask for its state; blocks."""
        alive = True
        state: dict[str, Any] = {}
        try:
            page = self.fetch("/worker")
            state = json.loads(page.body) if page.status == 200 else {}
            alive, self.answered = state.get("turning", True), True
        except (httpx2.TimeoutException, httpx2.ConnectError):
            # A full backlog refuses connections. A missing socket does not count: a restart would not help.
            alive = not self.admin.exists()
        except (httpx2.HTTPError, ValueError):
            pass
        self.failed_probes = 0 if alive else self.failed_probes + 1
        self.ready = bool(state.get("ready"))
        self.sha256 = state.get("sha256", self.sha256)


class Supervisor(Collector):
    """Runs the workers of one configuration until stopped."""

    def __init__(
        self,
        config: Config,
        admin: str,
        command: Callable[[int, Path], list[str]],
        timing: Timing = Timing(),
    ) -> None:
        """`admin` is the path of the admin sockets, with `{worker}`; `command` starts a worker on one."""
        self._config = config
        self._timing = timing
        self._status = Exit.OK
        self._differing = 0
        """Probes in a row that found different configurations."""
        self.stop = asyncio.Event()
        self.workers = []
        for index in range(config.server.workers):
            path = Path(admin.replace(WORKER, str(index)))
            client = httpx2.Client(
                base_url="http://worker",
                transport=httpx2.HTTPTransport(uds=str(path), verify=False),
                timeout=timing.answer_max,
            )
            self.workers.append(Worker(index, path, command(index, path), client))

    @property
    def ready(self) -> bool:
        """Every worker serves."""
        return all(worker.ready for worker in self.workers)

    @property
    def differ(self) -> bool:
        """Workers that serve have different configurations."""
        return len({worker.sha256 for worker in self.workers if worker.ready}) > 1

    async def run(self) -> Exit:
        """Serve until SIGTERM or SIGINT, then drain; the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        listen = self._config.admin.listen
        admin = AdminServer(listen, self._pages(), self._forward) if listen is not None else None
        logger.info("supervisor.started", version=__version__, workers=len(self.workers), admin=listen)
        keepers = [asyncio.create_task(self._keep(worker)) for worker in self.workers]
        watch = asyncio.create_task(self._watch())
        try:
            await self.stop.wait()
        finally:
            watch.cancel()
            self._send(signal.SIGTERM)
            patience = self._config.server.drain_seconds + self._timing.stop_max
            _, late = await asyncio.wait(keepers, timeout=patience)
            if late:
                self._send(signal.SIGKILL)
                await asyncio.wait(late)
            if admin:
                admin.close()
            for worker in self.workers:
                worker.client.close()
                # One that was killed has left it behind.
                worker.admin.unlink(missing_ok=True)
            logger.info("supervisor.stopped", status=int(self._status))
        return self._status

    def _send(self, number: signal.Signals) -> None:
        for worker in self.workers:
            worker.send(number)

    def _reload(self) -> None:
        """Pass SIGHUP on, except to a worker that is starting: it would end, and reads the file anyway."""
        for worker in self.workers:
            if worker.ready:
                worker.send(signal.SIGHUP)

    async def _keep(self, worker: Worker) -> None:
        """Restart the worker until we stop."""
        loop, timing = asyncio.get_running_loop(), self._timing
        pause = timing.backoff_min
        while not self.stop.is_set():
            started = loop.time()
            status = await self._run(worker)
            if self.stop.is_set():
                return
            if status == Exit.CONFIG and not worker.sha256:
                self._status = Exit.CONFIG
                self.stop.set()
                return
            ran = loop.time() - started
            pause = timing.backoff_min if ran > timing.steady else pause
            worker.restarts += 1
            logger.error(
                "worker.ended", worker=worker.index, status=status, ran_seconds=round(ran, 1), pause=pause
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), pause)
            pause = min(2 * pause, timing.backoff_max)

    async def _run(self, worker: Worker) -> int | None:
        """Run it to its end; its exit status, None if it could not be started."""
        worker.failed_probes = 0
        try:
            # Its standard input is a pipe of ours, which ends when we do, even if we are killed.
            worker.process = await asyncio.create_subprocess_exec(
                *worker.command, stdin=asyncio.subprocess.PIPE
            )
        except OSError as error:
            logger.error("worker.failed", worker=worker.index, problem=error.strerror or str(error))
            return None
        if self.stop.is_set():
            # The signal to stop came before there was a process to pass it on to.
            worker.send(signal.SIGTERM)
        status = await worker.process.wait()
        worker.process, worker.ready, worker.answered = None, False, False
        return status

    async def _watch(self) -> None:
        """Probe the workers again and again."""
        was_ready = False
        while True:
            await asyncio.gather(*(asyncio.to_thread(worker.probe) for worker in self.workers))
            for worker in self.workers:
                if worker.answered and worker.failed_probes >= self._timing.failed_probes_max:
                    logger.error("worker.hung", worker=worker.index, failed_probes=worker.failed_probes)
                    worker.hangs, worker.failed_probes = worker.hangs + 1, 0
                    # A process that hangs does not handle SIGTERM.
                    worker.send(signal.SIGKILL)
            if self.ready and not was_ready:
                logger.info("supervisor.serving", workers=len(self.workers))
            was_ready = self.ready
            self._compare()
            await asyncio.sleep(self._timing.probe)

    def _compare(self) -> None:
        """Log when workers have had different configurations for a while."""
        self._differing = self._differing + 1 if self.differ else 0
        if self._differing >= self._timing.differing_probes_max:
            self._differing = 0
            live = {worker.index: worker.sha256[:12] for worker in self.workers}
            logger.error("workers.differ", sha256=live)

    def _pages(self) -> Pages:
        registry = CollectorRegistry()
        registry.register(self)
        return {
            "/livez": lambda: text(200, "ok\n"),
            "/readyz": lambda: text(200, "ok\n") if self.ready else text(503, "not ready\n"),
            "/metrics": lambda: Page(200, CONTENT_TYPE, generate_latest(registry)),
            "/workers": self._list,
        }

    def collect(self) -> Iterator[Metric]:
        """Every worker's metrics with the worker's number, and the supervisor's own."""
        pages: dict[str, str] = {}
        for worker in self.workers:
            with contextlib.suppress(httpx2.HTTPError):
                pages[str(worker.index)] = worker.fetch("/metrics").body.decode()
        yield from merged(pages)
        for kind, name, meaning in (
            (GaugeMetricFamily, "ready", "1 if the worker serves, else 0."),
            (CounterMetricFamily, "restarts", "How often the worker ended and was restarted."),
            (CounterMetricFamily, "hangs", "How often the worker hung and was killed."),
        ):
            family = kind(f"semroute_worker_{name}", meaning, labels=["worker"])
            for worker in self.workers:
                family.add_metric([str(worker.index)], getattr(worker, name))
            yield family
        meaning = "1 while workers have different configurations, else 0."
        yield GaugeMetricFamily("semroute_workers_differ", meaning, self.differ)

    def _list(self) -> Page:
        rows = [
            {
                "worker": worker.index,
                "listen": self._config.server.address(worker.index),
                "pid": worker.process.pid if worker.process else None,
                **{key: getattr(worker, key) for key in ("ready", "restarts", "hangs", "sha256")},
            }
            for worker in self.workers
        ]
        return as_json(rows)

    def _forward(self, path: str) -> Page:
        """Any other page comes from the first worker that serves; they are alike."""
        for worker in self.workers:
            if worker.ready:
                with contextlib.suppress(httpx2.HTTPError):
                    return worker.fetch(path)
        return text(503, "no worker is ready\n")


def serve(path: Path) -> Exit:
    """Run the workers of a configuration; raises ConfigError, or OSError if the admin port is taken."""
    loaded = config_source.load(path)
    log.configure(loaded.config.telemetry)
    listen = loaded.config.server.listen

    def command(index: int, admin: Path) -> list[str]:
        own = ["--worker", str(index), "--worker-admin", f"unix:{admin}"]
        return [sys.executable, "-m", "semroute_extproc", "serve", "--config", str(path), *own]

    with contextlib.ExitStack() as stack:
        # Next to the workers' own sockets: it may be the only place that can be written to.
        admin = listen.removeprefix("unix:") + ".admin"
        if not listen.startswith("unix:"):
            admin = stack.enter_context(tempfile.TemporaryDirectory(prefix="semroute-")) + f"/{WORKER}.admin"

        async def run() -> Exit:
            return await Supervisor(loaded.config, admin, command).run()

        return asyncio.run(run())
