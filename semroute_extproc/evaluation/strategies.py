"""Strategies with an artefact as routers of a pair, by the very classes of the live path.

Rows: similarity (RouteLLM's weights over all stored prompts, and over the nearest of them),
factorization, and clusters (K-means averaged over clusterings; the score is the gap of the two
models' expected errors). They are fitted on rows of a file of their own, or cross-fitted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semroute_extproc.artefacts import Kind, Manifest
from semroute_extproc.evaluation.metrics.arrays import Floats, Integers
from semroute_extproc.evaluation.splitting import folds, text_groups
from semroute_extproc.fitting import clusters, factorization, similarity
from semroute_extproc.fitting.outcomes import FOLDS, PAIR
from semroute_extproc.policy.clusters import cluster_errors
from semroute_extproc.policy.factorization import Factorization
from semroute_extproc.policy.similarity import Similarity
from semroute_extproc.profiles import tally

Vectors = npt.NDArray[np.float32]

NEIGHBOURS = 200
"""Stored prompts that count in the second similarity row."""

SHRINKAGE = 20.0
"""Answers that a model's own mean counts for, as the strategy has it by default."""

ABOUT = {
    "similarity": "Bradley-Terry with similarity weights over all labelled prompts",
    f"similarity, {NEIGHBOURS} nearest": "the same over the most similar ones",
    "factorization": "bilinear model of models and prompts",
    "clusters": f"K-means, {clusters.CLUSTERINGS} clusterings, gap of the expected errors",
}


@dataclass(frozen=True, slots=True)
class Labelled:
    """Prompts to fit on: embeddings (n, d), outcomes of the strong and the weak model (n, 2), a fold each."""

    x: Vectors
    outcome: Floats
    texts: list[str]

    def take(self, rows: npt.NDArray[np.bool_]) -> Labelled:
        """The rows for which `rows` (n,) holds."""
        texts = [text for text, kept in zip(self.texts, rows.tolist(), strict=True) if kept]
        return Labelled(self.x[rows], self.outcome[rows], texts)


def scores(fit: Labelled, x: Vectors, seed: int) -> dict[str, Floats]:
    """The score of each strategy fitted on `fit`, for the rows of `x` (m, d); each (m,)."""
    routers: dict[str, Callable[[], Floats]] = {
        "similarity": lambda: _similarity(fit, x, seed, 0),
        f"similarity, {NEIGHBOURS} nearest": lambda: _similarity(fit, x, seed, NEIGHBOURS),
        "factorization": lambda: _factorization(fit, x, seed),
        "clusters": lambda: _clusters(fit, x, seed),
    }
    return {name: router() for name, router in routers.items()}


def cross_fitted_scores(rows: Labelled, seed: int) -> dict[str, Floats]:
    """The same for the rows themselves, each scored by a fit on the other folds; identical prompts in one."""
    fold: Integers = folds(text_groups(rows.texts), FOLDS, seed)
    found = {name: np.empty(len(rows.x)) for name in ABOUT}
    for part in range(FOLDS):
        inside = fold == part
        for name, values in scores(rows.take(~inside), rows.x[inside], seed).items():
            found[name][inside] = values
    return found


def _manifest(kind: Kind, fit: Labelled, seed: int) -> Manifest:
    return Manifest(kind=kind, bundle="", revision="", dimensions=fit.x.shape[1], rows=len(fit.x), seed=seed)


def _similarity(fit: Labelled, x: Vectors, seed: int, neighbours: int) -> Floats:
    wins = (1.0 + fit.outcome[:, 0] - fit.outcome[:, 1]) / 2.0
    fold = folds(text_groups(fit.texts), FOLDS, seed)
    manifest = _manifest("similarity", fit, seed)
    artefact, _ = similarity.fit(fit.x, wins, fold, manifest, neighbours=neighbours)
    score = Similarity(artefact)
    return np.asarray([score.of(row) for row in x])


def _factorization(fit: Labelled, x: Vectors, seed: int) -> Floats:
    fold = folds(text_groups(fit.texts), FOLDS, seed)
    manifest = _manifest("factorization", fit, seed)
    artefact, _ = factorization.fit(fit.x, fit.outcome, PAIR, fold, manifest)
    score = Factorization(artefact, *PAIR)
    return np.asarray([score.of(row) for row in x])


def _clusters(fit: Labelled, x: Vectors, seed: int) -> Floats:
    k = max(1, min(clusters.CLUSTERS, len(fit.x) // 10))
    artefact = clusters.fit_kmeans(fit.x, _manifest("clusters", fit, seed), fit.texts, k)
    strong, weak = (
        cluster_errors(tally(artefact, fit.x, errors, [], model="m"), "shrunk", SHRINKAGE)
        for errors in (1.0 - fit.outcome).T.tolist()
    )
    gap: Floats = artefact.membership(x).astype(np.float64) @ (weak - strong)
    return gap
