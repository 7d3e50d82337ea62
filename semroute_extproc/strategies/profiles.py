"""Profiles: a model's errors by cluster, one JSON file for each model, in a watched directory.

UniRoute (arXiv 2502.08773, section 4) represents a model by its mean error on validation prompts in
every cluster. A profile stores counts instead, so that the strategy can shrink the means. If a file becomes
invalid, its last good content is used until it is fixed or removed.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from semroute_extproc.errors import ArtifactError
from semroute_extproc.io.files import read_json
from semroute_extproc.settings.base import Model

FORMAT = 1  # of profiles that this package reads and writes
FILE_BYTES_MAX = 4 * 1024 * 1024  # of a profile
PROFILES_MAX = 256  # of a directory; further files are not read
CLUSTERS_MAX = 4096  # of a profile or an artifact, all clusterings together
FEW_ANSWERS = 10  # with fewer in a cluster, its error is uncertain by more than about ±0.25


class Profile(Model):
    """A model's answers and errors in each cluster of one `clusters` artifact."""

    format: int = FORMAT
    model: str = Field(min_length=1)  # as its pool names it
    clusters: str = Field(pattern="^[0-9a-f]{12}$")  # `ClustersArtifact.digest` of the artifact that has them
    answers: tuple[float, ...] = Field(min_length=1, max_length=CLUSTERS_MAX)  # graded, in each cluster
    errors: tuple[float, ...]  # sum of their errors: 0 right, 1 wrong, anything between for graded answers
    output_tokens: tuple[float | None, ...] = ()  # mean of an answer, None (or empty) where unknown
    intervals: tuple[tuple[float, float] | None, ...] = ()  # 95 % of the error; routing does not read them
    seen: dict[str, int | float] | None = None  # figures of the endpoint; routing does not read them
    created: str = ""  # ISO date
    source: str = ""  # the file or endpoint it was made from

    @model_validator(mode="after")
    def _fits(self) -> Self:
        k = len(self.answers)
        for name, least in (("errors", k), ("output_tokens", 0), ("intervals", 0)):
            if (length := len(getattr(self, name))) not in (least, k):
                raise ValueError(f"{length} {name} for {k} clusters")
        for index, (wrong, answers) in enumerate(zip(self.errors, self.answers, strict=True)):
            # Sums of float32 shares: equal up to rounding.
            if not 0.0 <= wrong <= answers * (1.0 + 1e-4) + 1e-4:
                raise ValueError(f"cluster {index}: {wrong:g} errors in {answers:g} answers")
        if not sum(self.answers) > 0.0:
            raise ValueError("no answers at all")
        if any(tokens is not None and not tokens >= 0.0 for tokens in self.output_tokens):
            raise ValueError("output_tokens below 0")
        return self

    @property
    def mean_error(self) -> float:
        """The model's error over all its answers."""
        return sum(self.errors) / sum(self.answers)


def is_thin(profile: Profile) -> bool:
    """Whether some clusters have too few answers for a reliable error."""
    return min(profile.answers) < FEW_ANSWERS


def thin_warning(profile: Profile) -> str:
    """One sentence about the clusters with few answers."""
    few = sum(answers < FEW_ANSWERS for answers in profile.answers)
    thin = f"{few} of {len(profile.answers)} clusters have fewer than {FEW_ANSWERS} answers"
    return f"{profile.model}: {thin}; for these, routing uses its overall error of {profile.mean_error:.2f}"


def read_profile(path: Path) -> Profile:
    """Read one profile; raises ArtifactError, naming the file and what is wrong."""
    return read_json(path, Profile, FILE_BYTES_MAX, "`semroute profile` writes it")


Profiles = Callable[[], Mapping[str, Profile]]  # The current ones by model; a new object after a change.

# A profile as of one version of its file; an error is not cached.
_read_version = lru_cache(PROFILES_MAX)(lambda path, *version: read_profile(path))


class ProfileDirectory:
    """The profiles of one `clusters` strategy; a call returns the current ones by model."""

    def __init__(self, path: Path, clusters: str) -> None:
        """`clusters` is the artifact's digest. Raises ArtifactError if there is no such directory."""
        if not path.is_dir():
            raise ArtifactError(f"{path}: no such directory")
        self.path, self.clusters = path, clusters
        self.problems: tuple[str, ...] = ()  # what is wrong now, one line per file
        self._good: dict[Path, Profile] = {}
        self._profiles: Mapping[str, Profile] = {}
        self.refresh()

    def __call__(self) -> Mapping[str, Profile]:
        """See `Profiles`."""
        return self._profiles

    def refresh(self) -> bool:
        """Read changed files; returns whether profiles or problems changed."""
        before = (self._profiles, self.problems)
        try:
            # Skip names with a leading dot: writers use them for temporary files and then rename.
            files = sorted(file for file in self.path.iterdir() if file.match("[!.]*.json"))
        except OSError as error:
            self.problems = (f"{self.path}: cannot be read: {error.strerror or error}",)
            return self.problems != before[1]
        good: dict[Path, Profile] = {}
        many = f"{self.path}: more than {PROFILES_MAX} profiles; further files are not read"
        problems = [many] if len(files) > PROFILES_MAX else []
        for file in files[:PROFILES_MAX]:
            try:
                good[file] = self._read(file)
            except ArtifactError as error:
                problems.append(str(error))
                if file in self._good:
                    good[file] = self._good[file]
        profiles: dict[str, Profile] = {}
        for file, profile in good.items():
            if profiles.setdefault(profile.model, profile) is not profile:
                problems.append(f"{file}: another file also has a profile of {profile.model!r}")
        self._good, self.problems = good, tuple(problems)
        if profiles != self._profiles:
            self._profiles = profiles
        return (self._profiles, self.problems) != before

    def _read(self, path: Path) -> Profile:
        try:
            stat = path.stat()
            profile = _read_version(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from None
        if profile.clusters != self.clusters:
            stale = f"uses the clusters {profile.clusters}, but the artifact has {self.clusters}"
            raise ArtifactError(f"{path}: {stale}: profile it again")
        return profile
