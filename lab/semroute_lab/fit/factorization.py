"""Fitting for the factorization strategy (RouteLLM, arXiv 2406.18665, section 4.2).

Pairwise log loss of P(i beats j | q) = σ(δ(i, q) − δ(j, q)) with δ(M, q) = v_M · (W x_q + b), over
all pairs of models, an L2 weight on V and W, by Adam on mini-batches. The weight with the least log
loss on held-out folds is chosen.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from semroute_extproc.strategies.artifact import ArtifactManifest as Manifest
from semroute_extproc.strategies.factorization import FactorizationArtifact
from semroute_lab.common.metrics import Floats, Integers, Vectors
from semroute_lab.fit.outcomes import quantiles, wins

RANK = 32  # Length of a model's vector
WEIGHTS = (3e-4, 1e-3, 3e-3, 1e-2)  # L2 weights that are tried
STEPS = 300  # Adam steps of a fit
BATCH = 512  # Prompts of a step
PAIRS_MAX = 64  # Pairs of models compared in a step; if there are more, this many are drawn
RATE = 0.01  # Adam's first step size
FIRST, SECOND, EPSILON = 0.9, 0.999, 1e-8  # Adam's beta 1, beta 2 and epsilon


def fit(
    x: Vectors, outcome: Floats, models: tuple[str, ...], fold: Integers, manifest: Manifest, rank: int = RANK
) -> tuple[FactorizationArtifact, Floats]:
    """The artifact, and out-of-fold δ of every model; (n, models).
    `x` (n, d), `outcome` (n, models) 0..1, `fold` (n,). The quantiles are of P(first model wins over the
    second), which for a pair file is P(strong wins).
    """
    best, held = (np.inf, WEIGHTS[0]), np.zeros_like(outcome)
    for weight in WEIGHTS:
        deltas = np.zeros_like(outcome)
        for part in np.unique(fold):
            rows = fold != part
            factors = descend(x[rows], outcome[rows], weight, rank, manifest.seed)
            deltas[~rows] = model_deltas(factors, x[~rows])
        loss = pair_loss(deltas, outcome)
        if loss < best[0]:
            best, held = (loss, weight), deltas
    v, w, b = descend(x, outcome, best[1], rank, manifest.seed)
    reference = quantiles(_sigmoid(held[:, 0] - held[:, 1]))
    return FactorizationArtifact(manifest, models, v, w, b, reference), held


def model_deltas(factors: Sequence[Vectors], x: Vectors) -> Floats:
    """δ of every model for every row; (n, models). `factors` are V (models, r), W (r, d) and b (r,)."""
    v, w, b = factors
    return np.asarray((x @ w.T + b) @ v.T, dtype=np.float64)


def pair_loss(deltas: Floats, outcome: Floats) -> float:
    """Mean log loss over all pairs of models, with the labels of `wins`; both arrays (n, models)."""
    losses = []
    for i, j in itertools.combinations(range(outcome.shape[1]), 2):
        y = wins(outcome[:, i], outcome[:, j])
        p = np.clip(_sigmoid(deltas[:, i] - deltas[:, j]), 1e-6, 1.0 - 1e-6)
        losses.append(float(-np.mean(y * np.log(p) + (1.0 - y) * np.log(1.0 - p))))
    return sum(losses) / len(losses)


def descend(x: Vectors, outcome: Floats, weight: float, rank: int, seed: int) -> list[Vectors]:
    """V, W and b (see `model_deltas`) by Adam from a small random start."""
    rng = np.random.default_rng(seed)
    n, d = x.shape
    models = outcome.shape[1]
    truth = outcome.astype(np.float32)
    pairs = np.asarray(list(itertools.combinations(range(models), 2)))

    def gradients(parts: Sequence[Vectors]) -> list[Vectors]:
        rows = rng.integers(0, n, min(BATCH, n))
        drawn = pairs if len(pairs) <= PAIRS_MAX else pairs[rng.integers(0, len(pairs), PAIRS_MAX)]
        return _gradients(parts, x[rows], truth[rows], drawn, weight)

    start = [
        (rng.standard_normal((models, rank)) * 0.1).astype(np.float32),
        (rng.standard_normal((rank, d)) * 0.1).astype(np.float32),
        np.zeros(rank, dtype=np.float32),
    ]
    # The step size decays almost to zero, so that the result does not depend on the last batches.
    return adam(start, gradients, STEPS, lambda step: RATE * (1.0 - step / (STEPS + 1)))


def _gradients(
    parts: Sequence[Vectors], x: Vectors, truth: Vectors, pairs: Integers, weight: float
) -> list[Vectors]:
    v, w, b = parts
    inner = x @ w.T + b
    delta = inner @ v.T
    i, j = pairs[:, 0], pairs[:, 1]
    y = (1.0 + truth[:, i] - truth[:, j]) / 2.0
    slope = (_sigmoid(delta[:, i] - delta[:, j]) - y) / np.float32(y.size)
    rows = np.arange(len(pairs))
    signs = np.zeros((len(pairs), len(v)), dtype=np.float32)
    signs[rows, i], signs[rows, j] = 1.0, -1.0
    through = slope @ signs
    to_inner = through @ v
    shrink = np.float32(weight)
    return [through.T @ inner + shrink * v, to_inner.T @ x + shrink * w, to_inner.sum(axis=0)]


def _sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0)))


def adam(
    parts: Sequence[Vectors],
    gradients: Callable[[Sequence[Vectors]], Sequence[Vectors]],
    steps: int,
    rate: Callable[[int], float],
) -> list[Vectors]:
    """The parameters after `steps` steps, in float32; `rate` is the step size of each step from 1 on."""
    parts = list(parts)
    moments = [(np.zeros_like(part), np.zeros_like(part)) for part in parts]
    for step in range(1, steps + 1):
        found = gradients(parts)
        size = np.float32(rate(step))
        for i, (gradient, (mean, square)) in enumerate(zip(found, moments, strict=True)):
            mean *= FIRST
            mean += (1.0 - FIRST) * gradient
            square *= SECOND
            square += (1.0 - SECOND) * gradient**2
            momentum = mean / np.float32(1.0 - FIRST**step)
            spread = np.sqrt(square / np.float32(1.0 - SECOND**step)) + np.float32(EPSILON)
            parts[i] = np.asarray(parts[i] - size * momentum / spread, dtype=np.float32)
    return parts
