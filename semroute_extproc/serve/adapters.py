"""Thin adapters from the constructors as they will be (`emit`) to those that still take callbacks.

Delete this file with the last of them.
"""
# ruff: noqa: D103

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from semroute_extproc.envoy.server import Generation, Servicer
from semroute_extproc.events import (
    Emit,
    Failed,
    ProfilesRead,
    StreamRefused,
)
from semroute_extproc.strategies.profile_directory import ProfileDirectories, ProfileDirectory
from semroute_extproc.strategies.profiles import certainty, is_thin

ConfigSnapshot = Generation


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
