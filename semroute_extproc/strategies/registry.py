"""From settings to strategies, and what is wrong with what they name.

Pure. What strategies read from files was read before, by `strategy_files`, and comes as `Material`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from semroute_extproc.config import models as cfg
from semroute_extproc.config.models import Problem
from semroute_extproc.encoder.bundle import Manifest
from semroute_extproc.policy.context import Strategy
from semroute_extproc.strategies.artifacts import Clusters as ClustersArtifact
from semroute_extproc.strategies.artifacts import Factorization as FactorizationArtifact
from semroute_extproc.strategies.artifacts import Manifest as ArtifactManifest
from semroute_extproc.strategies.artifacts import Similarity as SimilarityArtifact
from semroute_extproc.strategies.calibration import Calibration
from semroute_extproc.strategies.clusters import Clusters, Profiles, choosable
from semroute_extproc.strategies.factorization import Factorization
from semroute_extproc.strategies.intent import Intent
from semroute_extproc.strategies.judge import Judge
from semroute_extproc.strategies.pair import Pair
from semroute_extproc.strategies.similarity import Similarity
from semroute_extproc.strategies.threshold import Threshold
from semroute_extproc.strategies.weighted import Fixed, Weighted

Artifact = SimilarityArtifact | FactorizationArtifact | ClustersArtifact


@dataclass(frozen=True, slots=True)
class Material:
    """What the files that strategies name hold, by the strategy's name."""

    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    profiles: Mapping[str, Profiles] = field(default_factory=dict)
    """Asked at every choice, so that what it gives may change while requests come."""


NO_MATERIAL = Material()


def compile_all(
    config: cfg.Config, manifest: Manifest, material: Material = NO_MATERIAL
) -> tuple[dict[str, Strategy], list[Problem]]:
    """Every strategy of `config`; one with a problem stands in for itself as its first pool."""
    problems: list[Problem] = []
    strategies: dict[str, Strategy] = {}
    for name, settings in config.strategies.items():
        compiler = _Compiler(name, config, manifest, material, problems)
        strategies[name] = compiler.compile(settings) or Fixed(
            cfg.FixedStrategy(kind="fixed", pool=config.default_pool)
        )
    return strategies, problems


@dataclass(frozen=True, slots=True)
class _Compiler:
    """One strategy's settings against the bundle and its files."""

    name: str
    config: cfg.Config
    manifest: Manifest
    material: Material
    problems: list[Problem]

    def compile(self, settings: cfg.Strategy) -> Strategy | None:
        """The strategy, or None after a problem was noted."""
        match settings:
            case cfg.ThresholdStrategy():
                return self._threshold(settings)
            case cfg.SimilarityStrategy():
                return self._similarity(settings)
            case cfg.FactorizationStrategy():
                return self._factorization(settings)
            case cfg.ClustersStrategy():
                return self._clusters(settings)
            case cfg.JudgeStrategy():
                return self._judge(settings)
            case cfg.IntentStrategy():
                return self._intent(settings)
            case cfg.FixedStrategy():
                return Fixed(settings)
            case cfg.WeightedStrategy():
                return Weighted(self.name, settings)

    def _threshold(self, settings: cfg.ThresholdStrategy) -> Strategy | None:
        calibration = self._calibration(settings, "")
        if not self._complete(settings, calibration):
            return None
        return Threshold(settings, self.manifest.difficulty, calibration)

    def _similarity(self, settings: cfg.SimilarityStrategy) -> Strategy | None:
        artifact = self.material.artifacts.get(self.name)
        if not isinstance(artifact, SimilarityArtifact) or not self._fits(artifact.manifest):
            return None
        calibration = self._calibration(settings, artifact.digest)
        if not self._complete(settings, calibration):
            return None
        # A mean over many prompts: scores lie close together, and two digits would look alike.
        return Pair(settings, Similarity(artifact), artifact.quantiles, "similarity", calibration, digits=4)

    def _factorization(self, settings: cfg.FactorizationStrategy) -> Strategy | None:
        artifact = self.material.artifacts.get(self.name)
        if not isinstance(artifact, FactorizationArtifact) or not self._fits(artifact.manifest):
            return None
        pools = self.config.pools
        strong = self._model(settings.strong_model, pools[settings.strong].model, "strong", artifact)
        weak = self._model(settings.weak_model, pools[settings.weak].model, "weak", artifact)
        if strong is None or weak is None:
            return None
        calibration = self._calibration(settings, artifact.pair_digest(strong, weak))
        if not self._complete(settings, calibration):
            return None
        fitted = artifact.models[:2]
        if settings.strong_share is not None and calibration is None and (strong, weak) != fitted:
            self._problem(
                "strong_share",
                f"the artifact knows the shares of {fitted[0]} over {fitted[1]} alone: "
                f"for {strong} over {weak} give a calibration",
            )
            return None
        score = Factorization(artifact, strong, weak)
        return Pair(settings, score, artifact.quantiles, "factorization", calibration)

    def _model(
        self, given: str | None, served: str, role: str, artifact: FactorizationArtifact
    ) -> str | None:
        """The artifact's name of a pool's model: as given, as served, or by its role in a pair file."""
        candidates = (served, role) if given is None else (given,)
        found = next((name for name in candidates if name in artifact.models), None)
        if found is None:
            hint = cfg.did_you_mean(candidates[0], artifact.models)
            self._problem(f"{role}_model", f"the artifact has no model {candidates[0]!r}{hint}")
        return found

    def _clusters(self, settings: cfg.ClustersStrategy) -> Strategy | None:
        artifact, profiles = self.material.artifacts.get(self.name), self.material.profiles.get(self.name)
        if (
            not isinstance(artifact, ClustersArtifact)
            or not self._fits(artifact.manifest)
            or profiles is None
        ):
            return None
        pools = choosable(settings, self.config.pools)
        if not pools:
            self._problem("pools", "no pool has a price, and without prices there is nothing to trade")
            return None
        for index, pool in enumerate(pools):
            if self.config.pools[pool].price is None:
                self._problem("pools", f"pool {pool} has no price", index)
        return Clusters(self.name, settings, artifact, self.config.pools, profiles)

    def _judge(self, settings: cfg.JudgeStrategy) -> Strategy | None:
        calibration = self._calibration(settings, settings.digest)
        if not self._complete(settings, calibration):
            return None
        return Judge(self.name, settings, self.manifest.difficulty, calibration)

    def _intent(self, settings: cfg.IntentStrategy) -> Strategy:
        manifest = self.manifest
        head = manifest.task if settings.by == "task" else manifest.domain
        labels = head.labels if head is not None else ()
        if not labels:
            self._problem("by", f"bundle {manifest.name} has no {settings.by} head")
        for label in settings.experts:
            if labels and label not in labels:
                hint = cfg.did_you_mean(label, labels)
                self._problem(
                    "experts", f"bundle {manifest.name} has no {settings.by} {label!r}{hint}", label
                )
        return Intent(settings)

    def _fits(self, artifact: ArtifactManifest) -> bool:
        """Whether the artifact was fitted on this very bundle's embedding."""
        theirs, ours = (
            f"{artifact.bundle} {artifact.revision}",
            f"{self.manifest.name} {self.manifest.revision}",
        )
        if artifact.revision != self.manifest.revision:
            self._problem(
                "artifact", f"was fitted on bundle {theirs}, but this is {ours}: fit it anew with this bundle"
            )
            return False
        return True

    def _calibration(self, settings: cfg.PairStrategy, digest: str) -> Calibration | None:
        """The calibration, if it is of this very score."""
        found = self.material.calibrations.get(self.name)
        if found is None:
            return None
        kind = self.config.strategies[self.name].kind
        theirs, ours = f"{found.bundle} {found.revision}", f"{self.manifest.name} {self.manifest.revision}"
        if found.score != kind:
            self._problem("calibration", f"is of a {found.score} score, but this strategy is a {kind}")
        elif found.revision != self.manifest.revision:
            self._problem(
                "calibration",
                f"was made with bundle {theirs}, but this is {ours}: make it anew with this bundle",
            )
        elif found.artifact != digest:
            self._problem("calibration", f"is of artifact {found.artifact}, but this is {digest}")
        elif settings.max_quality_drop is not None and found.quality is None:
            self._problem(
                "max_quality_drop",
                "the calibration has no outcomes, so it cannot say what quality would drop",
            )
        else:
            return found
        return None

    @staticmethod
    def _complete(settings: cfg.PairStrategy, calibration: Calibration | None) -> bool:
        return settings.calibration is None or calibration is not None

    def _problem(self, field_name: str, message: str, *deeper: str | int) -> None:
        self.problems.append(Problem(("strategies", self.name, field_name, *deeper), message))
