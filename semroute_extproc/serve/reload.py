"""Reloads the configuration: applies a valid one completely and otherwise keeps the last good one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from semroute_extproc.config import source as config_source
from semroute_extproc.config.source import Loaded
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.envoy.server import ConfigSnapshot
from semroute_extproc.errors import ConfigError
from semroute_extproc.events import Emit, Failed, ProfilesRead, Reloaded, ReloadRejected
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.policy.plan import PolicyPlan
from semroute_extproc.serve import build
from semroute_extproc.settings.base import Problem
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.strategies.judge_client import Judges
from semroute_extproc.strategies.profiles import ProfileDirectories, ProfileDirectory, is_thin, thin_warning
from semroute_extproc.strategies.registry import fingerprint

NOT_RELOADABLE = ("server", "encoder", "admin", "telemetry")
"""Sections whose change needs a restart."""


class LiveConfig:
    """The live configuration and everything built from it; belongs to one event loop."""

    snapshot: ConfigSnapshot

    def __init__(
        self, path: Path, loaded: Loaded, classifier: Classifier, controllers: ControllerState, emit: Emit
    ) -> None:
        """Apply `loaded` now and the file's changes later; raises ConfigError."""
        self._path, self.classifier, self.controllers, self._emit = path, classifier, controllers, emit
        self._judges = Judges()
        self._profiles = ProfileDirectories(self._profiles_changed)
        self._rejected = False
        """Whether the file differs from the live configuration and is invalid."""
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._shared = build.connect_sessions(loaded.config, emit)
        self.loaded = loaded
        files = fingerprint(loaded.config.strategies)
        self._adopt(1, loaded, files, build.make_policies(loaded, classifier.bundle, self._profiles.of))

    async def watch(self, stop: asyncio.Event) -> None:
        """Reload when the file or a directory of profiles changes, until `stop`."""

        async def file() -> None:
            async for _ in config_source.changes(self._path, stop):
                await self.reload()

        async def guarded(watch: Coroutine[Any, Any, None]) -> None:
            try:
                await watch
            except Exception:
                self._emit(Failed("watch.failed"))

        await asyncio.gather(guarded(file()), guarded(self._profiles.watch(stop)))

    async def reload(self) -> None:
        """Apply the file's configuration if it changed; if it is invalid, report why and keep the old one."""
        async with self._reloading:
            try:
                # In a thread, because loading a large artifact takes a second and would block requests.
                read = await asyncio.to_thread(self._read)
                if read is not None:
                    self._adopt(self.snapshot.number + 1, *read)
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
        loaded = config_source.load(self._path)
        files = fingerprint(loaded.config.strategies)
        # Not compared by digest, which omits secrets: a new password is a change.
        if (loaded.config, files) == (self.loaded.config, self._files):
            return None
        problems = [
            Problem((section, name), "a change here needs a restart; nothing of this file was applied")
            for section in NOT_RELOADABLE
            for name, value in getattr(loaded.config, section)
            if value != getattr(getattr(self.loaded.config, section), name)
        ]
        if problems:
            raise loaded.error(problems)
        return loaded, files, build.make_policies(loaded, self.classifier.bundle, self._profiles.of)

    def _adopt(self, number: int, loaded: Loaded, files: str, policies: Mapping[str, PolicyPlan]) -> None:
        """Make a compiled configuration live; raises ConfigError before anything changes."""
        config, shared = loaded.config, self._shared
        if config.controllers.session != self.loaded.config.controllers.session:
            shared = build.connect_sessions(config, self._emit)
        judges = build.make_judges(loaded, self._judges)
        parts = judges, self.controllers, shared, build.make_counter(loaded)
        pipeline = Pipeline(config, policies, self.classifier, self._emit, *parts)
        self.snapshot = ConfigSnapshot(number, loaded.sha256, build.exchange_settings(pipeline), pipeline)
        if self._shared is not None and self._shared is not shared:
            # Open streams still use the old store; their lookups now fail and are counted.
            self.start(self._shared.close())
        self.loaded, self._files, self._shared = loaded, files, shared
        self.controllers.configure(config.pools, config.controllers, config.strategies)
        self.controllers.follow(next(iter(policies.values())).strategies if policies else {})
        self._judges.adopt(judges)
        self._profiles.adopt()
        self._emit(Reloaded(loaded.sha256, number, notes=loaded.notes))

    def _profiles_changed(self, strategy: str, directory: ProfileDirectory | None) -> None:
        if directory is None:
            self._emit(ProfilesRead(strategy, None))
            return
        found, problems = directory(), directory.problems
        served = {pool.model for pool in self.loaded.config.pools.values()}
        models, without_pool = sorted(found.keys() & served), sorted(found.keys() - served)
        thin = [thin_warning(each) for each in found.values() if is_thin(each)]
        self._emit(ProfilesRead(strategy, len(found), problems, models, without_pool, thin))

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task in the background; `close` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
