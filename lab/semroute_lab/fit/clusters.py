"""Fitting for the clusters strategy: K-means, UniRoute's learned map, and readable names."""

import re
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

from semroute_extproc.strategies.artifact import ArtifactManifest as Manifest
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_lab.common.metrics import Floats, Integers, Vectors
from semroute_lab.fit.factorization import adam

CLUSTERS = 20  # Clusters of one clustering
CLUSTERINGS = 5  # Clusterings that are averaged: a single one varies by a point or two of APGR with its seed
KMEANS_STEPS = 40  # Bound on Lloyd's iterations
LEARNED_MAP_STEPS = 200  # Adam steps of the learned map
LEARNED_MAP_BATCH = 1024  # Training prompts of each step, drawn at random
LEARNED_MAP_RATE = 0.05  # Adam's step size
START_SHARPNESS = 10.0  # The learned map starts as the softmax of this times -|x - c|^2 / 2
LEARNED_MAP_SHRINKAGE = 5.0  # Pseudo-observations for the profiles that the map is learned against
NAME_WORDS = 3  # Words of a cluster's name
_WORD = re.compile(r"[^\W\d_]{3,}")


def fit_kmeans(
    x: Vectors, manifest: Manifest, texts: Sequence[str], k: int = CLUSTERS, clusterings: int = CLUSTERINGS
) -> ClustersArtifact:
    """K-means from `clusterings` seeds, one after the other; `x` (n, d) with its texts."""
    found = [k_means(x, k, manifest.seed + run) for run in range(clusterings)]
    names = [name for _, near in found for name in cluster_names(texts, near, k)]
    centroids = np.concatenate([centers for centers, _ in found]).astype(np.float32)
    return ClustersArtifact(manifest, centroids, None, tuple(names), clusterings)


def fit_learned_map(
    x: Vectors,
    errors: Floats,
    manifest: Manifest,
    texts: Sequence[str],
    k: int = CLUSTERS,
    start: tuple[Floats, Integers] | None = None,
) -> ClustersArtifact:
    """UniRoute's learned map, softmax(W x + b), from the training models' `errors` (n, models).
    Section 5.2: Adam minimizes the mean log loss of p = softmax(xW + b) · profiles from K-means, or `start`.
    """
    centers, near = start or k_means(x, k, manifest.seed)
    member = (near[:, None] == np.arange(k)).astype(np.float64)
    shrunk = member.T @ errors + LEARNED_MAP_SHRINKAGE * errors.mean(axis=0)
    profiles = (shrunk / (member.sum(axis=0)[:, None] + LEARNED_MAP_SHRINKAGE)).astype(np.float32)
    rng = np.random.default_rng(manifest.seed)
    inputs, truth = np.pad(x, ((0, 0), (0, 1)), constant_values=1.0), errors.astype(np.float32)

    def gradients(parts: Sequence[Vectors]) -> list[Vectors]:
        rows = rng.integers(0, len(inputs), min(LEARNED_MAP_BATCH, len(inputs)))
        batch, wrong = inputs[rows], truth[rows]
        logits = batch @ parts[0]
        soft = np.exp(logits - logits.max(axis=1, keepdims=True))
        soft /= soft.sum(axis=1, keepdims=True)
        p = np.clip(soft @ profiles, 1e-4, 1.0 - 1e-4)
        through = ((p - wrong) / (p * (1.0 - p))) @ profiles.T / wrong.size
        return [batch.T @ (soft * (through - (soft * through).sum(axis=1, keepdims=True)))]

    nearest = START_SHARPNESS * np.vstack((centers.T, -(centers**2).sum(axis=1) / 2.0))
    [theta] = adam([nearest.astype(np.float32)], gradients, LEARNED_MAP_STEPS, lambda _: LEARNED_MAP_RATE)
    names = cluster_names(texts, np.argmax(inputs @ theta, axis=1), k)
    return ClustersArtifact(manifest, np.ascontiguousarray(theta[:-1].T), theta[-1].copy(), names)


def k_means(x: Vectors, k: int, seed: int) -> tuple[Floats, Integers]:
    """scikit-learn's K-means from one k-means++ start; centers (k, d) and the cluster of each row (n,)."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    model = KMeans(k, n_init=1, max_iter=KMEANS_STEPS, random_state=seed)
    # Several threads add up in any order, and a seed would not give the same artifact twice.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        near = model.fit_predict(x.astype(np.float64))
    return model.cluster_centers_, near.astype(np.int64)


def cluster_names(texts: Sequence[str], cluster: Integers, k: int) -> tuple[str, ...]:
    """A name for each cluster: the words that its texts have more often than the others do."""
    words = [set(_WORD.findall(text.casefold())) for text in texts]
    everywhere = Counter(word for found in words for word in found)
    names: list[str] = []
    for number in range(k):
        inside = np.flatnonzero(cluster == number)
        here = Counter(word for row in inside for word in words[row])
        excess = {w: n / max(len(inside), 1) - everywhere[w] / len(texts) for w, n in here.items()}
        best = sorted(excess, key=lambda word: (-excess[word], word))[:NAME_WORDS]
        names.append(", ".join(best) or f"cluster {number}")
    return tuple(names)
