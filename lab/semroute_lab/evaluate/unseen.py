"""Routers over models they were not trained on: each estimates an error for every request and model.

UniRoute's setting (Jitkrittum et al., arXiv 2502.08773): a router is trained on some prompts with
the outcomes of the training models; a new model is known only by its outcomes on a small
validation set. All estimates have shape (test prompts, test models).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_lab.common.metrics import Floats, Integers, Vectors
from semroute_lab.evaluate.strategies import SHRINKAGE, Estimate, profile_errors
from semroute_lab.fit.clusters import CLUSTERINGS, LEARNED_MAP_SHRINKAGE, fit_learned_map, k_means
from semroute_lab.fit.outcomes import unwritten

NEIGHBORS = 100  # Neighbors in the validation set; at most half of it
RIDGES = tuple(np.logspace(0.0, 3.0, 7).tolist())  # L2 weights that the linear models choose from


@dataclass(frozen=True, slots=True)
class Trial:
    """Everything that one trial may use; errors are 1 - outcome."""

    train: Vectors  # Embeddings of the training prompts; (n_train, d)
    validation: Vectors
    test: Vectors
    train_errors: Floats  # Training models on training prompts; (n_train, training models)
    validation_errors: Floats  # Test models on validation prompts; (n_validation, test models)
    forbidden_errors: Floats  # Test models on training prompts, for the clairvoyant only
    centers: Floats  # K-means of the training prompts; (k, d)
    near: Integers  # The cluster of each training prompt; (n_train,)
    seed: int

    @property
    def manifest(self) -> ArtifactManifest:
        """The manifest of an artifact that is never written."""
        return unwritten("clusters", self.train, self.seed)


def nearest_neighbors(trial: Trial) -> Floats:
    """Mean error of the k validation prompts with the highest cosine."""
    k = max(1, min(NEIGHBORS, len(trial.validation) // 2))
    cosine = trial.test @ trial.validation.T
    near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
    return np.asarray(trial.validation_errors[near].mean(axis=1), dtype=np.float64)


def clusters_averaged(trial: Trial) -> Floats:
    """K-means profiles of several clusterings, whose estimates are averaged."""
    k = len(trial.centers)
    others = [k_means(trial.train, k, trial.seed + run)[0] for run in range(1, CLUSTERINGS)]
    return _k_means(trial, np.concatenate([trial.centers, *others]), "shrunk", CLUSTERINGS)


def learned_map(trial: Trial) -> Floats:
    """UniRoute's LearnedMap: soft clusters learned on the training models, profiles by membership."""
    texts, k, start = [""] * len(trial.train), len(trial.centers), (trial.centers, trial.near)
    artifact = fit_learned_map(trial.train, trial.train_errors, trial.manifest, texts, k, start)
    return _profiles(trial, artifact, "shrunk", LEARNED_MAP_SHRINKAGE)


def _k_means(trial: Trial, centers: Floats, estimate: Estimate, clusterings: int = 1) -> Floats:
    names, centroids = ("",) * len(centers), centers.astype(np.float32)
    artifact = ClustersArtifact(trial.manifest, centroids, None, names, clusterings)
    return _profiles(trial, artifact, estimate, SHRINKAGE)


def _profiles(trial: Trial, artifact: ClustersArtifact, estimate: Estimate, shrinkage: float) -> Floats:
    errors = trial.validation_errors
    return profile_errors(artifact, trial.validation, errors, trial.test, estimate, shrinkage)


def ridge(fit: Vectors, errors: Floats, test: Vectors) -> Floats:
    """Ridge regression; its weight minimizes the leave-one-out error over all models."""
    from sklearn.linear_model import RidgeCV

    found = RidgeCV(alphas=RIDGES).fit(fit.astype(np.float64), errors).predict(test.astype(np.float64))
    return np.asarray(found, dtype=np.float64).reshape(len(test), -1)


ROUTERS: dict[str, Callable[[Trial], Floats]] = {
    "kNN": nearest_neighbors,
    "K-means, Laplace": lambda trial: _k_means(trial, trial.centers, "laplace"),
    "K-means, shrunk": lambda trial: _k_means(trial, trial.centers, "shrunk"),
    "K-means, averaged": clusters_averaged,
    "LearnedMap": learned_map,
    "ridge, refitted": lambda trial: ridge(trial.validation, trial.validation_errors, trial.test),
    "clairvoyant": lambda trial: ridge(trial.train, trial.forbidden_errors, trial.test),
}
"""Row of the report to its router; the clairvoyant uses outcomes that no real router has."""
