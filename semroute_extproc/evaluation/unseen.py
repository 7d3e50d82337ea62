"""Routers over models they were not trained on: each estimates an error for every request and model.

UniRoute's setting (Jitkrittum et al., arXiv 2502.08773): a router is trained on some prompts with
the outcomes of the training models; a new model is known only by its outcomes on a small
validation set. All estimates have shape (test prompts, test models).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semroute_extproc.evaluation.metrics.arrays import Floats, Integers

Vectors = npt.NDArray[np.float32]

NEIGHBOURS = 100
"""Neighbours in the validation set; at most half of it."""

CLUSTERS = 25
"""Clusters of the training prompts; at most one for every ten validation prompts."""

SHRINKAGE = 20.0
"""Pseudo-observations of a model's own mean in every cluster."""

RIDGE = 3.0
"""L2 weight of the linear models on embeddings of length 1."""

KMEANS_STEPS = 40
"""Bound on Lloyd's iterations."""

LEARNED_MAP_STEPS = 200
"""Adam steps of the learned map."""

LEARNED_MAP_RATE = 0.05
"""Adam's step size."""

LEARNED_MAP_SHRINKAGE = 5.0
"""Pseudo-observations for the soft profiles of the learned map."""


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
    seed: int


def nearest_neighbours(trial: Trial) -> Floats:
    """Mean error of the k validation prompts with the highest cosine."""
    k = max(1, min(NEIGHBOURS, len(trial.validation) // 2))
    cosine = trial.test @ trial.validation.T
    near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
    return np.asarray(trial.validation_errors[near].mean(axis=1), dtype=np.float64)


def clusters_laplace(trial: Trial) -> Floats:
    """K-means profiles with Laplace's rule, (wrong + 1) / (n + 2) in each cluster."""
    centres, _ = k_means(trial.train, _clusters(trial), trial.seed)
    near = _nearest(trial.validation, centres)
    wrong, rows = _sums(near, trial.validation_errors, len(centres))
    profiles: Floats = (wrong + 1.0) / (rows[:, None] + 2.0)
    return profiles[_nearest(trial.test, centres)]


def clusters_shrunk(trial: Trial) -> Floats:
    """K-means profiles shrunk to the model's own mean, (wrong + m mean) / (n + m) in each cluster."""
    centres, _ = k_means(trial.train, _clusters(trial), trial.seed)
    near = _nearest(trial.validation, centres)
    wrong, rows = _sums(near, trial.validation_errors, len(centres))
    own = trial.validation_errors.mean(axis=0)
    profiles: Floats = (wrong + SHRINKAGE * own) / (rows[:, None] + SHRINKAGE)
    return profiles[_nearest(trial.test, centres)]


def learned_map(trial: Trial) -> Floats:
    """UniRoute's LearnedMap: soft cluster membership softmax(W x + b), learned on the training models.

    The log loss of membership . profile is minimised over W and b by Adam, starting at K-means;
    profiles are membership-weighted mean errors, recomputed with the final map for the test models.
    """
    k = _clusters(trial)
    centres, near = k_means(trial.train, k, trial.seed)
    wrong, rows = _sums(near, trial.train_errors, k)
    profiles = (wrong + LEARNED_MAP_SHRINKAGE * trial.train_errors.mean(axis=0)) / (
        rows[:, None] + LEARNED_MAP_SHRINKAGE
    )
    weights, bias = _fit_map(trial.train.astype(np.float64), trial.train_errors, profiles, centres)
    soft = _softmax(trial.validation @ weights + bias)
    own = trial.validation_errors.mean(axis=0)
    mass = soft.sum(axis=0)[:, None]
    new = (soft.T @ trial.validation_errors + LEARNED_MAP_SHRINKAGE * own) / (mass + LEARNED_MAP_SHRINKAGE)
    return np.asarray(_softmax(trial.test @ weights + bias) @ new, dtype=np.float64)


def _fit_map(x: Floats, errors: Floats, profiles: Floats, centres: Floats) -> tuple[Floats, Floats]:
    """Gradient of the mean log loss through p = softmax(xW + b) . profiles; returns W (d, k) and b (k,)."""
    sharpness = 10.0  # starts as a soft version of nearest centre: -|x - c|^2 / 2 up to a constant
    theta = np.vstack((sharpness * centres.T, -sharpness * (centres**2).sum(axis=1) / 2.0))
    inputs = np.hstack((x, np.ones((len(x), 1))))
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(1, LEARNED_MAP_STEPS + 1):
        soft = _softmax(inputs @ theta)
        p = np.clip(soft @ profiles, 1e-4, 1.0 - 1e-4)
        through = ((p - errors) / (p * (1.0 - p))) @ profiles.T / errors.size
        gradient = inputs.T @ (soft * (through - (soft * through).sum(axis=1, keepdims=True)))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = LEARNED_MAP_RATE * np.sqrt(1.0 - 0.999**step) / (1.0 - 0.9**step)
        theta = theta - rate * first / (np.sqrt(second) + 1e-12)
    return theta[:-1], theta[-1]


def ridge_on_validation(trial: Trial) -> Floats:
    """Linear error estimates refitted on the validation prompts: what retraining for new models buys."""
    return _ridge(trial.validation, trial.validation_errors, trial.test)


def clairvoyant(trial: Trial) -> Floats:
    """The same fitted on the test models' outcomes on the *training* prompts: an upper reference."""
    return _ridge(trial.train, trial.forbidden_errors, trial.test)


def _ridge(fit: Vectors, errors: Floats, test: Vectors) -> Floats:
    x, centre = fit.astype(np.float64), fit.mean(axis=0).astype(np.float64)
    x = x - centre
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (errors - errors.mean(axis=0)))
    return np.asarray((test - centre) @ weights + errors.mean(axis=0), dtype=np.float64)


def k_means(x: Vectors, k: int, seed: int) -> tuple[Floats, Integers]:
    """Lloyd's algorithm from a k-means++ start; centres (k, d) and the cluster of each row (n,)."""
    rng = np.random.default_rng(seed)
    rows = x.astype(np.float64)
    norms = (rows**2).sum(axis=1)
    centres = np.empty((k, rows.shape[1]))
    distance = np.full(len(rows), np.inf)
    for i in range(k):
        weight = distance if i and distance.sum() > 0 else np.ones(len(rows))
        centres[i] = rows[rng.choice(len(rows), p=weight / weight.sum())]
        distance = np.minimum(
            distance, np.maximum(norms - 2 * rows @ centres[i] + centres[i] @ centres[i], 0.0)
        )
    near = _nearest(rows, centres)
    for _ in range(KMEANS_STEPS):
        sums, counts = _sums(near, rows, k)
        # A cluster that lost all its rows stays where it was.
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1.0)[:, None], centres)
        moved = _nearest(rows, centres)
        if (moved == near).all():
            break
        near = moved
    return centres, near


def _clusters(trial: Trial) -> int:
    return max(1, min(CLUSTERS, len(trial.validation) // 10, len(trial.train)))


def _nearest(x: npt.NDArray[np.floating], centres: Floats) -> Integers:
    # argmin |x - c|^2, without the term all centres share.
    nearest: Integers = np.argmax(x @ centres.T - (centres**2).sum(axis=1) / 2.0, axis=1).astype(np.int64)
    return nearest


def _sums(cluster: Integers, values: Floats, k: int) -> tuple[Floats, Floats]:
    """Sum of `values` (n, m) and number of rows by cluster; (k, m) and (k,)."""
    member = np.zeros((k, cluster.size))
    member[cluster, np.arange(cluster.size)] = 1.0
    return member @ values, member.sum(axis=1)


def _softmax(logits: Floats) -> Floats:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True), dtype=np.float64)
