"""Calibration on rows kept out of the fit: temperature, Platt scaling, the unknown, the quantiles."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from semroute_lab.train.fit import IGNORE

LOG_TEMPERATURES = (-5.0, 5.0)  # Bounds of the logarithm of a temperature
KMEANS_ROUNDS_MAX = 50  # Bound on Lloyd's iterations


def temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature that minimises the cross-entropy of known targets (Guo et al. 2017, section 4.2)."""
    known = target != IGNORE
    logits, target = logits[known].double(), target[known]
    found = minimize_scalar(
        lambda log_t: float(F.cross_entropy(logits / np.exp(log_t), target)),
        bounds=LOG_TEMPERATURES,
        method="bounded",
        options={"xatol": 1e-8},
    )
    return float(np.exp(found.x))


def platt(logits: Tensor, target: Tensor, weight: Tensor) -> tuple[float, float]:
    """Platt 1999: a > 0 and b of sigmoid(a logit + b) with the least loss on soft targets."""
    known = ~torch.isnan(target)
    x, y, w = (part[known].double().numpy() for part in (logits, target, weight))
    w = w / w.sum()

    def loss(parameters: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, list[float]]:
        scale = np.exp(parameters[0])
        z = scale * x + parameters[1]
        slope = w * (1.0 / (1.0 + np.exp(-z)) - y)
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
    """The 0, 1, … 100 % quantiles over weighted traffic, interpolated between the middles of its steps."""
    values, order = probabilities.double().sort()
    weights = torch.ones_like(values) if weight is None else weight.double()[order]
    values, weights = values[weights > 0], weights[weights > 0]
    middle = (weights.cumsum(0) - weights / 2) / weights.sum()
    low, high = float(middle[0]), float(middle[-1])
    places = low + np.linspace(0.0, 1.0, 101) * (high - low)
    found = np.interp(places, middle.numpy(), values.numpy())
    return [float(value) for value in np.maximum.accumulate(np.round(found, 6))]
