"""Directories of profiles, watched: a profile that is put there makes its model a candidate at once.

A file that cannot be used, half written or wrong, changes nothing: what it said when it was last good
holds until it is put right or removed. A directory that cannot be read keeps everything as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from semroute_extproc.errors import ArtifactError
from semroute_extproc.io.watch import notices
from semroute_extproc.strategies.artifacts import Clusters
from semroute_extproc.strategies.profiles import PROFILES_MAX, Profile, read_profile


@dataclass(frozen=True, slots=True)
class _File:
    version: tuple[int, int, int] | None
    """Inode, size and time of change when it was last looked at; None if it could not be."""
    profile: Profile | None
    """What it said when it was last good."""
    problem: str


class ProfileDirectory:
    """The profiles of one `clusters` strategy. Call it for model to profile, as of now."""

    def __init__(self, path: Path, clusters: Clusters) -> None:
        """`clusters` are those that its profiles must count in.

        Raises ArtifactError if there is no such directory; single files do not matter to that.
        """
        self.path = path
        self.clusters = clusters.digest
        self.clusterings = clusters.clusterings
        self._files: dict[str, _File] = {}
        self._profiles: Mapping[str, Profile] = {}
        self.problems: tuple[str, ...] = ()
        """What is wrong now, one line a file."""
        if not path.is_dir():
            raise ArtifactError(f"{path}: no such directory")
        self.refresh()

    def __call__(self) -> Mapping[str, Profile]:
        """Model to profile; another mapping object whenever one came, went or changed."""
        return self._profiles

    def refresh(self) -> bool:
        """Read what changed; whether there is anything new to tell."""
        before = (self._profiles, self.problems)
        try:
            # Whoever writes one aside gives it a name with a dot, and renames it.
            names = sorted(
                each.name
                for each in self.path.iterdir()
                if each.name.endswith(".json") and not each.name.startswith(".")
            )
        except OSError as error:
            self.problems = (f"{self.path}: cannot be read: {error.strerror or error}",)
            return self.problems != before[1]
        problems: list[str] = []
        if len(names) > PROFILES_MAX:
            problems.append(f"{self.path}: more than {PROFILES_MAX} profiles, the rest is not read")
        self._files = {name: self._look(name) for name in names[:PROFILES_MAX]}
        profiles: dict[str, Profile] = {}
        for name, file in self._files.items():
            if file.problem:
                problems.append(file.problem)
            if file.profile is None:
                continue
            if file.profile.model in profiles:
                other = f"another file has the profile of {file.profile.model!r} as well"
                problems.append(f"{self.path / name}: {other}")
                continue
            profiles[file.profile.model] = file.profile
        if profiles != self._profiles:
            self._profiles = profiles
        self.problems = tuple(problems)
        return (self._profiles, self.problems) != before

    def _look(self, name: str) -> _File:
        path = self.path / name
        known = self._files.get(name)
        last_good = known.profile if known is not None else None
        try:
            stat = path.stat()
            version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if known is not None and known.version == version:
                return known
            profile = read_profile(path)
        except OSError as error:
            return _File(None, last_good, f"{path}: cannot be read: {error.strerror or error}")
        except ArtifactError as error:
            return _File(version, last_good, str(error))
        if profile.clusters != self.clusters:
            stale = f"counts in the clusters {profile.clusters}, the artifact has {self.clusters}"
            return _File(version, last_good, f"{path}: {stale}: profile it anew")
        return _File(version, profile, "")


class ProfileDirectories:
    """The directories of a running server, by strategy, over reloads."""

    def __init__(self, tell: Callable[[str, ProfileDirectory | None], None]) -> None:
        """`tell` is called with a strategy whenever its profiles or what is wrong with them changed.

        None stands for a strategy that is there no more.
        """
        self._tell = tell
        self._live: dict[str, ProfileDirectory] = {}
        self._staged: dict[str, ProfileDirectory] = {}
        self._changed = asyncio.Event()

    def of(self, strategy: str, path: Path, clusters: Clusters) -> ProfileDirectory:
        """The directory of a strategy in a configuration that is being loaded; raises ArtifactError.

        One that is live already is kept, with its last good profiles. `adopt` or `forget` follows.
        """
        found = self._live.get(strategy)
        if found is None or (found.path, found.clusters) != (path, clusters.digest):
            found = ProfileDirectory(path, clusters)
        self._staged[strategy] = found
        return found

    def adopt(self) -> None:
        """The configuration that was being loaded is live now."""
        before, self._live, self._staged = self._live, self._staged, {}
        for strategy, directory in self._live.items():
            if before.get(strategy) is not directory:
                self._tell(strategy, directory)
        for strategy in before.keys() - self._live.keys():
            self._tell(strategy, None)
        self._changed.set()

    def forget(self) -> None:
        """The configuration that was being loaded was refused."""
        self._staged = {}

    async def watch(self, stop: asyncio.Event) -> None:
        """Read what changes until `stop`; a reload may bring other directories."""
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: self._changed.set())
        try:
            while not stop.is_set():
                self._changed.clear()
                # A directory that comes back is found by looking.
                async for _ in notices(self._directories, self._changed):
                    await self.refresh()
        finally:
            stopping.cancel()

    def _directories(self) -> set[Path]:
        """What there is to watch now."""
        return {each.path for each in self._live.values() if each.path.is_dir()}

    async def refresh(self) -> None:
        """Look at every directory now."""
        for strategy, directory in list(self._live.items()):
            if await asyncio.to_thread(directory.refresh):
                self._tell(strategy, directory)
