"""Factorization: the strong pool by a bilinear model of models and prompts.

RouteLLM (arXiv 2406.18665) section 4.2, matrix factorization:

    δ(M, q) = w₂ᵀ (v_M ⊙ (W₁ᵀ x_q + b))        P(strong wins | q) = σ(δ(strong, q) − δ(weak, q))

For two models of a fitted artifact the difference is one vector and one number, folded once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from semroute_extproc.encoder.signals import sigmoid
from semroute_extproc.settings.base import FilePath, did_you_mean
from semroute_extproc.strategies.artifact import Artifact, ArtifactFile, Floats, digest_of
from semroute_extproc.strategies.idea import Site, Unfit
from semroute_extproc.strategies.pair import Pair, PairSettings, of_embedding


@dataclass(frozen=True)
class FactorizationArtifact(Artifact):
    """δ(M, q) = w · (v_M ⊙ (W x_q + b)): how well a model answers a prompt, on a scale of log-odds."""

    models: tuple[str, ...]
    vectors: Floats  # (models, r): v_M, with the paper's w₂ multiplied in
    projection: Floats  # (r, d): W
    bias: Floats  # (r,): b
    quantiles: tuple[float, ...]  # of P(strong wins) of the first two models on prompts it was not fitted on

    def pair_digest(self, strong: str, weak: str) -> str:
        """Twelve hexadecimal digits that change with any score of two of its models."""
        pair = self.vectors[[self.models.index(strong), self.models.index(weak)]]
        return digest_of(pair, self.projection, self.bias)

    def score(self, strong: str, weak: str) -> Callable[[Floats], float]:
        """P(strong wins) of two of its models, for an embedding (d,)."""
        gap = self.vectors[self.models.index(strong)] - self.vectors[self.models.index(weak)]
        direction, offset = gap @ self.projection, float(gap @ self.bias)
        return lambda x: sigmoid(float(np.dot(direction, x)) + offset)


def read_factorization(path: Path) -> FactorizationArtifact:
    """Read a `factorization` artifact; raises ArtifactError, naming the file and what is wrong."""
    file = ArtifactFile(path, "factorization")
    projection = file.floats("projection", None, file.manifest.dimensions)
    rank = len(projection)
    vectors, models = file.floats("vectors", None, rank), file.names("models")
    if len(models) < 2 or len(models) != len(vectors) or len(set(models)) < len(models):
        raise file.error(f"{len(models)} names for {len(vectors)} models")
    bias = file.floats("bias", rank)
    return FactorizationArtifact(file.manifest, models, vectors, projection, bias, file.quantiles())


class FactorizationSettings(PairSettings):
    """Selects the strong pool by matrix factorization of models and prompts (RouteLLM section 4.2)."""

    kind: Literal["factorization"]
    artifact: FilePath = Field(description="File of `semroute fit factorization`.")
    strong_model: str | None = Field(
        None, description="Name of the strong pool's model in the artifact; default: the pool's model."
    )
    weak_model: str | None = Field(
        None, description="Name of the weak pool's model in the artifact; default: the pool's model."
    )
    files: ClassVar = {"artifact": read_factorization, **PairSettings.files}

    def compile(self, site: Site) -> Pair:
        """Compile for two models of the artifact; raises Unfit."""
        artifact = site.artifact(FactorizationArtifact)
        strong = _model(self.strong_model, site.pools[self.strong].model, "strong", artifact)
        weak = _model(self.weak_model, site.pools[self.weak].model, "weak", artifact)
        fitted = artifact.models[:2]
        if self.strong_share is not None and self.calibration is None and (strong, weak) != fitted:
            known = f"the artifact has quantiles only for {fitted[0]} over {fitted[1]}"
            raise Unfit("strong_share", f"{known}: for {strong} over {weak} add a calibration")
        cutoff = self.cutoff(site, artifact.quantiles, "factorization", artifact.pair_digest(strong, weak))
        return Pair(of_embedding(artifact.manifest, artifact.score(strong, weak)), cutoff, self.on_unknown)


def _model(given: str | None, served: str, role: str, artifact: FactorizationArtifact) -> str:
    """The artifact's name of a pool's model: as given, as served, or by its role in a pair file."""
    wanted, *others = (served, role) if given is None else (given,)
    for name in (wanted, *others):
        if name in artifact.models:
            return name
    hint = did_you_mean(wanted, artifact.models)
    raise Unfit(f"{role}_model", f"the artifact has no model {wanted!r}{hint}")
