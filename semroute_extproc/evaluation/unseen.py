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

RIDGES = tuple(np.logspace(0.0, 3.0, 7).tolist())
"""L2 weights that the linear models, on embeddings of length 1, choose from."""

KMEANS_STEPS = 40
"""Bound on Lloyd's iterations."""

LEARNED_MAP_STEPS = 200
"""Adam steps of the learned map."""

LEARNED_MAP_BATCH = 1024
"""Training prompts of each step, drawn at random."""

LEARNED_MAP_RATE = 0.05
"""Adam's step size."""

START_SHARPNESS = 10.0
"""The learned map starts as the softmax of this times -|x - c|^2 / 2: a soft nearest centre."""

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
    near = _nearest(trial.validation, trial.centres)
    wrong, rows = _sums(near, trial.validation_errors, len(trial.centres))
    profiles: Floats = (wrong + 1.0) / (rows[:, None] + 2.0)
    return profiles[_nearest(trial.test, trial.centres)]


def clusters_shrunk(trial: Trial) -> Floats:
    """K-means profiles shrunk to the model's own mean, (wrong + m mean) / (n + m) in each cluster."""
    near = _nearest(trial.validation, trial.centres)
    wrong, rows = _sums(near, trial.validation_errors, len(trial.centres))
    own = trial.validation_errors.mean(axis=0)
    profiles: Floats = (wrong + SHRINKAGE * own) / (rows[:, None] + SHRINKAGE)
    return profiles[_nearest(trial.test, trial.centres)]


def learned_map(trial: Trial) -> Floats:
    """UniRoute's LearnedMap: soft cluster membership softmax(W x + b), learned on the training models.

    The log loss of membership . profile is minimised over W and b by Adam, starting at K-means;
    profiles are membership-weighted mean errors, recomputed with the final map for the test models.
    """
    wrong, rows = _sums(trial.near, trial.train_errors, len(trial.centres))
    profiles = (wrong + LEARNED_MAP_SHRINKAGE * trial.train_errors.mean(axis=0)) / (
        rows[:, None] + LEARNED_MAP_SHRINKAGE
    )
    weights, bias = _fit_map(trial, profiles)
    soft = _softmax(trial.validation @ weights + bias)
    own = trial.validation_errors.mean(axis=0)
    mass = soft.sum(axis=0)[:, None]
    new = (soft.T @ trial.validation_errors + LEARNED_MAP_SHRINKAGE * own) / (mass + LEARNED_MAP_SHRINKAGE)
    return np.asarray(_softmax(trial.test @ weights + bias) @ new, dtype=np.float64)


def _fit_map(trial: Trial, profiles: Floats) -> tuple[Floats, Floats]:
    """Gradient of the mean log loss through p = softmax(xW + b) . profiles; returns W (d, k) and b (k,).

    In float32: the data are, and the optimiser is far noisier than that.
    """
    rng = np.random.default_rng(trial.seed)
    norms = (trial.centres**2).sum(axis=1)
    theta = (START_SHARPNESS * np.vstack((trial.centres.T, -norms / 2.0))).astype(np.float32)
    bias_column = np.ones((len(trial.train), 1), dtype=np.float32)
    inputs, known = np.hstack((trial.train, bias_column)), profiles.astype(np.float32)
    truth = trial.train_errors.astype(np.float32)
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(1, LEARNED_MAP_STEPS + 1):
        rows = rng.integers(0, len(inputs), min(LEARNED_MAP_BATCH, len(inputs)))
        x, errors = inputs[rows], truth[rows]
        soft = _softmax(x @ theta)
        p = np.clip(soft @ known, 1e-4, 1.0 - 1e-4)
        through = ((p - errors) / (p * (1.0 - p))) @ known.T / errors.size
        gradient = x.T @ (soft * (through - (soft * through).sum(axis=1, keepdims=True)))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = LEARNED_MAP_RATE * np.sqrt(1.0 - 0.999**step) / (1.0 - 0.9**step)
        theta = theta - np.float32(rate) * first / (np.sqrt(second) + 1e-12)
    return theta[:-1].astype(np.float64), theta[-1].astype(np.float64)


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


def cluster_count(train_rows: int, validation_rows: int) -> int:
    """How many clusters that many prompts can fill."""
    return max(1, min(CLUSTERS, validation_rows // 10, train_rows))


def _nearest(x: npt.NDArray[np.floating], centres: Floats) -> Integers:
    # argmin |x - c|^2, without the term all centres share.
    nearest: Integers = np.argmax(x @ centres.T - (centres**2).sum(axis=1) / 2.0, axis=1).astype(np.int64)
    return nearest


def _sums(cluster: Integers, values: Floats, k: int) -> tuple[Floats, Floats]:
    """Sum of `values` (n, m) and number of rows by cluster; (k, m) and (k,)."""
    member = np.zeros((k, cluster.size))
    member[cluster, np.arange(cluster.size)] = 1.0
    return member @ values, member.sum(axis=1)


def _softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    share: npt.NDArray[np.floating] = e / e.sum(axis=1, keepdims=True)
    return share
