"""The interface of a routing idea: settings that name their files and compile to a strategy."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from semroute_extproc.encoder.manifest import Manifest
from semroute_extproc.policy.context import Strategy
from semroute_extproc.settings.base import Model, Problem
from semroute_extproc.settings.pools import Pool
from semroute_extproc.strategies.artifact import Artifact

A = TypeVar("A", bound=Artifact)
Pools = Mapping[str, Pool]
Conflicts = Iterator[tuple[str, str]]  # a setting and a message each


class Unfit(Exception):
    """A strategy cannot be compiled; `args` are the setting and the message, or empty if reported."""


@dataclass(frozen=True, slots=True)
class Site:
    """The context in which a strategy is compiled: its inputs, and the problems found so far."""

    name: str
    pools: Pools
    manifest: Manifest  # of the default bundle
    files: Mapping[str, Any]  # setting to the content of the file or directory it names
    problems: list[Problem]

    def problem(self, setting: str, message: str, *deeper: str | int) -> None:
        """Report a problem; compilation may continue."""
        self.problems.append(Problem(("strategies", self.name, setting, *deeper), message))

    def artifact(self, shape: type[A]) -> A:
        """The artifact, which must be fitted with this bundle; raises Unfit."""
        found = self.files.get("artifact")
        if not isinstance(found, shape):
            raise Unfit
        if (theirs := found.manifest).revision != self.manifest.revision:
            fitted = f"was fitted on bundle {theirs.bundle} {theirs.revision}, but this is {self.bundle}"
            raise Unfit("artifact", f"{fitted}: fit it again with this bundle")
        return found

    @property
    def bundle(self) -> str:
        """Name and revision of the bundle."""
        return f"{self.manifest.name} {self.manifest.revision}"


class StrategySettings(Model):
    """Settings of one kind of strategy: the interface that the registry and the configuration use."""

    kind: str
    files: ClassVar[Mapping[str, Callable[[Path], Any]]] = {}  # file setting to reader (ArtifactError)
    directory: ClassVar[str] = ""  # the setting of the profiles for the artifact's clusters, if there is one
    weighs_cost: ClassVar[bool] = False  # a budget can move its choices

    def check(self, models: Collection[str], deadline_ms: float) -> Conflicts:
        """Conflicts with routed models or the deadline."""
        return iter(())

    def compile(self, site: Site) -> Strategy:
        """The strategy; raises Unfit."""
        raise NotImplementedError
