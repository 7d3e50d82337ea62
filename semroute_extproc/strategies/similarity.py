"""The similarity strategy: strong where the strong model won on similar prompts.

Pure. RouteLLM (arXiv 2406.18665) section 4.2, similarity-weighted ranking: a Bradley-Terry model is
fitted for every query, each stored comparison i weighing

    ω_i = γ^(1 + S_i)        S_i = cos(q, q_i) / max_j cos(q, q_j)

For one pair of models its likelihood has one unknown, the difference ξ of the two ratings:

    argmax_ξ  Σ_i ω_i [y_i log σ(ξ) + (1 − y_i) log σ(−ξ)]        solved by σ(ξ) = Σ ω_i y_i / Σ ω_i

with y_i = 1 where the strong model won, 0 where the weak one did and ½ for a tie. So the fit is a
weighted mean in closed form, exact, where the paper's router solves it by iteration.
"""

from __future__ import annotations

import math

import numpy as np

from semroute_extproc.encoder.signals import FloatArray, Signals
from semroute_extproc.strategies.artifacts import Similarity as Artifact

COSINE_MIN = 1e-3
"""Where not even the nearest prompt is similar, S is taken relative to this."""


LENGTH_MIN = 1e-6
"""A text that the axes know nothing of stays near 0 and is similar to none."""


class Similarity:
    """P(strong wins) from stored prompts.

    Every stored prompt is read for every query, in float32 and without an index: what is given is
    exact for the stored rows, which may stand on fewer axes than the embedding (`semroute fit`).
    """

    def __init__(self, artifact: Artifact) -> None:
        n = len(artifact.wins)
        self._log_gamma = math.log(artifact.gamma)
        self._k = artifact.neighbours if 0 < artifact.neighbours < n else 0
        # A product with a row vector streams through these, in half the time of rows times a column.
        self._columns: FloatArray = np.ascontiguousarray(artifact.embeddings.T)
        self._axes = artifact.axes
        self._wins = artifact.wins
        self._revision = artifact.manifest.revision
        self._shape = (artifact.manifest.dimensions,)

    def __call__(self, signals: Signals) -> float | None:
        """The probability, or None for a text that another bundle read."""
        x = signals.neighbours
        if x is None or signals.revision != self._revision or x.shape != self._shape:
            return None
        return self.of(x)

    def of(self, x: FloatArray) -> float:
        """The probability for an embedding (d,) of length 1."""
        cosines: FloatArray = (
            x if self._axes is None else on_axes(x[None, :], self._axes)[0]
        ) @ self._columns
        if not self._k:
            return win_rate(cosines, self._wins, self._log_gamma)
        near = np.argpartition(cosines, len(cosines) - self._k)[len(cosines) - self._k :]
        return win_rate(cosines[near], self._wins[near], self._log_gamma)


def on_axes(x: FloatArray, axes: FloatArray) -> FloatArray:
    """Rows (n, d) on the axes (r, d), scaled to length 1 again; (n, r)."""
    found: FloatArray = x @ axes.T
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(LENGTH_MIN))
    return found


def win_rate(cosines: FloatArray, wins: FloatArray, log_gamma: float) -> float:
    """Σ ω y / Σ ω over stored prompts; both arrays (n,). A common factor of all ω cancels."""
    best = float(cosines.max())
    # Relative to the largest, so that there is always one weight of 1 and none overflows.
    weights = np.exp((cosines - np.float32(best)) * np.float32(log_gamma / max(best, COSINE_MIN)))
    return float(np.dot(weights, wins)) / float(weights.sum())
