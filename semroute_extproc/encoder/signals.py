"""From the encoder's raw outputs to calibrated signals.

Pure. Calibration is the bundle's: one temperature for the domain head (Guo et al. 2017, section
4.2) and a scale and shift for the difficulty logit (Platt 1999).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from semroute_extproc.encoder.bundle import Bundle

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RawOutput:
    """What one pass of the encoder gives for one text, before calibration."""

    embedding: FloatArray
    """Shape (d,), L2-normalised."""
    neighbours: FloatArray
    """Shape (d,), L2-normalised: what clusters and neighbourhoods are found with. The embedding itself
    where a bundle has no output `neighbour_embedding`."""
    domain_logits: FloatArray
    """Shape (14,)."""
    difficulty_logit: float
    task_logits: FloatArray | None
    """Shape (10,), or None if the bundle has no task head."""
    tokens: int
    """Tokens of the whole text, special tokens left out; an estimate where `truncated`."""
    truncated: bool
    """The text did not fit the window: its head and tail were read."""
    unk_share: float
    """Share of the tokens read that the vocabulary does not know."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What the bundle says of one text."""

    domain: str
    domain_probs: Mapping[str, float]
    domain_entropy: float
    """Entropy of the domain distribution over its maximum, 0 (sure) to 1."""
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
    """What strategies with an artifact read; see `RawOutput`."""
    revision: str = ""
    """Of the bundle that read the text; only artifacts of the same revision understand `neighbours`."""


def calibrate(bundle: Bundle, raw: RawOutput, language: str) -> Signals:
    """Turn one raw output into signals with `bundle`'s calibration."""
    domain = softmax(raw.domain_logits, bundle.domain.temperature)
    logit = bundle.difficulty.scale * raw.difficulty_logit + bundle.difficulty.shift
    similarity = float((bundle.centroids @ raw.neighbours).max())
    unknown = (
        similarity < bundle.unknown.threshold
        or raw.unk_share > bundle.unknown.unk_share_max
        # A vocabulary may know a language's letters and nothing of what is written with them.
        or language not in bundle.manifest.languages
    )
    task_probs: dict[str, float] = {}
    if bundle.task is not None and raw.task_logits is not None:
        task = softmax(raw.task_logits, bundle.task.temperature)
        task_probs = dict(zip(bundle.task.labels, task, strict=True))
    return Signals(
        domain=bundle.domain.labels[domain.index(max(domain))],
        domain_probs=dict(zip(bundle.domain.labels, domain, strict=True)),
        domain_entropy=entropy(domain),
        difficulty=sigmoid(logit),
        unknown=unknown,
        tokens=raw.tokens,
        truncated=raw.truncated,
        language=language,
        task=max(task_probs, key=task_probs.__getitem__) if task_probs else "",
        task_probs=task_probs,
        similarity=similarity,
        embedding=raw.embedding,
        neighbours=raw.neighbours,
        revision=bundle.revision,
    )


def softmax(logits: FloatArray, temperature: float = 1.0) -> list[float]:
    """Softmax of a short vector over its temperature, computed in float64.

    In plain Python: for a dozen numbers that is a tenth of what the calls into NumPy cost.
    """
    scaled = [logit / temperature for logit in logits.tolist()]
    highest = max(scaled)
    powers = [math.exp(logit - highest) for logit in scaled]
    total = sum(powers)
    return [power / total for power in powers]


def sigmoid(x: float) -> float:
    """Logistic function that does not overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


def entropy(probabilities: Sequence[float]) -> float:
    """Shannon entropy over its maximum log(n): 0 for a sure distribution, 1 for a uniform one."""
    return -sum(p * math.log(p) for p in probabilities if p > 0) / math.log(len(probabilities))
