"""Cluster tables: K-means on the fit rows, the mean target in every cluster, many seeds.

The rule of UniRoute (Jitkrittum et al., arXiv 2502.08773, section 4.1) for one model pair, averaged
over clusterings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semroute_lab.train.model import ClusterTable

CLUSTERINGS = 64
"""K-means runs that are averaged: a single run varies by a point of APGR."""

CLUSTERS = 12
"""Clusters of a run; few, because labels are few and noisy."""

SHRINKAGE = 5.0
"""A cluster's mean counts this many rows of the overall mean."""

ROUNDS_MAX = 50
"""Bound on Lloyd's iterations."""


def fill(x: Tensor, target: Tensor, seed: int, clusterings: int = CLUSTERINGS) -> ClusterTable:
    """A table from inputs [rows, inputs] and their targets [rows]."""
    k = min(CLUSTERS, len(x))
    table = ClusterTable(clusterings, k, x.shape[1])
    for run in range(clusterings):
        centroids = kmeans(x, k, seed + run)
        rows = slice(run * k, (run + 1) * k)
        table.centroids[rows] = centroids
        table.offset[rows] = (centroids**2).sum(1) / 2
        table.means[run] = shrunk_means(nearest(x, centroids), target, k)
    return table


def shrunk_means(cluster: Tensor, target: Tensor, k: int) -> Tensor:
    """(sum + m mean) / (rows + m) of the targets in each cluster; [k]."""
    total = torch.zeros(k, dtype=target.dtype).index_add_(0, cluster, target)
    rows = torch.zeros(k, dtype=target.dtype).index_add_(0, cluster, torch.ones_like(target))
    return (total + SHRINKAGE * target.mean()) / (rows + SHRINKAGE)


def nearest(x: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid by Euclidean distance; [rows]."""
    return (x @ centroids.T - (centroids**2).sum(1) / 2).argmax(1)


def kmeans(x: Tensor, k: int, seed: int) -> Tensor:
    """Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii 2007); [k, inputs]."""
    generator = torch.Generator().manual_seed(seed)
    centroids = _spread(x, k, generator)
    before = torch.full((len(x),), -1)
    for _ in range(ROUNDS_MAX):
        now = nearest(x, centroids)
        if torch.equal(now, before):
            break
        before = now
        rows = torch.bincount(now, minlength=k)
        sums = torch.zeros_like(centroids).index_add_(0, now, x)
        centroids = torch.where(rows[:, None] > 0, sums / rows.clamp(min=1)[:, None], centroids)
    return centroids


def _spread(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next seed is drawn with a chance that grows with its squared distance."""
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    distance = ((x - x[chosen[0]]) ** 2).sum(1)
    while len(chosen) < k:
        if float(distance.sum()) <= 0.0:
            chosen.append(int(torch.randint(len(x), (1,), generator=generator)))
            continue
        chosen.append(int(torch.multinomial(distance, 1, generator=generator)))
        distance = torch.minimum(distance, ((x - x[chosen[-1]]) ** 2).sum(1))
    return x[chosen].clone()


def out_of_fold(x: Tensor, target: Tensor, seed: int, folds: int = 5) -> Tensor:
    """Each row's table value from a table that has not seen it, for calibration; [rows]."""
    generator = torch.Generator().manual_seed(seed)
    fold = torch.randperm(len(x), generator=generator) % folds
    found = torch.zeros(len(x), dtype=target.dtype)
    for part in range(folds):
        table = fill(x[fold != part], target[fold != part], seed, clusterings=CLUSTERINGS // 4)
        found[fold == part] = table(x[fold == part])
    return found
