"""Runs several worker processes as one service with one admin port.

A worker is `semroute serve` in its own process, with its own model, its own socket and an admin socket that
only the supervisor reads. Each worker reloads by itself. A worker that exits is restarted with exponential
backoff, and one that hangs is killed. If a worker exits with status 78 (invalid configuration or bundle),
the service stops. If the supervisor is killed, the workers' standard input ends and they drain.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import structlog
from prometheus_client import Counter, Metric, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from semroute_extproc import __version__
from semroute_extproc.config import source
from semroute_extproc.config.models import Config
from semroute_extproc.errors import Exit
from semroute_extproc.events import LogDropped
from semroute_extproc.serve import signals
from semroute_extproc.serve.views import ROWS_MAX, present
from semroute_extproc.settings.process import WORKER
from semroute_extproc.telemetry import log
from semroute_extproc.telemetry.admin import AdminServer, Asked, Page, as_json, probe, text
from semroute_extproc.telemetry.bus import by_type
from semroute_extproc.telemetry.feedback import KNOWN, NDJSON
from semroute_extproc.telemetry.page import Form, PageSite
from semroute_extproc.telemetry.prom import CONTENT_TYPE, METRICS

FORWARD_SECONDS_MAX = 20.0  # for a page of a worker; an explanation may take 15

DROPPED = "semroute_log_lines_dropped"  # also counted by each worker

logger = structlog.get_logger("semroute.supervisor")


@dataclass(frozen=True, slots=True)
class Timing:
    """The supervisor's intervals in seconds, and its limits in consecutive probes.

    Limits count probes, not seconds, so that no worker is killed when the machine or the supervisor pauses.
    """

    probe: float = 0.5  # between two probes of the workers
    answer_max: float = 2.0  # for a worker's answer
    failed_probes_max: int = 60  # then a worker is killed: after 30 seconds, or 150 if each times out
    differing_probes_max: int = 60  # then a log line reports that workers have different configurations
    backoff_min: float = 0.2  # delay before a worker is restarted; it doubles each time
    backoff_max: float = 30.0
    steady: float = 60.0  # run time of a worker after which the delay starts at `backoff_min` again
    stop_max: float = 10.0  # for the workers to end after the drain, before they are killed


@dataclass(eq=False)
class Worker:
    """One worker process, and the result of the last probe."""

    index: int
    admin: Path
    client: httpx2.Client
    process: asyncio.subprocess.Process | None = None
    ready: bool = False
    sha256: str = ""
    restarts: int = 0
    hangs: int = 0
    answered: bool = False  # Whether it has answered since its start; until then it is starting, not hung.
    failed_probes: int = 0

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal, if it is running."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def probe(self) -> None:
        """Request the worker's state; blocks."""
        alive = True
        state: dict[str, Any] = {}
        try:
            answer = self.client.get("/worker")
            state = answer.json() if answer.status_code == 200 else {}
            alive, self.answered = state.get("turning", True), True
        except (httpx2.TimeoutException, httpx2.ConnectError):
            # A refusal means a full backlog. A missing socket is no failure: a restart would not help.
            alive = not self.admin.exists()
        except (httpx2.HTTPError, ValueError):
            pass
        self.failed_probes = 0 if alive else self.failed_probes + 1
        self.ready, self.sha256 = bool(state.get("ready")), state.get("sha256", self.sha256)


class Supervisor(Collector):
    """Runs the workers of one configuration until stopped."""

    def __init__(self, config: Config, admin: str, command: Sequence[str], timing: Timing = Timing()) -> None:
        """`admin` is the path of the admin sockets, with `{worker}`; `command` starts a worker."""
        self._config, self._command, self._timing = config, command, timing
        self._status = Exit.OK
        self._dropped = Counter(DROPPED, METRICS["log_lines_dropped"][2], registry=None)
        self.stop = asyncio.Event()
        self.workers: list[Worker] = []
        for index in range(config.server.workers):
            path = admin.replace(WORKER, str(index))
            transport = httpx2.HTTPTransport(uds=path, verify=False)
            client = httpx2.Client(base_url="http://worker", transport=transport, timeout=timing.answer_max)
            self.workers.append(Worker(index, Path(path), client))

    @property
    def ready(self) -> bool:
        """Whether every worker serves."""
        return all(worker.ready for worker in self.workers)

    @property
    def differ(self) -> bool:
        """Whether serving workers have different configurations."""
        return len({worker.sha256 for worker in self.workers if worker.ready}) > 1

    async def run(self) -> Exit:
        """Serve until SIGTERM or SIGINT, then drain; the exit status."""
        signals.handle(self.stop.set, lambda: self._send(signal.SIGHUP))
        listen = self._config.admin.listen
        pages = {
            "/livez": lambda: text(200, "ok\n"),
            "/readyz": lambda: probe(self.ready, "not ready"),
            "/metrics": lambda: Page(200, CONTENT_TYPE, generate_latest(self)),
            "/workers": self._list,
        }
        posts = {"/outcomes": self._outcomes} if self._config.telemetry.decision_log else {}
        views = {"now": self._now, "decisions": self._decisions}
        guards = self._config.admin.guards()
        log.WRITER.emit = by_type({LogDropped: lambda event: self._dropped.inc(event.lines)})
        site = PageSite(views, views)
        admin = AdminServer(listen, pages, self._forward, posts, site, **guards) if listen else None
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
                worker.admin.unlink(missing_ok=True)  # A killed worker leaves its socket behind.
            logger.info("supervisor.stopped", status=int(self._status))
        return self._status

    def _send(self, number: signal.Signals) -> None:
        for worker in self.workers:
            worker.send(number)

    async def _keep(self, worker: Worker) -> None:
        """Run the worker and restart it until the supervisor stops."""
        loop, timing = asyncio.get_running_loop(), self._timing
        own = ["--worker", str(worker.index), "--worker-admin", f"unix:{worker.admin}"]
        pause = timing.backoff_min
        while not self.stop.is_set():
            started, status, worker.failed_probes = loop.time(), None, 0
            try:
                worker.process = await self._start(*own)
                if self.stop.is_set():
                    # The stop signal arrived before there was a process to forward it to.
                    worker.send(signal.SIGTERM)
                status = await worker.process.wait()
            except OSError as error:
                logger.error("worker.failed", worker=worker.index, problem=error.strerror or str(error))
            worker.process, worker.ready, worker.answered = None, False, False
            if self.stop.is_set():
                return
            if status == Exit.CONFIG and not worker.sha256:
                self._status = Exit.CONFIG
                self.stop.set()
                return
            ran = round(loop.time() - started, 1)
            pause = timing.backoff_min if ran > timing.steady else pause
            worker.restarts += 1
            logger.error("worker.ended", worker=worker.index, status=status, ran_seconds=ran, pause=pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), pause)
            pause = min(2 * pause, timing.backoff_max)

    async def _start(self, *own: str) -> asyncio.subprocess.Process:
        # Its standard input is our pipe, which closes when we exit, even if we are killed. Signals to our
        # group are for us. The worker inherits the mask, so that SIGHUP waits until it has a handler.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            start = partial(asyncio.create_subprocess_exec, stdin=asyncio.subprocess.PIPE)
            return await start(*self._command, *own, start_new_session=True)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})

    async def _watch(self) -> None:
        """Probe the workers periodically."""
        was_ready, differing = False, 0
        while True:
            await asyncio.gather(*(asyncio.to_thread(worker.probe) for worker in self.workers))
            for worker in self.workers:
                if worker.answered and worker.failed_probes >= self._timing.failed_probes_max:
                    logger.error("worker.hung", worker=worker.index, failed_probes=worker.failed_probes)
                    worker.hangs, worker.failed_probes = worker.hangs + 1, 0
                    worker.send(signal.SIGKILL)  # A process that hangs does not handle SIGTERM.
            if self.ready and not was_ready:
                logger.info("supervisor.serving", workers=len(self.workers))
            was_ready = self.ready
            differing = differing + 1 if self.differ else 0
            if differing >= self._timing.differing_probes_max:
                differing = 0
                logger.error("workers.differ", sha256={each.index: each.sha256[:12] for each in self.workers})
            await asyncio.sleep(self._timing.probe)

    def collect(self) -> Iterator[Metric]:
        """Every worker's metrics with the label `worker`, and the supervisor's own.

        The series are not summed: a sum would drop when a worker restarts, and gauges cannot be summed.
        """
        families: dict[str, Metric] = {}
        for worker in self.workers:
            page, label = "", {"worker": str(worker.index)}
            with contextlib.suppress(httpx2.HTTPError):
                page = worker.client.get("/metrics").text
            for each in text_string_to_metric_families(page):
                known = families.setdefault(each.name, Metric(each.name, each.documentation, each.type))
                known.samples += (sample._replace(labels=label | sample.labels) for sample in each.samples)
        [dropped] = self._dropped.collect()
        logged = families.setdefault(DROPPED, Metric(DROPPED, dropped.documentation, dropped.type))
        logged.add_sample(f"{DROPPED}_total", {"worker": "supervisor"}, dropped.samples[0].value)
        yield from families.values()
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
        """The page about the workers."""
        rows: list[dict[str, object]] = []
        for worker in self.workers:
            pid, listen = worker.process and worker.process.pid, self._config.server.address(worker.index)
            state = {key: getattr(worker, key) for key in ("ready", "restarts", "hangs", "sha256")}
            rows.append({"worker": worker.index, "listen": listen, "pid": pid, **state})
        return as_json(rows)

    def _forward(self, asked: Asked) -> Page:
        """Any other page comes from the first serving worker, since all have the same pages."""
        method, headers = "GET" if asked.body is None else "POST", {"content-type": asked.content_type}
        for worker in filter(lambda each: each.ready, self.workers):
            with contextlib.suppress(httpx2.HTTPError):
                answer = worker.client.request(
                    method, asked.url, content=asked.body, headers=headers, timeout=FORWARD_SECONDS_MAX
                )
                return Page(answer.status_code, answer.headers["content-type"], answer.content)
        return text(503, "no worker is ready\n")

    def _outcomes(self, body: bytes) -> Page:
        """Each worker takes the outcomes of the requests that it logged, and the last worker the rest."""
        page, count = text(503, "no worker is ready\n"), sum(map(bool, map(bytes.strip, body.split(b"\n"))))
        serving = [worker for worker in self.workers if worker.ready]
        for worker in serving:
            try:
                path = "/outcomes" if worker is serving[-1] else KNOWN
                answer = worker.client.post(path, content=body, headers={"content-type": NDJSON})
            except httpx2.HTTPError:
                return text(503, "a worker does not answer: send the outcomes again\n")
            if answer.status_code != 200:
                return Page(answer.status_code, answer.headers["content-type"], answer.content)
            page, body = as_json({"accepted": count}), answer.content
            if not body:
                break
        return page

    def _from_each(self, url: str) -> list[Any]:
        """The data of a view from every worker that answers."""
        found = list[Any]()
        for worker in filter(lambda each: each.ready, self.workers):
            with contextlib.suppress(httpx2.HTTPError, ValueError):
                found.append(worker.client.get(url).json())
        return found

    def _now(self, _: Form) -> dict[str, Any]:
        if not (states := self._from_each("/ui/state.json")):
            raise TimeoutError
        return present(states) | {"workers_wanted": len(self.workers), "differ": self.differ}

    def _decisions(self, form: Form) -> dict[str, Any]:
        """The newest decisions of all workers."""
        found = self._from_each(f"/ui/decisions.json?{urlencode(form)}")
        rows = [{**row, "worker": number} for number, each in enumerate(found) for row in each["rows"]]
        return {"rows": sorted(rows, key=lambda row: -row["time"])[:ROWS_MAX]}


def serve(path: Path) -> Exit:
    """Run the workers of a configuration; raises ConfigError, or OSError if the admin port is taken."""
    loaded = source.load(path)
    log.configure(loaded.config.telemetry)
    if loaded.config.server.secret is None:  # The workers must draw alike.
        os.environ["SEMROUTE__SERVER__SECRET"] = secrets.token_hex()
    command = [sys.executable, "-m", "semroute_extproc", "serve", "--config", str(path)]
    listen = loaded.config.server.listen
    if listen.startswith("unix:"):
        # Next to the workers' sockets, which may be in the only writable directory.
        return asyncio.run(Supervisor(loaded.config, listen.removeprefix("unix:") + ".admin", command).run())
    with tempfile.TemporaryDirectory(prefix="semroute-") as folder:
        return asyncio.run(Supervisor(loaded.config, f"{folder}/{WORKER}.admin", command).run())
