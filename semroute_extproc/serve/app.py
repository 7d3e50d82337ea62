"""The composition root: a configuration and its models become a running sidecar."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from semroute_extproc import __version__
from semroute_extproc.config import source as config_source
from semroute_extproc.config.source import Loaded
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.envoy.server import GrpcServer, Servicer
from semroute_extproc.errors import Exit
from semroute_extproc.events import EncoderLost, Event, Scraped, Sink
from semroute_extproc.serve import build
from semroute_extproc.serve.reload import LiveConfig
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.state.pool_metrics import scrape as scrape_pools
from semroute_extproc.telemetry import log
from semroute_extproc.telemetry.admin import AdminServer, Page, Pages, as_json, text
from semroute_extproc.telemetry.bus import Bus
from semroute_extproc.telemetry.prom import CONTENT_TYPE, MODEL_LABELS, PrometheusSink

if TYPE_CHECKING:
    from semroute_extproc.telemetry.otel import OtelSink

OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own variables that name a collector."""

SECRET_BYTES = 32
"""Length of the process's own key for hashes of conversations."""

BEAT_SECONDS = 1.0
"""Time between two beats of the event loop."""

STALLED_SECONDS_MAX = 10.0
"""An event loop without a beat for this long has stalled."""

logger = structlog.get_logger("semroute")


class Health:
    """Readiness and liveness; read by the admin thread, which would answer even if the loop stalled."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.ready = False
        self._clock = clock
        self._last_beat = clock()

    async def beat(self, seconds: float = BEAT_SECONDS) -> None:
        """Show again and again that the event loop runs."""
        while True:
            self._last_beat = self._clock()
            await asyncio.sleep(seconds)

    @property
    def stalled(self) -> bool:
        """The event loop does not run."""
        return self._clock() - self._last_beat > STALLED_SECONDS_MAX

    def livez(self) -> Page:
        """Whether the event loop runs."""
        return text(503, "the event loop has stalled\n") if self.stalled else text(200, "ok\n")

    def readyz(self) -> Page:
        """Whether Envoy may send streams."""
        return text(200, "ok\n") if self.ready and not self.stalled else text(503, "not ready\n")


class Reactions:
    """The sink that acts on events: load reaches the controllers, and a lost encoder ends the process."""

    def __init__(self, controllers: ControllerState) -> None:
        """Belongs to the running event loop; events may come from any thread."""
        self._controllers = controllers
        self._loop = asyncio.get_running_loop()
        self.stop = asyncio.Event()
        self.status = Exit.OK

    def handle(self, event: Event) -> None:
        """See `Sink.handle`."""
        if isinstance(event, Scraped):
            self._controllers.observe(event.pool, event.load, self._loop.time())
        elif isinstance(event, EncoderLost):
            # Only a new process can open the device again: this one reports NOT_SERVING and drains.
            self.status = Exit.UNAVAILABLE
            self._loop.call_soon_threadsafe(self.stop.set)


async def run(
    path: Path, loaded: Loaded, models: Mapping[str, OnnxModel], worker: int | None = None, admin: str = ""
) -> Exit:
    """Serve until SIGTERM, SIGINT or a lost encoder, then drain; raises ConfigError or OSError.

    `worker` is the number of a process that is one of several; the supervisor reads its pages on `admin`.
    """
    config, loop = loaded.config, asyncio.get_running_loop()
    metrics, controllers = PrometheusSink(), ControllerState(os.urandom(SECRET_BYTES))
    reactions, tracing = Reactions(controllers), _tracing(config.telemetry.otlp_endpoint)
    sinks: list[Sink] = [metrics, log.LogSink(config.telemetry, worker), reactions]
    emit = Bus(*sinks, *([tracing] if tracing else [])).emit
    classifier = build.make_classifier(config, models, emit)
    live = LiveConfig(path, loaded, classifier, controllers, emit)
    servicer = Servicer(lambda: live.snapshot, emit)
    server, health = GrpcServer(config.server, servicer, worker or 0), Health()
    metrics.observe("inflight_streams", lambda: servicer.open_streams)
    _observe(metrics, classifier, controllers.status)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, reactions.stop.set)
    loop.add_signal_handler(signal.SIGHUP, live.request_reload)
    if worker is not None:
        # The supervisor holds the other end and never writes: it is readable once the supervisor is gone.
        loop.add_reader(sys.stdin.fileno(), _orphaned, reactions.stop)
    listen = admin or config.admin.listen
    pages = _pages(metrics, health, live, classifier, controllers)
    await server.start()
    # Not before: a process that was started twice must not take the first one's admin socket.
    admin_server = AdminServer(listen, pages) if listen is not None else None
    await server.ready()
    health.ready = True
    address, encoders = config.server.address(worker or 0), classifier.describe()
    logger.info("server.serving", version=__version__, listen=address, admin=listen, encoders=encoders)
    beat = asyncio.create_task(health.beat())
    scrape = asyncio.create_task(scrape_pools(lambda: live.loaded.config.pools, emit))
    watch = asyncio.create_task(live.watch(reactions.stop))
    try:
        await reactions.stop.wait()
    finally:
        health.ready = False
        logger.info("server.draining", seconds=config.server.drain_seconds)
        await server.drain()
        scrape.cancel()
        await watch
        await classifier.close()
        await live.close()
        if tracing:
            await asyncio.to_thread(tracing.close)
        beat.cancel()
        if admin_server:
            admin_server.close()
        logger.info("server.stopped")
    return reactions.status


def _observe(metrics: PrometheusSink, classifier: Classifier, status: Callable[[], dict[str, Any]]) -> None:
    """Register the gauges that are read at each scrape; `status` is that of the controllers."""

    def values(part: str, key: str) -> Callable[[], dict[tuple[str, ...], float]]:
        return lambda: {
            (name,): state[key] for name, state in status()[part].items() if state[key] is not None
        }

    def models() -> dict[tuple[str, ...], float]:
        return {tuple(each[label] for label in MODEL_LABELS): 1 for each in classifier.describe()}

    metrics.observe("queue_depth", lambda: classifier.waiting)
    metrics.observe("model_info", models)
    metrics.observe("pool_pressure", values("pools", "pressure"))
    for key in ("leaning", "target", "realised"):
        metrics.observe(f"budget_{key}", values("budgets", key))
    metrics.observe("session_entries", lambda: (status()["sessions"] or {}).get("entries", 0))


def _pages(
    metrics: PrometheusSink,
    health: Health,
    live: LiveConfig,
    classifier: Classifier,
    controllers: ControllerState,
) -> Pages:
    def config() -> Page:
        return as_json(
            {
                "generation": live.snapshot.number,
                "sha256": live.loaded.sha256,
                "encoders": classifier.describe(),
                "config": live.loaded.config.model_dump(mode="json"),
            }
        )

    def worker() -> Page:
        """For the supervisor."""
        turning = not health.stalled
        return as_json({"ready": health.ready and turning, "turning": turning, "sha256": live.loaded.sha256})

    return {
        "/livez": health.livez,
        "/readyz": health.readyz,
        "/metrics": lambda: Page(200, CONTENT_TYPE, metrics.exposition()),
        "/config": config,
        "/controllers": lambda: as_json(controllers.status()),
        "/worker": worker,
    }


def _orphaned(stop: asyncio.Event) -> None:
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
    logger.error("supervisor.gone")
    stop.set()


def _tracing(endpoint: str | None) -> OtelSink | None:
    """The sink for spans, if a collector is configured here or by the environment.

    Its import takes a fifth of the start, so it is deferred.
    """
    if endpoint is None and not any(os.environ.get(name) for name in OTLP_VARIABLES):
        return None
    from semroute_extproc.telemetry import otel

    return otel.OtelSink(otel.exporter(endpoint))


def serve(path: Path, worker: int | None = None, admin: str = "") -> Exit:
    """Load, warm up and `run`; raises ConfigError, BundleError or OSError."""
    # By default it would end the process. The file is read again once we serve, so nothing is missed.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    loaded = config_source.load(path)
    log.configure(loaded.config.telemetry)
    if worker is not None:
        structlog.contextvars.bind_contextvars(worker=worker)
    models = build.make_models(loaded.config, build.load_bundles(loaded.config))

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(run(path, loaded, models, worker, admin))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop's where it is installed, asyncio's own otherwise."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop
