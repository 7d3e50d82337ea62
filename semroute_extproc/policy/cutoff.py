"""Weak or strong by one score and one threshold: what all strategies of a pair share.

Pure. Hybrid LLM (arXiv 2404.14618) section 3 and RouteLLM (arXiv 2406.18665) section 3: a router
gives each query one score, the strong model has those from a threshold on, and moving the
threshold at test time trades cost for quality. The trade-off is kept as the strong *share*; the
score's quantiles on reference traffic turn it into a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from semroute_extproc.policy.decision import Choice, Facts


def threshold_for_share(quantiles: Sequence[float], share: float) -> float:
    """The score, a probability, from which on a share (0..1) of the reference traffic lies.

    `quantiles` are the score at 0, 1, … 100 % of that traffic, ascending.
    """
    if share <= 0.0:
        return float("inf")
    if share >= 1.0:
        return 0.0
    return float(np.interp(100.0 * (1.0 - share), np.arange(len(quantiles)), quantiles))


def share_for_threshold(quantiles: Sequence[float], threshold: float) -> float:
    """The share of the reference traffic whose score is at least `threshold`; the inverse of the above."""
    return float(1.0 - np.interp(threshold, quantiles, np.arange(len(quantiles)), 0.0, 100.0) / 100.0)


class Cutoff:
    """Picks the strong pool from a score on."""

    def __init__(
        self,
        weak: str,
        strong: str,
        quantiles: Sequence[float],
        *,
        share: float | None = None,
        threshold: float | None = None,
        what: str = "difficulty",
    ) -> None:
        """`quantiles` of the score on reference traffic; exactly one of `share` and `threshold`.

        `what` names the score in the reason.
        """
        assert (share is None) != (threshold is None)
        self.weak, self.strong = weak, strong
        self._quantiles = quantiles
        self._what = what
        if threshold is None:
            assert share is not None
            threshold = threshold_for_share(quantiles, share)
        self.threshold = threshold

    def choose(self, score: float, facts: Facts) -> Choice:
        """The pool for a score; a quality asked for per request replaces the share for that request."""
        threshold = self.threshold
        if facts.quality is not None:
            threshold = threshold_for_share(self._quantiles, facts.quality)
            if not 0.0 < facts.quality < 1.0:
                # Both ends are promises: every request, whatever its score.
                wanted, other = (self.strong, self.weak) if facts.quality else (self.weak, self.strong)
                return Choice(wanted, f"quality {facts.quality:g} was asked for", (other,), score, threshold)
        strong = score >= threshold
        wanted, other = (self.strong, self.weak) if strong else (self.weak, self.strong)
        sign = ">=" if strong else "<"
        return Choice(wanted, f"{self._what} {score:.2f} {sign} {threshold:.2f}", (other,), score, threshold)
