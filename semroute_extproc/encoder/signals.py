"""From the encoder's raw outputs to calibrated signals.

Pure. The calibration belongs to the bundle: one temperature per label head (Guo et al. 2017, section
4.2) and a scale and shift for the difficulty logit (Platt 1999).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semroute_extproc.request.signals import FloatArray as FloatArray
from semroute_extproc.request.signals import Signals as Signals

if TYPE_CHECKING:
    from semroute_extproc.encoder.bundle import Bundle


@dataclass(frozen=True, slots=True)
class RawOutput:
    """The output of one pass for one text, before calibration."""

    embedding: FloatArray
    """Shape (d,), L2-normalized."""
    neighbours: FloatArray
    """Shape (d,), L2-normalized: used to find clusters and neighbors. Equals `embedding` if the graph has
    no output `neighbour_embedding`."""
    domain_logits: FloatArray
    """Shape (14,)."""
    difficulty_logit: float
    task_logits: FloatArray | None
    """Shape (10,), or None if the bundle has no task head."""
    tokens: int
    """Tokens of the whole text without special tokens; an estimate if `truncated`."""
    truncated: bool
    """The text did not fit the window: only its head and tail were read."""
    unk_share: float
    """Share of the tokens read that are not in the vocabulary."""


def calibrate(bundle: Bundle, raw: RawOutput, language: str) -> Signals:
    """Turn one raw output into signals with the bundle's calibration."""
    manifest = bundle.manifest
    domain = softmax(raw.domain_logits, manifest.domain.temperature)
    similarity = float((bundle.centroids @ raw.neighbours).max())
    unknown = (
        similarity < manifest.unknown.threshold
        or raw.unk_share > manifest.unknown.unk_share_max
        # A vocabulary may contain a language's letters without the bundle being trained on the language.
        or language not in manifest.languages
    )
    task_probs: dict[str, float] = {}
    if manifest.task is not None and raw.task_logits is not None:
        task = softmax(raw.task_logits, manifest.task.temperature)
        task_probs = dict(zip(manifest.task.labels, task, strict=True))
    return Signals(
        domain=manifest.domain.labels[domain.index(max(domain))],
        domain_probs=dict(zip(manifest.domain.labels, domain, strict=True)),
        domain_entropy=entropy(domain),
        difficulty=sigmoid(manifest.difficulty.scale * raw.difficulty_logit + manifest.difficulty.shift),
        unknown=unknown,
        tokens=raw.tokens,
        truncated=raw.truncated,
        language=language,
        task=max(task_probs, key=task_probs.__getitem__) if task_probs else "",
        task_probs=task_probs,
        similarity=similarity,
        embedding=raw.embedding,
        neighbours=raw.neighbours,
        revision=manifest.revision,
    )


def softmax(logits: FloatArray, temperature: float = 1.0) -> list[float]:
    """Softmax of a short vector over its temperature, computed in float64.

    In plain Python: for a dozen numbers that takes a tenth of the time of the NumPy calls.
    """
    scaled = [logit / temperature for logit in logits.tolist()]
    highest = max(scaled)
    powers = [math.exp(logit - highest) for logit in scaled]
    total = sum(powers)
    return [power / total for power in powers]


def sigmoid(x: float) -> float:
    """Logistic function that does not overflow."""
    e = math.exp(-abs(x))
    return 1.0 / (1.0 + e) if x >= 0 else e / (1.0 + e)


def entropy(probabilities: Collection[float]) -> float:
    """Shannon entropy over its maximum log(n): 0 for a certain distribution, 1 for a uniform one.

    0 for no probabilities, or a single one.
    """
    nats = -sum(p * math.log(p) for p in probabilities if p > 0)
    return nats / math.log(max(len(probabilities), 2))
