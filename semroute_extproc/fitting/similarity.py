"""Fitting for the similarity strategy: nothing to learn, but scores on held-out prompts to know."""

from __future__ import annotations

import math

import numpy as np

from semroute_extproc.artefacts import Manifest, Similarity
from semroute_extproc.evaluation.metrics.arrays import Floats, Integers
from semroute_extproc.fitting.outcomes import Vectors, quantiles
from semroute_extproc.policy.similarity import Similarity as Score

GAMMA = 10.0
"""RouteLLM's base of the weights."""

HELD_OUT_MAX = 4_000
"""Prompts scored by the others' labels; more change no quantile that matters."""


def fit(
    x: Vectors, wins: Floats, fold: Integers, manifest: Manifest, gamma: float = GAMMA, neighbours: int = 0
) -> tuple[Similarity, Floats]:
    """The artefact, and out-of-fold scores of the rows, NaN where a row was not scored; (n,).

    `x` (n, d) unit rows, `wins` (n,) labels 0..1, `fold` (n,).
    """
    held = np.full(len(x), math.nan)
    chosen = np.random.default_rng(manifest.seed).permutation(len(x))[:HELD_OUT_MAX]
    labels = wins.astype(np.float32)
    empty = (0.0,) * 101
    for part in np.unique(fold):
        rows = fold != part
        score = Score(Similarity(manifest, x[rows], labels[rows], gamma, neighbours, empty))
        for row in chosen[fold[chosen] == part]:
            held[row] = score.of(x[row])
    reference = quantiles(held[np.isfinite(held)])
    return Similarity(manifest, x, labels, gamma, neighbours, reference), held
