"""Every routing idea in one table: a new one is a file (see `idea`) and one line here."""

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from semroute_extproc.encoder.manifest import Manifest
from semroute_extproc.errors import ArtifactError
from semroute_extproc.policy.context import Strategy
from semroute_extproc.settings.base import Problem
from semroute_extproc.strategies.clusters import ClustersSettings
from semroute_extproc.strategies.factorization import FactorizationSettings
from semroute_extproc.strategies.idea import Site, StrategySettings, Unfit
from semroute_extproc.strategies.intent import IntentSettings
from semroute_extproc.strategies.judge import JudgeSettings
from semroute_extproc.strategies.profiles import ProfileDirectory, Profiles
from semroute_extproc.strategies.similarity import SimilaritySettings
from semroute_extproc.strategies.threshold import ThresholdSettings
from semroute_extproc.strategies.weighted import WeightedSettings

IDEAS: tuple[type[StrategySettings], ...] = (
    ThresholdSettings,
    SimilaritySettings,
    FactorizationSettings,
    JudgeSettings,
    ClustersSettings,
    IntentSettings,
    WeightedSettings,
)


def setting_of(ideas: tuple[type[StrategySettings], ...]) -> Any:
    """The type of a strategy's settings: one of `ideas`, by `kind`."""
    return Annotated[Union[ideas], Field(discriminator="kind")]  # noqa: UP007 - a tuple of classes


if TYPE_CHECKING:
    from semroute_extproc.config.models import Config

    StrategySetting = StrategySettings
else:
    StrategySetting = setting_of(IDEAS)

Settings = Mapping[str, StrategySettings]
Files = Mapping[str, Mapping[str, Any]]  # strategy to setting to the content of what it names
ProfilesOf = Callable[[str, Path, str], Profiles]
"""Opens a strategy's profile directory for the clusters with a digest; raises ArtifactError."""


def once(strategy: str, directory: Path, clusters: str) -> Profiles:
    """Read a directory's profiles once; raises ArtifactError if any is invalid."""
    found = ProfileDirectory(directory, clusters)
    if found.problems:
        raise ArtifactError(found.problems[0])
    return found


def read_files(strategies: Settings, profiles_of: ProfilesOf = once) -> tuple[Files, list[Problem]]:
    """Read every file that the strategies name; an unreadable file is a problem."""
    files: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    for name, settings in strategies.items():
        found = files.setdefault(name, {})
        for field in (*settings.files, *filter(None, [settings.directory])):
            path = getattr(settings, field)
            try:
                if field == settings.directory and "artifact" in found:
                    found[field] = profiles_of(name, path, found["artifact"].digest)
                elif field in settings.files and path is not None:
                    found[field] = settings.files[field](path)
            except ArtifactError as error:
                problems.append(Problem(("strategies", name, field), str(error)))
    return files, problems


def fingerprint(strategies: Settings) -> str:
    """A digest that changes with every file that a strategy names, so that a new file is read again."""
    digest = hashlib.sha256()
    for path in (getattr(settings, field) for settings in strategies.values() for field in settings.files):
        with contextlib.suppress(OSError):
            if path is not None:
                stat = path.stat()
                digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def compile_all(
    config: "Config", manifest: Manifest, artifacts: Files | None = None
) -> tuple[dict[str, Strategy], list[Problem]]:
    """Compile the strategies with the bundle and their files (`read_files`); returns them and problems."""
    problems: list[Problem] = []
    strategies: dict[str, Strategy] = {}
    for name, settings in config.strategies.items():
        site = Site(name, config.pools, manifest, (artifacts or {}).get(name, {}), problems)
        try:
            strategies[name] = settings.compile(site)
        except Unfit as error:
            if error.args:
                site.problem(*error.args)
    return strategies, problems
