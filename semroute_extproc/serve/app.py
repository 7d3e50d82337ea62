"""The composition root: a configuration becomes live objects, and goes back down again."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from semroute_extproc import __version__
from semroute_extproc.config import source as config_source
from semroute_extproc.config.models import Config
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.bundle import Bundle, Device
from semroute_extproc.encoder.cache import SignalCache
from semroute_extproc.encoder.classifier import Classifier, Reader
from semroute_extproc.encoder.cores import usable_cores
from semroute_extproc.encoder.cuda import CudaModel, open_model
from semroute_extproc.encoder.failover import Failover, Told
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.protocol import Encoder
from semroute_extproc.encoder.queue import Batcher
from semroute_extproc.envoy.exchange import Settings
from semroute_extproc.envoy.server import Generation, GrpcServer, Servicer
from semroute_extproc.errors import ConfigError
from semroute_extproc.events import Sink
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.policy import plan as policy
from semroute_extproc.policy.shadow import Shadow
from semroute_extproc.settings.base import Problem
from semroute_extproc.state import pool_metrics as load
from semroute_extproc.state import shared_sessions as remote_sessions
from semroute_extproc.state.controllers import Controllers
from semroute_extproc.state.shared_sessions import SharedSessions
from semroute_extproc.strategies import registry
from semroute_extproc.strategies.judge_client import CannotJudge, JudgeClient, Judges
from semroute_extproc.strategies.profiles import ProfileDirectories, ProfileDirectory, is_thin, thin_warning
from semroute_extproc.telemetry import log
from semroute_extproc.telemetry.admin import AdminServer, Page, text
from semroute_extproc.telemetry.prom import PrometheusSink

if TYPE_CHECKING:
    from semroute_extproc.telemetry.otel import OtelSink

NOT_RELOADABLE = ("server", "encoder", "admin", "telemetry")
"""Sections whose change needs a restart."""

OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables of OpenTelemetry's own that name a collector."""

logger = structlog.get_logger("semroute")


SECRET_BYTES = 32
"""Length of the process's own key of the hashes of conversations."""

BEAT_SECONDS = 1.0
"""How often the event loop shows that it turns."""

STILL_SECONDS_MAX = 10.0
"""An event loop that has not turned for so long is dead: the admin port, a thread beside it, says so."""

DEFAULT = ""
"""Key of the bundle for every language that has none of its own."""


def load_bundles(config: Config) -> dict[str, Bundle]:
    """Language to bundle, the default under `DEFAULT`, all checked; raises BundleError."""
    wanted = config.encoder
    paths = bundle.language_bundles()
    if wanted.by_language is not None:
        paths = {language: Path(path) for language, path in wanted.by_language.items()}
    paths[DEFAULT] = Path(wanted.bundle) if wanted.bundle else bundle.default_bundle()
    return {language: bundle.load(path, (wanted.device, "cpu")) for language, path in paths.items()}


def make_models(config: Config, bundles: Mapping[str, Bundle]) -> dict[str, OnnxModel]:
    """Language to warm model; raises BundleError or ConfigError.

    The default bundle must run on the device that was asked for; a language's own may lack a graph
    for it and then runs on the CPU, which `describe` says.
    """
    models: dict[str, OnnxModel] = {}
    for language, loaded in bundles.items():
        wanted = config.encoder.device
        device = wanted if language == DEFAULT else loaded.device(wanted)
        models[language] = open_model(loaded, device)
    return models


def make_classifier(
    config: Config,
    models: Mapping[str, OnnxModel],
    on_look: Callable[[bool], None] = lambda _: None,
    on_gpu: Told = lambda _bundle, _event: None,
) -> Classifier:
    """The readers of the running loop: on CPU one lane a core, shared among workers, on a GPU one.

    `on_look` is told of every look into the cache whether it was a hit, `on_gpu` of a GPU's troubles.
    """
    readers: dict[str, Reader] = {}
    cores = max(1, usable_cores() // config.server.workers)
    lanes: dict[Device, int] = {"cpu": cores, "cuda": config.encoder.threads or 1}
    queue_max = config.encoder.queue_max
    for language, model in models.items():
        encoder: Encoder
        if isinstance(model, CudaModel):
            encoder = Failover(model, partial(open_model, model.bundle), lanes, queue_max, on_gpu)
        else:
            encoder = Batcher(model, config.encoder.threads or cores, queue_max)
        readers[language] = Reader(model.bundle, encoder)
    default = readers.pop(DEFAULT)
    return Classifier(default, readers, SignalCache(config.encoder.cache_entries, on_look))


def make_policies(
    loaded: config_source.Loaded,
    default: Bundle,
    profiles_of: registry.ProfilesOf = registry.once,
) -> dict[str, policy.Policy]:
    """Every policy, with the files its strategies name; raises ConfigError with every problem's place."""
    config = loaded.config
    files, problems = registry.read_files(config.strategies, profiles_of)
    strategies, unfit = registry.compile_all(config, default.manifest, files)
    policies, wrong = policy.build(config.pools, config.default_pool, config.policies, strategies)
    if problems or unfit or wrong:
        raise loaded.error([*problems, *unfit, *wrong])
    return policies


def make_judges(loaded: config_source.Loaded, judges: Judges) -> Mapping[str, JudgeClient]:
    """Strategy to judge; raises ConfigError with the place of the first that cannot be made."""
    try:
        return judges.of(loaded.config.strategies)
    except CannotJudge as error:
        raise loaded.error([Problem(("strategies", error.strategy), str(error))]) from None


def connect_sessions(config: Config, count: Callable[[str], None] = lambda _: None) -> SharedSessions | None:
    """The shared memory of conversations, if there is one; raises ConfigError. Nothing is sent yet."""
    session = config.controllers.session
    return None if session is None else remote_sessions.connect(session, count)


def make_generation(
    number: int,
    loaded: config_source.Loaded,
    classifier: Classifier,
    on_error: Callable[[str], None],
    judges: Judges,
    policies: Mapping[str, policy.Policy] | None = None,
    controllers: Controllers | None = None,
    shared: SharedSessions | None = None,
    on_shadow: Callable[[Shadow], None] = lambda _: None,
) -> Generation:
    """One configuration, ready to decide; raises ConfigError with places.

    `policies` are those of `make_policies`, made here if they are not given.
    """
    config = loaded.config
    if policies is None:
        policies = make_policies(loaded, classifier.bundle)
    judging = make_judges(loaded, judges)
    pipeline = Pipeline(config, policies, classifier, on_error, judging, controllers, shared, on_shadow)
    default = config.pools[config.default_pool]
    settings = Settings(
        default_pool=config.default_pool,
        default_cluster=default.cluster,
        body_bytes_max=config.server.body_bytes_max,
        allow_mode_override=config.server.allow_mode_override,
        models=pipeline.catalog.names,
    )
    return Generation(number, loaded.sha256, settings, pipeline)


@dataclass(frozen=True, slots=True)
class Worker:
    """What a process is told that is one of several."""

    index: int
    admin: str
    """What its admin pages are served on, for the supervisor alone."""


class App:
    """A running sidecar."""

    def __init__(
        self,
        path: Path,
        loaded: config_source.Loaded,
        models: Mapping[str, OnnxModel],
        worker: Worker | None = None,
    ) -> None:
        """Call within the event loop that is to serve; `worker` if this process is one of several."""
        self._path = path
        self._loaded, self._files = loaded, registry.fingerprint(loaded.config.strategies)
        self._worker = worker
        self._metrics = PrometheusSink()
        self._classifier = make_classifier(loaded.config, models, self._metrics.looked_up, self._on_gpu)
        self._judges = Judges()
        self._profiles = ProfileDirectories(self._on_profiles)
        self._controllers = Controllers(loaded.config, os.urandom(SECRET_BYTES))
        self._shared = self._connect(loaded.config)
        policies = make_policies(loaded, self._classifier.bundle, self._profiles.of)
        self._generation = self._make_generation(1, loaded, policies, self._shared)
        self._adopt()
        self._ready = self._rejected = False
        self._turned = time.monotonic()
        self._stop = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._reloads: set[asyncio.Task[None]] = set()
        telemetry = loaded.config.telemetry
        sinks: list[Sink] = [self._metrics]
        if telemetry.log_decisions:
            sinks.append(log.LogSink(telemetry, worker.index if worker else None))
        self._tracing = _tracing(telemetry.otlp_endpoint)
        if self._tracing:
            sinks.append(self._tracing)
        servicer = Servicer(lambda: self._generation, sinks, self._metrics)
        self._server = GrpcServer(loaded.config.server, servicer, worker.index if worker else 0)

    def _on_error(self, request_id: str) -> None:
        self._metrics.errors.inc()
        logger.exception("decision.failed", request_id=request_id)

    def _on_gpu(self, bundle: str, event: str) -> None:
        """Any thread may call; what encodes changes on the event loop alone."""
        self._metrics.gpu_event(bundle, event)
        if event != "out_of_memory":
            self._metrics.set_models(self._classifier.describe())

    def _make_generation(
        self,
        number: int,
        loaded: config_source.Loaded,
        policies: Mapping[str, policy.Policy],
        shared: SharedSessions | None,
    ) -> Generation:
        return make_generation(
            number,
            loaded,
            self._classifier,
            self._on_error,
            self._judges,
            policies,
            self._controllers,
            shared,
            self._on_shadow,
        )

    def _connect(self, config: Config) -> SharedSessions | None:
        return connect_sessions(config, lambda what: self._metrics.remote.labels(what).inc())

    def _on_shadow(self, shadow: Shadow) -> None:
        self._metrics.shadowed(shadow)
        if self._loaded.config.telemetry.log_decisions:
            logger.info("shadow.decided", **dataclasses.asdict(shadow))

    def _on_load(self, pool: str, load: Mapping[str, float]) -> None:
        self._metrics.set_load(pool, load)
        self._controllers.observe(pool, load, asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        self._metrics.watch_controllers(self._controllers.status)
        if self._worker is not None:
            # The supervisor holds the other end and never writes: it can only come to an end.
            loop.add_reader(sys.stdin.fileno(), self._orphaned)
        self._metrics.watch_queue(lambda: self._classifier.waiting)
        self._metrics.set_models(self._classifier.describe())
        self._note_reload()
        admin = self._start_admin()
        await self._server.start()
        await self._server.ready()
        self._ready = True
        logger.info(
            "server.serving",
            version=__version__,
            listen=self._loaded.config.server.address(self._worker.index if self._worker else 0),
            admin=self._worker.admin if self._worker else self._loaded.config.admin.listen,
            encoders=self._classifier.describe(),
        )
        turning = asyncio.create_task(self._turn())
        watch = asyncio.create_task(self._watch())
        profiles = asyncio.create_task(self._profiles.watch(self._stop))
        scrape = asyncio.create_task(
            load.scrape(lambda: self._loaded.config.pools, self._on_load, self._metrics.scrape_failed)
        )
        try:
            await self._stop.wait()
        finally:
            self._ready = False
            logger.info("server.draining", seconds=self._loaded.config.server.drain_seconds)
            await self._server.drain()
            scrape.cancel()
            for problem in await asyncio.gather(watch, profiles, *self._reloads, return_exceptions=True):
                if problem is not None:
                    logger.error("watch.failed", exc_info=problem)
            await self._classifier.close()
            await self._judges.close()
            if self._shared is not None:
                await self._shared.close()
            if self._tracing:
                await asyncio.to_thread(self._tracing.close)
            turning.cancel()
            if admin:
                admin.close()
            logger.info("server.stopped")

    async def _turn(self) -> None:
        while True:
            self._turned = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)

    @property
    def _still(self) -> bool:
        """The event loop has not turned for too long; asked in another thread."""
        return time.monotonic() - self._turned > STILL_SECONDS_MAX

    def _livez(self) -> Page:
        return text(503, "the event loop stands still\n") if self._still else text(200, "ok\n")

    def _readyz(self) -> Page:
        return text(200, "ok\n") if self._ready and not self._still else text(503, "not ready\n")

    def _orphaned(self) -> None:
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        logger.error("supervisor.gone")
        self._stop.set()

    async def _watch(self) -> None:
        async for _ in config_source.changes(self._path, self._stop):
            await self._reload()

    def _hang_up(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        """Take a changed configuration as a whole, or keep the last good one and say why."""
        async with self._reloading:
            await self._take()

    def _read(self) -> tuple[config_source.Loaded, str, Mapping[str, policy.Policy]] | None:
        """What the file says now, compiled; None if that is what is live. Raises ConfigError."""
        loaded = config_source.load(self._path)
        files = registry.fingerprint(loaded.config.strategies)
        # Not by their digests, which know nothing of secrets: a new password is a change.
        if loaded.config == self._loaded.config and files == self._files:
            return None
        if problems := list(_need_restart(self._loaded.config, loaded.config)):
            raise loaded.error(problems)
        return loaded, files, make_policies(loaded, self._classifier.bundle, self._profiles.of)

    async def _take(self) -> None:
        try:
            # In a thread: an artifact of many prompts takes a second, and requests are being decided.
            read = await asyncio.to_thread(self._read)
            if read is None:
                self._metrics.reload_successful.set(1)
                if self._rejected:
                    logger.info("config.restored", generation=self._generation.number)
                self._rejected = False
                return
            loaded, files, policies = read
            shared = self._shared
            if loaded.config.controllers.session != self._loaded.config.controllers.session:
                shared = self._connect(loaded.config)
            self._generation = self._make_generation(self._generation.number + 1, loaded, policies, shared)
        except ConfigError as error:
            self._reject()
            logger.error("config.rejected", problems=error.problems)
            return
        except Exception:
            self._reject()
            logger.exception("config.rejected")
            return
        self._loaded, self._files = loaded, files
        self._adopt()
        self._controllers.reload(loaded.config)
        if shared is not self._shared and self._shared is not None:
            # Streams that are open still hold it: a lookup after this one fails, and is counted.
            self._closing = asyncio.get_running_loop().create_task(self._shared.close())
        self._shared = shared
        self._note_reload()
        logger.info("config.reloaded", generation=self._generation.number, sha256=loaded.sha256[:12])

    def _reject(self) -> None:
        """What the file says now is not taken: the last good configuration goes on."""
        self._rejected = True
        self._profiles.forget()
        self._metrics.reload_successful.set(0)

    def _on_profiles(self, strategy: str, directory: ProfileDirectory | None) -> None:
        """Count and tell what a strategy's profiles are now."""
        if directory is None:
            self._metrics.forget_profiles(strategy)
            return
        found = directory()
        self._metrics.set_profiles(strategy, len(found), len(directory.problems))
        served = {pool.model for pool in self._loaded.config.pools.values()}
        logger.info(
            "profiles.read",
            strategy=strategy,
            models=sorted(found.keys() & served),
            without_pool=sorted(found.keys() - served),
        )
        for problem in directory.problems:
            logger.error("profile.rejected", strategy=strategy, problem=problem)
        for profile in found.values():
            if is_thin(profile):
                logger.warning("profile.thin", strategy=strategy, certainty=thin_warning(profile))

    def _adopt(self) -> None:
        """The generation that was made is live: so is what it reads and asks."""
        self._judges.adopt(self._generation.pipeline.judges)
        self._profiles.adopt()

    def _note_reload(self) -> None:
        self._metrics.set_config(self._generation.sha256, self._generation.number)
        self._rejected = False
        self._metrics.reload_successful.set(1)
        self._metrics.reload_timestamp.set(time.time())

    def _start_admin(self) -> AdminServer | None:
        listen = self._worker.admin if self._worker else self._loaded.config.admin.listen
        if listen is None:
            return None
        return AdminServer(
            listen,
            {
                "/livez": self._livez,
                "/readyz": self._readyz,
                "/metrics": lambda: Page(
                    200, "text/plain; version=0.0.4; charset=utf-8", self._metrics.exposition()
                ),
                "/config": self._config_page,
                "/controllers": lambda: _json(self._controllers.status()),
                "/worker": self._worker_page,
            },
        )

    def _worker_page(self) -> Page:
        """What the supervisor wants to know."""
        still = self._still
        state = {
            "ready": self._ready and not still,
            "turning": not still,
            "sha256": self._generation.sha256,
        }
        return Page(200, "application/json", json.dumps(state).encode())

    def _config_page(self) -> Page:
        live = {
            "generation": self._generation.number,
            "sha256": self._generation.sha256,
            "encoders": self._classifier.describe(),
            "config": self._loaded.config.model_dump(mode="json"),
        }
        return _json(live)


def _need_restart(live: Config, new: Config) -> Iterator[Problem]:
    """Every setting of the new configuration that a running server cannot take."""
    for section in NOT_RELOADABLE:
        before, after = getattr(live, section), getattr(new, section)
        for name in type(after).model_fields:
            if getattr(before, name) != getattr(after, name):
                yield Problem(
                    (section, name), "a change here needs a restart; nothing of this file was applied"
                )


def _json(content: object) -> Page:
    return Page(200, "application/json", (json.dumps(content, indent=2) + "\n").encode())


def _tracing(endpoint: str | None) -> OtelSink | None:
    """The sink for spans if a collector is configured here or by the environment.

    Its import costs a fifth of the start, so it waits until it is needed.
    """
    if endpoint is None and not any(os.environ.get(name) for name in OTLP_VARIABLES):
        return None
    from semroute_extproc.telemetry import otel

    return otel.OtelSink(otel.exporter(endpoint))


def serve(path: Path, worker: Worker | None = None) -> None:
    """Load, warm up and serve until told to stop; raises ConfigError, BundleError or OSError."""
    # Until we listen for it, it would end the process. What it tells of is looked for once we serve.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    loaded = config_source.load(path)
    log.configure(loaded.config.telemetry)
    if worker is not None:
        structlog.contextvars.bind_contextvars(worker=worker.index)
    models = make_models(loaded.config, load_bundles(loaded.config))

    async def run() -> None:
        await App(path, loaded, models, worker).run()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(run())


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop's where it is installed, asyncio's own otherwise."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
