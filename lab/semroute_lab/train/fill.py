"""Parts of the heads that are computed, not trained, once the encoder and the trained networks are fixed.

In order: the recalled base embedding, the cluster table of exam outcomes or of a user's logs, and the
memory of the domain head.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from semroute_lab.train.datasets import DOMAINS, Example
from semroute_lab.train.fit import IGNORE, States
from semroute_lab.train.model import ClusterTable, HeadOutputs, Heads, Memory
from semroute_lab.train.spec import FillPlan, Say

LOG_TEMPERATURES = (-5.0, 5.0)  # Bounds of the logarithm of a temperature
KMEANS_ROUNDS_MAX = 50  # Bound on Lloyd's iterations


def fit_recall(heads: Heads, tuned: Tensor, base: Tensor, plan: FillPlan, say: Say) -> None:
    """Ridge regression of the base encoder's unit embeddings on the tuned ones; both [rows, d] states."""
    x, y = F.normalize(tuned, dim=-1), F.normalize(base, dim=-1)
    found = Ridge(plan.recall_ridge).fit(x.double().numpy(), y.double().numpy())
    with torch.no_grad():
        heads.recall.weight.copy_(torch.from_numpy(found.coef_))
        heads.recall.bias.copy_(torch.from_numpy(found.intercept_))
        cosine = F.cosine_similarity(heads.recall(x), y).mean()
    say(f"base embedding recalled with a cosine of {float(cosine):.3f} on {len(x)} rows")


def add_table(
    heads: Heads, rows: Sequence[Example], states: States, plan: FillPlan, seed: int, say: Say
) -> None:
    """Give the heads a cluster table of the rows with a gain, calibrated on unseen values."""
    own = [i for i, row in enumerate(rows) if row.gain is not None]
    if len(own) < plan.clusters * plan.table_rows_min:
        say(f"{len(own)} rows with a gain are too few for a cluster table")
        return
    with torch.no_grad():
        out = heads.parts(states.pooled[own], states.surface[own])
        x = heads.table_inputs(out.embedding, out.form)
    values = torch.tensor([rows[i].gain for i in own])
    heads.table = cluster_table(x, values, plan.clusterings, plan, seed)
    unseen = out_of_fold(x, values, [rows[i].place for i in own], plan, seed)
    scale, shift = platt(unseen, states.targets.difficulty[own], torch.ones(len(own)))
    heads.table_scale.fill_(scale)
    heads.table_shift.fill_(shift)
    say(f"cluster table of {len(own)} rows, scale {scale:.2f}, shift {shift:.2f}")


def cluster_table(x: Tensor, target: Tensor, clusterings: int, plan: FillPlan, seed: int) -> ClusterTable:
    """The mean target per cluster, UniRoute's rule (section 4.1), for many seeds of K-means."""
    k = min(plan.clusters, len(x))
    table = ClusterTable(clusterings, k, x.shape[1])
    for run in range(clusterings):
        centroids = kmeans(x, k, seed + run)
        offset = (centroids**2).sum(1) / 2
        rows = slice(run * k, (run + 1) * k)
        table.centroids[rows], table.offset[rows] = centroids, offset
        nearest = (x @ centroids.T - offset).argmax(1)
        table.means[run] = shrunk_means(nearest, target, k, plan.shrinkage)
    return table


def shrunk_means(cluster: Tensor, target: Tensor, k: int, shrinkage: float) -> Tensor:
    """(sum + m mean) / (rows + m) of the targets in each cluster; [k]."""
    total = torch.zeros(k, dtype=target.dtype).index_add_(0, cluster, target)
    return (total + shrinkage * target.mean()) / (torch.bincount(cluster, minlength=k) + shrinkage)


def out_of_fold(x: Tensor, target: Tensor, places: Sequence[str], plan: FillPlan, seed: int) -> Tensor:
    """Each row's table value from a table that has seen no row of its place; [rows]."""
    numbers = {place: number for number, place in enumerate(dict.fromkeys(places))}
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    fold = order[[numbers[place] for place in places]] % plan.folds
    found = torch.zeros(len(x), dtype=target.dtype)
    for part in range(plan.folds):
        fit, rest = fold != part, fold == part
        found[rest] = cluster_table(x[fit], target[fit], plan.clusterings // 4, plan, seed)(x[rest])
    return found


def add_memory(
    heads: Heads,
    rows: Sequence[Example],
    fit: HeadOutputs,
    check: HeadOutputs,
    target: Tensor,
    plan: FillPlan,
    seed: int,
    say: Say,
) -> None:
    """Store `rows`, whose outputs are `fit`; sharpness and weight minimize the loss on calibration rows."""
    chosen = cases(rows, plan.cases_max, seed)
    with torch.inference_mode():
        known, asked = heads.recalled(fit), heads.recalled(check)
        vectors = F.normalize(torch.stack([known[case].mean(0) for case in chosen]), dim=-1)
        axes = principal_axes(vectors, plan.memory_axes)
    memory = heads.memory = Memory(len(vectors), vectors.shape[1], len(axes), len(DOMAINS))
    with torch.no_grad():
        memory.axes.weight.copy_(axes)
        memory.keys.copy_(memory.on_axes(vectors))
    domains = torch.tensor([rows[case[0]].domain for case in chosen])
    memory.labels.copy_(F.one_hot(domains, len(DOMAINS)).float())
    labeled = target != IGNORE
    target = target[labeled]
    plain = check.domain[labeled].log_softmax(-1)
    tried: list[tuple[float, float, float]] = []
    for sharpness in plan.sharpnesses:
        memory.sharpness.fill_(sharpness)
        with torch.inference_mode():
            votes = memory(asked[labeled])
        for weight in plan.weights:
            logits = (plain + weight * votes).clone()
            loss = float(F.cross_entropy(logits / temperature(logits, target), target))
            tried.append((loss, sharpness, weight))
    loss, sharpness, weight = min(tried, key=lambda one: one[0])
    memory.sharpness.fill_(sharpness)
    memory.weight.fill_(weight)
    chosen_by = f"sharpness {sharpness:g}, weight {weight:g}, loss {loss:.4f} on calibration rows"
    say(f"memory: {len(vectors)} cases, {chosen_by}")


def cases(rows: Sequence[Example], most: int, seed: int) -> list[list[int]]:
    """Row indices of each case to store: a case is the rows from one place in a file.
    Every case with a domain is stored, but at most `most` from a source with a single domain.
    """
    sources: dict[str, dict[str, list[int]]] = {}
    first: dict[str, str] = {}
    for i, row in enumerate(rows):
        if row.domain is not None:
            source = first.setdefault(row.place, row.source)
            sources.setdefault(source, {}).setdefault(row.place, []).append(i)
    rng = random.Random(seed)
    chosen: list[list[int]] = []
    for _, own in sorted(sources.items()):
        found = list(own.values())
        one_domain = len({rows[case[0]].domain for case in found}) == 1
        chosen += rng.sample(found, min(len(found), most)) if one_domain else found
    return sorted(chosen)


def principal_axes(x: Tensor, count: int) -> Tensor:
    """At most `count` leading principal axes of `x` [rows, d], not centered; orthonormal, [axes, d]."""
    _, vectors = torch.linalg.eigh((x.T @ x).double())
    return vectors.flip(1)[:, :count].T.to(x.dtype)


def temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature that minimizes the cross-entropy of known targets (Guo et al. 2017, section 4.2)."""
    known = target != IGNORE
    logits, target = logits[known].double(), target[known]

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_t), target))

    found = minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x))


def platt(logits: Tensor, target: Tensor, weight: Tensor) -> tuple[float, float]:
    """Platt 1999: a > 0 and b of sigmoid(a logit + b) with the least loss on soft targets."""
    known = ~torch.isnan(target)
    x, y, w = (part[known].double().numpy() for part in (logits, target, weight))
    w = w / w.sum()

    def loss(parameters: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, list[float]]:
        scale = np.exp(parameters[0])
        z = scale * x + parameters[1]
        slope = w * (expit(z) - y)
        return float(w @ (np.logaddexp(0.0, z) - y * z)), [float(slope @ (scale * x)), float(slope.sum())]

    found = minimize(loss, [0.0, 0.0], jac=True, method="BFGS", options={"gtol": 1e-9})
    return float(np.exp(found.x[0])), float(found.x[1])


def kmeans(x: Tensor, k: int, seed: int) -> Tensor:
    """Lloyd's algorithm from one draw of k-means++ seeds; the centroids [k, inputs]."""
    with warnings.catch_warnings():
        # Fewer distinct rows than clusters: some centroids are equal.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(k, n_init=1, max_iter=KMEANS_ROUNDS_MAX, random_state=seed).fit(x.numpy())
    return torch.from_numpy(found.cluster_centers_).to(x.dtype)


def spherical_kmeans(vectors: Tensor, k: int, seed: int) -> Tensor:
    """At most `k` unit centroids of unit vectors [rows, d]; [k, d]."""
    return F.normalize(kmeans(vectors, min(k, len(vectors)), seed), dim=1)


def unknown_threshold(known: Tensor, centroids: Tensor, share: float) -> float:
    """The cosine to the nearest centroid below which `share` of the known vectors [rows, d] are."""
    nearest = (known @ centroids.T).max(1).values
    return float(np.quantile(nearest.numpy(), share))


def quantiles(probabilities: Tensor, weight: Tensor | None = None) -> list[float]:
    """The 0, 1, … 100 % quantiles over weighted traffic, interpolated between midpoints of its steps."""
    values, order = probabilities.double().sort()
    weights = torch.ones_like(values) if weight is None else weight.double()[order]
    values, weights = values[weights > 0], weights[weights > 0]
    middle = (weights.cumsum(0) - weights / 2) / weights.sum()
    low, high = float(middle[0]), float(middle[-1])
    places = low + np.linspace(0.0, 1.0, 101) * (high - low)
    found = np.interp(places, middle.numpy(), values.numpy())
    return [float(value) for value in np.maximum.accumulate(np.round(found, 6))]
