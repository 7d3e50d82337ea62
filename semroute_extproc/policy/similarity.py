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

from semroute_extproc.artefacts import Similarity as Artefact
from semroute_extproc.policy.nearest import Nearest
from semroute_extproc.signals import FloatArray, Signals

COSINE_MIN = 1e-3
"""Where not even the nearest prompt is similar, S is taken relative to this."""


class Similarity:
    """P(strong wins) from stored prompts."""

    def __init__(self, artefact: Artefact) -> None:
        self._log_gamma = math.log(artefact.gamma)
        self._all = not 0 < artefact.neighbours < len(artefact.wins)
        self._nearest = Nearest(artefact.embeddings, 0 if self._all else artefact.neighbours)
        self._wins = artefact.wins
        self._revision = artefact.manifest.revision
        self._shape = artefact.embeddings.shape[1:]

    def __call__(self, signals: Signals) -> float | None:
        """The probability, or None for a text that another bundle read."""
        x = signals.neighbours
        if x is None or signals.revision != self._revision or x.shape != self._shape:
            return None
        return self.of(x)

    def of(self, x: FloatArray) -> float:
        """The probability for an embedding (d,) of length 1."""
        if self._all:
            return win_rate(self._nearest.cosines(x), self._wins, self._log_gamma)
        rows, cosines = self._nearest.top(x)
        return win_rate(cosines, self._wins[rows], self._log_gamma)


def win_rate(cosines: FloatArray, wins: FloatArray, log_gamma: float) -> float:
    """Σ ω y / Σ ω over stored prompts; both arrays (n,). A common factor of all ω cancels."""
    best = float(cosines.max())
    # Relative to the largest, so that there is always one weight of 1 and none overflows.
    weights = np.exp((cosines - np.float32(best)) * np.float32(log_gamma / max(best, COSINE_MIN)))
    return float(np.dot(weights, wins)) / float(weights.sum())
