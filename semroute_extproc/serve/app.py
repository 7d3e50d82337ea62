"""The composition root: a configuration and its models become a running sidecar."""

import asyncio
import contextlib
import ctypes
import gc
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import structlog
import uvloop

from semroute_extproc import __version__
from semroute_extproc.config import source
from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.envoy.accounting import Accountant
from semroute_extproc.envoy.server import GrpcServer, Servicer
from semroute_extproc.errors import Exit
from semroute_extproc.events import Emit, EncoderLost, EnvoyChecked, Event, Scraped
from semroute_extproc.serve import build, signals
from semroute_extproc.serve.reload import LiveConfig
from semroute_extproc.serve.views import Views
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.state.envoy_health import watch as watch_envoy
from semroute_extproc.state.pool_metrics import scrape as scrape_pools
from semroute_extproc.telemetry import log
from semroute_extproc.telemetry.admin import AdminServer, Page, Pages, as_json, probe
from semroute_extproc.telemetry.bus import to_all
from semroute_extproc.telemetry.decision_log import DecisionWriter
from semroute_extproc.telemetry.drift import Drift
from semroute_extproc.telemetry.feedback import Feedback
from semroute_extproc.telemetry.prom import CONTENT_TYPE, MODEL_LABELS, PrometheusSink
from semroute_extproc.telemetry.recent import COUNTERS, Recent

OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")  # of a collector

BEAT_SECONDS, STALLED_SECONDS_MAX = 1.0, 10.0  # Interval of the heartbeat; without one the loop has stalled.

ONE_ARENA = (-8, 1)  # glibc's M_ARENA_MAX: with a second arena, large requests cost 50 % more
SWITCH_SECONDS = 0.001  # Python's switch interval: how long the thread of large requests delays the loop

logger = structlog.get_logger("semroute")


class Health:
    """Readiness and liveness. The admin thread reads them, so it can report a stalled event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.serving, self._clock, self._last_beat = False, clock, clock()

    async def beat(self) -> None:
        """Record a heartbeat of the event loop periodically."""
        while True:
            self._last_beat = self._clock()
            await asyncio.sleep(BEAT_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether the event loop is running."""
        return self._clock() - self._last_beat <= STALLED_SECONDS_MAX

    @property
    def ready(self) -> bool:
        """Whether Envoy may send streams."""
        return self.serving and self.alive


class Reactions:
    """The sink that acts on events: it feeds load to the controllers and stops after an encoder is lost.

    It belongs to the running event loop; events may come from any thread.
    """

    def __init__(self, controllers: ControllerState) -> None:
        self._controllers, self._loop = controllers, asyncio.get_running_loop()
        self.stop, self.status = asyncio.Event(), Exit.OK

    def handle(self, event: Event) -> None:
        """Handle an event; most types are ignored."""
        if isinstance(event, Scraped):
            self._controllers.observe(event.pool, event.load, self._loop.time(), event.failed)
        elif isinstance(event, EnvoyChecked):
            self._controllers.envoy_checked(event.clusters)
        elif isinstance(event, EncoderLost):
            # Only a new process can open the device again, so report NOT_SERVING and drain.
            self.status = Exit.UNAVAILABLE
            self._loop.call_soon_threadsafe(self.stop.set)

    def orphaned(self) -> None:
        """Stop because the supervisor has exited."""
        self._loop.remove_reader(sys.stdin.fileno())
        logger.error("supervisor.gone")
        self.stop.set()


async def run(
    path: Path,
    loaded: source.Loaded,
    models: Mapping[str, OnnxModel] | Mapping[str, Bundle],
    worker: int | None = None,
    admin: str = "",
) -> Exit:
    """Serve until SIGTERM, SIGINT or a lost encoder, then drain; raises ConfigError or OSError.

    `worker` is the number of a process that is one of several; the supervisor reads its pages on `admin`.
    """
    config, loop = loaded.config, asyncio.get_running_loop()
    sys.setswitchinterval(SWITCH_SECONDS)
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(*ONE_ARENA)
    metrics, controllers = PrometheusSink(), ControllerState(secrets.token_bytes())
    recent = Recent(lambda: metrics.totals(*COUNTERS), config.telemetry.log_prompts)
    reactions = Reactions(controllers)
    logs = log.LogSink(config.telemetry)
    drift = Drift({each.revision: each.manifest for each in map(build.bundle_of, models.values())})
    sinks: list[Emit] = [metrics.handle, recent.handle, logs.handle, reactions.handle, drift.handle]
    closing, endpoint = list[Callable[[], None]](), config.telemetry.otlp_endpoint
    if endpoint is not None or any(os.environ.get(name) for name in OTLP_VARIABLES):
        from semroute_extproc.telemetry import otel  # Imported only if used: a fifth of the startup time.

        tracing = otel.OtelSink(otel.exporter(endpoint))
        sinks.append(tracing.handle)
        closing.append(tracing.close)
    decisions = None
    if (log_settings := config.telemetry.decision_log) is not None:
        decisions = DecisionWriter(log_settings, worker or 0, to_all(*sinks))
        sinks.append(decisions.handle)
        closing.append(decisions.close)
    log.WRITER.emit = emit = to_all(*sinks)
    classifier = build.make_classifier(config, models, emit)
    await classifier.verify()
    live = LiveConfig(path, loaded, classifier, controllers, emit)
    posts = Feedback(decisions.pool_of, emit, live.state).posts if decisions else {}
    if decisions is not None:
        decisions.logged = live.state.remember
    servicer, health = Servicer(lambda: live.snapshot, emit), Health()
    accountant = Accountant(lambda: live.snapshot.pipeline.config, emit)
    server = GrpcServer(config.server, servicer, worker or 0, accountant)
    metrics.observe("drift", drift.readings)
    await live.state.sync()  # Before serving, so that a wrong address or password is logged at the start.
    pages = _pages(metrics, health, servicer, live)
    signals.handle(reactions.stop.set, lambda: None if reactions.stop.is_set() else live.start(live.reload()))
    if worker is not None:
        # The supervisor holds the other end and never writes, so it becomes readable at its exit.
        loop.add_reader(sys.stdin.fileno(), reactions.orphaned)
    listen = admin or config.admin.listen
    await server.start()
    # After binding the server, so that a second process does not take over the first one's admin socket.
    views, guards = Views(live, recent, metrics, drift), config.admin.guards()
    admin_server = AdminServer(listen, pages, posts=posts, site=views.site(), **guards) if listen else None
    gc.collect()
    gc.freeze()  # Full collections of permanent objects blocked the loop for up to 73 ms.
    await server.ready()
    health.serving = True
    address, encoders = config.server.address(worker or 0), classifier.describe()
    logger.info("server.serving", version=__version__, listen=address, admin=listen, encoders=encoders)
    scrape = scrape_pools(lambda: live.loaded.config.pools, emit)
    envoy = watch_envoy(lambda: live.loaded.config.controllers.envoy_admin, emit)
    readers = [asyncio.create_task(each) for each in (scrape, envoy, recent.sample(), live.state.run())]
    beat, watch = asyncio.create_task(health.beat()), asyncio.create_task(live.watch(reactions.stop))
    try:
        await reactions.stop.wait()
    finally:
        health.serving = False
        logger.info("server.draining", seconds=config.server.drain_seconds)
        await server.drain()
        for reader in readers:
            reader.cancel()
        await watch
        await classifier.close()
        await live.close()
        for close in closing:
            await asyncio.to_thread(close)
        beat.cancel()
        if admin_server:
            admin_server.close()
        logger.info("server.stopped")
    return reactions.status


def _pages(metrics: PrometheusSink, health: Health, servicer: Servicer, live: LiveConfig) -> Pages:
    """The pages of the admin port, with the gauges that are read at each scrape."""
    classifier, controllers = live.classifier, live.controllers

    def values(part: str, key: str) -> dict[tuple[str, ...], float]:
        states = controllers.status()[part].items()
        return {(name,): state[key] for name, state in states if state[key] is not None}

    def models() -> dict[tuple[str, ...], float]:
        return {tuple(each[label] for label in MODEL_LABELS): 1 for each in classifier.describe()}

    def config() -> Page:
        page = {"generation": live.snapshot.number, "sha256": live.loaded.sha256}
        settings = live.loaded.config.model_dump(mode="json")
        status = controllers.status()
        states = {"encoders": classifier.describe(), **{key: status[key] for key in ("traffic", "health")}}
        return as_json({**page, **states, "config": settings})

    def worker() -> Page:
        return as_json({"ready": health.ready, "turning": health.alive, "sha256": live.loaded.sha256})

    metrics.observe("inflight_streams", lambda: len(servicer.open))
    metrics.observe("waiting_uploads", lambda: len(servicer.waiting))
    metrics.observe("queue_depth", lambda: classifier.waiting)
    metrics.observe("model_info", models)
    metrics.observe("pool_pressure", partial(values, "pools", "pressure"))
    for key in ("leaning", "target", "realized"):
        metrics.observe(f"budget_{key}", partial(values, "budgets", key))
    for key in ("threshold", "reference", "scores", "realized"):
        metrics.observe(f"traffic_{key}", partial(values, "traffic", key))
    metrics.observe("pool_excluded", partial(values, "health", "excluded"))
    metrics.observe("shared_store_age_seconds", lambda: live.state.age)
    metrics.observe("session_entries", lambda: (controllers.status()["sessions"] or {}).get("entries", 0))
    return {
        "/livez": lambda: probe(health.alive, "the event loop has stalled"),
        "/readyz": lambda: probe(health.ready, "not ready"),
        "/metrics": lambda: Page(200, CONTENT_TYPE, metrics.exposition()),
        "/config": config,
        "/controllers": lambda: as_json(controllers.status()),
        "/worker": worker,  # For the supervisor.
    }


def serve(path: Path, worker: int | None = None, admin: str = "") -> Exit:
    """Load, warm up and `run`; raises ConfigError, BundleError or OSError."""
    loaded = source.load(path)
    log.configure(loaded.config.telemetry)
    if worker is not None:
        structlog.contextvars.bind_contextvars(worker=worker)
    models = build.open_models(loaded.config)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(path, loaded, models, worker, admin))
