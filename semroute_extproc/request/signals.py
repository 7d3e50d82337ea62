"""What the encoder predicts about a request's text. Pure."""

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
    domain_entropy: float  # over its maximum: 0 (certain) to 1
    difficulty: float  # calibrated probability that the strong model wins where the weak one does not
    unknown: bool  # far from every centroid, or in a language the bundle was not trained on
    tokens: int
    truncated: bool
    language: str
    task: str = ""
    task_probs: Mapping[str, float] = field(default_factory=dict)
    similarity: float = 0.0  # cosine to the nearest centroid
    embedding: FloatArray | None = None
    neighbors: FloatArray | None = None  # input of strategies with an artifact of the same `revision`
    revision: str = ""  # of the bundle that read the text
    remote: str = ""  # why not the server but this process read the text; empty if that was intended
