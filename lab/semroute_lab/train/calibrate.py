"""Calibration on rows kept out of the fit: temperature, Platt scaling, the unknown, the quantiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from semroute_lab.train.losses import IGNORE

STEPS_MAX = 200
"""Bound on the optimiser's steps; both problems are convex and need some twenty."""

UNKNOWN_SHARE = 0.015
"""Share of known calibration rows that may be called unknown."""

KMEANS_ROUNDS_MAX = 50
"""Bound on Lloyd's iterations."""


@dataclass(frozen=True, slots=True)
class Platt:
    """p = sigmoid(scale * logit + shift) (Platt 1999)."""

    scale: float
    shift: float

    def __call__(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities of raw logits."""
        return torch.sigmoid(self.scale * logits + self.shift)


def temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature that minimises the cross-entropy of known targets (Guo et al. 2017, section 4.2)."""
    known = target != IGNORE
    logits, target = logits[known].double(), target[known]
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    _minimise([log_t], lambda: F.cross_entropy(logits / log_t.exp(), target))
    return float(log_t.detach().exp())


def platt(logits: Tensor, target: Tensor, weight: Tensor) -> Platt:
    """Scale and shift that minimise the weighted binary cross-entropy of soft targets.

    The scale stays positive, so that calibration never turns a ranking round.
    """
    known = ~torch.isnan(target)
    logits, target, weight = logits[known].double(), target[known].double(), weight[known].double()
    log_a = torch.zeros((), dtype=torch.float64, requires_grad=True)
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        each = F.binary_cross_entropy_with_logits(log_a.exp() * logits + b, target, reduction="none")
        return (each * weight).sum() / weight.sum()

    _minimise([log_a, b], loss)
    return Platt(float(log_a.detach().exp()), float(b.detach()))


def _minimise(parameters: list[Tensor], loss: Callable[[], Tensor]) -> None:
    optimiser = torch.optim.LBFGS(parameters, max_iter=STEPS_MAX, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value: Tensor = loss()
        value.backward()
        return value

    optimiser.step(closure)


def spherical_kmeans(vectors: Tensor, k: int, seed: int) -> Tensor:
    """`k` unit centroids of unit vectors [rows, d] by cosine (Dhillon and Modha 2001); [k, d]."""
    generator = torch.Generator().manual_seed(seed)
    centroids = vectors[torch.randperm(len(vectors), generator=generator)[:k]]
    previous = torch.full((len(vectors),), -1)
    for _ in range(KMEANS_ROUNDS_MAX):
        nearest = (vectors @ centroids.T).argmax(1)
        if torch.equal(nearest, previous):
            break
        previous = nearest
        sums = torch.zeros_like(centroids).index_add_(0, nearest, vectors)
        filled = sums.norm(dim=1) > 0
        centroids = torch.where(filled[:, None], F.normalize(sums, dim=1), centroids)
    return centroids


def unknown_threshold(known: Tensor, centroids: Tensor, share: float = UNKNOWN_SHARE) -> float:
    """The cosine to the nearest centroid below which `share` of the known vectors [rows, d] lie."""
    nearest = (known @ centroids.T).max(1).values
    return float(np.quantile(nearest.numpy(), share))


def quantiles(probabilities: Tensor, weight: Tensor | None = None) -> list[float]:
    """The 0, 1, … 100 % quantiles of the difficulty over (weighted) reference traffic, ascending.

    With weights: the inverse of the weighted distribution function, interpolated between the
    middles of its steps.
    """
    values, order = probabilities.double().sort()
    weights = torch.ones_like(values) if weight is None else weight.double()[order]
    values, weights = values[weights > 0], weights[weights > 0]
    middle = (weights.cumsum(0) - weights / 2) / weights.sum()
    low, high = float(middle[0]), float(middle[-1])
    places = low + np.linspace(0.0, 1.0, 101) * (high - low)
    found = np.interp(places, middle.numpy(), values.numpy())
    return [float(value) for value in np.maximum.accumulate(np.round(found, 6))]
