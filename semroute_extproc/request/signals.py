"""What the encoder predicts about a request's text. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Signals:
    """What the bundle says about one text."""

    domain: str
    domain_probs: Mapping[str, float]
    domain_entropy: float
    """Entropy of the domain distribution over its maximum, 0 (certain) to 1."""
    difficulty: float
    """Calibrated probability that the strong model wins where the weak one does not."""
    unknown: bool
    """Out of distribution: far from every centroid, or in a language the bundle was not trained on."""
    tokens: int
    truncated: bool
    language: str
    task: str = ""
    task_probs: Mapping[str, float] = field(default_factory=dict)
    similarity: float = 0.0
    """Cosine to the nearest centroid."""
    embedding: FloatArray | None = None
    neighbours: FloatArray | None = None
    """Input of strategies with an artifact; see `encoder.signals.RawOutput`."""
    revision: str = ""
    """Of the bundle that read the text; `neighbours` fits only artifacts of the same revision."""
