"""Fitting for the clusters strategy: K-means, UniRoute's learned map, and names for people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_lab.evaluate.metrics.arrays import Floats, Integers

Vectors = npt.NDArray[np.float32]

CLUSTERS = 20
"""Clusters of one clustering."""

CLUSTERINGS = 5
"""Clusterings that are averaged: a single one varies by a point or two of APGR with its seed."""

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
"""Pseudo-observations for the profiles that the map is learned against."""

NAME_WORDS = 3
"""Words of a cluster's name."""

_WORD = re.compile(r"[^\W\d_]{3,}")


def fit_kmeans(
    x: Vectors,
    manifest: ArtifactManifest,
    texts: Sequence[str],
    k: int = CLUSTERS,
    clusterings: int = CLUSTERINGS,
) -> ClustersArtifact:
    """K-means from `clusterings` seeds, one after the other; `x` (n, d) with its texts."""
    found = [k_means(x, k, manifest.seed + run) for run in range(clusterings)]
    names = [name for _, near in found for name in cluster_names(texts, near, k)]
    centroids = np.concatenate([centres for centres, _ in found]).astype(np.float32)
    return ClustersArtifact(manifest, centroids, None, tuple(names), clusterings)


def fit_learned_map(
    x: Vectors, errors: Floats, manifest: ArtifactManifest, texts: Sequence[str], k: int = CLUSTERS
) -> ClustersArtifact:
    """UniRoute's learned map, softmax(W x + b), from the training models' `errors` (n, models)."""
    centres, near = k_means(x, k, manifest.seed)
    wrong, rows = sums(near, errors, k)
    shrinkage = LEARNED_MAP_SHRINKAGE
    profiles = (wrong + shrinkage * errors.mean(axis=0)) / (rows[:, None] + shrinkage)
    weights, bias = learn_map(x, errors, centres, profiles, manifest.seed)
    names = cluster_names(texts, np.argmax(x @ weights + bias, axis=1).astype(np.int64), k)
    return ClustersArtifact(
        manifest, np.ascontiguousarray(weights.T, dtype=np.float32), bias.astype(np.float32), names
    )


def learn_map(
    x: Vectors, errors: Floats, centres: Floats, profiles: Floats, seed: int
) -> tuple[Floats, Floats]:
    """Minimise the mean log loss of p = softmax(xW + b) · profiles over W (d, k) and b (k,), by Adam.

    UniRoute, section 5.2. It starts at K-means. In float32: the data are, and the optimiser is far
    noisier than that.
    """
    rng = np.random.default_rng(seed)
    norms = (centres**2).sum(axis=1)
    theta = (START_SHARPNESS * np.vstack((centres.T, -norms / 2.0))).astype(np.float32)
    bias_column = np.ones((len(x), 1), dtype=np.float32)
    inputs, known = np.hstack((x, bias_column)), profiles.astype(np.float32)
    truth = errors.astype(np.float32)
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(1, LEARNED_MAP_STEPS + 1):
        rows = rng.integers(0, len(inputs), min(LEARNED_MAP_BATCH, len(inputs)))
        batch, wrong = inputs[rows], truth[rows]
        soft = _softmax(batch @ theta)
        p = np.clip(soft @ known, 1e-4, 1.0 - 1e-4)
        through = ((p - wrong) / (p * (1.0 - p))) @ known.T / wrong.size
        gradient = batch.T @ (soft * (through - (soft * through).sum(axis=1, keepdims=True)))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = LEARNED_MAP_RATE * np.sqrt(1.0 - 0.999**step) / (1.0 - 0.9**step)
        theta = theta - np.float32(rate) * first / (np.sqrt(second) + 1e-12)
    return theta[:-1].astype(np.float64), theta[-1].astype(np.float64)


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
    near = nearest(rows, centres)
    for _ in range(KMEANS_STEPS):
        totals, counts = sums(near, rows, k)
        # A cluster that lost all its rows stays where it was.
        centres = np.where(counts[:, None] > 0, totals / np.maximum(counts, 1.0)[:, None], centres)
        moved = nearest(rows, centres)
        if (moved == near).all():
            break
        near = moved
    return centres, near


def nearest(x: npt.NDArray[np.floating], centres: Floats) -> Integers:
    """The nearest centre of each row; (n,)."""
    # argmin |x - c|^2, without the term all centres share.
    found: Integers = np.argmax(x @ centres.T - (centres**2).sum(axis=1) / 2.0, axis=1).astype(np.int64)
    return found


def sums(cluster: Integers, values: Floats, k: int) -> tuple[Floats, Floats]:
    """Sum of `values` (n, m) and number of rows by cluster; (k, m) and (k,)."""
    member = np.zeros((k, cluster.size))
    member[cluster, np.arange(cluster.size)] = 1.0
    return member @ values, member.sum(axis=1)


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


def _softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    share: npt.NDArray[np.floating] = e / e.sum(axis=1, keepdims=True)
    return share
