"""From the encoder's raw outputs to signals, calibrated by the bundle's own values. Pure."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semroute_extproc.encoder.manifest import LabelHead
from semroute_extproc.request.signals import FloatArray
from semroute_extproc.request.signals import Signals as Signals

if TYPE_CHECKING:
    from semroute_extproc.encoder.bundle import Bundle


@dataclass(frozen=True, slots=True)
class RawOutput:
    """The output of one pass for one text, before calibration."""

    embedding: FloatArray  # shape (d,), L2-normalized
    neighbors: FloatArray  # for clusters and neighbors: an output of its own, or else `embedding`
    domain_logits: FloatArray
    difficulty_logit: float
    task_logits: FloatArray | None  # None if the bundle has no task head
    tokens: int  # of the whole text without special tokens; an estimate if `truncated`
    truncated: bool  # the text did not fit the window: only its head and tail were read
    unk_share: float  # share of the tokens read that are not in the vocabulary
    remote: str = ""  # see `Signals`


def calibrate(bundle: "Bundle", raw: RawOutput, language: str) -> Signals:
    """Turn one raw output into signals; the difficulty has a scale and a shift (Platt 1999)."""
    manifest = bundle.manifest
    domain_probs = _probabilities(manifest.domain, raw.domain_logits)
    task_probs = _probabilities(manifest.task, raw.task_logits)
    similarity = float((bundle.centroids @ raw.neighbors).max())
    far = similarity < manifest.unknown.threshold or raw.unk_share > manifest.unknown.unk_share_max
    return Signals(
        domain=max(domain_probs, key=domain_probs.__getitem__),
        domain_probs=domain_probs,
        domain_entropy=entropy(domain_probs.values()),
        difficulty=sigmoid(manifest.difficulty.scale * raw.difficulty_logit + manifest.difficulty.shift),
        # The vocabulary may cover the letters of a language that the bundle was not trained on.
        unknown=far or language not in manifest.languages,
        tokens=raw.tokens,
        truncated=raw.truncated,
        language=language,
        task=max(task_probs, key=task_probs.__getitem__, default=""),
        task_probs=task_probs,
        similarity=similarity,
        embedding=raw.embedding,
        neighbors=raw.neighbors,
        revision=manifest.revision,
        remote=raw.remote,
    )


def _probabilities(head: LabelHead | None, logits: FloatArray | None) -> dict[str, float]:
    if head is None or logits is None:
        return {}
    return dict(zip(head.labels, softmax(logits, head.temperature), strict=True))


def softmax(logits: FloatArray, temperature: float = 1.0) -> list[float]:
    """Softmax with temperature (Guo et al. 2017, section 4.2); NumPy would take ten times as long."""
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
    """Shannon entropy over its maximum log(n): 0 if certain, or of less than two outcomes; 1 if uniform."""
    nats = -sum(p * math.log(p) for p in probabilities if p > 0)
    return nats / math.log(max(len(probabilities), 2))
