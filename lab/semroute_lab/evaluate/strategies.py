"""Strategies as routers of a pair, by the classes that serve requests.

They are fitted on a separate file, or cross-fitted. With two models the only expert is the strong one, so
`intent` ranks domains by their gain on the fit rows. Text on which it abstains ranks first, because the
generalist, which is the strong model too, answers it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from semroute_extproc.strategies.clusters import ClustersArtifact, cluster_errors
from semroute_extproc.strategies.intent import IntentSettings
from semroute_lab.common.metrics import Floats, Integers, Vectors
from semroute_lab.common.tables import folds
from semroute_lab.evaluate.scoring import Scores
from semroute_lab.fit import clusters, factorization, similarity
from semroute_lab.fit.outcomes import PAIR, quantiles, unwritten, wins
from semroute_lab.profile.tally import profile_of_sums, sums_of

Estimate = Literal["shrunk", "laplace"]  # How the strategy `clusters` reads a profile

NEIGHBORS = 200  # Stored prompts that count in the second similarity row
SHRINKAGE = 20.0  # Weight of a model's own mean, in answers; the strategy's default
MAX_ENTROPY: float = IntentSettings.model_fields["max_entropy"].default  # `intent` abstains above it
NEAREST = f"similarity, {NEIGHBORS} nearest"


@dataclass(frozen=True, slots=True)
class Labeled:
    """Prompts to fit on: the bundle's scores of n prompts, and outcomes of strong and weak (n, 2)."""

    known: Scores
    outcome: Floats
    texts: list[str]
    samples: Floats = field(default_factory=lambda: np.empty((0, 2, 0)))
    """Qualities of sampled answers of both, (n, 2, samples), where labels need them."""

    @property
    def x(self) -> Vectors:
        """Their embeddings; (n, d)."""
        return self.known.neighbors

    def take(self, rows: Integers) -> Labeled:
        """Some rows, in that order."""
        texts = [self.texts[row] for row in rows]
        samples = self.samples[rows] if len(self.samples) else self.samples
        return Labeled(self.known.take(rows), self.outcome[rows], texts, samples)


def scores(fit: Labeled, known: Scores, seed: int) -> dict[str, Floats]:
    """The score of each strategy fitted on `fit`, for the m rows of `known`; each (m,)."""
    x = known.neighbors
    k = max(1, min(clusters.CLUSTERS, len(fit.x) // 10))
    artifact = clusters.fit_kmeans(fit.x, unwritten("clusters", fit.x, seed), fit.texts, k)
    strong, weak = profile_errors(artifact, fit.x, 1.0 - fit.outcome, x, "shrunk", SHRINKAGE).T
    return {
        "similarity": similarity_scores(fit, x, seed),
        NEAREST: similarity_scores(fit, x, seed, NEIGHBORS),
        "factorization": factorization_scores(fit, x, seed),
        "clusters": np.asarray(weak - strong),
        "intent": intent_scores(fit, known),
    }


def cross_fitted(
    rows: Labeled, seed: int, fitted: Callable[[Labeled, Labeled], dict[str, Floats]]
) -> dict[str, Floats]:
    """Out-of-fold scores of `rows`, by `fitted(fit, apply)` for each fold; identical prompts share a fold."""
    fold = folds(rows.texts, seed)
    found: dict[str, Floats] = {}
    for part in np.unique(fold):
        inside, outside = (np.flatnonzero(hit) for hit in (fold == part, fold != part))
        for name, values in fitted(rows.take(outside), rows.take(inside)).items():
            found.setdefault(name, np.empty(len(rows.x)))[inside] = values
    return found


def judge_scores(
    said: Mapping[str, float | None], texts: Sequence[str], difficulty: Floats, reference: Sequence[float]
) -> Floats:
    """The judge's score of each text, (n,), with a substitute for texts that it did not score.
    As in serving, these are routed by `difficulty` (n,): the substitute has the rank among the judge's scores
    that the difficulty has among its `reference` quantiles.
    """
    given = np.asarray([said[text] for text in texts], dtype=np.float64)
    percents = np.arange(101)
    by_share = quantiles(given[np.isfinite(given)])
    instead = np.interp(np.interp(difficulty, reference, percents), percents, by_share)
    return np.where(np.isfinite(given), given, instead)


def similarity_scores(fit: Labeled, x: Vectors, seed: int, neighbors: int = 0) -> Floats:
    """P(strong wins) by the strategy `similarity` fitted on `fit`, for embeddings `x` (m, d); (m,)."""
    labels, manifest = wins(*fit.outcome.T), unwritten("similarity", fit.x, seed)
    artifact, _ = similarity.fit(fit.x, labels, folds(fit.texts, seed), manifest, neighbors=neighbors)
    score = artifact.score()
    return np.asarray([score(row) for row in x])


def factorization_scores(fit: Labeled, x: Vectors, seed: int) -> Floats:
    """P(strong wins) by the strategy `factorization`; see `similarity_scores`."""
    manifest = unwritten("factorization", fit.x, seed)
    artifact, _ = factorization.fit(fit.x, fit.outcome, PAIR, folds(fit.texts, seed), manifest)
    score = artifact.score(*PAIR)
    return np.asarray([score(row) for row in x])


def profile_errors(
    artifact: ClustersArtifact, x: Vectors, errors: Floats, test: Vectors, estimate: Estimate, m: float
) -> Floats:
    """Expected errors (m, models) for `test` (m, d) exactly as the strategy `clusters` computes them, from
    profiles, with shrinkage `m`, of the models' `errors` (n, models) on prompts with embeddings `x` (n, d).
    """
    profiles = (
        profile_of_sums(artifact, sums_of(artifact, x, column, []), model="m") for column in errors.T.tolist()
    )
    psi = np.stack([cluster_errors(profile, estimate, m) for profile in profiles], axis=1)
    return np.asarray(artifact.membership(test).astype(np.float64) @ psi)


def domain_errors(fit: Scores, errors: Floats, known: Scores) -> Floats:
    """Expected errors (m, models) in the predicted domains of `known`, NaN where `intent` abstains.
    `errors` (n, models) belong to the rows of `fit`; rows on which the strategy abstains are ignored. As in
    profiles, the mean of a domain is shrunk to the model's overall mean.
    """
    seen, wanted = fit.expert(MAX_ENTROPY), known.expert(MAX_ENTROPY)
    means = errors.mean(axis=0)
    table = np.full((len(fit.labels) + 1, errors.shape[1]), math.nan)
    for label in range(len(fit.labels)):
        rows = errors[seen == label]
        table[label] = (rows.sum(axis=0) + SHRINKAGE * means) / (len(rows) + SHRINKAGE)
    return table[wanted]


def intent_scores(fit: Labeled, known: Scores) -> Floats:
    """The gain of the predicted domain, and more than any gain where `intent` abstains; (m,)."""
    strong, weak = domain_errors(fit.known, 1.0 - fit.outcome, known).T
    gain: Floats = weak - strong
    sure = np.isfinite(gain)
    return np.where(sure, gain, np.max(gain, where=sure, initial=0.0) + 1.0)
