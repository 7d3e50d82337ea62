"""Weak or strong by one score and one threshold, for every strategy of a pair. Pure.

Hybrid LLM (arXiv 2404.14618) section 3 and RouteLLM (arXiv 2406.18665) section 3: the strong model has
the queries whose score is at least a threshold, which trades cost for quality. The trade-off is kept as
the strong *share*; the score's quantiles on reference traffic turn it into a threshold.

Controllers act on the share, s, in this order. A budget's bias b adds to its log-odds:
logit s' = logit s + b. Then pressure, on the easiest requests: with d = pressure(strong) − pressure(weak),

    d > 0:  s'' = s' − d · (s' − floor)        but never up: nothing if s' is below the floor
    d < 0:  s'' = s' + |d| · (ceiling − s')    only if there is a ceiling; never down
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from semroute_extproc.policy.context import Choice, RoutingContext

NO_SHARE = 1e-9  # a share below this is rounding
SHARE_MIN = 0.005  # a biased share is this far from 0 and 1, where log-odds are infinite
Quantiles = Sequence[float] | npt.NDArray[np.float64]
"""A score at 0, 1, … 100 % of the reference traffic, ascending."""


def threshold_for_share(quantiles: Quantiles, share: float) -> float:
    """The lowest score of the top `share` (0..1) of the reference traffic; inf for a share of 0."""
    if share <= 0.0:
        return float("inf")
    if share >= 1.0:
        return 0.0
    return float(np.interp(100.0 * (1.0 - share), np.arange(len(quantiles)), quantiles))


def share_for_threshold(quantiles: Quantiles, threshold: float) -> float:
    """The share of the reference traffic whose score is at least `threshold`."""
    # Evaluate just below the threshold, so that scores equal to it count; there may be many.
    below = np.interp(np.nextafter(threshold, -1.0), quantiles, np.arange(len(quantiles)), 0.0, 100.0)
    return float(1.0 - below / 100.0)


def rise_above(quantiles: Quantiles, threshold: float, score: float) -> float:
    """The fraction of the traffic above `threshold` whose score is below `score`."""
    above = share_for_threshold(quantiles, threshold)
    return 1.0 - share_for_threshold(quantiles, score) / above if above > NO_SHARE else 1.0


def biased(share: float, bias: float) -> float:
    """The share (0..1) after adding `bias` to its log-odds."""
    inside = min(max(share, SHARE_MIN), 1.0 - SHARE_MIN)
    return 1.0 / (1.0 + (1.0 - inside) / inside * math.exp(-bias))


def pressed(share: float, weak: float, strong: float, floor: float, ceiling: float | None) -> float:
    """The strong share (0..1) after the pressures `weak` and `strong` (0..1)."""
    if (net := strong - weak) > 0.0:
        return share - net * max(share - floor, 0.0)
    return share if ceiling is None else share - net * max(ceiling - share, 0.0)


class Cutoff:
    """Selects the strong pool for scores at or above a threshold."""

    def __init__(
        self,
        weak: str,
        strong: str,
        quantiles: Sequence[float],
        *,
        share: float | None = None,
        threshold: float | None = None,
        what: str = "difficulty",
        digits: int = 2,
    ) -> None:
        """Exactly one of `share` and `threshold`; the reason shows the score as `what`, with `digits`."""
        assert (share is None) != (threshold is None)
        self.weak, self.strong, self.what, self._digits = weak, strong, what, digits
        # An array, so that NumPy does not convert the tuple for every choice.
        self._quantiles = np.asarray(quantiles, dtype=np.float64)
        if share is not None:
            self.threshold, self.share = threshold_for_share(quantiles, share), share
        elif threshold is not None:
            self.threshold, self.share = threshold, share_for_threshold(quantiles, threshold)

    def choose(self, score: float, context: RoutingContext) -> Choice:
        """The pool for a score; a quality set for the request replaces the share."""
        threshold, share, quality = self.threshold, self.share, context.quality
        if quality is not None:
            threshold, share = threshold_for_share(self._quantiles, quality), quality
        if context.hard_preference:
            wanted, other = (self.strong, self.weak) if quality else (self.weak, self.strong)
            return Choice(wanted, f"quality {quality:g} was asked for", (other,), score, threshold)
        before, moved, conditions = share, list[tuple[str, str]](), context.conditions
        if context.bias:
            share = biased(share, context.bias)
            moved.append(("budget", f"{context.bias:+.2f}"))
        if conditions.pressure:
            weak, strong = (conditions.pressure.get(pool, 0.0) for pool in (self.weak, self.strong))
            left = pressed(share, weak, strong, conditions.floor, conditions.ceiling)
            if left != share:
                moved.append(("load", f"share {share:.2f} to {left:.2f}"))
            share = left
        if share != before:
            threshold = threshold_for_share(self._quantiles, share)
        wanted, other, sign, rise = self.weak, self.strong, "<", None
        if score >= threshold:
            wanted, other, sign = self.strong, self.weak, ">="
            rise = rise_above(self._quantiles, threshold, score)
        reason = f"{self.what} {score:.{self._digits}f} {sign} {threshold:.{self._digits}f}"
        changed = share if moved else None
        return Choice(wanted, reason, (other,), score, threshold, changed, rise, tuple(moved))
