"""The live configuration: read, compile, then make it live as a whole or keep the last good one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

from semroute_extproc.config import source as config_source
from semroute_extproc.config.models import Config
from semroute_extproc.config.source import Loaded
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.envoy.server import ConfigSnapshot
from semroute_extproc.errors import ConfigError
from semroute_extproc.events import Emit, Failed, ProfilesRead, Reloaded, ReloadRejected
from semroute_extproc.policy.plan import PolicyPlan
from semroute_extproc.serve import build
from semroute_extproc.settings.base import Problem
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.state.shared_sessions import SharedSessions
from semroute_extproc.strategies.judge_client import Judges
from semroute_extproc.strategies.profiles import ProfileDirectories, ProfileDirectory, is_thin, thin_warning
from semroute_extproc.strategies.registry import fingerprint

NOT_RELOADABLE = ("server", "encoder", "admin", "telemetry")
"""Sections whose change needs a restart."""


class LiveConfig:
    """The configuration that is live, with everything that was made from it; belongs to one event loop."""

    def __init__(
        self,
        path: Path,
        loaded: Loaded,
        classifier: Classifier,
        controllers: ControllerState,
        emit: Emit,
        load: Callable[[Path], Loaded] = config_source.load,
    ) -> None:
        """Make `loaded` live, and later what `load` reads from `path`; raises ConfigError."""
        self._path = path
        self._load = load
        self._classifier = classifier
        self._controllers = controllers
        self._emit = emit
        self._judges = Judges()
        self._profiles = ProfileDirectories(self._profiles_changed)
        self._rejected = False
        """The file differs from what is live and cannot be used."""
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.loaded, self._files = loaded, fingerprint(loaded.config.strategies)
        self._shared = build.connect_sessions(loaded.config, emit)
        self._configure(loaded.config)
        policies = build.make_policies(loaded, classifier.bundle, self._profiles.of)
        self.snapshot = self._snapshot(1, loaded, policies, self._shared)
        self._announce()

    def request_reload(self) -> None:
        """Start a reload, as a signal handler may."""
        self._start(self.reload())

    async def watch(self, stop: asyncio.Event) -> None:
        """Reload when the file or a directory of profiles changes, until `stop`."""

        async def file() -> None:
            async for _ in config_source.changes(self._path, stop):
                await self.reload()

        await asyncio.gather(*(self._guarded(each) for each in (file(), self._profiles.watch(stop))))

    async def reload(self) -> None:
        """Make the file's configuration live if it changed, or keep the last good one and report why."""
        async with self._reloading:
            try:
                # In a thread: a large artifact takes a second, and requests must not wait.
                read = await asyncio.to_thread(self._read)
                if read is not None:
                    self._adopt(*read)
                elif self._rejected:
                    self._emit(Reloaded(self.loaded.sha256, self.snapshot.number, changed=False))
                self._rejected = False
            except Exception as error:
                self._rejected = True
                self._profiles.forget()
                self._emit(ReloadRejected(error.problems if isinstance(error, ConfigError) else ()))

    async def close(self) -> None:
        """Finish reloads and close every connection."""
        await asyncio.gather(*self._tasks)
        await self._judges.close()
        if self._shared is not None:
            await self._shared.close()

    def _read(self) -> tuple[Loaded, str, Mapping[str, PolicyPlan]] | None:
        """The file's configuration, compiled; None if it is the live one. Raises ConfigError."""
        loaded = self._load(self._path)
        files = fingerprint(loaded.config.strategies)
        # Not by digest, which leaves secrets out: a new password is a change.
        if (loaded.config, files) == (self.loaded.config, self._files):
            return None
        if problems := list(restart_needed(self.loaded.config, loaded.config)):
            raise loaded.error(problems)
        return loaded, files, build.make_policies(loaded, self._classifier.bundle, self._profiles.of)

    def _adopt(self, loaded: Loaded, files: str, policies: Mapping[str, PolicyPlan]) -> None:
        """Make it live; raises ConfigError before anything has changed."""
        shared, previous = self._shared, self._shared
        if loaded.config.controllers.session != self.loaded.config.controllers.session:
            shared = build.connect_sessions(loaded.config, self._emit)
        self.snapshot = self._snapshot(self.snapshot.number + 1, loaded, policies, shared)
        self.loaded, self._files, self._shared = loaded, files, shared
        self._configure(loaded.config)
        if previous is not None and previous is not shared:
            # Open streams still hold it; their lookups fail from now on, and are counted.
            self._start(previous.close())
        self._announce()

    def _configure(self, config: Config) -> None:
        self._controllers.configure(config.pools, config.controllers, config.strategies)

    def _snapshot(
        self, number: int, loaded: Loaded, policies: Mapping[str, PolicyPlan], shared: SharedSessions | None
    ) -> ConfigSnapshot:
        pipeline = build.make_pipeline(
            loaded, policies, self._classifier, self._judges, self._controllers, shared, self._emit
        )
        return ConfigSnapshot(number, loaded.sha256, build.exchange_settings(pipeline), pipeline)

    def _announce(self) -> None:
        self._judges.adopt(self.snapshot.pipeline.judges)
        self._profiles.adopt()
        self._emit(Reloaded(self.loaded.sha256, self.snapshot.number, notes=self.loaded.notes))

    def _profiles_changed(self, strategy: str, directory: ProfileDirectory | None) -> None:
        if directory is None:
            self._emit(ProfilesRead(strategy, None))
            return
        found = directory()
        served = {pool.model for pool in self.loaded.config.pools.values()}
        self._emit(
            ProfilesRead(
                strategy,
                len(found),
                directory.problems,
                models=sorted(found.keys() & served),
                without_pool=sorted(found.keys() - served),
                thin=[thin_warning(each) for each in found.values() if is_thin(each)],
            )
        )

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, watch: Coroutine[Any, Any, None]) -> None:
        try:
            await watch
        except Exception:
            self._emit(Failed("watch.failed"))


def restart_needed(live: Config, new: Config) -> Iterator[Problem]:
    """Every setting of the new configuration that needs a restart."""
    for section in NOT_RELOADABLE:
        before, after = getattr(live, section), getattr(new, section)
        for name in type(after).model_fields:
            if getattr(before, name) != getattr(after, name):
                yield Problem(
                    (section, name), "a change here needs a restart; nothing of this file was applied"
                )
