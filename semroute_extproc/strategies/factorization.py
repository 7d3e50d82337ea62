"""The factorization strategy: a bilinear model of models and prompts.

Pure. RouteLLM (arXiv 2406.18665) section 4.2, matrix factorization:

    δ(M, q) = w₂ᵀ (v_M ⊙ (W₁ᵀ x_q + b))        P(strong wins | q) = σ(δ(strong, q) − δ(weak, q))

For two models of a fitted artifact the difference is one vector and one number, folded once.
"""

from __future__ import annotations

import numpy as np

from semroute_extproc.encoder.signals import FloatArray, Signals, sigmoid
from semroute_extproc.strategies.artifacts import Factorization as Artifact


class Factorization:
    """P(strong wins) of two models of an artifact."""

    def __init__(self, artifact: Artifact, strong: str, weak: str) -> None:
        """The names are the artifact's."""
        gap = artifact.vectors[artifact.models.index(strong)] - artifact.vectors[artifact.models.index(weak)]
        self._direction: FloatArray = gap @ artifact.projection
        self._offset = float(gap @ artifact.bias)
        self._revision = artifact.manifest.revision

    def __call__(self, signals: Signals) -> float | None:
        """The probability, or None for a text that another bundle read."""
        x = signals.neighbours
        if x is None or signals.revision != self._revision or x.shape != self._direction.shape:
            return None
        return self.of(x)

    def of(self, x: FloatArray) -> float:
        """The probability for an embedding (d,)."""
        return sigmoid(float(np.dot(self._direction, x)) + self._offset)
