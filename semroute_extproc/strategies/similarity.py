"""Similarity: selects the strong pool if the strong model won on similar prompts.

RouteLLM (arXiv 2406.18665) section 4.2, similarity-weighted ranking: a Bradley-Terry model is fitted
for every query, each stored comparison i weighing

    ω_i = γ^(1 + S_i)        S_i = cos(q, q_i) / max_j cos(q, q_j)

For one pair of models the likelihood has one unknown, the difference ξ of the two ratings. The exact fit is
a weighted mean in closed form; the paper's router solves it by iteration:

    argmax_ξ  Σ_i ω_i [y_i log σ(ξ) + (1 − y_i) log σ(−ξ)]        solved by σ(ξ) = Σ ω_i y_i / Σ ω_i

with y_i = 1 where the strong model won, 0 where the weak one did and ½ for a tie.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from semroute_extproc.policy.context import Near
from semroute_extproc.settings.base import FilePath
from semroute_extproc.strategies.artifact import Artifact, ArtifactFile, Floats, digest_of
from semroute_extproc.strategies.idea import Site
from semroute_extproc.strategies.pair import Pair, PairSettings, of_embedding

PROMPTS_MAX = 200_000  # stored: beyond it a decision takes too long
COSINE_MIN = 1e-3  # S is relative to at least this, if not even the nearest prompt is similar
NEAR_MAX = 10  # stored prompts that are shown
LENGTH_MIN = 1e-6  # lower bound of a norm: a text orthogonal to the axes stays near 0, similar to none


@dataclass(frozen=True)
class SimilarityArtifact(Artifact):
    """Labelled prompts of one pair of models."""

    embeddings: Floats  # (n, r), rows of length 1
    axes: Floats | None  # (r, d): where cosines are taken; None for all of the embedding, r = d
    wins: Floats  # (n,): 1 where the strong model won, 0 where the weak one did, 0.5 for a tie
    gamma: float  # base of the weights γ^(1 + S); RouteLLM's is 10
    neighbors: int  # how many of the most similar prompts count; 0 for all, as in RouteLLM
    quantiles: tuple[float, ...]  # of the score on prompts that it had not stored, ascending

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with the scores."""
        return digest_of(self.embeddings, self.wins, np.asarray([self.gamma, self.neighbors]), self.axes)

    def score(self) -> Callable[[Floats], float]:
        """P(strong wins) for an embedding (d,) of length 1; every stored prompt is read, without an index."""
        log_gamma = math.log(self.gamma)
        k = self.neighbors if self.neighbors < len(self.wins) else 0
        # A row vector times this layout reads memory in order, in half the time of rows times a column.
        columns: Floats = np.ascontiguousarray(self.embeddings.T)

        def of(x: Floats) -> float:
            query = x if self.axes is None else on_axes(x[None, :], self.axes)[0]
            cosines, wins = query @ columns, self.wins
            if k:
                near = np.argpartition(cosines, -k)[-k:]
                cosines, wins = cosines[near], wins[near]
            best = float(cosines.max())
            # Relative to the largest weight, so that none overflows; the common factor cancels.
            weights = np.exp((cosines - np.float32(best)) * np.float32(log_gamma / max(best, COSINE_MIN)))
            return float(np.dot(weights, wins)) / float(weights.sum())

        return of

    def near(self, x: Floats) -> list[Near]:
        """The most similar stored prompts, whose text is not stored, and which model won there."""
        query = x if self.axes is None else on_axes(x[None, :], self.axes)[0]
        cosines = self.embeddings @ query
        nearest = np.argsort(-cosines)[:NEAR_MAX].tolist()
        words = {0.0: "the weak model won", 1.0: "the strong model won", 0.5: "a tie"}
        wins = {each: float(self.wins[each]) for each in nearest}
        found = ((each, words.get(wins[each], f"strong won {wins[each]:.2f}")) for each in nearest)
        return [Near(f"prompt {each}", float(cosines[each]), result) for each, result in found]


def read_similarity(path: Path) -> SimilarityArtifact:
    """Read a `similarity` artifact; raises ArtifactError, naming the file and what is wrong."""
    file = ArtifactFile(path, "similarity")
    axes = file.floats("axes", None, file.manifest.dimensions) if "axes" in file.arrays else None
    embeddings = file.floats("embeddings", None, file.manifest.dimensions if axes is None else len(axes))
    n = len(embeddings)
    if not 0 < n <= PROMPTS_MAX:
        raise file.error(f"{n} prompts, expected 1 to {PROMPTS_MAX}")
    wins = file.floats("wins", n)
    gamma, neighbors = float(file.floats("gamma").item()), file.integer("neighbors", 0)
    if wins.min() < 0.0 or wins.max() > 1.0 or not gamma >= 1.0 or neighbors < 0:
        raise file.error("wins outside 0..1, gamma below 1 or neighbors below 0")
    return SimilarityArtifact(file.manifest, embeddings, axes, wins, gamma, neighbors, file.quantiles())


class SimilaritySettings(PairSettings):
    """Selects by wins on similar prompts (RouteLLM section 4.2, similarity-weighted ranking)."""

    kind: Literal["similarity"]
    artifact: FilePath = Field(description="File of `semroute fit similarity`.")
    files: ClassVar = {"artifact": read_similarity, **PairSettings.files}

    def compile(self, site: Site) -> Pair:
        """Compile with the artifact's prompts; raises Unfit."""
        artifact = site.artifact(SimilarityArtifact)
        # Scores are means over many prompts and lie close together, so two digits would look the same.
        cutoff = self.cutoff(site, artifact.quantiles, "similarity", artifact.digest, digits=4)
        score = of_embedding(artifact.manifest, artifact.score())
        return Pair(score, cutoff, self.on_unknown, of_embedding(artifact.manifest, artifact.near))


def on_axes(x: Floats, axes: Floats) -> Floats:
    """Rows (n, d) on the axes (r, d), scaled to length 1 again; (n, r)."""
    found: Floats = x @ axes.T
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(LENGTH_MIN))
    return found
