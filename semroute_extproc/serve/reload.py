"""Reloads the configuration: applies a valid one completely and otherwise keeps the last good one."""

import asyncio
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from semroute_extproc.config import models, source
from semroute_extproc.config.source import Loaded
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.envoy.server import ConfigSnapshot
from semroute_extproc.errors import ConfigError
from semroute_extproc.events import Emit, Failed, ProfilesRead, Reloaded, ReloadRejected
from semroute_extproc.io.watch import notices
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.policy.plan import PolicyPlan
from semroute_extproc.serve import build
from semroute_extproc.settings.base import Problem
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.state.envoy_health import read_problems
from semroute_extproc.state.shared import SharedState
from semroute_extproc.strategies.judge_client import JudgeClient
from semroute_extproc.strategies.profiles import ProfileDirectory, is_thin, thin_warning
from semroute_extproc.strategies.registry import fingerprint

RETIRE_SECONDS = 15.0  # for streams to finish with a judge that a reload removed
NOT_RELOADABLE = ("server", "encoder", "admin", "telemetry")  # Sections whose change needs a restart

Compiled = tuple[Mapping[str, PolicyPlan], dict[str, ProfileDirectory]]  # by policy, and by strategy

logger = structlog.get_logger("semroute.config")


class LiveConfig:
    """The live configuration and everything built from it; belongs to one event loop."""

    snapshot: ConfigSnapshot
    since: float  # when it became live, in seconds since the epoch

    def __init__(
        self, path: Path, loaded: Loaded, classifier: Classifier, controllers: ControllerState, emit: Emit
    ) -> None:
        """Apply `loaded` now and the file's changes later; raises ConfigError."""
        self.path, self.classifier, self.controllers, self._emit = path, classifier, controllers, emit
        self._judges: dict[str, JudgeClient] = {}  # by strategy
        self._profiles: dict[str, ProfileDirectory] = {}  # by strategy
        self.problems: tuple[str, ...] = ()  # What is wrong with the file, if it is not live.
        self._reloading = asyncio.Lock()
        self._closing, self._tasks = asyncio.Event(), set[asyncio.Task[None]]()
        self.state = SharedState(controllers, emit)
        self._adopt(1, loaded, fingerprint(loaded.config.strategies), self._compile(loaded))

    async def watch(self, stop: asyncio.Event) -> None:
        """Reload when the file changes, and read profiles again when one changes, until `stop`.

        Watches the directory, because a watch on the file misses the symbolic link swap of a ConfigMap.
        """
        seen: bytes | None = None
        folder = self.path.absolute().parent
        try:
            async for _ in notices(lambda: [folder, *(each.path for each in self._profiles.values())], stop):
                if (digest := await asyncio.to_thread(source.digest, self.path)) != seen:
                    seen = digest
                    await self.reload()
                for strategy, directory in list(self._profiles.items()):
                    if await asyncio.to_thread(directory.refresh):
                        self._profiles_changed(strategy, directory)
        except Exception:
            self._emit(Failed("watch.failed"))

    async def reload(self) -> None:
        """Apply the file's configuration if it changed; if it is invalid, report why and keep the old one."""
        async with self._reloading:
            try:
                # In a thread, because loading a large artifact takes a second and would block requests.
                read = await asyncio.to_thread(lambda: self._read(source.load(self.path)))
                await self.classifier.verify()
                if read is not None:
                    self._adopt(self.snapshot.number + 1, *read)
                elif self.problems:
                    self._emit(Reloaded(self.loaded.sha256, self.snapshot.number, changed=False))
                self.problems = ()
            except Exception as error:
                found = tuple(error.problems) if isinstance(error, ConfigError) else ()
                self.problems = found or ("an unexpected error, which the log has",)
                self._emit(ReloadRejected(found))

    async def close(self) -> None:
        """Finish reloads and close every connection."""
        self._closing.set()
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*(judge.close() for judge in self._judges.values()))
        await self.state.close()

    def preview(self, path: Path) -> Loaded:
        """The configuration that a reload would apply if `path` were the file; raises ConfigError.

        Call it in a thread of its own.
        """
        read = self._read(source.load(path, folder=self.path.absolute().parent))
        return self.loaded if read is None else read[0]

    def _read(self, loaded: Loaded) -> tuple[Loaded, str, Compiled] | None:
        """A configuration, compiled; None if it is the live one. Raises ConfigError."""
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
        before = models.clusters(self.loaded.config)
        new = {key: pool for key, pool in models.clusters(loaded.config).items() if key not in before}
        if problems := problems or list(_without_cluster(loaded.config, new)):
            raise loaded.error(problems)
        return loaded, files, self._compile(loaded)

    def _compile(self, loaded: Loaded) -> Compiled:
        """The policies and the directories of profiles, reused if they did not change; raises ConfigError."""
        directories: dict[str, ProfileDirectory] = {}

        def profiles_of(strategy: str, path: Path, clusters: str) -> ProfileDirectory:
            found = self._profiles.get(strategy)
            if found is None or (found.path, found.clusters) != (path, clusters):
                found = ProfileDirectory(path, clusters)
            return directories.setdefault(strategy, found)

        return build.make_policies(loaded, self.classifier.bundle, profiles_of), directories

    def _adopt(self, number: int, loaded: Loaded, files: str, compiled: Compiled) -> None:
        """Make a compiled configuration live; raises ConfigError before anything changes."""
        config, (policies, profiles) = loaded.config, compiled
        judges = build.make_judges(loaded, self._judges)
        parts = judges, self.controllers, self.state, build.make_counter(loaded)
        pipeline = Pipeline(config, policies, self.classifier, self._emit, *parts)
        session, store = config.controllers.session, config.controllers.store
        if (unused := self.state.configure(store, session.ttl_seconds if session else 1.0)) is not None:
            # Lookups that wait for it now fail and are counted.
            self.start(unused.aclose())
        self.snapshot = ConfigSnapshot(number, build.exchange_settings(pipeline), pipeline)
        self.loaded, self._files, self.since = loaded, files, time.time()
        self.controllers.configure(config.pools, config.controllers, config.strategies)
        self.controllers.follow(next(iter(policies.values())).strategies if policies else {})
        retired, self._judges = self._judges, judges
        for strategy, judge in retired.items():
            if judges.get(strategy) is not judge:
                self.start(self._retire(judge))
        read, self._profiles = self._profiles, profiles
        for strategy in {**profiles, **read}:
            if profiles.get(strategy) is not read.get(strategy):
                self._profiles_changed(strategy, profiles.get(strategy))
        self._emit(Reloaded(loaded.sha256, number))

    async def _retire(self, judge: JudgeClient) -> None:
        """Close a judge that open streams may still use for `RETIRE_SECONDS`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), RETIRE_SECONDS)
        await judge.close()

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


def _without_cluster(config: models.Config, clusters: Mapping[str, str]) -> Iterator[Problem]:
    """Clusters, by pool, that Envoy lacks; logs them if Envoy cannot be asked."""
    address = config.controllers.envoy_admin
    try:
        known = read_problems(address) if address and clusters else None
    except Exception:  # any failure of the client, or another page
        known = None
    if known is None and clusters:
        logger.warning("config.clusters_unchecked", clusters=sorted(clusters), hint="Envoy must have them")
    for cluster in clusters.keys() - (clusters if known is None else known).keys():
        message = f"Envoy has no cluster {cluster!r}: add it to Envoy first, then send SIGHUP"
        yield Problem(("pools", clusters[cluster], "cluster"), message)
