"""Routers over models they were not trained on: each estimates an error for every request and model.

UniRoute's setting (Jitkrittum et al., arXiv 2502.08773): a router is trained on some prompts with
the outcomes of the training models; a new model is known only by its outcomes on a small
validation set. All estimates have shape (test prompts, test models).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact, cluster_errors
from semroute_lab.evaluate.metrics.arrays import Floats, Integers
from semroute_lab.fit.clusters import CLUSTERINGS, LEARNED_MAP_SHRINKAGE, k_means, learn_map, sums
from semroute_lab.profile.tally import tally

Vectors = npt.NDArray[np.float32]

NEIGHBOURS = 100
"""Neighbours in the validation set; at most half of it."""

CLUSTERS = 25
"""Clusters of the training prompts; at most one for every ten validation prompts."""

SHRINKAGE = 20.0
"""Pseudo-observations of a model's own mean in every cluster."""

RIDGES = tuple(np.logspace(0.0, 3.0, 7).tolist())
"""L2 weights that the linear models, on embeddings of length 1, choose from."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Everything one trial may see; errors are 1 - outcome."""

    train: Vectors
    """Embeddings of the training prompts; (n_train, d)."""
    validation: Vectors
    test: Vectors
    train_errors: Floats
    """Training models on training prompts; (n_train, training models)."""
    validation_errors: Floats
    """Test models on validation prompts; (n_validation, test models)."""
    forbidden_errors: Floats
    """Test models on training prompts, which only the clairvoyant reads; (n_train, test models)."""
    centres: Floats
    """K-means of the training prompts; (k, d)."""
    near: Integers
    """The cluster of each training prompt; (n_train,)."""
    seed: int


def nearest_neighbours(trial: Trial) -> Floats:
    """Mean error of the k validation prompts with the highest cosine."""
    k = max(1, min(NEIGHBOURS, len(trial.validation) // 2))
    cosine = trial.test @ trial.validation.T
    near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
    return np.asarray(trial.validation_errors[near].mean(axis=1), dtype=np.float64)


def clusters_laplace(trial: Trial) -> Floats:
    """K-means profiles with Laplace's rule, (wrong + 1) / (n + 2) in each cluster."""
    return _live(trial, _hard(trial), "laplace", SHRINKAGE)


def clusters_shrunk(trial: Trial) -> Floats:
    """K-means profiles shrunk to the model's own mean, (wrong + m mean) / (n + m) in each cluster."""
    return _live(trial, _hard(trial), "shrunk", SHRINKAGE)


def clusters_averaged(trial: Trial) -> Floats:
    """The same with several clusterings, whose estimates are averaged."""
    k = len(trial.centres)
    others = [k_means(trial.train, k, trial.seed + run)[0] for run in range(1, CLUSTERINGS)]
    centroids = np.concatenate([trial.centres, *others]).astype(np.float32)
    names = ("",) * len(centroids)
    return _live(
        trial, ClustersArtifact(_manifest(trial), centroids, None, names, CLUSTERINGS), "shrunk", SHRINKAGE
    )


def learned_map(trial: Trial) -> Floats:
    """UniRoute's LearnedMap: soft cluster membership softmax(W x + b), learned on the training models.

    The log loss of membership . profile is minimised over W and b by Adam, starting at K-means;
    profiles are membership-weighted mean errors, recomputed with the final map for the test models.
    """
    wrong, rows = sums(trial.near, trial.train_errors, len(trial.centres))
    profiles = (wrong + LEARNED_MAP_SHRINKAGE * trial.train_errors.mean(axis=0)) / (
        rows[:, None] + LEARNED_MAP_SHRINKAGE
    )
    weights, bias = learn_map(trial.train, trial.train_errors, trial.centres, profiles, trial.seed)
    centroids = np.ascontiguousarray(weights.T, dtype=np.float32)
    names = ("",) * len(centroids)
    artifact = ClustersArtifact(_manifest(trial), centroids, bias.astype(np.float32), names)
    return _live(trial, artifact, "shrunk", LEARNED_MAP_SHRINKAGE)


def _hard(trial: Trial) -> ClustersArtifact:
    names = ("",) * len(trial.centres)
    return ClustersArtifact(_manifest(trial), trial.centres.astype(np.float32), None, names)


def _manifest(trial: Trial) -> ArtifactManifest:
    dimensions = trial.train.shape[1]
    return ArtifactManifest(
        kind="clusters", bundle="", revision="", dimensions=dimensions, rows=len(trial.train), seed=trial.seed
    )


def _live(
    trial: Trial, artifact: ClustersArtifact, estimate: Literal["shrunk", "laplace"], shrinkage: float
) -> Floats:
    """Expected errors exactly as the strategy `clusters` computes them, from profiles of the validation."""
    psi = [
        cluster_errors(tally(artifact, trial.validation, errors, [], model="m"), estimate, shrinkage)
        for errors in trial.validation_errors.T.tolist()
    ]
    return np.asarray(artifact.membership(trial.test).astype(np.float64) @ np.stack(psi, axis=1))


def ridge_on_validation(trial: Trial) -> Floats:
    """Linear error estimates refitted on the validation prompts: what retraining for new models buys."""
    return _ridge(trial.validation, trial.validation_errors, trial.test)


def clairvoyant(trial: Trial) -> Floats:
    """The same fitted on the test models' outcomes on the *training* prompts: an upper reference."""
    return _ridge(trial.train, trial.forbidden_errors, trial.test)


def _ridge(fit: Vectors, errors: Floats, test: Vectors) -> Floats:
    """Ridge regression whose weight has the least leave-one-out error, summed over the models.

    With X^T X = V diag(e) V^T a row's leverage is sum_j (XV)_j^2 / (e_j + weight), and its
    left-out residual is residual / (1 - leverage - 1/n) (Hastie et al., ESL, section 7.10).
    """
    centre, mean = fit.mean(axis=0).astype(np.float64), errors.mean(axis=0)
    x, y = fit - centre, errors - mean
    eigenvalues, basis = np.linalg.eigh(x.T @ x)
    rotated = x @ basis
    target = rotated.T @ y
    best, loss = np.zeros((x.shape[1], y.shape[1])), np.inf
    for weight in RIDGES:
        kept = 1.0 / (np.maximum(eigenvalues, 0.0) + weight)
        coefficients = kept[:, None] * target
        free = np.maximum(1.0 - (rotated**2) @ kept - 1.0 / len(x), 1e-6)
        left_out = float((((y - rotated @ coefficients) / free[:, None]) ** 2).sum())
        if left_out < loss:
            best, loss = basis @ coefficients, left_out
    return np.asarray((test - centre) @ best + mean, dtype=np.float64)


def cluster_count(train_rows: int, validation_rows: int) -> int:
    """How many clusters that many prompts can fill."""
    return max(1, min(CLUSTERS, validation_rows // 10, train_rows))
