"""Fitting for the similarity strategy: the axes to store prompts on, and scores on held-out prompts.

Principal axes keep the differences between prompts and save time: on the pair data the leading 64 to
128 of 384 route as well as all, and reading a prompt costs proportionally less.
"""

import math

import numpy as np

from semroute_extproc.strategies.artifact import ArtifactManifest as Manifest
from semroute_extproc.strategies.similarity import SimilarityArtifact, on_axes
from semroute_lab.common.metrics import Floats, Integers, Vectors
from semroute_lab.fit.outcomes import quantiles

GAMMA = 10.0  # RouteLLM's base of the weights
WHOLE_MAX = 10_000  # Up to this many prompts the whole embedding is stored
AXES = 64  # Axes on which more prompts are stored
HELD_OUT_MAX = 4_000  # Prompts scored out of fold; more do not change the quantiles


def fit(
    x: Vectors,
    wins: Floats,
    fold: Integers,
    manifest: Manifest,
    gamma: float = GAMMA,
    neighbors: int = 0,
    axes: int | None = None,
) -> tuple[SimilarityArtifact, Floats]:
    """The artifact, and out-of-fold scores of the rows, NaN where a row was not scored; (n,).
    `x` (n, d) unit rows, `wins` (n,) labels 0..1, `fold` (n,); `axes` principal axes to store the rows on, by
    default all up to `WHOLE_MAX` rows.
    """
    held = np.full(len(x), math.nan)
    chosen = np.random.default_rng(manifest.seed).permutation(len(x))[:HELD_OUT_MAX]
    labels = wins.astype(np.float32)
    basis = principal_axes(x, axes or (x.shape[1] if len(x) <= WHOLE_MAX else AXES))
    stored = x if basis is None else on_axes(x, basis)
    empty = (0.0,) * 101
    for part in np.unique(fold):
        rows = fold != part
        kept = SimilarityArtifact(manifest, stored[rows], basis, labels[rows], gamma, neighbors, empty)
        score = kept.score()
        for row in chosen[fold[chosen] == part]:
            held[row] = score(x[row])
    reference = quantiles(np.clip(held[np.isfinite(held)], 0.0, 1.0))
    return SimilarityArtifact(manifest, stored, basis, labels, gamma, neighbors, reference), held


def principal_axes(x: Vectors, count: int) -> Vectors | None:
    """The leading principal axes (count, d) of the rows, not centered; None if that is all of them."""
    if count >= x.shape[1]:
        return None
    _, found = np.linalg.eigh((x.T @ x).astype(np.float64))
    return np.ascontiguousarray(found[:, ::-1][:, :count].T, dtype=np.float32)
