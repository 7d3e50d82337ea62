"""Strategies as routers of a pair, by the very classes of the live path.

Fitted on rows of a file of their own, or cross-fitted:

    similarity     RouteLLM's weights over all stored prompts, and over the nearest of them
    factorization  RouteLLM's bilinear model
    clusters       K-means averaged over clusterings; the score is the gap of the expected errors
    intent         experts by predicted domain. A pair has no experts but the strong model, so the
                   domains get it in the order of their gain on the rows fitted on, and text on which
                   the strategy abstains, which its generalist answers, gets it before all of them

Asked: judge, the score of a model that the operator names. What it gives no score is decided as in
the live path, by the bundle's difficulty at the same strong share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import cluster_errors
from semroute_extproc.strategies.factorization import Factorization
from semroute_extproc.strategies.intent import IntentSettings
from semroute_extproc.strategies.similarity import Similarity
from semroute_lab.evaluate.metrics.arrays import Floats, Integers
from semroute_lab.evaluate.scoring import Scores
from semroute_lab.evaluate.splitting import folds, text_groups
from semroute_lab.fit import clusters, factorization, similarity
from semroute_lab.fit.outcomes import FOLDS, PAIR
from semroute_lab.fit.settle import score_quantiles
from semroute_lab.profile.tally import tally

Vectors = npt.NDArray[np.float32]

NEIGHBOURS = 200
"""Stored prompts that count in the second similarity row."""

SHRINKAGE = 20.0
"""Answers that a model's own mean counts for, as the strategy has it by default."""

MAX_ENTROPY: float = IntentSettings.model_fields["max_entropy"].default
"""From where on `intent` abstains, as the strategy has it by default."""

FITTED = {
    "similarity": "Bradley-Terry with similarity weights over all labelled prompts",
    f"similarity, {NEIGHBOURS} nearest": "the same over the most similar ones",
    "factorization": "bilinear model of models and prompts",
    "clusters": f"K-means, {clusters.CLUSTERINGS} clusterings, gap of the expected errors",
    "intent": "gain of the predicted domain on the rows fitted on; what it abstains on comes first",
}
"""Rows that learn from labels, and what they are."""

ABOUT = {
    **FITTED,
    "judge": "P(strong wins) of the model asked; where it gave none, the difficulty at the same share",
}
"""Every row of this module."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Prompts to fit on: what the bundle says of n of them, and outcomes of strong and weak (n, 2)."""

    known: Scores
    outcome: Floats
    texts: list[str]

    @property
    def x(self) -> Vectors:
        """Their embeddings; (n, d)."""
        return self.known.neighbours

    def take(self, rows: Integers) -> Labelled:
        """Some rows, in that order."""
        return Labelled(self.known.take(rows), self.outcome[rows], [self.texts[row] for row in rows])


def scores(fit: Labelled, known: Scores, seed: int) -> dict[str, Floats]:
    """The score of each strategy of `FITTED` fitted on `fit`, for the m rows of `known`; each (m,)."""
    x = known.neighbours
    routers: dict[str, Callable[[], Floats]] = {
        "similarity": lambda: similarity_scores(fit, x, seed),
        f"similarity, {NEIGHBOURS} nearest": lambda: similarity_scores(fit, x, seed, NEIGHBOURS),
        "factorization": lambda: factorization_scores(fit, x, seed),
        "clusters": lambda: _clusters(fit, x, seed),
        "intent": lambda: _intent(fit, known),
    }
    return {name: router() for name, router in routers.items()}


def cross_fitted_scores(rows: Labelled, seed: int) -> dict[str, Floats]:
    """The same for the rows themselves, each scored by a fit on the other folds; identical prompts in one."""
    fold: Integers = folds(text_groups(rows.texts), FOLDS, seed)
    found = {name: np.empty(len(rows.x)) for name in FITTED}
    for part in range(FOLDS):
        inside, outside = (np.flatnonzero(hit).astype(np.int64) for hit in (fold == part, fold != part))
        for name, values in scores(rows.take(outside), rows.known.take(inside), seed).items():
            found[name][inside] = values
    return found


def judge_scores(
    said: Mapping[str, float | None], texts: Sequence[str], difficulty: Floats, reference: Sequence[float]
) -> Floats:
    """The judge's score of each text, or what ranks as the live path decides without one; (n,).

    `said` is text to score, of which one at least is not None; `difficulty` (n,), and `reference` its
    quantiles on the bundle's traffic. A text without a score is strong at a share where its difficulty
    is, and so gets the judge's own quantile of that share.
    """
    given = np.asarray([math.nan if (score := said[text]) is None else score for text in texts])
    percents = np.arange(101)
    quantiles = score_quantiles(given[np.isfinite(given)])
    instead = np.interp(np.interp(difficulty, reference, percents), percents, quantiles)
    return np.where(np.isfinite(given), given, instead)


def _manifest(kind: str, fit: Labelled, seed: int) -> ArtifactManifest:
    return ArtifactManifest(
        kind=kind, bundle="", revision="", dimensions=fit.x.shape[1], rows=len(fit.x), seed=seed
    )


def similarity_scores(fit: Labelled, x: Vectors, seed: int, neighbours: int = 0) -> Floats:
    """P(strong wins) by the strategy `similarity` fitted on `fit`, for embeddings `x` (m, d); (m,)."""
    wins = (1.0 + fit.outcome[:, 0] - fit.outcome[:, 1]) / 2.0
    fold = folds(text_groups(fit.texts), FOLDS, seed)
    manifest = _manifest("similarity", fit, seed)
    artifact, _ = similarity.fit(fit.x, wins, fold, manifest, neighbours=neighbours)
    score = Similarity(artifact)
    return np.asarray([score.of(row) for row in x])


def factorization_scores(fit: Labelled, x: Vectors, seed: int) -> Floats:
    """The same by the strategy `factorization`."""
    fold = folds(text_groups(fit.texts), FOLDS, seed)
    manifest = _manifest("factorization", fit, seed)
    artifact, _ = factorization.fit(fit.x, fit.outcome, PAIR, fold, manifest)
    score = Factorization(artifact, *PAIR)
    return np.asarray([score.of(row) for row in x])


def _clusters(fit: Labelled, x: Vectors, seed: int) -> Floats:
    k = max(1, min(clusters.CLUSTERS, len(fit.x) // 10))
    artifact = clusters.fit_kmeans(fit.x, _manifest("clusters", fit, seed), fit.texts, k)
    strong, weak = (
        cluster_errors(tally(artifact, fit.x, errors, [], model="m"), "shrunk", SHRINKAGE)
        for errors in (1.0 - fit.outcome).T.tolist()
    )
    gap: Floats = artifact.membership(x).astype(np.float64) @ (weak - strong)
    return gap


def domain_errors(fit: Scores, errors: Floats, known: Scores) -> Floats:
    """Expected errors (m, models) of the predicted domains of `known`, NaN where `intent` abstains.

    `errors` (n, models) are those of the rows of `fit`; a domain's mean is shrunk to each model's own,
    as profiles are. Only rows on which the strategy does not abstain count.
    """
    seen, wanted = fit.expert(MAX_ENTROPY), known.expert(MAX_ENTROPY)
    means = errors.mean(axis=0)
    table = np.full((len(fit.labels) + 1, errors.shape[1]), np.nan)
    for label in range(len(fit.labels)):
        rows = errors[seen == label]
        table[label] = (rows.sum(axis=0) + SHRINKAGE * means) / (len(rows) + SHRINKAGE)
    return table[wanted]


def _intent(fit: Labelled, known: Scores) -> Floats:
    strong, weak = domain_errors(fit.known, 1.0 - fit.outcome, known).T
    gain: Floats = weak - strong
    sure = np.isfinite(gain)
    return np.where(sure, gain, np.max(gain, where=sure, initial=0.0) + 1.0)
