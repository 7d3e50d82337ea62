"""Read the files that strategies name: artifacts, calibrations, directories of profiles."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from semroute_extproc.config.models import (
    ClustersStrategy,
    Config,
    FactorizationStrategy,
    PairStrategy,
    Problem,
    SimilarityStrategy,
    Strategy,
)
from semroute_extproc.errors import ArtifactError
from semroute_extproc.strategies.artifacts import Clusters, load_clusters, load_factorization, load_similarity
from semroute_extproc.strategies.calibration import Calibration, read_calibration
from semroute_extproc.strategies.clusters import Profiles
from semroute_extproc.strategies.profile_directory import ProfileDirectory
from semroute_extproc.strategies.registry import Artifact, Material

ProfilesOf = Callable[[str, Path, Clusters], Profiles]
"""The profiles of a strategy, in a directory, that count in those clusters; raises ArtifactError."""


def still(strategy: str, directory: Path, clusters: Clusters) -> Profiles:
    """The profiles of a directory as they are now, every one of them good; raises ArtifactError."""
    found = ProfileDirectory(directory, clusters)
    if found.problems:
        raise ArtifactError(found.problems[0])
    return found


def load(config: Config, profiles_of: ProfilesOf = still) -> tuple[Material, list[Problem]]:
    """Everything the strategies of `config` read from files; what cannot be read is a problem."""
    artifacts: dict[str, Artifact] = {}
    calibrations: dict[str, Calibration] = {}
    profiles: dict[str, Profiles] = {}
    problems: list[Problem] = []
    for name, settings in config.strategies.items():
        for field, path in paths(settings):
            try:
                if field == "artifact":
                    artifacts[name] = _artifact(settings, path)
                elif field == "calibration":
                    calibrations[name] = read_calibration(path)
                elif isinstance(clusters := artifacts.get(name), Clusters):
                    profiles[name] = profiles_of(name, path, clusters)
            except ArtifactError as error:
                problems.append(Problem(("strategies", name, field), str(error)))
    return Material(artifacts, calibrations, profiles), problems


def paths(settings: Strategy) -> Iterator[tuple[str, Path]]:
    """The settings of a strategy that name a file or a directory, and what they name."""
    if isinstance(settings, SimilarityStrategy | FactorizationStrategy | ClustersStrategy):
        yield "artifact", settings.artifact
    if isinstance(settings, PairStrategy) and settings.calibration is not None:
        yield "calibration", settings.calibration
    if isinstance(settings, ClustersStrategy):
        yield "profiles", settings.profiles


def fingerprint(config: Config) -> str:
    """Changes when a file that a strategy names does: replaced under its name, it is read anew."""
    digest = hashlib.sha256()
    for settings in config.strategies.values():
        for field, path in paths(settings):
            if field != "profiles":
                try:
                    stat = path.stat()
                except OSError:
                    continue
                digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _artifact(settings: Strategy, path: Path) -> Artifact:
    loaders: dict[str, Callable[[Path], Artifact]] = {
        "similarity": load_similarity,
        "factorization": load_factorization,
        "clusters": load_clusters,
    }
    return loaders[settings.kind](path)
