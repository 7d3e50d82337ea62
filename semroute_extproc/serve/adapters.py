"""Thin adapters from the constructors as they will be (`emit`) to those that still take callbacks.

Delete this file with the last of them.
"""
# ruff: noqa: D103

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from semroute_extproc.config.models import Config, Pool
from semroute_extproc.config.source import Loaded
from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.cache import SignalCache
from semroute_extproc.encoder.classifier import Classifier, Reader
from semroute_extproc.encoder.cuda import CudaModel
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.queue import Batcher
from semroute_extproc.envoy.server import Generation, Servicer
from semroute_extproc.events import (
    CacheLookup,
    Emit,
    Failed,
    OutOfMemory,
    ProfilesRead,
    Scraped,
    SessionStoreError,
    Shadowed,
    StreamRefused,
)
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.policy import plan
from semroute_extproc.state import pool_metrics
from semroute_extproc.state.shared_sessions import SharedSessions, connect
from semroute_extproc.strategies import files
from semroute_extproc.strategies.profile_directory import ProfileDirectories, ProfileDirectory
from semroute_extproc.strategies.profiles import certainty, is_thin

ConfigSnapshot = Generation


def encode_queue(model: OnnxModel, threads: int, queue_max: int, emit: Emit) -> Batcher:
    model.emit = emit  # type: ignore[attr-defined]
    if isinstance(model, CudaModel):
        name = model.bundle.manifest.name
        model.on_out_of_memory = lambda: emit(OutOfMemory(name))
    return Batcher(model, threads, queue_max)


def classifier(default: Reader, others: Mapping[str, Reader], entries: int, emit: Emit) -> Classifier:
    return Classifier(default, others, SignalCache(entries, lambda hit: emit(CacheLookup(hit))))


def policies(loaded: Loaded, bundle: Bundle, profiles_of: Any) -> dict[str, plan.Policy]:
    material, problems = files.load(loaded.config, profiles_of)
    built, more = plan.build(loaded.config, bundle.manifest, material)
    if problems or more:
        raise loaded.error([*problems, *more])
    return built


def sessions(config: Config, emit: Emit) -> SharedSessions | None:
    session = config.controllers.session
    return None if session is None else connect(session, lambda what: emit(SessionStoreError(what)))


def pipeline(
    config: Config,
    policies: Mapping[str, plan.Policy],
    classifier: Classifier,
    judges: Any,
    controllers: Any,
    shared: Any,
    emit: Emit,
) -> Pipeline:
    def failed(request_id: str) -> None:
        emit(Failed("decision.failed", request_id))

    return Pipeline(
        config,
        policies,
        classifier,
        failed,
        judges,
        controllers,
        shared,
        lambda shadow: emit(Shadowed(shadow)),
    )


async def scrape(pools: Callable[[], Mapping[str, Pool]], emit: Emit) -> None:
    failed: set[str] = set()

    def tell(pool: str, load: Mapping[str, float]) -> None:
        emit(Scraped(pool, load, pool in failed))
        failed.discard(pool)

    await pool_metrics.scrape(pools, tell, failed.add)


def profile_directories(emit: Emit, served: Callable[[], set[str]]) -> ProfileDirectories:
    def tell(strategy: str, directory: ProfileDirectory | None) -> None:
        if directory is None:
            emit(ProfilesRead(strategy, None))
            return
        found = directory()
        emit(
            ProfilesRead(
                strategy,
                len(found),
                directory.problems,
                sorted(found.keys() & served()),
                sorted(found.keys() - served()),
                [certainty(each, directory.clusterings) for each in found.values() if is_thin(each)],
            )
        )

    return ProfileDirectories(tell)


def servicer(snapshot: Any, emit: Emit) -> Any:
    def count(event: Callable[[], Any]) -> Any:
        return SimpleNamespace(inc=lambda: emit(event()), set_function=lambda _: None)

    metrics: Any = SimpleNamespace(
        errors=SimpleNamespace(inc=lambda: None),
        refused=count(StreamRefused),
        inflight=count(StreamRefused),
    )

    class Emitting(Servicer):
        def _failed(self, what: str, exchange: Any) -> None:
            emit(Failed(what, exchange.head.request_id))

        @property
        def open_streams(self) -> int:
            return self._open

    return Emitting(snapshot, [SimpleNamespace(handle=emit)], metrics)
